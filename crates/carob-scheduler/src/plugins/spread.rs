//! PodTopologySpread: matching Pods are spread over the domains of a topology key, as a condition or as a preference.

use super::counter::{Counter, HOSTNAME, Lowest, Topologies};
use super::taints;
use crate::model::{PodInfo, PodTemplate, SpreadConstraint, Str, WhenUnsatisfiable};
use crate::plugin::Plugin;
use crate::profile::{MAX_SCORE, Profile, whole};
use crate::snapshot::{NodeSlot, NodeState, Snapshot};
use crate::verdict::Rejection;

/// A constraint and its count of matching Pods per node and domain.
#[derive(Debug)]
struct Tracked {
    constraint: SpreadConstraint,
    topology: usize,
    counter: Counter,
    lowest: Lowest,
    /// Whether the Pod itself matches, so that placing it adds one.
    matches_self: bool,
}

/// The constraints of one class.
#[derive(Debug, Default)]
pub(crate) struct Spread {
    hard: Vec<Tracked>,
    soft: Vec<Tracked>,
    /// Nodes without all keys of the soft constraints score nothing; not so under the system's defaults.
    soft_needs_all_keys: bool,
}

impl Spread {
    pub(crate) fn new(pod: &PodTemplate, profile: &Profile, topologies: &mut Topologies, snapshot: &Snapshot) -> Self {
        if !profile.runs(Plugin::PodTopologySpread) && profile.weight(Plugin::PodTopologySpread) == 0 {
            return Self::default();
        }
        let constraints = constraints(pod, profile, snapshot);
        let mut track = |constraint: &SpreadConstraint| Tracked {
            topology: topologies.index(&constraint.topology_key, snapshot),
            counter: Counter::default(),
            lowest: Lowest::default(),
            matches_self: constraint.selector.matches(&pod.labels),
            constraint: constraint.clone(),
        };
        let mut spread =
            Self { soft_needs_all_keys: !pod.spread.is_empty() || !profile.spread_system_defaulted, ..Self::default() };
        for constraint in &constraints {
            match constraint.when {
                WhenUnsatisfiable::DoNotSchedule if profile.runs(Plugin::PodTopologySpread) => {
                    spread.hard.push(track(constraint))
                }
                WhenUnsatisfiable::ScheduleAnyway if profile.weight(Plugin::PodTopologySpread) != 0 => {
                    spread.soft.push(track(constraint))
                }
                WhenUnsatisfiable::DoNotSchedule | WhenUnsatisfiable::ScheduleAnyway => {}
            }
        }
        spread
    }

    /// Whether there is anything to count.
    pub(crate) fn is_empty(&self) -> bool {
        self.hard.is_empty() && self.soft.is_empty()
    }

    /// Whether the other Pods make one node better than another.
    pub(crate) fn scores_differ(&self) -> bool {
        !self.soft.is_empty()
    }

    /// About how much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.hard.iter().chain(&self.soft).map(|tracked| tracked.counter.bytes()).sum()
    }

    /// Decides again whether and where a node counts.
    pub(crate) fn refresh_node(
        &mut self,
        pod: &PodTemplate,
        slot: NodeSlot,
        node: Option<&NodeState>,
        topologies: &Topologies,
    ) {
        for (set, needs_all) in [(&mut self.hard, true), (&mut self.soft, self.soft_needs_all_keys)] {
            let all_keys = set.iter().all(|tracked| topologies.domain(tracked.topology, slot).is_some());
            for tracked in set {
                let counts =
                    (all_keys || !needs_all) && node.is_some_and(|node| includes(&tracked.constraint, pod, node));
                let domain = topologies.domain(tracked.topology, slot).filter(|_| counts);
                tracked.counter.place(slot, domain);
            }
        }
    }

    /// Counts a Pod that came to (`sign` 1) or left (-1) a node.
    pub(crate) fn observe(&mut self, pod: &PodTemplate, slot: NodeSlot, other: &PodInfo, sign: i64) {
        if other.terminating || other.template.namespace != pod.namespace {
            return;
        }
        for tracked in self.hard.iter_mut().chain(&mut self.soft) {
            let selector = &tracked.constraint.selector;
            if !selector.is_empty() && selector.matches(&other.template.labels) {
                tracked.counter.add(slot, sign);
            }
        }
    }

    /// Looks for the least loaded domains, once before the nodes are filtered.
    pub(crate) fn prepare(&mut self) {
        for tracked in &mut self.hard {
            tracked.lowest = tracked.counter.lowest();
        }
    }

    pub(crate) fn filter(&self, slot: NodeSlot, topologies: &Topologies) -> Option<Rejection> {
        for tracked in &self.hard {
            let Some(domain) = topologies.domain(tracked.topology, slot) else {
                return Some(Rejection::unresolvable(
                    Plugin::PodTopologySpread,
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let sum = tracked.counter.sum(domain);
            let least = if (tracked.lowest.domains as i64) < tracked.constraint.min_domains {
                0
            } else {
                tracked.lowest.with(tracked.counter.has_members(domain).then_some((domain, sum)))
            };
            if sum + i64::from(tracked.matches_self) - least > tracked.constraint.max_skew {
                return Some(Rejection::resolvable(
                    Plugin::PodTopologySpread,
                    "node(s) didn't match pod topology spread constraints",
                ));
            }
        }
        None
    }

    /// Scores the feasible nodes, from 0 to the maximum (podtopologyspread/scoring.go).
    pub(crate) fn scores(&self, feasible: &[NodeSlot], topologies: &Topologies) -> Vec<i64> {
        if self.soft.is_empty() {
            return vec![0; feasible.len()];
        }
        let ignored = |slot: NodeSlot| {
            self.soft_needs_all_keys
                && self.soft.iter().any(|tracked| topologies.domain(tracked.topology, slot).is_none())
        };
        let counted: Vec<bool> = feasible.iter().map(|slot| !ignored(*slot)).collect();
        let weights: Vec<f64> =
            self.soft.iter().map(|tracked| weight(tracked, feasible, &counted, topologies)).collect();
        let mut scores: Vec<i64> = Vec::with_capacity(feasible.len());
        for (slot, counted) in feasible.iter().zip(&counted) {
            scores.push(if *counted { self.raw(*slot, &weights, topologies) } else { 0 });
        }
        normalize(&mut scores, &counted);
        scores
    }

    fn raw(&self, slot: NodeSlot, weights: &[f64], topologies: &Topologies) -> i64 {
        let mut score = 0.0;
        for (tracked, weight) in self.soft.iter().zip(weights) {
            let Some(domain) = topologies.domain(tracked.topology, slot) else { continue };
            let hostname = &*topologies.get(tracked.topology).key == HOSTNAME;
            let count = if hostname { tracked.counter.amount(slot) } else { tracked.counter.sum(domain) };
            score += count as f64 * weight + (tracked.constraint.max_skew - 1) as f64;
        }
        whole(score.round())
    }
}

/// The Pod's own constraints, or the profile's defaults for Pods that something selects.
fn constraints(pod: &PodTemplate, profile: &Profile, snapshot: &Snapshot) -> Vec<SpreadConstraint> {
    if !pod.spread.is_empty() {
        return pod.spread.to_vec();
    }
    let Some(selector) = snapshot.facts().default_selector(pod) else { return Vec::new() };
    let constraint = |default: &crate::profile::SpreadDefault| SpreadConstraint {
        max_skew: default.max_skew,
        topology_key: Str::clone(&default.topology_key),
        when: if default.hard { WhenUnsatisfiable::DoNotSchedule } else { WhenUnsatisfiable::ScheduleAnyway },
        selector: selector.clone(),
        min_domains: 1,
        honor_affinity: true,
        honor_taints: false,
    };
    profile.spread_defaults.iter().map(constraint).collect()
}

/// The constraint's node inclusion policies.
fn includes(constraint: &SpreadConstraint, pod: &PodTemplate, node: &NodeState) -> bool {
    (!constraint.honor_affinity || pod.node_choice.admits(&node.info.name, &node.info.labels))
        && (!constraint.honor_taints || !taints::repels(pod, node))
}

/// The logarithm of the number of domains among the feasible nodes, so that few large domains weigh as much as many small.
fn weight(tracked: &Tracked, feasible: &[NodeSlot], counted: &[bool], topologies: &Topologies) -> f64 {
    let topology = topologies.get(tracked.topology);
    let counted = feasible.iter().zip(counted).filter(|(_, counted)| **counted).map(|(slot, _)| *slot);
    let size = if &*topology.key == HOSTNAME {
        counted.count()
    } else {
        let mut seen = std::collections::HashSet::new();
        for slot in counted {
            seen.insert(topology.domain(slot).map(super::counter::Domain::index));
        }
        seen.len()
    };
    ((size + 2) as f64).ln()
}

fn normalize(scores: &mut [i64], counted: &[bool]) {
    let valid = || scores.iter().zip(counted).filter(|(_, counted)| **counted).map(|(score, _)| *score);
    let (least, most) = (valid().min().unwrap_or(0), valid().max().unwrap_or(0).max(0));
    for (score, counted) in scores.iter_mut().zip(counted) {
        *score = match (counted, most) {
            (false, _) => 0,
            (true, 0) => MAX_SCORE,
            (true, most) => MAX_SCORE * (most + least - *score) / most,
        };
    }
}
