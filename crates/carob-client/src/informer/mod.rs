//! One watch, one decode and one store a kind, shared by all parts of the process.
//!
//! The watch is carob's own state machine and not `kube::runtime::watcher`: ours knows the key of an object that it cannot
//! decode, keeps the `Arc` of an object that a re-list shows unchanged, tells nobody about it, and falls back to paged lists
//! on servers without streaming ones.

mod grouped;
mod key;
mod lines;
mod reflector;
mod store;
#[cfg(test)]
mod tests;

use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use carob_kit::KeyQueue;
use kube::api::DynamicObject;
use kube::core::metadata::PartialObjectMeta;
use kube::core::{ApiResource, Resource};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use grouped::Grouped;
pub use key::ObjectKey;
use reflector::{Replica, Source, reflect};
pub use store::Change;
use store::Store;

/// Keys that wait in one subscription. One that falls this far behind is told to look at everything instead.
const SUBSCRIPTION_KEYS_MAX: usize = 65_536;

/// Which objects of a kind to watch. The default is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    pub namespace: Option<String>,
    /// As in a field selector, for instance `spec.nodeName=a`.
    pub fields: Option<String>,
    /// As in a label selector.
    pub labels: Option<String>,
}

/// The informers of a process. Dropping the last handle ends their watches; what they hold stays readable.
pub struct Informers {
    client: kube::Client,
    shared: Mutex<HashMap<SourceId, Entry>>,
    shutdown: CancellationToken,
    _end_with_us: DropGuard,
}

type SourceId = (TypeId, String, Selection);

struct Entry {
    informer: Arc<dyn Any + Send + Sync>,
    stats: Box<dyn Fn() -> InformerStats + Send + Sync>,
    end: CancellationToken,
}

/// What one informer has done since it started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InformerStats {
    /// The path that is watched, for instance `/api/v1/pods`.
    pub path: String,
    pub objects: usize,
    pub synced: bool,
    /// Versions that could not be decoded, and so were left out.
    pub undecodable: u64,
    /// Watches that had to be opened, the first one included.
    pub watches: u64,
}

impl Informers {
    pub fn new(client: kube::Client) -> Arc<Self> {
        let shutdown = CancellationToken::new();
        let guard = shutdown.clone().drop_guard();
        Arc::new(Self { client, shared: Mutex::default(), shutdown, _end_with_us: guard })
    }

    /// Ends all watches, also where others still hold these informers.
    pub fn end(&self) {
        self.shutdown.cancel();
    }

    /// The informer of all objects of a kind; the first call starts its watch. Must be called within a tokio runtime.
    pub fn of<K>(&self) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
    {
        self.of_selected(Selection::default())
    }

    /// The informer of some objects of a kind. Equal selections share one watch.
    pub fn of_selected<K>(&self, selection: Selection) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
    {
        let path = K::url_path(&(), selection.namespace.as_deref());
        self.of_source(Source { path, selection, metadata_only: false })
    }

    /// The informer of the metadata of all objects of any resource, built-in or not, for whoever follows owner references.
    /// Labels and annotations are left out: with them the metadata of a whole cluster would be most of its memory.
    pub fn of_metadata(&self, resource: &ApiResource) -> Informer<PartialObjectMeta> {
        self.of_source(metadata_source(resource))
    }

    /// Ends the watch that [`Informers::of_metadata`] began, when the resource is no longer served.
    pub fn forget_metadata(&self, resource: &ApiResource) {
        let id = source_id::<PartialObjectMeta<DynamicObject>>(&metadata_source(resource));
        if let Some(entry) = self.entries().remove(&id) {
            entry.end.cancel();
        }
    }

    pub fn stats(&self) -> Vec<InformerStats> {
        self.entries().values().map(|entry| (entry.stats)()).collect()
    }

    fn of_source<K>(&self, source: Source) -> Informer<K>
    where
        K: Resource + DeserializeOwned + Send + Sync + 'static,
    {
        let mut entries = self.entries();
        let id = source_id::<K>(&source);
        if let Some(entry) = entries.get(&id) {
            let shared = Arc::clone(&entry.informer).downcast().expect("the type is part of the id");
            return Informer { shared };
        }
        let shared = Arc::new(Shared::<K>::new());
        let path = source.path.clone();
        let end = self.shutdown.child_token();
        let replica: Arc<dyn Replica> = shared.clone();
        tokio::spawn(reflect(self.client.clone(), source, replica, end.clone()));
        let counted = Arc::clone(&shared);
        let stats = Box::new(move || counted.stats(&path));
        entries.insert(id, Entry { informer: shared.clone(), stats, end });
        Informer { shared }
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<SourceId, Entry>> {
        self.shared.lock().expect("no holder of the informers panics")
    }
}

fn metadata_source(resource: &ApiResource) -> Source {
    let path = DynamicObject::url_path(resource, None);
    Source { path, selection: Selection::default(), metadata_only: true }
}

fn source_id<K: 'static>(source: &Source) -> SourceId {
    (TypeId::of::<K>(), source.path.clone(), source.selection.clone())
}

/// What an informer's handles and its task share.
struct Shared<K> {
    store: Store<K>,
    progress: Progress,
}

/// How far an informer is.
struct Progress {
    synced: watch::Sender<bool>,
    /// The resourceVersion up to which the store is known to be complete.
    version: watch::Sender<u64>,
    undecodable: AtomicU64,
    watches: AtomicU64,
}

impl<K: Resource> Shared<K> {
    fn new() -> Self {
        let progress = Progress {
            synced: watch::Sender::new(false),
            version: watch::Sender::new(0),
            undecodable: AtomicU64::new(0),
            watches: AtomicU64::new(0),
        };
        Self { store: Store::new(), progress }
    }

    fn stats(&self, path: &str) -> InformerStats {
        InformerStats {
            path: path.to_owned(),
            objects: self.store.len(),
            synced: *self.progress.synced.borrow(),
            undecodable: self.progress.undecodable.load(Ordering::Relaxed),
            watches: self.progress.watches.load(Ordering::Relaxed),
        }
    }
}

impl<K: Resource + DeserializeOwned + Send + Sync> Replica for Shared<K> {
    fn put(&self, object: &RawValue, metadata_only: bool) -> Result<(), serde_json::Error> {
        let mut object: K = serde_json::from_str(object.get())?;
        let meta = object.meta_mut();
        meta.managed_fields = None;
        if metadata_only {
            (meta.labels, meta.annotations) = (None, None);
        }
        self.store.apply(object);
        Ok(())
    }

    fn remove(&self, key: &ObjectKey) {
        self.store.remove(key);
    }

    fn retain(&self, listed: &HashSet<ObjectKey>) {
        self.store.retain(listed);
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}

/// The objects of one kind and selection, as of a moment ago. Cheap to clone.
///
/// `metadata.managedFields` is left out to save memory: an object written back as it is keeps the server's.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K: Resource + Send + Sync + 'static> Informer<K> {
    /// The object of that name; `namespace` is `None` for cluster-scoped kinds.
    pub fn get(&self, namespace: Option<&str>, name: &str) -> Option<Arc<K>> {
        self.shared.store.get(namespace.unwrap_or_default(), name)
    }

    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.shared.store.get(&key.namespace, &key.name)
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.store.all()
    }

    /// The objects of one namespace, ordered by name.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.shared.store.within(namespace)
    }

    /// The object as [`crate::Reconcile::subject`] answers it.
    pub fn subject(&self, key: &ObjectKey) -> Option<crate::Subject>
    where
        K: Resource<DynamicType = ()>,
    {
        self.get_key(key).map(|object| crate::Subject::of(&*object))
    }

    /// The objects of that name in all namespaces.
    pub fn named(&self, name: &str) -> Vec<Arc<K>> {
        self.shared.store.named(name)
    }

    /// The keys of all objects, ordered.
    pub fn keys(&self) -> Vec<ObjectKey> {
        self.shared.store.keys()
    }

    pub fn len(&self) -> usize {
        self.shared.store.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ready once the first complete list has been taken in. Cancel safe.
    pub async fn synced(&self) {
        let mut synced = self.shared.progress.synced.subscribe();
        // The sender lives in `shared`, which `self` keeps alive, so waiting cannot fail.
        synced.wait_for(|synced| *synced).await.expect("the informer outlives its handles");
    }

    /// Ready once everything up to this resourceVersion has been taken in: a writer that waits for the version of its own
    /// write finds that write here, or something newer. resourceVersions are ordered integers (v1.35 and later). Cancel safe.
    pub async fn reached(&self, version: u64) {
        let mut reached = self.shared.progress.version.subscribe();
        reached.wait_for(|reached| *reached >= version).await.expect("the informer outlives its handles");
    }

    pub fn is_synced(&self) -> bool {
        *self.shared.progress.synced.borrow()
    }

    /// Calls `listener` for each object there is, then for each change, in order, from the informer's own task.
    ///
    /// It must be quick and must not register on the same informer; it may read it, and finds the change done.
    pub fn on_change(&self, listener: impl Fn(Change<'_, K>) + Send + Sync + 'static) {
        self.shared.store.listen(Box::new(move |change| {
            listener(change);
            true
        }));
    }

    /// The keys of all objects, then of each that changes or goes, each key once while it waits.
    pub fn subscribe(&self) -> Subscription {
        let inbox = Arc::new(Inbox { keys: KeyQueue::new(SUBSCRIPTION_KEYS_MAX), behind: AtomicBool::new(false) });
        let weak: Weak<Inbox> = Arc::downgrade(&inbox);
        self.shared.store.listen(Box::new(move |change| match weak.upgrade() {
            Some(inbox) => {
                if inbox.keys.push(change.key()).is_err() {
                    inbox.behind.store(true, Ordering::Release);
                }
                true
            }
            None => false,
        }));
        Subscription { inbox }
    }
}

struct Inbox {
    keys: KeyQueue<ObjectKey>,
    /// Set when a key found no place.
    behind: AtomicBool,
}

/// A queue of keys that changed; see [`Informer::subscribe`].
pub struct Subscription {
    inbox: Arc<Inbox>,
}

/// What a subscriber should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// The object of this key was added, changed or deleted.
    Key(ObjectKey),
    /// More keys changed than the queue holds: compare all that is known with all there is.
    Everything,
}

impl Subscription {
    /// The next key. Cancel safe.
    pub async fn next(&self) -> Changed {
        if self.inbox.keys.is_empty() && self.inbox.behind.swap(false, Ordering::AcqRel) {
            return Changed::Everything;
        }
        let key = self.inbox.keys.pop().await;
        Changed::Key(key.expect("only the subscription could close its queue, and does not"))
    }
}
