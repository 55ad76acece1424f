//! Removes Pods that nobody else will: of Nodes that are gone, deleted before they had a Node, stuck on Nodes that are out of
//! service, and ended ones beyond a number (`pkg/controller/podgc`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carob_client::{Change, During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use tracing::info;

use crate::condition::{Condition, TRUE};
use crate::context::Context;
use crate::index::Index;
use crate::node::health;
use crate::pods::{self, FAILED};

/// Ended Pods that are kept (--terminated-pod-gc-threshold).
const ENDED_PODS_KEPT: usize = 12_500;
/// How long a Node may be missing before its Pods go (quarantineTime).
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum PodGcKey {
    Pod(ObjectKey),
    /// How many ended Pods there are.
    Ended,
}

pub(crate) struct PodGc {
    context: Context,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    /// Nodes that Pods name and that are missing, and since when.
    missing: Mutex<HashMap<String, Duration>>,
    /// How many Pods have ended, counted along with their changes.
    ended: Arc<AtomicUsize>,
}

/// Why a Pod has to go.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    NodeMissing(String),
    NeverScheduled,
    OutOfService,
}

impl PodGc {
    pub(crate) fn new(context: Context) -> Self {
        let pods: Informer<Pod> = context.informers.of();
        let ended = Arc::<AtomicUsize>::default();
        let counter = Arc::clone(&ended);
        pods.on_change(move |change| {
            let count = |pod: Option<&Arc<Pod>>| usize::from(pod.is_some_and(|pod| pods::is_finished(pod)));
            counter.fetch_add(count(change.new), Ordering::AcqRel);
            counter.fetch_sub(count(change.old), Ordering::AcqRel);
        });
        Self { pods, nodes: context.informers.of(), context, missing: Mutex::default(), ended }
    }

    pub(crate) fn pods(&self) -> &Informer<Pod> {
        &self.pods
    }

    pub(crate) fn nodes(&self) -> &Informer<Node> {
        &self.nodes
    }

    pub(crate) fn keys(change: Change<'_, Pod>) -> Vec<PodGcKey> {
        let Some(pod) = change.new else { return Vec::new() };
        let ended = pods::is_finished(pod) && !change.old.is_some_and(|old| pods::is_finished(old));
        let own = (pods::node_name(pod).is_some() || pods::is_deleting(pod)).then(|| PodGcKey::Pod(change.key()));
        own.into_iter().chain(ended.then_some(PodGcKey::Ended)).collect()
    }

    /// The Pods of a Node that went or was put out of service.
    pub(crate) fn keys_of_node(by_node: &Index<Pod, String>, change: Change<'_, Node>) -> Vec<PodGcKey> {
        let unusable = change.new.is_none_or(|node| is_out_of_service(node));
        if !unusable {
            return Vec::new();
        }
        by_node.keys(&change.key().name.to_string()).into_iter().map(PodGcKey::Pod).collect()
    }

    fn judge(&self, pod: &Pod) -> Verdict {
        let Some(name) = pods::node_name(pod) else {
            return if pods::is_deleting(pod) { Verdict::NeverScheduled } else { Verdict::Keep };
        };
        match self.nodes.get(None, name) {
            None => Verdict::NodeMissing(name.to_owned()),
            Some(node) if pods::is_deleting(pod) && is_out_of_service(&node) && !health::is_ready(&node) => {
                Verdict::OutOfService
            }
            Some(_) => Verdict::Keep,
        }
    }

    /// How much longer a missing Node is waited for; `None` when it has been long enough.
    fn quarantine_left(&self, node: &str) -> Option<Duration> {
        let now = self.context.clock.monotonic();
        let mut missing = self.missing.lock().expect("no holder of the nodes panics");
        missing.retain(|name, _| self.nodes.get(None, name).is_none());
        let since = *missing.entry(node.to_owned()).or_insert(now);
        since.saturating_add(QUARANTINE).checked_sub(now).filter(|left| !left.is_zero())
    }

    async fn is_really_gone(&self, node: &str) -> Result<bool, ReconcileError> {
        let api: Api<Node> = self.context.cluster_api();
        Ok(api.get_opt(node).await.during(|| format!("get node {node}"))?.is_none())
    }

    /// Deletes the Pod without grace; one that has not ended is marked as failed first, so that its owner replaces it.
    async fn remove(&self, key: &ObjectKey, pod: &Pod, reason: Option<&str>) -> Result<(), ReconcileError> {
        info!(pod = %key, reason, "removing a pod that nobody else will");
        let api: Api<Pod> = self.context.api(&key.namespace);
        if !pods::is_finished(pod) {
            let conditions: Vec<_> = reason.iter().map(|reason| self.disruption(reason)).collect();
            let patch = json!({
                "metadata": {"uid": pod.metadata.uid},
                "status": {"phase": FAILED, "conditions": conditions},
            });
            let marked = api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            marked.unless_gone(|| format!("mark pod {key} as failed"))?;
        }
        let preconditions = Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() }.grace_period(0);
        api.delete(&key.name, &params).await.unless_gone(|| format!("delete pod {key}")).map(drop)
    }

    fn disruption(&self, message: &str) -> PodCondition {
        PodCondition::new("DisruptionTarget", TRUE, "DeletionByPodGC", message, &self.context.time())
    }

    async fn look_at(&self, key: &ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(pod) = self.pods.get_key(key) else { return Ok(Requeue::No) };
        match self.judge(&pod) {
            Verdict::Keep => Ok(Requeue::No),
            Verdict::NeverScheduled => self.remove(key, &pod, None).await.map(|()| Requeue::No),
            Verdict::OutOfService => {
                let reason = "PodGC: node is out-of-service";
                self.remove(key, &pod, Some(reason)).await.map(|()| Requeue::No)
            }
            Verdict::NodeMissing(node) => {
                if let Some(left) = self.quarantine_left(&node) {
                    return Ok(Requeue::After(left));
                }
                if self.is_really_gone(&node).await? {
                    self.remove(key, &pod, Some("PodGC: node no longer exists")).await?;
                }
                Ok(Requeue::No)
            }
        }
    }

    async fn trim_ended(&self) -> Result<(), ReconcileError> {
        // Asked for with each Pod that ends: all Pods are looked at only where there are too many.
        if self.ended.load(Ordering::Acquire) <= ENDED_PODS_KEPT {
            return Ok(());
        }
        for pod in surplus(self.pods.list(), ENDED_PODS_KEPT) {
            self.remove(&ObjectKey::of(&*pod), &pod, None).await?;
        }
        Ok(())
    }
}

fn is_out_of_service(node: &Node) -> bool {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| taint.key == OUT_OF_SERVICE)
}

/// The oldest ended Pods beyond `kept`, evicted ones first.
fn surplus(all: Vec<std::sync::Arc<Pod>>, kept: usize) -> Vec<std::sync::Arc<Pod>> {
    let mut ended: Vec<_> = all.into_iter().filter(|pod| pods::is_finished(pod) && !pods::is_deleting(pod)).collect();
    let surplus = ended.len().saturating_sub(kept);
    let evicted = |pod: &Pod| pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some("Evicted");
    ended.sort_by_cached_key(|pod| (!evicted(pod), pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone()));
    ended.truncate(surplus);
    ended
}

impl Reconcile for PodGc {
    type Key = PodGcKey;

    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    async fn reconcile(&self, key: PodGcKey) -> Result<Requeue, ReconcileError> {
        match key {
            PodGcKey::Pod(key) => self.look_at(&key).await,
            PodGcKey::Ended => self.trim_ended().await.map(|()| Requeue::No),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use k8s_openapi::api::core::v1::PodStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    use super::*;

    fn pod(name: &str, created: i64, phase: &str, reason: &str) -> Arc<Pod> {
        let created = Time(Timestamp::from_second(created).expect("in range"));
        let metadata =
            ObjectMeta { name: Some(name.to_owned()), creation_timestamp: Some(created), ..ObjectMeta::default() };
        let status =
            PodStatus { phase: Some(phase.to_owned()), reason: Some(reason.to_owned()), ..PodStatus::default() };
        Arc::new(Pod { metadata, status: Some(status), ..Pod::default() })
    }

    #[test]
    fn the_oldest_ended_pods_go_and_evicted_ones_before_them() {
        let all = vec![
            pod("young", 30, "Succeeded", ""),
            pod("old", 10, "Failed", ""),
            pod("evicted", 40, "Failed", "Evicted"),
            pod("running", 1, "Running", ""),
        ];
        let names = |kept| -> Vec<String> {
            surplus(all.clone(), kept).iter().filter_map(|pod| pod.metadata.name.clone()).collect()
        };
        assert_eq!(names(3), Vec::<String>::new());
        assert_eq!(names(2), ["evicted"]);
        assert_eq!(names(1), ["evicted", "old"]);
    }
}
