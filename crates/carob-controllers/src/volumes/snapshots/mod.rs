//! Snapshots of local volumes: which VolumeSnapshotContent a VolumeSnapshot has, and what keeps either
//! (external-snapshotter, `pkg/common-controller`). Taking and removing them is the part of whoever has the volumes.

mod decide;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use carob_api::storage::{CONTENT_PROTECTION, LOCAL_PROVISIONER};
use carob_client::snapshots::{
    BEING_DELETED, CLAIM_PROTECTION, DEFAULT_CLASS, GROUP, SnapshotStatus, VERSION, VolumeSnapshot,
    VolumeSnapshotClass, VolumeSnapshotContent,
};
use carob_client::{
    Change, During, EventKind, EventRecorder, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject,
    reference,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};

use super::volume_name;
use crate::context::Context;
use crate::volumes::writes;
use decide::{DRIVER, Step, Surroundings, content_name, failure, freed_claim, snapshot_step, waits_for_snapshot};

/// The class of snapshots that is there from the start.
const CLASS: &str = "local";

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SnapshotKey {
    Snapshot(ObjectKey),
    /// A claim that may be free of the snapshots that were taken of it.
    Claim(ObjectKey),
    /// A content that is being deleted, and whose snapshot may be gone.
    Content(ObjectKey),
    /// The class that is there from the start.
    Class,
}

pub(crate) struct Snapshots {
    context: Context,
    snapshots: Informer<VolumeSnapshot>,
    contents: Informer<VolumeSnapshotContent>,
    classes: Informer<VolumeSnapshotClass>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    recorder: EventRecorder,
}

impl Snapshots {
    pub(crate) fn new(context: Context) -> Self {
        Self {
            snapshots: context.informers.of(),
            contents: context.informers.of(),
            classes: context.informers.of(),
            claims: context.informers.of(),
            volumes: context.informers.of(),
            recorder: context.recorder("snapshot-controller"),
            context,
        }
    }

    pub(crate) fn snapshots(&self) -> &Informer<VolumeSnapshot> {
        &self.snapshots
    }

    pub(crate) fn contents(&self) -> &Informer<VolumeSnapshotContent> {
        &self.contents
    }

    pub(crate) fn classes(&self) -> &Informer<VolumeSnapshotClass> {
        &self.classes
    }

    /// The snapshot, the claim that it is of, and its content, which may have waited for it.
    pub(crate) fn of_snapshot(change: Change<'_, VolumeSnapshot>) -> Vec<SnapshotKey> {
        let key = change.key();
        let claim = change.latest().spec.source.persistent_volume_claim_name.as_ref();
        let claim = claim.map(|claim| SnapshotKey::Claim(ObjectKey::new(&*key.namespace, claim)));
        let is_gone = change.new.is_none();
        let content = is_gone.then(|| SnapshotKey::Content(ObjectKey::cluster(content_name(change.latest()))));
        claim.into_iter().chain(content).chain([SnapshotKey::Snapshot(key)]).collect()
    }

    /// The snapshot that a content says it is of, and those that name it.
    pub(crate) fn of_content(
        snapshots: &Informer<VolumeSnapshot>,
        change: Change<'_, VolumeSnapshotContent>,
    ) -> Vec<SnapshotKey> {
        let held = &change.latest().spec.volume_snapshot_ref;
        let of = match (&held.namespace, &held.name) {
            (Some(namespace), Some(name)) => Some(ObjectKey::new(namespace, name)),
            _ => None,
        };
        let key = change.key();
        let names = |snapshot: &Arc<VolumeSnapshot>| *content_name(snapshot) == *key.name;
        let naming = snapshots.list().into_iter().filter(names).map(|snapshot| ObjectKey::of(&*snapshot));
        let going = change.new.is_some_and(|content| content.metadata.deletion_timestamp.is_some());
        let content = going.then(|| SnapshotKey::Content(key.clone()));
        of.into_iter().chain(naming).map(SnapshotKey::Snapshot).chain(content).collect()
    }

    /// The snapshots that wait for a claim, or for its volume to be made of them.
    pub(crate) fn of_claim(
        snapshots: &Informer<VolumeSnapshot>,
        change: Change<'_, PersistentVolumeClaim>,
    ) -> Vec<SnapshotKey> {
        let key = change.key();
        let restores = change.versions().find_map(|claim| restores(claim)).map(str::to_owned);
        let concerns = |snapshot: &Arc<VolumeSnapshot>| {
            snapshot.spec.source.persistent_volume_claim_name.as_deref() == Some(&*key.name)
                || (restores.is_some() && snapshot.metadata.name == restores)
        };
        let found = snapshots.list_in(&key.namespace).into_iter().filter(concerns);
        let mut keys: Vec<SnapshotKey> =
            found.map(|snapshot| SnapshotKey::Snapshot(ObjectKey::of(&*snapshot))).collect();
        let is_kept = |claim: &PersistentVolumeClaim| {
            claim.metadata.finalizers.iter().flatten().any(|name| name == CLAIM_PROTECTION)
        };
        keys.extend(change.new.is_some_and(|claim| is_kept(claim)).then_some(SnapshotKey::Claim(key)));
        keys
    }

    /// All snapshots that are not ready may have waited for a class.
    pub(crate) fn of_class(snapshots: &Informer<VolumeSnapshot>) -> Vec<SnapshotKey> {
        let waits = |snapshot: &Arc<VolumeSnapshot>| {
            snapshot.status.as_ref().is_none_or(|status| status.ready_to_use != Some(true))
        };
        let found = snapshots.list().into_iter().filter(waits);
        found.map(|snapshot| SnapshotKey::Snapshot(ObjectKey::of(&*snapshot))).collect()
    }

    fn volume_of(&self, claim: &PersistentVolumeClaim) -> Option<Arc<PersistentVolume>> {
        volume_name(claim).and_then(|name| self.volumes.get(None, name))
    }

    /// The content of a snapshot. For one that goes the API is asked, where the informer knows none: what was just made for it would
    /// stay for ever.
    async fn content_of(
        &self,
        snapshot: &VolumeSnapshot,
    ) -> Result<Option<Arc<VolumeSnapshotContent>>, ReconcileError> {
        let name = content_name(snapshot);
        let held = self.contents.get(None, &name);
        if held.is_some() || snapshot.metadata.deletion_timestamp.is_none() {
            return Ok(held);
        }
        let found = self.context.cluster_api::<VolumeSnapshotContent>().get_opt(&name).await;
        Ok(found.during(|| format!("get snapshot content {name}"))?.map(Arc::new))
    }

    fn around(
        &self,
        snapshot: &VolumeSnapshot,
        namespace: &str,
        content: Option<Arc<VolumeSnapshotContent>>,
    ) -> Surroundings {
        let name = snapshot.metadata.name.as_deref();
        let claim = snapshot.spec.source.persistent_volume_claim_name.as_deref();
        let claim = claim.and_then(|claim| self.claims.get(Some(namespace), claim));
        let restoring = self.claims.list_in(namespace).into_iter().filter(|claim| {
            let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
            phase != Some("Bound") && restores(claim) == name
        });
        Surroundings {
            content,
            volume: claim.as_deref().and_then(|claim| self.volume_of(claim)),
            claim,
            classes: self.classes.list(),
            restoring: restoring.filter_map(|claim| claim.metadata.name.clone()).collect(),
        }
    }

    async fn reconcile_snapshot(&self, key: &ObjectKey) -> Result<(), ReconcileError> {
        let Some(snapshot) = self.snapshots.get_key(key) else { return Ok(()) };
        let content = self.content_of(&snapshot).await?;
        match snapshot_step(&snapshot, &self.around(&snapshot, &key.namespace, content)) {
            Step::Nothing => Ok(()),
            Step::Wait(reason, message) => {
                self.recorder.record(reference(&*snapshot), EventKind::Warning, reason, message);
                Ok(())
            }
            Step::Fail(reason, message) => {
                self.recorder.record(reference(&*snapshot), EventKind::Warning, reason, message.clone());
                match failure(&snapshot, &message, self.context.now()) {
                    Some(status) => self.write_status(&snapshot, key, &status).await,
                    None => Ok(()),
                }
            }
            Step::Finalizers(finalizers) => {
                let mut metadata = writes::at(&snapshot.metadata);
                metadata["finalizers"] = json!(finalizers);
                metadata["annotations"] = json!({DRIVER: LOCAL_PROVISIONER});
                let api: Api<VolumeSnapshot> = self.context.api(&key.namespace);
                let patch = Patch::Merge(json!({"metadata": metadata}));
                let patched = api.patch(&key.name, &PatchParams::default(), &patch).await;
                patched.unless_gone(|| format!("write the finalizers of snapshot {key}")).map(drop)
            }
            Step::ProtectClaim(claim) => {
                let mut finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
                finalizers.push(CLAIM_PROTECTION.to_owned());
                self.write_claim(&claim, &finalizers).await?;
                // What the write changed is looked at in its turn.
                Ok(())
            }
            Step::Create(content) => self.create(&snapshot, content).await,
            Step::Bind(content) => self.bind(&snapshot, &content).await,
            Step::Status(status) => self.write_status(&snapshot, key, &status).await,
            Step::TellContent(content) => self.tell_content(&content).await,
            Step::DeleteContent(content) => {
                let name = content.metadata.name.as_deref().unwrap_or_default();
                let preconditions = Some(Preconditions { uid: content.metadata.uid.clone(), resource_version: None });
                let params = DeleteParams { preconditions, ..DeleteParams::default() };
                let deleted = self.context.cluster_api::<VolumeSnapshotContent>().delete(name, &params).await;
                deleted.unless_gone(|| format!("delete snapshot content {name}")).map(drop)
            }
        }
    }

    async fn create(&self, snapshot: &VolumeSnapshot, content: Value) -> Result<(), ReconcileError> {
        let content: VolumeSnapshotContent = serde_json::from_value(content).map_err(|cause| {
            ReconcileError::Other { operation: "write the snapshot's content".to_owned(), cause: Box::new(cause) }
        })?;
        let name = content.metadata.name.clone().unwrap_or_default();
        match self.context.cluster_api::<VolumeSnapshotContent>().create(&PostParams::default(), &content).await {
            Ok(_) => {
                let message =
                    format!("Waiting for a snapshot {} to be created by {LOCAL_PROVISIONER}.", ObjectKey::of(snapshot));
                self.recorder.record(reference(snapshot), EventKind::Normal, "CreatingSnapshot", message);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            Err(error) => Err(error).during(|| format!("create snapshot content {name}")),
        }
    }

    async fn bind(&self, snapshot: &VolumeSnapshot, content: &VolumeSnapshotContent) -> Result<(), ReconcileError> {
        let mut metadata = writes::at(&content.metadata);
        let mut finalizers = content.metadata.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|name| name == CONTENT_PROTECTION) {
            finalizers.push(CONTENT_PROTECTION.to_owned());
        }
        metadata["finalizers"] = json!(finalizers);
        let mut spec = json!({"volumeSnapshotRef": {"uid": snapshot.metadata.uid}});
        if let Some(class) = &snapshot.spec.volume_snapshot_class_name {
            spec["volumeSnapshotClassName"] = class.as_str().into();
        }
        self.patch_content(content, json!({"metadata": metadata, "spec": spec})).await
    }

    /// Tells a content that its snapshot goes.
    async fn tell_content(&self, content: &VolumeSnapshotContent) -> Result<(), ReconcileError> {
        let mut metadata = writes::at(&content.metadata);
        metadata["annotations"] = json!({BEING_DELETED: "yes"});
        self.patch_content(content, json!({"metadata": metadata})).await
    }

    /// Frees a content that the user deletes and whose snapshot went without a word: nobody else tells it any more. One that nobody
    /// deletes is left alone, since it may have been brought from another cluster.
    async fn reconcile_content(&self, key: &ObjectKey) -> Result<(), ReconcileError> {
        let Some(content) = self.contents.get_key(key).filter(|content| waits_for_snapshot(content)) else {
            return Ok(());
        };
        let held = &content.spec.volume_snapshot_ref;
        let (namespace, name) =
            (held.namespace.as_deref().unwrap_or_default(), held.name.as_deref().unwrap_or_default());
        let found = self.context.api::<VolumeSnapshot>(namespace).get_opt(name).await;
        let found = found.during(|| format!("get snapshot {namespace}/{name}"))?;
        if found.is_some_and(|snapshot| snapshot.metadata.uid == held.uid) {
            return Ok(());
        }
        self.tell_content(&content).await
    }

    async fn patch_content(&self, content: &VolumeSnapshotContent, patch: Value) -> Result<(), ReconcileError> {
        let name = content.metadata.name.as_deref().unwrap_or_default();
        let api = self.context.cluster_api::<VolumeSnapshotContent>();
        let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.unless_gone(|| format!("write snapshot content {name}")).map(drop)
    }

    async fn write_status(
        &self,
        snapshot: &VolumeSnapshot,
        key: &ObjectKey,
        status: &SnapshotStatus,
    ) -> Result<(), ReconcileError> {
        let is_ready = |status: Option<&SnapshotStatus>| status.is_some_and(|status| status.ready_to_use == Some(true));
        let api: Api<VolumeSnapshot> = self.context.api(&key.namespace);
        let patch = Patch::Merge(json!({"metadata": writes::at(&snapshot.metadata), "status": status}));
        let patched = api.patch_status(&key.name, &PatchParams::default(), &patch).await;
        let written = patched.unless_gone(|| format!("write the status of snapshot {key}"))?;
        if written.is_some() && is_ready(Some(status)) && !is_ready(snapshot.status.as_ref()) {
            let message = format!("Snapshot {key} is ready to use.");
            self.recorder.record(reference(snapshot), EventKind::Normal, "SnapshotReady", message);
        }
        Ok(())
    }

    async fn write_claim(&self, claim: &PersistentVolumeClaim, finalizers: &[String]) -> Result<(), ReconcileError> {
        let (key, mut metadata) = (ObjectKey::of(claim), writes::at(&claim.metadata));
        metadata["finalizers"] = json!(finalizers);
        let api: Api<PersistentVolumeClaim> = self.context.api(&key.namespace);
        let patched = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(json!({"metadata": metadata}))).await;
        patched.unless_gone(|| format!("write the finalizers of claim {key}")).map(drop)
    }

    async fn reconcile_claim(&self, key: &ObjectKey) -> Result<(), ReconcileError> {
        let Some(claim) = self.claims.get_key(key) else { return Ok(()) };
        let is_kept = |name: &String| name == CLAIM_PROTECTION;
        if !claim.metadata.finalizers.iter().flatten().any(is_kept) {
            return Ok(());
        }
        let volume = match (self.volume_of(&claim), volume_name(&claim)) {
            // Whether it is gone, or too new for the informer.
            (None, Some(name)) => {
                let found = self.context.cluster_api::<PersistentVolume>().get_opt(name).await;
                found.during(|| format!("get volume {name}"))?.map(Arc::new)
            }
            (held, _) => held,
        };
        match freed_claim(&claim, volume.as_deref(), &self.snapshots.list_in(&key.namespace)) {
            Some(finalizers) => self.write_claim(&claim, &finalizers).await,
            None => Ok(()),
        }
    }

    /// Makes the class that is there from the start, unless a user has made another one of its name.
    async fn make_class(&self) -> Result<(), ReconcileError> {
        if self.classes.get(None, CLASS).is_some() {
            return Ok(());
        }
        let class = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"), "kind": "VolumeSnapshotClass",
            "metadata": {"name": CLASS, "annotations": {DEFAULT_CLASS: "true"}},
            "driver": LOCAL_PROVISIONER, "deletionPolicy": "Delete",
        });
        let class: VolumeSnapshotClass = serde_json::from_value(class).map_err(|cause| ReconcileError::Other {
            operation: "write the class of snapshots".to_owned(),
            cause: Box::new(cause),
        })?;
        match self.context.cluster_api::<VolumeSnapshotClass>().create(&PostParams::default(), &class).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            Err(error) => Err(error).during(|| format!("create snapshot class {CLASS}")),
        }
    }
}

/// The snapshot that a claim's volume is made of.
fn restores(claim: &PersistentVolumeClaim) -> Option<&str> {
    let spec = claim.spec.as_ref()?;
    let of_ref = spec.data_source_ref.as_ref().map(|source| (&source.api_group, &source.kind, &source.name));
    let (group, kind, name) =
        of_ref.or_else(|| spec.data_source.as_ref().map(|source| (&source.api_group, &source.kind, &source.name)))?;
    (group.as_deref() == Some(GROUP) && kind == "VolumeSnapshot").then_some(name)
}

impl Reconcile for Snapshots {
    type Key = SnapshotKey;

    fn name(&self) -> &'static str {
        "snapshot"
    }

    async fn reconcile(&self, key: SnapshotKey) -> Result<Requeue, ReconcileError> {
        match &key {
            SnapshotKey::Snapshot(key) => self.reconcile_snapshot(key).await?,
            SnapshotKey::Claim(key) => self.reconcile_claim(key).await?,
            SnapshotKey::Content(key) => self.reconcile_content(key).await?,
            SnapshotKey::Class => self.make_class().await?,
        }
        Ok(Requeue::No)
    }

    fn subject(&self, key: &SnapshotKey) -> Option<Subject> {
        match key {
            SnapshotKey::Snapshot(key) => self.snapshots.subject(key),
            SnapshotKey::Claim(key) => self.claims.subject(key),
            SnapshotKey::Content(key) => self.contents.subject(key),
            SnapshotKey::Class => None,
        }
    }
}
