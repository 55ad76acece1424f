//! What the store's handles, its watches and its pipeline share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::Notify;

use crate::backend::BackendError;
use crate::entry::{Event, Revision};
use crate::etcd::EtcdError;
use crate::hub::{Hub, Touched};
use crate::index::Index;
use crate::limits::{COMPACT_EVENTS_MAX, Limits};
use crate::store::Closed;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) hub: Hub,
    index: RwLock<Index>,
    /// The index's current revision, readable without its lock; it never runs ahead of the index.
    current: AtomicU64,
    /// Told whenever `current` has grown or the store was closed.
    pub(crate) advanced: Notify,
    closed: AtomicBool,
    /// Why the store takes no more writes.
    pub(crate) failure: OnceLock<Arc<BackendError>>,
    /// Why the last write was refused, where that was for want of room.
    full: RwLock<Option<Arc<BackendError>>>,
    /// Why what others have written cannot be learnt, where the store is in etcd.
    unreachable: RwLock<Option<Arc<EtcdError>>>,
}

impl Shared {
    pub(crate) fn new(index: Index, limits: Limits) -> Self {
        Self {
            limits,
            hub: Hub::default(),
            current: AtomicU64::new(index.current().0),
            index: RwLock::new(index),
            advanced: Notify::new(),
            closed: AtomicBool::new(false),
            failure: OnceLock::new(),
            full: RwLock::default(),
            unreachable: RwLock::default(),
        }
    }

    pub(crate) fn full(&self) -> Option<Arc<BackendError>> {
        self.full.read().expect("no holder of the error panics").clone()
    }

    pub(crate) fn set_full(&self, error: Option<Arc<BackendError>>) {
        *self.full.write().expect("no holder of the error panics") = error;
    }

    /// Why what others have written cannot be learnt at the moment.
    pub(crate) fn unreachable(&self) -> Option<Arc<EtcdError>> {
        self.unreachable.read().expect("no holder of the error panics").clone()
    }

    pub(crate) fn set_unreachable(&self, error: Option<Arc<EtcdError>>) {
        *self.unreachable.write().expect("no holder of the error panics") = error;
    }

    pub(crate) fn current(&self) -> Revision {
        Revision(self.current.load(Ordering::Acquire))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().expect("no holder of the index panics")
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().expect("no holder of the index panics")
    }

    /// Makes a batch visible, to readers and watchers alike, and keeps history within its limits. The caller wakes the
    /// watchers once it has answered the writers.
    pub(crate) fn publish(&self, events: &[Arc<Event>]) -> Touched {
        let up_to = events.last().map_or(Revision(0), |event| event.revision());
        self.publish_up_to(events, up_to)
    }

    /// As [`Shared::publish`], where nothing else has changed up to a revision that may be later than the last event's.
    pub(crate) fn publish_up_to(&self, events: &[Arc<Event>], up_to: Revision) -> Touched {
        let mut touched = Touched::default();
        let mut index = self.write();
        let groups = self.hub.lock();
        for event in events {
            index.apply(event);
            groups.push(event, &mut touched);
        }
        index.advance(up_to);
        let dropped = index.trim(self.limits.history_events_max, self.limits.history_bytes_max);
        for event in &dropped {
            groups.forget(event);
        }
        self.current.store(index.current().0, Ordering::Release);
        drop(groups);
        drop(index);
        self.advanced.notify_waiters();
        touched
    }

    /// Takes in what is different at `at`, where it is not known how it came to be so: every watch ends and is told that it
    /// missed something.
    pub(crate) fn skip_to(&self, different: &[Arc<Event>], at: Revision) {
        let mut index = self.write();
        let groups = self.hub.lock();
        for event in different {
            index.apply(event);
        }
        index.advance(at);
        let dropped = index.compact(at, usize::MAX);
        let touched = groups.skip_to(at);
        self.current.store(index.current().0, Ordering::Release);
        drop(groups);
        drop(index);
        drop(dropped);
        self.advanced.notify_waiters();
        touched.wake();
    }

    /// Compacts history up to `revision`, as far as it has not been compacted further; in pieces, so that nobody waits
    /// for all of it.
    pub(crate) fn forget(&self, revision: Revision) {
        loop {
            let mut index = self.write();
            let dropped = index.compact(revision, COMPACT_EVENTS_MAX);
            let groups = self.hub.lock();
            for event in &dropped {
                groups.forget(event);
            }
            let done = index.compacted() >= revision;
            drop(groups);
            drop(index);
            if done {
                return;
            }
        }
    }

    /// Waits until `revision` can be read.
    pub(crate) async fn reached(&self, revision: Revision) -> Result<(), Closed> {
        loop {
            let advanced = self.advanced.notified();
            if self.current() >= revision {
                return Ok(());
            }
            if self.is_closed() {
                return Err(Closed);
            }
            advanced.await;
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.hub.close();
        self.advanced.notify_waiters();
    }
}
