//! Carrying decisions out: bindings, conditions, evictions, claims. Each is one small task that ends with a result.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use carob_api::storage::{BOUND_BY_CONTROLLER, SELECTED_NODE};
use carob_client::{EventKind, EventRecorder, Informer};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition,
};
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Status, Time};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;
use tokio::sync::watch;

use super::error::ActError;
use super::label_group::{LabelGroup, LabelGroupStatus};
use crate::convert;
use crate::model::{ClaimKey, GangRef, PodInfo, PodKey, Str};
use crate::plugins::volumes::ClaimPlan;

/// Longer messages are cut (events.k8s.io NoteLengthLimit).
const MESSAGE_BYTES_MAX: usize = 1024;

/// What carrying out needs.
#[derive(Clone)]
pub(super) struct Actor {
    pub(super) client: kube::Client,
    /// By the name of the profile, which is who its events come from.
    pub(super) recorders: Arc<HashMap<Str, EventRecorder>>,
    pub(super) claims: Informer<PersistentVolumeClaim>,
    pub(super) volumes: Informer<PersistentVolume>,
    /// Changes whenever a claim does.
    pub(super) claims_changed: watch::Receiver<u64>,
    pub(super) claims_bound_within: Duration,
}

/// What a Pod's status is to say.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub(super) pod: Arc<Pod>,
    pub(super) message: String,
    pub(super) nominate: Nomination,
    pub(super) now: Timestamp,
}

/// What becomes of `status.nominatedNodeName`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Nomination {
    Keep,
    Clear,
    Set(Str),
}

fn pods(client: &kube::Client, key: &PodKey) -> Api<Pod> {
    Api::namespaced(client.clone(), &key.namespace)
}

/// A reference to a Pod for events.
fn pod_reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.key.namespace.to_string()),
        name: Some(pod.key.name.to_string()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}

fn cut(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

impl Actor {
    /// Binds a Pod to its node, after its claims.
    pub(super) async fn bind(&mut self, pod: &PodInfo, node: &Str, plan: &ClaimPlan) -> Result<(), ActError> {
        if !plan.is_empty() {
            self.prepare_claims(pod, node, plan).await?;
        }
        let meta = ObjectMeta {
            name: Some(pod.key.name.to_string()),
            namespace: Some(pod.key.namespace.to_string()),
            uid: Some(pod.uid.to_string()),
            ..ObjectMeta::default()
        };
        let target = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_string()),
            ..ObjectReference::default()
        };
        let binding = Binding { metadata: meta, target };
        let bound: Result<Status, kube::Error> = pods(&self.client, &pod.key)
            .create_subresource("binding", &pod.key.name, &PostParams::default(), &binding)
            .await;
        bound.map_err(|cause| ActError::Bind {
            pod: pod.key.to_string(),
            node: node.to_string(),
            cause: Box::new(cause),
        })?;
        let message = format!("Successfully assigned {} to {node}", pod.key);
        self.record(pod, pod, EventKind::Normal, "Scheduled", message);
        Ok(())
    }

    /// Writes why a Pod has no node, and the node that is promised to it.
    pub(super) async fn mark(&self, mark: &Mark) -> Result<(), ActError> {
        let meta = &mark.pod.metadata;
        let (namespace, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        let Some(patch) = status_patch(mark) else { return Ok(()) };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let patched = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        patched
            .map(drop)
            .map_err(|cause| ActError::Status { pod: format!("{namespace}/{name}"), cause: Box::new(cause) })
    }

    /// Records what happened to a Pod, in the name of the scheduler of `by`.
    fn record(&self, pod: &PodInfo, by: &PodInfo, kind: EventKind, reason: &str, message: String) {
        self.tell(pod_reference(pod), by, kind, reason, &message);
    }

    pub(super) fn warn(&self, pod: &PodInfo, message: &str) {
        self.record(pod, pod, EventKind::Warning, "FailedScheduling", cut(message));
    }

    /// Says on the victim why it goes, then deletes it.
    pub(super) async fn evict(
        &self,
        victim: &PodInfo,
        preemptor: &PodInfo,
        node: &Str,
        now: Timestamp,
    ) -> Result<(), ActError> {
        let failed = |cause| ActError::Evict { pod: victim.key.to_string(), cause: Box::new(cause) };
        let condition = PodCondition {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
            reason: Some("PreemptionByScheduler".to_owned()),
            message: Some(format!(
                "{}: preempting to accommodate a higher priority pod",
                preemptor.template.scheduler_name
            )),
            last_transition_time: Some(Time(now)),
            ..PodCondition::default()
        };
        let patch = Patch::Strategic(json!({"metadata": {"uid": &*victim.uid}, "status": {"conditions": [condition]}}));
        let api = pods(&self.client, &victim.key);
        api.patch_status(&victim.key.name, &PatchParams::default(), &patch).await.map_err(failed)?;
        let same = Preconditions { uid: Some(victim.uid.to_string()), resource_version: None };
        let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
        api.delete(&victim.key.name, &params).await.map_err(failed)?;
        let message = format!("Preempted by pod {} on node {node}", preemptor.uid);
        self.record(victim, preemptor, EventKind::Normal, "Preempted", message);
        Ok(())
    }

    /// Takes back the promise that an earlier preemption wrote into a Pod's status.
    pub(super) async fn clear_nomination(&self, key: &PodKey) -> Result<(), ActError> {
        let patch = Patch::Strategic(json!({"status": {"nominatedNodeName": null}}));
        let patched = pods(&self.client, key).patch_status(&key.name, &PatchParams::default(), &patch).await;
        patched.map(drop).map_err(|cause| ActError::Status { pod: key.to_string(), cause: Box::new(cause) })
    }

    /// Writes whether a group was placed, and what it lacks.
    pub(super) async fn mark_group(&self, gang: &GangRef, condition: Condition) -> Result<(), ActError> {
        let api: Api<PodGroup> = Api::namespaced(self.client.clone(), &gang.namespace);
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        let patched = api.patch_status(&gang.name, &PatchParams::default(), &patch).await;
        patched.map(drop).map_err(|cause| ActError::GroupStatus { group: gang.to_string(), cause: Box::new(cause) })
    }

    /// Writes the phase of a label's group.
    pub(super) async fn mark_label_group(&self, gang: &GangRef, status: &LabelGroupStatus) -> Result<(), ActError> {
        let api: Api<LabelGroup> = Api::namespaced(self.client.clone(), &gang.namespace);
        let patch = Patch::Merge(json!({"status": status}));
        let patched = api.patch_status(&gang.name, &PatchParams::default(), &patch).await;
        patched.map(drop).map_err(|cause| ActError::GroupStatus { group: gang.to_string(), cause: Box::new(cause) })
    }

    /// Records what happened to an object, in the name of the scheduler of a Pod.
    pub(super) fn tell(&self, object: ObjectReference, by: &PodInfo, kind: EventKind, reason: &str, message: &str) {
        if let Some(recorder) = self.recorders.get(&by.template.scheduler_name) {
            recorder.record(object, kind, reason, cut(message));
        }
    }

    async fn prepare_claims(&mut self, pod: &PodInfo, node: &Str, plan: &ClaimPlan) -> Result<(), ActError> {
        let failed = |claim: &ClaimKey| {
            let claim = format!("{}/{}", claim.namespace, claim.name);
            move |cause| ActError::Claim { claim: claim.clone(), node: node.to_string(), cause: Box::new(cause) }
        };
        for (claim, volume) in &plan.bind {
            let held = self.claims.get(Some(&claim.namespace), &claim.name);
            let Some(uid) = held.and_then(|held| held.metadata.uid.clone()) else {
                return Err(ActError::ClaimGone { claim: format!("{}/{}", claim.namespace, claim.name) });
            };
            let owner = json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": &*claim.namespace,
                "name": &*claim.name, "uid": uid});
            // Only over the volume that was looked at: another claim may have it by now.
            let version = self.volumes.get(None, volume).and_then(|volume| volume.metadata.resource_version.clone());
            let patch = json!({"metadata": {"resourceVersion": version, "annotations": {BOUND_BY_CONTROLLER: "yes"}},
                "spec": {"claimRef": owner}});
            let api: Api<PersistentVolume> = Api::all(self.client.clone());
            api.patch(volume, &PatchParams::default(), &Patch::Merge(patch)).await.map_err(failed(claim))?;
        }
        let mut asked = Vec::new();
        for claim in &plan.provision {
            let patch = json!({"metadata": {"annotations": {SELECTED_NODE: &**node}}});
            let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &claim.namespace);
            let written = api.patch(&claim.name, &PatchParams::default(), &Patch::Merge(patch)).await;
            asked.push((claim, version(&written.map_err(failed(claim))?)));
        }
        let wanted: Vec<&ClaimKey> = plan.bind.iter().map(|(claim, _)| claim).chain(&plan.provision).collect();
        let (claims, within) = (self.claims.clone(), self.claims_bound_within);
        let given_back = |(key, since): &(&ClaimKey, u64)| is_given_back(&claims, key, node, *since);
        let settled = self
            .claims_changed
            .wait_for(|_| wanted.iter().all(|key| is_bound(&claims, key)) || asked.iter().any(given_back));
        match tokio::time::timeout(within, settled).await {
            Ok(Ok(_)) => match asked.iter().find(|asked| given_back(asked)) {
                Some((claim, _)) => {
                    Err(ActError::NotProvisioned { claim: format!("{}/{}", claim.namespace, claim.name) })
                }
                None => Ok(()),
            },
            Ok(Err(_)) | Err(_) => Err(ActError::ClaimTimeout { pod: pod.key.to_string(), seconds: within.as_secs() }),
        }
    }
}

fn is_bound(claims: &Informer<PersistentVolumeClaim>, key: &ClaimKey) -> bool {
    let claim = claims.get(Some(&key.namespace), &key.name);
    claim.and_then(|claim| convert::claim(&claim).ok()).is_some_and(|facts| facts.bound)
}

/// Whether a provisioner took the node off a claim, or the claim is gone, by what is known from the version `since` on.
fn is_given_back(claims: &Informer<PersistentVolumeClaim>, key: &ClaimKey, node: &Str, since: u64) -> bool {
    let Some(claim) = claims.get(Some(&key.namespace), &key.name) else { return true };
    let facts = convert::claim(&claim).ok().filter(|_| version(&claim) >= since);
    facts.is_some_and(|facts| !facts.bound && facts.selected_node.as_ref() != Some(node))
}

fn version(claim: &PersistentVolumeClaim) -> u64 {
    claim.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// The patch that makes a Pod's status say this; nothing if it says so already.
fn status_patch(mark: &Mark) -> Option<serde_json::Value> {
    let status = mark.pod.status.as_ref();
    let old = status
        .and_then(|status| status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled"));
    let nominated = status.and_then(|status| status.nominated_node_name.as_deref()).unwrap_or_default();
    let nomination = match &mark.nominate {
        Nomination::Set(node) if **node != *nominated => Some(json!(&**node)),
        Nomination::Clear if !nominated.is_empty() => Some(serde_json::Value::Null),
        Nomination::Set(_) | Nomination::Clear | Nomination::Keep => None,
    };
    let same = |condition: &PodCondition| {
        condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
            && condition.message.as_deref() == Some(&mark.message)
    };
    if old.is_some_and(same) && nomination.is_none() {
        return None;
    }
    let since = old
        .filter(|condition| condition.status == "False")
        .and_then(|condition| condition.last_transition_time.clone());
    let condition = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("Unschedulable".to_owned()),
        message: Some(mark.message.clone()),
        last_transition_time: Some(since.unwrap_or(Time(mark.now))),
        observed_generation: mark.pod.metadata.generation,
        ..PodCondition::default()
    };
    let mut status = json!({"conditions": [condition]});
    if let Some(nomination) = nomination {
        status["nominatedNodeName"] = nomination;
    }
    Some(json!({"status": status}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(status: serde_json::Value, message: &str, nominate: Nomination) -> Option<serde_json::Value> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).expect("a Pod");
        status_patch(&Mark { pod: Arc::new(pod), message: message.to_owned(), nominate, now: Timestamp::UNIX_EPOCH })
    }

    #[test]
    fn a_status_that_says_so_already_is_not_written_again() {
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "why",
            "lastTransitionTime": "2020-01-01T00:00:00Z"});
        let status = json!({"conditions": [condition], "nominatedNodeName": "n1"});
        assert_eq!(mark(status.clone(), "why", Nomination::Keep), None);
        assert_eq!(mark(status.clone(), "why", Nomination::Set("n1".into())), None);
        let changed = mark(status.clone(), "why not", Nomination::Keep).expect("the message is new");
        assert_eq!(changed["status"]["conditions"][0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
        let moved = mark(status.clone(), "why", Nomination::Set("n2".into())).expect("the promise is new");
        assert_eq!(moved["status"]["nominatedNodeName"], "n2");
        let cleared = mark(status, "why", Nomination::Clear).expect("the promise goes");
        assert_eq!(cleared["status"]["nominatedNodeName"], serde_json::Value::Null);
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let long = "é".repeat(MESSAGE_BYTES_MAX);
        assert_eq!(cut(&long).len(), MESSAGE_BYTES_MAX);
        assert_eq!(cut("x").len(), 1);
        assert_eq!(cut(&format!("x{long}")).len(), MESSAGE_BYTES_MAX - 1);
    }
}
