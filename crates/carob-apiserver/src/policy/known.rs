//! The policies and bindings that are stored, compiled and joined.

use std::collections::BTreeMap;
use std::sync::Arc;

use carob_store::{Entry, Store};

use super::definition::{Binding, Definition};
use crate::admission::parse;
use crate::current::{Follower, View, prefix_of};

/// A policy and what binds it.
pub(super) struct Bound<P> {
    pub(super) policy: Arc<P>,
    pub(super) bindings: Vec<Arc<Binding>>,
}

/// All policies of one kind that are bound, kept current by the store's events: one is compiled when it is first looked at after it
/// was written, never for each request.
pub(super) struct Policies<P>(Follower<Known<P>>);

struct Known<P> {
    policy_prefix: String,
    policies: BTreeMap<Arc<str>, Arc<P>>,
    bindings: BTreeMap<Arc<str>, Arc<Binding>>,
    bound: Arc<[Bound<P>]>,
}

impl<P: Definition> Policies<P> {
    /// Of the two kinds by their plurals.
    pub(super) fn new(store: &Store, policies: &str, bindings: &str) -> Self {
        let prefix = |plural: &str| prefix_of(("admissionregistration.k8s.io", "v1", plural));
        let (policy_prefix, binding_prefix) = (prefix(policies), prefix(bindings));
        let known = Known {
            policy_prefix: policy_prefix.clone(),
            policies: BTreeMap::new(),
            bindings: BTreeMap::new(),
            bound: Arc::new([]),
        };
        Self(Follower::new(store, [policy_prefix, binding_prefix], known))
    }

    pub(super) fn bound(&self) -> Arc<[Bound<P>]> {
        self.0.ask(|known| Arc::clone(&known.bound))
    }
}

impl<P: Definition> View for Known<P> {
    fn clear(&mut self, prefix: &str) {
        if prefix == self.policy_prefix {
            self.policies.clear();
        } else {
            self.bindings.clear();
        }
    }

    fn put(&mut self, entry: &Entry) {
        let Some(object) = parse(&entry.key, &entry.value) else { return self.remove(&entry.key) };
        if entry.key.starts_with(&self.policy_prefix) {
            self.policies.insert(Arc::clone(&entry.key), Arc::new(P::of(&object)));
        } else {
            self.bindings.insert(Arc::clone(&entry.key), Arc::new(Binding::of(&object)));
        }
    }

    fn remove(&mut self, key: &str) {
        self.policies.remove(key);
        self.bindings.remove(key);
    }

    fn settle(&mut self) {
        let bindings_of = |policy: &P| -> Vec<Arc<Binding>> {
            self.bindings.values().filter(|binding| binding.policy == policy.base().name).cloned().collect()
        };
        let bound =
            self.policies.values().map(|policy| Bound { policy: Arc::clone(policy), bindings: bindings_of(policy) });
        self.bound = bound.filter(|bound| !bound.bindings.is_empty()).collect();
    }
}
