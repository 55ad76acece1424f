//! Time as a value that is passed in: production code reads it from a [`Clock`], tests turn its hands.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// As far ahead as a wait can usefully end: thirty years, which is tokio's own limit of a sleep.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The moment `wait` after `start`, or thirty years after it where that is past what the clock can hold.
///
/// `Instant + Duration` panics there, and durations come from objects that anyone may write.
pub fn moment_after(start: Instant, wait: Duration) -> Instant {
    start + wait.min(FAR)
}

/// A source of wall time and of time that never goes back.
///
/// Waiting is tokio's business (`tokio::time`), which tests pause; a clock only tells the time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Wall time. It may jump either way when the machine's clock is set.
    fn now(&self) -> Timestamp;

    /// Time since some fixed moment before the clock was made. It never goes back.
    fn monotonic(&self) -> Duration;
}

/// The machine's clock: `CLOCK_REALTIME` and `CLOCK_MONOTONIC` (clock_gettime(2)).
#[derive(Debug)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place where the machine's time enters")]
    pub fn new() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place where the machine's time enters")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that stands still until a test moves it.
#[derive(Debug)]
pub struct ManualClock {
    state: Mutex<(Timestamp, Duration)>,
}

impl ManualClock {
    pub fn new(now: Timestamp) -> Self {
        Self { state: Mutex::new((now, Duration::ZERO)) }
    }

    /// Moves wall and monotonic time forward together.
    ///
    /// # Panics
    /// When the wall time would leave the range that `Timestamp` can hold: a mistake in the test.
    pub fn advance(&self, by: Duration) {
        let mut state = self.state.lock().expect("no holder of the clock panics");
        state.0 = state.0.checked_add(by).expect("a test stays within the calendar");
        state.1 += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.state.lock().expect("no holder of the clock panics").0
    }

    fn monotonic(&self) -> Duration {
        self.state.lock().expect("no holder of the clock panics").1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_without_end_is_a_moment_far_ahead() {
        let start = Instant::now();
        assert_eq!(moment_after(start, Duration::from_secs(5)), start + Duration::from_secs(5));
        for wait in [Duration::from_secs(i64::MAX.unsigned_abs()), Duration::MAX] {
            assert_eq!(moment_after(start, wait), start + FAR, "{wait:?}");
        }
    }

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = ManualClock::new(Timestamp::UNIX_EPOCH);
        assert_eq!(clock.now(), Timestamp::UNIX_EPOCH);
        clock.advance(Duration::from_secs(3));
        assert_eq!(clock.now().as_second(), 3);
        assert_eq!(clock.monotonic(), Duration::from_secs(3));
    }
}
