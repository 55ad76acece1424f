//! Services over a real kernel: a machine, its Pods and the world behind it as network namespaces, with the rules of the
//! Pod network beside those of Services.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use carob_client::ObjectKey;
use carob_net::PodNetwork;
use carob_sys::netlink::in_netns;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::flows::FlowChecks;
use crate::lab::{Lab, MACHINE, PATIENCE, WORLD, ip, tcp, udp};
use crate::state::{State, Step};
use crate::table::TableConfig;
use crate::testing::{self, config, service, slice};

/// A machine with the Pods `a`, `b` and `c`, and Services.
struct World {
    lab: Lab,
    _network: PodNetwork,
    pods: BTreeMap<&'static str, (OwnedFd, Vec<IpAddr>)>,
    state: State,
    config: TableConfig,
}

impl World {
    fn new(cidrs: &[&str]) -> Self {
        let lab = Lab::new();
        let network = lab.open(cidrs);
        let pods = ["a", "b", "c"].map(|name| {
            let ips = lab.attach(&network, name, &[]);
            (name, (lab.pod(name), ips))
        });
        let mut config = config();
        config.pod_interfaces = None;
        let mut world = Self { lab, _network: network, pods: pods.into(), state: State::default(), config };
        world.replace();
        world
    }

    fn pod(&self, name: &str) -> &OwnedFd {
        &self.pods[name].0
    }

    fn ip(&self, name: &str) -> IpAddr {
        self.pods[name].1[0]
    }

    fn on_machine<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_netns(self.lab.machine.as_fd(), work).unwrap()
    }

    fn replace(&mut self) {
        let change = self.state.replace(&self.config);
        self.on_machine(|| change.commit()).unwrap();
    }

    /// Takes the Service into the table that is there, as the proxy does.
    fn update(&mut self, service: &Service, slices: &[Arc<EndpointSlice>]) {
        let mut step = testing::update(&mut self.state, service, slices);
        self.write(&mut step);
    }

    fn delete(&mut self, service: &Service) {
        let mut step = Step::default();
        self.state.update(&ObjectKey::of(service), Vec::new(), &mut step);
        self.write(&mut step);
    }

    fn write(&mut self, step: &mut Step) {
        let change = self.state.change(&self.config, step);
        let checks = FlowChecks::new(std::mem::take(&mut step.flows));
        let clean = self.state.clean(&self.config);
        self.on_machine(|| {
            change.commit().unwrap();
            checks.forget_stale().unwrap();
            clean.commit().unwrap();
        });
        self.state.cleaned();
    }

    /// A slice of Pods on this machine, all ready.
    fn slice(&self, port: &str, pods: &[&str]) -> Arc<EndpointSlice> {
        let lines: Vec<String> = pods.iter().map(|pod| format!("{} n1 rs", self.ip(pod))).collect();
        slice(port, &lines.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// How many of the connections from one namespace were taken by each Pod.
    fn landings(&self, client: &OwnedFd, target: SocketAddr, count: usize) -> BTreeMap<&'static str, usize> {
        let listeners: Vec<(&str, TcpListener)> = ["a", "b"].map(|pod| (pod, self.listen(pod))).into();
        let mut landed = BTreeMap::new();
        for _ in 0..count {
            let stream = in_netns(client.as_fd(), || TcpStream::connect_timeout(&target, PATIENCE)).unwrap().unwrap();
            let from = stream.local_addr().unwrap();
            for (pod, listener) in &listeners {
                if let Ok((_, peer)) = listener.accept() {
                    assert_eq!(peer.port() != 0, from.port() != 0);
                    *landed.entry(*pod).or_default() += 1;
                }
            }
        }
        landed
    }

    fn listen(&self, pod: &str) -> TcpListener {
        let listener = in_netns(self.pod(pod).as_fd(), || TcpListener::bind("0.0.0.0:8080")).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }
}

const V4: &[&str] = &["10.244.3.0/24"];
const TCP: &str = "[{port: 8080, protocol: TCP}]";
const UDP: &str = "[{port: 8080, protocol: UDP}]";

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

fn any() -> SocketAddr {
    at("0.0.0.0", 8080)
}

fn connect(client: &OwnedFd, target: SocketAddr) -> io::Result<()> {
    in_netns(client.as_fd(), || TcpStream::connect_timeout(&target, Duration::from_millis(500)))?.map(drop)
}

#[track_caller]
fn is_refused(client: &OwnedFd, target: SocketAddr) {
    let error = connect(client, target).expect_err("no endpoint takes it");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{target}");
}

#[track_caller]
fn is_dropped(client: &OwnedFd, target: SocketAddr) {
    let error = connect(client, target).expect_err("it is dropped");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{target}");
}

#[test]
fn an_added_range_is_the_services_until_it_goes() {
    let mut world = World::new(V4);
    let change = |world: &mut World, ranges: &[&str]| {
        let after: Vec<ipnet::IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let before = std::mem::replace(&mut world.config.service_cidrs, after);
        let mut change = carob_sys::nft::Transaction::new(&world.config.table);
        crate::table::change_service_cidrs(&mut change, &before, &world.config.service_cidrs);
        world.on_machine(|| change.commit()).unwrap();
    };
    let web = service("clusterIPs: [203.0.113.7], clusterIP: 203.0.113.7, ports: [{port: 80, protocol: TCP}]");
    let slice = world.slice(TCP, &["a"]);
    world.update(&web, &[slice]);
    change(&mut world, &["10.96.0.0/16", "203.0.113.0/24"]);
    let b = world.pod("b").try_clone().unwrap();
    for client in [&world.lab.machine, &b] {
        assert_eq!(world.landings(client, at("203.0.113.7", 80), 1), BTreeMap::from([("a", 1)]));
    }
    is_refused(&b, at("203.0.113.9", 80));
    is_refused(&b, at("203.0.113.7", 81));
    // Another range of which the first is a part, then the part alone.
    change(&mut world, &["203.0.112.0/23", "203.0.113.0/24"]);
    is_refused(&b, at("203.0.112.9", 80));
    change(&mut world, &["203.0.113.0/24"]);
    is_refused(&b, at("203.0.113.9", 80));
    change(&mut world, &["10.96.0.0/16"]);
    let error = connect(&b, at("203.0.113.9", 80)).expect_err("nobody has it");
    assert_ne!(error.kind(), io::ErrorKind::ConnectionRefused, "it is not the Services' any more");
}

#[test]
fn a_service_is_reached_from_pods_the_machine_and_outside() {
    let mut world = World::new(V4);
    let web =
        service("type: NodePort, ports: [{port: 80, protocol: TCP, nodePort: 30080}], externalIPs: [198.51.100.1]");
    world.update(&web, &[world.slice(TCP, &["a"])]);
    let (a, b) = (world.pod("a"), world.pod("b"));
    let (machine, outside) = (&world.lab.machine, &world.lab.world);
    for target in [at("10.96.0.7", 80), at("198.51.100.1", 80), at(MACHINE[0], 30080)] {
        tcp(a, any(), b, target).unwrap_or_else(|error| panic!("Pod to {target}: {error}"));
        tcp(a, any(), machine, target).unwrap_or_else(|error| panic!("machine to {target}: {error}"));
        let seen = tcp(a, any(), a, target).unwrap_or_else(|error| panic!("Pod to itself by {target}: {error}"));
        assert_ne!(seen, world.ip("a"), "a Pod that reaches itself sees the machine");
    }
    assert_eq!(tcp(a, any(), b, at("10.96.0.7", 80)).unwrap(), world.ip("b"), "a Pod keeps its address");
    tcp(a, any(), machine, at("127.0.0.1", 30080)).unwrap();
    tcp(a, any(), outside, at(MACHINE[0], 30080)).unwrap();
    is_refused(b, at("10.96.0.7", 81));
    is_refused(b, at("10.96.9.9", 80));
    is_refused(machine, at("10.96.9.9", 80));
    let (a, b) = (world.pod("a").try_clone().unwrap(), world.pod("b").try_clone().unwrap());
    world.update(&web, &[]);
    for target in [at("10.96.0.7", 80), at("198.51.100.1", 80), at(MACHINE[0], 30080)] {
        is_refused(&b, target);
        is_refused(&world.lab.machine, target);
    }
    is_refused(&world.lab.world, at(MACHINE[0], 30080));
    world.update(&web, &[world.slice(TCP, &["a"])]);
    tcp(&a, any(), &b, at("10.96.0.7", 80)).unwrap();
    world.delete(&web);
    is_refused(&b, at("10.96.0.7", 80));
}

#[test]
fn datagrams_follow_the_endpoints() {
    let mut world = World::new(V4);
    let dns = service("type: NodePort, ports: [{port: 53, protocol: UDP, nodePort: 30053}]");
    world.update(&dns, &[world.slice(UDP, &["a"])]);
    let (a, c) = (world.pod("a").try_clone().unwrap(), world.pod("c").try_clone().unwrap());
    for client in [&c, &a, &world.lab.machine] {
        udp(&a, any(), client, at("10.96.0.7", 53)).unwrap();
    }
    udp(&a, any(), &world.lab.world, at(MACHINE[0], 30053)).unwrap();
    udp(&a, any(), &world.lab.machine, at("127.0.0.1", 30053)).unwrap();
    // One client that goes on sending from one port: the kernel would keep to the endpoint that is gone.
    for target in [at("10.96.0.7", 53), at(MACHINE[0], 30053)] {
        world.update(&dns, &[world.slice(UDP, &["a"])]);
        let client = in_netns(c.as_fd(), || UdpSocket::bind("0.0.0.0:5555")).unwrap().unwrap();
        for (pod, next) in [("a", "b"), ("b", "a")] {
            let server = in_netns(world.pod(pod).as_fd(), || UdpSocket::bind(any())).unwrap().unwrap();
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            client.send_to(b"carob", target).unwrap();
            let (_, peer) = server.recv_from(&mut [0; 5]).unwrap();
            server.send_to(b"carob", peer).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.recv_from(&mut [0; 5]).unwrap();
            world.update(&dns, &[world.slice(UDP, &[next])]);
        }
    }
}

#[test]
fn connections_are_spread_or_stay() {
    let mut world = World::new(V4);
    let both = world.slice(TCP, &["a", "b"]);
    let web = service("");
    world.update(&web, &[Arc::clone(&both)]);
    let c = world.pod("c").try_clone().unwrap();
    let landed = world.landings(&c, at("10.96.0.7", 80), 40);
    assert!(landed.len() == 2 && landed.values().sum::<usize>() == 40, "{landed:?}");
    let sticky = service("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 2}}");
    world.update(&sticky, &[Arc::clone(&both)]);
    let landed = world.landings(&c, at("10.96.0.7", 80), 20);
    assert!(landed.len() == 1 && landed.values().sum::<usize>() == 20, "{landed:?}");
    let (stayed_with, _) = landed.first_key_value().unwrap();
    let other = if *stayed_with == "a" { "b" } else { "a" };
    world.update(&sticky, &[world.slice(TCP, &[other])]);
    assert_eq!(world.landings(&c, at("10.96.0.7", 80), 5), [(other, 5)].into());
    world.update(&sticky, &[Arc::clone(&both)]);
    assert_eq!(world.landings(&c, at("10.96.0.7", 80), 20), [(other, 20)].into(), "what comes back takes no client");
    world.update(&web, &[both]);
    assert_eq!(world.landings(&c, at("10.96.0.7", 80), 40).len(), 2, "affinity is switched off again");
}

#[test]
fn external_policy_local_keeps_the_client_and_source_ranges_keep_others_out() {
    let mut world = World::new(V4);
    let balanced = |more: &str| {
        service(&format!(
            "type: LoadBalancer, externalTrafficPolicy: Local, ports: [{{port: 80, protocol: TCP, nodePort: 30080}}], \
             status: {{loadBalancer: {{ingress: [{{ip: {}}}]}}}}{more}",
            MACHINE[0]
        ))
    };
    let open = balanced("");
    world.update(&open, &[world.slice(TCP, &["a"])]);
    let a = world.pod("a").try_clone().unwrap();
    for port in [80, 30080] {
        assert_eq!(tcp(&a, any(), &world.lab.world, at(MACHINE[0], port)).unwrap(), ip(WORLD[0]), "port {port}");
        tcp(&a, any(), &world.lab.machine, at(MACHINE[0], port)).unwrap();
        tcp(&a, any(), world.pod("b"), at(MACHINE[0], port)).unwrap();
    }
    world.update(&balanced(", loadBalancerSourceRanges: [203.0.113.0/24]"), &[world.slice(TCP, &["a"])]);
    is_dropped(&world.lab.world, at(MACHINE[0], 80));
    world.update(&balanced(", loadBalancerSourceRanges: [192.0.2.0/24]"), &[world.slice(TCP, &["a"])]);
    tcp(&a, any(), &world.lab.world, at(MACHINE[0], 80)).unwrap();
    // The only endpoint is on another node: from outside nothing comes through, and nothing is refused either.
    world.update(&open, &[slice(TCP, &["10.244.9.9 n2 rs"])]);
    is_dropped(&world.lab.world, at(MACHINE[0], 30080));
}

#[test]
fn both_families_are_served() {
    let mut world = World::new(&["10.244.3.0/24", "fd00:244:0:3::/64"]);
    let web = service(
        "clusterIPs: [10.96.0.7, 'fd00:96::7'], type: NodePort, ports: [{port: 80, protocol: TCP, nodePort: 30080}]",
    );
    let v6 = world.pods["a"].1[1];
    let slices = [world.slice(TCP, &["a"]), slice(TCP, &[&format!("{v6} n1 rs")])];
    world.update(&web, &slices);
    let (a, b) = (world.pod("a"), world.pod("b"));
    let any6 = at("::", 8080);
    assert_eq!(tcp(a, any6, b, at("fd00:96::7", 80)).unwrap(), world.pods["b"].1[1]);
    tcp(a, any6, a, at("fd00:96::7", 80)).unwrap();
    tcp(a, any6, &world.lab.machine, at("fd00:96::7", 80)).unwrap();
    tcp(a, any6, &world.lab.world, at(MACHINE[1], 30080)).unwrap();
    tcp(a, any(), b, at("10.96.0.7", 80)).unwrap();
    is_refused(b, at("fd00:96::8", 80));
}

#[test]
fn a_new_table_takes_over_connections() {
    let mut world = World::new(V4);
    let web = service("");
    world.update(&web, &[world.slice(TCP, &["a"])]);
    let listener = world.listen("a");
    let c = world.pod("c").try_clone().unwrap();
    let mut stream = in_netns(c.as_fd(), || TcpStream::connect(at("10.96.0.7", 80))).unwrap().unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let mut next = State::default();
    testing::update(&mut next, &web, &[world.slice(TCP, &["a"])]);
    world.state = next;
    world.replace();
    io::Write::write_all(&mut stream, b"x").unwrap();
    accepted.set_nonblocking(false).unwrap();
    accepted.set_read_timeout(Some(PATIENCE)).unwrap();
    io::Read::read_exact(&mut accepted, &mut [0]).unwrap();
    drop(listener);
    tcp(world.pod("a"), any(), &c, at("10.96.0.7", 80)).unwrap();
}

/// Policies as flow YAML, in force for the Pods `a`, `b` and `c`, which are of this machine.
fn enforce(world: &World, specs: &[&str]) {
    let mut state = crate::policy::testing::state(world.pods.iter().map(|(name, (_, ips))| (*name, ips[0])), specs);
    let change = state.change("policies", true);
    world.on_machine(|| change.commit()).unwrap();
}

#[test]
fn policies_hold_for_new_connections_and_for_those_that_there_are() {
    let mut world = World::new(V4);
    let web = service("type: NodePort, ports: [{port: 80, protocol: TCP, nodePort: 30080}]");
    world.update(&web, &[world.slice(TCP, &["a"])]);
    let (a, b, c) = (world.pod("a"), world.pod("b"), world.pod("c"));
    let direct = SocketAddr::new(world.ip("a"), 8080);
    let listener = world.listen("a");
    let mut stream = in_netns(c.as_fd(), || TcpStream::connect(direct)).unwrap().unwrap();
    let (accepted, _) = listener.accept().unwrap();
    drop(listener);
    let only_b = "podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], \
                  ingress: [{from: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: web}]}]";
    enforce(&world, &[only_b]);
    io::Write::write_all(&mut stream, b"x").unwrap();
    accepted.set_nonblocking(false).unwrap();
    accepted.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert!(io::Read::read(&mut &accepted, &mut [0]).is_err(), "what was connected before is held up");
    for target in [direct, at("10.96.0.7", 80), at(MACHINE[0], 30080)] {
        tcp(a, any(), b, target).unwrap_or_else(|error| panic!("b to {target}: {error}"));
        tcp(a, any(), &world.lab.machine, target).unwrap_or_else(|error| panic!("machine to {target}: {error}"));
        is_dropped(c, target);
    }
    is_dropped(&world.lab.world, at(MACHINE[0], 30080));
    tcp(a, any(), a, at("10.96.0.7", 80)).expect("a Pod to itself");
    is_dropped(b, SocketAddr::new(world.ip("a"), 8081));
    tcp(b, any(), c, SocketAddr::new(world.ip("b"), 8080)).expect("b is not isolated");
    enforce(
        &world,
        &["podSelector: {matchLabels: {app: c}}, policyTypes: [Egress], \
                       egress: [{to: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.3.3/32]}}]}]"],
    );
    tcp(a, any(), c, at("10.96.0.7", 80)).expect("a is allowed again");
    assert_eq!(world.ip("b"), ip("10.244.3.3"));
    is_dropped(c, SocketAddr::new(world.ip("b"), 8080));
    is_dropped(c, at(WORLD[0], 80));
    tcp(&world.lab.machine, at("0.0.0.0", 7000), c, at(MACHINE[0], 7000))
        .expect("a node and its Pods reach each other");
    tcp(c, any(), b, SocketAddr::new(world.ip("c"), 8080)).expect("c may be asked");
    enforce(&world, &[]);
    tcp(b, any(), c, SocketAddr::new(world.ip("b"), 8080)).unwrap();
}
