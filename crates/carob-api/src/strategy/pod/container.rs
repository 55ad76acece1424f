//! Containers of every sort (kubernetes pkg/apis/core/validation: validateContainerCommon and its callers).

use std::collections::BTreeSet;

use serde_json::Value;

use super::{probe, resources};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta, names,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Init,
    App,
    Ephemeral,
}

/// What the checks of one container need to know of its Pod.
pub(super) struct Surroundings<'a> {
    pub(super) volumes: BTreeSet<&'a str>,
    pub(super) host_network: bool,
    /// The Pod is in the host's user namespace.
    pub(super) host_users: bool,
    /// terminationGracePeriodSeconds.
    pub(super) grace_seconds: Option<i64>,
}

/// Fields that an ephemeral container may not have.
const NOT_FOR_EPHEMERAL: [&str; 7] =
    ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resizePolicy", "restartPolicyRules"];
/// What an environment variable may take from its Pod.
const ENV_FIELD_PATHS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    meta::str_at(value, &[field]).unwrap_or_default()
}

pub(super) fn validate(
    container: &Value,
    sort: Sort,
    around: &Surroundings<'_>,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    validate_name_and_image(container, path, errors);
    validate_ports(container, around.host_network, &path.child("ports"), errors);
    validate_env(container, path, errors);
    validate_mounts(container, around, path, errors);
    if let Some(own) = meta::at(container, &["resources"]) {
        if sort == Sort::Ephemeral && own.as_object().is_some_and(|own| !own.is_empty()) {
            let message = "cannot be set for an Ephemeral Container";
            errors.push(FieldError::forbidden(&path.child("resources"), message));
        } else {
            resources::validate(own, &path.child("resources"), errors);
        }
    }
    if let Some(context) = meta::at(container, &["securityContext"]) {
        validate_security_context(context, around.host_users, &path.child("securityContext"), errors);
    }
    match sort {
        Sort::App => {
            validate_restart(container, path, errors);
            validate_probes(container, around, path, errors);
        }
        Sort::Init => validate_init(container, around, path, errors),
        Sort::Ephemeral => {
            for field in NOT_FOR_EPHEMERAL {
                if meta::at(container, &[field]).is_some() {
                    let message = "cannot be set for an Ephemeral Container";
                    errors.push(FieldError::forbidden(&path.child(field), message));
                }
            }
        }
    }
}

fn validate_name_and_image(container: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    match text(container, "name") {
        "" => errors.push(FieldError::required(&path.child("name"), "")),
        name => {
            for message in names::dns1123_label(name) {
                errors.push(FieldError::invalid(&path.child("name"), name, message));
            }
        }
    }
    let image = text(container, "image");
    if image.is_empty() {
        errors.push(FieldError::required(&path.child("image"), ""));
    } else if image != image.trim() {
        errors.push(FieldError::invalid(&path.child("image"), image, "must not have leading or trailing whitespace"));
    }
}

/// An init container runs to its end before the next starts, unless it is a sidecar.
fn validate_init(container: &Value, around: &Surroundings<'_>, path: &FieldPath, errors: &mut FieldErrors) {
    validate_restart(container, path, errors);
    if text(container, "restartPolicy") == "Always" {
        validate_probes(container, around, path, errors);
        return;
    }
    for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if meta::at(container, &[field]).is_some() {
            let message = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(&path.child(field), message));
        }
    }
}

/// What follows the end of one container, whatever its Pod's policy is.
fn validate_restart(container: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    /// Rules of one container, and exit codes of one rule.
    const RULES_MAX: usize = 20;
    const CODES_MAX: usize = 255;
    let (policy, rules) = (text(container, "restartPolicy"), meta::items_at(container, &["restartPolicyRules"]));
    let policy_path = path.child("restartPolicy");
    if policy.is_empty() && !rules.is_empty() {
        errors.push(FieldError::required(&policy_path, "must specify restartPolicy when restart rules are used"));
    }
    if !policy.is_empty() && !matches!(policy, "Always" | "Never" | "OnFailure") {
        errors.push(FieldError::not_supported(&policy_path, policy, &["Always", "Never", "OnFailure"]));
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
        let Some(codes) = meta::at(rule, &["exitCodes"]) else {
            errors.push(FieldError::required(&path.child("exitCodes"), "must be specified"));
            continue;
        };
        let path = path.child("exitCodes");
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
    for (field, kind) in [
        ("livenessProbe", probe::Kind::Liveness),
        ("readinessProbe", probe::Kind::Readiness),
        ("startupProbe", probe::Kind::Startup),
    ] {
        if let Some(given) = meta::at(container, &[field]) {
            probe::validate(given, kind, &path.child(field), errors);
        }
    }
    for field in ["postStart", "preStop"] {
        if let Some(handler) = meta::at(container, &["lifecycle", field]) {
            let path = path.child("lifecycle").child(field);
            probe::validate_lifecycle_handler(handler, around.grace_seconds, &path, errors);
        }
    }
}

fn validate_ports(container: &Value, host_network: bool, path: &FieldPath, errors: &mut FieldErrors) {
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
        let number = meta::i64_at(port, &["containerPort"]).unwrap_or_default();
        let host_port = meta::i64_at(port, &["hostPort"]).unwrap_or_default();
        if number == 0 {
            errors.push(FieldError::required(&path.child("containerPort"), ""));
        } else {
            for message in names::port_number(number) {
                errors.push(FieldError::invalid(&path.child("containerPort"), number, message));
            }
        }
        if host_port != 0 {
            for message in names::port_number(host_port) {
                errors.push(FieldError::invalid(&path.child("hostPort"), host_port, message));
            }
        }
        if host_network && host_port != number {
            let message = "must match `hostPort` when `hostNetwork` is true";
            errors.push(FieldError::invalid(&path.child("containerPort"), number, message));
        }
        if text(port, "protocol").is_empty() {
            errors.push(FieldError::required(&path.child("protocol"), ""));
        }
    }
}

fn validate_env(container: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for (index, env) in meta::items_at(container, &["env"]).iter().enumerate() {
        let path = path.child("env").index(index);
        let name = text(env, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else {
            for message in names::env_var_name(name) {
                errors.push(FieldError::invalid(&path.child("name"), name, message));
            }
        }
        if let Some(source) = meta::at(env, &["valueFrom"]) {
            validate_env_source(env, source, &path.child("valueFrom"), errors);
        }
    }
    for (index, source) in meta::items_at(container, &["envFrom"]).iter().enumerate() {
        let path = path.child("envFrom").index(index);
        let given: Vec<&str> =
            ["configMapRef", "secretRef"].into_iter().filter(|f| meta::at(source, &[f]).is_some()).collect();
        match given[..] {
            [] => errors.push(FieldError::invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`")),
            [field] => {
                if meta::str_at(source, &[field, "name"]).is_none_or(str::is_empty) {
                    errors.push(FieldError::required(&path.child(field).child("name"), ""));
                }
            }
            _ => errors.push(FieldError::invalid(&path, "", "may not have more than one field specified at a time")),
        }
    }
}

fn validate_env_source(env: &Value, source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    const SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let given: Vec<&str> = SOURCES.into_iter().filter(|f| meta::at(source, &[f]).is_some()).collect();
    match given[..] {
        [] => {
            let message = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
            errors.push(FieldError::invalid(path, "", message));
        }
        [_] if !text(env, "value").is_empty() => {
            errors.push(FieldError::invalid(path, "", "may not be specified when `value` is not empty"));
        }
        [field] => validate_one_env_source(field, &source[field], &path.child(field), errors),
        _ => errors.push(FieldError::invalid(path, "", "may not have more than one field specified at a time")),
    }
}

fn validate_one_env_source(field: &str, source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    match field {
        "fieldRef" => validate_field_ref(source, &ENV_FIELD_PATHS, path, errors),
        "resourceFieldRef" if text(source, "resource").is_empty() => {
            errors.push(FieldError::required(&path.child("resource"), ""));
        }
        "configMapKeyRef" | "secretKeyRef" => {
            if text(source, "name").is_empty() {
                errors.push(FieldError::required(&path.child("name"), ""));
            }
            match text(source, "key") {
                "" => errors.push(FieldError::required(&path.child("key"), "")),
                key => {
                    for message in names::config_map_key(key) {
                        errors.push(FieldError::invalid(&path.child("key"), key, message));
                    }
                }
            }
        }
        "fileKeyRef" => validate_file_key(source, path, errors),
        _ => {}
    }
}

/// A variable of a file in a volume. Which volumes there are is the Pod's to know.
fn validate_file_key(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    match text(source, "key") {
        "" => errors.push(FieldError::required(&path.child("key"), "")),
        key => {
            for message in names::env_var_name(key) {
                errors.push(FieldError::invalid(&path.child("key"), key, message));
            }
        }
    }
    match text(source, "volumeName") {
        "" => errors.push(FieldError::required(&path.child("volumeName"), "")),
        name => {
            for message in names::dns1123_label(name) {
                errors.push(FieldError::invalid(&path.child("volumeName"), name, message));
            }
        }
    }
    match text(source, "path") {
        "" => errors.push(FieldError::required(&path.child("path"), "")),
        given => validate_relative_path(given, &path.child("path"), errors),
    }
}

/// A reference to a field of the Pod itself. `supported` are the plain paths; keyed labels and annotations are known.
pub(super) fn validate_field_ref(source: &Value, supported: &[&str], path: &FieldPath, errors: &mut FieldErrors) {
    let field = text(source, "fieldPath");
    let path = path.child("fieldPath");
    if field.is_empty() {
        errors.push(FieldError::required(&path, ""));
        return;
    }
    let keyed = ["metadata.labels['", "metadata.annotations['"].into_iter().find_map(|p| field.strip_prefix(p));
    if let Some(key) = keyed.and_then(|rest| rest.strip_suffix("']")) {
        for message in names::qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(&path, field, message));
        }
    } else if !supported.contains(&field) {
        errors.push(FieldError::not_supported(&path, field, supported));
    }
}

fn validate_mounts(container: &Value, around: &Surroundings<'_>, path: &FieldPath, errors: &mut FieldErrors) {
    let privileged = meta::bool_at(container, &["securityContext", "privileged"]) == Some(true);
    let mut targets = BTreeSet::new();
    for (index, mount) in meta::items_at(container, &["volumeMounts"]).iter().enumerate() {
        let path = path.child("volumeMounts").index(index);
        match text(mount, "name") {
            "" => errors.push(FieldError::required(&path.child("name"), "")),
            name if !around.volumes.contains(name) => {
                errors.push(FieldError::not_found(&path.child("name"), name));
            }
            _ => {}
        }
        let target = text(mount, "mountPath");
        if target.is_empty() {
            errors.push(FieldError::required(&path.child("mountPath"), ""));
        } else if !targets.insert(target) {
            errors.push(FieldError::invalid(&path.child("mountPath"), target, "must be unique"));
        }
        for field in ["subPath", "subPathExpr"] {
            validate_relative_path(text(mount, field), &path.child(field), errors);
        }
        if !text(mount, "subPath").is_empty() && !text(mount, "subPathExpr").is_empty() {
            let message = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(&path.child("subPathExpr"), text(mount, "subPathExpr"), message));
        }
        if text(mount, "mountPropagation") == "Bidirectional" && !privileged {
            let message = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(&path.child("mountPropagation"), message));
        }
    }
}

/// A path inside a volume: not absolute, no way up. Empty is allowed.
pub(super) fn validate_relative_path(value: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if value.starts_with('/') {
        errors.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    if value.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, value, "must not contain '..'"));
    }
}

fn validate_security_context(context: &Value, host_users: bool, path: &FieldPath, errors: &mut FieldErrors) {
    if text(context, "procMount") == "Unmasked" && host_users {
        let message = "`hostUsers` must be false to use `Unmasked`";
        errors.push(FieldError::invalid(&path.child("procMount"), "Unmasked", message));
    }
    if let Some(profile) = meta::at(context, &["seccompProfile"]) {
        validate_profile(profile, "seccomp", &path.child("seccompProfile"), errors);
    }
    if let Some(profile) = meta::at(context, &["appArmorProfile"]) {
        validate_profile(profile, "AppArmor", &path.child("appArmorProfile"), errors);
    }
    if meta::bool_at(context, &["allowPrivilegeEscalation"]) == Some(false) {
        if meta::bool_at(context, &["privileged"]) == Some(true) {
            let message = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(path, context.clone(), message));
        }
        if meta::items_at(context, &["capabilities", "add"]).iter().any(|c| c.as_str() == Some("CAP_SYS_ADMIN")) {
            let message = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(path, context.clone(), message));
        }
    }
}

/// A seccomp or AppArmor profile: a file exactly when the type is Localhost.
pub(super) fn validate_profile(profile: &Value, what: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let file = meta::str_at(profile, &["localhostProfile"]);
    let file_path = path.child("localhostProfile");
    match (text(profile, "type"), file) {
        ("", _) => errors.push(FieldError::required(&path.child("type"), "type is required when profile is set")),
        ("Localhost", None) => {
            let message = format!("must be set when {what} type is Localhost");
            errors.push(FieldError::required(&file_path, message));
        }
        ("Localhost", Some(file)) => validate_relative_path(file, &file_path, errors),
        (_, Some(file)) => {
            let message = format!("can only be set when {what} type is Localhost");
            errors.push(FieldError::invalid(&file_path, file, message));
        }
        (_, None) => {}
    }
}
