//! What a write is to a policy: whether it is about it, with which parameters, in which version.

use std::sync::Arc;

use carob_api::status::GroupResource;
use carob_api::{ResourceDef, Status, meta};
use carob_store::Store;
use serde_json::Value;

use super::definition::{Base, Binding};
use super::input::namespace_object;
use super::params::collect;
use crate::admission::matching::{MatchResources, Matched};
use crate::admission::{Admission, Reader};
use crate::authz::Authorization;
use crate::catalogue::Catalogue;
use crate::conversion::Converters;

/// What policies look things up in.
#[derive(Clone)]
pub(crate) struct Surroundings {
    reader: Reader,
    catalogue: Arc<Catalogue>,
    converters: Arc<Converters>,
    pub(super) authorization: Authorization,
}

/// A write as policies see it.
#[derive(Clone, Copy)]
pub(super) struct Scope<'r> {
    pub(super) around: &'r Surroundings,
    pub(super) write: &'r Admission<'r>,
    pub(super) object: Option<&'r Value>,
    pub(super) old: Option<&'r Value>,
}

/// How a write concerns a policy.
pub(super) struct Concern {
    pub(super) matched: Matched,
    /// The kind of the policy's parameters.
    pub(super) params: Option<Arc<ResourceDef>>,
}

impl Surroundings {
    pub(crate) fn new(
        store: &Store,
        catalogue: Arc<Catalogue>,
        converters: Arc<Converters>,
        authorization: Authorization,
    ) -> Self {
        Self { reader: Reader::new(store.clone()), catalogue, converters, authorization }
    }
}

impl Scope<'_> {
    fn matched(&self, constraints: &Result<MatchResources, String>) -> Result<Option<Matched>, String> {
        match constraints {
            Ok(constraints) => constraints.matches(self.write, self.object, self.old, &self.around.reader),
            Err(why) => Err(why.clone()),
        }
    }

    /// Whether the write concerns a policy, and the kind of its parameters.
    pub(super) fn of_policy(&self, policy: &Base) -> Result<Option<Concern>, String> {
        let Some(matched) = self.matched(&policy.constraints)? else { return Ok(None) };
        let Some(kind) = &policy.param_kind else { return Ok(Some(Concern { matched, params: None })) };
        let (group, version) = meta::group_version(&kind.api_version);
        match self.around.catalogue.snapshot().kinds.kind(group, version, &kind.kind) {
            Some(def) => Ok(Some(Concern { matched, params: Some(Arc::clone(def)) })),
            None => Err(format!(
                "failed to find resource referenced by paramKind: '{}, Kind={}'",
                kind.api_version, kind.kind
            )),
        }
    }

    /// The parameters that a binding gives, each for a run of the policy; none if it is not about the write.
    pub(super) async fn params(
        &self,
        policy: &Base,
        def: Option<&Arc<ResourceDef>>,
        binding: &Binding,
    ) -> Result<Vec<Option<Value>>, String> {
        if let Some(constraints) = &binding.constraints
            && self.matched(constraints)?.is_none()
        {
            return Ok(Vec::new());
        }
        let kind = policy.param_kind.as_ref().zip(def);
        let Surroundings { reader, converters, .. } = self.around;
        collect(kind, &binding.param_ref, self.write.namespace, reader, converters).await
    }

    /// The namespace of the write, as expressions see it; null for what is in none.
    pub(super) fn namespace(&self) -> Result<Value, Status> {
        if self.write.namespace.is_empty() || self.write.is("", "namespaces") {
            return Ok(Value::Null);
        }
        match self.around.reader.get("", "namespaces", "", self.write.namespace) {
            Some(namespace) => Ok(namespace_object(namespace)),
            None => Err(Status::not_found(GroupResource::new("", "namespaces"), self.write.namespace)),
        }
    }

    /// An object in the version by which the write was matched.
    pub(super) async fn versioned(&self, object: Option<&Value>, matched: &Matched) -> Result<Value, Status> {
        match object.cloned() {
            Some(object) if self.write.is_of_resource() && object.is_object() => {
                let api_version = self.write.def.api_version(&matched.version);
                self.around.converters.to_version(self.write.def, object, &api_version).await
            }
            object => Ok(object.unwrap_or_default()),
        }
    }

    /// What a policy made of an object in that version, in the version of `like`.
    pub(super) async fn back(&self, made: Value, like: &Value) -> Result<Value, Status> {
        if !self.write.is_of_resource() {
            return Ok(made);
        }
        self.around.converters.to_version(self.write.def, made, meta::api_version(like)).await
    }

    /// The definition of the version by which the write was matched.
    pub(super) fn matched_def(&self, matched: &Matched) -> Option<Arc<ResourceDef>> {
        let (def, served) = (self.write.def, self.around.catalogue.snapshot());
        served.kinds.resource(def.group(), &matched.version, def.plural()).cloned()
    }
}
