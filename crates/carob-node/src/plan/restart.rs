//! When a container that ended may run again.

use std::time::Duration;

use jiff::Timestamp;

use super::{ObservedContainer, after};

/// First delay between the end of a run and the next one (kubelet `containerBackOffPeriod`).
const DELAY_BASE: Duration = Duration::from_secs(10);
/// Longest delay (kubelet `MaxContainerBackOff`).
const DELAY_MAX: Duration = Duration::from_secs(300);
/// A run that ended this long after the restart before it was counted starts the count from nothing: twice the longest delay
/// (client-go `util/flowcontrol/backoff.go`).
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// The answer of [`restart`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Run it now; the delay is the one to note on the new run.
    Now { next_delay: Duration },
    /// Not before `at`; `delay` is the back-off in force.
    At { at: Timestamp, delay: Duration },
}

/// The delay to note on the run that follows one with `delay` noted.
pub fn next_delay(delay: Duration) -> Duration {
    if delay.is_zero() { DELAY_BASE } else { (delay * 2).min(DELAY_MAX) }
}

/// Whether the container whose newest run was `last` may run again at `now`.
///
/// The first restart is at once, the second waits 10 s after the end of the run before it, then 20 s, up to 5 min. The
/// count is noted on the runs themselves, so it outlives the node's process.
pub fn restart(last: &ObservedContainer, now: Timestamp) -> Restart {
    let Some(exit) = last.exit() else {
        // Created but never started, or lost: nothing to measure a delay from.
        return Restart::Now { next_delay: next_delay(last.restart_delay) };
    };
    let delay = last.restart_delay;
    let forgotten = exit.finished_at > after(last.created_at, FORGET_AFTER);
    if delay.is_zero() || forgotten {
        return Restart::Now { next_delay: DELAY_BASE };
    }
    let at = after(exit.finished_at, delay);
    if now < at { Restart::At { at, delay } } else { Restart::Now { next_delay: next_delay(delay) } }
}
