//! Nodes without machines: any number of Node objects whose Pods live without processes, to try controllers, schedulers and
//! gangs on a cluster that nobody has. What kwok is to a kubelet.
//!
//! Start at [`VirtualNodes`]; [`Config`] says which nodes there are and how long the stages of a Pod's life take. All nodes
//! are served by one part: one watch on Pods, one reconciler, one timer for all leases. Decisions are the real node's:
//! [`crate::plan`] and [`crate::admission`] decide, [`crate::status`] says what to show; `life` only stands in for the
//! runtime, the probes and the volumes. So restart policies, init containers, sidecars, back-off, deadlines and graceful
//! deletion are those of real Pods. What no process can show is left out: images, mounts, logs, exec, ports, hooks.
//!
//! Each write is made as the node that it concerns, which may do what any node may: no identity here reaches further.
//!
//! Tasks it spawns: the reconciler's, with one a Pod that is being written. All end with the shutdown.

mod addresses;
mod config;
mod fields;
mod heartbeat;
pub mod kubelet;
mod life;
mod object;
mod pods;
mod stages;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use carob_client::{Driver, Informer, Informers, WorkOptions};
use carob_kit::Clock;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::resources::ResourceError;
use crate::status::NodeFacts;
use addresses::Addresses;
pub use config::{Config, NODES_MAX, VIRTUAL_LABEL, VirtualNode};
pub use fields::ConfigError;
use heartbeat::Heartbeat;
use object::Placed;
pub use pods::ClientOf;
use pods::{Place, Pods, node_of};
pub use stages::{ANNOTATION_PREFIX, Script};

/// What the ids of containers begin with: as those of real Pods do.
const RUNTIME: &str = "carob";
/// Pods that are written at once. On real nodes all of them would be, and the store commits what arrives together together.
const WRITERS: usize = 64;

/// What virtual nodes work with.
pub struct Parts {
    /// Of all Nodes and all Pods.
    pub informers: Arc<Informers>,
    pub client_of: ClientOf,
    pub clock: Arc<dyn Clock>,
    pub kubelet_version: String,
}

#[derive(Debug, thiserror::Error)]
pub enum VirtualNodesError {
    #[error("podCIDR: {range} does not hold {nodes} nodes of {pods} Pods: give a larger one")]
    Range { range: Ipv4Net, nodes: usize, pods: usize },
    #[error("capacity of the virtual node {name}")]
    Capacity {
        name: String,
        #[source]
        source: ResourceError,
    },
}

/// All virtual nodes of a server.
pub struct VirtualNodes {
    config: Config,
    parts: Parts,
    ready: watch::Sender<bool>,
}

impl VirtualNodes {
    pub fn new(config: Config, parts: Parts) -> Self {
        Self { config, parts, ready: watch::Sender::new(false) }
    }

    /// Becomes true once all of them are registered.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Runs until the shutdown. The Nodes and their Pods stay.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), VirtualNodesError> {
        let Self { config, parts, ready } = self;
        let Parts { informers, client_of, clock, kubelet_version } = parts;
        let (nodes, pods) = (informers.of::<Node>(), informers.of::<Pod>());
        tokio::select! {
            () = nodes.synced() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        let placed: Arc<[Placed]> = place(config.nodes, config.pod_cidr, &nodes)?.into();
        let lives = Pods::new(pods.clone(), Arc::clone(&client_of), Arc::clone(&clock), config.script);
        for placed in placed.iter() {
            lives.open(&placed.node.name, seats(placed)?);
        }
        let heartbeat = Heartbeat { placed: Arc::clone(&placed), nodes, client_of, clock, kubelet_version };
        let mut driver = Driver::new(shutdown.clone());
        let names: HashSet<String> = placed.iter().map(|placed| placed.node.name.clone()).collect();
        driver
            .work(lives, WorkOptions { workers: WRITERS, ..WorkOptions::default() })
            .on(&pods, move |change| {
                let ours = change.versions().any(|pod| node_of(pod).is_some_and(|node| names.contains(node)));
                ours.then(|| change.key())
            })
            .start();
        heartbeat.register(&shutdown).await;
        ready.send_replace(true);
        heartbeat.run(&shutdown).await;
        driver.join().await;
        Ok(())
    }
}

/// Gives each node its range of addresses: the one that its Node has already, or the next that is free.
fn place(nodes: Vec<VirtualNode>, pod_cidr: Ipv4Net, known: &Informer<Node>) -> Result<Vec<Placed>, VirtualNodesError> {
    let range_of = |node: &Node| node.spec.as_ref()?.pod_cidr.as_ref()?.parse::<Ipv4Net>().ok();
    let held: HashMap<String, Ipv4Net> =
        known.list().iter().filter_map(|node| Some((node.metadata.name.clone()?, range_of(node)?))).collect();
    let taken: Vec<Ipv4Net> = held.values().copied().filter(|range| pod_cidr.contains(range)).collect();
    let (count, pods) = (nodes.len(), nodes.iter().map(|node| node.pods_max).max().unwrap_or(0));
    let mut free = addresses::free_ranges(pod_cidr, addresses::prefix_for(pods), &taken);
    let too_small = || VirtualNodesError::Range { range: pod_cidr, nodes: count, pods };
    let range = |node: &VirtualNode| held.get(&node.name).copied();
    nodes
        .into_iter()
        .map(|node| Ok(Placed { range: range(&node).or_else(|| free.next()).ok_or_else(too_small)?, node }))
        .collect()
}

fn seats(placed: &Placed) -> Result<Place, VirtualNodesError> {
    let failed = |source| VirtualNodesError::Capacity { name: placed.node.name.clone(), source };
    Ok(Place {
        facts: NodeFacts { ips: vec![IpAddr::from(placed.address())], runtime: RUNTIME.to_owned() },
        room: placed.room().map_err(failed)?,
        addresses: Addresses::new(placed.range),
        pods: std::collections::BTreeSet::new(),
    })
}
