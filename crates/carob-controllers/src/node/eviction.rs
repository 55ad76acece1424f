//! Deletes Pods that do not tolerate a NoExecute taint of their Node, at once or after the time that they tolerate it
//! (`pkg/controller/tainteviction`).

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use carob_client::{
    Change, During, EventKind, EventRecorder, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject,
    reference,
};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use super::taints::{self, NO_EXECUTE, Stay};
use crate::condition::{Condition, TRUE};
use crate::context::Context;
use crate::index::Index;
use crate::pods;

pub(crate) struct TaintEviction {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    recorder: EventRecorder,
    /// Since when the Pods that tolerate a taint for a time have been under one.
    since: Mutex<HashMap<ObjectKey, (Option<String>, Duration)>>,
}

impl TaintEviction {
    pub(crate) fn new(context: Context) -> Self {
        Self {
            nodes: context.informers.of(),
            pods: context.informers.of(),
            recorder: context.recorder("taint-eviction-controller"),
            context,
            since: Mutex::default(),
        }
    }

    pub(crate) fn nodes(&self) -> &Informer<Node> {
        &self.nodes
    }

    pub(crate) fn pods(&self) -> &Informer<Pod> {
        &self.pods
    }

    /// The Pods to look at when a Node's NoExecute taints change.
    pub(crate) fn pods_of_tainted(by_node: &Index<Pod, String>, change: Change<'_, Node>) -> Vec<ObjectKey> {
        let taints =
            |node: &Node| no_execute(node).map(|taint| (taint.key.clone(), taint.value.clone())).collect::<Vec<_>>();
        let (old, new) = (change.old.map(|node| taints(node)), change.new.map(|node| taints(node)));
        if old.unwrap_or_default() == new.unwrap_or_default() {
            return Vec::new();
        }
        by_node.keys(&change.key().name.to_string())
    }

    fn forget(&self, key: &ObjectKey) -> bool {
        self.since.lock().expect("no holder of the times panics").remove(key).is_some()
    }

    /// The moment from which a Pod's time under its taints counts.
    fn since(&self, key: &ObjectKey, pod: &Pod, now: Duration) -> Duration {
        let mut since = self.since.lock().expect("no holder of the times panics");
        let uid = &pod.metadata.uid;
        match since.get(key) {
            Some((of, began)) if of == uid => *began,
            _ => {
                since.insert(key.clone(), (uid.clone(), now));
                now
            }
        }
    }

    async fn evict(&self, key: &ObjectKey, pod: &Pod) -> Result<(), ReconcileError> {
        let message = format!("Marking for deletion Pod {key}");
        self.recorder.record(reference(pod), EventKind::Normal, "TaintManagerEviction", message);
        let api: Api<Pod> = self.context.api(&key.namespace);
        let said = "Taint manager: deleting due to NoExecute taint";
        let target = PodCondition::new("DisruptionTarget", TRUE, "DeletionByTaintManager", said, &self.context.time());
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [target]}});
        let marked = api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        if marked.unless_gone(|| format!("mark pod {key} as evicted"))?.is_none() {
            return Ok(());
        }
        let preconditions = Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        api.delete(&key.name, &params).await.unless_gone(|| format!("evict pod {key}")).map(drop)
    }
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).filter(|taint| taint.effect == NO_EXECUTE)
}

impl Reconcile for TaintEviction {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.pods.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let pod = self.pods.get_key(&key).filter(|pod| !pods::is_deleting(pod));
        let node = pod.as_ref().and_then(|pod| self.nodes.get(None, pods::node_name(pod)?));
        let (Some(pod), Some(node)) = (pod, node) else {
            self.forget(&key);
            return Ok(Requeue::No);
        };
        let taints: Vec<&Taint> = no_execute(&node).collect();
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        let now = self.context.clock.monotonic();
        match taints::stay(&taints, tolerations) {
            Stay::Forever => {
                if self.forget(&key) {
                    let message = format!("Cancelling deletion of Pod {key}");
                    self.recorder.record(reference(&*pod), EventKind::Normal, "TaintManagerEviction", message);
                }
                Ok(Requeue::No)
            }
            Stay::Seconds(seconds) => {
                let until = self.since(&key, &pod, now).saturating_add(Duration::from_secs(seconds));
                match until.checked_sub(now).filter(|left| !left.is_zero()) {
                    Some(left) => Ok(Requeue::After(left)),
                    None => self.evict(&key, &pod).await.map(|()| Requeue::No),
                }
            }
            Stay::NotAtAll => self.evict(&key, &pod).await.map(|()| Requeue::No),
        }
    }
}
