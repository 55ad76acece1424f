//! InterPodAffinity: Pods are drawn to or kept from the domains of other Pods, by their own terms and by the others'.

use super::counter::{Tally, Topologies};
use crate::model::{AffinityTerm, Labels, PodInfo, PodTemplate, Str};
use crate::plugin::Plugin;
use crate::profile::{MAX_SCORE, Profile, whole};
use crate::snapshot::{NodeSlot, NodeState, Snapshot};
use crate::verdict::Rejection;

/// Matching Pods (or their weights) per domain of one topology key.
#[derive(Debug)]
struct Tracked {
    topology: usize,
    tally: Tally,
}

/// The terms that concern one class: its own, and those of other Pods that match it.
#[derive(Debug, Default)]
pub(crate) struct InterPod {
    /// Per required term of the Pod: Pods that match all of its required terms.
    required: Vec<Tracked>,
    /// Per required anti-affinity term of the Pod: Pods that match it.
    anti: Vec<Tracked>,
    /// Per topology key: required anti-affinity terms of other Pods that match this one.
    repelled: Vec<Tracked>,
    /// Per topology key: the weights of all preferences, either way.
    scores: Vec<Tracked>,
    matches_own_terms: bool,
    filters: bool,
    /// Absent where the plugin does not score.
    hard_weight: Option<i64>,
    ignore_preferred_of_existing: bool,
}

impl InterPod {
    pub(crate) fn new(pod: &PodTemplate, profile: &Profile, topologies: &mut Topologies, snapshot: &Snapshot) -> Self {
        let filters = profile.runs(Plugin::InterPodAffinity);
        let mut track = |terms: &[AffinityTerm]| -> Vec<Tracked> {
            let terms = if filters { terms } else { &[] };
            let track = |term: &AffinityTerm| Tracked::new(topologies.index(&term.topology_key, snapshot));
            terms.iter().map(track).collect()
        };
        Self {
            required: track(&pod.affinity.required),
            anti: track(&pod.affinity.required_anti),
            repelled: Vec::new(),
            scores: Vec::new(),
            matches_own_terms: pod.affinity.required.iter().all(|term| matches(term, pod, snapshot)),
            filters,
            hard_weight: (profile.weight(Plugin::InterPodAffinity) != 0).then_some(profile.hard_affinity_weight),
            ignore_preferred_of_existing: profile.ignore_preferred_of_existing,
        }
    }

    /// Whether the class has terms of its own, for which every Pod has to be looked at.
    pub(crate) fn has_own_terms(pod: &PodTemplate) -> bool {
        pod.has_affinity()
    }

    /// Whether other Pods' places make a difference now.
    pub(crate) fn is_active(&self) -> bool {
        !self.required.is_empty()
            || !self.anti.is_empty()
            || self.repelled.iter().chain(&self.scores).any(|tracked| !tracked.tally.is_zero())
    }

    /// Whether the other Pods make one node better than another.
    pub(crate) fn scores_differ(&self) -> bool {
        self.scores.iter().any(|tracked| !tracked.tally.is_zero())
    }

    /// About how much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        let all = [&self.required, &self.anti, &self.repelled, &self.scores];
        all.into_iter().flatten().map(|tracked| tracked.tally.bytes()).sum()
    }

    pub(crate) fn refresh_node(&mut self, slot: NodeSlot, topologies: &Topologies) {
        let all = [&mut self.required, &mut self.anti, &mut self.repelled, &mut self.scores];
        for tracked in all.into_iter().flatten() {
            tracked.tally.place(slot, topologies.domain(tracked.topology, slot));
        }
    }

    /// Counts a Pod that came to (`sign` 1) or left (-1) a node.
    pub(crate) fn observe(
        &mut self,
        pod: &PodTemplate,
        slot: NodeSlot,
        other: &PodInfo,
        sign: i64,
        topologies: &mut Topologies,
        snapshot: &Snapshot,
    ) {
        let theirs = &other.template;
        if !self.required.is_empty() && pod.affinity.required.iter().all(|term| matches(term, theirs, snapshot)) {
            for tracked in &mut self.required {
                tracked.add(slot, sign, topologies);
            }
        }
        for (tracked, term) in self.anti.iter_mut().zip(&pod.affinity.required_anti) {
            if matches(term, theirs, snapshot) {
                tracked.add(slot, sign, topologies);
            }
        }
        if self.filters {
            for term in theirs.affinity.required_anti.iter().filter(|term| matches(term, pod, snapshot)) {
                add(&mut self.repelled, &term.topology_key, slot, sign, topologies, snapshot);
            }
        }
        let Some(hard_weight) = self.hard_weight else { return };
        let mut score = |term: &AffinityTerm, amount: i64| {
            add(&mut self.scores, &term.topology_key, slot, amount * sign, topologies, snapshot);
        };
        for (terms, towards) in [(&pod.affinity.preferred, 1), (&pod.affinity.preferred_anti, -1)] {
            for weighted in terms.iter().filter(|weighted| matches(&weighted.term, theirs, snapshot)) {
                score(&weighted.term, weighted.weight * towards);
            }
        }
        if hard_weight > 0 {
            for term in theirs.affinity.required.iter().filter(|term| matches(term, pod, snapshot)) {
                score(term, hard_weight);
            }
        }
        if self.ignore_preferred_of_existing {
            return;
        }
        for (terms, towards) in [(&theirs.affinity.preferred, 1), (&theirs.affinity.preferred_anti, -1)] {
            for weighted in terms.iter().filter(|weighted| matches(&weighted.term, pod, snapshot)) {
                score(&weighted.term, weighted.weight * towards);
            }
        }
    }

    pub(crate) fn filter(&self, slot: NodeSlot, topologies: &Topologies) -> Option<Rejection> {
        let sum = |tracked: &Tracked| topologies.domain(tracked.topology, slot).map(|domain| tracked.tally.sum(domain));
        if !self.satisfies_required(&sum) {
            return Some(Rejection::unresolvable(Plugin::InterPodAffinity, "node(s) didn't match pod affinity rules"));
        }
        if self.anti.iter().any(|tracked| sum(tracked).is_some_and(|count| count > 0)) {
            return Some(Rejection::resolvable(
                Plugin::InterPodAffinity,
                "node(s) didn't match pod anti-affinity rules",
            ));
        }
        self.repelled.iter().any(|tracked| sum(tracked).is_some_and(|count| count > 0)).then(|| {
            Rejection::resolvable(Plugin::InterPodAffinity, "node(s) didn't satisfy existing pods anti-affinity rules")
        })
    }

    /// The first Pod of a group that is drawn to itself may go anywhere that has the keys.
    fn satisfies_required(&self, sum: &impl Fn(&Tracked) -> Option<i64>) -> bool {
        let mut met = true;
        for tracked in &self.required {
            let Some(count) = sum(tracked) else { return false };
            met &= count > 0;
        }
        met || (self.matches_own_terms && self.required.iter().all(|tracked| tracked.tally.total() == 0))
    }

    /// Scores the feasible nodes, from 0 to the maximum (interpodaffinity/scoring.go).
    pub(crate) fn scores(&self, feasible: &[NodeSlot], topologies: &Topologies) -> Vec<i64> {
        let raw = |slot: &NodeSlot| -> i64 {
            let sum = |tracked: &Tracked| Some(tracked.tally.sum(topologies.domain(tracked.topology, *slot)?));
            self.scores.iter().filter_map(sum).sum()
        };
        let mut scores: Vec<i64> = feasible.iter().map(raw).collect();
        let (least, most) = (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
        for score in &mut scores {
            *score = match most - least {
                0 => 0,
                range => whole(MAX_SCORE as f64 * ((*score - least) as f64 / range as f64)),
            };
        }
        scores
    }
}

impl Tracked {
    fn new(topology: usize) -> Self {
        Self { topology, tally: Tally::default() }
    }

    fn add(&mut self, slot: NodeSlot, amount: i64, topologies: &Topologies) {
        self.tally.add(slot, topologies.domain(self.topology, slot), amount);
    }
}

/// Adds to the tally of a topology key, made if it is new.
fn add(
    all: &mut Vec<Tracked>,
    key: &Str,
    slot: NodeSlot,
    amount: i64,
    topologies: &mut Topologies,
    snapshot: &Snapshot,
) {
    let topology = topologies.index(key, snapshot);
    let at = all.iter().position(|tracked| tracked.topology == topology).unwrap_or_else(|| {
        all.push(Tracked::new(topology));
        all.len() - 1
    });
    all[at].add(slot, amount, topologies);
}

/// Whether a term matches a Pod: its namespace by name or by label, then its labels.
fn matches(term: &AffinityTerm, pod: &PodTemplate, snapshot: &Snapshot) -> bool {
    term.selector.matches(&pod.labels)
        && (term.namespaces.contains(&pod.namespace)
            || term
                .namespace_selector
                .matches(snapshot.facts().namespace(&pod.namespace).unwrap_or(&Labels::default())))
}

/// Whether any Pod on the node has terms that could concern others.
pub(crate) fn concerns_others(node: &NodeState) -> bool {
    node.has_pods_with_affinity()
}
