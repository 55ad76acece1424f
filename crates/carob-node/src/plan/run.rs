//! The plan for a Pod that is to run.

use super::{ContainerPhase, Draft, Intent, KillReason, Observed, ObservedContainer, PodAction, RUNS_KEPT, Restart};
use super::{Volumes, after, resize, restart, restart_all};
use crate::pod::{Member, PodView, Role};
use jiff::Timestamp;

/// Drafts the steps. Answers with [`Intent::Stop`] when the Pod turns out to have nothing left to do.
pub(super) fn plan(view: &PodView<'_>, observed: &Observed, draft: &mut Draft) -> Intent {
    prune(view, observed, draft);
    mount(observed, draft);
    if needs_sandbox(view, observed) {
        if nothing_to_start(view, observed) {
            return finished(view, draft);
        }
        create_sandbox(view, observed, draft);
        return Intent::Run;
    }
    if observed.volumes != Volumes::Mounted || observed.busy.pod {
        return Intent::Run;
    }
    resize::plan(view, observed, draft);
    ephemeral(view, observed, draft);
    if restart_all::clear(view, observed, draft) {
        return Intent::Run;
    }
    match init(view, observed, draft) {
        Init::Done => {}
        Init::Waiting => return Intent::Run,
        Init::Failed => return finished(view, draft),
    }
    if app(view, observed, draft) { Intent::Run } else { finished(view, draft) }
}

fn finished(view: &PodView<'_>, draft: &Draft) -> Intent {
    Intent::Stop { deadline: after(draft.now, view.grace()), reason: KillReason::PodFinished }
}

/// Whether the Pod has no sandbox that its containers could run in (kubelet `PodSandboxChanged`).
pub(crate) fn needs_sandbox(view: &PodView<'_>, observed: &Observed) -> bool {
    match &observed.sandbox {
        None => true,
        Some(sandbox) => !sandbox.ready || (!view.host_network() && sandbox.ips.is_empty()),
    }
}

/// Whether a new sandbox would stay empty: initialisation failed for good, or every container is one that does not run again.
fn nothing_to_start(view: &PodView<'_>, observed: &Observed) -> bool {
    if observed.containers.is_empty() {
        return false;
    }
    let failed =
        |member: &Member<'_>| observed.ended_for_good(member, view.restart_policy()).is_some_and(|exit| exit.code != 0);
    view.init_members().iter().any(failed)
        || view.app_members().iter().all(|member| ended_for_good(view, observed, member))
}

fn ended_for_good(view: &PodView<'_>, observed: &Observed, member: &Member<'_>) -> bool {
    observed.ended_for_good(member, view.restart_policy()).is_some()
}

fn mount(observed: &Observed, draft: &mut Draft) {
    if observed.busy.pod || observed.busy.volumes {
        return;
    }
    match &observed.volumes {
        Volumes::Mounted => {}
        Volumes::Absent => draft.push(PodAction::MountVolumes),
        Volumes::Failed(failure) if failure.retry_at <= draft.now => draft.push(PodAction::MountVolumes),
        Volumes::Failed(failure) => draft.wake(failure.retry_at),
    }
}

fn create_sandbox(view: &PodView<'_>, observed: &Observed, draft: &mut Draft) {
    let is_time = match observed.volumes {
        Volumes::Mounted => !observed.busy.volumes,
        Volumes::Absent => is_new(observed) && view.volumes_are_made_here(),
        Volumes::Failed(_) => false,
    };
    if !is_time || observed.busy.pod || !observed.busy.starting.is_empty() {
        return;
    }
    let lost: Vec<_> = observed.running().collect();
    if !lost.is_empty() {
        let deadline = after(draft.now, view.grace());
        for container in lost {
            draft.kill(observed, container, deadline, KillReason::SandboxLost);
        }
        return;
    }
    if let Some(failure) = observed.sandbox_failure.as_ref().filter(|failure| failure.retry_at > draft.now) {
        draft.wake(failure.retry_at);
        return;
    }
    let attempt = observed.sandbox.as_ref().map_or(0, |sandbox| sandbox.attempt + 1);
    draft.push(PodAction::CreateSandbox { attempt, replaces: observed.sandbox.as_ref().map(|old| old.id.clone()) });
}

/// Nothing of the Pod has been made yet. Its sandbox then is made while its volumes are, where these wait for nobody.
fn is_new(observed: &Observed) -> bool {
    observed.sandbox.is_none() && observed.older_sandboxes.is_empty() && observed.containers.is_empty()
}

fn ephemeral(view: &PodView<'_>, observed: &Observed, draft: &mut Draft) {
    for member in view.ephemeral_members() {
        if observed.newest(member.name()).is_none() {
            start(view, observed, &member, draft);
        }
    }
}

/// How far initialisation is.
enum Init {
    Waiting,
    Done,
    Failed,
}

/// Brings up init containers one after the other and keeps the sidecars among them running.
///
/// Only runs in the current sandbox count: after a reboot all are there, dead, and initialisation starts over. A later
/// container that exists proves that the ones before it are done, even where the runtime has forgotten them.
fn init(view: &PodView<'_>, observed: &Observed, draft: &mut Draft) -> Init {
    let members = view.init_members();
    let initialised = view.app_members().iter().any(|member| observed.current(member.name()).is_some());
    let reached = match members.iter().rposition(|member| observed.current(member.name()).is_some()) {
        _ if initialised => members.len(),
        Some(index) => index,
        None => 0,
    };
    for member in members.iter().take(reached).filter(|member| member.role == Role::Sidecar) {
        keep_running(view, observed, member, draft);
    }
    for member in members.iter().skip(reached) {
        match init_step(view, observed, member, draft) {
            Init::Done => {}
            unfinished => return unfinished,
        }
    }
    Init::Done
}

fn init_step(view: &PodView<'_>, observed: &Observed, member: &Member<'_>, draft: &mut Draft) -> Init {
    let Some(container) = observed.current(member.name()) else {
        start(view, observed, member, draft);
        return Init::Waiting;
    };
    if member.role == Role::Sidecar {
        keep_running(view, observed, member, draft);
        let up = container.is_running() && !observed.busy.starting.contains(member.name());
        return if up && has_started(observed, member, container) { Init::Done } else { Init::Waiting };
    }
    match &container.phase {
        ContainerPhase::Running { .. } => {
            if resize::must_restart(view, observed, member, container) {
                draft.kill(observed, container, after(draft.now, view.grace()), KillReason::Resized);
            }
            Init::Waiting
        }
        ContainerPhase::Exited(exit) if exit.code == 0 => Init::Done,
        ContainerPhase::Exited(exit) if !member.restarts_after(view.restart_policy(), exit.code) => Init::Failed,
        ContainerPhase::Exited(_) | ContainerPhase::Created => {
            start(view, observed, member, draft);
            Init::Waiting
        }
        ContainerPhase::Unknown => {
            draft.kill(observed, container, after(draft.now, view.grace()), KillReason::Unknown);
            Init::Waiting
        }
    }
}

fn has_started(observed: &Observed, member: &Member<'_>, container: &ObservedContainer) -> bool {
    member.spec.startup_probe.is_none() || observed.probe(&container.id).startup == Some(true)
}

/// Starts the application's containers and keeps them running. Answers whether any of them has anything left to do.
///
/// They start side by side, save that one with a postStart hook holds back those after it until the hook is done: people
/// rely on that order (kubelet `SyncPod` starts them one by one).
fn app(view: &PodView<'_>, observed: &Observed, draft: &mut Draft) -> bool {
    let mut alive = false;
    let mut held_back = false;
    for member in view.app_members() {
        let name = member.name();
        if ended_for_good(view, observed, &member) && !observed.busy.starting.contains(name) {
            continue;
        }
        alive = true;
        if held_back {
            continue;
        }
        let before = draft.actions.len();
        keep_running(view, observed, &member, draft);
        let starts = draft.actions[before..].iter().any(|action| matches!(action, PodAction::StartContainer { .. }));
        let hook = member.spec.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
        held_back = hook && (starts || observed.busy.starting.contains(name));
    }
    alive
}

/// One container that is to run: starts it, starts it again, or kills it so that it can be.
fn keep_running(view: &PodView<'_>, observed: &Observed, member: &Member<'_>, draft: &mut Draft) {
    let Some(container) = observed.current(member.name()) else {
        return start(view, observed, member, draft);
    };
    match &container.phase {
        ContainerPhase::Running { .. } => {
            if let Some(reason) = reason_to_kill(view, observed, member, container) {
                let grace = probe_grace(member, reason).unwrap_or_else(|| view.grace());
                draft.kill(observed, container, after(draft.now, grace), reason);
            }
        }
        ContainerPhase::Created | ContainerPhase::Exited(_) => start(view, observed, member, draft),
        ContainerPhase::Unknown => {
            draft.kill(observed, container, after(draft.now, view.grace()), KillReason::Unknown);
        }
    }
}

fn reason_to_kill(
    view: &PodView<'_>,
    observed: &Observed,
    member: &Member<'_>,
    container: &ObservedContainer,
) -> Option<KillReason> {
    let facts = observed.probe(&container.id);
    if member.spec.startup_probe.is_some() && facts.startup == Some(false) {
        return Some(KillReason::StartupProbe);
    }
    if member.spec.liveness_probe.is_some() && facts.liveness == Some(false) {
        return Some(KillReason::LivenessProbe);
    }
    let changed = !container.spec_hash.is_empty() && container.spec_hash != spec_hash(member);
    if changed {
        return Some(KillReason::SpecChanged);
    }
    resize::must_restart(view, observed, member, container).then_some(KillReason::Resized)
}

/// A probe may name a grace of its own for the kill that it causes.
fn probe_grace(member: &Member<'_>, reason: KillReason) -> Option<std::time::Duration> {
    let probe = match reason {
        KillReason::StartupProbe => member.spec.startup_probe.as_ref(),
        KillReason::LivenessProbe => member.spec.liveness_probe.as_ref(),
        _ => None,
    };
    let seconds = probe?.termination_grace_period_seconds?;
    u64::try_from(seconds).ok().map(std::time::Duration::from_secs)
}

/// What, when it changes in the spec of a running container, has it restarted: the image is all that may change.
pub(crate) fn spec_hash(member: &Member<'_>) -> String {
    member.spec.image.clone().unwrap_or_default()
}

/// When a container may run again after `last`. A run of another image has no bearing on it: what is counted is the container
/// as it is specified (kubelet `GetBackoffKey`).
pub(crate) fn next_run(member: &Member<'_>, last: &ObservedContainer, now: Timestamp) -> Restart {
    if !last.spec_hash.is_empty() && last.spec_hash != spec_hash(member) {
        return Restart::Now { next_delay: std::time::Duration::ZERO };
    }
    restart(last, now)
}

/// Asks for the next run of a container unless it is under way, backs off or has just failed.
fn start(view: &PodView<'_>, observed: &Observed, member: &Member<'_>, draft: &mut Draft) {
    let name = member.name();
    if observed.busy.starting.contains(name) {
        return;
    }
    if let Some(failure) = observed.start_failures.get(name).filter(|failure| failure.retry_at > draft.now) {
        return draft.wake(failure.retry_at);
    }
    let newest = observed.newest(name);
    let restart_delay = match newest.map(|last| next_run(member, last, draft.now)) {
        None => std::time::Duration::ZERO,
        Some(Restart::Now { next_delay }) => next_delay,
        Some(Restart::At { at, .. }) => return draft.wake(at),
    };
    let attempt = newest.map_or_else(|| forgotten_runs(view, name), |last| last.attempt + 1);
    draft.push(PodAction::StartContainer { name: name.to_owned(), attempt, restart_delay });
}

/// The number of the next run of a container of which the runtime has no trace but the API may have.
pub(crate) fn forgotten_runs(view: &PodView<'_>, name: &str) -> u32 {
    let Some(status) = view.last_status(name) else { return 0 };
    let count = u32::try_from(status.restart_count).unwrap_or(0);
    if status.container_id.as_deref().is_some_and(|id| !id.is_empty()) { count + 1 } else { count }
}

/// Removes runs that nothing shows any more, and sandboxes that were replaced and stand empty.
fn prune(view: &PodView<'_>, observed: &Observed, draft: &mut Draft) {
    for member in view.members() {
        let runs = observed.containers.iter().filter(|container| container.name == member.name());
        for stale in runs.skip(RUNS_KEPT).filter(|container| !container.is_running()) {
            if !observed.busy.removing.contains(&stale.id) {
                draft.push(PodAction::RemoveContainer {
                    id: stale.id.clone(),
                    name: stale.name.clone(),
                    attempt: stale.attempt,
                });
            }
        }
    }
    for old in &observed.older_sandboxes {
        let holds = observed.containers.iter().any(|container| container.sandbox_id == old.id);
        if !holds && !observed.busy.removing.contains(&old.id) {
            draft.push(PodAction::RemoveSandbox { id: old.id.clone() });
        }
    }
}
