//! The error of a reconcile: what was being done, to what, and why it failed.

use std::error::Error;

/// A reconcile that did not finish. The driver logs it and tries the key again after its back-off.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// A request to the API failed.
    #[error("{operation}")]
    Request {
        /// For instance `create pod default/web-0`.
        operation: String,
        #[source]
        cause: kube::Error,
    },
    /// Something other than a request failed.
    #[error("{operation}")]
    Other {
        operation: String,
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// An object holds something that this part cannot work with.
    #[error("{0}")]
    Unusable(String),
}

impl ReconcileError {
    /// The object changed under us (409 Conflict): the next look will be at the new one, so this is no news for a log.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Request { cause: kube::Error::Api(status), .. } if status.is_conflict() && !status.is_already_exists())
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Request { cause: kube::Error::Api(status), .. } if status.is_not_found())
    }

    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Request { cause: kube::Error::Api(status), .. } if status.is_already_exists())
    }
}

/// Names the operation that a result belongs to.
pub trait During<T> {
    fn during(self, operation: impl FnOnce() -> String) -> Result<T, ReconcileError>;

    /// As [`During::during`], but an object that is gone is `None`, not an error: what deletes is idempotent.
    fn unless_gone(self, operation: impl FnOnce() -> String) -> Result<Option<T>, ReconcileError>;
}

impl<T> During<T> for Result<T, kube::Error> {
    fn during(self, operation: impl FnOnce() -> String) -> Result<T, ReconcileError> {
        self.map_err(|cause| ReconcileError::Request { operation: operation(), cause })
    }

    fn unless_gone(self, operation: impl FnOnce() -> String) -> Result<Option<T>, ReconcileError> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
            Err(cause) => Err(ReconcileError::Request { operation: operation(), cause }),
        }
    }
}
