//! What a request asks for, read from its method, path and query alone, and what it gives out beside its answer.

mod asked;
mod info;
mod notes;
mod query;

pub(crate) use asked::Asked;
pub(crate) use info::{RequestInfo, ResourceRequest, Verb};
pub use notes::Notes;
pub(crate) use query::{NotAnInteger, Query, percent_decode};
