//! The decision: one Pod, one snapshot, one verdict. No I/O, no clock, no locks.

use std::collections::HashMap;
use std::sync::Arc;

use crate::class::{Class, Entry, Maxima, Normalized};
use crate::model::{Labels, PodInfo, PodTemplate, Pool, Str};
use crate::plugin::Plugin;
use crate::plugins::volumes::{self, ClaimPlan};
use crate::plugins::{LocalScores, Site};
use crate::preemption;
use crate::profile::Profile;
use crate::snapshot::{NodeSlot, Snapshot};
use crate::verdict::{Placement, Preemption, Rejection, Unschedulable, Verdict};

/// How many (class, node) pairs are remembered at most, about 50 bytes each; the least recently used class goes first.
const REMEMBERED_PAIRS: usize = 400_000;
/// So few classes are always remembered, however many nodes there are, and so many at most, however few.
const CLASSES: std::ops::RangeInclusive<usize> = 4..=256;

/// The weighted scores of one node, by plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeScores {
    pub by_plugin: Vec<(Plugin, i64)>,
    pub total: i64,
}

/// The nodes that a decision may choose from, by slot; all where absent.
pub(crate) type Within<'a> = Option<&'a [bool]>;

/// Decides where Pods go. It remembers what it learned about classes of Pods, which changes nothing but the time it takes.
#[derive(Debug)]
pub struct Core {
    profiles: Vec<Profile>,
    /// By the address of the template, which the class keeps alive.
    classes: HashMap<usize, Class>,
    /// Templates without what makes no difference now, so that Pods that differ in nothing else are one class.
    stripped: Pool<PodTemplate>,
    uses: u64,
}

impl Core {
    /// # Panics
    /// Without any profile.
    pub fn new(profiles: Vec<Profile>) -> Self {
        assert!(!profiles.is_empty(), "a scheduler has at least one profile");
        Self { profiles, classes: HashMap::new(), stripped: Pool::default(), uses: 0 }
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
        let (profile, mut class) = self.take_class(pod, snapshot);
        let profile = &self.profiles[profile];
        let verdict = Decision { pod, snapshot, profile, class: &mut class, within }.decide(seed);
        self.give_back(class);
        verdict
    }

    /// What every node says of a Pod, in the order of their slots: its weighted scores, or why it is rejected.
    pub fn evaluate(&mut self, pod: &PodInfo, snapshot: &Snapshot) -> Vec<(Str, Result<NodeScores, Arc<Rejection>>)> {
        let (profile, mut class) = self.take_class(pod, snapshot);
        let profile = &self.profiles[profile];
        let table = Decision { pod, snapshot, profile, class: &mut class, within: None }.table();
        self.give_back(class);
        table
    }

    /// What has to happen to the Pod's claims once it is to go to this node.
    pub fn claim_plan(&self, pod: &PodInfo, slot: NodeSlot, snapshot: &Snapshot) -> Result<ClaimPlan, &'static str> {
        let Some(node) = snapshot.node(slot) else { return Ok(ClaimPlan::default()) };
        volumes::plan(&pod.template, &node.info.name, &node.info.labels, snapshot.facts().volumes())
    }

    /// Takes the Pod's class out of the memory, up to date, with the index of its profile. A Pod of a scheduler that is not
    /// ours is treated by the first profile.
    fn take_class(&mut self, pod: &PodInfo, snapshot: &Snapshot) -> (usize, Class) {
        let name = &pod.template.scheduler_name;
        let at = self.profiles.iter().position(|profile| profile.scheduler_name == *name).unwrap_or(0);
        self.uses += 1;
        let known = self.classes.contains_key(&address(&pod.template));
        let template = if known { Arc::clone(&pod.template) } else { self.strip(&pod.template, snapshot) };
        let profile = &self.profiles[at];
        let mut class = match self.classes.remove(&address(&template)) {
            Some(mut class) => {
                class.refresh(snapshot, profile);
                class
            }
            None => {
                let class = Class::new(template, snapshot, profile);
                self.forget_oldest(snapshot.slots());
                class
            }
        };
        class.last_used = self.uses;
        (at, class)
    }

    fn give_back(&mut self, class: Class) {
        self.classes.insert(address(&class.template), class);
    }

    /// The template without what no decision looks at: the gang always, labels and owner while nothing selects by them.
    fn strip(&mut self, template: &Arc<PodTemplate>, snapshot: &Snapshot) -> Arc<PodTemplate> {
        let named = !template.labels.is_empty() || template.owner.is_some();
        let selected = !template.spread.is_empty()
            || template.has_affinity()
            || snapshot.has_terms()
            || snapshot.facts().default_selector(template).is_some();
        if template.gang.is_none() && (!named || selected) {
            return Arc::clone(template);
        }
        let mut stripped = (**template).clone();
        stripped.gang = None;
        if !selected {
            (stripped.labels, stripped.owner) = (Labels::default(), None);
        }
        if !selected && snapshot.facts().default_selector(&stripped).is_some() {
            // A Service may select just the Pods that lack a label.
            return Arc::clone(template);
        }
        self.stripped.share(stripped)
    }

    /// Makes room for one more class.
    fn forget_oldest(&mut self, slots: usize) {
        let limit = (REMEMBERED_PAIRS / slots.max(1)).clamp(*CLASSES.start(), *CLASSES.end());
        while self.classes.len() >= limit {
            let oldest = self.classes.iter().min_by_key(|(_, class)| class.last_used).map(|(key, _)| *key);
            oldest.and_then(|key| self.classes.remove(&key));
        }
    }
}

fn address(template: &Arc<PodTemplate>) -> usize {
    Arc::as_ptr(template) as usize
}

/// One decision in the making.
pub(crate) struct Decision<'a> {
    pub(crate) pod: &'a PodInfo,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) profile: &'a Profile,
    pub(crate) class: &'a mut Class,
    pub(crate) within: Within<'a>,
}

impl Decision<'_> {
    fn decide(mut self, seed: u64) -> Verdict {
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
        let preemption = preemption::propose(&mut self, &rejections, &exclusive, seed);
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
        if self.within.is_none()
            && let Some(index) = self.class.index()
        {
            let (score, best) = index.best()?;
            return self.placement(best[pick(seed, best.len())], score, index.len());
        }
        let (feasible, totals) = self.rank();
        let score = *totals.iter().max()?;
        let best: Vec<NodeSlot> =
            feasible.iter().zip(&totals).filter(|(_, total)| **total == score).map(|(slot, _)| *slot).collect();
        self.placement(best[pick(seed, best.len())], score, feasible.len())
    }

    /// The node that was promised to the Pod is taken without looking at the others, if it fits by now.
    fn place_as_promised(&mut self) -> Option<Placement> {
        let slot = self.snapshot.slot(self.snapshot.nomination(&self.pod.uid)?)?;
        if self.within.is_some_and(|within| !within[slot.index()]) {
            return None;
        }
        let node = self.snapshot.node(slot)?;
        let own = Some(&*self.pod.uid);
        let fits = self.class.filter_local(node, own, self.site()).is_none()
            && self.class.filter_global(slot, own, self.snapshot).is_none();
        if fits { self.placement(slot, 0, 1) } else { None }
    }

    fn placement(&self, slot: NodeSlot, score: i64, feasible: usize) -> Option<Placement> {
        let node = Arc::clone(&self.snapshot.node(slot)?.info.name);
        Some(Placement { slot, node, score, feasible })
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
        let counts = !self.class.is_local();
        for (slot, _) in self.snapshot.nodes() {
            if self.within.is_some_and(|within| !within[slot.index()]) {
                continue;
            }
            let Entry::Fits(scores) = *self.class.entry(slot) else { continue };
            if counts && self.class.filter_global(slot, None, self.snapshot).is_some() {
                continue;
            }
            feasible.push(slot);
            local.push(scores);
        }
        let max = |of: fn(&LocalScores) -> i32| local.iter().map(of).max().unwrap_or(0);
        let maxima = Maxima { intolerable: max(|s| s.intolerable), preferred: max(|s| s.preferred) };
        let mut scores: Vec<Normalized> = local.iter().map(|local| Normalized::new(local, maxima)).collect();
        if counts {
            let (spread, affinity) = self.class.global_scores(&feasible);
            for (scores, (spread, affinity)) in scores.iter_mut().zip(spread.into_iter().zip(affinity)) {
                (scores.spread, scores.affinity) = (spread, affinity);
            }
        }
        (feasible, scores)
    }

    /// Why each node that may be chosen rejects the Pod; nodes that do not are left out.
    fn rejections(&mut self, exclusive: &[Str]) -> Vec<(NodeSlot, Arc<Rejection>)> {
        let counts = !self.class.is_local();
        let mut rejections = Vec::with_capacity(self.snapshot.len());
        for (slot, _) in self.snapshot.nodes() {
            let rejection = if self.within.is_some_and(|within| !within[slot.index()]) {
                Some(Arc::new(Rejection::unresolvable(
                    Plugin::GangScheduling,
                    "node(s) were outside the pod group's topology domain",
                )))
            } else {
                match self.class.entry(slot) {
                    Entry::Rejected(rejection) => Some(Arc::clone(rejection)),
                    Entry::Fits(_) if !exclusive.is_empty() => Some(Arc::new(volumes::exclusive_rejection())),
                    Entry::Fits(_) if counts => self.class.filter_global(slot, None, self.snapshot).map(Arc::new),
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
        let row = |(slot, node): (NodeSlot, &crate::snapshot::NodeState)| {
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
