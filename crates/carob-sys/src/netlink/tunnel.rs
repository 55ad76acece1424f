//! VXLAN devices and what they know of their peers (ip-link(8), bridge(8), ip-neighbour(8)).

use std::net::IpAddr;

use super::encode::{Request, Writer, flag};
use super::route::{family, link_header, octets};

/// Attributes of `IFLA_INFO_DATA` for VXLAN (linux/if_link.h).
const VXLAN_ID: u16 = 1;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
const VXLAN_LOCAL6: u16 = 17;
/// `struct ndmsg` and its attributes (linux/neighbour.h).
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
/// The entry is the device's own table's.
const NTF_SELF: u8 = 0x02;

/// A link-layer address.
pub type Mac = [u8; 6];

/// A VXLAN device whose peers are named one by one: it learns none from what it receives.
#[derive(Debug, Clone, Copy)]
pub struct Vxlan<'a> {
    pub name: &'a str,
    /// The network's number, 24 bits.
    pub id: u32,
    pub port: u16,
    /// The address that its packets come from.
    pub local: IpAddr,
    pub mac: Mac,
    pub mtu: u32,
}

/// Makes the device and brings it up. One that is there is fine.
pub fn add_vxlan(vxlan: &Vxlan<'_>) -> Request {
    let up = libc::IFF_UP as u32;
    let mut writer = link_header(0, up, up);
    writer.string(libc::IFLA_IFNAME, vxlan.name).u32(libc::IFLA_MTU, vxlan.mtu).bytes(libc::IFLA_ADDRESS, &vxlan.mac);
    writer.nest(libc::IFLA_LINKINFO, |info| {
        info.string(libc::IFLA_INFO_KIND, "vxlan").nest(libc::IFLA_INFO_DATA, |data| {
            let local = if vxlan.local.is_ipv4() { VXLAN_LOCAL } else { VXLAN_LOCAL6 };
            data.u32(VXLAN_ID, vxlan.id)
                .bytes(local, &octets(vxlan.local))
                .bytes(VXLAN_LEARNING, &[0])
                .bytes(VXLAN_PORT, &vxlan.port.to_be_bytes());
        });
    });
    let create = flag(libc::NLM_F_CREATE) | flag(libc::NLM_F_EXCL);
    Request::new(format!("create VXLAN device {}", vxlan.name), libc::RTM_NEWLINK, create, writer)
        .tolerate(&[libc::EEXIST])
}

/// Says once and for all which link-layer address an address behind the interface has.
pub fn replace_neighbor(interface: u32, address: IpAddr, mac: Mac) -> Request {
    let what = format!("name the neighbour {address} of interface {interface}");
    neighbor(what, family(address), interface, 0, address, mac)
}

/// Says at which machine a VXLAN device's peer of this link-layer address is.
pub fn replace_peer(interface: u32, mac: Mac, machine: IpAddr) -> Request {
    let bridge = u8::try_from(libc::AF_BRIDGE).expect("AF_BRIDGE is 7");
    neighbor(format!("name the peer {machine} of interface {interface}"), bridge, interface, NTF_SELF, machine, mac)
}

fn neighbor(what: String, family: u8, interface: u32, flags: u8, destination: IpAddr, mac: Mac) -> Request {
    let mut header = vec![family, 0, 0, 0];
    header.extend_from_slice(&interface.to_ne_bytes());
    header.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
    header.extend_from_slice(&[flags, 0]);
    let mut writer = Writer::default();
    writer.raw(&header).bytes(NDA_DST, &octets(destination)).bytes(NDA_LLADDR, &mac);
    let replace = flag(libc::NLM_F_CREATE) | flag(libc::NLM_F_REPLACE);
    Request::new(what, libc::RTM_NEWNEIGH, replace, writer)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::netlink::route::{add_address, add_bridge, link};
    use crate::netlink::{Protocol, Socket, in_netns, new_netns};

    #[test]
    fn a_vxlan_device_is_made_once_and_takes_peers() {
        let netns = new_netns().unwrap();
        in_netns(netns.as_fd(), || {
            let mut socket = Socket::open(Protocol::Route).unwrap();
            socket.execute(&[add_bridge("up0", 1400)]).unwrap();
            let interface = link(&mut socket, "up0").unwrap().unwrap().index;
            let local: IpAddr = "192.0.2.1".parse().unwrap();
            socket.execute(&[add_address(interface, local, 24)]).unwrap();
            let vxlan = Vxlan { name: "vx0", id: 7, port: 4789, local, mac: [2, 0, 0, 0, 0, 1], mtu: 1350 };
            socket.execute(&[add_vxlan(&vxlan), add_vxlan(&vxlan)]).unwrap();
            let made = link(&mut socket, "vx0").unwrap().unwrap();
            assert_eq!((made.kind.as_deref(), made.mtu), (Some("vxlan"), 1350));
            let peer = [2, 0, 0, 0, 0, 2];
            let requests = [
                replace_neighbor(made.index, "10.244.1.0".parse().unwrap(), peer),
                replace_peer(made.index, peer, "198.51.100.9".parse().unwrap()),
            ];
            socket.execute(&requests).unwrap();
            socket.execute(&requests).unwrap();
        })
        .unwrap();
    }
}
