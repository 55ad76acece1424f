//! Decides transactions against the index and the batch so far. Pure.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::entry::{Entry, Event, EventKind, Revision};
use crate::index::Index;
use crate::limits::{BATCH_BYTES_MAX, KEY_BYTES_MAX, Limits};
use crate::txn::{Durability, Expect, Op, Txn, TxnError, TxnOk};

/// A batch in the making: the changes decided so far, which the index does not have yet.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    index: &'a Index,
    limits: &'a Limits,
    /// Wall time in milliseconds since 1970.
    now_ms: u64,
    /// The keys that the batch has changed, with what they hold after it.
    changed: HashMap<Arc<str>, Option<Arc<Entry>>>,
    live_bytes: u64,
    batch: Batch,
}

/// The outcome of a stage.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) events: Vec<Arc<Event>>,
    /// Whether any change asks for an fsync before its answer.
    pub(crate) durable: bool,
    last: Revision,
    bytes: usize,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(index: &'a Index, limits: &'a Limits, now_ms: u64) -> Self {
        let batch = Batch { events: Vec::new(), durable: false, last: index.current(), bytes: 0 };
        Self { index, limits, now_ms, changed: HashMap::new(), live_bytes: index.live_bytes(), batch }
    }

    /// Whether the batch is large enough to be written.
    pub(crate) fn is_full(&self) -> bool {
        self.batch.bytes >= BATCH_BYTES_MAX
    }

    pub(crate) fn finish(self) -> Batch {
        self.batch
    }

    pub(crate) fn txn(&mut self, txn: Txn) -> Result<TxnOk, TxnError> {
        if txn.key.len() > KEY_BYTES_MAX {
            return Err(TxnError::KeyTooLong { bytes: txn.key.len(), max: KEY_BYTES_MAX });
        }
        let actual = self.current(&txn.key);
        let met = match (txn.expect, &actual, &txn.op) {
            (Expect::Any, _, Op::Put { .. }) => true,
            (Expect::Any, found, Op::Delete) => found.is_some(),
            (Expect::Absent, found, Op::Put { .. }) => found.is_none(),
            (Expect::Absent, _, Op::Delete) => false,
            (Expect::Revision(revision), found, _) => found.as_ref().is_some_and(|e| e.mod_revision == revision),
        };
        if !met {
            return Err(TxnError::Conflict { actual });
        }
        match txn.op {
            Op::Put { value, ttl, durability } => {
                let ok = self.put(txn.key, value, ttl, actual)?;
                self.batch.durable |= durability == Durability::Durable;
                Ok(ok)
            }
            Op::Delete => {
                let previous = actual.ok_or(TxnError::Conflict { actual: None })?;
                self.batch.durable = true;
                Ok(self.delete(previous))
            }
        }
    }

    /// Deletes `key` if it has reached its end. Not durable by itself: after a power loss it is due again.
    pub(crate) fn expire(&mut self, key: &str) {
        let due = |entry: &Arc<Entry>| entry.expires_ms.is_some();
        if let Some(entry) = self.current(key).filter(due) {
            self.delete(entry);
        }
    }

    fn current(&self, key: &str) -> Option<Arc<Entry>> {
        match self.changed.get(key) {
            Some(staged) => staged.clone(),
            None => self.index.get(key).cloned(),
        }
    }

    fn put(
        &mut self,
        key: Arc<str>,
        value: Bytes,
        ttl: Option<Duration>,
        previous: Option<Arc<Entry>>,
    ) -> Result<TxnOk, TxnError> {
        let max = self.limits.value_bytes_max;
        if value.len() > max {
            return Err(TxnError::TooLarge { key, bytes: value.len(), max });
        }
        // The first allocation of a key serves all its versions.
        let key = previous.as_ref().map_or(key, |previous| Arc::clone(&previous.key));
        let revision = self.batch.last.next();
        let created = previous.as_ref().map_or(revision, |previous| previous.create_revision);
        let mut entry = Entry::new(key, value, created, revision);
        entry.expires_ms = ttl.and_then(|ttl| {
            let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            NonZeroU64::new(self.now_ms.saturating_add(ttl_ms))
        });
        let freed = previous.as_ref().map_or(0, |previous| previous.size_bytes());
        let bytes = self.live_bytes - freed + entry.size_bytes();
        let max = self.limits.store_bytes_max;
        if bytes > max && entry.size_bytes() > freed {
            return Err(TxnError::Full { bytes: self.live_bytes, max });
        }
        self.live_bytes = bytes;
        let entry = Arc::new(entry);
        self.changed.insert(Arc::clone(&entry.key), Some(Arc::clone(&entry)));
        Ok(self.push(EventKind::Put, entry, previous))
    }

    fn delete(&mut self, previous: Arc<Entry>) -> TxnOk {
        let entry = Entry::new(
            Arc::clone(&previous.key),
            previous.value.clone(),
            previous.create_revision,
            self.batch.last.next(),
        );
        self.live_bytes -= previous.size_bytes();
        self.changed.insert(Arc::clone(&entry.key), None);
        self.push(EventKind::Delete, Arc::new(entry), Some(previous))
    }

    fn push(&mut self, kind: EventKind, entry: Arc<Entry>, previous: Option<Arc<Entry>>) -> TxnOk {
        let revision = entry.mod_revision;
        self.batch.last = revision;
        self.batch.bytes += entry.key.len() + if kind == EventKind::Put { entry.value.len() } else { 0 };
        let ok = TxnOk { revision, previous: previous.clone(), entry: Arc::clone(&entry) };
        self.batch.events.push(Arc::new(Event { kind, entry, previous }));
        ok
    }
}
