//! Which Pods name a claim.

use std::sync::Arc;

use carob_api::storage::ephemeral_claim;
use carob_client::{Change, Grouped, Informer, ObjectKey};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use crate::pods;

/// The Pods by the claims that they name, ephemeral volumes' included.
#[derive(Clone)]
pub(crate) struct ClaimUsers {
    pods: Arc<Grouped<ObjectKey, Pod>>,
}

/// The claims that a Pod's volumes name, and whether each is an ephemeral volume's.
pub(super) fn claims_of(pod: &Pod) -> impl Iterator<Item = (ObjectKey, bool)> + '_ {
    let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    let key = move |claim: &str| ObjectKey::new(namespace.unwrap_or_default(), claim);
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter_map(move |volume| {
        match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(source), _) => Some((key(&source.claim_name), false)),
            (None, Some(_)) => Some((key(&ephemeral_claim(name.unwrap_or_default(), &volume.name)), true)),
            (None, None) => None,
        }
    })
}

impl ClaimUsers {
    pub(crate) fn new(pods: &Informer<Pod>) -> Self {
        Self { pods: Grouped::new(pods, |pod: &Pod| claims_of(pod).map(|(key, _)| key).collect()) }
    }

    /// The claims that a change of a Pod concerns.
    pub(crate) fn claims(change: Change<'_, Pod>) -> Vec<ObjectKey> {
        change.versions().flat_map(|pod| claims_of(pod).map(|(key, _)| key).collect::<Vec<_>>()).collect()
    }

    pub(super) fn pods_of(&self, claim: &ObjectKey) -> Vec<Arc<Pod>> {
        self.pods.get(claim)
    }

    /// The Nodes of the Pods that name the claim.
    pub(super) fn nodes(&self, claim: &ObjectKey) -> Vec<ObjectKey> {
        let pods = self.pods.get(claim);
        pods.iter().filter_map(|pod| pods::node_name(pod).map(ObjectKey::cluster)).collect()
    }

    /// The names of the Pods that wait for a node and for this claim.
    pub(super) fn unscheduled(&self, claim: &ObjectKey) -> Vec<String> {
        let waiting = self.pods.get(claim).into_iter().filter(|pod| pods::node_name(pod).is_none());
        waiting.filter_map(|pod| pod.metadata.name.clone()).collect()
    }

    /// Whether a Pod uses the claim, so that it has to stay.
    pub(super) fn uses(&self, key: &ObjectKey, claim: &PersistentVolumeClaim) -> bool {
        self.pods.get(key).iter().flat_map(|pod| Hold::of(pod)).any(|hold| hold.keeps(key, claim))
    }
}

/// A claim that a Pod keeps from going (`podUsesPVCForDeletion`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hold {
    claim: ObjectKey,
    /// The Pod's uid where the claim is an ephemeral volume's: another owner's claim of that name is not meant.
    owner: Option<String>,
}

impl Hold {
    /// What a Pod holds: it has a node, and its volumes are not given back yet.
    pub(super) fn of(pod: &Pod) -> Vec<Self> {
        if pods::node_name(pod).is_none() {
            return Vec::new();
        }
        // What was deleted without grace waits for finalizers only, which may wait for the claim.
        let is_over = pods::is_deleting(pod) && pod.metadata.deletion_grace_period_seconds == Some(0);
        let held = claims_of(pod).filter(|(_, ephemeral)| !ephemeral || !is_over);
        held.map(|(claim, ephemeral)| Self { claim, owner: pod.metadata.uid.clone().filter(|_| ephemeral) }).collect()
    }

    pub(super) fn keeps(&self, key: &ObjectKey, claim: &PersistentVolumeClaim) -> bool {
        let owners = || claim.metadata.owner_references.iter().flatten().filter(|owner| owner.controller == Some(true));
        self.claim == *key && self.owner.as_ref().is_none_or(|uid| owners().any(|owner| owner.uid == *uid))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_with_a_node_holds_its_claims_until_it_is_over() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "ns",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]}}))
        .expect("a claim");
        let holds = |change: Value, key: &str| {
            let mut pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"nodeName": "n",
                "containers": [], "volumes": [
                    {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "e", "ephemeral": {}}]}});
            carob_api::patch::merge_patch(&mut pod, &change).expect("it applies");
            let pod: Pod = serde_json::from_value(pod).expect("a Pod");
            Hold::of(&pod).iter().any(|hold| hold.keeps(&ObjectKey::new("ns", key), &claim))
        };
        assert!(holds(json!({}), "c") && holds(json!({}), "p-e") && !holds(json!({}), "other"));
        assert!(!holds(json!({"spec": {"nodeName": null}}), "c"));
        assert!(!holds(json!({"metadata": {"uid": "another"}}), "p-e"));
        let over = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0}});
        assert!(holds(over.clone(), "c") && !holds(over, "p-e"));
    }
}
