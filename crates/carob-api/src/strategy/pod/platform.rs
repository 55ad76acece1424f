//! What depends on the operating system of a Pod's node (kubernetes pkg/apis/core/validation: validateOS, validateLinux,
//! validateWindows, validateWindowsHostProcessPod).

use serde_json::Value;

use super::shared::containers;
use crate::strategy::fields::{is_true, text};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
};

/// Bytes of a GMSA credential spec.
const CREDENTIAL_SPEC_KIB_MAX: usize = 64;
/// Parts of `DOMAIN\USER`, bytes: the domain stays below.
const DOMAIN_LEN_MAX: usize = 256;
const USER_LEN_MAX: usize = 104;
const NOT_FOR_WINDOWS: &str = "cannot be set for a windows pod";

/// Fields of a PodSpec and of its and its containers' security contexts that mean nothing on Windows.
const LINUX_OF_SPEC: [&str; 4] = ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"];
const LINUX_OF_POD: [&str; 11] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "seLinuxChangePolicy",
];
const LINUX_OF_CONTAINER: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

pub(super) fn validate(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let Some(os) = meta::at(spec, &["os"]) else { return };
    match text(os, "name") {
        "linux" => {
            forbid(spec, &["windowsOptions"], path, "windows options cannot be set for a linux pod", errors);
            for (path, container) in containers(spec, path) {
                let message = "windows options cannot be set for a linux pod";
                forbid(container, &["windowsOptions"], &path, message, errors);
            }
        }
        "windows" => {
            for field in LINUX_OF_SPEC.into_iter().filter(|field| meta::at(spec, &[field]).is_some()) {
                errors.push(FieldError::forbidden(&path.child(field), NOT_FOR_WINDOWS));
            }
            forbid(spec, &LINUX_OF_POD, path, NOT_FOR_WINDOWS, errors);
            for (path, container) in containers(spec, path) {
                forbid(container, &LINUX_OF_CONTAINER, &path, NOT_FOR_WINDOWS, errors);
            }
        }
        "" => errors.push(FieldError::required(&path.child("os").child("name"), "")),
        other => errors.push(FieldError::not_supported(&path.child("os"), other, &["linux", "windows"])),
    }
}

/// Errors for each of these fields that the security context of `holder` has.
fn forbid(holder: &Value, fields: &[&str], path: &FieldPath, message: &str, errors: &mut FieldErrors) {
    for field in fields.iter().filter(|field| meta::at(holder, &["securityContext", field]).is_some()) {
        errors.push(FieldError::forbidden(&path.child("securityContext").child(field), message));
    }
}

/// Containers that are processes of their Windows host: all of a Pod or none, and with the host's network.
pub(super) fn validate_host_process(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    const FIELD: [&str; 3] = ["securityContext", "windowsOptions", "hostProcess"];
    let of_pod = meta::bool_at(spec, &FIELD);
    let (mut all, mut on_host) = (0_usize, 0_usize);
    for (path, container) in containers(spec, path) {
        let own = meta::bool_at(container, &FIELD);
        all += 1;
        on_host += usize::from(own.or(of_pod) == Some(true));
        if let (Some(of_pod), Some(own)) = (of_pod, own)
            && of_pod != own
        {
            let path = FIELD.iter().fold(path, |path, part| path.child(part));
            let message = format!("pod hostProcess value must be identical if both are specified, was {of_pod}");
            errors.push(FieldError::invalid(&path, own, message));
        }
    }
    if on_host == 0 {
        return;
    }
    if on_host != all {
        let message = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.push(FieldError::invalid(path, "", message));
    }
    if !is_true(spec, "hostNetwork") {
        let message = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.push(FieldError::invalid(&path.child("hostNetwork"), false, message));
    }
}

pub(super) fn validate_windows_options(options: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(name) = meta::str_at(options, &["gmsaCredentialSpecName"]) {
        invalid_each(&path.child("gmsaCredentialSpecName"), name, names::dns1123_subdomain(name), errors);
    }
    if let Some(spec) = meta::str_at(options, &["gmsaCredentialSpec"]) {
        let path = path.child("gmsaCredentialSpec");
        if spec.is_empty() {
            errors.push(FieldError::invalid(&path, spec, "gmsaCredentialSpec cannot be an empty string"));
        } else if spec.len() > CREDENTIAL_SPEC_KIB_MAX * 1024 {
            let message = format!("gmsaCredentialSpec size must be under {CREDENTIAL_SPEC_KIB_MAX} KiB");
            errors.push(FieldError::invalid(&path, spec, message));
        }
    }
    if let Some(name) = meta::str_at(options, &["runAsUserName"]) {
        let wrong = user_name(name).into_iter().map(|what| format!("runAsUserName{what}")).collect();
        invalid_each(&path.child("runAsUserName"), name, wrong, errors);
    }
}

/// What is wrong with `DOMAIN\USER`, of which the domain may be left out.
fn user_name(name: &str) -> Vec<String> {
    let parts: Vec<&str> = name.split('\\').collect();
    let (domain, user) = match parts[..] {
        _ if name.is_empty() => return vec![" cannot be an empty string".to_owned()],
        _ if name.chars().any(|c| c.is_ascii_control()) => {
            return vec![" cannot contain control characters".to_owned()];
        }
        [user] => (None, user),
        [domain, user] => (Some(domain), user),
        _ => return vec![" cannot contain more than one backslash".to_owned()],
    };
    let mut wrong = Vec::new();
    if let Some(domain) = domain {
        if domain.len() >= DOMAIN_LEN_MAX {
            wrong.push(format!("'s Domain length must be under {DOMAIN_LEN_MAX} characters"));
        }
        if !is_net_bios_name(domain) && !is_dns_domain(domain) {
            wrong.push("'s Domain doesn't match the NetBios nor the DNS format".to_owned());
        }
    }
    if user.is_empty() {
        wrong.push("'s User cannot be empty".to_owned());
    } else if user.len() > USER_LEN_MAX {
        wrong.push(format!("'s User length must not be longer than {USER_LEN_MAX} characters"));
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        wrong.push("'s User cannot contain only periods or spaces".to_owned());
    }
    if user.contains(|c: char| "\"/\\:;|=,+*?<>@[]".contains(c)) {
        wrong.push("'s User cannot contain the following characters: \"/\\:;|=,+*?<>@[]".to_owned());
    }
    wrong
}

/// One to fifteen characters, no dot first.
fn is_net_bios_name(domain: &str) -> bool {
    let length = domain.chars().count();
    (1..=15).contains(&length) && !domain.starts_with('.') && !domain.contains(|c: char| "\\/:*?\"<>|".contains(c))
}

fn is_dns_domain(domain: &str) -> bool {
    domain.split('.').all(|label| names::dns1123_label(&label.to_ascii_lowercase()).is_empty())
}

#[cfg(test)]
mod tests {
    use super::user_name;

    #[test]
    fn users_of_windows() {
        for (name, wrong) in [
            ("user", &[][..]),
            ("DOMAIN\\user", &[]),
            ("", &[" cannot be an empty string"]),
            ("a\\b\\c", &[" cannot contain more than one backslash"]),
            ("a\u{1}", &[" cannot contain control characters"]),
            ("\\user", &["'s Domain doesn't match the NetBios nor the DNS format"]),
            ("D\\", &["'s User cannot be empty"]),
            (". .", &["'s User cannot contain only periods or spaces"]),
            ("a@b", &["'s User cannot contain the following characters: \"/\\:;|=,+*?<>@[]"]),
        ] {
            assert_eq!(user_name(name), wrong, "{name:?}");
        }
    }
}
