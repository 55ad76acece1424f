//! ServiceAccount: every Pod runs as one, and gets its token mounted unless it, or the account, says otherwise
//! (plugin/pkg/admission/serviceaccount).

use async_trait::async_trait;
use carob_api::{Status, meta};
use serde_json::{Value, json};

use super::reader::Reader;
use super::{Admission, Mutator, is_new_pod};

const DEFAULT_ACCOUNT: &str = "default";
/// Where clients in Pods look for their credentials.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Life of the mounted token, seconds: an hour, and seven more by which old clients' tokens are told apart
/// (pkg/serviceaccount/claims.go).
const TOKEN_EXPIRATION_S: u32 = 60 * 60 + 7;
/// Octal 0644.
const FILE_MODE: u32 = 0o644;
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

pub(super) struct ServiceAccount {
    pub(super) reader: Reader,
}

#[async_trait]
impl Mutator for ServiceAccount {
    fn handles(&self, write: &Admission<'_>) -> bool {
        is_new_pod(write)
    }

    async fn mutate(&self, write: &Admission<'_>, pod: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        if meta::annotation(pod, MIRROR_ANNOTATION).is_some() {
            return check_mirror(pod).map_err(|why| write.forbidden(Some(pod), why));
        }
        let named = meta::str_at(pod, &["spec", "serviceAccountName"]).filter(|name| !name.is_empty());
        let name = named.unwrap_or(DEFAULT_ACCOUNT).to_owned();
        let account = self.reader.get("", "serviceaccounts", write.namespace, &name).ok_or_else(|| {
            let namespace = write.namespace;
            write.forbidden(
                Some(pod),
                &format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"),
            )
        })?;
        meta::set(pod, &["spec", "serviceAccountName"], name.as_str());
        // The field's old name, which old clients still read.
        meta::set(pod, &["spec", "serviceAccount"], name);
        if wants_token(pod, &account) {
            mount_token(pod);
        }
        if meta::items_at(pod, &["spec", "imagePullSecrets"]).is_empty()
            && let Some(secrets) = meta::at(&account, &["imagePullSecrets"])
        {
            meta::set(pod, &["spec", "imagePullSecrets"], secrets.clone());
        }
        Ok(())
    }
}

/// A static Pod's mirror cannot bring credentials with it.
fn check_mirror(pod: &Value) -> Result<(), &'static str> {
    if meta::str_at(pod, &["spec", "serviceAccountName"]).is_some_and(|name| !name.is_empty()) {
        return Err("a mirror pod may not reference service accounts");
    }
    let volumes = meta::items_at(pod, &["spec", "volumes"]);
    if volumes.iter().any(|volume| volume.get("secret").is_some()) {
        return Err("a mirror pod may not reference secrets");
    }
    let sources = volumes.iter().flat_map(|volume| meta::items_at(volume, &["projected", "sources"]));
    if sources.into_iter().any(|source| source.get("serviceAccountToken").is_some()) {
        return Err("a mirror pod may not use ServiceAccountToken volume projections");
    }
    Ok(())
}

/// The Pod's word counts before the account's.
fn wants_token(pod: &Value, account: &Value) -> bool {
    meta::bool_at(pod, &["spec", "automountServiceAccountToken"])
        .or_else(|| meta::bool_at(account, &["automountServiceAccountToken"]))
        .unwrap_or(true)
}

fn mount_token(pod: &mut Value) {
    let volumes = meta::items_at(pod, &["spec", "volumes"]);
    let own = volumes.iter().filter_map(|volume| volume["name"].as_str());
    let existing = own.filter(|name| name.starts_with(VOLUME_PREFIX)).map(str::to_owned).next();
    let name = existing.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", carob_kit::random_suffix(5)));
    let mut mounted = false;
    for field in ["initContainers", "containers"] {
        let Some(containers) = meta::at_mut(pod, &["spec", field]).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let mounts = meta::items_at(container, &["volumeMounts"]);
            if mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                continue;
            }
            mounted = true;
            let mount = json!({ "name": name, "readOnly": true, "mountPath": MOUNT_PATH });
            push(container, &["volumeMounts"], mount);
        }
    }
    if mounted && existing.is_none() {
        push(pod, &["spec", "volumes"], token_volume(&name));
    }
}

fn push(object: &mut Value, path: &[&str], item: Value) {
    match meta::at_mut(object, path).and_then(Value::as_array_mut) {
        Some(list) => list.push(item),
        None => meta::set(object, path, vec![item]),
    }
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": FILE_MODE,
            "sources": [
                { "serviceAccountToken": { "expirationSeconds": TOKEN_EXPIRATION_S, "path": "token" } },
                { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                { "downwardAPI": { "items": [
                    { "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } },
                ] } },
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_without_a_mount_of_its_own_gets_the_token() {
        let mut pod = json!({ "spec": {
            "initContainers": [{ "name": "i" }],
            "containers": [{ "name": "a" }, { "name": "b", "volumeMounts": [{ "name": "x", "mountPath": MOUNT_PATH }] }],
        } });
        mount_token(&mut pod);
        let volume = pod["spec"]["volumes"][0]["name"].as_str().expect("a volume was added").to_owned();
        assert!(volume.starts_with(VOLUME_PREFIX) && volume.len() == VOLUME_PREFIX.len() + 5);
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["name"], volume);
        assert_eq!(pod["spec"]["initContainers"][0]["volumeMounts"][0]["readOnly"], true);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn the_pods_word_counts_before_the_accounts() {
        let pod = |value: Value| json!({ "spec": { "automountServiceAccountToken": value } });
        let account = json!({ "automountServiceAccountToken": false });
        assert!(wants_token(&pod(json!(true)), &account));
        assert!(!wants_token(&pod(Value::Null), &account));
        assert!(wants_token(&pod(Value::Null), &json!({})));
    }
}
