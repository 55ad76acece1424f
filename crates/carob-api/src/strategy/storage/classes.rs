//! StorageClasses, VolumeAttributesClasses, VolumeAttachments (`pkg/apis/storage/validation`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{old_forms, text, volume};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
    strategy::{Part, Rules, Strategy, csi::driver_name_errors, workload::immutable},
};

/// Parameters of a class: how many, and bytes of all keys and values.
const PARAMETERS_MAX: usize = 512;
const PARAMETERS_LEN_MAX: usize = 256 << 10;

#[derive(Debug)]
pub(in crate::strategy) struct StorageClass;

impl Strategy for StorageClass {
    fn rules(&self) -> &Rules {
        &Rules::PLAIN
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        old_forms::of_storage_class(new)
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        validate_driver(obj, "provisioner", &mut errors);
        validate_parameters(obj, &mut errors);
        let policy = text(obj, "reclaimPolicy");
        if !["", "Delete", "Retain"].contains(&policy) {
            errors.push(FieldError::not_supported(&FieldPath::new("reclaimPolicy"), policy, &["Delete", "Retain"]));
        }
        if meta::str_at(obj, &["volumeBindingMode"]) == Some("") {
            let modes = ["Immediate", "WaitForFirstConsumer"];
            errors.push(FieldError::not_supported(&FieldPath::new("volumeBindingMode"), "", &modes));
        }
        validate_topologies(meta::items_at(obj, &["allowedTopologies"]), &mut errors);
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
            immutable(new, old, &[field], &mut errors);
        }
        errors
    }
}

#[derive(Debug)]
pub(in crate::strategy) struct VolumeAttachment;

impl Strategy for VolumeAttachment {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { updates_unconditionally: false, ..Rules::STATUS_ALONE };
        &RULES
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (spec, path) = (&obj["spec"], FieldPath::new("spec"));
        driver_name_errors(text(spec, "attacher"), &path.child("attacher"), &mut errors);
        validate_attached(&spec["source"], &path.child("source"), &mut errors);
        let node = text(spec, "nodeName");
        invalid_each(&path.child("nodeName"), node, names::dns1123_subdomain(node), &mut errors);
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if part == Part::Main {
            immutable(new, old, &["spec"], &mut errors);
        }
        errors
    }
}

#[derive(Debug)]
pub(in crate::strategy) struct VolumeAttributesClass;

impl Strategy for VolumeAttributesClass {
    fn rules(&self) -> &Rules {
        &Rules::COUNTED
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        validate_driver(obj, "driverName", &mut errors);
        validate_parameters(obj, &mut errors);
        if meta::at(obj, &["parameters"]).and_then(Value::as_object).is_none_or(Map::is_empty) {
            let message = "must contain at least one key/value pair";
            errors.push(FieldError::required(&FieldPath::new("parameters"), message));
        }
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let changed = ["driverName", "parameters"].into_iter().filter(|field| new.get(*field) != old.get(*field));
        let error =
            |field: &str| FieldError::forbidden(&FieldPath::new(field), format!("updates to {field} are forbidden."));
        changed.map(error).collect()
    }
}

/// Who makes the volumes of a class: a qualified name in any case.
fn validate_driver(obj: &Value, field: &str, errors: &mut FieldErrors) {
    let (name, path) = (text(obj, field).to_lowercase(), FieldPath::new(field));
    if name.is_empty() {
        errors.push(FieldError::required(&path, ""));
    } else {
        invalid_each(&path, name.as_str(), names::qualified_name(&name), errors);
    }
}

fn validate_parameters(obj: &Value, errors: &mut FieldErrors) {
    let Some(parameters) = meta::at(obj, &["parameters"]).and_then(Value::as_object) else { return };
    let path = FieldPath::new("parameters");
    if parameters.len() > PARAMETERS_MAX {
        return errors.push(FieldError::too_long(&path, PARAMETERS_MAX));
    }
    if parameters.contains_key("") {
        errors.push(FieldError::invalid(&path, "", "field can not be empty."));
    }
    let lengths = parameters.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len));
    if lengths.sum::<usize>() > PARAMETERS_LEN_MAX {
        errors.push(FieldError::too_long(&path, PARAMETERS_LEN_MAX));
    }
}

/// Where volumes may be made. A term that says nothing counts as said twice.
fn validate_topologies(terms: &[Value], errors: &mut FieldErrors) {
    let mut seen: Vec<BTreeMap<&str, BTreeSet<&str>>> = vec![BTreeMap::new()];
    for (index, term) in terms.iter().enumerate() {
        let path = FieldPath::new("allowedTopologies").index(index).child("matchLabelExpressions");
        let mut keys = BTreeMap::new();
        for (index, requirement) in meta::items_at(term, &["matchLabelExpressions"]).iter().enumerate() {
            let path = path.index(index);
            let (key, values) = (text(requirement, "key"), meta::items_at(requirement, &["values"]));
            let mut set = BTreeSet::new();
            if values.is_empty() {
                errors.push(FieldError::required(&path.child("values"), ""));
            }
            for (index, value) in values.iter().filter_map(Value::as_str).enumerate() {
                if !set.insert(value) {
                    errors.push(FieldError::duplicate(&path.child("values").index(index), value));
                }
            }
            invalid_each(&path.child("key"), key, names::qualified_name(key), errors);
            if keys.insert(key, set).is_some() {
                errors.push(FieldError::duplicate(&path.child("key"), key));
            }
        }
        if seen.contains(&keys) {
            errors.push(FieldError::duplicate(&path, ""));
        }
        seen.push(keys);
    }
}

fn validate_attached(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let name = meta::str_at(source, &["persistentVolumeName"]);
    let message = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (name, meta::at(source, &["inlineVolumeSpec"])) {
        (None, None) => errors.push(FieldError::required(path, message)),
        (Some(_), Some(_)) => errors.push(FieldError::forbidden(path, message)),
        (Some(""), None) => {
            let message = "must specify non empty persistentVolumeName";
            errors.push(FieldError::required(&path.child("persistentVolumeName"), message));
        }
        (Some(_), None) => {}
        (None, Some(spec)) => volume::validate_inline(spec, &path.child("inlineVolumeSpec"), errors),
    }
    if let Some(name) = name {
        invalid_each(&path.child("persistentVolumeName"), name, names::dns1123_subdomain(name), errors);
    }
}
