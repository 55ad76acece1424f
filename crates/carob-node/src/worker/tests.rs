//! Workers against the runtime in memory, in tokio's paused time.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use carob_cri::fake::FakeRuntime;
use carob_cri::{Cri, CriError};
use carob_kit::Clock;
use serde_json::{Value, json};

use super::*;
use crate::api::{PodApi, WriteError};
use crate::config::network::ClusterDns;
use crate::config::resources::Machine;
use crate::events::Events;
use crate::files::Files;
use crate::image::Images;
use crate::objects::testing::Shelf;
use crate::paths::PodDirs;
use crate::plan::after;
use crate::user_ranges::UserRanges;
use crate::volumes::{Volumes, VolumesParts};

/// A clock that moves with tokio's paused time.
#[derive(Debug)]
struct TokioClock(tokio::time::Instant);

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        crate::plan::after(Timestamp::from_second(1_000_000).expect("within the calendar"), self.monotonic())
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

/// What the API has been told.
#[derive(Default)]
struct Told {
    status: Value,
    writes: usize,
    confirmed: bool,
    events: Vec<String>,
    /// Answers to the next writes, before they are taken.
    conflicts: usize,
}

#[derive(Default)]
struct FakeApi(Mutex<Told>);

#[async_trait]
impl PodApi for FakeApi {
    async fn patch_status(&self, id: &PodId, body: &Value) -> Result<(), WriteError> {
        let mut told = self.0.lock().expect("no holder panics");
        if told.conflicts > 0 {
            told.conflicts -= 1;
            let conflict = kube::core::Status { code: 409, ..kube::core::Status::failure("overtaken", "Conflict") };
            let source = Box::new(kube::Error::Api(Box::new(conflict)));
            return Err(WriteError::Failed { operation: "the status update", id: id.clone(), source });
        }
        told.writes += 1;
        for (key, value) in body["status"].as_object().expect("a status") {
            let value = match value {
                Value::Array(items) if key == "conditions" => {
                    let mut by_type: BTreeMap<String, Value> = BTreeMap::new();
                    for item in told.status[key].as_array().into_iter().flatten().chain(items) {
                        by_type.insert(item["type"].as_str().expect("a type").to_owned(), item.clone());
                    }
                    by_type.into_values().collect()
                }
                Value::Array(items) => items.iter().filter(|item| item["$patch"].is_null()).cloned().collect(),
                other => other.clone(),
            };
            told.status[key] = value;
        }
        Ok(())
    }

    async fn confirm_deletion(&self, _id: &PodId) -> Result<(), WriteError> {
        self.0.lock().expect("no holder panics").confirmed = true;
        Ok(())
    }

    async fn create(&self, _id: &PodId, _mirror: &Pod) -> Result<(), WriteError> {
        Ok(())
    }
}

impl Events for FakeApi {
    fn normal(&self, _subject: &Subject, reason: &str, message: String) {
        self.0.lock().expect("no holder panics").events.push(format!("{reason}: {message}"));
    }

    fn warning(&self, _subject: &Subject, reason: &str, message: String) {
        self.0.lock().expect("no holder panics").events.push(format!("! {reason}: {message}"));
    }
}

pub(crate) struct Bench {
    dir: tempfile::TempDir,
    runtime: Arc<FakeRuntime>,
    api: Arc<FakeApi>,
    tools: Arc<Tools>,
    shelf: Arc<Shelf>,
}

struct Seat {
    orders: watch::Sender<Order>,
    task: tokio::task::JoinHandle<()>,
    shutdown: CancellationToken,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let clock: Arc<dyn Clock> = Arc::new(TokioClock(tokio::time::Instant::now()));
        let hands = Arc::clone(&clock);
        let nanos = move || i64::try_from(hands.now().as_nanosecond()).expect("within the calendar");
        let runtime = Arc::new(FakeRuntime::new(nanos));
        runtime.add_image("app:1");
        let api = Arc::new(FakeApi::default());
        let cri: Arc<dyn Cri> = runtime.clone();
        let events: Arc<dyn Events> = api.clone();
        let shelf = Arc::new(
            Shelf::default().config_map(json!({"metadata": {"namespace": "ns", "name": "cm"}, "data": {"k": "v"}})),
        );
        let objects: Arc<dyn crate::objects::Objects> = shelf.clone();
        let dirs = PodDirs::new(dir.path().join("pods"), dir.path().join("logs"), None);
        let settings = Settings {
            node_ips: vec!["192.0.2.1".parse().expect("an address")],
            machine: Machine { memory_bytes: 1 << 30, ..Machine::default() },
            dns: ClusterDns { servers: Vec::new(), domain: "cluster.local".to_owned() },
            seccomp_default: true,
            cgroup_root: "/".to_owned(),
            resolv_conf: dir.path().join("resolv.conf"),
            hosts: "/etc/hosts".into(),
            ..Settings::default()
        };
        let csi = crate::csi::Csi::without_drivers(dir.path(), Arc::clone(&objects), Arc::clone(&clock));
        let tools = Arc::new(Tools {
            devices: crate::devices::Devices::without_plugins(Arc::clone(&clock)),
            files: Files::in_runtime(),
            volumes: Volumes::new(VolumesParts {
                files: Files::in_runtime(),
                dirs: dirs.clone(),
                objects: Arc::clone(&objects),
                events: Arc::clone(&events),
                clock: Arc::clone(&clock),
                csi,
                node_name: "n".to_owned(),
            }),
            images: Images::new(Arc::clone(&cri), Arc::clone(&objects), Arc::clone(&events), Arc::clone(&clock)),
            objects,
            events,
            pods: api.clone(),
            clock,
            cri,
            user_ranges: Arc::new(UserRanges::new(dirs.clone())),
            dirs,
            settings,
            probe_counts: Default::default(),
            figures: Default::default(),
            network_rules: None,
        });
        Self { dir, runtime, api, tools, shelf }
    }

    fn pod(spec: Value, status: Value) -> Arc<Pod> {
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([{"name": "app", "image": "app:1"}]);
        }
        let metadata = json!({"name": "p", "namespace": "ns", "uid": "u"});
        let object = json!({"metadata": metadata, "spec": spec, "status": status});
        Arc::new(serde_json::from_value(object).expect("a Pod"))
    }

    fn run(&self, pod: Arc<Pod>) -> Seat {
        use futures_util::StreamExt as _;
        let (orders, inbox) = watch::channel(Order::new(pod));
        let wake = Arc::new(Notify::new());
        let shutdown = CancellationToken::new();
        let worker = Worker::new(Arc::clone(&self.tools), inbox, Arc::clone(&wake), shutdown.clone());
        let cri = Arc::clone(&self.tools.cri);
        let task = tokio::spawn(async move {
            let mut events = cri.get_container_events(Default::default()).await.expect("the fake tells events");
            let listen = async {
                while events.next().await.is_some() {
                    wake.notify_one()
                }
            };
            tokio::select! {
                () = worker.run() => {}
                () = listen => {}
            }
        });
        Seat { orders, task, shutdown }
    }

    fn delete(seat: &Seat, grace: i64, now: Timestamp) {
        seat.orders.send_modify(|order| {
            let meta = &mut Arc::make_mut(&mut order.pod).metadata;
            meta.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
            meta.deletion_grace_period_seconds = Some(grace);
        });
    }

    fn set_image(seat: &Seat, image: &str) {
        seat.orders.send_modify(|order| {
            let spec = Arc::make_mut(&mut order.pod).spec.as_mut().expect("a spec");
            spec.containers[0].image = Some(image.to_owned());
        });
    }

    fn app(&self) -> Value {
        self.status()["containerStatuses"][0].clone()
    }

    fn status(&self) -> Value {
        self.api.0.lock().expect("no holder panics").status.clone()
    }

    fn events(&self) -> Vec<String> {
        self.api.0.lock().expect("no holder panics").events.clone()
    }

    pub(crate) fn tools(&self) -> Arc<Tools> {
        Arc::clone(&self.tools)
    }

    pub(crate) fn running(&self) -> Vec<String> {
        self.runtime.running()
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.runtime.calls()
    }

    pub(crate) fn make_stubborn(&self, name: &str) {
        self.runtime.make_stubborn(name);
    }

    /// How many statuses the API took.
    pub(crate) fn writes(&self) -> usize {
        self.api.0.lock().expect("no holder panics").writes
    }

    /// Lets time pass until `done`; an hour of it is too much.
    #[track_caller]
    pub(crate) fn until(&self, what: &'static str, done: impl Fn(&Self) -> bool) -> impl Future<Output = ()> {
        let at = std::panic::Location::caller();
        async move {
            for _ in 0..36_000 {
                if done(self) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            panic!("{at}: not {what}: {}\n{:?}\n{:?}", self.status(), self.runtime.calls(), self.events());
        }
    }
}

fn condition<'a>(status: &'a Value, type_: &str) -> &'a str {
    let found = status["conditions"].as_array().into_iter().flatten().find(|it| it["type"] == type_);
    found.and_then(|it| it["status"].as_str()).unwrap_or("none")
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_is_deleted_without_a_trace() {
    let bench = Bench::new();
    let spec = json!({
        "containers": [{"name": "app", "image": "app:1", "volumeMounts": [{"name": "cm", "mountPath": "/cm"}],
            "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]}],
        "volumes": [{"name": "cm", "configMap": {"name": "cm"}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]});
    let seat = bench.run(Bench::pod(spec, json!({})));
    bench.until("ready", |bench| condition(&bench.status(), "Ready") == "True").await;
    let status = bench.status();
    assert_eq!((&status["phase"], &status["podIP"]), (&json!("Running"), &json!("10.1.0.1")));
    assert_eq!(bench.runtime.calls(), ["sandbox p#0", "start app#0"]);
    let config = bench.runtime.config("app").expect("it was made");
    let volume = &config.mounts.iter().find(|mount| mount.container_path == "/cm").expect("mounted").host_path;
    assert_eq!(fs_err::read_to_string(std::path::Path::new(volume).join("k")).expect("the key is a file"), "v");
    assert_eq!(config.envs.iter().find(|env| env.key == "IP").map(|env| env.value.as_str()), Some("10.1.0.1"));
    let words = bench.events();
    assert_eq!(words[1..], ["Created: Container created", "Started: Container started"]);

    Bench::delete(&seat, 30, bench.tools.clock.now());
    bench.until("confirmed", |bench| bench.api.0.lock().expect("no holder panics").confirmed).await;
    assert!(bench.runtime.running().is_empty());
    assert_eq!(bench.app()["state"]["terminated"]["exitCode"], 143);
    seat.orders.send_modify(|order| order.gone = true);
    seat.task.await.expect("no panic");
    assert!(bench.runtime.is_empty(), "the runtime has nothing left");
    assert!(!bench.dir.path().join("pods/u").exists(), "nor has the disk");
    assert!(!bench.dir.path().join("logs/ns_p_u").exists());
}

#[tokio::test(start_paused = true)]
async fn a_quick_start_is_told_in_one_write() {
    let bench = Bench::new();
    let seat = bench.run(Bench::pod(json!({}), json!({})));
    bench.until("running", |bench| bench.status()["phase"] == "Running").await;
    assert_eq!(bench.api.0.lock().expect("no holder panics").writes, 1);
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_node_changes_nothing() {
    let bench = Bench::new();
    let spec =
        json!({"containers": [{"name": "app", "image": "app:1", "readinessProbe": {"exec": {"command": ["check"]}}}]});
    let seat = bench.run(Bench::pod(spec.clone(), json!({})));
    bench.until("ready", |bench| condition(&bench.status(), "Ready") == "True").await;
    seat.shutdown.cancel();
    seat.task.await.expect("no panic");
    let (before, writes) = (bench.status(), bench.api.0.lock().expect("no holder panics").writes);
    let again = bench.run(Bench::pod(spec, before.clone()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.status(), before);
    assert_eq!(bench.api.0.lock().expect("no holder panics").writes, writes, "nothing was written again");
    assert_eq!(bench.runtime.running(), ["app#0"]);
    again.shutdown.cancel();
    again.task.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_backs_off_and_says_so() {
    let bench = Bench::new();
    let seat = bench.run(Bench::pod(json!({}), json!({})));
    let mut starts = Vec::new();
    for attempt in 0..4 {
        bench.until("running", |bench| bench.runtime.running() == [format!("app#{attempt}")]).await;
        starts.push(bench.tools.clock.monotonic().as_secs());
        bench.runtime.exit("app", 1);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let gaps: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(gaps, [1, 10, 20], "at once, then after 10 s, then after 20 s (each a second of waiting included)");
    let app = bench.app();
    assert_eq!(app["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(app["state"]["waiting"]["message"], "back-off 40s restarting failed container=app pod=p_ns(u)");
    assert_eq!((&app["restartCount"], &app["lastState"]["terminated"]["exitCode"]), (&json!(3), &json!(1)));
    assert!(bench.events().contains(&"! BackOff: Back-off restarting failed container app in pod p_ns(u)".to_owned()));
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_done_gives_its_sandbox_back_and_stays_done() {
    let bench = Bench::new();
    let spec = json!({"restartPolicy": "Never", "initContainers": [
        {"name": "side", "image": "app:1", "restartPolicy": "Always"}]});
    let seat = bench.run(Bench::pod(spec, json!({})));
    bench.until("running", |bench| bench.runtime.running().contains(&"app#0".to_owned())).await;
    bench.runtime.exit("app", 0);
    bench.until("succeeded", |bench| bench.status()["phase"] == "Succeeded").await;
    assert!(bench.runtime.running().is_empty(), "the sidecar went with the app");
    bench.until("stopped", |bench| bench.runtime.calls().contains(&"stop sandbox-1".to_owned())).await;
    assert!(bench.runtime.calls().contains(&"stop side#0 30".to_owned()), "{:?}", bench.runtime.calls());
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(bench.runtime.calls().iter().filter(|call| call.starts_with("start")).count(), 2);
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn images_that_cannot_be_pulled_back_off() {
    let bench = Bench::new();
    bench.runtime.fail("pull none:1", Some(CriError::not_found("manifest unknown")));
    let seat = bench.run(Bench::pod(json!({"containers": [{"name": "app", "image": "none:1"}]}), json!({})));
    let waiting = |bench: &Bench| bench.app()["state"]["waiting"].clone();
    bench.until("failing", |bench| waiting(bench)["reason"] == "ErrImagePull").await;
    assert_eq!(waiting(&bench)["message"], "manifest unknown");
    bench.until("waiting", |bench| waiting(bench)["reason"] == "ImagePullBackOff").await;
    assert_eq!(waiting(&bench)["message"], "Back-off pulling image \"none:1\": ErrImagePull: manifest unknown");
    assert!(bench.events().contains(&"! Failed: Failed to pull image \"none:1\": manifest unknown".to_owned()));
    bench.runtime.fail("pull none:1", None);
    bench.until("running", |bench| bench.runtime.running() == ["app#0"]).await;
    let pulls = bench.runtime.calls().iter().filter(|call| call.starts_with("pull")).count();
    assert_eq!(pulls, 2, "one that failed, one after the back-off");
    assert_eq!(bench.status()["phase"], "Running");
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_liveness_failure_restarts_the_container_with_the_probes_grace() {
    let bench = Bench::new();
    bench.runtime.make_stubborn("app");
    let probe = json!({"exec": {"command": ["check"]}, "periodSeconds": 1, "failureThreshold": 2,
        "terminationGracePeriodSeconds": 5});
    let seat = bench
        .run(Bench::pod(json!({"containers": [{"name": "app", "image": "app:1", "livenessProbe": probe}]}), json!({})));
    bench.until("running", |bench| bench.runtime.running() == ["app#0"]).await;
    bench.runtime.on_exec("check", 1, "broken");
    bench.until("restarted", |bench| bench.runtime.running() == ["app#1"]).await;
    assert!(bench.runtime.calls().contains(&"stop app#0 5".to_owned()), "{:?}", bench.runtime.calls());
    let events = bench.events();
    assert!(events.contains(&"! Unhealthy: Liveness probe failed: broken".to_owned()), "{events:?}");
    assert!(events.contains(&"Killing: Container app failed liveness probe, will be restarted".to_owned()));
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn the_pre_stop_hook_counts_against_the_grace() {
    let bench = Bench::new();
    let hook = json!({"preStop": {"sleep": {"seconds": 7}}});
    let seat =
        bench.run(Bench::pod(json!({"containers": [{"name": "app", "image": "app:1", "lifecycle": hook}]}), json!({})));
    bench.until("running", |bench| bench.runtime.running() == ["app#0"]).await;
    Bench::delete(&seat, 20, bench.tools.clock.now());
    bench.until("stopped", |bench| bench.runtime.running().is_empty()).await;
    assert!(bench.runtime.calls().contains(&"stop app#0 13".to_owned()), "{:?}", bench.runtime.calls());
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_forced_deletion_overtakes_a_patient_one() {
    let bench = Bench::new();
    bench.runtime.make_stubborn("app");
    let seat = bench.run(Bench::pod(json!({}), json!({})));
    bench.until("running", |bench| bench.runtime.running() == ["app#0"]).await;
    let began = bench.tools.clock.monotonic();
    Bench::delete(&seat, 600, bench.tools.clock.now());
    tokio::time::sleep(Duration::from_secs(3)).await;
    seat.orders.send_modify(|order| order.gone = true);
    Bench::delete(&seat, 0, bench.tools.clock.now());
    bench.until("stopped", |bench| bench.runtime.running().is_empty()).await;
    let took = bench.tools.clock.monotonic().saturating_sub(began);
    assert!(took < Duration::from_secs(7), "{took:?}");
    seat.task.await.expect("no panic");
    assert!(bench.runtime.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lost_sandbox_is_made_again() {
    let bench = Bench::new();
    let seat = bench.run(Bench::pod(json!({}), json!({})));
    bench.until("running", |bench| bench.runtime.running() == ["app#0"]).await;
    bench.runtime.lose_sandboxes();
    bench.until("running again", |bench| bench.runtime.running() == ["app#1"]).await;
    assert!(bench.runtime.calls().contains(&"sandbox p#1".to_owned()));
    let events = bench.events();
    assert!(
        events.contains(&"SandboxChanged: Pod sandbox changed, it will be killed and re-created.".to_owned()),
        "{events:?}"
    );
    bench.until("the new address", |bench| bench.status()["podIP"] != "10.1.0.1").await;
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_holds_the_pod_back_until_it_is_there() {
    let bench = Bench::new();
    let spec = json!({"volumes": [{"name": "v", "secret": {"secretName": "none"}}]});
    let seat = bench.run(Bench::pod(spec, json!({})));
    bench.until("told", |bench| bench.events().iter().any(|event| event.contains("FailedMount"))).await;
    assert!(
        bench.events().contains(
            &"! FailedMount: MountVolume.SetUp failed for volume \"v\" : secret \"none\" not found".to_owned()
        ),
        "{:?}",
        bench.events()
    );
    bench.until("shown", |bench| bench.status()["phase"] == "Pending").await;
    assert_eq!(bench.app()["state"]["waiting"]["reason"], "ContainerCreating");
    assert!(bench.runtime.calls().is_empty(), "no sandbox before the volumes");
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_failed_post_start_hook_kills_the_container() {
    let bench = Bench::new();
    bench.runtime.on_exec("hook", 7, "no");
    let hook = json!({"postStart": {"exec": {"command": ["hook"]}}});
    let seat =
        bench.run(Bench::pod(json!({"containers": [{"name": "app", "image": "app:1", "lifecycle": hook}]}), json!({})));
    bench.until("killed", |bench| bench.runtime.calls().contains(&"stop app#0 30".to_owned())).await;
    bench.until("told", |bench| bench.events().iter().any(|event| event.contains("FailedPostStartHook"))).await;
    bench.until("shown", |bench| bench.app()["state"]["waiting"]["reason"] == "PostStartHookError").await;
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn volumes_follow_their_objects() {
    let bench = Bench::new();
    let spec = json!({"volumes": [{"name": "cm", "configMap": {"name": "cm"}}]});
    let seat = bench.run(Bench::pod(spec, json!({})));
    bench.until("running", |bench| bench.runtime.running() == ["app#0"]).await;
    bench.shelf.replace_config_map(json!({"metadata": {"namespace": "ns", "name": "cm"}, "data": {"k": "new"}}));
    let file = bench.dir.path().join("pods/u/volumes/kubernetes.io~configmap/cm/k");
    bench.until("refreshed", |_| fs_err::read_to_string(&file).is_ok_and(|text| text == "new")).await;
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_change_during_a_refresh_is_not_lost() {
    let bench = Bench::new();
    let spec = json!({"volumes": [{"name": "cm", "configMap": {"name": "cm"}}]});
    let seat = bench.run(Bench::pod(spec, json!({})));
    bench.until("running", |bench| bench.runtime.running() == ["app#0"]).await;
    let replace = |text: &str| {
        bench.shelf.replace_config_map(json!({"metadata": {"namespace": "ns", "name": "cm"}, "data": {"k": text}}));
    };
    let held = Arc::clone(&bench.shelf.hold).lock_owned().await;
    let found = bench.shelf.found.load(Ordering::Relaxed);
    replace("first");
    bench.until("found", |bench| bench.shelf.found.load(Ordering::Relaxed) > found).await;
    replace("second");
    // Time for the worker to hear of it while it waits for the first.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    drop(held);
    let file = bench.dir.path().join("pods/u/volumes/kubernetes.io~configmap/cm/k");
    bench.until("refreshed", |_| fs_err::read_to_string(&file).is_ok_and(|text| text == "second")).await;
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn another_image_waits_for_no_back_off_of_the_one_before() {
    let bench = Bench::new();
    bench.runtime.fail("pull none:1", Some(CriError::not_found("manifest unknown")));
    let seat = bench.run(Bench::pod(json!({"containers": [{"name": "app", "image": "none:1"}]}), json!({})));
    bench.until("waiting", |bench| bench.app()["state"]["waiting"]["reason"] == "ImagePullBackOff").await;
    let changed = bench.tools.clock.monotonic();
    Bench::set_image(&seat, "app:1");
    bench.until("running", |bench| bench.runtime.running() == ["app#0"]).await;
    let took = bench.tools.clock.monotonic().saturating_sub(changed);
    assert!(took < Duration::from_secs(1), "{took:?}");
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn another_image_waits_for_no_crashes_of_the_one_before() {
    let bench = Bench::new();
    bench.runtime.add_image("app:2");
    let seat = bench.run(Bench::pod(json!({}), json!({})));
    for attempt in 0..4 {
        bench.until("running", |bench| bench.runtime.running() == [format!("app#{attempt}")]).await;
        bench.runtime.exit("app", 1);
    }
    bench.until("waiting", |bench| bench.app()["state"]["waiting"]["reason"] == "CrashLoopBackOff").await;
    let changed = bench.tools.clock.monotonic();
    Bench::set_image(&seat, "app:2");
    bench.until("running", |bench| bench.runtime.running() == ["app#4"]).await;
    let took = bench.tools.clock.monotonic().saturating_sub(changed);
    assert!(took < Duration::from_secs(1), "{took:?}");
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_deleted_before_its_first_container_has_failed() {
    let bench = Bench::new();
    let spec = json!({"volumes": [{"name": "v", "secret": {"secretName": "none"}}]});
    let seat = bench.run(Bench::pod(spec, json!({})));
    bench.until("pending", |bench| bench.status()["phase"] == "Pending").await;
    Bench::delete(&seat, 30, bench.tools.clock.now());
    bench.until("confirmed", |bench| bench.api.0.lock().expect("no holder panics").confirmed).await;
    assert_eq!(bench.status()["phase"], "Failed");
    let end = bench.app()["state"]["terminated"].clone();
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(137), &json!("ContainerStatusUnknown")));
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn containers_of_a_refused_pod_are_shown_as_ended() {
    let bench = Bench::new();
    let (orders, inbox) = watch::channel(Order::new(Bench::pod(json!({}), json!({}))));
    let shutdown = CancellationToken::new();
    let mut worker = Worker::new(Arc::clone(&bench.tools), inbox, Arc::default(), shutdown.clone());
    worker.reject(Rejection { reason: "NodeAffinity".into(), message: "Pod was rejected: no".to_owned() });
    let task = tokio::spawn(worker.run());
    bench.until("ended", |bench| bench.app()["state"]["terminated"]["exitCode"] == 137).await;
    let status = bench.status();
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("NodeAffinity")));
    assert!(bench.runtime.calls().is_empty(), "nothing of it was made");
    drop(orders);
    task.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_conflict_does_not_end_the_reports() {
    let bench = Bench::new();
    bench.api.0.lock().expect("no holder panics").conflicts = 3;
    let seat = bench.run(Bench::pod(json!({}), json!({})));
    bench.until("told", |bench| bench.status()["phase"] == "Running").await;
    bench.runtime.exit("app", 1);
    bench.until("told again", |bench| bench.app()["restartCount"] == 1).await;
    seat.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_takes_too_much_is_evicted() {
    let bench = Bench::new();
    bench.runtime.make_stubborn("app");
    let seat = bench.run(Bench::pod(json!({}), json!({})));
    bench.until("running", |bench| bench.runtime.running() == ["app#0"]).await;
    let began = bench.tools.clock.monotonic();
    let why = Rejection { reason: "Evicted".into(), message: "too much".to_owned() };
    seat.orders.send_modify(|order| order.ending = Some(Ending { why, by: None }));
    bench.until("ended", |bench| bench.runtime.running().is_empty()).await;
    let took = bench.tools.clock.monotonic().saturating_sub(began);
    assert!(took < Duration::from_secs(7), "{took:?}");
    bench.until("told", |bench| bench.status()["phase"] == "Failed").await;
    assert_eq!((&bench.status()["reason"], &bench.status()["message"]), (&json!("Evicted"), &json!("too much")));
    assert!(bench.events().contains(&"! Evicted: too much".to_owned()), "{:?}", bench.events());
    seat.shutdown.cancel();
}

/// Before the machine shuts down, nobody gets the time that they ask for.
#[tokio::test(start_paused = true)]
async fn a_pod_that_has_to_be_over_soon_gets_no_more_time() {
    let why = || Rejection { reason: TERMINATED.into(), message: "off".to_owned() };
    for is_deleted in [false, true] {
        let bench = Bench::new();
        bench.runtime.make_stubborn("app");
        let seat = bench.run(Bench::pod(json!({"terminationGracePeriodSeconds": 600}), json!({})));
        bench.until("told", |bench| bench.status()["phase"] == "Running").await;
        if is_deleted {
            Bench::delete(&seat, 600, bench.tools.clock.now());
            bench.until("asked to end", |bench| bench.calls().contains(&"stop app#0 600".to_owned())).await;
        }
        let (began, by) = (bench.tools.clock.monotonic(), after(bench.tools.clock.now(), Duration::from_secs(5)));
        seat.orders.send_modify(|order| order.ending = Some(Ending { why: why(), by: Some(by) }));
        bench.until("ended", |bench| bench.runtime.running().is_empty()).await;
        let took = bench.tools.clock.monotonic().saturating_sub(began);
        assert!(took < Duration::from_secs(8), "{took:?}");
        bench.until("told", |bench| bench.status()["reason"] == TERMINATED).await;
        assert_eq!((&bench.status()["phase"], &bench.status()["message"]), (&json!("Failed"), &json!("off")));
        assert_eq!(condition(&bench.status(), DISRUPTION), "True");
        seat.shutdown.cancel();
    }
}
