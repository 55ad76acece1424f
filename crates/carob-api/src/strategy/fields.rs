//! Fields as the checks of all kinds read them.

use serde_json::Value;

use super::NameRule;
use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta,
};

/// A text field, empty when absent.
pub(super) fn text<'a>(holder: &'a Value, field: &str) -> &'a str {
    meta::str_at(holder, &[field]).unwrap_or_default()
}

/// Whether a field is there and true.
pub(super) fn is_true(holder: &Value, field: &str) -> bool {
    meta::bool_at(holder, &[field]) == Some(true)
}

/// Errors when a text field is empty.
pub(super) fn require(holder: &Value, field: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if text(holder, field).is_empty() {
        errors.push(FieldError::required(&path.child(field), ""));
    }
}

/// Errors when a text field is empty or what `check` finds wrong with it.
pub(super) fn require_name(
    holder: &Value,
    field: &str,
    check: fn(&str) -> Vec<String>,
    path: &FieldPath,
    errors: &mut FieldErrors,
) {
    match text(holder, field) {
        "" => errors.push(FieldError::required(&path.child(field), "")),
        value => invalid_each(&path.child(field), value, check(value), errors),
    }
}

/// The name of an object that is referred to; `prefix` where upstream checks it as if it were a generateName.
pub(super) fn object_name(name: &str, prefix: bool, path: &FieldPath, errors: &mut FieldErrors) {
    invalid_each(path, name, NameRule::Subdomain.check(name, prefix), errors);
}

/// Errors when a field that tells empty from absent has another value than these.
pub(super) fn one_of(holder: &Value, field: &str, supported: &[&str], path: &FieldPath, errors: &mut FieldErrors) {
    if let Some(given) = meta::str_at(holder, &[field]).filter(|given| !supported.contains(given)) {
        errors.push(FieldError::not_supported(&path.child(field), given, supported));
    }
}
