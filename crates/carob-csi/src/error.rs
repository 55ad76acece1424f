use carob_grpc::{CallError, Code};

/// A call of a driver that did not end well. `Status` is in the words of Go's library, which people search for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DriverError {
    #[error("rpc error: code = {code:?} desc = {message}")]
    Status { code: Code, message: String },
    #[error("the driver's socket")]
    Call(#[source] CallError),
}

impl From<CallError> for DriverError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Status { code, message } => Self::Status { code, message },
            CallError::Late(within) => {
                let message = format!("no answer within {} s", within.as_secs());
                Self::Status { code: Code::DeadlineExceeded, message }
            }
            other => Self::Call(other),
        }
    }
}

impl DriverError {
    /// Whether the operation has ended: it either did not begin or failed. All else may still be under way
    /// (`pkg/volume/csi/csi_client.go`, isFinalError).
    pub fn is_final(&self) -> bool {
        match self {
            Self::Status { code, .. } => !matches!(
                code,
                Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::ResourceExhausted | Code::Aborted
            ),
            Self::Call(_) => false,
        }
    }

    /// Whether trying again is of no use (`pkg/volume/csi/expander.go`, isInfeasibleError).
    pub fn is_infeasible(&self) -> bool {
        matches!(self, Self::Status { code: Code::InvalidArgument | Code::OutOfRange | Code::NotFound, .. })
    }

    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status { code, .. } => Some(*code),
            Self::Call(_) => None,
        }
    }
}
