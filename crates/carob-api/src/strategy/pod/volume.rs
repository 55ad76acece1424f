//! Volumes (kubernetes pkg/apis/core/validation: ValidateVolumes).

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    container::{validate_field_ref, validate_relative_path},
    spec::invalid_if_any,
};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta, names,
    quantity::Quantity,
};

const MODE_MAX: i64 = 0o777;
const MODE_MESSAGE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
/// Shortest life of a projected token, seconds.
const TOKEN_SECONDS_MIN: i64 = 10 * 60;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;
/// What a file of a downward API volume may take from its Pod.
const FILE_FIELD_PATHS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    meta::str_at(value, &[field]).unwrap_or_default()
}

/// Validates all volumes and answers their names.
pub(super) fn validate_all<'a>(volumes: &'a [Value], path: &FieldPath, errors: &mut FieldErrors) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        match text(volume, "name") {
            "" => errors.push(FieldError::required(&path.child("name"), "")),
            name => {
                let messages = names::dns1123_label(name);
                if messages.is_empty() && !seen.insert(name) {
                    errors.push(FieldError::duplicate(&path.child("name"), name));
                }
                invalid_if_any(name, messages, &path.child("name"), errors);
            }
        }
        validate_source(volume, &path, errors);
    }
    seen
}

fn validate_source(volume: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let mut sources = volume.as_object().into_iter().flatten().filter(|(key, _)| *key != "name");
    match sources.next() {
        None => errors.push(FieldError::required(path, "must specify a volume type")),
        Some((kind, source)) => validate_one(kind, source, &path.child(kind), errors),
    }
    for (kind, _) in sources {
        errors.push(FieldError::forbidden(&path.child(kind), "may not specify more than 1 volume type"));
    }
}

fn validate_one(kind: &str, source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    match kind {
        "emptyDir" => {
            let limit = text(source, "sizeLimit").parse::<Quantity>();
            if limit.is_ok_and(|limit| limit.is_negative()) {
                let message = "SizeLimit field must be a valid resource quantity";
                errors.push(FieldError::forbidden(&path.child("sizeLimit"), message));
            }
        }
        "hostPath" => validate_host_path(source, path, errors),
        "secret" => {
            require(source, "secretName", path, errors);
            validate_mode(source, "defaultMode", path, errors);
            validate_items(source, path, errors);
        }
        "configMap" => {
            require(source, "name", path, errors);
            validate_mode(source, "defaultMode", path, errors);
            validate_items(source, path, errors);
        }
        "downwardAPI" => {
            validate_mode(source, "defaultMode", path, errors);
            validate_downward_items(source, path, errors);
        }
        "projected" => validate_projected(source, path, errors),
        "image" => {
            require(source, "reference", path, errors);
            validate_pull_policy(source, path, errors);
        }
        "persistentVolumeClaim" => require(source, "claimName", path, errors),
        "nfs" => {
            require(source, "server", path, errors);
            require(source, "path", path, errors);
            let target = text(source, "path");
            if !target.is_empty() && !target.starts_with('/') {
                errors.push(FieldError::invalid(&path.child("path"), target, "must be an absolute path"));
            }
        }
        "csi" => validate_csi(source, path, errors),
        _ => {}
    }
}

fn validate_pull_policy(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    const POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];
    match text(source, "pullPolicy") {
        "" => errors.push(FieldError::required(&path.child("pullPolicy"), "")),
        policy if POLICIES.contains(&policy) => {}
        policy => errors.push(FieldError::not_supported(&path.child("pullPolicy"), policy, &POLICIES)),
    }
}

fn validate_csi(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    match text(source, "driver") {
        "" => errors.push(FieldError::required(&path.child("driver"), "")),
        driver => invalid_if_any(driver, names::dns1123_subdomain(driver), &path.child("driver"), errors),
    }
    if let Some(secret) = meta::at(source, &["nodePublishSecretRef"])
        && text(secret, "name").is_empty()
    {
        errors.push(FieldError::required(&path.child("nodePublishSecretRef").child("name"), ""));
    }
}

fn require(source: &Value, field: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if text(source, field).is_empty() {
        errors.push(FieldError::required(&path.child(field), ""));
    }
}

fn validate_host_path(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    const TYPES: [&str; 8] =
        ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    let target = text(source, "path");
    if target.is_empty() {
        errors.push(FieldError::required(&path.child("path"), ""));
    } else if target.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(&path.child("path"), target, "must not contain '..'"));
    }
    let ty = text(source, "type");
    if !TYPES.contains(&ty) {
        errors.push(FieldError::not_supported(&path.child("type"), ty, &TYPES));
    }
}

fn validate_mode(holder: &Value, field: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(mode) = meta::i64_at(holder, &[field])
        && !(0..=MODE_MAX).contains(&mode)
    {
        errors.push(FieldError::invalid(&path.child(field), mode, MODE_MESSAGE));
    }
}

/// Keys of a ConfigMap or Secret and the files they become.
fn validate_items(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for (index, item) in meta::items_at(source, &["items"]).iter().enumerate() {
        let path = path.child("items").index(index);
        require(item, "key", &path, errors);
        validate_file(item, &path, errors);
    }
}

fn validate_file(item: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    require(item, "path", path, errors);
    validate_relative_path(text(item, "path"), &path.child("path"), errors);
    if text(item, "path").starts_with("..") && !text(item, "path").split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(&path.child("path"), text(item, "path"), "must not start with '..'"));
    }
    validate_mode(item, "mode", path, errors);
}

fn validate_downward_items(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    for (index, item) in meta::items_at(source, &["items"]).iter().enumerate() {
        let path = path.child("items").index(index);
        validate_file(item, &path, errors);
        match (meta::at(item, &["fieldRef"]), meta::at(item, &["resourceFieldRef"])) {
            (Some(_), Some(_)) => {
                let message = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(&path, "resource", message));
            }
            (Some(field), None) => validate_field_ref(field, &FILE_FIELD_PATHS, &path.child("fieldRef"), errors),
            (None, Some(resource)) => {
                let path = path.child("resourceFieldRef");
                if text(resource, "containerName").is_empty() {
                    errors.push(FieldError::required(&path.child("containerName"), ""));
                }
                require(resource, "resource", &path, errors);
            }
            (None, None) => {
                errors.push(FieldError::required(&path, "one of fieldRef and resourceFieldRef is required"));
            }
        }
    }
}

fn validate_projected(source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    validate_mode(source, "defaultMode", path, errors);
    let mut files = BTreeSet::new();
    for (index, given) in meta::items_at(source, &["sources"]).iter().enumerate() {
        let path = path.child("sources").index(index);
        let kinds: Vec<&String> = given.as_object().into_iter().flatten().map(|(kind, _)| kind).collect();
        for kind in kinds.iter().skip(1) {
            errors.push(FieldError::forbidden(&path.child(kind), "may not specify more than 1 volume type"));
        }
        match kinds.first() {
            None => errors.push(FieldError::required(&path, "must specify a volume type")),
            Some(kind) => validate_projection(kind, &given[kind.as_str()], &path.child(kind), errors),
        }
        for item in given.as_object().into_iter().flatten().flat_map(|(_, s)| meta::items_at(s, &["items"])) {
            let file = text(item, "path");
            if !file.is_empty() && !files.insert(file) {
                errors.push(FieldError::invalid(&path, file, "conflicting duplicate paths"));
            }
        }
    }
}

fn validate_projection(kind: &str, source: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    match kind {
        "secret" | "configMap" => {
            require(source, "name", path, errors);
            validate_items(source, path, errors);
        }
        "downwardAPI" => validate_downward_items(source, path, errors),
        "serviceAccountToken" => {
            require(source, "path", path, errors);
            validate_relative_path(text(source, "path"), &path.child("path"), errors);
            let seconds = meta::i64_at(source, &["expirationSeconds"]).unwrap_or(TOKEN_SECONDS_MIN);
            let path = path.child("expirationSeconds");
            if seconds < TOKEN_SECONDS_MIN {
                errors.push(FieldError::invalid(&path, seconds, "may not specify a duration less than 10 minutes"));
            } else if seconds > TOKEN_SECONDS_MAX {
                errors.push(FieldError::invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds"));
            }
        }
        _ => {}
    }
}
