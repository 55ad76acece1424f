//! Memory after a burst: the allocator keeps what was freed until it is told to give it back.

use std::time::Duration;

use anyhow::Result;
use tokio_util::sync::CancellationToken;

/// Time between two looks. History ends after minutes, and a look at a small heap takes microseconds.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Gives free memory back to the kernel from time to time, until `shutdown`.
pub(crate) async fn keep_small(shutdown: CancellationToken) -> Result<()> {
    loop {
        tokio::select! {
            // Both branches are cancel safe.
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        let released = tokio::task::spawn_blocking(carob_sys::memory::release_free).await?;
        tracing::trace!(released, "free memory given back");
    }
}
