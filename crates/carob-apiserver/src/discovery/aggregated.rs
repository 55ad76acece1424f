//! `apidiscovery.k8s.io` APIGroupDiscoveryList: everything in one document.

use carob_api::{ResourceDef, meta};
use serde_json::{Value, json};

use super::Scope;
use super::groups::{self, Version};
use crate::aggregation::RemoteVersion;
use crate::catalogue::Served;

pub(super) fn list(served: &Served, remote: &[RemoteVersion], scope: Scope, api_version: &str) -> Value {
    let items: Vec<Value> = match scope {
        Scope::Core => served.core().map(|one| group("", served.versions_of(one).map(Version::Local))).collect(),
        Scope::Groups => {
            groups::named(served, remote).into_iter().map(|one| group(one.name, one.versions.into_iter())).collect()
        }
    };
    json!({ "kind": "APIGroupDiscoveryList", "apiVersion": api_version, "metadata": {}, "items": items })
}

fn group<'a>(name: &str, versions: impl Iterator<Item = Version<'a>>) -> Value {
    let entries = versions.map(|version| match version {
        Version::Local(gv) => {
            let resources: Vec<Value> = gv.resources().map(|def| resource(def, gv.version)).collect();
            json!({ "version": gv.version, "resources": resources, "freshness": "Current" })
        }
        Version::Remote(remote) => remote.discovery.clone(),
    });
    let versions: Vec<Value> = entries.collect();
    let mut metadata = json!({ "creationTimestamp": null });
    if !name.is_empty() {
        metadata["name"] = name.into();
    }
    json!({ "metadata": metadata, "versions": versions })
}

fn resource(def: &ResourceDef, version: &str) -> Value {
    let mut value = json!({
        "resource": def.plural(),
        "responseKind": { "group": def.group(), "version": version, "kind": def.kind() },
        "scope": if def.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": def.singular(),
        "verbs": def.verbs(),
    });
    if !def.short_names().is_empty() {
        value["shortNames"] = json!(def.short_names());
    }
    if !def.categories().is_empty() {
        value["categories"] = json!(def.categories());
    }
    let subresources: Vec<Value> = def
        .subresources()
        .iter()
        .map(|subresource| {
            let own = def.api_version(version);
            let (api_version, kind) = subresource.body.unwrap_or((own.as_str(), def.kind()));
            let (group, version) = meta::group_version(api_version);
            json!({
                "subresource": subresource.name,
                "responseKind": { "group": group, "version": version, "kind": kind },
                "verbs": subresource.verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        value["subresources"] = json!(subresources);
    }
    value
}
