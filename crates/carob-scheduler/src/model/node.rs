//! What the scheduler knows of a node apart from the Pods on it.

use super::{Bytes, Labels, Resources, Str};

/// What a taint does to Pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Taint {
    pub key: Str,
    pub value: Str,
    pub effect: Effect,
}

/// A node's facts, replaced as a whole when the Node changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    pub name: Str,
    pub labels: Labels,
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`: cordoned.
    pub unschedulable: bool,
    /// `status.declaredFeatures`.
    pub declared_features: Vec<Str>,
    pub allocatable: Resources,
    /// `status.allocatable.pods`.
    pub max_pods: i64,
    /// Normalized image names and their sizes, sorted by name.
    pub images: Vec<(Str, Bytes)>,
}

impl NodeInfo {
    /// A node of the given size without labels or taints.
    pub fn new(name: &str, allocatable: Resources, max_pods: i64) -> Self {
        Self {
            name: name.into(),
            labels: Labels::default(),
            taints: Vec::new(),
            unschedulable: false,
            declared_features: Vec::new(),
            allocatable,
            max_pods,
            images: Vec::new(),
        }
    }

    /// The size of an image that is present on the node.
    pub fn image(&self, name: &str) -> Option<Bytes> {
        self.images.binary_search_by(|(held, _)| (**held).cmp(name)).ok().map(|at| self.images[at].1)
    }
}
