use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};

use super::addresses::Addresses;
use super::config::Config;
use super::life::{Life, Outcome, World};
use crate::admission::Rejection;
use crate::status::NodeFacts;

/// One Pod on one virtual node, and an API that takes every status.
struct Stage {
    pod: Pod,
    life: Life,
    config: Config,
    facts: NodeFacts,
    addresses: Addresses,
    now: i64,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("within the calendar")
}

impl Stage {
    fn new(rule: &Value, spec: &Value, annotations: &Value) -> Self {
        let file = json!({"nodes": [{}], "stages": [rule]});
        let config = Config::parse(&file, None).expect("a configuration");
        let mut spec = spec.clone();
        if spec["containers"].is_null() {
            spec["containers"] = json!([{"name": "app", "image": "app:1"}]);
        }
        let metadata = json!({"name": "p", "namespace": "ns", "uid": "u", "annotations": annotations});
        let pod: Pod = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a Pod");
        let facts = NodeFacts { ips: vec!["240.0.0.1".parse().expect("an address")], runtime: "carob".to_owned() };
        let life = Life::of(&pod, &World { script: &config.script, facts: &facts, now: at(0) });
        let addresses = Addresses::new("240.0.0.0/28".parse().expect("a range"));
        Self { pod, life, config, facts, addresses, now: 0 }
    }

    /// The Pod `seconds` later, the API shown.
    fn after(&mut self, seconds: i64) -> Outcome {
        self.now += seconds;
        let world = World { script: &self.config.script, facts: &self.facts, now: at(self.now) };
        let outcome = self.life.step(&self.pod, &world, &mut self.addresses);
        self.pod.status = Some(outcome.status.clone());
        outcome
    }

    /// Another process takes the Pod up.
    fn restart(&mut self) {
        let world = World { script: &self.config.script, facts: &self.facts, now: at(self.now) };
        self.life = Life::of(&self.pod, &world);
    }

    fn delete(&mut self, grace: i64) {
        use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
        self.pod.metadata.deletion_timestamp = Some(Time(at(self.now + grace)));
        self.pod.metadata.deletion_grace_period_seconds = Some(grace);
    }
}

/// `phase; name state #restarts ready; ..`.
fn show(status: &PodStatus) -> String {
    let mut parts = vec![status.phase.clone().unwrap_or_default()];
    for shown in [&status.init_container_statuses, &status.container_statuses].into_iter().flatten().flatten() {
        let state = shown.state.clone().unwrap_or_default();
        let word = match (state.running, state.waiting, state.terminated) {
            (Some(_), ..) => "running".to_owned(),
            (_, Some(waiting), _) => waiting.reason.unwrap_or_default(),
            (.., Some(end)) => format!("exit {}", end.exit_code),
            _ => "none".to_owned(),
        };
        let ready = if shown.ready { " ready" } else { "" };
        parts.push(format!("{} {word} #{}{ready}", shown.name, shown.restart_count));
    }
    parts.join("; ")
}

/// Lets time pass in steps, and checks what the Pod shows after each and in how many seconds it wants to be looked at.
#[track_caller]
fn check(stage: &mut Stage, steps: &[(i64, &str, Option<i64>)]) {
    for (seconds, expect, wake) in steps {
        let outcome = stage.after(*seconds);
        let wake_in = outcome.wake_at.map(|at| at.as_second() - stage.now);
        assert_eq!((show(&outcome.status).as_str(), wake_in), (*expect, *wake), "at {} s", stage.now);
    }
}

#[test]
fn without_delays_a_pod_runs_at_once() {
    let mut stage = Stage::new(&json!({}), &json!({}), &json!({}));
    check(&mut stage, &[(0, "Running; app running #0 ready", None)]);
    let status = stage.pod.status.clone().expect("a status");
    assert_eq!((status.pod_ip.as_deref(), status.host_ip.as_deref()), (Some("240.0.0.2"), Some("240.0.0.1")));
    let false_ones: Vec<_> =
        status.conditions.iter().flatten().filter(|condition| condition.status != "True").collect();
    assert!(false_ones.is_empty(), "{false_ones:?}");
}

#[test]
fn stages_follow_each_other() {
    let rule = json!({"pull": "5s", "start": "2s", "ready": "3s", "run": "10s", "exitCode": 3, "terminate": "4s"});
    let mut stage = Stage::new(&rule, &json!({"restartPolicy": "Never"}), &json!({}));
    check(
        &mut stage,
        &[
            (0, "Pending; app ContainerCreating #0", Some(7)),
            (6, "Pending; app ContainerCreating #0", Some(1)),
            (1, "Running; app running #0", Some(3)),
            (3, "Running; app running #0 ready", Some(7)),
            (7, "Failed; app exit 3 #0", None),
        ],
    );
}

#[test]
fn init_containers_come_first_and_sidecars_stay() {
    let spec = json!({"initContainers": [{"name": "side", "restartPolicy": "Always"}, {"name": "init"}]});
    let mut stage = Stage::new(&json!({"init": "4s", "ready": "1s"}), &spec, &json!({}));
    check(
        &mut stage,
        &[
            (0, "Pending; side running #0; init PodInitializing #0; app PodInitializing #0", Some(1)),
            (1, "Pending; side running #0 ready; init running #0; app PodInitializing #0", Some(1)),
            (4, "Running; side running #0 ready; init exit 0 #0 ready; app running #0", Some(1)),
            (1, "Running; side running #0 ready; init exit 0 #0 ready; app running #0 ready", None),
        ],
    );
}

#[test]
fn a_crash_backs_off_as_on_a_real_node() {
    let mut stage = Stage::new(&json!({"run": "1s", "exitCode": 1}), &json!({}), &json!({}));
    check(
        &mut stage,
        &[
            (0, "Running; app running #0 ready", Some(1)),
            (1, "Running; app running #1 ready", Some(1)),
            (1, "Running; app CrashLoopBackOff #1", Some(10)),
            (10, "Running; app running #2 ready", Some(1)),
            (1, "Running; app CrashLoopBackOff #2", Some(20)),
        ],
    );
    stage.restart();
    check(
        &mut stage,
        &[(0, "Running; app CrashLoopBackOff #2", Some(20)), (20, "Running; app running #3 ready", Some(1))],
    );
}

#[test]
fn a_deletion_takes_its_time_and_gives_the_address_back() {
    for (terminate, grace, waits, code) in [("0s", 30, 0, 0), ("5s", 30, 5, 0), ("5s", 3, 3, 137)] {
        let mut stage = Stage::new(&json!({"terminate": terminate}), &json!({}), &json!({}));
        stage.after(0);
        stage.delete(grace);
        if waits > 0 {
            let outcome = stage.after(0);
            assert!(!outcome.finished, "{terminate} of {grace} s");
            assert_eq!(outcome.wake_at, Some(at(waits)), "{terminate} of {grace} s");
        }
        let outcome = stage.after(waits);
        assert!(outcome.finished, "{terminate} of {grace} s");
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        assert_eq!(show(&outcome.status), format!("{phase}; app exit {code} #0"));
        assert_eq!(outcome.status.pod_ip.as_deref(), Some("240.0.0.2"), "shown until the Pod is gone");
        assert_eq!(stage.life.addresses().count(), 0);
    }
}

#[test]
fn a_pod_that_is_not_ready_does_not_become_so_while_it_ends() {
    let mut stage = Stage::new(&json!({"ready": "1h", "terminate": "5s"}), &json!({}), &json!({}));
    stage.after(0);
    stage.delete(30);
    check(&mut stage, &[(0, "Running; app running #0", Some(5)), (5, "Succeeded; app exit 0 #0", None)]);
}

#[test]
fn a_pod_that_was_not_started_is_gone_at_once() {
    let mut stage = Stage::new(&json!({"pull": "1h"}), &json!({}), &json!({}));
    stage.after(0);
    stage.delete(30);
    assert!(stage.after(1).finished);
}

#[test]
fn another_process_takes_a_pod_up_as_it_is() {
    let rule = json!({"start": "1s", "ready": "5s", "run": "60s"});
    let mut stage = Stage::new(&rule, &json!({"restartPolicy": "OnFailure"}), &json!({}));
    check(&mut stage, &[(0, "Pending; app ContainerCreating #0", Some(1)), (1, "Running; app running #0", Some(5))]);
    let before = stage.pod.status.clone();
    stage.restart();
    assert_eq!(stage.life.addresses().collect::<Vec<IpAddr>>(), ["240.0.0.2".parse::<IpAddr>().expect("an address")]);
    check(&mut stage, &[(0, "Running; app running #0", Some(5))]);
    assert_eq!(stage.pod.status, before, "nothing changes");
    check(&mut stage, &[(5, "Running; app running #0 ready", Some(55))]);
    let before = stage.pod.status.clone();
    stage.restart();
    check(&mut stage, &[(0, "Running; app running #0 ready", Some(55))]);
    assert_eq!(stage.pod.status, before, "nothing changes");
    check(&mut stage, &[(55, "Succeeded; app exit 0 #0", None)]);
    let before = stage.pod.status.clone();
    stage.restart();
    check(&mut stage, &[(1, "Succeeded; app exit 0 #0", None)]);
    assert_eq!(stage.pod.status, before, "nothing changes");
}

#[test]
fn deadlines_annotations_and_refusals() {
    let mut stage = Stage::new(&json!({}), &json!({"activeDeadlineSeconds": 10}), &json!({}));
    check(&mut stage, &[(0, "Running; app running #0 ready", None), (1, "Running; app running #0 ready", Some(9))]);
    let outcome = stage.after(9);
    assert_eq!(outcome.status.reason.as_deref(), Some("DeadlineExceeded"));

    let mut stage = Stage::new(&json!({}), &json!({}), &json!({"virtual.carob.io/start": "2s"}));
    check(&mut stage, &[(0, "Pending; app ContainerCreating #0", Some(2)), (2, "Running; app running #0 ready", None)]);

    let mut stage = Stage::new(&json!({}), &json!({}), &json!({"virtual.carob.io/start": "soon"}));
    check(&mut stage, &[(0, "Pending; app CreateContainerConfigError #0", Some(10))]);

    let mut stage = Stage::new(&json!({}), &json!({}), &json!({}));
    stage.life.reject(Rejection { reason: "OutOfcpu".into(), message: "no".to_owned() });
    let outcome = stage.after(0);
    assert_eq!((outcome.status.phase.as_deref(), outcome.status.reason.as_deref()), (Some("Failed"), Some("OutOfcpu")));
    assert_eq!(outcome.wake_at, None);
}

#[test]
fn a_range_that_is_used_up_is_waited_for() {
    let mut stage = Stage::new(&json!({}), &json!({}), &json!({}));
    let taken: Vec<_> = std::iter::from_fn(|| stage.addresses.take()).collect();
    check(&mut stage, &[(0, "Pending; app ContainerCreating #0", Some(10))]);
    stage.addresses.give_back(taken[3]);
    check(&mut stage, &[(10, "Running; app running #0 ready", None)]);
    assert_eq!(stage.after(Duration::from_secs(1).as_secs() as i64).status.pod_ip, Some(taken[3].to_string()));
}
