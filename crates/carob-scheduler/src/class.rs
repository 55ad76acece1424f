//! What is remembered for an equivalence class of Pods beside what each node says by itself: the counts of other Pods that
//! the cluster-wide plugins need. Catching up costs as much as has changed.

use std::sync::Arc;

use crate::facts::Versions;
use crate::local::promised;
use crate::model::{PodInfo, PodTemplate, Selector};
use crate::plugins::counter::Topologies;
use crate::plugins::interpod::{self, InterPod};
use crate::plugins::spread::Spread;
use crate::profile::Profile;
use crate::snapshot::{Change, NodeSlot, NodeState, Snapshot};
use crate::verdict::{Rejection, Unschedulable};

#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) template: Arc<PodTemplate>,
    /// What the node-local plugins read of it.
    pub(crate) local: Arc<PodTemplate>,
    pub(crate) last_used: u64,
    seen: u64,
    versions: Versions,
    default_selector: Option<Selector>,
    spread: Spread,
    interpod: InterPod,
    /// The last verdict that was no placement, and what it was about.
    failure: Option<((u64, Versions), Unschedulable)>,
}

impl Class {
    pub(crate) fn new(
        template: Arc<PodTemplate>,
        local: Arc<PodTemplate>,
        snapshot: &Snapshot,
        profile: &Profile,
        topologies: &mut Topologies,
    ) -> Self {
        let mut class = Self {
            last_used: 0,
            seen: snapshot.sequence(),
            versions: snapshot.versions(),
            default_selector: default_selector(&template, snapshot),
            spread: Spread::new(&template, profile, topologies, snapshot),
            interpod: InterPod::new(&template, profile, topologies, snapshot),
            failure: None,
            template,
            local,
        };
        if !class.spread.is_empty() {
            for (slot, node) in snapshot.nodes() {
                class.spread.refresh_node(&class.template, slot, Some(node), topologies);
            }
        }
        for (slot, node) in snapshot.nodes() {
            class.observe_all(slot, node, snapshot, topologies);
        }
        class
    }

    /// Brings the class up to date with the snapshot; `topologies` are so already.
    pub(crate) fn refresh(&mut self, snapshot: &Snapshot, profile: &Profile, topologies: &mut Topologies) {
        let changes = if self.is_stale(snapshot) { None } else { snapshot.changes_after(self.seen) };
        let Some(changes) = changes else {
            let (template, local) = (Arc::clone(&self.template), Arc::clone(&self.local));
            *self = Self::new(template, local, snapshot, profile, topologies);
            return;
        };
        for change in changes {
            match change {
                Change::Node(slot) => {
                    self.spread.refresh_node(&self.template, *slot, snapshot.node(*slot), topologies);
                    self.interpod.refresh_node(*slot, topologies);
                }
                Change::PodAdded(slot, pod) => self.observe(*slot, pod, 1, snapshot, topologies),
                Change::PodRemoved(slot, pod) => self.observe(*slot, pod, -1, snapshot, topologies),
            }
        }
        self.seen = snapshot.sequence();
        self.versions = snapshot.versions();
    }

    /// Whether facts changed that the class was built on.
    fn is_stale(&self, snapshot: &Snapshot) -> bool {
        let (old, new) = (self.versions, snapshot.versions());
        let selectors =
            old.selectors != new.selectors && default_selector(&self.template, snapshot) != self.default_selector;
        let namespaces = old.namespaces != new.namespaces
            && (InterPod::has_own_terms(&self.template)
                || self.interpod.is_active()
                || snapshot.nodes().any(|(_, node)| interpod::concerns_others(node))
                || self.has_lost_terms(snapshot));
        selectors || namespaces
    }

    /// Whether a Pod with terms has left: it was counted by the namespaces as they were, and cannot be discounted by them.
    fn has_lost_terms(&self, snapshot: &Snapshot) -> bool {
        let lost = |change: &Change| matches!(change, Change::PodRemoved(_, pod) if pod.template.has_affinity());
        snapshot.changes_after(self.seen).is_none_or(|mut changes| changes.any(lost))
    }

    /// Whether the decision depends on each node by itself.
    pub(crate) fn is_local(&self, snapshot: &Snapshot) -> bool {
        self.spread.is_empty() && !self.interpod.is_active() && !snapshot.promises_concern_others()
    }

    /// Whether other Pods make one node better than another, beside making some unfit.
    pub(crate) fn scores_differ(&self) -> bool {
        self.spread.scores_differ() || self.interpod.scores_differ()
    }

    fn observe_all(&mut self, slot: NodeSlot, node: &NodeState, snapshot: &Snapshot, topologies: &mut Topologies) {
        if self.spread.is_empty() && !InterPod::has_own_terms(&self.template) && !interpod::concerns_others(node) {
            return;
        }
        for pod in node.pods() {
            self.observe(slot, pod, 1, snapshot, topologies);
        }
    }

    /// Counts a Pod that came to or left a node.
    pub(crate) fn observe(
        &mut self,
        slot: NodeSlot,
        pod: &PodInfo,
        sign: i64,
        snapshot: &Snapshot,
        topologies: &mut Topologies,
    ) {
        if !self.spread.is_empty() {
            self.spread.observe(&self.template, slot, pod, sign);
        }
        if InterPod::has_own_terms(&self.template) || pod.template.has_affinity() {
            self.interpod.observe(&self.template, slot, pod, sign, topologies, snapshot);
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

    /// The cluster-wide filters for one node, after [`Self::prepare`], with and without the Pods that are promised room
    /// there, as `Local::filter`.
    pub(crate) fn filter(
        &mut self,
        slot: NodeSlot,
        own: Option<&str>,
        snapshot: &Snapshot,
        topologies: &mut Topologies,
    ) -> Option<Rejection> {
        let promised: Vec<_> = match snapshot.node(slot) {
            Some(node) if !node.nominated().is_empty() => promised(&self.template, node, own).cloned().collect(),
            _ => Vec::new(),
        };
        if !promised.is_empty() {
            for pod in &promised {
                self.observe(slot, pod, 1, snapshot, topologies);
            }
            let rejection = self.counts_reject(slot, topologies);
            for pod in &promised {
                self.observe(slot, pod, -1, snapshot, topologies);
            }
            if rejection.is_some() {
                return rejection;
            }
        }
        self.counts_reject(slot, topologies)
    }

    fn counts_reject(&self, slot: NodeSlot, topologies: &Topologies) -> Option<Rejection> {
        self.spread.filter(slot, topologies).or_else(|| self.interpod.filter(slot, topologies))
    }

    pub(crate) fn prepare(&mut self) {
        self.spread.prepare();
    }

    /// The cluster-wide scores of the feasible nodes: spread and affinity.
    pub(crate) fn scores(&self, feasible: &[NodeSlot], topologies: &Topologies) -> (Vec<i64>, Vec<i64>) {
        (self.spread.scores(feasible, topologies), self.interpod.scores(feasible, topologies))
    }

    /// About how much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.spread.bytes() + self.interpod.bytes()
    }
}

fn default_selector(template: &PodTemplate, snapshot: &Snapshot) -> Option<Selector> {
    if template.spread.is_empty() { snapshot.facts().default_selector(template) } else { None }
}
