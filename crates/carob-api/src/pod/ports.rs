//! Ports of the host that Pods take (kube-scheduler framework, `HostPortInfo.CheckConflict`).

/// A port of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort<'a> {
    /// Empty for every address.
    pub ip: &'a str,
    pub protocol: &'a str,
    pub port: i32,
}

impl HostPort<'_> {
    /// Whether both cannot be taken at once.
    pub fn conflicts(&self, other: &HostPort<'_>) -> bool {
        let any = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
        self.protocol == other.protocol
            && self.port == other.port
            && (any(self.ip) || any(other.ip) || self.ip == other.ip)
    }
}
