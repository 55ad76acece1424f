//! Which change in the cluster can help which Pod: upstream's queueing hints, plugin by plugin.

use crate::model::{AffinityTerm, GangRef, NodeInfo, PodInfo, PodTemplate};
use crate::plugin::Plugin;
use crate::plugins::features;

/// A change that may make room for a Pod.
#[derive(Clone, Copy, Debug)]
pub enum ClusterEvent<'a> {
    NodeAdded(&'a NodeInfo),
    NodeChanged {
        old: &'a NodeInfo,
        new: &'a NodeInfo,
    },
    NodeRemoved,
    /// A Pod got a node.
    PodPlaced(&'a PodInfo),
    /// A Pod ended or was deleted.
    PodGone(&'a PodInfo),
    /// A placed Pod's labels or requests changed.
    PodChanged {
        old: &'a PodInfo,
        new: &'a PodInfo,
    },
    /// A claim, volume, storage class or attach limit changed.
    VolumesChanged,
    NamespaceChanged,
    /// Something of a group other than its members changed.
    GangChanged(&'a GangRef),
}

impl ClusterEvent<'_> {
    /// Whether a plugin cares for events of this kind at all.
    pub(super) fn concerns(&self, plugin: Plugin) -> bool {
        let node_only = matches!(
            plugin,
            Plugin::NodeUnschedulable
                | Plugin::NodeName
                | Plugin::TaintToleration
                | Plugin::NodeAffinity
                | Plugin::NodeDeclaredFeatures
        );
        let volumes = matches!(
            plugin,
            Plugin::VolumeRestrictions | Plugin::NodeVolumeLimits | Plugin::VolumeBinding | Plugin::VolumeZone
        );
        match self {
            Self::NodeAdded(_) | Self::NodeChanged { .. } => plugin != Plugin::SchedulingGates,
            Self::NodeRemoved => plugin == Plugin::PodTopologySpread,
            Self::PodPlaced(_) => {
                matches!(plugin, Plugin::PodTopologySpread | Plugin::InterPodAffinity | Plugin::GangScheduling)
            }
            Self::PodGone(_) | Self::PodChanged { .. } => !node_only,
            Self::VolumesChanged => volumes,
            Self::NamespaceChanged => plugin == Plugin::InterPodAffinity,
            Self::GangChanged(_) => plugin == Plugin::GangScheduling,
        }
    }

    /// Whether this change may make a Pod fit that the plugin rejected.
    pub(super) fn helps(&self, plugin: Plugin, pod: &PodInfo) -> bool {
        match self {
            Self::NodeAdded(node) => new_node_helps(plugin, &pod.template, node),
            Self::NodeChanged { old, new } => changed_node_helps(plugin, &pod.template, old, new),
            Self::NodeRemoved | Self::VolumesChanged | Self::NamespaceChanged => true,
            Self::PodPlaced(other) => placed_pod_helps(plugin, &pod.template, other),
            Self::PodGone(other) => gone_pod_helps(plugin, pod, other),
            Self::PodChanged { old, new } => {
                gone_pod_helps(plugin, pod, old) || placed_pod_helps(plugin, &pod.template, new)
            }
            Self::GangChanged(gang) => pod.template.gang.as_ref() == Some(*gang),
        }
    }
}

fn new_node_helps(plugin: Plugin, pod: &PodTemplate, node: &NodeInfo) -> bool {
    match plugin {
        Plugin::NodeUnschedulable => !node.unschedulable,
        Plugin::NodeName => pod.wants_node.as_ref() == Some(&node.name),
        Plugin::TaintToleration => tolerates_all(pod, node),
        Plugin::NodeAffinity => pod.node_choice.admits(&node.name, &node.labels),
        Plugin::NodeResourcesFit => has_room_when_empty(pod, node),
        Plugin::NodeDeclaredFeatures => features::has_all(pod, node),
        _ => true,
    }
}

fn changed_node_helps(plugin: Plugin, pod: &PodTemplate, old: &NodeInfo, new: &NodeInfo) -> bool {
    let relabelled = old.labels != new.labels;
    match plugin {
        Plugin::NodeUnschedulable => old.unschedulable && !new.unschedulable,
        Plugin::TaintToleration => !tolerates_all(pod, old) && tolerates_all(pod, new),
        Plugin::NodeAffinity => {
            !pod.node_choice.admits(&old.name, &old.labels) && pod.node_choice.admits(&new.name, &new.labels)
        }
        Plugin::NodeResourcesFit => {
            (old.allocatable != new.allocatable || old.max_pods < new.max_pods) && has_room_when_empty(pod, new)
        }
        Plugin::NodeDeclaredFeatures => !features::has_all(pod, old) && features::has_all(pod, new),
        Plugin::PodTopologySpread => relabelled || old.taints != new.taints,
        Plugin::InterPodAffinity | Plugin::VolumeBinding | Plugin::VolumeZone => relabelled,
        Plugin::NodeName | Plugin::NodePorts | Plugin::VolumeRestrictions | Plugin::NodeVolumeLimits => false,
        _ => {
            relabelled
                || old.allocatable != new.allocatable
                || old.taints != new.taints
                || old.unschedulable != new.unschedulable
        }
    }
}

fn tolerates_all(pod: &PodTemplate, node: &NodeInfo) -> bool {
    node.taints.iter().all(|taint| taint.effect == crate::model::Effect::PreferNoSchedule || pod.tolerates(taint))
}

fn has_room_when_empty(pod: &PodTemplate, node: &NodeInfo) -> bool {
    let (wants, has) = (&pod.requests, &node.allocatable);
    node.max_pods > 0
        && wants.cpu <= has.cpu
        && wants.memory <= has.memory
        && wants.ephemeral <= has.ephemeral
        && wants.scalars().iter().all(|(name, amount)| *amount <= has.scalar(name))
}

/// Terms are matched by labels and named namespaces here; a namespace selector counts as a match, to be safe.
fn may_match(term: &AffinityTerm, other: &PodTemplate) -> bool {
    term.selector.matches(&other.labels)
        && (term.namespaces.contains(&other.namespace) || term.namespace_selector != crate::model::Selector::Nothing)
}

fn placed_pod_helps(plugin: Plugin, pod: &PodTemplate, other: &PodInfo) -> bool {
    match plugin {
        Plugin::PodTopologySpread => counts_for_spread(pod, &other.template),
        Plugin::InterPodAffinity => pod.affinity.required.iter().any(|term| may_match(term, &other.template)),
        Plugin::GangScheduling => pod.gang.is_some() && pod.gang == other.template.gang,
        _ => false,
    }
}

fn counts_for_spread(pod: &PodTemplate, other: &PodTemplate) -> bool {
    pod.namespace == other.namespace
        && (pod.spread.is_empty() || pod.spread.iter().any(|constraint| constraint.selector.matches(&other.labels)))
}

fn gone_pod_helps(plugin: Plugin, pod: &PodInfo, other: &PodInfo) -> bool {
    let (own, theirs) = (&pod.template, &other.template);
    match plugin {
        Plugin::NodePorts => {
            own.host_ports.iter().any(|port| theirs.host_ports.iter().any(|taken| port.conflicts(taken)))
        }
        // A place on the node is a resource too, so every Pod that goes may help.
        Plugin::NodeResourcesFit | Plugin::GangScheduling => true,
        Plugin::VolumeRestrictions | Plugin::NodeVolumeLimits | Plugin::VolumeBinding => !theirs.volumes.is_empty(),
        Plugin::PodTopologySpread => counts_for_spread(own, theirs),
        Plugin::InterPodAffinity => {
            own.affinity.required_anti.iter().any(|term| may_match(term, theirs))
                || theirs.affinity.required_anti.iter().any(|term| may_match(term, own))
                || own.affinity.required.iter().any(|term| may_match(term, theirs))
        }
        _ => false,
    }
}
