//! What the store holds and tells: revisions, entries and the events that made them.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;

/// The number of a change. Each change has its own, later changes have greater ones, none is ever issued twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of a store that nothing was ever written to. It is 1, as etcd's is, since a resourceVersion of "0"
    /// means "any" to clients.
    pub const EMPTY: Self = Self(1);

    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One version of one key. Shared by the index, every reader and every watcher.
pub struct Entry {
    pub key: Arc<str>,
    /// The bytes as they were given. They should own their allocation: a slice of a larger buffer keeps all of it.
    pub value: Bytes,
    /// The revision that created the key after it was last absent.
    pub create_revision: Revision,
    /// The revision of this version; for a delete event's entry, the deletion's.
    pub mod_revision: Revision,
    /// Wall time at which the entry ends, in milliseconds since 1970.
    pub(crate) expires_ms: Option<NonZeroU64>,
    /// Whether it is kept otherwise than it would be if it were written now.
    pub(crate) is_outdated: bool,
}

impl Entry {
    pub fn new(key: Arc<str>, value: Bytes, create_revision: Revision, mod_revision: Revision) -> Self {
        Self { key, value, create_revision, mod_revision, expires_ms: None, is_outdated: false }
    }

    /// What the entry counts against the limit of the store, in bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        (self.key.len() + self.value.len()) as u64
    }
}

/// Values may be Secrets, so only their length is shown.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("value_bytes", &self.value.len())
            .field("create_revision", &self.create_revision.0)
            .field("mod_revision", &self.mod_revision.0)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change, as watchers see it.
#[derive(Debug)]
pub struct Event {
    pub kind: EventKind,
    /// After a put, what was stored; after a delete, the last value under the deletion's revision.
    pub entry: Arc<Entry>,
    /// What the key held before, if it held anything.
    pub previous: Option<Arc<Entry>>,
}

impl Event {
    pub fn revision(&self) -> Revision {
        self.entry.mod_revision
    }

    /// True for the put of a key that was absent.
    pub fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.previous.is_none()
    }
}
