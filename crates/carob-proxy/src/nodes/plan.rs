//! Which way leads to a node's Pods. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use carob_sys::netlink::route::LinkAddress;
use carob_sys::netlink::tunnel::Mac;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

/// Nodes that no machine is behind (`carob-node`, virtual nodes).
const VIRTUAL: &str = "carob.io/virtual";

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) cidrs: Vec<IpNet>,
}

/// How a range of Pod addresses is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The node is on this interface's link.
    Direct { interface: u32, gateway: IpAddr },
    /// By the VXLAN device, to the node of this address.
    Tunnel { machine: IpAddr },
}

/// The ranges that are the node's own.
pub(super) fn cidrs(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let one = spec.pod_cidr.iter();
    let listed = spec.pod_cidrs.iter().flatten();
    let mut found: Vec<IpNet> =
        listed.chain(one).filter_map(|text| text.parse::<IpNet>().ok()).map(|c| c.trunc()).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The other nodes that Pods can be on, in the order of their names: the first one keeps a range that two claim.
pub(super) fn peers(nodes: &[Arc<Node>], own: &str) -> Vec<Peer> {
    let mut others: Vec<&Arc<Node>> = nodes
        .iter()
        .filter(|node| node.metadata.name.as_deref() != Some(own))
        .filter(|node| node.metadata.labels.as_ref().is_none_or(|labels| !labels.contains_key(VIRTUAL)))
        .collect();
    others.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
    let peer = |node: &&Arc<Node>| {
        let listed = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let internal = listed.filter(|address| address.type_ == "InternalIP");
        Peer { addresses: internal.filter_map(|address| address.address.parse().ok()).collect(), cidrs: cidrs(node) }
    };
    others.iter().map(peer).collect()
}

/// The ways to all ranges of other nodes within `cluster`: what a Node object says must not lead other packets away.
pub(super) fn ways(
    peers: &[Peer],
    own_addresses: &[IpAddr],
    own_cidrs: &[IpNet],
    cluster: &[IpNet],
    links: &[LinkAddress],
) -> BTreeMap<IpNet, Way> {
    let mut ways = BTreeMap::new();
    for peer in peers.iter().filter(|peer| !peer.addresses.iter().any(|address| own_addresses.contains(address))) {
        for cidr in &peer.cidrs {
            let overlaps = |other: &IpNet| other.contains(cidr) || cidr.contains(other);
            let is_fine = cluster.iter().any(|range| range.contains(cidr)) && !own_cidrs.iter().any(overlaps);
            let mut of_family = peer.addresses.iter().filter(|ip| ip.is_ipv4() == cidr.addr().is_ipv4());
            let direct = of_family.find_map(|address| on_link(*address, links));
            let tunnel = || Some(Way::Tunnel { machine: *peer.addresses.first()? });
            if let Some(way) = direct.or_else(tunnel).filter(|_| is_fine && !ways.keys().any(overlaps)) {
                ways.insert(*cidr, way);
            }
        }
    }
    ways
}

/// The node as a gateway, where one of this machine's networks has its address.
fn on_link(gateway: IpAddr, links: &[LinkAddress]) -> Option<Way> {
    let shares = |link: &&LinkAddress| {
        let whole = if link.address.is_ipv4() { 32 } else { 128 };
        let is_link_local = matches!(link.address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let net = IpNet::new(link.address, link.prefix_len);
        link.prefix_len < whole
            && !is_link_local
            && !link.address.is_loopback()
            && net.is_ok_and(|net| net.contains(&gateway))
    };
    links.iter().find(shares).map(|link| Way::Direct { interface: link.interface, gateway })
}

/// The link-layer address of a machine's VXLAN device: a local one (IEEE 802, the second bit of the first byte), made of the
/// machine's address.
pub(super) fn mac(machine: IpAddr) -> Mac {
    let [a, b, c, d] = match machine {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            let fold = |at: usize| octets[at] ^ octets[at + 4] ^ octets[at + 8] ^ octets[at + 12];
            [fold(0), fold(1), fold(2), fold(3)]
        }
    };
    [0x02, 0xca, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn node(name: &str, address: &str, cidr: &str, label: &str) -> Arc<Node> {
        let text = format!(
            "metadata: {{name: {name}, labels: {{{label}: ''}}}}\nspec: {{podCIDR: {cidr}, podCIDRs: [{cidr}]}}\n\
             status: {{addresses: [{{type: Hostname, address: {name}}}, {{type: InternalIP, address: '{address}'}}]}}\n"
        );
        Arc::new(serde_saphyr::from_str(&text).unwrap())
    }

    #[test]
    fn neighbours_are_gateways_and_others_are_behind_the_tunnel() {
        let nodes = [
            node("own", "192.0.2.1", "10.244.0.0/24", "x"),
            node("near", "192.0.2.2", "10.244.1.0/24", "x"),
            node("far", "198.51.100.9", "10.244.2.0/24", "x"),
            node("virtual", "192.0.2.3", "10.244.3.0/24", VIRTUAL),
            node("same-machine", "192.0.2.1", "10.244.4.0/24", "x"),
            node("thief", "192.0.2.5", "10.244.0.128/25", "x"),
            node("second", "192.0.2.6", "10.244.1.0/24", "x"),
            node("stranger", "192.0.2.7", "8.8.8.0/24", "x"),
        ];
        let links = [
            LinkAddress { interface: 1, address: ip("127.0.0.1"), prefix_len: 8 },
            LinkAddress { interface: 2, address: ip("192.0.2.1"), prefix_len: 24 },
            LinkAddress { interface: 3, address: ip("198.51.100.9"), prefix_len: 32 },
        ];
        let ways = ways(&peers(&nodes, "own"), &[ip("192.0.2.1")], &cidrs(&nodes[0]), &[net("10.244.0.0/16")], &links);
        let expected = [
            (net("10.244.1.0/24"), Way::Direct { interface: 2, gateway: ip("192.0.2.2") }),
            (net("10.244.2.0/24"), Way::Tunnel { machine: ip("198.51.100.9") }),
        ];
        assert_eq!(ways, expected.into());
    }

    #[test]
    fn link_layer_addresses_follow_from_addresses() {
        assert_eq!(mac(ip("192.0.2.1")), [0x02, 0xca, 192, 0, 2, 1]);
        assert_ne!(mac(ip("2001:db8::1")), mac(ip("2001:db8::2")));
    }
}
