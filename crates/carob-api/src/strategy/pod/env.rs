//! Environment variables and where they come from (kubernetes pkg/apis/core/validation: ValidateEnv, ValidateEnvFrom).

use serde_json::Value;

use super::shared::no_backsteps;
use crate::strategy::fields::{object_name, require_name, text};
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
    quantity::Quantity,
};

/// What an environment variable may take from its Pod.
const FIELD_PATHS: [&str; 9] = [
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
/// What of a Pod has a name at all (`ConvertDownwardAPIFieldLabel`).
const KNOWN_FIELD_PATHS: [&str; 14] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.phase",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
/// Units in which bytes are told.
const BYTE_DIVISORS: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

pub(super) fn validate(container: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for (index, env) in meta::items_at(container, &["env"]).iter().enumerate() {
        let path = path.child("env").index(index);
        require_name(env, "name", names::env_var_name, &path, errors);
        if let Some(source) = meta::at(env, &["valueFrom"]) {
            validate_source(env, source, &path.child("valueFrom"), errors);
        }
    }
    let path = path.child("envFrom");
    for (index, from) in meta::items_at(container, &["envFrom"]).iter().enumerate() {
        validate_from(from, &path.index(index), &path, errors);
    }
}

/// `list` is the path of the list, where upstream reports what is wrong with the choice of the source.
fn validate_from(from: &Value, path: &FieldPath, list: &FieldPath, errors: &mut FieldErrors) {
    let prefix = text(from, "prefix");
    if !prefix.is_empty() {
        invalid_each(&path.child("prefix"), prefix, names::env_var_name(prefix), errors);
    }
    let mut sources = 0;
    for field in ["configMapRef", "secretRef"] {
        let Some(source) = meta::at(from, &[field]) else { continue };
        sources += 1;
        let path = path.child(field).child("name");
        match text(source, "name") {
            "" => errors.push(FieldError::required(&path, "")),
            name => object_name(name, true, &path, errors),
        }
    }
    match sources {
        0 => errors.push(FieldError::invalid(list, "", "must specify one of: `configMapRef` or `secretRef`")),
        1 => {}
        _ => errors.push(FieldError::invalid(list, "", "may not have more than one field specified at a time")),
    }
}

fn validate_source(env: &Value, source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    const SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let mut count = 0;
    for field in SOURCES {
        let Some(source) = meta::at(source, &[field]) else { continue };
        count += 1;
        let path = path.child(field);
        match field {
            "fieldRef" => validate_field_ref(source, &FIELD_PATHS, &path, errors),
            "resourceFieldRef" => validate_resource_ref(source, false, &path, errors),
            "fileKeyRef" => validate_file_key(source, &path, errors),
            _ => {
                object_name(text(source, "name"), false, &path.child("name"), errors);
                require_name(source, "key", names::config_map_key, &path, errors);
            }
        }
    }
    let message = match count {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        _ if !text(env, "value").is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(path, "", message));
}

/// A variable of a file in a volume. Which volumes there are is the Pod's to know.
fn validate_file_key(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    require_name(source, "key", names::env_var_name, path, errors);
    require_name(source, "volumeName", names::dns1123_label, path, errors);
    match text(source, "path") {
        "" => errors.push(FieldError::required(&path.child("path"), "")),
        given => no_backsteps(given, &path.child("path"), errors),
    }
}

/// A reference to a field of the Pod itself. `supported` are the plain paths; keyed labels and annotations are known.
pub(super) fn validate_field_ref(source: &Value, supported: &[&str], path: &FieldPath, errors: &mut FieldErrors) {
    for field in ["apiVersion", "fieldPath"] {
        if text(source, field).is_empty() {
            errors.push(FieldError::required(&path.child(field), ""));
            return;
        }
    }
    let (version, field) = (text(source, "apiVersion"), text(source, "fieldPath"));
    let field_path = path.child("fieldPath");
    let mut unknown = |what: String| {
        errors.push(FieldError::invalid(&field_path, field, format!("error converting fieldPath: {what}")));
    };
    if version != "v1" {
        return unknown(format!("unsupported pod version: {version}"));
    }
    let keyed = field.strip_suffix("']").and_then(|rest| rest.split_once("['")).filter(|(of, _)| !of.is_empty());
    match keyed {
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            invalid_each(path, key.as_str(), names::qualified_name(&key), errors);
        }
        Some(("metadata.labels", key)) => invalid_each(path, key, names::qualified_name(key), errors),
        Some(_) => unknown(format!("field label does not support subscript: {field}")),
        // What old clients send.
        None if field == "spec.host" && supported.contains(&"spec.nodeName") => {}
        None if !KNOWN_FIELD_PATHS.contains(&field) => unknown(format!("field label not supported: {field}")),
        None if !supported.contains(&field) => {
            errors.push(FieldError::not_supported(&field_path, field, supported));
        }
        None => {}
    }
}

/// An amount that a container asks for. In a volume, which has no container, it is named.
pub(super) fn validate_resource_ref(source: &Value, in_volume: bool, path: &FieldPath, errors: &mut FieldErrors) {
    let resource = text(source, "resource");
    let is_huge = ["limits.hugepages-", "requests.hugepages-"].iter().any(|prefix| resource.starts_with(prefix));
    if in_volume && text(source, "containerName").is_empty() {
        errors.push(FieldError::required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(&path.child("resource"), ""));
    } else if !RESOURCES.contains(&resource) && !is_huge {
        errors.push(FieldError::not_supported(&path.child("resource"), resource, &RESOURCES));
    }
    let divisor = text(source, "divisor");
    if divisor.parse::<Quantity>().is_ok_and(|divisor| divisor.is_zero()) || divisor.is_empty() {
        return;
    }
    let bytes = BYTE_DIVISORS.join(", ");
    let (supported, message) = match resource.split_once('.').map_or("", |(_, name)| name) {
        "cpu" => (&["1m", "1"][..], "1m and 1 are supported with the cpu resource".to_owned()),
        "memory" => (&BYTE_DIVISORS[..], format!("{bytes} are supported with the memory resource")),
        "ephemeral-storage" => {
            (&BYTE_DIVISORS[..], format!("{bytes} are supported with the local ephemeral storage resource"))
        }
        _ if is_huge => (&BYTE_DIVISORS[..], format!("{bytes} are supported with the hugepages resource")),
        _ => return,
    };
    if (is_huge || RESOURCES.contains(&resource)) && !supported.contains(&divisor) {
        let message = format!("only divisor's values {message}");
        errors.push(FieldError::invalid(&path.child("divisor"), resource, message));
    }
}
