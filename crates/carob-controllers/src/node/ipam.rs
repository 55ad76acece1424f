//! Gives each Node a part of the cluster's Pod addresses (`pkg/controller/nodeipam`, RangeAllocator).

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use carob_client::{
    During, EventKind, EventRecorder, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, reference,
};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::context::Context;

/// Size of a Node's range (--node-cidr-mask-size-ipv4 and -ipv6).
const NODE_PREFIX_V4: u8 = 24;
const NODE_PREFIX_V6: u8 = 64;

pub(crate) struct NodeIpam {
    context: Context,
    nodes: Informer<Node>,
    clusters: Vec<IpNet>,
    recorder: EventRecorder,
    /// What was given to a Node, until the informer shows it.
    given: Mutex<HashMap<String, Vec<IpNet>>>,
}

impl NodeIpam {
    pub(crate) fn new(context: Context, clusters: Vec<IpNet>) -> Self {
        let recorder = context.recorder("cidrAllocator");
        Self { nodes: context.informers.of(), context, clusters, recorder, given: Mutex::default() }
    }

    pub(crate) fn nodes(&self) -> &Informer<Node> {
        &self.nodes
    }

    /// Chooses the ranges of a Node, and remembers them as taken.
    fn choose(&self, node: &str) -> Option<Vec<IpNet>> {
        let mut given = self.given.lock().expect("no holder of the ranges panics");
        let nodes = self.nodes.list();
        given.retain(|name, _| {
            self.nodes.get(None, name).is_some_and(|node| ranges(&node).next().is_none()) || name == node
        });
        if let Some(ranges) = given.get(node) {
            return Some(ranges.clone());
        }
        let taken: HashSet<IpNet> =
            nodes.iter().flat_map(|node| ranges(node)).chain(given.values().flatten().copied()).collect();
        let chosen: Option<Vec<IpNet>> = self.clusters.iter().map(|cluster| first_free(*cluster, &taken)).collect();
        let chosen = chosen.filter(|chosen| !chosen.is_empty())?;
        given.insert(node.to_owned(), chosen.clone());
        Some(chosen)
    }
}

fn ranges(node: &Node) -> impl Iterator<Item = IpNet> {
    let listed = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
    listed.filter_map(|cidr| cidr.parse().ok())
}

fn first_free(cluster: IpNet, taken: &HashSet<IpNet>) -> Option<IpNet> {
    let prefix = match cluster {
        IpNet::V4(_) => NODE_PREFIX_V4.max(cluster.prefix_len()),
        IpNet::V6(_) => NODE_PREFIX_V6.max(cluster.prefix_len()),
    };
    // A range that somebody set by hand may have any size, so overlap counts, not equality.
    let overlaps = |range: &IpNet| taken.iter().any(|other| other.contains(range) || range.contains(other));
    cluster.trunc().subnets(prefix).ok()?.find(|range| !overlaps(range))
}

impl Reconcile for NodeIpam {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "node-ipam"
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(node) = self.nodes.get_key(&key).filter(|node| ranges(node).next().is_none()) else {
            return Ok(Requeue::No);
        };
        let Some(chosen) = self.choose(&key.name) else {
            let message = format!("Node {key} status is now: CIDRNotAvailable");
            self.recorder.record(reference(&*node), EventKind::Normal, "CIDRNotAvailable", message);
            return Err(ReconcileError::Unusable(format!("no range of Pod addresses is left for node {key}")));
        };
        let cidrs: Vec<String> = chosen.iter().map(ToString::to_string).collect();
        let patch = json!({
            "metadata": {"uid": node.metadata.uid},
            "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
        });
        let api: Api<Node> = self.context.cluster_api();
        let written = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        written.unless_gone(|| format!("give node {key} its Pod addresses"))?;
        Ok(Requeue::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cluster: &str, taken: &[&str], expected: Option<&str>) {
        let net = |text: &str| text.parse::<IpNet>().expect("a range");
        let taken = taken.iter().map(|text| net(text)).collect();
        assert_eq!(first_free(net(cluster), &taken), expected.map(net), "{cluster} without {taken:?}");
    }

    #[test]
    fn the_first_range_that_overlaps_no_other_is_taken() {
        check("10.244.0.0/16", &[], Some("10.244.0.0/24"));
        check("10.244.0.0/16", &["10.244.0.0/24", "10.244.2.0/24"], Some("10.244.1.0/24"));
        check("10.244.0.0/16", &["10.244.0.0/23"], Some("10.244.2.0/24"));
        check("10.244.0.0/16", &["10.244.0.128/25"], Some("10.244.1.0/24"));
        check("10.244.0.0/24", &[], Some("10.244.0.0/24"));
        check("10.244.0.0/24", &["10.244.0.0/24"], None);
        check("10.244.0.0/26", &[], Some("10.244.0.0/26"));
        check("fd00::/48", &["fd00::/64"], Some("fd00:0:0:1::/64"));
    }
}
