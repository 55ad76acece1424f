//! Which Pods a quota is about (`pkg/quota/v1/evaluator/core/pods.go`, podMatchesScopeFunc). Pure.

use k8s_openapi::api::core::v1::{Pod, ResourceQuotaSpec, ScopedResourceSelectorRequirement};

pub(super) fn matches(spec: &ResourceQuotaSpec, pod: &Pod) -> bool {
    let plain = spec.scopes.iter().flatten().all(|scope| has(scope, pod));
    let selected = spec.scope_selector.iter().flat_map(|selector| selector.match_expressions.iter().flatten());
    plain && selected.into_iter().all(|requirement| meets(requirement, pod))
}

fn meets(requirement: &ScopedResourceSelectorRequirement, pod: &Pod) -> bool {
    if requirement.scope_name != "PriorityClass" {
        return match requirement.operator.as_str() {
            "DoesNotExist" => !has(&requirement.scope_name, pod),
            _ => has(&requirement.scope_name, pod),
        };
    }
    let class =
        pod.spec.as_ref().and_then(|spec| spec.priority_class_name.as_deref()).filter(|class| !class.is_empty());
    let listed = || class.is_some_and(|class| requirement.values.iter().flatten().any(|value| value == class));
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => class.is_some(),
        "DoesNotExist" => class.is_none(),
        _ => false,
    }
}

fn has(scope: &str, pod: &Pod) -> bool {
    match scope {
        "Terminating" => has_deadline(pod),
        "NotTerminating" => !has_deadline(pod),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => {
            pod.spec.as_ref().is_some_and(|spec| spec.priority_class_name.as_ref().is_some_and(|name| !name.is_empty()))
        }
        "CrossNamespacePodAffinity" => asks_across_namespaces(pod),
        // A scope of other kinds of objects: no Pod has it.
        _ => false,
    }
}

fn has_deadline(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds).is_some_and(|secs| secs >= 0)
}

/// Neither asks for nor is limited in processor or memory in any container (`pkg/apis/core/v1/helper/qos`).
fn is_best_effort(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let resources = containers.filter_map(|container| container.resources.as_ref());
    let listed = resources.flat_map(|resources| resources.requests.iter().chain(&resources.limits).flatten());
    let counts = |name: &str, text: &str| matches!(name, "cpu" | "memory") && !text.starts_with('0');
    !listed.into_iter().any(|(name, text)| counts(name, &text.0))
}

fn asks_across_namespaces(pod: &Pod) -> bool {
    let Some(affinity) = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()) else { return false };
    let near = affinity.pod_affinity.as_ref().map(|near| {
        (
            &near.required_during_scheduling_ignored_during_execution,
            &near.preferred_during_scheduling_ignored_during_execution,
        )
    });
    let far = affinity.pod_anti_affinity.as_ref().map(|far| {
        (
            &far.required_during_scheduling_ignored_during_execution,
            &far.preferred_during_scheduling_ignored_during_execution,
        )
    });
    near.into_iter().chain(far).any(|(required, preferred)| {
        let preferred = preferred.iter().flatten().map(|term| &term.pod_affinity_term);
        let mut terms = required.iter().flatten().chain(preferred);
        terms.any(|term| {
            term.namespaces.as_ref().is_some_and(|list| !list.is_empty()) || term.namespace_selector.is_some()
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_quota_is_about_the_pods_of_all_its_scopes() {
        let pod =
            |spec: Value| -> Pod { serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("it decodes") };
        let plain = pod(json!({"containers": []}));
        let limited = pod(json!({
            "containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}], "activeDeadlineSeconds": 5,
            "priorityClassName": "high",
        }));
        let selector = |operator: &str| {
            json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": operator, "values": ["high"]}]}})
        };
        let cases = [
            (json!({}), true, true),
            (json!({"scopes": ["BestEffort"]}), true, false),
            (json!({"scopes": ["NotBestEffort", "Terminating"]}), false, true),
            (json!({"scopes": ["NotTerminating"]}), true, false),
            (selector("In"), false, true),
            (selector("NotIn"), true, false),
            (selector("Exists"), false, true),
            (selector("DoesNotExist"), true, false),
        ];
        for (spec, plain_matches, limited_matches) in cases {
            let quota: ResourceQuotaSpec = serde_json::from_value(spec.clone()).expect("it decodes");
            assert_eq!(
                (matches(&quota, &plain), matches(&quota, &limited)),
                (plain_matches, limited_matches),
                "{spec}"
            );
        }
    }
}
