//! How often probes were asked, what they answered and how long that took.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use carob_kit::metrics::Histogram;

use super::{Answer, ProbeKind};
use crate::pod::PodId;

/// Upper bounds of the durations that are told apart, in seconds (Prometheus' own, `DefBuckets`).
const BOUNDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What is known of one kind of probe of one container.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    pub pod: PodId,
    pub container: String,
    pub kind: ProbeKind,
    pub successful: u64,
    pub failed: u64,
    pub unknown: u64,
    pub took: Histogram,
}

type Key = (String, String, ProbeKind);

/// The counts of the containers that there are: a Pod's end takes its own with it.
#[derive(Debug, Default)]
pub struct ProbeCounts(Mutex<BTreeMap<Key, Counted>>);

impl ProbeCounts {
    pub fn note(&self, pod: &PodId, container: &str, kind: ProbeKind, answer: &Answer, took: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = all.entry((pod.uid.clone(), container.to_owned(), kind)).or_insert_with(|| Counted {
            pod: pod.clone(),
            container: container.to_owned(),
            kind,
            successful: 0,
            failed: 0,
            unknown: 0,
            took: Histogram::new(BOUNDS),
        });
        let count = match answer {
            Answer::Success | Answer::Warning(_) => &mut counted.successful,
            Answer::Failure(_) => &mut counted.failed,
            Answer::NotAsked(_) => &mut counted.unknown,
        };
        *count = count.saturating_add(1);
        counted.took.observe_time(took);
    }

    /// Forgets the probes of a Pod.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _, _), _| of != uid);
    }

    pub fn all(&self) -> Vec<Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
