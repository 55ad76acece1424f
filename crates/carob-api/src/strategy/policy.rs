//! Small kinds with a rule or two of their own.

use serde_json::{Value, json};

use super::{
    NameRule, Part, Rules, Strategy, pod,
    workload::{not_above_all, not_negative, validate_amount},
};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta,
};

/// Highest priority that a user may define (kubernetes pkg/apis/scheduling: HighestUserDefinablePriority).
const USER_PRIORITY_MAX: i64 = 1_000_000_000;
/// The classes that come with the cluster, the only ones above.
const SYSTEM_CLASSES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

#[derive(Debug)]
pub(super) struct PriorityClass;

impl Strategy for PriorityClass {
    fn rules(&self) -> &Rules {
        &Rules::COUNTED
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (name, value) = (meta::name(obj), meta::i64_at(obj, &["value"]).unwrap_or_default());
        if name.starts_with("system-") {
            if let Some(fault) = system_class_fault(name, value, obj) {
                let message = format!(
                    "priority class names with 'system-' prefix are reserved for system use only. error: {fault}"
                );
                errors.push(FieldError::forbidden(&FieldPath::new("metadata").child("name"), message));
            }
        } else if value > USER_PRIORITY_MAX {
            let message = format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
            errors.push(FieldError::forbidden(&FieldPath::new("value"), message));
        }
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        ["value", "preemptionPolicy"]
            .into_iter()
            .filter(|field| new.get(*field) != old.get(*field))
            .map(|field| match field {
                "value" => FieldError::forbidden(&FieldPath::new("value"), "may not be changed in an update."),
                _ => {
                    let value = new.get(field).cloned().unwrap_or_default();
                    FieldError::invalid(&FieldPath::new(field), value, "field is immutable")
                }
            })
            .collect()
    }
}

/// How a class differs from the one of its name that comes with the cluster.
fn system_class_fault(name: &str, value: i64, class: &Value) -> Option<String> {
    match SYSTEM_CLASSES.iter().find(|(known, _)| *known == name) {
        None => Some(format!("{name} is not a known system priority class")),
        Some((_, expected)) if *expected != value => Some(format!("value of {name} PriorityClass must be {expected}")),
        Some(_) if meta::bool_at(class, &["globalDefault"]) == Some(true) => {
            Some(format!("globalDefault of {name} PriorityClass must be false"))
        }
        Some(_) => None,
    }
}

#[derive(Debug)]
pub(super) struct PodDisruptionBudget;

impl Strategy for PodDisruptionBudget {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { updates_unconditionally: false, name: NameRule::PathSegment, ..Rules::WORKLOAD };
        &RULES
    }

    fn prepare_create(&self, obj: &mut Value) {
        let empty = json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
        meta::set(obj, &["status"], empty);
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (spec, path) = (&obj["spec"], FieldPath::new("spec"));
        if meta::at(spec, &["minAvailable"]).is_some() && meta::at(spec, &["maxUnavailable"]).is_some() {
            let message = "minAvailable and maxUnavailable cannot be both set";
            errors.push(FieldError::invalid(&path, spec.clone(), message));
        }
        for field in ["minAvailable", "maxUnavailable"] {
            validate_amount(spec.get(field), &path.child(field), &mut errors);
            not_above_all(spec.get(field), &path.child(field), &mut errors);
        }
        if let Some(selector) = meta::at(spec, &["selector"]) {
            pod::validate_label_selector(selector, &path.child("selector"), &mut errors);
        }
        errors
    }
}

#[derive(Debug)]
pub(super) struct Lease;

impl Strategy for Lease {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { creates_on_update: true, updates_unconditionally: false, ..Rules::PLAIN };
        &RULES
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let path = FieldPath::new("spec");
        if let Some(seconds) = meta::i64_at(obj, &["spec", "leaseDurationSeconds"]).filter(|seconds| *seconds <= 0) {
            errors.push(FieldError::invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0"));
        }
        not_negative(&obj["spec"], "leaseTransitions", &path, &mut errors);
        errors
    }
}
