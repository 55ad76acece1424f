//! What is to be done about one claim or one volume, from what is known of it. Pure (`pkg/controller/volume/persistentvolume`).

use std::sync::Arc;

use carob_api::quantity::Quantity;
use carob_api::storage::{BIND_COMPLETED, BOUND_BY_CONTROLLER, NO_PROVISIONER, PROVISIONED_BY, SELECTED_NODE};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use kube::core::{Selector, SelectorExt};

use super::{annotation, class_of_claim, class_of_volume, volume_name};

/// What an Event says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Notice {
    fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: false, reason, message: message.into() }
    }

    fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: true, reason, message: message.into() }
    }
}

/// What is to be done about a claim.
#[derive(Debug, PartialEq)]
pub(super) enum ClaimStep {
    /// The two belong together: what is not written of that is to be written.
    Bind(Arc<PersistentVolume>),
    /// It names no class, and gets the default one.
    SetClass(String),
    /// It stays as it is, and says why.
    Wait { notice: Option<Notice>, provisioner: Option<String> },
    /// What was on its volume is out of reach.
    Lost(Notice),
}

/// What is known of a claim's surroundings.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// The volume that the claim names, if there is one.
    pub(super) named: Option<Arc<PersistentVolume>>,
    /// The volumes that may be this claim's: those that name it, and those that name none.
    pub(super) volumes: Vec<Arc<PersistentVolume>>,
    /// The claim's class, where there is one of that name.
    pub(super) class: Option<Arc<StorageClass>>,
    pub(super) default_class: Option<String>,
    /// Pods that name the claim and have no node yet.
    pub(super) unscheduled: Vec<String>,
}

pub(super) fn claim_step(claim: &PersistentVolumeClaim, around: &Surroundings) -> ClaimStep {
    if annotation(&claim.metadata, BIND_COMPLETED).is_some() {
        return bound_claim(claim, around);
    }
    match volume_name(claim) {
        None => unbound_claim(claim, around),
        Some(name) => claim_of_named(claim, name, around),
    }
}

fn bound_claim(claim: &PersistentVolumeClaim, around: &Surroundings) -> ClaimStep {
    if volume_name(claim).is_none() {
        let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return ClaimStep::Lost(Notice::warning("ClaimLost", message));
    }
    let Some(volume) = &around.named else {
        let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        return ClaimStep::Lost(Notice::warning("ClaimLost", message));
    };
    match claim_ref(volume) {
        None => ClaimStep::Bind(Arc::clone(volume)),
        Some(held) if held.uid == claim.metadata.uid => ClaimStep::Bind(Arc::clone(volume)),
        Some(_) => {
            let message = "Two claims are bound to the same volume, this one is bound incorrectly";
            ClaimStep::Lost(Notice::warning("ClaimMisbound", message))
        }
    }
}

/// A claim that asks for one volume by name, and is not bound to it yet.
fn claim_of_named(claim: &PersistentVolumeClaim, name: &str, around: &Surroundings) -> ClaimStep {
    let wait = |notice| ClaimStep::Wait { notice, provisioner: None };
    let Some(volume) = &around.named else { return wait(None) };
    match claim_ref(volume) {
        None => match misfit(claim, volume) {
            None => ClaimStep::Bind(Arc::clone(volume)),
            Some(why) => {
                let message = format!("Cannot bind to requested volume {name:?}: {why}");
                wait(Some(Notice::warning("VolumeMismatch", message)))
            }
        },
        Some(_) if is_meant_for(volume, claim) => ClaimStep::Bind(Arc::clone(volume)),
        Some(_) => {
            let message = format!("volume {name:?} already bound to a different claim.");
            wait(Some(Notice::warning("FailedBinding", message)))
        }
    }
}

fn unbound_claim(claim: &PersistentVolumeClaim, around: &Surroundings) -> ClaimStep {
    let waits_for_pod = around.class.as_deref().is_some_and(is_delayed);
    if let Some(volume) = best_match(claim, &around.volumes, waits_for_pod) {
        return ClaimStep::Bind(volume);
    }
    let names_none = claim.spec.as_ref().is_none_or(|spec| spec.storage_class_name.is_none());
    let class = class_of_claim(claim);
    if names_none
        && class.is_empty()
        && let Some(default) = &around.default_class
    {
        return ClaimStep::SetClass(default.clone());
    }
    let wait = |notice| ClaimStep::Wait { notice: Some(notice), provisioner: None };
    if waits_for_pod && annotation(&claim.metadata, SELECTED_NODE).is_none() {
        return wait(waiting_for_pod(&around.unscheduled));
    }
    if class.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return wait(Notice::normal("FailedBinding", message));
    }
    let Some(class) = &around.class else {
        let message = format!("storageclass.storage.k8s.io {class:?} not found");
        return wait(Notice::warning("ProvisioningFailed", message));
    };
    provision(&class.provisioner)
}

/// The volumes that name a claim beside the one that it has. One that has none yet may get any of them.
pub(super) fn others<'a>(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    naming: &'a [Arc<PersistentVolume>],
) -> impl Iterator<Item = &'a Arc<PersistentVolume>> {
    let has_one = volume_name(claim).is_some();
    let name = volume.metadata.name.clone();
    naming.iter().filter(move |other| has_one && other.metadata.name != name)
}

fn waiting_for_pod(unscheduled: &[String]) -> Notice {
    match unscheduled {
        [] => Notice::normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        [pod] => Notice::normal("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
        pods => Notice::normal("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", pods.join(","))),
    }
}

fn provision(provisioner: &str) -> ClaimStep {
    if provisioner == NO_PROVISIONER || provisioner.starts_with("kubernetes.io/") {
        let notice = Notice::warning("ProvisioningFailed", format!("no volume plugin matched name: {provisioner}"));
        return ClaimStep::Wait { notice: Some(notice), provisioner: None };
    }
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system \
         administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
    );
    let notice = Some(Notice::normal("ExternalProvisioning", message));
    ClaimStep::Wait { notice, provisioner: Some(provisioner.to_owned()) }
}

pub(super) fn is_delayed(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

pub(super) fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// Whether a volume names the claim, be it by the user's or by the binder's choice.
pub(super) fn is_meant_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_ref(volume).is_some_and(|held| {
        held.name == claim.metadata.name
            && held.namespace == claim.metadata.namespace
            && held.uid.as_ref().is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
    })
}

pub(super) fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

fn bytes(quantity: Option<&ApiQuantity>) -> i64 {
    // The API has checked it; one that does not parse asks for nothing and offers nothing.
    quantity.and_then(|text| Quantity::parse(&text.0).ok()).map_or(0, |quantity| quantity.value())
}

fn capacity(volume: &PersistentVolume) -> i64 {
    bytes(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage")))
}

fn request(claim: &PersistentVolumeClaim) -> i64 {
    bytes(claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage")))
}

fn is_block(mode: Option<&String>) -> bool {
    mode.is_some_and(|mode| mode == "Block")
}

/// Whether one of the two is a block device and the other one is not.
pub(super) fn modes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let of_claim = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref());
    let of_volume = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref());
    is_block(of_claim) != is_block(of_volume)
}

fn access_modes(volume: &PersistentVolume) -> &[String] {
    volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default()
}

fn offers_modes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    wanted.iter().all(|mode| access_modes(volume).contains(mode))
}

fn attributes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let of_claim = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let of_volume = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    of_claim.unwrap_or_default() != of_volume.unwrap_or_default()
}

/// Why a volume that a claim asks for by name is none for it (`checkVolumeSatisfyClaim`).
fn misfit(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let reasons = [
        (volume.metadata.deletion_timestamp.is_some(), format!("the volume is marked for deletion {name:?}")),
        (capacity(volume) < request(claim), "requested PV is too small".to_owned()),
        (class_of_volume(volume) != class_of_claim(claim), "storageClassName does not match".to_owned()),
        (attributes_differ(claim, volume), "volumeAttributesClassName does not match".to_owned()),
        (modes_differ(claim, volume), "incompatible volumeMode".to_owned()),
        (!offers_modes(claim, volume), "incompatible accessMode".to_owned()),
    ];
    reasons.into_iter().find(|(holds, _)| *holds).map(|(_, why)| why)
}

/// The volume that a claim gets: one that names it, or the one that offers the fewest access modes beyond those asked for, of
/// these the smallest, of these the first by name. A claim that waits for its Pod gets only what names it: the scheduler
/// chooses for it.
fn best_match(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    waits_for_pod: bool,
) -> Option<Arc<PersistentVolume>> {
    let selector = match claim.spec.as_ref().and_then(|spec| spec.selector.clone()) {
        None => None,
        // One that does not parse selects nothing.
        Some(selector) => Some(Selector::try_from(selector).ok()?),
    };
    let fits = |volume: &&Arc<PersistentVolume>| {
        capacity(volume) >= request(claim)
            && !modes_differ(claim, volume)
            && !attributes_differ(claim, volume)
            && volume.metadata.deletion_timestamp.is_none()
            && offers_modes(claim, volume)
    };
    let (named, free): (Vec<_>, Vec<_>) = volumes.iter().filter(fits).partition(|volume| is_meant_for(volume, claim));
    let order =
        |volume: &&Arc<PersistentVolume>| (access_modes(volume).len(), capacity(volume), volume.metadata.name.clone());
    if let Some(own) = named.into_iter().min_by_key(order) {
        return Some(Arc::clone(own));
    }
    let class = class_of_claim(claim);
    let matches = |volume: &&Arc<PersistentVolume>| {
        claim_ref(volume).is_none()
            && phase(volume) == "Available"
            && class_of_volume(volume) == class
            && selector.as_ref().is_none_or(|selector| match &volume.metadata.labels {
                Some(labels) => selector.matches(labels),
                None => selector.matches(&Default::default()),
            })
    };
    if waits_for_pod {
        return None;
    }
    free.into_iter().filter(matches).min_by_key(order).map(Arc::clone)
}

/// What is to be done about a volume.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum VolumeStep {
    Phase(&'static str),
    /// Its claim has it to be finished there.
    AskClaim,
    /// The claim that it names is of the other volume mode.
    Mismatch {
        of_volume: Notice,
        of_claim: Notice,
    },
    /// The claim that it names has another volume; `entirely` where the user did not name it.
    Unbind {
        entirely: bool,
    },
    /// Its claim is gone: what is on it is kept, or removed by its provisioner.
    Release,
    /// Its claim is gone, and nobody can do what its policy says.
    Fail(Notice),
}

/// `claim` is the one that the volume names, looked up by name and uid.
pub(super) fn volume_step(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeStep {
    let Some(held) = claim_ref(volume) else { return VolumeStep::Phase("Available") };
    if held.uid.as_ref().is_none_or(String::is_empty) {
        // The user means it for a claim; the claim's own step binds them.
        return VolumeStep::Phase("Available");
    }
    let Some(claim) = claim else { return reclaim(volume) };
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    match volume_name(claim) {
        None if modes_differ(claim, volume) => {
            let of = claim.metadata.name.as_deref().unwrap_or_default();
            let of_volume = format!(
                "Cannot bind PersistentVolume to requested PersistentVolumeClaim {of:?} due to incompatible volumeMode."
            );
            let of_claim = format!(
                "Cannot bind PersistentVolume {name:?} to requested PersistentVolumeClaim due to incompatible volumeMode."
            );
            VolumeStep::Mismatch {
                of_volume: Notice::warning("VolumeMismatch", of_volume),
                of_claim: Notice::warning("VolumeMismatch", of_claim),
            }
        }
        None => VolumeStep::AskClaim,
        Some(bound) if bound == name => VolumeStep::Phase("Bound"),
        Some(_) => {
            let was_made_for_it = annotation(&volume.metadata, PROVISIONED_BY).is_some() && policy(volume) == "Delete";
            if was_made_for_it {
                return reclaim(volume);
            }
            VolumeStep::Unbind { entirely: annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_some() }
        }
    }
}

fn policy(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

fn reclaim(volume: &PersistentVolume) -> VolumeStep {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let is_csi = volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some());
    match (policy(volume), annotation(&volume.metadata, PROVISIONED_BY)) {
        ("Retain", _) => VolumeStep::Release,
        ("Delete", Some(provisioner)) if !provisioner.starts_with("kubernetes.io/") => VolumeStep::Release,
        ("Delete", _) if is_csi => VolumeStep::Release,
        ("Delete", _) => {
            let message =
                format!("error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched");
            VolumeStep::Fail(Notice::warning("VolumeFailedDelete", message))
        }
        ("Recycle", _) => {
            VolumeStep::Fail(Notice::warning("VolumeFailedRecycle", "No recycler plugin found for the volume!"))
        }
        _ => {
            let message = "Volume has unrecognized PersistentVolumeReclaimPolicy";
            VolumeStep::Fail(Notice::warning("VolumeUnknownReclaimPolicy", message))
        }
    }
}
