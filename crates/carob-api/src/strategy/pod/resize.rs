//! In-place changes of resources (kubernetes pkg/apis/core/validation: ValidatePodResize).

use serde_json::{Value, json};

use super::annotations;
use crate::strategy::fields::text;
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    lifecycle::copy_field,
    meta,
    pod::value,
};

/// What a resize changes.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];
const LISTS: [&str; 2] = ["limits", "requests"];

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

pub(super) fn validate(new: &Value, old: &Value) -> FieldErrors {
    let refuse = |message: &str| vec![FieldError::forbidden(&FieldPath::new(""), message)];
    if annotations::is_mirror(old) {
        return refuse("static pods cannot be resized");
    }
    if meta::str_at(old, &["spec", "os", "name"]) == Some("windows") {
        return refuse("windows pods cannot be resized");
    }
    let mut errors = FieldErrors::new();
    let path = FieldPath::new("spec");
    let (was, is) = (value::qos(old).as_str(), value::qos(new).as_str());
    if was != is {
        errors.push(FieldError::invalid(&path, is, "Pod QOS Class may not change as a result of resizing"));
    }
    let statuses = meta::items_at(old, &["status", "containerStatuses"]);
    let running = statuses.iter().find(|status| meta::at(status, &["state", "running"]).is_some());
    if running.is_some_and(|status| meta::at(status, &["resources"]).is_none()) {
        errors.push(FieldError::forbidden(&path, "Pod running on node without support for resize"));
    }
    validate_whole(new, old, &path, &mut errors);
    for (list, is_init) in [("initContainers", true), ("containers", false)] {
        let olds = meta::items_at(old, &["spec", list]);
        for (index, (new, old)) in meta::items_at(new, &["spec", list]).iter().zip(olds).enumerate() {
            let path = path.child(list).index(index);
            for list in LISTS {
                if is_removed(&new["resources"], &old["resources"], list) {
                    let message = format!("resource {list} cannot be removed");
                    errors.push(FieldError::forbidden(&path.child("resources").child(list), message));
                }
            }
            if is_init {
                validate_init(new, old, &path, &mut errors);
            } else if fixed(new) != fixed(old) {
                let message = "only cpu and memory resources are mutable";
                errors.push(FieldError::forbidden(&FieldPath::new("spec"), message));
            }
        }
    }
    errors
}

fn validate_init(new: &Value, old: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if fixed(new) != fixed(old) {
        let message = "only cpu and memory resources for init or sidecar containers are mutable";
        errors.push(FieldError::forbidden(path, message));
    }
    if new == old || text(new, "restartPolicy") == "Always" {
        return;
    }
    let policies = meta::items_at(new, &["resizePolicy"]).iter();
    for _ in policies.filter(|policy| text(policy, "restartPolicy") == "RestartContainer") {
        let message = "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
        errors.push(FieldError::forbidden(path, message));
    }
}

/// A container without what a resize may change.
fn fixed(container: &Value) -> Value {
    let mut fixed = container.clone();
    let resources = container.get("resources").cloned().unwrap_or_default();
    meta::set(&mut fixed, &["resources"], json!(LISTS.map(|list| unresizable(&resources, list))));
    fixed
}

/// Those of the amounts that no resize may change.
fn unresizable(resources: &Value, list: &str) -> Vec<(String, Value)> {
    let list = meta::at(resources, &[list]).and_then(Value::as_object).into_iter().flatten();
    let fixed = list.filter(|(name, _)| !RESIZABLE.contains(&name.as_str()));
    fixed.map(|(name, amount)| (name.clone(), amount.clone())).collect()
}

fn is_removed(new: &Value, old: &Value, list: &str) -> bool {
    let is_kept = |name: &str| meta::at(new, &[list, name]).is_some();
    meta::at(old, &[list]).and_then(Value::as_object).into_iter().flatten().any(|(name, _)| !is_kept(name))
}

/// The Pod's own resources (`validatePodLevelResourcesResize`).
fn validate_whole(new: &Value, old: &Value, spec: &FieldPath, errors: &mut FieldErrors) {
    let path = spec.child("resources");
    let of = |pod: &Value| meta::at(pod, &["spec", "resources"]).cloned().unwrap_or_default();
    let (new, old) = (of(new), of(old));
    if new.is_null() && !old.is_null() {
        errors.push(FieldError::forbidden(&path, "pod-level resources cannot be removed"));
        return;
    }
    for list in ["requests", "limits"] {
        if is_removed(&new, &old, list) {
            let message = format!("pod-level resource {list} cannot be removed");
            errors.push(FieldError::forbidden(&path.child(list), message));
        }
    }
    if LISTS.iter().any(|list| unresizable(&new, list) != unresizable(&old, list)) {
        errors.push(FieldError::forbidden(spec, "only cpu and memory resources are mutable at pod-level"));
    }
}
