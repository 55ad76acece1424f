//! Every bound of the store by name.

use std::time::Duration;

/// A value, in bytes: 1.5 MiB, what etcd takes in one request by default (`--max-request-bytes`).
pub const VALUE_BYTES_MAX: usize = 3 * 512 * 1024;

/// A key, in bytes. The longest that the API makes (`/registry/`, a group, a resource, a namespace, a name) stays below.
pub const KEY_BYTES_MAX: usize = 2048;

/// All live keys and values, in bytes: 2 GiB, etcd's default (`--quota-backend-bytes`).
pub const STORE_BYTES_MAX: u64 = 2 << 30;

/// Events kept for readers of old revisions and for watchers that resume or lag: the most that an upstream watch cache
/// keeps for one resource. At the limit the oldest is compacted.
pub const HISTORY_EVENTS_MAX: usize = 100 * 1024;

/// Bytes that history alone keeps alive, by estimate. At the limit the oldest event is compacted.
pub const HISTORY_BYTES_MAX: usize = 64 << 20;

/// Age at which history is compacted; an event lives one to two of these, as under upstream's compactor
/// (`--etcd-compaction-interval`).
pub const HISTORY_AGE: Duration = Duration::from_secs(5 * 60);

/// Writers that wait for the next batch. At the limit [`crate::Store::txn`] waits for room.
pub(crate) const WRITE_QUEUE_MAX: usize = 1024;

/// Transactions in one batch; more wait for the next.
pub(crate) const BATCH_TXNS_MAX: usize = 512;

/// Bytes of values after which a batch takes no further transaction. One batch is one write to the log.
pub(crate) const BATCH_BYTES_MAX: usize = 2 << 20;

/// Events that a watcher takes out of its group's log at once.
pub(crate) const WATCH_CHUNK_MAX: usize = 64;

/// Events compacted under one hold of the index's lock, which is as long as others may have to wait for it.
pub(crate) const COMPACT_EVENTS_MAX: usize = 1024;

/// Keys that a list visits under one hold of the index's lock, for the same reason.
pub(crate) const LIST_CHUNK_KEYS: usize = 1024;

/// Time that a lazy write may wait for its fsync.
pub(crate) const LAZY_SYNC_DELAY: Duration = Duration::from_secs(1);

/// Pause before expired entries are tried again when the disk had no room for their deletion.
pub(crate) const EXPIRY_RETRY_DELAY: Duration = Duration::from_secs(10);

/// The limits that a store is opened with. The default is what the constants of this module say.
#[derive(Debug, Clone)]
pub struct Limits {
    pub value_bytes_max: usize,
    pub store_bytes_max: u64,
    pub history_events_max: usize,
    pub history_bytes_max: usize,
    pub history_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            value_bytes_max: VALUE_BYTES_MAX,
            store_bytes_max: STORE_BYTES_MAX,
            history_events_max: HISTORY_EVENTS_MAX,
            history_bytes_max: HISTORY_BYTES_MAX,
            history_age: HISTORY_AGE,
        }
    }
}
