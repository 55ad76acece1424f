//! The volume behind a claim: what has to hold before a Pod may use it (kubelet
//! `pkg/kubelet/volumemanager/populator`).

use std::sync::Arc;

use carob_api::quantity::{Quantity, QuantityError};
use carob_api::storage::{BIND_COMPLETED, ephemeral_claim};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};

use serde_json::{Value, json};

use crate::admission::fits_any;
use crate::objects::{FetchError, Objects};

#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("failed to fetch PVC from API server: persistentvolumeclaims {0:?} not found")]
    NoClaim(String),
    #[error("the amount {text:?} cannot be read")]
    Quantity {
        text: String,
        #[source]
        source: QuantityError,
    },
    #[error("PVC is being deleted")]
    Terminating,
    #[error("PVC is not bound")]
    Unbound,
    #[error("PVC {claim:?} was not created for the pod")]
    NotOwned { claim: String },
    #[error("failed to fetch PV {0} from API server: it does not exist")]
    NoVolume(String),
    #[error("found PV object {volume:?} but its pv.Spec.ClaimRef does not point to the claim")]
    OtherClaim { volume: String },
    #[error("volume {volume} has volumeMode {mode}, but is specified in {used}")]
    Mode { volume: String, mode: &'static str, used: &'static str },
    #[error("MountVolume.NodeAffinity check failed for volume {volume:?} : no matching NodeSelectorTerms")]
    NodeAffinity { volume: String },
}

/// A claim of a Pod, bound to a volume.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    pub(super) claim: Arc<PersistentVolumeClaim>,
    pub(super) volume: Arc<PersistentVolume>,
    /// The Pod wants no more than to read.
    pub(super) read_only: bool,
}

/// The name of the claim that a Pod's volume is, with whether only reading is asked for; `None` for other volumes.
pub(super) fn claim_name(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((source.claim_name.clone(), source.read_only.unwrap_or(false)));
    }
    volume.ephemeral.as_ref()?;
    Some((ephemeral_claim(pod.metadata.name.as_deref().unwrap_or_default(), &volume.name), false))
}

pub(super) async fn bound(
    objects: &dyn Objects,
    pod: &Pod,
    volume: &Volume,
    name: &str,
    read_only: bool,
) -> Result<Bound, ClaimError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let claim = objects.claim(namespace, name).await?.ok_or_else(|| ClaimError::NoClaim(name.to_owned()))?;
    let object = match check_claim(&claim, pod, volume, name)? {
        Some(volume) => objects.volume(volume).await?.ok_or_else(|| ClaimError::NoVolume(volume.to_owned()))?,
        None => return Err(ClaimError::Unbound),
    };
    check_volume(&object, &claim)?;
    check_node(objects, pod, &object).await?;
    Ok(Bound { claim, volume: object, read_only })
}

/// The name of the volume that the claim is bound to, if it may be used. Pure.
fn check_claim<'a>(
    claim: &'a PersistentVolumeClaim,
    pod: &Pod,
    volume: &Volume,
    name: &str,
) -> Result<Option<&'a str>, ClaimError> {
    let uid = pod.metadata.uid.as_deref();
    let mut owners = claim.metadata.owner_references.iter().flatten();
    let owned = owners.any(|owner| Some(owner.uid.as_str()) == uid && owner.controller == Some(true));
    if volume.ephemeral.is_some() && !owned {
        return Err(ClaimError::NotOwned { claim: name.to_owned() });
    }
    let is_bound = claim.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(BIND_COMPLETED));
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
    // The phase follows the binding by a moment.
    Ok(name.filter(|_| bound || is_bound))
}

fn check_volume(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), ClaimError> {
    let held = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).and_then(|held| held.uid.as_deref());
    if held.is_some() && held == claim.metadata.uid.as_deref() {
        return Ok(());
    }
    Err(ClaimError::OtherClaim { volume: volume.metadata.name.clone().unwrap_or_default() })
}

/// A Pod may have come past the scheduler to a node that its volume cannot be reached from.
async fn check_node(objects: &dyn Objects, pod: &Pod, volume: &PersistentVolume) -> Result<(), ClaimError> {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let Some(required) = affinity.and_then(|affinity| affinity.required.as_ref()) else { return Ok(()) };
    let name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    let node = objects.node(name).await?;
    let labels = node.and_then(|node| node.metadata.labels.clone()).unwrap_or_default();
    if fits_any(&required.node_selector_terms, name, &labels) {
        return Ok(());
    }
    Err(ClaimError::NodeAffinity { volume: volume.metadata.name.clone().unwrap_or_default() })
}

/// What a claim's volume is to be grown to, and what the claim says when that is done.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Growth {
    pub(super) bytes: i64,
    pub(super) status: Value,
}

/// What is said of growing that is over with it (`pkg/volume/util/resize_util.go`, knownResizeConditions).
const RESIZE_CONDITIONS: [&str; 4] =
    ["FileSystemResizePending", "Resizing", "ControllerResizeError", "NodeResizeError"];

/// Whether the driver's volume has been made larger than the node shows it. Pure.
pub(super) fn growth(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<Option<Growth>, ClaimError> {
    let Some(status) = &claim.status else { return Ok(None) };
    let resize = status.allocated_resource_statuses.as_ref().and_then(|all| all.get("storage"));
    let is_asked = match resize.map(String::as_str) {
        Some(resize) => matches!(resize, "NodeResizePending" | "NodeResizeInProgress"),
        // As resizers before v1.34 have it.
        None => {
            let mut conditions = status.conditions.iter().flatten();
            conditions.any(|condition| condition.type_ == "FileSystemResizePending" && condition.status == "True")
        }
    };
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage"));
    let Some(capacity) = capacity.filter(|_| is_asked) else { return Ok(None) };
    let shown = status.capacity.as_ref().and_then(|capacity| capacity.get("storage"));
    let bytes = |text: &str| {
        let quantity =
            Quantity::parse(text).map_err(|source| ClaimError::Quantity { text: text.to_owned(), source })?;
        Ok::<_, ClaimError>(quantity.value())
    };
    let wanted = bytes(&capacity.0)?;
    if shown.map(|shown| bytes(&shown.0)).transpose()?.is_some_and(|shown| shown >= wanted) {
        return Ok(None);
    }
    let others = status.conditions.iter().flatten().filter(|held| !RESIZE_CONDITIONS.contains(&&*held.type_));
    let status = json!({
        "metadata": {"uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version},
        "status": {"capacity": {"storage": capacity}, "allocatedResourceStatuses": {"storage": null},
            "conditions": others.collect::<Vec<_>>()},
    });
    Ok(Some(Growth { bytes: wanted, status }))
}

impl Bound {
    pub(super) fn volume_name(&self) -> &str {
        self.volume.metadata.name.as_deref().unwrap_or_default()
    }

    pub(super) fn is_going(&self) -> bool {
        self.claim.metadata.deletion_timestamp.is_some()
    }

    pub(super) fn is_block(&self) -> bool {
        self.volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()) == Some("Block")
    }

    /// Whether the volume is used as what it is. Pure.
    pub(super) fn check_use(&self, volume: &str, pod: &Pod) -> Result<(), ClaimError> {
        let spec = pod.spec.as_ref();
        let containers =
            spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        let (mut mounted, mut as_device) = (false, false);
        for container in containers {
            mounted |= container.volume_mounts.iter().flatten().any(|mount| mount.name == volume);
            as_device |= container.volume_devices.iter().flatten().any(|device| device.name == volume);
        }
        let wrong = |mode, used| ClaimError::Mode { volume: volume.to_owned(), mode, used };
        match self.is_block() {
            true if mounted => Err(wrong("Block", "volumeMounts")),
            false if as_device => Err(wrong("Filesystem", "volumeDevices")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bound_claim_of_the_pod_is_used() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}})).expect("a Pod");
        let check = |change: Value, ephemeral: bool| {
            let mut object = json!({"metadata": {"name": "c", "uid": "cu", "annotations": {BIND_COMPLETED: "yes"}},
                "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}});
            carob_api::patch::merge_patch(&mut object, &change).expect("it applies");
            let claim: PersistentVolumeClaim = serde_json::from_value(object).expect("a claim");
            let volume = Volume { ephemeral: ephemeral.then(Default::default), ..Volume::default() };
            check_claim(&claim, &pod, &volume, "c").map(|name| name.map(str::to_owned)).map_err(|e| e.to_string())
        };
        let bound = Ok(Some("v".to_owned()));
        assert_eq!(check(json!({}), false), bound);
        assert_eq!(check(json!({"spec": {"volumeName": null}}), false), Ok(None));
        assert!(check(json!({}), true).is_err_and(|error| error.contains("was not created for the pod")));
        let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]);
        assert_eq!(check(json!({"metadata": {"ownerReferences": owner}}), true), bound);
    }

    #[test]
    fn a_volume_grows_when_its_resizer_says_so_and_once() {
        let volume: PersistentVolume =
            serde_json::from_value(json!({"spec": {"capacity": {"storage": "2Gi"}}})).expect("a volume");
        let asked = |status: Value| {
            let claim = serde_json::from_value(json!({"metadata": {"name": "c"}, "status": status})).expect("a claim");
            growth(&claim, &volume).expect("amounts").map(|growth| growth.bytes)
        };
        let pending = json!({"storage": "NodeResizePending"});
        let condition = json!([{"type": "FileSystemResizePending", "status": "True"}]);
        let shown = json!({"storage": "1Gi"});
        assert_eq!(asked(json!({"capacity": shown, "allocatedResourceStatuses": pending})), Some(2 << 30));
        assert_eq!(asked(json!({"capacity": shown, "conditions": condition})), Some(2 << 30));
        assert_eq!(asked(json!({"capacity": shown})), None);
        assert_eq!(asked(json!({"capacity": {"storage": "2048Mi"}, "allocatedResourceStatuses": pending})), None);
        let infeasible = json!({"storage": "NodeResizeInfeasible"});
        assert_eq!(asked(json!({"capacity": shown, "allocatedResourceStatuses": infeasible})), None);
    }
}
