//! The cluster as the scheduler believes it to be: nodes, the Pods on them (assumed ones included) and the facts that
//! plugins look up. It is kept by events, one at a time; a log of recent changes lets caches catch up without a scan.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::facts::{Facts, Versions};
use crate::model::{Bytes, MilliCpu, NodeInfo, PodInfo, Resources, Str};

/// Where a node is kept: stable while the node exists, reused after it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeSlot(u32);

impl NodeSlot {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn at(index: usize) -> Self {
        Self(u32::try_from(index).expect("a cluster has fewer than 2^32 nodes"))
    }
}

/// How many changes are remembered. A cache that fell further behind than this is rebuilt.
const CHANGE_LOG_LIMIT: usize = 16_384;

/// One change to the nodes or their Pods.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// The node's facts or its nominated Pods changed, or it came, or it went.
    Node(NodeSlot),
    PodAdded(NodeSlot, Arc<PodInfo>),
    PodRemoved(NodeSlot, Arc<PodInfo>),
}

impl Change {
    /// The node that changed.
    pub(crate) fn slot(&self) -> NodeSlot {
        match self {
            Self::Node(slot) | Self::PodAdded(slot, _) | Self::PodRemoved(slot, _) => *slot,
        }
    }
}

/// A node and what runs there.
#[derive(Clone, Debug)]
pub struct NodeState {
    pub info: Arc<NodeInfo>,
    pods: Vec<Arc<PodInfo>>,
    requested: Resources,
    scored_cpu: MilliCpu,
    scored_memory: Bytes,
    with_affinity: usize,
    nominated: Vec<Arc<PodInfo>>,
}

impl NodeState {
    fn new(info: Arc<NodeInfo>) -> Self {
        Self {
            info,
            pods: Vec::new(),
            requested: Resources::default(),
            scored_cpu: MilliCpu::default(),
            scored_memory: Bytes::default(),
            with_affinity: 0,
            nominated: Vec::new(),
        }
    }

    pub fn pods(&self) -> &[Arc<PodInfo>] {
        &self.pods
    }

    /// The sum of the requests of the Pods here.
    pub fn requested(&self) -> &Resources {
        &self.requested
    }

    /// The sums that scoring uses, with a floor for containers that name no request.
    pub fn scored(&self) -> (MilliCpu, Bytes) {
        (self.scored_cpu, self.scored_memory)
    }

    /// Pods that are promised room here once their victims are gone.
    pub fn nominated(&self) -> &[Arc<PodInfo>] {
        &self.nominated
    }

    pub(crate) fn has_pods_with_affinity(&self) -> bool {
        self.with_affinity > 0
    }

    pub(crate) fn add(&mut self, pod: Arc<PodInfo>) {
        let template = &pod.template;
        self.requested.add(&template.requests);
        self.scored_cpu += template.scored_cpu;
        self.scored_memory += template.scored_memory;
        self.with_affinity += usize::from(template.has_affinity());
        self.pods.push(pod);
    }

    pub(crate) fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|pod| &*pod.uid == uid)?;
        let pod = self.pods.swap_remove(at);
        let template = &pod.template;
        self.requested.subtract(&template.requests);
        self.scored_cpu -= template.scored_cpu;
        self.scored_memory -= template.scored_memory;
        self.with_affinity -= usize::from(template.has_affinity());
        Some(pod)
    }
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    nodes: Vec<Option<NodeState>>,
    by_name: HashMap<Str, NodeSlot>,
    free: Vec<NodeSlot>,
    /// Where each Pod is, by uid.
    places: HashMap<Str, NodeSlot>,
    /// Pods on nodes that are not known (yet), by node name.
    strays: HashMap<Str, Vec<Arc<PodInfo>>>,
    nominations: HashMap<Str, (Str, Arc<PodInfo>)>,
    promised_with_affinity: usize,
    /// Pods on nodes that have terms.
    with_affinity: usize,
    facts: Facts,
    log: VecDeque<Change>,
    /// The number of changes that were dropped from the front of the log.
    forgotten: u64,
}

impl Snapshot {
    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// One more than the highest slot in use, for tables indexed by slot.
    pub(crate) fn slots(&self) -> usize {
        self.nodes.len()
    }

    pub fn node(&self, slot: NodeSlot) -> Option<&NodeState> {
        self.nodes.get(slot.index())?.as_ref()
    }

    pub fn slot(&self, name: &str) -> Option<NodeSlot> {
        self.by_name.get(name).copied()
    }

    /// All nodes, in the order of their slots.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeSlot, &NodeState)> {
        self.nodes.iter().enumerate().filter_map(|(index, node)| Some((NodeSlot::at(index), node.as_ref()?)))
    }

    /// The Pod with this uid, if it has a place on a known node.
    pub fn pod(&self, uid: &str) -> Option<(NodeSlot, &Arc<PodInfo>)> {
        let slot = *self.places.get(uid)?;
        let pod = self.node(slot)?.pods.iter().find(|pod| &*pod.uid == uid)?;
        Some((slot, pod))
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn facts_mut(&mut self) -> &mut Facts {
        &mut self.facts
    }

    pub(crate) fn versions(&self) -> Versions {
        self.facts.versions()
    }

    /// Adds a node or replaces its facts.
    pub fn set_node(&mut self, info: NodeInfo) -> NodeSlot {
        let info = Arc::new(info);
        if let Some(slot) = self.slot(&info.name) {
            let node = self.nodes[slot.index()].as_mut().expect("a named slot holds a node");
            if *node.info != *info {
                self.facts.replace_images(&node.info.images, &info.images);
                node.info = info;
                self.record(Change::Node(slot));
            }
            return slot;
        }
        self.facts.replace_images(&[], &info.images);
        let slot = self.free.pop().unwrap_or_else(|| NodeSlot::at(self.nodes.len()));
        if slot.index() == self.nodes.len() {
            self.nodes.push(None);
        }
        let name = Arc::clone(&info.name);
        self.nodes[slot.index()] = Some(NodeState::new(info));
        self.by_name.insert(Arc::clone(&name), slot);
        self.record(Change::Node(slot));
        for pod in self.strays.remove(&name).unwrap_or_default() {
            self.place(slot, pod);
        }
        let promised: Vec<_> = self
            .nominations
            .values()
            .filter(|(node, pod)| *node == name && !self.places.contains_key(&pod.uid))
            .map(|(_, pod)| Arc::clone(pod))
            .collect();
        self.nodes[slot.index()].as_mut().expect("just set").nominated = promised;
        slot
    }

    /// Removes a node. Its Pods are kept aside until they are removed too, or the node comes back.
    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.by_name.remove(name) else { return };
        let node = self.nodes[slot.index()].take().expect("a named slot holds a node");
        self.facts.replace_images(&node.info.images, &[]);
        for pod in node.pods {
            self.places.remove(&pod.uid);
            self.record(Change::PodRemoved(slot, Arc::clone(&pod)));
            self.keep_room(&pod.uid);
            self.strays.entry(Arc::clone(&node.info.name)).or_default().push(pod);
        }
        self.free.push(slot);
        self.record(Change::Node(slot));
    }

    /// Puts a Pod on a node, whether the API says so or the scheduler assumes it. A Pod that was there already is updated.
    pub fn add_pod(&mut self, pod: Arc<PodInfo>, node: &str) {
        let slot = self.slot(node);
        if let Some(held) = self.places.get(&pod.uid).copied() {
            let pods = &mut self.nodes[held.index()].as_mut().expect("a place is on a node").pods;
            let known = pods.iter_mut().find(|known| known.uid == pod.uid).expect("a place names a Pod of its node");
            let same = Arc::ptr_eq(&known.template, &pod.template) || known.template == pod.template;
            if slot == Some(held) && same && known.terminating == pod.terminating {
                *known = pod;
                return;
            }
        }
        self.remove_pod(&pod.uid);
        match slot {
            Some(slot) => self.place(slot, pod),
            None => self.strays.entry(node.into()).or_default().push(pod),
        }
    }

    /// Takes a Pod off its node: it ended, was deleted, or could not be bound.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        if let Some(slot) = self.places.remove(uid) {
            let pod = self.nodes[slot.index()]
                .as_mut()
                .and_then(|node| node.remove(uid))
                .expect("a place names a Pod of its node");
            self.record(Change::PodRemoved(slot, Arc::clone(&pod)));
            self.keep_room(uid);
            return Some(pod);
        }
        let mut found = None;
        self.strays.retain(|_, pods| {
            if let Some(at) = pods.iter().position(|pod| &*pod.uid == uid) {
                found = Some(pods.swap_remove(at));
            }
            !pods.is_empty()
        });
        found
    }

    /// Promises room on a node to a Pod whose victims are still there, or moves the promise. While the Pod has a place, be it
    /// tried only, no room is kept for it.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.withdraw(&pod.uid);
        let uid = Arc::clone(&pod.uid);
        self.nominations.insert(Arc::clone(&uid), (node.into(), pod));
        if !self.places.contains_key(&uid) {
            self.keep_room(&uid);
        }
    }

    /// Takes back the promise made to a Pod, if there is one.
    pub fn withdraw(&mut self, uid: &str) {
        self.give_up_room(uid);
        self.nominations.remove(uid);
    }

    /// Keeps the room that a Pod was promised, if it was.
    fn keep_room(&mut self, uid: &str) {
        let Some((node, pod)) = self.nominations.get(uid).cloned() else { return };
        self.promised_with_affinity += usize::from(pod.template.has_affinity());
        let Some(slot) = self.slot(&node) else { return };
        self.nodes[slot.index()].as_mut().expect("a named slot holds a node").nominated.push(pod);
        self.record(Change::Node(slot));
    }

    /// The opposite of [`Self::keep_room`], for a Pod that has no place.
    fn give_up_room(&mut self, uid: &str) {
        if self.places.contains_key(uid) {
            return;
        }
        let Some((node, pod)) = self.nominations.get(uid).cloned() else { return };
        self.promised_with_affinity -= usize::from(pod.template.has_affinity());
        let Some(slot) = self.slot(&node) else { return };
        self.nodes[slot.index()].as_mut().expect("a named slot holds a node").nominated.retain(|pod| &*pod.uid != uid);
        self.record(Change::Node(slot));
    }

    /// The node that was promised to a Pod.
    pub fn nomination(&self, uid: &str) -> Option<&Str> {
        self.nominations.get(uid).map(|(node, _)| node)
    }

    /// Whether any Pod has terms that could concern others, by their labels.
    pub(crate) fn has_terms(&self) -> bool {
        self.with_affinity > 0 || self.promises_concern_others()
    }

    /// Whether some Pod that is promised room has terms that could concern others.
    pub(crate) fn promises_concern_others(&self) -> bool {
        self.promised_with_affinity > 0
    }

    /// The number of changes so far.
    pub(crate) fn sequence(&self) -> u64 {
        self.forgotten + self.log.len() as u64
    }

    /// The changes after `sequence`, or nothing if some of them are forgotten.
    pub(crate) fn changes_after(&self, sequence: u64) -> Option<impl Iterator<Item = &Change>> {
        let from = usize::try_from(sequence.checked_sub(self.forgotten)?).ok()?;
        if from > self.log.len() {
            return None;
        }
        Some(self.log.range(from..))
    }

    fn place(&mut self, slot: NodeSlot, pod: Arc<PodInfo>) {
        self.give_up_room(&pod.uid);
        self.places.insert(Arc::clone(&pod.uid), slot);
        self.nodes[slot.index()].as_mut().expect("only known nodes are placed on").add(Arc::clone(&pod));
        self.record(Change::PodAdded(slot, pod));
    }

    fn record(&mut self, change: Change) {
        if self.log.len() == CHANGE_LOG_LIMIT {
            self.log.pop_front();
            self.forgotten += 1;
        }
        match &change {
            Change::PodAdded(_, pod) => self.with_affinity += usize::from(pod.template.has_affinity()),
            Change::PodRemoved(_, pod) => self.with_affinity -= usize::from(pod.template.has_affinity()),
            Change::Node(_) => {}
        }
        self.log.push_back(change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PodKey, PodTemplate};

    fn pod(name: &str, cpu: i64) -> Arc<PodInfo> {
        let template = PodTemplate::plain("default", Resources::new(MilliCpu(cpu), Bytes(0)));
        Arc::new(PodInfo::new(PodKey::new("default", name), name, Arc::new(template)))
    }

    fn node(name: &str) -> NodeInfo {
        NodeInfo::new(name, Resources::new(MilliCpu(4000), Bytes(1 << 30)), 110)
    }

    #[test]
    fn a_pod_that_comes_before_its_node_is_counted_when_the_node_comes() {
        let mut snapshot = Snapshot::default();
        snapshot.add_pod(pod("a", 500), "n1");
        let slot = snapshot.set_node(node("n1"));
        assert_eq!(snapshot.node(slot).map(|node| node.requested().cpu), Some(MilliCpu(500)));
        snapshot.remove_node("n1");
        let slot = snapshot.set_node(node("n1"));
        assert_eq!(snapshot.node(slot).map(|node| node.pods().len()), Some(1));
        assert!(snapshot.remove_pod("a").is_some());
        assert_eq!(snapshot.node(slot).map(|node| node.requested().cpu), Some(MilliCpu(0)));
    }

    #[test]
    fn adding_a_pod_twice_counts_it_once_and_moving_it_moves_its_requests() {
        let mut snapshot = Snapshot::default();
        let (one, two) = (snapshot.set_node(node("n1")), snapshot.set_node(node("n2")));
        snapshot.add_pod(pod("a", 500), "n1");
        snapshot.add_pod(pod("a", 500), "n1");
        assert_eq!(snapshot.node(one).map(|node| node.requested().cpu), Some(MilliCpu(500)));
        snapshot.add_pod(pod("a", 500), "n2");
        assert_eq!(snapshot.node(one).map(|node| node.pods().len()), Some(0));
        assert_eq!(snapshot.node(two).map(|node| node.requested().cpu), Some(MilliCpu(500)));
    }

    #[test]
    fn a_reader_that_falls_behind_is_told_so() {
        let mut snapshot = Snapshot::default();
        let start = snapshot.sequence();
        snapshot.set_node(node("n1"));
        assert_eq!(snapshot.changes_after(start).map(Iterator::count), Some(1));
        for n in 0..CHANGE_LOG_LIMIT {
            snapshot.add_pod(pod(&n.to_string(), 1), "n1");
        }
        assert!(snapshot.changes_after(start).is_none());
        assert_eq!(snapshot.changes_after(snapshot.sequence()).map(Iterator::count), Some(0));
    }

    #[test]
    fn a_promise_moves_and_is_withdrawn() {
        let mut snapshot = Snapshot::default();
        let (one, two) = (snapshot.set_node(node("n1")), snapshot.set_node(node("n2")));
        snapshot.nominate(pod("a", 1), "n1");
        snapshot.nominate(pod("a", 1), "n2");
        let promised = |slot| snapshot.node(slot).map(|node| node.nominated().len());
        assert_eq!((promised(one), promised(two)), (Some(0), Some(1)));
        snapshot.withdraw("a");
        assert_eq!(snapshot.node(two).map(|node| node.nominated().len()), Some(0));
        assert_eq!(snapshot.nomination("a"), None);
    }

    #[test]
    fn a_pod_that_has_a_place_takes_no_promised_room_beside_it() {
        let mut snapshot = Snapshot::default();
        let (one, two) = (snapshot.set_node(node("n1")), snapshot.set_node(node("n2")));
        let promised =
            |snapshot: &Snapshot| [one, two].map(|slot| snapshot.node(slot).map(|node| node.nominated().len()));
        snapshot.nominate(pod("a", 1), "n1");
        snapshot.add_pod(pod("a", 1), "n2");
        assert_eq!(promised(&snapshot), [Some(0), Some(0)]);
        snapshot.remove_pod("a");
        assert_eq!(promised(&snapshot), [Some(1), Some(0)], "the promise holds on");
        snapshot.add_pod(pod("a", 1), "n1");
        snapshot.withdraw("a");
        snapshot.remove_pod("a");
        assert_eq!(promised(&snapshot), [Some(0), Some(0)]);
    }
}
