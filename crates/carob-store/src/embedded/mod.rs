//! The durable backend: a log of batches in preallocated segments, and checkpoints that replace its beginning.
//!
//! # Why a log of our own
//!
//! All values are in memory already, for watches and lists, so the disk is only ever written, and read once at the
//! start. Against the embedded databases that were measured (`fjall`, `redb`, SQLite):
//!
//! - *Faults.* A power loss, a failing fsync and a full disk must be provoked at every single operation, or the promise
//!   to lose nothing is a hope. None of the three lets its I/O be replaced as a whole; the log uses [`carob_kit::fs`] only.
//! - *Damage.* A journal that cuts itself at the first bad record cannot tell a torn tail from a flipped bit in front of
//!   acknowledged writes. Each frame here says how much of its segment was fsynced before it was written, so a bad frame
//!   that a later good one knew to be safe is damage, and is refused.
//! - *Memory.* Memtables, block caches and a second index of the keys are the very budget of this store.
//! - *Speed.* One batch is one write and one fdatasync into room that is already there: the floor of what a durable
//!   commit costs, with no compaction but the checkpoint.
//!
//! The price is the code in this directory, and a start that reads all live data.
//!
//! # What is on disk
//!
//! | file | what |
//! |---|---|
//! | `FORMAT` | `carob-store 1`; written last when a store is made, so without it there is no store |
//! | `lock` | held by the one process that has the store open |
//! | `segment-<number>` | a header, then frames, then zeros |
//! | `checkpoint-<number>` | all entries before segment `<number>`; older segments and checkpoints are leftovers |
//! | `CLEAN` | where the log ended when it was closed; gone while the store is open |
//! | `*.tmp` | what was being written when the power failed |
//!
//! Files get their names when they are complete and fsynced, so a bad header, a bad checkpoint and a segment that is shorter
//! than it was made are damage, and so is a log that ends before a clean stop has ended it. Only the last segment may end in a
//! torn frame. After an unclean end the next segment is begun, at a revision above all that
//! may have been issued; a segment with a torn end is never written to again.
//!
//! Start at [`recovery`], which knows how the files belong together.

mod checkpoint;
mod file;
mod frame;
mod log;
mod recovery;
pub(crate) mod saved;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use carob_kit::fs::Fs;
use tokio::task::spawn_blocking;

use crate::backend::{Backend, BackendError, CheckpointWork, OpenError, Snapshot};
use crate::entry::Event;
use crate::index::Index;
use crate::limits::Limits;
use crate::values::Values;
use log::Log;

/// The format that this program writes, and the newest that it reads.
const FORMAT: u64 = 1;

/// Sizes of the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogSizes {
    /// Room reserved for a segment, in bytes; one that must take a larger frame is larger.
    pub(crate) segment_bytes: u64,
    /// The log grows at least this much between checkpoints, in bytes, and to twice the live data.
    pub(crate) checkpoint_bytes_min: u64,
    /// Revisions that may be issued without an fsync after the last one that knew of them.
    pub(crate) revision_block: u64,
}

impl Default for LogSizes {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, checkpoint_bytes_min: 64 << 20, revision_block: 10_000 }
    }
}

#[derive(Debug)]
pub(crate) struct Embedded {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    sizes: LogSizes,
    values: Option<Arc<dyn Values>>,
    /// Absent before the load, and after a write that did not end.
    log: Option<Log>,
    /// The segment at which the last checkpoint was begun, whatever became of it.
    checkpoint_begun: u64,
}

impl Embedded {
    pub(crate) fn new(fs: Arc<dyn Fs>, dir: &Path, sizes: LogSizes, values: Option<Arc<dyn Values>>) -> Self {
        Self { fs, dir: dir.to_owned(), sizes, values, log: None, checkpoint_begun: 0 }
    }

    /// Runs `work`, which blocks, beside the runtime's threads.
    async fn with_log<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Log) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let mut log = self.log.take().ok_or(BackendError::Lost)?;
        let done = spawn_blocking(move || {
            let result = work(&mut log);
            (log, result)
        });
        let (log, result) = done.await.map_err(|_panicked| BackendError::Lost)?;
        self.log = Some(log);
        result
    }
}

#[async_trait]
impl Backend for Embedded {
    async fn load(&mut self, limits: &Limits) -> Result<Index, OpenError> {
        let (fs, dir, sizes, limits) = (Arc::clone(&self.fs), self.dir.clone(), self.sizes, limits.clone());
        let values = self.values.clone();
        let opened = spawn_blocking(move || recovery::open(fs, &dir, sizes, &limits, values)).await;
        let recovered = opened.map_err(|_panicked| OpenError::Lost { path: self.dir.clone() })??;
        self.checkpoint_begun = recovered.first_segment;
        self.log = Some(recovered.log);
        Ok(recovered.index)
    }

    async fn append(&mut self, events: Vec<Arc<Event>>, durable: bool) -> Result<(), BackendError> {
        self.with_log(move |log| log.append(&events, durable)).await
    }

    async fn sync(&mut self) -> Result<(), BackendError> {
        self.with_log(Log::sync).await
    }

    fn wants_checkpoint(&self, live_bytes: u64) -> bool {
        let Some(log) = &self.log else { return false };
        let grown_bytes = (log.segment() - self.checkpoint_begun) * self.sizes.segment_bytes;
        grown_bytes >= self.sizes.checkpoint_bytes_min.max(2 * live_bytes)
    }

    async fn checkpoint(&mut self, snapshot: Snapshot) -> Result<CheckpointWork, BackendError> {
        // Noted first, so that a checkpoint that fails is tried again when the log has grown, not after each batch.
        self.checkpoint_begun = self.log.as_ref().map_or(0, Log::segment);
        let segment = self.with_log(Log::begin_segment).await?;
        self.checkpoint_begun = segment;
        let (fs, dir, values) = (Arc::clone(&self.fs), self.dir.clone(), self.values.clone());
        Ok(spawn_blocking(move || checkpoint::write(&*fs, &dir, segment, &snapshot, values)))
    }

    async fn close(&mut self) -> Result<(), BackendError> {
        let closed = self.with_log(Log::close).await;
        self.log = None;
        closed
    }
}
