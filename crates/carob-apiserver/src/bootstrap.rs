//! What there is from the start: the system's namespaces and priority classes (pkg/controlplane/controller/systemnamespaces,
//! pkg/registry/scheduling/rest). Made over the API like everything else, so that all its rules hold.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use crate::ApiServer;
use crate::admission::SYSTEM_CLASSES;
use crate::identity::UserInfo;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// The user under which the API server acts itself.
const SELF_USER: &str = "system:apiserver";

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("create {kind} {name} at start: {status} {message}")]
    Create { kind: String, name: String, status: StatusCode, message: String },
    #[error("create {kind} {name} at start: the request could not be built")]
    Request {
        kind: String,
        name: String,
        #[source]
        source: http::Error,
    },
}

impl ApiServer {
    /// Creates what is missing. Call it once, before anything else is asked of the server.
    pub async fn bootstrap(&self) -> Result<(), BootstrapError> {
        for name in NAMESPACES {
            let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
            self.ensure("/api/v1/namespaces", &namespace).await?;
        }
        for (name, value, description) in SYSTEM_CLASSES {
            let class = json!({
                "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": name },
                "value": value, "description": description,
            });
            self.ensure("/apis/scheduling.k8s.io/v1/priorityclasses", &class).await?;
        }
        Ok(())
    }

    async fn ensure(&self, path: &str, object: &Value) -> Result<(), BootstrapError> {
        let (kind, name) = (carob_api::meta::kind(object).to_owned(), carob_api::meta::name(object).to_owned());
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("content-type", "application/json")
            .header("user-agent", "kube-apiserver")
            .body(Full::new(Bytes::from(object.to_string())))
            .map_err(|source| BootstrapError::Request { kind: kind.clone(), name: name.clone(), source })?;
        let response = self.handle(request, UserInfo::component(SELF_USER)).await;
        let status = response.status();
        if status.is_success() || status == StatusCode::CONFLICT {
            return Ok(());
        }
        let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Err(BootstrapError::Create { kind, name, status, message: String::from_utf8_lossy(&body).into_owned() })
    }
}
