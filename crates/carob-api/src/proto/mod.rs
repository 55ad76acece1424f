//! Kubernetes protobuf <-> JSON, driven by the schema table's numbers.
//!
//! A body is the magic `k8s\0` and a runtime.Unknown that names the type and carries the message. Client-go's typed
//! clients send these; answers may be in either form.

mod decode;
mod duration;
mod encode;
#[cfg(test)]
mod tests;
pub mod wire;

use serde_json::Value;

pub use duration::nanos;
pub use encode::watch_event;

use crate::{
    depth::{self, DEPTH_MAX},
    meta,
    schema::TypeRef,
};

/// Media type of protobuf bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// First bytes of every message that is not part of a stream.
pub const MAGIC: &[u8; 4] = b"k8s\0";

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProtoError {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    #[error("unexpected EOF")]
    Truncated,
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    NoType { api_version: String, kind: String },
    #[error("proto: {0}")]
    Malformed(&'static str),
    #[error("proto: {0}: not JSON inside")]
    NotJson(&'static str),
    #[error("proto: nested more than {max} levels deep")]
    TooDeep { max: usize },
}

/// The envelope's type and payload.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    /// A message of that kind, unless `content_type` says otherwise.
    pub raw: &'a [u8],
    pub content_type: &'a str,
}

/// Opens the envelope.
pub fn open(body: &[u8]) -> Result<Envelope<'_>, ProtoError> {
    let unknown = body.strip_prefix(MAGIC.as_slice()).ok_or(ProtoError::NoMagic)?;
    let mut envelope = Envelope { api_version: "", kind: "", raw: &[], content_type: "" };
    let mut fields = wire::Reader::new(unknown);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 => {
                let mut fields = wire::Reader::new(value.bytes()?);
                while let Some((number, value)) = fields.next_field()? {
                    match number {
                        1 => envelope.api_version = value.text()?,
                        2 => envelope.kind = value.text()?,
                        _ => {}
                    }
                }
            }
            2 => envelope.raw = value.bytes()?,
            4 => envelope.content_type = value.text()?,
            _ => {}
        }
    }
    Ok(envelope)
}

/// Decodes a whole body into JSON with apiVersion and kind. `schema_of` finds the type of an apiVersion and kind.
pub fn decode<'t>(body: &[u8], schema_of: impl Fn(&str, &str) -> Option<TypeRef<'t>>) -> Result<Value, ProtoError> {
    let envelope = open(body)?;
    let no_type =
        || ProtoError::NoType { api_version: envelope.api_version.to_owned(), kind: envelope.kind.to_owned() };
    let ty = schema_of(envelope.api_version, envelope.kind).ok_or_else(no_type)?;
    let mut object = Value::Object(decode::message(ty, envelope.raw, DEPTH_MAX)?);
    // Messages are bounded on the way in; JSON within them is as deep again.
    if depth::measure(&object, usize::MAX).is_none_or(|(depth, _)| depth > DEPTH_MAX) {
        return Err(ProtoError::TooDeep { max: DEPTH_MAX });
    }
    meta::set(&mut object, &["apiVersion"], envelope.api_version);
    meta::set(&mut object, &["kind"], envelope.kind);
    Ok(object)
}

/// Encodes an object that names its apiVersion and kind.
pub fn encode(ty: TypeRef<'_>, obj: &Value) -> Result<Vec<u8>, ProtoError> {
    let raw = encode::message(ty, obj)?;
    Ok(envelope(meta::api_version(obj), meta::kind(obj), &raw, ""))
}

/// The envelope around a payload; `content_type` is empty for protobuf.
pub fn envelope(api_version: &str, kind: &str, raw: &[u8], content_type: &str) -> Vec<u8> {
    let mut type_meta = Vec::with_capacity(api_version.len() + kind.len() + 4);
    wire::put_bytes(&mut type_meta, 1, api_version.as_bytes());
    wire::put_bytes(&mut type_meta, 2, kind.as_bytes());
    let mut out = Vec::with_capacity(raw.len() + type_meta.len() + 24);
    out.extend_from_slice(MAGIC);
    wire::put_bytes(&mut out, 1, &type_meta);
    wire::put_bytes(&mut out, 2, raw);
    wire::put_bytes(&mut out, 3, b"");
    wire::put_bytes(&mut out, 4, content_type.as_bytes());
    out
}
