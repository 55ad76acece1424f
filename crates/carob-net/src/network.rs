//! The Pod network of one carob instance.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use carob_kit::Clock;
use ipnet::IpNet;

use crate::error::NetError;
use crate::request::{AttachRequest, Attachment};

/// What a [`PodNetwork`] is opened with.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// The instance's id, from which the bridge, the nftables table and the veths are named.
    pub instance: String,
    /// Where the records of attached sandboxes are kept. They describe kernel state that a reboot clears, so this
    /// belongs on a tmpfs, beside the shims.
    pub state_dir: PathBuf,
    /// The node's Pod CIDRs, at most one a family; the first is the primary one. May be empty until the node has some.
    pub pod_cidrs: Vec<IpNet>,
    /// Destinations that Pods reach without masquerading: the cluster's Pod CIDRs.
    pub cluster_cidrs: Vec<IpNet>,
    pub clock: Arc<dyn Clock>,
}

/// What [`PodNetwork::sweep`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Sandboxes that were attached and are not live.
    pub sandboxes: Vec<String>,
    /// Interfaces of this instance that belong to no sandbox.
    pub interfaces: Vec<String>,
}

/// The Pod network of one instance. Clones share it.
#[derive(Debug, Clone)]
pub struct PodNetwork {}

impl PodNetwork {
    /// Reads the records, makes the bridge and writes the whole nftables table in one transaction. Attached Pods keep
    /// their addresses, connections and host ports.
    pub async fn open(config: NetConfig) -> Result<Self, NetError> {
        unimplemented!()
    }

    /// Gives the sandbox its addresses, interface, routes and host ports. Undoes itself on failure. A sandbox that is
    /// attached already gets the same answer again.
    pub async fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetError> {
        unimplemented!()
    }

    /// Takes everything back. Succeeds when there is nothing (left) to take back.
    pub async fn detach(&self, sandbox_id: &str) -> Result<(), NetError> {
        unimplemented!()
    }

    /// How an attached sandbox is reached.
    pub fn attachment(&self, sandbox_id: &str) -> Option<Attachment> {
        unimplemented!()
    }

    /// Detaches every sandbox that is not in `live`, and removes interfaces of this instance that belong to none.
    pub async fn sweep(&self, live: &BTreeSet<String>) -> Result<SweepReport, NetError> {
        unimplemented!()
    }

    /// Changes the CIDRs that new sandboxes get addresses from. Attached ones keep theirs.
    pub async fn set_pod_cidrs(&self, pod_cidrs: Vec<IpNet>) -> Result<(), NetError> {
        unimplemented!()
    }

    /// The node's addresses on the bridge, one for each Pod CIDR: what Pods use as their gateway.
    pub fn gateways(&self) -> Vec<IpAddr> {
        unimplemented!()
    }
}
