//! Why a Pod has no node: for each Pod that was turned down lately, what every node said.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use serde::Serialize;

use crate::model::PodKey;
use crate::verdict::Unschedulable;

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

#[derive(Debug, Default)]
struct Held {
    by_pod: HashMap<PodKey, Explanation>,
    order: VecDeque<PodKey>,
}

/// The explanations of one scheduler. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Explanations(Arc<Mutex<Held>>);

impl Explanations {
    pub fn get(&self, namespace: &str, name: &str) -> Option<Explanation> {
        self.held().by_pod.get(&PodKey::new(namespace, name)).cloned()
    }

    pub(crate) fn put(&self, key: &PodKey, verdict: &Unschedulable, message: String, at: Timestamp) {
        self.put_for(key, key, verdict, message, at);
    }

    /// Holds for a member of a gang what another member, which decided about all of them, was told.
    pub(crate) fn put_for(
        &self,
        key: &PodKey,
        member: &PodKey,
        verdict: &Unschedulable,
        message: String,
        at: Timestamp,
    ) {
        let reasons: Vec<NodeReason> = verdict
            .rejections
            .iter()
            .take(NODES_PER_POD)
            .map(|(node, rejection)| NodeReason {
                node: node.to_string(),
                plugin: rejection.plugin.name(),
                reasons: rejection.reasons.iter().map(ToString::to_string).collect(),
                resolvable: rejection.resolvable,
            })
            .collect();
        self.hold(
            key,
            Explanation {
                member: (member != key).then(|| member.name.to_string()),
                nodes: verdict.nodes,
                rejected_by: verdict.whole.as_ref().map(|whole| whole.plugin.name()),
                omitted: verdict.rejections.len() - reasons.len(),
                reasons,
                ..bare(key, message, at)
            },
        );
    }

    /// Holds what is known of a Pod that no node was asked about.
    pub(crate) fn put_message(&self, key: &PodKey, message: String, at: Timestamp) {
        self.hold(key, bare(key, message, at));
    }

    fn hold(&self, key: &PodKey, explanation: Explanation) {
        let mut held = self.held();
        if held.by_pod.insert(key.clone(), explanation).is_none() {
            held.order.push_back(key.clone());
        }
        if held.order.len() > PODS
            && let Some(oldest) = held.order.pop_front()
        {
            held.by_pod.remove(&oldest);
        }
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

fn bare(key: &PodKey, message: String, at: Timestamp) -> Explanation {
    Explanation {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        at,
        message,
        member: None,
        nodes: 0,
        rejected_by: None,
        reasons: Vec::new(),
        omitted: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Plugin;
    use crate::verdict::{Preemption, Rejection};

    #[test]
    fn it_is_bounded_both_ways_and_forgets() {
        let store = Explanations::default();
        let rejection = Arc::new(Rejection::resolvable(Plugin::NodeResourcesFit, "Insufficient cpu"));
        let nodes = NODES_PER_POD + 10;
        let rejections: Arc<[_]> = (0..nodes).map(|n| (n.to_string().into(), Arc::clone(&rejection))).collect();
        let verdict = Unschedulable { nodes, whole: None, rejections, preemption: Preemption::Off };
        for n in 0..=PODS {
            store.put(&PodKey::new("default", &n.to_string()), &verdict, "why".to_owned(), Timestamp::UNIX_EPOCH);
        }
        assert_eq!(store.get("default", "0"), None);
        let last = store.get("default", &PODS.to_string()).expect("the last one is held");
        assert_eq!((last.reasons.len(), last.omitted, last.nodes), (NODES_PER_POD, 10, nodes));
        store.put_for(&PodKey::new("default", "m"), &PodKey::new("default", "n"), &verdict, "why".to_owned(), last.at);
        assert_eq!(store.get("default", "m").expect("it is held").member.as_deref(), Some("n"));
        store.put_message(&PodKey::new("default", "held"), "waiting".to_owned(), Timestamp::UNIX_EPOCH);
        let held = store.get("default", "held").expect("it is held");
        assert_eq!((held.nodes, held.message.as_str()), (0, "waiting"));
        store.remove(&PodKey::new("default", &PODS.to_string()));
        assert_eq!(store.get("default", &PODS.to_string()), None);
        store.clear();
        assert_eq!(store.get("default", "held"), None);
    }
}
