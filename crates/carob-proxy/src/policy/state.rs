//! All policies as the table has them, and the transaction from there to the next state. Pure.
//!
//! What the table holds is kept as one part per policy and one per Pod of this machine: what changed is made again, and
//! the difference is written.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use carob_client::ObjectKey;
use carob_sys::nft::Transaction;

use super::model::{PodFacts, Policy};
use super::rules;
use crate::service::Rendered;
use crate::state::{add_difference, clean};

/// Something that has rules of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Part {
    Policy(ObjectKey),
    Pod(ObjectKey),
}

#[derive(Debug, Default)]
pub(crate) struct State {
    policies: BTreeMap<ObjectKey, Policy>,
    pods: BTreeMap<ObjectKey, PodFacts>,
    parts: HashMap<Part, Rendered>,
    /// Parts that are to be made again.
    dirty: BTreeSet<Part>,
    stale_chains: BTreeSet<String>,
}

impl State {
    pub(super) fn policies(&self) -> usize {
        self.policies.len()
    }

    /// Takes a policy as it is now.
    pub(super) fn set_policy(&mut self, key: &ObjectKey, policy: Option<Policy>) {
        let old = match policy {
            Some(policy) => self.policies.insert(key.clone(), policy),
            None => self.policies.remove(key),
        };
        self.dirty.insert(Part::Policy(key.clone()));
        let new = self.policies.get(key);
        let selected =
            self.pods.values().filter(|pod| pod.is_local && old.iter().chain(new).any(|policy| policy.selects(pod)));
        self.dirty.extend(selected.map(|pod| Part::Pod(pod.key.clone())));
    }

    /// Takes a Pod as it is now; `None` if it has no address of its own.
    pub(super) fn set_pod(&mut self, key: &ObjectKey, pod: Option<PodFacts>) {
        let pod = pod.and_then(|pod| self.without_others_addresses(pod));
        self.put_pod(key, pod);
    }

    /// An address is given again while the API still shows it of the Pod that had it: it is the younger one's.
    fn without_others_addresses(&mut self, mut pod: PodFacts) -> Option<PodFacts> {
        if !pod.is_local {
            return Some(pod);
        }
        let has_any = |other: &&PodFacts| {
            other.is_local && other.key != pod.key && other.addresses.iter().any(|held| pod.addresses.contains(held))
        };
        let others: Vec<PodFacts> = self.pods.values().filter(has_any).cloned().collect();
        for mut other in others {
            let (loser, winner) = if other.created > pod.created { (&mut pod, &other) } else { (&mut other, &pod) };
            loser.addresses.retain(|address| !winner.addresses.contains(address));
            let key = other.key.clone();
            self.put_pod(&key, Some(other).filter(|other| !other.addresses.is_empty()));
        }
        Some(pod).filter(|pod| !pod.addresses.is_empty())
    }

    fn put_pod(&mut self, key: &ObjectKey, pod: Option<PodFacts>) {
        if self.pods.get(key) == pod.as_ref() {
            return;
        }
        let old = match pod {
            Some(pod) => self.pods.insert(key.clone(), pod),
            None => self.pods.remove(key),
        };
        let new = self.pods.get(key);
        if old.iter().chain(new).any(|pod| pod.is_local) {
            self.dirty.insert(Part::Pod(key.clone()));
        }
        let concerned = self.policies.values().filter(|policy| {
            old.iter().chain(new).any(|pod| policy.depends_on(pod) || (pod.is_local && policy.selects(pod)))
        });
        self.dirty.extend(concerned.map(|policy| Part::Policy(policy.key.clone())));
    }

    /// The keys of the Pods of a namespace.
    pub(super) fn pods_in(&self, namespace: &str) -> Vec<ObjectKey> {
        self.pods.keys().filter(|key| *key.namespace == *namespace).cloned().collect()
    }

    /// The transaction to what should be; with `whole`, in place of whatever the table holds. It has to be written, or
    /// the next one has to be whole.
    pub(crate) fn change(&mut self, table: &str, whole: bool) -> Transaction {
        let (mut old, mut new) = (Rendered::default(), Rendered::default());
        for part in std::mem::take(&mut self.dirty) {
            let made = self.make(&part);
            if let Some(before) = self.parts.remove(&part) {
                old.merge(before);
            }
            if !made.is_empty() {
                new.merge(made.clone());
                self.parts.insert(part, made);
            }
        }
        if !whole {
            let mut change = Transaction::new(table);
            add_difference(&mut change, &old, new, &mut self.stale_chains);
            return change;
        }
        self.stale_chains.clear();
        let mut change = rules::replace(table);
        let mut all = Rendered::default();
        for part in self.parts.values() {
            all.merge(part.clone());
        }
        add_difference(&mut change, &Rendered::default(), all, &mut BTreeSet::new());
        change
    }

    pub(super) fn clean(&self, table: &str) -> Transaction {
        clean(table, &self.stale_chains)
    }

    pub(super) fn cleaned(&mut self) {
        self.stale_chains.clear();
    }

    fn selects_any(&self, policy: &Policy) -> bool {
        self.pods.values().any(|pod| pod.is_local && policy.selects(pod))
    }

    fn make(&self, part: &Part) -> Rendered {
        match part {
            // A policy that selects no Pod of this machine has nothing to say here.
            Part::Policy(key) => match self.policies.get(key).filter(|policy| self.selects_any(policy)) {
                Some(policy) => rules::policy(policy, self.pods.values()),
                None => Rendered::default(),
            },
            Part::Pod(key) => match self.pods.get(key).filter(|pod| pod.is_local) {
                Some(pod) => {
                    let policies: Vec<&Policy> = self.policies.values().filter(|policy| policy.selects(pod)).collect();
                    rules::pod(pod, &policies)
                }
                None => Rendered::default(),
            },
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
