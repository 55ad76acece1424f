//! Conditions as `meta/v1` has them (apimachinery pkg/apis/meta/v1/validation, `ValidateConditions`).

use serde_json::Value;

use crate::{
    field::{FieldError, FieldErrors, FieldPath, invalid_each},
    meta, names,
};

/// Bytes of a reason and of a message.
const REASON_LEN_MAX: usize = 1024;
const MESSAGE_LEN_MAX: usize = 32 * 1024;

pub(super) fn validate(conditions: &[Value], path: &FieldPath, errors: &mut FieldErrors) {
    for (index, condition) in conditions.iter().enumerate() {
        let path = path.index(index);
        let text = |field| meta::text(condition, &[field]);
        let kind = text("type");
        if conditions[..index].iter().any(|earlier| meta::text(earlier, &["type"]) == kind) {
            errors.push(FieldError::duplicate(&path.child("type"), kind));
        }
        invalid_each(&path.child("type"), kind, names::qualified_name(kind), errors);
        if !matches!(text("status"), "True" | "False" | "Unknown") {
            let supported = ["False", "True", "Unknown"];
            errors.push(FieldError::not_supported(&path.child("status"), text("status"), &supported));
        }
        let generation = meta::i64_at(condition, &["observedGeneration"]).unwrap_or_default();
        if generation < 0 {
            let message = "must be greater than or equal to zero";
            errors.push(FieldError::invalid(&path.child("observedGeneration"), generation, message));
        }
        if text("lastTransitionTime").is_empty() {
            errors.push(FieldError::required(&path.child("lastTransitionTime"), ""));
        }
        validate_reason(text("reason"), &path.child("reason"), errors);
        if text("message").len() > MESSAGE_LEN_MAX {
            errors.push(FieldError::too_long(&path.child("message"), MESSAGE_LEN_MAX));
        }
    }
}

fn validate_reason(reason: &str, path: &FieldPath, errors: &mut FieldErrors) {
    if reason.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    invalid_each(path, reason, names::condition_reason(reason), errors);
    if reason.len() > REASON_LEN_MAX {
        errors.push(FieldError::too_long(path, REASON_LEN_MAX));
    }
}
