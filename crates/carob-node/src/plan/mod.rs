//! The decision: what has to be done for a Pod, from what it asks for and what is there. Pure; [`plan_pod`] is the entry.
//!
//! A plan never repeats what is under way ([`Busy`]) and is empty, but for the time at which to look again, when all is as
//! it should be.

mod observed;
mod resize;
mod restart;
mod restart_all;
mod run;
mod stop;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

pub use observed::{
    Busy, ContainerPhase, Exit, Failure, Observed, ObservedContainer, ObservedSandbox, ObservedUser, ProbeFacts,
    Volumes,
};
pub use resize::{Change, Group, Resize, ResizeFailure};
pub(crate) use resize::{difference, in_progress, is_whole_settled};
pub use restart::{Restart, next_delay, restart};
pub use restart_all::cycle;
pub(crate) use restart_all::is_under_way;
pub(crate) use run::{needs_sandbox, next_run, spec_hash};

use crate::config::resources::Limits;
use crate::eviction::EVICTED;
use crate::pod::PodView;

/// The least time between the signal and the kill of a container that is told to end (kubelet
/// `kuberuntime_container.go`, minimumGracePeriodInSeconds).
pub const GRACE_S_MIN: u64 = 2;

/// Runs of one container that are kept: the newest, and the one before it for `lastState` and `logs --previous` (kubelet
/// default `maximum-dead-containers-per-container` 1).
const RUNS_KEPT: usize = 2;

/// One step. Steps of one plan are independent of each other and may be done at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodAction {
    MountVolumes,
    /// Makes a sandbox; `replaces` is stopped first.
    CreateSandbox {
        attempt: u32,
        replaces: Option<String>,
    },
    /// Pulls the image where needed, creates, starts, and runs the postStart hook.
    StartContainer {
        name: String,
        attempt: u32,
        restart_delay: std::time::Duration,
    },
    /// Runs the preStop hook and ends the container by `deadline`.
    KillContainer {
        id: String,
        name: String,
        deadline: Timestamp,
        reason: KillReason,
    },
    RemoveContainer {
        id: String,
        name: String,
        attempt: u32,
    },
    StopSandbox {
        id: String,
    },
    RemoveSandbox {
        id: String,
    },
    /// Sets the limits of the Pod as a whole, or takes them away.
    LimitPod {
        limits: Option<Limits>,
    },
    /// Changes the resources of running containers.
    Resize {
        changes: Vec<Change>,
    },
    /// Nothing runs any more: unmount, tell the API.
    Finish,
}

/// Why a container is ended by the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillReason {
    PodDeleted,
    /// `activeDeadlineSeconds`.
    DeadlineExceeded,
    /// The Pod has no more to do; only sidecars are left.
    PodFinished,
    LivenessProbe,
    StartupProbe,
    /// The image in the spec changed.
    SpecChanged,
    /// It has other resources than it was given since, and its policy asks for a restart.
    Resized,
    SandboxLost,
    /// A container ended with a code that has all of them start over.
    RestartAll,
    /// The runtime does not know its state.
    Unknown,
}

/// Why a step failed: the reason that a waiting container shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureReason {
    ErrImagePull,
    ImagePullBackOff,
    ErrImageNeverPull,
    InvalidImageName,
    ImageInspectError,
    CreateContainerConfigError,
    CreateContainerError,
    RunContainerError,
    PostStartHookError,
    CrashLoopBackOff,
    /// Making the sandbox or mounting volumes: the containers go on saying ContainerCreating.
    PodSetup,
}

impl FailureReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ErrImagePull => "ErrImagePull",
            Self::ImagePullBackOff => "ImagePullBackOff",
            Self::ErrImageNeverPull => "ErrImageNeverPull",
            Self::InvalidImageName => "InvalidImageName",
            Self::ImageInspectError => "ImageInspectError",
            Self::CreateContainerConfigError => "CreateContainerConfigError",
            Self::CreateContainerError => "CreateContainerError",
            Self::RunContainerError => "RunContainerError",
            Self::PostStartHookError => "PostStartHookError",
            Self::CrashLoopBackOff => "CrashLoopBackOff",
            Self::PodSetup => "ContainerCreating",
        }
    }
}

/// What the node wants of a Pod as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    Run,
    /// End everything by `deadline`.
    Stop {
        deadline: Timestamp,
        reason: KillReason,
    },
}

/// What to do now, and when to look again if nothing happens before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPlan {
    pub intent: Intent,
    pub actions: Vec<PodAction>,
    pub wake_at: Option<Timestamp>,
}

/// Decides what to do for `pod` now.
pub fn plan_pod(pod: &Pod, observed: &Observed, now: Timestamp) -> PodPlan {
    let view = PodView::new(pod);
    let mut draft = Draft::new(now);
    let intent = match intent(&view, observed, now) {
        stop @ Intent::Stop { .. } => stop,
        Intent::Run => run::plan(&view, observed, &mut draft),
    };
    let intent = match (intent, observed.end_by) {
        (Intent::Stop { deadline, reason }, Some(by)) => Intent::Stop { deadline: deadline.min(by), reason },
        (intent, _) => intent,
    };
    if let Intent::Stop { deadline, reason } = intent {
        draft.actions.clear();
        stop::plan(&view, observed, deadline, reason, &mut draft);
    } else if let Some(deadline) = view.active_deadline() {
        draft.wake(deadline);
    }
    PodPlan { intent, actions: draft.actions, wake_at: draft.wake_at }
}

fn intent(view: &PodView<'_>, observed: &Observed, now: Timestamp) -> Intent {
    let since = observed.stopping_since.unwrap_or(now);
    let by = |grace| Intent::Stop { deadline: after(since, grace), reason: KillReason::PodDeleted };
    if view.deletion().is_some() {
        // A forced deletion still gives the runtime a second to end things (kubelet calculateEffectiveGracePeriod).
        return by(view.grace().max(std::time::Duration::from_secs(1)));
    }
    let stop = |reason| Intent::Stop { deadline: after(since, view.grace()), reason };
    if view.active_deadline().is_some_and(|deadline| deadline <= now) {
        return stop(KillReason::DeadlineExceeded);
    }
    if view.is_terminal() {
        let evicted = view.pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some(EVICTED);
        if evicted {
            // There is no time to lose (kubelet `immediateEvictionGracePeriodSeconds`).
            let deadline = after(since, std::time::Duration::from_secs(1));
            return Intent::Stop { deadline, reason: KillReason::PodFinished };
        }
        return stop(KillReason::PodFinished);
    }
    Intent::Run
}

/// A plan in the making.
struct Draft {
    now: Timestamp,
    actions: Vec<PodAction>,
    wake_at: Option<Timestamp>,
}

impl Draft {
    fn new(now: Timestamp) -> Self {
        Self { now, actions: Vec::new(), wake_at: None }
    }

    fn push(&mut self, action: PodAction) {
        self.actions.push(action);
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Asks for a kill unless one that is at least as soon is under way.
    fn kill(&mut self, observed: &Observed, container: &ObservedContainer, deadline: Timestamp, reason: KillReason) {
        let sooner = |under_way: &Timestamp| *under_way <= after(deadline, std::time::Duration::from_secs(1));
        if observed.busy.killing.get(&container.id).is_some_and(sooner) {
            return;
        }
        let (id, name) = (container.id.clone(), container.name.clone());
        self.push(PodAction::KillContainer { id, name, deadline, reason });
    }
}

/// `time + delay`; the end of the calendar where that is past it.
pub(crate) fn after(time: Timestamp, delay: std::time::Duration) -> Timestamp {
    time.checked_add(delay).unwrap_or(Timestamp::MAX)
}
