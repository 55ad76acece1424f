//! What every controller is made of.

use std::sync::Arc;

use carob_client::{EventRecorder, EventSource, Informers};
use carob_kit::Clock;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Api, Resource};
use tokio_util::sync::CancellationToken;

use crate::index::Indexes;

/// The way to the API, the shared informers, the time, and the end.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) client: kube::Client,
    pub(crate) informers: Arc<Informers>,
    pub(crate) indexes: Indexes,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) shutdown: CancellationToken,
}

impl Context {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn time(&self) -> Time {
        Time(self.clock.now())
    }

    /// A recorder under the name that upstream's controller of that kind has.
    pub(crate) fn recorder(&self, component: &str) -> EventRecorder {
        let source = EventSource { component: component.to_owned(), host: None };
        EventRecorder::new(self.client.clone(), Arc::clone(&self.clock), source, self.shutdown.clone())
    }

    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) fn cluster_api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = ClusterResourceScope, DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }
}
