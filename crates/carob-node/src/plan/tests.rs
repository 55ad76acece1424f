use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::pod::PodView;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("within the calendar")
}

fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    if spec["containers"].is_null() {
        spec["containers"] = json!([{"name": "app", "image": "app:1"}]);
    }
    let object = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec});
    serde_json::from_value(object).expect("the test's Pod is a Pod")
}

fn up() -> Observed {
    let ip = "10.1.0.2".parse().expect("an address");
    let sandbox = ObservedSandbox { id: "s0".to_owned(), attempt: 0, ready: true, ips: vec![ip] };
    Observed { sandbox: Some(sandbox), volumes: Volumes::Mounted, ..Observed::default() }
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

fn exited(code: i32, finished: i64) -> ContainerPhase {
    let (reason, message) = (String::new(), String::new());
    ContainerPhase::Exited(Exit { code, reason, message, started_at: Some(at(100)), finished_at: at(finished) })
}

fn with(runs: impl IntoIterator<Item = ObservedContainer>) -> Observed {
    Observed { containers: runs.into_iter().collect(), ..up() }
}

/// One line a step, in the order of the plan, then when to wake.
fn show(plan: &PodPlan) -> String {
    let mut lines: Vec<String> = plan
        .actions
        .iter()
        .map(|action| match action {
            PodAction::MountVolumes => "mount".to_owned(),
            PodAction::CreateSandbox { attempt, .. } => format!("sandbox {attempt}"),
            PodAction::StartContainer { name, attempt, restart_delay } => {
                format!("start {name}#{attempt} delay {}", restart_delay.as_secs())
            }
            PodAction::KillContainer { id, deadline, reason, .. } => {
                format!("kill {id} by {} {reason:?}", deadline.as_second())
            }
            PodAction::RemoveContainer { id, .. } => format!("remove {id}"),
            PodAction::StopSandbox { id } => format!("stop {id}"),
            PodAction::RemoveSandbox { id } => format!("remove sandbox {id}"),
            PodAction::LimitPod { limits } => match limits {
                Some(limits) => {
                    format!("limit pod {:?}", (limits.cpu_shares, limits.cpu_quota_us, limits.memory_bytes))
                }
                None => "open pod".to_owned(),
            },
            PodAction::Resize { changes } => {
                let shares = |change: &Change| format!("{} shares {}", change.id, change.to.cpu_shares);
                format!("resize {}", changes.iter().map(shares).collect::<Vec<_>>().join(", "))
            }
            PodAction::Finish => "finish".to_owned(),
        })
        .collect();
    lines.extend(plan.wake_at.map(|wake| format!("wake {}", wake.as_second())));
    lines.join("; ")
}

#[track_caller]
fn check(pod: &Pod, observed: &Observed, expect: &str) {
    assert_eq!(show(&plan_pod(pod, observed, at(200))), expect);
}

#[test]
fn a_new_pod_gets_volumes_then_a_sandbox_then_its_containers() {
    let pod = pod(json!({"volumes": [{"name": "c", "configMap": {"name": "c"}}]}));
    check(&pod, &Observed::default(), "mount");
    let mounted = Observed { volumes: Volumes::Mounted, ..Observed::default() };
    check(&pod, &mounted, "sandbox 0");
    check(&pod, &Observed { busy: Busy { pod: true, ..Busy::default() }, ..mounted }, "");
    check(&pod, &up(), "start app#0 delay 0");
    let starting = Busy { starting: ["app".to_owned()].into(), ..Busy::default() };
    check(&pod, &Observed { busy: starting, ..up() }, "");
    check(&pod, &with([run("app", 0, running())]), "");
}

#[test]
fn volumes_that_wait_for_nobody_are_mounted_while_the_sandbox_is_made() {
    let token = json!({"name": "t", "projected": {"sources": [
        {"serviceAccountToken": {"path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt"}},
        {"downwardAPI": {"items": []}}]}});
    let pod = pod(json!({"volumes": [token, {"name": "e", "emptyDir": {}}]}));
    check(&pod, &Observed::default(), "mount; sandbox 0");
    let busy = |pod, volumes| Busy { pod, volumes, ..Busy::default() };
    check(&pod, &Observed { busy: busy(true, true), ..Observed::default() }, "");
    check(&pod, &Observed { busy: busy(false, true), ..Observed::default() }, "sandbox 0");
    let unmounted = Observed { volumes: Volumes::Absent, busy: busy(false, true), ..up() };
    check(&pod, &unmounted, "");
    check(&pod, &Observed { volumes: Volumes::Mounted, busy: busy(true, false), ..Observed::default() }, "");
    check(&pod, &up(), "start app#0 delay 0");
    let retry_at = at(300);
    let failure = Failure { reason: FailureReason::PodSetup, message: String::new(), retry_at };
    check(&pod, &Observed { volumes: Volumes::Failed(failure), ..Observed::default() }, "wake 300");
    let lost = Observed { volumes: Volumes::Absent, sandbox: None, ..with([run("app", 0, exited(1, 199))]) };
    check(&pod, &lost, "mount");
}

#[test]
fn restarts_back_off_from_the_second_on() {
    let pod = pod(json!({}));
    check(&pod, &with([run("app", 0, exited(1, 199))]), "start app#1 delay 10");
    let delayed = |seconds, finished| ObservedContainer {
        restart_delay: Duration::from_secs(seconds),
        ..run("app", 3, exited(1, finished))
    };
    check(&pod, &with([delayed(10, 195)]), "wake 205");
    check(&pod, &with([delayed(10, 190)]), "start app#4 delay 20");
    check(&pod, &with([delayed(300, 195)]), "wake 495");
    // Ten minutes of life forgive: this run was created at 100 and ended at 701.
    let old = delayed(300, 701);
    assert_eq!(restart(&old, at(702)), Restart::Now { next_delay: Duration::from_secs(10) });
}

#[test]
fn the_restart_policy_decides_who_runs_again() {
    for (policy, code, expect) in [
        ("Always", 0, "start app#1 delay 10"),
        ("OnFailure", 1, "start app#1 delay 10"),
        ("OnFailure", 0, "stop s0"),
        ("Never", 1, "stop s0"),
    ] {
        check(&pod(json!({"restartPolicy": policy})), &with([run("app", 0, exited(code, 199))]), expect);
    }
    let own = json!({"restartPolicy": "Never", "containers": [
        {"name": "app", "restartPolicy": "Never",
         "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]});
    check(&pod(own.clone()), &with([run("app", 0, exited(42, 199))]), "start app#1 delay 10");
    check(&pod(own), &with([run("app", 0, exited(1, 199))]), "stop s0");
}

/// What is observed once the cycle is counted, as the worker does.
fn counted(pod: &Pod, observed: Observed) -> Observed {
    Observed { cycle: cycle(&PodView::new(pod), &observed.containers), ..observed }
}

#[test]
fn an_exit_that_a_rule_names_has_all_containers_start_over() {
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let pod = pod(json!({"restartPolicy": "Never", "initContainers": [
            {"name": "init"}, {"name": "side", "restartPolicy": "Always"}],
        "containers": [{"name": "app"}, {"name": "source", "restartPolicy": "Never", "restartPolicyRules": rules}]}));
    let (init, side) = (|| run("init", 0, exited(0, 110)), || run("side", 0, running()));
    let check = |observed: Observed, expect: &str| check(&pod, &counted(&pod, observed), expect);
    let up = |code| with([run("source", 0, exited(code, 199)), run("app", 0, running()), side(), init()]);
    check(up(1), "");
    check(up(42), "kill app-0 by 200 RestartAll; kill side-0 by 200 RestartAll");
    // What was being started meanwhile is waited for, and killed when it is there.
    let dead = |name| run(name, 0, exited(137, 200));
    let mut late = with([run("source", 0, exited(42, 199)), dead("side"), init()]);
    late.busy.starting.insert("app".to_owned());
    check(late, "");
    // Then they start in their order, as in a new Pod, whatever the policy says of how they ended.
    let killed = || [run("source", 0, exited(42, 199)), dead("app"), dead("side"), init()];
    check(with(killed()), "start init#1 delay 10");
    let next =
        |name, phase| ObservedContainer { cycle: 1, restart_delay: Duration::from_secs(10), ..run(name, 1, phase) };
    let after = |runs: Vec<ObservedContainer>| with(runs.into_iter().chain(killed()));
    check(after(vec![next("init", running())]), "");
    check(after(vec![next("init", exited(0, 200))]), "start side#1 delay 10");
    let both = || vec![next("side", running()), next("init", exited(0, 200))];
    check(after(both()), "start app#1 delay 10; start source#1 delay 10");
    let all = |code| {
        let apps = [next("source", exited(code, 199)), next("app", running())];
        after(apps.into_iter().chain(both()).collect())
    };
    check(all(0), "");
    // A second time they back off, like any container that ends again and again.
    check(all(42), "kill app-1 by 200 RestartAll; kill side-1 by 200 RestartAll");
}

#[test]
fn init_containers_run_one_by_one_and_sidecars_gate_on_their_start() {
    let pod = pod(json!({"initContainers": [
        {"name": "i1"}, {"name": "side", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 1}}}, {"name": "i2"}]}));
    check(&pod, &up(), "start i1#0 delay 0");
    check(&pod, &with([run("i1", 0, running())]), "");
    check(&pod, &with([run("i1", 0, exited(1, 150))]), "start i1#1 delay 10");
    let done = || run("i1", 0, exited(0, 150));
    check(&pod, &with([done()]), "start side#0 delay 0");
    check(&pod, &with([run("side", 0, running()), done()]), "");
    let mut started = with([run("side", 0, running()), done()]);
    started.probes.insert("side-0".to_owned(), ProbeFacts { startup: Some(true), ..ProbeFacts::default() });
    check(&pod, &started, "start i2#0 delay 0");
    started.containers.insert(0, run("i2", 0, exited(0, 160)));
    check(&pod, &started, "start app#0 delay 0");
    // A sidecar that dies later is started again and does not undo the initialisation.
    let later = with([run("app", 0, running()), run("side", 0, exited(0, 170)), done()]);
    check(&pod, &later, "start side#1 delay 10");
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let pod = pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "i1"}]}));
    check(&pod, &with([run("i1", 0, exited(1, 150))]), "stop s0");
}

#[test]
fn a_post_start_hook_holds_back_what_comes_after_it() {
    let spec = json!({"containers": [
        {"name": "a", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}, {"name": "b"}, {"name": "c"}]});
    let pod = pod(spec);
    check(&pod, &up(), "start a#0 delay 0");
    check(&pod, &with([run("a", 0, running())]), "start b#0 delay 0; start c#0 delay 0");
}

#[test]
fn failed_probes_kill_and_may_bring_their_own_grace() {
    let pod = pod(json!({"terminationGracePeriodSeconds": 30, "containers": [{"name": "app",
        "livenessProbe": {"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 5}}]}));
    let mut observed = with([run("app", 0, running())]);
    observed.probes.insert("app-0".to_owned(), ProbeFacts { liveness: Some(false), ..ProbeFacts::default() });
    check(&pod, &observed, "kill app-0 by 205 LivenessProbe");
    observed.busy.killing.insert("app-0".to_owned(), at(205));
    check(&pod, &observed, "");
}

#[test]
fn a_lost_sandbox_is_replaced_and_initialisation_starts_over() {
    let pod = pod(json!({"initContainers": [{"name": "i1"}]}));
    let mut lost = with([run("app", 0, exited(137, 199)), run("i1", 0, exited(0, 120))]);
    if let Some(sandbox) = &mut lost.sandbox {
        sandbox.ready = false;
    }
    check(&pod, &lost, "sandbox 1");
    if let Some(sandbox) = &mut lost.sandbox {
        sandbox.ready = true;
        sandbox.id = "s1".to_owned();
    }
    check(&pod, &lost, "start i1#1 delay 10");
}

#[test]
fn a_lost_sandbox_of_a_pod_with_nothing_to_restart_is_not_replaced() {
    let pod = pod(json!({"restartPolicy": "Never"}));
    let mut lost = with([run("app", 0, exited(137, 199))]);
    if let Some(sandbox) = &mut lost.sandbox {
        sandbox.ready = false;
    }
    check(&pod, &lost, "finish");
}

#[test]
fn the_end_takes_apps_first_then_sidecars_from_the_last() {
    let mut pod = pod(json!({"terminationGracePeriodSeconds": 30, "initContainers": [
        {"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}]}));
    pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(230)));
    pod.metadata.deletion_grace_period_seconds = Some(30);
    let sidecars = || [run("s1", 0, running()), run("s2", 0, running())];
    let mut all = with(sidecars());
    all.containers.insert(0, run("app", 0, running()));
    all.stopping_since = Some(at(195));
    check(&pod, &all, "kill app-0 by 225 PodDeleted");
    let mut rest = with(sidecars());
    rest.stopping_since = Some(at(195));
    check(&pod, &rest, "kill s2-0 by 225 PodDeleted");
    rest.containers.pop();
    check(&pod, &rest, "kill s1-0 by 225 PodDeleted");
    rest.containers.clear();
    check(&pod, &rest, "stop s0");
    rest.sandbox = None;
    check(&pod, &rest, "finish");
    rest.finished = true;
    check(&pod, &rest, "");
}

#[test]
fn a_shorter_grace_hastens_a_kill_that_is_under_way() {
    let mut pod = pod(json!({}));
    pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(200)));
    pod.metadata.deletion_grace_period_seconds = Some(0);
    let mut observed = with([run("app", 0, running())]);
    observed.stopping_since = Some(at(200));
    observed.busy.killing.insert("app-0".to_owned(), at(230));
    check(&pod, &observed, "kill app-0 by 202 PodDeleted");
}

#[test]
fn the_active_deadline_ends_the_pod() {
    let mut pod = pod(json!({"activeDeadlineSeconds": 60, "terminationGracePeriodSeconds": 10}));
    let status = json!({"startTime": "1970-01-01T00:02:00Z"});
    pod.status = Some(serde_json::from_value(status).expect("a status"));
    let observed = with([run("app", 0, running())]);
    assert_eq!(show(&plan_pod(&pod, &observed, at(150))), "wake 180");
    assert_eq!(show(&plan_pod(&pod, &observed, at(180))), "kill app-0 by 190 DeadlineExceeded");
}

#[test]
fn old_runs_and_empty_replaced_sandboxes_are_removed() {
    let mut observed = with([run("app", 2, running()), run("app", 1, exited(1, 1)), run("app", 0, exited(1, 1))]);
    observed.older_sandboxes.push(ObservedSandbox { id: "gone".to_owned(), attempt: 0, ready: false, ips: Vec::new() });
    check(&pod(json!({})), &observed, "remove app-0; remove sandbox gone");
}

#[test]
fn a_failed_start_waits_for_its_time() {
    let mut observed = up();
    let failure = |retry| Failure { reason: FailureReason::ErrImagePull, message: String::new(), retry_at: at(retry) };
    observed.start_failures.insert("app".to_owned(), failure(210));
    check(&pod(json!({})), &observed, "wake 210");
    observed.start_failures.insert("app".to_owned(), failure(200));
    check(&pod(json!({})), &observed, "start app#0 delay 0");
}

#[test]
fn restart_counts_continue_from_the_api_where_the_runtime_forgot() {
    let mut pod = pod(json!({}));
    let status = json!({"containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 4,
        "containerID": "carob://x", "state": {"running": {}}}]});
    pod.status = Some(serde_json::from_value(status).expect("a status"));
    check(&pod, &up(), "start app#5 delay 0");
}

#[test]
fn ephemeral_containers_start_once() {
    let pod = pod(json!({"ephemeralContainers": [{"name": "look", "targetContainerName": "app"}]}));
    check(&pod, &with([run("app", 0, running())]), "start look#0 delay 0");
    check(&pod, &with([run("app", 0, running()), run("look", 0, exited(1, 150))]), "");
    assert_eq!(PodView::new(&pod).ephemeral_members()[0].target, Some("app"));
}

#[test]
fn a_changed_image_replaces_a_running_container() {
    let mut old = run("app", 0, running());
    old.spec_hash = "app:0".to_owned();
    check(&pod(json!({})), &with([old]), "kill app-0 by 230 SpecChanged");
}

#[test]
fn a_resize_opens_the_pod_changes_its_containers_and_closes_it() {
    let resources = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1", "memory": "1000"}});
    let spec = |policy: serde_json::Value| {
        pod(json!({"containers": [{"name": "app", "resources": resources, "resizePolicy": policy}, {"name": "idle"}]}))
    };
    let limits = |shares, quota, memory| Some(Limits { cpu_shares: shares, cpu_quota_us: quota, memory_bytes: memory });
    let now = |app, group| Observed {
        resize: Resize { group, ..Resize::default() },
        ..with([
            ObservedContainer { limits: app, ..run("app", 0, running()) },
            ObservedContainer { limits: limits(2, None, None), ..run("idle", 0, running()) },
        ])
    };
    let (old, new) = (limits(512, Some(50_000), Some(1000)), limits(1024, Some(100_000), Some(1000)));
    let in_place = spec(json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}]));
    check(&in_place, &now(new, Group::AsMade), "");
    check(&in_place, &now(old, Group::AsMade), "open pod");
    check(&in_place, &now(old, Group::Open), "resize app-0 shares 1024");
    check(&in_place, &now(new, Group::Open), "limit pod (1024, None, None)");
    let mut group = Limits { cpu_shares: 512, ..Limits::default() };
    check(&in_place, &now(new, Group::Set(group)), "limit pod (1024, None, None)");
    group.cpu_shares = 1024;
    check(&in_place, &now(new, Group::Set(group)), "");
    let busy = Observed { busy: Busy { resizing: true, ..Busy::default() }, ..now(old, Group::Open) };
    check(&in_place, &busy, "");
    let failure = Some(ResizeFailure { message: String::new(), retry_at: at(230) });
    let failed = Resize { failure, group: Group::Open, pending: None };
    check(&in_place, &Observed { resize: failed, ..now(old, Group::Open) }, "wake 230");

    let restarts = |resource: &str| spec(json!([{"resourceName": resource, "restartPolicy": "RestartContainer"}]));
    check(&restarts("cpu"), &now(old, Group::Open), "kill app-0 by 230 Resized");
    check(&restarts("memory"), &now(old, Group::Open), "resize app-0 shares 1024");
    let running_memory = limits(1024, Some(100_000), Some(500));
    check(&restarts("memory"), &now(running_memory, Group::Open), "kill app-0 by 230 Resized");
    let requests = json!({"requests": {"memory": "900"}, "limits": {"memory": "1000"}});
    for (policy, made_with, expected) in [
        ("RestartContainer", Some(900), "limit pod (2, None, Some(1000))"),
        ("RestartContainer", Some(800), "kill app-0 by 230 Resized"),
        ("RestartContainer", None, "limit pod (2, None, Some(1000))"),
        ("NotRequired", Some(800), "limit pod (2, None, Some(1000))"),
    ] {
        let policy = json!([{"resourceName": "memory", "restartPolicy": policy}]);
        let spec = pod(json!({"containers": [{"name": "app", "resources": requests, "resizePolicy": policy}]}));
        let app = ObservedContainer {
            limits: limits(2, None, Some(1000)),
            memory_request: made_with,
            ..run("app", 0, running())
        };
        let resize = Resize { group: Group::Open, ..Resize::default() };
        check(&spec, &Observed { resize, ..with([app]) }, expected);
    }
    let made_anew = with([run("app", 0, exited(137, 199)), run("idle", 0, running())]);
    check(&restarts("cpu"), &made_anew, "start app#1 delay 10");
}

#[test]
fn a_resize_reaches_an_init_container_that_runs() {
    let spec = |policy: &str| {
        let resources = json!({"limits": {"cpu": "1"}});
        let policy = json!([{"resourceName": "cpu", "restartPolicy": policy}]);
        let init = json!([{"name": "first", "resources": resources, "resizePolicy": policy}]);
        pod(json!({"initContainers": init}))
    };
    let now = |phase| {
        let limits = Some(Limits { cpu_shares: 512, cpu_quota_us: Some(50_000), memory_bytes: None });
        Observed {
            resize: Resize { group: Group::Open, ..Resize::default() },
            ..with([ObservedContainer { limits, ..run("first", 0, phase) }])
        }
    };
    check(&spec("NotRequired"), &now(running()), "resize first-0 shares 1024");
    check(&spec("RestartContainer"), &now(running()), "kill first-0 by 230 Resized");
    let ended = Observed { resize: Resize::default(), ..now(exited(0, 199)) };
    check(&spec("RestartContainer"), &ended, "start app#0 delay 0");
}
