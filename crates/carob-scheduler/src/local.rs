//! What the plugins that look at one node at a time say of every node, for all Pods that are alike to them: whatever their
//! labels and terms are. Catching up costs as much as has changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::facts::Versions;
use crate::index::ScoreIndex;
use crate::model::{Labels, PodAffinity, PodInfo, PodTemplate};
use crate::plugin::Plugin;
use crate::plugins::{self, LocalScores, Site};
use crate::preemption::DryRun;
use crate::profile::Profile;
use crate::snapshot::{Change, NodeSlot, NodeState, Snapshot};
use crate::verdict::Rejection;

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
pub(crate) struct Local {
    /// Without what no node-local plugin reads.
    pub(crate) template: Arc<PodTemplate>,
    pub(crate) last_used: u64,
    seen: u64,
    versions: Versions,
    /// On how many nodes each image was, and how many nodes there were, when scores were taken.
    image_basis: (Vec<usize>, usize),
    entries: Vec<Entry>,
    intolerable: Histogram,
    preferred: Histogram,
    /// Made when it is first asked for.
    index: Option<(Maxima, ScoreIndex)>,
    /// By slot, as far as it was needed; only of Pods whose decision depends on each node by itself.
    dry_runs: Vec<Option<Arc<DryRun>>>,
    last_rejection: Option<Arc<Rejection>>,
}

impl Local {
    pub(crate) fn new(template: Arc<PodTemplate>, snapshot: &Snapshot, profile: &Profile) -> Self {
        let mut local = Self {
            last_used: 0,
            seen: snapshot.sequence(),
            versions: snapshot.versions(),
            image_basis: image_basis(&template, snapshot),
            entries: vec![Entry::Vacant; snapshot.slots()],
            intolerable: Histogram::default(),
            preferred: Histogram::default(),
            index: None,
            dry_runs: Vec::new(),
            last_rejection: None,
            template,
        };
        for (slot, _) in snapshot.nodes() {
            local.evaluate(slot, snapshot, profile);
        }
        local
    }

    /// What the node-local plugins read of a template, if that is less than all.
    pub(crate) fn part_of(template: &PodTemplate) -> Option<PodTemplate> {
        let claims = !template.volumes.is_empty();
        let whole = template.labels.is_empty()
            && template.owner.is_none()
            && template.gang.is_none()
            && template.spread.is_empty()
            && !template.has_affinity()
            && (claims || template.namespace.is_empty());
        if whole {
            return None;
        }
        let mut part = template.clone();
        (part.labels, part.owner, part.gang) = (Labels::default(), None, None);
        (part.spread, part.affinity) = (Box::default(), PodAffinity::default());
        if !claims {
            part.namespace = "".into();
        }
        Some(part)
    }

    /// Brings it up to date with the snapshot.
    pub(crate) fn refresh(&mut self, snapshot: &Snapshot, profile: &Profile) {
        let changes = if self.is_stale(snapshot) { None } else { snapshot.changes_after(self.seen) };
        let Some(changes) = changes else {
            *self = Self { last_used: self.last_used, ..Self::new(Arc::clone(&self.template), snapshot, profile) };
            return;
        };
        self.entries.resize(snapshot.slots(), Entry::Vacant);
        let mut dirty: Vec<NodeSlot> = changes.map(Change::slot).collect();
        dirty.sort_unstable();
        dirty.dedup();
        for slot in &dirty {
            self.evaluate(*slot, snapshot, profile);
        }
        self.catch_up_index(&dirty, profile);
        self.seen = snapshot.sequence();
        self.versions = snapshot.versions();
    }

    fn catch_up_index(&mut self, dirty: &[NodeSlot], profile: &Profile) {
        let maxima = self.maxima();
        match &mut self.index {
            Some((held, index)) if *held == maxima => {
                for slot in dirty {
                    index.set(*slot, total(&self.entries[slot.index()], maxima, profile));
                }
            }
            stale => *stale = None,
        }
    }

    /// Whether facts changed that the scores were taken from.
    fn is_stale(&mut self, snapshot: &Snapshot) -> bool {
        let (old, new) = (self.versions, snapshot.versions());
        if old.budgets != new.budgets {
            self.dry_runs.clear();
        }
        let basis = image_basis(&self.template, snapshot);
        let images =
            !self.template.images.is_empty() && basis != self.image_basis && basis.0.iter().any(|count| *count > 0);
        images || (old.volumes != new.volumes && !self.template.volumes.is_empty())
    }

    pub(crate) fn entry(&self, slot: NodeSlot) -> &Entry {
        &self.entries[slot.index()]
    }

    /// The nodes that fit, by their total score as it is when no other Pod makes a difference.
    pub(crate) fn index(&mut self, profile: &Profile) -> &ScoreIndex {
        let maxima = self.maxima();
        let entries = &self.entries;
        let (_, index) = self.index.get_or_insert_with(|| {
            let mut index = ScoreIndex::default();
            for (at, entry) in entries.iter().enumerate() {
                index.set(NodeSlot::at(at), total(entry, maxima, profile));
            }
            (maxima, index)
        });
        index
    }

    pub(crate) fn maxima(&self) -> Maxima {
        Maxima { intolerable: self.intolerable.max(), preferred: self.preferred.max() }
    }

    pub(crate) fn dry_run(&self, slot: NodeSlot) -> Option<Arc<DryRun>> {
        self.dry_runs.get(slot.index()).cloned().flatten()
    }

    pub(crate) fn remember_dry_run(&mut self, slot: NodeSlot, run: Arc<DryRun>) {
        self.dry_runs.resize(self.entries.len(), None);
        self.dry_runs[slot.index()] = Some(run);
    }

    fn evaluate(&mut self, slot: NodeSlot, snapshot: &Snapshot, profile: &Profile) {
        let site = Site { profile, facts: snapshot.facts(), nodes: snapshot.len() };
        let entry = match snapshot.node(slot) {
            None => Entry::Vacant,
            Some(node) => match self.filter(node, None, site) {
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

    /// The node-local filters, with and without the Pods that are promised room on the node and that this Pod may not push
    /// aside. `own` is the Pod's uid, whose own promise does not count against it.
    pub(crate) fn filter(&self, node: &NodeState, own: Option<&str>, site: Site<'_>) -> Option<Rejection> {
        let promised: Vec<_> = promised(&self.template, node, own).collect();
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

    /// About how much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
            + self.dry_runs.capacity() * size_of::<Option<Arc<DryRun>>>()
            + self.index.as_ref().map_or(0, |(_, index)| index.bytes())
    }
}

/// Pods that are promised room on a node and that Pods like this one may not push aside, other than itself.
pub(crate) fn promised<'a>(
    template: &PodTemplate,
    node: &'a NodeState,
    own: Option<&'a str>,
) -> impl Iterator<Item = &'a Arc<PodInfo>> {
    let priority = template.priority;
    let own = move |pod: &&Arc<PodInfo>| own != Some(&*pod.uid);
    node.nominated().iter().filter(own).filter(move |pod| pod.template.priority >= priority)
}

fn image_basis(template: &PodTemplate, snapshot: &Snapshot) -> (Vec<usize>, usize) {
    let facts = snapshot.facts();
    (template.images.iter().map(|image| facts.nodes_with_image(image)).collect(), snapshot.len())
}

/// The highest score that a plugin gives, as the small numbers that are remembered per node.
const SCALE: i32 = 100;

/// A node's scores after normalization and before weighing.
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

fn total(entry: &Entry, maxima: Maxima, profile: &Profile) -> Option<i64> {
    match entry {
        Entry::Fits(scores) => Some(Normalized::new(scores, maxima).total(profile)),
        Entry::Vacant | Entry::Rejected(_) => None,
    }
}
