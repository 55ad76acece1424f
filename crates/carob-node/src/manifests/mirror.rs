//! How the API shows static Pods: each by a mirror Pod that the node makes, and makes again when someone deletes it (kubelet
//! `pkg/kubelet/pod/mirror_client.go`). Pure; [`crate::fleet`] carries it out.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::{HASH, MIRROR, Manifests};
use crate::pod::PodId;

/// What is to be done in the API.
#[derive(Debug, Clone, PartialEq)]
pub enum MirrorAction {
    Create(Arc<Pod>),
    Delete(PodId),
}

pub fn is_mirror(pod: &Pod) -> bool {
    hash(pod, MIRROR).is_some()
}

/// Whether the API shows `of`, as it is now, by `mirror`.
pub fn shows(mirror: &Pod, of: &Pod) -> bool {
    let known = hash(of, HASH);
    mirror.metadata.deletion_timestamp.is_none() && known.is_some() && hash(mirror, MIRROR) == known
}

fn hash<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// What is missing and what is too much. `ending`: namespaces and names of static Pods that run no longer but are not gone;
/// `shown`: the node's Pods in the API.
pub fn plan(manifests: &Manifests, ending: &BTreeSet<(String, String)>, shown: &[Arc<Pod>]) -> Vec<MirrorAction> {
    let mut actions = Vec::new();
    let named = |pod: &Pod| {
        let id = PodId::of(pod);
        (id.namespace, id.name)
    };
    for (name, pod) in &manifests.pods {
        match shown.iter().find(|shown| named(shown) == *name) {
            None => actions.push(MirrorAction::Create(Arc::clone(pod))),
            Some(other) if !is_mirror(other) || shows(other, pod) => {}
            Some(stale) => actions.push(MirrorAction::Delete(PodId::of(stale))),
        }
    }
    for mirror in shown.iter().filter(|pod| manifests.complete && is_mirror(pod)) {
        let name = named(mirror);
        if !manifests.pods.contains_key(&name) && !ending.contains(&name) {
            actions.push(MirrorAction::Delete(PodId::of(mirror)));
        }
    }
    actions
}

/// The mirror of a static Pod, which belongs to its node.
pub fn mirror_of(pod: &Pod, node_name: &str, node_uid: &str) -> Pod {
    let mut mirror = pod.clone();
    mirror.status = None;
    let meta = &mut mirror.metadata;
    meta.uid = None;
    meta.creation_timestamp = None;
    meta.generation = None;
    let annotations = meta.annotations.get_or_insert_default();
    if let Some(hash) = annotations.get(HASH).cloned() {
        annotations.insert(MIRROR.to_owned(), hash);
    }
    meta.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node_name.to_owned(),
        uid: node_uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    mirror
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str, annotation: &str, hash: &str, deleted: bool) -> Arc<Pod> {
        let mut metadata = json!({"name": name, "namespace": "ns", "uid": uid, "annotations": {annotation: hash}});
        if deleted {
            metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(serde_json::from_value(json!({"metadata": metadata})).expect("a Pod"))
    }

    fn wanted(pods: &[(&str, &str)], complete: bool) -> Manifests {
        let one =
            |(name, hash): &(&str, &str)| (("ns".to_owned(), (*name).to_owned()), pod(name, hash, HASH, hash, false));
        Manifests { pods: pods.iter().map(one).collect(), complete }
    }

    fn shown(actions: &[MirrorAction]) -> Vec<String> {
        let one = |action: &MirrorAction| match action {
            MirrorAction::Create(pod) => format!("+{}", PodId::of(pod).uid),
            MirrorAction::Delete(id) => format!("-{}", id.uid),
        };
        actions.iter().map(one).collect()
    }

    #[test]
    fn each_static_pod_has_one_mirror_of_its_present_form() {
        let mirrors = [
            pod("same", "m1", MIRROR, "1", false),
            pod("changed", "m2", MIRROR, "old", false),
            pod("deleted", "m3", MIRROR, "3", true),
            pod("orphan", "m4", MIRROR, "4", false),
            pod("ending", "m5", MIRROR, "5", false),
            pod("other", "p6", "x", "", false),
        ];
        let pods = [("same", "1"), ("changed", "2"), ("deleted", "3"), ("missing", "7"), ("other", "6")];
        let ending = BTreeSet::from([("ns".to_owned(), "ending".to_owned())]);
        assert_eq!(shown(&plan(&wanted(&pods, true), &ending, &mirrors)), ["-m2", "-m3", "+7", "-m4"]);
        assert_eq!(shown(&plan(&wanted(&[], false), &ending, &mirrors)), Vec::<String>::new(), "not all is known yet");
    }

    #[test]
    fn a_mirror_belongs_to_its_node() {
        let of = pod("p", "1", HASH, "1", false);
        let mirror = mirror_of(&of, "n", "u");
        assert!(shows(&mirror, &of) && is_mirror(&mirror) && !is_mirror(&of));
        assert_eq!(mirror.metadata.uid, None);
        let owner = &mirror.metadata.owner_references.expect("an owner")[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("Node", "u", Some(true)));
    }
}
