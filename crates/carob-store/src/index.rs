//! The MVCC index: every key's versions, as far back as history goes. Pure: no I/O, no time, no locks.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::entry::{Entry, Event, EventKind, Revision};
use crate::values::{self, Opened, ValueError, Values};

/// Bytes that one event of history costs beside its values, by estimate: itself, its entry, its place in the ring and
/// in the key's list of versions.
const EVENT_OVERHEAD_BYTES: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("revision {requested} has been compacted, the oldest that can be read is {compacted}")]
    Compacted { requested: Revision, compacted: Revision },
    #[error("revision {requested} is in the future, the store is at {current}")]
    Future { requested: Revision, current: Revision },
}

/// Which part of a prefix to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct ListOptions<'a> {
    /// The revision to read at; without it, the current one.
    pub at: Option<Revision>,
    /// The key after which to start.
    pub after: Option<&'a str>,
    pub limit: Option<usize>,
}

/// One page of a list, in key order.
#[derive(Debug, Clone)]
pub struct Page {
    pub entries: Vec<Arc<Entry>>,
    /// The revision that the page shows.
    pub revision: Revision,
    /// How many entries follow the page, exactly.
    pub remaining: usize,
}

impl Page {
    pub fn more(&self) -> bool {
        self.remaining > 0
    }
}

#[derive(Debug)]
enum Version {
    Live(Arc<Entry>),
    Deleted(Revision),
}

impl Version {
    fn revision(&self) -> Revision {
        match self {
            Self::Live(entry) => entry.mod_revision,
            Self::Deleted(revision) => *revision,
        }
    }

    fn live(&self) -> Option<&Arc<Entry>> {
        match self {
            Self::Live(entry) => Some(entry),
            Self::Deleted(_) => None,
        }
    }
}

/// The versions of one key. Most keys have one, so the older ones cost a pointer.
#[derive(Debug)]
struct Versions {
    newest: Version,
    /// Oldest first.
    #[expect(clippy::box_collection, reason = "most keys have none, and eight bytes are less than 32")]
    older: Option<Box<VecDeque<Version>>>,
}

impl Versions {
    fn at(&self, revision: Revision) -> Option<&Arc<Entry>> {
        if self.newest.revision() <= revision {
            return self.newest.live();
        }
        let older = self.older.as_deref()?;
        let after = older.partition_point(|version| version.revision() <= revision);
        older.get(after.checked_sub(1)?)?.live()
    }

    fn push(&mut self, version: Version) {
        let superseded = std::mem::replace(&mut self.newest, version);
        self.older.get_or_insert_default().push_back(superseded);
    }

    /// Forgets what no reader at `revision` or later can see; true when nothing is left.
    fn compact(&mut self, revision: Revision) -> bool {
        if self.newest.revision() <= revision {
            self.older = None;
            return self.newest.live().is_none();
        }
        if let Some(older) = &mut self.older {
            let mut unseen = older.partition_point(|version| version.revision() <= revision).saturating_sub(1);
            if older.get(unseen).is_some_and(|v| v.revision() <= revision && v.live().is_none()) {
                unseen += 1;
            }
            older.drain(..unseen);
            if older.is_empty() {
                self.older = None;
            }
        }
        false
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Index {
    keys: BTreeMap<Arc<str>, Versions>,
    /// The events after `compacted`, oldest first.
    history: VecDeque<Arc<Event>>,
    history_bytes: usize,
    current: Revision,
    compacted: Revision,
    live_bytes: u64,
    live_keys: usize,
}

impl Index {
    /// An index of nothing at `revision`.
    pub(crate) fn new(revision: Revision) -> Self {
        Self {
            keys: BTreeMap::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            current: revision,
            compacted: revision,
            live_bytes: 0,
            live_keys: 0,
        }
    }

    pub(crate) fn current(&self) -> Revision {
        self.current
    }

    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub(crate) fn live_keys(&self) -> usize {
        self.live_keys
    }

    pub(crate) fn history_events(&self) -> usize {
        self.history.len()
    }

    /// Takes in an entry that is older than all history: the content of a checkpoint.
    pub(crate) fn load(&mut self, entry: Arc<Entry>) {
        self.live_bytes += entry.size_bytes();
        self.live_keys += 1;
        self.keys.insert(Arc::clone(&entry.key), Versions { newest: Version::Live(entry), older: None });
    }

    /// The same with values as they are, of which this one has what is kept of them. What is superseded may be sealed by keys
    /// that are gone, so where values are sealed there is no history.
    pub(crate) fn opened(self, values: Option<&dyn Values>) -> Result<Self, ValueError> {
        if values.is_none() {
            for entry in self.live() {
                values::open(None, &entry.key, entry.value.clone())?;
            }
            return Ok(self);
        }
        let mut opened = Self::new(self.current);
        for entry in self.live() {
            let Opened { value, is_outdated } = values::open(values, &entry.key, entry.value.clone())?;
            let (key, created, modified) = (Arc::clone(&entry.key), entry.create_revision, entry.mod_revision);
            let expires_ms = entry.expires_ms;
            opened.load(Arc::new(Entry { expires_ms, is_outdated, ..Entry::new(key, value, created, modified) }));
        }
        Ok(opened)
    }

    /// Continues at a later revision than the last event's, as if everything before had been compacted: what follows
    /// an end that may have lost events.
    pub(crate) fn skip_to(&mut self, revision: Revision) -> Vec<Arc<Event>> {
        debug_assert!(revision >= self.current);
        self.current = revision;
        self.compact(revision, usize::MAX)
    }

    /// Says that nothing has changed up to a later revision.
    pub(crate) fn advance(&mut self, revision: Revision) {
        self.current = self.current.max(revision);
    }

    /// Makes a change visible. Its revision must be later than every earlier one, but for those of the same transaction in
    /// etcd, and its entries must have been derived from what the index holds.
    pub(crate) fn apply(&mut self, event: &Arc<Event>) {
        let entry = &event.entry;
        debug_assert!(event.revision() >= self.current, "revisions only grow");
        let version = match event.kind {
            EventKind::Put => {
                self.live_bytes += entry.size_bytes();
                self.live_keys += 1;
                Version::Live(Arc::clone(entry))
            }
            EventKind::Delete => Version::Deleted(entry.mod_revision),
        };
        if let Some(previous) = &event.previous {
            self.live_bytes -= previous.size_bytes();
            self.live_keys -= 1;
        }
        match self.keys.get_mut(&entry.key) {
            Some(versions) => versions.push(version),
            None => {
                self.keys.insert(Arc::clone(&entry.key), Versions { newest: version, older: None });
            }
        }
        self.current = event.revision();
        self.history_bytes += history_cost_bytes(event);
        self.history.push_back(Arc::clone(event));
    }

    /// Keeps history within its limits; returns what it dropped, oldest first.
    pub(crate) fn trim(&mut self, events_max: usize, bytes_max: usize) -> Vec<Arc<Event>> {
        let mut dropped = 0;
        let mut bytes = self.history_bytes;
        for event in &self.history {
            if self.history.len() - dropped <= events_max && bytes <= bytes_max {
                break;
            }
            bytes -= history_cost_bytes(event);
            dropped += 1;
        }
        match dropped.checked_sub(1) {
            Some(last) => self.compact(self.history[last].revision(), usize::MAX),
            None => Vec::new(),
        }
    }

    /// Forgets what only readers before `revision` can see, as far as `events_max` events go; [`Index::compacted`] tells
    /// how far that is. Returns the events dropped, oldest first, so that the caller frees them without the index's lock.
    pub(crate) fn compact(&mut self, revision: Revision, events_max: usize) -> Vec<Arc<Event>> {
        if revision <= self.compacted {
            return Vec::new();
        }
        let due = self.history.partition_point(|event| event.revision() <= revision);
        let dropped: Vec<_> = self.history.drain(..due.min(events_max)).collect();
        self.compacted = match dropped.last() {
            Some(last) if dropped.len() < due => last.revision(),
            _ => revision,
        };
        for event in &dropped {
            self.history_bytes -= history_cost_bytes(event);
            let key: &str = &event.entry.key;
            if self.keys.get_mut(key).is_some_and(|versions| versions.compact(self.compacted)) {
                self.keys.remove(key);
            }
        }
        if self.history.len() < self.history.capacity() / 4 {
            self.history.shrink_to(self.history.len() * 2);
        }
        dropped
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Arc<Entry>> {
        self.keys.get(key)?.newest.live()
    }

    pub(crate) fn get_at(&self, key: &str, at: Revision) -> Result<Option<&Arc<Entry>>, ReadError> {
        self.check(at)?;
        Ok(self.keys.get(key).and_then(|versions| versions.at(at)))
    }

    /// Events of keys with `prefix` after `after` up to `until`, oldest first.
    pub(crate) fn events(
        &self,
        prefix: &str,
        after: Revision,
        until: Revision,
    ) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        let start = self.history.partition_point(|event| event.revision() <= after);
        let end = self.history.partition_point(|event| event.revision() <= until).max(start);
        self.history.range(start..end).filter(move |event| event.entry.key.starts_with(prefix))
    }

    /// All live entries in key order, at the current revision.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.keys.values().filter_map(|versions| versions.newest.live())
    }

    /// The entries at `at` whose key has `prefix` and comes after `after`, in key order.
    pub(crate) fn range(&self, prefix: &str, after: Option<&str>, at: Revision) -> impl Iterator<Item = &Arc<Entry>> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.keys
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .filter_map(move |(_, versions)| versions.at(at))
    }

    /// Whether the store's state at `at` can be read.
    pub(crate) fn check(&self, at: Revision) -> Result<(), ReadError> {
        if at > self.current {
            return Err(ReadError::Future { requested: at, current: self.current });
        }
        if at < self.compacted {
            return Err(ReadError::Compacted { requested: at, compacted: self.compacted });
        }
        Ok(())
    }
}

/// What an event keeps alive that nothing else does.
fn history_cost_bytes(event: &Event) -> usize {
    event.previous.as_ref().map_or(0, |previous| previous.value.len()) + EVENT_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    /// What each revision showed: key to value and creation.
    type States = BTreeMap<u64, BTreeMap<String, (Bytes, u64)>>;

    #[derive(Debug, Clone)]
    enum Step {
        Put(u8, u8),
        Delete(u8),
        /// Compacts so many revisions before the current one, so many events at a time.
        Compact(u64, usize),
        Trim(usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..5u8, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
            3 => (0..5u8).prop_map(Step::Delete),
            1 => (0..12u64, 1..5usize).prop_map(|(back, max)| Step::Compact(back, max)),
            1 => (0..12usize).prop_map(Step::Trim),
        ]
    }

    fn change(index: &mut Index, key: u8, value: Option<u8>) {
        let key: Arc<str> = format!("/{key}").into();
        let previous = index.get(&key).cloned();
        let revision = index.current().next();
        let created = previous.as_ref().map_or(revision, |previous| previous.create_revision);
        let (kind, value) = match value {
            Some(value) => (EventKind::Put, Bytes::from(vec![value])),
            None if previous.is_none() => return,
            None => (EventKind::Delete, Bytes::new()),
        };
        let entry = Arc::new(Entry::new(key, value, created, revision));
        index.apply(&Arc::new(Event { kind, entry, previous }));
    }

    fn shown(index: &Index, at: Revision) -> BTreeMap<String, (Bytes, u64)> {
        let entries = index.range("/", None, at);
        entries.map(|entry| (entry.key.to_string(), (entry.value.clone(), entry.create_revision.0))).collect()
    }

    fn check(index: &Index, states: &States) {
        for (&revision, state) in states {
            let at = Revision(revision);
            if at < index.compacted() {
                assert!(index.check(at).is_err());
                continue;
            }
            assert_eq!(&shown(index, at), state, "at {revision}");
            for key in (0..5).map(|key| format!("/{key}")) {
                let entry = index.get_at(&key, at).expect("it can be read");
                assert_eq!(entry.map(|entry| &entry.value), state.get(&key).map(|(value, _)| value));
            }
            let after: Vec<_> = index.events("/", at, index.current()).map(|event| event.revision().0).collect();
            assert!(after.iter().copied().eq(revision + 1..=index.current().0), "every revision has one event");
        }
        let live: u64 = index.live().map(|entry| entry.size_bytes()).sum();
        assert_eq!((index.live_bytes(), index.live_keys()), (live, index.live().count()));
        assert_eq!(index.history_bytes, index.history.iter().map(|event| history_cost_bytes(event)).sum::<usize>());
    }

    proptest! {
        #![proptest_config(crate::fixed_seed())]

        #[test]
        fn every_revision_in_history_shows_what_it_showed(steps in prop::collection::vec(any_step(), 0..60)) {
            let mut index = Index::new(Revision::EMPTY);
            let mut states = States::from([(1, BTreeMap::new())]);
            for step in steps {
                match step {
                    Step::Put(key, value) => change(&mut index, key, Some(value)),
                    Step::Delete(key) => change(&mut index, key, None),
                    Step::Compact(back, max) => {
                        let revision = Revision(index.current().0.saturating_sub(back));
                        while index.compacted() < revision {
                            prop_assert!(index.compact(revision, max).len() <= max);
                            check(&index, &states);
                        }
                    }
                    Step::Trim(events) => {
                        drop(index.trim(events, usize::MAX));
                        prop_assert!(index.history_events() <= events);
                    }
                }
                states.insert(index.current().0, shown(&index, index.current()));
                check(&index, &states);
            }
            drop(index.compact(index.current(), usize::MAX));
            prop_assert_eq!(index.keys.len(), index.live_keys(), "nothing of what was deleted is left");
            prop_assert!(index.keys.values().all(|versions| versions.older.is_none()));
        }
    }
}
