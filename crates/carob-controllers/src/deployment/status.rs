//! What a Deployment's status says (`pkg/controller/deployment`, sync.go and progress.go). Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::sets::{Count, Sets, actual, available, max_unavailable, narrow, ready, replicas, size, terminating};
use crate::condition::{self, Condition, FALSE, TRUE, UNKNOWN};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const FAILURE: &str = "ReplicaFailure";
const COMPLETE_REASON: &str = "NewReplicaSetAvailable";
const TIMED_OUT_REASON: &str = "ProgressDeadlineExceeded";
const PAUSED_REASON: &str = "DeploymentPaused";
/// A deadline of so many seconds means none.
const NO_DEADLINE_SECS: i32 = i32::MAX;

/// What happened in this reconcile that the Progressing condition tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    Created(String),
    Found(String),
    CreateFailed(String),
    Nothing,
}

fn make(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> DeploymentCondition {
    let mut new = DeploymentCondition::new(kind, status, reason, message, &Time(now));
    new.last_update_time = Some(Time(now));
    new
}

/// Puts a condition in unless one of the same status and reason is there (SetDeploymentCondition).
fn put(conditions: &mut Option<Vec<DeploymentCondition>>, mut new: DeploymentCondition) {
    let list = conditions.get_or_insert_default();
    if let Some(index) = list.iter().position(|old| old.type_ == new.type_) {
        if list[index].status == new.status {
            if list[index].reason == new.reason {
                return;
            }
            new.last_transition_time = list[index].last_transition_time.clone();
        }
        list.remove(index);
    }
    list.push(new);
}

fn deadline(deployment: &Deployment) -> Option<Duration> {
    let secs = deployment.spec.as_ref()?.progress_deadline_seconds.filter(|secs| *secs != NO_DEADLINE_SECS)?;
    Some(Duration::from_secs(u64::try_from(secs).unwrap_or(0)))
}

/// The numbers, and whether enough Pods are available.
fn counted(deployment: &Deployment, sets: &Sets, now: Timestamp) -> DeploymentStatus {
    let held = deployment.status.clone().unwrap_or_default();
    let available = sets.sum(available);
    let positive = |count: Count| (count > 0).then_some(narrow(count));
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: positive(sets.sum(actual)),
        updated_replicas: positive(sets.new.as_ref().map_or(0, |set| actual(set))),
        ready_replicas: positive(sets.sum(ready)),
        available_replicas: positive(available),
        unavailable_replicas: positive(sets.sum(size) - available),
        terminating_replicas: Some(narrow(sets.sum(terminating))),
        collision_count: held.collision_count,
        conditions: held.conditions,
    };
    let condition = if available >= replicas(deployment) - max_unavailable(deployment) {
        make(AVAILABLE, TRUE, "MinimumReplicasAvailable", "Deployment has minimum availability.", now)
    } else {
        make(AVAILABLE, FALSE, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.", now)
    };
    put(&mut status.conditions, condition);
    status
}

pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(narrow(replicas(deployment))).filter(|wanted| *wanted > 0);
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

/// Whether any number moved the right way since the status was last written.
fn has_progressed(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let old = deployment.status.clone().unwrap_or_default();
    let number = |count: Option<i32>| Count::from(count.unwrap_or(0));
    let not_updated = |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
    number(status.updated_replicas) > number(old.updated_replicas)
        || not_updated(status) < not_updated(&old)
        || number(status.ready_replicas) > number(old.ready_replicas)
        || number(status.available_replicas) > number(old.available_replicas)
}

fn has_timed_out(deadline: Duration, conditions: &Option<Vec<DeploymentCondition>>, now: Timestamp) -> bool {
    let Some(progressing) = condition::find(conditions, PROGRESSING) else { return false };
    match progressing.reason.as_deref() {
        Some(COMPLETE_REASON) => false,
        Some(TIMED_OUT_REASON) => true,
        _ => progressing.last_update_time.as_ref().is_some_and(|from| end(from, deadline) < now),
    }
}

fn end(from: &Time, deadline: Duration) -> Timestamp {
    from.0.checked_add(deadline).unwrap_or(Timestamp::MAX)
}

/// The status as it should be after a step.
pub(super) fn status(deployment: &Deployment, sets: &Sets, progress: &Progress, now: Timestamp) -> DeploymentStatus {
    let mut status = counted(deployment, sets, now);
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    let Some(deadline) = deadline(deployment) else {
        condition::remove(&mut status.conditions, PROGRESSING);
        failures(sets, &mut status);
        return status;
    };
    tell_paused(paused, &mut status, now);
    tell_sets(progress, &mut status, now);
    if !paused {
        tell_progress(deployment, sets, deadline, &mut status, now);
    }
    failures(sets, &mut status);
    status
}

/// A pause stops the deadline, and its end starts it again (checkPausedConditions).
fn tell_paused(paused: bool, status: &mut DeploymentStatus, now: Timestamp) {
    let reason = condition::find(&status.conditions, PROGRESSING).and_then(|condition| condition.reason.clone());
    if reason.as_deref() == Some(TIMED_OUT_REASON) {
        return;
    }
    let was_paused = reason.as_deref() == Some(PAUSED_REASON);
    if paused && !was_paused {
        put(&mut status.conditions, make(PROGRESSING, UNKNOWN, PAUSED_REASON, "Deployment is paused", now));
    } else if !paused && was_paused {
        put(&mut status.conditions, make(PROGRESSING, UNKNOWN, "DeploymentResumed", "Deployment is resumed", now));
    }
}

fn tell_sets(progress: &Progress, status: &mut DeploymentStatus, now: Timestamp) {
    let (value, reason, message) = match progress {
        Progress::Created(name) => (TRUE, "NewReplicaSetCreated", format!("Created new replica set \"{name}\"")),
        Progress::Found(name) if condition::find(&status.conditions, PROGRESSING).is_none() => {
            (TRUE, "FoundNewReplicaSet", format!("Found new replica set \"{name}\""))
        }
        Progress::CreateFailed(why) => (FALSE, "ReplicaSetCreateError", why.clone()),
        Progress::Found(_) | Progress::Nothing => return,
    };
    put(&mut status.conditions, make(PROGRESSING, value, reason, &message, now));
}

fn tell_progress(
    deployment: &Deployment,
    sets: &Sets,
    deadline: Duration,
    status: &mut DeploymentStatus,
    now: Timestamp,
) {
    let current = condition::find(&status.conditions, PROGRESSING).cloned();
    let was_complete = current.as_ref().is_some_and(|current| current.reason.as_deref() == Some(COMPLETE_REASON));
    if was_complete && status.replicas == status.updated_replicas {
        return;
    }
    let subject = match &sets.new {
        Some(new) => format!("ReplicaSet \"{}\"", new.metadata.name.as_deref().unwrap_or_default()),
        None => format!("Deployment \"{}\"", deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        put(&mut status.conditions, make(PROGRESSING, TRUE, COMPLETE_REASON, &message, now));
    } else if has_progressed(deployment, status) {
        let mut new = make(PROGRESSING, TRUE, "ReplicaSetUpdated", &format!("{subject} is progressing."), now);
        if let Some(current) = current.filter(|current| current.status == TRUE) {
            new.last_transition_time = current.last_transition_time;
        }
        // Removed first, so that the time of the last progress moves even where nothing else does.
        condition::remove(&mut status.conditions, PROGRESSING);
        put(&mut status.conditions, new);
    } else if has_timed_out(deadline, &status.conditions, now) {
        let message = format!("{subject} has timed out progressing.");
        put(&mut status.conditions, make(PROGRESSING, FALSE, TIMED_OUT_REASON, &message, now));
    }
}

/// A set that cannot make its Pods says so; the new one's word counts most.
fn failures(sets: &Sets, status: &mut DeploymentStatus) {
    let failure = |set: &k8s_openapi::api::apps::v1::ReplicaSet| {
        condition::find(&set.status.as_ref()?.conditions, FAILURE).cloned()
    };
    let first = sets.new.iter().chain(&sets.old).find_map(|set| failure(set));
    match first {
        Some(failure) => put(
            &mut status.conditions,
            DeploymentCondition {
                type_: FAILURE.to_owned(),
                status: failure.status,
                reason: failure.reason,
                message: failure.message,
                last_transition_time: failure.last_transition_time.clone(),
                last_update_time: failure.last_transition_time,
            },
        ),
        None => {
            condition::remove(&mut status.conditions, FAILURE);
        }
    }
}

/// When the deadline passes by time alone (requeueStuckDeployment).
pub(super) fn deadline_left(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let progressing = condition::find(&status.conditions, PROGRESSING)?;
    if matches!(progressing.reason.as_deref(), Some(COMPLETE_REASON | TIMED_OUT_REASON | PAUSED_REASON)) {
        return None;
    }
    let end = end(progressing.last_update_time.as_ref()?, deadline(deployment)?);
    let left = Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO);
    Some(left + Duration::from_secs(1))
}
