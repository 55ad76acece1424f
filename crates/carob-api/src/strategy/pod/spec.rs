//! PodSpecs, of Pods and of templates (kubernetes pkg/apis/core/validation: ValidatePodSpec).

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::{Value, json};

use super::{affinity, container, resources, volume};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    lifecycle::validate_labels,
    meta, names,
};

/// Nameservers in resolv.conf (resolv.conf(5): MAXNS).
const NAMESERVERS_MAX: usize = 3;
/// Search domains (kubernetes pkg/apis/core/validation: MaxDNSSearchPaths).
const SEARCHES_MAX: usize = 32;

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    meta::str_at(value, &[field]).unwrap_or_default()
}

pub(crate) fn invalid_if_any(value: &str, messages: Vec<String>, path: &FieldPath, errors: &mut FieldErrors) {
    for message in messages {
        errors.push(FieldError::invalid(path, value, message));
    }
}

/// Validates a PodSpec.
pub(crate) fn validate_spec(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let volumes = volume::validate_all(meta::items_at(spec, &["volumes"]), &path.child("volumes"), errors);
    let host_network = meta::bool_at(spec, &["hostNetwork"]) == Some(true);
    let host_users = meta::bool_at(spec, &["hostUsers"]) != Some(false);
    let grace_seconds = meta::i64_at(spec, &["terminationGracePeriodSeconds"]);
    let around = container::Surroundings { volumes, host_network, host_users, grace_seconds };
    validate_containers(spec, &around, path, errors);
    validate_file_volumes(spec, path, errors);
    validate_host_ports(spec, path, errors);
    validate_names(spec, path, errors);
    validate_scheduling(spec, path, errors);
    validate_lifetime(spec, path, errors);
    validate_dns(spec, path, errors);
    validate_hosts(spec, path, errors);
    validate_security_context(spec, path, errors);
    if let Some(own) = meta::at(spec, &["resources"]) {
        resources::validate(own, &path.child("resources"), errors);
    }
    if let Some(overhead) = meta::at(spec, &["overhead"]) {
        resources::validate(&json!({ "limits": overhead }), &path.child("overhead"), errors);
    }
}

/// Variables come out of files that other containers of the Pod have written.
fn validate_file_volumes(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let volumes = meta::items_at(spec, &["volumes"]);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (index, container) in meta::items_at(spec, &[list]).iter().enumerate() {
            let path = path.child(list).index(index).child("env");
            for (index, variable) in meta::items_at(container, &["env"]).iter().enumerate() {
                let Some(name) = meta::str_at(variable, &["valueFrom", "fileKeyRef", "volumeName"]) else { continue };
                let path = path.index(index).child("valueFrom").child("fileKeyRef").child("volumeName");
                match volumes.iter().find(|volume| meta::str_at(volume, &["name"]) == Some(name)) {
                    None => errors.push(FieldError::not_found(&path, name)),
                    Some(volume) if meta::at(volume, &["emptyDir"]).is_none() => {
                        errors.push(FieldError::invalid(&path, name, "referenced volume must be of type emptyDir"));
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

fn validate_containers(spec: &Value, around: &container::Surroundings<'_>, path: &FieldPath, errors: &mut FieldErrors) {
    if meta::items_at(spec, &["containers"]).is_empty() {
        errors.push(FieldError::required(&path.child("containers"), ""));
    }
    let mut seen = BTreeSet::new();
    let lists = [
        ("containers", container::Sort::App),
        ("initContainers", container::Sort::Init),
        ("ephemeralContainers", container::Sort::Ephemeral),
    ];
    for (list, sort) in lists {
        for (index, given) in meta::items_at(spec, &[list]).iter().enumerate() {
            let path = path.child(list).index(index);
            container::validate(given, sort, around, &path, errors);
            let name = text(given, "name");
            if !name.is_empty() && !seen.insert(name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
        }
    }
    for (index, given) in meta::items_at(spec, &["ephemeralContainers"]).iter().enumerate() {
        let target = text(given, "targetContainerName");
        let known = |list| meta::items_at(spec, &[list]).iter().any(|c| text(c, "name") == target);
        if !target.is_empty() && !known("containers") && !known("initContainers") {
            let path = path.child("ephemeralContainers").index(index).child("targetContainerName");
            errors.push(FieldError::not_found(&path, target));
        }
    }
}

/// Two containers of a Pod cannot have the same port of the host. Init containers run at other times.
fn validate_host_ports(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (index, given) in meta::items_at(spec, &["containers"]).iter().enumerate() {
        for (port_index, port) in meta::items_at(given, &["ports"]).iter().enumerate() {
            let number = meta::i64_at(port, &["hostPort"]).unwrap_or_default();
            let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
            if number != 0 && !seen.insert(key.clone()) {
                let path = path.child("containers").index(index).child("ports").index(port_index);
                errors.push(FieldError::duplicate(&path.child("hostPort"), key));
            }
        }
    }
}

fn validate_names(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for (field, check) in [
        ("serviceAccountName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ] {
        let value = text(spec, field);
        if !value.is_empty() {
            invalid_if_any(value, check(value), &path.child(field), errors);
        }
    }
    for (index, secret) in meta::items_at(spec, &["imagePullSecrets"]).iter().enumerate() {
        if text(secret, "name").is_empty() {
            let path = path.child("imagePullSecrets").index(index).child("name");
            errors.push(FieldError::required(&path, ""));
        }
    }
    for (index, gate) in meta::items_at(spec, &["readinessGates"]).iter().enumerate() {
        let ty = text(gate, "conditionType");
        let path = path.child("readinessGates").index(index).child("conditionType");
        invalid_if_any(ty, names::qualified_name(ty), &path, errors);
    }
    let mut gates = BTreeSet::new();
    for (index, gate) in meta::items_at(spec, &["schedulingGates"]).iter().enumerate() {
        let name = text(gate, "name");
        let path = path.child("schedulingGates").index(index);
        invalid_if_any(name, names::qualified_name(name), &path, errors);
        if !gates.insert(name) {
            errors.push(FieldError::duplicate(&path, name));
        }
    }
}

fn validate_scheduling(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let labels = meta::at(spec, &["nodeSelector"]).and_then(Value::as_object);
    validate_labels(labels, &path.child("nodeSelector"), errors);
    if let Some(given) = meta::at(spec, &["affinity"]) {
        affinity::validate(given, &path.child("affinity"), errors);
    }
    for (index, toleration) in meta::items_at(spec, &["tolerations"]).iter().enumerate() {
        affinity::validate_toleration(toleration, &path.child("tolerations").index(index), errors);
    }
    if let Some(group) = meta::at(spec, &["schedulingGroup"]) {
        validate_scheduling_group(group, &path.child("schedulingGroup"), errors);
    }
    let path = path.child("topologySpreadConstraints");
    let mut seen = BTreeSet::new();
    for (index, constraint) in meta::items_at(spec, &["topologySpreadConstraints"]).iter().enumerate() {
        let path = path.index(index);
        affinity::validate_spread(constraint, &path, errors);
        let pair = format!("{{{}, {}}}", text(constraint, "topologyKey"), text(constraint, "whenUnsatisfiable"));
        if !seen.insert(pair.clone()) {
            errors.push(FieldError::duplicate(&path.child("{topologyKey, whenUnsatisfiable}"), pair));
        }
    }
}

/// A group is named in one way, of which there is one so far.
fn validate_scheduling_group(group: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let name = text(group, "podGroupName");
    if name.is_empty() {
        errors.push(FieldError::invalid(path, "", "must specify one of: `podGroupName`"));
    } else {
        invalid_if_any(name, names::dns1123_subdomain(name), &path.child("podGroupName"), errors);
    }
}

fn validate_lifetime(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for field in ["restartPolicy", "dnsPolicy"] {
        if text(spec, field).is_empty() {
            errors.push(FieldError::required(&path.child(field), ""));
        }
    }
}

fn validate_dns(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let path = path.child("dnsConfig");
    let servers = meta::items_at(spec, &["dnsConfig", "nameservers"]);
    let servers_path = path.child("nameservers");
    if text(spec, "dnsPolicy") == "None" && servers.is_empty() {
        let message = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(&servers_path, message));
    }
    if servers.len() > NAMESERVERS_MAX {
        let message = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.push(FieldError::invalid(&servers_path, Value::from(servers.to_vec()), message));
    }
    for (index, server) in servers.iter().filter_map(Value::as_str).enumerate() {
        validate_ip(server, &servers_path.index(index), errors);
    }
    let searches = meta::items_at(spec, &["dnsConfig", "searches"]);
    if searches.len() > SEARCHES_MAX {
        let message = format!("must not have more than {SEARCHES_MAX} search paths");
        errors.push(FieldError::invalid(&path.child("searches"), Value::from(searches.to_vec()), message));
    }
    for (index, search) in searches.iter().filter_map(Value::as_str).enumerate() {
        // A lone dot and a trailing one are allowed, and underscores wherever a letter is.
        let bare = search.strip_suffix('.').unwrap_or(search).replace('_', "a");
        if search != "." {
            invalid_if_any(search, names::dns1123_subdomain(&bare), &path.child("searches").index(index), errors);
        }
    }
    for (index, option) in meta::items_at(spec, &["dnsConfig", "options"]).iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.push(FieldError::required(&path.child("options").index(index), "must not be empty"));
        }
    }
}

fn validate_ip(value: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if value.parse::<IpAddr>().is_err() {
        let message = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(FieldError::invalid(path, value, message));
    }
}

/// As much as the kernel takes for a host name (`__NEW_UTS_LEN`).
const HOST_NAME_BYTES_MAX: usize = 64;

fn validate_hosts(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for (index, alias) in meta::items_at(spec, &["hostAliases"]).iter().enumerate() {
        let path = path.child("hostAliases").index(index);
        validate_ip(text(alias, "ip"), &path.child("ip"), errors);
        for (index, name) in meta::items_at(alias, &["hostnames"]).iter().filter_map(Value::as_str).enumerate() {
            invalid_if_any(name, names::dns1123_subdomain(name), &path.child("hostnames").index(index), errors);
        }
    }
    let is = |field: &str| meta::bool_at(spec, &[field]) == Some(true);
    if is("shareProcessNamespace") && is("hostPID") {
        let message = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(&path.child("shareProcessNamespace"), true, message));
    }
    if let Some(name) = meta::str_at(spec, &["hostnameOverride"]) {
        let path = path.child("hostnameOverride");
        for field in ["setHostnameAsFQDN", "hostNetwork"].into_iter().filter(|field| is(field)) {
            errors.push(FieldError::forbidden(&path, format!("may not be specified when {field} is true")));
        }
        if name.len() > HOST_NAME_BYTES_MAX {
            errors.push(FieldError::too_long(&path, HOST_NAME_BYTES_MAX));
        }
        invalid_if_any(name, names::dns1123_subdomain(name), &path, errors);
    }
    if meta::bool_at(spec, &["hostUsers"]) == Some(false) {
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            if is(field) {
                let message = format!("when `hostUsers` is false, `{field}` may not be true");
                errors.push(FieldError::forbidden(&path.child(field), message));
            }
        }
    }
}

fn validate_security_context(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let Some(context) = meta::at(spec, &["securityContext"]) else { return };
    let path = path.child("securityContext");
    if let Some(profile) = meta::at(context, &["seccompProfile"]) {
        container::validate_profile(profile, "seccomp", &path.child("seccompProfile"), errors);
    }
    if let Some(profile) = meta::at(context, &["appArmorProfile"]) {
        container::validate_profile(profile, "AppArmor", &path.child("appArmorProfile"), errors);
    }
    validate_sysctls(context, &path.child("sysctls"), errors);
}

fn validate_sysctls(context: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (index, sysctl) in meta::items_at(context, &["sysctls"]).iter().enumerate() {
        let path = path.index(index).child("name");
        let name = text(sysctl, "name");
        let part = |part: &str| !part.is_empty() && names::dns1123_label(&part.replace('_', "-")).is_empty();
        if name.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else if !name.split(['.', '/']).all(part) {
            let form = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            let message = format!("must have at most 253 characters and match regex {form}");
            errors.push(FieldError::invalid(&path, name, message));
        } else if !seen.insert(name.replace('/', ".")) {
            errors.push(FieldError::duplicate(&path, name));
        }
    }
}
