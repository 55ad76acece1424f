//! The Node objects of virtual nodes: what the real node writes of itself, with what was configured in place of a machine.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use carob_cri::v1::{RuntimeStatus, StatusResponse};
use ipnet::Ipv4Net;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::addresses;
use super::config::VirtualNode;
use crate::admission::Room;
use crate::config::resources::{ResourceError, amounts, huge_pages};
use crate::eviction::Pressures;
use crate::machine::facts::{HugePages, MachineFacts, Strain};
use crate::machine::object::{self, NodeIdentity, Reading};

/// The architecture that virtual nodes claim, so that Pods which ask for the most usual one fit.
const ARCHITECTURE: &str = "amd64";
/// What a virtual node has for a runtime and for an operating system's release.
const VIRTUAL: &str = "virtual";
/// Memory, disk and PIDs are never short: there is nothing to measure.
const AT_EASE: Strain = Strain {
    memory_available_bytes: u64::MAX,
    disk_total_bytes: 100,
    disk_free_bytes: 100,
    inodes_total: 100,
    inodes_free: 100,
    pids_max: 100,
    pids_used: 0,
};

/// The port that virtual nodes report; it is the API server's dialler that answers for them.
const KUBELET_PORT: u16 = 10250;

/// One virtual node with its range of addresses.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) node: VirtualNode,
    pub(super) range: Ipv4Net,
}

impl Placed {
    pub(super) fn address(&self) -> Ipv4Addr {
        addresses::of_node(self.range)
    }

    fn identity(&self, kubelet_version: &str) -> NodeIdentity {
        NodeIdentity {
            name: self.node.name.clone(),
            addresses: vec![IpAddr::from(self.address())],
            kubelet_port: KUBELET_PORT,
            kubelet_version: kubelet_version.to_owned(),
            pods_max: self.node.pods_max,
            labels: self.node.labels.clone(),
            pod_cidrs: vec![self.range.to_string()],
            ..NodeIdentity::default()
        }
    }

    /// The object to register with: ready from the start, so that one write does.
    pub(super) fn object(&self, kubelet_version: &str, now: Timestamp) -> Node {
        let mut node = object::node(&self.identity(kubelet_version), ARCHITECTURE);
        if let Some(spec) = &mut node.spec {
            spec.taints = Some(self.node.taints.clone()).filter(|taints| !taints.is_empty());
        }
        node.status = Some(self.status(kubelet_version, None, now));
        node
    }

    pub(super) fn status(&self, kubelet_version: &str, old: Option<&NodeStatus>, now: Timestamp) -> NodeStatus {
        let machine = MachineFacts {
            machine_id: self.node.name.clone(),
            system_uuid: self.node.name.clone(),
            boot_id: self.node.name.clone(),
            kernel_version: VIRTUAL.to_owned(),
            os_image: VIRTUAL.to_owned(),
            architecture: ARCHITECTURE,
            ..MachineFacts::default()
        };
        let runtime = StatusResponse { status: Some(RuntimeStatus::default()), ..StatusResponse::default() };
        let reading = Reading {
            machine,
            strain: AT_EASE,
            huge_pages: HugePages::new(),
            runtime_version: format!("{VIRTUAL}://{kubelet_version}"),
            runtime: Ok(runtime),
            images: Vec::new(),
            pressures: Pressures::new(),
            closing: false,
            devices: BTreeMap::new(),
        };
        let mut status = object::status(&self.identity(kubelet_version), &reading, old, now);
        status.capacity = Some(self.quantities());
        status.allocatable = Some(self.quantities());
        // As the API shows empty lists, so that what it shows can be compared with this.
        (status.images, status.runtime_handlers) = (None, None);
        status
    }

    fn quantities(&self) -> BTreeMap<String, Quantity> {
        self.node.capacity.iter().map(|(key, text)| (key.clone(), Quantity(text.clone()))).collect()
    }

    /// What the node lets in.
    pub(super) fn room(&self) -> Result<Room, ResourceError> {
        let given = amounts(Some(&self.quantities()))?;
        let node = object::node(&self.identity(""), ARCHITECTURE);
        Ok(Room {
            cpu_milli: given.cpu_milli.unwrap_or(0),
            memory_bytes: given.memory_bytes.unwrap_or(0),
            huge_pages: huge_pages(Some(&self.quantities()))?,
            pods: self.node.pods_max,
            labels: node.metadata.labels.unwrap_or_default(),
            no_apparmor: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Config;
    use super::*;

    #[test]
    fn a_virtual_node_is_ready_and_as_large_as_configured() {
        let file =
            serde_json::json!({"nodes": [{"name": "n", "capacity": {"memory": "3Gi", "cpu": "1500m", "pods": 4}}]});
        let node = Config::parse(&file, None).expect("a configuration").nodes.remove(0);
        let placed = Placed { node, range: "240.0.1.0/28".parse().expect("a range") };
        let now = Timestamp::UNIX_EPOCH;
        let object = placed.object("v1", now);
        let status = object.status.expect("a status");
        assert_eq!(status.allocatable, status.capacity);
        assert_eq!(status.capacity.as_ref().map(|capacity| capacity["memory"].0.as_str()), Some("3Gi"));
        let shown: Vec<String> =
            status.conditions.iter().flatten().map(|one| format!("{}={}", one.type_, one.status)).collect();
        assert_eq!(shown, ["MemoryPressure=False", "DiskPressure=False", "PIDPressure=False", "Ready=True"]);
        let addresses = status.addresses.as_deref().unwrap_or_default();
        assert_eq!((addresses[0].type_.as_str(), addresses[0].address.as_str()), ("InternalIP", "240.0.1.1"));
        assert_eq!(object.spec.and_then(|spec| spec.pod_cidr).as_deref(), Some("240.0.1.0/28"));
        let room = placed.room().expect("amounts");
        assert_eq!((room.cpu_milli, room.memory_bytes, room.pods), (1500, 3 << 30, 4));
        assert_eq!(room.labels["kubernetes.io/hostname"], "n");
        let later =
            placed.status("v1", Some(&placed.status("v1", None, now)), Timestamp::from_second(9).expect("a time"));
        assert!(!object::differs(&placed.status("v1", None, now), &later));
    }
}
