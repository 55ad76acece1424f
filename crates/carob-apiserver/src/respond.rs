//! Responses: headers that all have, errors, encodings, warnings, compression.

use bytes::Bytes;
use carob_api::Status;
use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, RETRY_AFTER, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::Body as _;
use serde_json::Value;

use crate::body::Body;
use crate::error::ApiError;
use crate::gzip;
use crate::negotiate::{Encoding, JSON};

/// Responses above this are compressed, bytes (apiserver `responsewriters/writers.go`, `defaultGzipThresholdBytes`).
const GZIP_LEN_MIN: u64 = 128 * 1024;
const WARNING: HeaderName = HeaderName::from_static("warning");
/// Bytes of all Warning headers of one response; the rest is left out (apiserver `pkg/warning`, `truncateAtTotalRunes`).
const WARNINGS_LEN_MAX: usize = 4 * 1024;

/// A response of JSON bytes.
pub(crate) fn json_bytes(code: StatusCode, bytes: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(bytes.into());
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

pub(crate) fn json(code: StatusCode, value: &Value) -> Response<Body> {
    json_bytes(code, Bytes::from(value.to_string()))
}

/// A response in a negotiated encoding.
pub(crate) fn encoded(code: StatusCode, encoding: Encoding, bytes: Bytes) -> Response<Body> {
    let mut response = json_bytes(code, bytes);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(encoding.media_type()));
    response
}

pub(crate) fn text(code: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(Body::from(text.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The answer to a request that failed: its Status, with `Retry-After` where the Status has one.
pub(crate) fn error(error: ApiError) -> Response<Body> {
    status(&error.into_status())
}

pub(crate) fn status(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    // Clients compare the text: keys in the order of upstream's struct, and a newline behind.
    let mut bytes = serde_json::to_vec(status).expect("a Status holds only strings and numbers");
    bytes.push(b'\n');
    let mut response = json_bytes(code, bytes);
    if let Some(seconds) = status.details.as_ref().and_then(|details| details.retry_after_seconds) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Whether the client takes gzip.
pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| coding.trim() == "gzip")
}

/// Headers of every response, and compression of large ones.
pub(crate) fn finish(response: &mut Response<Body>, gzip: bool) {
    let len = response.body().size_hint().exact().unwrap_or(0);
    if gzip && len > GZIP_LEN_MIN && !response.headers().contains_key(CONTENT_ENCODING) {
        let body = std::mem::replace(response.body_mut(), Body::empty());
        *response.body_mut() = gzip::compress(body);
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response.headers_mut().append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
}

/// Adds warnings as `299` Warning headers (RFC 7234 5.5), each text once.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    let mut left = WARNINGS_LEN_MAX;
    for (index, text) in warnings.iter().enumerate() {
        if warnings[..index].contains(text) {
            continue;
        }
        let quoted = quote(text);
        if quoted.len() > left {
            return;
        }
        left -= quoted.len();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// A quoted-string's inside: what a header cannot carry becomes a space.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            _ => quoted.push(' '),
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_status_is_written_as_upstream_writes_it() {
        use http_body_util::BodyExt;
        let pods = carob_api::status::GroupResource::new("", "pods");
        let response = status(&Status::not_found(pods, "p"));
        let bytes = response.into_body().collect().await.expect("a whole body").to_bytes();
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\
             \"message\":\"pods \\\"p\\\" not found\",\"reason\":\"NotFound\",\
             \"details\":{\"name\":\"p\",\"kind\":\"pods\"},\"code\":404}\n"
        );
    }

    #[test]
    fn warnings_are_quoted_and_sent_once() {
        let mut response = text(StatusCode::OK, "");
        warn(&mut response, &["unknown field \"spec.a\"".to_owned(), "x\ny".to_owned(), "x\ny".to_owned()]);
        let values: Vec<&str> =
            response.headers().get_all(WARNING).iter().map(|v| v.to_str().expect("ascii")).collect();
        assert_eq!(values, [r#"299 - "unknown field \"spec.a\"""#, r#"299 - "x y""#]);
    }

    #[test]
    fn warnings_beyond_the_limit_are_left_out() {
        let mut response = text(StatusCode::OK, "");
        let warnings: Vec<String> = (0..10).map(|n| format!("{n}{}", "x".repeat(1000))).collect();
        warn(&mut response, &warnings);
        assert_eq!(response.headers().get_all(WARNING).iter().count(), 4);
    }
}
