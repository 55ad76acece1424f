//! What a caller asks for and gets.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// A port of the host that leads to a port of the Pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// The host's address to listen on; all of them when `None` (or unspecified).
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub pod_port: u16,
    pub protocol: Protocol,
}

/// Joins a sandbox to the Pod network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    pub sandbox_id: String,
    /// A path that opens the sandbox's network namespace (`/proc/<pid>/ns/net` or a bind mount of it).
    pub netns: PathBuf,
    pub host_ports: Vec<HostPort>,
}

/// How a sandbox is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// One address for each Pod CIDR, in the order of the CIDRs: the first is the Pod's primary one.
    pub ips: Vec<IpAddr>,
    /// The interface inside the sandbox.
    pub interface: String,
}
