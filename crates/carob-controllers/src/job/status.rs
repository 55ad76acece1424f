//! What a Job's status says after a look at it. Pure.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus, UncountedTerminatedPods};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::decide::{Decision, End};
use super::tally::{Tally, Wish};
use crate::condition::{self, Condition, FALSE, TRUE};

const SUSPENDED: &str = "Suspended";
const COMPLETE: &str = "Complete";
const FAILED: &str = "Failed";

/// When the Job ended, if it has.
pub(crate) fn finished_at(job: &Job) -> Option<Timestamp> {
    let conditions = &job.status.as_ref()?.conditions;
    let ended = [COMPLETE, FAILED].into_iter().filter_map(|kind| condition::find(conditions, kind));
    let ended = ended.filter(|condition| condition.status == TRUE);
    ended.filter_map(|condition| condition.last_transition_time.as_ref()).map(|time| time.0).next()
}

fn make(kind: &str, status: &str, reason: &str, message: &str, now: &Time) -> JobCondition {
    let mut new = JobCondition::new(kind, status, reason, message, now);
    new.last_probe_time = Some(now.clone());
    new
}

pub(super) fn after(wish: &Wish<'_>, tally: &Tally, decision: &Decision, now: &Time) -> Job {
    let mut status = wish.job.status.clone().unwrap_or_default();
    suspend_or_start(wish, &mut status, now);
    count(wish, tally, decision, &mut status);
    if let Some(end) = &decision.end {
        conclude(end, tally, &mut status, now);
    }
    Job { status: Some(status), ..wish.job.clone() }
}

fn suspend_or_start(wish: &Wish<'_>, status: &mut JobStatus, now: &Time) {
    if wish.suspended {
        if condition::set(&mut status.conditions, make(SUSPENDED, TRUE, "JobSuspended", "Job suspended", now)) {
            // It begins again when it goes on, and its deadline with it.
            status.start_time = None;
        }
        return;
    }
    if condition::is_true(&status.conditions, SUSPENDED) {
        condition::set(&mut status.conditions, make(SUSPENDED, FALSE, "JobResumed", "Job resumed", now));
        status.start_time = Some(now.clone());
    }
    status.start_time.get_or_insert_with(|| now.clone());
}

fn count(wish: &Wish<'_>, tally: &Tally, decision: &Decision, status: &mut JobStatus) {
    let positive = |count: i32| (count > 0).then_some(count);
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let deleted = number(decision.delete.len());
    status.active =
        positive(number(tally.active.len()).saturating_sub(deleted).saturating_add(number(decision.create.len())));
    status.ready = Some(if decision.end.is_some() { 0 } else { tally.ready });
    status.terminating = Some(tally.terminating.saturating_add(deleted));
    status.failed = positive(tally.settled_failed);
    status.succeeded = positive(if wish.indexed { tally.completed_indexes.len() } else { tally.settled_succeeded });
    if wish.indexed {
        let text = tally.completed_indexes.to_string();
        status.completed_indexes = (!text.is_empty()).then_some(text);
        status.failed_indexes = wish.per_index_limit.map(|_| tally.failed_indexes.to_string());
    }
    status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
        failed: tally.uncounted_failed.to_list(),
        succeeded: tally.uncounted_succeeded.to_list(),
    });
}

/// First the end is announced; it is final once every Pod has ended and been counted.
fn conclude(end: &End, tally: &Tally, status: &mut JobStatus, now: &Time) {
    let (target, last) = if end.succeeded { ("SuccessCriteriaMet", COMPLETE) } else { ("FailureTarget", FAILED) };
    condition::set(&mut status.conditions, make(target, TRUE, &end.reason, &end.message, now));
    let counted =
        tally.uncounted_failed.is_empty() && tally.uncounted_succeeded.is_empty() && tally.to_release.is_empty();
    if !counted || !tally.active.is_empty() || tally.terminating > 0 {
        return;
    }
    condition::set(&mut status.conditions, make(last, TRUE, &end.reason, &end.message, now));
    status.uncounted_terminated_pods = Some(UncountedTerminatedPods::default());
    if end.succeeded {
        status.completion_time = Some(now.clone());
    }
}

/// Events for what a status newly says: whether it is good news, the reason and the message.
pub(super) fn news(before: &Job, after: &Job) -> Vec<(bool, String, String)> {
    let said = |job: &Job, kind: &str| {
        let condition = condition::find(&job.status.as_ref()?.conditions, kind)?;
        Some((condition.status.clone(), condition.reason.clone(), condition.message.clone()))
    };
    let mut news = Vec::new();
    for kind in [SUSPENDED, COMPLETE, FAILED] {
        let Some((status, reason, message)) = said(after, kind) else { continue };
        if said(before, kind).is_some_and(|(old, ..)| old == status) {
            continue;
        }
        news.push(match (kind, status.as_str()) {
            (SUSPENDED, TRUE) => (true, "Suspended".to_owned(), "Job suspended".to_owned()),
            (SUSPENDED, _) => (true, "Resumed".to_owned(), "Job resumed".to_owned()),
            (COMPLETE, _) => (true, "Completed".to_owned(), "Job completed".to_owned()),
            _ => (false, reason.unwrap_or_default(), message.unwrap_or_default()),
        });
    }
    news
}
