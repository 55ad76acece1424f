//! The patch types: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch.

use serde_json::Value;

use crate::schema::TypeRef;

/// Operations of one JSON patch (apiserver's `maxJSONPatchOperations`).
pub const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch cannot be applied to this object: 422.
    #[error("{0}")]
    Unprocessable(String),
    #[error("The allowed maximum operations in a JSON patch is {max}, got {actual}")]
    TooManyOperations { actual: usize, max: usize },
}

pub fn json_patch(doc: &mut Value, patch: &Value) -> Result<(), PatchError> { todo!() }
pub fn merge_patch(doc: &mut Value, patch: &Value) -> Result<(), PatchError> { todo!() }
pub fn strategic_merge(ty: TypeRef<'_>, doc: &mut Value, patch: &Value) -> Result<(), PatchError> { todo!() }
impl PatchError { pub fn to_status(&self) -> crate::Status { todo!() } }
