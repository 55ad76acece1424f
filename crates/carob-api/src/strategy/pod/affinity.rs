//! Affinity, tolerations and spreading.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::strategy::fields::{one_of, text};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
    pod::NODE_NAME_FIELD,
};

const NOT_POSITIVE: &str = "must be greater than zero";

pub(super) fn validate(affinity: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = meta::at(affinity, &["nodeAffinity"]) {
        let path = path.child("nodeAffinity");
        if let Some(selector) = meta::at(node, &[REQUIRED]) {
            validate_node_selector(selector, &path.child(REQUIRED), errors);
        }
        for (index, preferred) in meta::items_at(node, &[PREFERRED]).iter().enumerate() {
            let path = path.child(PREFERRED).index(index);
            validate_weight(preferred, &path, errors);
            // A preference that no node can have does no harm.
            validate_node_term(&preferred["preference"], false, &path.child("preference"), errors);
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

/// A NodeSelector: terms of which one has to fit.
pub(crate) fn validate_node_selector(selector: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let path = path.child("nodeSelectorTerms");
    let terms = meta::items_at(selector, &["nodeSelectorTerms"]);
    if terms.is_empty() {
        errors.push(FieldError::required(&path, "must have at least one node selector term"));
    }
    for (index, term) in terms.iter().enumerate() {
        validate_node_term(term, true, &path.index(index), errors);
    }
}

fn validate_weight(preferred: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let weight = meta::i64_at(preferred, &["weight"]).unwrap_or_default();
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(&path.child("weight"), weight, "must be in the range 1-100"));
    }
}

/// `strict`: values must be what labels may have.
fn validate_node_term(term: &Value, strict: bool, path: &FieldPath, errors: &mut FieldErrors) {
    for (index, requirement) in meta::items_at(term, &["matchExpressions"]).iter().enumerate() {
        validate_node_labels(requirement, strict, &path.child("matchExpressions").index(index), errors);
    }
    for (index, requirement) in meta::items_at(term, &["matchFields"]).iter().enumerate() {
        validate_node_fields(requirement, &path.child("matchFields").index(index), errors);
    }
}

fn validate_node_labels(requirement: &Value, strict: bool, path: &FieldPath, errors: &mut FieldErrors) {
    let values = meta::items_at(requirement, &["values"]);
    let values_path = path.child("values");
    match text(requirement, "operator") {
        "Gt" | "Lt" if values.len() != 1 => {
            let message = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errors.push(FieldError::required(&values_path, message));
        }
        "Gt" | "Lt" => {}
        operator => validate_selector_operator(operator, values, path, errors),
    }
    let key = text(requirement, "key");
    invalid_each(&path.child("key"), key, names::qualified_name(key), errors);
    for (index, value) in values.iter().filter_map(Value::as_str).enumerate().filter(|_| strict) {
        invalid_each(&values_path.index(index), value, names::label_value(value), errors);
    }
}

/// The one field of a node is its name, of which there is one.
fn validate_node_fields(requirement: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let values = meta::items_at(requirement, &["values"]);
    match text(requirement, "operator") {
        "In" | "NotIn" if values.len() != 1 => {
            let message = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(FieldError::required(&path.child("values"), message));
        }
        "In" | "NotIn" => {}
        other => errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
    let key = text(requirement, "key");
    if key != NODE_NAME_FIELD {
        errors.push(FieldError::invalid(&path.child("key"), key, "not a valid field selector key"));
        return;
    }
    for (index, value) in values.iter().filter_map(Value::as_str).enumerate() {
        invalid_each(&path.child("values").index(index), value, names::dns1123_subdomain(value), errors);
    }
}

/// The operators that selectors of labels of all kinds have.
fn validate_selector_operator(operator: &str, values: &[Value], path: &FieldPath, errors: &mut FieldErrors) {
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            let message = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.push(FieldError::required(&path.child("values"), message));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let message = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(&path.child("values"), message));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
}

/// A metav1.LabelSelector (apimachinery pkg/apis/meta/v1/validation).
pub fn validate_label_selector(selector: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let labels = meta::at(selector, &["matchLabels"]).and_then(Value::as_object);
    crate::lifecycle::validate_labels(labels, &path.child("matchLabels"), errors);
    for (index, requirement) in meta::items_at(selector, &["matchExpressions"]).iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = meta::items_at(requirement, &["values"]);
        validate_selector_operator(text(requirement, "operator"), values, &path, errors);
        let key = text(requirement, "key");
        invalid_each(&path.child("key"), key, names::qualified_name(key), errors);
        for (index, value) in values.iter().filter_map(Value::as_str).enumerate() {
            invalid_each(&path.child("values").index(index), value, names::label_value(value), errors);
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
        invalid_each(&path.child("namespace"), namespace, names::dns1123_label(namespace), errors);
    }
    let keys = |field: &str| meta::items_at(term, &[field]);
    validate_label_keys(
        keys("matchLabelKeys"),
        keys("mismatchLabelKeys"),
        meta::at(term, &["labelSelector"]),
        path,
        errors,
    );
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errors.push(FieldError::required(&path.child("topologyKey"), "can not be empty"));
    }
    invalid_each(&path.child("topologyKey"), key, names::qualified_name(key), errors);
}

pub(crate) fn validate_toleration(toleration: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
    if !key.is_empty() {
        invalid_each(&path.child("key"), key, names::qualified_name(key), errors);
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
        "" | "Equal" => {
            let wrong = names::label_value(value);
            if !wrong.is_empty() {
                errors.push(FieldError::invalid(&path.child("operator"), value, wrong.join(";")));
            }
        }
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

/// Keys whose values, of the Pod that is placed, narrow a selector (`ValidateMatchLabelKeysAndMismatchLabelKeys`). They have been
/// merged into the selector already.
fn validate_label_keys(
    keys: &[Value],
    other_keys: &[Value],
    selector: Option<&Value>,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    for (field, keys) in [("matchLabelKeys", keys), ("mismatchLabelKeys", other_keys)] {
        let path = path.child(field);
        if !keys.is_empty() && selector.is_none() {
            errors.push(FieldError::forbidden(&path, "must not be specified when labelSelector is not set"));
            continue;
        }
        for (index, key) in keys.iter().filter_map(Value::as_str).enumerate() {
            invalid_each(&path.index(index), key, names::qualified_name(key), errors);
        }
    }
    if let Some(selector) = selector {
        let labels = meta::at(selector, &["matchLabels"]).and_then(Value::as_object);
        let mut seen: BTreeSet<&str> = labels.into_iter().flatten().map(|(key, _)| key.as_str()).collect();
        for requirement in meta::items_at(selector, &["matchExpressions"]) {
            let key = text(requirement, "key");
            let at = keys.iter().rposition(|listed| listed.as_str() == Some(key));
            if let Some(at) = at.filter(|_| seen.contains(key)) {
                let message = "exists in both matchLabelKeys and labelSelector";
                errors.push(FieldError::invalid(&path.index(at), key, message));
            }
            seen.insert(key);
        }
    }
    for (index, key) in keys.iter().enumerate().filter(|(_, key)| other_keys.contains(key)) {
        let path = path.child("matchLabelKeys").index(index);
        errors.push(FieldError::invalid(&path, key.clone(), "exists in both matchLabelKeys and mismatchLabelKeys"));
    }
}

pub(super) fn validate_spread(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let constraints = meta::items_at(spec, &["topologySpreadConstraints"]);
    let pair = |constraint| (text(constraint, "topologyKey"), text(constraint, "whenUnsatisfiable"));
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        let (topology, action) = pair(constraint);
        let skew = meta::i64_at(constraint, &["maxSkew"]).unwrap_or_default();
        if skew <= 0 {
            errors.push(FieldError::invalid(&path.child("maxSkew"), skew, NOT_POSITIVE));
        }
        if topology.is_empty() {
            errors.push(FieldError::required(&path.child("topologyKey"), "can not be empty"));
        }
        if action.is_empty() {
            let supported = ["DoNotSchedule", "ScheduleAnyway"];
            errors.push(FieldError::not_supported(&path.child("whenUnsatisfiable"), "", &supported));
        }
        if constraints[index + 1..].iter().any(|other| pair(other) == (topology, action)) {
            let path = path.child("{topologyKey, whenUnsatisfiable}");
            errors.push(FieldError::duplicate(&path, format!("{{{topology}, {action}}}")));
        }
        if let Some(least) = meta::i64_at(constraint, &["minDomains"]) {
            let path = path.child("minDomains");
            if least <= 0 {
                errors.push(FieldError::invalid(&path, least, NOT_POSITIVE));
            }
            if action != "DoNotSchedule" {
                let message = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.push(FieldError::invalid(&path, least, message));
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            one_of(constraint, field, &["Honor", "Ignore"], &path, errors);
        }
        let selector = meta::at(constraint, &["labelSelector"]);
        validate_label_keys(meta::items_at(constraint, &["matchLabelKeys"]), &[], selector, &path, errors);
        if let Some(selector) = selector {
            validate_label_selector(selector, &path.child("labelSelector"), errors);
        }
    }
}
