//! Exponential back-off as a value: it counts and says how long to wait, the caller waits.

use std::time::Duration;

/// Delays that double from `base` to `max`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub const fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, failures: 0 }
    }

    /// Counts one more failure and returns the time to wait before the next try.
    pub fn fail(&mut self) -> Duration {
        let delay = self.current();
        self.failures = self.failures.saturating_add(1);
        delay
    }

    /// The delay that the next [`Backoff::fail`] will return.
    pub fn current(&self) -> Duration {
        // 2^31 times any base is past every sensible maximum, so the shift cannot be what limits the delay.
        self.base.saturating_mul(1u32 << self.failures.min(31)).min(self.max)
    }

    pub fn failures(&self) -> u32 {
        self.failures
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum_and_start_again_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        let delays: Vec<u64> = (0..7).map(|_| backoff.fail().as_secs()).collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
        backoff.reset();
        assert_eq!(backoff.fail(), Duration::from_secs(10));
    }

    #[test]
    fn very_many_failures_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        for _ in 0..100 {
            backoff.fail();
        }
        assert_eq!(backoff.current(), Duration::from_secs(300));
    }
}
