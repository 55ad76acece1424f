//! Which objects a quota is about (`pkg/quota/v1/evaluator/core`, podMatchesScopeFunc and pvcMatchesScopeFunc).

use serde_json::Value;

use crate::meta;
use crate::pod::Qos;
use crate::pod::value::qos;

const VOLUME_CLASS: &str = "VolumeAttributesClass";

/// Whether a quota's `spec` is about an object of this resource. One with scopes is about Pods or claims that have them all.
pub fn matches(spec: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let plain = meta::items_at(spec, &["scopes"]).iter().filter_map(Value::as_str);
    let wanted = meta::items_at(spec, &["scopeSelector", "matchExpressions"]).iter();
    let mut scopes = plain.map(|scope| (scope, "Exists", [].as_slice())).chain(wanted.map(|requirement| {
        let scope = meta::str_at(requirement, &["scopeName"]).unwrap_or_default();
        let operator = meta::str_at(requirement, &["operator"]).unwrap_or_default();
        (scope, operator, meta::items_at(requirement, &["values"]))
    }));
    match (group, plural) {
        ("", "pods") => scopes.all(|(scope, operator, values)| match scope {
            "PriorityClass" => among(priority_class(object).as_slice(), operator, values),
            scope => has(scope, object) != (operator == "DoesNotExist"),
        }),
        ("", "persistentvolumeclaims") => scopes
            .all(|(scope, operator, values)| scope == VOLUME_CLASS && among(&volume_classes(object), operator, values)),
        _ => scopes.next().is_none(),
    }
}

/// Whether any of the names that an object has is as required; an object without names is like one with another name.
fn among(names: &[&str], operator: &str, values: &[Value]) -> bool {
    let listed = |name: &&str| values.iter().any(|value| value.as_str() == Some(name));
    match operator {
        "In" => names.iter().any(listed),
        "NotIn" => names.is_empty() || !names.iter().all(listed),
        "Exists" => !names.is_empty(),
        "DoesNotExist" => names.is_empty(),
        _ => false,
    }
}

/// The classes that a claim has, wants, or is on its way to.
fn volume_classes(claim: &Value) -> Vec<&str> {
    let places: [&[&str]; 3] = [
        &["spec", "volumeAttributesClassName"],
        &["status", "currentVolumeAttributesClassName"],
        &["status", "modifyVolumeStatus", "targetVolumeAttributesClassName"],
    ];
    places.iter().filter_map(|place| meta::str_at(claim, place)).filter(|class| !class.is_empty()).collect()
}

fn has(scope: &str, pod: &Value) -> bool {
    match scope {
        "Terminating" => is_terminating(pod),
        "NotTerminating" => !is_terminating(pod),
        "BestEffort" => qos(pod) == Qos::BestEffort,
        "NotBestEffort" => qos(pod) != Qos::BestEffort,
        "CrossNamespacePodAffinity" => asks_across_namespaces(pod),
        // A scope of other kinds of objects: no Pod has it.
        _ => false,
    }
}

fn priority_class(pod: &Value) -> Option<&str> {
    meta::str_at(pod, &["spec", "priorityClassName"]).filter(|class| !class.is_empty())
}

/// Whether a Pod ends by itself at a time of its own.
pub fn is_terminating(pod: &Value) -> bool {
    meta::i64_at(pod, &["spec", "activeDeadlineSeconds"]).is_some_and(|seconds| seconds >= 0)
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
            let found = [&plain, &limited].map(|pod| matches(&spec, "", "pods", pod));
            assert_eq!(found, [plain_matches, limited_matches], "{spec}");
        }
    }

    #[test]
    fn a_quota_of_volume_classes_is_about_claims_that_have_one_of_them() {
        let claim = json!({"spec": {"volumeAttributesClassName": "gold"}, "status": {"currentVolumeAttributesClassName": "lead"}});
        let plain = json!({"spec": {"volumeAttributesClassName": ""}});
        let selector = |operator: &str, values: Value| {
            json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": "VolumeAttributesClass", "operator": operator, "values": values}]}})
        };
        let cases = [
            (json!({}), [true, true]),
            (json!({"scopes": ["VolumeAttributesClass"]}), [true, false]),
            (json!({"scopes": ["Terminating"]}), [false, false]),
            (selector("In", json!(["lead"])), [true, false]),
            (selector("NotIn", json!(["gold"])), [true, true]),
            (selector("NotIn", json!(["gold", "lead"])), [false, true]),
            (selector("DoesNotExist", json!([])), [false, true]),
        ];
        for (spec, expected) in cases {
            let found = [&claim, &plain].map(|claim| matches(&spec, "", "persistentvolumeclaims", claim));
            assert_eq!(found, expected, "{spec}");
        }
        assert!(matches(&json!({}), "", "services", &plain));
        assert!(!matches(&selector("NotIn", json!(["gold"])), "", "services", &plain));
    }
}
