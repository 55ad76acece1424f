//! Looks at stored objects from outside the registry: what tokens and node authorization ask.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use carob_api::{kinds, meta};
use carob_store::{ListOptions, Store};
use serde::Deserialize;
use serde_json::Value;

use crate::authn::{ObjectFacts, ObjectLookup};
use crate::authz::NodeReach;

pub(crate) struct Lookup {
    store: Store,
}

/// The few bytes of an object that are asked for.
#[derive(Deserialize)]
struct Partial {
    metadata: PartialMeta,
}

#[derive(Deserialize)]
struct PartialMeta {
    #[serde(default)]
    uid: String,
    #[serde(rename = "deletionTimestamp", default)]
    deletion_timestamp: Option<jiff::Timestamp>,
}

impl Lookup {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Value> {
        let entry = self.store.get(&key("pods", namespace, name)?)?;
        serde_json::from_slice(&entry.value).ok()
    }
}

/// The key of an object of the core group.
fn key(resource: &str, namespace: &str, name: &str) -> Option<String> {
    kinds::by_resource("", "v1", resource).map(|def| def.storage_key(namespace, name))
}

impl ObjectLookup for Lookup {
    fn facts(&self, resource: &str, namespace: &str, name: &str) -> Option<ObjectFacts> {
        let entry = self.store.get(&key(resource, namespace, name)?)?;
        let partial: Partial = serde_json::from_slice(&entry.value).ok()?;
        let deletion_timestamp_s = partial.metadata.deletion_timestamp.map(jiff::Timestamp::as_second);
        Some(ObjectFacts { uid: partial.metadata.uid, deletion_timestamp_s })
    }

    fn token_in_secret(&self, namespace: &str, name: &str) -> Option<Vec<u8>> {
        let entry = self.store.get(&key("secrets", namespace, name)?)?;
        let secret: Value = serde_json::from_slice(&entry.value).ok()?;
        STANDARD.decode(meta::str_at(&secret, &["data", "token"])?).ok()
    }
}

impl NodeReach for Lookup {
    fn reaches(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let Some(prefix) = kinds::by_resource("", "v1", "pods").map(|pods| pods.storage_prefix(Some(namespace))) else {
            return false;
        };
        let Ok(page) = self.store.list(&prefix, ListOptions::default()) else { return false };
        let quoted = format!("{name:?}");
        page.entries
            .iter()
            // Most Pods do not hold the name at all, and finding that out is cheap.
            .filter(|entry| contains(&entry.value, quoted.as_bytes()))
            .filter_map(|entry| serde_json::from_slice::<Value>(&entry.value).ok())
            .filter(|pod| meta::str_at(pod, &["spec", "nodeName"]) == Some(node))
            .any(|pod| references(&pod, resource, name))
    }

    fn runs(&self, node: &str, namespace: &str, pod: &str) -> Option<bool> {
        self.pod(namespace, pod).map(|pod| meta::str_at(&pod, &["spec", "nodeName"]) == Some(node))
    }
}

pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(haystack, needle).is_some()
}

/// Whether a Pod names an object of its namespace (pkg/api/v1/pod, `VisitPodSecretNames`, `VisitPodConfigmapNames`).
fn references(pod: &Value, resource: &str, name: &str) -> bool {
    match resource {
        "serviceaccounts" => meta::str_at(pod, &["spec", "serviceAccountName"]) == Some(name),
        "secrets" => {
            names_of(pod, SECRET_FIELDS).any(|found| found == name) || pull_secrets(pod).any(|found| found == name)
        }
        "configmaps" => names_of(pod, CONFIG_MAP_FIELDS).any(|found| found == name),
        "persistentvolumeclaims" => claims(pod).any(|found| found == name),
        "resourceclaims" => meta::items_at(pod, &["spec", "resourceClaims"])
            .iter()
            .any(|claim| meta::str_at(claim, &["resourceClaimName"]) == Some(name)),
        _ => false,
    }
}

/// The fields, anywhere in a PodSpec, that hold a reference, and the key of the name in it.
type ReferenceFields = &'static [(&'static str, &'static str)];

const SECRET_FIELDS: ReferenceFields = &[
    ("secretRef", "name"),
    ("secretKeyRef", "name"),
    ("secret", "secretName"),
    ("secret", "name"),
    ("nodePublishSecretRef", "name"),
    ("azureFile", "secretName"),
];
const CONFIG_MAP_FIELDS: ReferenceFields =
    &[("configMapRef", "name"), ("configMapKeyRef", "name"), ("configMap", "name")];

fn names_of(pod: &Value, fields: ReferenceFields) -> impl Iterator<Item = &str> {
    let mut found = Vec::new();
    collect(&pod["spec"], fields, &mut found);
    found.into_iter()
}

fn collect<'a>(value: &'a Value, fields: ReferenceFields, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let names = fields.iter().filter(|(field, _)| field == key);
                found.extend(names.filter_map(|(_, name)| inner[*name].as_str()));
                collect(inner, fields, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, fields, found)),
        _ => {}
    }
}

fn pull_secrets(pod: &Value) -> impl Iterator<Item = &str> {
    meta::items_at(pod, &["spec", "imagePullSecrets"]).iter().filter_map(|secret| secret["name"].as_str())
}

/// Claims named by volumes, and those that ephemeral volumes stand for: `<pod>-<volume>`.
fn claims(pod: &Value) -> impl Iterator<Item = String> {
    meta::items_at(pod, &["spec", "volumes"]).iter().filter_map(|volume| {
        if let Some(claim) = meta::str_at(volume, &["persistentVolumeClaim", "claimName"]) {
            return Some(claim.to_owned());
        }
        meta::at(volume, &["ephemeral"])?;
        Some(format!("{}-{}", meta::name(pod), volume["name"].as_str()?))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_references_what_its_spec_names() {
        let pod = json!({
            "metadata": { "name": "p" },
            "spec": {
                "serviceAccountName": "sa",
                "imagePullSecrets": [{ "name": "pull" }],
                "containers": [{
                    "env": [{ "valueFrom": { "secretKeyRef": { "name": "env", "key": "k" } } }],
                    "envFrom": [{ "configMapRef": { "name": "all" } }],
                }],
                "volumes": [
                    { "name": "a", "secret": { "secretName": "mounted" } },
                    { "name": "b", "projected": { "sources": [{ "secret": { "name": "projected" } }, { "configMap": { "name": "ca" } }] } },
                    { "name": "c", "persistentVolumeClaim": { "claimName": "claim" } },
                    { "name": "d", "ephemeral": {} },
                ],
            },
        });
        let cases = [
            ("secrets", "pull env mounted projected", "all sa"),
            ("configmaps", "all ca", "mounted env"),
            ("persistentvolumeclaims", "claim p-d", "c"),
            ("serviceaccounts", "sa", "default"),
        ];
        for (resource, yes, no) in cases {
            assert!(yes.split(' ').all(|name| references(&pod, resource, name)), "{resource}: {yes}");
            assert!(!no.split(' ').any(|name| references(&pod, resource, name)), "{resource}: {no}");
        }
    }
}
