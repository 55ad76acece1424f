//! Where volumes are in a container (kubernetes pkg/apis/core/validation: ValidateVolumeMounts, ValidateVolumeDevices).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::shared::{descending_path, has_backsteps};
use crate::strategy::fields::{is_true, require, text};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta,
};

pub(super) fn validate(
    container: &Value,
    volumes: &BTreeMap<&str, &Value>,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    let (mounts, devices) =
        (meta::items_at(container, &["volumeMounts"]), meta::items_at(container, &["volumeDevices"]));
    let privileged = meta::bool_at(container, &["securityContext", "privileged"]) == Some(true);
    let (list, mut targets) = (path.child("volumeMounts"), BTreeSet::new());
    let device_places = places(devices, "devicePath");
    for (index, mount) in mounts.iter().enumerate() {
        let path = list.index(index);
        let (name, target) = (text(mount, "name"), text(mount, "mountPath"));
        require(mount, "name", &path, errors);
        if !volumes.contains_key(name) {
            errors.push(FieldError::not_found(&path.child("name"), name));
        }
        require(mount, "mountPath", &path, errors);
        if !targets.insert(target) {
            errors.push(FieldError::invalid(&path.child("mountPath"), target, "must be unique"));
        }
        if device_places.contains_key(name) {
            errors.push(FieldError::invalid(&path.child("name"), name, "must not already exist in volumeDevices"));
        }
        if device_places.values().any(|place| *place == target) {
            let message = "must not already exist as a path in volumeDevices";
            errors.push(FieldError::invalid(&path.child("mountPath"), target, message));
        }
        let (below, computed) = (text(mount, "subPath"), text(mount, "subPathExpr"));
        if !below.is_empty() && !computed.is_empty() {
            let message = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(&path.child("subPathExpr"), computed, message));
        }
        // Upstream reports the rest at the list.
        descending_path(below, &list.child("subPath"), errors);
        descending_path(computed, &list.child("subPathExpr"), errors);
        validate_propagation(mount, privileged, &list.child("mountPropagation"), errors);
        validate_recursion(mount, &list.child("recursiveReadOnly"), errors);
    }
    validate_devices(devices, &places(mounts, "mountPath"), volumes, &path.child("volumeDevices"), errors);
}

/// Names and paths; of two with the same name the last.
fn places<'a>(list: &'a [Value], path: &str) -> BTreeMap<&'a str, &'a str> {
    list.iter().map(|item| (text(item, "name"), text(item, path))).collect()
}

fn validate_propagation(mount: &Value, privileged: bool, path: &FieldPath, errors: &mut FieldErrors) {
    const MODES: [&str; 3] = ["Bidirectional", "HostToContainer", "None"];
    match meta::str_at(mount, &["mountPropagation"]) {
        Some("Bidirectional") if !privileged => {
            let message = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(path, message));
        }
        Some(mode) if !MODES.contains(&mode) => errors.push(FieldError::not_supported(path, mode, &MODES)),
        _ => {}
    }
}

fn validate_recursion(mount: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    match meta::str_at(mount, &["recursiveReadOnly"]) {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !is_true(mount, "readOnly") {
                errors.push(FieldError::forbidden(path, "may only be specified when readOnly is true"));
            }
            if meta::str_at(mount, &["mountPropagation"]).is_some_and(|mode| mode != "None") {
                let message = "may only be specified when mountPropagation is None or not specified";
                errors.push(FieldError::forbidden(path, message));
            }
        }
        Some(other) => {
            errors.push(FieldError::not_supported(path, other, &["Disabled", "Enabled", "IfPossible"]));
        }
    }
}

/// Volumes that are not mounted, but are devices.
fn validate_devices(
    devices: &[Value],
    mounts: &BTreeMap<&str, &str>,
    volumes: &BTreeMap<&str, &Value>,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    let (mut seen_names, mut seen_paths) = (BTreeSet::new(), BTreeSet::new());
    for (index, device) in devices.iter().enumerate() {
        let path = path.index(index);
        let (name, target) = (text(device, "name"), text(device, "devicePath"));
        let (name_path, target_path) = (path.child("name"), path.child("devicePath"));
        require(device, "name", &path, errors);
        if seen_names.contains(name) {
            errors.push(FieldError::invalid(&name_path, name, "must be unique"));
        }
        match volumes.get(name) {
            None => errors.push(FieldError::not_found(&name_path, name)),
            Some(volume) if ["persistentVolumeClaim", "ephemeral"].iter().all(|f| meta::at(volume, &[f]).is_none()) => {
                let message = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(FieldError::invalid(&name_path, name, message));
            }
            Some(_) => {}
        }
        require(device, "devicePath", &path, errors);
        if seen_paths.contains(target) {
            errors.push(FieldError::invalid(&target_path, target, "must be unique"));
        }
        if has_backsteps(target) {
            errors.push(FieldError::invalid(&target_path, target, "can not contain backsteps ('..')"));
        } else {
            seen_paths.insert(target);
        }
        if mounts.contains_key(name) {
            errors.push(FieldError::invalid(&name_path, name, "must not already exist in volumeMounts"));
        }
        if mounts.values().any(|place| *place == target) {
            let message = "must not already exist as a path in volumeMounts";
            errors.push(FieldError::invalid(&target_path, target, message));
        }
        if !name.is_empty() {
            seen_names.insert(name);
        }
    }
}
