//! Ending one container: preStop, then the signal, then, at the deadline, force.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use carob_cri::CriError;
use carob_cri::v1::StopContainerRequest;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use super::tools::Tools;
use crate::events::Subject;
use crate::hooks;
use crate::plan::{GRACE_S_MIN, KillReason};
use crate::pod::{Member, PodView};
use crate::probe::Target;

pub(super) struct Kill {
    pub pod: Arc<Pod>,
    pub id: String,
    pub name: String,
    pub deadline: Timestamp,
    pub reason: KillReason,
    pub pod_ips: Vec<IpAddr>,
    /// Another kill of the same container hastens this one: its hook is given up and the other one signals.
    pub overtaken: CancellationToken,
    /// The first kill says so in an event; one that only hastens it does not.
    pub announce: bool,
}

pub(super) async fn run(tools: &Tools, kill: &Kill) -> Result<(), CriError> {
    let member = PodView::new(&kill.pod).member(&kill.name);
    if let Some(member) = &member {
        if kill.announce {
            announce(tools, kill, member);
        }
        // Nothing is done for a container that gets no grace (kubelet `killContainer`).
        if kill.reason != KillReason::RestartAll {
            pre_stop(tools, kill, member).await;
        }
    }
    if kill.overtaken.is_cancelled() {
        return Ok(());
    }
    let least = if kill.reason == KillReason::RestartAll { 0 } else { GRACE_S_MIN };
    let left = remaining(tools, kill).max(Duration::from_secs(least));
    let timeout = i64::try_from(left.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
    let stop = StopContainerRequest { container_id: kill.id.clone(), timeout };
    let stopped = tools.operation("stop_container", tools.cri.stop_container(stop)).await;
    match stopped {
        Err(error) if error.is_not_found() => Ok(()),
        stopped => stopped.map(|_| ()),
    }
}

fn remaining(tools: &Tools, kill: &Kill) -> Duration {
    Duration::try_from(kill.deadline.duration_since(tools.clock.now())).unwrap_or(Duration::ZERO)
}

fn announce(tools: &Tools, kill: &Kill, member: &Member<'_>) {
    let name = &kill.name;
    let message = match kill.reason {
        KillReason::LivenessProbe => format!("Container {name} failed liveness probe, will be restarted"),
        KillReason::StartupProbe => format!("Container {name} failed startup probe, will be restarted"),
        KillReason::SpecChanged => format!("Container {name} definition changed, will be restarted"),
        KillReason::Resized => format!("Container {name} resize requires restart"),
        KillReason::RestartAll => format!("Container {name} will be restarted with all containers of its pod"),
        KillReason::Unknown => format!("Container {name} is in an unknown state, try killing it before restart"),
        KillReason::PodDeleted | KillReason::DeadlineExceeded | KillReason::PodFinished | KillReason::SandboxLost => {
            format!("Stopping container {name}")
        }
    };
    tools.events.normal(&Subject::container(&kill.pod, member), "Killing", message);
}

/// Runs the hook, for as long as the grace lasts. A hook that fails is told of and holds nothing up.
async fn pre_stop(tools: &Tools, kill: &Kill, member: &Member<'_>) {
    let Some(hook) = member.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) else { return };
    let target = Target {
        container_id: kill.id.clone(),
        container: Arc::new(member.spec.clone().into_owned()),
        pod_ip: tools.field_facts(&kill.pod, &kill.pod_ips).pod_ips.first().copied(),
    };
    let why = tokio::select! {
        done = hooks::run(&tools.cri, hook, &target) => match done {
            Ok(()) => return,
            Err(error) => format!("PreStopHook failed: {error}"),
        },
        () = tokio::time::sleep(remaining(tools, kill)) => "PreStopHook failed: it did not end within the grace".to_owned(),
        () = kill.overtaken.cancelled() => return,
    };
    tools.events.warning(&Subject::container(&kill.pod, member), "FailedPreStopHook", why);
}
