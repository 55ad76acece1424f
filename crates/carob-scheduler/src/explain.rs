//! Why a Pod has no node: for each Pod that was turned down lately, what every node said.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use serde::Serialize;

use crate::model::{PodKey, Str};
use crate::verdict::{Rejection, Unschedulable};

/// Pods that are remembered. The one that was turned down longest ago goes first.
const PODS: usize = 512;
/// Nodes that are listed for one Pod; the message counts all.
const NODES_PER_POD: usize = 256;

/// What one node said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReason {
    pub node: String,
    pub plugin: &'static str,
    pub reasons: Vec<String>,
    /// Whether evicting Pods of lower priority from this node could help.
    pub resolvable: bool,
}

/// Why a Pod has no node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub namespace: String,
    pub name: String,
    pub at: Timestamp,
    pub message: String,
    /// The member of the Pod's gang that the nodes were asked about, where that was another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// How many nodes there were; none where the Pod was not tried, such as a member whose gang is not complete.
    pub nodes: usize,
    /// The plugin that turned the Pod down without looking at nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected_by: Option<&'static str>,
    pub reasons: Vec<NodeReason>,
    /// Nodes that said something too but are not listed.
    pub omitted: usize,
}

/// What nodes said, as it is held: shared with the decision and among the members of a gang.
type Reasons = Arc<[(Str, Arc<Rejection>)]>;

/// An explanation as it is held. It is put into words when someone asks, which is rare; Pods are turned down all the time.
#[derive(Clone, Debug)]
struct Entry {
    at: Timestamp,
    message: Str,
    member: Option<Str>,
    nodes: usize,
    rejected_by: Option<&'static str>,
    reasons: Reasons,
    omitted: usize,
}

impl Entry {
    fn bare(message: &str, at: Timestamp) -> Self {
        let message = Str::from(message);
        Self { at, message, member: None, nodes: 0, rejected_by: None, reasons: Arc::new([]), omitted: 0 }
    }

    fn of(verdict: &Unschedulable, message: &str, at: Timestamp) -> Self {
        let all = &verdict.rejections;
        let reasons = if all.len() > NODES_PER_POD { all[..NODES_PER_POD].into() } else { Arc::clone(all) };
        Self {
            nodes: verdict.nodes,
            rejected_by: verdict.whole.as_ref().map(|whole| whole.plugin.name()),
            omitted: all.len() - reasons.len(),
            reasons,
            ..Self::bare(message, at)
        }
    }

    fn tell(&self, namespace: &str, name: &str) -> Explanation {
        let reason = |(node, rejection): &(Str, Arc<Rejection>)| NodeReason {
            node: node.to_string(),
            plugin: rejection.plugin.name(),
            reasons: rejection.reasons.iter().map(ToString::to_string).collect(),
            resolvable: rejection.resolvable,
        };
        Explanation {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            at: self.at,
            message: self.message.to_string(),
            member: self.member.as_ref().map(ToString::to_string),
            nodes: self.nodes,
            rejected_by: self.rejected_by,
            reasons: self.reasons.iter().map(reason).collect(),
            omitted: self.omitted,
        }
    }
}

#[derive(Debug, Default)]
struct Held {
    by_pod: HashMap<PodKey, Entry>,
    order: VecDeque<PodKey>,
}

impl Held {
    fn put(&mut self, key: &PodKey, entry: Entry) {
        if self.by_pod.insert(key.clone(), entry).is_none() {
            self.order.push_back(key.clone());
        }
        if self.order.len() > PODS
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_pod.remove(&oldest);
        }
    }
}

/// The explanations of one scheduler. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Explanations(Arc<Mutex<Held>>);

impl Explanations {
    pub fn get(&self, namespace: &str, name: &str) -> Option<Explanation> {
        let entry = self.held().by_pod.get(&PodKey::new(namespace, name)).cloned()?;
        Some(entry.tell(namespace, name))
    }

    pub(crate) fn put(&self, key: &PodKey, verdict: &Unschedulable, message: &str, at: Timestamp) {
        self.held().put(key, Entry::of(verdict, message, at));
    }

    /// Holds for members of a gang what another member, which decided about all of them, was told.
    pub(crate) fn put_for<'a>(
        &self,
        keys: impl Iterator<Item = &'a PodKey>,
        member: &PodKey,
        verdict: &Unschedulable,
        message: &str,
        at: Timestamp,
    ) {
        let entry = Entry { member: Some(Arc::clone(&member.name)), ..Entry::of(verdict, message, at) };
        let mut held = self.held();
        keys.for_each(|key| held.put(key, entry.clone()));
    }

    /// Holds what is known of Pods that no node was asked about.
    pub(crate) fn put_message<'a>(&self, keys: impl Iterator<Item = &'a PodKey>, message: &str, at: Timestamp) {
        let entry = Entry::bare(message, at);
        let mut held = self.held();
        keys.for_each(|key| held.put(key, entry.clone()));
    }

    pub(crate) fn remove(&self, key: &PodKey) {
        let mut held = self.held();
        if held.by_pod.remove(key).is_some() {
            held.order.retain(|other| other != key);
        }
    }

    /// Forgets all: who does not schedule any more knows nothing.
    pub(crate) fn clear(&self) {
        *self.held() = Held::default();
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().expect("no holder of the explanations panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Plugin;
    use crate::verdict::Preemption;

    #[test]
    fn it_is_bounded_both_ways_and_forgets() {
        let store = Explanations::default();
        let rejection = Arc::new(Rejection::resolvable(Plugin::NodeResourcesFit, "Insufficient cpu"));
        let nodes = NODES_PER_POD + 10;
        let rejections: Arc<[_]> = (0..nodes).map(|n| (n.to_string().into(), Arc::clone(&rejection))).collect();
        let verdict = Unschedulable { nodes, whole: None, rejections, preemption: Preemption::Off };
        for n in 0..=PODS {
            store.put(&PodKey::new("default", &n.to_string()), &verdict, "why", Timestamp::UNIX_EPOCH);
        }
        assert_eq!(store.get("default", "0"), None);
        let last = store.get("default", &PODS.to_string()).expect("the last one is held");
        assert_eq!((last.reasons.len(), last.omitted, last.nodes), (NODES_PER_POD, 10, nodes));
        let (m, n) = (PodKey::new("default", "m"), PodKey::new("default", "n"));
        store.put_for(std::iter::once(&m), &n, &verdict, "why", last.at);
        assert_eq!(store.get("default", "m").expect("it is held").member.as_deref(), Some("n"));
        let key = PodKey::new("default", "held");
        store.put_message(std::iter::once(&key), "waiting", Timestamp::UNIX_EPOCH);
        let held = store.get("default", "held").expect("it is held");
        assert_eq!((held.nodes, held.message.as_str()), (0, "waiting"));
        store.remove(&PodKey::new("default", &PODS.to_string()));
        assert_eq!(store.get("default", &PODS.to_string()), None);
        store.clear();
        assert_eq!(store.get("default", "held"), None);
    }
}
