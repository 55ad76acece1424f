//! Transactions: one key, one condition, one change.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::backend::BackendError;
use crate::entry::{Entry, Revision};
use crate::etcd::EtcdError;

/// One change of one key, made if the key is as expected.
#[derive(Debug, Clone)]
pub struct Txn {
    pub key: Arc<str>,
    pub expect: Expect,
    pub op: Op,
}

impl Txn {
    /// A durable put without an end.
    pub fn put(key: impl Into<Arc<str>>, expect: Expect, value: impl Into<Bytes>) -> Self {
        let op = Op::Put { value: value.into(), ttl: None, durability: Durability::Durable };
        Self { key: key.into(), expect, op }
    }

    pub fn delete(key: impl Into<Arc<str>>, expect: Expect) -> Self {
        Self { key: key.into(), expect, op: Op::Delete }
    }
}

/// What the key must be like for the change to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// For a put: anything. For a delete: present.
    Any,
    /// Not there.
    Absent,
    /// There, with this `mod_revision`.
    Revision(Revision),
}

#[derive(Debug, Clone)]
pub enum Op {
    Put { value: Bytes, ttl: Option<Duration>, durability: Durability },
    Delete,
}

/// What a write has been through when it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Fsynced: it survives a power loss.
    Durable,
    /// In the log: it survives the end of the process, and a power loss from one second later on.
    Lazy,
}

/// A change that was made.
#[derive(Debug, Clone)]
pub struct TxnOk {
    pub revision: Revision,
    pub previous: Option<Arc<Entry>>,
    /// After a put, what was stored; after a delete, the last value under the deletion's revision.
    pub entry: Arc<Entry>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum TxnError {
    /// The key is not as expected; `actual` is what it holds.
    #[error("the key is not as the transaction expects")]
    Conflict { actual: Option<Arc<Entry>> },
    #[error("the value of {key} has {bytes} bytes, the limit is {max}")]
    TooLarge { key: Arc<str>, bytes: usize, max: usize },
    #[error(
        "the value of {key} has {bytes} bytes, which is more than etcd takes in one request (its --max-request-bytes)"
    )]
    TooLargeForEtcd { key: Arc<str>, bytes: usize },
    #[error("a key has {bytes} bytes, the limit is {max}")]
    KeyTooLong { bytes: usize, max: usize },
    #[error("the store holds {bytes} bytes, its limit is {max}: delete something first")]
    Full { bytes: u64, max: u64 },
    /// The disk has no room for the log. Nothing was written; a later try may succeed.
    #[error("the disk has no room for the change")]
    NoSpace(#[source] Arc<BackendError>),
    /// The log could not be written. Whether this change survives is known after the next start; until then the store
    /// takes no writes.
    #[error("the store takes no more writes until it is opened again")]
    Failed(#[source] Arc<BackendError>),
    /// etcd could not be asked, or its answer was lost: then the change may have been made.
    #[error("etcd did not take the change")]
    Unavailable(#[source] EtcdError),
    #[error("the store is closed")]
    Closed,
}
