//! Volumes of CSI drivers are attached to the Nodes whose Pods need them, and detached when none does
//! (`pkg/controller/volume/attachdetach`). The driver's external-attacher does the work; VolumeAttachments say what it is.
//!
//! A Node and this controller agree as `carob-node/src/csi/attached.rs` says: before a volume is detached the Node's status
//! says that it is attached no longer, and then the Node is asked whether it uses it.

mod decide;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carob_api::storage::{csi_attachment_name, csi_volume_name};
use carob_client::{
    Change, During, EventKind, EventRecorder, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject,
    reference,
};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use self::decide::{Decision, Held, NodeFacts, WantedVolume, decide};
use super::users::{ClaimUsers, claims_of};
use super::volume_name;
use crate::context::Context;
use crate::index::Index;
use crate::pods;

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

pub(crate) struct AttachDetach {
    context: Context,
    nodes: Informer<Node>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    drivers: Informer<CSIDriver>,
    attachments: Informer<VolumeAttachment>,
    by_node: Index<VolumeAttachment, String>,
    by_volume: Index<VolumeAttachment, String>,
    users: ClaimUsers,
    recorder: EventRecorder,
    noted: Mutex<Noted>,
}

/// What is known of attachments beside what the API says, by their names. Entries go with the attachments.
#[derive(Default)]
struct Noted {
    /// When each was first seen unwanted, by the clock that goes on evenly.
    unwanted: HashMap<String, Duration>,
    /// The words on a failure that the Pods were told.
    told: HashMap<String, String>,
    /// By volume the Node and the name of an attachment that was made and that the informer has not shown yet.
    made: HashMap<String, (String, String)>,
}

/// A volume of a driver that Pods need.
struct Needed {
    object: Arc<PersistentVolume>,
    driver: String,
    handle: String,
    pods: Vec<Arc<Pod>>,
}

impl AttachDetach {
    pub(crate) fn new(context: Context, users: ClaimUsers) -> Self {
        let attachments: Informer<VolumeAttachment> = context.informers.of();
        Self {
            nodes: context.informers.of(),
            claims: context.informers.of(),
            volumes: context.informers.of(),
            drivers: context.informers.of(),
            by_node: Index::new(&attachments, |attachment| Some(attachment.spec.node_name.clone())),
            by_volume: Index::new(&attachments, |attachment| attachment.spec.source.persistent_volume_name.clone()),
            attachments,
            users,
            recorder: context.recorder("attachdetach-controller"),
            noted: Mutex::default(),
            context,
        }
    }

    pub(crate) fn attachments(&self) -> &Informer<VolumeAttachment> {
        &self.attachments
    }

    pub(crate) fn drivers(&self) -> &Informer<CSIDriver> {
        &self.drivers
    }

    /// The Nodes that a change of a Pod concerns: those of Pods with claims.
    pub(crate) fn nodes_of_pod(change: Change<'_, Pod>) -> Vec<ObjectKey> {
        let with_claims = change.versions().filter(|pod| claims_of(pod).next().is_some());
        let nodes: BTreeSet<String> = with_claims.filter_map(|pod| pods::node_name(pod).map(str::to_owned)).collect();
        nodes.into_iter().map(ObjectKey::cluster).collect()
    }

    /// The Nodes of the Pods that use a claim: what it is bound to has changed.
    pub(crate) fn nodes_of_claim(users: &ClaimUsers, change: Change<'_, PersistentVolumeClaim>) -> Vec<ObjectKey> {
        let bound =
            |claim: Option<&Arc<PersistentVolumeClaim>>| claim.and_then(|claim| volume_name(claim).map(str::to_owned));
        if bound(change.old) == bound(change.new) { Vec::new() } else { users.nodes(&change.key()) }
    }

    /// The Node of an attachment, and those that wait for its volume.
    pub(crate) fn nodes_of_attachment(
        volumes: &Informer<PersistentVolume>,
        users: &ClaimUsers,
        change: Change<'_, VolumeAttachment>,
    ) -> Vec<ObjectKey> {
        let spec = &change.latest().spec;
        let mut nodes = vec![ObjectKey::cluster(spec.node_name.as_str())];
        if change.new.is_none() {
            let volume = spec.source.persistent_volume_name.as_deref().and_then(|name| volumes.get(None, name));
            nodes.extend(volume.and_then(|volume| claim_of(&volume)).into_iter().flat_map(|claim| users.nodes(&claim)));
        }
        nodes
    }

    /// Whether a Node has changed in what its volumes depend on.
    pub(crate) fn node_changed(change: Change<'_, Node>) -> Option<ObjectKey> {
        let facts = |node: Option<&Arc<Node>>| node.map(|node| facts(node));
        (facts(change.old) != facts(change.new)).then(|| change.key())
    }

    /// Volumes of drivers that have to be attached, which the Pods of a Node need, by their names.
    fn needed(&self, node: &str) -> BTreeMap<String, Needed> {
        let mut needed: BTreeMap<String, Needed> = BTreeMap::new();
        let of_node = self.context.indexes.pods_by_node.get(&node.to_owned());
        for pod in of_node.iter().filter(|pod| !pods::is_finished(pod)) {
            for (claim, _) in claims_of(pod) {
                let Some(claim) = self.claims.get_key(&claim) else { continue };
                let Some(object) = volume_name(&claim).and_then(|name| self.volumes.get(None, name)) else { continue };
                // Bound to another claim, it is not this one's.
                let held = object.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.as_deref());
                let Some(source) = object.spec.as_ref().and_then(|spec| spec.csi.clone()) else { continue };
                if held != claim.metadata.uid.as_deref() || !self.is_attached_by(&source.driver) {
                    continue;
                }
                let (driver, handle) = (source.driver, source.volume_handle);
                let volume = needed.entry(csi_volume_name(&driver, &handle)).or_insert_with(|| Needed {
                    object,
                    driver,
                    handle,
                    pods: Vec::new(),
                });
                volume.pods.push(Arc::clone(pod));
            }
        }
        needed
    }

    /// A driver without an object may need it.
    fn is_attached_by(&self, driver: &str) -> bool {
        self.drivers.get(None, driver).is_none_or(|object| object.spec.attach_required != Some(false))
    }

    /// The attachments to a Node that this controller makes, by the volumes' names. Those that someone else made by hand are
    /// that one's.
    fn held(&self, node: &str, facts: Option<&NodeFacts>, needed: &BTreeMap<String, Needed>) -> BTreeMap<String, Held> {
        let now = self.context.clock.monotonic();
        let mut held = BTreeMap::new();
        let mut noted = self.noted.lock().expect("no holder of the notes panics");
        for attachment in self.by_node.get(&node.to_owned()) {
            let name = attachment.metadata.name.clone().unwrap_or_default();
            let Some(volume) = self.volume_of(&attachment, &name, node, facts) else { continue };
            let unwanted_for = if needed.contains_key(&volume) {
                noted.unwanted.remove(&name);
                Duration::ZERO
            } else {
                now.saturating_sub(*noted.unwanted.entry(name.clone()).or_insert(now))
            };
            let attached = attachment.status.as_ref().is_some_and(|status| status.attached);
            let deleting = attachment.metadata.deletion_timestamp.is_some();
            held.insert(volume, Held { name, attached, deleting, unwanted_for });
        }
        held
    }

    /// The name of the volume of an attachment; where the PersistentVolume is gone, from what the Node says of itself.
    fn volume_of(
        &self,
        attachment: &VolumeAttachment,
        name: &str,
        node: &str,
        facts: Option<&NodeFacts>,
    ) -> Option<String> {
        let driver = &attachment.spec.attacher;
        let volume =
            attachment.spec.source.persistent_volume_name.as_deref().and_then(|name| self.volumes.get(None, name));
        let handle = volume.and_then(|volume| Some(volume.spec.as_ref()?.csi.as_ref()?.volume_handle.clone()));
        let is_it = |handle: &str| csi_attachment_name(driver, handle, node) == name;
        if let Some(handle) = handle {
            return is_it(&handle).then(|| csi_volume_name(driver, &handle));
        }
        let prefix = csi_volume_name(driver, "");
        let mut known = facts.into_iter().flat_map(|facts| facts.in_use.iter().chain(&facts.attached));
        known.find(|volume| volume.strip_prefix(&prefix).is_some_and(is_it)).cloned()
    }

    /// Whether another Node has the volume, or will have it.
    async fn is_elsewhere(&self, node: &str, volume: &str, needed: &Needed) -> Result<bool, ReconcileError> {
        let of_volume = self.by_volume.get(&needed.object.metadata.name.clone().unwrap_or_default());
        if of_volume.iter().any(|attachment| attachment.spec.node_name != node) {
            return Ok(true);
        }
        let made = self.noted.lock().expect("no holder of the notes panics").made.get(volume).cloned();
        let Some((_, name)) = made.filter(|(of, _)| of != node) else { return Ok(false) };
        let api = self.context.cluster_api::<VolumeAttachment>();
        let found = api.get_opt(&name).await.during(|| format!("read the volume attachment {name}"))?;
        if found.is_none() {
            self.noted.lock().expect("no holder of the notes panics").made.remove(volume);
        }
        Ok(found.is_some())
    }

    async fn attach(&self, node: &str, volume: &Needed) -> Result<(), ReconcileError> {
        let name = csi_attachment_name(&volume.driver, &volume.handle, node);
        let source = VolumeAttachmentSource {
            persistent_volume_name: volume.object.metadata.name.clone(),
            ..VolumeAttachmentSource::default()
        };
        let spec = VolumeAttachmentSpec { attacher: volume.driver.clone(), node_name: node.to_owned(), source };
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let object = VolumeAttachment { metadata, spec, status: None };
        match self.context.cluster_api().create(&PostParams::default(), &object).await {
            Ok(_) => {
                let volume = csi_volume_name(&volume.driver, &volume.handle);
                self.noted.lock().expect("no holder of the notes panics").made.insert(volume, (node.to_owned(), name));
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            Err(error) => {
                let said = crate::pod_control::said(&error);
                self.tell(volume, EventKind::Warning, "FailedAttachVolume", "AttachVolume.Attach failed", &said);
                Err(error).during(|| format!("make the volume attachment {name}"))
            }
        }
    }

    /// Detaches a volume that the Node's status does not show as attached any more.
    async fn detach(&self, node: &str, volume: &str, held: &Held, forced: bool) -> Result<(), ReconcileError> {
        if !forced {
            let api = self.context.cluster_api::<Node>();
            let fresh = api.get_opt(node).await.during(|| format!("read the node {node}"))?;
            // It began to use it meanwhile; its status will say that it is attached again.
            if fresh.is_some_and(|fresh| facts(&fresh).in_use.contains(volume)) {
                return Ok(());
            }
        }
        tracing::info!(node, volume, forced, "detaching a volume");
        let api = self.context.cluster_api::<VolumeAttachment>();
        let deleted = api.delete(&held.name, &DeleteParams::default()).await;
        deleted.map(drop).unless_gone(|| format!("remove the volume attachment {}", held.name))?;
        Ok(())
    }

    async fn show(&self, node: &str, attached: &BTreeSet<String>) -> Result<(), ReconcileError> {
        let volumes: Vec<_> = attached.iter().map(|name| json!({"name": name, "devicePath": ""})).collect();
        let body = Patch::Merge(json!({"status": {"volumesAttached": volumes}}));
        let written = self.context.cluster_api::<Node>().patch_status(node, &PatchParams::default(), &body).await;
        written.map(drop).unless_gone(|| format!("write which volumes are attached to {node}"))?;
        Ok(())
    }

    /// Tells the Pods that need a volume.
    fn tell(&self, volume: &Needed, kind: EventKind, reason: &str, what: &str, words: &str) {
        let name = volume.object.metadata.name.as_deref().unwrap_or_default();
        for pod in &volume.pods {
            self.recorder.record(reference(&**pod), kind, reason, format!("{what} for volume {name:?} {words}"));
        }
    }

    /// What became of attachments, told once.
    fn tell_outcomes(&self, node: &NodeFacts, needed: &BTreeMap<String, Needed>, decision: &Decision, name: &str) {
        for (volume, needed) in needed {
            let attachment = csi_attachment_name(&needed.driver, &needed.handle, name);
            if decision.attached.contains(volume) {
                self.noted.lock().expect("no holder of the notes panics").told.remove(&attachment);
                if !node.attached.contains(volume) {
                    let (reason, what) = ("SuccessfulAttachVolume", "AttachVolume.Attach succeeded");
                    self.tell(needed, EventKind::Normal, reason, what, "");
                }
                continue;
            }
            let refused = decision.refuse.contains(volume).then(|| self.who_has(needed));
            let (what, words) = match refused {
                Some(words) => ("Multi-Attach error", words),
                None => {
                    let object = self.attachments.get(None, &attachment);
                    let error = object.and_then(|object| object.status.as_ref()?.attach_error.clone()?.message);
                    let Some(words) = error else { continue };
                    ("AttachVolume.Attach failed", format!(": {words}"))
                }
            };
            let mut noted = self.noted.lock().expect("no holder of the notes panics");
            if noted.told.insert(attachment, words.clone()).as_ref() != Some(&words) {
                self.tell(needed, EventKind::Warning, "FailedAttachVolume", what, &words);
            }
        }
    }

    /// Who keeps a volume that only one Node may have (reportMultiAttachError).
    fn who_has(&self, needed: &Needed) -> String {
        let own = needed.pods.first().and_then(|pod| pods::node_name(pod));
        let users = claim_of(&needed.object).map(|claim| self.users.pods_of(&claim)).unwrap_or_default();
        let others = users
            .iter()
            .filter(|pod| !pods::is_finished(pod) && pods::node_name(pod).is_some_and(|node| Some(node) != own));
        let names: Vec<String> = others.filter_map(|pod| pod.metadata.name.clone()).collect();
        if names.is_empty() {
            return "Volume is already exclusively attached to one node and can't be attached to another".to_owned();
        }
        format!("Volume is already used by pod(s) {}", names.join(", "))
    }

    fn forget_gone(&self) {
        let mut noted = self.noted.lock().expect("no holder of the notes panics");
        let is_there = |name: &str| self.attachments.get(None, name).is_some();
        noted.unwanted.retain(|name, _| is_there(name));
        noted.made.retain(|_, (_, name)| !is_there(name));
    }
}

fn claim_of(volume: &PersistentVolume) -> Option<ObjectKey> {
    let held = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(ObjectKey::new(held.namespace.as_deref()?, held.name.as_deref()?))
}

/// Several Nodes may have the volume; one without modes is left to its attacher (IsMultiAttachAllowed).
fn is_shared(volume: &PersistentVolume) -> bool {
    let modes = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    modes.is_empty() || modes.iter().any(|mode| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany"))
}

fn facts(node: &Node) -> NodeFacts {
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let attached = status.and_then(|status| status.volumes_attached.as_deref()).unwrap_or_default();
    let in_use = status.and_then(|status| status.volumes_in_use.as_deref()).unwrap_or_default();
    NodeFacts {
        attached: attached.iter().map(|volume| volume.name.clone()).collect(),
        in_use: in_use.iter().cloned().collect(),
        ready: conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        out_of_service: taints.iter().any(|taint| taint.key == OUT_OF_SERVICE),
    }
}

impl Reconcile for AttachDetach {
    /// A Node.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "attachdetach"
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let name = &*key.name;
        let node = self.nodes.get_key(&key).map(|node| facts(&node));
        let needed = if node.is_some() { self.needed(name) } else { BTreeMap::new() };
        let held = self.held(name, node.as_ref(), &needed);
        let mut wanted = BTreeMap::new();
        for (volume, needed) in &needed {
            let elsewhere = self.is_elsewhere(name, volume, needed).await?;
            wanted.insert(volume.clone(), WantedVolume { shared: is_shared(&needed.object), elsewhere });
        }
        let decision = decide(node.as_ref(), &wanted, &held);
        self.forget_gone();
        if let Some(node) = &node {
            self.tell_outcomes(node, &needed, &decision, name);
            if node.attached != decision.attached {
                self.show(name, &decision.attached).await?;
            }
        }
        let mut outcome = Ok(());
        for (volume, forced) in &decision.detach {
            let Some(held) = held.get(volume) else { continue };
            outcome = outcome.and(self.detach(name, volume, held, *forced).await);
        }
        for volume in &decision.attach {
            let Some(needed) = needed.get(volume) else { continue };
            outcome = outcome.and(self.attach(name, needed).await);
        }
        outcome?;
        Ok(decision.again.map_or(Requeue::No, Requeue::After))
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.nodes.subject(key)
    }
}
