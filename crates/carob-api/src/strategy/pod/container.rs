//! Containers of every sort (kubernetes pkg/apis/core/validation: validateContainers and its siblings).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{env, mount, probe, resources, security};
use crate::strategy::fields::{require, require_name, text};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta, names,
};

/// What the checks of one container need to know of its Pod.
pub(super) struct Surroundings<'a> {
    /// The volumes that have no mistakes, by name.
    pub(super) volumes: BTreeMap<&'a str, &'a Value>,
    /// Names of resourceClaims.
    pub(super) claims: BTreeSet<&'a str>,
    pub(super) restart_policy: &'a str,
    /// The Pod is in the host's user namespace.
    pub(super) host_users: bool,
    /// terminationGracePeriodSeconds.
    pub(super) grace_seconds: Option<i64>,
}

/// Fields that an ephemeral container may not have.
const NOT_FOR_EPHEMERAL: [&str; 9] = [
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
];
const CONTAINERS: &str = "containers";
const INIT_CONTAINERS: &str = "initContainers";
const EPHEMERAL_CONTAINERS: &str = "ephemeralContainers";

pub(super) fn validate_all(spec: &Value, around: &Surroundings<'_>, path: &FieldPath, errors: &mut FieldErrors) {
    validate_apps(spec, around, &path.child(CONTAINERS), errors);
    validate_inits(spec, around, &path.child(INIT_CONTAINERS), errors);
    validate_ephemerals(spec, around, &path.child(EPHEMERAL_CONTAINERS), errors);
}

fn duplicate_name(name: &str, path: &FieldPath, errors: &mut FieldErrors) {
    errors.push(FieldError::duplicate(&path.child("name"), name));
}

fn validate_apps(spec: &Value, around: &Surroundings<'_>, path: &FieldPath, errors: &mut FieldErrors) {
    let containers = meta::items_at(spec, &[CONTAINERS]);
    if containers.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        validate_common(container, around, &path, errors);
        let name = text(container, "name");
        if !seen.insert(name) {
            duplicate_name(name, &path, errors);
        }
        validate_probes(container, around, &path, errors);
        validate_restart(container, &path, errors);
    }
    let mut ports = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        validate_host_ports(container, &mut ports, &path.index(index), errors);
    }
}

/// An init container runs to its end before the next starts, unless it is a sidecar.
fn validate_inits(spec: &Value, around: &Surroundings<'_>, path: &FieldPath, errors: &mut FieldErrors) {
    let mut seen: BTreeSet<&str> = meta::items_at(spec, &[CONTAINERS]).iter().map(|c| text(c, "name")).collect();
    for (index, container) in meta::items_at(spec, &[INIT_CONTAINERS]).iter().enumerate() {
        let list = path;
        let path = path.index(index);
        validate_common(container, around, &path, errors);
        validate_restart(container, &path, errors);
        let name = text(container, "name");
        if seen.contains(name) {
            duplicate_name(name, &path, errors);
        } else if !name.is_empty() {
            seen.insert(name);
        }
        // Upstream looks at each alone, so the path is always the first's.
        validate_host_ports(container, &mut BTreeSet::new(), &list.index(0), errors);
        if text(container, "restartPolicy") == "Always" {
            validate_probes(container, around, &path, errors);
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if meta::at(container, &[field]).is_some() {
                let message = "may not be set for init containers without restartPolicy=Always";
                errors.push(FieldError::forbidden(&path.child(field), message));
            }
        }
        for (index, policy) in meta::items_at(container, &["resizePolicy"]).iter().enumerate() {
            if text(policy, "restartPolicy") == "RestartContainer" {
                let path = path.child("resizePolicy").index(index).child("restartPolicy");
                let message = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                errors.push(FieldError::invalid(&path, "RestartContainer", message));
            }
        }
    }
}

fn validate_ephemerals(spec: &Value, around: &Surroundings<'_>, path: &FieldPath, errors: &mut FieldErrors) {
    const MESSAGE: &str = "cannot be set for an Ephemeral Container";
    let others = [CONTAINERS, INIT_CONTAINERS].map(|list| meta::items_at(spec, &[list]));
    let others: BTreeSet<&str> = others.into_iter().flatten().map(|c| text(c, "name")).collect();
    let mut seen = others.clone();
    for (index, container) in meta::items_at(spec, &[EPHEMERAL_CONTAINERS]).iter().enumerate() {
        let path = path.index(index);
        validate_common(container, around, &path, errors);
        validate_image_of_pod(container, &path, errors);
        let name = text(container, "name");
        if !seen.insert(name) {
            duplicate_name(name, &path, errors);
        }
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.push(FieldError::not_found(&path.child("targetContainerName"), target));
        }
        for field in NOT_FOR_EPHEMERAL {
            let given = meta::at(container, &[field]);
            let default = field == "resources" && given.and_then(Value::as_object).is_some_and(|it| it.is_empty());
            if given.is_some() && !default {
                errors.push(FieldError::forbidden(&path.child(field), MESSAGE));
            }
        }
        for (index, mount) in meta::items_at(container, &["volumeMounts"]).iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !text(mount, field).is_empty() {
                    let path = path.child("volumeMounts").index(index).child(field);
                    errors.push(FieldError::forbidden(&path, MESSAGE));
                }
            }
        }
    }
}

/// What holds for Pods but not for templates.
pub(super) fn validate_image_of_pod(container: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let image = text(container, "image");
    if image != image.trim() {
        errors.push(FieldError::invalid(&path.child("image"), image, "must not have leading or trailing whitespace"));
    }
}

fn validate_common(container: &Value, around: &Surroundings<'_>, path: &FieldPath, errors: &mut FieldErrors) {
    require_name(container, "name", names::dns1123_label, path, errors);
    require(container, "image", path, errors);
    validate_ports(container, &path.child("ports"), errors);
    env::validate(container, path, errors);
    mount::validate(container, &around.volumes, path, errors);
    if let Some(own) = meta::at(container, &["resources"]) {
        resources::validate_of_container(own, &around.claims, &path.child("resources"), errors);
    }
    validate_resize(container, around.restart_policy, &path.child("resizePolicy"), errors);
    if let Some(context) = meta::at(container, &["securityContext"]) {
        security::validate_of_container(context, around.host_users, &path.child("securityContext"), errors);
    }
}

/// What a change of resources does to the container. All errors are at the list.
fn validate_resize(container: &Value, pod_restarts: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (index, policy) in meta::items_at(container, &["resizePolicy"]).iter().enumerate() {
        let (resource, restart) = (text(policy, "resourceName"), text(policy, "restartPolicy"));
        if !seen.insert(resource) {
            errors.push(FieldError::duplicate(&path.index(index), resource));
        }
        for (value, supported) in [(resource, ["cpu", "memory"]), (restart, ["NotRequired", "RestartContainer"])] {
            if value.is_empty() {
                errors.push(FieldError::required(path, ""));
            } else if !supported.contains(&value) {
                errors.push(FieldError::not_supported(path, value, &supported));
            }
        }
        if pod_restarts == "Never" && restart != "NotRequired" {
            let message = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.push(FieldError::invalid(path, restart, message));
        }
    }
}

/// What follows the end of one container, whatever its Pod's policy is.
fn validate_restart(container: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    /// Rules of one container, and exit codes of one rule.
    const RULES_MAX: usize = 20;
    const CODES_MAX: usize = 255;
    const POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];
    let (policy, rules) =
        (meta::str_at(container, &["restartPolicy"]), meta::items_at(container, &["restartPolicyRules"]));
    let policy_path = path.child("restartPolicy");
    match policy {
        None if !rules.is_empty() => {
            errors.push(FieldError::required(&policy_path, "must specify restartPolicy when restart rules are used"));
        }
        Some(policy) if !POLICIES.contains(&policy) => {
            errors.push(FieldError::not_supported(&policy_path, policy, &POLICIES));
        }
        _ => {}
    }
    if rules.len() > RULES_MAX {
        errors.push(FieldError::too_many(&path.child("restartPolicyRules"), Some(rules.len()), RULES_MAX));
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.child("restartPolicyRules").index(index);
        let action = text(rule, "action");
        if !matches!(action, "Restart" | "RestartAllContainers") {
            let known = &["Restart", "RestartAllContainers"];
            errors.push(FieldError::not_supported(&path.child("action"), action, known));
        }
        let path = path.child("exitCodes");
        let Some(codes) = meta::at(rule, &["exitCodes"]) else {
            errors.push(FieldError::required(&path, "must be specified"));
            continue;
        };
        let operator = text(codes, "operator");
        if !matches!(operator, "In" | "NotIn") {
            errors.push(FieldError::not_supported(&path.child("operator"), operator, &["In", "NotIn"]));
        }
        let count = meta::items_at(codes, &["values"]).len();
        if count > CODES_MAX {
            errors.push(FieldError::too_many(&path.child("values"), Some(count), CODES_MAX));
        }
    }
}

fn validate_probes(container: &Value, around: &Surroundings<'_>, path: &FieldPath, errors: &mut FieldErrors) {
    for field in ["postStart", "preStop"] {
        if let Some(handler) = meta::at(container, &["lifecycle", field]) {
            let path = path.child("lifecycle").child(field);
            probe::validate_lifecycle_handler(handler, around.grace_seconds, &path, errors);
        }
    }
    for (field, kind) in [
        ("livenessProbe", probe::Kind::Liveness),
        ("readinessProbe", probe::Kind::Readiness),
        ("startupProbe", probe::Kind::Startup),
    ] {
        if let Some(given) = meta::at(container, &[field]) {
            probe::validate(given, kind, &path.child(field), errors);
        }
    }
}

fn validate_ports(container: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (index, port) in meta::items_at(container, &["ports"]).iter().enumerate() {
        let path = path.index(index);
        let name = text(port, "name");
        if !name.is_empty() {
            let messages = names::port_name(name);
            if messages.is_empty() && !seen.insert(name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
            for message in messages {
                errors.push(FieldError::invalid(&path.child("name"), name, message));
            }
        }
        let number = |field| meta::i64_at(port, &[field]).unwrap_or_default();
        if number("containerPort") == 0 {
            errors.push(FieldError::required(&path.child("containerPort"), ""));
        }
        for (field, number) in ["containerPort", "hostPort"].map(|field| (field, number(field))) {
            if number != 0 {
                for message in names::port_number(number) {
                    errors.push(FieldError::invalid(&path.child(field), number, message));
                }
            }
        }
    }
}

/// Two containers of a Pod cannot have the same port of the host. Init containers run at other times.
fn validate_host_ports(container: &Value, seen: &mut BTreeSet<String>, path: &FieldPath, errors: &mut FieldErrors) {
    for (index, port) in meta::items_at(container, &["ports"]).iter().enumerate() {
        let number = meta::i64_at(port, &["hostPort"]).unwrap_or_default();
        let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
        if number != 0 && !seen.insert(key.clone()) {
            errors.push(FieldError::duplicate(&path.child("ports").index(index).child("hostPort"), key));
        }
    }
}
