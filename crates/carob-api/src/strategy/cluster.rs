//! Namespaces and Nodes.

use serde_json::{Value, json};

use super::{NameRule, Part, Rules, Strategy, old_forms, resource_names};
use crate::{
    addresses::{self, Block},
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    lifecycle::copy_field,
    meta, names,
};

/// The finalizer that holds a namespace until its content is gone.
const NAMESPACE_FINALIZER: &str = "kubernetes";
/// Finalizers whose names have no domain.
const STANDARD_FINALIZERS: [&str; 3] = [NAMESPACE_FINALIZER, "orphan", "foregroundDeletion"];
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

#[derive(Debug)]
pub(super) struct Namespace;

impl Strategy for Namespace {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { name: NameRule::Label, ..Rules::STATUS };
        &RULES
    }

    fn default(&self, obj: &mut Value) {
        let name = meta::name(obj).to_owned();
        if !name.is_empty() {
            meta::set(obj, &["metadata", "labels", NAME_LABEL], name);
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        self.default(obj);
        meta::set(obj, &["status"], json!({"phase": "Active"}));
        let finalizers = meta::map_mut(obj, &["spec"]).entry("finalizers").or_insert_with(|| json!([]));
        if let Value::Array(items) = finalizers
            && !items.iter().any(|f| f.as_str() == Some(NAMESPACE_FINALIZER))
        {
            items.push(NAMESPACE_FINALIZER.into());
        }
    }

    fn prepare_update(&self, part: Part, new: &mut Value, old: &Value) {
        match part {
            Part::Main => copy_field(new, old, "spec"),
            Part::Finalize => {
                let finalizers = meta::at(new, &["spec", "finalizers"]).cloned();
                let version = meta::resource_version(new).to_owned();
                *new = old.clone();
                meta::set(new, &["spec", "finalizers"], finalizers.unwrap_or_else(|| json!([])));
                if !version.is_empty() {
                    meta::set(new, &["metadata", "resourceVersion"], version);
                }
            }
            Part::Status | Part::EphemeralContainers | Part::Resize | Part::Approval => {}
        }
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let path = FieldPath::new("spec").child("finalizers");
        for name in meta::texts(obj, &["spec", "finalizers"]) {
            invalid_each(&path, name, finalizer(name), &mut errors);
        }
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, _old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let phase = meta::str_at(new, &["status", "phase"]).unwrap_or_default();
        let path = FieldPath::new("status").child("Phase");
        if part == Part::Finalize {
            let path = FieldPath::new("spec").child("finalizers");
            for (index, name) in meta::texts(new, &["spec", "finalizers"]).into_iter().enumerate() {
                invalid_each(&path.index(index), name, finalizer(name), &mut errors);
            }
        }
        if part == Part::Status {
            match (meta::is_being_deleted(new), phase) {
                (false, phase) if phase != "Active" => {
                    let message = "may only be 'Active' if `deletionTimestamp` is empty";
                    errors.push(FieldError::invalid(&path, phase, message));
                }
                (true, phase) if phase != "Terminating" => {
                    let message = "may only be 'Terminating' if `deletionTimestamp` is not empty";
                    errors.push(FieldError::invalid(&path, phase, message));
                }
                _ => {}
            }
        }
        errors
    }

    fn mark_deleted(&self, obj: &mut Value) {
        meta::set(obj, &["status", "phase"], "Terminating");
    }

    fn holds_back_deletion(&self, obj: &Value) -> bool {
        !meta::items_at(obj, &["spec", "finalizers"]).is_empty()
    }
}

/// A finalizer of a namespace's content.
fn finalizer(name: &str) -> Vec<String> {
    let mut messages = names::qualified_name(name);
    if !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
        messages.push("name is neither a standard finalizer name nor is it fully qualified".to_owned());
    }
    messages
}

/// The old field is the first of the new list, and decides where both are given (kubernetes
/// pkg/apis/core/v1/conversion.go).
fn keep_pod_cidr_in_step(node: &mut Value) {
    let first = meta::texts(node, &["spec", "podCIDRs"]).first().map(|first| (*first).to_owned());
    match (meta::str_at(node, &["spec", "podCIDR"]).map(str::to_owned), first) {
        (Some(one), first) if first.as_ref() != Some(&one) => meta::set(node, &["spec", "podCIDRs"], json!([one])),
        (None, Some(first)) => meta::set(node, &["spec", "podCIDR"], first),
        _ => {}
    }
}

#[derive(Debug)]
pub(super) struct Node;

impl Strategy for Node {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { keeps_status_at_create: true, ..Rules::STATUS };
        &RULES
    }

    fn default(&self, obj: &mut Value) {
        if meta::at(obj, &["status", "allocatable"]).is_none()
            && let Some(capacity) = meta::at(obj, &["status", "capacity"]).cloned()
        {
            meta::set(obj, &["status", "allocatable"], capacity);
        }
        keep_pod_cidr_in_step(obj);
        // Agents may be older than their server, and some say so of a machine without swap. Upstream refuses it.
        if meta::i64_at(obj, &["status", "nodeInfo", "swap", "capacity"]) == Some(0) {
            meta::remove(obj, &["status", "nodeInfo", "swap"]);
        }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        old_forms::of_node(new)
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        taint_errors(obj, &mut errors);
        status_errors(obj, &mut errors);
        if let Some(swap) = meta::i64_at(obj, &["status", "nodeInfo", "swap", "capacity"]).filter(|swap| *swap <= 0) {
            let path = FieldPath::new("metadata").child("nodeSwapStatus").child("capacity");
            errors.push(FieldError::invalid(&path, swap, "must be greater than 0"));
        }
        pod_cidr_errors(obj, &mut errors);
        errors
    }

    /// Repeats some of what [`Node::validate`] finds: upstream checks it for a status alone in the same way.
    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        status_errors(new, &mut errors);
        let addresses = meta::items_at(new, &["status", "addresses"]);
        for (index, address) in addresses.iter().enumerate().filter(|(at, one)| addresses[..*at].contains(one)) {
            let path = FieldPath::new("status").child("addresses").index(index);
            errors.push(FieldError::duplicate(&path, address.clone()));
        }
        let mut refuse = |field: &str, what: &str| {
            let message = format!("node updates may not change {what} except from \"\" to valid");
            errors.push(FieldError::forbidden(&FieldPath::new("spec").child(field), message));
        };
        let cidrs = |node| meta::texts(node, &["spec", "podCIDRs"]);
        let (is, was) = (cidrs(new), cidrs(old));
        if is.len() != was.len() && !was.is_empty() {
            refuse("podCIDRs", "podCIDR");
        } else {
            for _ in was.iter().zip(&is).filter(|(was, is)| was != is) {
                refuse("podCIDRs", "podCIDR");
            }
        }
        let provider = |node| meta::text(node, &["spec", "providerID"]);
        if !provider(old).is_empty() && provider(old) != provider(new) {
            refuse("providerID", "providerID");
        }
        taint_errors(new, &mut errors);
        let external = |node| meta::text(node, &["spec", "externalID"]);
        if external(old) != external(new) {
            let path = FieldPath::new("spec").child("externalID");
            errors.push(FieldError::forbidden(&path, "may not be updated"));
        }
        errors
    }
}

/// Upstream reports taints below metadata.
fn taint_errors(node: &Value, errors: &mut FieldErrors) {
    let mut seen = std::collections::BTreeSet::new();
    for (index, taint) in meta::items_at(node, &["spec", "taints"]).iter().enumerate() {
        let path = FieldPath::new("metadata").child("taints").index(index);
        let text = |field| meta::text(taint, &[field]);
        invalid_each(&path.child("key"), text("key"), names::qualified_name(text("key")), errors);
        let messages = names::label_value(text("value"));
        if !messages.is_empty() {
            errors.push(FieldError::invalid(&path.child("value"), text("value"), messages.join(";")));
        }
        if text("effect").is_empty() {
            errors.push(FieldError::required(&path.child("effect"), ""));
        }
        if !seen.insert((text("key"), text("effect"))) {
            errors.push(FieldError::duplicate(&path, taint.clone()));
        }
    }
}

fn status_errors(node: &Value, errors: &mut FieldErrors) {
    let path = FieldPath::new("status");
    for list in ["capacity", "allocatable"] {
        for (name, amount) in meta::at(node, &["status", list]).and_then(Value::as_object).into_iter().flatten() {
            resource_names::amount_errors(name, amount, &path.child(list).child(name), errors);
        }
    }
    let features = meta::texts(node, &["status", "declaredFeatures"]);
    let path = path.child("declaredFeatures");
    for (index, feature) in features.iter().enumerate() {
        invalid_each(&path.index(index), *feature, declared_feature(feature), errors);
        match index.checked_sub(1).map(|before| features[before].cmp(feature)) {
            Some(std::cmp::Ordering::Equal) => errors.push(FieldError::duplicate(&path.index(index), *feature)),
            Some(std::cmp::Ordering::Greater) => {
                errors.push(FieldError::invalid(&path.index(index), *feature, "list must be sorted alphabetically"));
            }
            _ => {}
        }
    }
}

/// `MyFeature`, `MyFeature/mySubFeature`.
fn declared_feature(name: &str) -> Vec<String> {
    if name.len() > names::DNS1123_SUBDOMAIN_LEN_MAX {
        let max = names::DNS1123_SUBDOMAIN_LEN_MAX;
        return vec![format!("invalid feature name {name:?}: must be no more than {max} characters")];
    }
    let is_word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
    if name.starts_with(|first: char| first.is_ascii_uppercase()) && name.split('/').all(is_word) {
        return Vec::new();
    }
    vec![format!(
        "invalid feature name {name:?}: must start with an UpperCamelCase segment, with subsequent segments separated by \
         '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes"
    )]
}

fn pod_cidr_errors(node: &Value, errors: &mut FieldErrors) {
    let path = FieldPath::new("spec").child("podCIDRs");
    let cidrs = meta::texts(node, &["spec", "podCIDRs"]);
    for (index, cidr) in cidrs.iter().enumerate() {
        invalid_each(&path.index(index), *cidr, addresses::cidr(cidr), errors);
    }
    if cidrs.len() < 2 {
        return;
    }
    let families: Option<Vec<bool>> = cidrs.iter().map(|cidr| Block::parse_lenient(cidr).map(Block::is_ipv4)).collect();
    if families.is_none_or(|families| families.len() > 2 || families[0] == families[1]) {
        let message = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid(&path, json!(cidrs), message));
    }
}
