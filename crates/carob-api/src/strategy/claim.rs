//! What a claim of storage asks for, of PersistentVolumeClaims and in templates of them (kubernetes pkg/apis/core/validation:
//! ValidatePersistentVolumeClaimSpec, ValidatePersistentVolumeClaimTemplate).

use serde_json::{Value, json};

use super::fields::text;
use super::{pod::validate_label_selector, resource_names};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    lifecycle, meta, names,
    pod::value::quantity,
};

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const ALONE: &str = "ReadWriteOncePod";
/// What of the metadata a template of a claim may have.
const TEMPLATE_METADATA: [&str; 2] = ["annotations", "labels"];

/// A claim that is made for one volume of a Pod.
pub(super) fn validate_template(template: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let metadata = path.child("metadata");
    lifecycle::validate_annotations(template, &metadata.child("annotations"), errors);
    lifecycle::validate_labels(meta::labels(template), &metadata.child("labels"), errors);
    for field in template.get("metadata").and_then(Value::as_object).into_iter().flatten().map(|(field, _)| field) {
        if !TEMPLATE_METADATA.contains(&field.as_str()) {
            errors.push(FieldError::forbidden(&metadata.child(field), "cannot be set"));
        }
    }
    validate_spec(&template["spec"], &path.child("spec"), errors);
}

pub(super) fn validate_spec(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    validate_access_modes(spec, "at least 1 access mode is required", path, errors);
    if let Some(selector) = meta::at(spec, &["selector"]) {
        validate_label_selector(selector, &path.child("selector"), errors);
    }
    let storage_path = path.child("resources").key("storage");
    match meta::at(spec, &["resources", "requests", "storage"]) {
        None => errors.push(FieldError::required(&storage_path, "")),
        Some(given) if quantity(given).is_negative() || quantity(given).is_zero() => {
            errors.push(FieldError::invalid(&storage_path, given.clone(), "must be greater than zero"));
        }
        Some(given) => resource_names::amount_errors("storage", given, &storage_path, errors),
    }
    for field in ["storageClassName", "volumeAttributesClassName"] {
        let class = text(spec, field);
        if !class.is_empty() {
            invalid_each(&path.child(field), class, names::dns1123_subdomain(class), errors);
        }
    }
    validate_sources(spec, path, errors);
}

/// How a volume can be used at once, of volumes and claims; `none` is what to say if it says nothing.
pub(super) fn validate_access_modes(spec: &Value, none: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let modes = || meta::items_at(spec, &["accessModes"]).iter().filter_map(Value::as_str);
    let path = path.child("accessModes");
    if modes().next().is_none() {
        errors.push(FieldError::required(&path, none));
    }
    for mode in modes().filter(|mode| !ACCESS_MODES.contains(mode)) {
        errors.push(FieldError::not_supported(&path, mode, &ACCESS_MODES));
    }
    if modes().any(|mode| mode == ALONE) && modes().any(|mode| mode != ALONE && ACCESS_MODES.contains(&mode)) {
        let message = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(&path, message));
    }
}

/// What a volume begins with (`validateDataSource` and `validateDataSourceRef`).
fn validate_sources(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let [source, reference] = ["dataSource", "dataSourceRef"].map(|field| meta::at(spec, &[field]));
    for (field, source) in [("dataSource", source), ("dataSourceRef", reference)] {
        let Some(source) = source else { continue };
        let path = path.child(field);
        for part in ["name", "kind"] {
            if text(source, part).is_empty() {
                errors.push(FieldError::required(&path.child(part), ""));
            }
        }
        let (group, kind) = (text(source, "apiGroup"), text(source, "kind"));
        if group.is_empty() && kind != "PersistentVolumeClaim" {
            let message = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.push(FieldError::invalid(&path, kind, message));
        }
        if !group.is_empty() {
            invalid_each(&path.child("apiGroup"), group, names::dns1123_subdomain(group), errors);
        }
        let namespace = text(source, "namespace");
        if !namespace.is_empty() {
            invalid_each(&path.child("namespace"), namespace, names::dns1123_label(namespace), errors);
        }
    }
    let (Some(source), Some(reference)) = (source, reference) else { return };
    // Upstream shows a path as an empty object.
    if !text(reference, "namespace").is_empty() {
        let message = "may not be specified when dataSourceRef.namespace is specified";
        errors.push(FieldError::invalid(path, json!({}), message));
    } else if ["apiGroup", "kind", "name"].iter().any(|part| source.get(part) != reference.get(part)) {
        errors.push(FieldError::invalid(path, json!({}), "must match dataSourceRef"));
    }
}
