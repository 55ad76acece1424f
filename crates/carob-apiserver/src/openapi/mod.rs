//! OpenAPI.
#[derive(Default)]
pub(crate) struct OpenApi;
