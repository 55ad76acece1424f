//! Admission: what may still change or refuse a write that is authorised and well formed. Mutators run in order, then
//! validators; webhooks and policies are further links of the same two chains.

mod limit_range;
mod namespace;
mod node;
mod pod_defaults;
mod pod_group;
mod quota;
mod reader;
mod service_account;

use std::sync::Arc;

use async_trait::async_trait;
use carob_api::{ResourceDef, Status};
use carob_kit::Clock;
use serde_json::Value;

use crate::identity::Identity;
use limit_range::LimitRanger;
use namespace::NamespaceLifecycle;
use node::{NodeRestriction, NotReadyTaint};
pub(crate) use pod_defaults::SYSTEM_CLASSES;
use pod_defaults::{DefaultTolerations, Priority, RuntimeClass};
use pod_group::WorkloadExists;
use quota::ResourceQuota;
use reader::Reader;
use service_account::ServiceAccount;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// What is known of a write beside its object.
#[derive(Clone)]
pub struct Admission<'a> {
    pub operation: Operation,
    pub def: &'a ResourceDef,
    pub namespace: &'a str,
    /// Empty for a create whose name is generated later.
    pub name: &'a str,
    pub subresource: &'a str,
    pub user: &'a Identity,
    pub dry_run: bool,
}

/// May change the object.
#[async_trait]
pub trait Mutator: Send + Sync {
    /// Asked first, so that writes that do not concern the link cost nothing.
    fn handles(&self, write: &Admission<'_>) -> bool;

    async fn mutate(&self, write: &Admission<'_>, object: &mut Value, old: Option<&Value>) -> Result<(), Status>;
}

/// May refuse the object. A deletion has no `object`, a creation no `old`.
#[async_trait]
pub trait Validator: Send + Sync {
    fn handles(&self, write: &Admission<'_>) -> bool;

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status>;
}

fn is_new_pod(write: &Admission<'_>) -> bool {
    write.operation == Operation::Create && write.def.group().is_empty() && write.def.plural() == "pods"
}

/// PodGroups of scheduling.k8s.io.
fn is_new_group(write: &Admission<'_>) -> bool {
    write.operation == Operation::Create
        && write.def.group() == "scheduling.k8s.io"
        && write.def.plural() == "podgroups"
        && write.subresource.is_empty()
}

/// Both chains.
pub(crate) struct Pipeline {
    mutators: Vec<Box<dyn Mutator>>,
    validators: Vec<Box<dyn Validator>>,
}

impl Pipeline {
    pub(crate) fn new(
        store: carob_store::Store,
        clock: Arc<dyn Clock>,
        mutators: Vec<Box<dyn Mutator>>,
        validators: Vec<Box<dyn Validator>>,
    ) -> Self {
        let reader = Reader::new(store);
        let mut all: Vec<Box<dyn Mutator>> = vec![
            Box::new(NamespaceLifecycle { reader: reader.clone() }),
            Box::new(LimitRanger { reader: reader.clone() }),
            Box::new(ServiceAccount { reader: reader.clone() }),
            Box::new(DefaultTolerations),
            Box::new(Priority { reader: reader.clone() }),
            Box::new(RuntimeClass { reader: reader.clone() }),
            Box::new(NotReadyTaint),
        ];
        all.extend(mutators);
        let mut checks: Vec<Box<dyn Validator>> = vec![
            Box::new(NamespaceLifecycle { reader: reader.clone() }),
            Box::new(Priority { reader: reader.clone() }),
            Box::new(WorkloadExists { reader: reader.clone() }),
            Box::new(NodeRestriction),
            Box::new(LimitRanger { reader: reader.clone() }),
        ];
        checks.extend(validators);
        checks.push(Box::new(ResourceQuota { reader, clock }));
        Self { mutators: all, validators: checks }
    }

    pub(crate) async fn mutate(
        &self,
        write: &Admission<'_>,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        for link in self.mutators.iter().filter(|link| link.handles(write)) {
            link.mutate(write, object, old).await?;
        }
        Ok(())
    }

    pub(crate) async fn validate(
        &self,
        write: &Admission<'_>,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        for link in self.validators.iter().filter(|link| link.handles(write)) {
            link.validate(write, object, old).await?;
        }
        Ok(())
    }
}
