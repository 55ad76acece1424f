//! How Pods find this server: the EndpointSlices of the Service `kube-system/kube-dns` for this node, one a family.
//!
//! They name the Node as their owner, so they go with it, and hint at it, so that each node's Pods ask their own.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use carob_client::{Driver, During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, WorkOptions};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, PostParams};
use tracing::warn;

use crate::server::{DnsConfig, DnsParts};

const NAMESPACE: &str = "kube-system";
const SERVICE: &str = "kube-dns";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "dns.carob";

/// Keeps the slices as they should be until the shutdown.
pub(crate) async fn run(config: &DnsConfig, addresses: &[SocketAddr], parts: DnsParts) {
    let (reachable, unreachable): (Vec<_>, Vec<_>) =
        addresses.iter().copied().partition(|address| !address.ip().is_loopback());
    if reachable.is_empty() {
        warn!(?unreachable, "Pods cannot reach the cluster's DNS server: this node has no address but loopback");
    }
    let publisher = Publisher {
        client: parts.client,
        slices: parts.informers.of(),
        nodes: parts.informers.of(),
        node_name: config.node_name.clone(),
        addresses: reachable,
    };
    let keys: Vec<ObjectKey> = publisher.addresses.iter().map(|address| publisher.key(*address)).collect();
    let (slices, nodes) = (publisher.slices.clone(), publisher.nodes.clone());
    let mut driver = Driver::new(parts.shutdown);
    let options = WorkOptions { workers: 1, ..WorkOptions::default() };
    let (ours, own_node) = (keys.clone(), ObjectKey::cluster(&config.node_name));
    let work = driver.work(publisher, options).always(keys.clone());
    let work = work.on(&slices, move |change| Some(change.key()).filter(|key| ours.contains(key)));
    work.on(&nodes, move |change| if change.key() == own_node { keys.clone() } else { Vec::new() }).start();
    driver.join().await;
}

struct Publisher {
    client: kube::Client,
    slices: Informer<EndpointSlice>,
    nodes: Informer<Node>,
    node_name: String,
    addresses: Vec<SocketAddr>,
}

impl Publisher {
    fn key(&self, address: SocketAddr) -> ObjectKey {
        ObjectKey::new(NAMESPACE, format!("{SERVICE}-{}-{}", self.node_name, family(address).to_lowercase()))
    }

    fn slice(&self, key: &ObjectKey, address: SocketAddr, node: &Node) -> EndpointSlice {
        let port = |name: &str, protocol: &str| EndpointPort {
            name: Some(name.to_owned()),
            port: Some(i32::from(address.port())),
            protocol: Some(protocol.to_owned()),
            app_protocol: None,
        };
        let labels = [(SERVICE_NAME, SERVICE), (MANAGED_BY, MANAGER)];
        EndpointSlice {
            metadata: ObjectMeta {
                name: Some(key.name.to_string()),
                namespace: Some(NAMESPACE.to_owned()),
                labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: self.node_name.clone(),
                    uid: node.metadata.uid.clone().unwrap_or_default(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            address_type: family(address).to_owned(),
            ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
            endpoints: Some(vec![Endpoint {
                addresses: vec![address.ip().to_string()],
                conditions: Some(EndpointConditions {
                    ready: Some(true),
                    serving: Some(true),
                    terminating: Some(false),
                }),
                hints: Some(EndpointHints {
                    for_nodes: Some(vec![ForNode { name: self.node_name.clone() }]),
                    for_zones: None,
                }),
                node_name: Some(self.node_name.clone()),
                ..Endpoint::default()
            }]),
        }
    }
}

fn family(address: SocketAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The labels and owners that someone else added stay.
fn is_right(held: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let none = BTreeMap::new();
    let labels = held.metadata.labels.as_ref().unwrap_or(&none);
    let has_labels =
        wanted.metadata.labels.iter().flatten().all(|(key, value)| labels.get(key).is_some_and(|held| held == value));
    has_labels
        && held.endpoints == wanted.endpoints
        && held.ports == wanted.ports
        && held.metadata.owner_references == wanted.metadata.owner_references
}

impl Reconcile for Publisher {
    /// A slice.
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "dns-endpoints"
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        // The node's registration asks again.
        let Some(node) = self.nodes.get(None, &self.node_name) else { return Ok(Requeue::No) };
        let Some(address) = self.addresses.iter().find(|address| self.key(**address) == key) else {
            return Ok(Requeue::No);
        };
        // Where the API lets a node publish what is its own only, the Node has to say first that the address is.
        let said = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        if !said.into_iter().any(|one| one.address.parse() == Ok(address.ip())) {
            return Ok(Requeue::No);
        }
        let mut wanted = self.slice(&key, *address, &node);
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), NAMESPACE);
        let parameters = PostParams::default();
        let operation = || format!("write endpoint slice {key}");
        match self.slices.get_key(&key) {
            Some(held) if is_right(&held, &wanted) => {}
            Some(held) => {
                wanted.metadata.resource_version = held.metadata.resource_version.clone();
                api.replace(&key.name, &parameters, &wanted).await.during(operation)?;
            }
            None => match api.create(&parameters, &wanted).await.during(operation) {
                // The informer is behind, and asks again.
                Err(error) if error.is_already_exists() => {}
                created => drop(created?),
            },
        }
        Ok(Requeue::No)
    }
}
