//! The Kubernetes v1.36 API as data and pure functions: the table of kinds, the schema table, defaulting, validation,
//! selectors, quantities, patches, server-side apply, `Status`, Tables and the protobuf transcoder.
//!
//! Start reading at [`kinds`] (what exists), [`schema`] (what it looks like) and [`lifecycle`] (what happens to an object
//! on its way into the store). Objects are [`serde_json::Value`]s; typed structs appear nowhere on the request path.
//!
//! Invariant: this crate does no I/O, spawns nothing and knows no async runtime. Time is passed in.

pub mod addresses;
pub mod apply;
pub mod cron;
pub mod csr;
pub mod depth;
pub mod field;
pub mod kinds;
pub mod lifecycle;
pub mod meta;
pub mod names;
pub mod patch;
pub mod pem;
pub mod pod;
pub mod pod_support;
pub mod proto;
pub mod quantity;
pub mod quota;
pub mod references;
pub mod regexes;
pub mod schema;
pub mod selector;
pub mod status;
pub mod storage;
pub mod strategy;
pub mod table;

pub use field::{FieldError, FieldErrors, FieldPath};
pub use kinds::{ResourceDef, SubresourceDef};
pub use quantity::Quantity;
pub use schema::TypeRef;
pub use status::Status;
pub use strategy::Strategy;
