//! The statuses of the containers (kubelet `pkg/kubelet/kubelet_pods.go`, convertToAPIContainerStatuses).

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, LinuxContainerUser, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{NodeFacts, whole_seconds};
use crate::plan::{ContainerPhase, Exit, FailureReason, Observed, ObservedContainer, Restart, difference, next_run};
use crate::pod::{Member, PodView, Role};

/// Exit code of a container that vanished without telling one (kubelet, "ContainerStatusUnknown").
const EXIT_UNKNOWN: i32 = 137;

/// What a container shows that waits because all of its Pod start over (kubelet `pkg/kubelet/kubelet_pods.go`).
const RESTARTING_ALL: &str = "RestartingAllContainers";
const RESTARTING_ALL_MESSAGE: &str = "The container waits for all containers of the pod to restart in place";

pub(super) fn fill(view: &PodView<'_>, observed: &Observed, facts: &NodeFacts, status: &mut PodStatus) {
    let build = |members: Vec<Member<'_>>| -> Option<Vec<ContainerStatus>> {
        let list: Vec<_> = members.iter().map(|member| one(view, observed, facts, member)).collect();
        (!list.is_empty()).then_some(list)
    };
    status.init_container_statuses = build(view.init_members());
    status.ephemeral_container_statuses = build(view.ephemeral_members());
    let mut apps = build(view.app_members());
    // Sorted by name, as upstream shows them; init containers keep their order.
    if let Some(list) = &mut apps {
        list.sort_by(|a, b| a.name.cmp(&b.name));
    }
    status.container_statuses = apps;
}

fn one(view: &PodView<'_>, observed: &Observed, node: &NodeFacts, member: &Member<'_>) -> ContainerStatus {
    let mut runs = observed.containers.iter().filter(|container| container.name == member.name());
    let mut shown = match runs.next() {
        Some(newest) => seen(view, node, member, newest, runs.next()),
        None => unseen(view, observed, member),
    };
    why_waiting(view, observed, member, &mut shown);
    let running = shown.state.as_ref().is_some_and(|state| state.running.is_some());
    let facts = observed.newest(member.name()).map(|run| observed.probe(&run.id)).unwrap_or_default();
    let hook_done = !observed.busy.starting.contains(member.name());
    let started = running && hook_done && (member.spec.startup_probe.is_none() || facts.startup == Some(true));
    shown.started = (member.role != Role::Ephemeral).then_some(started);
    shown.ready = match member.role {
        Role::Init => ended_well(&shown),
        Role::Sidecar | Role::App => {
            started && (member.spec.readiness_probe.is_none() || facts.readiness == Some(true))
        }
        Role::Ephemeral => false,
    };
    shown
}

fn ended_well(shown: &ContainerStatus) -> bool {
    let terminated = shown.state.as_ref().and_then(|state| state.terminated.as_ref());
    terminated.is_some_and(|end| end.exit_code == 0)
}

/// A container that the runtime knows.
fn seen(
    view: &PodView<'_>,
    node: &NodeFacts,
    member: &Member<'_>,
    newest: &ObservedContainer,
    before: Option<&ObservedContainer>,
) -> ContainerStatus {
    let old = view.last_status(member.name());
    let allocated = member.spec.resources.clone().unwrap_or_default();
    let mut shown = ContainerStatus {
        name: member.name().to_owned(),
        restart_count: i32::try_from(newest.attempt).unwrap_or(i32::MAX),
        image: newest.image.clone(),
        image_id: newest.image_ref.clone(),
        container_id: Some(node.container_id(&newest.id)),
        volume_mounts: volume_mounts(member),
        allocated_resources: allocated.requests.clone(),
        // What it was given shows once it has it.
        resources: match difference(view, member, newest) {
            None => Some(allocated),
            Some(_) => old.and_then(|old| old.resources.clone()).or(Some(allocated)),
        },
        user: newest.user.as_ref().map(|user| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: user.uid,
                gid: user.gid,
                supplemental_groups: Some(user.supplemental_groups.clone()).filter(|groups| !groups.is_empty()),
            }),
        }),
        ..ContainerStatus::default()
    };
    let state = match &newest.phase {
        ContainerPhase::Running { started_at } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(whole_seconds(*started_at))) }),
            ..ContainerState::default()
        },
        ContainerPhase::Exited(exit) => terminated(node, newest, exit),
        ContainerPhase::Created | ContainerPhase::Unknown => waiting(default_reason(view), None),
    };
    shown.state = Some(state);
    shown.last_state = match before {
        Some(run) => run.exit().map(|exit| terminated(node, run, exit)),
        // The run before may be forgotten here while the API still shows it.
        None if newest.attempt > 0 => old.and_then(|old| earlier_end(old, shown.container_id.as_deref())),
        None => None,
    };
    shown
}

/// How a run before the one with `id` ended, from what the API showed.
fn earlier_end(old: &ContainerStatus, id: Option<&str>) -> Option<ContainerState> {
    let now = old
        .state
        .clone()
        .filter(|state| state.terminated.as_ref().is_some_and(|end| end.container_id.as_deref() != id));
    now.or_else(|| old.last_state.clone())
}

/// A container of which the runtime has no trace: it has not run yet, or it was lost.
fn unseen(view: &PodView<'_>, observed: &Observed, member: &Member<'_>) -> ContainerStatus {
    let mut shown = ContainerStatus {
        name: member.name().to_owned(),
        image: member.spec.image.clone().unwrap_or_default(),
        volume_mounts: volume_mounts(member),
        state: Some(waiting(default_reason(view), None)),
        ..ContainerStatus::default()
    };
    let initialised = view.app_members().iter().any(|app| observed.newest(app.name()).is_some());
    if member.role == Role::Init && initialised {
        shown.state = Some(forgotten_init());
        return shown;
    }
    let Some(old) = view.last_status(member.name()) else { return shown };
    let old_state = old.state.clone().unwrap_or_default();
    if old_state.terminated.is_some() {
        return old.clone();
    }
    shown.restart_count = old.restart_count;
    shown.last_state.clone_from(&old.last_state);
    let has_end = shown.last_state.as_ref().is_some_and(|last| last.terminated.is_some());
    if old_state.running.is_some() && !has_end {
        shown.last_state = Some(ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: EXIT_UNKNOWN,
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some(
                    "The container could not be located when the pod was deleted.  The container used to be Running"
                        .to_owned(),
                ),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        });
        if view.deletion().is_none() {
            shown.restart_count += 1;
        }
    }
    shown
}

/// Nothing of the Pod runs or will run: containers that still wait have ended too, how is not known (kubelet
/// `pkg/kubelet/status/status_manager.go`, TerminatePod). Those that initialisation never came to stay as they are.
pub(super) fn terminate(view: &PodView<'_>, status: &mut PodStatus) {
    let waits = |shown: &ContainerStatus| shown.state.as_ref().is_some_and(|state| state.waiting.is_some());
    let has_ended = |shown: &ContainerStatus| shown.last_state.as_ref().is_some_and(|last| last.terminated.is_some());
    let tried = |shown: &ContainerStatus| !waits(shown) || has_ended(shown);
    if is_initialised(view, status, tried) {
        status.container_statuses.iter_mut().flatten().for_each(end);
    }
    if let Some(inits) = &mut status.init_container_statuses {
        let last_tried = inits.iter().rposition(tried).unwrap_or(0);
        inits.iter_mut().take(last_tried + 1).for_each(end);
    }
}

fn is_initialised(view: &PodView<'_>, status: &PodStatus, tried: impl Fn(&ContainerStatus) -> bool) -> bool {
    let members = view.init_members();
    let Some(last) = members.last() else { return true };
    let shown = status.init_container_statuses.iter().flatten().find(|shown| shown.name == last.name());
    let last_done = shown.is_some_and(|shown| match last.role {
        Role::Sidecar => shown.started == Some(true),
        Role::Init | Role::App | Role::Ephemeral => {
            let ends = [&shown.state, &shown.last_state].into_iter().flatten().filter_map(|it| it.terminated.as_ref());
            ends.into_iter().any(|end| end.exit_code == 0)
        }
    });
    last_done || status.container_statuses.iter().flatten().any(tried)
}

fn end(shown: &mut ContainerStatus) {
    if shown.state.as_ref().is_some_and(|state| state.terminated.is_some()) {
        return;
    }
    shown.state = Some(ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: EXIT_UNKNOWN,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    });
    shown.started = shown.started.map(|_| false);
    shown.ready = false;
}

fn forgotten_init() -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 0,
            reason: Some("Completed".to_owned()),
            message: Some(
                "Unable to get init container status from container runtime and pod has been initialized, treat it as \
                 exited normally"
                    .to_owned(),
            ),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

/// Says why a container that is to run does not: the last failure to start it, or its back-off.
fn why_waiting(view: &PodView<'_>, observed: &Observed, member: &Member<'_>, shown: &mut ContainerStatus) {
    let newest = observed.newest(member.name());
    if newest.is_some_and(ObservedContainer::is_running) || observed.stopping_since.is_some() {
        return;
    }
    if observed.ended_for_good(member, view.restart_policy()).is_some() {
        return;
    }
    let outdated = newest.is_some_and(|run| observed.is_outdated(run));
    let reason = match observed.start_failures.get(member.name()) {
        Some(failure) => Some((failure.reason.as_str(), failure.message.clone())),
        None => newest.and_then(|run| back_off(view, member, run)),
    };
    let reason = reason.or_else(|| outdated.then(|| (RESTARTING_ALL, RESTARTING_ALL_MESSAGE.to_owned())));
    let Some((reason, message)) = reason else { return };
    if let Some(state) = shown.state.take().filter(|state| state.terminated.is_some()) {
        shown.last_state = Some(state);
    }
    shown.state = Some(waiting(reason, Some(message)));
}

/// The back-off of a run that ended, from its end until the next run shows up, like upstream's reason cache.
fn back_off(view: &PodView<'_>, member: &Member<'_>, run: &ObservedContainer) -> Option<(&'static str, String)> {
    let exit = run.exit()?;
    match next_run(member, run, exit.finished_at) {
        Restart::Now { .. } => None,
        Restart::At { delay, .. } => {
            let pod = crate::pod::PodId::of(view.pod);
            let delay = go_duration(delay.as_secs());
            let message = format!("back-off {delay} restarting failed container={} pod={pod}", run.name);
            Some((FailureReason::CrashLoopBackOff.as_str(), message))
        }
    }
}

/// Whole seconds as Go's `time.Duration` prints them: `40s`, `2m40s`, `5m0s`.
pub(crate) fn go_duration(seconds: u64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, rest) => format!("{rest}s"),
        (minutes, rest) if minutes < 60 => format!("{minutes}m{rest}s"),
        (minutes, rest) => format!("{}h{}m{rest}s", minutes / 60, minutes % 60),
    }
}

fn default_reason(view: &PodView<'_>) -> &'static str {
    if view.init_members().is_empty() { "ContainerCreating" } else { "PodInitializing" }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn terminated(node: &NodeFacts, run: &ObservedContainer, exit: &Exit) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(node.container_id(&run.id)),
            exit_code: exit.code,
            finished_at: Some(Time(whole_seconds(exit.finished_at))),
            started_at: exit.started_at.map(|time| Time(whole_seconds(time))),
            reason: Some(exit.reason.clone()).filter(|reason| !reason.is_empty()),
            message: Some(exit.message.clone()).filter(|message| !message.is_empty()),
            signal: None,
        }),
        ..ContainerState::default()
    }
}

fn volume_mounts(member: &Member<'_>) -> Option<Vec<VolumeMountStatus>> {
    let mounts = member.spec.volume_mounts.as_deref()?;
    let shown = mounts.iter().map(|mount| {
        let read_only = mount.read_only.unwrap_or(false);
        VolumeMountStatus {
            mount_path: mount.mount_path.clone(),
            name: mount.name.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| match mount.recursive_read_only.as_deref() {
                Some("Enabled" | "IfPossible") => "Enabled".to_owned(),
                _ => "Disabled".to_owned(),
            }),
            ..VolumeMountStatus::default()
        }
    });
    Some(shown.collect())
}
