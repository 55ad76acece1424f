//! NodeName: a Pod that names its node goes there or nowhere.

use super::Site;
use crate::model::PodTemplate;
use crate::plugin::Plugin;
use crate::snapshot::NodeState;
use crate::verdict::Rejection;

pub(crate) fn filter(pod: &PodTemplate, node: &NodeState, _: Site<'_>) -> Option<Rejection> {
    let wants = pod.wants_node.as_ref()?;
    (*wants != node.info.name)
        .then(|| Rejection::unresolvable(Plugin::NodeName, "node(s) didn't match the requested node name"))
}
