//! What has to change in a held object for it to be as the API server keeps it. Pure.

use carob_api::meta;
use serde_json::Value;

use super::objects::Keep;
use crate::aggregation::AUTOMANAGED;
use crate::authz::{AUTOUPDATE, Rule};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Correction {
    None,
    Update(Value),
    /// What cannot be changed is deleted, and made again.
    Replace,
}

/// `held` is as the API gave it, with its resourceVersion.
pub(super) fn correct(keep: &Keep, wanted: &Value, mut held: Value) -> Correction {
    let before = held.clone();
    match keep {
        Keep::Present => return Correction::None,
        // A range of the other family may be added; else the object's ranges stay, whatever the configuration says.
        Keep::ServiceCidr => match (wanted["spec"]["cidrs"].as_array(), held["spec"]["cidrs"].as_array()) {
            (Some(wanted_cidrs), Some(own))
                if wanted_cidrs.len() == 2 && own.len() == 1 && own[0] == wanted_cidrs[0] =>
            {
                copy(wanted, &mut held, &[&["spec", "cidrs"]]);
            }
            _ => return Correction::None,
        },
        Keep::Fields(paths) => copy(wanted, &mut held, paths),
        Keep::AutoUpdated { annotation, always } => {
            if !always && meta::annotation(&held, annotation) == Some("false") {
                return Correction::None;
            }
            copy(wanted, &mut held, &[&["spec"]]);
        }
        Keep::Automanaged => {
            if meta::label(&held, AUTOMANAGED) != meta::label(wanted, AUTOMANAGED) {
                return Correction::None;
            }
            copy(wanted, &mut held, &[&["spec"]]);
        }
        Keep::Role => {
            if meta::annotation(&held, AUTOUPDATE) == Some("false") {
                return Correction::None;
            }
            add_metadata(wanted, &mut held);
            add_rules(wanted, &mut held);
        }
        Keep::Binding => {
            if meta::annotation(&held, AUTOUPDATE) == Some("false") {
                return Correction::None;
            }
            if wanted["roleRef"] != held["roleRef"] {
                return Correction::Replace;
            }
            add_metadata(wanted, &mut held);
            add_missing(&wanted["subjects"], &mut held["subjects"]);
        }
    }
    if held == before { Correction::None } else { Correction::Update(held) }
}

fn copy(wanted: &Value, held: &mut Value, paths: &[&[&str]]) {
    for path in paths {
        match meta::at(wanted, path) {
            Some(value) => meta::set(held, path, value.clone()),
            None => drop(meta::remove(held, path)),
        }
    }
}

/// Labels and annotations that are missing; others stay as they are.
fn add_metadata(wanted: &Value, held: &mut Value) {
    for field in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][field].as_object().into_iter().flatten() {
            if meta::at(held, &["metadata", field, key]).is_none() {
                meta::set(held, &["metadata", field, key], value.clone());
            }
        }
    }
}

/// Rules that give what the held ones do not (component-helpers `auth/rbac/reconciliation`); the rules of a role that
/// others are aggregated into are the aggregation's.
fn add_rules(wanted: &Value, held: &mut Value) {
    let selectors = &wanted["aggregationRule"]["clusterRoleSelectors"];
    if selectors.is_array() {
        if held["aggregationRule"].is_null() {
            held["aggregationRule"] = wanted["aggregationRule"].clone();
        } else {
            add_missing(selectors, &mut held["aggregationRule"]["clusterRoleSelectors"]);
        }
        return;
    }
    let parse = |rule: &Value| serde_json::from_value::<Rule>(rule.clone()).unwrap_or_default();
    let own: Vec<Rule> = meta::items_at(held, &["rules"]).iter().map(parse).collect();
    let missing: Vec<Value> = meta::items_at(wanted, &["rules"])
        .iter()
        .filter(|rule| !Rule::all_cover(&own, &parse(rule)))
        .cloned()
        .collect();
    if !missing.is_empty() {
        let mut rules = meta::items_at(held, &["rules"]).to_vec();
        rules.extend(missing);
        held["rules"] = rules.into();
    }
}

fn add_missing(wanted: &Value, held: &mut Value) {
    let mut items = held.as_array().cloned().unwrap_or_default();
    let missing = wanted.as_array().into_iter().flatten().filter(|item| !items.contains(item)).cloned();
    let missing: Vec<Value> = missing.collect();
    if !missing.is_empty() {
        items.extend(missing);
        *held = items.into();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn updated(correction: Correction) -> Value {
        match correction {
            Correction::Update(object) => object,
            other => panic!("{other:?} is no update"),
        }
    }

    #[test]
    fn a_role_gets_back_what_it_lost_and_keeps_what_was_added() {
        let rule = |verbs: &[&str]| json!({ "verbs": verbs, "apiGroups": [""], "resources": ["pods"] });
        let wanted = json!({
            "metadata": { "name": "r", "labels": { "a": "b" }, "annotations": { AUTOUPDATE: "true" } },
            "rules": [rule(&["get"]), rule(&["list"])],
        });
        let held = json!({ "metadata": { "name": "r", "resourceVersion": "7" }, "rules": [rule(&["get", "create"])] });
        let fixed = updated(correct(&Keep::Role, &wanted, held));
        assert_eq!(fixed["rules"], json!([rule(&["get", "create"]), rule(&["list"])]));
        assert_eq!(
            (&fixed["metadata"]["labels"]["a"], &fixed["metadata"]["resourceVersion"]),
            (&json!("b"), &json!("7"))
        );
        assert_eq!(correct(&Keep::Role, &wanted, fixed.clone()), Correction::None);
        let mut own = fixed;
        own["metadata"]["annotations"][AUTOUPDATE] = json!("false");
        own["rules"] = json!([]);
        assert_eq!(correct(&Keep::Role, &wanted, own), Correction::None, "whoever protects it keeps it");
    }

    #[test]
    fn an_aggregated_roles_rules_are_left_alone() {
        let wanted = json!({
            "metadata": { "name": "view" }, "rules": null,
            "aggregationRule": { "clusterRoleSelectors": [{ "matchLabels": { "a": "true" } }] },
        });
        let mut held = wanted.clone();
        held["rules"] = json!([{ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] }]);
        assert_eq!(correct(&Keep::Role, &wanted, held.clone()), Correction::None);
        held["aggregationRule"]["clusterRoleSelectors"] = json!([{ "matchLabels": { "own": "true" } }]);
        let fixed = updated(correct(&Keep::Role, &wanted, held));
        assert_eq!(meta::items_at(&fixed, &["aggregationRule", "clusterRoleSelectors"]).len(), 2);
    }

    #[test]
    fn a_binding_gets_its_subjects_and_never_another_role() {
        let subject = |name: &str| json!({ "kind": "User", "name": name });
        let wanted = json!({ "metadata": {}, "roleRef": { "name": "r" }, "subjects": [subject("a")] });
        let held = json!({ "metadata": {}, "roleRef": { "name": "r" }, "subjects": [subject("b")] });
        assert_eq!(updated(correct(&Keep::Binding, &wanted, held))["subjects"], json!([subject("b"), subject("a")]));
        let other = json!({ "metadata": {}, "roleRef": { "name": "x" } });
        assert_eq!(correct(&Keep::Binding, &wanted, other), Correction::Replace);
    }

    #[test]
    fn fields_are_kept_and_the_rest_is_the_users() {
        let keep = Keep::Fields(&[&["spec", "ports"], &["data", "gone"]]);
        let wanted = json!({ "spec": { "ports": [1] } });
        let held = json!({ "spec": { "ports": [2], "type": "x" }, "data": { "gone": 1, "own": 2 } });
        assert_eq!(
            updated(correct(&keep, &wanted, held)),
            json!({ "spec": { "ports": [1], "type": "x" }, "data": { "own": 2 } })
        );
        assert_eq!(correct(&Keep::Present, &wanted, json!({})), Correction::None);
    }
}
