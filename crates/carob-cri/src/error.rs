use std::fmt;

/// The status codes of gRPC (grpc `doc/statuscodes.md`), since CRI's callers branch on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl fmt::Display for Code {
    /// The code's name as Go's gRPC library prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("Canceled"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// A failed CRI call: the gRPC status that crosses a socket, and all that crosses a call within the process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CriError {
    pub code: Code,
    pub message: String,
}

impl CriError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub fn failed_precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// The answer to a rpc that a runtime does not have.
    pub fn unimplemented(rpc: &str) -> Self {
        Self::new(Code::Unimplemented, format!("this runtime does not implement {rpc}"))
    }

    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }
}
