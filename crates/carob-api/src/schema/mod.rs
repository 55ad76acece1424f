//! The schema table: every type and field of the API, its JSON type, merge behaviour, default and protobuf number.
//!
//! One table drives decoding, pruning, defaulting, patches, server-side apply, OpenAPI and the protobuf transcoder.
//! It is text of carob's own format (see `tables/`), parsed once, on first use, into about 100 KiB of records.

mod allowed;
mod decode;
mod defaults;
mod kind;
mod model;
mod parse;
mod same;
#[cfg(test)]
pub(crate) mod sample;
mod scalar;
pub mod structural;
mod tables;
#[cfg(test)]
mod tests;

pub use allowed::check_allowed;
pub(crate) use decode::is_kept;
pub use decode::{DecodeError, Decoded, conform, decode, strict_error, type_meta};
pub use defaults::apply_defaults;
pub use kind::{CustomSchema, Schema, Source, refresh};
pub use model::{Bounds, Element, FieldRef, ListType, OnWire, Scalar, Shape, TypeRef, TypeTable, WireNumber, builtin};
pub use parse::{TableError, parse};
pub(crate) use same::same;
