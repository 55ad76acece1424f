//! What every Pod worker works with.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use carob_cri::Cri;
use carob_kit::Clock;
use k8s_openapi::api::core::v1::Pod;

use crate::api::PodApi;
use crate::config::network::ClusterDns;
use crate::config::resources::Machine;
use crate::env::fields::FieldFacts;
use crate::events::Events;
use crate::files::Files;
use crate::image::Images;
use crate::objects::Objects;
use crate::paths::PodDirs;
use crate::probe::counts::ProbeCounts;
use crate::status::NodeFacts;
use crate::volumes::Volumes;

/// What holds for all Pods of the node.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub node_name: String,
    /// The runtime's name.
    pub runtime: String,
    /// The node's addresses, the preferred family first; at most one a family.
    pub node_ips: Vec<IpAddr>,
    pub machine: Machine,
    /// Stands in for limits that Pods do not set, by resource.
    pub allocatable: BTreeMap<String, String>,
    pub dns: ClusterDns,
    /// Containers without a seccomp profile get the runtime's.
    pub seccomp_default: bool,
    /// The group below which Pods have theirs.
    pub cgroup_root: String,
    /// The machine's resolv.conf and hosts, which Pods inherit from.
    pub resolv_conf: PathBuf,
    pub hosts: PathBuf,
}

/// What has to be in force before anything runs under a Pod's addresses.
#[async_trait]
pub trait NetworkRules: Send + Sync {
    /// Waits until the rules for the Pod are in force. Called before each of its containers is made; cheap once they are.
    async fn in_force(&self, pod: &Arc<Pod>, addresses: &[IpAddr]) -> Result<(), Box<dyn Error + Send + Sync>>;
}

pub struct Tools {
    pub cri: Arc<dyn Cri>,
    pub files: Files,
    pub volumes: Volumes,
    pub images: Images,
    pub objects: Arc<dyn Objects>,
    pub events: Arc<dyn Events>,
    pub pods: Arc<dyn PodApi>,
    pub clock: Arc<dyn Clock>,
    pub dirs: PodDirs,
    pub settings: Settings,
    pub probe_counts: ProbeCounts,
    /// `None`: nothing has to be.
    pub network_rules: Option<Arc<dyn NetworkRules>>,
}

impl Tools {
    pub fn node_facts(&self) -> NodeFacts {
        NodeFacts { ips: self.settings.node_ips.clone(), runtime: self.settings.runtime.clone() }
    }

    pub fn field_facts(&self, pod: &Pod, pod_ips: &[IpAddr]) -> FieldFacts {
        let host_network = crate::pod::PodView::new(pod).host_network();
        let pod_ips = if host_network { self.settings.node_ips.clone() } else { pod_ips.to_vec() };
        let host_ips = self.settings.node_ips.clone();
        FieldFacts { pod_ips, host_ips, allocatable: self.settings.allocatable.clone() }
    }
}
