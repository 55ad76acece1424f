//! What is written to a claim or a volume, as patches over the version that was looked at. Pure; `None` where it says so already.

use carob_api::storage::{BIND_COMPLETED, BOUND_BY_CONTROLLER};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use super::decide::{Notice, claim_ref, is_meant_for, phase};
use super::{annotation, volume_name};

/// What a patch has to say of the object that was looked at, so that it is written over no other one.
pub(super) fn at(meta: &ObjectMeta) -> Value {
    json!({"uid": meta.uid, "resourceVersion": meta.resource_version})
}

/// Gives a volume to a claim: what decides whose it is.
pub(super) fn volume_binding(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Value> {
    let is_whole = claim_ref(volume).is_some_and(|held| {
        held.name == claim.metadata.name && held.namespace == claim.metadata.namespace && held.uid == claim.metadata.uid
    });
    if is_whole {
        return None;
    }
    let mut metadata = at(&volume.metadata);
    if !is_meant_for(volume, claim) {
        metadata["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
    }
    Some(json!({"metadata": metadata, "spec": {"claimRef": {
        "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": claim.metadata.namespace,
        "name": claim.metadata.name, "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version,
    }}}))
}

/// Has a claim name its volume for good.
pub(super) fn claim_binding(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Value> {
    let name = volume.metadata.name.as_deref();
    let (is_new, is_chosen) = (annotation(&claim.metadata, BIND_COMPLETED).is_none(), volume_name(claim) != name);
    if !is_new && !is_chosen {
        return None;
    }
    let mut metadata = at(&claim.metadata);
    metadata["annotations"] = json!({BIND_COMPLETED: "yes"});
    if is_chosen {
        metadata["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
    }
    Some(json!({"metadata": metadata, "spec": {"volumeName": name}}))
}

/// The status of a claim in a phase; `volume` is the one that it is bound to.
pub(super) fn claim_status(
    claim: &PersistentVolumeClaim,
    phase: &str,
    volume: Option<&PersistentVolume>,
) -> Option<Value> {
    let held = claim.status.clone().unwrap_or_default();
    let becomes = held.phase.as_deref() != Some(phase);
    let spec = volume.and_then(|volume| volume.spec.as_ref());
    let modes = spec.and_then(|spec| spec.access_modes.clone());
    // A claim that was bound before keeps what it says: whoever grows the volume writes its new capacity.
    let capacity = match spec {
        Some(spec) if becomes => {
            spec.capacity.as_ref().and_then(|all| all.get("storage")).map(|size| json!({"storage": size}))
        }
        Some(_) => held.capacity.as_ref().map(|capacity| json!(capacity)),
        None => None,
    };
    // The class that the volume has when it is bound; afterwards it is written by whoever changes the volume.
    let class = match spec {
        Some(spec) if becomes && held.phase.as_deref().is_none_or(|phase| phase == "Pending") => {
            spec.volume_attributes_class_name.clone()
        }
        Some(_) => held.current_volume_attributes_class_name.clone(),
        None => None,
    };
    let same = held.access_modes == modes
        && held.capacity.as_ref().map(|held| json!(held)) == capacity
        && held.current_volume_attributes_class_name == class;
    if !becomes && same {
        return None;
    }
    let status = json!({
        "phase": phase, "accessModes": modes, "capacity": capacity, "currentVolumeAttributesClassName": class,
    });
    Some(json!({"metadata": at(&claim.metadata), "status": status}))
}

/// The phase of a volume, with why it failed.
pub(super) fn volume_status(
    volume: &PersistentVolume,
    wanted: &str,
    notice: Option<&Notice>,
    now: &Time,
) -> Option<Value> {
    if volume.status.is_some() && phase(volume) == wanted {
        return None;
    }
    let status = json!({
        "phase": wanted, "message": notice.map(|notice| &notice.message), "reason": notice.map(|notice| notice.reason),
        "lastPhaseTransitionTime": now,
    });
    Some(json!({"metadata": at(&volume.metadata), "status": status}))
}

/// Takes a volume from its claim. A claim that the user named for it stays named, without its uid.
pub(super) fn unbinding(volume: &PersistentVolume, entirely: bool) -> Value {
    let mut metadata = at(&volume.metadata);
    let claim_ref = if entirely {
        metadata["annotations"] = json!({BOUND_BY_CONTROLLER: null});
        Value::Null
    } else {
        json!({"uid": null})
    };
    json!({"metadata": metadata, "spec": {"claimRef": claim_ref}})
}
