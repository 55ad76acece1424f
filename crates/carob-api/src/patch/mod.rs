//! The patch types: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch.
//!
//! Server-side apply, the fourth, is [`crate::apply`].

mod json_patch;
mod strategic;
#[cfg(test)]
mod tests;

use serde_json::Value;

pub use json_patch::{json_patch, json_patch_problems};
pub use strategic::strategic_merge;

use crate::{
    Status,
    status::{Cause, Details},
};

/// Operations of one JSON patch (apiserver pkg/endpoints/handlers/patch.go).
pub const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;
/// Items of lists that one JSON patch may move, and values that it may look at for their depth. Upstream has no bound: an
/// insertion at the head of a list of a million items, ten thousand times, takes minutes.
pub const JSON_PATCH_STEPS_MAX: usize = 20_000_000;
/// Bytes that copy operations of one JSON patch may add (apiserver pkg/server/config.go).
pub const JSON_PATCH_COPY_BYTES_MAX: usize = 3 * 1024 * 1024;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PatchError {
    /// The patch itself is malformed: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch cannot be applied to this object: 422.
    #[error("{0}")]
    Unprocessable(String),
    /// A test in the patch does not hold: 422.
    #[error("{0}")]
    TestFailed(String),
    #[error("The allowed maximum operations in a JSON patch is {max}, got {actual}")]
    TooManyOperations { actual: usize, max: usize },
    #[error("The JSON patch takes more than {max} steps")]
    TooMuchWork { max: usize },
}

impl PatchError {
    pub fn to_status(&self) -> Status {
        match self {
            PatchError::Malformed(text) => Status::bad_request(text.clone()),
            PatchError::TooManyOperations { .. } | PatchError::TooMuchWork { .. } => {
                Status::request_entity_too_large(&self.to_string())
            }
            PatchError::Unprocessable(text) | PatchError::TestFailed(text) => {
                let message = "the server rejected our request due to an error in our request";
                let mut status = Status::unprocessable(message);
                let cause =
                    Cause { reason: "UnexpectedServerResponse".to_owned(), message: text.clone(), ..Cause::default() };
                status.details = Some(Box::new(Details { causes: vec![cause], ..Details::default() }));
                status
            }
        }
    }
}

/// Applies a merge patch: objects merge, null removes, everything else replaces. What is new has no nulls in its objects, those in
/// lists included (evanphx/json-patch merge.go), where RFC 7386 keeps the latter.
pub fn merge_patch(doc: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed("Invalid JSON Patch".to_owned()));
    }
    merge(doc, patch);
    Ok(())
}

fn merge(doc: &mut Value, patch: &Value) {
    match (doc, patch) {
        (Value::Object(doc), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    doc.remove(key);
                } else {
                    merge(doc.entry(key.as_str()).or_insert(Value::Null), value);
                }
            }
        }
        // The one place where upstream leaves them.
        (doc @ Value::Object(_), patch) => *doc = patch.clone(),
        (doc, patch) => *doc = without_nulls(patch),
    }
}

/// A value without the null members of its objects; a list keeps its null items.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let members = map.iter().filter(|(_, value)| !value.is_null());
            Value::Object(members.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}
