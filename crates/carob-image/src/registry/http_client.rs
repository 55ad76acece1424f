//! One HTTP client with its pool of connections for all registries.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;

use super::connect::Connector;
use super::{ERROR_BODY_LEN_MAX, IDLE_TIMEOUT, RegistryError};
use crate::registries::RegistriesConfig;

pub(super) type Body = Full<Bytes>;

/// Idle connections that are kept for one host, and for how long.
const IDLE_CONNECTIONS_MAX: usize = 4;
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest time that a host's `Retry-After` is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub(super) struct HttpClient {
    client: Client<Connector, Body>,
}

impl HttpClient {
    pub(super) fn new(config: Arc<RegistriesConfig>) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_idle_timeout(IDLE_CONNECTION_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(Connector::new(config));
        Self { client }
    }

    pub(super) async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, RegistryError> {
        let url = request.uri().to_string();
        let agent = HeaderValue::from_static(concat!("carob/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        let response = tokio::time::timeout(IDLE_TIMEOUT, self.client.request(request)).await;
        match response {
            Err(_elapsed) => Err(RegistryError::Timeout { url }),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => Err(RegistryError::Send { url, source }),
        }
    }
}

/// The error that a refusing answer means, with the registry's own words.
pub(super) async fn refusal(url: String, response: Response<Incoming>) -> RegistryError {
    let (parts, body) = response.into_parts();
    let retry_after = retry_after(&parts.headers);
    let limited = http_body_util::Limited::new(body, ERROR_BODY_LEN_MAX);
    // The words are a help; an answer whose body breaks off still has its status.
    let words = match tokio::time::timeout(IDLE_TIMEOUT, limited.collect()).await {
        Ok(Ok(body)) => words(&body.to_bytes()),
        Ok(Err(_)) | Err(_) => String::new(),
    };
    RegistryError::Status { url, status: parts.status, detail: words, retry_after }
}

/// Seconds only: no registry sends a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// The messages of an error document (OCI distribution-spec, "Error Codes").
fn words(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(Deserialize)]
    struct Error {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(errors) = serde_json::from_slice::<Errors>(body) else { return String::new() };
    let lines = errors.errors.into_iter().map(|error| match (error.code.as_str(), error.message.as_str()) {
        (code, "") => code.to_owned(),
        ("", message) => message.to_owned(),
        (code, message) => format!("{code} ({message})"),
    });
    lines.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_words_are_kept_and_garbage_is_not() {
        for (body, expect) in [
            (r#"{"errors":[{"code":"DENIED","message":"no access","detail":{}}]}"#, "DENIED (no access)"),
            (r#"{"errors":[{"code":"A"},{"message":"b"}]}"#, "A, b"),
            ("<html>", ""),
            (r#"{"errors":3}"#, ""),
        ] {
            assert_eq!(words(body.as_bytes()), expect, "{body}");
        }
    }

    #[test]
    fn no_host_makes_us_wait_for_long() {
        let after = |value: &str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]));
        assert_eq!(after("3"), Some(Duration::from_secs(3)));
        assert_eq!(after("999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(after("Fri, 31 Dec 1999 23:59:59 GMT"), None);
    }
}
