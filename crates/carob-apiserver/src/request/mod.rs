//! What a request asks for, read from its method, path and query alone.

mod info;
mod query;

pub(crate) use info::{RequestInfo, ResourceRequest, Verb};
pub(crate) use query::{NotAnInteger, Query};
