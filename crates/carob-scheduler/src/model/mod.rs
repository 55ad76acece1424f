//! The scheduler's own compact picture of Pods and Nodes: what a decision needs, converted once, shared by reference.

mod intern;
mod labels;
mod node;
mod pod;
mod resources;
mod volume;

pub use intern::{Pool, Str};
pub use labels::{Labels, NodeRequirement, NodeSelectorTerm, Operator, Requirement, Selector};
pub use node::{Effect, NodeInfo, Taint};
pub use pod::{
    AffinityTerm, GangRef, GangSource, HostPort, NodeChoice, PodAffinity, PodInfo, PodKey, PodTemplate,
    PreferredNodeTerm, SpreadConstraint, Toleration, TolerationOperator, WeightedTerm, WhenUnsatisfiable,
};
pub use resources::{Bytes, MilliCpu, Resource, Resources};
pub use volume::{ClaimFacts, ClaimKey, ClassFacts, DriverLimit, PodVolume, VolumeFacts, VolumeInfo};
