//! An informer's objects by what they belong to.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, RwLock};

use kube::core::Resource;

use super::{Change, Informer, ObjectKey};

/// Objects of one kind by group, for instance EndpointSlices by Service. It changes in the informer's own task, so whoever
/// registers on the informer later finds each change done here too.
pub struct Grouped<G, K> {
    groups: RwLock<HashMap<G, BTreeMap<ObjectKey, Arc<K>>>>,
}

impl<G, K> Grouped<G, K>
where
    G: Hash + Eq + Send + Sync + 'static,
    K: Resource + Send + Sync + 'static,
{
    /// Groups the informer's objects, as many times each as `groups_of` names groups.
    pub fn new(informer: &Informer<K>, groups_of: impl Fn(&K) -> Vec<G> + Send + Sync + 'static) -> Arc<Self> {
        let grouped = Arc::new(Self { groups: RwLock::default() });
        let held = Arc::clone(&grouped);
        informer.on_change(move |change| held.apply(change, &groups_of));
        grouped
    }

    /// The objects of a group, ordered by their keys.
    pub fn get(&self, group: &G) -> Vec<Arc<K>> {
        let groups = self.groups.read().expect("no holder of the groups panics");
        groups.get(group).map(|objects| objects.values().cloned().collect()).unwrap_or_default()
    }

    fn apply(&self, change: Change<'_, K>, groups_of: &impl Fn(&K) -> Vec<G>) {
        let key = change.key();
        let mut groups = self.groups.write().expect("no holder of the groups panics");
        for group in change.old.into_iter().flat_map(|old| groups_of(old)) {
            if let Some(objects) = groups.get_mut(&group) {
                objects.remove(&key);
                if objects.is_empty() {
                    groups.remove(&group);
                }
            }
        }
        if let Some(new) = change.new {
            for group in groups_of(new) {
                groups.entry(group).or_default().insert(key.clone(), Arc::clone(new));
            }
        }
    }
}
