//! What is written: the class that there always is, and in each Ingress's status the addresses where it is served.
//!
//! Each server that listens puts its own addresses in and takes out those of nodes that are gone or not ready, so no one of
//! them has to be the one that writes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use carob_client::{During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::{
    Ingress, IngressClass, IngressClassSpec, IngressLoadBalancerIngress, IngressPortStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;

use crate::class::{self, CLASS, CONTROLLER, IS_DEFAULT};

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Key {
    /// The class of this controller.
    Class,
    Ingress(ObjectKey),
}

pub(crate) struct Writer {
    pub(crate) client: kube::Client,
    pub(crate) ingresses: Informer<Ingress>,
    pub(crate) classes: Informer<IngressClass>,
    pub(crate) nodes: Informer<Node>,
    pub(crate) node_name: String,
    /// This node's own, where clients of other machines reach it.
    pub(crate) addresses: Vec<IpAddr>,
    /// The ports that are open.
    pub(crate) listens: watch::Receiver<Vec<u16>>,
}

impl Writer {
    async fn make_class(&self) -> Result<(), ReconcileError> {
        if self.classes.get(None, CLASS).is_some() {
            return Ok(());
        }
        let has_default = self.classes.list().iter().any(|class| class::is_default(class));
        let class = IngressClass {
            metadata: ObjectMeta {
                name: Some(CLASS.to_owned()),
                annotations: (!has_default).then(|| [(IS_DEFAULT.to_owned(), "true".to_owned())].into()),
                ..ObjectMeta::default()
            },
            spec: Some(IngressClassSpec { controller: Some(CONTROLLER.to_owned()), parameters: None }),
        };
        let api: Api<IngressClass> = Api::all(self.client.clone());
        match api.create(&PostParams::default(), &class).await.during(|| format!("create ingress class {CLASS}")) {
            // Another server was first.
            Err(error) if error.is_already_exists() => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn write_status(&self, key: &ObjectKey) -> Result<(), ReconcileError> {
        let Some(ingress) = self.ingresses.get_key(key) else { return Ok(()) };
        if !class::is_ours(&ingress, &self.classes.list()) {
            return Ok(());
        }
        let ports = self.listens.borrow().clone();
        let status = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let held = status.and_then(|balancer| balancer.ingress.clone()).unwrap_or_default();
        let wanted = wanted(&held, &self.addresses, &ports, &ready_elsewhere(&self.nodes.list(), &self.node_name));
        if held == wanted {
            return Ok(());
        }
        let api: Api<Ingress> = Api::namespaced(self.client.clone(), &key.namespace);
        // The version: another server may be writing its own addresses.
        let patch = Patch::Merge(json!({
            "metadata": {"resourceVersion": ingress.metadata.resource_version},
            "status": {"loadBalancer": {"ingress": wanted}},
        }));
        let patched = api.patch_status(&key.name, &PatchParams::default(), &patch).await;
        patched.unless_gone(|| format!("write the addresses of ingress {key}"))?;
        Ok(())
    }
}

/// The addresses of ready nodes but this one.
fn ready_elsewhere(nodes: &[Arc<Node>], own: &str) -> BTreeSet<IpAddr> {
    let others = nodes.iter().filter(|node| node.metadata.name.as_deref() != Some(own));
    let is_ready = |node: &&Arc<Node>| {
        let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let addresses = others.filter(is_ready).flat_map(|node| node.status.iter());
    addresses.flat_map(|status| status.addresses.iter().flatten()).filter_map(|one| one.address.parse().ok()).collect()
}

/// What others wrote of ready nodes, and this node's addresses where it has open ports.
fn wanted(
    held: &[IngressLoadBalancerIngress],
    own: &[IpAddr],
    ports: &[u16],
    ready_elsewhere: &BTreeSet<IpAddr>,
) -> Vec<IngressLoadBalancerIngress> {
    let mut all: BTreeMap<IpAddr, IngressLoadBalancerIngress> = BTreeMap::new();
    for entry in held {
        let address = entry.ip.as_ref().and_then(|ip| ip.parse().ok());
        if let Some(address) = address.filter(|address| ready_elsewhere.contains(address)) {
            all.insert(address, entry.clone());
        }
    }
    let open = |port: &u16| IngressPortStatus { port: i32::from(*port), protocol: "TCP".to_owned(), error: None };
    let ports: Vec<IngressPortStatus> = ports.iter().map(open).collect();
    for address in own.iter().filter(|_| !ports.is_empty()) {
        let entry =
            IngressLoadBalancerIngress { ip: Some(address.to_string()), hostname: None, ports: Some(ports.clone()) };
        all.insert(*address, entry);
    }
    all.into_values().collect()
}

impl Reconcile for Writer {
    type Key = Key;

    fn name(&self) -> &'static str {
        "ingress"
    }

    async fn reconcile(&self, key: Key) -> Result<Requeue, ReconcileError> {
        match key {
            Key::Class => self.make_class().await?,
            Key::Ingress(key) => self.write_status(&key).await?,
        }
        Ok(Requeue::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_come_and_go_and_those_of_other_servers_stay_while_they_are_ready() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap_or_else(|error| panic!("{text}: {error}"));
        let node = |name: &str, ready: &str, address: &str| -> Arc<Node> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": name},
                    "status": {"conditions": [{"type": "Ready", "status": ready}],
                        "addresses": [{"type": "InternalIP", "address": address}]},
                }))
                .unwrap_or_else(|error| panic!("{error}")),
            )
        };
        let nodes = [
            node("own", "True", "192.0.2.1"),
            node("other", "True", "192.0.2.2"),
            node("lost", "Unknown", "192.0.2.3"),
        ];
        let elsewhere = ready_elsewhere(&nodes, "own");
        let shown = |held: &[IngressLoadBalancerIngress], ports: &[u16]| {
            let all = wanted(held, &[ip("192.0.2.1")], ports, &elsewhere);
            all.into_iter().filter_map(|entry| Some((entry.ip?, entry.ports?.len()))).collect::<Vec<_>>()
        };
        let everywhere = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.9"].map(ip);
        let held = wanted(&[], &everywhere, &[80], &elsewhere);
        let entry = |ip: &str, ports: usize| (ip.to_owned(), ports);
        assert_eq!(shown(&held, &[80, 443]), [entry("192.0.2.1", 2), entry("192.0.2.2", 1)]);
        assert_eq!(shown(&held, &[]), [entry("192.0.2.2", 1)], "this server listens no more");
        assert_eq!(shown(&[], &[80]), [entry("192.0.2.1", 1)]);
    }
}
