//! A Pod's sandbox as the runtime is told of it.

use std::collections::BTreeMap;

use carob_cri::v1::{DnsConfig, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol};
use k8s_openapi::api::core::v1::Pod;

use super::resources::{self, Machine, ResourceError};
use super::{labels, security};
use crate::paths::PodDirs;
use crate::pod::{PodId, PodView};
use crate::user_ranges::UserRange;

/// What the config needs from outside the Pod.
#[derive(Debug, Clone)]
pub struct SandboxFacts {
    pub attempt: u32,
    pub hostname: String,
    pub dns: DnsConfig,
    /// Of a Pod with a user namespace of its own.
    pub users: Option<UserRange>,
    pub seccomp_default: bool,
    /// The group below which Pods have theirs.
    pub cgroup_root: String,
    pub machine: Machine,
}

pub fn config(pod: &Pod, facts: SandboxFacts, dirs: &PodDirs) -> Result<PodSandboxConfig, ResourceError> {
    let id = PodId::of(pod);
    let view = PodView::new(pod);
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let sysctls = context.iter().flat_map(|context| context.sysctls.iter().flatten());
    let linux = LinuxPodSandboxConfig {
        cgroup_parent: resources::cgroup_parent(&facts.cgroup_root, resources::qos(pod)?, &id.uid),
        security_context: Some(security::sandbox(pod, facts.users, facts.seccomp_default)),
        sysctls: sysctls.map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
        overhead: resources::overhead(pod)?,
        resources: Some(resources::pod_on(pod, &facts.machine)?),
    };
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: id.name.clone(),
            uid: id.uid.clone(),
            namespace: id.namespace.clone(),
            attempt: facts.attempt,
        }),
        // In the machine's network the machine's name holds.
        hostname: if view.host_network() { String::new() } else { facts.hostname },
        log_directory: dirs.pod_logs(&id).display().to_string(),
        dns_config: Some(facts.dns),
        port_mappings: if view.host_network() { Vec::new() } else { port_mappings(&view) },
        labels: pod_labels(pod, &id),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        linux: Some(linux),
    })
}

fn pod_labels(pod: &Pod, id: &PodId) -> BTreeMap<String, String> {
    let mut all = pod.metadata.labels.clone().unwrap_or_default();
    all.insert(labels::POD_NAME.to_owned(), id.name.clone());
    all.insert(labels::POD_NAMESPACE.to_owned(), id.namespace.clone());
    all.insert(labels::POD_UID.to_owned(), id.uid.clone());
    all
}

fn port_mappings(view: &PodView<'_>) -> Vec<PortMapping> {
    let members = view.members();
    let ports = members.iter().flat_map(|member| member.spec.ports.iter().flatten());
    ports
        .map(|port| PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            }
            .into(),
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}
