//! MutatingWebhookConfigurations and ValidatingWebhookConfigurations (pkg/apis/admissionregistration/validation, apiserver
//! pkg/util/webhook/validation.go). Whether match conditions compile is the API server's to check: it has the language.

use serde_json::Value;

use super::fields::{one_of, text};
use super::pod::validate_label_selector;
use super::{Rules, Strategy, old_forms};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta, names,
};

/// Versions of AdmissionReview that a webhook may be sent.
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const REVIEW_VERSIONS_TEXT: &str = "v1, v1beta1";
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const TIMEOUT_S: std::ops::RangeInclusive<i64> = 1..=30;
/// Match conditions of one webhook.
const CONDITIONS_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct WebhookConfiguration;

/// A policy in CEL, or a binding of one.
#[derive(Debug)]
pub(super) struct AdmissionPolicy {
    pub(super) rules: Rules,
}

impl Strategy for AdmissionPolicy {
    fn rules(&self) -> &Rules {
        &self.rules
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        old_forms::of_admission(new).into_iter().collect()
    }
}

impl Strategy for WebhookConfiguration {
    fn rules(&self) -> &Rules {
        &Rules::COUNTED
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        old_forms::of_admission(new).into_iter().collect()
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let mut seen = Vec::new();
        for (index, webhook) in meta::items_at(obj, &["webhooks"]).iter().enumerate() {
            let path = FieldPath::new("webhooks").index(index);
            validate_webhook(webhook, &path, &mut errors);
            let name = text(webhook, "name");
            if !name.is_empty() && seen.contains(&name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
            seen.push(name);
        }
        errors
    }
}

fn validate_webhook(webhook: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    validate_name(text(webhook, "name"), &path.child("name"), errors);
    for (index, rule) in meta::items_at(webhook, &["rules"]).iter().enumerate() {
        validate_rule(rule, &path.child("rules").index(index), errors);
    }
    one_of(webhook, "failurePolicy", &["Fail", "Ignore"], path, errors);
    one_of(webhook, "matchPolicy", &["Equivalent", "Exact"], path, errors);
    one_of(webhook, "reinvocationPolicy", &["IfNeeded", "Never"], path, errors);
    match meta::str_at(webhook, &["sideEffects"]) {
        None => {
            let path = path.child("sideEffects");
            errors.push(FieldError::required(&path, "must specify one of None, NoneOnDryRun"));
        }
        Some(_) => one_of(webhook, "sideEffects", &["None", "NoneOnDryRun"], path, errors),
    }
    if let Some(seconds) = meta::i64_at(webhook, &["timeoutSeconds"]).filter(|seconds| !TIMEOUT_S.contains(seconds)) {
        let why = "the timeout value must be between 1 and 30 seconds";
        errors.push(FieldError::invalid(&path.child("timeoutSeconds"), seconds, why));
    }
    for field in ["namespaceSelector", "objectSelector"] {
        if let Some(selector) = meta::at(webhook, &[field]) {
            validate_label_selector(selector, &path.child(field), errors);
        }
    }
    validate_client(&webhook["clientConfig"], &path.child("clientConfig"), errors);
    validate_conditions(meta::items_at(webhook, &["matchConditions"]), &path.child("matchConditions"), errors);
    validate_versions(webhook, &path.child("admissionReviewVersions"), errors);
}

/// apimachinery pkg/util/validation, `IsFullyQualifiedName`.
fn validate_name(name: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let problems = names::dns1123_subdomain(name);
    if !problems.is_empty() {
        errors.push(FieldError::invalid(path, name, problems.join(",")));
    } else if name.split('.').count() < 3 {
        let why = "should be a domain with at least three segments separated by dots";
        errors.push(FieldError::invalid(path, name, why));
    }
}

fn validate_rule(rule: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let operations = meta::texts(rule, &["operations"]);
    if operations.is_empty() {
        errors.push(FieldError::required(&path.child("operations"), ""));
    }
    if operations.len() > 1 && operations.contains(&"*") {
        let why = "if '*' is present, must not specify other operations";
        errors.push(FieldError::invalid(&path.child("operations"), rule["operations"].clone(), why));
    }
    for (index, operation) in operations.iter().enumerate().filter(|(_, operation)| !OPERATIONS.contains(operation)) {
        errors.push(FieldError::not_supported(&path.child("operations").index(index), *operation, &OPERATIONS));
    }
    for (field, called) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let values = meta::texts(rule, &[field]);
        if values.is_empty() {
            errors.push(FieldError::required(&path.child(field), ""));
        }
        if values.len() > 1 && values.contains(&"*") {
            let why = format!("if '*' is present, must not specify other {called}");
            errors.push(FieldError::invalid(&path.child(field), rule[field].clone(), why));
        }
    }
    for (index, _) in meta::texts(rule, &["apiVersions"]).iter().enumerate().filter(|(_, version)| version.is_empty()) {
        errors.push(FieldError::required(&path.child("apiVersions").index(index), ""));
    }
    validate_resources(rule, &path.child("resources"), errors);
    one_of(rule, "scope", &["*", "Cluster", "Namespaced"], path, errors);
}

fn validate_resources(rule: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let resources = meta::texts(rule, &["resources"]);
    if resources.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    let (mut with_all, mut of_all): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    let mut has_plain = false;
    for (index, resource) in resources.iter().enumerate() {
        let path = path.index(index);
        if resource.is_empty() {
            errors.push(FieldError::required(&path, ""));
            continue;
        }
        let Some((kind, sub)) = resource.split_once('/') else {
            has_plain = *resource != "*";
            continue;
        };
        if with_all.contains(&kind) {
            let why = format!("if '{kind}/*' is present, must not specify {resource}");
            errors.push(FieldError::invalid(&path, *resource, why));
        }
        if of_all.contains(&sub) {
            let why = format!("if '*/{sub}' is present, must not specify {resource}");
            errors.push(FieldError::invalid(&path, *resource, why));
        }
        if sub == "*" {
            with_all.push(kind);
        }
        if kind == "*" {
            of_all.push(sub);
        }
    }
    if resources.len() > 1 && resources.contains(&"*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        errors.push(FieldError::invalid(path, rule["resources"].clone(), why));
    }
    if resources.contains(&"*") && has_plain {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.push(FieldError::invalid(path, rule["resources"].clone(), why));
    }
}

fn validate_client(client: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    match (meta::str_at(client, &["url"]), meta::at(client, &["service"])) {
        (Some(url), None) => validate_url(url, &path.child("url"), errors),
        (None, Some(service)) => validate_service(service, &path.child("service"), errors),
        _ => errors.push(FieldError::required(path, "exactly one of url or service is required")),
    }
}

fn validate_url(url: &str, path: &FieldPath, errors: &mut FieldErrors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        let why = format!("'https' is the only allowed URL scheme{FORM}");
        errors.push(FieldError::invalid(path, scheme, why));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or_default() };
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if host.is_empty() {
        errors.push(FieldError::invalid(path, host, format!("host must be specified{FORM}")));
    }
    if let Some(user) = user {
        errors.push(FieldError::invalid(path, user, "user information is not permitted in the URL"));
    }
    if !fragment.is_empty() {
        errors.push(FieldError::invalid(path, fragment, "fragments are not permitted in the URL"));
    }
    if !query.is_empty() {
        errors.push(FieldError::invalid(path, query, "query parameters are not permitted in the URL"));
    }
}

fn validate_service(service: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for field in ["name", "namespace"] {
        if text(service, field).is_empty() {
            errors.push(FieldError::required(&path.child(field), ""));
        }
    }
    let port = meta::i64_at(service, &["port"]).unwrap_or_default();
    let problems = names::port_number(port);
    if !problems.is_empty() {
        let why = format!("port is not valid: {}", problems.join(", "));
        errors.push(FieldError::invalid(&path.child("port"), port, why));
    }
    let url_path = text(service, "path");
    let path = path.child("path");
    if matches!(url_path, "" | "/") {
        return;
    }
    if !url_path.starts_with('/') {
        errors.push(FieldError::invalid(&path, url_path, "must start with a '/'"));
    }
    // The first character counts as the slash, whatever it is.
    let inside = url_path.strip_prefix(|_: char| true).unwrap_or_default();
    let inside = inside.strip_suffix('/').unwrap_or(inside);
    for (index, segment) in inside.split('/').enumerate() {
        if segment.is_empty() {
            errors.push(FieldError::invalid(&path, url_path, format!("segment[{index}] may not be empty")));
            continue;
        }
        for problem in names::dns1123_subdomain(segment) {
            errors.push(FieldError::invalid(&path, url_path, format!("segment[{index}]: {problem}")));
        }
    }
}

fn validate_conditions(conditions: &[Value], path: &FieldPath, errors: &mut FieldErrors) {
    if conditions.len() > CONDITIONS_MAX {
        errors.push(FieldError::too_many(path, Some(conditions.len()), CONDITIONS_MAX));
    }
    let mut seen = Vec::new();
    for (index, condition) in conditions.iter().enumerate() {
        let path = path.index(index);
        let name = text(condition, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else {
            for problem in names::qualified_name(name) {
                errors.push(FieldError::invalid(&path.child("name"), name, problem));
            }
            if seen.contains(&name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
            seen.push(name);
        }
        if text(condition, "expression").trim().is_empty() {
            errors.push(FieldError::required(&path.child("expression"), ""));
        }
    }
}

fn validate_versions(webhook: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let versions = meta::texts(webhook, &["admissionReviewVersions"]);
    if versions.is_empty() {
        errors.push(FieldError::required(path, format!("must specify one of {REVIEW_VERSIONS_TEXT}")));
        return;
    }
    for (index, version) in versions.iter().enumerate() {
        let path = path.index(index);
        if versions[..index].contains(version) {
            errors.push(FieldError::invalid(&path, *version, "duplicate version"));
            continue;
        }
        for problem in names::dns1035_label(version) {
            errors.push(FieldError::invalid(&path, *version, problem));
        }
    }
    if !versions.iter().any(|version| REVIEW_VERSIONS.contains(version)) {
        let why = format!("must include at least one of {REVIEW_VERSIONS_TEXT}");
        errors.push(FieldError::invalid(path, webhook["admissionReviewVersions"].clone(), why));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problems(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut webhook = json!({
            "name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": { "url": "https://host/path" },
            "rules": [{ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"] }],
        });
        change(&mut webhook);
        WebhookConfiguration.validate(&json!({ "webhooks": [webhook] })).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn mistakes_are_told_as_upstream_tells_them() {
        assert_eq!(problems(|_| {}), [""; 0]);
        let cases: [(&str, Value, &str); 12] = [
            (
                "/name",
                json!("a.b"),
                "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots",
            ),
            (
                "/sideEffects",
                json!("Some"),
                "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
            ),
            (
                "/admissionReviewVersions",
                json!(["v7"]),
                "webhooks[0].admissionReviewVersions: Invalid value: [\"v7\"]: must include at least one of v1, v1beta1",
            ),
            (
                "/clientConfig",
                json!({}),
                "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
            ),
            (
                "/clientConfig/url",
                json!("http://host"),
                "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
            ),
            (
                "/clientConfig/url",
                json!("https://me@host"),
                "webhooks[0].clientConfig.url: Invalid value: \"me\": user information is not permitted in the URL",
            ),
            (
                "/clientConfig/url",
                json!("https://host?a=b"),
                "webhooks[0].clientConfig.url: Invalid value: \"a=b\": query parameters are not permitted in the URL",
            ),
            (
                "/clientConfig",
                json!({ "service": { "name": "s", "namespace": "n", "port": 443, "path": "/a//b" } }),
                "webhooks[0].clientConfig.service.path: Invalid value: \"/a//b\": segment[1] may not be empty",
            ),
            (
                "/rules/0/resources",
                json!(["*", "pods"]),
                "webhooks[0].rules[0].resources: Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify other resources without subresources",
            ),
            (
                "/rules/0/resources",
                json!(["pods/*", "pods/log"]),
                "webhooks[0].rules[0].resources[1]: Invalid value: \"pods/log\": if 'pods/*' is present, must not specify pods/log",
            ),
            (
                "/rules/0/operations",
                json!(["create"]),
                "webhooks[0].rules[0].operations[0]: Unsupported value: \"create\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\"",
            ),
            ("/rules/0/apiGroups", json!([]), "webhooks[0].rules[0].apiGroups: Required value"),
        ];
        for (pointer, value, expect) in cases {
            let found = problems(|webhook| *webhook.pointer_mut(pointer).expect("a field") = value);
            assert_eq!(found, [expect], "{pointer}");
        }
        assert_eq!(
            problems(|webhook| webhook["timeoutSeconds"] = json!(31)),
            ["webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds"]
        );
    }
}
