//! Gangs: enough members get a node in one decision, or none does. Nothing is held while a gang is tried or waits, so gangs
//! cannot block each other.

mod domain;
mod preempt;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::core::Core;
use crate::model::{GangRef, PodInfo};
use crate::plugin::{Plugin, PluginSet};
use crate::queue::GangSpec;
use crate::snapshot::Snapshot;
use crate::verdict::{Placement, Preempt, Unschedulable, Verdict};

pub(crate) use domain::Domain;

/// The Pods that have to go together with a victim.
pub type Mates<'a> = &'a dyn Fn(&PodInfo, &Snapshot) -> Vec<Arc<PodInfo>>;

/// A gang to place.
#[derive(Clone, Copy, Debug)]
pub struct GangRequest<'a> {
    pub gang: &'a GangRef,
    pub spec: &'a GangSpec,
    /// The members without a node, in the order in which they are placed.
    pub pods: &'a [Arc<PodInfo>],
    /// How many members have a node.
    pub placed: usize,
}

/// What was decided about a gang.
#[derive(Clone, Debug)]
pub enum GangVerdict {
    /// These members get these nodes, and are on them in the snapshot already. Members beyond the minimum that found none
    /// wait on.
    Placed {
        placed: Vec<(Arc<PodInfo>, Placement)>,
        waiting: Vec<(Arc<PodInfo>, Unschedulable)>,
    },
    Unschedulable(GangFailure),
}

/// Why a gang got no nodes.
#[derive(Clone, Debug)]
pub struct GangFailure {
    pub gang: GangRef,
    pub min_count: usize,
    /// How many members could have had a node, those that have one included.
    pub scheduled: usize,
    pub remaining: usize,
    /// What the members that found no node were told.
    pub failed: Vec<(Arc<PodInfo>, Unschedulable)>,
    /// Victims whose eviction makes room for the whole gang, with the member that is promised the room. Empty: none do.
    pub preemption: Vec<(Arc<PodInfo>, Preempt)>,
    /// Victims are leaving already: what the members were promised stays theirs.
    pub pending: bool,
}

impl GangFailure {
    /// The message of the group's and its members' condition.
    pub fn message(&self) -> String {
        let Self { gang, min_count, scheduled, remaining, .. } = self;
        let why = self.failed.first().map(|(_, why)| format!(". {}", why.message())).unwrap_or_default();
        format!(
            "pod group \"{}\": minCount ({min_count}) cannot be satisfied: {scheduled} scheduled, {remaining} remaining{why}",
            gang.name
        )
    }

    pub fn plugins(&self) -> PluginSet {
        let mut plugins: PluginSet = [Plugin::GangScheduling].into_iter().collect();
        for plugin in self.failed.iter().flat_map(|(_, why)| why.plugins().iter().collect::<Vec<_>>()) {
            plugins.insert(plugin);
        }
        plugins
    }
}

impl Core {
    /// Places a gang, or leaves the snapshot as it was.
    pub fn schedule_gang(
        &mut self,
        request: GangRequest<'_>,
        snapshot: &mut Snapshot,
        seed: u64,
        mates: Mates<'_>,
    ) -> GangVerdict {
        let mut best: Option<Attempt> = None;
        for domain in &domain::to_place(request, snapshot) {
            let attempt = self.attempt(request, domain, snapshot, seed);
            if attempt.suffices(request) {
                return GangVerdict::Placed { placed: attempt.placed, waiting: attempt.failed };
            }
            attempt.undo(snapshot);
            if best.as_ref().is_none_or(|best| attempt.placed.len() > best.placed.len()) {
                best = Some(attempt);
            }
        }
        let best = best.unwrap_or_default();
        let pending = preempt::is_pending(request, snapshot);
        // Members beyond the minimum evict nobody.
        let satisfied = request.placed >= request.spec.min_count;
        let plan = if pending || satisfied { None } else { self.preempt_for(request, snapshot, seed, mates) };
        let preemption = match plan {
            // Another order of placing them needed no victims at all.
            Some(plan) if plan.victims.is_empty() => {
                for (pod, placement) in &plan.placed {
                    snapshot.add_pod(Arc::clone(pod), &placement.node);
                }
                let left = |pod: &PodInfo| plan.placed.iter().all(|(placed, _)| placed.uid != pod.uid);
                let waiting = best.failed.into_iter().filter(|(pod, _)| left(pod)).collect();
                return GangVerdict::Placed { placed: plan.placed, waiting };
            }
            Some(plan) => plan.by_member(snapshot),
            None => Vec::new(),
        };
        GangVerdict::Unschedulable(GangFailure {
            gang: request.gang.clone(),
            min_count: request.spec.min_count,
            scheduled: best.placed.len() + request.placed,
            remaining: request.pods.len() - best.placed.len(),
            failed: best.failed,
            preemption,
            pending,
        })
    }

    fn attempt(
        &mut self,
        request: GangRequest<'_>,
        domain: &Option<Domain>,
        snapshot: &mut Snapshot,
        seed: u64,
    ) -> Attempt {
        let mut attempt = Attempt::default();
        for (index, pod) in request.pods.iter().enumerate() {
            match self.schedule_within(pod, snapshot, seed ^ index as u64, domain.as_ref()) {
                Verdict::Placed(placement) => {
                    snapshot.add_pod(Arc::clone(pod), &placement.node);
                    attempt.placed.push((Arc::clone(pod), placement));
                }
                Verdict::Unschedulable(why) => {
                    attempt.failed.push((Arc::clone(pod), why));
                    let left = request.pods.len() - index - 1;
                    if attempt.placed.len() + request.placed + left < request.spec.min_count {
                        break;
                    }
                }
            }
        }
        attempt
    }
}

/// Members placed so far, and what the others were told.
#[derive(Debug, Default)]
struct Attempt {
    placed: Vec<(Arc<PodInfo>, Placement)>,
    failed: Vec<(Arc<PodInfo>, Unschedulable)>,
}

impl Attempt {
    fn suffices(&self, request: GangRequest<'_>) -> bool {
        !self.placed.is_empty() && self.placed.len() + request.placed >= request.spec.min_count
    }

    fn undo(&self, snapshot: &mut Snapshot) {
        for (pod, _) in &self.placed {
            snapshot.remove_pod(&pod.uid);
        }
    }
}
