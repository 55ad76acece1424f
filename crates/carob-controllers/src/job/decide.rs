//! What is to be done for a Job: Pods to make and to delete, and how it ends (`pkg/controller/job/job_controller.go`,
//! syncJob and manageJob). Pure.
//!
//! The numbers of a Job are the user's and may be as large as their type: no more is planned than one burst of Pods.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, SuccessPolicyRule};
use k8s_openapi::api::core::v1::Pod;

use super::indexes::{Indexes, index_of};
use super::tally::{Tally, Wish, backoff_left, index_failures};
use crate::condition;
use crate::pod_control::BURST;
use crate::pods;

/// How a Job ends, decided but not yet carried out: its Pods have to go first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) succeeded: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl End {
    fn failed(reason: &str, message: impl Into<String>) -> Self {
        Self { succeeded: false, reason: reason.to_owned(), message: message.into() }
    }

    fn succeeded(reason: &str, message: impl Into<String>) -> Self {
        Self { succeeded: true, reason: reason.to_owned(), message: message.into() }
    }
}

/// A Pod to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewPod {
    pub(super) index: Option<i32>,
    /// Of its index, where those are limited.
    pub(super) failures: Option<i32>,
}

#[derive(Debug, Default)]
pub(super) struct Decision {
    pub(super) end: Option<End>,
    /// Pods to delete, one burst at most. Unless the Job fails, their end is not counted.
    pub(super) delete: Vec<Arc<Pod>>,
    /// One burst at most.
    pub(super) create: Vec<NewPod>,
    pub(super) look_again: Option<Duration>,
}

pub(super) fn decide(wish: &Wish<'_>, tally: &Tally, all: &[Arc<Pod>], now: Timestamp) -> Decision {
    let deadline_left = deadline_left(wish, now);
    if let Some(end) = end(wish, tally, deadline_left) {
        return Decision { end: Some(end), delete: burst(&tally.active), ..Decision::default() };
    }
    let mut decision = Decision { look_again: deadline_left, ..Decision::default() };
    if wish.suspended {
        decision.delete = burst(&tally.active);
        return decision;
    }
    let active = i32::try_from(tally.active.len()).unwrap_or(i32::MAX);
    let wanted = wanted_active(wish, tally, active);
    let surplus = usize::try_from(active.saturating_sub(wanted)).unwrap_or(0);
    decision.delete = burst(&victims(wish, tally, surplus));
    let deleted = i32::try_from(decision.delete.len()).unwrap_or(i32::MAX);
    let terminating = if wish.replace_ended_only { tally.terminating } else { 0 };
    let taken = active.saturating_sub(deleted).saturating_add(terminating);
    let missing = usize::try_from(wanted.saturating_sub(taken)).unwrap_or(0).min(BURST);
    if missing > 0 {
        create(wish, tally, all, missing, now, &mut decision);
    }
    decision
}

fn burst(pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    pods.iter().take(BURST).cloned().collect()
}

/// How the Job ends, if it does: an end that was decided before stays.
fn end(wish: &Wish<'_>, tally: &Tally, deadline_left: Option<Duration>) -> Option<End> {
    let conditions = &wish.job.status.as_ref().and_then(|status| status.conditions.clone());
    let decided = |kind: &str| condition::find(conditions, kind).filter(|held| held.status == condition::TRUE);
    let said =
        |held: &JobCondition| (held.reason.clone().unwrap_or_default(), held.message.clone().unwrap_or_default());
    if let Some((reason, message)) = decided("FailureTarget").map(said) {
        return Some(End { succeeded: false, reason, message });
    }
    if let Some((reason, message)) = decided("SuccessCriteriaMet").map(said) {
        return Some(End { succeeded: true, reason, message });
    }
    if let Some(message) = &tally.policy_failure {
        return Some(End::failed("PodFailurePolicy", message.clone()));
    }
    if tally.failed > wish.backoff_limit || restarts_exceed(wish, tally) {
        return Some(End::failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
    }
    if deadline_left == Some(Duration::ZERO) {
        return Some(End::failed("DeadlineExceeded", "Job was active longer than specified deadline"));
    }
    end_of_indexes(wish, tally).or_else(|| completed(wish, tally))
}

fn end_of_indexes(wish: &Wish<'_>, tally: &Tally) -> Option<End> {
    let completions = wish.completions.filter(|_| wish.indexed)?;
    if let Some(rules) =
        wish.job.spec.as_ref().and_then(|spec| spec.success_policy.as_ref()).map(|policy| &policy.rules)
    {
        let met = rules.iter().position(|rule| is_met(rule, &tally.completed_indexes, completions));
        if let Some(index) = met {
            return Some(End::succeeded("SuccessPolicy", format!("Matched rules at index {index}")));
        }
    }
    wish.per_index_limit?;
    let failed = tally.failed_indexes.len();
    let most = wish.job.spec.as_ref().and_then(|spec| spec.max_failed_indexes);
    if most.is_some_and(|most| failed > most) {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return Some(End::failed("MaxFailedIndexesExceeded", message));
    }
    (failed > 0 && failed.saturating_add(tally.completed_indexes.len()) >= completions)
        .then(|| End::failed("FailedIndexes", "Job has failed indexes"))
}

/// Whether enough of the indexes that a rule names have succeeded.
fn is_met(rule: &SuccessPolicyRule, completed: &Indexes, completions: i32) -> bool {
    let named = rule.succeeded_indexes.as_deref().map(|text| Indexes::parse(text, completions));
    let done = named.as_ref().map_or_else(|| completed.len(), |named| named.intersection(completed).len());
    let needed = rule.succeeded_count.unwrap_or_else(|| named.as_ref().map_or(completions, Indexes::len));
    done >= needed
}

fn completed(wish: &Wish<'_>, tally: &Tally) -> Option<End> {
    let done = match wish.completions {
        // Any success ends it, once the others have ended too.
        None => tally.succeeded > 0 && tally.active.is_empty(),
        Some(completions) => tally.succeeded >= completions,
    };
    done.then(|| End::succeeded("CompletionsReached", "Reached expected number of succeeded pods"))
}

/// A Job whose Pods restart in place counts their restarts (pastBackoffLimitOnFailure).
fn restarts_exceed(wish: &Wish<'_>, tally: &Tally) -> bool {
    let template = wish.job.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    if template.and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let statuses = tally.active.iter().filter_map(|pod| pod.status.as_ref());
    let containers = statuses.flat_map(|status| {
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
    });
    let restarts: i64 = containers.map(|container| i64::from(container.restart_count)).sum();
    if wish.backoff_limit == 0 { restarts > 0 } else { restarts >= i64::from(wish.backoff_limit) }
}

fn deadline_left(wish: &Wish<'_>, now: Timestamp) -> Option<Duration> {
    let secs = wish.job.spec.as_ref()?.active_deadline_seconds.filter(|_| !wish.suspended)?;
    let started = wish.job.status.as_ref()?.start_time.as_ref()?.0;
    let end = started.checked_add(Duration::from_secs(u64::try_from(secs).unwrap_or(0))).ok()?;
    Some(Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO))
}

fn wanted_active(wish: &Wish<'_>, tally: &Tally, active: i32) -> i32 {
    match wish.completions {
        None if tally.succeeded > 0 => active,
        None => wish.parallelism,
        Some(completions) => {
            let failed = if wish.per_index_limit.is_some() { tally.failed_indexes.len() } else { 0 };
            completions.saturating_sub(tally.succeeded).saturating_sub(failed).min(wish.parallelism).max(0)
        }
    }
}

/// The Pods that are too many: those of indexes that have another, or that are done, first.
fn victims(wish: &Wish<'_>, tally: &Tally, surplus: usize) -> Vec<Arc<Pod>> {
    let mut rest: Vec<Arc<Pod>> = tally.active.clone();
    let mut victims: Vec<Arc<Pod>> = Vec::new();
    if wish.indexed {
        let mut seen = Indexes::default();
        rest.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
        rest.retain(|pod| {
            let index = index_of(pod).filter(|index| wish.completions.is_none_or(|completions| *index < completions));
            let needed = index.is_some_and(|index| {
                !tally.completed_indexes.contains(index)
                    && !tally.failed_indexes.contains(index)
                    && !seen.contains(index)
            });
            match index {
                Some(index) if needed => seen.insert(index),
                _ => victims.push(Arc::clone(pod)),
            }
            needed
        });
    }
    // The rest goes by how little would be lost: not ready ones, then younger ones.
    rest.sort_by_key(|pod| (pods::is_ready(pod), std::cmp::Reverse(pod.metadata.creation_timestamp.clone())));
    let more = surplus.saturating_sub(victims.len());
    victims.extend(rest.into_iter().take(more));
    victims
}

fn create(wish: &Wish<'_>, tally: &Tally, all: &[Arc<Pod>], missing: usize, now: Timestamp, decision: &mut Decision) {
    if wish.per_index_limit.is_none() {
        let left = backoff_left(wish, all.iter().map(|pod| &**pod), now);
        if !left.is_zero() {
            look_again_in(decision, left);
            return;
        }
    }
    if !wish.indexed {
        decision.create = vec![NewPod { index: None, failures: None }; missing];
        return;
    }
    let mut by_index: HashMap<i32, Vec<&Pod>> = HashMap::new();
    for pod in all {
        if let Some(index) = index_of(pod) {
            by_index.entry(index).or_default().push(pod);
        }
    }
    let removed: HashSet<Option<&str>> = decision.delete.iter().map(|pod| pod.metadata.uid.as_deref()).collect();
    let busy = |pod: &&Pod| {
        (pods::is_active(pod) && !removed.contains(&pod.metadata.uid.as_deref()))
            || (wish.replace_ended_only && pods::is_deleting(pod) && !pods::is_finished(pod))
    };
    let is_free = |index: &i32| !by_index.get(index).is_some_and(|pods| pods.iter().any(busy));
    let over = tally.completed_indexes.union(&tally.failed_indexes);
    let free: Vec<i32> = over.missing(wish.completions.unwrap_or(0)).filter(is_free).take(missing).collect();
    for index in free {
        let pods = by_index.get(&index).map(Vec::as_slice).unwrap_or_default();
        if wish.per_index_limit.is_none() {
            decision.create.push(NewPod { index: Some(index), failures: None });
            continue;
        }
        let left = backoff_left(wish, pods.iter().copied(), now);
        if left.is_zero() {
            let failures = pods.iter().map(|pod| index_failures(pod).saturating_add(1)).max().unwrap_or(0);
            decision.create.push(NewPod { index: Some(index), failures: Some(failures) });
        } else {
            look_again_in(decision, left);
        }
    }
}

fn look_again_in(decision: &mut Decision, wait: Duration) {
    decision.look_again = Some(decision.look_again.map_or(wait, |held| held.min(wait)));
}
