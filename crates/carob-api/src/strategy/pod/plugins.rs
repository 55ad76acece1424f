//! Sources of volumes that only other nodes than carob's act on: Pods with them are refused, templates may have them
//! (kubernetes pkg/apis/core/validation: validateVolumeSource).

use serde_json::Value;

use super::shared::descending_path;
use crate::strategy::fields::{is_true, one_of, require, require_name, text};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
};

/// Bytes of `volume:portal` where the initiator is named.
const ISCSI_NAME_LEN_MAX: usize = 64;
const QUOBYTE_TENANT_LEN_MAX: usize = 64;

/// The numbers of partitions, and of logical units.
fn in_byte_range(source: &Value, field: &str, message: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let number = meta::i64_at(source, &[field]).unwrap_or_default();
    if !(0..=255).contains(&number) {
        errors.push(FieldError::invalid(&path.child(field), number, message));
    }
}

fn secret_name(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(secret) = meta::at(source, &["secretRef"]) {
        require(secret, "name", &path.child("secretRef"), errors);
    }
}

pub(super) fn git_repo(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    require(source, "repository", path, errors);
    descending_path(text(source, "directory"), &path.child("directory"), errors);
}

pub(super) fn gce_disk(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    require(source, "pdName", path, errors);
    in_byte_range(source, "partition", "must be between 1 and 255, inclusive", path, errors);
}

pub(super) fn aws_disk(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    require(source, "volumeID", path, errors);
    in_byte_range(source, "partition", "must be between 1 and 255, inclusive", path, errors);
}

pub(super) fn iscsi(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    require(source, "targetPortal", path, errors);
    match text(source, "iqn") {
        "" => errors.push(FieldError::required(&path.child("iqn"), "")),
        name => invalid_each(&path.child("iqn"), name, iscsi_form(name), errors),
    }
    in_byte_range(source, "lun", "must be between 0 and 255, inclusive", path, errors);
    let signs_in = is_true(source, "chapAuthDiscovery") || is_true(source, "chapAuthSession");
    if signs_in && meta::at(source, &["secretRef"]).is_none() {
        errors.push(FieldError::required(&path.child("secretRef"), ""));
    }
    if let Some(name) = meta::str_at(source, &["initiatorName"]) {
        invalid_each(&path.child("initiatorname"), name, iscsi_form(name), errors);
    }
}

/// Names of targets and initiators (RFC 3720, 3.2.6.3): `iqn.2001-04.com.example:x`, or `eui.` or `naa.` and a number.
fn iscsi_form(name: &str) -> Vec<String> {
    let alphanumeric =
        |text: &str, length: usize| text.len() == length && text.bytes().all(|b| b.is_ascii_alphanumeric());
    // Upstream's pattern has any character after the three letters.
    let number = |length: usize| {
        name.get(3..)
            .and_then(|rest| rest.char_indices().nth(1))
            .is_some_and(|(at, _)| alphanumeric(&name[3 + at..], length))
    };
    let good = match name.get(..3) {
        Some("iqn") => is_qualified(name),
        Some("eui") => number(16),
        Some("naa") => number(32),
        _ => return vec!["must be valid format starting with iqn, eui, or naa".to_owned()],
    };
    if good { Vec::new() } else { vec!["must be valid format".to_owned()] }
}

/// `iqn.YYYY-MM.` and a domain, a colon and a text without separators. It may begin anywhere.
fn is_qualified(name: &str) -> bool {
    name.match_indices("iqn.").any(|(at, start)| {
        let rest = &name[at + start.len()..];
        let digits = |range: std::ops::Range<usize>| {
            rest.get(range).is_some_and(|text| text.bytes().all(|b| b.is_ascii_digit()))
        };
        let dated = digits(0..4) && rest.get(4..5) == Some("-") && digits(5..7) && rest.get(7..8) == Some(".");
        let Some((domain, text)) = rest.get(8..).filter(|_| dated).and_then(|rest| rest.split_once(':')) else {
            return false;
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
        let separates = |c: char| ",;*&$|".contains(c) || matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ');
        !domain.is_empty() && domain.bytes().all(plain) && !text.is_empty() && !text.contains(separates)
    })
}

pub(super) fn iscsi_name(source: &Value, name: &str, path: &FieldPath, errors: &mut FieldErrors) {
    let length = name.len() + 1 + text(source, "targetPortal").len();
    if meta::str_at(source, &["initiatorName"]).is_some() && length > ISCSI_NAME_LEN_MAX {
        let message = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
                       iscsi.initiatorName is specified.";
        errors.push(FieldError::invalid(path, name, message));
    }
}

pub(super) fn glusterfs(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    require(source, "endpoints", path, errors);
    require(source, "path", path, errors);
}

pub(super) fn flocker(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let (name, uuid) = (text(source, "datasetName"), text(source, "datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        errors.push(FieldError::required(path, "one of datasetName and datasetUUID is required"));
    }
    if !name.is_empty() && !uuid.is_empty() {
        let message = "datasetName and datasetUUID can not be specified simultaneously";
        errors.push(FieldError::invalid(path, "resource", message));
    }
    if name.contains('/') {
        errors.push(FieldError::invalid(&path.child("datasetName"), name, "must not contain '/'"));
    }
}

pub(super) fn rbd(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    cephfs(source, path, errors);
    require(source, "image", path, errors);
}

pub(super) fn cinder(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    require(source, "volumeID", path, errors);
    secret_name(source, path, errors);
}

pub(super) fn cephfs(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if meta::items_at(source, &["monitors"]).is_empty() {
        errors.push(FieldError::required(&path.child("monitors"), ""));
    }
}

pub(super) fn quobyte(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    const REGISTRY: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = text(source, "registry");
    if registry.is_empty() {
        errors.push(FieldError::required(&path.child("registry"), REGISTRY));
    } else if text(source, "tenant").len() > QUOBYTE_TENANT_LEN_MAX {
        let message = "must be a UUID and may not exceed a length of 64 characters";
        errors.push(FieldError::required(&path.child("tenant"), message));
    } else {
        for _ in registry.split(',').filter(|pair| !is_host_and_port(pair)) {
            errors.push(FieldError::invalid(&path.child("registry"), registry, REGISTRY));
        }
    }
    require(source, "volume", path, errors);
}

/// `host:port` or `[address]:port`; both may be empty (Go's net.SplitHostPort).
fn is_host_and_port(pair: &str) -> bool {
    let Some((host, port)) = pair.rsplit_once(':') else { return false };
    let brackets = ['[', ']'];
    match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|host| !host.contains(brackets)) && !port.contains(brackets),
        None => !pair.contains(brackets) && !host.contains(':'),
    }
}

pub(super) fn fc(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let names = meta::items_at(source, &["targetWWNs"]);
    let identifiers = meta::items_at(source, &["wwids"]);
    let names_path = path.child("targetWWNs");
    if names.is_empty() && identifiers.is_empty() {
        let message = "must specify either targetWWNs or wwids, but not both";
        errors.push(FieldError::required(&names_path, message));
    }
    if !names.is_empty() && !identifiers.is_empty() {
        let message = "targetWWNs and wwids can not be specified simultaneously";
        errors.push(FieldError::invalid(&names_path, names.to_vec(), message));
    }
    if !names.is_empty() {
        if meta::i64_at(source, &["lun"]).is_none() {
            errors.push(FieldError::required(&path.child("lun"), "lun is required if targetWWNs is specified"));
        }
        in_byte_range(source, "lun", "must be between 0 and 255, inclusive", path, errors);
    }
}

pub(super) fn flex(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    require(source, "driver", path, errors);
    for key in meta::at(source, &["options"]).and_then(Value::as_object).into_iter().flatten().map(|(key, _)| key) {
        let namespace = format!(".{}", key.split('/').next().unwrap_or_default().to_lowercase());
        if [".kubernetes.io", ".k8s.io"].iter().any(|reserved| namespace.ends_with(reserved)) {
            let message = "kubernetes.io and k8s.io namespaces are reserved";
            errors.push(FieldError::invalid(&path.child("options").key(key), key.as_str(), message));
        }
    }
}

pub(super) fn azure_file(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    require(source, "secretName", path, errors);
    require(source, "shareName", path, errors);
}

pub(super) fn azure_disk(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    const MANAGED: &str =
        "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    require(source, "diskName", path, errors);
    require(source, "diskURI", path, errors);
    one_of(source, "cachingMode", &["None", "ReadOnly", "ReadWrite"], path, errors);
    one_of(source, "kind", &["Dedicated", "Managed", "Shared"], path, errors);
    let uri = text(source, "diskURI");
    let (start, form) = match meta::str_at(source, &["kind"]) {
        None => return,
        Some("Managed") => ("/subscriptions/", MANAGED),
        Some(_) => ("https://", BLOB),
    };
    if !uri.starts_with(start) {
        errors.push(FieldError::not_supported(&path.child("diskURI"), uri, &[form]));
    }
}

pub(super) fn storage_os(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    require_name(source, "volumeName", names::dns1123_label, path, errors);
    let namespace = text(source, "volumeNamespace");
    if !namespace.is_empty() {
        invalid_each(&path.child("volumeNamespace"), namespace, names::dns1123_label(namespace), errors);
    }
    secret_name(source, path, errors);
}

pub(super) fn scale_io(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for field in ["gateway", "system", "volumeName"] {
        require(source, field, path, errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_other_systems() {
        for (name, good) in [
            ("iqn.2001-04.com.example:storage.x", true),
            ("iqn.2001-04.com.example", false),
            ("eui.02004567A425678D", true),
            ("eui.0200", false),
            ("naa.52004567BA64678D52004567BA64678D", true),
            ("x", false),
        ] {
            assert_eq!(iscsi_form(name).is_empty(), good, "{name}");
        }
        for (pair, good) in [("a:1", true), ("[::1]:1", true), ("a", false), ("::1:1", false), (":", true)] {
            assert_eq!(is_host_and_port(pair), good, "{pair}");
        }
    }
}
