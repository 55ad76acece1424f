//! How long keys wait for a reconciler and how long it takes (component-base `metrics/prometheus/workqueue`).

use std::time::Duration;

use carob_kit::metrics::{Exposition, Histogram, Kind};
use tokio::time::Instant;

use super::{DriverStats, WorkStats};

/// Upper bounds of both times, in seconds.
const BOUNDS: &[f64] = &[1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0];

/// The times of one reconciler's keys.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkTimes {
    pub waited: Histogram,
    pub worked: Histogram,
    /// When each of those that run now began; as many as there are workers.
    running: Vec<Instant>,
}

impl Default for WorkTimes {
    fn default() -> Self {
        Self { waited: Histogram::new(BOUNDS), worked: Histogram::new(BOUNDS), running: Vec::new() }
    }
}

impl WorkTimes {
    pub(super) fn begin(&mut self, now: Instant, waited: Duration) {
        self.waited.observe_time(waited);
        self.running.push(now);
    }

    pub(super) fn end(&mut self, begun: Instant) {
        self.worked.observe_time(begun.elapsed());
        if let Some(at) = self.running.iter().position(|other| *other == begun) {
            self.running.swap_remove(at);
        }
    }

    /// How long those that run now have been running, together.
    pub fn unfinished(&self) -> Duration {
        self.running.iter().map(Instant::elapsed).sum()
    }

    /// How long the one has been running that began first.
    pub fn longest_running(&self) -> Duration {
        self.running.iter().map(Instant::elapsed).max().unwrap_or_default()
    }
}

/// Writes the figures of reconcilers, under upstream's names where it has them.
pub fn write_work_metrics(out: &mut Exposition, stats: &DriverStats) {
    type Value = fn(&WorkStats) -> f64;
    let values: [(&str, Kind, &str, Value); 9] = [
        ("workqueue_depth", Kind::Gauge, "Current depth of workqueue", |stats| stats.depth as f64),
        ("workqueue_adds_total", Kind::Counter, "Total number of adds handled by workqueue", |stats| {
            stats.added as f64
        }),
        ("workqueue_retries_total", Kind::Counter, "Total number of retries handled by workqueue", |stats| {
            stats.failed.saturating_add(stats.panicked) as f64
        }),
        (
            "workqueue_unfinished_work_seconds",
            Kind::Gauge,
            "How many seconds of work has been done that is in progress",
            |stats| stats.times.unfinished().as_secs_f64(),
        ),
        (
            "workqueue_longest_running_processor_seconds",
            Kind::Gauge,
            "How many seconds the longest running processor has been running",
            |stats| stats.times.longest_running().as_secs_f64(),
        ),
        ("carob_reconcile_success_total", Kind::Counter, "Reconciles that ended well", |stats| stats.succeeded as f64),
        ("carob_reconcile_errors_total", Kind::Counter, "Reconciles that failed", |stats| stats.failed as f64),
        ("carob_reconcile_panics_total", Kind::Counter, "Reconciles that panicked", |stats| stats.panicked as f64),
        ("carob_reconcile_set_aside", Kind::Gauge, "Objects that are left alone after panics", |stats| {
            stats.set_aside.len() as f64
        }),
    ];
    for (name, kind, help, value) in values {
        let family = out.family(name, kind, help);
        for (controller, stats) in stats {
            family.sample(&[("name", controller)], value(stats));
        }
    }
    type Times = fn(&WorkTimes) -> &Histogram;
    let histograms: [(&str, &str, Times); 2] = [
        (
            "workqueue_queue_duration_seconds",
            "How long in seconds an item stays in workqueue before being requested",
            |times| &times.waited,
        ),
        ("workqueue_work_duration_seconds", "How long in seconds processing an item from workqueue takes.", |times| {
            &times.worked
        }),
    ];
    for (name, help, times) in histograms {
        let family = out.family(name, Kind::Histogram, help);
        for (controller, stats) in stats {
            family.histogram(&[("name", controller)], times(&stats.times));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_is_timed_while_it_runs_and_when_it_ends() {
        let mut times = WorkTimes::default();
        let first = Instant::now();
        times.begin(first, Duration::from_millis(2));
        tokio::time::advance(Duration::from_secs(3)).await;
        let second = Instant::now();
        times.begin(second, Duration::ZERO);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((times.unfinished(), times.longest_running()), (Duration::from_secs(5), Duration::from_secs(4)));
        times.end(first);
        assert_eq!((times.unfinished(), times.worked.count()), (Duration::from_secs(1), 1));
        let stats =
            vec![("job", WorkStats { depth: 2, times, ..WorkStats::default() }), ("cronjob", WorkStats::default())];
        let mut out = Exposition::default();
        write_work_metrics(&mut out, &stats);
        let text = out.into_text();
        for line in [
            "# TYPE workqueue_depth gauge\nworkqueue_depth{name=\"job\"} 2\n",
            "workqueue_work_duration_seconds_bucket{name=\"job\",le=\"1\"} 0\n",
            "workqueue_work_duration_seconds_bucket{name=\"job\",le=\"10\"} 1\n",
            "workqueue_unfinished_work_seconds{name=\"job\"} 1\n",
            "carob_reconcile_panics_total{name=\"cronjob\"} 0\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
