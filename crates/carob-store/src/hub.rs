//! Watch fan-out: one log of events for each watched prefix, which its watchers read at their own pace.
//!
//! An event is put into the logs of the prefixes that its key has, however many watchers there are, and each log wakes
//! its watchers once a batch. A log reaches as far back as the index's history, so a watcher that falls behind costs a
//! cursor, and is ended when history is compacted past what it has not yet read.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::entry::{Event, Revision};
use crate::index::Index;

/// The events of one prefix.
#[derive(Debug)]
pub(crate) struct Group {
    log: Mutex<Log>,
    /// The revision of the newest event, [`ENDED`] once the log is closed. Written under the log's lock. Each watcher looks
    /// for more after each event, and most find nothing: that they find here, without taking the lock from each other.
    newest: AtomicU64,
    changed: Notify,
}

#[derive(Debug)]
struct Log {
    /// The log is complete for revisions after this one.
    since: Revision,
    events: VecDeque<Arc<Event>>,
    /// Set while the group is in a [`Touched`].
    touched: bool,
    closed: bool,
}

/// Greater than any revision.
const ENDED: u64 = u64::MAX;

/// What a reader finds after its cursor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Events,
    Nothing,
    Lagged,
    Closed,
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no holder of a watch log panics")
    }

    /// Whether there is anything to read after `cursor`.
    pub(crate) fn is_beyond(&self, cursor: Revision) -> bool {
        self.newest.load(Ordering::Acquire) > cursor.0
    }

    /// Appends up to `max` events after `cursor` to `into`, and those that share the last one's revision.
    pub(crate) fn read(&self, cursor: Revision, max: usize, into: &mut VecDeque<Arc<Event>>) -> Found {
        if !self.is_beyond(cursor) {
            return Found::Nothing;
        }
        let log = self.lock();
        if cursor < log.since {
            return Found::Lagged;
        }
        // Nearly always the reader is close to the end, so look there first.
        let unread = log.events.iter().rev().take(max).take_while(|event| event.revision() > cursor).count();
        let start = if unread < max {
            log.events.len() - unread
        } else {
            log.events.partition_point(|event| event.revision() <= cursor)
        };
        into.extend(log.events.range(start..).take(max).cloned());
        if let Some(last) = into.back().map(|event| event.revision()) {
            let rest = log.events.iter().skip(start + max).take_while(|event| event.revision() == last);
            into.extend(rest.cloned());
        }
        match (into.is_empty(), log.closed) {
            (false, _) => Found::Events,
            (true, false) => Found::Nothing,
            (true, true) => Found::Closed,
        }
    }

    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

#[derive(Debug)]
struct Slot {
    group: Arc<Group>,
    watchers: usize,
}

/// All groups by prefix.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    groups: Mutex<Groups>,
}

#[derive(Debug, Default)]
pub(crate) struct Groups {
    slots: BTreeMap<Arc<str>, Slot>,
    closed: bool,
}

/// Groups whose watchers are to be woken, once the writers have their answer.
#[derive(Debug, Default)]
#[must_use = "watchers sleep until they are woken"]
pub(crate) struct Touched(Vec<Arc<Group>>);

impl Touched {
    pub(crate) fn wake(self) {
        for group in self.0 {
            group.lock().touched = false;
            group.changed.notify_waiters();
        }
    }
}

impl Hub {
    /// The hub's lock nests within the index's, a group's within the hub's.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().expect("no holder of the hub panics")
    }

    /// Ends all watches, now and later.
    pub(crate) fn close(&self) {
        let mut groups = self.lock();
        groups.closed = true;
        for slot in groups.slots.values() {
            let mut log = slot.group.lock();
            log.closed = true;
            slot.group.newest.store(ENDED, Ordering::Release);
            drop(log);
            slot.group.changed.notify_waiters();
        }
    }
}

impl Groups {
    pub(crate) fn watchers(&self) -> usize {
        self.slots.values().map(|slot| slot.watchers).sum()
    }

    /// The group of `prefix`, complete after `after`, which history must reach.
    pub(crate) fn join(&mut self, index: &Index, prefix: &str, after: Revision) -> (Arc<str>, Arc<Group>) {
        if !self.slots.contains_key(prefix) {
            let since = index.current();
            let log = Log { since, events: VecDeque::new(), touched: false, closed: self.closed };
            let newest = AtomicU64::new(if self.closed { ENDED } else { since.0 });
            let group = Arc::new(Group { log: Mutex::new(log), newest, changed: Notify::new() });
            self.slots.insert(prefix.into(), Slot { group, watchers: 0 });
        }
        let (prefix, _) = self.slots.get_key_value(prefix).expect("a slot was just made sure of");
        let prefix = Arc::clone(prefix);
        let slot = self.slots.get_mut(&prefix).expect("a slot was just made sure of");
        slot.watchers += 1;
        let mut log = slot.group.lock();
        if after < log.since {
            for event in index.events(&prefix, after, log.since).rev() {
                log.events.push_front(Arc::clone(event));
            }
            log.since = after;
        }
        drop(log);
        (prefix, Arc::clone(&slot.group))
    }

    pub(crate) fn leave(&mut self, prefix: &str) {
        if let Some(slot) = self.slots.get_mut(prefix) {
            slot.watchers -= 1;
            if slot.watchers == 0 {
                self.slots.remove(prefix);
            }
        }
    }

    pub(crate) fn push(&self, event: &Arc<Event>, touched: &mut Touched) {
        self.for_each_prefix_of(&event.entry.key, |group| {
            let mut log = group.lock();
            log.events.push_back(Arc::clone(event));
            group.newest.fetch_max(event.revision().0, Ordering::Release);
            if !std::mem::replace(&mut log.touched, true) {
                touched.0.push(Arc::clone(group));
            }
        });
    }

    /// Drops all events, and says that more are missing up to `at`.
    pub(crate) fn skip_to(&self, at: Revision) -> Touched {
        let mut touched = Touched::default();
        for slot in self.slots.values() {
            let mut log = slot.group.lock();
            log.events = VecDeque::new();
            log.since = at;
            slot.group.newest.fetch_max(at.0, Ordering::Release);
            if !std::mem::replace(&mut log.touched, true) {
                touched.0.push(Arc::clone(&slot.group));
            }
        }
        touched
    }

    /// Drops an event that history has dropped.
    pub(crate) fn forget(&self, event: &Event) {
        let revision = event.revision();
        self.for_each_prefix_of(&event.entry.key, |group| {
            let mut log = group.lock();
            while log.events.front().is_some_and(|front| front.revision() <= revision) {
                log.since = log.events.pop_front().map_or(log.since, |front| front.revision());
            }
            if log.events.len() < log.events.capacity() / 4 {
                let keep = log.events.len() * 2;
                log.events.shrink_to(keep);
            }
        });
    }

    /// Visits the groups whose prefix `key` has, longest prefix first.
    ///
    /// Walks down the sorted prefixes from `key`. The greatest one not above the bound either is a prefix of the key,
    /// or parts from it somewhere: then no longer prefix than the part they share can be below the bound.
    fn for_each_prefix_of(&self, key: &str, mut visit: impl FnMut(&Arc<Group>)) {
        let mut bound = Bound::Included(key);
        while let Some((prefix, slot)) = self.slots.range::<str, _>((Bound::Unbounded, bound)).next_back() {
            if key.starts_with(&**prefix) {
                visit(&slot.group);
                bound = Bound::Excluded(&key[..prefix.len()]);
            } else {
                let shared = key.bytes().zip(prefix.bytes()).take_while(|(a, b)| a == b).count();
                bound = Bound::Included(&key[..key.floor_char_boundary(shared)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::fixed_seed())]

        #[test]
        fn an_event_finds_the_prefixes_of_its_key(
            prefixes in prop::collection::btree_set("[/aé]{0,5}", 0..40),
            key in "[/aé]{0,8}",
        ) {
            let index = Index::new(Revision::EMPTY);
            let mut groups = Groups::default();
            let made: Vec<_> = prefixes.iter().map(|prefix| groups.join(&index, prefix, Revision::EMPTY)).collect();
            let mut found = BTreeSet::new();
            groups.for_each_prefix_of(&key, |group| {
                let (prefix, _) = made.iter().find(|(_, made)| Arc::ptr_eq(made, group)).expect("it was made");
                assert!(found.insert(prefix.to_string()), "each once");
            });
            let expected: BTreeSet<_> = prefixes.into_iter().filter(|prefix| key.starts_with(prefix)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
