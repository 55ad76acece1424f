//! What a caller asks for and gets.

use std::fmt;
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

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
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

impl HostPort {
    /// The one address to listen on; `0.0.0.0` and `::` stand for all, as everywhere.
    pub(crate) fn listen_ip(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// Whether packets of the address's family come in by this port. `::` and no address are both families.
    pub(crate) fn applies_to(&self, pod: IpAddr) -> bool {
        match self.host_ip {
            None => true,
            Some(ip) if ip.is_unspecified() => ip.is_ipv6() || pod.is_ipv4(),
            Some(ip) => ip.is_ipv4() == pod.is_ipv4(),
        }
    }

    /// Whether both want the same packets.
    pub(crate) fn conflicts_with(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && match (self.listen_ip(), other.listen_ip()) {
                (Some(one), Some(other)) => one == other,
                (None, _) | (_, None) => true,
            }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.listen_ip() {
            Some(ip) => write!(f, "{}/{} on {ip}", self.host_port, self.protocol),
            None => write!(f, "{}/{}", self.host_port, self.protocol),
        }
    }
}

/// Joins a sandbox to the Pod network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// Up to 128 letters, digits, `-`, `_`, `.`.
    pub sandbox_id: String,
    /// A path that opens the sandbox's network namespace (`/proc/<pid>/ns/net` or a bind mount of it).
    pub netns: PathBuf,
    pub host_ports: Vec<HostPort>,
    /// What CNI plug-ins are told of the sandbox beside its id, as `CNI_ARGS`.
    pub args: Vec<(String, String)>,
}

/// How a sandbox is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// One address for each Pod CIDR, in the order of the CIDRs: the first is the Pod's primary one.
    pub ips: Vec<IpAddr>,
    /// The interface inside the sandbox.
    pub interface: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_conflict_when_one_packet_could_go_to_both() {
        let port = |ip: Option<&str>, host_port, protocol| HostPort {
            host_ip: ip.map(|ip| ip.parse().unwrap()),
            host_port,
            pod_port: 1,
            protocol,
        };
        let web = port(None, 80, Protocol::Tcp);
        for (other, conflicts) in [
            (port(None, 80, Protocol::Tcp), true),
            (port(Some("10.0.0.1"), 80, Protocol::Tcp), true),
            (port(Some("0.0.0.0"), 80, Protocol::Tcp), true),
            (port(None, 80, Protocol::Udp), false),
            (port(None, 81, Protocol::Tcp), false),
        ] {
            assert_eq!(web.conflicts_with(&other), conflicts, "{other}");
            assert_eq!(other.conflicts_with(&web), conflicts, "{other}");
        }
        let (one, two) = (port(Some("10.0.0.1"), 80, Protocol::Tcp), port(Some("10.0.0.2"), 80, Protocol::Tcp));
        assert!(!one.conflicts_with(&two));
    }
}
