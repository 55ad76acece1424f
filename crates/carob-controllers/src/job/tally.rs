//! Counts a Job's Pods: what runs, what ended, and what of it is new since the status was written
//! (`pkg/controller/job/job_controller.go`). Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;

use super::indexes::{Indexes, index_of};
use super::policy::{self, Verdict};
use crate::pods::{self, FAILED, SUCCEEDED};

/// Keeps an ended Pod until it has been counted.
pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// How often the index of a Pod had failed before it.
pub(super) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Ended Pods whose uids a status lists at a time, so that it stays small (maxUncountedPods). The rest keeps its finalizer
/// until these are counted.
pub(super) const UNCOUNTED_MAX: usize = 500;
/// Waits between failures (DefaultJobPodFailureBackOff, MaxJobPodFailureBackOff).
const BACKOFF_FIRST: Duration = Duration::from_secs(10);
const BACKOFF_LONGEST: Duration = Duration::from_secs(600);

/// What a Job asks for, with upstream's defaults.
pub(super) struct Wish<'a> {
    pub(super) job: &'a Job,
    pub(super) indexed: bool,
    pub(super) parallelism: i32,
    pub(super) completions: Option<i32>,
    pub(super) backoff_limit: i32,
    pub(super) per_index_limit: Option<i32>,
    pub(super) suspended: bool,
    /// Whether a Pod is replaced only once it has ended, not already when it is being deleted.
    pub(super) replace_ended_only: bool,
}

impl<'a> Wish<'a> {
    pub(super) fn of(job: &'a Job) -> Self {
        let spec = job.spec.clone().unwrap_or_default();
        Self {
            job,
            indexed: spec.completion_mode.as_deref() == Some("Indexed"),
            parallelism: spec.parallelism.unwrap_or(1),
            completions: spec.completions,
            backoff_limit: spec.backoff_limit.unwrap_or(6),
            per_index_limit: spec.backoff_limit_per_index,
            suspended: spec.suspend == Some(true),
            replace_ended_only: spec.pod_replacement_policy.as_deref() == Some("Failed")
                || spec.pod_failure_policy.is_some(),
        }
    }

    fn failed(&self, pod: &Pod) -> bool {
        pods::phase(pod) == FAILED
            || (!self.replace_ended_only && pods::is_deleting(pod) && pods::phase(pod) != SUCCEEDED)
    }
}

pub(super) fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

#[derive(Default)]
pub(super) struct Tally {
    pub(super) active: Vec<Arc<Pod>>,
    pub(super) ready: i32,
    pub(super) terminating: i32,
    /// Ended in all, the new ones included.
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    pub(super) completed_indexes: Indexes,
    pub(super) failed_indexes: Indexes,
    /// Uids that the status does not count yet, those that it lists as such included.
    pub(super) uncounted_succeeded: Uids,
    pub(super) uncounted_failed: Uids,
    /// Counts of the status, with the uids that have lost their finalizer folded in.
    pub(super) settled_succeeded: i32,
    pub(super) settled_failed: i32,
    /// Ended Pods whose finalizer is still there and may go once the status lists them.
    pub(super) to_release: Vec<Arc<Pod>>,
    /// Why a failure policy fails the whole Job.
    pub(super) policy_failure: Option<String>,
}

impl Tally {
    pub(super) fn new(wish: &Wish<'_>, all: &[Arc<Pod>]) -> Self {
        let status = wish.job.status.clone().unwrap_or_default();
        let completions = wish.completions.unwrap_or(i32::MAX);
        let mut tally = Self {
            settled_succeeded: status.succeeded.unwrap_or(0),
            settled_failed: status.failed.unwrap_or(0),
            ..Self::default()
        };
        if wish.indexed {
            tally.completed_indexes =
                Indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), completions);
            tally.failed_indexes = Indexes::parse(status.failed_indexes.as_deref().unwrap_or_default(), completions);
        }
        tally.fold(wish, all);
        for pod in all {
            tally.add(wish, pod);
        }
        tally.failed = tally.settled_failed.saturating_add(tally.uncounted_failed.count());
        tally.succeeded = if wish.indexed {
            tally.completed_indexes.len()
        } else {
            tally.settled_succeeded.saturating_add(tally.uncounted_succeeded.count())
        };
        tally
    }

    /// Counts for good what was listed as uncounted and has lost its finalizer since.
    fn fold(&mut self, wish: &Wish<'_>, all: &[Arc<Pod>]) {
        let tracked: HashSet<&str> =
            all.iter().filter(|pod| has_finalizer(pod)).filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        let status = wish.job.status.clone().unwrap_or_default();
        let listed = status.uncounted_terminated_pods.unwrap_or_default();
        for uid in listed.succeeded.unwrap_or_default() {
            if tracked.contains(uid.as_str()) {
                self.uncounted_succeeded.insert(uid);
            } else {
                self.settled_succeeded = self.settled_succeeded.saturating_add(1);
            }
        }
        for uid in listed.failed.unwrap_or_default() {
            if tracked.contains(uid.as_str()) {
                self.uncounted_failed.insert(uid);
            } else {
                self.settled_failed = self.settled_failed.saturating_add(1);
            }
        }
    }

    fn add(&mut self, wish: &Wish<'_>, pod: &Arc<Pod>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if pods::is_active(pod) {
            self.active.push(Arc::clone(pod));
            self.ready += i32::from(pods::is_ready(pod));
            return;
        }
        if pods::is_deleting(pod) && !pods::is_finished(pod) {
            self.terminating += 1;
        }
        if !has_finalizer(pod) {
            return;
        }
        let listed = if pods::phase(pod) == SUCCEEDED {
            self.add_succeeded(wish, pod, uid)
        } else if wish.failed(pod) {
            self.add_failed(wish, pod, uid)
        } else {
            return;
        };
        if listed {
            self.to_release.push(Arc::clone(pod));
        }
    }

    /// Answers whether the status that follows from this says that the Pod has ended.
    fn add_succeeded(&mut self, wish: &Wish<'_>, pod: &Pod, uid: String) -> bool {
        if !wish.indexed {
            return self.uncounted_succeeded.insert(uid);
        }
        // The indexes say it all: a Pod of an index that is done already does not count again.
        let below = |index: &i32| wish.completions.is_some_and(|completions| *index < completions);
        if let Some(index) = index_of(pod).filter(below) {
            self.completed_indexes.insert(index);
        }
        true
    }

    /// As [`Tally::add_succeeded`].
    fn add_failed(&mut self, wish: &Wish<'_>, pod: &Pod, uid: String) -> bool {
        if let Some(listed) = self.uncounted_failed.listed(&uid) {
            return listed;
        }
        let verdict = policy::judge(wish.job, pod);
        if let (Some(limit), Some(index)) = (wish.per_index_limit, index_of(pod)) {
            let spent = verdict != Verdict::Ignore && index_failures(pod) >= limit;
            if spent || verdict == Verdict::FailIndex {
                self.failed_indexes.insert(index);
            }
        }
        match verdict {
            Verdict::Ignore => return true,
            Verdict::FailJob(message) => {
                self.policy_failure.get_or_insert(message);
            }
            Verdict::Count | Verdict::FailIndex => {}
        }
        self.uncounted_failed.insert(uid)
    }
}

/// Uids, in the order in which they came; of those past [`UNCOUNTED_MAX`] it is only known that they are there.
#[derive(Default)]
pub(super) struct Uids {
    listed: Vec<String>,
    /// All of them, and whether they are listed.
    known: HashMap<String, bool>,
}

impl Uids {
    /// Answers whether it is listed.
    fn insert(&mut self, uid: String) -> bool {
        if let Some(listed) = self.known.get(&uid) {
            return *listed;
        }
        let listed = self.listed.len() < UNCOUNTED_MAX;
        if listed {
            self.listed.push(uid.clone());
        }
        self.known.insert(uid, listed);
        listed
    }

    /// Whether it is listed; `None` for one that is not known.
    fn listed(&self, uid: &str) -> Option<bool> {
        self.known.get(uid).copied()
    }

    fn count(&self) -> i32 {
        i32::try_from(self.known.len()).unwrap_or(i32::MAX)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// As a status has them.
    pub(super) fn to_list(&self) -> Option<Vec<String>> {
        (!self.listed.is_empty()).then(|| self.listed.clone())
    }
}

/// How often the Pod's index had failed before it.
pub(super) fn index_failures(pod: &Pod) -> i32 {
    let noted = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(INDEX_FAILURES));
    noted.and_then(|noted| noted.parse().ok()).unwrap_or(0)
}

/// When a Pod ended: the last of its containers, or else its deletion (getFinishedTime).
fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let finished = statuses.filter_map(|status| status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    let deleted = pod.metadata.deletion_timestamp.as_ref();
    finished.map(|time| time.0).max().or(deleted.map(|time| time.0)).or(ready_ended(pod))
}

fn ready_ended(pod: &Pod) -> Option<Timestamp> {
    Some(pods::condition(pod, "Ready")?.last_transition_time.as_ref()?.0)
}

/// How long to wait before the next Pod is made: longer with each failure since the last success.
pub(super) fn backoff_left<'a>(wish: &Wish<'_>, all: impl Iterator<Item = &'a Pod>, now: Timestamp) -> Duration {
    let mut ends: Vec<(Timestamp, bool)> = all
        .filter(|pod| pods::phase(pod) == SUCCEEDED || wish.failed(pod))
        .filter_map(|pod| Some((ended_at(pod)?, pods::phase(pod) == SUCCEEDED)))
        .collect();
    ends.sort();
    let failures: Vec<Timestamp> =
        ends.iter().rev().take_while(|(_, succeeded)| !succeeded).map(|(at, _)| *at).collect();
    let Some(last) = failures.first() else { return Duration::ZERO };
    let mut backoff = carob_kit::Backoff::new(BACKOFF_FIRST, BACKOFF_LONGEST);
    for _ in 1..failures.len() {
        backoff.fail();
    }
    let until = last.checked_add(backoff.current()).unwrap_or(*last);
    Duration::try_from(until.duration_since(now)).unwrap_or(Duration::ZERO)
}
