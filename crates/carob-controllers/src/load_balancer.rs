//! Load balancers without a cloud: a Service of that type is given the nodes' own addresses, where every node's proxy takes
//! its ports. The same port can be given once, and not while an older Ingress is served on it: a Service's rule on a node's
//! address comes before any socket there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use carob_client::{
    Change, During, EventKind, EventRecorder, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, reference,
};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::context::Context;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Nodes with this label take no load balancer's traffic (`core/v1`, LabelNodeExcludeBalancers).
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The mode of an address that nodes take packets for themselves (`core/v1`, LoadBalancerIPModeVIP).
const VIP: &str = "VIP";

pub(crate) struct LoadBalancers {
    context: Context,
    services: Informer<Service>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    ingresses: Informer<Ingress>,
    recorder: EventRecorder,
    /// The API's own port on the nodes, and the kubelets'.
    reserved: Vec<u16>,
}

/// Why a Service gets no address.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Taken { port: String, holder: ObjectKey },
    Ingress { port: String, holder: ObjectKey },
    Reserved { port: String },
}

impl LoadBalancers {
    pub(crate) fn new(context: Context, reserved: Vec<u16>) -> Self {
        Self {
            services: context.informers.of(),
            nodes: context.informers.of(),
            slices: context.informers.of(),
            ingresses: context.informers.of(),
            recorder: context.recorder("service-controller"),
            context,
            reserved,
        }
    }

    pub(crate) fn services(&self) -> &Informer<Service> {
        &self.services
    }

    pub(crate) fn nodes(&self) -> &Informer<Node> {
        &self.nodes
    }

    pub(crate) fn slices(&self) -> &Informer<EndpointSlice> {
        &self.slices
    }

    pub(crate) fn ingresses(&self) -> &Informer<Ingress> {
        &self.ingresses
    }

    /// All load balancers, where an Ingress has or had other ports.
    pub(crate) fn beside(services: &Informer<Service>, change: Change<'_, Ingress>) -> Vec<ObjectKey> {
        let ports = |ingress: Option<&Arc<Ingress>>| ingress.map(|ingress| served(ingress)).unwrap_or_default();
        if ports(change.old) == ports(change.new) { Vec::new() } else { Self::all(services) }
    }

    /// The Service that changed, and where it is or was a load balancer all others: a port may be free now.
    pub(crate) fn concerned(services: &Informer<Service>, change: Change<'_, Service>) -> Vec<ObjectKey> {
        let claims = |service: Option<&Arc<Service>>| {
            service.filter(|service| is_ours(service)).and_then(|service| service.spec.as_ref()?.ports.clone())
        };
        if claims(change.old) == claims(change.new) {
            return vec![change.key()];
        }
        let mut keys = Self::all(services);
        keys.push(change.key());
        keys
    }

    /// All load balancers.
    pub(crate) fn all(services: &Informer<Service>) -> Vec<ObjectKey> {
        let all = services.list();
        all.iter().filter(|service| is_ours(service)).map(|service| ObjectKey::of(&**service)).collect()
    }

    /// The Service of a slice, where what nodes have endpoints of it matters.
    pub(crate) fn of_slice(services: &Informer<Service>, change: Change<'_, EndpointSlice>) -> Option<ObjectKey> {
        let slice = change.latest();
        let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
        let key = ObjectKey::new(slice.metadata.namespace.as_deref().unwrap_or_default(), name);
        services.get_key(&key).filter(|service| is_ours(service) && is_local(service)).map(|_| key)
    }

    fn wanted(&self, service: &Service) -> Result<Vec<LoadBalancerIngress>, Refusal> {
        check(service, &self.services.list(), &self.ingresses.list(), &self.reserved)?;
        let key = ObjectKey::of(service);
        let mut nodes = self.nodes.list();
        if is_local(service) {
            let slices = self.slices.list_in(&key.namespace);
            let of_service = slices.iter().filter(|slice| {
                slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)).map(String::as_str)
                    == Some(&*key.name)
            });
            let ready = of_service.flat_map(|slice| slice.endpoints.iter().flatten()).filter(|endpoint| {
                endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
            });
            let names: BTreeSet<&str> = ready.filter_map(|endpoint| endpoint.node_name.as_deref()).collect();
            nodes.retain(|node| node.metadata.name.as_deref().is_some_and(|name| names.contains(name)));
        }
        Ok(addresses(&nodes, families(service)))
    }
}

/// Whether nobody else gives the Service its address.
fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref().filter(|_| service.metadata.deletion_timestamp.is_none());
    spec.is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none())
}

fn is_local(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref()) == Some("Local")
}

fn families(service: &Service) -> Vec<String> {
    service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default()
}

fn ports(service: &Service) -> impl Iterator<Item = (&str, i32)> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.map(|port: &ServicePort| (port.protocol.as_deref().unwrap_or("TCP"), port.port))
}

/// The ports on which an Ingress is served, as its status says.
fn served(ingress: &Ingress) -> BTreeSet<i32> {
    let balancer = ingress.status.iter().filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let ports = balancer.flatten().flat_map(|entry| entry.ports.iter().flatten());
    ports.filter(|port| port.protocol == "TCP").map(|port| port.port).collect()
}

/// Who is older keeps a port that two want.
fn check(service: &Service, all: &[Arc<Service>], ingresses: &[Arc<Ingress>], reserved: &[u16]) -> Result<(), Refusal> {
    let created = |metadata: &ObjectMeta| metadata.creation_timestamp.as_ref().map(|time| time.0);
    let age = |service: &Service| (created(&service.metadata), ObjectKey::of(service));
    let own = age(service);
    let shown = |(protocol, port): (&str, i32)| format!("{port}/{protocol}");
    if let Some(port) = ports(service).find(|(_, port)| reserved.iter().any(|reserved| i32::from(*reserved) == *port)) {
        return Err(Refusal::Reserved { port: shown(port) });
    }
    for other in all.iter().filter(|other| is_ours(other) && age(other) < own) {
        if let Some(port) = ports(service).find(|port| ports(other).any(|taken| taken == *port)) {
            return Err(Refusal::Taken { port: shown(port), holder: ObjectKey::of(&**other) });
        }
    }
    for ingress in ingresses.iter().filter(|ingress| created(&ingress.metadata) < own.0) {
        let served = served(ingress);
        if let Some(port) = ports(service).find(|(protocol, port)| *protocol == "TCP" && served.contains(port)) {
            return Err(Refusal::Ingress { port: shown(port), holder: ObjectKey::of(&**ingress) });
        }
    }
    Ok(())
}

/// The addresses of ready nodes: those for the world where a node has any, or else its own.
fn addresses(nodes: &[Arc<Node>], families: Vec<String>) -> Vec<LoadBalancerIngress> {
    let mut found = BTreeSet::new();
    for node in nodes {
        let is_excluded = node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDED));
        let Some(status) = node.status.as_ref().filter(|_| !is_excluded) else { continue };
        let mut conditions = status.conditions.iter().flatten();
        if !conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True") {
            continue;
        }
        let of_type = |kind: &str| -> Vec<IpAddr> {
            let listed = status.addresses.iter().flatten().filter(|address| address.type_ == kind);
            listed.filter_map(|address| address.address.parse().ok()).collect()
        };
        let external = of_type("ExternalIP");
        let own = if external.is_empty() { of_type("InternalIP") } else { external };
        found.extend(own.into_iter().filter(|ip| {
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            !ip.is_loopback() && families.iter().any(|wanted| wanted == family)
        }));
    }
    let ingress = |ip: IpAddr| LoadBalancerIngress {
        ip: Some(ip.to_string()),
        ip_mode: Some(VIP.to_owned()),
        ..LoadBalancerIngress::default()
    };
    found.into_iter().map(ingress).collect()
}

impl Reconcile for LoadBalancers {
    /// A Service.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "service-lb"
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(service) = self.services.get_key(&key).filter(|service| is_ours(service)) else {
            return Ok(Requeue::No);
        };
        let wanted = match self.wanted(&service) {
            Ok(wanted) => wanted,
            Err(refusal) => {
                let message = match &refusal {
                    Refusal::Taken { port, holder } => format!("port {port} of the nodes is taken by Service {holder}"),
                    Refusal::Ingress { port, holder } => {
                        format!("port {port} of the nodes serves Ingress {holder} and others")
                    }
                    Refusal::Reserved { port } => format!("port {port} of the nodes is the cluster's own"),
                };
                self.recorder.record(reference(&*service), EventKind::Warning, "SyncLoadBalancerFailed", message);
                Vec::new()
            }
        };
        let held = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.clone());
        if held.unwrap_or_default() == wanted {
            return Ok(Requeue::No);
        }
        let api: Api<Service> = self.context.api(&key.namespace);
        let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": wanted}}}));
        let patched = api.patch_status(&key.name, &PatchParams::default(), &patch).await;
        patched.unless_gone(|| format!("write the load balancer's addresses of service {key}"))?;
        if !wanted.is_empty() {
            let message = "Ensured load balancer";
            self.recorder.record(reference(&*service), EventKind::Normal, "EnsuredLoadBalancer", message);
        }
        Ok(Requeue::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, created: &str, port: i32) -> Arc<Service> {
        let value = json!({
            "metadata": {"name": name, "namespace": "default", "creationTimestamp": created},
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": port, "protocol": "TCP"}]},
        });
        Arc::new(serde_json::from_value(value).expect("a Service"))
    }

    #[test]
    fn the_older_service_keeps_the_port() {
        let (old, new) = (service("b", "2026-01-01T00:00:00Z", 80), service("a", "2026-01-02T00:00:00Z", 80));
        let all = [Arc::clone(&old), Arc::clone(&new), service("c", "2025-01-01T00:00:00Z", 81)];
        assert_eq!(check(&old, &all, &[], &[]), Ok(()));
        let taken = Refusal::Taken { port: "80/TCP".to_owned(), holder: ObjectKey::new("default", "b") };
        assert_eq!(check(&new, &all, &[], &[]), Err(taken));
        let own = service("d", "2025-01-01T00:00:00Z", 6443);
        assert_eq!(check(&own, &all, &[], &[6443]), Err(Refusal::Reserved { port: "6443/TCP".to_owned() }));
    }

    #[test]
    fn an_older_ingress_keeps_its_ports() {
        let ingress = |created: &str| -> Arc<Ingress> {
            let entry = json!({"ip": "192.0.2.1", "ports": [{"port": 80, "protocol": "TCP"}]});
            let value = json!({
                "metadata": {"name": "i", "namespace": "default", "creationTimestamp": created},
                "status": {"loadBalancer": {"ingress": [entry]}},
            });
            Arc::new(serde_json::from_value(value).expect("an Ingress"))
        };
        let (old, new) = (ingress("2026-01-01T00:00:00Z"), ingress("2026-01-03T00:00:00Z"));
        let service = |port: i32| service("a", "2026-01-02T00:00:00Z", port);
        let holder = ObjectKey::new("default", "i");
        let taken = Err(Refusal::Ingress { port: "80/TCP".to_owned(), holder });
        assert_eq!(check(&service(80), &[], &[Arc::clone(&old)], &[]), taken);
        assert_eq!(check(&service(81), &[], &[old], &[]), Ok(()));
        assert_eq!(check(&service(80), &[], &[new], &[]), Ok(()));
    }

    #[test]
    fn ready_nodes_give_their_addresses_of_the_services_families() {
        let node = |name: &str, ready: &str, addresses: serde_json::Value| -> Arc<Node> {
            let value = json!({
                "metadata": {"name": name},
                "status": {"conditions": [{"type": "Ready", "status": ready}], "addresses": addresses},
            });
            Arc::new(serde_json::from_value(value).expect("a Node"))
        };
        let internal = |ip: &str| json!({"type": "InternalIP", "address": ip});
        let nodes = [
            node("a", "True", json!([internal("192.0.2.1"), internal("2001:db8::1")])),
            node("b", "False", json!([internal("192.0.2.2")])),
            node("c", "True", json!([internal("192.0.2.3"), {"type": "ExternalIP", "address": "203.0.113.3"}])),
        ];
        let ips: Vec<Option<String>> =
            addresses(&nodes, vec!["IPv4".to_owned()]).into_iter().map(|ingress| ingress.ip).collect();
        assert_eq!(ips, [Some("192.0.2.1".to_owned()), Some("203.0.113.3".to_owned())]);
    }
}
