//! What keeps the store's changes. The pipeline decides, a backend only writes down and reads back.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::entry::{Entry, Event, Revision};
use crate::etcd::EtcdError;
use crate::index::Index;
use crate::limits::Limits;
use crate::values::ValueError;

/// Where the commit pipeline puts its batches. Calls come one at a time.
///
/// After an error other than [`BackendError::NoSpace`] nothing more is called.
#[async_trait]
pub(crate) trait Backend: Send + 'static {
    /// Everything that was ever written, as an index at the revision after which to continue.
    async fn load(&mut self, limits: &Limits) -> Result<Index, OpenError>;

    /// Writes `events`, whose revisions follow one another, and fsyncs if `durable`. All or nothing survives.
    async fn append(&mut self, events: Vec<Arc<Event>>, durable: bool) -> Result<(), BackendError>;

    /// Fsyncs what was appended without.
    async fn sync(&mut self) -> Result<(), BackendError>;

    /// Whether the log has grown so much that a checkpoint of `live_bytes` is worth its cost.
    fn wants_checkpoint(&self, live_bytes: u64) -> bool;

    /// Starts to replace the log so far by the given content. The returned work may run beside later calls.
    async fn checkpoint(&mut self, snapshot: Snapshot) -> Result<CheckpointWork, BackendError>;

    /// Fsyncs and marks the end as clean.
    async fn close(&mut self) -> Result<(), BackendError>;
}

/// All entries of one revision, in key order.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) revision: Revision,
    pub(crate) entries: Vec<Arc<Entry>>,
}

impl Snapshot {
    pub(crate) fn of(index: &Index) -> Self {
        Self { revision: index.current(), entries: index.live().cloned().collect() }
    }
}

/// The writing of one checkpoint.
pub(crate) type CheckpointWork = tokio::task::JoinHandle<Result<(), BackendError>>;

/// A write that failed.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("{operation}")]
    Io {
        operation: &'static str,
        #[source]
        cause: io::Error,
    },
    /// Nothing was written.
    #[error("there is no room for the log to grow")]
    NoSpace(#[source] io::Error),
    #[error("keep a value sealed")]
    Seal(#[source] ValueError),
    /// What another server has written.
    #[error("read a sealed value: what etcd holds cannot be served without it")]
    Open(#[source] ValueError),
    #[error("the log was lost in a write that did not end")]
    Lost,
    /// To go on would hand out revisions that clients have seen with another meaning.
    #[error(
        "etcd is at revision {at}, but was at {seen}: it was restored from a backup; to accept what it holds now, start every \
         server again"
    )]
    Rewound { at: Revision, seen: Revision },
    #[error("the endpoints lead to another etcd than before; to accept what it holds, start every server again")]
    AnotherEtcd,
}

/// A store that cannot be opened. What its directory holds is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("another process has {path} locked")]
    Locked { path: PathBuf },
    #[error("the store in {path} has format {found}, this program knows formats up to {known}")]
    NewerFormat { path: PathBuf, found: u64, known: u64 },
    #[error("the store is damaged: {path} at byte {offset}: {what}")]
    Damaged { path: PathBuf, offset: u64, what: &'static str },
    #[error("{operation}")]
    Io {
        operation: &'static str,
        #[source]
        cause: io::Error,
    },
    #[error("begin to write in {path}")]
    Begin {
        path: PathBuf,
        #[source]
        cause: BackendError,
    },
    #[error("the reading of {path} did not end")]
    Lost { path: PathBuf },
    #[error("read a sealed value")]
    Value(#[source] ValueError),
    #[error("read what is in etcd")]
    Etcd(#[source] EtcdError),
}
