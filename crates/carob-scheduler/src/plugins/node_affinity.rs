//! NodeAffinity: `nodeSelector`, node affinity, and the affinity that a profile adds to every Pod.

use super::Site;
use crate::model::{NodeChoice, PodTemplate};
use crate::plugin::Plugin;
use crate::snapshot::NodeState;
use crate::verdict::Rejection;

pub(crate) fn filter(pod: &PodTemplate, node: &NodeState, site: Site<'_>) -> Option<Rejection> {
    let (name, labels) = (&node.info.name, &node.info.labels);
    if site.profile.added_affinity.as_ref().is_some_and(|added| !added.admits(name, labels)) {
        return Some(Rejection::unresolvable(
            Plugin::NodeAffinity,
            "node(s) didn't match scheduler-enforced node affinity",
        ));
    }
    (!pod.node_choice.admits(name, labels))
        .then(|| Rejection::unresolvable(Plugin::NodeAffinity, "node(s) didn't match Pod's node affinity/selector"))
}

/// The weights of the preferred terms that hold.
pub(crate) fn preferred(pod: &PodTemplate, node: &NodeState, site: Site<'_>) -> i64 {
    let sum = |choice: &NodeChoice| -> i64 {
        let holds = |term: &&crate::model::PreferredNodeTerm| term.term.matches(&node.info.name, &node.info.labels);
        choice.preferred.iter().filter(holds).map(|term| term.weight).sum()
    };
    sum(&pod.node_choice) + site.profile.added_affinity.as_ref().map_or(0, sum)
}
