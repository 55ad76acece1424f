//! Paths that name no resource.

use http::request::Parts;
use http::Response;

use crate::api::Inner;
use crate::body::Body;
use crate::error::ApiError;
use crate::request::Query;

pub(crate) fn answer(_inner: &Inner, _parts: &Parts, _path: &str, _query: &Query) -> Result<Response<Body>, ApiError> {
    Err(carob_api::Status::path_not_found().into())
}
