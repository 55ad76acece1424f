//! Server-side apply and the bookkeeping of field ownership (structured-merge-diff).

use jiff::Timestamp;
use serde_json::Value;

use crate::{Status, schema::TypeRef};

/// Who writes, and how.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    pub manager: &'a str,
    /** apiVersion of the request. */
    pub api_version: &'a str,
    /** "" or `status`, `scale`, ... */
    pub subresource: &'a str,
    pub now: Timestamp,
}

/// Sets metadata.managedFields of `new` after a create, update or patch by `writer`.
pub fn track_update(ty: TypeRef<'_>, old: Option<&Value>, new: &mut Value, writer: &Writer<'_>) -> Result<(), Status> {
    todo!()
}
/// Merges an applied configuration into `live` (`None`: create). Conflicts are a 409 unless `force`.
pub fn apply(
    ty: TypeRef<'_>,
    live: Option<&Value>,
    config: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, Status> {
    todo!()
}
