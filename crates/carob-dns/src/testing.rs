//! A cluster out of YAML, for the tests of this crate.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::cluster::service_of;
use crate::zone::{Objects, Zone};

#[derive(Default)]
pub(crate) struct Fake {
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
}

const SERVICES: &str = "
- metadata: {name: kubernetes, namespace: default}
  spec: {clusterIPs: [10.96.0.1], ports: [{name: https, port: 443, protocol: TCP}]}
- metadata: {name: dual, namespace: shop}
  spec:
    clusterIPs: [10.96.0.7, 'fd00:96::7']
    ports: [{name: web, port: 80, protocol: TCP}, {name: dns, port: 53, protocol: UDP}]
- metadata: {name: added, namespace: shop}
  spec: {clusterIPs: [203.0.113.7], ports: [{name: web, port: 80, protocol: TCP}]}
- metadata: {name: db, namespace: shop}
  spec: {clusterIPs: [None], clusterIP: None}
- metadata: {name: empty, namespace: shop}
  spec: {clusterIPs: [None], clusterIP: None}
- metadata: {name: outside, namespace: shop}
  spec: {type: ExternalName, externalName: example.com}
- metadata: {name: inside, namespace: shop}
  spec: {type: ExternalName, externalName: dual.shop.svc.cluster.local}
- metadata: {name: circle, namespace: shop}
  spec: {type: ExternalName, externalName: circle.shop.svc.cluster.local}
";

const SLICES: &str = "
- metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
  addressType: IPv4
  ports: [{name: sql, port: 5432, protocol: TCP}]
  endpoints:
  - {addresses: [10.244.0.2], hostname: db-0, conditions: {ready: true}}
  - {addresses: [10.244.0.3], conditions: {ready: true}}
  - {addresses: [10.244.0.4], hostname: db-2, conditions: {ready: false}}
- metadata: {name: db-2, namespace: shop, labels: {kubernetes.io/service-name: db}}
  addressType: IPv6
  ports: [{name: sql, port: 5432, protocol: TCP}]
  endpoints:
  - {addresses: ['fd00:244::2'], hostname: db-0, conditions: {ready: true}}
";

impl Fake {
    pub(crate) fn new() -> Self {
        Self { services: serde_saphyr::from_str(SERVICES).unwrap(), slices: serde_saphyr::from_str(SLICES).unwrap() }
    }
}

pub(crate) fn zone() -> Zone {
    let ranges = ["10.96.0.0/16", "10.244.0.0/16", "fd00:244::/48", "fd00:96::/112"];
    Zone::new("cluster.local".parse().unwrap(), ranges.map(|range| range.parse().unwrap()).into())
}

impl Objects for Fake {
    fn has_namespace(&self, name: &str) -> bool {
        ["default", "shop"].contains(&name)
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        let is_it = |service: &&Arc<Service>| {
            (service.metadata.namespace.as_deref(), service.metadata.name.as_deref()) == (Some(namespace), Some(name))
        };
        self.services.iter().find(is_it).cloned()
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        let key = carob_client::ObjectKey::new(namespace, service);
        self.slices.iter().filter(|slice| service_of(slice).as_ref() == Some(&key)).cloned().collect()
    }

    fn services_at(&self, address: IpAddr) -> Vec<Arc<Service>> {
        let text = address.to_string();
        let has = |service: &&Arc<Service>| {
            service.spec.as_ref().and_then(|spec| spec.cluster_ips.as_ref()).is_some_and(|ips| ips.contains(&text))
        };
        self.services.iter().filter(has).cloned().collect()
    }

    fn named_at(&self, _: IpAddr) -> Vec<Arc<EndpointSlice>> {
        self.slices.clone()
    }

    fn has_range(&self, net: &ipnet::IpNet) -> bool {
        "203.0.113.0/24".parse::<ipnet::IpNet>().unwrap().contains(net)
    }
}
