//! NodeDeclaredFeatures: nodes declare what not every version of a node can do, and a Pod that needs it goes there only.

use super::Site;
use crate::model::{NodeInfo, PodTemplate};
use crate::plugin::Plugin;
use crate::snapshot::NodeState;
use crate::verdict::Rejection;

pub(crate) fn filter(pod: &PodTemplate, node: &NodeState, _: Site<'_>) -> Option<Rejection> {
    (!has_all(pod, &node.info))
        .then(|| Rejection::unresolvable(Plugin::NodeDeclaredFeatures, "node(s) didn't match Pod's required features"))
}

pub(crate) fn has_all(pod: &PodTemplate, node: &NodeInfo) -> bool {
    pod.needs_feature.as_ref().is_none_or(|needed| node.declared_features.contains(needed))
}
