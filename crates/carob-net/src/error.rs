//! What can go wrong.

use std::io;
use std::path::PathBuf;

use carob_sys::netlink::NetlinkError;
use ipnet::IpNet;

use crate::ipam::IpamError;
use crate::record::RecordError;
use crate::request::HostPort;

/// One failed operation of the Pod network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("no Pod CIDR has been assigned to this node yet")]
    NoPodCidr,
    #[error("allocate Pod addresses")]
    Ipam(#[from] IpamError),
    #[error("keep the network's records")]
    Record(#[from] RecordError),
    #[error("Pod CIDR {cidr} overlaps {taken_by}, which this machine uses already")]
    CidrTaken { cidr: IpNet, taken_by: String },
    #[error("host port {port} is taken by sandbox {owner}")]
    HostPortTaken { port: HostPort, owner: String },
    #[error("host port {port} is asked for twice")]
    HostPortTwice { port: HostPort },
    #[error("ask the kernel which networks are in use")]
    Observe(#[source] NetlinkError),
    #[error("prepare this machine's side of the Pod network")]
    Prepare(#[source] NetlinkError),
    #[error("write the Pod network's nftables rules")]
    Rules(#[source] NetlinkError),
    #[error("connect sandbox {sandbox_id}")]
    Connect {
        sandbox_id: String,
        #[source]
        source: NetlinkError,
    },
    #[error("disconnect sandbox {sandbox_id}")]
    Disconnect {
        sandbox_id: String,
        #[source]
        source: NetlinkError,
    },
    #[error("remove interface {interface}")]
    RemoveInterface {
        interface: String,
        #[source]
        source: NetlinkError,
    },
    #[error("enter network namespace {path} of sandbox {sandbox_id}")]
    Namespace {
        sandbox_id: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("set {path}")]
    Sysctl {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The blocking thread that did the work panicked: a bug.
    #[error("the network's worker failed")]
    Worker(#[source] tokio::task::JoinError),
}
