//! Requests to their answers.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use k8s_openapi::List;
use k8s_openapi::api::authentication::v1::UserInfo;

use super::auth::AuthError;
use super::query::Query;
use super::{Shared, logs, metrics, streams, system_logs};
use carob_streams::upgrade::{Body, UpgradeError};

/// Why a request is not answered as asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    BadRequest(String),
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    #[error("{0}")]
    Internal(String),
}

impl RequestError {
    fn code(&self) -> StatusCode {
        match self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::BadRequest(_) | Self::Upgrade(UpgradeError::NoUpgrade | UpgradeError::Handshake) => {
                StatusCode::BAD_REQUEST
            }
            Self::Upgrade(UpgradeError::NoProtocol { .. }) => StatusCode::FORBIDDEN,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

pub(super) async fn handle(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    holder: Option<&UserInfo>,
) -> Response<Body> {
    if let Err(error) = shared.gate.pass(holder, request.headers(), request.method(), request.uri().path()).await {
        return refusal(&error);
    }
    match route(shared, request).await {
        Ok(response) => response,
        Err(error) => text(error.code(), error.to_string()),
    }
}

fn refusal(error: &AuthError) -> Response<Body> {
    let code = match error {
        AuthError::Unauthorized => StatusCode::UNAUTHORIZED,
        AuthError::Forbidden { .. } => StatusCode::FORBIDDEN,
        AuthError::Review { source, .. } => {
            tracing::warn!(error = %carob_kit::chain(source), "a request cannot be judged");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    text(code, error.to_string())
}

async fn route(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, RequestError> {
    let path = request.uri().path().to_owned();
    let query = Query::parse(request.uri().query());
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let read_only = matches!(*request.method(), Method::GET | Method::HEAD);
    let streaming = matches!(*request.method(), Method::GET | Method::POST);
    match parts.as_slice() {
        ["healthz", ..] if read_only => Ok(text(StatusCode::OK, "ok")),
        ["pods"] if read_only => pods(shared),
        ["containerLogs", namespace, pod, container] if read_only => {
            logs::handle(shared, namespace, pod, container, &query).await
        }
        // Upstream has a form of each with the Pod's uid before the container.
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] if streaming => {
            streams::exec(shared, request, namespace, pod, container, &query).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] if streaming => {
            streams::attach(shared, request, namespace, pod, container, &query).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] if streaming => {
            streams::port_forward(shared, request, namespace, pod, &query).await
        }
        ["stats", "summary"] if read_only => metrics::summary(shared).await,
        ["logs", ..] if read_only => {
            system_logs::handle(path.trim_start_matches('/').strip_prefix("logs").unwrap_or_default()).await
        }
        ["metrics"] if read_only => metrics::kubelet(shared).await,
        ["metrics", "resource"] if read_only => metrics::resource(shared).await,
        ["metrics", "cadvisor"] if read_only => metrics::cadvisor(shared).await,
        ["metrics", "probes"] if read_only => Ok(metrics::probes(shared)),
        _ => Err(RequestError::NotFound("404 page not found".to_owned())),
    }
}

fn pods(shared: &Shared) -> Result<Response<Body>, RequestError> {
    let items = shared.source.pods().iter().map(|pod| k8s_openapi::api::core::v1::Pod::clone(pod)).collect();
    let list = List { items, ..List::default() };
    json(&list)
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<Response<Body>, RequestError> {
    let body = serde_json::to_vec(value).map_err(|error| RequestError::Internal(error.to_string()))?;
    let mut response = Response::new(whole(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

pub(super) fn text(code: StatusCode, body: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(whole(body.into().into_bytes()));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn whole(body: Vec<u8>) -> Body {
    Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync()
}
