//! Errors of CRI as statuses of gRPC, and back.

use carob_cri::{Code, CriError};
use carob_grpc::{CallError, Status};

pub(crate) fn to_status(error: CriError) -> Status {
    Status::new(carob_grpc::Code::from(error.code as i32), error.message)
}

pub(crate) fn to_error(error: CallError) -> CriError {
    let code = match &error {
        CallError::Status { code, .. } => of(*code),
        CallError::Unreached { .. } | CallError::Broken(_) => Code::Unavailable,
        CallError::Late(_) => Code::DeadlineExceeded,
        CallError::TooLong { .. } => Code::ResourceExhausted,
        CallError::Malformed(_) => Code::Internal,
    };
    CriError::new(code, carob_kit::chain(&error).to_string())
}

fn of(code: carob_grpc::Code) -> Code {
    use carob_grpc::Code as Wire;
    match code {
        // No error has it; whoever calls it one is wrong in a way that is not known.
        Wire::Ok | Wire::Unknown => Code::Unknown,
        Wire::Cancelled => Code::Cancelled,
        Wire::InvalidArgument => Code::InvalidArgument,
        Wire::DeadlineExceeded => Code::DeadlineExceeded,
        Wire::NotFound => Code::NotFound,
        Wire::AlreadyExists => Code::AlreadyExists,
        Wire::PermissionDenied => Code::PermissionDenied,
        Wire::ResourceExhausted => Code::ResourceExhausted,
        Wire::FailedPrecondition => Code::FailedPrecondition,
        Wire::Aborted => Code::Aborted,
        Wire::OutOfRange => Code::OutOfRange,
        Wire::Unimplemented => Code::Unimplemented,
        Wire::Internal => Code::Internal,
        Wire::Unavailable => Code::Unavailable,
        Wire::DataLoss => Code::DataLoss,
        Wire::Unauthenticated => Code::Unauthenticated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_cross_the_socket_both_ways() {
        for number in 1..=16 {
            let code = of(carob_grpc::Code::from(number));
            assert_eq!(code as i32, number);
            let status = to_status(CriError::new(code, "words"));
            let back = to_error(CallError::Status { code: status.code(), message: status.message().to_owned() });
            assert_eq!(back, CriError::new(code, "words"));
        }
    }
}
