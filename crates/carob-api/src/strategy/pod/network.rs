//! What a PodSpec says of names, addresses and ports.

use serde_json::Value;

use super::Holder;
use crate::strategy::fields::{is_true, text};
use crate::{
    addresses,
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
};

/// Nameservers in resolv.conf (resolv.conf(5): MAXNS).
const NAMESERVERS_MAX: usize = 3;
/// Search domains (kubernetes pkg/apis/core/validation: MaxDNSSearchPaths).
const SEARCHES_MAX: usize = 32;
/// Bytes of the search domains with the spaces between them (MaxDNSSearchListChars).
const SEARCHES_LEN_MAX: usize = 2048;
/// As much as the kernel takes for a host name (`__NEW_UTS_LEN`).
const HOST_NAME_BYTES_MAX: usize = 64;

/// On the host's network a port is the host's. A template may leave the host's port out: the Pod's default is the same.
pub(super) fn validate_host_network(spec: &Value, of: Holder<'_>, path: &FieldPath, errors: &mut FieldErrors) {
    if !is_true(spec, "hostNetwork") {
        return;
    }
    for (index, container) in meta::items_at(spec, &["containers"]).iter().enumerate() {
        let path = path.child("containers").index(index).child("ports");
        for (index, port) in meta::items_at(container, &["ports"]).iter().enumerate() {
            let number = |field| meta::i64_at(port, &[field]).unwrap_or_default();
            let (host, own) = (number("hostPort"), number("containerPort"));
            if (of.is_pod() || host != 0) && host != own {
                let message = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(&path.index(index).child("hostPort"), host, message));
            }
        }
    }
}

pub(super) fn validate_dns(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let config = meta::at(spec, &["dnsConfig"]);
    let servers = meta::items_at(spec, &["dnsConfig", "nameservers"]);
    let servers_path = path.child("nameservers");
    if text(spec, "dnsPolicy") == "None" {
        if config.is_none() {
            errors.push(FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"));
            return;
        }
        if servers.is_empty() {
            let message = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(FieldError::required(&servers_path, message));
            return;
        }
    }
    if servers.len() > NAMESERVERS_MAX {
        let message = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.push(FieldError::invalid(&servers_path, Value::from(servers.to_vec()), message));
    }
    for (index, server) in servers.iter().filter_map(Value::as_str).enumerate() {
        invalid_each(&servers_path.index(index), server, addresses::ip(server), errors);
    }
    let searches = meta::items_at(spec, &["dnsConfig", "searches"]);
    validate_searches(searches, &path.child("searches"), errors);
    for (index, option) in meta::items_at(spec, &["dnsConfig", "options"]).iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.push(FieldError::required(&path.child("options").index(index), "must not be empty"));
        }
    }
}

fn validate_searches(searches: &[Value], path: &FieldPath, errors: &mut FieldErrors) {
    if searches.len() > SEARCHES_MAX {
        let message = format!("must not have more than {SEARCHES_MAX} search paths");
        errors.push(FieldError::invalid(path, Value::from(searches.to_vec()), message));
    }
    let texts = || searches.iter().filter_map(Value::as_str);
    let spaces = searches.len().saturating_sub(1);
    if texts().map(str::len).fold(spaces, usize::saturating_add) > SEARCHES_LEN_MAX {
        let message =
            format!("must not have more than {SEARCHES_LEN_MAX} characters (including spaces) in the search list");
        errors.push(FieldError::invalid(path, Value::from(searches.to_vec()), message));
    }
    for (index, search) in texts().enumerate() {
        // A lone dot and a trailing one are allowed.
        if search != "." {
            let bare = search.strip_suffix('.').unwrap_or(search);
            invalid_each(&path.index(index), bare, names::dns1123_subdomain_with_underscore(bare), errors);
        }
    }
}

pub(super) fn validate_host_aliases(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for (index, alias) in meta::items_at(spec, &["hostAliases"]).iter().enumerate() {
        let path = path.index(index);
        let ip = text(alias, "ip");
        invalid_each(&path.child("ip"), ip, addresses::ip(ip), errors);
        for (index, name) in meta::items_at(alias, &["hostnames"]).iter().filter_map(Value::as_str).enumerate() {
            invalid_each(&path.child("hostnames").index(index), name, names::dns1123_subdomain(name), errors);
        }
    }
}

pub(super) fn validate_hostname_override(spec: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let Some(name) = meta::str_at(spec, &["hostnameOverride"]) else { return };
    for field in ["setHostnameAsFQDN", "hostNetwork"].into_iter().filter(|field| is_true(spec, field)) {
        errors.push(FieldError::forbidden(path, format!("may not be specified when {field} is true")));
    }
    if name.len() > HOST_NAME_BYTES_MAX {
        errors.push(FieldError::too_long(path, HOST_NAME_BYTES_MAX));
    }
    invalid_each(path, name, names::dns1123_subdomain(name), errors);
}
