//! What is to be done about a claim or a volume, and how the volume's object looks. Pure.

use carob_api::quantity::Quantity;
use carob_api::storage::{
    BETA_CLASS, BIND_COMPLETED, PROVISIONED_BY, PROVISIONER_PROTECTION, SELECTED_NODE, provisioned_name,
};
use carob_client::snapshots::required_label;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::origin::{Begins, begins_with};
use crate::record::Record;

/// The name that StorageClasses have for this provisioner.
pub(crate) const PROVISIONER: &str = carob_api::storage::LOCAL_PROVISIONER;
/// The label of a Node that says which pool of volumes it has: a node that gets another name keeps its volumes.
pub(crate) const NODE_LABEL: &str = carob_api::storage::LOCAL_POOL_LABEL;
/// Mode of a volume's directory where the class says none: its owner writes, or the Pod's `fsGroup`.
const MODE_DEFAULT: u32 = 0o755;
/// The largest id of a user or group (user_namespaces(7): -1 means no id).
const ID_MAX: u32 = u32::MAX - 1;
/// A block device has whole sectors.
const SECTOR_BYTES: i64 = 512;

/// Who may use a volume's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

/// A volume that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) record: Record,
    pub(crate) access: Access,
    /// What is on it at first.
    pub(crate) begins: Begins,
    pub(crate) class: String,
    pub(crate) access_modes: Vec<String>,
    pub(crate) policy: String,
    pub(crate) mount_options: Vec<String>,
}

/// What is to be done about a claim.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ClaimPlan {
    Nothing,
    Make(Box<Wish>),
    /// Its volume cannot be made, ever.
    Refuse(String),
    /// Another program makes its volume, which begins with what only that knows.
    Others,
    /// Its volume, by name, is to have room for so much.
    Grow {
        volume: String,
        bytes: i64,
    },
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

fn bytes(quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> i64 {
    quantity.and_then(|text| Quantity::parse(&text.0).ok()).map_or(0, |quantity| quantity.value())
}

pub(crate) fn request(claim: &PersistentVolumeClaim) -> i64 {
    bytes(claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage")))
}

pub(crate) fn capacity(volume: &PersistentVolume) -> i64 {
    bytes(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage")))
}

/// Whether the volume is a block device.
pub(crate) fn is_block(mode: Option<&String>) -> bool {
    mode.is_some_and(|mode| mode == "Block")
}

pub(crate) fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let field = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&claim.metadata, BETA_CLASS).or(field).unwrap_or_default()
}

pub(crate) fn is_ours(volume: &PersistentVolume) -> bool {
    annotation(&volume.metadata, PROVISIONED_BY) == Some(PROVISIONER)
}

/// The name of the volume of a claim.
pub(crate) fn volume_name(claim: &PersistentVolumeClaim) -> String {
    provisioned_name(claim.metadata.uid.as_deref().unwrap_or_default())
}

/// `volume` is the one that the claim names.
pub(crate) fn claim_plan(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    volume: Option<&PersistentVolume>,
    node: &str,
) -> ClaimPlan {
    let spec = claim.spec.clone().unwrap_or_default();
    if claim.metadata.deletion_timestamp.is_some() {
        return ClaimPlan::Nothing;
    }
    if annotation(&claim.metadata, BIND_COMPLETED).is_some() {
        return match volume.filter(|volume| is_ours(volume)) {
            Some(volume) if request(claim) > capacity(volume) => {
                let name = volume.metadata.name.clone().unwrap_or_default();
                ClaimPlan::Grow { volume: name, bytes: request(claim) }
            }
            Some(_) | None => ClaimPlan::Nothing,
        };
    }
    let Some(class) = class.filter(|class| class.provisioner == PROVISIONER) else { return ClaimPlan::Nothing };
    if spec.volume_name.is_some_and(|name| !name.is_empty()) {
        return ClaimPlan::Nothing;
    }
    let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
    match annotation(&claim.metadata, SELECTED_NODE) {
        Some(selected) if selected == node => {}
        // Of several nodes the first to publish it has it: they publish under the same name.
        None if !waits => {}
        Some(_) | None => return ClaimPlan::Nothing,
    }
    let begins = match begins_with(claim) {
        Ok(Begins::Others) => return ClaimPlan::Others,
        Ok(begins) => begins,
        Err(why) => return ClaimPlan::Refuse(why),
    };
    match wish(claim, class, begins) {
        Ok(wish) => ClaimPlan::Make(Box::new(wish)),
        Err(why) => ClaimPlan::Refuse(why),
    }
}

fn wish(claim: &PersistentVolumeClaim, class: &StorageClass, begins: Begins) -> Result<Wish, String> {
    let spec = claim.spec.clone().unwrap_or_default();
    if spec.selector.is_some() {
        return Err("claim.spec.selector is not supported".to_owned());
    }
    if spec.volume_attributes_class_name.as_ref().is_some_and(|name| !name.is_empty()) {
        return Err("claim.spec.volumeAttributesClassName is not supported".to_owned());
    }
    let modes = spec.access_modes.unwrap_or_default();
    if let Some(mode) = modes.iter().find(|mode| !matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod")) {
        return Err(format!("access mode {mode} is not supported: the volume is on one node's disk"));
    }
    let names = (claim.metadata.namespace.as_deref(), claim.metadata.name.as_deref());
    let uid = claim.metadata.uid.as_deref().unwrap_or_default();
    let volume = volume_name(claim);
    let mut record = Record::new(&volume, names.0.unwrap_or_default(), names.1.unwrap_or_default(), uid);
    record.block = is_block(spec.volume_mode.as_ref());
    record.capacity_bytes = request(claim).max(1);
    if record.block {
        let sectors = record.capacity_bytes / SECTOR_BYTES + i64::from(record.capacity_bytes % SECTOR_BYTES != 0);
        record.capacity_bytes = sectors.saturating_mul(SECTOR_BYTES);
    }
    Ok(Wish {
        record,
        access: access(class)?,
        begins,
        class: class.metadata.name.clone().unwrap_or_default(),
        access_modes: modes,
        policy: class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned()),
        mount_options: match class.mount_options.clone().unwrap_or_default() {
            options if options.is_empty() => options,
            _ => return Err("mountOptions of the class are not supported: nothing is mounted".to_owned()),
        },
    })
}

fn access(class: &StorageClass) -> Result<Access, String> {
    let mut access = Access { uid: 0, gid: 0, mode: MODE_DEFAULT };
    for (name, value) in class.parameters.iter().flatten() {
        let id = || value.parse().ok().filter(|id| *id <= ID_MAX);
        let number = match name.as_str() {
            "uid" | "gid" => id(),
            "mode" => u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777),
            _ => return Err(format!("parameter {name:?} of the class is unknown: there are uid, gid and mode")),
        };
        let number =
            number.ok_or_else(|| format!("parameter {name:?} of the class is {value:?}, which is no {name}"))?;
        match name.as_str() {
            "uid" => access.uid = number,
            "gid" => access.gid = number,
            _ => access.mode = number,
        }
    }
    Ok(access)
}

/// A number of bytes as people write it: in the largest binary unit that it is a whole number of.
pub(crate) fn quantity(bytes: i64) -> String {
    let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let whole = units.into_iter().find(|(_, bits)| bytes > 0 && bytes % (1i64 << bits) == 0);
    whole.map_or_else(|| bytes.to_string(), |(unit, bits)| format!("{}{unit}", bytes >> bits))
}

/// The object of a volume that is at `path` of the node whose pool has the id `pool`.
pub(crate) fn object(wish: &Wish, path: &str, pool: &str) -> Value {
    let record = &wish.record;
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            // Of what is kept it goes once the record says that there was an object: until then its data would be taken for nobody's.
            "name": record.volume, "finalizers": [PROVISIONER_PROTECTION], "annotations": {PROVISIONED_BY: PROVISIONER},
        },
        "spec": {
            "capacity": {"storage": quantity(record.capacity_bytes)},
            "accessModes": wish.access_modes,
            "persistentVolumeReclaimPolicy": wish.policy,
            "storageClassName": wish.class,
            "volumeMode": if record.block { "Block" } else { "Filesystem" },
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": record.namespace,
                "name": record.claim, "uid": record.claim_uid,
            },
            "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{
                "matchExpressions": [{"key": NODE_LABEL, "operator": "In", "values": [pool]}],
            }]}},
        },
    })
}

/// What is to be done about a volume of ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum VolumePlan {
    Nothing,
    /// What is on it goes, then its object.
    Remove,
    /// Its object is to have these finalizers: whoever deletes it has the data kept, or removed first.
    Finalizers(Vec<String>),
}

pub(crate) fn volume_plan(volume: &PersistentVolume, pool: &str) -> VolumePlan {
    if !is_ours(volume) || pool_of(volume) != Some(pool) {
        return VolumePlan::Nothing;
    }
    let spec = volume.spec.as_ref();
    let removes = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
    let mut finalizers = volume.metadata.finalizers.clone().unwrap_or_default();
    let holds = finalizers.iter().any(|name| name == PROVISIONER_PROTECTION);
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let going = volume.metadata.deletion_timestamp.is_some();
    match (removes, holds) {
        (true, true) if phase == Some("Released") => VolumePlan::Remove,
        (true, false) if phase == Some("Released") && !going => VolumePlan::Remove,
        (true, false) if !going => {
            finalizers.push(PROVISIONER_PROTECTION.to_owned());
            VolumePlan::Finalizers(finalizers)
        }
        (false, true) => {
            finalizers.retain(|name| name != PROVISIONER_PROTECTION);
            VolumePlan::Finalizers(finalizers)
        }
        _ => VolumePlan::Nothing,
    }
}

/// Whether what is in the pool under a volume's name is that volume's: once a volume that goes has let go of its content, what is made
/// under its name is another one's.
pub(crate) fn has_content(volume: &PersistentVolume, pool: &str) -> bool {
    let holds = || volume.metadata.finalizers.iter().flatten().any(|name| name == PROVISIONER_PROTECTION);
    is_ours(volume) && pool_of(volume) == Some(pool) && (volume.metadata.deletion_timestamp.is_none() || holds())
}

/// The id of the pool that a volume says it is in.
pub(crate) fn pool_of(volume: &PersistentVolume) -> Option<&str> {
    required_label(volume, NODE_LABEL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(change: Value) -> PersistentVolumeClaim {
        let mut object = json!({
            "metadata": {"name": "c", "namespace": "ns", "uid": "u", "annotations": {SELECTED_NODE: "n1"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local",
                "resources": {"requests": {"storage": "1000"}}},
        });
        carob_api::patch::merge_patch(&mut object, &change).expect("it applies");
        serde_json::from_value(object).expect("a claim")
    }

    fn class(parameters: Value) -> StorageClass {
        serde_json::from_value(
            json!({"metadata": {"name": "local"}, "provisioner": PROVISIONER, "parameters": parameters,
            "volumeBindingMode": "WaitForFirstConsumer"}),
        )
        .expect("a class")
    }

    #[test]
    fn a_volume_is_made_where_the_scheduler_says() {
        let plan = |change| claim_plan(&claim(change), Some(&class(json!({}))), None, "n1");
        let ClaimPlan::Make(wish) = plan(json!({})) else { panic!("it is to be made") };
        assert_eq!((wish.record.volume.as_str(), wish.policy.as_str()), ("pvc-u", "Delete"));
        assert_eq!(wish.access, Access { uid: 0, gid: 0, mode: 0o755 });
        for elsewhere in [
            json!({"metadata": {"annotations": {SELECTED_NODE: "n2"}}}),
            json!({"metadata": {"annotations": null}}),
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            json!({"spec": {"volumeName": "v"}}),
        ] {
            assert_eq!(plan(elsewhere), ClaimPlan::Nothing);
        }
        let ClaimPlan::Make(block) = plan(json!({"spec": {"volumeMode": "Block"}})) else { panic!("it is to be made") };
        assert_eq!(block.record.capacity_bytes, 1024, "whole sectors");
        assert_eq!([quantity(1000), quantity(16 << 20), quantity(3 << 40), quantity(0)], ["1000", "16Mi", "3Ti", "0"]);
    }

    #[test]
    fn what_cannot_be_had_is_refused_with_a_reason() {
        for (change, parameters, why) in [
            (
                json!({"spec": {"accessModes": ["ReadWriteMany"]}}),
                json!({}),
                "access mode ReadWriteMany is not supported: the volume is on one node's disk",
            ),
            (json!({"spec": {"selector": {}}}), json!({}), "claim.spec.selector is not supported"),
            (json!({}), json!({"mode": "9"}), "parameter \"mode\" of the class is \"9\", which is no mode"),
            (
                json!({}),
                json!({"uid": "4294967295"}),
                "parameter \"uid\" of the class is \"4294967295\", which is no uid",
            ),
            (
                json!({}),
                json!({"size": "1"}),
                "parameter \"size\" of the class is unknown: there are uid, gid and mode",
            ),
        ] {
            let plan = claim_plan(&claim(change), Some(&class(parameters)), None, "n1");
            assert_eq!(plan, ClaimPlan::Refuse(why.to_owned()));
        }
    }

    #[test]
    fn only_a_released_volume_of_this_pool_is_removed() {
        let ClaimPlan::Make(wish) = claim_plan(&claim(json!({})), Some(&class(json!({}))), None, "n1") else {
            panic!("it is to be made")
        };
        let plan = |change: Value, pool: &str| {
            let mut object = object(&wish, "/v/pvc-u/data", "s1");
            carob_api::patch::merge_patch(&mut object, &change).expect("it applies");
            volume_plan(&serde_json::from_value(object).expect("a volume"), pool)
        };
        let released = json!({"status": {"phase": "Released"}});
        assert_eq!(plan(released.clone(), "s1"), VolumePlan::Remove);
        assert_eq!(plan(released, "s2"), VolumePlan::Nothing);
        assert_eq!(plan(json!({"status": {"phase": "Bound"}}), "s1"), VolumePlan::Nothing);
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Bound"}});
        assert_eq!(plan(going, "s1"), VolumePlan::Nothing);
        let kept = json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}, "status": {"phase": "Released"}});
        assert_eq!(plan(kept, "s1"), VolumePlan::Finalizers(vec![]));
        let others = json!({"metadata": {"annotations": {PROVISIONED_BY: "other"}}, "status": {"phase": "Released"}});
        assert_eq!(plan(others, "s1"), VolumePlan::Nothing);
    }

    #[test]
    fn a_volume_that_goes_and_has_let_go_of_its_content_has_none() {
        let ClaimPlan::Make(wish) = claim_plan(&claim(json!({})), Some(&class(json!({}))), None, "n1") else {
            panic!("it is to be made")
        };
        let has = |change: Value, pool: &str| {
            let mut object = object(&wish, "/v/pvc-u/data", "s1");
            carob_api::patch::merge_patch(&mut object, &change).expect("it applies");
            has_content(&serde_json::from_value(object).expect("a volume"), pool)
        };
        let going = |finalizers: Value| json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": finalizers}});
        assert!(has(json!({}), "s1") && !has(json!({}), "s2"));
        assert!(has(json!({"metadata": {"finalizers": []}}), "s1"), "one that is kept");
        assert!(has(going(json!([PROVISIONER_PROTECTION])), "s1"), "its data is to be kept or removed still");
        assert!(!has(going(json!(["kubernetes.io/pv-protection"])), "s1"));
    }
}
