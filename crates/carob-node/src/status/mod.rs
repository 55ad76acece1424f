//! What the API shows of a Pod. Pure; [`status_for`] is the entry, [`patch`] says what of it has to be written.

mod conditions;
mod containers;
pub mod patch;
mod phase;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::config::resources;
use crate::plan::{Intent, KillReason, Observed, is_whole_settled};
use crate::pod::PodView;

/// What stands between the runtime's name and the id in a `containerID`.
const CONTAINER_ID_MARK: &str = "://";

/// The runtime's id in a `containerID`.
pub fn runtime_id(container_id: &str) -> Option<&str> {
    container_id.split_once(CONTAINER_ID_MARK).map(|(_, id)| id)
}

/// What the status of every Pod says of its node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's addresses, the preferred family first; at most one a family.
    pub ips: Vec<IpAddr>,
    /// The runtime's name, which container ids begin with.
    pub runtime: String,
}

impl NodeFacts {
    /// A container's id as the API shows it: `containerd://4f5e…`.
    pub fn container_id(&self, id: &str) -> String {
        format!("{}{CONTAINER_ID_MARK}{id}", self.runtime)
    }
}

/// The status of `pod` as the node sees it now.
///
/// `pod.status` is what the node last wrote or the API last showed: times of transition, restart counts and terminal phases
/// carry over from it, and so does everything that others own.
pub fn status_for(pod: &Pod, observed: &Observed, intent: Intent, facts: &NodeFacts, now: Timestamp) -> PodStatus {
    let view = PodView::new(pod);
    let old = pod.status.clone().unwrap_or_default();
    // What was shown stays where a quantity cannot be read, which never got past the API.
    let given = resources::shown(pod).ok();
    let allocated = given.as_ref().map_or(&old.allocated_resources, |given| &given.requests);
    let mut status = PodStatus {
        allocated_resources: allocated.clone(),
        extended_resource_claim_status: old.extended_resource_claim_status.clone(),
        node_allocatable_resource_claim_statuses: old.node_allocatable_resource_claim_statuses.clone(),
        nominated_node_name: old.nominated_node_name.clone(),
        observed_generation: pod.metadata.generation,
        qos_class: old.qos_class.clone(),
        resize: old.resize.clone(),
        resource_claim_statuses: old.resource_claim_statuses.clone(),
        // What it was given shows once it has it.
        resources: if is_whole_settled(&view, observed) {
            given.or_else(|| old.resources.clone())
        } else {
            old.resources.clone().or(given)
        },
        start_time: old.start_time.clone().or_else(|| Some(Time(whole_seconds(now)))),
        ..PodStatus::default()
    };
    containers::fill(&view, observed, facts, &mut status);
    let over = observed.finished && matches!(intent, Intent::Stop { .. });
    let phase = if over {
        containers_over(&view, observed, &mut status)
    } else {
        phase::phase(&view, observed, &status, false)
    };
    status.phase = Some(phase.to_owned());
    keep_terminal_phase(&old, &mut status);
    match intent {
        Intent::Stop { reason: KillReason::DeadlineExceeded, .. } => {
            status.phase = Some("Failed".to_owned());
            status.reason = Some("DeadlineExceeded".to_owned());
            status.message = Some("Pod was active on the node longer than the specified deadline".to_owned());
        }
        Intent::Run | Intent::Stop { .. } => {}
    }
    addresses(&view, observed, facts, &old, &mut status);
    conditions::fill(&view, observed, &old, &mut status, now);
    status
}

/// The phase of a Pod of which nothing runs or will run. One that ends before its first container started has failed: whoever
/// waits for its end, as its finalizers' owners do, would wait for ever (kubelet `TerminatePod`).
fn containers_over(view: &PodView<'_>, observed: &Observed, status: &mut PodStatus) -> &'static str {
    let phase = phase::phase(view, observed, status, true);
    containers::terminate(view, status);
    if matches!(phase, "Succeeded" | "Failed") { phase } else { "Failed" }
}

/// A Pod that is over stays over, whatever its containers look like (kubelet `generateAPIPodStatus`).
fn keep_terminal_phase(old: &PodStatus, status: &mut PodStatus) {
    let was = old.phase.as_deref();
    if matches!(was, Some("Succeeded" | "Failed")) {
        status.phase.clone_from(&old.phase);
    }
    if status.phase.as_deref() == was {
        status.reason.clone_from(&old.reason);
        status.message.clone_from(&old.message);
    }
}

fn addresses(view: &PodView<'_>, observed: &Observed, facts: &NodeFacts, old: &PodStatus, status: &mut PodStatus) {
    let host: Vec<String> = facts.ips.iter().map(ToString::to_string).collect();
    status.host_ip = host.first().cloned();
    status.host_ips = (!host.is_empty()).then(|| host.iter().map(|ip| HostIP { ip: ip.clone() }).collect());
    let mut ips: Vec<String> = if view.host_network() {
        // They never change once shown: a node's address may.
        let shown: Vec<String> = old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
        if shown.is_empty() { host } else { shown }
    } else {
        observed.sandbox.iter().flat_map(|sandbox| &sandbox.ips).map(ToString::to_string).collect()
    };
    if ips.is_empty() && observed.stopping_since.is_some() {
        // A stopped sandbox has given its addresses back; what was shown stays until the Pod is gone.
        ips = old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
    }
    status.pod_ip = ips.first().cloned();
    status.pod_ips = (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect());
}

/// Times in the API are whole seconds; comparing finer ones would see changes where none can be shown.
pub(crate) fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
