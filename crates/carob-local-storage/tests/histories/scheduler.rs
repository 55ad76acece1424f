//! The scheduler's part: chooses where claims get their volumes, and binds Pods to where those are.

use carob_api::storage::{BOUND_BY_CONTROLLER, SELECTED_NODE};
use k8s_openapi::api::core::v1::{Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::audit::{asked, capacity, phase};
use crate::cluster::NODES;
use crate::history::{History, pick};
use crate::kubelet::{claim_of, path_of};

/// The classes of claims that wait for a Pod.
const DELAYED: [&str; 3] = ["local", "kept", "hand"];

impl History {
    pub(crate) async fn schedule(&mut self, b: u64) {
        for pod in self.cluster.pods().list(&ListParams::default()).await.expect("it answers").items {
            self.schedule_pod(&pod, b).await;
        }
    }

    async fn schedule_pod(&mut self, pod: &Pod, b: u64) {
        let placed = pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_some());
        if placed || pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let Some(claim) = claim_of(pod) else { return };
        let Some(claim) = self.claims().get_opt(&claim).await.expect("it answers") else { return };
        if claim.metadata.deletion_timestamp.is_some() {
            return;
        }
        let spec = claim.spec.clone().unwrap_or_default();
        if claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound") {
            if spec.storage_class_name.as_deref().is_some_and(|class| DELAYED.contains(&class))
                && spec.volume_name.is_none()
            {
                self.choose(&claim, b).await;
            }
            return;
        }
        let Some(node) = self.node_of(&spec.volume_name.unwrap_or_default()).await else { return };
        let name = pod.metadata.name.clone().unwrap_or_default();
        let target = ObjectReference { kind: Some("Node".into()), name: Some(node.into()), ..Default::default() };
        let body = Binding { metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() }, target };
        let bound: Result<Value, kube::Error> =
            self.cluster.pods().create_subresource("binding", &name, &PostParams::default(), &body).await;
        self.tell(format!("{name} is bound to {node}: {}", bound.is_ok()));
    }

    /// Chooses a volume that is there, or the node on which one is to be made.
    async fn choose(&mut self, claim: &PersistentVolumeClaim, b: u64) {
        let (name, spec) = (claim.metadata.name.clone().unwrap_or_default(), claim.spec.clone().unwrap_or_default());
        let all = self.volumes().list(&ListParams::default()).await.expect("it answers").items;
        let fits = |volume: &&PersistentVolume| {
            let held = volume.spec.clone().unwrap_or_default();
            held.claim_ref.is_none()
                && volume.metadata.deletion_timestamp.is_none()
                && held.storage_class_name == spec.storage_class_name
                && held.volume_mode == spec.volume_mode
                && capacity(volume) >= asked(claim)
                && phase(volume) == "Available"
        };
        let begins_empty = spec.data_source.is_none();
        if let Some(volume) = all.iter().find(fits).filter(|_| begins_empty) {
            let meta = &claim.metadata;
            let owner = json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "default", "name": name,
                "uid": meta.uid, "resourceVersion": meta.resource_version});
            let patch = json!({"metadata": {"resourceVersion": volume.metadata.resource_version,
                "annotations": {BOUND_BY_CONTROLLER: "yes"}}, "spec": {"claimRef": owner}});
            let of = volume.metadata.name.clone().unwrap_or_default();
            // Others may have written it meanwhile: then a later step does it.
            let done = self.volumes().patch(&of, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok();
            self.tell(format!("{of} is chosen for {name}: {done}"));
            return;
        }
        let held = claim.metadata.annotations.as_ref().and_then(|all| all.get(SELECTED_NODE));
        // A scheduler changes its choice only when the provisioner has given it back, or the node is gone.
        if spec.storage_class_name.as_deref() == Some("hand") || (held.is_some() && !b.is_multiple_of(3)) {
            return;
        }
        let node = NODES[pick(b, 2)];
        let patch = json!({"metadata": {"resourceVersion": claim.metadata.resource_version,
            "annotations": {SELECTED_NODE: node}}});
        let done = self.claims().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok();
        self.tell(format!("{node} is chosen for {name}: {done}"));
    }

    /// The node whose disk a volume is on.
    async fn node_of(&self, volume: &str) -> Option<&'static str> {
        let volume = self.volumes().get_opt(volume).await.expect("it answers")?;
        let path = path_of(&volume);
        let here = self.cluster.hosts.iter().find(|host| path.starts_with(&host.root));
        here.map(|host| host.name)
    }
}
