//! The handle that everybody else holds.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use carob_kit::fs::{Fs, RealFs};
use carob_kit::{Clock, SystemClock};
use tokio::sync::{mpsc, oneshot};

use crate::backend::{Backend, BackendError, OpenError, Snapshot};
use crate::embedded::saved::{self, Restored, SavedStore};
use crate::embedded::{Embedded, LogSizes};
use crate::entry::{Entry, Revision};
use crate::etcd::{Etcd, EtcdConfig, EtcdError, Reader};
use crate::index::{Index, ListOptions, Page, ReadError};
use crate::limits::{LIST_CHUNK_KEYS, Limits, WRITE_QUEUE_MAX};
use crate::memory::Memory;
use crate::pipeline::{Pipeline, Request};
use crate::shared::Shared;
use crate::txn::{Expect, Txn, TxnError, TxnOk};
use crate::values::Values;
use crate::watch::Watch;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    pub clock: Arc<dyn Clock>,
    pub limits: Limits,
    /// What values are like on the disk or in etcd, if not as they are.
    pub values: Option<Arc<dyn Values>>,
}

impl Options {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, limits: Limits::default(), values: None }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new(Arc::new(SystemClock::new()))
    }
}

/// An open store. Clones are handles of the same store, which ends when it is closed or its last handle is dropped.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    /// Where to ask how far others have written, if they do.
    readers: Option<mpsc::Sender<Reader>>,
    values: Option<Arc<dyn Values>>,
}

/// The store was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store is closed")]
pub struct Closed;

/// It is not known whether all that was written can be read.
#[derive(Debug, thiserror::Error)]
pub enum CatchUpError {
    #[error("learn of what other servers have written")]
    Etcd(#[source] EtcdError),
    #[error(transparent)]
    Closed(Closed),
}

/// Sizes of an open store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    pub live_keys: usize,
    /// Keys and values, in bytes: what counts against [`Limits::store_bytes_max`].
    pub live_bytes: u64,
    pub history_events: usize,
    pub watchers: usize,
}

impl Store {
    /// A store that keeps nothing beyond the process.
    ///
    /// # Panics
    /// Outside of a tokio runtime, which it runs on.
    pub fn in_memory(options: Options) -> Self {
        Self::start(Index::new(Revision::EMPTY), Box::new(Memory), options)
    }

    /// The store in `dir`, which is made if it does not exist.
    pub async fn embedded(dir: &Path, options: Options) -> Result<Self, OpenError> {
        Self::embedded_on(Arc::new(RealFs), dir, options).await
    }

    /// The store in `dir` of `fs`.
    pub async fn embedded_on(fs: Arc<dyn Fs>, dir: &Path, options: Options) -> Result<Self, OpenError> {
        Self::embedded_sized(fs, dir, LogSizes::default(), options).await
    }

    pub(crate) async fn embedded_sized(
        fs: Arc<dyn Fs>,
        dir: &Path,
        sizes: LogSizes,
        options: Options,
    ) -> Result<Self, OpenError> {
        let mut backend = Embedded::new(fs, dir, sizes, options.values.clone());
        let index = backend.load(&options.limits).await?;
        Ok(Self::start(index, Box::new(backend), options))
    }

    /// The store that several servers share in etcd.
    pub async fn etcd(config: EtcdConfig, options: Options) -> Result<Self, OpenError> {
        let (requests, receiver) = mpsc::channel(WRITE_QUEUE_MAX);
        let values = options.values.clone();
        let etcd = Etcd::open(config, options.limits, options.values).await?;
        let shared = Arc::clone(etcd.shared());
        let (readers, asked) = Etcd::readers();
        tokio::spawn(etcd.run(receiver, asked));
        Ok(Self { shared, requests, readers: Some(readers), values })
    }

    fn start(index: Index, backend: Box<dyn Backend>, options: Options) -> Self {
        let (requests, receiver) = mpsc::channel(WRITE_QUEUE_MAX);
        let shared = Arc::new(Shared::new(index, options.limits));
        let pipeline = Pipeline::new(Arc::clone(&shared), options.clock, backend, receiver);
        tokio::spawn(pipeline.run());
        Self { shared, requests, readers: None, values: options.values }
    }

    /// The latest revision that can be read.
    pub fn current(&self) -> Revision {
        self.shared.current()
    }

    /// Waits until every write that anyone was told of, on any server, can be read here, and says which revision that is.
    /// Without other writers there is nothing to wait for.
    pub async fn caught_up(&self) -> Result<Revision, CatchUpError> {
        let Some(readers) = &self.readers else { return Ok(self.current()) };
        let (answer, answered) = oneshot::channel();
        readers.send(answer).await.map_err(|_closed| CatchUpError::Closed(Closed))?;
        let answer = answered.await.map_err(|_ended| CatchUpError::Closed(Closed))?;
        answer.map_err(CatchUpError::Etcd)
    }

    /// Whether other servers write to it as well.
    pub fn is_shared(&self) -> bool {
        self.readers.is_some()
    }

    /// The earliest revision that can be read.
    pub fn compacted(&self) -> Revision {
        self.shared.read().compacted()
    }

    pub fn stats(&self) -> Stats {
        let index = self.shared.read();
        Stats {
            live_keys: index.live_keys(),
            live_bytes: index.live_bytes(),
            history_events: index.history_events(),
            watchers: self.shared.hub.lock().watchers(),
        }
    }

    /// Why the store takes no more writes, if it does not.
    pub fn failure(&self) -> Option<Arc<BackendError>> {
        self.shared.failure.get().cloned()
    }

    /// Why what other servers write cannot be learnt at the moment; what is known of it can be read.
    pub fn unreachable(&self) -> Option<Arc<EtcdError>> {
        self.shared.unreachable()
    }

    /// Why the last write was refused, if there was no room for it. The next one may succeed.
    pub fn full(&self) -> Option<Arc<BackendError>> {
        self.shared.full()
    }

    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.shared.read().get(key).cloned()
    }

    pub fn get_at(&self, key: &str, at: Revision) -> Result<Option<Arc<Entry>>, ReadError> {
        self.shared.read().get_at(key, at).map(|entry| entry.cloned())
    }

    /// How many keys have `prefix` now.
    pub fn count(&self, prefix: &str) -> usize {
        let index = self.shared.read();
        index.range(prefix, None, index.current()).count()
    }

    /// One page of the keys with `prefix`, all at one revision. Takes the index in pieces, so that a long list does not
    /// keep writers waiting.
    pub fn list(&self, prefix: &str, options: ListOptions<'_>) -> Result<Page, ReadError> {
        let mut piece = Piece::at(options.at.unwrap_or_else(|| self.current()));
        loop {
            match list_piece(&self.shared.read(), prefix, options, piece, LIST_CHUNK_KEYS) {
                Ok(Piece { page, resume: None }) => return Ok(page),
                Ok(more) => piece = more,
                // History moved on past the revision that was current when the list began: list under one lock.
                Err(ReadError::Compacted { .. }) if options.at.is_none() => break,
                Err(error) => return Err(error),
            }
        }
        let index = self.shared.read();
        list_piece(&index, prefix, options, Piece::at(index.current()), usize::MAX).map(|piece| piece.page)
    }

    /// Makes a change and waits until it is as safe as it asks to be. A caller that stops waiting does not undo it.
    pub async fn txn(&self, txn: Txn) -> Result<TxnOk, TxnError> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Txn(txn, answer)).await.map_err(|_closed| TxnError::Closed)?;
        answered.await.unwrap_or(Err(TxnError::Closed))
    }

    /// Writes again what is not kept as it would be now, which is how a key for values is replaced by another. Returns how many
    /// entries that were. Those that end by themselves are left to their end.
    pub async fn reseal(&self) -> Result<usize, TxnError> {
        let outdated: Vec<_> = {
            let index = self.shared.read();
            index.live().filter(|entry| entry.is_outdated && entry.expires_ms.is_none()).cloned().collect()
        };
        let mut done = 0;
        for entry in outdated {
            let expect = Expect::Revision(entry.mod_revision);
            match self.txn(Txn::put(Arc::clone(&entry.key), expect, entry.value.clone())).await {
                Ok(_) => done += 1,
                // Whoever came between has written it as it is to be.
                Err(TxnError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Everything that there is now, to be written where it outlives the store, which goes on.
    pub fn save(&self) -> SavedStore {
        SavedStore::new(Snapshot::of(&self.shared.read()), self.values.clone())
    }

    /// Every event of keys with `prefix` after `after`, in order.
    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, ReadError> {
        Watch::start(&self.shared, prefix, after)
    }

    /// What there is with `prefix`, and every event after it: nothing is missed between the two.
    pub fn list_and_watch(&self, prefix: &str) -> (Vec<Arc<Entry>>, Watch) {
        Watch::start_with_list(&self.shared, prefix)
    }

    /// Waits until `revision` can be read.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), Closed> {
        self.shared.reached(revision).await
    }

    /// Forgets what only readers before `revision` can see.
    pub fn compact(&self, revision: Revision) -> Result<(), ReadError> {
        self.shared.read().check(revision)?;
        self.shared.forget(revision);
        Ok(())
    }

    /// Commits what is queued, makes everything durable, marks the end as clean, ends all watches.
    pub async fn close(self) -> Result<(), Arc<BackendError>> {
        let (answer, answered) = oneshot::channel();
        let asked = self.requests.send(Request::Close(answer)).await.is_ok();
        if asked && let Ok(closed) = answered.await {
            return closed;
        }
        // Another handle has closed the store already.
        self.failure().map_or(Ok(()), Err)
    }
}

/// Makes the store in `dir`, which has none, of what [`SavedStore::write`] wrote so long ago. Blocking.
pub fn restore_embedded(dir: &Path, content: &mut dyn Read, age: Duration) -> Result<Restored, OpenError> {
    saved::restore(Arc::new(RealFs), dir, content, age)
}

/// A list under way.
struct Piece {
    page: Page,
    /// The key after which to go on, if there is more.
    resume: Option<Arc<str>>,
}

impl Piece {
    fn at(revision: Revision) -> Self {
        Self { page: Page { entries: Vec::new(), revision, remaining: 0 }, resume: None }
    }
}

fn list_piece(
    index: &Index,
    prefix: &str,
    options: ListOptions<'_>,
    mut piece: Piece,
    keys_max: usize,
) -> Result<Piece, ReadError> {
    let page = &mut piece.page;
    index.check(page.revision)?;
    let limit = options.limit.unwrap_or(usize::MAX);
    let after = piece.resume.take();
    let mut entries = index.range(prefix, after.as_deref().or(options.after), page.revision);
    for entry in entries.by_ref().take(keys_max) {
        if page.entries.len() < limit {
            page.entries.push(Arc::clone(entry));
        } else {
            page.remaining += 1;
        }
        piece.resume = Some(Arc::clone(&entry.key));
    }
    if entries.next().is_none() {
        piece.resume = None;
    }
    Ok(piece)
}
