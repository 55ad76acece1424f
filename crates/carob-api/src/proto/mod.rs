//! Kubernetes protobuf <-> JSON, driven by the schema table's numbers.
//!
//! Start at [`decode`] and [`encode`]. The wire form is proto2 as gogo-protobuf writes it for upstream's types
//! (each group's `generated.proto`): fields of Go structs without pointers are always written, so on the way in a
//! zero in such a field is the same as no field; embedded Go structs are messages of their own on the wire and lie
//! flat in JSON.

mod decode;
mod encode;
mod time;
mod wire;

pub use decode::decode;
pub use encode::{encode, envelope};

use wire::{Reader, Value as Wire};

/// Media type of protobuf bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// First bytes of every stored or sent message.
pub const MAGIC: &[u8; 4] = b"k8s\0";
/// Messages inside messages, which a hostile body could make deeper than the stack.
const DEPTH_MAX: usize = 128;

#[derive(Debug, thiserror::Error)]
pub enum ProtoError {
    #[error("message ends inside a field")]
    Truncated,
    #[error("no protobuf form for {0}")]
    NoType(String),
    #[error("{0}")]
    Malformed(String),
}

impl ProtoError {
    fn malformed(text: impl Into<String>) -> Self {
        Self::Malformed(text.into())
    }
}

/// The envelope's type and payload.
#[derive(Debug)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub raw: &'a [u8],
    pub content_type: &'a str,
}

/// Opens the `k8s\0` envelope (apimachinery `runtime.Unknown`).
pub fn open(body: &[u8]) -> Result<Envelope<'_>, ProtoError> {
    let body = body.strip_prefix(MAGIC).ok_or_else(|| {
        ProtoError::malformed("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    })?;
    let mut envelope = Envelope { api_version: "", kind: "", raw: &[], content_type: "" };
    let mut reader = Reader::new(body);
    while let Some((number, value)) = reader.next_field()? {
        match (number, value) {
            (1, Wire::Bytes(bytes)) => {
                let mut reader = Reader::new(bytes);
                while let Some((number, value)) = reader.next_field()? {
                    match (number, value) {
                        (1, Wire::Bytes(bytes)) => envelope.api_version = wire::text(bytes)?,
                        (2, Wire::Bytes(bytes)) => envelope.kind = wire::text(bytes)?,
                        (_, _) => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => envelope.raw = bytes,
            (4, Wire::Bytes(bytes)) => envelope.content_type = wire::text(bytes)?,
            (_, _) => {}
        }
    }
    Ok(envelope)
}

#[cfg(test)]
mod tests;
