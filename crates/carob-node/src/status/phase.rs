//! The phase: one word for the state of all containers together (kubelet `pkg/kubelet/kubelet_pods.go`, getPhase).

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};

use crate::plan::Observed;
use crate::pod::{Member, PodView, Role};

/// Where one container stands, as far as the phase cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Never ran, and waits to.
    Waiting,
    Running {
        started: bool,
    },
    /// Ended; `again` when another run follows.
    Stopped {
        code: i32,
        again: bool,
    },
    Unknown,
}

/// `over`: the Pod is being ended for good, so nothing restarts any more.
pub(super) fn phase(view: &PodView<'_>, observed: &Observed, status: &PodStatus, over: bool) -> &'static str {
    let inits: Vec<_> = view.init_members();
    let standing = |member: &Member<'_>| standing(view, observed, member, status);
    let regular = || inits.iter().filter(|member| member.role == Role::Init).map(standing);
    let sidecars: Vec<_> = inits.iter().filter(|member| member.role == Role::Sidecar).map(standing).collect();
    let apps: Vec<_> = view.app_members().iter().map(standing).collect();

    if regular().any(|init| matches!(init, Standing::Stopped { code, again: false } if code != 0)) {
        return "Failed";
    }
    let init_pending =
        regular().any(|init| matches!(init, Standing::Waiting | Standing::Running { .. } | Standing::Unknown));
    let initialised = apps.iter().any(|app| matches!(app, Standing::Running { .. } | Standing::Stopped { .. }));
    let pending =
        |sidecar: &Standing| !matches!(sidecar, Standing::Running { started: true } | Standing::Stopped { .. });
    let sidecar_pending = !initialised && sidecars.iter().any(pending);

    let all = || sidecars.iter().chain(&apps);
    let running = all().any(|it| matches!(it, Standing::Running { .. }));
    let unknown = all().any(|it| matches!(it, Standing::Unknown));
    let waiting = all().any(|it| matches!(it, Standing::Waiting));
    if init_pending || sidecar_pending || waiting || unknown {
        return "Pending";
    }
    if running {
        return "Running";
    }
    if apps.is_empty() {
        return "Pending";
    }
    let again = apps.iter().any(|app| matches!(app, Standing::Stopped { again: true, .. }));
    if again && !over {
        return "Running";
    }
    let failed = apps.iter().any(|app| matches!(app, Standing::Stopped { code, .. } if *code != 0));
    if failed { "Failed" } else { "Succeeded" }
}

fn standing(view: &PodView<'_>, observed: &Observed, member: &Member<'_>, status: &PodStatus) -> Standing {
    let Some(shown) = find(status, member) else { return Standing::Unknown };
    let Some(state) = &shown.state else { return Standing::Unknown };
    if state.running.is_some() {
        return Standing::Running { started: shown.started == Some(true) };
    }
    let ended =
        state.terminated.as_ref().or_else(|| shown.last_state.as_ref().and_then(|last| last.terminated.as_ref()));
    match ended {
        Some(end) => {
            let outdated = observed.newest(member.name()).is_some_and(|run| observed.is_outdated(run));
            let again = outdated || member.restarts_after(view.restart_policy(), end.exit_code);
            Standing::Stopped { code: end.exit_code, again }
        }
        None if state.waiting.is_some() => Standing::Waiting,
        None => Standing::Unknown,
    }
}

fn find<'a>(status: &'a PodStatus, member: &Member<'_>) -> Option<&'a ContainerStatus> {
    let list = match member.role {
        Role::Init | Role::Sidecar => &status.init_container_statuses,
        Role::App => &status.container_statuses,
        Role::Ephemeral => &status.ephemeral_container_statuses,
    };
    list.as_deref()?.iter().find(|shown| shown.name == member.name())
}
