//! ResourceQuotas (kubernetes pkg/apis/core/validation `ValidateResourceQuotaSpec`, pkg/apis/core/helper).

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Part, Rules, Strategy, old_forms, resource_names, workload::IMMUTABLE};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta,
};

const COMPUTE: [&str; 6] = ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
const SCOPES_OF_PODS: [&str; 6] =
    ["Terminating", "NotTerminating", "BestEffort", "NotBestEffort", "PriorityClass", "CrossNamespacePodAffinity"];
const SCOPE_OF_CLAIMS: &str = "VolumeAttributesClass";
const OPPOSITES: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];

#[derive(Debug)]
pub(super) struct ResourceQuota;

impl Strategy for ResourceQuota {
    fn rules(&self) -> &Rules {
        &Rules::STATUS
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        old_forms::of_quota(new)
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        for list in [&["spec", "hard"], &["status", "hard"], &["status", "used"]] {
            amount_errors(obj, list, &mut errors);
        }
        let path = FieldPath::new("spec");
        scope_errors(&obj["spec"], &path.child("scopes"), &mut errors);
        selector_errors(&obj["spec"], &path.child("scopeSelector").child("matchExpressions"), &mut errors);
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let scopes = |of: &Value| -> BTreeSet<String> { scopes(&of["spec"]).map(str::to_owned).collect() };
        let changed = scopes(new) != scopes(old);
        let path = FieldPath::new("spec").child("scopes");
        changed.then(|| FieldError::invalid(&path, new["spec"]["scopes"].clone(), IMMUTABLE)).into_iter().collect()
    }
}

fn amount_errors(obj: &Value, list: &[&str; 2], errors: &mut FieldErrors) {
    let path = FieldPath::new(list[0]).child(list[1]);
    for (name, amount) in meta::at(obj, list).and_then(Value::as_object).into_iter().flatten() {
        let path = path.key(name);
        invalid_each(&path, name.as_str(), resource_names::of_quotas(name), errors);
        resource_names::amount_errors(name, amount, &path, errors);
    }
}

fn scopes(spec: &Value) -> impl Iterator<Item = &str> {
    meta::items_at(spec, &["scopes"]).iter().filter_map(Value::as_str)
}

fn is_scope(scope: &str) -> bool {
    SCOPES_OF_PODS.contains(&scope) || scope == SCOPE_OF_CLAIMS
}

/// Whether what a standard name counts can have a scope; a scope that there is not has been refused before.
fn fits(scope: &str, name: &str) -> bool {
    match scope {
        "BestEffort" => name == "pods",
        SCOPE_OF_CLAIMS => matches!(name, "persistentvolumeclaims" | "requests.storage"),
        scope => !is_scope(scope) || name == "pods" || COMPUTE.contains(&name),
    }
}

/// How many of the limited standard names a scope is not for.
fn misfits(spec: &Value, scope: &str) -> usize {
    let hard = meta::at(spec, &["hard"]).and_then(Value::as_object);
    hard.into_iter().flatten().filter(|(name, _)| resource_names::is_counted(name) && !fits(scope, name)).count()
}

fn scope_errors(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let mut refuse = |detail: &str| errors.push(FieldError::invalid(path, spec["scopes"].clone(), detail));
    for scope in scopes(spec) {
        if !is_scope(scope) {
            refuse("unsupported scope");
        }
        for _ in 0..misfits(spec, scope) {
            refuse("unsupported scope applied to resource");
        }
    }
    for pair in OPPOSITES {
        if pair.iter().all(|one| scopes(spec).any(|scope| scope == *one)) {
            refuse("conflicting scopes");
        }
    }
}

fn selector_errors(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let requirements = meta::items_at(spec, &["scopeSelector", "matchExpressions"]);
    let scope_of = |requirement| meta::str_at(requirement, &["scopeName"]).unwrap_or_default();
    for requirement in requirements {
        let scope = scope_of(requirement);
        if !is_scope(scope) {
            errors.push(FieldError::invalid(&path.child("scopeName"), scope, "unsupported scope"));
        }
        for _ in 0..misfits(spec, scope) {
            let detail = "unsupported scope applied to resource";
            errors.push(FieldError::invalid(path, spec["scopeSelector"].clone(), detail));
        }
        operator_errors(requirement, scope, path, errors);
    }
    for pair in OPPOSITES {
        if pair.iter().all(|one| requirements.iter().any(|requirement| scope_of(requirement) == *one)) {
            errors.push(FieldError::invalid(path, spec["scopes"].clone(), "conflicting scopes"));
        }
    }
}

fn operator_errors(requirement: &Value, scope: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let operator = meta::str_at(requirement, &["operator"]).unwrap_or_default();
    if SCOPES_OF_PODS.contains(&scope) && scope != "PriorityClass" && operator != "Exists" {
        let detail = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
                      ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort \
                      or ResourceQuotaScopeCrossNamespacePodAffinity";
        errors.push(FieldError::invalid(&path.child("operator"), operator, detail));
    }
    let values = meta::items_at(requirement, &["values"]);
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
            errors.push(FieldError::required(&path.child("values"), detail));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
            errors.push(FieldError::invalid(&path.child("values"), values.to_vec(), detail));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        _ => errors.push(FieldError::invalid(&path.child("operator"), operator, "not a valid selector operator")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let errors = ResourceQuota.validate(&json!({"spec": spec}));
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_quotas_count_is_accepted() {
        let hard = json!({"pods": "1", "limits.memory": "1.5Gi", "requests.hugepages-2Mi": "4Mi", "requests.nvidia.com/gpu": "2",
            "count/jobs.batch": "3", "gold.storageclass.storage.k8s.io/requests.storage": "1Gi"});
        assert_eq!(faults(json!({"hard": hard})), [""; 0]);
        let claims = json!({"hard": {"persistentvolumeclaims": "1"}, "scopeSelector": {"matchExpressions": [
            {"scopeName": "VolumeAttributesClass", "operator": "In", "values": ["gold"]}]}});
        assert_eq!(faults(claims), [""; 0]);
    }

    #[test]
    fn what_they_do_not_count_is_refused() {
        let select = |scope: &str, operator: &str, values: Value| {
            json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [
                {"scopeName": scope, "operator": operator, "values": values}]}})
        };
        let cases = [
            (
                json!({"hard": {"pod": "1"}}),
                "spec.hard[pod]: Invalid value: \"pod\": must be a standard resource for quota",
            ),
            (json!({"hard": {"storage": "1"}}), "must be a standard resource for quota"),
            (json!({"hard": {"pods": "-1"}}), "must be greater than or equal to 0"),
            (json!({"hard": {"pods": "1500m"}}), "must be an integer"),
            (json!({"scopes": ["Sometimes"]}), "unsupported scope"),
            (json!({"hard": {"requests.cpu": "1"}, "scopes": ["BestEffort"]}), "unsupported scope applied to resource"),
            (json!({"hard": {"services": "1"}, "scopes": ["Terminating"]}), "unsupported scope applied to resource"),
            (json!({"scopes": ["Terminating", "NotTerminating"]}), "conflicting scopes"),
            (select("VolumeAttributesClass", "Exists", json!([])), "unsupported scope applied to resource"),
            (select("PriorityClass", "In", json!([])), "must be at least one value"),
            (select("PriorityClass", "Exists", json!(["a"])), "must be no value"),
            (select("PriorityClass", "Is", json!(["a"])), "not a valid selector operator"),
            (select("Terminating", "DoesNotExist", json!([])), "must be 'Exists' when scope is any of"),
        ];
        for (spec, expected) in cases {
            let faults = faults(spec.clone());
            assert!(faults.last().is_some_and(|fault| fault.contains(expected)), "{spec}: {faults:?}");
        }
    }

    #[test]
    fn scopes_stay_as_they_are() {
        let quota = |scopes: Value| json!({"spec": {"scopes": scopes}});
        let change = |old, new| ResourceQuota.validate_update(Part::Main, &quota(new), &quota(old)).len();
        assert_eq!(change(json!(["Terminating", "BestEffort"]), json!(["BestEffort", "Terminating"])), 0);
        assert_eq!(change(json!(["Terminating"]), json!([])), 1);
    }
}
