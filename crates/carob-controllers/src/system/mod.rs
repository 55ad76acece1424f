//! Objects that every cluster has: made when they are missing, put right where they have to be as they are.
//!
//! Upstream's API server keeps them itself (`pkg/controlplane/controller`, `pkg/registry/scheduling/rest`).

mod objects;

use carob_client::{During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue};
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{Api, PostParams};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::Context;
pub(crate) use objects::SystemConfig;

/// One of the objects that there must be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum SystemObject {
    Namespace(&'static str),
    PriorityClass(&'static str),
    ServiceCidr,
    Service,
    Endpoints,
    EndpointSlice,
    DnsService,
}

impl SystemObject {
    pub(crate) fn all() -> Vec<Self> {
        let namespaces = objects::NAMESPACES.into_iter().map(Self::Namespace);
        let classes = objects::PRIORITY_CLASSES.into_iter().map(|(name, ..)| Self::PriorityClass(name));
        let rest = [Self::ServiceCidr, Self::Service, Self::Endpoints, Self::EndpointSlice, Self::DnsService];
        namespaces.chain(classes).chain(rest).collect()
    }
}

pub(crate) struct SystemObjects {
    context: Context,
    config: SystemConfig,
    namespaces: Informer<Namespace>,
}

impl SystemObjects {
    pub(crate) fn new(context: Context, config: SystemConfig) -> Self {
        Self { namespaces: context.informers.of(), context, config }
    }

    pub(crate) fn namespaces(&self) -> &Informer<Namespace> {
        &self.namespaces
    }

    /// The system objects to look at when a namespace comes or goes: itself, and those that live in it.
    pub(crate) fn of_namespace(key: &ObjectKey) -> Vec<SystemObject> {
        let own = objects::NAMESPACES.into_iter().find(|name| **name == *key.name).map(SystemObject::Namespace);
        let within = [SystemObject::Service, SystemObject::Endpoints, SystemObject::EndpointSlice];
        let within = within.into_iter().filter(|_| *key.name == *objects::SERVICE_NAMESPACE);
        let dns = (*key.name == *objects::DNS_NAMESPACE).then_some(SystemObject::DnsService);
        own.into_iter().chain(within).chain(dns).collect()
    }

    /// Creates the object if there is none; answers the one that there was.
    async fn ensure<K>(&self, api: Api<K>, wanted: &K) -> Result<Option<K>, ReconcileError>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
    {
        let name = wanted.name_any();
        let operation = || format!("create {} {name}", K::kind(&()));
        if let Some(held) = api.get_opt(&name).await.during(operation)? {
            return Ok(Some(held));
        }
        match api.create(&PostParams::default(), wanted).await.during(operation) {
            // Another server of the same cluster was first.
            Err(error) if error.is_already_exists() => Ok(None),
            created => created.map(|_| None),
        }
    }

    /// Makes `update` of the held object true, if it says so.
    async fn correct<K>(
        &self,
        api: Api<K>,
        mut held: K,
        update: impl FnOnce(&mut K) -> bool,
    ) -> Result<(), ReconcileError>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
    {
        if !update(&mut held) {
            return Ok(());
        }
        let name = held.name_any();
        let written = api.replace(&name, &PostParams::default(), &held).await;
        written.during(|| format!("correct {} {name}", K::kind(&()))).map(drop)
    }

    async fn endpoints(&self) -> Result<(), ReconcileError> {
        let wanted = self.config.endpoints();
        let api: Api<Endpoints> = self.context.api(objects::SERVICE_NAMESPACE);
        let Some(held) = self.ensure(api.clone(), &wanted).await? else { return Ok(()) };
        self.correct(api, held, |held| {
            let differs = held.subsets != wanted.subsets;
            held.subsets = wanted.subsets;
            differs
        })
        .await
    }

    async fn endpoint_slice(&self) -> Result<(), ReconcileError> {
        let wanted = self.config.endpoint_slice();
        let api: Api<EndpointSlice> = self.context.api(objects::SERVICE_NAMESPACE);
        let Some(held) = self.ensure(api.clone(), &wanted).await? else { return Ok(()) };
        self.correct(api, held, |held| {
            let differs = held.endpoints != wanted.endpoints || held.ports != wanted.ports;
            held.endpoints = wanted.endpoints;
            held.ports = wanted.ports;
            differs
        })
        .await
    }

    async fn service(&self) -> Result<(), ReconcileError> {
        let wanted = self.config.service();
        let api: Api<Service> = self.context.api(objects::SERVICE_NAMESPACE);
        let Some(held) = self.ensure(api.clone(), &wanted).await? else { return Ok(()) };
        let ports = wanted.spec.and_then(|spec| spec.ports);
        self.correct(api, held, |held| {
            let Some(spec) = &mut held.spec else { return false };
            let differs = spec.ports != ports;
            spec.ports = ports;
            differs
        })
        .await
    }

    async fn service_cidr(&self) -> Result<(), ReconcileError> {
        let api: Api<ServiceCIDR> = self.context.cluster_api();
        self.ensure(api.clone(), &self.config.service_cidr()).await?;
        let name = objects::SERVICE_CIDR;
        let mut held = api.get(name).await.during(|| format!("get ServiceCIDR {name}"))?;
        if objects::mark_ready(&mut held, &self.context.time()) {
            let written = api.replace_status(name, &PostParams::default(), &held).await;
            written.during(|| format!("write the status of ServiceCIDR {name}"))?;
        }
        Ok(())
    }
}

impl Reconcile for SystemObjects {
    type Key = SystemObject;

    fn name(&self) -> &'static str {
        "system-objects"
    }

    async fn reconcile(&self, key: SystemObject) -> Result<Requeue, ReconcileError> {
        match key {
            SystemObject::Namespace(name) => {
                if self.namespaces.get(None, name).is_none() {
                    self.ensure(self.context.cluster_api(), &objects::namespace(name)).await?;
                }
            }
            SystemObject::PriorityClass(name) => {
                let wanted =
                    objects::PRIORITY_CLASSES.into_iter().find(|class| class.0 == name).map(objects::priority_class);
                if let Some(wanted) = wanted {
                    self.ensure::<PriorityClass>(self.context.cluster_api(), &wanted).await?;
                }
            }
            SystemObject::ServiceCidr => self.service_cidr().await?,
            // They follow their namespace.
            SystemObject::Service | SystemObject::Endpoints | SystemObject::EndpointSlice
                if self.namespaces.get(None, objects::SERVICE_NAMESPACE).is_none() => {}
            SystemObject::Service => self.service().await?,
            SystemObject::Endpoints => self.endpoints().await?,
            SystemObject::EndpointSlice => self.endpoint_slice().await?,
            SystemObject::DnsService => {
                let has_namespace = self.namespaces.get(None, objects::DNS_NAMESPACE).is_some();
                if let Some(wanted) = self.config.dns_service().filter(|_| has_namespace) {
                    self.ensure(self.context.api(objects::DNS_NAMESPACE), &wanted).await?;
                }
            }
        }
        Ok(Requeue::No)
    }
}
