//! Paths that name no resource: discovery, OpenAPI, health, version, metrics, the issuer's keys.

use bytes::Bytes;
use carob_api::Status;
use carob_api::status::GroupResource;
use http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use serde_json::json;

use crate::body::Body;
use crate::discovery::{self, Scope};
use crate::error::{ApiError, ApiResult};
use crate::identity::Identity;
use crate::request::Query;
use crate::state::State;
use crate::{health, metrics, openapi, respond, version};

/// Whether a path is one of discovery or OpenAPI.
pub(crate) fn shows_kinds(path: &str) -> bool {
    ["api", "apis", "openapi"].contains(&path.trim_start_matches('/').split('/').next().unwrap_or_default())
}

pub(crate) fn answer(
    api: &State,
    parts: &Parts,
    path: &str,
    query: &Query,
    user: &Identity,
) -> ApiResult<Response<Body>> {
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(Status::method_not_supported(GroupResource::new("", ""), parts.method.as_str()).into());
    }
    let headers = &parts.headers;
    let served = api.catalogue.snapshot();
    let merged = api.aggregator.merged(&served);
    let merged = merged.as_deref();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match segments.as_slice() {
        [""] => Ok(respond::json(StatusCode::OK, &json!({ "paths": ROOT_PATHS }))),
        ["api"] => Ok(discovery::collection(&served, merged, api.advertised, headers, Scope::Core)),
        ["apis"] => Ok(discovery::collection(&served, merged, api.advertised, headers, Scope::Groups)),
        ["api", version] => discovery::resources(&served, "", version),
        ["apis", group] => discovery::group(&served, merged, group),
        ["apis", group, version] => discovery::resources(&served, group, version),
        ["version"] => Ok(respond::json(StatusCode::OK, &version::info())),
        [endpoint @ ("livez" | "readyz" | "healthz"), rest @ ..] => {
            health::answer(api, endpoint, rest, query, health::Detail::of(user))
        }
        ["metrics"] => Ok(exposition(metrics::render(api))),
        ["metrics", "slis"] => Ok(exposition(health::indicators(api))),
        ["openapi", "v2"] => openapi::v2(&served, merged, headers),
        ["openapi", "v3"] => openapi::v3_index(&api.openapi, &served, merged, headers),
        ["openapi", "v3", rest @ ..] => openapi::v3_document(&api.openapi, &served, headers, &rest.join("/"), query),
        [".well-known", "openid-configuration"] => {
            Ok(respond::json(StatusCode::OK, &api.tokens.openid_configuration()))
        }
        ["openid", "v1", "jwks"] => Ok(jwks(api)),
        _ => Err(not_found()),
    }
}

fn not_found() -> ApiError {
    Status::path_not_found().into()
}

/// The paths that name no resource and are listed at the root.
pub(crate) const ROOT_PATHS: [&str; 13] = [
    "/.well-known/openid-configuration",
    "/api",
    "/api/v1",
    "/apis",
    "/healthz",
    "/livez",
    "/metrics",
    "/metrics/slis",
    "/openapi/v2",
    "/openapi/v3",
    "/openid/v1/jwks",
    "/readyz",
    "/version",
];

/// Figures in the Prometheus text format.
fn exposition(text: String) -> Response<Body> {
    let mut response = respond::text(StatusCode::OK, text);
    let form = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, form);
    response
}

fn jwks(api: &State) -> Response<Body> {
    let mut response = respond::json(StatusCode::OK, &api.tokens.jwks());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
    response
}

/// A document that clients keep: with an ETag, and 304 for those that have it.
pub(crate) fn cached(headers: &HeaderMap, content_type: &'static str, hash: &str, body: Bytes) -> Response<Body> {
    let etag = format!("\"{hash}\"");
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let fresh =
        known.flat_map(|value| value.split(',')).any(|value| matches!(value.trim(), "*") || value.trim() == etag);
    let mut response = Response::new(if fresh { Body::empty() } else { Body::from(body) });
    if fresh {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(ETAG, etag);
    }
    response
}

/// An upper-case SHA-512 in hexadecimal, as upstream's discovery and OpenAPI handlers hash.
pub(crate) fn hash(bytes: &[u8]) -> String {
    crate::hex::lower(ring::digest::digest(&ring::digest::SHA512, bytes).as_ref()).to_ascii_uppercase()
}
