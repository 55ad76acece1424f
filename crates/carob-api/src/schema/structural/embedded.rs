//! Validation of objects that a custom object embeds (apiextensions-apiserver pkg/apiserver/schema/objectmeta/validation.go).

use serde_json::{Map, Value};

use super::Node;
use crate::{
    field::{FieldError, FieldErrors, FieldPath},
    lifecycle, names,
};

impl Node {
    /// Errors of the embedded objects of a custom object: of their apiVersion, kind and metadata.
    pub fn check_embedded(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if self.any(&|node| node.is_embedded) {
            check(self, object, &FieldPath::default(), &mut errors);
        }
        errors
    }
}

fn check(node: &Node, value: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    match value {
        Value::Object(map) => {
            if node.is_embedded {
                check_type(map, path, errors);
                lifecycle::validate_embedded(value, &path.child("metadata"), errors);
            }
            for (key, value) in map {
                if let Some(below) = node.property(key) {
                    check(below, value, &path.child(key), errors);
                } else if let Some(below) = node.key(key) {
                    check(below, value, &path.key(key), errors);
                }
            }
        }
        Value::Array(items) => {
            let Some(below) = &node.items else { return };
            for (index, item) in items.iter().enumerate() {
                check(below, item, &path.index(index), errors);
            }
        }
        _ => {}
    }
}

fn check_type(map: &Map<String, Value>, path: &FieldPath, errors: &mut FieldErrors) {
    for name in ["apiVersion", "kind"] {
        let path = path.child(name);
        match map.get(name) {
            None => errors.push(FieldError::required(&path, "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid(&path, "", "must not be empty"));
            }
            Some(Value::String(text)) if name == "kind" => {
                let problems = names::dns1035_label(&text.to_lowercase());
                if !problems.is_empty() {
                    let detail = format!("may have mixed case, but should otherwise match: {}", problems.join(","));
                    errors.push(FieldError::invalid(&path, text.as_str(), detail));
                }
            }
            Some(Value::String(text)) if text.matches('/').count() > 1 => {
                let detail = format!("unexpected GroupVersion string: {text}");
                errors.push(FieldError::invalid(&path, text.as_str(), detail));
            }
            Some(Value::String(_)) => {}
            Some(other) => errors.push(FieldError::invalid(&path, other.clone(), "must be a string")),
        }
    }
}
