//! The conditions that the node owns (kubelet `pkg/kubelet/status/generate.go`).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::whole_seconds;
use crate::plan::{Observed, in_progress, is_under_way, needs_sandbox};
use crate::pod::{Member, PodView, Role};

/// The condition types that only the node writes. `PodScheduled` is the scheduler's, but a Pod on a node is scheduled by
/// definition, also one that came with its node name set.
pub(super) const OWNED: [&str; 8] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "PodResizePending",
    "PodResizeInProgress",
    "AllContainersRestarting",
];

/// A condition's value before it has a time.
struct Verdict {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    const YES: Self = Self { status: true, reason: None, message: None };

    fn no(reason: &'static str, message: impl Into<Option<String>>) -> Self {
        Self { status: false, reason: Some(reason), message: message.into() }
    }
}

pub(super) fn fill(view: &PodView<'_>, observed: &Observed, old: &PodStatus, status: &mut PodStatus, now: Timestamp) {
    let phase = status.phase.clone().unwrap_or_default();
    let sandbox = Verdict { status: !needs_sandbox(view, observed), reason: None, message: None };
    let containers = containers_ready(view, status, &phase);
    let ready = ready(view, old, &containers);
    let verdicts = [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized(view, status, &phase)),
        ("Ready", ready),
        ("ContainersReady", containers),
        ("PodScheduled", Verdict::YES),
    ];
    let restarting = restarting(view, observed, &phase);
    let foreign = old.conditions.iter().flatten().filter(|condition| !OWNED.contains(&condition.type_.as_str()));
    let mut conditions: Vec<PodCondition> = foreign.cloned().collect();
    let resizing = if observed.stopping_since.is_none() { resizing(view, observed) } else { Vec::new() };
    for (type_, verdict) in verdicts.into_iter().chain(restarting).chain(resizing) {
        let before = old.conditions.iter().flatten().find(|condition| condition.type_ == type_);
        conditions.push(stamp(view, type_, verdict, before, now));
    }
    status.conditions = Some(conditions);
}

/// Shown only by Pods whose containers may all start over (kubelet `pkg/kubelet/status/generate.go`,
/// GenerateAllContainersRestartingCondition).
fn restarting(view: &PodView<'_>, observed: &Observed, phase: &str) -> Option<(&'static str, Verdict)> {
    if !view.members().iter().any(Member::may_restart_all) {
        return None;
    }
    let verdict = match phase {
        "Succeeded" => Verdict::no("PodCompleted", None),
        "Failed" => Verdict::no("PodFailed", None),
        _ if is_under_way(view, observed) => Verdict {
            status: true,
            reason: Some("RestartAllContainersStarted"),
            message: Some("container exited with restart policy rule".to_owned()),
        },
        _ => Verdict { status: false, reason: None, message: None },
    };
    Some(("AllContainersRestarting", verdict))
}

/// Conditions that are there only while they hold (kubelet `pkg/kubelet/status`, resize conditions).
fn resizing(view: &PodView<'_>, observed: &Observed) -> Vec<(&'static str, Verdict)> {
    let resize = &observed.resize;
    let mut held = Vec::new();
    if let Some(pending) = &resize.pending {
        let message = Some(pending.message.clone());
        held.push(("PodResizePending", Verdict { status: true, reason: Some(pending.reason), message }));
    }
    if let Some(failure) = &resize.failure {
        let message = Some(failure.message.clone());
        held.push(("PodResizeInProgress", Verdict { status: true, reason: Some("Error"), message }));
    } else if in_progress(view, observed) {
        held.push(("PodResizeInProgress", Verdict::YES));
    }
    held
}

fn stamp(
    view: &PodView<'_>,
    type_: &str,
    verdict: Verdict,
    before: Option<&PodCondition>,
    now: Timestamp,
) -> PodCondition {
    let status = if verdict.status { "True" } else { "False" };
    let unchanged = before.filter(|before| before.status == status);
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        observed_generation: view.pod.metadata.generation,
        last_probe_time: None,
        last_transition_time: unchanged
            .and_then(|before| before.last_transition_time.clone())
            .or_else(|| Some(Time(whole_seconds(now)))),
    }
}

fn containers_ready(view: &PodView<'_>, status: &PodStatus, phase: &str) -> Verdict {
    let inits = view.init_members();
    let sidecars = inits.iter().filter(|member| member.role == Role::Sidecar).map(|member| member.name().to_owned());
    let names: Vec<String> = sidecars.chain(view.app_members().iter().map(|member| member.name().to_owned())).collect();
    let (unknown, unready) = sort_out(status, &names, |_, shown| shown.ready);
    if phase == "Succeeded" && unknown.is_empty() {
        return Verdict::no("PodCompleted", None);
    }
    if phase == "Failed" {
        return Verdict::no("PodFailed", None);
    }
    match complaint(&unknown, &unready, "unready") {
        Some(message) => Verdict::no("ContainersNotReady", message),
        None => Verdict::YES,
    }
}

fn ready(view: &PodView<'_>, old: &PodStatus, containers: &Verdict) -> Verdict {
    if !containers.status {
        return Verdict { status: false, reason: containers.reason, message: containers.message.clone() };
    }
    let gates = view.spec().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
    let complaints: Vec<String> = gates
        .iter()
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match old.conditions.iter().flatten().find(|condition| condition.type_ == *name) {
                None => Some(format!("corresponding condition of pod readiness gate {name:?} does not exist.")),
                Some(condition) if condition.status != "True" => {
                    Some(format!("the status of pod readiness gate {name:?} is not \"True\", but {}", condition.status))
                }
                Some(_) => None,
            }
        })
        .collect();
    if complaints.is_empty() { Verdict::YES } else { Verdict::no("ReadinessGatesNotReady", complaints.join(", ")) }
}

fn initialized(view: &PodView<'_>, status: &PodStatus, phase: &str) -> Verdict {
    let inits = view.init_members();
    let names: Vec<String> = inits.iter().map(|member| member.name().to_owned()).collect();
    let (unknown, incomplete) = sort_out(status, &names, |index, shown| match inits[index].role {
        Role::Sidecar => shown.started == Some(true),
        Role::Init | Role::App | Role::Ephemeral => shown.ready,
    });
    if phase == "Succeeded" && unknown.is_empty() {
        return Verdict { status: true, reason: Some("PodCompleted"), message: None };
    }
    let ran = |shown: &ContainerStatus| {
        let has_run = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
            state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
        };
        has_run(&shown.state) || has_run(&shown.last_state)
    };
    // Sidecars that restart later do not undo an initialisation.
    if status.container_statuses.iter().flatten().any(ran) {
        return Verdict::YES;
    }
    match complaint(&unknown, &incomplete, "incomplete") {
        Some(message) => Verdict::no("ContainersNotInitialized", message),
        None => Verdict::YES,
    }
}

/// Splits `names` into those without a status and those that do not pass `fine`.
fn sort_out<'a>(
    status: &PodStatus,
    names: &'a [String],
    fine: impl Fn(usize, &ContainerStatus) -> bool,
) -> (Vec<&'a str>, Vec<&'a str>) {
    let shown = || status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let (mut unknown, mut unfit) = (Vec::new(), Vec::new());
    for (index, name) in names.iter().enumerate() {
        match shown().find(|shown| shown.name == *name) {
            None => unknown.push(name.as_str()),
            Some(found) if !fine(index, found) => unfit.push(name.as_str()),
            Some(_) => {}
        }
    }
    (unknown, unfit)
}

/// `containers with unready status: [a b]`: lists in the way Go prints them.
fn complaint(unknown: &[&str], unfit: &[&str], word: &str) -> Option<String> {
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: [{}]", unknown.join(" ")));
    }
    if !unfit.is_empty() {
        parts.push(format!("containers with {word} status: [{}]", unfit.join(" ")));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}
