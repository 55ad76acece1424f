//! EndpointSlices for Endpoints that someone writes by hand, for Services that select nothing
//! (`pkg/controller/endpointslicemirroring`).

use std::collections::BTreeSet;
use std::sync::Arc;

use carob_client::{Change, Grouped, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort as SlicePort, EndpointSlice};
use kube::ResourceExt;
use kube::api::ObjectMeta;

use super::address::{IPV4, IPV6, sort_ports};
use super::plan::{self, Plan};
use super::slices::{carry_out, kept, services_of, slices_of};
use super::{MANAGED_BY, SERVICE_NAME};
use crate::context::Context;
use crate::ownership::Owner;
use crate::versions::Versions;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that are a leader's lock, not endpoints.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that say something about the Endpoints object itself.
const NOT_COPIED: [&str; 2] =
    ["kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time"];
/// Addresses of one subset that are mirrored (--mirroring-max-endpoints-per-subset); what is beyond is left out.
const ADDRESSES_PER_SUBSET: usize = 1000;

pub(crate) struct MirroringController {
    context: Context,
    endpoints: Informer<Endpoints>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    slices_of: Arc<Grouped<ObjectKey, EndpointSlice>>,
    written: Versions,
}

impl MirroringController {
    pub(crate) fn new(context: Context) -> Self {
        let slices = context.informers.of();
        Self {
            endpoints: context.informers.of(),
            services: context.informers.of(),
            slices_of: slices_of(&slices, MANAGER),
            slices,
            context,
            written: Versions::default(),
        }
    }

    pub(crate) fn endpoints(&self) -> &Informer<Endpoints> {
        &self.endpoints
    }

    pub(crate) fn services(&self) -> &Informer<Service> {
        &self.services
    }

    pub(crate) fn slices(&self) -> &Informer<EndpointSlice> {
        &self.slices
    }

    /// The Endpoints behind a mirrored slice.
    pub(crate) fn endpoints_of_slice(change: Change<'_, EndpointSlice>) -> BTreeSet<ObjectKey> {
        services_of(change, MANAGER)
    }
}

fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let meta = &endpoints.metadata;
    let skipped = meta.labels.as_ref().and_then(|labels| labels.get(SKIP)).is_some_and(|value| value == "true");
    let leader = meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(LEADER));
    let selects_nothing = |service: &Service| {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        selector.is_none_or(std::collections::BTreeMap::is_empty)
    };
    !skipped && !leader && meta.deletion_timestamp.is_none() && service.is_some_and(selects_nothing)
}

fn slice_ports(ports: Option<&Vec<EndpointPort>>) -> Vec<SlicePort> {
    let port = |port: &EndpointPort| SlicePort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    };
    let mut ports: Vec<SlicePort> = ports.into_iter().flatten().map(port).collect();
    sort_ports(&mut ports);
    ports
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|hostname| !hostname.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn mirrored(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>]) -> Plan {
    let mut groups = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = slice_ports(subset.ports.as_ref());
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(not_ready).take(ADDRESSES_PER_SUBSET) {
            let family = if address.ip.contains(':') { IPV6 } else { IPV4 };
            plan::add(&mut groups, family, ports.clone(), endpoint(address, ready));
        }
    }
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.remove(super::HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), endpoints.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    let meta = ObjectMeta {
        generate_name: Some(format!("{}-", endpoints.name_any())),
        labels: Some(labels),
        annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
        owner_references: Some(vec![Owner::of(endpoints).reference]),
        ..ObjectMeta::default()
    };
    plan::plan(existing, groups, &meta)
}

impl Reconcile for MirroringController {
    /// Endpoints, and the Service of their name.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "endpointslicemirroring"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.endpoints.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        self.written.settled(&key, &self.slices).await;
        let existing = kept(self.slices_of.get(&key));
        let endpoints = self.endpoints.get_key(&key);
        let service = self.services.get_key(&key);
        let plan = match endpoints.filter(|endpoints| is_mirrored(endpoints, service.as_deref())) {
            Some(endpoints) => mirrored(&endpoints, &existing),
            None => Plan { delete: existing, ..Plan::default() },
        };
        carry_out(&self.context.api(&key.namespace), plan, &key, &self.written).await?;
        if self.endpoints.get_key(&key).is_none() {
            self.written.forget(&key);
        }
        Ok(Requeue::No)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{EndpointSubset, ServiceSpec};

    use super::*;

    #[test]
    fn endpoints_written_by_hand_are_mirrored_for_services_without_a_selector() {
        let service = |selector: Option<(&str, &str)>| Service {
            spec: Some(ServiceSpec {
                selector: selector.map(|(key, value)| [(key.to_owned(), value.to_owned())].into_iter().collect()),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        };
        let plain = Endpoints::default();
        let mut skipped = Endpoints::default();
        skipped.metadata.labels = Some([(SKIP.to_owned(), "true".to_owned())].into_iter().collect());
        let mut leader = Endpoints::default();
        leader.metadata.annotations = Some([(LEADER.to_owned(), String::new())].into_iter().collect());
        assert!(is_mirrored(&plain, Some(&service(None))));
        assert!(!is_mirrored(&plain, Some(&service(Some(("app", "web"))))));
        assert!(!is_mirrored(&plain, None));
        assert!(!is_mirrored(&skipped, Some(&service(None))));
        assert!(!is_mirrored(&leader, Some(&service(None))));
    }

    #[test]
    fn each_family_and_set_of_ports_gets_a_slice() {
        let address = |ip: &str| EndpointAddress { ip: ip.to_owned(), ..EndpointAddress::default() };
        let subset = EndpointSubset {
            addresses: Some(vec![address("192.0.2.1"), address("2001:db8::1")]),
            not_ready_addresses: Some(vec![address("192.0.2.2")]),
            ports: Some(vec![EndpointPort { port: 80, ..EndpointPort::default() }]),
        };
        let plan = mirrored(&Endpoints { subsets: Some(vec![subset]), ..Endpoints::default() }, &[]);
        let shown: Vec<_> = plan
            .create
            .iter()
            .map(|slice| format!("{} {}", slice.address_type, slice.endpoints.as_ref().map_or(0, Vec::len)))
            .collect();
        assert_eq!(shown, ["IPv4 2", "IPv6 1"]);
    }
}
