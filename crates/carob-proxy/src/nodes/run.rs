//! Keeps routes to other nodes' Pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use carob_client::{Informer, Informers};
use carob_kit::{Backoff, chain};
use carob_sys::netlink::route::{
    self, Ipv4Conf, Link, NewRoute, NextHop, add_address, delete_link, delete_route_of, replace_route_as, set_ipv4_conf,
};
use carob_sys::netlink::tunnel::{Vxlan, add_vxlan, replace_neighbor, replace_peer};
use carob_sys::netlink::{NetlinkError, Protocol, Socket};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::plan::{self, Way, mac};
use crate::keep::{ProxyError, blocking};

/// The routing protocol number of these routes: none that linux/rtnetlink.h or iproute2 names.
const PROTOCOL: u8 = 202;
/// The network's number and port (IANA) of the VXLAN device; all nodes of a cluster have to have the same.
const VXLAN_ID: u32 = 0x00_ca0b;
const VXLAN_PORT: u16 = 4789;
/// What a packet grows by in the tunnel: inner Ethernet, VXLAN and UDP headers, and IPv4's or IPv6's (RFC 7348, section 5).
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;
/// MTU where no interface has the node's own address (RFC 894).
const MTU_DEFAULT: u32 = 1500;
/// How often the routes are looked at: whoever takes an interface down takes them away, and does not tell.
const CHECK_EVERY: Duration = Duration::from_secs(60);
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));

#[derive(Debug, Clone)]
pub struct NodesConfig {
    pub node_name: String,
    pub node_addresses: Vec<IpAddr>,
    /// Addresses of all Pods: nothing else is led anywhere.
    pub cluster_cidrs: Vec<IpNet>,
    /// Name of the VXLAN device.
    pub tunnel: String,
}

pub struct NodesParts {
    pub informers: Arc<Informers>,
    pub shutdown: CancellationToken,
}

/// Keeps routes as the Node objects say, until `shutdown`. They stay behind.
pub async fn run(config: NodesConfig, parts: NodesParts) {
    let nodes = parts.informers.of::<Node>();
    let arrived = Arc::new(Notify::new());
    let changed = Arc::clone(&arrived);
    nodes.on_change(move |change| {
        let facts = |node: Option<&Arc<Node>>| node.map(|node| plan::peers(&[Arc::clone(node)], ""));
        if facts(change.old) != facts(change.new) {
            changed.notify_one();
        }
    });
    tokio::select! {
        // Cancel safe: what was handed to its thread is carried out whole.
        () = parts.shutdown.cancelled() => {}
        () = keep(&config, &nodes, &arrived) => {}
    }
}

async fn keep(config: &NodesConfig, nodes: &Informer<Node>, arrived: &Notify) {
    nodes.synced().await;
    let mut retry = RETRY;
    loop {
        let all = nodes.list();
        let own = nodes.get(None, &config.node_name);
        let own_cidrs = own.map(|node| plan::cidrs(&node)).unwrap_or_default();
        let (config, peers) = (config.clone(), plan::peers(&all, &config.node_name));
        let written = blocking(move || apply(&config, &own_cidrs, &peers)).await;
        let wait = match written.and_then(|written| written.map_err(ProxyError::Routes)) {
            Ok(()) => {
                retry.reset();
                CHECK_EVERY
            }
            Err(error) => {
                warn!(error = %chain(&error), "Pods of other nodes cannot all be reached");
                retry.fail()
            }
        };
        // Either way, all is looked at once more.
        drop(tokio::time::timeout(wait, arrived.notified()).await);
    }
}

/// Makes the routes and the device what they should be, in one batch.
fn apply(config: &NodesConfig, own_cidrs: &[IpNet], peers: &[plan::Peer]) -> Result<(), NetlinkError> {
    let mut socket = Socket::open(Protocol::Route)?;
    let (links, addresses) = (route::links(&mut socket)?, route::addresses(&mut socket)?);
    let tunnel = links.iter().find(|link| link.name == config.tunnel);
    // The tunnel's own addresses are no link to other machines.
    let others: Vec<_> =
        addresses.iter().filter(|found| Some(found.interface) != tunnel.map(|link| link.index)).copied().collect();
    let mut ways = plan::ways(peers, &config.node_addresses, own_cidrs, &config.cluster_cidrs, &others);
    let held = route::routes(&mut socket)?;
    let of_others: BTreeSet<(IpAddr, u8)> = held
        .iter()
        .filter(|route| route.protocol != PROTOCOL)
        .map(|route| (route.destination, route.prefix_len))
        .collect();
    // Whoever set a route to such a range himself has a reason.
    ways.retain(|cidr, _| !of_others.contains(&(cidr.network(), cidr.prefix_len())));
    let mut requests = Vec::new();
    for route in held.iter().filter(|route| route.protocol == PROTOCOL) {
        let Ok(net) = IpNet::new(route.destination, route.prefix_len) else { continue };
        if config.cluster_cidrs.iter().any(|range| range.contains(&net)) && !ways.contains_key(&net) {
            info!(%net, "a node is gone: its Pods' addresses lead nowhere");
            requests.push(delete_route_of(route.destination, route.prefix_len, PROTOCOL));
        }
    }
    let has_tunnels = ways.values().any(|way| matches!(way, Way::Tunnel { .. }));
    let interface = match (has_tunnels, tunnel) {
        (true, _) => Some(open_tunnel(&mut socket, config, own_cidrs, &links, &others)?),
        (false, Some(_)) => {
            requests.push(delete_link(&config.tunnel));
            None
        }
        (false, None) => None,
    };
    requests.extend(forwarding(&ways, &links));
    for (cidr, way) in &ways {
        requests.extend(route_to(*cidr, *way, interface, own_cidrs));
    }
    socket.execute(&requests)
}

/// Lets packets for Pods in by the links to other nodes.
fn forwarding(ways: &BTreeMap<IpNet, Way>, links: &[Link]) -> Vec<carob_sys::netlink::Request> {
    let direct: BTreeSet<u32> = ways
        .values()
        .filter_map(|way| match way {
            Way::Direct { interface, .. } => Some(*interface),
            Way::Tunnel { .. } => None,
        })
        .collect();
    let named = links.iter().filter(|link| direct.contains(&link.index));
    named.map(|link| route::allow_missing(set_ipv4_conf(&link.name, &[(Ipv4Conf::Forwarding, 1)]))).collect()
}

/// Makes the VXLAN device where it is not there, and answers its number.
fn open_tunnel(
    socket: &mut Socket,
    config: &NodesConfig,
    own_cidrs: &[IpNet],
    links: &[Link],
    addresses: &[route::LinkAddress],
) -> Result<u32, NetlinkError> {
    let local = config.node_addresses.first().copied().unwrap_or(IpAddr::from([0; 4]));
    let uplink = addresses.iter().find(|found| found.address == local);
    let uplink = uplink.and_then(|found| links.iter().find(|link| link.index == found.interface));
    let overhead = if local.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
    let mtu = uplink.map_or(MTU_DEFAULT, |link| link.mtu).saturating_sub(overhead);
    let vxlan = Vxlan { name: &config.tunnel, id: VXLAN_ID, port: VXLAN_PORT, local, mac: mac(local), mtu };
    // What comes out of the tunnel is checked by its routes alone: its source is the far Pod's.
    let switches = set_ipv4_conf(&config.tunnel, &[(Ipv4Conf::Forwarding, 1)]);
    socket.execute(&[add_vxlan(&vxlan), switches])?;
    let made = route::link(socket, &config.tunnel)?;
    let made = made.ok_or_else(|| NetlinkError::NoAnswer { what: format!("look up interface {}", config.tunnel) })?;
    // What this machine itself sends to far Pods comes from an address that they find back to: the range's first, which no Pod has.
    let own = own_cidrs.iter().map(|cidr| add_address(made.index, cidr.network(), host_prefix(cidr.network())));
    socket.execute(&own.collect::<Vec<_>>())?;
    Ok(made.index)
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn route_to(cidr: IpNet, way: Way, tunnel: Option<u32>, own_cidrs: &[IpNet]) -> Vec<carob_sys::netlink::Request> {
    let route = |hop, source| {
        let new = NewRoute { destination: cidr.network(), prefix_len: cidr.prefix_len(), hop, source };
        replace_route_as(&new, PROTOCOL)
    };
    match (way, tunnel) {
        (Way::Direct { interface, gateway }, _) => {
            vec![route(NextHop::Gateway { interface, address: gateway }, None)]
        }
        (Way::Tunnel { machine }, Some(interface)) => {
            let (inner, mac) = (cidr.network(), mac(machine));
            let source = own_cidrs.iter().map(IpNet::network).find(|own| own.is_ipv4() == inner.is_ipv4());
            vec![
                replace_peer(interface, mac, machine),
                replace_neighbor(interface, inner, mac),
                route(NextHop::OnLink { interface, address: inner }, source),
            ]
        }
        // There is a device whenever a way needs it.
        (Way::Tunnel { .. }, None) => Vec::new(),
    }
}

/// Takes routes and device away, for a machine that is left.
pub async fn remove(tunnel: &str, cluster_cidrs: &[IpNet]) -> Result<(), ProxyError> {
    let config = NodesConfig {
        node_name: String::new(),
        node_addresses: Vec::new(),
        cluster_cidrs: cluster_cidrs.to_vec(),
        tunnel: tunnel.to_owned(),
    };
    blocking(move || apply(&config, &[], &[])).await?.map_err(ProxyError::Routes)
}
