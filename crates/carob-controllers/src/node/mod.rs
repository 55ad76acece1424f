//! What happens to Nodes: an address range each, their health as seen from here, and what follows from it for their Pods.

pub(crate) mod eviction;
pub(crate) mod health;
pub(crate) mod ipam;
mod lifecycle;
mod ranges;
pub(crate) mod taints;

pub(crate) use lifecycle::NodeLifecycle;
