//! NodePorts: a host port is taken once per address and protocol.

use super::Site;
use crate::model::PodTemplate;
use crate::plugin::Plugin;
use crate::snapshot::NodeState;
use crate::verdict::Rejection;

pub(crate) fn filter(pod: &PodTemplate, node: &NodeState, _: Site<'_>) -> Option<Rejection> {
    if pod.host_ports.is_empty() {
        return None;
    }
    let taken = || node.pods().iter().flat_map(|other| &other.template.host_ports);
    pod.host_ports
        .iter()
        .any(|port| taken().any(|other| port.conflicts(other)))
        .then(|| Rejection::resolvable(Plugin::NodePorts, "node(s) didn't have free ports for the requested pod ports"))
}
