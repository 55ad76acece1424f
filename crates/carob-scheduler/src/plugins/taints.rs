//! TaintToleration: taints keep Pods off that do not tolerate them; with PreferNoSchedule they only lower the score.

use super::Site;
use crate::model::{Effect, PodTemplate};
use crate::plugin::Plugin;
use crate::snapshot::NodeState;
use crate::verdict::Rejection;

pub(crate) fn filter(pod: &PodTemplate, node: &NodeState, _: Site<'_>) -> Option<Rejection> {
    repels(pod, node).then(|| Rejection::unresolvable(Plugin::TaintToleration, "node(s) had untolerated taint(s)"))
}

/// Whether the node has a taint with NoSchedule or NoExecute that the Pod does not tolerate.
pub(crate) fn repels(pod: &PodTemplate, node: &NodeState) -> bool {
    node.info.taints.iter().any(|taint| taint.effect != Effect::PreferNoSchedule && !pod.tolerates(taint))
}

/// How many PreferNoSchedule taints of the node the Pod does not tolerate.
pub(crate) fn intolerable(pod: &PodTemplate, node: &NodeState) -> i64 {
    node.info.taints.iter().filter(|taint| taint.effect == Effect::PreferNoSchedule && !pod.tolerates(taint)).count()
        as i64
}
