//! Which other objects a Pod or a volume names (pkg/api/v1/pod/util.go, pkg/api/v1/persistentvolume/util.go). Pure.

use crate::meta;
use serde_json::Value;

/// The kinds of objects that a node reaches through its Pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Referred {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

/// The fields, anywhere in a PodSpec, that hold a reference, and the key of the name in it.
type Fields = &'static [(&'static str, &'static str)];

/// `VisitPodSecretNames`.
const SECRETS: Fields = &[
    ("secretRef", "name"),
    ("secretKeyRef", "name"),
    ("secret", "secretName"),
    ("secret", "name"),
    ("nodePublishSecretRef", "name"),
    ("azureFile", "secretName"),
];
/// `VisitPodConfigmapNames`.
const CONFIG_MAPS: Fields = &[("configMapRef", "name"), ("configMapKeyRef", "name"), ("configMap", "name")];

/// What a Pod names in its own namespace. A name may come more than once.
pub fn of_pod(pod: &Value) -> Vec<(Referred, String)> {
    let mut found = Vec::new();
    if let Some(account) = meta::str_at(pod, &["spec", "serviceAccountName"]) {
        add(&mut found, Referred::ServiceAccount, account);
    }
    for secret in meta::items_at(pod, &["spec", "imagePullSecrets"]) {
        add(&mut found, Referred::Secret, secret["name"].as_str().unwrap_or_default());
    }
    collect(&pod["spec"], &mut found);
    for volume in meta::items_at(pod, &["spec", "volumes"]) {
        if let Some(claim) = meta::str_at(volume, &["persistentVolumeClaim", "claimName"]) {
            add(&mut found, Referred::Claim, claim);
        } else if let (Some(_), Some(name)) = (meta::at(volume, &["ephemeral"]), volume["name"].as_str()) {
            // The claim that an ephemeral volume stands for.
            found.push((Referred::Claim, format!("{}-{name}", meta::name(pod))));
        }
    }
    resource_claims(pod, &mut found);
    found
}

fn add(found: &mut Vec<(Referred, String)>, kind: Referred, name: &str) {
    if !name.is_empty() {
        found.push((kind, name.to_owned()));
    }
}

fn collect(value: &Value, found: &mut Vec<(Referred, String)>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                for (kind, fields) in [(Referred::Secret, SECRETS), (Referred::ConfigMap, CONFIG_MAPS)] {
                    let names = fields.iter().filter(|(field, _)| field == key);
                    names.for_each(|(_, name)| add(found, kind, inner[*name].as_str().unwrap_or_default()));
                }
                collect(inner, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

/// Claims are named, or were made from a template, and then the status says under which name.
fn resource_claims(pod: &Value, found: &mut Vec<(Referred, String)>) {
    let made = meta::items_at(pod, &["status", "resourceClaimStatuses"]);
    for claim in meta::items_at(pod, &["spec", "resourceClaims"]) {
        let name = meta::str_at(claim, &["resourceClaimName"]).or_else(|| {
            let made = made.iter().find(|made| made["name"] == claim["name"])?;
            meta::str_at(made, &["resourceClaimName"])
        });
        add(found, Referred::ResourceClaim, name.unwrap_or_default());
    }
    let extended = meta::str_at(pod, &["status", "extendedResourceClaimStatus", "resourceClaimName"]);
    add(found, Referred::ResourceClaim, extended.unwrap_or_default());
}

/// The Secrets, by namespace and name, that a node needs for a PersistentVolume.
pub fn secrets_of_volume(volume: &Value) -> Vec<(String, String)> {
    let spec = &volume["spec"];
    let claim_namespace = meta::str_at(volume, &["spec", "claimRef", "namespace"]).unwrap_or_default();
    let mut found = Vec::new();
    let mut add = |namespace: &str, name: &str| {
        if !name.is_empty() {
            found.push((namespace.to_owned(), name.to_owned()));
        }
    };
    if let Some(source) = meta::at(spec, &["azureFile"]) {
        let own = meta::str_at(source, &["secretNamespace"]).filter(|own| !own.is_empty());
        add(own.unwrap_or(claim_namespace), source["secretName"].as_str().unwrap_or_default());
    }
    // Whether a reference without a namespace means that of the claim.
    let sources =
        [("cephfs", true), ("cinder", false), ("flexVolume", true), ("rbd", true), ("scaleIO", true), ("iscsi", true)];
    for (source, of_claim) in sources.into_iter().chain([("storageos", false)]) {
        let Some(reference) = meta::at(spec, &[source, "secretRef"]) else { continue };
        let own = meta::str_at(reference, &["namespace"]).filter(|own| !own.is_empty() || !of_claim);
        let namespace = own.unwrap_or(if of_claim { claim_namespace } else { "" });
        add(namespace, reference["name"].as_str().unwrap_or_default());
    }
    for field in ["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"] {
        if let Some(reference) = meta::at(spec, &["csi", field]) {
            let text = |field: &str| reference[field].as_str().unwrap_or_default();
            add(text("namespace"), text("name"));
        }
    }
    found
}

/// Volume sources that need nothing of the API (`HasAPIObjectReference`).
const SELF_CONTAINED_VOLUMES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "cephfs",
    "cinder",
    "downwardAPI",
    "emptyDir",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];
const REFERRING_VOLUMES: &[(&str, &str)] = &[
    ("configMap", "configmaps (via configmap volumes)"),
    ("secret", "secrets (via secret volumes)"),
    ("csi", "csidrivers (via CSI volumes)"),
    ("glusterfs", "endpoints (via glusterFS volumes)"),
    ("persistentVolumeClaim", "persistentvolumeclaims"),
    ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
    ("azureFile", "secrets (via azureFile volumes)"),
];
const REFERRING_PROJECTIONS: &[(&str, &str)] = &[
    ("configMap", "configmaps (via projected volumes)"),
    ("secret", "secrets (via projected volumes)"),
    ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
    ("clusterTrustBundle", "clustertrustbundles"),
    ("podCertificate", "podcertificates"),
];

/// The first kind of API object that a Pod refers to, if it refers to any; what is not known counts as a reference.
pub fn first_of_pod(pod: &Value) -> Option<String> {
    let found = of_pod(pod);
    let has = |kind: Referred| found.iter().any(|(found, _)| *found == kind);
    for (kind, words) in [
        (Referred::ServiceAccount, "serviceaccounts"),
        (Referred::Secret, "secrets"),
        (Referred::ConfigMap, "configmaps"),
    ] {
        if has(kind) {
            return Some(words.to_owned());
        }
    }
    if !meta::items_at(pod, &["spec", "resourceClaims"]).is_empty() {
        return Some("resourceclaims".to_owned());
    }
    meta::items_at(pod, &["spec", "volumes"]).iter().find_map(of_volume)
}

fn of_volume(volume: &Value) -> Option<String> {
    let has = |source: &str| meta::at(volume, &[source]).is_some();
    if SELF_CONTAINED_VOLUMES.iter().any(|source| has(source)) {
        return None;
    }
    if let Some((_, words)) = REFERRING_VOLUMES.iter().find(|(source, _)| has(source)) {
        return Some((*words).to_owned());
    }
    let name = volume["name"].as_str().unwrap_or_default();
    if !has("projected") {
        return Some(format!("an unknown volume type for volume {name:?}"));
    }
    meta::items_at(volume, &["projected", "sources"]).iter().find_map(|source| {
        let found = REFERRING_PROJECTIONS.iter().find(|(field, _)| meta::at(source, &[field]).is_some());
        match found {
            Some((_, words)) => Some((*words).to_owned()),
            None if meta::at(source, &["downwardAPI"]).is_some() => None,
            None => Some(format!("an unknown source of the projected volume {name:?}")),
        }
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
                "ephemeralContainers": [{ "envFrom": [{ "secretRef": { "name": "late" } }] }],
                "resourceClaims": [{ "name": "gpu", "resourceClaimTemplateName": "t" }, { "name": "n", "resourceClaimName": "own" }],
                "volumes": [
                    { "name": "a", "secret": { "secretName": "mounted" } },
                    { "name": "b", "projected": { "sources": [{ "secret": { "name": "projected" } }, { "configMap": { "name": "ca" } }] } },
                    { "name": "c", "persistentVolumeClaim": { "claimName": "claim" } },
                    { "name": "d", "ephemeral": {} },
                ],
            },
            "status": { "resourceClaimStatuses": [{ "name": "gpu", "resourceClaimName": "p-gpu-x" }] },
        });
        let found = of_pod(&pod);
        let names = |kind: Referred| -> Vec<&str> {
            let mut names: Vec<&str> =
                found.iter().filter(|(found, _)| *found == kind).map(|(_, name)| name.as_str()).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(names(Referred::Secret), ["env", "late", "mounted", "projected", "pull"]);
        assert_eq!(names(Referred::ConfigMap), ["all", "ca"]);
        assert_eq!(names(Referred::Claim), ["claim", "p-d"]);
        assert_eq!(names(Referred::ServiceAccount), ["sa"]);
        assert_eq!(names(Referred::ResourceClaim), ["own", "p-gpu-x"]);
    }

    #[test]
    fn a_mirror_pod_may_name_nothing_of_the_api() {
        let refused = [
            (json!({ "serviceAccountName": "x" }), "serviceaccounts"),
            (json!({ "imagePullSecrets": [{ "name": "x" }] }), "secrets"),
            (json!({ "containers": [{ "env": [{ "valueFrom": { "secretKeyRef": { "name": "x" } } }] }] }), "secrets"),
            (json!({ "initContainers": [{ "envFrom": [{ "configMapRef": { "name": "x" } }] }] }), "configmaps"),
            (json!({ "resourceClaims": [{ "name": "x" }] }), "resourceclaims"),
            (json!({ "volumes": [{ "name": "v", "secret": {} }] }), "secrets (via secret volumes)"),
            (json!({ "volumes": [{ "name": "v", "configMap": {} }] }), "configmaps (via configmap volumes)"),
            (json!({ "volumes": [{ "name": "v", "csi": { "driver": "d" } }] }), "csidrivers (via CSI volumes)"),
            (
                json!({ "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "c" } }] }),
                "persistentvolumeclaims",
            ),
            (
                json!({ "volumes": [{ "name": "v", "ephemeral": {} }] }),
                "persistentvolumeclaims (via ephemeral volumes)",
            ),
            (
                json!({ "volumes": [{ "name": "v", "projected": { "sources": [{ "downwardAPI": {} }, { "serviceAccountToken": {} }] } }] }),
                "serviceaccounts (via projected volumes)",
            ),
            (json!({ "volumes": [{ "name": "v", "novel": {} }] }), "an unknown volume type for volume \"v\""),
        ];
        for (spec, expected) in refused {
            assert_eq!(first_of_pod(&json!({ "spec": spec })).as_deref(), Some(expected), "{spec}");
        }
        let fine = json!({ "volumes": [
            { "name": "a", "hostPath": { "path": "/etc" } }, { "name": "b", "emptyDir": {} },
            { "name": "c", "projected": { "sources": [{ "downwardAPI": {} }] } },
        ] });
        assert_eq!(first_of_pod(&json!({ "spec": fine })), None);
    }

    #[test]
    fn a_volumes_secrets_are_those_that_a_node_sees() {
        let volume = |source: Value| {
            let mut volume = json!({ "spec": { "claimRef": { "namespace": "claims", "name": "c" } } });
            for (key, value) in source.as_object().into_iter().flatten() {
                volume["spec"][key] = value.clone();
            }
            secrets_of_volume(&volume)
                .into_iter()
                .map(|(namespace, name)| format!("{namespace}/{name}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(volume(json!({ "azureFile": { "secretName": "s" } })), ["claims/s"]);
        assert_eq!(volume(json!({ "azureFile": { "secretName": "s", "secretNamespace": "n" } })), ["n/s"]);
        assert_eq!(volume(json!({ "rbd": { "secretRef": { "name": "s" } } })), ["claims/s"]);
        let csi = json!({ "csi": {
            "controllerPublishSecretRef": { "namespace": "n", "name": "controller" },
            "nodeStageSecretRef": { "namespace": "n", "name": "node" },
        } });
        assert_eq!(volume(csi), ["n/node"]);
        assert!(volume(json!({ "hostPath": {} })).is_empty());
    }
}
