//! Discovery: which groups, versions and resources there are, in the legacy and in the aggregated form. All of it follows
//! from the catalogue of kinds, and from what the servers of aggregated APIs say of themselves.

mod aggregated;
mod groups;

use std::net::SocketAddr;
use std::sync::OnceLock;

use bytes::Bytes;
use carob_api::{ResourceDef, Status};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use self::groups::{Group, Version};
use crate::aggregation::{Merged, RemoteVersion};
use crate::body::Body;
use crate::catalogue::Served;
use crate::error::ApiResult;
use crate::negotiate::clauses;
use crate::nonresource::{cached, hash};
use crate::respond;

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

/// The aggregated documents that were asked for, by scope and version. Those of one state of what is served.
#[derive(Default)]
pub(crate) struct Documents([OnceLock<Document>; 4]);

impl Documents {
    fn aggregated(&self, served: &Served, remote: &[RemoteVersion], scope: Scope, api_version: &str) -> &Document {
        let index = usize::from(scope == Scope::Groups) * 2 + usize::from(api_version.ends_with("beta1"));
        self.0[index].get_or_init(|| {
            let body = Bytes::from(aggregated::list(served, remote, scope, api_version).to_string());
            Document { hash: hash(&body), body }
        })
    }
}

/// `/api` and `/apis`.
pub(crate) fn collection(
    served: &Served,
    merged: Option<&Merged>,
    advertised: Option<SocketAddr>,
    headers: &HeaderMap,
    scope: Scope,
) -> Response<Body> {
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
            let documents = merged.map_or(&served.documents, |merged| &merged.documents);
            let document = documents.aggregated(served, remote_of(merged), scope, api_version);
            return cached(headers, content_type, &document.hash, document.body.clone());
        }
    }
    let value = match scope {
        Scope::Core => {
            let address = advertised.map(|address| address.to_string());
            let addresses: Vec<Value> = address
                .into_iter()
                .map(|address| json!({ "clientCIDR": "0.0.0.0/0", "serverAddress": address }))
                .collect();
            json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses })
        }
        Scope::Groups => {
            let groups: Vec<Value> = groups::named(served, remote_of(merged)).iter().map(group_value).collect();
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
        }
    };
    respond::json(StatusCode::OK, &value)
}

fn remote_of(merged: Option<&Merged>) -> &[RemoteVersion] {
    merged.map(|merged| merged.remote.as_slice()).unwrap_or_default()
}

fn group_value(group: &Group<'_>) -> Value {
    let name = group.name;
    let value = |version: &Version<'_>| {
        let version = version.name();
        json!({ "groupVersion": format!("{name}/{version}"), "version": version })
    };
    let all: Vec<Value> = group.versions.iter().map(value).collect();
    json!({ "name": name, "preferredVersion": all.first(), "versions": all })
}

/// `/apis/{group}`.
pub(crate) fn group(served: &Served, merged: Option<&Merged>, name: &str) -> ApiResult<Response<Body>> {
    let groups = groups::named(served, remote_of(merged));
    let group = groups.iter().find(|group| group.name == name).ok_or_else(Status::path_not_found)?;
    let mut value = group_value(group);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Ok(respond::json(StatusCode::OK, &value))
}

/// `/api/v1` and `/apis/{group}/{version}`.
pub(crate) fn resources(served: &Served, group: &str, version: &str) -> ApiResult<Response<Body>> {
    let gv = served.find(group, version).ok_or_else(Status::path_not_found)?;
    let resources: Vec<Value> = gv.resources().flat_map(|def| legacy_resources(def, version)).collect();
    let value = json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": gv.api_version(), "resources": resources,
    });
    Ok(respond::json(StatusCode::OK, &value))
}

/// The entries of one resource: itself and its subresources.
fn legacy_resources(def: &ResourceDef, version: &str) -> Vec<Value> {
    let mut main = json!({
        "name": def.plural(), "singularName": def.singular(), "namespaced": def.namespaced, "kind": def.kind(),
        "verbs": def.verbs(),
    });
    if !def.short_names().is_empty() {
        main["shortNames"] = json!(def.short_names());
    }
    if !def.categories().is_empty() {
        main["categories"] = json!(def.categories());
    }
    if def.key_prefix().is_some() {
        let stored = def.custom().map_or(def.hub_api_version(), |custom| &custom.stored_api_version);
        let (group, version) = carob_api::meta::group_version(stored);
        let text = format!("{group}/{version}/{}", def.kind());
        main["storageVersionHash"] = json!(storage_version_hash(&text));
    }
    let subresources = def.subresources().iter().map(|subresource| {
        let mut value = json!({
            "name": format!("{}/{}", def.plural(), subresource.name), "singularName": "", "namespaced": def.namespaced,
            "kind": subresource.body.map_or(def.kind(), |(_, kind)| kind), "verbs": subresource.verbs,
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
