//! What other servers say of themselves: their discovery, where their OpenAPI v3 documents are, their OpenAPI v2
//! (kube-aggregator pkg/apiserver/handler_discovery.go, pkg/controllers/openapi).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use carob_api::meta;
use carob_kit::chain;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http_body_util::{BodyExt, Limited};
use serde_json::{Map, Value, json};
use tracing::debug;

use super::proxy::own_request;
use super::service::{ApiService, Remote, SendError};

/// Time for one document.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of one document that are read; a longer one is left out.
const DOCUMENT_LEN_MAX: usize = 16 * 1024 * 1024;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
const JSON: &str = "application/json";

/// A JSON document that is seldom looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Compressed(Bytes);

impl Compressed {
    fn new(bytes: &[u8]) -> std::io::Result<Self> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes)?;
        Ok(Self(Bytes::from(encoder.finish()?)))
    }

    /// `None` for bytes that are no JSON.
    pub(crate) fn parse(&self) -> Option<Value> {
        let mut bytes = Vec::new();
        GzDecoder::new(self.0.as_ref()).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}

/// What was fetched of one server.
#[derive(Default, Clone)]
pub(super) struct Fetched {
    /// Entries of aggregated discovery, by group and version.
    discovery: BTreeMap<(String, String), Value>,
    discovery_tag: Option<String>,
    /// URLs of OpenAPI v3, by path without the first slash.
    v3: BTreeMap<String, String>,
    v3_tag: Option<String>,
    pub(super) v2: Option<Arc<Compressed>>,
    v2_tag: Option<String>,
}

impl Fetched {
    /// The entry of a group and version. What is not known of it is told as stale.
    pub(super) fn discovery_of(&self, group: &str, version: &str, is_available: bool) -> Value {
        let found = self.discovery.get(&(group.to_owned(), version.to_owned()));
        let mut entry = found.cloned().unwrap_or_else(|| json!({ "version": version, "resources": [] }));
        entry["freshness"] = if is_available && found.is_some() { "Current" } else { "Stale" }.into();
        entry
    }

    pub(super) fn v3_url_of(&self, path: &str) -> Option<String> {
        self.v3.get(path.trim_start_matches('/')).cloned()
    }
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("build the request")]
    Request(#[from] http::Error),
    #[error("no answer in time")]
    Timeout,
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("read the answer")]
    Read(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer is {0}")]
    Code(StatusCode),
}

/// A document that has changed.
struct Document {
    content_type: String,
    tag: Option<String>,
    bytes: Bytes,
}

/// Fetches what has changed of a server; answers whether anything has. What cannot be fetched stays as it was.
pub(super) async fn refresh(service: &ApiService, remote: &Remote) -> bool {
    let before = remote.fetched();
    let mut now = Fetched::clone(&before);
    let logged = |what: &str, error: &FetchError| {
        debug!(apiservice = service.name, what, error = %chain(error), "a document of an aggregated API is not there");
    };
    let changed = [
        discovery(service, remote, &mut now).await.unwrap_or_else(|error| {
            logged("discovery", &error);
            false
        }),
        openapi_v3(remote, &mut now).await.unwrap_or_else(|error| {
            logged("OpenAPI v3", &error);
            false
        }),
        openapi_v2(remote, &mut now).await.unwrap_or_else(|error| {
            logged("OpenAPI v2", &error);
            false
        }),
    ];
    if !changed.contains(&true) {
        return false;
    }
    *remote.fetched.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(now);
    true
}

/// `None` for a document that is the one with `tag`.
async fn fetch(remote: &Remote, path: &str, accept: &str, tag: Option<&str>) -> Result<Option<Document>, FetchError> {
    let mut headers = vec![(ACCEPT, accept)];
    headers.extend(tag.map(|tag| (IF_NONE_MATCH, tag)));
    let request = own_request(remote, path, &headers)?;
    let exchange = async {
        let response = remote.send(request).await?;
        let (parts, body) = response.into_parts();
        if parts.status == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        if parts.status != StatusCode::OK {
            return Err(FetchError::Code(parts.status));
        }
        let bytes = Limited::new(body, DOCUMENT_LEN_MAX).collect().await.map_err(FetchError::Read)?.to_bytes();
        let text = |name| parts.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
        let tag = text(ETAG).map(str::to_owned);
        Ok(Some(Document { content_type: text(CONTENT_TYPE).unwrap_or_default().to_owned(), tag, bytes }))
    };
    tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| FetchError::Timeout)?
}

/// In the aggregated form where the server has it, else that of the one group and version.
async fn discovery(service: &ApiService, remote: &Remote, fetched: &mut Fetched) -> Result<bool, FetchError> {
    let tag = fetched.discovery_tag.clone();
    match fetch(remote, "/apis", AGGREGATED, tag.as_deref()).await {
        Ok(None) => return Ok(false),
        Ok(Some(document)) if document.content_type.contains("as=APIGroupDiscoveryList") => {
            let list: Value = serde_json::from_slice(&document.bytes).unwrap_or_default();
            let found = of_list(&list);
            let changed = found != fetched.discovery;
            fetched.discovery = found;
            fetched.discovery_tag = document.tag;
            return Ok(changed);
        }
        Ok(Some(_)) | Err(FetchError::Code(_)) => {}
        Err(error) => return Err(error),
    }
    let Some(document) = fetch(remote, &service.path(), JSON, None).await? else { return Ok(false) };
    let list: Value = serde_json::from_slice(&document.bytes).unwrap_or_default();
    let entry = of_resources(&list, &service.group, &service.version);
    let old = fetched.discovery.insert((service.group.clone(), service.version.clone()), entry.clone());
    Ok(old.as_ref() != Some(&entry))
}

fn of_list(list: &Value) -> BTreeMap<(String, String), Value> {
    let mut found = BTreeMap::new();
    for group in meta::items_at(list, &["items"]) {
        for version in meta::items_at(group, &["versions"]) {
            let name = meta::str_at(version, &["version"]).unwrap_or_default();
            found.insert((meta::name(group).to_owned(), name.to_owned()), version.clone());
        }
    }
    found
}

/// An APIResourceList as an entry of aggregated discovery (apiserver pkg/endpoints, `ConvertGroupVersionIntoToDiscovery`).
fn of_resources(list: &Value, group: &str, version: &str) -> Value {
    let mut resources: Vec<Value> = Vec::new();
    let mut parts: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for resource in meta::items_at(list, &["resources"]) {
        let text = |field: &str| meta::str_at(resource, &[field]).unwrap_or_default();
        let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
        let kind = json!({
            "group": or(text("group"), group), "version": or(text("version"), version), "kind": text("kind"),
        });
        if let Some((parent, subresource)) = text("name").split_once('/') {
            let entry = json!({ "subresource": subresource, "responseKind": kind, "verbs": resource["verbs"] });
            parts.entry(parent).or_default().push(entry);
            continue;
        }
        let mut entry = Map::new();
        entry.insert("resource".to_owned(), text("name").into());
        entry.insert("responseKind".to_owned(), kind);
        let scope = if meta::bool_at(resource, &["namespaced"]) == Some(true) { "Namespaced" } else { "Cluster" };
        entry.insert("scope".to_owned(), scope.into());
        entry.insert("singularResource".to_owned(), text("singularName").into());
        for field in ["verbs", "shortNames", "categories"] {
            if let Some(value) = meta::at(resource, &[field]) {
                entry.insert(field.to_owned(), value.clone());
            }
        }
        resources.push(entry.into());
    }
    for resource in &mut resources {
        let name = resource["resource"].as_str().unwrap_or_default();
        if let Some(parts) = parts.remove(name) {
            resource["subresources"] = parts.into();
        }
    }
    json!({ "version": version, "resources": resources })
}

async fn openapi_v3(remote: &Remote, fetched: &mut Fetched) -> Result<bool, FetchError> {
    let tag = fetched.v3_tag.clone();
    let Some(document) = fetch(remote, "/openapi/v3", JSON, tag.as_deref()).await? else { return Ok(false) };
    let index: Value = serde_json::from_slice(&document.bytes).unwrap_or_default();
    let paths = meta::at(&index, &["paths"]).and_then(Value::as_object).into_iter().flatten();
    let urls = paths.filter_map(|(path, entry)| {
        // What leads elsewhere would make this server's clients ask it.
        let url = meta::str_at(entry, &["serverRelativeURL"]).filter(|url| url.starts_with("/openapi/v3/"))?;
        Some((path.clone(), url.to_owned()))
    });
    let urls: BTreeMap<String, String> = urls.collect();
    let changed = urls != fetched.v3;
    fetched.v3 = urls;
    fetched.v3_tag = document.tag;
    Ok(changed)
}

async fn openapi_v2(remote: &Remote, fetched: &mut Fetched) -> Result<bool, FetchError> {
    let tag = fetched.v2_tag.clone();
    let Some(document) = fetch(remote, "/openapi/v2", JSON, tag.as_deref()).await? else { return Ok(false) };
    let compressed = Arc::new(Compressed::new(&document.bytes).map_err(|error| FetchError::Read(error.into()))?);
    let changed = fetched.v2.as_ref() != Some(&compressed);
    fetched.v2 = Some(compressed);
    fetched.v2_tag = document.tag;
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_legacy_list_becomes_an_entry_of_aggregated_discovery() {
        let list = json!({ "resources": [
            { "name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get"], "shortNames": ["fl"] },
            { "name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["patch"] },
        ] });
        let kind = json!({ "group": "wardle.example.com", "version": "v1alpha1", "kind": "Flunder" });
        assert_eq!(
            of_resources(&list, "wardle.example.com", "v1alpha1"),
            json!({ "version": "v1alpha1", "resources": [{
                "resource": "flunders", "responseKind": kind, "scope": "Namespaced", "singularResource": "flunder",
                "verbs": ["get"], "shortNames": ["fl"],
                "subresources": [{ "subresource": "status", "responseKind": kind, "verbs": ["patch"] }],
            }] })
        );
    }

    #[test]
    fn what_is_not_known_is_stale() {
        let mut fetched = Fetched::default();
        assert_eq!(fetched.discovery_of("g", "v1", true)["freshness"], "Stale");
        fetched.discovery = of_list(
            &json!({ "items": [{ "metadata": { "name": "g" }, "versions": [{ "version": "v1", "resources": [1] }] }] }),
        );
        assert_eq!(
            fetched.discovery_of("g", "v1", true),
            json!({ "version": "v1", "resources": [1], "freshness": "Current" })
        );
        assert_eq!(fetched.discovery_of("g", "v1", false)["freshness"], "Stale");
    }
}
