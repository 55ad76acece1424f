//! Gives each Node a part of the cluster's Pod addresses (`pkg/controller/nodeipam`, RangeAllocator).
//!
//! Which ranges are taken is kept along with the Nodes' changes: to walk all Nodes and all ranges for each new Node was most of
//! what the server did in a cluster of a thousand.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use carob_client::{
    Asker, Change, During, EventKind, EventRecorder, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject,
    reference,
};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::ranges::Ranges;
use crate::context::Context;

/// How long a Node waits for a range where none is left and none is given back, which is looked for at once.
const USED_UP_WAIT: Duration = Duration::from_secs(1800);

pub(crate) struct NodeIpam {
    context: Context,
    nodes: Informer<Node>,
    recorder: EventRecorder,
    state: Arc<Mutex<State>>,
}

struct State {
    /// By family; the first is the primary one.
    clusters: Vec<Ranges>,
    /// What was given to a Node of that name and uid, until the informer shows it.
    given: HashMap<String, (Option<String>, Vec<IpNet>)>,
    /// Nodes that found no range left.
    waiting: BTreeSet<ObjectKey>,
}

impl NodeIpam {
    pub(crate) fn new(context: Context, clusters: &[IpNet], ask: Asker<ObjectKey>) -> Self {
        let recorder = context.recorder("cidrAllocator");
        let nodes: Informer<Node> = context.informers.of();
        let clusters = clusters.iter().map(|cluster| Ranges::new(*cluster)).collect();
        let state = Arc::new(Mutex::new(State { clusters, given: HashMap::new(), waiting: BTreeSet::new() }));
        // Counts before whoever listens to the Nodes later is told.
        let counted = Arc::clone(&state);
        nodes.on_change(move |change| {
            for key in lock(&counted).see(change) {
                ask.ask(key);
            }
        });
        Self { context, nodes, recorder, state }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no holder of the ranges panics")
}

impl State {
    /// Takes in a change of a Node. Answers who may find a range now that found none before.
    fn see(&mut self, change: Change<'_, Node>) -> Vec<ObjectKey> {
        let key = change.key();
        let before: Vec<IpNet> = change.old.map(|node| ranges(node).collect()).unwrap_or_default();
        let after: Vec<IpNet> = change.new.map(|node| ranges(node).collect()).unwrap_or_default();
        let shown = change.new.is_none() || !after.is_empty();
        if shown {
            self.waiting.remove(&key);
        }
        if before == after && !(shown && self.given.contains_key(&*key.name)) {
            return Vec::new();
        }
        // First what is taken, so that nothing is free in between.
        for range in &after {
            self.occupy(*range);
        }
        let mut freed = self.release_all(&before);
        if shown && let Some((_, given)) = self.given.remove(&*key.name) {
            freed += self.release_all(&given);
        }
        std::iter::from_fn(|| self.waiting.pop_first()).take(freed).collect()
    }

    fn occupy(&mut self, range: IpNet) {
        self.clusters.iter_mut().for_each(|cluster| cluster.occupy(range));
    }

    fn release(&mut self, range: IpNet) -> bool {
        // Each of them, so not `any`, which ends with the first.
        self.clusters.iter_mut().filter_map(|cluster| cluster.release(range).then_some(())).count() > 0
    }

    /// Answers how many of them gave something back.
    fn release_all(&mut self, ranges: &[IpNet]) -> usize {
        ranges.iter().filter(|range| self.release(**range)).count()
    }

    /// Chooses the ranges of a Node, and remembers them as taken. `None`: a cluster is used up.
    fn choose(&mut self, key: &ObjectKey, uid: Option<&String>) -> Option<Vec<IpNet>> {
        if let Some((of, given)) = self.given.get(&*key.name)
            && of.as_ref() == uid
        {
            return Some(given.clone());
        }
        if let Some((_, given)) = self.given.remove(&*key.name) {
            self.release_all(&given);
        }
        let mut chosen = Vec::new();
        for cluster in &mut self.clusters {
            match cluster.take() {
                Some(range) => chosen.push(range),
                None => break,
            }
        }
        if chosen.len() < self.clusters.len() {
            self.release_all(&chosen);
            self.waiting.insert(key.clone());
            return None;
        }
        self.given.insert(key.name.to_string(), (uid.cloned(), chosen.clone()));
        Some(chosen)
    }
}

/// The ranges of a Node: `podCIDR` is the first of `podCIDRs`, unless an old client set it alone.
fn ranges(node: &Node) -> impl Iterator<Item = IpNet> {
    let spec = node.spec.as_ref();
    let listed = spec.and_then(|spec| spec.pod_cidrs.as_ref()).filter(|listed| !listed.is_empty());
    let alone = spec.filter(|_| listed.is_none()).and_then(|spec| spec.pod_cidr.as_ref());
    listed.into_iter().flatten().chain(alone).filter_map(|cidr| cidr.parse().ok())
}

impl Reconcile for NodeIpam {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "node-ipam"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.nodes.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(node) = self.nodes.get_key(&key).filter(|node| ranges(node).next().is_none()) else {
            return Ok(Requeue::No);
        };
        let chosen = lock(&self.state).choose(&key, node.metadata.uid.as_ref());
        let Some(chosen) = chosen else {
            let message = format!("Node {key} status is now: CIDRNotAvailable");
            self.recorder.record(reference(&*node), EventKind::Normal, "CIDRNotAvailable", message);
            return Ok(Requeue::After(USED_UP_WAIT));
        };
        let cidrs: Vec<String> = chosen.iter().map(ToString::to_string).collect();
        let patch = json!({
            "metadata": {"uid": node.metadata.uid},
            "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
        });
        let api: Api<Node> = self.context.cluster_api();
        let written = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        written.unless_gone(|| format!("give node {key} its Pod addresses"))?;
        Ok(Requeue::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, uid: &str, cidrs: &[&str]) -> Arc<Node> {
        let value = json!({"metadata": {"name": name, "uid": uid}, "spec": {"podCIDRs": cidrs}});
        Arc::new(serde_json::from_value(value).expect("a Node"))
    }

    fn state(cluster: &str) -> State {
        let clusters = vec![Ranges::new(cluster.parse().expect("a range"))];
        State { clusters, given: HashMap::new(), waiting: BTreeSet::new() }
    }

    fn choose(state: &mut State, name: &str, uid: &str) -> Option<String> {
        let chosen = state.choose(&ObjectKey::cluster(name), Some(&uid.to_owned()));
        chosen.map(|chosen| chosen.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
    }

    #[test]
    fn a_range_is_taken_from_its_choice_until_its_node_is_gone() {
        let mut state = state("10.0.0.0/23");
        assert_eq!(choose(&mut state, "a", "1").as_deref(), Some("10.0.0.0/24"));
        assert_eq!(choose(&mut state, "a", "1").as_deref(), Some("10.0.0.0/24"), "a retry gets the same");
        assert_eq!(choose(&mut state, "b", "2").as_deref(), Some("10.0.1.0/24"));
        assert_eq!((choose(&mut state, "c", "3"), choose(&mut state, "d", "4")), (None, None));
        let (bare, shown) = (node("a", "1", &[]), node("a", "1", &["10.0.0.0/24"]));
        assert!(state.see(Change { old: None, new: Some(&bare) }).is_empty());
        assert!(state.see(Change { old: Some(&bare), new: Some(&shown) }).is_empty(), "shown, not given back");
        assert!(state.see(Change { old: Some(&shown), new: Some(&shown) }).is_empty());
        let woken = state.see(Change { old: Some(&shown), new: None });
        assert_eq!(woken, [ObjectKey::cluster("c")], "one range wakes one who waits");
        assert_eq!(choose(&mut state, "c", "3").as_deref(), Some("10.0.0.0/24"));
    }

    #[test]
    fn a_node_that_goes_before_it_is_shown_gives_its_range_back() {
        let mut state = state("10.0.0.0/24");
        assert!(choose(&mut state, "a", "1").is_some());
        assert!(choose(&mut state, "b", "2").is_none());
        let bare = node("a", "1", &[]);
        assert_eq!(state.see(Change { old: Some(&bare), new: None }), [ObjectKey::cluster("b")]);
        assert!(choose(&mut state, "b", "2").is_some());
        assert!(choose(&mut state, "b", "5").is_some(), "a namesake takes the place of the Node before it");
        assert!(choose(&mut state, "c", "3").is_none());
    }

    #[test]
    fn ranges_set_by_hand_are_not_given_away() {
        let mut state = state("10.0.0.0/22");
        let by_hand = node("hand", "9", &["10.0.0.0/23"]);
        state.see(Change { old: None, new: Some(&by_hand) });
        assert_eq!(choose(&mut state, "a", "1").as_deref(), Some("10.0.2.0/24"));
    }
}
