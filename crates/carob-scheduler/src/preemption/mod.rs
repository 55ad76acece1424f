//! DefaultPreemption: which Pods of lower priority would have to go, on which node, and no more than that.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::core::{Decision, pick};
use crate::facts::Facts;
use crate::model::{PodInfo, Str};
use crate::plugin::Plugin;
use crate::plugins;
use crate::snapshot::{NodeSlot, NodeState};
use crate::verdict::{Preempt, Preemption, Rejection};

pub(crate) const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// What preemption on one node would take.
#[derive(Debug)]
pub(crate) enum DryRun {
    /// It would not help; upstream's reasons.
    Useless(Vec<Cow<'static, str>>),
    Helps {
        /// The most important first.
        victims: Vec<Arc<PodInfo>>,
        violations: usize,
        cost: Cost,
    },
}

/// What makes one node's victims preferable to another's: least first (preemption.go pickOneNodeForPreemption).
type Cost = (usize, i32, i64, usize, Reverse<i64>);

fn cost(victims: &[Arc<PodInfo>], violations: usize) -> Option<Cost> {
    let highest = victims.iter().map(|pod| pod.template.priority).max()?;
    // Shifted so that many Pods of negative priority do not look cheaper than few.
    let sum = victims.iter().map(|pod| i64::from(pod.template.priority) + i64::from(i32::MAX) + 1).sum();
    let earliest = victims.iter().filter(|pod| pod.template.priority == highest).map(|pod| pod.started).min()?;
    Some((violations, highest, sum, victims.len(), Reverse(earliest)))
}

/// Looks for the victims whose eviction costs least among all nodes.
pub(crate) fn propose(
    decision: &mut Decision<'_>,
    rejections: &[(NodeSlot, Arc<Rejection>)],
    exclusive: &[Str],
    seed: u64,
) -> Preemption {
    if !decision.profile.runs(Plugin::DefaultPreemption) {
        return Preemption::Off;
    }
    if let Some(reason) = ineligible(decision, rejections) {
        return Preemption::NotEligible(reason);
    }
    let mut reasons: BTreeMap<Cow<'static, str>, usize> = BTreeMap::new();
    let mut best: Option<Cost> = None;
    let mut candidates: Vec<NodeSlot> = Vec::new();
    for (slot, _) in rejections.iter().filter(|(_, rejection)| rejection.resolvable) {
        match &*dry_run(decision, *slot, exclusive) {
            DryRun::Useless(why) => {
                for reason in why {
                    *reasons.entry(reason.clone()).or_insert(0) += 1;
                }
            }
            DryRun::Helps { cost, .. } => {
                if best.is_none_or(|best| *cost < best) {
                    best = Some(*cost);
                    candidates.clear();
                }
                if best == Some(*cost) {
                    candidates.push(*slot);
                }
            }
        }
    }
    if candidates.is_empty() {
        let hopeless =
            decision.snapshot.len() - rejections.iter().filter(|(_, rejection)| rejection.resolvable).count();
        *reasons.entry(NOT_HELPFUL.into()).or_insert(0) += hopeless;
        return Preemption::Useless(reasons.into_iter().map(|(reason, count)| (count, reason)).collect());
    }
    let slot = candidates[pick(seed, candidates.len())];
    let run = dry_run(decision, slot, exclusive);
    match (&*run, decision.snapshot.node(slot)) {
        (DryRun::Helps { victims, violations, .. }, Some(node)) => Preemption::Proposed(Preempt {
            slot,
            node: Arc::clone(&node.info.name),
            victims: victims.clone(),
            violations: *violations,
        }),
        _ => Preemption::Off,
    }
}

/// Why a Pod may not preempt now (PodEligibleToPreemptOthers).
fn ineligible(decision: &Decision<'_>, rejections: &[(NodeSlot, Arc<Rejection>)]) -> Option<&'static str> {
    let pod = decision.pod;
    if !pod.template.may_preempt {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let slot = decision.snapshot.slot(decision.snapshot.nomination(&pod.uid)?)?;
    let hopeless = rejections.iter().any(|(rejected, rejection)| *rejected == slot && !rejection.resolvable);
    if hopeless {
        return None;
    }
    let leaving = |victim: &Arc<PodInfo>| victim.preempted && victim.template.priority < pod.template.priority;
    let waits = decision.snapshot.node(slot)?.pods().iter().any(leaving);
    waits.then_some("not eligible due to a terminating pod on the nominated node.")
}

fn dry_run(decision: &mut Decision<'_>, slot: NodeSlot, exclusive: &[Str]) -> Arc<DryRun> {
    let cacheable = decision.is_local() && exclusive.is_empty();
    if cacheable && let Some(run) = decision.local.dry_run(slot) {
        return run;
    }
    let run = Arc::new(match decision.snapshot.node(slot) {
        Some(node) => Trial::new(decision, slot, node, exclusive).run(),
        None => DryRun::Useless(vec![NOT_HELPFUL.into()]),
    });
    if cacheable {
        decision.local.remember_dry_run(slot, Arc::clone(&run));
    }
    run
}

/// A node from which Pods are taken and to which they are given back, to see what has to go.
struct Trial<'a, 'd> {
    decision: &'a mut Decision<'d>,
    slot: NodeSlot,
    node: NodeState,
    /// Users of a claim that the Pod must have alone, that are still there.
    exclusive: Vec<Str>,
    counts: bool,
}

impl<'a, 'd> Trial<'a, 'd> {
    fn new(decision: &'a mut Decision<'d>, slot: NodeSlot, node: &NodeState, exclusive: &[Str]) -> Self {
        let counts = !decision.is_local();
        Self { decision, slot, node: node.clone(), exclusive: exclusive.to_vec(), counts }
    }

    fn run(mut self) -> DryRun {
        let priority = self.decision.pod.template.priority;
        let mut potential: Vec<Arc<PodInfo>> =
            self.node.pods().iter().filter(|pod| pod.template.priority < priority).cloned().collect();
        if potential.is_empty() {
            return DryRun::Useless(vec![NO_VICTIMS.into()]);
        }
        potential.sort_by(|a, b| a.importance().cmp(&b.importance()));
        for pod in &potential {
            self.take(pod);
        }
        let outcome = match self.rejection() {
            Some(rejection) => DryRun::Useless(rejection.reasons),
            None => self.reprieve(&potential),
        };
        // The class's counts go back to what they were.
        for pod in &potential {
            if !self.node.pods().contains(pod) {
                self.give(pod);
            }
        }
        outcome
    }

    /// Gives back as many as possible, those that a budget protects first, the most important first.
    fn reprieve(&mut self, potential: &[Arc<PodInfo>]) -> DryRun {
        let (protected, free) = by_budget(potential, self.decision.snapshot.facts());
        let mut victims = Vec::new();
        let mut violations = 0;
        for (pods, protected) in [(protected, true), (free, false)] {
            for pod in pods {
                self.give(&pod);
                if self.rejection().is_some() {
                    self.take(&pod);
                    violations += usize::from(protected);
                    victims.push(pod);
                }
            }
        }
        victims.sort_by(|a, b| a.importance().cmp(&b.importance()));
        match cost(&victims, violations) {
            Some(cost) => DryRun::Helps { victims, violations, cost },
            None => DryRun::Useless(vec![NO_VICTIMS.into()]),
        }
    }

    fn take(&mut self, pod: &Arc<PodInfo>) {
        self.node.remove(&pod.uid);
        self.exclusive.retain(|uid| *uid != pod.uid);
        if self.counts {
            self.decision.suppose(self.slot, pod, -1);
        }
    }

    fn give(&mut self, pod: &Arc<PodInfo>) {
        self.node.add(Arc::clone(pod));
        if volumes_shared(pod, self.decision.pod) {
            self.exclusive = plugins::volumes::exclusive_users(&self.decision.pod.template, self.decision.snapshot)
                .into_iter()
                .filter(|uid| *uid == pod.uid || self.exclusive.contains(uid))
                .collect();
        }
        if self.counts {
            self.decision.suppose(self.slot, pod, 1);
        }
    }

    fn rejection(&mut self) -> Option<Rejection> {
        if let Some(rejection) = self.decision.filter_node(&self.node) {
            return Some(rejection);
        }
        if !self.exclusive.is_empty() {
            return Some(plugins::volumes::exclusive_rejection());
        }
        let own = &self.decision.pod.uid;
        if self.counts { self.decision.filter_by_counts(self.slot, Some(own)) } else { None }
    }
}

/// Whether both Pods name claims, so that an exclusive one may be among them.
fn volumes_shared(one: &PodInfo, other: &PodInfo) -> bool {
    !one.template.volumes.is_empty() && !other.template.volumes.is_empty()
}

/// Splits Pods, kept in order, into those whose eviction violates a budget and the rest (filterPodsWithPDBViolation).
pub(crate) fn by_budget(pods: &[Arc<PodInfo>], facts: &Facts) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut left: Vec<_> = facts.budgets().map(|budget| (budget, budget.allowed)).collect();
    let mut violates = |pod: &Arc<PodInfo>| {
        let mut violated = false;
        for (budget, allowed) in &mut left {
            let applies = budget.namespace == pod.key.namespace
                && !pod.template.labels.is_empty()
                && !budget.selector.is_empty()
                && budget.selector.matches(&pod.template.labels)
                && !budget.disrupted.contains(&pod.key.name);
            if applies {
                *allowed -= 1;
                violated |= *allowed < 0;
            }
        }
        violated
    };
    pods.iter().cloned().partition(|pod| violates(pod))
}
