//! The one error that handlers return: a [`Status`], boxed because it is large and rare.

use std::fmt;

use carob_api::Status;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError(Box<Status>);

pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(crate) fn status(&self) -> &Status {
        &self.0
    }

    pub(crate) fn into_status(self) -> Status {
        *self.0
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        Self(Box::new(status))
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for ApiError {}
