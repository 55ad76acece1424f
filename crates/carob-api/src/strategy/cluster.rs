//! Namespaces and Nodes.

use serde_json::{Value, json};

use super::{NameRule, Part, Rules, Strategy, workload::immutable};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    lifecycle::copy_field,
    meta, names,
};

/// The finalizer that holds a namespace until its content is gone.
const NAMESPACE_FINALIZER: &str = "kubernetes";
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

    fn validate_update(&self, part: Part, new: &Value, _old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let phase = meta::str_at(new, &["status", "phase"]).unwrap_or_default();
        let path = FieldPath::new("status").child("phase");
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

/// The old field is the first of the new list (kubernetes pkg/apis/core/v1/conversion.go).
fn keep_pod_cidr_in_step(node: &mut Value) {
    let first = meta::items_at(node, &["spec", "podCIDRs"]).first().and_then(Value::as_str).map(str::to_owned);
    match (first, meta::str_at(node, &["spec", "podCIDR"]).map(str::to_owned)) {
        (Some(first), _) => meta::set(node, &["spec", "podCIDR"], first),
        (None, Some(only)) => meta::set(node, &["spec", "podCIDRs"], json!([only])),
        (None, None) => {}
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
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let path = FieldPath::new("spec").child("taints");
        let mut seen = std::collections::BTreeSet::new();
        for (index, taint) in meta::items_at(obj, &["spec", "taints"]).iter().enumerate() {
            let path = path.index(index);
            let text = |field| meta::str_at(taint, &[field]).unwrap_or_default();
            for message in names::qualified_name(text("key")) {
                errors.push(FieldError::invalid(&path.child("key"), text("key"), message));
            }
            for message in names::label_value(text("value")) {
                errors.push(FieldError::invalid(&path.child("value"), text("value"), message));
            }
            if text("effect").is_empty() {
                errors.push(FieldError::required(&path.child("effect"), ""));
            }
            if !seen.insert((text("key"), text("effect"))) {
                let mut error = FieldError::duplicate(&path, taint.clone());
                error.path = path.clone();
                errors.push(error);
            }
        }
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if part != Part::Main {
            return errors;
        }
        for (field, what) in [("podCIDRs", "podCIDR"), ("providerID", "providerID")] {
            let was = meta::at(old, &["spec", field]);
            if was.is_some() && was != meta::at(new, &["spec", field]) {
                let message = format!("node updates may not change {what} except from \"\" to valid");
                errors.push(FieldError::forbidden(&FieldPath::new("spec").child(field), message));
            }
        }
        errors
    }
}

#[derive(Debug)]
pub(super) struct RuntimeClass;

impl Strategy for RuntimeClass {
    fn rules(&self) -> &Rules {
        &Rules::PLAIN
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let handler = meta::str_at(obj, &["handler"]).unwrap_or_default();
        let messages = names::dns1123_label(handler);
        messages.into_iter().map(|m| FieldError::invalid(&FieldPath::new("handler"), handler, m)).collect()
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        immutable(new, old, &["handler"], &mut errors);
        errors
    }
}
