//! Security contexts of Pods and containers, with the annotations that came before their fields
//! (kubernetes pkg/apis/core/validation: ValidateSecurityContext, validatePodSpecSecurityContext and their siblings).

use std::{borrow::Cow, collections::BTreeSet};

use serde_json::Value;

use super::{
    platform,
    shared::{containers, descending_path},
};
use crate::strategy::fields::{is_true, one_of, text};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta,
};

const SYSCTL_NAME_LEN_MAX: usize = 253;
/// PATH_MAX without its terminator.
const APPARMOR_PROFILE_LEN_MAX: usize = 4095;
/// Sysctls of the IPC namespace (component-helpers node/util/sysctl/namespace.go).
const IPC_SYSCTLS: [&str; 10] = [
    "kernel.msg",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];
const SECCOMP_OF_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_OF_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR_OF_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";

pub(super) fn validate_of_container(context: &Value, host_users: bool, path: &FieldPath, errors: &mut FieldErrors) {
    one_of(context, "procMount", &["Default", "Unmasked"], path, errors);
    if text(context, "procMount") == "Unmasked" && host_users {
        let message = "`hostUsers` must be false to use `Unmasked`";
        errors.push(FieldError::invalid(&path.child("procMount"), "Unmasked", message));
    }
    validate_profiles(context, path, errors);
    if meta::bool_at(context, &["allowPrivilegeEscalation"]) == Some(false) {
        if is_true(context, "privileged") {
            let message = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(path, context.clone(), message));
        }
        let added = meta::items_at(context, &["capabilities", "add"]).iter();
        for _ in added.filter(|capability| capability.as_str() == Some("CAP_SYS_ADMIN")) {
            let message = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(path, context.clone(), message));
        }
    }
}

pub(super) fn validate_of_pod(spec: &Value, spec_path: &FieldPath, errors: &mut FieldErrors) {
    let path = spec_path.child("securityContext");
    if is_true(spec, "shareProcessNamespace") && is_true(spec, "hostPID") {
        let message = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(&path.child("shareProcessNamespace"), true, message));
    }
    let Some(context) = meta::at(spec, &["securityContext"]) else { return };
    validate_sysctls(spec, context, &path.child("sysctls"), errors);
    one_of(context, "fsGroupChangePolicy", &["Always", "OnRootMismatch"], &path, errors);
    validate_profiles(context, &path, errors);
    one_of(context, "supplementalGroupsPolicy", &["Merge", "Strict"], &path, errors);
    one_of(context, "seLinuxChangePolicy", &["MountOption", "Recursive"], &path, errors);
}

fn validate_profiles(context: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(profile) = meta::at(context, &["seccompProfile"]) {
        validate_seccomp(profile, &path.child("seccompProfile"), errors);
    }
    if let Some(options) = meta::at(context, &["windowsOptions"]) {
        platform::validate_windows_options(options, &path.child("windowsOptions"), errors);
    }
    if let Some(profile) = meta::at(context, &["appArmorProfile"]) {
        validate_apparmor(profile, &path.child("appArmorProfile"), errors);
    }
}

/// A file exactly when the type is Localhost.
fn validate_seccomp(profile: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if text(profile, "type").is_empty() {
        let message = "type is required when seccompProfile is set";
        errors.push(FieldError::required(&path.child("type"), message));
    }
    let file_path = path.child("localhostProfile");
    match (text(profile, "type"), meta::str_at(profile, &["localhostProfile"])) {
        ("Localhost", None) => {
            errors.push(FieldError::required(&file_path, "must be set when seccomp type is Localhost"));
        }
        ("Localhost", Some(file)) => descending_path(file, &file_path, errors),
        (_, Some(_)) => {
            let message = "can only be set when seccomp type is Localhost";
            errors.push(FieldError::invalid(&file_path, profile.clone(), message));
        }
        (_, None) => {}
    }
}

fn validate_apparmor(profile: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let file_path = path.child("localhostProfile");
    match (text(profile, "type"), meta::str_at(profile, &["localhostProfile"])) {
        ("Localhost", Some(file)) => {
            if file.trim() != file {
                errors.push(FieldError::invalid(&file_path, file, "must not be padded with whitespace"));
            } else if file.is_empty() {
                errors.push(FieldError::required(&file_path, "must be set when AppArmor type is Localhost"));
            }
            if file.len() > APPARMOR_PROFILE_LEN_MAX {
                errors.push(FieldError::too_long(&file_path, APPARMOR_PROFILE_LEN_MAX));
            }
        }
        ("Localhost", None) => {
            errors.push(FieldError::required(&file_path, "must be set when AppArmor type is Localhost"));
        }
        ("RuntimeDefault" | "Unconfined", Some(file)) => {
            errors.push(FieldError::invalid(&file_path, file, "can only be set when AppArmor type is Localhost"));
        }
        ("", _) => {
            let message = "type is required when appArmorProfile is set";
            errors.push(FieldError::required(&path.child("type"), message));
        }
        _ => {}
    }
}

fn is_sysctl_name(name: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(|b| edge(*b))
            && bytes.last().is_some_and(|b| edge(*b))
            && bytes.iter().all(|b| edge(*b) || matches!(b, b'-' | b'_'))
    };
    name.len() <= SYSCTL_NAME_LEN_MAX && name.split(['.', '/']).all(part)
}

/// A name with dots between its parts: the first mark of the two that may stand there says which is which
/// (`NormalizeName`).
fn with_dots(name: &str) -> Cow<'_, str> {
    match name.find(['.', '/']).map(|at| &name[at..=at]) {
        Some("/") => {
            let swapped = name.chars().map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            });
            Cow::Owned(swapped.collect())
        }
        _ => Cow::Borrowed(name),
    }
}

fn validate_sysctls(spec: &Value, context: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (index, sysctl) in meta::items_at(context, &["sysctls"]).iter().enumerate() {
        let path = path.index(index).child("name");
        let name = text(sysctl, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else if !is_sysctl_name(name) {
            let form = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            let message = format!("must have at most {SYSCTL_NAME_LEN_MAX} characters and match regex {form}");
            errors.push(FieldError::invalid(&path, name, message));
        } else if seen.contains(name) {
            errors.push(FieldError::duplicate(&path, name));
        }
        seen.insert(name);
        let dotted = with_dots(name);
        if is_true(spec, "hostNetwork") && dotted.starts_with("net.") {
            errors.push(FieldError::invalid(&path, name, "may not be specified when 'hostNetwork' is true"));
        }
        if is_true(spec, "hostIPC") && (IPC_SYSCTLS.contains(&&*dotted) || dotted.starts_with("fs.mqueue.")) {
            errors.push(FieldError::invalid(&path, name, "may not be specified when 'hostIPC' is true"));
        }
    }
}

/// Annotations that name profiles.
pub(super) fn validate_annotations(obj: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let annotations = meta::annotations(obj);
    let given = || annotations.into_iter().flatten().filter_map(|(key, value)| Some((key, value.as_str()?)));
    for (key, profile) in given().filter(|(key, _)| *key == SECCOMP_OF_POD || key.starts_with(SECCOMP_OF_CONTAINER)) {
        let path = path.child(key);
        if let Some(file) = profile.strip_prefix("localhost/") {
            descending_path(file, &path, errors);
        } else if !matches!(profile, "runtime/default" | "docker/default" | "unconfined") {
            errors.push(FieldError::invalid(&path, profile, "must be a valid seccomp profile"));
        }
    }
    for (key, profile) in given() {
        let Some(name) = key.strip_prefix(APPARMOR_OF_CONTAINER) else { continue };
        let path = path.key(key);
        if !containers(&obj["spec"], &FieldPath::default()).any(|(_, container)| text(container, "name") == name) {
            errors.push(FieldError::invalid(&path, name, "container not found"));
        }
        if !matches!(profile, "" | "runtime/default" | "unconfined") && !profile.starts_with("localhost/") {
            let message = format!("invalid AppArmor profile name: {profile:?}");
            errors.push(FieldError::invalid(&path, profile, message));
        }
    }
}

/// An annotation and the field that took its place say the same.
pub(in crate::strategy) fn validate_agreement(obj: &Value, spec_path: &FieldPath, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    let check = |field: &str, key: &str, profile: &Value, path: &FieldPath, errors: &mut FieldErrors| {
        if let Some(annotation) = meta::annotation(obj, key) {
            let path = path.child("securityContext").child(field);
            let what = if field == "seccompProfile" { "seccomp" } else { "apparmor" };
            disagreement(annotation, profile, what, &path, errors);
        }
    };
    let of_pod = |field: &str| meta::at(spec, &["securityContext", field]);
    if let Some(profile) = of_pod("seccompProfile") {
        check("seccompProfile", SECCOMP_OF_POD, profile, spec_path, errors);
    }
    for (path, container) in containers(spec, spec_path) {
        let name = text(container, "name");
        if let Some(profile) = meta::at(container, &["securityContext", "seccompProfile"]) {
            check("seccompProfile", &format!("{SECCOMP_OF_CONTAINER}{name}"), profile, &path, errors);
        }
        let own = meta::at(container, &["securityContext", "appArmorProfile"]).or_else(|| of_pod("appArmorProfile"));
        if let Some(profile) = own.filter(|_| meta::str_at(spec, &["os", "name"]) != Some("windows")) {
            check("appArmorProfile", &format!("{APPARMOR_OF_CONTAINER}{name}"), profile, &path, errors);
        }
    }
}

fn disagreement(annotation: &str, profile: &Value, what: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let type_agrees = match text(profile, "type") {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => annotation == "runtime/default" || (what == "seccomp" && annotation == "docker/default"),
        "Localhost" => annotation.starts_with("localhost/"),
        _ => true,
    };
    if !type_agrees {
        let message = format!("{what} type in annotation and field must match");
        errors.push(FieldError::forbidden(&path.child("type"), message));
    } else if text(profile, "type") == "Localhost"
        && annotation.strip_prefix("localhost/") != meta::str_at(profile, &["localhostProfile"])
    {
        let message = format!("{what} profile in annotation and field must match");
        errors.push(FieldError::forbidden(&path.child("localhostProfile"), message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sysctls() {
        for (name, valid) in [
            ("net.ipv4.ip_forward", true),
            ("net/ipv4/a", true),
            ("a_", false),
            ("A", false),
            ("a..b", false),
            ("", false),
        ] {
            assert_eq!(is_sysctl_name(name), valid, "{name}");
        }
        assert_eq!(with_dots("net/ipv4.x/y"), "net.ipv4/x.y");
    }
}
