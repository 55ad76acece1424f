//! Kubernetes protobuf <-> JSON, driven by the schema table's numbers.

use serde_json::Value;

use crate::schema::TypeRef;

/// Media type of protobuf bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// First bytes of every stored or sent message.
pub const MAGIC: &[u8; 4] = b"k8s\0";

#[derive(Debug, thiserror::Error)]
pub enum ProtoError {
    #[error("message ends inside a field")]
    Truncated,
    #[error("no protobuf form for {0}")]
    NoType(String),
    #[error("{0}")]
    Malformed(String),
}

/// The envelope's type and payload.
#[derive(Debug)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub raw: &'a [u8],
    pub content_type: &'a str,
}

/// Opens the `k8s\0` envelope (runtime.Unknown).
pub fn open(body: &[u8]) -> Result<Envelope<'_>, ProtoError> {
    todo!()
}
/// Decodes a whole body into JSON with apiVersion and kind; `schema_of` finds the type of (apiVersion, kind).
pub fn decode<'t>(body: &[u8], schema_of: impl Fn(&str, &str) -> Option<TypeRef<'t>>) -> Result<Value, ProtoError> {
    todo!()
}
/// Encodes an object into the envelope.
pub fn encode(ty: TypeRef<'_>, obj: &Value) -> Result<Vec<u8>, ProtoError> {
    todo!()
}
/// The envelope around bytes that are no protobuf (custom resources as JSON).
pub fn envelope(api_version: &str, kind: &str, raw: &[u8], content_type: &str) -> Vec<u8> {
    todo!()
}
