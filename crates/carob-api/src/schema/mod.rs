//! The schema table: every type and field of the API, its JSON type, merge behaviour, default and protobuf number.
//!
//! One table drives decoding, pruning, defaulting, patches, server-side apply, OpenAPI and the protobuf transcoder.

mod decode;
mod defaults;
mod model;

pub use decode::{DecodeError, Decoded, decode, prune, type_check};
pub use defaults::apply_defaults;
pub use model::{FieldRef, ListType, Scalar, Shape, TypeRef, TypeTable, builtin};
