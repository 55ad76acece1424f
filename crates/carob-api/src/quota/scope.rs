//! Which Pods a quota is about (`pkg/quota/v1/evaluator/core/pods.go`, podMatchesScopeFunc).

use serde_json::Value;

use crate::meta;

/// Whether a quota's `spec` is about this Pod.
pub fn matches(spec: &Value, pod: &Value) -> bool {
    let plain = meta::items_at(spec, &["scopes"]).iter().filter_map(Value::as_str).all(|scope| has(scope, pod));
    plain && meta::items_at(spec, &["scopeSelector", "matchExpressions"]).iter().all(|wanted| meets(wanted, pod))
}

fn meets(requirement: &Value, pod: &Value) -> bool {
    let scope = meta::str_at(requirement, &["scopeName"]).unwrap_or_default();
    let operator = meta::str_at(requirement, &["operator"]).unwrap_or_default();
    if scope != "PriorityClass" {
        return has(scope, pod) != (operator == "DoesNotExist");
    }
    let class = priority_class(pod);
    let values = meta::items_at(requirement, &["values"]);
    let listed = || class.is_some_and(|class| values.iter().any(|value| value.as_str() == Some(class)));
    match operator {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => class.is_some(),
        "DoesNotExist" => class.is_none(),
        _ => false,
    }
}

fn has(scope: &str, pod: &Value) -> bool {
    match scope {
        "Terminating" => has_deadline(pod),
        "NotTerminating" => !has_deadline(pod),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => priority_class(pod).is_some(),
        "CrossNamespacePodAffinity" => asks_across_namespaces(pod),
        // A scope of other kinds of objects: no Pod has it.
        _ => false,
    }
}

fn priority_class(pod: &Value) -> Option<&str> {
    meta::str_at(pod, &["spec", "priorityClassName"]).filter(|class| !class.is_empty())
}

fn has_deadline(pod: &Value) -> bool {
    meta::i64_at(pod, &["spec", "activeDeadlineSeconds"]).is_some_and(|seconds| seconds >= 0)
}

/// Neither asks for nor is limited in processor or memory in any container (`pkg/apis/core/v1/helper/qos`).
fn is_best_effort(pod: &Value) -> bool {
    let containers = ["containers", "initContainers"].into_iter().flat_map(|list| meta::items_at(pod, &["spec", list]));
    let counts = |container: &Value, which: &str| {
        let amounts = crate::pod::value::amounts_at(container, &["resources", which]);
        ["cpu", "memory"].iter().any(|name| amounts.get(*name).is_some_and(|amount| !amount.is_zero()))
    };
    !containers.into_iter().any(|container| counts(container, "requests") || counts(container, "limits"))
}

fn asks_across_namespaces(pod: &Value) -> bool {
    let across = |term: &Value| {
        !meta::items_at(term, &["namespaces"]).is_empty() || meta::at(term, &["namespaceSelector"]).is_some()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let terms = |when: &str| meta::items_at(pod, &["spec", "affinity", kind, when]);
        let preferred = terms("preferredDuringSchedulingIgnoredDuringExecution").iter();
        terms("requiredDuringSchedulingIgnoredDuringExecution").iter().any(across)
            || preferred.filter_map(|one| meta::at(one, &["podAffinityTerm"])).any(across)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_quota_is_about_the_pods_of_all_its_scopes() {
        let plain = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "0"}}}]}});
        let limited = json!({"spec": {
            "containers": [{"name": "c", "resources": {"limits": {"cpu": "0.5"}}}], "activeDeadlineSeconds": 5,
            "priorityClassName": "high",
            "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"namespaces": ["a"]}]}},
        }});
        let selector = |operator: &str| {
            json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": operator, "values": ["high"]}]}})
        };
        let absent =
            json!({"scopeSelector": {"matchExpressions": [{"scopeName": "BestEffort", "operator": "DoesNotExist"}]}});
        let cases = [
            (json!({}), true, true),
            (json!({"scopes": ["BestEffort"]}), true, false),
            (json!({"scopes": ["NotBestEffort", "Terminating"]}), false, true),
            (json!({"scopes": ["NotTerminating"]}), true, false),
            (json!({"scopes": ["CrossNamespacePodAffinity"]}), false, true),
            (absent, false, true),
            (selector("In"), false, true),
            (selector("NotIn"), true, false),
            (selector("Exists"), false, true),
            (selector("DoesNotExist"), true, false),
        ];
        for (spec, plain_matches, limited_matches) in cases {
            assert_eq!((matches(&spec, &plain), matches(&spec, &limited)), (plain_matches, limited_matches), "{spec}");
        }
    }
}
