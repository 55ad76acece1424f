//! An authorised request on a resource, as the handlers get it.

use std::sync::Arc;

use http::request::Parts;

use super::{Notes, Query, ResourceRequest, Verb};
use crate::identity::Identity;

pub(crate) struct Asked {
    pub(crate) parts: Parts,
    pub(crate) query: Query,
    pub(crate) verb: Verb,
    pub(crate) resource: ResourceRequest,
    pub(crate) user: Identity,
    pub(crate) notes: Arc<Notes>,
}
