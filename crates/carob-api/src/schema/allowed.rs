//! Fields that accept only certain values, as the table lists them.

use serde_json::Value;

use super::{Element, FieldRef, Shape, TypeRef};
use crate::field::{FieldError, FieldErrors, FieldPath};

/// Errors for each enumerated field below `path` whose value is not among the table's.
pub fn check_allowed(ty: TypeRef<'_>, value: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let Value::Object(map) = value else { return };
    for (name, value) in map {
        let Some(field) = ty.field(name) else { continue };
        match (field.shape(), value) {
            (Shape::One(Element::Object(ty)), value) => check_allowed(ty, value, &path.child(name), errors),
            (Shape::List(Element::Object(ty)), Value::Array(items)) => {
                let path = path.child(name);
                for (index, item) in items.iter().enumerate() {
                    check_allowed(ty, item, &path.index(index), errors);
                }
            }
            (Shape::Map(Element::Object(ty)), Value::Object(values)) => {
                let path = path.child(name);
                for (key, value) in values {
                    check_allowed(ty, value, &path.key(key), errors);
                }
            }
            (Shape::List(_), Value::Array(items)) if field.is_enumerated() => {
                let path = path.child(name);
                for (index, item) in items.iter().enumerate() {
                    check_one(field, item, &path.index(index), errors);
                }
            }
            (Shape::One(_), value) if field.is_enumerated() => check_one(field, value, &path.child(name), errors),
            _ => {}
        }
    }
}

fn check_one(field: FieldRef<'_>, value: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(text) = value.as_str()
        && !text.is_empty()
        && !field.allowed_values().any(|allowed| allowed == text)
    {
        let supported: Vec<&str> = field.allowed_values().collect();
        errors.push(FieldError::not_supported(path, text, &supported));
    }
}
