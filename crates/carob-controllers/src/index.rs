//! Objects by something that they name, kept along with their changes: a controller that asks for the Pods of a Node or of an
//! owner must not walk all Pods of the cluster for it.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, RwLock};

use carob_client::{Informer, ObjectKey};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

use crate::pods;

/// By what a controller looks its objects up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum OwnedBy {
    /// The uid of the owner that manages them.
    Owner(String),
    /// A namespace, for objects that nobody manages.
    Nobody(String),
}

impl OwnedBy {
    fn of(meta: &ObjectMeta) -> Self {
        match pods::controller(meta) {
            Some(owner) => Self::Owner(owner.uid.clone()),
            None => Self::Nobody(meta.namespace.clone().unwrap_or_default()),
        }
    }
}

/// Cheap to clone; clones share everything.
#[derive(Clone)]
pub(crate) struct Index<K, V> {
    informer: Informer<K>,
    keys: Arc<RwLock<HashMap<V, BTreeSet<ObjectKey>>>>,
}

impl<K, V> Index<K, V>
where
    K: Resource + Send + Sync + 'static,
    V: Hash + Eq + Send + Sync + 'static,
{
    /// `value` answers what an object is found by, if by anything.
    pub(crate) fn new(informer: &Informer<K>, value: impl Fn(&K) -> Option<V> + Send + Sync + 'static) -> Self {
        let keys = Arc::<RwLock<HashMap<V, BTreeSet<ObjectKey>>>>::default();
        let kept = Arc::clone(&keys);
        informer.on_change(move |change| {
            let (old, new) = (change.old.and_then(|old| value(old)), change.new.and_then(|new| value(new)));
            if old == new {
                return;
            }
            let key = change.key();
            let mut kept = kept.write().expect("no holder of the index panics");
            if let Some(old) = old
                && let Some(held) = kept.get_mut(&old)
            {
                held.remove(&key);
                if held.is_empty() {
                    kept.remove(&old);
                }
            }
            if let Some(new) = new {
                kept.entry(new).or_default().insert(key);
            }
        });
        Self { informer: informer.clone(), keys }
    }

    pub(crate) fn keys(&self, value: &V) -> Vec<ObjectKey> {
        let keys = self.keys.read().expect("no holder of the index panics");
        keys.get(value).into_iter().flatten().cloned().collect()
    }

    /// The objects, as the informer has them now. The caller looks again at what it needs of them: one may have changed since.
    pub(crate) fn get(&self, value: &V) -> Vec<Arc<K>> {
        self.keys(value).iter().filter_map(|key| self.informer.get_key(key)).collect()
    }
}

impl<K> Index<K, OwnedBy>
where
    K: Resource + Send + Sync + 'static,
{
    /// What a controller may claim: its own objects, and those of its namespace that nobody manages.
    pub(crate) fn candidates(&self, owner_uid: &str, namespace: &str) -> Vec<Arc<K>> {
        let mut found = self.get(&OwnedBy::Owner(owner_uid.to_owned()));
        found.extend(self.get(&OwnedBy::Nobody(namespace.to_owned())));
        found
    }
}

/// The indexes that controllers share.
#[derive(Clone)]
pub(crate) struct Indexes {
    pub(crate) pods_by_node: Index<Pod, String>,
    pub(crate) pods_by_owner: Index<Pod, OwnedBy>,
    pub(crate) sets_by_owner: Index<ReplicaSet, OwnedBy>,
}

impl Indexes {
    pub(crate) fn new(pods: &Informer<Pod>, sets: &Informer<ReplicaSet>) -> Self {
        Self {
            pods_by_node: Index::new(pods, |pod| pods::node_name(pod).map(str::to_owned)),
            pods_by_owner: Index::new(pods, |pod: &Pod| Some(OwnedBy::of(&pod.metadata))),
            sets_by_owner: Index::new(sets, |set: &ReplicaSet| Some(OwnedBy::of(&set.metadata))),
        }
    }
}
