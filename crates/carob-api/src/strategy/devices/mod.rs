//! What is asked of devices: ResourceClaims, their templates, DeviceClasses (kubernetes pkg/apis/resource/validation).
//! Expressions of selectors are not compiled: no part of carob gives devices of these away.

mod slice;

use std::collections::BTreeSet;

use serde_json::Value;

pub(super) use slice::ResourceSlice;

use super::{Part, Rules, Strategy, csi::driver_name_errors, workload::immutable};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    lifecycle, meta, names,
    pod::is_extended,
};

/// Requests of a claim, constraints, configurations, selectors of a request.
const LIST_MAX: usize = 32;
/// Alternatives of a request.
const ALTERNATIVES_MAX: usize = 8;
/// Consumers of a claim.
const RESERVED_FOR_MAX: usize = 256;
/// Longest expression and longest parameters, bytes.
const TEXT_LEN_MAX: usize = 10 * 1024;
/// Longest name of an attribute without its domain, bytes.
const ID_LEN_MAX: usize = 32;
const REFERENCE: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
const TAINT_EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

#[derive(Debug)]
pub(super) struct ResourceClaim;

impl Strategy for ResourceClaim {
    fn rules(&self) -> &Rules {
        &Rules::STATUS
    }

    fn default(&self, obj: &mut Value) {
        default_requests(obj, &["spec", "devices", "requests"]);
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        claim_errors(&obj["spec"]["devices"], &FieldPath::new("spec").child("devices"), &mut errors);
        errors
    }

    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if part == Part::Status {
            claim_status_errors(new, old, &mut errors);
        } else {
            immutable(new, old, &["spec"], &mut errors);
        }
        errors
    }
}

#[derive(Debug)]
pub(super) struct ResourceClaimTemplate;

impl Strategy for ResourceClaimTemplate {
    fn rules(&self) -> &Rules {
        &Rules::PLAIN
    }

    fn default(&self, obj: &mut Value) {
        default_requests(obj, &["spec", "spec", "devices", "requests"]);
    }

    fn validate_create(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let path = FieldPath::new("spec");
        let labels = meta::at(obj, &["spec", "metadata", "labels"]).and_then(Value::as_object);
        lifecycle::validate_labels(labels, &path.child("metadata").child("labels"), &mut errors);
        claim_errors(&obj["spec"]["spec"]["devices"], &path.child("spec").child("devices"), &mut errors);
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        immutable(new, old, &["spec"], &mut errors);
        errors
    }
}

#[derive(Debug)]
pub(super) struct DeviceClass;

impl Strategy for DeviceClass {
    fn rules(&self) -> &Rules {
        &Rules::COUNTED
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let (spec, path) = (&obj["spec"], FieldPath::new("spec"));
        selector_errors(spec, &path, &mut errors);
        each(spec, "config", LIST_MAX, &path, &mut errors, configuration_errors);
        if let Some(name) = meta::str_at(spec, &["extendedResourceName"]) {
            let for_quotas = names::qualified_name(&format!("requests.{name}"));
            if !is_extended(name) || !for_quotas.is_empty() {
                let path = path.child("extendedResourceName");
                errors.push(FieldError::invalid(&path, name, "must be a valid extended resource name"));
            }
        }
        errors
    }
}

/// Checks the items of a list, unless there are too many of them.
fn each(
    holder: &Value,
    field: &str,
    max: usize,
    path: &FieldPath,
    errors: &mut FieldErrors,
    mut check: impl FnMut(&Value, &FieldPath, &mut FieldErrors),
) {
    let (items, path) = (meta::items_at(holder, &[field]), path.child(field));
    if items.len() > max {
        errors.push(FieldError::too_many(&path, Some(items.len()), max));
        return;
    }
    for (index, item) in items.iter().enumerate() {
        check(item, &path.index(index), errors);
    }
}

/// Errors of items that have the same text in a field.
fn duplicate_errors(holder: &Value, list: &str, field: &str, max: usize, path: &FieldPath, errors: &mut FieldErrors) {
    let (items, path) = (meta::items_at(holder, &[list]), path.child(list));
    let mut known = BTreeSet::new();
    for (index, item) in items.iter().enumerate().filter(|_| items.len() <= max) {
        let text = meta::text(item, &[field]);
        if !known.insert(text) {
            errors.push(FieldError::duplicate(&path.index(index), text));
        }
    }
}

/// An exact count is one where none is given.
fn default_requests(obj: &mut Value, path: &[&str]) {
    let default = |request: &mut Value| {
        if meta::text(request, &["allocationMode"]) == "ExactCount" && meta::at(request, &["count"]).is_none() {
            meta::set(request, &["count"], 1);
        }
    };
    for request in meta::at_mut(obj, path).and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(exactly) = meta::at_mut(request, &["exactly"]) {
            default(exactly);
        }
        let alternatives = meta::at_mut(request, &["firstAvailable"]).and_then(Value::as_array_mut);
        alternatives.into_iter().flatten().for_each(default);
    }
}

fn claim_errors(devices: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    each(devices, "requests", LIST_MAX, path, errors, request_errors);
    duplicate_errors(devices, "requests", "name", LIST_MAX, path, errors);
    let names = request_names(devices);
    each(devices, "constraints", LIST_MAX, path, errors, |constraint, path, errors| {
        reference_errors(constraint, &names, path, errors);
        let attribute = |field| meta::str_at(constraint, &[field]);
        match (attribute("matchAttribute"), attribute("distinctAttribute")) {
            (Some(name), _) => attribute_errors(name, &path.child("matchAttribute"), errors),
            (None, Some(name)) => attribute_errors(name, &path.child("distinctAttribute"), errors),
            (None, None) => {
                let message = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple \
                               fields are set";
                errors.push(FieldError::required(path, message));
            }
        }
    });
    each(devices, "config", LIST_MAX, path, errors, |config, path, errors| {
        reference_errors(config, &names, path, errors);
        configuration_errors(config, path, errors);
    });
}

/// Requests by name, alternatives as `request/alternative`.
fn request_names(devices: &Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for request in meta::items_at(devices, &["requests"]) {
        let name = meta::text(request, &["name"]);
        names.insert(name.to_owned());
        for alternative in meta::items_at(request, &["firstAvailable"]) {
            names.insert(format!("{name}/{}", meta::text(alternative, &["name"])));
        }
    }
    names
}

fn reference_errors(holder: &Value, names: &BTreeSet<String>, path: &FieldPath, errors: &mut FieldErrors) {
    let mut known = BTreeSet::new();
    let mut repeated = FieldErrors::new();
    each(holder, "requests", LIST_MAX, path, errors, |name, path, errors| {
        let name = name.as_str().unwrap_or_default();
        let parts: Vec<&str> = name.split('/').collect();
        if parts.len() <= 2 {
            for part in parts {
                invalid_each(path, part, names::dns1123_label(part), errors);
            }
        }
        if !names.contains(name) {
            errors.push(FieldError::invalid(path, name, REFERENCE));
        }
        if !known.insert(name.to_owned()) {
            repeated.push(FieldError::duplicate(path, name));
        }
    });
    errors.append(&mut repeated);
}

fn request_errors(request: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let name = meta::text(request, &["name"]);
    invalid_each(&path.child("name"), name, names::dns1123_label(name), errors);
    let alternatives = !meta::items_at(request, &["firstAvailable"]).is_empty();
    match (meta::at(request, &["exactly"]), alternatives) {
        (None, false) => {
            errors.push(FieldError::required(path, "exactly one of `exactly` or `firstAvailable` is required"));
        }
        (Some(_), true) => {
            let message = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            errors.push(FieldError::invalid(path, Value::Null, message));
        }
        (Some(exactly), false) => exact_errors(exactly, &path.child("exactly"), errors),
        (None, true) => {
            each(request, "firstAvailable", ALTERNATIVES_MAX, path, errors, |alternative, path, errors| {
                let name = meta::text(alternative, &["name"]);
                invalid_each(&path.child("name"), name, names::dns1123_label(name), errors);
                exact_errors(alternative, path, errors);
            });
            duplicate_errors(request, "firstAvailable", "name", ALTERNATIVES_MAX, path, errors);
        }
    }
}

fn exact_errors(request: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let (class, class_path) = (meta::text(request, &["deviceClassName"]), path.child("deviceClassName"));
    if class.is_empty() {
        errors.push(FieldError::required(&class_path, ""));
    } else {
        invalid_each(&class_path, class, names::dns1123_subdomain(class), errors);
    }
    selector_errors(request, path, errors);
    let count = meta::i64_at(request, &["count"]).unwrap_or_default();
    match meta::text(request, &["allocationMode"]) {
        "All" if count != 0 => {
            let message = "must not be specified when allocationMode is 'All'";
            errors.push(FieldError::invalid(&path.child("count"), count, message));
        }
        "ExactCount" if count <= 0 => {
            errors.push(FieldError::invalid(&path.child("count"), count, "must be greater than zero"));
        }
        "All" | "ExactCount" => {}
        other => {
            let path = path.child("allocationMode");
            errors.push(FieldError::not_supported(&path, other, &["All", "ExactCount"]));
        }
    }
    for (index, toleration) in meta::items_at(request, &["tolerations"]).iter().enumerate() {
        toleration_errors(toleration, &path.child("tolerations").index(index), errors);
    }
}

fn selector_errors(holder: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    each(holder, "selectors", LIST_MAX, path, errors, |selector, path, errors| {
        let path = path.child("cel");
        match meta::at(selector, &["cel"]) {
            None => errors.push(FieldError::required(&path, "")),
            Some(cel) if meta::text(cel, &["expression"]).len() > TEXT_LEN_MAX => {
                errors.push(FieldError::too_long(&path.child("expression"), TEXT_LEN_MAX));
            }
            Some(cel) if meta::text(cel, &["expression"]).is_empty() => {
                errors.push(FieldError::required(&path.child("expression"), ""));
            }
            Some(_) => {}
        }
    });
}

fn toleration_errors(toleration: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let text = |field| meta::text(toleration, &[field]);
    if !text("key").is_empty() {
        invalid_each(&path.child("key"), text("key"), names::qualified_name(text("key")), errors);
    }
    match text("operator") {
        "Exists" if !text("value").is_empty() => {
            let message = "must be empty for operator `Exists`";
            errors.push(FieldError::invalid(&path.child("value"), text("value"), message));
        }
        "Equal" => invalid_each(&path.child("value"), text("value"), names::label_value(text("value")), errors),
        "Exists" => {}
        other => errors.push(FieldError::not_supported(&path.child("operator"), other, &["Equal", "Exists"])),
    }
    effect_errors(text("effect"), path, errors);
}

fn effect_errors(effect: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if !effect.is_empty() && !TAINT_EFFECTS.contains(&effect) {
        errors.push(FieldError::not_supported(&path.child("effect"), effect, &TAINT_EFFECTS));
    }
}

fn configuration_errors(config: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let path = path.child("opaque");
    let Some(opaque) = meta::at(config, &["opaque"]) else {
        errors.push(FieldError::required(&path, ""));
        return;
    };
    driver_name_errors(meta::text(opaque, &["driver"]), &path.child("driver"), errors);
    let path = path.child("parameters");
    match meta::at(opaque, &["parameters"]) {
        None => errors.push(FieldError::required(&path, "")),
        Some(parameters) if parameters.to_string().len() > TEXT_LEN_MAX => {
            errors.push(FieldError::too_long(&path, TEXT_LEN_MAX));
        }
        Some(Value::Object(_)) => {}
        Some(_) => errors.push(FieldError::invalid(&path, "<value omitted>", "must be a valid JSON object")),
    }
}

/// The name of an attribute with its domain.
fn attribute_errors(name: &str, path: &FieldPath, errors: &mut FieldErrors) {
    qualified_errors(name, path, errors);
    if !name.contains('/') {
        let message = "a fully qualified name must be a domain and a name separated by a slash";
        errors.push(FieldError::invalid(path, name, message));
    }
}

/// The name of an attribute or a capacity; upstream lets a second slash pass.
fn qualified_errors(name: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let (domain, id) = match name.split('/').collect::<Vec<_>>()[..] {
        [id] => (None, id),
        [domain, id] => (Some(domain), id),
        _ => return,
    };
    match domain {
        Some("") => errors.push(FieldError::invalid(path, "", "the domain must not be empty")),
        Some(domain) => driver_name_errors(domain, path, errors),
        None => {}
    }
    if id.is_empty() && domain.is_some() {
        errors.push(FieldError::invalid(path, "", "the name must not be empty"));
        return;
    }
    if id.len() > ID_LEN_MAX {
        errors.push(FieldError::too_long(path, ID_LEN_MAX));
    }
    invalid_each(path, id, names::c_identifier(id), errors);
}

fn claim_status_errors(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (status, path) = (&new["status"], FieldPath::new("status"));
    each(status, "reservedFor", RESERVED_FOR_MAX, &path, errors, |consumer, path, errors| {
        for field in ["resource", "name", "uid"].into_iter().filter(|field| meta::text(consumer, &[field]).is_empty()) {
            errors.push(FieldError::required(&path.child(field), ""));
        }
    });
    duplicate_errors(status, "reservedFor", "uid", RESERVED_FOR_MAX, &path, errors);
    let reserved = meta::items_at(status, &["reservedFor"]);
    let allocation = |claim: &Value| meta::at(claim, &["status", "allocation"]).cloned();
    if !reserved.is_empty() && allocation(new).is_none() {
        let message = "may not be specified when `allocated` is not set";
        errors.push(FieldError::forbidden(&path.child("reservedFor"), message));
    } else if meta::is_being_deleted(new) {
        let before = meta::items_at(old, &["status", "reservedFor"]);
        if reserved.iter().any(|consumer| !before.contains(consumer)) {
            let message = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.push(FieldError::forbidden(&path.child("reservedFor"), message));
        }
    }
    if allocation(new).is_some() && allocation(old).is_some() {
        immutable(new, old, &["status", "allocation"], errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of_claim(devices: Value) -> String {
        let mut claim = json!({"spec": {"devices": devices}});
        ResourceClaim.default(&mut claim);
        let errors = ResourceClaim.validate_create(&claim);
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    fn exactly(request: Value) -> Value {
        json!({"requests": [{"name": "r", "exactly": request}]})
    }

    #[test]
    fn requests() {
        let sound = json!({"deviceClassName": "a", "allocationMode": "ExactCount"});
        let cases = [
            (exactly(sound.clone()), ""),
            (
                json!({"requests": [{"name": "r"}]}),
                "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
            ),
            (
                exactly(json!({"allocationMode": "ExactCount"})),
                "spec.devices.requests[0].exactly.deviceClassName: Required value",
            ),
            (
                exactly(json!({"deviceClassName": "a", "allocationMode": "All", "count": 1})),
                "spec.devices.requests[0].exactly.count: Invalid value: 1: must not be specified when allocationMode is \
                 'All'",
            ),
            (
                exactly(json!({"deviceClassName": "a", "allocationMode": "Some"})),
                "spec.devices.requests[0].exactly.allocationMode: Unsupported value: \"Some\": supported values: \
                 \"All\", \"ExactCount\"",
            ),
            (
                json!({"requests": [{"name": "r", "exactly": sound}, {"name": "r", "exactly": sound}]}),
                "spec.devices.requests[1]: Duplicate value: \"r\"",
            ),
            (
                json!({"config": [{"requests": ["s"], "opaque": {"driver": "a", "parameters": {}}}]}),
                "spec.devices.config[0].requests[0]: Invalid value: \"s\": must be the name of a request in the claim or \
                 the name of a request and a subrequest separated by '/'",
            ),
            (
                json!({"config": [{"opaque": {"driver": "a", "parameters": []}}]}),
                "spec.devices.config[0].opaque.parameters: Invalid value: \"<value omitted>\": must be a valid JSON \
                 object",
            ),
            (
                json!({"constraints": [{"matchAttribute": "b"}]}),
                "spec.devices.constraints[0].matchAttribute: Invalid value: \"b\": a fully qualified name must be a \
                 domain and a name separated by a slash",
            ),
        ];
        for (devices, expected) in cases {
            assert_eq!(of_claim(devices), expected);
        }
        assert_eq!(
            of_claim(json!({"constraints": vec![json!({"matchAttribute": "a/b"}); 33]})),
            "spec.devices.constraints: Too many: 33: must have at most 32 items"
        );
    }
}
