//! Validation of metadata (apimachinery pkg/api/validation/objectmeta.go).

use serde_json::Value;

use crate::{
    FieldError, ResourceDef, Status,
    field::{FieldErrors, FieldPath, invalid_each},
    meta, names,
    schema::Schema,
    strategy::NameRule,
};

/// Size of all annotations of an object, bytes (apimachinery pkg/api/validation).
const ANNOTATIONS_SIZE_MAX: usize = 256 * 1024;
const IMMUTABLE: &str = "field is immutable";

/// The object's namespace must be the request's, or absent; it is set then.
pub fn check_namespace(def: &ResourceDef, obj: &mut Value, namespace: &str) -> Result<(), Status> {
    if !def.namespaced {
        meta::remove(obj, &["metadata", "namespace"]);
        return Ok(());
    }
    match meta::namespace(obj) {
        "" => {
            meta::set(obj, &["metadata", "namespace"], namespace);
            Ok(())
        }
        given if given == namespace => Ok(()),
        given => Err(Status::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request: \
             {given:?} and {namespace:?}"
        ))),
    }
}

/// Fields that the server owns are the stored object's, whatever an update says.
pub(super) fn keep_system_fields(new: &mut Value, old: &Value) {
    let kept = ["generation", "creationTimestamp"];
    let kept_once_set = ["deletionTimestamp", "deletionGracePeriodSeconds"];
    let kept_unless_given = ["uid", "name", "namespace"];
    let Some(old) = old.get("metadata").and_then(Value::as_object) else { return };
    let metadata = meta::map_mut(new, &["metadata"]);
    metadata.remove("selfLink");
    for field in kept {
        match old.get(field) {
            Some(value) => {
                metadata.insert(field.to_owned(), value.clone());
            }
            None => {
                metadata.remove(field);
            }
        }
    }
    for field in kept_once_set {
        if let Some(value) = old.get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    for field in kept_unless_given {
        if let Some(value) = old.get(field)
            && !metadata.contains_key(field)
        {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
}

pub(super) fn validate(def: &ResourceDef, obj: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let path = FieldPath::new("metadata");
    let rule = def.strategy().rules().name;
    let base = meta::generate_name(obj);
    if !base.is_empty() {
        for message in rule.check(base, true) {
            errors.push(FieldError::invalid(&path.child("generateName"), base, message));
        }
    }
    match meta::name(obj) {
        "" => errors.push(FieldError::required(&path.child("name"), "name or generateName is required")),
        name => {
            for message in rule.check(name, false) {
                errors.push(FieldError::invalid(&path.child("name"), name, message));
            }
        }
    }
    validate_namespace(def, obj, &path, &mut errors);
    validate_changeable(obj, &path, &mut errors);
    validate_finalizers(def, obj, None, &path, &mut errors);
    errors
}

fn validate_namespace(def: &ResourceDef, obj: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let path = path.child("namespace");
    match (def.namespaced, meta::namespace(obj)) {
        (true, "") => errors.push(FieldError::required(&path, "")),
        (true, namespace) => {
            for message in NameRule::Label.check(namespace, false) {
                errors.push(FieldError::invalid(&path, namespace, message));
            }
        }
        (false, "") => {}
        (false, _) => errors.push(FieldError::forbidden(&path, "not allowed on this type")),
    }
}

/// Labels, annotations, owners and finalizers of an object that came from elsewhere than a request.
pub fn validate_changeable_metadata(obj: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    validate_changeable(obj, &FieldPath::new("metadata"), &mut errors);
    errors
}

/// Errors of the metadata of an object that another one embeds; it needs no name (apiextensions-apiserver
/// pkg/apiserver/schema/objectmeta/validation.go). `path` is that of the metadata.
pub(crate) fn validate_embedded(obj: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let base = meta::generate_name(obj);
    if !base.is_empty() {
        invalid_each(&path.child("generateName"), base, NameRule::PathSegment.check(base, true), errors);
    }
    let name = meta::name(obj);
    if !name.is_empty() {
        invalid_each(&path.child("name"), name, NameRule::PathSegment.check(name, false), errors);
    }
    let namespace = meta::namespace(obj);
    if !namespace.is_empty() {
        invalid_each(&path.child("namespace"), namespace, NameRule::Label.check(namespace, false), errors);
    }
    validate_changeable(obj, path, errors);
}

/// What is checked at create and at update.
fn validate_changeable(obj: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    validate_labels(meta::labels(obj), &path.child("labels"), errors);
    validate_annotations(obj, &path.child("annotations"), errors);
    validate_owners(meta::owner_references(obj), &path.child("ownerReferences"), errors);
    for finalizer in meta::finalizers(obj) {
        invalid_each(&path.child("finalizers"), finalizer, names::qualified_name(finalizer), errors);
    }
}

/// Finalizers of built-in kinds without a domain are upstream's own (core's `ValidateObjectMeta`); groups whose
/// kinds are checked by apimachinery's are not among them. What `old` has may stay, so that one after the other can go.
fn validate_finalizers(
    def: &ResourceDef,
    obj: &Value,
    old: Option<&Value>,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    const STANDARD: [&str; 3] = ["foregroundDeletion", "kubernetes", "orphan"];
    const GENERIC: [&str; 4] =
        ["admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io", "coordination.k8s.io"];
    if GENERIC.contains(&def.group()) || !matches!(def.hub_schema(), Some(Schema::Table(_))) {
        return;
    }
    let is_kept = |finalizer| old.is_some_and(|old| meta::finalizers(old).any(|known| known == finalizer));
    for (index, finalizer) in meta::finalizers(obj).enumerate() {
        if !finalizer.contains('/') && !STANDARD.contains(&finalizer) && !is_kept(finalizer) {
            let message = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(&path.child("finalizers").index(index), finalizer, message));
        }
    }
}

/// Label keys and values of any map of labels.
pub(crate) fn validate_labels(
    labels: Option<&serde_json::Map<String, Value>>,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    for (key, value) in labels.into_iter().flatten() {
        for message in names::qualified_name(key) {
            errors.push(FieldError::invalid(path, key.as_str(), message));
        }
        let value = value.as_str().unwrap_or_default();
        for message in names::label_value(value) {
            errors.push(FieldError::invalid(path, value, message));
        }
    }
}

pub(crate) fn validate_annotations(obj: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let annotations = meta::annotations(obj);
    for key in annotations.into_iter().flatten().map(|(key, _)| key) {
        for message in names::qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(path, key.as_str(), message));
        }
    }
    validate_size(annotations, path, errors);
}

/// What Pods' authors tell a signer (`ValidateUserAnnotations`).
pub(crate) fn validate_user_annotations(
    annotations: Option<&serde_json::Map<String, Value>>,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    for key in annotations.into_iter().flatten().map(|(key, _)| key.to_lowercase()) {
        if key.is_empty() {
            errors.push(FieldError::required(path, ""));
        } else {
            invalid_each(path, key.as_str(), names::domain_prefixed_key(&key), errors);
        }
    }
    validate_size(annotations, path, errors);
}

fn validate_size(annotations: Option<&serde_json::Map<String, Value>>, path: &FieldPath, errors: &mut FieldErrors) {
    let sizes = annotations.into_iter().flatten().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len));
    if sizes.sum::<usize>() > ANNOTATIONS_SIZE_MAX {
        errors.push(FieldError::too_long(path, ANNOTATIONS_SIZE_MAX));
    }
}

/// Upstream reports what is wrong with an owner at the list.
fn validate_owners(owners: &[Value], path: &FieldPath, errors: &mut FieldErrors) {
    let mut controller: Option<String> = None;
    for owner in owners {
        let text = |field| meta::str_at(owner, &[field]).unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let version = match api_version.split('/').collect::<Vec<_>>()[..] {
            [version] | [_, version] => version,
            _ => "",
        };
        if version.is_empty() {
            errors.push(FieldError::invalid(&path.child("apiVersion"), api_version, "version must not be empty"));
        }
        for field in ["kind", "name", "uid"].into_iter().filter(|field| text(field).is_empty()) {
            errors.push(FieldError::invalid(&path.child(field), "", "must not be empty"));
        }
        if (api_version, kind) == ("v1", "Event") {
            let message = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(FieldError::invalid(path, owner.clone(), message));
        }
        if meta::bool_at(owner, &["controller"]) != Some(true) {
            continue;
        }
        let name = format!("{kind}/{}", text("name"));
        if let Some(first) = &controller {
            let message = format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
            );
            errors.push(FieldError::invalid(path, owners.to_vec(), message));
        } else {
            controller = Some(name);
        }
    }
}

pub(super) fn validate_update(def: &ResourceDef, new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let path = FieldPath::new("metadata");
    for field in ["name", "namespace", "uid", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let (new, old) = (meta::at(new, &["metadata", field]), meta::at(old, &["metadata", field]));
        let applies = def.namespaced || field != "namespace";
        if applies && new != old {
            let value = new.cloned().unwrap_or(Value::Null);
            errors.push(FieldError::invalid(&path.child(field), value, IMMUTABLE));
        }
    }
    if meta::is_being_deleted(old) {
        let added: Vec<String> = meta::finalizers(new)
            .filter(|finalizer| !meta::finalizers(old).any(|known| known == *finalizer))
            .map(|finalizer| format!("{finalizer:?}"))
            .collect();
        if !added.is_empty() {
            let message = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            errors.push(FieldError::forbidden(&path.child("finalizers"), message));
        }
    }
    validate_changeable(new, &path, &mut errors);
    validate_finalizers(def, new, Some(old), &path, &mut errors);
    errors
}
