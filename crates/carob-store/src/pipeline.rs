//! The commit pipeline: the one task that changes the store.
//!
//! It takes whatever writers have queued, decides it as one batch, writes the batch to the backend with at most one
//! fsync, publishes it in revision order, answers the writers and wakes the watchers. While it writes, the next batch
//! gathers. Expiry, delayed fsyncs, the compaction of history and checkpoints run between batches, each when it is due;
//! an idle store waits for nothing but its next writer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use carob_kit::{Clock, chain};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::backend::{Backend, BackendError, CheckpointWork, Snapshot};
use crate::entry::{Event, EventKind, Revision};
use crate::expiry::Expiries;
use crate::hub::Touched;
use crate::limits::{BATCH_TXNS_MAX, EXPIRY_RETRY_DELAY, LAZY_SYNC_DELAY};
use crate::shared::Shared;
use crate::stage::{Batch, Stage};
use crate::txn::{Txn, TxnError, TxnOk};

pub(crate) type Answer = oneshot::Sender<Result<TxnOk, TxnError>>;

#[derive(Debug)]
pub(crate) enum Request {
    Txn(Txn, Answer),
    Close(oneshot::Sender<Result<(), Arc<BackendError>>>),
}

pub(crate) struct Pipeline {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    backend: Box<dyn Backend>,
    requests: mpsc::Receiver<Request>,
    /// Taken from `requests` and not yet decided.
    queue: VecDeque<Request>,
    expiries: Expiries,
    /// Before this moment expired entries are left alone: the disk had no room for their deletion.
    expire_after: Option<Instant>,
    /// When lazy writes must be fsynced; set while there are any.
    sync_due: Option<Instant>,
    /// When history is compacted next, and to where; set while there is history.
    compact_due: Option<(Instant, Revision)>,
    checkpoint: Option<CheckpointWork>,
}

/// What the pipeline was waiting for.
enum Due {
    Requests,
    Expiry,
    Sync,
    Compaction(Revision),
    Checkpoint(Result<(), BackendError>),
    /// Every handle of the store is gone.
    Abandoned,
}

impl Pipeline {
    pub(crate) fn new(
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
        backend: Box<dyn Backend>,
        requests: mpsc::Receiver<Request>,
    ) -> Self {
        let mut pipeline = Self {
            shared,
            clock,
            backend,
            requests,
            queue: VecDeque::new(),
            expiries: Expiries::default(),
            expire_after: None,
            sync_due: None,
            compact_due: None,
            checkpoint: None,
        };
        pipeline.adopt_loaded();
        pipeline
    }

    /// Takes over what the index was loaded with: ends of entries, and history that will have to be compacted.
    fn adopt_loaded(&mut self) {
        let index = self.shared.read();
        let now_ms = now_ms(&*self.clock);
        let now = Instant::now();
        for entry in index.live() {
            if let Some(expires_ms) = entry.expires_ms {
                let left = Duration::from_millis(expires_ms.get().saturating_sub(now_ms));
                self.expiries.set(&entry.key, now.checked_add(left));
            }
        }
        if index.history_events() > 0 {
            self.compact_due = Some((now + self.shared.limits.history_age, index.current()));
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            match self.wait().await {
                Due::Requests => {
                    if let Some(answer) = self.commit_queued().await {
                        let closed = self.close().await;
                        drop(self);
                        // Who asked may have stopped waiting; a failure has been logged by then.
                        drop(answer.send(closed));
                        return;
                    }
                }
                Due::Expiry => self.expire().await,
                Due::Sync => self.sync().await,
                Due::Compaction(revision) => self.compact(revision),
                Due::Checkpoint(done) => self.finish_checkpoint(done),
                Due::Abandoned => {
                    drop(self.close().await);
                    return;
                }
            }
            self.start_checkpoint().await;
        }
    }

    async fn wait(&mut self) -> Due {
        let usable = self.shared.failure.get().is_none();
        let expiry = self.expiries.earliest().map(|end| end.max(self.expire_after.unwrap_or(end)));
        let mut taken = Vec::new();
        tokio::select! {
            biased;
            done = finished(&mut self.checkpoint) => Due::Checkpoint(done),
            () = at(expiry), if usable => Due::Expiry,
            () = at(self.sync_due), if usable => Due::Sync,
            revision = at_compaction(self.compact_due) => Due::Compaction(revision),
            () = std::future::ready(()), if !self.queue.is_empty() => Due::Requests,
            count = self.requests.recv_many(&mut taken, BATCH_TXNS_MAX) => {
                self.queue.extend(taken);
                if count == 0 { Due::Abandoned } else { Due::Requests }
            }
        }
    }

    /// Decides and commits queued transactions until a batch is full or the queue is empty. A request to close ends it.
    async fn commit_queued(&mut self) -> Option<oneshot::Sender<Result<(), Arc<BackendError>>>> {
        let mut answers = Vec::with_capacity(self.queue.len());
        let mut close = None;
        let shared = Arc::clone(&self.shared);
        let batch = {
            let index = shared.read();
            let mut stage = Stage::new(&index, &shared.limits, now_ms(&*self.clock));
            while !stage.is_full() {
                match self.queue.pop_front() {
                    Some(Request::Txn(txn, answer)) => answers.push((answer, stage.txn(txn))),
                    Some(Request::Close(answer)) => {
                        close = Some(answer);
                        break;
                    }
                    None => break,
                }
            }
            stage.finish()
        };
        // A conflict may rest on a change of the same batch, so nobody is answered before the batch is safe.
        match self.commit(batch).await {
            Ok(touched) => {
                for (answer, result) in answers {
                    drop(answer.send(result));
                }
                touched.wake();
                // Writers that go on at once then share the next fsync with those who wait already, instead of the two
                // halves taking turns.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                for (answer, _) in answers {
                    drop(answer.send(Err(error.clone())));
                }
            }
        }
        close
    }

    async fn commit(&mut self, batch: Batch) -> Result<Touched, TxnError> {
        if let Some(cause) = self.shared.failure.get() {
            return Err(TxnError::Failed(Arc::clone(cause)));
        }
        if batch.events.is_empty() {
            return Ok(Touched::default());
        }
        if let Err(cause) = self.backend.append(batch.events.clone(), batch.durable).await {
            return Err(match cause {
                BackendError::NoSpace(_) => {
                    let cause = Arc::new(cause);
                    if self.shared.full().is_none() {
                        tracing::error!("writes are refused until there is room: {}", chain(&*cause));
                    }
                    self.shared.set_full(Some(Arc::clone(&cause)));
                    TxnError::NoSpace(cause)
                }
                cause => TxnError::Failed(self.fail(cause)),
            });
        }
        if self.shared.full().is_some() {
            tracing::info!("there is room again: writes are taken");
            self.shared.set_full(None);
        }
        let now = Instant::now();
        self.sync_due = if batch.durable { None } else { self.sync_due.or(Some(now + LAZY_SYNC_DELAY)) };
        if self.compact_due.is_none() {
            self.compact_due = Some((now + self.shared.limits.history_age, self.shared.current()));
        }
        let touched = self.shared.publish(&batch.events);
        self.note_ends(&batch.events, now);
        Ok(touched)
    }

    fn note_ends(&mut self, events: &[Arc<Event>], now: Instant) {
        let now_ms = now_ms(&*self.clock);
        for event in events {
            let had_end = event.previous.as_ref().is_some_and(|previous| previous.expires_ms.is_some());
            let end = match event.kind {
                EventKind::Put => event.entry.expires_ms,
                EventKind::Delete => None,
            };
            if had_end || end.is_some() {
                // An end too far away for the clock is no end.
                let end = end.and_then(|ms| now.checked_add(Duration::from_millis(ms.get().saturating_sub(now_ms))));
                self.expiries.set(&event.entry.key, end);
            }
        }
    }

    async fn expire(&mut self) {
        let due = self.expiries.due(Instant::now(), BATCH_TXNS_MAX);
        let shared = Arc::clone(&self.shared);
        let batch = {
            let index = shared.read();
            let mut stage = Stage::new(&index, &shared.limits, now_ms(&*self.clock));
            for key in &due {
                stage.expire(key);
            }
            stage.finish()
        };
        match self.commit(batch).await {
            Ok(touched) => {
                self.expire_after = None;
                touched.wake();
            }
            Err(error) => {
                self.expire_after = Some(Instant::now() + EXPIRY_RETRY_DELAY);
                tracing::warn!("expired entries stay for now: {}", chain(&error));
            }
        }
    }

    async fn sync(&mut self) {
        self.sync_due = None;
        if let Err(cause) = self.backend.sync().await {
            self.fail(cause);
        }
    }

    fn compact(&mut self, revision: Revision) {
        self.shared.forget(revision);
        let index = self.shared.read();
        let next = Instant::now() + self.shared.limits.history_age;
        self.compact_due = (index.history_events() > 0).then(|| (next, index.current()));
    }

    async fn start_checkpoint(&mut self) {
        if self.checkpoint.is_some() || self.shared.failure.get().is_some() {
            return;
        }
        let snapshot = {
            let index = self.shared.read();
            if !self.backend.wants_checkpoint(index.live_bytes()) {
                return;
            }
            Snapshot::of(&index)
        };
        match self.backend.checkpoint(snapshot).await {
            Ok(work) => self.checkpoint = Some(work),
            Err(cause @ BackendError::NoSpace(_)) => tracing::warn!("no checkpoint for now: {}", chain(&cause)),
            Err(cause) => drop(self.fail(cause)),
        }
    }

    /// A checkpoint that could not be written costs nothing but the room of the log that stays.
    fn finish_checkpoint(&mut self, done: Result<(), BackendError>) {
        self.checkpoint = None;
        if let Err(cause) = done {
            tracing::warn!("no checkpoint for now: {}", chain(&cause));
        }
    }

    async fn close(&mut self) -> Result<(), Arc<BackendError>> {
        if self.checkpoint.is_some() {
            let done = finished(&mut self.checkpoint).await;
            self.finish_checkpoint(done);
        }
        if let Some(cause) = self.shared.failure.get() {
            return Err(Arc::clone(cause));
        }
        self.backend.close().await.map_err(|cause| self.fail(cause))
    }

    /// Ends writing for good: after a failed write or fsync nobody knows what the disk holds.
    fn fail(&mut self, cause: BackendError) -> Arc<BackendError> {
        tracing::error!("the store takes no more writes: {}", chain(&cause));
        let cause = self.shared.failure.get_or_init(|| Arc::new(cause));
        self.sync_due = None;
        Arc::clone(cause)
    }
}

/// However the pipeline ends, nobody waits for it any more.
impl Drop for Pipeline {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What the log holds of the batch under way is not known.
            self.fail(BackendError::Lost);
        }
        self.shared.close();
    }
}

fn now_ms(clock: &dyn Clock) -> u64 {
    // A clock before 1970 is one that was never set; an entry's end is then as far from it as it should be.
    u64::try_from(clock.now().as_millisecond()).unwrap_or(0)
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn at_compaction(due: Option<(Instant, Revision)>) -> Revision {
    match due {
        Some((moment, revision)) => {
            sleep_until(moment).await;
            revision
        }
        None => std::future::pending().await,
    }
}

/// Waits for the work, if there is any.
async fn finished(work: &mut Option<CheckpointWork>) -> Result<(), BackendError> {
    match work {
        Some(work) => work.await.unwrap_or(Err(BackendError::Lost)),
        None => std::future::pending().await,
    }
}
