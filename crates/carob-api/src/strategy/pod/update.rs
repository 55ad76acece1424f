//! Which changes of a Pod are allowed (kubernetes pkg/apis/core/validation: ValidatePodUpdate and its siblings).

use serde_json::Value;

use super::{affinity, annotations, container::validate_image_of_pod};
use crate::strategy::fields::{require, text};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    lifecycle::copy_field,
    meta, schema,
};

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
    `spec.tolerations` (only additions to existing tolerations),\
    `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn validate_main(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    annotations::validate_changes(new, old, &FieldPath::new("metadata").child("annotations"), &mut errors);
    validate_spec(&new["spec"], &old["spec"], &FieldPath::new("spec"), &mut errors);
    errors
}

/// In upstream's order: some mistakes end the search for others.
fn validate_spec(new: &Value, old: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for list in ["containers", "initContainers"] {
        let (path, containers) = (path.child(list), meta::items_at(new, &[list]));
        if containers.len() != meta::items_at(old, &[list]).len() {
            errors.push(FieldError::forbidden(&path, "pod updates may not add or remove containers"));
            return;
        }
        for (index, container) in containers.iter().enumerate() {
            require(container, "image", &path.index(index), errors);
            validate_image_of_pod(container, &path.index(index), errors);
        }
    }
    if !validate_deadline(new, old, path, errors) {
        return;
    }
    validate_tolerations(new, old, &path.child("tolerations"), errors);
    validate_gates(new, old, &path.child("schedulingGates"), errors);
    let mut munged = munge(new, old);
    if !meta::items_at(old, &["schedulingGates"]).is_empty() {
        validate_gated(&mut munged, old, path, errors);
    }
    if !is_same_spec(&munged, old) {
        let message = format!("pod updates may not change fields other than {UPDATABLE}\n{}", difference(&munged, old));
        errors.push(FieldError::forbidden(path, message));
    }
}

fn is_same_spec(new: &Value, old: &Value) -> bool {
    schema::builtin().get("core.v1.PodSpec").is_some_and(|ty| schema::same(ty, new, old))
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
    munged
}

/// A Pod that is held back may be narrowed to fewer nodes. What may change is put back.
fn validate_gated(munged: &mut Value, old: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let labels =
        |spec: &Value| meta::at(spec, &["nodeSelector"]).and_then(Value::as_object).cloned().unwrap_or_default();
    let (new_labels, old_labels) = (labels(munged), labels(old));
    if old_labels.iter().any(|(key, value)| new_labels.get(key) != Some(value)) {
        let message = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.push(FieldError::invalid(&path.child("nodeSelector"), new_labels, message));
    }
    copy_field(munged, old, "nodeSelector");
    let affinity = |spec: &Value| meta::at(spec, &["affinity", "nodeAffinity"]).cloned();
    let (new_affinity, old_affinity) = (affinity(munged), affinity(old));
    if new_affinity == old_affinity {
        return;
    }
    validate_node_affinity(new_affinity.as_ref(), old_affinity.as_ref(), path, errors);
    if let Some(old_affinity) = old_affinity {
        meta::set(munged, &["affinity", "nodeAffinity"], old_affinity);
    } else {
        meta::remove(munged, &["affinity", "nodeAffinity"]);
        let rest = meta::at(munged, &["affinity"]).and_then(Value::as_object);
        if meta::at(old, &["affinity"]).is_none() && rest.is_some_and(serde_json::Map::is_empty) {
            meta::remove(munged, &["affinity"]);
        }
    }
}

/// Terms, one of which a node must fit, may be neither more nor fewer; each may get more requirements after those it has.
fn validate_node_affinity(new: Option<&Value>, old: Option<&Value>, path: &FieldPath, errors: &mut FieldErrors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let terms = |affinity: Option<&Value>| {
        affinity.map(|affinity| meta::items_at(affinity, &[REQUIRED, "nodeSelectorTerms"]).to_vec()).unwrap_or_default()
    };
    let (news, olds) = (terms(new), terms(old));
    let path = path.child("affinity").child("nodeAffinity").child(REQUIRED).child("nodeSelectorTerms");
    if !olds.is_empty() && olds.len() != news.len() {
        let message = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.push(FieldError::invalid(&path, news, message));
        return;
    }
    let only_adds = |new: &Value, old: &Value| {
        let lists = ["matchExpressions", "matchFields"]
            .map(|list| (meta::items_at(new, &[list]), meta::items_at(old, &[list])));
        // A term without requirements fits no node, and must not begin to.
        let was_empty = lists.iter().all(|(_, old)| old.is_empty());
        lists.into_iter().all(|(new, old)| if was_empty { new.is_empty() } else { new.starts_with(old) })
    };
    for (index, (new, old)) in news.iter().zip(&olds).enumerate() {
        if !only_adds(new, old) {
            let message = "only additions are allowed (no mutations or deletions)";
            errors.push(FieldError::invalid(&path.index(index), new.clone(), message));
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

/// Answers whether upstream looks further.
fn validate_deadline(new: &Value, old: &Value, path: &FieldPath, errors: &mut FieldErrors) -> bool {
    let field = "activeDeadlineSeconds";
    let path = path.child(field);
    let message = match (meta::i64_at(new, &[field]), meta::i64_at(old, &[field])) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => "must be between 0 and 2147483647, inclusive",
        (Some(new), Some(old)) if new > old => "must be less than or equal to previous value",
        (None, Some(_)) => {
            let message = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(&path, Value::Null, message));
            return true;
        }
        _ => return true,
    };
    errors.push(FieldError::invalid(&path, new[field].clone(), message));
    false
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
    for (index, toleration) in news.iter().enumerate() {
        affinity::validate_toleration(toleration, &path.index(index), errors);
    }
}

fn validate_gates(new: &Value, old: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let olds = meta::items_at(old, &["schedulingGates"]);
    for (index, gate) in meta::items_at(new, &["schedulingGates"]).iter().enumerate() {
        let name = text(gate, "name");
        if !olds.iter().any(|old| text(old, "name") == name) {
            let message = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.push(FieldError::forbidden(&path.index(index).child("name"), message));
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
    annotations::validate_changes(new, old, &FieldPath::new("metadata").child("annotations"), &mut errors);
    if annotations::is_mirror(old) {
        let message = "static pods do not support ephemeral containers";
        return vec![FieldError::forbidden(&FieldPath::new(""), message)];
    }
    let path = FieldPath::new("spec").child("ephemeralContainers");
    let list = |pod: &Value| meta::items_at(pod, &["spec", "ephemeralContainers"]).to_vec();
    let news = list(new);
    for old in list(old) {
        let name = text(&old, "name");
        match news.iter().rfind(|new| text(new, "name") == name) {
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
