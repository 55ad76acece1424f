//! A network of hosts.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::host::{Host, link_name, run};

/// What a host's interface on the network is called, in the host.
const INTERFACE: &str = "lan";

/// A switch that hosts are plugged into: all reach all, until one is cut off.
#[derive(Debug)]
pub struct Switch {
    host: Host,
}

impl Switch {
    pub fn new() -> Result<Self> {
        let host = Host::new()?;
        host.run("ip", ["link", "add", "name", "switch", "type", "bridge"])?;
        host.run("ip", ["link", "set", "switch", "up"])?;
        Ok(Self { host })
    }

    /// A directory that lives as long as the switch.
    pub fn dir(&self) -> &Path {
        self.host.dir()
    }

    /// Lays a cable to a host, which has the address there; all are of one /24.
    pub fn plug(&self, host: &Host, address: &str) -> Result<()> {
        let (port, pid) = (link_name(host.name()), host.init().to_string());
        // In the switch's network alone: the PID is one of this machine's.
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.host.init())).args(["--net", "--", "ip", "link", "add", &port]);
        run(command.args(["type", "veth", "peer", "name", INTERFACE, "netns", &pid]))?;
        self.host.run("ip", ["link", "set", &port, "master", "switch", "up"])?;
        host.run("ip", ["addr", "add", &format!("{address}/24"), "dev", INTERFACE])?;
        host.run("ip", ["link", "set", INTERFACE, "up"]).map(drop)
    }

    /// Cuts a host's cable, or mends it.
    pub fn set(&self, host: &Host, up: bool) -> Result<()> {
        self.host.run("ip", ["link", "set", &link_name(host.name()), if up { "up" } else { "down" }]).map(drop)
    }
}
