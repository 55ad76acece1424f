//! Links, addresses and routes (rtnetlink(7)): the requests that Pod networks need, and what is there.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::decode::{Attributes, Reply};
use super::encode::{Request, Writer, flag};
use super::socket::{NetlinkError, Socket};

/// Nested attributes of veth's `IFLA_INFO_DATA` (linux/veth.h).
const VETH_INFO_PEER: u16 = 1;
/// Addresses that need no duplicate detection and so work at once (linux/if_addr.h `IFA_F_NODAD`).
const ADDRESS_NO_DAD: u8 = 0x02;
/// `RT_SCOPE_UNIVERSE` and `RT_SCOPE_LINK` (linux/rtnetlink.h).
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;

/// `struct ifinfomsg` (rtnetlink(7)).
pub(super) fn link_header(index: u32, flags: u32, change: u32) -> Writer {
    let mut writer = Writer::default();
    let mut header = vec![0; 4];
    header.extend_from_slice(&index.to_ne_bytes());
    header.extend_from_slice(&flags.to_ne_bytes());
    header.extend_from_slice(&change.to_ne_bytes());
    writer.raw(&header);
    writer
}

const UP: u32 = libc::IFF_UP as u32;

/// Flags of a request that makes something that must not be there yet.
const CREATE: u16 = flag(libc::NLM_F_CREATE) | flag(libc::NLM_F_EXCL);

/// Makes a bridge and brings it up. One that is there is fine.
pub fn add_bridge(name: &str, mtu: u32) -> Request {
    let mut writer = link_header(0, UP, UP);
    writer.string(libc::IFLA_IFNAME, name).u32(libc::IFLA_MTU, mtu);
    writer.nest(libc::IFLA_LINKINFO, |info| {
        info.string(libc::IFLA_INFO_KIND, "bridge");
    });
    Request::new(format!("create bridge {name}"), libc::RTM_NEWLINK, CREATE, writer).tolerate(&[libc::EEXIST])
}

/// A veth pair: one end in the socket's namespace, the other in another.
#[derive(Debug)]
pub struct Veth<'a> {
    pub name: &'a str,
    pub mtu: u32,
    pub peer_name: &'a str,
    pub peer_netns: BorrowedFd<'a>,
}

/// Makes the pair with the near end up. The far end has to be brought up from its own side: the kernel refuses to open
/// it before the pair is joined (`veth_open`).
pub fn add_veth(veth: &Veth<'_>) -> Request {
    let mut writer = link_header(0, UP, UP);
    writer.string(libc::IFLA_IFNAME, veth.name).u32(libc::IFLA_MTU, veth.mtu);
    // A descriptor that is open is not negative.
    let netns = u32::try_from(veth.peer_netns.as_raw_fd()).unwrap_or(u32::MAX);
    writer.nest(libc::IFLA_LINKINFO, |info| {
        info.string(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, |data| {
            data.nest(VETH_INFO_PEER, |peer| {
                peer.raw(link_header(0, 0, 0).as_bytes());
                peer.string(libc::IFLA_IFNAME, veth.peer_name).u32(libc::IFLA_MTU, veth.mtu);
                peer.u32(libc::IFLA_NET_NS_FD, netns);
            });
        });
    });
    let what = format!("create veth {} to {} in the sandbox's namespace", veth.name, veth.peer_name);
    Request::new(what, libc::RTM_NEWLINK, CREATE, writer)
}

/// A switch of an interface's IPv4 side (`net.ipv4.conf.<interface>.*`; numbers of linux/ip.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Ipv4Conf {
    Forwarding = 1,
    /// 1: a packet whose source would not be reached over this interface is dropped (RFC 3704, strict).
    ReversePathFilter = 8,
    /// 127.0.0.0/8 may be routed over this interface.
    RouteLocalnet = 26,
}

/// Sets switches of an interface without touching procfs.
pub fn set_ipv4_conf(name: &str, values: &[(Ipv4Conf, u32)]) -> Request {
    /// `IFLA_AF_SPEC`, `AF_INET` and `IFLA_INET_CONF` (linux/if_link.h).
    const AF_SPEC: u16 = 26;
    const INET: u16 = 2;
    const INET_CONF: u16 = 1;
    let mut writer = link_header(0, 0, 0);
    writer.string(libc::IFLA_IFNAME, name);
    writer.nest(AF_SPEC, |spec| {
        spec.nest(INET, |inet| {
            inet.nest(INET_CONF, |conf| {
                for (switch, value) in values {
                    conf.u32(*switch as u16, *value);
                }
            });
        });
    });
    Request::new(format!("set IPv4 switches of {name}"), libc::RTM_NEWLINK, 0, writer)
}

/// The same request, for which it is fine that there is no such interface (any more).
pub fn allow_missing(request: Request) -> Request {
    request.tolerate(&[libc::ENODEV])
}

/// Removes an interface by name; one that is not there is fine.
pub fn delete_link(name: &str) -> Request {
    let mut writer = link_header(0, 0, 0);
    writer.string(libc::IFLA_IFNAME, name);
    Request::new(format!("delete interface {name}"), libc::RTM_DELLINK, 0, writer).tolerate(&[libc::ENODEV])
}

/// Takes an interface down, which takes its routes away; one that is not there is fine.
pub fn set_down(name: &str) -> Request {
    let mut writer = link_header(0, 0, UP);
    writer.string(libc::IFLA_IFNAME, name);
    Request::new(format!("take interface {name} down"), libc::RTM_NEWLINK, 0, writer).tolerate(&[libc::ENODEV])
}

/// Brings an interface up.
pub fn set_up(index: u32) -> Request {
    let writer = link_header(index, UP, UP);
    Request::new(format!("bring interface {index} up"), libc::RTM_NEWLINK, 0, writer)
}

/// Gives an interface an address, usable at once. One that it has is fine.
pub fn add_address(interface: u32, address: IpAddr, prefix_len: u8) -> Request {
    address_request(interface, address, prefix_len, libc::RTM_NEWADDR, CREATE, "add").tolerate(&[libc::EEXIST])
}

/// Takes an address from an interface; one that it has not is fine.
pub fn delete_address(interface: u32, address: IpAddr, prefix_len: u8) -> Request {
    address_request(interface, address, prefix_len, libc::RTM_DELADDR, 0, "remove").tolerate(&[libc::EADDRNOTAVAIL])
}

fn address_request(interface: u32, address: IpAddr, prefix_len: u8, kind: u16, flags: u16, verb: &str) -> Request {
    let mut writer = Writer::default();
    let mut header = vec![family(address), prefix_len, ADDRESS_NO_DAD, SCOPE_UNIVERSE];
    header.extend_from_slice(&interface.to_ne_bytes());
    writer.raw(&header);
    let octets = octets(address);
    writer.bytes(libc::IFA_LOCAL, &octets).bytes(libc::IFA_ADDRESS, &octets);
    Request::new(format!("{verb} address {address}/{prefix_len} of interface {interface}"), kind, flags, writer)
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// Straight to the interface's neighbours.
    Link {
        interface: u32,
    },
    Gateway {
        interface: u32,
        address: IpAddr,
    },
    /// As [`NextHop::Gateway`], also where no address of the interface is in one network with it.
    OnLink {
        interface: u32,
        address: IpAddr,
    },
    /// Senders are told that the destination is unreachable.
    Unreachable,
}

/// A route to add to or remove from the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewRoute {
    pub destination: IpAddr,
    /// 0 for a default route.
    pub prefix_len: u8,
    pub hop: NextHop,
    /// The address that this machine's own packets over the route come from.
    pub source: Option<IpAddr>,
}

/// Adds a route; one that is there is replaced.
pub fn replace_route(route: &NewRoute) -> Request {
    replace_route_as(route, libc::RTPROT_STATIC)
}

/// As [`replace_route`], under the number of a routing protocol, by which the route is found again.
pub fn replace_route_as(route: &NewRoute, protocol: u8) -> Request {
    let flags = flag(libc::NLM_F_CREATE) | flag(libc::NLM_F_REPLACE);
    route_request(route, protocol, libc::RTM_NEWROUTE, flags, "add")
}

/// Removes a route; one that is not there is fine.
pub fn delete_route(route: &NewRoute) -> Request {
    route_request(route, libc::RTPROT_STATIC, libc::RTM_DELROUTE, 0, "delete").tolerate(&[libc::ESRCH])
}

/// Removes the route to this destination that is of this protocol, wherever it leads; one that is not there is fine.
pub fn delete_route_of(destination: IpAddr, prefix_len: u8, protocol: u8) -> Request {
    /// `RT_SCOPE_NOWHERE`: any.
    const ANY_SCOPE: u8 = 255;
    let mut writer = Writer::default();
    let any_kind = libc::RTN_UNSPEC;
    writer.raw(&[
        family(destination),
        prefix_len,
        0,
        0,
        libc::RT_TABLE_MAIN,
        protocol,
        ANY_SCOPE,
        any_kind,
        0,
        0,
        0,
        0,
    ]);
    writer.bytes(libc::RTA_DST, &octets(destination));
    let what = format!("delete the route to {destination}/{prefix_len}");
    Request::new(what, libc::RTM_DELROUTE, 0, writer).tolerate(&[libc::ESRCH])
}

fn route_request(route: &NewRoute, protocol: u8, kind: u16, flags: u16, verb: &str) -> Request {
    /// `RTNH_F_ONLINK` (linux/rtnetlink.h).
    const ON_LINK: u32 = 4;
    let (scope, route_kind) = match route.hop {
        NextHop::Link { .. } => (SCOPE_LINK, libc::RTN_UNICAST),
        NextHop::Gateway { .. } | NextHop::OnLink { .. } => (SCOPE_UNIVERSE, libc::RTN_UNICAST),
        NextHop::Unreachable => (SCOPE_UNIVERSE, libc::RTN_UNREACHABLE),
    };
    let mut writer = Writer::default();
    let mut header =
        vec![family(route.destination), route.prefix_len, 0, 0, libc::RT_TABLE_MAIN, protocol, scope, route_kind];
    let is_on_link = matches!(route.hop, NextHop::OnLink { .. });
    header.extend_from_slice(&if is_on_link { ON_LINK } else { 0 }.to_ne_bytes());
    writer.raw(&header);
    if route.prefix_len > 0 {
        writer.bytes(libc::RTA_DST, &octets(route.destination));
    }
    match route.hop {
        NextHop::Link { interface } => {
            writer.u32(libc::RTA_OIF, interface);
        }
        NextHop::Gateway { interface, address } | NextHop::OnLink { interface, address } => {
            writer.bytes(libc::RTA_GATEWAY, &octets(address)).u32(libc::RTA_OIF, interface);
        }
        NextHop::Unreachable => {}
    }
    if let Some(source) = route.source {
        writer.bytes(libc::RTA_PREFSRC, &octets(source));
    }
    Request::new(format!("{verb} route to {}/{}", route.destination, route.prefix_len), kind, flags, writer)
}

pub(super) fn family(address: IpAddr) -> u8 {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    u8::try_from(family).expect("AF_INET is 2 and AF_INET6 is 10")
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    /// `bridge`, `veth`, …; none for hardware.
    pub kind: Option<String>,
    pub is_loopback: bool,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkAddress {
    pub interface: u32,
    pub address: IpAddr,
    pub prefix_len: u8,
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub destination: IpAddr,
    /// 0 for a default route.
    pub prefix_len: u8,
    pub interface: Option<u32>,
    /// Another machine passes the packets on.
    pub has_gateway: bool,
    /// The number of the routing protocol that it is of (linux/rtnetlink.h, `RTPROT_*`).
    pub protocol: u8,
}

/// All interfaces.
pub fn links(socket: &mut Socket) -> Result<Vec<Link>, NetlinkError> {
    let request = Request::new("list interfaces", libc::RTM_GETLINK, flag(libc::NLM_F_DUMP), link_header(0, 0, 0));
    dump(socket, &request, libc::RTM_NEWLINK, decode_link)
}

/// The interface of that name, if there is one.
pub fn link(socket: &mut Socket, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut writer = link_header(0, 0, 0);
    writer.string(libc::IFLA_IFNAME, name);
    let request =
        Request::new(format!("look up interface {name}"), libc::RTM_GETLINK, 0, writer).tolerate(&[libc::ENODEV]);
    Ok(dump(socket, &request, libc::RTM_NEWLINK, decode_link)?.pop())
}

/// All addresses of all interfaces.
pub fn addresses(socket: &mut Socket) -> Result<Vec<LinkAddress>, NetlinkError> {
    let mut writer = Writer::default();
    writer.raw(&[0; 8]);
    let request = Request::new("list addresses", libc::RTM_GETADDR, flag(libc::NLM_F_DUMP), writer);
    dump(socket, &request, libc::RTM_NEWADDR, decode_address)
}

/// The unicast routes of the main table, both families.
pub fn routes(socket: &mut Socket) -> Result<Vec<Route>, NetlinkError> {
    let mut writer = Writer::default();
    writer.raw(&[0; 12]);
    let request = Request::new("list routes", libc::RTM_GETROUTE, flag(libc::NLM_F_DUMP), writer);
    dump(socket, &request, libc::RTM_NEWROUTE, decode_route)
}

fn dump<T>(
    socket: &mut Socket,
    request: &Request,
    kind: u16,
    decode: fn(&Reply<'_>) -> Option<T>,
) -> Result<Vec<T>, NetlinkError> {
    socket.list(request, |reply| if reply.kind == kind { decode(reply) } else { None })
}

fn decode_link(reply: &Reply<'_>) -> Option<Link> {
    let header = reply.body.get(..16)?;
    let flags = u32::from_ne_bytes(header[8..12].try_into().ok()?);
    let mut link = Link {
        index: u32::from_ne_bytes(header[4..8].try_into().ok()?),
        is_loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
        ..Link::default()
    };
    for attribute in Attributes::new(&reply.body[16..]) {
        match attribute.kind {
            libc::IFLA_IFNAME => attribute.text()?.clone_into(&mut link.name),
            libc::IFLA_MTU => link.mtu = attribute.u32()?,
            libc::IFLA_LINKINFO => {
                let kind = Attributes::new(attribute.value).first(libc::IFLA_INFO_KIND);
                link.kind = kind.and_then(|kind| kind.text()).map(str::to_owned);
            }
            _ => {}
        }
    }
    Some(link)
}

fn decode_address(reply: &Reply<'_>) -> Option<LinkAddress> {
    let header = reply.body.get(..8)?;
    let attributes = Attributes::new(&reply.body[8..]);
    // On a point-to-point link IFA_ADDRESS is the other end; IFA_LOCAL, where there is one, is always ours.
    let ours = attributes.clone().first(libc::IFA_LOCAL).or_else(|| attributes.first(libc::IFA_ADDRESS))?;
    Some(LinkAddress {
        interface: u32::from_ne_bytes(header[4..8].try_into().ok()?),
        address: address(ours.value)?,
        prefix_len: header[1],
    })
}

fn decode_route(reply: &Reply<'_>) -> Option<Route> {
    let header = reply.body.get(..12)?;
    let (family, prefix_len, table, protocol, kind) = (header[0], header[1], header[4], header[5], header[7]);
    if table != libc::RT_TABLE_MAIN || kind != libc::RTN_UNICAST {
        return None;
    }
    let attributes = Attributes::new(&reply.body[12..]);
    let destination = match attributes.clone().first(libc::RTA_DST) {
        Some(attribute) => address(attribute.value)?,
        None if i32::from(family) == libc::AF_INET => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        None => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    };
    let has_gateway = attributes.clone().first(libc::RTA_GATEWAY).is_some();
    let interface = attributes.first(libc::RTA_OIF).and_then(|attribute| attribute.u32());
    Some(Route { destination, prefix_len, interface, has_gateway, protocol })
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(IpAddr::from(octets));
    }
    <[u8; 16]>::try_from(octets).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::netlink::{Protocol, in_netns, new_netns};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn index(socket: &mut Socket, name: &str) -> u32 {
        link(socket, name).unwrap().unwrap().index
    }

    #[test]
    fn a_veth_into_another_namespace_comes_and_goes() {
        let (host, pod) = (new_netns().unwrap(), new_netns().unwrap());
        in_netns(host.as_fd(), || {
            let mut socket = Socket::open(Protocol::Route).unwrap();
            let veth = Veth { name: "v0", mtu: 1400, peer_name: "eth0", peer_netns: pod.as_fd() };
            let switches = [(Ipv4Conf::Forwarding, 1), (Ipv4Conf::RouteLocalnet, 1), (Ipv4Conf::ReversePathFilter, 1)];
            socket.execute(&[add_veth(&veth), set_ipv4_conf("v0", &switches)]).unwrap();
            let near = link(&mut socket, "v0").unwrap().unwrap();
            assert_eq!((near.kind.as_deref(), near.mtu), (Some("veth"), 1400));
            for switch in ["forwarding", "route_localnet", "rp_filter"] {
                let path = format!("/proc/sys/net/ipv4/conf/v0/{switch}");
                assert_eq!(fs_err::read_to_string(path).unwrap().trim(), "1", "{switch}");
            }
            let error = socket.execute(&[add_veth(&veth)]).unwrap_err();
            assert_eq!(error.errno(), Some(libc::EEXIST), "{error}");
            assert!(error.to_string().starts_with("create veth v0"), "{error}");
            socket.execute(&[delete_link("v0"), delete_link("v0")]).unwrap();
            assert_eq!(link(&mut socket, "v0").unwrap(), None);
        })
        .unwrap();
        let left = in_netns(pod.as_fd(), || {
            let mut socket = Socket::open(Protocol::Route).unwrap();
            link(&mut socket, "eth0").unwrap()
        });
        assert_eq!(left.unwrap(), None, "deleting one end takes the other along");
    }

    #[test]
    fn hundreds_of_interfaces_are_changed_and_listed() {
        const COUNT: u8 = 200;
        let netns = new_netns().unwrap();
        in_netns(netns.as_fd(), || {
            let mut socket = Socket::open(Protocol::Route).unwrap();
            let names: Vec<String> = (0..COUNT).map(|number| format!("b{number}")).collect();
            let all = |make: &dyn Fn(&str) -> Request| names.iter().map(|name| make(name)).collect::<Vec<_>>();
            socket.execute(&all(&|name| add_bridge(name, 1400))).unwrap();
            socket.execute(&all(&|name| set_ipv4_conf(name, &[(Ipv4Conf::Forwarding, 1)]))).unwrap();
            assert_eq!(links(&mut socket).unwrap().len(), usize::from(COUNT) + 1, "with loopback");
            let gone = socket.execute(&[add_bridge("b0", 1400), set_ipv4_conf("none", &[(Ipv4Conf::Forwarding, 1)])]);
            assert_eq!(gone.unwrap_err().errno(), Some(libc::ENODEV));
            socket.execute(&[allow_missing(set_ipv4_conf("none", &[(Ipv4Conf::Forwarding, 1)]))]).unwrap();
        })
        .unwrap();
    }

    #[test]
    fn addresses_and_routes_are_listed_as_they_were_added() {
        let netns = new_netns().unwrap();
        in_netns(netns.as_fd(), || {
            let mut socket = Socket::open(Protocol::Route).unwrap();
            socket.execute(&[add_bridge("b0", 1400), add_bridge("b0", 1400)]).unwrap();
            let interface = index(&mut socket, "b0");
            let gateway = NextHop::Gateway { interface, address: ip("10.2.0.1") };
            let route = |text, prefix_len, hop, source| NewRoute { destination: ip(text), prefix_len, hop, source };
            let added = [
                route("0.0.0.0", 0, gateway, None),
                route("10.9.0.7", 32, NextHop::Link { interface }, Some(ip("10.2.0.2"))),
                route("10.3.0.0", 16, NextHop::Unreachable, None),
                route("fd00:7::", 64, NextHop::Link { interface }, None),
            ];
            let mut requests = vec![
                add_address(interface, ip("10.2.0.2"), 24),
                add_address(interface, ip("10.2.0.2"), 24),
                add_address(interface, ip("fd00:1::1"), 64),
            ];
            requests.extend(added.iter().chain(&added).map(replace_route));
            socket.execute(&requests).unwrap();
            let ours = LinkAddress { interface, address: ip("10.2.0.2"), prefix_len: 24 };
            assert!(addresses(&mut socket).unwrap().contains(&ours));
            let listed = routes(&mut socket).unwrap();
            for (text, prefix_len, there) in
                [("0.0.0.0", 0, true), ("10.9.0.7", 32, true), ("fd00:7::", 64, true), ("10.3.0.0", 16, false)]
            {
                let has_gateway = prefix_len == 0;
                let (destination, interface, protocol) = (ip(text), Some(interface), libc::RTPROT_STATIC);
                let route = Route { destination, prefix_len, interface, has_gateway, protocol };
                assert_eq!(listed.contains(&route), there, "{text}/{prefix_len}");
            }
            let of_protocol = NewRoute { destination: ip("10.8.0.0"), ..added[0] };
            let of_protocol = NewRoute { prefix_len: 16, ..of_protocol };
            socket.execute(&[replace_route_as(&of_protocol, 202)]).unwrap();
            let has_it = |socket: &mut Socket| routes(socket).unwrap().iter().any(|route| route.protocol == 202);
            socket.execute(&[delete_route_of(ip("10.8.0.0"), 16, 203)]).unwrap();
            assert!(has_it(&mut socket), "a route of another protocol stays");
            socket.execute(&[delete_route_of(ip("10.8.0.0"), 16, 202)]).unwrap();
            assert!(!has_it(&mut socket));
            let mut requests: Vec<_> = added.iter().chain(&added).map(delete_route).collect();
            requests.push(delete_address(interface, ip("10.2.0.2"), 24));
            requests.push(delete_address(interface, ip("10.2.0.2"), 24));
            socket.execute(&requests).unwrap();
            assert!(!addresses(&mut socket).unwrap().contains(&ours));
        })
        .unwrap();
    }
}
