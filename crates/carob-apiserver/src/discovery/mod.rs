//! Discovery: which groups, versions and resources there are, in the legacy and in the aggregated form. All of it follows
//! from the table of kinds.

mod aggregated;
mod groups;

use std::net::SocketAddr;
use std::sync::OnceLock;

use bytes::Bytes;
use carob_api::{ResourceDef, Status};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use crate::body::Body;
use crate::error::ApiResult;
use crate::negotiate::clauses;
use crate::nonresource::{cached, hash};
use crate::respond;

pub(crate) use groups::{GroupVersion, Groups};

const AGGREGATED_V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const AGGREGATED_V2BETA1: &str = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// `/api`
    Core,
    /// `/apis`
    Groups,
}

/// A rendered document.
struct Document {
    hash: String,
    body: Bytes,
}

/// What is served, and the documents about it that were asked for.
pub(crate) struct Discovery {
    pub(crate) groups: Groups,
    advertised: Option<SocketAddr>,
    /// Aggregated documents by scope and version.
    aggregated: [OnceLock<Document>; 4],
}

impl Discovery {
    /// `unstable` serves alpha and beta versions as well.
    pub(crate) fn new(advertised: Option<SocketAddr>, unstable: bool) -> Self {
        Self { groups: Groups::new(unstable), advertised, aggregated: Default::default() }
    }

    fn aggregated(&self, scope: Scope, api_version: &str) -> &Document {
        let index = usize::from(scope == Scope::Groups) * 2 + usize::from(api_version.ends_with("beta1"));
        self.aggregated[index].get_or_init(|| {
            let body = Bytes::from(aggregated::list(&self.groups, scope, api_version).to_string());
            Document { hash: hash(&body), body }
        })
    }
}

/// `/api` and `/apis`.
pub(crate) fn collection(discovery: &Discovery, headers: &HeaderMap, scope: Scope) -> Response<Body> {
    for clause in clauses(headers) {
        let params = (clause.param("g"), clause.param("v"), clause.param("as"));
        let (content_type, api_version) = match params {
            (Some("apidiscovery.k8s.io"), Some("v2"), Some("APIGroupDiscoveryList")) => {
                (AGGREGATED_V2, "apidiscovery.k8s.io/v2")
            }
            (Some("apidiscovery.k8s.io"), Some("v2beta1"), Some("APIGroupDiscoveryList")) => {
                (AGGREGATED_V2BETA1, "apidiscovery.k8s.io/v2beta1")
            }
            (_, _, None) if clause.covers("application/json") => break,
            _ => continue,
        };
        if clause.covers("application/json") {
            let document = discovery.aggregated(scope, api_version);
            return cached(headers, content_type, &document.hash, document.body.clone());
        }
    }
    let value = match scope {
        Scope::Core => {
            let address = discovery.advertised.map(|address| address.to_string());
            let addresses: Vec<Value> = address
                .into_iter()
                .map(|address| json!({ "clientCIDR": "0.0.0.0/0", "serverAddress": address }))
                .collect();
            json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses })
        }
        Scope::Groups => {
            let groups: Vec<Value> =
                discovery.groups.named().map(|(name, versions)| group_value(name, versions)).collect();
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
        }
    };
    respond::json(StatusCode::OK, &value)
}

fn group_value(name: &str, versions: &[&'static str]) -> Value {
    let version = |version: &&str| json!({ "groupVersion": format!("{name}/{version}"), "version": version });
    let all: Vec<Value> = versions.iter().map(version).collect();
    json!({ "name": name, "preferredVersion": all.first(), "versions": all })
}

/// `/apis/{group}`.
pub(crate) fn group(discovery: &Discovery, name: &str) -> ApiResult<Response<Body>> {
    let (name, versions) = discovery.groups.named().find(|(own, _)| *own == name).ok_or_else(Status::path_not_found)?;
    let mut value = group_value(name, versions);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Ok(respond::json(StatusCode::OK, &value))
}

/// `/api/v1` and `/apis/{group}/{version}`.
pub(crate) fn resources(discovery: &Discovery, group: &str, version: &str) -> ApiResult<Response<Body>> {
    let gv = discovery.groups.find(group, version).ok_or_else(Status::path_not_found)?;
    let resources: Vec<Value> = gv.resources().flat_map(|def| legacy_resources(def, version)).collect();
    let value = json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": gv.api_version(), "resources": resources,
    });
    Ok(respond::json(StatusCode::OK, &value))
}

/// The entries of one resource: itself and its subresources.
fn legacy_resources(def: &ResourceDef, version: &str) -> Vec<Value> {
    let mut main = json!({
        "name": def.plural, "singularName": def.singular(), "namespaced": def.namespaced, "kind": def.kind,
        "verbs": def.verbs,
    });
    if !def.short_names.is_empty() {
        main["shortNames"] = json!(def.short_names);
    }
    if !def.categories.is_empty() {
        main["categories"] = json!(def.categories);
    }
    if let Some(prefix) = def.storage.prefix {
        let bytes = format!("{prefix}{}", def.storage.api_version);
        main["storageVersionHash"] = json!(storage_version_hash(&bytes));
    }
    let subresources = def.subresources.iter().map(|subresource| {
        let mut value = json!({
            "name": format!("{}/{}", def.plural, subresource.name), "singularName": "", "namespaced": def.namespaced,
            "kind": subresource.body.map_or(def.kind, |(_, kind)| kind), "verbs": subresource.verbs,
        });
        if let Some((api_version, _)) = subresource.body
            && api_version != def.api_version(version)
        {
            let (group, version) = carob_api::meta::group_version(api_version);
            value["group"] = group.into();
            value["version"] = version.into();
        }
        value
    });
    std::iter::once(main).chain(subresources.collect::<Vec<_>>()).collect()
}

/// Eight bytes that change with the stored version (apiserver `pkg/endpoints/discovery/storageversionhash.go`).
fn storage_version_hash(text: &str) -> String {
    use base64::Engine;
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&digest.as_ref()[..8])
}
