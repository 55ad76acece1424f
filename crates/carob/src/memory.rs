//! Memory after a start or a burst: the allocator keeps what was freed until it is told to give it back, and so does the kernel
//! with the pages of code that ran once.

use std::time::Duration;

use anyhow::Result;
use tokio_util::sync::CancellationToken;

/// Time between two looks. History ends after minutes, and a look at a small heap takes microseconds.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The first look: parts are started by then, and what only a start needs is not needed again.
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(10);

/// Gives free memory and unused pages of the program back to the kernel from time to time, until `shutdown`.
pub(crate) async fn keep_small(shutdown: CancellationToken) -> Result<()> {
    let mut pause = FIRST_LOOK_AFTER;
    loop {
        tokio::select! {
            // Both branches are cancel safe.
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        pause = LOOK_EVERY;
        let released = tokio::task::spawn_blocking(|| -> std::io::Result<bool> {
            carob_sys::memory::release_program()?;
            Ok(carob_sys::memory::release_free())
        });
        let released = released.await??;
        tracing::trace!(released, "free memory given back");
    }
}
