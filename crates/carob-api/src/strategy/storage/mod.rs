//! PersistentVolumes, PersistentVolumeClaims, and what says how they are made and attached.

use serde_json::{Value, json};

mod classes;
mod volume;

pub(super) use classes::{StorageClass, VolumeAttachment, VolumeAttributesClass};

use super::fields::text;
use super::{Part, Rules, Strategy, claim, old_forms, workload::immutable};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta,
    pod::value::quantity,
};

/// What of a volume's spec is not its source.
const BESIDE_SOURCE: [&str; 8] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeMode",
];

/// A volume or a claim: pending until something binds it.
#[derive(Debug)]
pub(super) struct Persistent {
    /// Where the storage that is asked for or offered stands.
    pub(super) capacity: &'static [&'static str],
}

impl Strategy for Persistent {
    fn rules(&self) -> &Rules {
        &Rules::STATUS
    }

    fn prepare_create(&self, obj: &mut Value) {
        meta::set(obj, &["status"], json!({"phase": "Pending"}));
        if self.is_claim() {
            data_sources(obj, None);
        }
    }

    fn prepare_update(&self, part: Part, new: &mut Value, old: &Value) {
        if part == Part::Main && self.is_claim() {
            data_sources(new, Some(old));
        }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        if self.is_claim() { old_forms::of_claim(new) } else { old_forms::of_volume(new) }
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (spec, path) = (&obj["spec"], FieldPath::new("spec"));
        if self.is_claim() {
            claim::validate_spec(spec, &path, &mut errors);
        } else {
            volume::validate(spec, &path, &mut errors);
        }
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        if part != Part::Main {
            return FieldErrors::new();
        }
        if self.is_claim() { changed_claim(new, old) } else { changed_volume(new, old) }
    }
}

impl Persistent {
    fn is_claim(&self) -> bool {
        self.capacity == ["resources", "requests"]
    }
}

/// Makes the two fields that say what a volume begins with say the same (`pkg/api/persistentvolumeclaim`): what the older one may not
/// name is dropped from it, and of what only one says the other one says it too. A reference into another namespace is of a
/// feature that is off.
fn data_sources(claim: &mut Value, old: Option<&Value>) {
    let in_use = |field: &str| old.is_some_and(|old| meta::at(old, &["spec", field]).is_some());
    let Some(Value::Object(spec)) = claim.get_mut("spec") else { return };
    let is_far = |source: &Value| !text(source, "namespace").is_empty();
    if spec.get("dataSourceRef").is_some_and(is_far) && !in_use("dataSourceRef") {
        spec.remove("dataSourceRef");
    }
    let is_known = |source: &Value| {
        matches!(
            (text(source, "apiGroup"), text(source, "kind")),
            ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
        )
    };
    if !in_use("dataSource")
        && !in_use("dataSourceRef")
        && !spec.contains_key("dataSourceRef")
        && spec.get("dataSource").is_some_and(|source| !is_known(source))
    {
        spec.remove("dataSource");
    }
    match (spec.get("dataSource").cloned(), spec.get("dataSourceRef").cloned()) {
        (Some(source), None) => drop(spec.insert("dataSourceRef".to_owned(), source)),
        (None, Some(source)) if !is_far(&source) => drop(spec.insert("dataSource".to_owned(), source)),
        _ => {}
    }
}

/// `ValidatePersistentVolumeClaimUpdate`.
fn changed_claim(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let is_bound = meta::str_at(new, &["status", "phase"]) == Some("Bound");
    let fixed = |claim: &Value| {
        let mut spec = meta::at(claim, &["spec"]).cloned().unwrap_or_default();
        if is_bound {
            meta::remove(&mut spec, &["resources", "requests", "storage"]);
            meta::remove(&mut spec, &["volumeAttributesClassName"]);
        }
        // A claim may be bound once, and given its default class once.
        for field in ["volumeName", "storageClassName"] {
            if meta::at(old, &["spec", field]).is_none() {
                meta::remove(&mut spec, &[field]);
            }
        }
        spec
    };
    if fixed(new) != fixed(old) {
        let message = "spec is immutable after creation except resources.requests and volumeAttributesClassName \
                       for bound claims";
        errors.push(FieldError::forbidden(&FieldPath::new("spec"), message));
    }
    let size = |claim: &Value, path: &[&str]| meta::at(claim, path).map(quantity).map_or(0, |size| size.value());
    let path = ["spec", "resources", "requests", "storage"];
    // Asking for less takes back a resize that cannot be done, down to what there is.
    if size(new, &path) < size(old, &path) && size(new, &path) <= size(old, &["status", "capacity", "storage"]) {
        let path = FieldPath::new("spec").child("resources").child("requests").child("storage");
        errors.push(FieldError::forbidden(&path, "field can not be less than status.capacity"));
    }
    errors
}

/// `ValidatePersistentVolumeUpdate`.
fn changed_volume(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let source = |volume: &Value| {
        let mut spec = meta::at(volume, &["spec"]).cloned().unwrap_or_default();
        for field in BESIDE_SOURCE.iter().chain(&["volumeAttributesClassName"]) {
            meta::remove(&mut spec, &[field]);
        }
        if meta::at(old, &["spec", "csi", "controllerExpandSecretRef"]).is_none() {
            meta::remove(&mut spec, &["csi", "controllerExpandSecretRef"]);
        }
        spec
    };
    if source(new) != source(old) {
        let path = FieldPath::new("spec").child("persistentvolumesource");
        errors.push(FieldError::forbidden(&path, "spec.persistentvolumesource is immutable after creation"));
    }
    immutable(new, old, &["spec", "volumeMode"], &mut errors);
    if meta::at(old, &["spec", "nodeAffinity"]).is_some() {
        immutable(new, old, &["spec", "nodeAffinity"], &mut errors);
    }
    errors
}
