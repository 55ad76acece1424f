//! What is left behind, after a detach, a crash, a restart and other people's doings: nothing that should not be.
//!

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;

use crate::lab::{Lab, MACHINE, WORLD, ip, is_unreachable, port, tcp};
use carob_net::{AttachRequest, NetError, PodNetwork, Protocol, first_free_cidr};
use carob_sys::netlink::{Protocol as Netlink, Socket, in_netns, route};
use carob_sys::nft::{Command, Transaction};

const V4: &[&str] = &["10.244.3.0/24"];
const DUAL: &[&str] = &["10.244.3.0/24", "fd00:3::/64"];

#[test]
fn nothing_is_left_when_the_last_sandbox_and_the_network_are_gone() {
    let lab = Lab::new();
    let before = lab.traces();
    let network = lab.open(DUAL);
    let with_network = lab.traces();
    for id in ["a", "b"] {
        let host_port = if id == "a" { 8080 } else { 8081 };
        lab.attach(&network, id, &[port(host_port, 80, Protocol::Tcp)]);
    }
    assert_ne!(lab.traces(), with_network);
    for id in ["a", "b", "a", "never-there"] {
        lab.on_machine(network.detach(id)).unwrap();
    }
    assert!(is_unreachable(&lab.machine, "10.244.3.2:80".parse().unwrap()));
    // The interfaces would go with their namespaces, which this test still holds.
    assert_eq!(lab.on_machine(network.sweep(&BTreeSet::new())).unwrap().interfaces.len(), 2);
    assert_eq!(lab.traces(), with_network);
    lab.on_machine(network.remove()).unwrap();
    assert_eq!(lab.traces().replace("\"/", "/"), before.replace("\"/", "/"));
}

#[test]
fn a_restart_changes_nothing_for_those_attached() {
    let lab = Lab::new();
    let ips = lab.attach(&lab.open(V4), "a", &[port(8080, 80, Protocol::Tcp)]);
    let again = lab.open(V4);
    assert_eq!(again.attachment("a").unwrap().ips, ips);
    let machine: SocketAddr = SocketAddr::new(ip(MACHINE[0]), 8080);
    let a = lab.pod("a");
    assert_eq!(tcp(&a, "0.0.0.0:80".parse().unwrap(), &lab.world, machine).unwrap(), ip(WORLD[0]));
    let request =
        AttachRequest { netns: PathBuf::from("/nowhere"), ..lab.sandbox("a", &[port(8080, 80, Protocol::Tcp)]) };
    assert_eq!(lab.on_machine(again.attach(&request)).unwrap().ips, ips, "attached already");
    assert_ne!(lab.attach(&again, "b", &[]), ips);
}

#[test]
fn a_sweep_finds_what_a_crash_and_others_left() {
    let lab = Lab::new();
    let clean = {
        let network = lab.open(V4);
        lab.attach(&network, "live", &[port(8080, 80, Protocol::Tcp)]);
        lab.traces()
    };
    lab.attach(&lab.open(V4), "dead", &[port(8081, 80, Protocol::Tcp)]);
    // A veth whose record is gone, as nothing but a lost state directory leaves it.
    let orphan = lab.open(V4);
    lab.attach(&orphan, "orphan", &[]);
    fs_err::remove_file(lab.state.path().join("net/orphan.json")).unwrap();
    let network = lab.open(V4);
    let table = in_netns(lab.machine.as_fd(), || {
        let mut socket = Socket::open(Netlink::Route).unwrap();
        let links = route::links(&mut socket).unwrap();
        links.into_iter().map(|link| link.name).find(|name| name.starts_with("carob")).unwrap()
    })
    .unwrap();
    in_netns(lab.machine.as_fd(), || Transaction::new(&table).push(Command::DeleteTable).commit().unwrap()).unwrap();
    let live = BTreeSet::from(["live".to_owned()]);
    let report = lab.on_machine(network.sweep(&live)).unwrap();
    assert_eq!((report.sandboxes, report.interfaces.len(), report.rules_restored), (vec!["dead".to_owned()], 2, true));
    assert_eq!(lab.traces(), clean);
    let machine: SocketAddr = SocketAddr::new(ip(MACHINE[0]), 8080);
    tcp(&lab.pod("live"), "0.0.0.0:80".parse().unwrap(), &lab.world, machine).unwrap();
    let nothing = lab.on_machine(network.sweep(&live)).unwrap();
    assert_eq!((nothing.sandboxes.len(), nothing.interfaces.len(), nothing.rules_restored), (0, 0, false));
}

#[test]
fn rules_flushed_by_someone_else_come_back_with_the_next_host_port() {
    let lab = Lab::new();
    let network = lab.open(V4);
    lab.attach(&network, "a", &[port(8080, 80, Protocol::Tcp)]);
    let table = lab.traces().split('"').find(|name| name.starts_with("carob")).unwrap().to_owned();
    in_netns(lab.machine.as_fd(), || Transaction::new(&table).push(Command::DeleteTable).commit().unwrap()).unwrap();
    lab.attach(&network, "b", &[port(8081, 80, Protocol::Tcp)]);
    for (id, host_port) in [("a", 8080), ("b", 8081)] {
        let target = SocketAddr::new(ip(MACHINE[0]), host_port);
        tcp(&lab.pod(id), "0.0.0.0:80".parse().unwrap(), &lab.world, target).unwrap();
    }
}

#[test]
fn a_failed_attach_leaves_nothing_and_says_why() {
    let lab = Lab::new();
    let network = lab.open(V4);
    lab.attach(&network, "web", &[port(8080, 80, Protocol::Tcp)]);
    let before = lab.traces();
    let long = "x".repeat(129);
    let good = lab.sandbox("x", &[]);
    let not_a_namespace = lab.state.path().join("file");
    fs_err::write(&not_a_namespace, "").unwrap();
    for (request, part) in [
        (AttachRequest { netns: PathBuf::from("/nowhere"), ..good.clone() }, "enter network namespace /nowhere"),
        (AttachRequest { netns: not_a_namespace, ..good.clone() }, "connect sandbox x"),
        (AttachRequest { sandbox_id: "../x".to_owned(), ..good.clone() }, "keep the network's records"),
        (AttachRequest { sandbox_id: long, ..good.clone() }, "keep the network's records"),
        (
            AttachRequest { host_ports: vec![port(8080, 1, Protocol::Tcp)], ..good.clone() },
            "host port 8080/TCP is taken by sandbox web",
        ),
        (
            AttachRequest { host_ports: vec![port(9, 1, Protocol::Tcp), port(9, 2, Protocol::Tcp)], ..good.clone() },
            "host port 9/TCP is asked for twice",
        ),
    ] {
        let error = lab.on_machine(network.attach(&request)).unwrap_err();
        assert!(error.to_string().starts_with(part), "{}", carob_kit::chain(&error));
        assert_eq!(lab.traces(), before, "{part}");
    }
    lab.on_machine(network.attach(&good)).unwrap();
}

#[test]
fn a_cidr_that_the_machine_uses_is_refused() {
    let lab = Lab::new();
    for cidr in ["192.0.2.0/25", "192.0.0.0/8"] {
        let config = lab.config(&[cidr]);
        let error = lab.on_machine(PodNetwork::open(config)).unwrap_err();
        assert!(matches!(error, NetError::CidrTaken { .. }), "{error}");
        assert!(error.to_string().contains("192.0.2.1/24 of up0"), "{error}");
    }
    let candidates = ["192.0.2.0/24", "10.244.0.0/16"].map(|cidr| cidr.parse().unwrap()).to_vec();
    let free = lab.on_machine(first_free_cidr("lab", candidates)).unwrap();
    assert_eq!(free, Some("10.244.0.0/16".parse().unwrap()));
}

#[test]
fn the_cidr_may_come_late_and_change() {
    let lab = Lab::new();
    let network = lab.open(&[]);
    let request = lab.sandbox("a", &[]);
    let error = lab.on_machine(network.attach(&request)).unwrap_err();
    assert!(matches!(error, NetError::NoPodCidr), "{error}");
    assert_eq!(network.unready(), Some(NetError::NoPodCidr.to_string()));
    let refused = lab.on_machine(network.set_pod_cidrs(vec!["192.0.2.0/25".parse().unwrap()])).unwrap_err();
    assert!(matches!(refused, NetError::CidrTaken { .. }), "{refused}");
    assert_eq!(network.unready(), Some(refused.to_string()));
    let set = |cidr: &str| lab.on_machine(network.set_pod_cidrs(vec![cidr.parse().unwrap()])).unwrap();
    set("10.244.7.0/24");
    assert_eq!(network.unready(), None);
    assert_eq!(lab.on_machine(network.attach(&request)).unwrap().ips, [ip("10.244.7.2")]);
    set("10.244.8.0/24");
    assert_eq!(lab.attach(&network, "b", &[]), [ip("10.244.8.2")]);
    let target = "10.244.7.2:80".parse().unwrap();
    let seen = tcp(&lab.pod("a"), "0.0.0.0:80".parse().unwrap(), &lab.pod("b"), target).unwrap();
    assert_eq!(seen, ip("10.244.8.2"), "the older Pod keeps its address and is reached");
}

#[test]
fn thirty_sandboxes_at_once_get_thirty_addresses() {
    let lab = Lab::new();
    let network = lab.open(V4);
    let requests: Vec<AttachRequest> =
        (0..30u16).map(|n| lab.sandbox(&format!("pod-{n}"), &[port(9000 + n, 80, Protocol::Tcp)])).collect();
    let answers = lab.on_machine(async {
        let tasks: Vec<_> = requests
            .into_iter()
            .map(|request| {
                let network = network.clone();
                tokio::spawn(async move { network.attach(&request).await.unwrap().ips[0] })
            })
            .collect();
        let mut ips = BTreeSet::new();
        for task in tasks {
            ips.insert(task.await.unwrap());
        }
        ips
    });
    assert_eq!(answers.len(), 30);
    for n in [0u16, 13, 29] {
        let target = SocketAddr::new(ip(MACHINE[0]), 9000 + n);
        let pod = lab.pod(&format!("pod-{n}"));
        tcp(&pod, "0.0.0.0:80".parse().unwrap(), &lab.world, target).unwrap();
    }
}

#[test]
fn two_networks_share_a_machine() {
    let lab = Lab::new();
    let one = lab.open(V4);
    let mut config = lab.config(&["10.245.0.0/24"]);
    config.instance = "other".to_owned();
    config.state_dir = lab.state.path().join("other");
    let two = lab.on_machine(PodNetwork::open(config.clone())).unwrap();
    lab.attach(&one, "a", &[]);
    lab.attach(&two, "b", &[]);
    let target = "10.245.0.2:80".parse().unwrap();
    tcp(&lab.pod("b"), "0.0.0.0:80".parse().unwrap(), &lab.pod("a"), target).unwrap();
    config.pod_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    let error = lab.on_machine(PodNetwork::open(config)).unwrap_err();
    assert!(error.to_string().contains("overlaps address 10.244.3.1/32 of carob"), "{error}");
    lab.on_machine(two.remove()).unwrap();
    assert!(one.attachment("a").is_some());
}

#[test]
fn an_uplink_that_comes_later_is_used_after_a_sweep() {
    let lab = Lab::new();
    let network = lab.open(V4);
    lab.attach(&network, "web", &[port(8080, 80, Protocol::Tcp)]);
    let forwarding = |value: &str| {
        let path = "/proc/sys/net/ipv4/conf/up0/forwarding";
        in_netns(lab.machine.as_fd(), || {
            if !value.is_empty() {
                fs_err::write(path, value).unwrap();
            }
            fs_err::read_to_string(path).unwrap().trim().to_owned()
        })
        .unwrap()
    };
    assert_eq!(forwarding("0"), "0");
    let live = BTreeSet::from(["web".to_owned()]);
    lab.on_machine(network.sweep(&live)).unwrap();
    assert_eq!(forwarding(""), "1");
}
