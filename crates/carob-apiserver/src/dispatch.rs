//! From a classified request to a verb of the registry.

use http::Response;

use crate::api::{Asked, Inner};
use crate::body::{Body, RequestBody};
use crate::error::ApiError;

pub(crate) async fn answer(_inner: &Inner, _asked: Asked, _body: RequestBody) -> Result<Response<Body>, ApiError> {
    Err(carob_api::Status::path_not_found().into())
}
