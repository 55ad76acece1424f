//! The generic registry: every verb on every kind, from the table of kinds and nothing else.

mod create;
mod decode;
mod delete;
mod frames;
mod get;
mod list;
mod options;
mod page_token;
mod patch;
mod pipeline;
mod render;
mod selection;
mod sparse;
mod update;
mod watch;
mod write;

use carob_api::kinds::VersionDef;
use carob_api::status::GroupResource;
use carob_api::strategy::Part;
use carob_api::{ResourceDef, Status, SubresourceDef};
use carob_store::Entry;
use http::request::Parts;
use std::sync::Arc;

use crate::error::{ApiError, ApiResult};
use crate::identity::Identity;
use crate::negotiate::{Form, Offer, negotiate, negotiate_custom};
use crate::request::{Notes, Query};
use crate::state::State;

pub(crate) use create::Written;
pub(crate) use create::create;
pub(crate) use decode::{Expected, decode_body, strict_problems};
pub(crate) use delete::{Removal, delete, delete_collection, remove};
pub(crate) use get::answer_value;
pub(crate) use get::get;
pub(crate) use list::list;
pub(crate) use options::WriteOptions;
pub(crate) use patch::patch;
pub(crate) use pipeline::{Projection, admit_action, admit_connection};
pub(crate) use render::{list_metadata, render_list, render_object};
pub(crate) use selection::Selection;
pub(crate) use update::{Change, rewrite, update, write_changed};
pub(crate) use watch::watch;

/// One request on one resource: what every verb needs to know.
pub(crate) struct Call<'a> {
    pub(crate) api: &'a State,
    pub(crate) def: Arc<ResourceDef>,
    /// The version that the client speaks.
    pub(crate) version: Arc<VersionDef>,
    pub(crate) subresource: Option<&'static SubresourceDef>,
    /// Empty for all namespaces and for kinds without one.
    pub(crate) namespace: String,
    /// Empty for collections.
    pub(crate) name: String,
    pub(crate) user: Identity,
    pub(crate) query: Query,
    pub(crate) parts: Parts,
    pub(crate) notes: Arc<Notes>,
}

impl Call<'_> {
    pub(crate) fn resource(&self) -> GroupResource<'_> {
        GroupResource::new(self.def.group(), self.def.plural())
    }

    pub(crate) fn api_version(&self) -> String {
        self.def.api_version(self.version.name())
    }

    /// The form of an answer with objects of the kind.
    pub(crate) fn negotiate(&self, offer: Offer) -> ApiResult<Form> {
        let choose = if self.def.custom().is_some() { negotiate_custom } else { negotiate };
        choose(&self.parts.headers, offer)
    }

    /// The key of the named object.
    pub(crate) fn key(&self) -> String {
        self.def.storage_key(&self.namespace, &self.name)
    }

    /// The prefix of the collection's keys.
    pub(crate) fn prefix(&self) -> String {
        self.def.storage_prefix((!self.namespace.is_empty()).then_some(self.namespace.as_str()))
    }

    /// The part of the object that a write through this path may change.
    pub(crate) fn part(&self) -> Part {
        match self.subresource.map(|subresource| subresource.role) {
            Some(carob_api::kinds::SubresourceRole::Part(part)) => part,
            _ => Part::Main,
        }
    }

    pub(crate) fn subresource_name(&self) -> &'static str {
        self.subresource.map_or("", |subresource| subresource.name)
    }

    pub(crate) fn not_found(&self) -> ApiError {
        Status::not_found(self.resource(), &self.name).into()
    }

    /// A call of the same user on another object, without the parameters and headers of this request.
    pub(crate) fn beside(&self, def: &Arc<ResourceDef>, namespace: &str, name: &str) -> Self {
        Self {
            api: self.api,
            def: Arc::clone(def),
            version: Arc::clone(&def.versions()[0]),
            subresource: None,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            user: Arc::clone(&self.user),
            query: Query::default(),
            parts: http::Request::new(()).into_parts().0,
            notes: Arc::clone(&self.notes),
        }
    }

    /// The stored object that the path names, in the hub form.
    pub(crate) async fn stored(&self) -> ApiResult<Arc<Entry>> {
        let entry = self.api.store.get(&self.key()).ok_or_else(|| self.not_found())?;
        self.hub(entry).await
    }

    /// An entry as it was written, in the hub form.
    pub(crate) async fn hub(&self, entry: Arc<Entry>) -> ApiResult<Arc<Entry>> {
        self.api.converters.hub(&self.def, entry).await
    }
}
