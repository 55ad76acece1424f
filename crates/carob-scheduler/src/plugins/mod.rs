//! Upstream's plugins, each in a module of its own, with its semantics, reasons and scores.
//!
//! Plugins that look at one node only are functions of this module's [`filter`] and [`score`]; their results are cached
//! per class and node. The two that look at the whole cluster, [`spread`] and [`interpod`], keep counters instead.

pub(crate) mod balanced;
pub(crate) mod counter;
pub(crate) mod features;
pub(crate) mod fit;
pub(crate) mod image_locality;
pub(crate) mod interpod;
pub(crate) mod node_affinity;
pub(crate) mod node_name;
pub(crate) mod node_ports;
pub(crate) mod spread;
pub(crate) mod taints;
#[cfg(test)]
mod tests;
pub(crate) mod unschedulable;
pub(crate) mod volumes;

use crate::facts::Facts;
use crate::model::PodTemplate;
use crate::plugin::Plugin;
use crate::profile::Profile;
use crate::snapshot::NodeState;
use crate::verdict::Rejection;

/// What node-local plugins may look at beside the Pod and the node.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) profile: &'a Profile,
    pub(crate) facts: &'a Facts,
    /// How many nodes there are.
    pub(crate) nodes: usize,
}

/// What node-local plugins give a node. Some scores only mean something beside those of the other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LocalScores {
    pub(crate) fit: i32,
    pub(crate) balanced: i32,
    pub(crate) images: i32,
    /// Taints with PreferNoSchedule that the Pod does not tolerate, before normalization.
    pub(crate) intolerable: i32,
    /// The weights of the preferred node affinity terms that hold, before normalization.
    pub(crate) preferred: i32,
}

type Filter = fn(&PodTemplate, &NodeState, Site<'_>) -> Option<Rejection>;

/// The node-local filters in upstream's order; the first that rejects gives the reason.
const FILTERS: [(Plugin, Filter); 11] = [
    (Plugin::NodeUnschedulable, unschedulable::filter),
    (Plugin::NodeName, node_name::filter),
    (Plugin::TaintToleration, taints::filter),
    (Plugin::NodeAffinity, node_affinity::filter),
    (Plugin::NodePorts, node_ports::filter),
    (Plugin::NodeResourcesFit, fit::filter),
    (Plugin::VolumeRestrictions, volumes::restrictions),
    (Plugin::NodeVolumeLimits, volumes::limits),
    (Plugin::VolumeBinding, volumes::binding),
    (Plugin::VolumeZone, volumes::zone),
    (Plugin::NodeDeclaredFeatures, features::filter),
];

pub(crate) fn filter(pod: &PodTemplate, node: &NodeState, site: Site<'_>) -> Option<Rejection> {
    FILTERS.iter().filter(|(plugin, _)| site.profile.runs(*plugin)).find_map(|(_, filter)| filter(pod, node, site))
}

pub(crate) fn score(pod: &PodTemplate, node: &NodeState, site: Site<'_>) -> LocalScores {
    // Scores are at most 100, counts of taints and sums of weights at most some thousands.
    let small = |score: i64| i32::try_from(score).unwrap_or(i32::MAX);
    let scored =
        |plugin: Plugin, score: &dyn Fn() -> i64| if site.profile.weight(plugin) == 0 { 0 } else { small(score()) };
    LocalScores {
        fit: scored(Plugin::NodeResourcesFit, &|| fit::score(pod, node, site)),
        balanced: scored(Plugin::NodeResourcesBalancedAllocation, &|| balanced::score(pod, node, site)),
        images: scored(Plugin::ImageLocality, &|| image_locality::score(pod, node, site)),
        intolerable: scored(Plugin::TaintToleration, &|| taints::intolerable(pod, node)),
        preferred: scored(Plugin::NodeAffinity, &|| node_affinity::preferred(pod, node, site)),
    }
}
