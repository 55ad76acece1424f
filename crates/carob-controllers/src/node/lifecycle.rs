//! Watches over Nodes: silence makes their conditions Unknown, conditions become taints, and the Pods of a Node that is not
//! ready are not ready either (`pkg/controller/nodelifecycle`).
//!
//! Where upstream looks at every Node each 5 s, a Node is looked at here when it or its Lease changes, and when its silence
//! would become too long.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use carob_client::{
    Change, During, EventKind, EventRecorder, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Selection,
    Subject, reference,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tracing::info;

use super::health::{self, NodeGrace, Sign};
use super::taints;
use crate::condition::{Condition, FALSE, TRUE};
use crate::context::Context;
use crate::pods;

/// Where the kubelets' Leases are.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// How many Nodes are ready, counted along with their changes: with thousands of Nodes, to look at all of them for each
/// heartbeat would be most of what the controller does.
#[derive(Debug, Default)]
pub(crate) struct ReadyNodes(AtomicUsize);

impl ReadyNodes {
    fn of(node: Option<&Arc<Node>>) -> usize {
        usize::from(node.is_some_and(|node| health::is_ready(node)))
    }

    fn count(&self, change: Change<'_, Node>) {
        self.0.fetch_add(Self::of(change.new), Ordering::AcqRel);
        self.0.fetch_sub(Self::of(change.old), Ordering::AcqRel);
    }

    fn any(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }

    /// Whether a change that has been counted was from none to some or from some to none.
    pub(crate) fn turned(&self, change: Change<'_, Node>) -> bool {
        let now = self.0.load(Ordering::Acquire);
        let before = (now + Self::of(change.old)).saturating_sub(Self::of(change.new));
        (now == 0) != (before == 0)
    }
}

pub(crate) struct NodeLifecycle {
    context: Context,
    grace: NodeGrace,
    nodes: Informer<Node>,
    ready: Arc<ReadyNodes>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    recorder: EventRecorder,
    seen: Mutex<HashMap<ObjectKey, Seen>>,
}

/// What was seen of a Node when it was last looked at.
struct Seen {
    /// A Node made again under a name begins without a past.
    uid: Option<String>,
    sign: Sign,
    ready: bool,
}

/// What a look at a Node has found.
struct Look {
    sign: Sign,
    /// It is new to us.
    new: bool,
    /// It was ready when it was last looked at, and is not now.
    lost: bool,
}

impl NodeLifecycle {
    pub(crate) fn new(context: Context, grace: NodeGrace) -> Self {
        let selection = Selection { namespace: Some(LEASE_NAMESPACE.to_owned()), ..Selection::default() };
        let nodes: Informer<Node> = context.informers.of();
        let ready = Arc::new(ReadyNodes::default());
        let counter = Arc::clone(&ready);
        nodes.on_change(move |change| counter.count(change));
        Self {
            grace,
            nodes,
            ready,
            leases: context.informers.of_selected(selection),
            pods: context.informers.of(),
            recorder: context.recorder("node-controller"),
            context,
            seen: Mutex::default(),
        }
    }

    pub(crate) fn nodes(&self) -> &Informer<Node> {
        &self.nodes
    }

    /// Counts before whoever listens to the Nodes later is told.
    pub(crate) fn ready(&self) -> &Arc<ReadyNodes> {
        &self.ready
    }

    pub(crate) fn leases(&self) -> &Informer<Lease> {
        &self.leases
    }

    pub(crate) fn pods(&self) -> &Informer<Pod> {
        &self.pods
    }

    /// Takes note of what is seen of the Node now.
    fn look(&self, key: &ObjectKey, node: &Node) -> Look {
        let lease = self.leases.get(Some(LEASE_NAMESPACE), &key.name);
        let mut seen = self.seen.lock().expect("no holder of what was seen panics");
        let (uid, ready) = (node.metadata.uid.clone(), health::is_ready(node));
        let before = seen.get(key).filter(|before| before.uid == uid);
        let now = self.context.clock.monotonic();
        let sign = Sign::next(before.map(|before| &before.sign), node, lease.as_deref(), now);
        let (new, lost) = (before.is_none(), before.is_some_and(|before| before.ready) && !ready);
        seen.insert(key.clone(), Seen { uid, sign: sign.clone(), ready });
        Look { sign, new, lost }
    }

    /// Forgets a Node that is gone, and says so.
    fn forget(&self, key: &ObjectKey) {
        let before = self.seen.lock().expect("no holder of what was seen panics").remove(key);
        if let Some(Seen { uid, .. }) = before {
            let metadata = ObjectMeta { name: Some(key.name.to_string()), uid, ..ObjectMeta::default() };
            let node = Node { metadata, ..Node::default() };
            self.announce(&node, "RemovingNode", &format!("Removing Node {key} from Controller"));
        }
    }

    fn announce(&self, node: &Node, reason: &str, message: &str) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let message = format!("Node {name} event: {message}");
        self.recorder.record(reference(node), EventKind::Normal, reason, message);
    }

    async fn mark_silent(&self, key: &ObjectKey, node: &Node) -> Result<bool, ReconcileError> {
        let conditions = health::silent_conditions(node, &self.context.time());
        if conditions.is_empty() {
            return Ok(false);
        }
        info!(node = %key, "the node stopped posting its status");
        let patch = json!({"metadata": {"uid": node.metadata.uid}, "status": {"conditions": conditions}});
        let api: Api<Node> = self.context.cluster_api();
        let written = api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        written.unless_gone(|| format!("mark node {key} as silent"))?;
        Ok(true)
    }

    /// When no Node at all is ready it is rather we who are cut off, and taking Pods away would help nobody
    /// (upstream's zone state FullDisruption).
    async fn set_taints(&self, key: &ObjectKey, node: &Node) -> Result<(), ReconcileError> {
        let Some(taints) = taints::wanted(node, self.ready.any(), &self.context.time()) else { return Ok(()) };
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        });
        let api: Api<Node> = self.context.cluster_api();
        let written = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        written.unless_gone(|| format!("taint node {key}")).map(drop)
    }

    /// The Pods of a Node that is not ready get no traffic (`pkg/controller/util/node`, MarkPodsNotReady).
    async fn mark_pods_not_ready(&self, key: &ObjectKey) -> Result<(), ReconcileError> {
        for pod in &self.context.indexes.pods_by_node.get(&key.name.to_string()) {
            let Some(ready) = pods::condition(pod, "Ready").filter(|ready| ready.status == TRUE) else { continue };
            let pod_key = ObjectKey::of(&**pod);
            let mut not_ready = PodCondition::new("Ready", FALSE, "NodeNotReady", "", &self.context.time());
            not_ready.observed_generation = ready.observed_generation;
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [not_ready]}});
            let api: Api<Pod> = self.context.api(&pod_key.namespace);
            let written = api.patch_status(&pod_key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            written.unless_gone(|| format!("mark pod {pod_key} as not ready"))?;
            self.recorder.record(reference(&**pod), EventKind::Warning, "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }
}

impl Reconcile for NodeLifecycle {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "node-lifecycle"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.nodes.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(node) = self.nodes.get_key(&key) else {
            self.forget(&key);
            return Ok(Requeue::No);
        };
        let Look { sign, new, lost } = self.look(&key, &node);
        if lost {
            let message = format!("Node {key} status is now: NodeNotReady");
            self.recorder.record(reference(&*node), EventKind::Normal, "NodeNotReady", message);
        }
        if new {
            self.announce(&node, "RegisteredNode", &format!("Registered Node {key} in Controller"));
        }
        let now = self.context.clock.monotonic();
        if now >= sign.deadline(self.grace) && self.mark_silent(&key, &node).await? {
            // The change comes back as an event, and with it the taints that follow from it.
            return Ok(Requeue::No);
        }
        self.set_taints(&key, &node).await?;
        if !health::is_ready(&node) {
            self.mark_pods_not_ready(&key).await?;
        }
        match sign.deadline(self.grace).checked_sub(now) {
            Some(left) if !left.is_zero() => Ok(Requeue::After(left)),
            _ => Ok(Requeue::No),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str) -> Arc<Node> {
        let conditions = json!([{"type": "Ready", "status": ready}]);
        Arc::new(serde_json::from_value(json!({"status": {"conditions": conditions}})).expect("a Node"))
    }

    #[test]
    fn only_the_first_and_the_last_ready_node_turn_the_state() {
        let ready = ReadyNodes::default();
        let (well, ill) = (node("True"), node("Unknown"));
        let see = |old, new| {
            let change = Change { old, new };
            ready.count(change);
            (ready.any(), ready.turned(change))
        };
        assert_eq!(see(None, Some(&ill)), (false, false));
        assert_eq!(see(Some(&ill), Some(&well)), (true, true));
        assert_eq!(see(None, Some(&well)), (true, false));
        assert_eq!(see(Some(&well), Some(&well)), (true, false));
        assert_eq!(see(Some(&well), Some(&ill)), (true, false));
        assert_eq!(see(Some(&well), None), (false, true));
        assert_eq!(see(Some(&ill), None), (false, false));
    }
}
