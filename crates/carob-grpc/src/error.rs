use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Status};

use crate::connect::ConnectError;

/// A call that did not end well. What matters most: whether the server may have acted on it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// No endpoint took a connection: the request was not sent.
    #[error("no connection to {endpoint}")]
    Unreached {
        endpoint: String,
        #[source]
        source: Arc<ConnectError>,
    },
    /// It is not sent.
    #[error("a request of {len} bytes is over the limit of {max}")]
    TooLong { len: usize, max: usize },
    /// It was sent, and nobody knows what became of it.
    #[error("the connection broke before the answer")]
    Broken(#[source] Arc<Broken>),
    /// It may have been sent, and nobody knows what became of it.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The server's own words.
    #[error("{message}")]
    Status { code: Code, message: String },
    /// The server's answer breaks the protocol or a limit; what became of the request is not known.
    #[error("the answer cannot be read: {0}")]
    Malformed(String),
}

impl CallError {
    /// Whether the server cannot have seen the request.
    pub fn not_sent(&self) -> bool {
        matches!(self, Self::Unreached { .. } | Self::TooLong { .. })
    }

    /// `said`: the server ended the call with a status of its own.
    pub(crate) fn of(status: Status, said: bool) -> Self {
        let failure = std::error::Error::source(&status).and_then(|source| source.downcast_ref::<Failure>());
        match failure {
            Some(Failure(error)) => error.clone(),
            None if said => Self::Status { code: status.code(), message: status.message().to_owned() },
            None => Self::Malformed(status.message().to_owned()),
        }
    }
}

/// How a connection broke.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("the answer ended without a status")]
    NoStatus,
}

/// Carries an error of ours through tonic, which hands it back as the source of a [`Status`].
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct Failure(pub(crate) CallError);
