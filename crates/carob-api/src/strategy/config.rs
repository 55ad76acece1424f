//! ConfigMaps and Secrets.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::{Part, Rules, Strategy, old_forms, workload::immutable};
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    meta, names, schema,
};

/// All values of one object, bytes (kubernetes pkg/apis/core: MaxSecretSize).
const SIZE_MAX: usize = 1024 * 1024;

fn entries<'a>(obj: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    meta::at(obj, &[field]).and_then(Value::as_object).into_iter().flatten()
}

fn validate_keys(obj: &Value, field: &str, errors: &mut FieldErrors) {
    let path = FieldPath::new(field);
    for (key, _) in entries(obj, field) {
        for message in names::config_map_key(key) {
            errors.push(FieldError::invalid(&path.key(key), key.as_str(), message));
        }
    }
}

fn decoded_len(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default().trim_end_matches('=');
    text.len() * 3 / 4
}

/// An object that is marked immutable keeps its data and its mark.
fn validate_immutability(new: &Value, old: &Value, fields: &[&str], errors: &mut FieldErrors) {
    if meta::bool_at(old, &["immutable"]) != Some(true) {
        return;
    }
    let message = "field is immutable when `immutable` is set";
    if meta::bool_at(new, &["immutable"]) != Some(true) {
        errors.push(FieldError::forbidden(&FieldPath::new("immutable"), message));
    }
    let empty = Value::Object(Map::new());
    for field in fields {
        if new.get(field).unwrap_or(&empty) != old.get(field).unwrap_or(&empty) {
            errors.push(FieldError::forbidden(&FieldPath::new(field), message));
        }
    }
}

#[derive(Debug)]
pub(super) struct ConfigMap;

impl Strategy for ConfigMap {
    fn rules(&self) -> &Rules {
        &Rules::PLAIN
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        validate_keys(obj, "data", &mut errors);
        validate_keys(obj, "binaryData", &mut errors);
        for (key, _) in entries(obj, "data") {
            if meta::at(obj, &["binaryData", key]).is_some() {
                let path = FieldPath::new("data").key(key);
                errors.push(FieldError::invalid(&path, key.as_str(), "duplicate of key present in binaryData"));
            }
        }
        let text: usize = entries(obj, "data").map(|(_, value)| value.as_str().unwrap_or_default().len()).sum();
        let binary: usize = entries(obj, "binaryData").map(|(_, value)| decoded_len(value)).sum();
        if text + binary > SIZE_MAX {
            errors.push(FieldError::too_long(&FieldPath::default(), SIZE_MAX));
        }
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        validate_immutability(new, old, &["data", "binaryData"], &mut errors);
        errors
    }
}

#[derive(Debug)]
pub(super) struct Secret;

/// What the type of a Secret asks of its data.
fn type_errors(obj: &Value, errors: &mut FieldErrors) {
    const ACCOUNT: &str = "kubernetes.io/service-account.name";
    let data = FieldPath::new("data");
    let value = |key: &str| meta::str_at(obj, &["data", key]);
    let mut require = |key: &str, present: bool| {
        if !present {
            errors.push(FieldError::required(&data.key(key), ""));
        }
        present
    };
    match meta::text(obj, &["type"]) {
        "kubernetes.io/service-account-token" if meta::annotation(obj, ACCOUNT).is_none_or(str::is_empty) => {
            let path = FieldPath::new("metadata").child("annotations").key(ACCOUNT);
            errors.push(FieldError::required(&path, ""));
        }
        ty @ ("kubernetes.io/dockercfg" | "kubernetes.io/dockerconfigjson") => {
            let key = if ty.ends_with("json") { ".dockerconfigjson" } else { ".dockercfg" };
            let given = value(key);
            if require(key, given.is_some())
                && let Some(fault) = given.and_then(json_fault)
            {
                errors.push(FieldError::invalid(&data.key(key), "<secret contents redacted>", fault));
            }
        }
        "kubernetes.io/basic-auth" => {
            let present = value("username").is_some() || value("password").is_some();
            require("username", present);
            require("password", present);
        }
        "kubernetes.io/ssh-auth" => {
            require("ssh-privatekey", value("ssh-privatekey").is_some_and(|key| !key.is_empty()));
        }
        "kubernetes.io/tls" => {
            require("tls.crt", value("tls.crt").is_some());
            require("tls.key", value("tls.key").is_some());
        }
        _ => {}
    }
}

/// Why a base64 text is not the JSON of an object, in encoding/json's words.
fn json_fault(encoded: &str) -> Option<String> {
    // What is no base64 was refused by decoding.
    let bytes = STANDARD.decode(encoded).unwrap_or_default();
    let found = match schema::decode(&bytes, None) {
        Err(error) => return Some(error.to_string()),
        Ok(decoded) => match decoded.value {
            Value::Object(_) | Value::Null => return None,
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Number(_) => "number",
            Value::Bool(_) => "bool",
        },
    };
    Some(format!("json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"))
}

impl Strategy for Secret {
    fn rules(&self) -> &Rules {
        &Rules::PLAIN
    }

    /// stringData is write-only: it becomes data and is never stored.
    fn default(&self, obj: &mut Value) {
        let Some(Value::Object(texts)) = meta::remove(obj, &["stringData"]) else { return };
        let data = meta::map_mut(obj, &["data"]);
        for (key, text) in texts {
            let encoded = STANDARD.encode(text.as_str().unwrap_or_default());
            data.insert(key, encoded.into());
        }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        old_forms::of_secret(new).into_iter().collect()
    }

    fn validate(&self, obj: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        validate_keys(obj, "data", &mut errors);
        let size: usize = entries(obj, "data").map(|(_, value)| decoded_len(value)).sum();
        if size > SIZE_MAX {
            errors.push(FieldError::too_long(&FieldPath::new("data"), SIZE_MAX));
        }
        type_errors(obj, &mut errors);
        errors
    }

    fn validate_update(&self, _part: Part, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        immutable(new, old, &["type"], &mut errors);
        validate_immutability(new, old, &["data"], &mut errors);
        errors
    }
}
