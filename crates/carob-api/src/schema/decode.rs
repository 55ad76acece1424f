use serde_json::Value;

use super::TypeRef;

/// An object as decoded, and what was wrong with it but not fatal.
#[derive(Debug)]
pub struct Decoded {
    pub value: Value,
    /// `unknown field "spec.foo"`, `duplicate field "spec.x"`: errors under fieldValidation=Strict, warnings under Warn.
    pub problems: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Body is no JSON; the text is what upstream's decoder says.
    #[error("{0}")]
    Syntax(String),
    /// A value has the wrong JSON type: `json: cannot unmarshal string into Go struct field ...`.
    #[error("{0}")]
    Type(String),
    #[error("object is nested more than {max} levels deep")]
    TooDeep { max: usize },
}

/// Parses JSON, reports duplicate keys, prunes what the type does not know and checks JSON types.
/// Without a type (custom resources) only duplicates and depth are checked.
pub fn decode(body: &[u8], ty: Option<TypeRef<'_>>) -> Result<Decoded, DecodeError> { todo!() }

/// Removes fields that the type does not know and returns their paths (`spec.containers[0].foo`).
pub fn prune(ty: TypeRef<'_>, value: &mut Value) -> Vec<String> { todo!() }

/// Checks JSON types and brings scalars into canonical form (quantities, timestamps).
pub fn type_check(ty: TypeRef<'_>, value: &mut Value) -> Result<(), DecodeError> { todo!() }
