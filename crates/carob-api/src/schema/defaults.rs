use serde_json::Value;

use super::TypeRef;

/// Sets what the table gives a default for and the object leaves out.
pub fn apply_defaults(ty: TypeRef<'_>, value: &mut Value) { todo!() }
