//! What the scheduler counts of its work, by kube-scheduler's names (`pkg/scheduler/metrics/metrics.go`).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use carob_kit::metrics::{Exposition, Histogram, Kind, Series};

use crate::queue::Counts;

/// Upper bounds of the time of a decision, in seconds: 1 ms and its doubles.
const DECISION_BOUNDS: &[f64] =
    &[0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384];
/// Of the time from a Pod's arrival to its binding, in seconds: 10 ms and its doubles.
const BOUND_BOUNDS: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36,
    1310.72, 2621.44, 5242.88,
];
/// Of the number of attempts of a Pod.
const ATTEMPTS_BOUNDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0];
/// Of the victims of one preemption.
const VICTIMS_BOUNDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
/// Outcomes times profiles that are told apart.
const SETS_MAX: usize = 128;
/// Attempts that are told apart of Pods that were bound (`getAttemptsLabel`).
const ATTEMPTS_TOLD_MAX: u32 = 15;

/// How a decision ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Scheduled,
    Unschedulable,
    Error,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Unschedulable => "unschedulable",
            Self::Error => "error",
        }
    }
}

/// The figures of one scheduler. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Figures(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    decisions: Series<Histogram>,
    bound: Series<Histogram>,
    attempts: Mutex<Histogram>,
    preemptions: AtomicU64,
    victims: Mutex<Histogram>,
    /// Active, backing off, unschedulable, gated.
    waiting: [AtomicUsize; 4],
}

impl Default for Figures {
    fn default() -> Self {
        Self(Arc::new(Counted {
            decisions: Series::new(&["profile", "result"], SETS_MAX),
            bound: Series::new(&["attempts"], SETS_MAX),
            attempts: Mutex::new(Histogram::new(ATTEMPTS_BOUNDS)),
            preemptions: AtomicU64::new(0),
            victims: Mutex::new(Histogram::new(VICTIMS_BOUNDS)),
            waiting: Default::default(),
        }))
    }
}

fn note(histogram: &Mutex<Histogram>, value: f64) {
    histogram.lock().unwrap_or_else(PoisonError::into_inner).observe(value);
}

impl Figures {
    /// A Pod of a profile was decided about.
    pub(crate) fn decided(&self, profile: &str, outcome: Outcome, took: Duration) {
        self.0.decisions.observe_time(&[profile, outcome.label()], DECISION_BOUNDS, took);
    }

    /// A Pod has its node, so long after it came and after so many attempts.
    pub(crate) fn bound(&self, since_arrival: Duration, attempts: u32) {
        let label = if attempts >= ATTEMPTS_TOLD_MAX { "15+".to_owned() } else { attempts.to_string() };
        self.0.bound.observe_time(&[&label], BOUND_BOUNDS, since_arrival);
        note(&self.0.attempts, f64::from(attempts));
    }

    /// So many Pods are to make room for one.
    pub(crate) fn preempted(&self, victims: usize) {
        self.0.preemptions.fetch_add(1, Ordering::Relaxed);
        note(&self.0.victims, victims as f64);
    }

    /// So many wait now, each in its way.
    pub(crate) fn show_waiting(&self, counts: Counts) {
        let all = [counts.active, counts.backoff, counts.unschedulable, counts.held];
        for (shown, count) in self.0.waiting.iter().zip(all) {
            shown.store(count, Ordering::Relaxed);
        }
    }

    pub fn write(&self, out: &mut Exposition) {
        let help = "Number of attempts to schedule pods, by the result.";
        let family = out.family("scheduler_schedule_attempts_total", Kind::Counter, help);
        self.0.decisions.each(|labels, times| family.sample(labels, times.count()));
        let help = "Scheduling attempt latency in seconds (scheduling algorithm)";
        self.0.decisions.write(out, "scheduler_scheduling_attempt_duration_seconds", help);
        let help = "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue.";
        self.0.bound.write(out, "scheduler_pod_scheduling_sli_duration_seconds", help);
        let help = "Number of attempts to successfully schedule a pod.";
        let attempts = self.0.attempts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        out.family("scheduler_pod_scheduling_attempts", Kind::Histogram, help).histogram(&[], &attempts);
        let help = "Total preemption attempts in the cluster till now";
        let preemptions = self.0.preemptions.load(Ordering::Relaxed);
        out.single("scheduler_preemption_attempts_total", Kind::Counter, help, preemptions);
        let victims = self.0.victims.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let help = "Number of selected preemption victims";
        out.family("scheduler_preemption_victims", Kind::Histogram, help).histogram(&[], &victims);
        let help = "Number of pending pods, by the queue that they are in.";
        let family = out.family("scheduler_pending_pods", Kind::Gauge, help);
        for (queue, count) in ["active", "backoff", "unschedulable", "gated"].into_iter().zip(&self.0.waiting) {
            family.sample(&[("queue", queue)], count.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_and_bindings_are_told_by_upstreams_names() {
        let figures = Figures::default();
        figures.decided("default-scheduler", Outcome::Scheduled, Duration::from_micros(1500));
        figures.decided("default-scheduler", Outcome::Unschedulable, Duration::from_micros(100));
        figures.bound(Duration::from_millis(30), 2);
        figures.bound(Duration::from_secs(90), 40);
        figures.preempted(3);
        figures.show_waiting(Counts { active: 1, backoff: 2, unschedulable: 3, held: 4 });
        let mut out = Exposition::default();
        figures.write(&mut out);
        let text = out.into_text();
        for line in [
            "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"scheduled\"} 1",
            "scheduler_scheduling_attempt_duration_seconds_bucket{profile=\"default-scheduler\",result=\"scheduled\",le=\"0.001\"} 0",
            "scheduler_scheduling_attempt_duration_seconds_bucket{profile=\"default-scheduler\",result=\"scheduled\",le=\"0.002\"} 1",
            "scheduler_pod_scheduling_sli_duration_seconds_count{attempts=\"15+\"} 1",
            "scheduler_pod_scheduling_attempts_bucket{le=\"2\"} 1",
            "scheduler_preemption_victims_sum 3",
            "scheduler_pending_pods{queue=\"gated\"} 4",
        ] {
            assert!(text.lines().any(|own| own == line), "{line}: {text}");
        }
    }
}
