//! Admission: what may still change or refuse a write that is authorised and well formed. Mutators run in order, then
//! validators; webhooks and policies are further links of the same two chains.
//!
//! Every write passes both: create, update, patch, apply, delete, each object of a deletecollection, status and other parts,
//! scale, binding, eviction, token requests, reviews and connections. Only what the server itself changes on behalf of such
//! a request (the Pod's node at a binding, a budget's count at an eviction) does not pass them again, as upstream's does not.

mod attributes;
mod certificates;
mod ingress;
mod limit_range;
pub(crate) mod matching;
mod namespace;
mod node;
mod node_features;
mod pod_defaults;
mod pod_group;
mod pod_security;
mod reader;
mod roles;
mod service_account;
mod storage;
mod topology;
mod webhook;

use std::sync::Arc;

use async_trait::async_trait;
use carob_api::Status;
use carob_kit::Clock;
use serde_json::Value;

use crate::authz::{Authorization, Rbac};
use crate::metrics::{AdmissionFigures, Step};
pub use attributes::{Admission, Chain, Operation};
use certificates::{Attest, Certificates, PodCertificates, Requester};
use ingress::DefaultIngressClass;
use limit_range::LimitRanger;
use namespace::NamespaceLifecycle;
use node::{NodeRestriction, NotReadyTaint};
use node_features::NodeDeclaredFeatures;
pub(crate) use pod_defaults::SYSTEM_CLASSES;
use pod_defaults::{DefaultTolerations, Priority, RuntimeClass};
use pod_group::WorkloadExists;
use pod_security::PodSecurity;
pub use pod_security::{PodSecurityConfig, PodSecurityError};
pub(crate) use reader::{Reader, parse};
use roles::NoEscalation;
use service_account::ServiceAccount;
use storage::{ClaimResize, DefaultStorageClass, InUseProtection};
use topology::PodTopologyLabels;
pub(crate) use webhook::{ConditionsCompile, MutatingWebhooks, ValidatingWebhooks};

/// May change the object.
///
/// The object is in its kind's storage version with all defaults ([`Admission::is_of_resource`]), or of the subresource's
/// own kind as the client sent it. A link that takes changes from outside the server has to leave it in the same form, and
/// to say so by [`Chain::changed_outside`].
#[async_trait]
pub trait Mutator: Send + Sync {
    /// Asked first, so that writes that do not concern the link cost nothing.
    fn handles(&self, write: &Admission<'_>) -> bool;

    /// A deletion's `object` is null and stays so. A creation and a connection have no `old`.
    async fn mutate(&self, write: &Admission<'_>, object: &mut Value, old: Option<&Value>) -> Result<(), Status>;
}

/// May refuse the object. A deletion has no `object`, a creation and a connection no `old`.
#[async_trait]
pub trait Validator: Send + Sync {
    fn handles(&self, write: &Admission<'_>) -> bool;

    async fn validate(&self, write: &Admission<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status>;
}

pub(crate) fn is_new_pod(write: &Admission<'_>) -> bool {
    write.operation == Operation::Create && write.is("", "pods") && write.subresource.is_empty()
}

/// PodGroups of scheduling.k8s.io.
fn is_new_group(write: &Admission<'_>) -> bool {
    write.operation == Operation::Create && write.is("scheduling.k8s.io", "podgroups") && write.subresource.is_empty()
}

/// Both chains.
pub(crate) struct Pipeline {
    mutators: Vec<Box<dyn Mutator>>,
    validators: Vec<Box<dyn Validator>>,
    figures: Arc<AdmissionFigures>,
}

impl Pipeline {
    #[expect(clippy::too_many_arguments, reason = "they are what the links are made of")]
    pub(crate) fn new(
        store: carob_store::Store,
        clock: &Arc<dyn Clock>,
        authz: &Authorization,
        rbac: Rbac,
        pod_security: PodSecurityConfig,
        mutators: Vec<Box<dyn Mutator>>,
        validators: Vec<Box<dyn Validator>>,
        figures: Arc<AdmissionFigures>,
    ) -> Self {
        let reader = Reader::new(store);
        let priority = Priority::new(reader.store());
        let mut all: Vec<Box<dyn Mutator>> = vec![
            Box::new(NamespaceLifecycle { reader: reader.clone() }),
            Box::new(LimitRanger { reader: reader.clone() }),
            Box::new(ServiceAccount { reader: reader.clone() }),
            Box::new(DefaultTolerations),
            Box::new(priority.clone()),
            Box::new(RuntimeClass { reader: reader.clone() }),
            Box::new(InUseProtection),
            Box::new(DefaultStorageClass { reader: reader.clone() }),
            Box::new(NotReadyTaint),
            Box::new(Requester),
            Box::new(DefaultIngressClass { reader: reader.clone() }),
            Box::new(PodTopologyLabels { reader: reader.clone() }),
        ];
        all.extend(mutators);
        let mut checks: Vec<Box<dyn Validator>> = vec![
            Box::new(NamespaceLifecycle { reader: reader.clone() }),
            Box::new(PodSecurity { reader: reader.clone(), config: pod_security }),
            Box::new(priority),
            Box::new(WorkloadExists { reader: reader.clone() }),
            Box::new(NodeRestriction { reader: reader.clone() }),
            Box::new(Certificates { authz: authz.clone() }),
            Box::new(Attest { authz: authz.clone() }),
            Box::new(PodCertificates { authz: authz.clone(), clock: Arc::clone(clock) }),
            Box::new(NoEscalation { authz: authz.clone(), rbac }),
            Box::new(ClaimResize { reader: reader.clone() }),
            Box::new(NodeDeclaredFeatures { reader: reader.clone() }),
            Box::new(LimitRanger { reader }),
        ];
        checks.extend(validators);
        Self { mutators: all, validators: checks, figures }
    }

    pub(crate) fn figures(&self) -> &AdmissionFigures {
        &self.figures
    }

    /// Runs the mutators, and once more where one of them asks for it. Answers whether something outside the server changed
    /// the object.
    pub(crate) async fn mutate(
        &self,
        write: &Admission<'_>,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<bool, Status> {
        let since = self.figures.begin();
        let mutated = self.mutate_as_asked(write, object, old).await;
        self.figures.step(Step::Mutating, write.operation.as_str(), mutated.is_err(), since);
        mutated.map(|()| write.chain.take_changed_outside())
    }

    async fn mutate_as_asked(
        &self,
        write: &Admission<'_>,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        self.mutate_once(write, object, old).await?;
        if write.chain.begin_second_run() {
            self.mutate_once(write, object, old).await?;
        }
        Ok(())
    }

    async fn mutate_once(&self, write: &Admission<'_>, object: &mut Value, old: Option<&Value>) -> Result<(), Status> {
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
        let since = self.figures.begin();
        let mut validated = Ok(());
        for link in self.validators.iter().filter(|link| link.handles(write)) {
            validated = link.validate(write, object, old).await;
            if validated.is_err() {
                break;
            }
        }
        self.figures.step(Step::Validating, write.operation.as_str(), validated.is_err(), since);
        validated
    }
}
