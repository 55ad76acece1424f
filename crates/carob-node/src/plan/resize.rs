//! The plan for containers that run with other resources than the Pod has been given since (KEP-1287).
//!
//! On cgroup v1 no container's quota may be above that of its Pod, at no moment. So the Pod's group is opened first, then its
//! containers are changed, each in place or by a restart as its policy has it, then the group is closed again.

use jiff::Timestamp;

use super::{Draft, Observed, ObservedContainer, PodAction};
use crate::allocation::Pending;
use crate::config::resources::{self, Limits};
use crate::pod::{Member, PodView, Role};

/// How far the Pod is with a resize.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resize {
    /// Why what the spec asks for is not given yet.
    pub pending: Option<Pending>,
    /// The limits of the Pod's group.
    pub group: Group,
    pub failure: Option<ResizeFailure>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResizeFailure {
    pub message: String,
    pub retry_at: Timestamp,
}

/// What is known of the limits of the Pod's control group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Group {
    /// They are what the Pod had when it was made.
    #[default]
    AsMade,
    /// There are none, or an earlier life of the node may have left it so.
    Open,
    Set(Limits),
}

/// A container whose resources change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub id: String,
    pub name: String,
    pub to: Limits,
}

pub(super) fn plan(view: &PodView<'_>, observed: &Observed, draft: &mut Draft) {
    let differing: Vec<_> = differing(view, observed).collect();
    let wanted = resources::pod(view.pod).map(|settings| Limits::of(&settings)).ok();
    let group = observed.resize.group;
    if observed.busy.resizing || (differing.is_empty() && is_settled(group, wanted)) {
        return;
    }
    if let Some(failure) = observed.resize.failure.as_ref().filter(|failure| failure.retry_at > draft.now) {
        return draft.wake(failure.retry_at);
    }
    if differing.is_empty() {
        if let Some(limits) = wanted {
            draft.push(PodAction::LimitPod { limits: Some(limits) });
        }
        return;
    }
    if group != Group::Open {
        return draft.push(PodAction::LimitPod { limits: None });
    }
    let in_place = differing.into_iter().filter(|(member, run, to)| !restarts(member, run, *to));
    let changes: Vec<_> =
        in_place.map(|(_, run, to)| Change { id: run.id.clone(), name: run.name.clone(), to }).collect();
    if !changes.is_empty() {
        draft.push(PodAction::Resize { changes });
    }
}

/// Whether the Pod's group has the limits that it is wanted to have.
fn is_settled(group: Group, wanted: Option<Limits>) -> bool {
    match group {
        Group::AsMade => true,
        Group::Open => false,
        Group::Set(limits) => Some(limits) == wanted,
    }
}

/// Whether the Pod as a whole has what it has been given.
pub(crate) fn is_whole_settled(view: &PodView<'_>, observed: &Observed) -> bool {
    is_settled(observed.resize.group, resources::pod(view.pod).map(|settings| Limits::of(&settings)).ok())
}

/// Whether a running container has to make way for one with the resources that it has been given.
pub(super) fn must_restart(
    view: &PodView<'_>,
    observed: &Observed,
    member: &Member<'_>,
    run: &ObservedContainer,
) -> bool {
    observed.resize.group == Group::Open && difference(view, member, run).is_some_and(|to| restarts(member, run, to))
}

/// Whether containers run, or the Pod as a whole does, that have not yet what they have been given. A group that is open may
/// just have been taken over from an earlier life of the node.
pub(crate) fn in_progress(view: &PodView<'_>, observed: &Observed) -> bool {
    let is_other = observed.resize.group != Group::Open && !is_whole_settled(view, observed);
    is_other || differing(view, observed).next().is_some()
}

/// What a running container has to be changed to.
pub(crate) fn difference(view: &PodView<'_>, member: &Member<'_>, run: &ObservedContainer) -> Option<Limits> {
    let now = run.limits.filter(|_| run.is_running() && member.role != Role::Ephemeral)?;
    // A quantity that cannot be read never got past the API, nor past the start of the container.
    let wanted = Limits::wanted(view.pod, &member.spec).ok()?;
    (wanted != now || requests_restart(member, run)).then_some(wanted)
}

fn differing<'a>(
    view: &PodView<'a>,
    observed: &'a Observed,
) -> impl Iterator<Item = (Member<'a>, &'a ObservedContainer, Limits)> {
    view.members().into_iter().filter_map(|member| {
        let run = observed.current(member.name())?;
        let to = difference(view, &member, run)?;
        Some((member, run, to))
    })
}

fn restarts(member: &Member<'_>, run: &ObservedContainer, to: Limits) -> bool {
    let Some(now) = run.limits else { return false };
    let cpu = (now.cpu_shares, now.cpu_quota_us) != (to.cpu_shares, to.cpu_quota_us);
    (cpu && restarts_for(member, "cpu"))
        || (now.memory_bytes != to.memory_bytes && restarts_for(member, "memory"))
        || requests_restart(member, run)
}

/// Whether its policy has a container restarted for another request of memory, which no group shows.
fn requests_restart(member: &Member<'_>, run: &ObservedContainer) -> bool {
    let made_with = run.memory_request;
    made_with.is_some_and(|bytes| bytes != resources::memory_request(&member.spec)) && restarts_for(member, "memory")
}

fn restarts_for(member: &Member<'_>, resource: &str) -> bool {
    let mut policies = member.spec.resize_policy.iter().flatten();
    policies.any(|policy| policy.resource_name == resource && policy.restart_policy == "RestartContainer")
}
