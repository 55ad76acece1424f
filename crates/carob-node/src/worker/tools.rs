//! What every Pod worker works with.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use carob_cri::{Cri, CriError};
use carob_kit::Clock;
use k8s_openapi::api::core::v1::Pod;

use crate::api::PodApi;
use crate::config::network::ClusterDns;
use crate::config::resources::Machine;
use crate::devices::Devices;
use crate::env::fields::FieldFacts;
use crate::events::Events;
use crate::figures::NodeFigures;
use crate::files::Files;
use crate::image::Images;
use crate::objects::Objects;
use crate::paths::PodDirs;
use crate::probe::counts::ProbeCounts;
use crate::status::NodeFacts;
use crate::user_ranges::UserRanges;
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
    pub user_ranges: Arc<UserRanges>,
    pub devices: Devices,
    pub settings: Settings,
    pub probe_counts: ProbeCounts,
    pub figures: NodeFigures,
    /// `None`: nothing has to be.
    pub network_rules: Option<Arc<dyn NetworkRules>>,
}

/// What stands in for a limit that a container does not set: its Pod's, else what the node has (kubelet
/// `pkg/kubelet/kubelet_resources.go`).
fn ceilings(allocatable: &BTreeMap<String, String>, pod: &Pod) -> BTreeMap<String, String> {
    let mut ceilings = allocatable.clone();
    let limits = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.limits.as_ref());
    for name in ["cpu", "memory"] {
        let limit = limits.and_then(|limits| limits.get(name)).filter(|limit| limit.0 != "0");
        if let (Some(ceiling), Some(limit)) = (ceilings.get_mut(name), limit) {
            ceiling.clone_from(&limit.0);
        }
    }
    ceilings
}

impl Tools {
    /// Carries out a call to the runtime, and counts it.
    pub async fn operation<T>(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<T, CriError>>,
    ) -> Result<T, CriError> {
        let since = self.clock.monotonic();
        let outcome = call.await;
        self.figures.operation(name, outcome.is_err(), self.clock.monotonic().saturating_sub(since));
        outcome
    }

    pub fn node_facts(&self) -> NodeFacts {
        NodeFacts { ips: self.settings.node_ips.clone(), runtime: self.settings.runtime.clone() }
    }

    pub fn field_facts(&self, pod: &Pod, pod_ips: &[IpAddr]) -> FieldFacts {
        let host_network = crate::pod::PodView::new(pod).host_network();
        let pod_ips = if host_network { self.settings.node_ips.clone() } else { pod_ips.to_vec() };
        let host_ips = self.settings.node_ips.clone();
        FieldFacts { pod_ips, host_ips, allocatable: ceilings(&self.settings.allocatable, pod) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_the_pod_stands_in_for_its_containers() {
        let allocatable = [("cpu", "4"), ("memory", "8Gi"), ("ephemeral-storage", "9Gi")];
        let allocatable = allocatable.map(|(name, amount)| (name.to_owned(), amount.to_owned())).into();
        let pod = |resources| -> Pod {
            let spec = serde_json::json!({"containers": [{"name": "a"}], "resources": resources});
            serde_json::from_value(serde_json::json!({"spec": spec})).expect("a Pod")
        };
        let limited = ceilings(&allocatable, &pod(serde_json::json!({"limits": {"memory": "64Mi", "x": "1"}})));
        let shown: Vec<_> = limited.iter().map(|(name, amount)| (name.as_str(), amount.as_str())).collect();
        assert_eq!(shown, [("cpu", "4"), ("ephemeral-storage", "9Gi"), ("memory", "64Mi")]);
        assert_eq!(ceilings(&allocatable, &pod(serde_json::json!(null))), allocatable);
    }
}
