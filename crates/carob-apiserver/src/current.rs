//! What the API server itself has to know of stored objects, kept current by the store's events: roles and bindings, Pods
//! that lead a node to Secrets, configurations of webhooks, policies.
//!
//! Nothing here waits, and no task runs: whoever looks takes in the events since the last look first. The store publishes a
//! change before it answers the writer, so a decision always follows every write that anyone has been told of. A look that
//! finds no event costs one shared lock and one atomic load per prefix.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use carob_api::kinds;
use carob_store::{Entry, EventKind, Store, Watch, WatchItem};
use tracing::warn;

/// What is made of the objects under one or several prefixes. The order of events is kept within a prefix.
pub(crate) trait View: Send + Sync {
    /// Forgets everything under `prefix`, which is told again.
    fn clear(&mut self, prefix: &str);

    fn put(&mut self, entry: &Entry);

    fn remove(&mut self, key: &str);

    /// Called once after changes, before anyone looks.
    fn settle(&mut self) {}
}

/// The prefix of a built-in kind's keys.
pub(crate) fn prefix_of((group, version, plural): (&str, &str, &str)) -> String {
    kinds::by_resource(group, version, plural).map(|def| def.storage_prefix(None)).unwrap_or_default()
}

/// A [`View`] that is up to date whenever it is looked at.
pub(crate) struct Follower<V> {
    store: Store,
    state: RwLock<State<V>>,
}

struct State<V> {
    watches: Vec<(String, Watch)>,
    view: V,
}

impl<V: View> Follower<V> {
    pub(crate) fn new(store: &Store, prefixes: impl IntoIterator<Item = String>, mut view: V) -> Self {
        let watches = prefixes.into_iter().map(|prefix| {
            let watch = fill(store, &prefix, &mut view);
            (prefix, watch)
        });
        let watches = watches.collect();
        view.settle();
        Self { store: store.clone(), state: RwLock::new(State { watches, view }) }
    }

    /// Asks the view, which holds every write that was answered before the call.
    pub(crate) fn ask<R>(&self, question: impl FnOnce(&V) -> R) -> R {
        let state = self.read();
        if !state.is_behind() {
            return question(&state.view);
        }
        drop(state);
        // Events that come while this waits for the lock are taken in too. A view that panicked lacks the object that it
        // panicked at and is asked for the rest.
        self.state.write().unwrap_or_else(PoisonError::into_inner).catch_up(&self.store);
        question(&self.read().view)
    }

    fn read(&self) -> RwLockReadGuard<'_, State<V>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fill(store: &Store, prefix: &str, view: &mut impl View) -> Watch {
    let (entries, watch) = store.list_and_watch(prefix);
    for entry in &entries {
        view.put(entry);
    }
    watch
}

impl<V: View> State<V> {
    fn is_behind(&self) -> bool {
        self.watches.iter().any(|(_, watch)| watch.is_behind())
    }

    fn catch_up(&mut self, store: &Store) {
        for (prefix, watch) in &mut self.watches {
            loop {
                match watch.try_next() {
                    Some(WatchItem::Event(event)) => match event.kind {
                        EventKind::Put => self.view.put(&event.entry),
                        EventKind::Delete => self.view.remove(&event.entry.key),
                    },
                    // Nobody looked while all of the store's history went by.
                    Some(WatchItem::Lagged) => {
                        self.view.clear(prefix);
                        *watch = fill(store, prefix, &mut self.view);
                    }
                    Some(WatchItem::Closed) | None => break,
                }
            }
        }
        self.view.settle();
    }
}

/// The objects under one prefix, each decoded once, in the order of their keys.
pub(crate) struct Current<T>(Follower<Objects<T>>);

/// How an object is made of its stored bytes.
type Decode<T> = Box<dyn Fn(&Entry) -> Result<T, Box<dyn std::error::Error + Send + Sync>> + Send + Sync>;

struct Objects<T> {
    decode: Decode<T>,
    by_key: BTreeMap<Arc<str>, Arc<T>>,
    snapshot: Arc<[Arc<T>]>,
}

impl<T: Send + Sync> Current<T> {
    /// An object that `decode` refuses is logged and left out.
    pub(crate) fn new<E>(
        store: &Store,
        prefix: String,
        decode: impl Fn(&Entry) -> Result<T, E> + Send + Sync + 'static,
    ) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let decode: Decode<T> = Box::new(move |entry| decode(entry).map_err(Into::into));
        Self(Follower::new(store, [prefix], Objects { decode, by_key: BTreeMap::new(), snapshot: Arc::new([]) }))
    }

    /// All objects. The same `Arc` as long as none has changed, so `Arc::ptr_eq` tells whether one has.
    pub(crate) fn snapshot(&self) -> Arc<[Arc<T>]> {
        self.0.ask(|objects| Arc::clone(&objects.snapshot))
    }

    /// The object that lies at `key`.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<T>> {
        self.0.ask(|objects| objects.by_key.get(key).cloned())
    }
}

impl<T: Send + Sync> View for Objects<T> {
    fn clear(&mut self, _prefix: &str) {
        self.by_key.clear();
    }

    fn put(&mut self, entry: &Entry) {
        match (self.decode)(entry) {
            Ok(object) => {
                self.by_key.insert(Arc::clone(&entry.key), Arc::new(object));
            }
            Err(error) => {
                warn!(key = %entry.key, error = %carob_kit::chain(&*error), "a stored object cannot be used");
                self.by_key.remove(&entry.key);
            }
        }
    }

    fn remove(&mut self, key: &str) {
        self.by_key.remove(key);
    }

    fn settle(&mut self) {
        self.snapshot = self.by_key.values().cloned().collect();
    }
}

impl<V> fmt::Debug for Follower<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use carob_store::{Expect, Limits, Options, Txn};

    use super::*;

    async fn put(store: &Store, key: &str, value: &'static str) {
        store.txn(Txn::put(key, Expect::Any, value)).await.expect("the store takes it");
    }

    fn texts(store: &Store) -> Current<String> {
        Current::new(store, "/a/".to_owned(), |entry| std::str::from_utf8(&entry.value).map(str::to_owned))
    }

    fn all(current: &Current<String>) -> Vec<String> {
        current.snapshot().iter().map(|text| text.as_str().to_owned()).collect()
    }

    #[tokio::test]
    async fn a_look_follows_every_write_that_was_answered() {
        let store = Store::in_memory(Options::default());
        put(&store, "/a/y", "old").await;
        let current = texts(&store);
        assert_eq!(all(&current), ["old"]);
        for round in ["1", "2", "3"] {
            put(&store, "/a/x", round).await;
            assert_eq!(all(&current), [round, "old"]);
            assert_eq!(current.get("/a/x").as_deref().map(String::as_str), Some(round));
        }
        let before = current.snapshot();
        put(&store, "/b/x", "another prefix").await;
        assert!(Arc::ptr_eq(&before, &current.snapshot()));
        store.txn(Txn::delete("/a/y", Expect::Any)).await.expect("it is there");
        assert_eq!(all(&current), ["3"]);
    }

    #[test]
    fn a_kind_has_its_prefix() {
        assert_eq!(prefix_of(("", "v1", "pods")), "/registry/pods/");
    }

    #[tokio::test]
    async fn what_cannot_be_decoded_is_not_there() {
        let store = Store::in_memory(Options::default());
        put(&store, "/a/x", "good").await;
        let current = texts(&store);
        store.txn(Txn::put("/a/x", Expect::Any, &b"\xff"[..])).await.expect("the store knows no text");
        assert!(all(&current).is_empty());
        put(&store, "/a/x", "good again").await;
        assert_eq!(all(&current), ["good again"]);
    }

    #[tokio::test]
    async fn history_that_went_by_is_no_loss() {
        let limits = Limits { history_events_max: 10, ..Limits::default() };
        let store = Store::in_memory(Options { limits, ..Options::default() });
        put(&store, "/a/gone", "1").await;
        let current = texts(&store);
        store.txn(Txn::delete("/a/gone", Expect::Any)).await.expect("it is there");
        for _ in 0..100 {
            put(&store, "/a/x", "many").await;
        }
        assert_eq!(all(&current), ["many"]);
    }
}
