//! What a PersistentVolume is (`ValidatePersistentVolumeSpec` in `pkg/apis/core/validation`).

use serde_json::{Map, Value};

use super::text;
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
    pod::value::quantity,
    strategy::{
        claim,
        csi::driver_name_errors,
        pod::{validate_host_path, validate_nfs, validate_node_selector},
    },
};

const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];

/// Secrets that a CSI driver may be given. That of stages is not looked at, as upstream does not.
const CSI_SECRETS: [&str; 4] =
    ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"];

/// The spec of a PersistentVolume.
pub(super) fn validate(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    claim::validate_access_modes(spec, "", path, errors);
    validate_capacity(spec, &path.child("capacity"), errors);
    if let Some(affinity) = meta::at(spec, &["nodeAffinity"]) {
        let path = path.child("nodeAffinity").child("required");
        match meta::at(affinity, &["required"]) {
            Some(selector) => validate_node_selector(selector, &path, errors),
            None => errors.push(FieldError::required(&path, "must specify required node constraints")),
        }
    }
    validate_sources(spec, path, errors);
    let root = |path: &str| path.split('/').all(|part| part.is_empty() || part == ".");
    let host_path = meta::str_at(spec, &["hostPath", "path"]);
    let recycled = text(spec, "persistentVolumeReclaimPolicy") == "Recycle";
    if recycled && host_path.is_some_and(|path| !path.is_empty() && root(path)) {
        let path = path.child("persistentVolumeReclaimPolicy");
        errors.push(FieldError::forbidden(&path, "may not be 'recycle' for a hostPath mount of '/'"));
    }
    validate_class_and_mode(spec, path, errors);
    validate_attributes_class(spec, path, errors);
}

/// The spec of a volume that no PersistentVolume stands for, in a VolumeAttachment.
pub(super) fn validate_inline(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for field in ["claimRef", "capacity", "nodeAffinity", "storageClassName"] {
        let is_set = |value: &Value| match value {
            Value::Object(map) => field != "capacity" || !map.is_empty(),
            Value::String(text) => !text.is_empty(),
            _ => true,
        };
        if meta::at(spec, &[field]).is_some_and(is_set) {
            errors.push(FieldError::forbidden(
                &path.child(field),
                "may not be specified in the context of inline volumes",
            ));
        }
    }
    if meta::at(spec, &["csi"]).is_none() {
        errors.push(FieldError::required(&path.child("csi"), "has to be specified in the context of inline volumes"));
    }
    claim::validate_access_modes(spec, "", path, errors);
    for (field, only, message) in [
        ("persistentVolumeReclaimPolicy", "Retain", "may only be Retain in the context of inline volumes"),
        (
            "volumeMode",
            "Filesystem",
            "may not specify volumeMode other than Filesystem in the context of inline volumes",
        ),
    ] {
        if !["", only].contains(&text(spec, field)) {
            errors.push(FieldError::forbidden(&path.child(field), message));
        }
    }
    validate_sources(spec, path, errors);
}

fn validate_capacity(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let none = Map::new();
    let given = meta::at(spec, &["capacity"]).and_then(Value::as_object);
    let capacity = given.unwrap_or(&none);
    if capacity.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    if !capacity.contains_key("storage") || capacity.len() > 1 {
        let value = given.cloned().map_or(Value::Null, Value::Object);
        errors.push(FieldError::not_supported(path, value, &["storage"]));
    }
    for (name, size) in capacity {
        let path = path.key(name);
        if quantity(size).is_negative() {
            errors.push(FieldError::invalid(&path, quantity(size).value(), "must be a valid resource quantity"));
        }
        if quantity(size).is_zero() || quantity(size).is_negative() {
            errors.push(FieldError::invalid(&path, size.clone(), "must be greater than zero"));
        }
    }
}

/// Exactly one source. What carob does not mount is stored as it is: upstream's drivers of it may act on it.
fn validate_sources(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let is_source = |field: &str| !super::BESIDE_SOURCE.contains(&field) && field != "volumeAttributesClassName";
    let mut sources = spec.as_object().into_iter().flatten().filter(|(field, _)| is_source(field));
    match sources.next() {
        Some((field, source)) => validate_source(field, source, spec, path, errors),
        None => errors.push(FieldError::required(path, "must specify a volume type")),
    }
    for (field, _) in sources {
        errors.push(FieldError::forbidden(&path.child(field), "may not specify more than 1 volume type"));
    }
}

fn validate_source(field: &str, source: &Value, spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let source_path = path.child(field);
    let require = |name: &str, errors: &mut FieldErrors| {
        if text(source, name).is_empty() {
            errors.push(FieldError::required(&source_path.child(name), ""));
        }
    };
    match field {
        "hostPath" => validate_host_path(source, &source_path, errors),
        "local" => {
            require("path", errors);
            if text(source, "path").split('/').any(|part| part == "..") {
                let message = "must not contain '..'";
                errors.push(FieldError::invalid(&source_path.child("path"), text(source, "path"), message));
            }
            if meta::at(spec, &["nodeAffinity"]).is_none() {
                let message = "Local volume requires node affinity";
                errors.push(FieldError::required(&path.child("nodeAffinity"), message));
            }
        }
        "nfs" => validate_nfs(source, &source_path, errors),
        "csi" => {
            driver_name_errors(text(source, "driver"), &source_path.child("driver"), errors);
            require("volumeHandle", errors);
            for secret in CSI_SECRETS {
                if let Some(reference) = meta::at(source, &[secret]) {
                    validate_secret(reference, &source_path.child(secret), errors);
                }
            }
        }
        _ => {}
    }
}

fn validate_secret(reference: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for (field, check) in
        [("name", names::dns1123_subdomain as fn(&str) -> Vec<String>), ("namespace", names::dns1123_label)]
    {
        let value = text(reference, field);
        if value.is_empty() {
            errors.push(FieldError::required(&path.child(field), ""));
        } else {
            invalid_each(&path.child(field), value, check(value), errors);
        }
    }
}

fn validate_class_and_mode(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        invalid_each(&path.child("storageClassName"), class, names::dns1123_subdomain(class), errors);
    }
    if meta::str_at(spec, &["volumeMode"]) == Some("") {
        errors.push(FieldError::not_supported(&path.child("volumeMode"), "", &VOLUME_MODES));
    }
}

fn validate_attributes_class(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let Some(class) = meta::str_at(spec, &["volumeAttributesClassName"]) else { return };
    let class_path = path.child("volumeAttributesClassName");
    if class.is_empty() {
        errors.push(FieldError::required(&class_path, "an empty string is disallowed"));
    } else {
        invalid_each(&class_path, class, names::dns1123_subdomain(class), errors);
    }
    if meta::at(spec, &["csi"]).is_none() {
        let message = "has to be specified when using volumeAttributesClassName";
        errors.push(FieldError::required(&path.child("csi"), message));
    }
}
