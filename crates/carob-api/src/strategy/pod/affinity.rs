//! Affinity, tolerations and spreading.

use serde_json::{Map, Value, json};

use super::spec::invalid_if_any;
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta, names,
};

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    meta::str_at(value, &[field]).unwrap_or_default()
}

pub(super) fn validate(affinity: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = meta::at(affinity, &["nodeAffinity"]) {
        let path = path.child("nodeAffinity");
        if let Some(selector) = meta::at(node, &[REQUIRED]) {
            let path = path.child(REQUIRED).child("nodeSelectorTerms");
            let terms = meta::items_at(selector, &["nodeSelectorTerms"]);
            if terms.is_empty() {
                errors.push(FieldError::required(&path, "must have at least one node selector term"));
            }
            for (index, term) in terms.iter().enumerate() {
                validate_node_term(term, &path.index(index), errors);
            }
        }
        for (index, preferred) in meta::items_at(node, &[PREFERRED]).iter().enumerate() {
            let path = path.child(PREFERRED).index(index);
            validate_weight(preferred, &path, errors);
            validate_node_term(&preferred["preference"], &path.child("preference"), errors);
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = meta::at(affinity, &[kind]) else { continue };
        let path = path.child(kind);
        for (index, term) in meta::items_at(pods, &[REQUIRED]).iter().enumerate() {
            validate_pod_term(term, &path.child(REQUIRED).index(index), errors);
        }
        for (index, preferred) in meta::items_at(pods, &[PREFERRED]).iter().enumerate() {
            let path = path.child(PREFERRED).index(index);
            validate_weight(preferred, &path, errors);
            validate_pod_term(&preferred["podAffinityTerm"], &path.child("podAffinityTerm"), errors);
        }
    }
}

fn validate_weight(preferred: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let weight = meta::i64_at(preferred, &["weight"]).unwrap_or_default();
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(&path.child("weight"), weight, "must be in the range 1-100"));
    }
}

fn validate_node_term(term: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for list in ["matchExpressions", "matchFields"] {
        for (index, requirement) in meta::items_at(term, &[list]).iter().enumerate() {
            validate_node_requirement(requirement, list, &path.child(list).index(index), errors);
        }
    }
}

fn validate_node_requirement(requirement: &Value, list: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let values = meta::items_at(requirement, &["values"]);
    let values_path = path.child("values");
    match text(requirement, "operator") {
        "In" | "NotIn" if values.is_empty() => {
            let message = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.push(FieldError::required(&values_path, message));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let message = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(&values_path, message));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            let message = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errors.push(FieldError::required(&values_path, message));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
    let key = text(requirement, "key");
    if list == "matchExpressions" {
        invalid_if_any(key, names::qualified_name(key), &path.child("key"), errors);
    } else if key != "metadata.name" {
        errors.push(FieldError::invalid(&path.child("key"), key, "not a valid field selector key"));
    }
}

/// A metav1.LabelSelector (apimachinery pkg/apis/meta/v1/validation).
pub(crate) fn validate_label_selector(selector: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let labels = meta::at(selector, &["matchLabels"]).and_then(Value::as_object);
    crate::lifecycle::validate_labels(labels, &path.child("matchLabels"), errors);
    for (index, requirement) in meta::items_at(selector, &["matchExpressions"]).iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = meta::items_at(requirement, &["values"]);
        match text(requirement, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                let message = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(&path.child("values"), message));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let message = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(&path.child("values"), message));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                let message = "not a valid selector operator";
                errors.push(FieldError::invalid(&path.child("operator"), other, message));
            }
        }
        let key = text(requirement, "key");
        invalid_if_any(key, names::qualified_name(key), &path.child("key"), errors);
        for (index, value) in values.iter().filter_map(Value::as_str).enumerate() {
            invalid_if_any(value, names::label_value(value), &path.child("values").index(index), errors);
        }
    }
}

fn validate_pod_term(term: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for field in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = meta::at(term, &[field]) {
            validate_label_selector(selector, &path.child(field), errors);
        }
    }
    for namespace in meta::items_at(term, &["namespaces"]).iter().filter_map(Value::as_str) {
        invalid_if_any(namespace, names::dns1123_label(namespace), &path.child("namespace"), errors);
    }
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errors.push(FieldError::required(&path.child("topologyKey"), "can not be empty"));
    }
    invalid_if_any(key, names::qualified_name(key), &path.child("topologyKey"), errors);
}

pub(super) fn validate_toleration(toleration: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
    if !key.is_empty() {
        invalid_if_any(key, names::qualified_name(key), &path.child("key"), errors);
    } else if operator != "Exists" {
        let message = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.push(FieldError::invalid(&path.child("operator"), operator, message));
    }
    if meta::i64_at(toleration, &["tolerationSeconds"]).is_some() && text(toleration, "effect") != "NoExecute" {
        let message = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.push(FieldError::invalid(&path.child("effect"), text(toleration, "effect"), message));
    }
    let value = text(toleration, "value");
    match operator {
        "" | "Equal" => invalid_if_any(value, names::label_value(value), &path.child("operator"), errors),
        "Exists" if !value.is_empty() => {
            let message = "value must be empty when `operator` is 'Exists'";
            errors.push(FieldError::invalid(&path.child("operator"), value, message));
        }
        _ => {}
    }
}

/// Turns matchLabelKeys and mismatchLabelKeys of a new Pod into requirements of the selectors beside them, with the
/// Pod's own labels as values (kubernetes pkg/registry/core/pod/strategy.go: mutatePodAffinity and its sibling).
pub(super) fn merge_label_keys(pod: &mut Value) {
    let labels = meta::labels(pod).cloned().unwrap_or_default();
    let lists = ["requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"];
    for kind in ["podAffinity", "podAntiAffinity"] {
        for list in lists {
            let terms = meta::at_mut(pod, &["spec", "affinity", kind, list]).and_then(Value::as_array_mut);
            for term in terms.into_iter().flatten() {
                let preferred = term.get("podAffinityTerm").is_some();
                let term = if preferred { &mut term["podAffinityTerm"] } else { term };
                merge_keys(term, "matchLabelKeys", "In", &labels);
                merge_keys(term, "mismatchLabelKeys", "NotIn", &labels);
            }
        }
    }
    let constraints = meta::at_mut(pod, &["spec", "topologySpreadConstraints"]).and_then(Value::as_array_mut);
    for constraint in constraints.into_iter().flatten() {
        merge_keys(constraint, "matchLabelKeys", "In", &labels);
    }
}

/// Without a selector there is nothing to narrow.
fn merge_keys(term: &mut Value, field: &str, operator: &str, labels: &Map<String, Value>) {
    if meta::at(term, &["labelSelector"]).is_none() {
        return;
    }
    let keys: Vec<String> =
        meta::items_at(term, &[field]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    for key in keys {
        let Some(value) = labels.get(&key) else { continue };
        let requirement = json!({"key": key, "operator": operator, "values": [value]});
        let list = meta::map_mut(term, &["labelSelector"]).entry("matchExpressions").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(requirement);
        }
    }
}

pub(super) fn validate_spread(constraint: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for field in ["maxSkew", "minDomains"] {
        let given = meta::i64_at(constraint, &[field]);
        let value = if field == "maxSkew" { given.or(Some(0)) } else { given };
        if let Some(value) = value.filter(|value| *value <= 0) {
            errors.push(FieldError::invalid(&path.child(field), value, "must be greater than zero"));
        }
    }
    if text(constraint, "topologyKey").is_empty() {
        errors.push(FieldError::required(&path.child("topologyKey"), "can not be empty"));
    }
    if text(constraint, "whenUnsatisfiable").is_empty() {
        let supported = ["DoNotSchedule", "ScheduleAnyway"];
        errors.push(FieldError::not_supported(&path.child("whenUnsatisfiable"), "", &supported));
    }
    if meta::i64_at(constraint, &["minDomains"]).is_some() && text(constraint, "whenUnsatisfiable") != "DoNotSchedule" {
        let message = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
        let value = meta::i64_at(constraint, &["minDomains"]).unwrap_or_default();
        errors.push(FieldError::invalid(&path.child("minDomains"), value, message));
    }
    if let Some(selector) = meta::at(constraint, &["labelSelector"]) {
        validate_label_selector(selector, &path.child("labelSelector"), errors);
    }
}
