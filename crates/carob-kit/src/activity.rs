//! Whether a connection does anything: one that does not for long is closed, so that idle ones cannot take all places.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The requests of one connection, counted from their heads to the ends of their answers.
#[derive(Debug)]
pub struct Activity {
    opened: Instant,
    under_way: AtomicUsize,
    /// When the last one ended, in milliseconds since the connection was opened; zero before the first.
    ended_ms: AtomicU64,
    any: AtomicBool,
}

impl Activity {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            under_way: AtomicUsize::new(0),
            ended_ms: AtomicU64::new(0),
            any: AtomicBool::new(false),
        })
    }

    /// Counts a request until the returned value is dropped.
    pub fn begin(self: &Arc<Self>) -> UnderWay {
        self.any.store(true, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits until no request has been under way for `idle`, or none has come within `first` at all. Wakes at most once per
    /// limit, however many requests there are.
    pub async fn ceases(&self, first: Duration, idle: Duration) {
        tokio::time::sleep(first).await;
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let idle_ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        loop {
            let quiet_ms = if self.under_way.load(Ordering::Relaxed) > 0 {
                0
            } else {
                self.now_ms().saturating_sub(self.ended_ms.load(Ordering::Relaxed))
            };
            if quiet_ms >= idle_ms {
                return;
            }
            tokio::time::sleep(Duration::from_millis(idle_ms - quiet_ms)).await;
        }
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub struct UnderWay(Arc<Activity>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ended_ms.store(self.0.now_ms(), Ordering::Relaxed);
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(5);
    const IDLE: Duration = Duration::from_secs(60);

    /// How long after its opening a connection with these requests (begin and end, seconds) has ceased to do anything.
    async fn ceased_after(requests: &[(u64, u64)]) -> u64 {
        let activity = Activity::new();
        for (begin, end) in requests.iter().copied() {
            let activity = Arc::clone(&activity);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(begin)).await;
                let under_way = activity.begin();
                tokio::time::sleep(Duration::from_secs(end - begin)).await;
                drop(under_way);
            });
        }
        activity.ceases(FIRST, IDLE).await;
        activity.opened.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ceases_when_nothing_has_been_asked_for_long() {
        assert_eq!(ceased_after(&[]).await, 5, "nothing was ever asked");
        assert_eq!(ceased_after(&[(1, 2)]).await, 62);
        assert_eq!(ceased_after(&[(1, 2), (50, 55)]).await, 115);
        // A watch of ten minutes is no silence.
        let long = ceased_after(&[(1, 600)]).await;
        assert!((660..=720).contains(&long), "{long}");
    }
}
