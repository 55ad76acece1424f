//! A machine and the world behind it as two network namespaces, and traffic between namespaces.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carob_kit::SystemClock;
use carob_net::{AttachRequest, HostPort, NetConfig, PodNetwork, Protocol};
use carob_sys::netlink::route::{self, NewRoute, NextHop, Veth};
use carob_sys::netlink::{Protocol as Netlink, Socket, in_netns, new_netns};

/// The machine's address in the world, and the world's.
pub(crate) const MACHINE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub(crate) const WORLD: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
/// How long a packet that should arrive may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for one that should not arrive.
const IMPATIENCE: Duration = Duration::from_millis(300);

pub(crate) struct Lab {
    pub(crate) machine: OwnedFd,
    pub(crate) world: OwnedFd,
    pub(crate) state: tempfile::TempDir,
    pods: Mutex<BTreeMap<String, OwnedFd>>,
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Lab {
    pub(crate) fn new() -> Self {
        let (machine, world) = (new_netns().unwrap(), new_netns().unwrap());
        in_netns(machine.as_fd(), || {
            let mut socket = Socket::open(Netlink::Route).unwrap();
            let veth = Veth { name: "up0", mtu: 1400, peer_name: "eth0", peer_netns: world.as_fd() };
            socket.execute(&[route::set_up(1), route::add_veth(&veth)]).unwrap();
            configure(&mut socket, "up0", MACHINE, Some(WORLD));
        })
        .unwrap();
        in_netns(world.as_fd(), || {
            let mut socket = Socket::open(Netlink::Route).unwrap();
            socket.execute(&[route::set_up(1)]).unwrap();
            configure(&mut socket, "eth0", WORLD, None);
        })
        .unwrap();
        Self { machine, world, state: tempfile::tempdir().unwrap(), pods: Mutex::default() }
    }

    pub(crate) fn config(&self, pod_cidrs: &[&str]) -> NetConfig {
        NetConfig {
            instance: "lab".to_owned(),
            state_dir: self.state.path().join("net"),
            pod_cidrs: pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00::/16".parse().unwrap()],
            clock: Arc::new(SystemClock::new()),
        }
    }

    /// Runs the future on the machine: threads begin in the network namespace of the one that starts them.
    pub(crate) fn on_machine<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        in_netns(self.machine.as_fd(), || {
            let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(8).build().unwrap();
            runtime.block_on(future)
        })
        .unwrap()
    }

    pub(crate) fn open(&self, pod_cidrs: &[&str]) -> PodNetwork {
        let config = self.config(pod_cidrs);
        self.on_machine(PodNetwork::open(config)).unwrap()
    }

    /// Makes a sandbox's network namespace and the request to attach it.
    pub(crate) fn sandbox(&self, id: &str, host_ports: &[HostPort]) -> AttachRequest {
        let netns = new_netns().unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", netns.as_raw_fd()));
        self.pods.lock().unwrap().insert(id.to_owned(), netns);
        AttachRequest { sandbox_id: id.to_owned(), netns: path, host_ports: host_ports.to_vec(), args: Vec::new() }
    }

    pub(crate) fn attach(&self, network: &PodNetwork, id: &str, host_ports: &[HostPort]) -> Vec<IpAddr> {
        let request = self.sandbox(id, host_ports);
        self.on_machine(network.attach(&request)).unwrap().ips
    }

    pub(crate) fn pod(&self, id: &str) -> OwnedFd {
        self.pods.lock().unwrap()[id].try_clone().unwrap()
    }

    /// All that a Pod network could leave behind on the machine.
    pub(crate) fn traces(&self) -> String {
        in_netns(self.machine.as_fd(), || {
            let mut socket = Socket::open(Netlink::Route).unwrap();
            let links: Vec<String> = route::links(&mut socket).unwrap().into_iter().map(|link| link.name).collect();
            let routes = fs_err::read_to_string("/proc/thread-self/net/route").unwrap();
            let routes_v6 = fs_err::read_to_string("/proc/thread-self/net/ipv6_route").unwrap();
            let rules: Vec<bool> = links
                .iter()
                .filter(|name| name.starts_with("carob"))
                .map(|name| carob_sys::nft::table_exists(name).unwrap())
                .collect();
            let routes_v6 = routes_v6.lines().filter(|line| line.contains("fd00")).count();
            format!("{links:?} {rules:?} {} {routes_v6} {:?}", routes.lines().count(), files(self.state.path()))
        })
        .unwrap()
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    // The mark of the boot stays with the directory.
    let Ok(entries) = fs_err::read_dir(dir.join("net")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).filter(|path| !path.ends_with("boot_id")).collect()
}

fn configure(socket: &mut Socket, name: &str, addresses: [&str; 2], gateways: Option<[&str; 2]>) {
    let interface = route::link(socket, name).unwrap().unwrap().index;
    let mut requests = vec![
        route::set_up(interface),
        route::add_address(interface, ip(addresses[0]), 24),
        route::add_address(interface, ip(addresses[1]), 64),
    ];
    for (gateway, any) in gateways.iter().flatten().zip(["0.0.0.0", "::"]) {
        let hop = NextHop::Gateway { interface, address: ip(gateway) };
        requests.push(route::replace_route(&NewRoute { destination: ip(any), prefix_len: 0, hop, source: None }));
    }
    socket.execute(&requests).unwrap();
}

pub(crate) fn port(host_port: u16, pod_port: u16, protocol: Protocol) -> HostPort {
    HostPort { host_ip: None, host_port, pod_port, protocol }
}

/// Connects from one namespace to a listener in another and exchanges bytes both ways; returns the address that the
/// listener saw.
pub(crate) fn tcp(server: &OwnedFd, listen: SocketAddr, client: &OwnedFd, target: SocketAddr) -> io::Result<IpAddr> {
    let listener = in_netns(server.as_fd(), || TcpListener::bind(listen))??;
    let mut out = in_netns(client.as_fd(), || TcpStream::connect_timeout(&target, PATIENCE))??;
    let (mut accepted, peer) = listener.accept()?;
    exchange(&mut out, &mut accepted)?;
    exchange(&mut accepted, &mut out)?;
    Ok(peer.ip())
}

fn exchange(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    to.set_read_timeout(Some(PATIENCE))?;
    from.write_all(b"carob")?;
    let mut bytes = [0; 5];
    to.read_exact(&mut bytes)?;
    assert_eq!(&bytes, b"carob");
    Ok(())
}

/// As [`tcp`], with one datagram each way.
pub(crate) fn udp(server: &OwnedFd, listen: SocketAddr, client: &OwnedFd, target: SocketAddr) -> io::Result<IpAddr> {
    let inside = in_netns(server.as_fd(), || UdpSocket::bind(listen))??;
    let any = SocketAddr::new(if target.is_ipv4() { ip("0.0.0.0") } else { ip("::") }, 0);
    let outside = in_netns(client.as_fd(), || UdpSocket::bind(any))??;
    for socket in [&inside, &outside] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    outside.connect(target)?;
    outside.send(b"carob")?;
    let mut bytes = [0; 5];
    let (_, peer) = inside.recv_from(&mut bytes)?;
    inside.send_to(&bytes, peer)?;
    outside.recv(&mut bytes)?;
    assert_eq!(&bytes, b"carob");
    Ok(peer.ip())
}

/// Whether a connection is refused or goes nowhere.
pub(crate) fn is_unreachable(client: &OwnedFd, target: SocketAddr) -> bool {
    in_netns(client.as_fd(), || TcpStream::connect_timeout(&target, IMPATIENCE).is_err()).unwrap()
}
