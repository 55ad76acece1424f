//! The cluster as names are made of it: the informers' stores, and ways to find in them.

use std::net::IpAddr;
use std::sync::Arc;

use carob_client::{Grouped, Informer, Informers, ObjectKey};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;

use crate::zone::Objects;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Reads what there is at the moment of the question.
pub(crate) struct Cluster {
    services: Informer<Service>,
    namespaces: Informer<Namespace>,
    slices: Informer<EndpointSlice>,
    slices_of: Arc<Grouped<ObjectKey, EndpointSlice>>,
    services_at: Arc<Grouped<IpAddr, Service>>,
    /// Slices with an endpoint of that address that has a name of its own.
    named_at: Arc<Grouped<IpAddr, EndpointSlice>>,
    /// Not waited for: a server of another version may not let a node have them.
    cidrs: Informer<ServiceCIDR>,
}

impl Cluster {
    /// Must be called within a tokio runtime.
    pub(crate) fn new(informers: &Informers) -> Self {
        let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
        Self {
            slices_of: Grouped::new(&slices, |slice| service_of(slice).into_iter().collect()),
            services_at: Grouped::new(&services, addresses),
            named_at: Grouped::new(&slices, named_addresses),
            namespaces: informers.of(),
            cidrs: informers.of(),
            services,
            slices,
        }
    }

    /// Ready once all is known. Cancel safe.
    pub(crate) async fn synced(&self) {
        self.services.synced().await;
        self.slices.synced().await;
        self.namespaces.synced().await;
    }
}

impl Objects for Cluster {
    fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.get(None, name).is_some()
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(Some(namespace), name)
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices_of.get(&ObjectKey::new(namespace, service))
    }

    fn services_at(&self, address: IpAddr) -> Vec<Arc<Service>> {
        self.services_at.get(&address)
    }

    fn named_at(&self, address: IpAddr) -> Vec<Arc<EndpointSlice>> {
        self.named_at.get(&address)
    }

    fn has_range(&self, net: &IpNet) -> bool {
        let has = |range: &String| range.parse::<IpNet>().is_ok_and(|range| range.contains(net));
        self.cidrs.list().iter().any(|cidr| cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()).any(has))
    }
}

/// The Service of a slice.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.metadata.namespace.as_deref().unwrap_or_default(), service))
}

fn addresses(service: &Service) -> Vec<IpAddr> {
    let addresses = service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten());
    addresses.filter_map(|address| address.parse().ok()).collect()
}

fn named_addresses(slice: &EndpointSlice) -> Vec<IpAddr> {
    let endpoints = slice.endpoints.iter().flatten().filter(|endpoint| endpoint.hostname.is_some());
    endpoints.filter_map(|endpoint| endpoint.addresses.first()?.parse().ok()).collect()
}
