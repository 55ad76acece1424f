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
        if SYSTEM_CLASSES.contains(&(name, value)) {
            return errors;
        }
        if name.starts_with("system-") {
            let message = format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {name} is not a \
                 known system priority class"
            );
            errors.push(FieldError::forbidden(&FieldPath::new("metadata").child("name"), message));
        }
        if value > USER_PRIORITY_MAX {
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
        const RULES: Rules = Rules { creates_on_update: true, ..Rules::PLAIN };
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

/// Events of both groups, in the form of core v1.
#[derive(Debug)]
pub(super) struct Event;

impl Strategy for Event {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { creates_on_update: true, ..Rules::PLAIN };
        &RULES
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let about = meta::str_at(obj, &["involvedObject", "namespace"]).unwrap_or_default();
        let namespace = meta::namespace(obj);
        // An Event about something without a namespace lies in the default one, or that of the system.
        let fits = if about.is_empty() { matches!(namespace, "default" | "kube-system") } else { about == namespace };
        if fits {
            return FieldErrors::new();
        }
        let path = FieldPath::new("involvedObject").child("namespace");
        vec![FieldError::invalid(&path, about, "does not match event.namespace")]
    }
}

#[derive(Debug)]
pub(super) struct LimitRange;

impl Strategy for LimitRange {
    fn rules(&self) -> &Rules {
        &Rules::PLAIN
    }

    /// A container's default limit is its maximum, its default request its default limit or its minimum.
    fn default(&self, obj: &mut Value) {
        for item in meta::at_mut(obj, &["spec", "limits"]).and_then(Value::as_array_mut).into_iter().flatten() {
            if meta::str_at(item, &["type"]) != Some("Container") {
                continue;
            }
            for (target, source) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
                let Some(given) = meta::at(item, &[source]).and_then(Value::as_object).cloned() else { continue };
                let target = meta::map_mut(item, &[target]);
                for (name, value) in given {
                    target.entry(name).or_insert(value);
                }
            }
        }
    }
}
