//! The objects of one informer and those who want to know of their changes.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use carob_kit::catch_panic_in;
use kube::Resource;
use tracing::error;

use super::ObjectKey;

/// One object's step from one version to the next. A new object has no `old`, a deleted one no `new`; never are both
/// absent. An object that was replaced by another of the same name is seen as deleted first.
pub struct Change<'a, K> {
    pub old: Option<&'a Arc<K>>,
    pub new: Option<&'a Arc<K>>,
}

impl<K> Clone for Change<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Change<'_, K> {}

impl<'a, K: Resource> Change<'a, K> {
    /// Every version that this step touches, the older first.
    pub fn versions(self) -> impl Iterator<Item = &'a Arc<K>> {
        self.old.into_iter().chain(self.new)
    }

    /// The newest version there is.
    pub fn latest(self) -> &'a Arc<K> {
        self.new.or(self.old).expect("a change has an old version, a new one, or both")
    }

    pub fn key(self) -> ObjectKey {
        ObjectKey::of(&**self.latest())
    }
}

/// Answers whether it wants to be called again.
pub(super) type Listener<K> = Box<dyn Fn(Change<'_, K>) -> bool + Send + Sync>;

type Names<K> = BTreeMap<Arc<str>, Arc<K>>;

/// Objects by namespace and name. Only the informer's own task writes.
pub(super) struct Store<K> {
    objects: RwLock<BTreeMap<Arc<str>, Names<K>>>,
    /// Held across a write and its notifications, so that whoever registers sees each object exactly once.
    listeners: Mutex<Vec<Listener<K>>>,
}

impl<K: Resource> Store<K> {
    pub(super) fn new() -> Self {
        Self { objects: RwLock::new(BTreeMap::new()), listeners: Mutex::new(Vec::new()) }
    }

    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.read().get(namespace)?.get(name).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<K>> {
        self.read().values().flat_map(|names| names.values().cloned()).collect()
    }

    pub(super) fn within(&self, namespace: &str) -> Vec<Arc<K>> {
        self.read().get(namespace).map(|names| names.values().cloned().collect()).unwrap_or_default()
    }

    /// The objects of that name, one per namespace.
    pub(super) fn named(&self, name: &str) -> Vec<Arc<K>> {
        self.read().values().filter_map(|names| names.get(name).cloned()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.read().values().map(BTreeMap::len).sum()
    }

    pub(super) fn keys(&self) -> Vec<ObjectKey> {
        let objects = self.read();
        let key =
            |namespace: &Arc<str>, name: &Arc<str>| ObjectKey { namespace: namespace.clone(), name: name.clone() };
        objects.iter().flat_map(|(namespace, names)| names.keys().map(move |name| key(namespace, name))).collect()
    }

    /// Registers a listener, after telling it of every object that there is.
    pub(super) fn listen(&self, listener: Listener<K>) {
        let mut listeners = self.listeners();
        let mut new = vec![listener];
        for object in self.all() {
            notify(&mut new, Change { old: None, new: Some(&object) });
        }
        listeners.append(&mut new);
    }

    /// Takes a version that came from the API. One that is held already is no change.
    pub(super) fn apply(&self, object: K) {
        let key = ObjectKey::of(&object);
        let mut listeners = self.listeners();
        let (old, new) = {
            let mut objects = self.write();
            let names = objects.entry(key.namespace).or_default();
            if names.get(&key.name).is_some_and(|held| same_version(&**held, &object)) {
                return;
            }
            let new = Arc::new(object);
            (names.insert(key.name, Arc::clone(&new)), new)
        };
        match old {
            Some(old) if old.meta().uid != new.meta().uid => {
                notify(&mut listeners, Change { old: Some(&old), new: None });
                notify(&mut listeners, Change { old: None, new: Some(&new) });
            }
            old => notify(&mut listeners, Change { old: old.as_ref(), new: Some(&new) }),
        }
    }

    pub(super) fn remove(&self, key: &ObjectKey) {
        let mut listeners = self.listeners();
        let old = {
            let mut objects = self.write();
            let Some(names) = objects.get_mut(&key.namespace) else { return };
            let old = names.remove(&key.name);
            if names.is_empty() {
                objects.remove(&key.namespace);
            }
            old
        };
        if let Some(old) = old {
            notify(&mut listeners, Change { old: Some(&old), new: None });
        }
    }

    /// Removes every object that a complete list did not hold.
    pub(super) fn retain(&self, listed: &HashSet<ObjectKey>) {
        for key in self.keys() {
            if !listed.contains(&key) {
                self.remove(&key);
            }
        }
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Listener<K>>> {
        self.listeners.lock().expect("no listener panics")
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Arc<str>, Names<K>>> {
        self.objects.read().expect("no holder of the objects panics")
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Arc<str>, Names<K>>> {
        self.objects.write().expect("no holder of the objects panics")
    }
}

fn same_version<K: Resource>(held: &K, new: &K) -> bool {
    let (held, new) = (held.meta(), new.meta());
    held.uid == new.uid && held.resource_version.is_some() && held.resource_version == new.resource_version
}

/// Calls every listener. One that panics has missed this change, and is called for the next one all the same: neither the
/// informer nor the other listeners may depend on it.
fn notify<K: Resource>(listeners: &mut Vec<Listener<K>>, change: Change<'_, K>) {
    listeners.retain(|listener| {
        catch_panic_in(|| listener(change)).unwrap_or_else(|panicked| {
            error!(key = %change.key(), "a listener {panicked}");
            true
        })
    });
}
