//! What to ask of the kernel, decided from values.
//!
//! Pods are joined by routed veths, not by a bridge: a Pod has a single address and a default route to the gateway,
//! this machine a route to each Pod's address over its veth. So every packet between two Pods passes this machine's
//! routing and its nftables rules, whatever `br_netfilter` is set to; a Pod can neither see nor answer another one's
//! ARP; and a Service's client keeps its source address also when both Pods are on one node.

use std::net::{IpAddr, Ipv6Addr};

use carob_sys::netlink::Request;
use carob_sys::netlink::route::{
    Ipv4Conf, Link, LinkAddress, NewRoute, NextHop, Route, add_address, allow_missing, delete_address, delete_link,
    replace_route, set_ipv4_conf, set_up,
};
use ipnet::IpNet;

use crate::names::Names;
use crate::record::Record;

/// The Pod's interface, as every container runtime calls it.
pub(crate) const POD_INTERFACE: &str = "eth0";
/// What Pods use as IPv6 gateway: neighbour discovery answers only for addresses of the veth itself, and a link-local
/// one can be the same on every veth.
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
/// `lo` is the first interface of every network namespace (`LOOPBACK_IFINDEX`, net/net_namespace.h).
const LOOPBACK_INDEX: u32 = 1;
/// MTU where no route says which interface leads out (RFC 894).
const MTU_DEFAULT: u32 = 1500;
/// The most that a bridge or veth takes (kernel `ETH_MAX_MTU`); loopback has one more.
const MTU_MAX: u32 = 65_535;

/// What the kernel has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observed {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<LinkAddress>,
    pub(crate) routes: Vec<Route>,
}

impl Observed {
    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    fn is_ours(&self, index: u32, names: &Names) -> bool {
        self.link(index)
            .is_some_and(|link| link.name == names.anchor || link.name == names.tunnel || names.is_veth(&link.name))
    }

    /// The smallest MTU of the interfaces that default routes use: a Pod's packets must fit through.
    pub(crate) fn mtu(&self) -> u32 {
        let defaults = self.routes.iter().filter(|route| route.prefix_len == 0);
        let smallest = defaults.filter_map(|route| self.link(route.interface?)).map(|link| link.mtu).min();
        smallest.unwrap_or(MTU_DEFAULT).min(MTU_MAX)
    }

    /// Interfaces by which packets for Pods come from other machines: those that a gateway or the default route is behind, and
    /// those of hardware that have an address. The bridges and veths of other software, and those of other instances, are
    /// switched as their owners want.
    pub(crate) fn uplinks(&self, names: &Names) -> Vec<&str> {
        let leads_out = |link: &Link| {
            let leads =
                |route: &Route| route.interface == Some(link.index) && (route.has_gateway || route.prefix_len == 0);
            self.routes.iter().any(leads)
        };
        let is_virtual =
            |link: &Link| matches!(link.kind.as_deref(), Some("bridge" | "veth" | "dummy" | "ifb" | "nlmon"));
        let has_address = |link: &Link| {
            let is_routed = |address: IpAddr| match address {
                IpAddr::V4(address) => !address.is_link_local(),
                IpAddr::V6(address) => !address.is_unicast_link_local(),
            };
            self.addresses.iter().any(|found| found.interface == link.index && is_routed(found.address))
        };
        self.links
            .iter()
            .filter(|link| !link.is_loopback && !self.is_ours(link.index, names))
            .filter(|link| leads_out(link) || (has_address(link) && !is_virtual(link)))
            .map(|link| link.name.as_str())
            .collect()
    }

    /// What of this machine overlaps the CIDR, in words. Default routes overlap everything and do not count.
    pub(crate) fn taken_by(&self, cidr: &IpNet, names: &Names) -> Option<String> {
        let overlaps = |address: IpAddr, len: u8| {
            IpNet::new(address, len).is_ok_and(|net| net.contains(&cidr.network()) || cidr.contains(&net.network()))
        };
        let name = |index: u32| self.link(index).map_or("?", |link| link.name.as_str());
        let address = self
            .addresses
            .iter()
            .find(|found| overlaps(found.address, found.prefix_len) && !self.is_ours(found.interface, names));
        if let Some(found) = address {
            return Some(format!("address {}/{} of {}", found.address, found.prefix_len, name(found.interface)));
        }
        let route = self.routes.iter().find(|route| {
            route.prefix_len > 0
                && overlaps(route.destination, route.prefix_len)
                && !route.interface.is_some_and(|index| self.is_ours(index, names))
        })?;
        let over = route.interface.map_or_else(String::new, |index| format!(" over {}", name(index)));
        Some(format!("route {}/{}{over}", route.destination, route.prefix_len))
    }
}

fn host_prefix_len(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Addresses of Pods that do not exist are unreachable at once, and never leave by the default route.
fn unreachable(cidr: &IpNet) -> NewRoute {
    let cidr = cidr.trunc();
    NewRoute { destination: cidr.network(), prefix_len: cidr.prefix_len(), hop: NextHop::Unreachable, source: None }
}

/// Gives the anchor the gateways' addresses and no others, and routes for the CIDRs.
pub(crate) fn anchor(index: u32, gateways: &[IpAddr], cidrs: &[IpNet], has: &Observed) -> Vec<Request> {
    let mut requests: Vec<Request> =
        gateways.iter().map(|gateway| add_address(index, *gateway, host_prefix_len(*gateway))).collect();
    let is_stale = |found: &&LinkAddress| {
        let is_link_local = matches!(found.address, IpAddr::V6(address) if address.is_unicast_link_local());
        found.interface == index && !gateways.contains(&found.address) && !is_link_local
    };
    requests.extend(
        has.addresses.iter().filter(is_stale).map(|found| delete_address(index, found.address, found.prefix_len)),
    );
    requests.extend(cidrs.iter().map(|cidr| replace_route(&unreachable(cidr))));
    requests
}

/// Undoes [`anchor`]. The addresses go with the interface.
pub(crate) fn remove_anchor(names: &Names, cidrs: &[IpNet]) -> Vec<Request> {
    let mut requests: Vec<Request> = remove_cidrs(cidrs);
    requests.push(delete_link(&names.anchor));
    requests
}

/// Takes back the routes of CIDRs that are no longer the node's.
pub(crate) fn remove_cidrs(cidrs: &[IpNet]) -> Vec<Request> {
    cidrs.iter().map(|cidr| carob_sys::netlink::route::delete_route(&unreachable(cidr))).collect()
}

/// Lets packets for Pods in by these interfaces. One that has gone since it was listed needs nothing.
pub(crate) fn forwarding(uplinks: &[&str]) -> Vec<Request> {
    uplinks.iter().map(|name| allow_missing(set_ipv4_conf(name, &[(Ipv4Conf::Forwarding, 1)]))).collect()
}

/// The switches of a new veth. Sources are checked, so that no Pod speaks for another. 127.0.0.0/8 is routed, since host
/// ports and NodePorts are reached by it; what a Pod sends there itself is dropped (`guard` in [`crate::rules`]).
pub(crate) fn veth_switches(veth: &str) -> Request {
    let switches = [(Ipv4Conf::Forwarding, 1), (Ipv4Conf::ReversePathFilter, 1), (Ipv4Conf::RouteLocalnet, 1)];
    set_ipv4_conf(veth, &switches)
}

/// The machine's side: routes to the Pod, and its IPv6 gateway.
pub(crate) fn host_side(veth_index: u32, record: &Record) -> Vec<Request> {
    let mut requests = Vec::new();
    if record.ips.iter().any(IpAddr::is_ipv6) {
        requests.push(add_address(veth_index, GATEWAY_V6, 64));
    }
    requests.extend(record.ips.iter().zip(&record.gateways).map(|(ip, gateway)| {
        replace_route(&NewRoute {
            destination: *ip,
            prefix_len: host_prefix_len(*ip),
            hop: NextHop::Link { interface: veth_index },
            source: Some(*gateway),
        })
    }));
    requests
}

/// The Pod's side: loopback, addresses, and everything else by way of the gateway.
pub(crate) fn pod_side(index: u32, record: &Record) -> Vec<Request> {
    let mut requests = vec![set_up(LOOPBACK_INDEX), set_up(index)];
    for (ip, gateway) in record.ips.iter().zip(&record.gateways) {
        requests.push(add_address(index, *ip, host_prefix_len(*ip)));
        let (gateway, any) = match gateway {
            IpAddr::V4(_) => (*gateway, IpAddr::from([0; 4])),
            IpAddr::V6(_) => (GATEWAY_V6, IpAddr::from([0; 16])),
        };
        if gateway.is_ipv4() {
            requests.push(replace_route(&NewRoute {
                destination: gateway,
                prefix_len: host_prefix_len(gateway),
                hop: NextHop::Link { interface: index },
                source: None,
            }));
        }
        let hop = NextHop::Gateway { interface: index, address: gateway };
        requests.push(replace_route(&NewRoute { destination: any, prefix_len: 0, hop, source: None }));
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, mtu: u32) -> Link {
        Link { index, name: name.to_owned(), mtu, is_loopback: name == "lo", ..Link::default() }
    }

    fn address(interface: u32, address: &str, prefix_len: u8) -> LinkAddress {
        LinkAddress { interface, address: address.parse().unwrap(), prefix_len }
    }

    fn route(destination: &str, prefix_len: u8, interface: u32) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            prefix_len,
            interface: Some(interface),
            has_gateway: prefix_len == 0,
            protocol: 4,
        }
    }

    fn machine(names: &Names) -> Observed {
        Observed {
            links: vec![
                link(1, "lo", 65536),
                link(2, "eth0", 1400),
                Link { kind: Some("bridge".to_owned()), ..link(3, "docker0", 1500) },
                link(4, &names.anchor, 1500),
                link(5, &names.veth("a"), 1400),
                link(6, "idle", 9000),
                link(7, "eth1", 9000),
                Link { kind: Some("veth".to_owned()), ..link(8, "veth0", 1500) },
                Link { kind: Some("bridge".to_owned()), ..link(9, "lan", 1500) },
                link(10, "unset", 1500),
            ],
            addresses: vec![
                address(1, "127.0.0.1", 8),
                address(2, "192.0.2.2", 24),
                address(3, "172.17.0.1", 16),
                address(4, "10.244.0.1", 32),
                address(7, "198.51.100.2", 24),
                address(8, "fe80::8", 64),
                address(10, "fe80::a", 64),
            ],
            routes: vec![
                route("0.0.0.0", 0, 2),
                route("192.0.2.0", 24, 2),
                route("172.17.0.0", 16, 3),
                route("10.244.0.5", 32, 5),
                route("10.50.0.0", 16, 2),
                Route { has_gateway: true, ..route("203.0.113.0", 24, 9) },
            ],
        }
    }

    #[test]
    fn packets_take_the_way_out_that_is_there() {
        let names = Names::of("plan");
        assert_eq!(machine(&names).mtu(), 1400);
        assert_eq!(machine(&names).uplinks(&names), ["eth0", "eth1", "lan"]);
        assert_eq!(Observed::default().mtu(), MTU_DEFAULT);
        let links = vec![link(1, "lo", MTU_MAX + 1)];
        let by_loopback = Observed { links, routes: vec![route("0.0.0.0", 0, 1)], ..Observed::default() };
        assert_eq!(by_loopback.mtu(), MTU_MAX);
    }

    #[test]
    fn a_cidr_that_the_machine_uses_is_named_with_what_uses_it() {
        let names = Names::of("plan");
        let machine = machine(&names);
        for (cidr, taken) in [
            ("10.244.0.0/24", None),
            ("fd00::/64", None),
            ("172.17.4.0/24", Some("address 172.17.0.1/16 of docker0")),
            ("192.0.0.0/8", Some("address 192.0.2.2/24 of eth0")),
            ("10.50.7.0/24", Some("route 10.50.0.0/16 over eth0")),
            ("10.48.0.0/13", Some("route 10.50.0.0/16 over eth0")),
        ] {
            assert_eq!(machine.taken_by(&cidr.parse().unwrap(), &names).as_deref(), taken, "{cidr}");
        }
        let other = Names::of("another instance");
        let taken = machine.taken_by(&"10.244.0.0/24".parse().unwrap(), &other).unwrap();
        assert!(taken.starts_with("address 10.244.0.1/32 of carob"), "{taken}");
    }

    #[test]
    fn a_dual_stack_pod_is_a_short_list_of_requests() {
        let ips = ["10.244.0.2", "fd00::2"].map(|ip| ip.parse().unwrap()).to_vec();
        let gateways = ["10.244.0.1", "fd00::1"].map(|ip| ip.parse().unwrap()).to_vec();
        let record = Record::new("a", ips, gateways, Vec::new());
        let words = |requests: Vec<Request>| -> Vec<String> {
            requests.iter().map(|request| request.what().to_owned()).collect()
        };
        assert_eq!(
            words(pod_side(7, &record)),
            [
                "bring interface 1 up",
                "bring interface 7 up",
                "add address 10.244.0.2/32 of interface 7",
                "add route to 10.244.0.1/32",
                "add route to 0.0.0.0/0",
                "add address fd00::2/128 of interface 7",
                "add route to ::/0",
            ]
        );
        assert_eq!(
            words(host_side(9, &record)),
            ["add address fe80::1/64 of interface 9", "add route to 10.244.0.2/32", "add route to fd00::2/128"]
        );
    }

    #[test]
    fn the_anchor_keeps_the_gateways_in_use_and_loses_the_others() {
        let names = Names::of("plan");
        let gateways = ["10.99.0.1".parse().unwrap()];
        let cidrs = ["10.99.0.0/24".parse().unwrap()];
        let requests = anchor(4, &gateways, &cidrs, &machine(&names));
        let words: Vec<&str> = requests.iter().map(Request::what).collect();
        assert_eq!(
            words,
            [
                "add address 10.99.0.1/32 of interface 4",
                "remove address 10.244.0.1/32 of interface 4",
                "add route to 10.99.0.0/24"
            ]
        );
    }
}
