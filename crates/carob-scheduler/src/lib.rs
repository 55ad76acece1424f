//! The scheduler: which node each Pod goes to, alone or with its gang, and why one goes nowhere.
//!
//! Start at [`Core::schedule`], a pure decision over a [`Snapshot`]. This crate never writes anything but bindings,
//! status of Pods and groups, victims' evictions, volume and claim choices, events and its lease. Who wants to know why a Pod
//! has no node asks [`Explanations`] in its process, or an [`endpoint`].

mod class;
pub mod config;
pub mod convert;
mod core;
pub mod endpoint;
mod explain;
mod facts;
mod figures;
mod gang;
mod index;
mod local;
mod memory;
mod model;
mod plugin;
mod plugins;
mod preemption;
mod profile;
mod queue;
mod run;
pub mod sim;
mod snapshot;
#[cfg(test)]
mod testing;
mod verdict;

pub use core::{Core, NodeScores};
pub use explain::{Explanation, Explanations, NodeReason};
pub use facts::{Budget, Facts};
pub use figures::Figures;
pub use gang::{GangFailure, GangRequest, GangVerdict, Mates};
pub use model::*;
pub use plugin::{Plugin, PluginSet};
pub use plugins::volumes::ClaimPlan;
pub use profile::{FitStrategy, MAX_SCORE, Profile, ResourceWeight, SpreadDefault};
pub use queue::{ClusterEvent, Counts, GangSpec, GangWait, INITIAL_BACKOFF, MAX_BACKOFF, Next, Queue, Unit};
pub use run::{Scheduler, SchedulerConfig, SchedulerError};
pub use snapshot::{NodeSlot, NodeState, Snapshot};
pub use verdict::{Placement, Preempt, Preemption, Rejection, Unschedulable, Verdict};
