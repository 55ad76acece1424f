//! Which PodSpec fields carob's node acts on. A field that nothing acts on is refused at create.

use serde_json::Value;

use crate::field::{FieldErrors, FieldPath};

/// Errors for each field of a PodSpec that carob does not act on.
pub fn refuse_unsupported(spec: &Value, path: &FieldPath) -> FieldErrors {
    todo!()
}
