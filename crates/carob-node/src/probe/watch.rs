//! The task that asks one container one kind of question, again and again.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::tally::Tally;
use super::{Answer, ProbeKind, Prober, Target};

/// Something that a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub container_id: String,
    pub kind: ProbeKind,
    /// The new verdict, if this answer reached a threshold.
    pub verdict: Option<bool>,
    /// The answer itself, for the event that an unhealthy container gets.
    pub answer: Answer,
    pub took: Duration,
}

/// When to begin and from what.
#[derive(Debug, Clone, Copy)]
pub struct Begin {
    pub now: Timestamp,
    pub started_at: Timestamp,
    /// What an earlier life of the node had found, so that nothing changes with its restart.
    pub verdict: Option<bool>,
}

/// Asks in the probe's rhythm until there is nothing left to ask or nobody listens.
pub async fn run(prober: Prober, kind: ProbeKind, target: Target, begin: Begin, findings: mpsc::Sender<Finding>) {
    let Some(probe) = kind.of(&target.container).cloned() else { return };
    let seconds = |value: Option<i32>, default: u64| {
        Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
    };
    let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
    let due = crate::plan::after(begin.started_at, seconds(probe.initial_delay_seconds, 0));
    let wait = Duration::try_from(due.duration_since(begin.now)).unwrap_or(Duration::ZERO);
    let mut ticks = tokio::time::interval_at(carob_kit::moment_after(Instant::now(), wait), period);
    // A slow answer delays the next question rather than bunching questions up.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tally = Tally::new(&probe, begin.verdict);
    loop {
        ticks.tick().await;
        let asked = Instant::now();
        let answer = prober.ask(&probe, &target).await;
        let verdict = tally.count(&answer);
        let container_id = target.container_id.clone();
        let finding = Finding { container_id, kind, verdict, answer, took: asked.elapsed() };
        if findings.send(finding).await.is_err() || tally.is_over(kind) {
            return;
        }
    }
}
