//! The effects: plans carried out in the network namespace of the calling thread. Everything here blocks, shortly.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use carob_sys::netlink::route::{self, Link, Veth};
use carob_sys::netlink::{NetlinkError, Protocol, Socket, in_netns};
use ipnet::IpNet;

use crate::error::NetError;
use crate::names::Names;
use crate::plan::{self, Observed, POD_INTERFACE};
use crate::record::Record;

pub(crate) fn observe() -> Result<Observed, NetError> {
    let observe = || -> Result<Observed, NetlinkError> {
        let mut socket = Socket::open(Protocol::Route)?;
        Ok(Observed {
            links: route::links(&mut socket)?,
            addresses: route::addresses(&mut socket)?,
            routes: route::routes(&mut socket)?,
        })
    };
    observe().map_err(NetError::Observe)
}

/// Makes the anchor, gives it the gateways and the routes, and lets packets be forwarded.
pub(crate) fn prepare(
    names: &Names,
    gateways: &[IpAddr],
    cidrs: &[IpNet],
    observed: &Observed,
) -> Result<(), NetError> {
    let prepare = || -> Result<(), NetlinkError> {
        let mut socket = Socket::open(Protocol::Route)?;
        socket.execute(&[route::add_bridge(&names.anchor, observed.mtu())])?;
        let anchor = required(&mut socket, &names.anchor)?;
        socket.execute(&plan::anchor(anchor.index, gateways, cidrs, observed))
    };
    prepare().map_err(NetError::Prepare)?;
    forward(names, cidrs, observed)
}

/// Lets packets for Pods in by the interfaces that lead to other machines now.
pub(crate) fn forward(names: &Names, cidrs: &[IpNet], observed: &Observed) -> Result<(), NetError> {
    let uplinks = observed.uplinks(names);
    let forward = || Socket::open(Protocol::Route)?.execute(&plan::forwarding(&uplinks));
    forward().map_err(NetError::Prepare)?;
    if cidrs.iter().any(|cidr| cidr.addr().is_ipv6()) {
        forward_ipv6(&uplinks)?;
    }
    Ok(())
}

/// Looks up an interface that was made before.
fn required(socket: &mut Socket, name: &str) -> Result<Link, NetlinkError> {
    let gone = || NetlinkError::NoAnswer { what: format!("look up interface {name}") };
    route::link(socket, name)?.ok_or_else(gone)
}

/// IPv6 is forwarded by all interfaces or by none (ip-sysctl.rst `conf/all/forwarding`). A router ignores other
/// routers' advertisements unless it is told not to, and an uplink may have its own address and route from them.
fn forward_ipv6(uplinks: &[&str]) -> Result<(), NetError> {
    /// Accept router advertisements, when not forwarding and even when forwarding.
    const ACCEPT_RA: [&str; 2] = ["1", "2"];
    let conf = Path::new("/proc/sys/net/ipv6/conf");
    let forwarding = conf.join("all/forwarding");
    if read_sysctl(&forwarding)? == "1" {
        return Ok(());
    }
    for uplink in uplinks {
        let accept_ra = conf.join(uplink).join("accept_ra");
        // An interface may have gone since it was listed, or have no IPv6.
        if read_if_there(&accept_ra)?.as_deref() == Some(ACCEPT_RA[0]) {
            write_if_there(&accept_ra, ACCEPT_RA[1])?;
        }
    }
    write_sysctl(&forwarding, "1")
}

fn read_sysctl(path: &Path) -> Result<String, NetError> {
    let sysctl = |source| NetError::Sysctl { path: PathBuf::from(path), source };
    fs_err::read_to_string(path).map(|text| text.trim().to_owned()).map_err(sysctl)
}

fn read_if_there(path: &Path) -> Result<Option<String>, NetError> {
    match read_sysctl(path) {
        Err(NetError::Sysctl { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

fn write_if_there(path: &Path, value: &str) -> Result<(), NetError> {
    match write_sysctl(path, value) {
        Err(NetError::Sysctl { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

fn write_sysctl(path: &Path, value: &str) -> Result<(), NetError> {
    fs_err::write(path, value).map_err(|source| NetError::Sysctl { path: path.to_owned(), source })
}

/// Joins a sandbox: veth, its two sides, routes.
pub(crate) fn connect(names: &Names, record: &Record, netns: &Path, mtu: u32) -> Result<(), NetError> {
    let sandbox_id = || record.sandbox_id.clone();
    let enter = |source| NetError::Namespace { sandbox_id: sandbox_id(), path: netns.to_owned(), source };
    let connect = |source| NetError::Connect { sandbox_id: sandbox_id(), source };
    let namespace = fs_err::File::open(netns).map_err(enter)?;
    let name = names.veth(&record.sandbox_id);
    let veth = Veth { name: &name, mtu, peer_name: POD_INTERFACE, peer_netns: namespace.file().as_fd() };
    let mut socket = Socket::open(Protocol::Route).map_err(connect)?;
    socket.execute(&[route::add_veth(&veth), plan::veth_switches(&name)]).map_err(connect)?;
    let index = required(&mut socket, &name).map_err(connect)?.index;
    socket.execute(&plan::host_side(index, record)).map_err(connect)?;
    let pod_side = in_netns(namespace.file().as_fd(), || -> Result<(), NetlinkError> {
        let mut socket = Socket::open(Protocol::Route)?;
        let index = required(&mut socket, POD_INTERFACE)?.index;
        socket.execute(&plan::pod_side(index, record))
    });
    pod_side.map_err(enter)?.map_err(connect)
}

/// Takes a sandbox's veth down, and its routes with it. Removing it would hold the kernel's routing lock for an RCU
/// grace period (16 ms measured on 6.18), and the kernel does that by itself when the namespace at the far end goes.
pub(crate) fn disconnect(names: &Names, sandbox_id: &str) -> Result<(), NetError> {
    let down = || Socket::open(Protocol::Route)?.execute(&[route::set_down(&names.veth(sandbox_id))]);
    down().map_err(|source| NetError::Disconnect { sandbox_id: sandbox_id.to_owned(), source })
}

/// Removes a veth, which takes the far end along.
pub(crate) fn remove_interface(name: &str) -> Result<(), NetError> {
    let remove = || Socket::open(Protocol::Route)?.execute(&[route::delete_link(name)]);
    remove().map_err(|source| NetError::RemoveInterface { interface: name.to_owned(), source })
}

/// Takes back the routes of CIDRs that the node has no longer.
pub(crate) fn remove_cidrs(cidrs: &[IpNet]) -> Result<(), NetError> {
    let remove = || Socket::open(Protocol::Route)?.execute(&plan::remove_cidrs(cidrs));
    remove().map_err(NetError::Prepare)
}

/// Takes everything back that [`prepare`] made, except the forwarding of packets, which others may need by now.
pub(crate) fn unprepare(names: &Names, cidrs: &[IpNet]) -> Result<(), NetError> {
    let remove = || Socket::open(Protocol::Route)?.execute(&plan::remove_anchor(names, cidrs));
    remove().map_err(NetError::Prepare)
}
