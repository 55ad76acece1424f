//! What of a status has to be written: the difference to what the API shows, as a strategic merge patch.

use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
use serde_json::{Map, Value, json};

/// Fields of the status that the node writes. What others own (nominatedNodeName, resourceClaimStatuses, ..) is never sent.
const FIELDS: [&str; 15] = [
    "observedGeneration",
    "phase",
    "reason",
    "message",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "qosClass",
    "allocatedResources",
    "resources",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
];

/// Type and reason of the condition of a Pod that its node evicts (`v1.PodReasonTerminationByKubelet`).
pub const DISRUPTION: &str = "DisruptionTarget";
pub const BY_KUBELET: &str = "TerminationByKubelet";

/// Lists that a strategic merge patch would merge by key although they are written whole.
const REPLACED_LISTS: [&str; 2] = ["hostIPs", "podIPs"];

/// The body that turns `old` into `new` for the Pod with `uid`, or `None` where they show the same.
///
/// The uid keeps a late write from reaching a Pod made again under the same name. Conditions are sent one by one, so that
/// what another owner writes at the same time survives.
pub fn status_patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let (old, new) = (fields(old), fields(new));
    let mut changes = Map::new();
    for field in FIELDS {
        let (before, after) = (old.get(field), new.get(field));
        if before == after {
            continue;
        }
        let value = match after {
            None => Value::Null,
            Some(Value::Array(items)) if REPLACED_LISTS.contains(&field) => {
                let mut list = vec![json!({"$patch": "replace"})];
                list.extend(items.iter().cloned());
                Value::Array(list)
            }
            Some(value) => merging(before, value),
        };
        changes.insert(field.to_owned(), value);
    }
    let conditions = changed_conditions(&old, &new);
    if !conditions.is_empty() {
        changes.insert("conditions".to_owned(), Value::Array(conditions));
    }
    (!changes.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changes}))
}

/// What merges into the value of `before` to make `after` of it: a map keeps what a patch does not name. (`$patch: replace` is
/// no way: where there is no map yet, it is dropped with all that is beside it.)
fn merging(before: Option<&Value>, after: &Value) -> Value {
    let Value::Object(map) = after else { return after.clone() };
    let before = before.and_then(Value::as_object);
    let gone = before.into_iter().flatten().filter(|(key, _)| !map.contains_key(*key));
    let gone = gone.map(|(key, _)| (key.clone(), Value::Null));
    let kept = map.iter().map(|(key, value)| (key.clone(), merging(before.and_then(|map| map.get(key)), value)));
    Value::Object(kept.chain(gone).collect())
}

/// Whether the node, and nobody else, writes this condition.
pub fn is_owned(condition: &PodCondition) -> bool {
    is_own(&condition.type_, condition.reason.as_deref().unwrap_or_default())
}

/// That a Pod is about to end for the cluster's sake is said by whoever ends it.
fn is_own(type_: &str, reason: &str) -> bool {
    super::conditions::OWNED.contains(&type_) || (type_ == DISRUPTION && reason == BY_KUBELET)
}

fn fields(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        Ok(_) | Err(_) => unreachable!("a PodStatus is a struct of strings, numbers, lists and maps with string keys"),
    }
}

fn changed_conditions(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<Value> {
    let list = |map: &Map<String, Value>| match map.get("conditions") {
        Some(Value::Array(items)) => items.clone(),
        _ => Vec::new(),
    };
    let before = list(old);
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    let owned = |condition: &Value| is_own(&text(condition, "type"), &text(condition, "reason"));
    let after = list(new);
    let gone = |was: &&Value| owned(was) && !after.iter().any(|condition| condition["type"] == was["type"]);
    let mut changed: Vec<Value> =
        before.iter().filter(gone).map(|was| json!({"$patch": "delete", "type": was["type"]})).collect();
    for condition in after.iter().filter(|condition| owned(condition)).cloned() {
        match before.iter().find(|was| was["type"] == condition["type"]) {
            None => changed.push(condition),
            Some(was) if *was != condition => changed.push(with_nulls(condition, was)),
            Some(_) => {}
        }
    }
    changed
}

/// A merged element keeps the fields that the patch does not name: those that are gone have to be named.
fn with_nulls(mut condition: Value, was: &Value) -> Value {
    if let (Some(map), Some(before)) = (condition.as_object_mut(), was.as_object()) {
        // The API shows `lastProbeTime: null`; both spellings mean the same.
        for key in before.keys().filter(|key| *key != "lastProbeTime") {
            map.entry(key).or_insert(Value::Null);
        }
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_that_are_gone_are_named() {
        let status = |resources: Value| -> PodStatus {
            serde_json::from_value(json!({"resources": resources, "allocatedResources": resources.get("requests")}))
                .expect("a status")
        };
        let (none, both) = (PodStatus::default(), json!({"requests": {"cpu": "1", "memory": "1Mi"}}));
        for (old, new, patch) in [
            (none, status(both.clone()), json!({"resources": both, "allocatedResources": both["requests"]})),
            (
                status(both.clone()),
                status(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "2"}})),
                json!({"resources": {"requests": {"cpu": "2", "memory": null}, "limits": {"cpu": "2"}},
                    "allocatedResources": {"cpu": "2", "memory": null}}),
            ),
            (status(both), status(json!({})), json!({"resources": {"requests": null}, "allocatedResources": null})),
        ] {
            assert_eq!(status_patch("u", &old, &new).expect("a change")["status"], patch);
        }
    }
}
