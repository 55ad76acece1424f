//! APIServices (kube-aggregator pkg/registry/apiservice and pkg/apis/apiregistration).

use serde_json::{Value, json};

use super::{NameRule, Part, Rules, Strategy};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta, names,
};

/// The condition that says whether the server behind an APIService answers.
pub const AVAILABLE: &str = "Available";
/// Validation's bounds, whose texts are upstream's.
const GROUP_PRIORITIES: std::ops::RangeInclusive<i64> = 1..=20_000;
const VERSION_PRIORITIES: std::ops::RangeInclusive<i64> = 1..=1000;

#[derive(Debug)]
pub(super) struct ApiService;

impl Strategy for ApiService {
    fn rules(&self) -> &Rules {
        const RULES: Rules = Rules { name: NameRule::PathSegment, updates_unconditionally: false, ..Rules::STATUS };
        &RULES
    }

    /// What this server answers itself is available at once.
    fn prepare_create(&self, new: &mut Value) {
        if meta::at(new, &["spec", "service"]).is_none() {
            let created = meta::str_at(new, &["metadata", "creationTimestamp"]).unwrap_or_default();
            let condition = local_condition(created);
            meta::set(new, &["status", "conditions"], json!([condition]));
        }
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let path = FieldPath::new("spec");
        let (group, version) = (text(obj, "group"), text(obj, "version"));
        let required = format!("{version}.{group}");
        if meta::name(obj) != required {
            let detail = format!("must be `spec.version+\".\"+spec.group`: {required:?}");
            errors.push(FieldError::invalid(&FieldPath::new("metadata").child("name"), meta::name(obj), detail));
        }
        if group.is_empty() && version != "v1" {
            let detail = "only v1 may have an empty group and it better be legacy kube";
            errors.push(FieldError::required(&path.child("group"), detail));
        }
        if !group.is_empty() {
            for problem in names::dns1123_subdomain(group) {
                errors.push(FieldError::invalid(&path.child("group"), group, problem));
            }
        }
        for problem in names::dns1035_label(version) {
            errors.push(FieldError::invalid(&path.child("version"), version, problem));
        }
        for (field, bounds, detail) in [
            ("groupPriorityMinimum", GROUP_PRIORITIES, "must be positive and less than 20000"),
            ("versionPriority", VERSION_PRIORITIES, "must be positive and less than 1000"),
        ] {
            let number = meta::i64_at(obj, &["spec", field]).unwrap_or_default();
            if !bounds.contains(&number) {
                errors.push(FieldError::invalid(&path.child(field), number, detail));
            }
        }
        match meta::at(obj, &["spec", "service"]) {
            None => validate_local(obj, &path, &mut errors),
            Some(service) => validate_remote(obj, service, &path, &mut errors),
        }
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, _old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if part == Part::Status {
            let path = FieldPath::new("status").child("conditions");
            for (index, condition) in meta::items_at(new, &["status", "conditions"]).iter().enumerate() {
                let status = meta::str_at(condition, &["status"]).unwrap_or_default();
                if !["True", "False", "Unknown"].contains(&status) {
                    let path = path.index(index).child("status");
                    errors.push(FieldError::not_supported(&path, status, &["True", "False", "Unknown"]));
                }
            }
        }
        errors
    }
}

/// The condition of an APIService that this server answers itself.
pub fn local_condition(since: &str) -> Value {
    condition("True", "Local", "Local APIServices are always available", since)
}

/// A condition [`AVAILABLE`] that holds since a time.
pub fn condition(status: &str, reason: &str, message: &str, since: &str) -> Value {
    json!({ "type": AVAILABLE, "status": status, "reason": reason, "message": message, "lastTransitionTime": since })
}

fn text<'a>(obj: &'a Value, field: &str) -> &'a str {
    meta::str_at(obj, &["spec", field]).unwrap_or_default()
}

fn validate_local(obj: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let bundle = text(obj, "caBundle");
    if !bundle.is_empty() {
        // Three bytes for four characters, less what is filled up.
        let len = bundle.trim_end_matches('=').len() * 3 / 4;
        let detail = "local APIServices may not have a caBundle";
        errors.push(FieldError::invalid(&path.child("caBundle"), format!("{len} bytes"), detail));
    }
    if meta::bool_at(obj, &["spec", "insecureSkipTLSVerify"]) == Some(true) {
        let detail = "local APIServices may not have insecureSkipTLSVerify";
        errors.push(FieldError::invalid(&path.child("insecureSkipTLSVerify"), true, detail));
    }
}

fn validate_remote(obj: &Value, service: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let of_service = path.child("service");
    for field in ["namespace", "name"] {
        if meta::str_at(service, &[field]).unwrap_or_default().is_empty() {
            errors.push(FieldError::required(&of_service.child(field), ""));
        }
    }
    let port = meta::i64_at(service, &["port"]).unwrap_or_default();
    if !(1..=65_535).contains(&port) {
        let detail = "port is not valid: must be between 1 and 65535, inclusive";
        errors.push(FieldError::invalid(&of_service.child("port"), port, detail));
    }
    if meta::bool_at(obj, &["spec", "insecureSkipTLSVerify"]) == Some(true) && !text(obj, "caBundle").is_empty() {
        let detail = "may not be true if caBundle is present";
        errors.push(FieldError::invalid(&path.child("insecureSkipTLSVerify"), true, detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Value {
        json!({
            "metadata": { "name": "v1.example.com" },
            "spec": {
                "group": "example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 10,
                "service": { "namespace": "n", "name": "s", "port": 443 }, "insecureSkipTLSVerify": true,
            },
        })
    }

    #[test]
    fn what_upstream_refuses_is_refused() {
        type Change = fn(&mut Value);
        assert!(ApiService.validate(&service()).is_empty());
        let cases: [(Change, &str); 6] = [
            (
                |o| o["metadata"]["name"] = json!("x"),
                "metadata.name: Invalid value: \"x\": must be `spec.version+\".\"+spec.group`: \"v1.example.com\"",
            ),
            (
                |o| o["spec"]["versionPriority"] = json!(0),
                "spec.versionPriority: Invalid value: 0: must be positive and less than 1000",
            ),
            (
                |o| o["spec"]["caBundle"] = json!("YQ=="),
                "spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present",
            ),
            (|o| o["spec"]["service"]["name"] = json!(""), "spec.service.name: Required value"),
            (
                |o| o["spec"]["service"]["port"] = json!(0),
                "spec.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive",
            ),
            (
                |o| drop(o["spec"].as_object_mut().expect("an object").remove("service")),
                "spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify",
            ),
        ];
        for (change, text) in cases {
            let mut object = service();
            change(&mut object);
            let errors: Vec<String> = ApiService.validate(&object).iter().map(ToString::to_string).collect();
            assert_eq!(errors, [text]);
        }
    }

    #[test]
    fn a_local_one_is_available_from_its_creation() {
        let mut local = json!({ "metadata": { "creationTimestamp": "2026-01-02T03:04:05Z" }, "spec": {} });
        ApiService.prepare_create(&mut local);
        assert_eq!(local["status"]["conditions"][0]["reason"], "Local");
        assert_eq!(local["status"]["conditions"][0]["lastTransitionTime"], "2026-01-02T03:04:05Z");
        let mut remote = service();
        ApiService.prepare_create(&mut remote);
        assert_eq!(remote.get("status"), None);
    }
}
