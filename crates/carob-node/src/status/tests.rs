use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::allocation::Pending;
use crate::config::resources::Limits;
use crate::plan::{
    ContainerPhase, Exit, Failure, FailureReason, ObservedContainer, ObservedSandbox, ProbeFacts, ResizeFailure,
    Volumes, plan_pod,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("within the calendar")
}

fn pod(spec: Value, status: Value) -> Pod {
    let mut spec = spec;
    if spec["containers"].is_null() {
        spec["containers"] = json!([{"name": "app", "image": "app:1"}]);
    }
    let metadata = json!({"name": "p", "namespace": "ns", "uid": "u", "generation": 1});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).expect("a Pod")
}

fn up(containers: Vec<ObservedContainer>) -> Observed {
    let ip = "10.1.0.2".parse().expect("an address");
    let sandbox = ObservedSandbox { id: "s0".to_owned(), attempt: 0, ready: true, ips: vec![ip] };
    Observed { sandbox: Some(sandbox), volumes: Volumes::Mounted, containers, ..Observed::default() }
}

fn run(name: &str, attempt: u32, phase: ContainerPhase) -> ObservedContainer {
    ObservedContainer {
        id: format!("{name}-{attempt}"),
        sandbox_id: "s0".to_owned(),
        name: name.to_owned(),
        attempt,
        created_at: at(100),
        phase,
        image: "app:1".to_owned(),
        image_ref: "sha256:1".to_owned(),
        restart_delay: Duration::ZERO,
        cycle: 0,
        spec_hash: String::new(),
        user: None,
        memory_request: None,
        limits: None,
    }
}

fn running() -> ContainerPhase {
    ContainerPhase::Running { started_at: at(100) }
}

fn exited(code: i32) -> ContainerPhase {
    let reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
    ContainerPhase::Exited(Exit {
        code,
        reason,
        message: String::new(),
        started_at: Some(at(100)),
        finished_at: at(150),
    })
}

fn status(pod: &Pod, observed: &Observed) -> PodStatus {
    let facts = NodeFacts { ips: vec!["192.0.2.1".parse().expect("an address")], runtime: "carob".to_owned() };
    status_for(pod, observed, plan_pod(pod, observed, at(200)).intent, &facts, at(200))
}

/// `phase; name state restarts ready; ..; Condition=False(reason: message)`: what a table's reader would look at.
fn show(status: &PodStatus) -> String {
    let mut parts = vec![status.phase.clone().unwrap_or_default()];
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    for shown in lists.into_iter().flatten().flatten() {
        let state = shown.state.clone().unwrap_or_default();
        let word = match (state.running, state.waiting, state.terminated) {
            (Some(_), ..) => "running".to_owned(),
            (_, Some(waiting), _) => format!("waiting {}", waiting.reason.unwrap_or_default()),
            (.., Some(end)) => format!("exit {} {}", end.exit_code, end.reason.unwrap_or_default()),
            _ => "none".to_owned(),
        };
        let ready = if shown.ready { " ready" } else { "" };
        parts.push(format!("{} {word} #{}{ready}", shown.name, shown.restart_count));
    }
    for condition in status.conditions.iter().flatten().filter(|condition| condition.status == "False") {
        let reason = condition.reason.clone().unwrap_or_default();
        parts.push(format!("!{} {reason}: {}", condition.type_, condition.message.clone().unwrap_or_default()));
    }
    parts.join("; ")
}

#[track_caller]
fn check(spec: Value, observed: &Observed, expect: &str) {
    assert_eq!(show(&status(&pod(spec, json!({})), observed)), expect);
}

#[test]
fn before_anything_runs() {
    check(
        json!({}),
        &Observed::default(),
        "Pending; app waiting ContainerCreating #0; !PodReadyToStartContainers : ; \
         !Ready ContainersNotReady: containers with unready status: [app]; \
         !ContainersReady ContainersNotReady: containers with unready status: [app]",
    );
    check(
        json!({"initContainers": [{"name": "i"}]}),
        &up(vec![run("i", 0, running())]),
        "Pending; i running #0; app waiting PodInitializing #0; \
         !Initialized ContainersNotInitialized: containers with incomplete status: [i]; \
         !Ready ContainersNotReady: containers with unready status: [app]; \
         !ContainersReady ContainersNotReady: containers with unready status: [app]",
    );
}

#[test]
fn phases_follow_the_restart_policy() {
    check(json!({}), &up(vec![run("app", 0, running())]), "Running; app running #0 ready");
    let tail = |reason: &str| format!("; !Ready {reason}: ; !ContainersReady {reason}: ");
    for (policy, code, phase, reason) in [
        ("Never", 0, "Succeeded; app exit 0 Completed", "PodCompleted"),
        ("Never", 1, "Failed; app exit 1 Error", "PodFailed"),
        ("OnFailure", 0, "Succeeded; app exit 0 Completed", "PodCompleted"),
    ] {
        let observed = up(vec![run("app", 0, exited(code))]);
        check(json!({"restartPolicy": policy}), &observed, &format!("{phase} #0{}", tail(reason)));
    }
    let shown = status(&pod(json!({}), json!({})), &up(vec![run("app", 0, exited(1))]));
    assert_eq!(shown.phase.as_deref(), Some("Running"), "a container that restarts keeps its Pod running");
}

#[test]
fn a_crash_loop_shows_its_delay_and_the_last_end() {
    let mut crashed = run("app", 3, exited(1));
    crashed.restart_delay = Duration::from_secs(160);
    let shown = status(&pod(json!({}), json!({})), &up(vec![crashed]));
    let app = &shown.container_statuses.expect("one container")[0];
    let waiting = app.state.clone().and_then(|state| state.waiting).expect("it waits");
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(waiting.message.as_deref(), Some("back-off 2m40s restarting failed container=app pod=p_ns(u)"));
    let last = app.last_state.clone().and_then(|state| state.terminated).expect("it ended");
    assert_eq!((last.exit_code, last.container_id.as_deref()), (1, Some("carob://app-3")));
    assert_eq!(app.restart_count, 3);
}

#[test]
fn a_failed_start_says_why() {
    let mut observed = up(Vec::new());
    let failure = Failure { reason: FailureReason::ErrImagePull, message: "no route".to_owned(), retry_at: at(210) };
    observed.start_failures.insert("app".to_owned(), failure);
    let shown = status(&pod(json!({}), json!({})), &observed);
    assert!(show(&shown).starts_with("Pending; app waiting ErrImagePull #0;"), "{}", show(&shown));
}

#[test]
fn probes_decide_started_and_ready() {
    let spec = json!({"containers": [{"name": "app", "startupProbe": {"tcpSocket": {"port": 1}},
        "readinessProbe": {"tcpSocket": {"port": 1}}}]});
    let mut observed = up(vec![run("app", 0, running())]);
    let started = |observed: &Observed| {
        let shown = status(&pod(spec.clone(), json!({})), observed);
        let app = &shown.container_statuses.expect("one container")[0];
        (app.started, app.ready)
    };
    assert_eq!(started(&observed), (Some(false), false));
    observed.probes.insert("app-0".to_owned(), ProbeFacts { startup: Some(true), ..ProbeFacts::default() });
    assert_eq!(started(&observed), (Some(true), false));
    let all = ProbeFacts { startup: Some(true), readiness: Some(true), liveness: None };
    observed.probes.insert("app-0".to_owned(), all);
    assert_eq!(started(&observed), (Some(true), true));
}

#[test]
fn readiness_gates_hold_back_ready_alone() {
    let spec = json!({"readinessGates": [{"conditionType": "x/a"}, {"conditionType": "x/b"}]});
    let old = json!({"conditions": [{"type": "x/b", "status": "False"}]});
    let shown = status(&pod(spec, old), &up(vec![run("app", 0, running())]));
    assert_eq!(
        show(&shown),
        "Running; app running #0 ready; !x/b : ; !Ready ReadinessGatesNotReady: corresponding condition of pod \
         readiness gate \"x/a\" does not exist., the status of pod readiness gate \"x/b\" is not \"True\", but False"
    );
}

#[test]
fn a_deadline_fails_the_pod_and_a_terminal_phase_stays() {
    let old = json!({"startTime": "1970-01-01T00:02:00Z"});
    let shown = status(&pod(json!({"activeDeadlineSeconds": 10}), old), &up(vec![run("app", 0, running())]));
    assert_eq!(shown.reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(shown.phase.as_deref(), Some("Failed"));
    let old = json!({"phase": "Succeeded"});
    let shown = status(&pod(json!({}), old), &up(vec![run("app", 0, exited(1))]));
    assert_eq!(shown.phase.as_deref(), Some("Succeeded"));
}

#[test]
fn transition_times_move_only_with_the_status() {
    let first = status(&pod(json!({}), json!({})), &up(vec![run("app", 0, running())]));
    let old = serde_json::to_value(&first).expect("a status");
    let observed = up(vec![run("app", 0, running())]);
    let again = status_for(&pod(json!({}), old), &observed, Intent::Run, &NodeFacts::default(), at(999));
    assert_eq!(again.conditions, first.conditions);
    assert_eq!(again.start_time, first.start_time);
}

#[test]
fn only_what_changed_is_written() {
    let old = status(&pod(json!({}), json!({})), &Observed::default());
    assert_eq!(patch::status_patch("u", &old, &old), None);
    let new = status(&pod(json!({}), json!({})), &up(vec![run("app", 0, running())]));
    let body = patch::status_patch("u", &old, &new).expect("much changed");
    assert_eq!(body["metadata"]["uid"], "u");
    assert_eq!(body["status"]["phase"], "Running");
    assert_eq!(body["status"]["podIPs"], json!([{"$patch": "replace"}, {"ip": "10.1.0.2"}]));
    assert_eq!(body["status"].get("hostIP"), None);
    let ready = body["status"]["conditions"].as_array().expect("a list").iter().find(|it| it["type"] == "Ready");
    let ready = ready.expect("Ready changed");
    assert_eq!((&ready["status"], &ready["message"]), (&json!("True"), &Value::Null));
    assert!(ready.as_object().expect("an object").contains_key("message"), "a message that is gone is named");
}

#[test]
fn a_resize_shows_while_it_lasts() {
    let spec = json!({"containers": [{"name": "app", "resources": {"requests": {"cpu": "1"}}}]});
    let had = json!({"requests": {"cpu": "500m"}});
    let old = json!({"containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0,
        "containerID": "carob://app-0", "resources": had}]});
    let limits = |shares| Some(Limits { cpu_shares: shares, ..Limits::default() });
    let at_work = |shares| up(vec![ObservedContainer { limits: limits(shares), ..run("app", 0, running()) }]);
    let shown = |observed: &Observed| {
        let shown = status(&pod(spec.clone(), old.clone()), observed);
        let conditions = shown.conditions.iter().flatten().filter(|it| it.type_.starts_with("PodResize"));
        let held: Vec<_> = conditions.map(|it| format!("{} {:?}", it.type_, it.reason)).collect();
        let app = &shown.container_statuses.as_ref().expect("one container")[0];
        let resources = serde_json::to_value(&app.resources).expect("resources");
        (held.join("; "), resources["requests"]["cpu"].clone(), shown)
    };
    let (held, cpu, resizing) = shown(&at_work(512));
    assert_eq!((held.as_str(), cpu), ("PodResizeInProgress None", json!("500m")));
    let (held, cpu, resized) = shown(&at_work(1024));
    assert_eq!((held.as_str(), cpu), ("", json!("1")));
    let body = patch::status_patch("u", &resizing, &resized).expect("a condition went");
    assert_eq!(body["status"]["conditions"], json!([{"$patch": "delete", "type": "PodResizeInProgress"}]));

    let mut observed = at_work(512);
    observed.resize.failure = Some(ResizeFailure { message: "no".to_owned(), retry_at: at(210) });
    observed.resize.pending = Some(Pending { reason: "Deferred", message: String::new() });
    assert_eq!(shown(&observed).0, "PodResizePending Some(\"Deferred\"); PodResizeInProgress Some(\"Error\")");
}

#[test]
fn a_pod_whose_containers_start_over_has_not_failed() {
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let source = json!({"name": "source", "restartPolicy": "Never", "restartPolicyRules": rules});
    let pod = pod(json!({"restartPolicy": "Never", "containers": [{"name": "app"}, source]}), json!({}));
    let facts = NodeFacts::default();
    let shown = |containers: Vec<ObservedContainer>| {
        let cycle = crate::plan::cycle(&PodView::new(&pod), &containers);
        status_for(&pod, &Observed { cycle, ..up(containers) }, Intent::Run, &facts, at(300))
    };
    let restarting = |status: &PodStatus| {
        let mut conditions = status.conditions.iter().flatten();
        let found = conditions.find(|condition| condition.type_ == "AllContainersRestarting");
        found.map(|condition| (condition.status.clone(), condition.reason.clone().unwrap_or_default()))
    };
    let ended = || vec![run("app", 0, exited(137)), run("source", 0, exited(42))];
    let status = shown(ended());
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(restarting(&status), Some(("True".to_owned(), "RestartAllContainersStarted".to_owned())));
    let app = &status.container_statuses.as_ref().expect("statuses")[0];
    let waits = app.state.as_ref().and_then(|state| state.waiting.as_ref()).and_then(|waits| waits.reason.as_deref());
    assert_eq!(waits, Some("RestartingAllContainers"));
    let last = app.last_state.as_ref().and_then(|last| last.terminated.as_ref()).expect("the run that was ended");
    assert_eq!(last.exit_code, 137);
    let next = |name| ObservedContainer { cycle: 1, ..run(name, 1, running()) };
    let status = shown([next("app"), next("source")].into_iter().chain(ended()).collect());
    assert_eq!(restarting(&status), Some(("False".to_owned(), String::new())));
    let counts: Vec<i32> = status.container_statuses.iter().flatten().map(|shown| shown.restart_count).collect();
    assert_eq!((status.phase.as_deref(), counts.as_slice()), (Some("Running"), &[1, 1][..]));
}
