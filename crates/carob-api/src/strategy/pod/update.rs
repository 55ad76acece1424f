//! Which changes of a Pod are allowed (kubernetes pkg/apis/core/validation: ValidatePodUpdate and its siblings).

use serde_json::Value;

use super::resources::amount;
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    lifecycle::copy_field,
    meta,
    pod::value,
};

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
    `spec.tolerations` (only additions to existing tolerations),\
    `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
/// What an in-place resize changes.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    meta::str_at(value, &[field]).unwrap_or_default()
}

pub(super) fn validate_main(new: &Value, old: &Value) -> FieldErrors {
    let path = FieldPath::new("spec");
    let mut errors = FieldErrors::new();
    let (new, old) = (&new["spec"], &old["spec"]);
    for list in ["containers", "initContainers"] {
        if meta::items_at(new, &[list]).len() != meta::items_at(old, &[list]).len() {
            let message = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(&path.child(list), message));
        }
    }
    if !errors.is_empty() {
        return errors;
    }
    validate_deadline(new, old, &path, &mut errors);
    validate_tolerations(new, old, &path.child("tolerations"), &mut errors);
    validate_gates(new, old, &path.child("schedulingGates"), &mut errors);
    let munged = munge(new, old);
    if munged != *old {
        let message = format!("pod updates may not change fields other than {UPDATABLE}\n{}", difference(&munged, old));
        errors.push(FieldError::forbidden(&path, message));
    }
    errors
}

/// The new spec with everything put back that may change.
fn munge(new: &Value, old: &Value) -> Value {
    let mut munged = new.clone();
    for list in ["containers", "initContainers"] {
        let olds = meta::items_at(old, &[list]);
        let news = meta::at_mut(&mut munged, &[list]).and_then(Value::as_array_mut);
        for (new, old) in news.into_iter().flatten().zip(olds) {
            copy_field(new, old, "image");
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        copy_field(&mut munged, old, field);
    }
    let grace = "terminationGracePeriodSeconds";
    let negative = meta::i64_at(old, &[grace]).is_some_and(|seconds| seconds < 0);
    if negative && meta::i64_at(new, &[grace]) == Some(1) {
        copy_field(&mut munged, old, grace);
    }
    if !meta::items_at(old, &["schedulingGates"]).is_empty() {
        munge_gated(&mut munged, old);
    }
    munged
}

/// A Pod that is held back may be narrowed to fewer nodes.
fn munge_gated(munged: &mut Value, old: &Value) {
    let labels =
        |spec: &Value| meta::at(spec, &["nodeSelector"]).and_then(Value::as_object).cloned().unwrap_or_default();
    let (new_labels, old_labels) = (labels(munged), labels(old));
    if old_labels.iter().all(|(key, value)| new_labels.get(key) == Some(value)) {
        copy_field(munged, old, "nodeSelector");
    }
    if meta::at(old, &["affinity", "nodeAffinity"]).is_none() {
        let new_affinity = meta::at(munged, &["affinity"]).cloned().unwrap_or_default();
        let old_affinity = meta::at(old, &["affinity"]).cloned().unwrap_or_default();
        let others_kept = ["podAffinity", "podAntiAffinity"].iter().all(|f| new_affinity.get(f) == old_affinity.get(f));
        if others_kept {
            copy_field(munged, old, "affinity");
        }
    }
}

/// The first differing field of each top-level field, as a hint; upstream prints a structural diff here.
fn difference(new: &Value, old: &Value) -> String {
    let empty = serde_json::Map::new();
    let (new, old) = (new.as_object().unwrap_or(&empty), old.as_object().unwrap_or(&empty));
    let mut lines: Vec<String> = Vec::new();
    for key in old.keys().chain(new.keys().filter(|key| !old.contains_key(*key))) {
        let (was, is) = (old.get(key), new.get(key));
        if was != is {
            let show = |value: Option<&Value>| value.map_or_else(|| "nil".to_owned(), Value::to_string);
            lines.push(format!("-{key}: {}\n+{key}: {}", show(was), show(is)));
        }
    }
    lines.join("\n")
}

fn validate_deadline(new: &Value, old: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let field = "activeDeadlineSeconds";
    let path = path.child(field);
    match (meta::i64_at(new, &[field]), meta::i64_at(old, &[field])) {
        (Some(new), Some(old)) if new > old => {
            errors.push(FieldError::invalid(&path, new, "must be less than or equal to previous value"));
        }
        (None, Some(_)) => {
            errors.push(FieldError::invalid(
                &path,
                Value::Null,
                "must not update from a positive integer to nil value",
            ));
        }
        _ => {}
    }
}

fn validate_tolerations(new: &Value, old: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let same_but_seconds = |a: &Value, b: &Value| {
        ["key", "operator", "value", "effect"].iter().all(|field| text(a, field) == text(b, field))
    };
    let news = meta::items_at(new, &["tolerations"]);
    for old in meta::items_at(old, &["tolerations"]) {
        if !news.iter().any(|new| same_but_seconds(new, old)) {
            let message = "existing toleration can not be modified except its tolerationSeconds";
            errors.push(FieldError::forbidden(path, message));
            return;
        }
    }
}

fn validate_gates(new: &Value, old: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let olds = meta::items_at(old, &["schedulingGates"]);
    for (index, gate) in meta::items_at(new, &["schedulingGates"]).iter().enumerate() {
        let name = text(gate, "name");
        if !olds.iter().any(|old| text(old, "name") == name) {
            let message = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.push(FieldError::forbidden(&path.index(index), message));
        }
    }
}

/// What a write of the status may not touch, beside the spec.
pub(super) fn prepare_status(new: &mut Value, old: &Value) {
    match meta::at(old, &["metadata", "ownerReferences"]) {
        Some(owners) => meta::set(new, &["metadata", "ownerReferences"], owners.clone()),
        None => {
            meta::remove(new, &["metadata", "ownerReferences"]);
        }
    }
    if meta::str_at(new, &["status", "qosClass"]).is_none()
        && let Some(class) = meta::at(old, &["status", "qosClass"])
    {
        meta::set(new, &["status", "qosClass"], class.clone());
    }
}

pub(super) fn validate_status(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let path = FieldPath::new("status");
    let class = |pod: &Value| meta::str_at(pod, &["status", "qosClass"]).map(str::to_owned);
    if class(new) != class(old) && class(old).is_some() {
        let value = class(new).unwrap_or_default();
        errors.push(FieldError::invalid(&path.child("qosClass"), value, "field is immutable"));
    }
    let policy = meta::str_at(new, &["spec", "restartPolicy"]).unwrap_or("Always");
    if policy != "Always" {
        validate_transitions(new, old, policy, &path, &mut errors);
    }
    errors
}

/// A container that has ended for good cannot be said to run again.
fn validate_transitions(new: &Value, old: &Value, policy: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let statuses = |pod: &Value| meta::items_at(pod, &["status", "containerStatuses"]).to_vec();
    let news = statuses(new);
    let has_own_policy = |name: &str| {
        let containers = meta::items_at(new, &["spec", "containers"]);
        containers.iter().any(|c| text(c, "name") == name && !text(c, "restartPolicy").is_empty())
    };
    for old in statuses(old) {
        let Some(terminated) = meta::at(&old, &["state", "terminated"]) else { continue };
        let failed = meta::i64_at(terminated, &["exitCode"]).unwrap_or_default() != 0;
        let name = text(&old, "name");
        if (policy == "OnFailure" && failed) || has_own_policy(name) {
            continue;
        }
        for (index, new) in news.iter().enumerate().filter(|(_, new)| text(new, "name") == name) {
            if meta::at(new, &["state", "terminated"]).is_none() {
                let path = path.child("containerStatuses").index(index).child("state");
                errors.push(FieldError::forbidden(&path, "may not be transitioned to non-terminated state"));
            }
        }
    }
}

pub(super) fn validate_ephemeral_containers(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let path = FieldPath::new("spec").child("ephemeralContainers");
    let list = |pod: &Value| meta::items_at(pod, &["spec", "ephemeralContainers"]).to_vec();
    let news = list(new);
    for old in list(old) {
        let name = text(&old, "name");
        match news.iter().find(|new| text(new, "name") == name) {
            None => {
                let message = format!("existing ephemeral containers {name:?} may not be removed\n");
                errors.push(FieldError::forbidden(&path, message));
            }
            Some(new) if *new != old => {
                let message = format!("existing ephemeral containers {name:?} may not be changed\n");
                errors.push(FieldError::forbidden(&path, message));
            }
            Some(_) => {}
        }
    }
    errors
}

/// Takes the resources of a resize request over: the Pod's own, and container by container.
pub(super) fn copy_resources(pod: &mut Value, request: &Value) {
    if let (Some(own), Some(given)) = (pod.get_mut("spec"), request.get("spec")) {
        copy_field(own, given, "resources");
    }
    for list in ["containers", "initContainers"] {
        let given = meta::items_at(request, &["spec", list]).to_vec();
        let own = meta::at_mut(pod, &["spec", list]).and_then(Value::as_array_mut);
        for container in own.into_iter().flatten() {
            let name = text(container, "name").to_owned();
            if let Some(given) = given.iter().find(|given| text(given, "name") == name) {
                copy_field(container, given, "resources");
                copy_field(container, given, "resizePolicy");
            }
        }
    }
}

pub(super) fn validate_resize(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let path = FieldPath::new("spec");
    let (was, is) = (value::qos(old).as_str(), value::qos(new).as_str());
    if was != is {
        errors.push(FieldError::invalid(&path, is, "Pod QOS Class may not change as a result of resizing"));
    }
    validate_resized_whole(new, old, &path, &mut errors);
    for list in ["containers", "initContainers"] {
        let olds = meta::items_at(old, &["spec", list]);
        for (index, (new, old)) in meta::items_at(new, &["spec", list]).iter().zip(olds).enumerate() {
            let path = path.child(list).index(index).child("resources");
            let sidecar = list == "containers" || text(new, "restartPolicy") == "Always";
            if !sidecar && new.get("resources") != old.get("resources") {
                let message = "resources for non-sidecar init containers are immutable";
                errors.push(FieldError::forbidden(&path, message));
                continue;
            }
            validate_resized(&new["resources"], &old["resources"], &path, &mut errors);
        }
    }
    errors
}

/// The Pod's own resources (`validatePodLevelResourcesResize`).
fn validate_resized_whole(new: &Value, old: &Value, spec: &FieldPath, errors: &mut FieldErrors) {
    let path = spec.child("resources");
    let of = |pod: &Value| meta::at(pod, &["spec", "resources"]).cloned().unwrap_or_default();
    let (new, old) = (of(new), of(old));
    if new.is_null() && !old.is_null() {
        errors.push(FieldError::forbidden(&path, "pod-level resources cannot be removed"));
        return;
    }
    for (field, removed) in [
        ("requests", "pod-level resource requests cannot be removed"),
        ("limits", "pod-level resource limits cannot be removed"),
    ] {
        let names = |resources: &Value| -> Vec<String> {
            resources
                .get(field)
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone())
                .collect()
        };
        if names(&old).iter().any(|name| !names(&new).contains(name)) {
            errors.push(FieldError::forbidden(&path.child(field), removed));
        }
        if unresizable(&new, field) != unresizable(&old, field) {
            errors.push(FieldError::forbidden(spec, "only cpu and memory resources are mutable at pod-level"));
        }
    }
}

/// Those of the amounts that no resize may change.
fn unresizable(resources: &Value, field: &str) -> Vec<(String, Value)> {
    let list = meta::at(resources, &[field]).and_then(Value::as_object).into_iter().flatten();
    let fixed = list.filter(|(name, _)| !RESIZABLE.contains(&name.as_str()));
    fixed.map(|(name, amount)| (name.clone(), amount.clone())).collect()
}

fn validate_resized(new: &Value, old: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for (field, removed) in
        [("limits", "resource limits cannot be removed"), ("requests", "resource requests cannot be removed")]
    {
        for name in RESIZABLE {
            if amount(old.get(field), name).is_some() && amount(new.get(field), name).is_none() {
                errors.push(FieldError::forbidden(&path.child(field), removed));
            }
        }
        if unresizable(new, field) != unresizable(old, field) {
            errors.push(FieldError::forbidden(path, "only cpu and memory resources are mutable"));
        }
    }
}
