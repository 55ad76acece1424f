//! The decision: one Pod, one snapshot, one verdict. No I/O, no clock, no locks.

use std::collections::HashMap;
use std::sync::Arc;

use crate::class::Class;
use crate::gang::Domain;
use crate::local::{Entry, Local, Maxima, Normalized};
use crate::memory::{Known, Memory};
use crate::model::{PodInfo, Str};
use crate::plugin::Plugin;
use crate::plugins::counter::Topologies;
use crate::plugins::volumes::{self, ClaimPlan};
use crate::plugins::{LocalScores, Site};
use crate::preemption;
use crate::profile::Profile;
use crate::snapshot::{NodeSlot, NodeState, Snapshot};
use crate::verdict::{Placement, Preemption, Rejection, Unschedulable, Verdict};

/// Among nodes of one score so many are drawn at random before all of them are looked at, to find one that fits.
const DRAWS: u64 = 8;

/// The weighted scores of one node, by plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeScores {
    pub by_plugin: Vec<(Plugin, i64)>,
    pub total: i64,
}

/// The nodes that a decision may choose from; all where absent.
pub(crate) type Within<'a> = Option<&'a Domain>;

/// Decides where Pods go. It remembers what it learned about classes of Pods, which changes nothing but the time it takes.
#[derive(Debug)]
pub struct Core {
    profiles: Vec<Profile>,
    memory: Memory,
}

impl Core {
    /// # Panics
    /// Without any profile.
    pub fn new(profiles: Vec<Profile>) -> Self {
        assert!(!profiles.is_empty(), "a scheduler has at least one profile");
        Self { profiles, memory: Memory::default() }
    }

    pub fn profiles(&self) -> &[Profile] {
        &self.profiles
    }

    /// The profile for a Pod, if its schedulerName is one of ours.
    pub fn profile(&self, scheduler_name: &str) -> Option<&Profile> {
        self.profiles.iter().find(|profile| &*profile.scheduler_name == scheduler_name)
    }

    /// Chooses the best node for a Pod, or says why there is none and what preemption could do. Among nodes that are
    /// equally good, `seed` chooses.
    pub fn schedule(&mut self, pod: &PodInfo, snapshot: &Snapshot, seed: u64) -> Verdict {
        self.schedule_within(pod, snapshot, seed, None)
    }

    pub(crate) fn schedule_within(
        &mut self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        seed: u64,
        within: Within<'_>,
    ) -> Verdict {
        self.deciding(pod, snapshot, within, |mut decision| decision.decide(seed))
    }

    /// What every node says of a Pod, in the order of their slots: its weighted scores, or why it is rejected.
    pub fn evaluate(&mut self, pod: &PodInfo, snapshot: &Snapshot) -> Vec<(Str, Result<NodeScores, Arc<Rejection>>)> {
        self.deciding(pod, snapshot, None, |mut decision| decision.table())
    }

    /// What has to happen to the Pod's claims once it is to go to this node.
    pub fn claim_plan(&self, pod: &PodInfo, slot: NodeSlot, snapshot: &Snapshot) -> Result<ClaimPlan, &'static str> {
        let Some(node) = snapshot.node(slot) else { return Ok(ClaimPlan::default()) };
        volumes::plan(&pod.template, &node.info.name, &node.info.labels, snapshot.facts().volumes())
    }

    /// A Pod of a scheduler that is not ours is treated by the first profile.
    fn deciding<T>(
        &mut self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        within: Within<'_>,
        decide: impl FnOnce(Decision<'_>) -> T,
    ) -> T {
        let name = &pod.template.scheduler_name;
        let profile = self.profiles.iter().find(|profile| profile.scheduler_name == *name);
        let profile = profile.unwrap_or_else(|| self.profiles.first().expect("there is at least one"));
        let mut known = self.memory.take(&pod.template, snapshot, profile);
        let Known { class, local } = &mut known;
        let topologies = &mut self.memory.topologies;
        let decided = decide(Decision { pod, snapshot, profile, class, local, topologies, within });
        self.memory.give_back(known);
        decided
    }
}

/// One decision in the making.
pub(crate) struct Decision<'a> {
    pub(crate) pod: &'a PodInfo,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) profile: &'a Profile,
    pub(crate) class: &'a mut Class,
    pub(crate) local: &'a mut Local,
    pub(crate) topologies: &'a mut Topologies,
    pub(crate) within: Within<'a>,
}

impl Decision<'_> {
    fn decide(&mut self, seed: u64) -> Verdict {
        let nodes = self.snapshot.len();
        if nodes == 0 {
            return Verdict::Unschedulable(Unschedulable {
                nodes,
                whole: None,
                rejections: Arc::default(),
                preemption: Preemption::Off,
            });
        }
        if let Some(whole) = self.whole() {
            let useless = vec![(nodes, preemption::NOT_HELPFUL.into())];
            let preemption = if self.profile.runs(Plugin::DefaultPreemption) {
                Preemption::Useless(useless)
            } else {
                Preemption::Off
            };
            let (whole, rejections) = (Some(Arc::new(whole)), Arc::default());
            return Verdict::Unschedulable(Unschedulable { nodes, whole, rejections, preemption });
        }
        let alike = self.within.is_none() && self.snapshot.nomination(&self.pod.uid).is_none();
        if alike && let Some(failure) = self.class.known_failure(self.snapshot) {
            return Verdict::Unschedulable(failure.clone());
        }
        self.class.prepare();
        let exclusive = volumes::exclusive_users(&self.pod.template, self.snapshot);
        if exclusive.is_empty()
            && let Some(placement) = self.place(seed)
        {
            return Verdict::Placed(placement);
        }
        let rejections = self.rejections(&exclusive);
        let preemption = preemption::propose(self, &rejections, &exclusive, seed);
        let named = |(slot, rejection): (NodeSlot, Arc<Rejection>)| {
            self.snapshot.node(slot).map(|node| (Arc::clone(&node.info.name), rejection))
        };
        let rejections = rejections.into_iter().filter_map(named).collect();
        let failure = Unschedulable { nodes, whole: None, rejections, preemption };
        if alike {
            self.class.remember_failure(&failure, self.snapshot);
        }
        Verdict::Unschedulable(failure)
    }

    fn whole(&self) -> Option<Rejection> {
        if self.pod.template.needs_devices && self.profile.runs(Plugin::DynamicResources) {
            return Some(Rejection::unresolvable(
                Plugin::DynamicResources,
                "resource claims cannot be allocated by this scheduler",
            ));
        }
        if self.pod.template.volumes.is_empty() || !self.profile.runs(Plugin::VolumeBinding) {
            return None;
        }
        volumes::whole(self.pod, self.snapshot)
    }

    fn site(&self) -> Site<'_> {
        Site { profile: self.profile, facts: self.snapshot.facts(), nodes: self.snapshot.len() }
    }

    fn place(&mut self, seed: u64) -> Option<Placement> {
        if let Some(placement) = self.place_as_promised() {
            return Some(placement);
        }
        if self.within.is_none() && self.ranked_by_node() {
            return self.place_by_index(seed);
        }
        let (feasible, totals) = self.rank();
        let score = *totals.iter().max()?;
        let best: Vec<NodeSlot> =
            feasible.iter().zip(&totals).filter(|(_, total)| **total == score).map(|(slot, _)| *slot).collect();
        self.placement(best[pick(seed, best.len())], score)
    }

    /// Whether nodes rank by what each says by itself, so that other Pods at most make some unfit.
    fn ranked_by_node(&self) -> bool {
        self.is_local() || (!self.class.scores_differ() && self.local.maxima() == Maxima::default())
    }

    /// Whether the decision depends on each node by itself.
    pub(crate) fn is_local(&self) -> bool {
        self.class.is_local(self.snapshot)
    }

    /// Looks at the nodes from the best on until one fits.
    fn place_by_index(&mut self, seed: u64) -> Option<Placement> {
        let local = self.is_local();
        let Self { snapshot, class, topologies, .. } = self;
        let mut fits = |slot: NodeSlot| local || class.filter(slot, None, snapshot, topologies).is_none();
        let mut choose = |slots: &[NodeSlot]| {
            let drawn = |draw: u64| slots[pick(seed.wrapping_add(draw), slots.len())];
            if let Some(slot) = (0..DRAWS).map(drawn).find(|slot| fits(*slot)) {
                return Some(slot);
            }
            let fitting: Vec<NodeSlot> = slots.iter().copied().filter(|slot| fits(*slot)).collect();
            fitting.get(pick(seed, fitting.len())).copied()
        };
        let by_score = self.local.index(self.profile);
        let (slot, score) = by_score.best_first().find_map(|(score, slots)| Some((choose(slots)?, score)))?;
        self.placement(slot, score)
    }

    /// The node that was promised to the Pod is taken without looking at the others, if it fits by now.
    fn place_as_promised(&mut self) -> Option<Placement> {
        let slot = self.snapshot.slot(self.snapshot.nomination(&self.pod.uid)?)?;
        if self.within.is_some_and(|within| !within.has(slot)) {
            return None;
        }
        let node = self.snapshot.node(slot)?;
        let own = Some(&*self.pod.uid);
        let fits = self.local.filter(node, own, self.site()).is_none() && self.filter_by_counts(slot, own).is_none();
        if fits { self.placement(slot, 0) } else { None }
    }

    /// What the node-local filters say of a node as it is here.
    pub(crate) fn filter_node(&self, node: &NodeState) -> Option<Rejection> {
        self.local.filter(node, Some(&self.pod.uid), self.site())
    }

    /// What the cluster-wide filters say of a node.
    pub(crate) fn filter_by_counts(&mut self, slot: NodeSlot, own: Option<&str>) -> Option<Rejection> {
        self.class.filter(slot, own, self.snapshot, self.topologies)
    }

    /// Counts a Pod that is thought to be on a node, or thought away.
    pub(crate) fn suppose(&mut self, slot: NodeSlot, pod: &PodInfo, sign: i64) {
        self.class.observe(slot, pod, sign, self.snapshot, self.topologies);
    }

    fn placement(&self, slot: NodeSlot, score: i64) -> Option<Placement> {
        let node = Arc::clone(&self.snapshot.node(slot)?.info.name);
        Some(Placement { slot, node, score })
    }

    /// The nodes that fit and their total scores.
    fn rank(&mut self) -> (Vec<NodeSlot>, Vec<i64>) {
        let (feasible, scores) = self.normalized();
        let totals = scores.iter().map(|scores| scores.total(self.profile)).collect();
        (feasible, totals)
    }

    fn normalized(&mut self) -> (Vec<NodeSlot>, Vec<Normalized>) {
        let mut feasible = Vec::new();
        let mut local: Vec<LocalScores> = Vec::new();
        let counts = !self.is_local();
        let slots = match self.within {
            Some(within) => within.slots().to_vec(),
            None => self.snapshot.nodes().map(|(slot, _)| slot).collect(),
        };
        for slot in slots {
            let Entry::Fits(scores) = *self.local.entry(slot) else { continue };
            if counts && self.filter_by_counts(slot, None).is_some() {
                continue;
            }
            feasible.push(slot);
            local.push(scores);
        }
        let max = |of: fn(&LocalScores) -> i32| local.iter().map(of).max().unwrap_or(0);
        let maxima = Maxima { intolerable: max(|s| s.intolerable), preferred: max(|s| s.preferred) };
        let mut scores: Vec<Normalized> = local.iter().map(|local| Normalized::new(local, maxima)).collect();
        if counts {
            let (spread, affinity) = self.class.scores(&feasible, self.topologies);
            for (scores, (spread, affinity)) in scores.iter_mut().zip(spread.into_iter().zip(affinity)) {
                (scores.spread, scores.affinity) = (spread, affinity);
            }
        }
        (feasible, scores)
    }

    /// Why each node that may be chosen rejects the Pod; nodes that do not are left out.
    fn rejections(&mut self, exclusive: &[Str]) -> Vec<(NodeSlot, Arc<Rejection>)> {
        let counts = !self.is_local();
        let mut rejections = Vec::with_capacity(self.snapshot.len());
        let outside = Arc::new(Rejection::unresolvable(
            Plugin::GangScheduling,
            "node(s) were outside the pod group's topology domain",
        ));
        let in_use = Arc::new(volumes::exclusive_rejection());
        for (slot, _) in self.snapshot.nodes() {
            let rejection = if self.within.is_some_and(|within| !within.has(slot)) {
                Some(Arc::clone(&outside))
            } else {
                match self.local.entry(slot) {
                    Entry::Rejected(rejection) => Some(Arc::clone(rejection)),
                    Entry::Fits(_) if !exclusive.is_empty() => Some(Arc::clone(&in_use)),
                    Entry::Fits(_) if counts => self.filter_by_counts(slot, None).map(Arc::new),
                    Entry::Fits(_) | Entry::Vacant => None,
                }
            };
            rejections.extend(rejection.map(|rejection| (slot, rejection)));
        }
        rejections
    }

    fn table(&mut self) -> Vec<(Str, Result<NodeScores, Arc<Rejection>>)> {
        self.class.prepare();
        let exclusive = volumes::exclusive_users(&self.pod.template, self.snapshot);
        let rejections: HashMap<_, _> = self.rejections(&exclusive).into_iter().collect();
        let (feasible, scores) = if exclusive.is_empty() { self.normalized() } else { Default::default() };
        let scored: HashMap<_, _> = feasible.into_iter().zip(scores).collect();
        let row = |(slot, node): (NodeSlot, &NodeState)| {
            let verdict = match (rejections.get(&slot), scored.get(&slot)) {
                (Some(rejection), _) => Err(Arc::clone(rejection)),
                (None, Some(scores)) => Ok(self.explained(scores)),
                (None, None) => return None,
            };
            Some((Arc::clone(&node.info.name), verdict))
        };
        self.snapshot.nodes().filter_map(row).collect()
    }

    fn explained(&self, scores: &Normalized) -> NodeScores {
        let by_plugin = scores.weighted(self.profile).to_vec();
        NodeScores { total: scores.total(self.profile), by_plugin }
    }
}

/// One of `count` choices, by the seed (SplitMix64's finalizer).
pub(crate) fn pick(seed: u64, count: usize) -> usize {
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((mixed ^ (mixed >> 31)) % count.max(1) as u64).expect("less than a usize")
}
