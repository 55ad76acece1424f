//! Small Pods and nodes for this crate's unit tests.

use std::sync::Arc;

use crate::model::{Bytes, MilliCpu, NodeInfo, PodInfo, PodKey, PodTemplate, Resources};
use crate::snapshot::{NodeState, Snapshot};

/// A node without labels that takes 110 Pods.
pub(crate) fn node(name: &str, cpu: i64, memory: i64) -> NodeInfo {
    NodeInfo::new(name, Resources::new(MilliCpu(cpu), Bytes(memory)), 110)
}

pub(crate) fn plain(cpu: i64, memory: i64) -> PodTemplate {
    PodTemplate::plain("default", Resources::new(MilliCpu(cpu), Bytes(memory)))
}

/// A Pod whose name is its uid.
pub(crate) fn pod(name: &str, template: PodTemplate) -> Arc<PodInfo> {
    Arc::new(PodInfo::new(PodKey::new(&template.namespace, name), name, Arc::new(template)))
}

/// A node with these Pods on it.
pub(crate) fn state(info: NodeInfo, pods: &[PodTemplate]) -> NodeState {
    let mut snapshot = Snapshot::default();
    let name = Arc::clone(&info.name);
    let slot = snapshot.set_node(info);
    for (index, template) in pods.iter().enumerate() {
        snapshot.add_pod(pod(&format!("p{index}"), template.clone()), &name);
    }
    snapshot.node(slot).expect("the node was just set").clone()
}
