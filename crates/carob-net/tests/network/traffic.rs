//! Pods that talk: to each other, to their machine, to the world and from it, over a real kernel in throw-away network
//! namespaces.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use carob_net::{HostPort, Protocol};
use carob_sys::netlink::{Protocol as Netlink, Socket, in_netns, route};

use crate::lab::{Lab, MACHINE, PATIENCE, WORLD, ip, is_unreachable, port, tcp, udp};

const V4: &[&str] = &["10.244.3.0/24"];
const DUAL: &[&str] = &["10.244.3.0/24", "fd00:3::/64"];

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

#[test]
fn pods_and_their_machine_reach_each_other_with_their_own_addresses() {
    let lab = Lab::new();
    let network = lab.open(V4);
    assert_eq!(lab.attach(&network, "a", &[]), [ip("10.244.3.2")]);
    assert_eq!(lab.attach(&network, "b", &[]), [ip("10.244.3.3")]);
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    assert_eq!(tcp(&a, at("0.0.0.0", 80), &b, at("10.244.3.2", 80)).unwrap(), ip("10.244.3.3"));
    assert_eq!(udp(&b, at("0.0.0.0", 53), &a, at("10.244.3.3", 53)).unwrap(), ip("10.244.3.2"));
    assert_eq!(tcp(&a, at("127.0.0.1", 80), &a, at("127.0.0.1", 80)).unwrap(), ip("127.0.0.1"));
    assert_eq!(tcp(&a, at("0.0.0.0", 80), &lab.machine, at("10.244.3.2", 80)).unwrap(), ip("10.244.3.1"));
    assert_eq!(tcp(&lab.machine, at("0.0.0.0", 80), &a, at("10.244.3.1", 80)).unwrap(), ip("10.244.3.2"));
    assert_eq!(tcp(&lab.machine, at("0.0.0.0", 80), &a, at(MACHINE[0], 80)).unwrap(), ip("10.244.3.2"));
}

#[test]
fn pods_reach_the_world_under_their_machines_address() {
    let lab = Lab::new();
    let network = lab.open(DUAL);
    lab.attach(&network, "a", &[]);
    let a = lab.pod("a");
    for (index, any) in ["0.0.0.0", "::"].into_iter().enumerate() {
        let seen = tcp(&lab.world, at(any, 80), &a, at(WORLD[index], 80)).unwrap();
        assert_eq!(seen, ip(MACHINE[index]));
        assert_eq!(udp(&lab.world, at(any, 53), &a, at(WORLD[index], 53)).unwrap(), ip(MACHINE[index]));
    }
}

#[test]
fn a_host_port_leads_to_its_pod_from_everywhere() {
    let lab = Lab::new();
    let network = lab.open(V4);
    let ports = [port(8080, 80, Protocol::Tcp), port(5300, 53, Protocol::Udp)];
    lab.attach(&network, "web", &ports);
    lab.attach(&network, "other", &[]);
    let (web, other) = (lab.pod("web"), lab.pod("other"));
    let listen = at("0.0.0.0", 80);
    let (inside, outside) = (ip("10.244.3.1"), ip(WORLD[0]));
    assert_eq!(tcp(&web, listen, &lab.world, at(MACHINE[0], 8080)).unwrap(), outside);
    assert_eq!(udp(&web, at("0.0.0.0", 53), &lab.world, at(MACHINE[0], 5300)).unwrap(), outside);
    assert_eq!(tcp(&web, listen, &lab.machine, at(MACHINE[0], 8080)).unwrap(), ip(MACHINE[0]));
    assert_eq!(tcp(&web, listen, &lab.machine, at("127.0.0.1", 8080)).unwrap(), inside);
    assert_eq!(udp(&web, at("0.0.0.0", 53), &lab.machine, at("127.0.0.1", 5300)).unwrap(), inside);
    assert_eq!(tcp(&web, listen, &other, at(MACHINE[0], 8080)).unwrap(), ip("10.244.3.3"));
    assert_eq!(tcp(&web, listen, &web, at(MACHINE[0], 8080)).unwrap(), inside, "a Pod reaches itself");
    assert_eq!(tcp(&lab.world, at("0.0.0.0", 8080), &other, at(WORLD[0], 8080)).unwrap(), ip(MACHINE[0]));
    lab.on_machine(network.detach("web")).unwrap();
    assert!(is_unreachable(&lab.world, at(MACHINE[0], 8080)));
}

#[test]
fn a_host_port_on_one_address_listens_there_only() {
    let lab = Lab::new();
    let network = lab.open(V4);
    let only = HostPort { host_ip: Some(ip("127.0.0.1")), ..port(8080, 80, Protocol::Tcp) };
    lab.attach(&network, "web", &[only]);
    let web = lab.pod("web");
    tcp(&web, at("0.0.0.0", 80), &lab.machine, at("127.0.0.1", 8080)).unwrap();
    assert!(is_unreachable(&lab.world, at(MACHINE[0], 8080)));
    assert!(is_unreachable(&lab.machine, at(MACHINE[0], 8080)));
}

#[test]
fn both_families_work_side_by_side() {
    let lab = Lab::new();
    let network = lab.open(DUAL);
    assert_eq!(lab.attach(&network, "a", &[port(8080, 80, Protocol::Tcp)]), [ip("10.244.3.2"), ip("fd00:3::2")]);
    lab.attach(&network, "b", &[]);
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let listen = at("::", 80);
    assert_eq!(tcp(&a, listen, &b, at("fd00:3::2", 80)).unwrap(), ip("fd00:3::3"));
    assert_eq!(tcp(&a, listen, &lab.machine, at("fd00:3::2", 80)).unwrap(), ip("fd00:3::1"));
    assert_eq!(tcp(&a, listen, &lab.world, at(MACHINE[1], 8080)).unwrap(), ip(WORLD[1]));
    assert_eq!(tcp(&a, listen, &a, at(MACHINE[1], 8080)).unwrap(), ip("fd00:3::1"));
    assert_eq!(tcp(&a, at("0.0.0.0", 80), &lab.world, at(MACHINE[0], 8080)).unwrap(), ip(WORLD[0]));
    assert!(is_unreachable(&lab.machine, at("::1", 8080)));
}

#[test]
fn an_address_without_a_pod_is_unreachable_at_once() {
    let lab = Lab::new();
    let network = lab.open(V4);
    lab.attach(&network, "a", &[]);
    let a = lab.pod("a");
    let error = tcp(&lab.machine, at("0.0.0.0", 81), &lab.machine, at("10.244.3.77", 80)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
    let error = tcp(&lab.machine, at("0.0.0.0", 81), &a, at("10.244.3.77", 80)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
}

/// Sends datagrams from a Pod, the first one under an address that is not the Pod's, and answers whom the other Pod heard.
fn heard_from(lab: &Lab, forged: &str, own: &str, target: SocketAddr) -> SocketAddr {
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let bind = |netns: &OwnedFd, address: &str, port: u16| {
        in_netns(netns.as_fd(), || UdpSocket::bind(at(address, port))).unwrap().unwrap()
    };
    let prefix_len = if target.is_ipv4() { 32 } else { 128 };
    in_netns(a.as_fd(), || {
        let mut socket = Socket::open(Netlink::Route).unwrap();
        let interface = route::link(&mut socket, "eth0").unwrap().unwrap().index;
        socket.execute(&[route::add_address(interface, ip(forged), prefix_len)]).unwrap();
    })
    .unwrap();
    let server = bind(&b, if target.is_ipv4() { "0.0.0.0" } else { "::" }, target.port());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    bind(&a, forged, 0).send_to(b"forged", target).unwrap();
    bind(&a, own, 0).send_to(b"honest", target).unwrap();
    let mut bytes = [0; 6];
    let (_, peer) = server.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes, b"honest", "the forged packet came first and was dropped");
    peer
}

#[test]
fn a_pod_cannot_speak_for_another() {
    let lab = Lab::new();
    // The machine's switch for all interfaces is the loose one, as some distributions set it.
    in_netns(lab.machine.as_fd(), || fs_err::write("/proc/sys/net/ipv4/conf/all/rp_filter", "2")).unwrap().unwrap();
    let network = lab.open(DUAL);
    lab.attach(&network, "a", &[]);
    lab.attach(&network, "b", &[]);
    assert_eq!(heard_from(&lab, "10.244.3.9", "10.244.3.2", at("10.244.3.3", 53)).ip(), ip("10.244.3.2"));
    // An address of the world, to which a route leads elsewhere.
    assert_eq!(heard_from(&lab, WORLD[0], "10.244.3.2", at("10.244.3.3", 54)).ip(), ip("10.244.3.2"));
    assert_eq!(heard_from(&lab, "fd00:3::9", "fd00:3::2", at("fd00:3::3", 53)).ip(), ip("fd00:3::2"));
}
