//! Pods, as printPod shows them.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::{NONE, at, condition, items, number, or_none, since, text};
use crate::meta;

/// Phase reasons under which a Pod that is being deleted is not "Terminating" but unknown.
const NODE_LOST: &str = "NodeLost";

/// What the columns Ready, Status and Restarts are made of.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: Restarts,
}

fn summary(pod: &Value) -> Summary {
    let phase = text(pod, "status.phase").to_owned();
    let reason = match text(pod, "status.reason") {
        "" => phase,
        reason => reason.to_owned(),
    };
    let gated = condition(pod, "PodScheduled").is_some_and(|c| text(c, "reason") == "SchedulingGated");
    let reason = if gated { "SchedulingGated".to_owned() } else { reason };
    let mut summary =
        Summary { reason, ready: 0, total: items(pod, "spec.containers").len(), restarts: Restarts::default() };
    let (initializing, sidecars) = summarize_init(pod, &mut summary);
    if !initializing || condition(pod, "Initialized").is_some_and(|c| text(c, "status") == "True") {
        // What ran to its end before the containers started no longer counts.
        summary.restarts = sidecars;
        summarize_containers(pod, &mut summary);
    }
    if meta::is_being_deleted(pod) {
        let phase = text(pod, "status.phase");
        if text(pod, "status.reason") == NODE_LOST {
            "Unknown".clone_into(&mut summary.reason);
        } else if phase != "Succeeded" && phase != "Failed" {
            "Terminating".clone_into(&mut summary.reason);
        }
    }
    summary
}

fn is_sidecar(pod: &Value, name: &str) -> bool {
    items(pod, "spec.initContainers").iter().any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always")
}

/// Restarts of some containers, and when the last of them was.
#[derive(Clone, Copy, Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += number(status, "restartCount");
        self.last = self.last.max(text(status, "lastState.terminated.finishedAt").parse().ok());
    }
}

/// Walks the init containers. Answers whether one is still under way, saying how far in the reason, and the restarts of
/// sidecars.
fn summarize_init(pod: &Value, summary: &mut Summary) -> (bool, Restarts) {
    let init_count = items(pod, "spec.initContainers").len();
    summary.total += items(pod, "spec.initContainers").iter().filter(|c| text(c, "restartPolicy") == "Always").count();
    let mut sidecars = Restarts::default();
    for (index, status) in items(pod, "status.initContainerStatuses").iter().enumerate() {
        summary.restarts.add(status);
        let sidecar = is_sidecar(pod, text(status, "name"));
        if sidecar {
            sidecars.add(status);
        }
        let terminated = at(status, "state.terminated");
        let waiting = text(status, "state.waiting.reason");
        if terminated.is_some_and(|t| number(t, "exitCode") == 0) {
            continue;
        }
        if sidecar && is(status, "started") {
            summary.ready += usize::from(is(status, "ready"));
            continue;
        }
        summary.reason = match terminated {
            Some(terminated) => format!("Init:{}", exit_reason(terminated)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{index}/{init_count}"),
        };
        return (true, sidecars);
    }
    (false, sidecars)
}

fn is(status: &Value, field: &str) -> bool {
    at(status, field).and_then(Value::as_bool) == Some(true)
}

fn exit_reason(terminated: &Value) -> String {
    let reason = text(terminated, "reason");
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match number(terminated, "signal") {
        0 => format!("ExitCode:{}", number(terminated, "exitCode")),
        signal => format!("Signal:{signal}"),
    }
}

fn summarize_containers(pod: &Value, summary: &mut Summary) {
    let mut running = false;
    for status in items(pod, "status.containerStatuses").iter().rev() {
        summary.restarts.add(status);
        let waiting = text(status, "state.waiting.reason");
        if !waiting.is_empty() {
            waiting.clone_into(&mut summary.reason);
        } else if let Some(terminated) = at(status, "state.terminated") {
            summary.reason = exit_reason(terminated);
        } else if is(status, "ready") && at(status, "state.running").is_some() {
            running = true;
            summary.ready += 1;
        }
    }
    // One container is done while others run: the Pod as a whole is not.
    if summary.reason == "Completed" && running {
        let ready = condition(pod, "Ready").is_some_and(|c| text(c, "status") == "True");
        if ready { "Running" } else { "NotReady" }.clone_into(&mut summary.reason);
    }
}

pub(super) fn ready(pod: &Value, _: Timestamp) -> Value {
    let summary = summary(pod);
    format!("{}/{}", summary.ready, summary.total).into()
}

pub(super) fn status(pod: &Value, _: Timestamp) -> Value {
    summary(pod).reason.into()
}

pub(super) fn restarts(pod: &Value, now: Timestamp) -> Value {
    let Restarts { count, last } = summary(pod).restarts;
    match last {
        Some(last) if count != 0 => format!("{count} ({} ago)", since(Some(&meta::format_time(last)), now)).into(),
        _ => count.to_string().into(),
    }
}

pub(super) fn ip(pod: &Value, _: Timestamp) -> Value {
    let first = items(pod, "status.podIPs").first().map(|ip| text(ip, "ip")).unwrap_or_default();
    or_none(if first.is_empty() { text(pod, "status.podIP") } else { first }.to_owned())
}

pub(super) fn readiness_gates(pod: &Value, _: Timestamp) -> Value {
    let gates = items(pod, "spec.readinessGates");
    if gates.is_empty() {
        return NONE.into();
    }
    let met = gates.iter().filter(|gate| {
        condition(pod, text(gate, "conditionType")).is_some_and(|condition| text(condition, "status") == "True")
    });
    format!("{}/{}", met.count(), gates.len()).into()
}

/// kubectl greys out rows of Pods that are done.
pub(super) fn row_conditions(obj: &Value) -> Vec<Value> {
    if meta::kind(obj) != "Pod" {
        return Vec::new();
    }
    let done = |reason: &str, message: &str| {
        vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
    };
    match text(obj, "status.phase") {
        "Succeeded" => done("Succeeded", "The pod has completed successfully."),
        "Failed" => done("Failed", "The pod failed."),
        _ => Vec::new(),
    }
}
