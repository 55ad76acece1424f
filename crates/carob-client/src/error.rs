//! The error of a reconcile: what was being done, to what, and why it failed.

use std::error::Error;
use std::fmt;

use kube::core::Status;

/// A reconcile that did not finish. The driver logs it and tries the key again after its back-off.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// A request to the API failed.
    #[error("{operation}")]
    Request {
        /// For instance `create pod default/web-0`.
        operation: String,
        #[source]
        cause: RequestError,
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
    /// What the API answered, if it did and refused.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Request { cause: RequestError(kube::Error::Api(status)), .. } => Some(status),
            _ => None,
        }
    }

    /// The object changed under us (409 Conflict): the next look will be at the new one, so this is no news for a log.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|status| status.is_conflict() && !status.is_already_exists())
    }

    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(Status::is_not_found)
    }

    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(Status::is_already_exists)
    }
}

/// A request that failed, in the API's own words where it answered: `kube::Error` prints the whole Status besides.
#[derive(Debug)]
pub struct RequestError(pub kube::Error);

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            kube::Error::Api(status) => f.write_str(&status.message),
            // It names its cause itself.
            error => write!(f, "{error}"),
        }
    }
}

impl Error for RequestError {}

/// An error and its causes as one sentence, each said once. Where the API answered these are its own words: `kube::Error` prints
/// the whole Status besides, and repeats its cause.
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut said = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let answer = error.downcast_ref::<kube::Error>();
        let text = match answer {
            Some(kube::Error::Api(status)) => status.message.clone(),
            // Each of the others is a prefix before its cause.
            Some(_) if error.source().is_some() => String::new(),
            Some(_) | None => error.to_string(),
        };
        if !text.is_empty() && !said.ends_with(&text) {
            said += if said.is_empty() { "" } else { ": " };
            said += &text;
        }
        // The Status behind an answer says the same in other words.
        next = if matches!(answer, Some(kube::Error::Api(_))) { None } else { error.source() };
    }
    said
}

/// Names the operation that a result belongs to.
pub trait During<T> {
    fn during(self, operation: impl FnOnce() -> String) -> Result<T, ReconcileError>;

    /// As [`During::during`], but an object that is gone is `None`, not an error: what deletes is idempotent.
    fn unless_gone(self, operation: impl FnOnce() -> String) -> Result<Option<T>, ReconcileError>;
}

impl<T> During<T> for Result<T, kube::Error> {
    fn during(self, operation: impl FnOnce() -> String) -> Result<T, ReconcileError> {
        self.map_err(|cause| ReconcileError::Request { operation: operation(), cause: RequestError(cause) })
    }

    fn unless_gone(self, operation: impl FnOnce() -> String) -> Result<Option<T>, ReconcileError> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
            Err(cause) => Err(ReconcileError::Request { operation: operation(), cause: RequestError(cause) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("create pod default/a")]
    struct Outer(#[source] kube::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("the answer: {0}")]
    struct Repeats(#[source] std::io::Error);

    #[test]
    fn an_answer_of_the_api_is_said_once_in_its_own_words() {
        let status = Status::failure("pods \"a\" is forbidden: no", "Forbidden").with_code(403);
        let error = Outer(kube::Error::Api(status.boxed()));
        assert_eq!(sentence(&error), "create pod default/a: pods \"a\" is forbidden: no");
    }

    #[test]
    fn a_cause_that_its_effect_has_said_is_not_said_again() {
        let error = Repeats(std::io::Error::other("the disk is full"));
        assert_eq!(sentence(&error), "the answer: the disk is full");
        let service = kube::Error::Service(Box::new(std::io::Error::other("connection refused")));
        assert_eq!(sentence(&service), "connection refused");
    }
}
