//! What is remembered for an equivalence class of Pods: per node whether and how well it fits, and the counts that the
//! cluster-wide plugins need. Catching up costs as much as has changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::facts::Versions;
use crate::index::ScoreIndex;
use crate::model::{PodInfo, PodTemplate, Selector};
use crate::plugin::Plugin;
use crate::plugins::counter::Topologies;
use crate::plugins::interpod::{self, InterPod};
use crate::plugins::spread::Spread;
use crate::plugins::{self, LocalScores, Site};
use crate::preemption::DryRun;
use crate::profile::Profile;
use crate::snapshot::{Change, NodeSlot, NodeState, Snapshot};
use crate::verdict::{Rejection, Unschedulable};

/// What the node-local plugins say of one node.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    /// There is no node in this slot.
    Vacant,
    Rejected(Arc<Rejection>),
    Fits(LocalScores),
}

/// Counts of values above zero, for the maximum.
#[derive(Debug, Default)]
struct Histogram(BTreeMap<i32, usize>);

impl Histogram {
    fn change(&mut self, value: i32, more: bool) {
        if value <= 0 {
            return;
        }
        let count = self.0.entry(value).or_insert(0);
        *count = if more { *count + 1 } else { *count - 1 };
        if *count == 0 {
            self.0.remove(&value);
        }
    }

    fn max(&self) -> i32 {
        self.0.last_key_value().map_or(0, |(value, _)| *value)
    }
}

/// The highest raw scores among the nodes that fit, to which the others are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Maxima {
    pub(crate) intolerable: i32,
    pub(crate) preferred: i32,
}

#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) template: Arc<PodTemplate>,
    pub(crate) last_used: u64,
    seen: u64,
    versions: Versions,
    default_selector: Option<Selector>,
    /// On how many nodes each image was, and how many nodes there were, when scores were taken.
    image_basis: (Vec<usize>, usize),
    entries: Vec<Entry>,
    intolerable: Histogram,
    preferred: Histogram,
    topologies: Topologies,
    spread: Spread,
    interpod: InterPod,
    /// Pods that are promised room have terms that may concern this class.
    promises_concern: bool,
    /// Only kept while the decision depends on nothing but each node by itself.
    index: Option<(Maxima, ScoreIndex)>,
    /// By slot, as far as it was needed.
    pub(crate) dry_runs: Vec<Option<Arc<DryRun>>>,
    last_rejection: Option<Arc<Rejection>>,
    /// The last verdict that was no placement, and what it was about.
    failure: Option<((u64, Versions), Unschedulable)>,
}

impl Class {
    pub(crate) fn new(template: Arc<PodTemplate>, snapshot: &Snapshot, profile: &Profile) -> Self {
        let mut topologies = Topologies::default();
        let spread = Spread::new(&template, profile, &mut topologies, snapshot);
        let interpod = InterPod::new(&template, profile, &mut topologies, snapshot);
        let mut class = Self {
            last_used: 0,
            seen: snapshot.sequence(),
            versions: snapshot.versions(),
            default_selector: default_selector(&template, snapshot),
            image_basis: image_basis(&template, snapshot),
            entries: vec![Entry::Vacant; snapshot.slots()],
            intolerable: Histogram::default(),
            preferred: Histogram::default(),
            topologies,
            spread,
            interpod,
            promises_concern: snapshot.promises_concern_others(),
            index: None,
            dry_runs: Vec::new(),
            last_rejection: None,
            failure: None,
            template,
        };
        for (slot, node) in snapshot.nodes() {
            class.place(slot, Some(node));
            class.evaluate(slot, snapshot, profile);
        }
        for (slot, node) in snapshot.nodes() {
            class.observe_all(slot, node, snapshot);
        }
        class.reindex(profile);
        class
    }

    /// Brings the class up to date with the snapshot.
    pub(crate) fn refresh(&mut self, snapshot: &Snapshot, profile: &Profile) {
        if self.is_stale(snapshot) {
            *self = Self::new(Arc::clone(&self.template), snapshot, profile);
            return;
        }
        let Some(changes) = snapshot.changes_after(self.seen) else {
            *self = Self::new(Arc::clone(&self.template), snapshot, profile);
            return;
        };
        self.entries.resize(snapshot.slots(), Entry::Vacant);
        let mut dirty = Vec::new();
        for change in changes {
            let slot = match change {
                Change::Node(slot) => {
                    self.place(*slot, snapshot.node(*slot));
                    *slot
                }
                Change::PodAdded(slot, pod) => {
                    self.observe(*slot, pod, 1, snapshot);
                    *slot
                }
                Change::PodRemoved(slot, pod) => {
                    self.observe(*slot, pod, -1, snapshot);
                    *slot
                }
            };
            if dirty.last() != Some(&slot) {
                dirty.push(slot);
            }
        }
        if !dirty.is_empty() {
            // Whoever promises or withdraws marks the node as changed.
            self.promises_concern = snapshot.promises_concern_others();
            dirty.sort_unstable();
            dirty.dedup();
            self.catch_up(&dirty, snapshot, profile);
        }
        self.seen = snapshot.sequence();
        self.versions = snapshot.versions();
    }

    fn catch_up(&mut self, dirty: &[NodeSlot], snapshot: &Snapshot, profile: &Profile) {
        for slot in dirty {
            self.evaluate(*slot, snapshot, profile);
        }
        if !self.is_local() {
            self.index = None;
            return;
        }
        let maxima = self.maxima();
        match &mut self.index {
            Some((held, index)) if *held == maxima => {
                for slot in dirty {
                    index.set(*slot, local_total(&self.entries[slot.index()], maxima, profile));
                }
            }
            _ => self.reindex(profile),
        }
    }

    /// Whether facts changed that the class was built on.
    fn is_stale(&mut self, snapshot: &Snapshot) -> bool {
        let (old, new) = (self.versions, snapshot.versions());
        if old.budgets != new.budgets {
            self.dry_runs.clear();
        }
        let basis = image_basis(&self.template, snapshot);
        let images =
            !self.template.images.is_empty() && basis != self.image_basis && basis.0.iter().any(|count| *count > 0);
        let volumes = old.volumes != new.volumes && !self.template.volumes.is_empty();
        let selectors =
            old.selectors != new.selectors && default_selector(&self.template, snapshot) != self.default_selector;
        let namespaces = old.namespaces != new.namespaces
            && (InterPod::has_own_terms(&self.template)
                || self.interpod.is_active()
                || snapshot.nodes().any(|(_, node)| interpod::concerns_others(node)));
        images || volumes || selectors || namespaces
    }

    /// Whether the decision depends on each node by itself.
    pub(crate) fn is_local(&self) -> bool {
        self.spread.is_empty() && !self.interpod.is_active() && !self.promises_concern
    }

    pub(crate) fn entry(&self, slot: NodeSlot) -> &Entry {
        &self.entries[slot.index()]
    }

    /// The nodes by score, where the decision depends on each node by itself.
    pub(crate) fn index(&self) -> Option<&ScoreIndex> {
        self.index.as_ref().map(|(_, index)| index)
    }

    fn place(&mut self, slot: NodeSlot, node: Option<&NodeState>) {
        self.topologies.refresh(slot, node);
        self.spread.refresh_node(&self.template, slot, node, &self.topologies);
        self.interpod.refresh_node(slot, &self.topologies);
    }

    fn observe_all(&mut self, slot: NodeSlot, node: &NodeState, snapshot: &Snapshot) {
        if self.spread.is_empty() && !InterPod::has_own_terms(&self.template) && !interpod::concerns_others(node) {
            return;
        }
        for pod in node.pods() {
            self.observe(slot, pod, 1, snapshot);
        }
    }

    /// Counts a Pod that came to or left a node.
    pub(crate) fn observe(&mut self, slot: NodeSlot, pod: &PodInfo, sign: i64, snapshot: &Snapshot) {
        if !self.spread.is_empty() {
            self.spread.observe(&self.template, slot, pod, sign);
        }
        if InterPod::has_own_terms(&self.template) || pod.template.has_affinity() {
            self.interpod.observe(&self.template, slot, pod, sign, &mut self.topologies, snapshot);
        }
    }

    fn evaluate(&mut self, slot: NodeSlot, snapshot: &Snapshot, profile: &Profile) {
        let site = Site { profile, facts: snapshot.facts(), nodes: snapshot.len() };
        let entry = match snapshot.node(slot) {
            None => Entry::Vacant,
            Some(node) => match self.filter_local(node, None, site) {
                Some(rejection) => Entry::Rejected(self.shared(rejection)),
                None => Entry::Fits(plugins::score(&self.template, node, site)),
            },
        };
        if let Some(run) = self.dry_runs.get_mut(slot.index()) {
            *run = None;
        }
        let old = std::mem::replace(&mut self.entries[slot.index()], entry);
        for (entry, more) in [(&old, false), (&self.entries[slot.index()], true)] {
            if let Entry::Fits(scores) = entry {
                self.intolerable.change(scores.intolerable, more);
                self.preferred.change(scores.preferred, more);
            }
        }
    }

    /// Most nodes reject a Pod for the reason that the one before had.
    fn shared(&mut self, rejection: Rejection) -> Arc<Rejection> {
        match &self.last_rejection {
            Some(last) if **last == rejection => Arc::clone(last),
            _ => Arc::clone(self.last_rejection.insert(Arc::new(rejection))),
        }
    }

    /// What the last Pod of this class was told, if nothing has changed since.
    pub(crate) fn known_failure(&self, snapshot: &Snapshot) -> Option<&Unschedulable> {
        let (sequence, failure) = self.failure.as_ref()?;
        (*sequence == (snapshot.sequence(), snapshot.versions())).then_some(failure)
    }

    pub(crate) fn remember_failure(&mut self, failure: &Unschedulable, snapshot: &Snapshot) {
        self.failure = Some(((snapshot.sequence(), snapshot.versions()), failure.clone()));
    }

    /// The node-local filters, with and without the Pods that are promised room on the node and that this Pod may not push
    /// aside. `own` is the Pod's uid, whose own promise does not count against it.
    pub(crate) fn filter_local(&self, node: &NodeState, own: Option<&str>, site: Site<'_>) -> Option<Rejection> {
        let promised: Vec<_> = self.promised(node, own).collect();
        if !promised.is_empty() {
            let mut crowded = node.clone();
            for pod in promised {
                crowded.add(Arc::clone(pod));
            }
            if let Some(rejection) = plugins::filter(&self.template, &crowded, site) {
                return Some(rejection);
            }
        }
        plugins::filter(&self.template, node, site)
    }

    fn promised<'a>(&'a self, node: &'a NodeState, own: Option<&'a str>) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        let own = move |pod: &&Arc<PodInfo>| own != Some(&*pod.uid);
        node.nominated().iter().filter(own).filter(|pod| pod.template.priority >= self.template.priority)
    }

    /// The cluster-wide filters for one node, after [`Self::prepare`].
    pub(crate) fn filter_global(
        &mut self,
        slot: NodeSlot,
        own: Option<&str>,
        snapshot: &Snapshot,
    ) -> Option<Rejection> {
        let promised: Vec<_> = match snapshot.node(slot) {
            Some(node) if !node.nominated().is_empty() => self.promised(node, own).cloned().collect(),
            _ => Vec::new(),
        };
        if !promised.is_empty() {
            for pod in &promised {
                self.observe(slot, pod, 1, snapshot);
            }
            let rejection = self.counts_reject(slot);
            for pod in &promised {
                self.observe(slot, pod, -1, snapshot);
            }
            if rejection.is_some() {
                return rejection;
            }
        }
        self.counts_reject(slot)
    }

    fn counts_reject(&self, slot: NodeSlot) -> Option<Rejection> {
        self.spread.filter(slot, &self.topologies).or_else(|| self.interpod.filter(slot, &self.topologies))
    }

    pub(crate) fn prepare(&mut self) {
        self.spread.prepare();
    }

    /// The cluster-wide scores of the feasible nodes: spread and affinity.
    pub(crate) fn global_scores(&self, feasible: &[NodeSlot]) -> (Vec<i64>, Vec<i64>) {
        (self.spread.scores(feasible, &self.topologies), self.interpod.scores(feasible, &self.topologies))
    }

    fn maxima(&self) -> Maxima {
        Maxima { intolerable: self.intolerable.max(), preferred: self.preferred.max() }
    }

    fn reindex(&mut self, profile: &Profile) {
        if !self.is_local() {
            self.index = None;
            return;
        }
        let maxima = self.maxima();
        let mut index = self.index.take().map(|(_, index)| index).unwrap_or_default();
        index.clear();
        for (at, entry) in self.entries.iter().enumerate() {
            index.set(NodeSlot::at(at), local_total(entry, maxima, profile));
        }
        self.index = Some((maxima, index));
    }
}

fn default_selector(template: &PodTemplate, snapshot: &Snapshot) -> Option<Selector> {
    if template.spread.is_empty() { snapshot.facts().default_selector(template) } else { None }
}

fn image_basis(template: &PodTemplate, snapshot: &Snapshot) -> (Vec<usize>, usize) {
    let facts = snapshot.facts();
    (template.images.iter().map(|image| facts.nodes_with_image(image)).collect(), snapshot.len())
}

/// The highest score that a plugin gives, as the small numbers that are remembered per node.
const SCALE: i32 = 100;

/// A plugin's scores after normalization and before weighing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Normalized {
    pub(crate) local: LocalScores,
    pub(crate) spread: i64,
    pub(crate) affinity: i64,
}

impl Normalized {
    pub(crate) fn new(scores: &LocalScores, maxima: Maxima) -> Self {
        let mut local = *scores;
        local.intolerable = match maxima.intolerable {
            0 => SCALE,
            max => SCALE - SCALE * scores.intolerable / max,
        };
        local.preferred = match maxima.preferred {
            0 => 0,
            max => SCALE * scores.preferred / max,
        };
        Self { local, spread: 0, affinity: 0 }
    }

    pub(crate) fn weighted(&self, profile: &Profile) -> [(Plugin, i64); 7] {
        [
            (Plugin::TaintToleration, i64::from(self.local.intolerable)),
            (Plugin::NodeAffinity, i64::from(self.local.preferred)),
            (Plugin::NodeResourcesFit, i64::from(self.local.fit)),
            (Plugin::PodTopologySpread, self.spread),
            (Plugin::InterPodAffinity, self.affinity),
            (Plugin::NodeResourcesBalancedAllocation, i64::from(self.local.balanced)),
            (Plugin::ImageLocality, i64::from(self.local.images)),
        ]
        .map(|(plugin, score)| (plugin, score * profile.weight(plugin)))
    }

    pub(crate) fn total(&self, profile: &Profile) -> i64 {
        self.weighted(profile).iter().map(|(_, score)| score).sum()
    }
}

fn local_total(entry: &Entry, maxima: Maxima, profile: &Profile) -> Option<i64> {
    match entry {
        Entry::Fits(scores) => Some(Normalized::new(scores, maxima).total(profile)),
        Entry::Vacant | Entry::Rejected(_) => None,
    }
}
