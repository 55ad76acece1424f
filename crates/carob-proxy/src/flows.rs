//! Connections whose endpoint is gone. The kernel keeps to the endpoint that it once chose as long as packets come, and
//! UDP clients do not notice: what leads to no endpoint any more is forgotten, so that the next packet chooses again
//! (`pkg/proxy/conntrack/cleanup.go`). TCP clients are told by the endpoint's machine.

use std::collections::HashMap;
use std::net::SocketAddr;

use carob_sys::netlink::NetlinkError;
use carob_sys::netlink::conntrack::{self, Connection};

use crate::model::{At, Frontend, PortModel};

const UDP: u8 = 17;

/// Where connections of a port came in, and what they may lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FlowCheck {
    frontends: Vec<Frontend>,
    /// Sorted.
    endpoints: Vec<SocketAddr>,
}

impl FlowCheck {
    /// For a port as it was and as it is.
    pub(crate) fn between(old: &PortModel, new: Option<&PortModel>) -> Option<Self> {
        (old.protocol == UDP).then(|| Self {
            frontends: old.frontends.clone(),
            endpoints: new.map(PortModel::reachable).unwrap_or_default(),
        })
    }

    /// For a port as it is: before it was there, packets may have gone elsewhere.
    pub(crate) fn of_new(port: &PortModel) -> Option<Self> {
        (port.protocol == UDP).then(|| Self { frontends: port.frontends.clone(), endpoints: port.reachable() })
    }
}

/// The checks, found by a connection's destination.
#[derive(Debug, Default)]
pub(crate) struct FlowChecks {
    by_address: HashMap<SocketAddr, Vec<SocketAddr>>,
    by_node_port: HashMap<u16, Vec<SocketAddr>>,
}

impl FlowChecks {
    /// Later checks replace earlier ones of the same frontend.
    pub(crate) fn new(checks: Vec<FlowCheck>) -> Self {
        let mut all = Self::default();
        for check in checks {
            for frontend in &check.frontends {
                let endpoints = check.endpoints.clone();
                match frontend.at {
                    At::Address(address) => {
                        all.by_address.insert(SocketAddr::new(address, frontend.port), endpoints);
                    }
                    At::Node => {
                        all.by_node_port.insert(frontend.port, endpoints);
                    }
                }
            }
        }
        all
    }

    fn is_stale(&self, connection: &Connection) -> bool {
        if connection.protocol != UDP {
            return false;
        }
        let (wanted, reached) = (connection.original.destination, connection.reply.source);
        if let Some(endpoints) = self.by_address.get(&wanted) {
            return endpoints.binary_search(&reached).is_err();
        }
        // Of a NodePort only the number is known: a connection elsewhere that has the same one was not redirected.
        let is_redirected = wanted != reached;
        let endpoints = self.by_node_port.get(&wanted.port()).filter(|_| is_redirected);
        endpoints.is_some_and(|endpoints| endpoints.binary_search(&reached).is_err())
    }

    /// Forgets what is stale, in the calling thread's network namespace, and answers how much that was.
    pub(crate) fn forget_stale(&self) -> Result<usize, NetlinkError> {
        if self.by_address.is_empty() && self.by_node_port.is_empty() {
            return Ok(0);
        }
        let stale = conntrack::connections(|connection| self.is_stale(connection))?;
        conntrack::forget(&stale)?;
        Ok(stale.len())
    }
}
