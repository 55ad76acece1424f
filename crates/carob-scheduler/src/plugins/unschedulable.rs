//! NodeUnschedulable: cordoned nodes take no Pods but those that tolerate the cordon's taint.

use super::Site;
use crate::model::{Effect, PodTemplate, Taint};
use crate::plugin::Plugin;
use crate::snapshot::NodeState;
use crate::verdict::Rejection;

pub(crate) fn filter(pod: &PodTemplate, node: &NodeState, _: Site<'_>) -> Option<Rejection> {
    if !node.info.unschedulable {
        return None;
    }
    let cordon = Taint { key: "node.kubernetes.io/unschedulable".into(), value: "".into(), effect: Effect::NoSchedule };
    (!pod.tolerates(&cordon)).then(|| Rejection::unresolvable(Plugin::NodeUnschedulable, "node(s) were unschedulable"))
}
