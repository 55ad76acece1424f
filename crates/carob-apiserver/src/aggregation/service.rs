//! One APIService, and the connections to the server that it leads to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use carob_api::strategy::aggregation::AVAILABLE;
use carob_kit::chain;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use serde::Deserialize;

use super::RemoteVersion;
use super::documents::Fetched;
use crate::body::RequestBody;
use crate::webhook::{Connector, Identity, Server, Trust, WebhookClient, connect_error, pooled, roots_of};

/// An APIService as requests need it.
pub(super) struct ApiService {
    pub(super) name: String,
    pub(super) group: String,
    pub(super) version: String,
    pub(super) group_priority: i32,
    pub(super) version_priority: i32,
    /// Whether its condition says that it can be asked.
    pub(super) is_available: bool,
    /// The server that it leads to, or why that cannot be connected to; `None` for this server itself.
    pub(super) remote: Option<Result<Arc<Remote>, String>>,
}

/// The server of a Service.
pub(super) struct Remote {
    pub(super) spec: RemoteSpec,
    /// Host and port, as its certificate and its URLs have them.
    pub(super) authority: String,
    pub(super) connector: Connector,
    http: legacy::Client<Connector, RequestBody>,
    /// What it said last of itself.
    pub(super) fetched: Mutex<Arc<Fetched>>,
}

/// What decides how a server is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RemoteSpec {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) port: u16,
    bundle: String,
    insecure: bool,
}

#[derive(Deserialize)]
struct Stored {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    group: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    group_priority_minimum: i32,
    #[serde(default)]
    version_priority: i32,
    #[serde(default)]
    ca_bundle: Option<String>,
    #[serde(default, rename = "insecureSkipTLSVerify")]
    insecure: bool,
    #[serde(default)]
    service: Option<ServiceRef>,
}

#[derive(Deserialize)]
struct ServiceRef {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default = "port_default")]
    port: u16,
}

/// kube-aggregator pkg/apis/apiregistration/v1/defaults.go.
fn port_default() -> u16 {
    443
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    ty: String,
    status: String,
}

/// Makes [`Remote`]s. Those with the same connection data are the same, whichever APIService names them, and stay while any does.
pub(super) struct Makers {
    client: WebhookClient,
    identity: Option<Identity>,
    made: HashMap<RemoteSpec, Weak<Remote>>,
}

impl Makers {
    pub(super) fn new(client: WebhookClient, identity: Option<Identity>) -> Self {
        Self { client, identity, made: HashMap::new() }
    }

    pub(super) fn forget_unused(&mut self) {
        self.made.retain(|_, remote| remote.strong_count() > 0);
    }

    fn remote(&mut self, spec: RemoteSpec) -> Result<Arc<Remote>, String> {
        if let Some(found) = self.made.get(&spec).and_then(Weak::upgrade) {
            return Ok(found);
        }
        let made = Arc::new(self.make(spec.clone())?);
        self.made.insert(spec, Arc::downgrade(&made));
        Ok(made)
    }

    fn make(&self, spec: RemoteSpec) -> Result<Remote, String> {
        let trust = match (spec.insecure, spec.bundle.as_str()) {
            (true, _) => Some(Trust::Anyone),
            (false, "") => None,
            (false, bundle) => {
                let pem = STANDARD.decode(bundle).map_err(|error| format!("caBundle is not base64: {error}"))?;
                Some(Trust::Roots(roots_of(&pem).map_err(|error| error.to_string())?))
            }
        };
        let server = Server::Service { namespace: spec.namespace.clone(), name: spec.name.clone(), port: spec.port };
        let connector = self.client.connector(server, trust, self.identity.clone());
        let connector = connector.map_err(|error| chain(&error).to_string())?;
        Ok(Remote {
            authority: format!("{}.{}.svc:{}", spec.name, spec.namespace, spec.port),
            http: pooled(connector.clone()),
            connector,
            spec,
            fetched: Mutex::default(),
        })
    }
}

impl ApiService {
    pub(super) fn read(bytes: &[u8], makers: &mut Makers) -> Result<Self, serde_json::Error> {
        let Stored { metadata, spec, status } = serde_json::from_slice(bytes)?;
        let bundle = spec.ca_bundle.unwrap_or_default();
        let remote = spec.service.map(|service| {
            let ServiceRef { namespace, name, port } = service;
            makers.remote(RemoteSpec { namespace, name, port, bundle, insecure: spec.insecure })
        });
        let mut conditions = status.conditions.iter();
        Ok(Self {
            name: metadata.name,
            group: spec.group,
            version: spec.version,
            group_priority: spec.group_priority_minimum,
            version_priority: spec.version_priority,
            is_available: conditions.any(|condition| condition.ty == AVAILABLE && condition.status == "True"),
            remote,
        })
    }

    /// `/apis/<group>/<version>`.
    pub(super) fn path(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }

    pub(super) fn remote_version(&self) -> RemoteVersion {
        let fetched = self.remote.as_ref().and_then(|remote| remote.as_ref().ok()).map(|remote| remote.fetched());
        let fetched = fetched.unwrap_or_default();
        RemoteVersion {
            group: self.group.clone(),
            version: self.version.clone(),
            group_priority: self.group_priority,
            version_priority: self.version_priority,
            discovery: fetched.discovery_of(&self.group, &self.version, self.is_available),
            v3_url: fetched.v3_url_of(&self.path()),
            v2: fetched.v2.clone(),
        }
    }
}

/// Why a server brought no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// The connection could not be made; in Go's words.
    #[error("{0}")]
    Connect(String),
    #[error("send the request")]
    Http(#[source] legacy::Error),
}

impl Remote {
    pub(super) async fn send(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendError> {
        self.http.request(request).await.map_err(|error| match connect_error(&error) {
            Some(text) => SendError::Connect(text),
            None => SendError::Http(error),
        })
    }

    pub(super) fn fetched(&self) -> Arc<Fetched> {
        Arc::clone(&self.fetched.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use carob_store::{Options, Store};
    use serde_json::json;

    use super::*;
    use crate::NetworkDialer;

    fn makers() -> Makers {
        let store = Store::in_memory(Options::default());
        Makers::new(WebhookClient::new(store, Arc::new(NetworkDialer::without_tls())), None)
    }

    fn service(version: &str, spec: serde_json::Value) -> Vec<u8> {
        let mut object = json!({
            "metadata": { "name": format!("{version}.example.com") },
            "spec": { "group": "example.com", "version": version, "groupPriorityMinimum": 9, "versionPriority": 8 },
            "status": { "conditions": [{ "type": "Available", "status": "True" }] },
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        object.to_string().into()
    }

    #[tokio::test]
    async fn versions_of_one_server_share_its_connections() {
        let mut makers = makers();
        let spec = json!({ "service": { "namespace": "n", "name": "s" }, "insecureSkipTLSVerify": true });
        let remote = |service: &ApiService| match &service.remote {
            Some(Ok(remote)) => Arc::clone(remote),
            _ => panic!("it leads elsewhere"),
        };
        let one = ApiService::read(&service("v1", spec.clone()), &mut makers).expect("sound");
        let two = ApiService::read(&service("v2", spec), &mut makers).expect("sound");
        assert!(Arc::ptr_eq(&remote(&one), &remote(&two)));
        assert_eq!((one.is_available, remote(&one).authority.as_str()), (true, "s.n.svc:443"));
        drop((one, two));
        makers.forget_unused();
        assert!(makers.made.is_empty());
    }

    #[tokio::test]
    async fn a_bundle_that_cannot_be_read_is_told() {
        let mut makers = makers();
        let spec = json!({ "service": { "namespace": "n", "name": "s" }, "caBundle": "AAAA" });
        let bad = ApiService::read(&service("v1", spec), &mut makers).expect("sound");
        assert_eq!(bad.remote.and_then(Result::err).as_deref(), Some("unable to parse bytes as PEM block"));
        let local = ApiService::read(&service("v1", json!({})), &mut makers).expect("sound");
        assert!(local.remote.is_none());
    }
}
