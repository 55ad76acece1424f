//! Room for a whole gang at once: enough members get room, or nobody is evicted; a victim's mates go with it.

use std::sync::Arc;

use super::{Attempt, Domain, GangRequest, Mates, domain};
use crate::core::Core;
use crate::model::{PodInfo, Str};
use crate::preemption::by_budget;
use crate::snapshot::Snapshot;
use crate::verdict::{Placement, Preempt, Preemption, Unschedulable, Verdict};

/// So many domains are tried for room at most, the best first: each try looks at every node for every member.
const DOMAINS_MAX: usize = 16;
/// So many victims (or groups that go together) are tried whether they can stay; the least important beyond it go.
const REPRIEVES_MAX: usize = 256;

/// Where enough members go once the victims are gone.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) placed: Vec<(Arc<PodInfo>, Placement)>,
    /// Those that go, with their nodes, the most important first.
    pub(super) victims: Vec<(Arc<PodInfo>, Str)>,
    violations: usize,
}

impl Plan {
    /// Least first: protected victims, the highest priority among them, how many there are.
    fn cost(&self) -> (usize, Option<i32>, usize) {
        let highest = self.victims.iter().map(|(pod, _)| pod.template.priority).max();
        (self.violations, highest, self.victims.len())
    }

    /// What each member is promised. A victim goes for the first member on its node, or else for the first of all.
    pub(super) fn by_member(self, snapshot: &Snapshot) -> Vec<(Arc<PodInfo>, Preempt)> {
        let mut plans: Vec<(Arc<PodInfo>, Preempt)> = Vec::new();
        for (pod, placement) in self.placed {
            let Some(slot) = snapshot.slot(&placement.node) else { continue };
            plans.push((pod, Preempt { slot, node: placement.node, victims: Vec::new(), violations: 0 }));
        }
        for (victim, node) in self.victims {
            let here = plans.iter().position(|(_, plan)| plan.node == node).unwrap_or(0);
            plans[here].1.victims.push(victim);
        }
        if let Some((_, plan)) = plans.iter_mut().find(|(_, plan)| !plan.victims.is_empty()) {
            plan.violations = self.violations;
        }
        plans
    }
}

/// Whether Pods that make room for a member are on their way out already (as PodEligibleToPreemptOthers).
pub(super) fn is_pending(request: GangRequest<'_>, snapshot: &Snapshot) -> bool {
    request.pods.iter().any(|pod| {
        let node = snapshot.nomination(&pod.uid).and_then(|node| snapshot.node(snapshot.slot(node)?));
        let leaving = |victim: &Arc<PodInfo>| victim.preempted && victim.template.priority < pod.template.priority;
        node.is_some_and(|node| node.pods().iter().any(leaving))
    })
}

impl Core {
    /// The cheapest way to make room for the minimum of a gang. The snapshot is as before afterwards.
    pub(super) fn preempt_for(
        &mut self,
        request: GangRequest<'_>,
        snapshot: &mut Snapshot,
        seed: u64,
        mates: Mates<'_>,
    ) -> Option<Plan> {
        let mut best: Option<Plan> = None;
        for domain in domain::to_preempt(request, snapshot).iter().take(DOMAINS_MAX) {
            let Some(plan) = self.make_room(request, domain, snapshot, seed, mates) else { continue };
            if best.as_ref().is_none_or(|best| plan.cost() < best.cost()) {
                best = Some(plan);
            }
        }
        best
    }

    fn make_room(
        &mut self,
        request: GangRequest<'_>,
        domain: &Option<Domain>,
        snapshot: &mut Snapshot,
        seed: u64,
        mates: Mates<'_>,
    ) -> Option<Plan> {
        let mut trial = Trial::default();
        for (index, pod) in request.pods.iter().enumerate() {
            // Members beyond the minimum evict nobody.
            if trial.members.len() + request.placed >= request.spec.min_count {
                break;
            }
            match self.schedule_within(pod, snapshot, seed ^ index as u64, domain.as_ref()) {
                Verdict::Placed(placement) => trial.assume(pod, placement, Vec::new(), snapshot),
                Verdict::Unschedulable(Unschedulable { preemption: Preemption::Proposed(plan), .. }) => {
                    let units = plan.victims.iter().map(|victim| together(victim, snapshot, mates)).collect::<Vec<_>>();
                    let lower = |victim: &Arc<PodInfo>| victim.template.priority < pod.template.priority;
                    // A group that goes together stays if one of it may not be evicted.
                    if units.iter().flatten().all(lower) {
                        let placement = Placement { slot: plan.slot, node: plan.node, score: 0 };
                        trial.assume(pod, placement, units, snapshot);
                    }
                }
                Verdict::Unschedulable(_) => {}
            }
        }
        let enough = trial.members.len() + request.placed >= request.spec.min_count;
        trial.withdraw_members(snapshot);
        let plan = enough.then(|| self.reprieve(request, domain, snapshot, seed, &mut trial));
        trial.give_back_all(snapshot);
        plan
    }

    /// Gives back whom the gang does not need gone, the most important first.
    fn reprieve(
        &mut self,
        request: GangRequest<'_>,
        domain: &Option<Domain>,
        snapshot: &mut Snapshot,
        seed: u64,
        trial: &mut Trial,
    ) -> Plan {
        trial.evicted.sort_by(|a, b| a.iter().map(rank).min().cmp(&b.iter().map(rank).min()));
        let mut placed = std::mem::take(&mut trial.members);
        let mut victims = Vec::new();
        for (tries, unit) in trial.evicted.iter().enumerate() {
            if tries < REPRIEVES_MAX {
                give_back(unit, snapshot);
                let attempt = self.attempt_minimum(request, domain, snapshot, seed);
                attempt.undo(snapshot);
                if attempt.suffices(request) {
                    placed = attempt.placed;
                    continue;
                }
                take(unit, snapshot);
            }
            victims.extend(unit.iter().cloned());
        }
        victims.sort_by(|(a, _), (b, _)| a.importance().cmp(&b.importance()));
        let pods: Vec<_> = victims.iter().map(|(pod, _)| Arc::clone(pod)).collect();
        let violations = by_budget(&pods, snapshot.facts()).0.len();
        Plan { placed, victims, violations }
    }

    fn attempt_minimum(
        &mut self,
        request: GangRequest<'_>,
        domain: &Option<Domain>,
        snapshot: &mut Snapshot,
        seed: u64,
    ) -> Attempt {
        let mut attempt = self.attempt(request, domain, snapshot, seed);
        let needed = request.spec.min_count.saturating_sub(request.placed);
        for (pod, _) in attempt.placed.drain(needed.min(attempt.placed.len())..) {
            snapshot.remove_pod(&pod.uid);
        }
        attempt
    }
}

/// A Pod that is thought away, and its node.
type Evicted = (Arc<PodInfo>, Str);

fn rank((pod, _): &Evicted) -> impl Ord + use<'_> {
    pod.importance()
}

/// A victim and those that go with it.
fn together(victim: &Arc<PodInfo>, snapshot: &Snapshot, mates: Mates<'_>) -> Vec<Arc<PodInfo>> {
    let mut unit = mates(victim, snapshot);
    if !unit.contains(victim) {
        unit.push(Arc::clone(victim));
    }
    unit
}

fn take(unit: &[Evicted], snapshot: &mut Snapshot) {
    for (pod, _) in unit {
        snapshot.remove_pod(&pod.uid);
    }
}

fn give_back(unit: &[Evicted], snapshot: &mut Snapshot) {
    for (pod, node) in unit {
        snapshot.add_pod(Arc::clone(pod), node);
    }
}

/// A gang placed on room that its victims would leave.
#[derive(Debug, Default)]
struct Trial {
    members: Vec<(Arc<PodInfo>, Placement)>,
    /// Those that go together are one entry.
    evicted: Vec<Vec<Evicted>>,
}

impl Trial {
    fn assume(
        &mut self,
        pod: &Arc<PodInfo>,
        placement: Placement,
        units: Vec<Vec<Arc<PodInfo>>>,
        snapshot: &mut Snapshot,
    ) {
        let home = |uid: &str, snapshot: &Snapshot| {
            let (slot, _) = snapshot.pod(uid)?;
            Some(Arc::clone(&snapshot.node(slot)?.info.name))
        };
        for unit in units {
            let mut evicted = Vec::new();
            for victim in unit {
                // Two victims of one group are one unit; the second finds the group gone.
                if let Some(home) = home(&victim.uid, snapshot) {
                    snapshot.remove_pod(&victim.uid);
                    evicted.push((victim, home));
                }
            }
            if !evicted.is_empty() {
                self.evicted.push(evicted);
            }
        }
        snapshot.add_pod(Arc::clone(pod), &placement.node);
        self.members.push((Arc::clone(pod), placement));
    }

    fn withdraw_members(&self, snapshot: &mut Snapshot) {
        for (pod, _) in &self.members {
            snapshot.remove_pod(&pod.uid);
        }
    }

    fn give_back_all(&self, snapshot: &mut Snapshot) {
        self.evicted.iter().for_each(|unit| give_back(unit, snapshot));
    }
}
