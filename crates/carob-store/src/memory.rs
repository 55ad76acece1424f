//! The backend that keeps nothing: for `carob run` and for tests.

use std::sync::Arc;

use async_trait::async_trait;

use crate::backend::{Backend, BackendError, CheckpointWork, OpenError, Snapshot};
use crate::entry::{Event, Revision};
use crate::index::Index;
use crate::limits::Limits;

#[derive(Debug)]
pub(crate) struct Memory;

#[async_trait]
impl Backend for Memory {
    async fn load(&mut self, _limits: &Limits) -> Result<Index, OpenError> {
        Ok(Index::new(Revision::EMPTY))
    }

    async fn append(&mut self, _events: Vec<Arc<Event>>, _durable: bool) -> Result<(), BackendError> {
        Ok(())
    }

    async fn sync(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn wants_checkpoint(&self, _live_bytes: u64) -> bool {
        false
    }

    async fn checkpoint(&mut self, _snapshot: Snapshot) -> Result<CheckpointWork, BackendError> {
        unreachable!("memory never wants a checkpoint")
    }

    async fn close(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{Store, suite};

    #[tokio::test(start_paused = true)]
    async fn the_suite() {
        suite::run_all(async |options| Store::in_memory(options)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn races_on_several_threads() {
        suite::run_races(async |options| Store::in_memory(options)).await;
    }
}
