//! What is to be done about a snapshot of a local volume, one step at a time. Pure.
//!
//! It is what upstream's snapshot-controller does, in the same objects, names and finalizers, so that both may run: whoever
//! makes the content first has made it for both. Snapshots of other drivers are left to upstream's.

use std::sync::Arc;

use carob_api::storage::{CONTENT_PROTECTION, LOCAL_POOL_LABEL, LOCAL_PROVISIONER, PROVISIONED_BY, local_handle};
use carob_client::snapshots::{
    BEING_DELETED, BOUND_PROTECTION, CLAIM_PROTECTION, ContentStatus, DEFAULT_CLASS, GROUP, SOURCE_PROTECTION,
    SnapshotError, SnapshotStatus, VERSION, VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent, required_label,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use crate::volumes::{annotation, volume_name};

/// On a snapshot: the driver that it was found to be of. What tells it otherwise may be gone before the snapshot is.
pub(super) const DRIVER: &str = "carob.io/snapshot-driver";

/// What is to be done about a snapshot.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Nothing,
    /// It is kept by these finalizers from now on.
    Finalizers(Vec<String>),
    /// The claim is kept until the snapshot has been taken.
    ProtectClaim(Arc<PersistentVolumeClaim>),
    /// The content is made.
    Create(Value),
    /// The content that the user named becomes this snapshot's.
    Bind(Arc<VolumeSnapshotContent>),
    Status(SnapshotStatus),
    /// The content is told that its snapshot goes.
    TellContent(Arc<VolumeSnapshotContent>),
    DeleteContent(Arc<VolumeSnapshotContent>),
    /// It cannot be had as things are: an event's reason and message.
    Fail(&'static str, String),
    /// Something holds it up.
    Wait(&'static str, String),
}

/// What is known of a snapshot's surroundings.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// The content that it names, or that is made for it.
    pub(super) content: Option<Arc<VolumeSnapshotContent>>,
    /// The claim that it is of.
    pub(super) claim: Option<Arc<PersistentVolumeClaim>>,
    /// The volume that the claim names.
    pub(super) volume: Option<Arc<PersistentVolume>>,
    pub(super) classes: Vec<Arc<VolumeSnapshotClass>>,
    /// Claims that wait for their volumes to be made of this snapshot.
    pub(super) restoring: Vec<String>,
}

fn is_local(volume: &PersistentVolume) -> bool {
    annotation(&volume.metadata, PROVISIONED_BY) == Some(LOCAL_PROVISIONER)
}

/// The name of a snapshot's content: the one that it names, or the one that is made for it.
pub(super) fn content_name(snapshot: &VolumeSnapshot) -> String {
    match &snapshot.spec.source.volume_snapshot_content_name {
        Some(named) => named.clone(),
        None => snapshot.content_name(),
    }
}

/// Whether the snapshot is of a local volume. Whose it is may not be known yet.
fn is_ours(snapshot: &VolumeSnapshot, around: &Surroundings) -> bool {
    if let Some(driver) = annotation(&snapshot.metadata, DRIVER) {
        return driver == LOCAL_PROVISIONER;
    }
    if let Some(content) = &around.content {
        return content.spec.driver == LOCAL_PROVISIONER;
    }
    if let Some(name) = &snapshot.spec.volume_snapshot_class_name
        && let Some(class) = around.classes.iter().find(|class| class.metadata.name.as_ref() == Some(name))
    {
        return class.driver == LOCAL_PROVISIONER;
    }
    around.volume.as_deref().is_some_and(is_local)
}

pub(super) fn snapshot_step(snapshot: &VolumeSnapshot, around: &Surroundings) -> Step {
    if !is_ours(snapshot, around) {
        return Step::Nothing;
    }
    if snapshot.metadata.deletion_timestamp.is_some() {
        return going(snapshot, around);
    }
    let named = snapshot.spec.source.volume_snapshot_content_name.is_some();
    match &around.content {
        Some(content) => bound(snapshot, content, named),
        None if named || is_bound(snapshot) => {
            Step::Fail("SnapshotContentMissing", "VolumeSnapshotContent is missing".to_owned())
        }
        None => create(snapshot, around),
    }
}

fn is_bound(snapshot: &VolumeSnapshot) -> bool {
    snapshot.status.as_ref().is_some_and(|status| status.bound_volume_snapshot_content_name.is_some())
}

/// The finalizers with others than ours as they are; `None` where nothing changes.
fn finalizers(meta: &ObjectMeta, ours: &[&str], wanted: bool) -> Option<Vec<String>> {
    let held = meta.finalizers.clone().unwrap_or_default();
    let mut next = held.clone();
    if wanted {
        next.extend(ours.iter().filter(|name| !held.iter().any(|held| held == **name)).map(|name| (*name).to_owned()));
    } else {
        next.retain(|name| !ours.contains(&name.as_str()));
    }
    (next != held).then_some(next)
}

const PROTECTIONS: [&str; 2] = [SOURCE_PROTECTION, BOUND_PROTECTION];

fn going(snapshot: &VolumeSnapshot, around: &Surroundings) -> Step {
    let Some(rest) = finalizers(&snapshot.metadata, &PROTECTIONS, false) else { return Step::Nothing };
    let content = around.content.as_ref().filter(|content| snapshot.is_named_by(content));
    let Some(content) = content else { return Step::Finalizers(rest) };
    if !around.restoring.is_empty() {
        let message = format!("Snapshot is being used to restore a PVC: {}", around.restoring.join(", "));
        return Step::Wait("SnapshotDeletePending", message);
    }
    if annotation(&content.metadata, BEING_DELETED).is_none() {
        return Step::TellContent(Arc::clone(content));
    }
    match (content.spec.deletion_policy.as_str(), content.metadata.deletion_timestamp.is_some()) {
        ("Delete", false) => Step::DeleteContent(Arc::clone(content)),
        // It is waited for.
        ("Delete", true) => Step::Nothing,
        _ => Step::Finalizers(rest),
    }
}

fn bound(snapshot: &VolumeSnapshot, content: &Arc<VolumeSnapshotContent>, named: bool) -> Step {
    let name = content.metadata.name.clone().unwrap_or_default();
    if named != content.spec.source.snapshot_handle.is_some() {
        let (is, wanted) = if named {
            ("dynamically provisioned", "a pre-provisioned")
        } else {
            ("pre-provisioned", "a dynamically provisioned")
        };
        let message = format!("VolumeSnapshotContent {name} is {is} while expecting {wanted} one");
        return Step::Fail("SnapshotContentMismatch", message);
    }
    let is_whole = content.spec.volume_snapshot_ref.uid == snapshot.metadata.uid;
    if !snapshot.is_named_by(content) || !(is_whole || named) {
        let message = format!("VolumeSnapshotContent [{name}] is bound to a different snapshot");
        return Step::Fail("SnapshotContentMisbound", message);
    }
    if let Some(all) = finalizers(&snapshot.metadata, &PROTECTIONS, true) {
        return Step::Finalizers(all);
    }
    if !is_whole || finalizers(&content.metadata, &[CONTENT_PROTECTION], true).is_some() {
        // One that goes is not given what would keep it.
        return if content.metadata.deletion_timestamp.is_some() {
            Step::Nothing
        } else {
            Step::Bind(Arc::clone(content))
        };
    }
    let status = status_of(&name, content.status.clone().unwrap_or_default());
    if snapshot.status.as_ref() == Some(&status) { Step::Nothing } else { Step::Status(status) }
}

fn status_of(name: &str, of_content: ContentStatus) -> SnapshotStatus {
    let time = |nanoseconds: i64| {
        let at = Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()?;
        // As the API shows times: in whole seconds.
        Timestamp::from_second(at.as_second()).ok().map(Time)
    };
    SnapshotStatus {
        bound_volume_snapshot_content_name: Some(name.to_owned()),
        creation_time: of_content.creation_time.and_then(time),
        ready_to_use: Some(of_content.ready_to_use.unwrap_or(false)),
        restore_size: of_content.restore_size.map(|bytes| Quantity(bytes.to_string())),
        error: of_content.error,
    }
}

fn class_of<'a>(
    snapshot: &VolumeSnapshot,
    classes: &'a [Arc<VolumeSnapshotClass>],
) -> Result<&'a VolumeSnapshotClass, String> {
    if let Some(name) = &snapshot.spec.volume_snapshot_class_name {
        let found = classes.iter().find(|class| class.metadata.name.as_ref() == Some(name));
        let class = found.ok_or_else(|| format!("volumesnapshotclass.{GROUP} {name:?} not found"))?;
        if class.driver != LOCAL_PROVISIONER {
            return Err(format!(
                "VolumeSnapshotClass {name} is of {}, the volume of {LOCAL_PROVISIONER}",
                class.driver
            ));
        }
        return Ok(class);
    }
    let is_default = |class: &&Arc<VolumeSnapshotClass>| {
        class.driver == LOCAL_PROVISIONER && annotation(&class.metadata, DEFAULT_CLASS) == Some("true")
    };
    let mut defaults = classes.iter().filter(is_default);
    match (defaults.next(), defaults.next()) {
        (Some(class), None) => Ok(class),
        (None, _) => Err(format!("cannot find default snapshot class of {LOCAL_PROVISIONER}")),
        (Some(_), Some(_)) => Err(format!("more than one default snapshot class of {LOCAL_PROVISIONER}")),
    }
}

fn create(snapshot: &VolumeSnapshot, around: &Surroundings) -> Step {
    let fail = |why: String| {
        Step::Fail("SnapshotContentCreationFailed", format!("Failed to create snapshot content with error {why}"))
    };
    let Some(name) = &snapshot.spec.source.persistent_volume_claim_name else { return Step::Nothing };
    let Some(claim) = &around.claim else { return fail(format!("persistentvolumeclaim {name:?} not found")) };
    if claim.metadata.deletion_timestamp.is_some() {
        return fail(format!("the PVC {name} is being deleted"));
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    let volume = around.volume.as_ref().filter(|_| phase == Some("Bound") && volume_name(claim).is_some());
    let Some(volume) = volume else {
        return fail(format!("the PVC {name} is not yet bound to a PV, will not attempt to take a snapshot"));
    };
    let held = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if held.and_then(|held| held.uid.as_ref()) != claim.metadata.uid.as_ref() {
        return fail(format!("the PV of the PVC {name} is bound to another PVC"));
    }
    let pool = required_label(volume, LOCAL_POOL_LABEL).filter(|_| is_local(volume));
    let Some(pool) = pool else { return fail(format!("the volume of the PVC {name} is not of {LOCAL_PROVISIONER}")) };
    let class = match class_of(snapshot, &around.classes) {
        Ok(class) => class,
        Err(why) => return fail(why),
    };
    if let Some(all) = finalizers(&snapshot.metadata, &PROTECTIONS, true) {
        return Step::Finalizers(all);
    }
    if finalizers(&claim.metadata, &[CLAIM_PROTECTION], true).is_some() {
        return Step::ProtectClaim(Arc::clone(claim));
    }
    let volume_key = volume.metadata.name.as_deref().unwrap_or_default();
    let mode = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()).unwrap_or("Filesystem");
    let meta = &snapshot.metadata;
    Step::Create(json!({
        "apiVersion": format!("{GROUP}/{VERSION}"), "kind": "VolumeSnapshotContent",
        "metadata": {"name": snapshot.content_name(), "finalizers": [CONTENT_PROTECTION]},
        "spec": {
            "volumeSnapshotRef": {
                "apiVersion": format!("{GROUP}/{VERSION}"), "kind": "VolumeSnapshot", "namespace": meta.namespace,
                "name": meta.name, "uid": meta.uid, "resourceVersion": meta.resource_version,
            },
            "source": {"volumeHandle": local_handle(pool, volume_key)},
            "driver": LOCAL_PROVISIONER,
            "deletionPolicy": class.deletion_policy,
            "volumeSnapshotClassName": class.metadata.name,
            "sourceVolumeMode": mode,
        },
    }))
}

/// Whether a content of ours that is being deleted has not been told that its snapshot goes.
pub(super) fn waits_for_snapshot(content: &VolumeSnapshotContent) -> bool {
    content.spec.driver == LOCAL_PROVISIONER
        && content.metadata.deletion_timestamp.is_some()
        && content.spec.volume_snapshot_ref.uid.as_ref().is_some_and(|uid| !uid.is_empty())
        && annotation(&content.metadata, BEING_DELETED).is_none()
}

/// The status of a snapshot that cannot be had; `None` where it says so, or where another controller has said why.
pub(super) fn failure(snapshot: &VolumeSnapshot, why: &str, now: Timestamp) -> Option<SnapshotStatus> {
    let held = snapshot.status.clone().unwrap_or_default();
    let message = format!("{LOCAL_PROVISIONER}: {why}");
    let said = held.error.as_ref().and_then(|error| error.message.as_deref());
    if said.is_some_and(|said| said == message || !said.starts_with(LOCAL_PROVISIONER)) {
        return None;
    }
    let error = SnapshotError { time: Some(Time(now)), message: Some(message) };
    Some(SnapshotStatus { ready_to_use: Some(false), error: Some(error), ..held })
}

/// The finalizers of a claim that nothing takes a snapshot of any more; `None` where they are right. `snapshots` are those of its
/// namespace.
pub(super) fn freed_claim(
    claim: &PersistentVolumeClaim,
    volume: Option<&PersistentVolume>,
    snapshots: &[Arc<VolumeSnapshot>],
) -> Option<Vec<String>> {
    // The finalizer is the same for all drivers: of what is not local, upstream's controller takes it off. Of a volume that is gone
    // nobody can take a snapshot.
    if volume.is_some_and(|volume| !is_local(volume)) {
        return None;
    }
    let waits = |snapshot: &&Arc<VolumeSnapshot>| {
        let is_ready = snapshot.status.as_ref().is_some_and(|status| status.ready_to_use == Some(true));
        snapshot.spec.source.persistent_volume_claim_name == claim.metadata.name
            && snapshot.metadata.deletion_timestamp.is_none()
            && !is_ready
    };
    if snapshots.iter().any(|snapshot| waits(&snapshot)) {
        return None;
    }
    finalizers(&claim.metadata, &[CLAIM_PROTECTION], false)
}
