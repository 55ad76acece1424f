//! How the system objects look. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Namespace, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort as SlicePort, EndpointSlice};
use k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRSpec};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// `pkg/controlplane/controller/systemnamespaces`.
pub(super) const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Name, value and description (`pkg/apis/scheduling`, SystemPriorityClasses).
pub(super) const PRIORITY_CLASSES: [(&str, i32, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];
pub(super) const SERVICE_NAMESPACE: &str = "default";
pub(super) const SERVICE_CIDR: &str = "kubernetes";
const SERVICE: &str = "kubernetes";
/// Where cluster DNS is found by, as kubeadm names it (`cmd/kubeadm/app/phases/addons/dns`).
pub(super) const DNS_NAMESPACE: &str = "kube-system";
const DNS_SERVICE: &str = "kube-dns";
const DNS_PORT: i32 = 53;
/// The port of the API's Service (`pkg/controlplane`).
const SERVICE_PORT: i32 = 443;

/// Where the API is, inside the cluster and outside.
#[derive(Debug, Clone)]
pub(crate) struct SystemConfig {
    pub(crate) service_cidrs: Vec<IpNet>,
    pub(crate) api_addresses: Vec<IpAddr>,
    pub(crate) api_port: u16,
    /// Addresses of cluster DNS; none where this cluster has no own.
    pub(crate) dns_addresses: Vec<IpAddr>,
}

pub(super) fn namespace(name: &str) -> Namespace {
    Namespace { metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }, ..Namespace::default() }
}

pub(super) fn priority_class((name, value, description): (&str, i32, &str)) -> PriorityClass {
    PriorityClass {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        value: Some(value),
        description: Some(description.to_owned()),
        ..PriorityClass::default()
    }
}

fn meta(labels: &[(&str, &str)]) -> ObjectMeta {
    ObjectMeta {
        name: Some(SERVICE.to_owned()),
        namespace: Some(SERVICE_NAMESPACE.to_owned()),
        labels: Some(
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>(),
        ),
        ..ObjectMeta::default()
    }
}

/// The ready condition that upstream's controller gives to a ServiceCIDR. Answers whether it was missing.
pub(super) fn mark_ready(held: &mut ServiceCIDR, now: &Time) -> bool {
    let conditions = held.status.get_or_insert_default().conditions.get_or_insert_default();
    if conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
        return false;
    }
    conditions.retain(|condition| condition.type_ != "Ready");
    conditions.push(Condition {
        type_: "Ready".to_owned(),
        status: "True".to_owned(),
        reason: String::new(),
        message: "Kubernetes Service CIDR is ready".to_owned(),
        last_transition_time: now.clone(),
        observed_generation: None,
    });
    true
}

impl SystemConfig {
    /// The API's own address in the cluster: the first of the first range.
    fn cluster_ip(&self) -> Option<IpAddr> {
        self.service_cidrs.first().and_then(|cidr| cidr.hosts().next())
    }

    fn port(&self) -> i32 {
        i32::from(self.api_port)
    }

    /// The addresses of the family that the Service has, since a slice and a subset hold one family.
    fn addresses(&self) -> Vec<String> {
        let v4 = self.cluster_ip().is_none_or(|ip| ip.is_ipv4());
        self.api_addresses.iter().filter(|ip| ip.is_ipv4() == v4).map(ToString::to_string).collect()
    }

    pub(super) fn service_cidr(&self) -> ServiceCIDR {
        let cidrs = self.service_cidrs.iter().map(ToString::to_string).collect();
        ServiceCIDR {
            metadata: ObjectMeta { name: Some(SERVICE_CIDR.to_owned()), ..ObjectMeta::default() },
            spec: Some(ServiceCIDRSpec { cidrs: Some(cidrs) }),
            status: None,
        }
    }

    pub(super) fn service(&self) -> Service {
        let port = ServicePort {
            name: Some("https".to_owned()),
            port: SERVICE_PORT,
            protocol: Some("TCP".to_owned()),
            target_port: Some(IntOrString::Int(self.port())),
            ..ServicePort::default()
        };
        let spec = ServiceSpec {
            cluster_ip: self.cluster_ip().map(|ip| ip.to_string()),
            ip_family_policy: Some("SingleStack".to_owned()),
            ports: Some(vec![port]),
            session_affinity: Some("None".to_owned()),
            type_: Some("ClusterIP".to_owned()),
            ..ServiceSpec::default()
        };
        let metadata = meta(&[("component", "apiserver"), ("provider", "kubernetes")]);
        Service { metadata, spec: Some(spec), status: None }
    }

    /// The Service of cluster DNS, whose endpoints each node's DNS server keeps. `None` where its addresses are not this
    /// cluster's to give: somebody else answers there.
    pub(super) fn dns_service(&self) -> Option<Service> {
        let is_ours = |ip: &&IpAddr| self.service_cidrs.iter().any(|range| range.contains(*ip));
        let addresses: Vec<String> = self.dns_addresses.iter().filter(is_ours).map(ToString::to_string).collect();
        let first = addresses.first()?.clone();
        let port = |name: &str, protocol: &str| ServicePort {
            name: Some(name.to_owned()),
            port: DNS_PORT,
            protocol: Some(protocol.to_owned()),
            target_port: Some(IntOrString::Int(DNS_PORT)),
            ..ServicePort::default()
        };
        let policy = if addresses.len() > 1 { "RequireDualStack" } else { "SingleStack" };
        let spec = ServiceSpec {
            cluster_ip: Some(first),
            cluster_ips: Some(addresses),
            ip_family_policy: Some(policy.to_owned()),
            ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
            type_: Some("ClusterIP".to_owned()),
            ..ServiceSpec::default()
        };
        let labels =
            [("k8s-app", "kube-dns"), ("kubernetes.io/cluster-service", "true"), ("kubernetes.io/name", "CoreDNS")];
        let mut metadata = meta(&labels);
        (metadata.name, metadata.namespace) = (Some(DNS_SERVICE.to_owned()), Some(DNS_NAMESPACE.to_owned()));
        Some(Service { metadata, spec: Some(spec), status: None })
    }

    pub(super) fn endpoints(&self) -> Endpoints {
        let address = |ip: String| EndpointAddress { ip, ..EndpointAddress::default() };
        let port = EndpointPort {
            name: Some("https".to_owned()),
            port: self.port(),
            protocol: Some("TCP".to_owned()),
            app_protocol: None,
        };
        let subset = EndpointSubset {
            addresses: Some(self.addresses().into_iter().map(address).collect()),
            not_ready_addresses: None,
            ports: Some(vec![port]),
        };
        // Its slice is kept here, so the mirroring controller has to leave it alone.
        Endpoints {
            metadata: meta(&[("endpointslice.kubernetes.io/skip-mirror", "true")]),
            subsets: Some(vec![subset]),
        }
    }

    pub(super) fn endpoint_slice(&self) -> EndpointSlice {
        let endpoint = |ip: String| Endpoint {
            addresses: vec![ip],
            conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
            ..Endpoint::default()
        };
        let port = SlicePort {
            name: Some("https".to_owned()),
            port: Some(self.port()),
            protocol: Some("TCP".to_owned()),
            app_protocol: None,
        };
        let family = if self.cluster_ip().is_none_or(|ip| ip.is_ipv4()) { "IPv4" } else { "IPv6" };
        EndpointSlice {
            metadata: meta(&[("kubernetes.io/service-name", SERVICE)]),
            address_type: family.to_owned(),
            endpoints: Some(self.addresses().into_iter().map(endpoint).collect()),
            ports: Some(vec![port]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_has_the_first_address_of_the_services_and_endpoints_of_that_family() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let config = SystemConfig {
            service_cidrs: vec!["10.96.0.0/16".parse().expect("a range")],
            api_addresses: vec![ip("192.0.2.1"), ip("2001:db8::1")],
            api_port: 6443,
            dns_addresses: vec![ip("10.96.0.10"), ip("192.0.2.53")],
        };
        let dns = config.dns_service().and_then(|service| service.spec).expect("it is of the range");
        assert_eq!(dns.cluster_ips, Some(vec!["10.96.0.10".to_owned()]), "the other is not of the range");
        let elsewhere = SystemConfig { dns_addresses: vec![ip("192.0.2.53")], ..config.clone() };
        assert!(elsewhere.dns_service().is_none());
        let service = config.service().spec.expect("it has a spec");
        assert_eq!(service.cluster_ip.as_deref(), Some("10.96.0.1"));
        let slice = config.endpoint_slice();
        assert_eq!(slice.address_type, "IPv4");
        let addresses: Vec<String> = slice.endpoints.into_iter().flatten().flat_map(|e| e.addresses).collect();
        assert_eq!(addresses, ["192.0.2.1"]);
        let subsets = config.endpoints().subsets.expect("it has one");
        assert_eq!(subsets[0].ports.as_ref().map(|ports| ports[0].port), Some(6443));
    }
}
