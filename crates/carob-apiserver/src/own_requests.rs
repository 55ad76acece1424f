//! Requests of the API server to itself: they pass everything that others' pass, in the name of `system:apiserver`.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use crate::ApiServer;
use crate::identity::UserInfo;

/// What came back.
pub(crate) struct Sent {
    pub(crate) code: StatusCode,
    body: Bytes,
}

impl Sent {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub(crate) async fn send(server: &ApiServer, method: Method, path: &str, body: &Value) -> Result<Sent, http::Error> {
    send_as(server, method, path, "application/json", body).await
}

pub(crate) async fn merge_patch(server: &ApiServer, path: &str, patch: &Value) -> Result<Sent, http::Error> {
    send_as(server, Method::PATCH, path, "application/merge-patch+json", patch).await
}

async fn send_as(
    server: &ApiServer,
    method: Method,
    path: &str,
    content_type: &str,
    body: &Value,
) -> Result<Sent, http::Error> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content_type)
        .header("user-agent", "kube-apiserver")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let response = server.handle(request, UserInfo::api_server()).await;
    let code = response.status();
    // The answer of a request in process is whole; what cannot be read of it says nothing.
    let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    Ok(Sent { code, body })
}
