//! FlowSchemas and PriorityLevelConfigurations (kubernetes `pkg/apis/flowcontrol/validation`).
//!
//! That the specs of the mandatory ones are the fixed ones is seen to by the API server, which puts them back.

use serde_json::{Value, json};

use super::{NameRule, Rules, Strategy};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
};

/// The name of the schema and of the level whose requests are never held up.
const EXEMPT: &str = "exempt";
const PRECEDENCE_MAX: i64 = 10_000;
const QUEUES_MAX: i64 = 10_000_000;
/// Bits of a flow's number that choose its queues.
const HASH_BITS_MAX: f64 = 60.0;
const VERBS: [&str; 9] = ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
const DISTINGUISHERS: [&str; 2] = ["ByNamespace", "ByUser"];
/// Kinds of subjects, the field of each, and what it is called where another kind has it.
const SUBJECTS: [(&str, &str); 3] = [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];
/// An annotation for versions that are not served any more.
const PRESERVED_ZERO: &str = "flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares";

#[derive(Debug)]
pub(super) struct FlowSchema;

impl Strategy for FlowSchema {
    fn rules(&self) -> &Rules {
        &Rules::WORKLOAD_ALONE
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let path = FieldPath::new("spec");
        let precedence = meta::i64_at(obj, &["spec", "matchingPrecedence"]).unwrap_or_default();
        let mut wrong = |detail: String| {
            errors.push(FieldError::invalid(&path.child("matchingPrecedence"), precedence, detail));
        };
        if precedence <= 0 {
            wrong("must be a positive value".to_owned());
        }
        if precedence > PRECEDENCE_MAX {
            wrong(format!("must not be greater than {PRECEDENCE_MAX}"));
        }
        if precedence == 1 && meta::name(obj) != EXEMPT {
            wrong("only the schema named 'exempt' may have matchingPrecedence 1".to_owned());
        }
        if let Some(method) = meta::at(obj, &["spec", "distinguisherMethod"]) {
            let kind = meta::text(method, &["type"]);
            if !DISTINGUISHERS.contains(&kind) {
                let path = path.child("distinguisherMethod").child("type");
                // Upstream shows the whole of it, as its own type names the field.
                errors.push(FieldError::not_supported(&path, json!({ "Type": kind }), &DISTINGUISHERS));
            }
        }
        let level = path.child("priorityLevelConfiguration").child("name");
        match meta::text(obj, &["spec", "priorityLevelConfiguration", "name"]) {
            "" => errors.push(FieldError::required(&level, "must reference a priority level")),
            name => invalid_each(&level, name, NameRule::Subdomain.check(name, false), &mut errors),
        }
        for (index, rule) in meta::items_at(obj, &["spec", "rules"]).iter().enumerate() {
            rule_errors(rule, &path.child("rules").index(index), &mut errors);
        }
        condition_errors(obj, &mut errors);
        errors
    }
}

#[derive(Debug)]
pub(super) struct PriorityLevelConfiguration;

impl Strategy for PriorityLevelConfiguration {
    fn rules(&self) -> &Rules {
        &Rules::WORKLOAD_ALONE
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if meta::at(obj, &["metadata", "annotations", PRESERVED_ZERO]).is_some() {
            let path = FieldPath::new("metadata").child("annotations");
            errors.push(FieldError::forbidden(&path, format!("annotation '{PRESERVED_ZERO}' is forbidden")));
        }
        let path = FieldPath::new("spec");
        let kind = meta::text(obj, &["spec", "type"]);
        let (exempt, limited) = (meta::at(obj, &["spec", "exempt"]), meta::at(obj, &["spec", "limited"]));
        if (meta::name(obj) == EXEMPT) != (kind == "Exempt") {
            let message = "must be 'Exempt' if and only if `name` is 'exempt'";
            errors.push(FieldError::invalid(&path.child("type"), kind, message));
        }
        match (kind, limited) {
            ("Exempt", limited) => {
                if limited.is_some() {
                    let message = "must be nil if the type is not Limited";
                    errors.push(FieldError::forbidden(&path.child("limited"), message));
                }
                if let Some(exempt) = exempt {
                    share_errors(exempt, &path.child("exempt"), &mut errors);
                }
            }
            ("Limited", limited) => {
                if exempt.is_some() {
                    errors.push(FieldError::forbidden(&path.child("exempt"), "must be nil if the type is Limited"));
                }
                let path = path.child("limited");
                match limited {
                    None => errors.push(FieldError::required(&path, "must not be empty when type is Limited")),
                    Some(limited) => limited_errors(limited, &path, &mut errors),
                }
            }
            _ => errors.push(FieldError::not_supported(&path.child("type"), kind, &["Exempt", "Limited"])),
        }
        condition_errors(obj, &mut errors);
        errors
    }
}

fn condition_errors(obj: &Value, errors: &mut FieldErrors) {
    let path = FieldPath::new("status").child("conditions");
    for (index, condition) in meta::items_at(obj, &["status", "conditions"]).iter().enumerate() {
        if meta::text(condition, &["type"]).is_empty() {
            errors.push(FieldError::required(&path.index(index).child("type"), ""));
        }
    }
}

fn share_errors(of: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(shares) = meta::i64_at(of, &["nominalConcurrencyShares"]).filter(|shares| *shares < 0) {
        let message = "must be a non-negative integer";
        errors.push(FieldError::invalid(&path.child("nominalConcurrencyShares"), shares, message));
    }
    if let Some(percent) = meta::i64_at(of, &["lendablePercent"]).filter(|percent| !(0..=100).contains(percent)) {
        let message = "must be between 0 and 100, inclusive";
        errors.push(FieldError::invalid(&path.child("lendablePercent"), percent, message));
    }
}

fn limited_errors(limited: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    share_errors(limited, path, errors);
    if let Some(percent) = meta::i64_at(limited, &["borrowingLimitPercent"]).filter(|percent| *percent < 0) {
        let message = "if specified, must be a non-negative integer";
        errors.push(FieldError::invalid(&path.child("borrowingLimitPercent"), percent, message));
    }
    let path = path.child("limitResponse");
    let queuing = meta::at(limited, &["limitResponse", "queuing"]);
    match meta::text(limited, &["limitResponse", "type"]) {
        "Reject" => {
            if queuing.is_some() {
                let message = "must be nil if limited.limitResponse.type is not Limited";
                errors.push(FieldError::forbidden(&path.child("queuing"), message));
            }
        }
        "Queue" => {
            let path = path.child("queuing");
            match queuing {
                None => {
                    let message = "must not be empty if limited.limitResponse.type is Limited";
                    errors.push(FieldError::required(&path, message));
                }
                Some(queuing) => queuing_errors(queuing, &path, errors),
            }
        }
        other => errors.push(FieldError::not_supported(&path.child("type"), other, &["Queue", "Reject"])),
    }
}

fn queuing_errors(queuing: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    const POSITIVE: &str = "must be positive";
    let number = |field| meta::i64_at(queuing, &[field]).unwrap_or_default();
    let (queues, hand) = (number("queues"), number("handSize"));
    let mut wrong = |field: &str, value: i64, detail: String| {
        errors.push(FieldError::invalid(&path.child(field), value, detail));
    };
    if number("queueLengthLimit") <= 0 {
        wrong("queueLengthLimit", number("queueLengthLimit"), POSITIVE.to_owned());
    }
    if queues <= 0 {
        wrong("queues", queues, POSITIVE.to_owned());
    } else if queues > QUEUES_MAX {
        wrong("queues", queues, format!("must not be greater than {QUEUES_MAX}"));
    }
    if hand <= 0 {
        wrong("handSize", hand, POSITIVE.to_owned());
    } else if hand > queues {
        wrong("handSize", hand, format!("should not be greater than queues ({queues})"));
    } else if needs_too_many_bits(queues, hand) {
        let detail = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS_MAX}"
        );
        wrong("handSize", hand, detail);
    }
}

/// Whether a hand of so many queues cannot be chosen by one number.
#[expect(clippy::cast_precision_loss, reason = "as upstream counts; both are of 32 bits")]
fn needs_too_many_bits(queues: i64, hand: i64) -> bool {
    ((queues as f64).log2() * hand as f64).ceil() > HASH_BITS_MAX
}

fn rule_errors(rule: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let subjects = meta::items_at(rule, &["subjects"]);
    if subjects.is_empty() {
        errors.push(FieldError::required(&path.child("subjects"), "subjects must contain at least one value"));
    }
    for (index, subject) in subjects.iter().enumerate() {
        subject_errors(subject, &path.child("subjects").index(index), errors);
    }
    let (resources, urls) = (meta::items_at(rule, &["resourceRules"]), meta::items_at(rule, &["nonResourceRules"]));
    if resources.is_empty() && urls.is_empty() {
        let message = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(FieldError::required(path, message));
    }
    for (index, rule) in resources.iter().enumerate() {
        resource_errors(rule, &path.child("resourceRules").index(index), errors);
    }
    for (index, rule) in urls.iter().enumerate() {
        url_errors(rule, &path.child("nonResourceRules").index(index), errors);
    }
}

fn subject_errors(subject: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let kind = meta::kind(subject);
    let Some((_, own)) = SUBJECTS.iter().find(|(of, _)| *of == kind) else {
        let kinds = SUBJECTS.map(|(kind, _)| kind);
        errors.push(FieldError::not_supported(&path.child("kind"), kind, &kinds));
        return;
    };
    match meta::at(subject, &[own]) {
        None => {
            let message = format!("{own} is required when subject kind is '{kind}'");
            errors.push(FieldError::required(&path.child(own), message));
        }
        Some(named) => {
            let path = path.child(own);
            let name = meta::text(named, &["name"]);
            if name.is_empty() {
                errors.push(FieldError::required(&path.child("name"), ""));
            }
            if kind == "ServiceAccount" {
                if !matches!(name, "" | "*") {
                    invalid_each(&path.child("name"), name, NameRule::Subdomain.check(name, false), errors);
                }
                match meta::text(named, &["namespace"]) {
                    "" => {
                        let message = "must specify namespace for service account";
                        errors.push(FieldError::required(&path.child("namespace"), message));
                    }
                    namespace => {
                        invalid_each(&path.child("namespace"), namespace, names::dns1123_label(namespace), errors);
                    }
                }
            }
        }
    }
    for (of, field) in SUBJECTS.iter().filter(|(of, field)| *of != kind && meta::at(subject, &[field]).is_some()) {
        let message = format!("{field} is forbidden when subject kind is not '{of}'");
        errors.push(FieldError::forbidden(&path.child(field), message));
    }
}

/// Errors of a list that has to have something in it, and nothing beside `*` if that is in it.
fn list_errors(rule: &Value, field: &str, missing: &str, others: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let values = meta::texts(rule, &[field]);
    if values.is_empty() {
        errors.push(FieldError::required(&path.child(field), missing));
    } else if values.len() > 1 && values.contains(&"*") {
        let message = format!("if '*' is present, must not specify other {others}");
        errors.push(FieldError::invalid(&path.child(field), rule[field].clone(), message));
    }
}

fn verb_errors(rule: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    list_errors(rule, "verbs", "verbs must contain at least one value", "verbs", path, errors);
    let verbs = meta::texts(rule, &["verbs"]);
    if !verbs.contains(&"*") && verbs.iter().any(|verb| !VERBS.contains(verb)) {
        errors.push(FieldError::not_supported(&path.child("verbs"), rule["verbs"].clone(), &VERBS));
    }
}

fn resource_errors(rule: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    verb_errors(rule, path, errors);
    let message = "resource rules must supply at least one api group";
    list_errors(rule, "apiGroups", message, "api groups", path, errors);
    let message = "resource rules must supply at least one resource";
    list_errors(rule, "resources", message, "resources", path, errors);
    let namespaces = meta::texts(rule, &["namespaces"]);
    if meta::bool_at(rule, &["clusterScope"]) != Some(true) || !namespaces.is_empty() {
        let message = "resource rules that are not cluster scoped must supply at least one namespace";
        list_errors(rule, "namespaces", message, "namespaces", path, errors);
    }
    if namespaces.contains(&"*") {
        return;
    }
    for (index, namespace) in namespaces.into_iter().enumerate() {
        let faults = names::dns1123_label(namespace).into_iter();
        let faults = faults.map(|fault| format!("each member of this list must be '*' or a DNS-1123 label; {fault}"));
        invalid_each(&path.child("namespaces").index(index), namespace, faults.collect(), errors);
    }
}

fn url_errors(rule: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    verb_errors(rule, path, errors);
    let message = "nonResourceURLs must contain at least one value";
    list_errors(rule, "nonResourceURLs", message, "non-resource URLs", path, errors);
    let urls = meta::texts(rule, &["nonResourceURLs"]);
    if urls.contains(&"*") {
        return;
    }
    for (index, url) in urls.into_iter().enumerate() {
        if let Some(message) = url_fault(url) {
            errors.push(FieldError::invalid(&path.child("nonResourceURLs").index(index), url, message));
        }
    }
}

fn url_fault(url: &str) -> Option<&'static str> {
    let wildcards = url.matches('*').count();
    match url {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !url.starts_with('/') => Some("must start with slash"),
        _ if url.contains(' ') => Some("must not contain white-space"),
        _ if url.contains("//") => Some("must not contain double slash"),
        _ if wildcards > 1 || (wildcards == 1 && !url.ends_with("/*")) => Some("wildcard can only do suffix matching"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(queuing: Value) -> Vec<String> {
        let response = json!({ "type": "Queue", "queuing": queuing });
        let limited = json!({ "nominalConcurrencyShares": 30, "limitResponse": response });
        let object = json!({ "metadata": { "name": "l" }, "spec": { "type": "Limited", "limited": limited } });
        PriorityLevelConfiguration.validate(&object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn queues_and_hands_are_bounded() {
        let queuing = |queues: i64, hand: i64, length: i64| {
            level(json!({ "queues": queues, "handSize": hand, "queueLengthLimit": length }))
        };
        for (queues, hand) in [(64, 6), (1, 1), (QUEUES_MAX, 2)] {
            assert_eq!(queuing(queues, hand, 1), [""; 0], "{queues} {hand}");
        }
        let cases = [
            (queuing(2_147_483_647, 1, 1), "queues: Invalid value: 2147483647: must not be greater than 10000000"),
            (queuing(0, 1, 1), "queues: Invalid value: 0: must be positive"),
            (queuing(8, 9, 1), "handSize: Invalid value: 9: should not be greater than queues (8)"),
            (
                queuing(1024, 7, 1),
                "handSize: Invalid value: 7: required entropy bits of deckSize 1024 and handSize 7 should not be greater than 60",
            ),
            (queuing(8, 0, 1), "handSize: Invalid value: 0: must be positive"),
            (queuing(8, 1, 0), "queueLengthLimit: Invalid value: 0: must be positive"),
        ];
        for (found, expected) in cases {
            let expected = format!("spec.limited.limitResponse.queuing.{expected}");
            assert!(found.contains(&expected), "{expected}: {found:?}");
        }
    }

    fn schema(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let user = json!({ "kind": "User", "user": { "name": "u" } });
        let rule = json!({ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"] });
        let mut spec = json!({
            "priorityLevelConfiguration": { "name": "l" }, "matchingPrecedence": 1000,
            "rules": [{ "subjects": [user], "resourceRules": [rule] }],
        });
        change(&mut spec);
        let object = json!({ "metadata": { "name": "s" }, "spec": spec });
        FlowSchema.validate(&object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_and_subjects_are_checked() {
        assert_eq!(schema(|_| {}), [""; 0]);
        let cases: [(&str, Value, &str); 8] = [
            ("/matchingPrecedence", json!(1), "only the schema named 'exempt' may have matchingPrecedence 1"),
            ("/matchingPrecedence", json!(10_001), "must not be greater than 10000"),
            ("/rules/0/subjects", json!([]), "spec.rules[0].subjects: Required value"),
            ("/rules/0/subjects/0/kind", json!("Group"), "group is required when subject kind is 'Group'"),
            ("/rules/0/subjects/0/kind", json!("Group"), "user is forbidden when subject kind is not 'User'"),
            ("/rules/0/resourceRules", json!([]), "at least one of resourceRules and nonResourceRules"),
            ("/rules/0/resourceRules/0/verbs", json!(["*", "get"]), "must not specify other verbs"),
            ("/rules/0/resourceRules/0/namespaces", json!(["A"]), "must be '*' or a DNS-1123 label; a lowercase"),
        ];
        for (pointer, value, expected) in cases {
            let found = schema(|spec| *spec.pointer_mut(pointer).expect("a field") = value);
            assert!(found.iter().any(|error| error.contains(expected)), "{pointer}: {expected}: {found:?}");
        }
        for (url, fault) in [("a", true), ("/a b", true), ("/a//b", true), ("/a*", true), ("/a/*", false), ("/", false)]
        {
            assert_eq!(url_fault(url).is_some(), fault, "{url}");
        }
    }
}
