//! The places between two effects. A test breaks the pool's work off at each of them, as a crash would.

use std::io;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub(super) struct Steps {
    /// Steps until the work is broken off; 0 for never.
    #[cfg(test)]
    left: AtomicU64,
}

impl Steps {
    /// One effect is done, and the next not begun.
    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "only tests break work off")]
    pub(super) fn next(&self) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn next(&self) -> io::Result<()> {
        let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        // Once crashed, nothing more is done: 1 is the last value before none.
        if before == Ok(1) {
            self.left.store(1, Ordering::SeqCst);
            return Err(io::Error::other("a test broke this off"));
        }
        Ok(())
    }

    /// Breaks the work off after so many steps.
    #[cfg(test)]
    pub(crate) fn break_after(&self, steps: u64) {
        self.left.store(steps.saturating_add(1), Ordering::SeqCst);
    }
}
