//! The scheduler of a running cluster, against a small API in memory that keeps state: what it binds, says, evicts and
//! promises.

mod api;
mod gangs;

use std::sync::Arc;
use std::time::Duration;

use api::Api;
use carob_client::Informers;
use carob_kit::SystemClock;
use carob_scheduler::{Explanations, Scheduler, SchedulerConfig};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer, but a machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

struct Cluster {
    api: Api,
    explanations: Explanations,
    shutdown: CancellationToken,
    scheduler: tokio::task::JoinHandle<()>,
}

impl Cluster {
    fn start(api: Api) -> Self {
        let (client, shutdown) = (api.client(), CancellationToken::new());
        let explanations = Explanations::default();
        let config = SchedulerConfig {
            initial_backoff: Duration::from_millis(20),
            max_backoff: Duration::from_millis(100),
            explanations: explanations.clone(),
            ..SchedulerConfig::default()
        };
        let end = shutdown.clone();
        let scheduler = tokio::spawn(async move {
            let informers = Informers::new(client.clone());
            let ran = Scheduler::run(client, informers, config, Arc::new(SystemClock::new()), end).await;
            ran.expect("without an election it cannot fail to start");
        });
        Self { api, explanations, shutdown, scheduler }
    }

    /// Waits until what is looked for is so.
    async fn until<T>(&self, what: &str, look: impl Fn(&Api) -> Option<T>) -> T {
        let seen = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(found) = look(&self.api) {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        match seen.await {
            Ok(found) => found,
            Err(tokio::time::error::Elapsed { .. }) => panic!("{what}; pods: {:#?}", self.api.all("pods")),
        }
    }

    async fn node_of(&self, pod: &str) -> String {
        self.until(&format!("{pod} has no node"), |api| node_of(api, pod)).await
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.scheduler.await.expect("the scheduler ends without a panic");
    }
}

fn node_of(api: &Api, pod: &str) -> Option<String> {
    api.get("pods", "default", pod)?["spec"]["nodeName"].as_str().map(str::to_owned)
}

fn condition(api: &Api, plural: &str, name: &str, kind: &str) -> Option<Value> {
    let object = api.get(plural, "default", name)?;
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind).cloned()
}

fn node(name: &str, memory: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "8", "memory": memory, "pods": "110"}}})
}

fn pod(name: &str, memory: &[&str], priority: i32) -> Value {
    let container = |(index, memory): (usize, &&str)| json!({"name": format!("c{index}"), "image": "busybox", "resources": {"requests": {"memory": memory}}});
    let containers: Vec<Value> = memory.iter().enumerate().map(container).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": containers, "priority": priority, "schedulerName": "default-scheduler"}})
}

fn events(api: &Api, reason: &str) -> Vec<String> {
    let said = |event: Value| event["message"].as_str().map(str::to_owned);
    api.all("events").into_iter().filter(|event| event["reason"] == reason).filter_map(said).collect()
}

#[tokio::test]
async fn the_notes_process_group_goes_to_the_node_that_has_room_for_all_of_it() {
    let api = Api::default();
    api.put("nodes", node("node-1", "3Gi"));
    api.put("nodes", node("node-2", "2560Mi"));
    let cluster = Cluster::start(api);
    cluster.api.put("pods", pod("rsyslogd", &["1Gi", "1Gi", "1Gi"], 0));
    assert_eq!(cluster.node_of("rsyslogd").await, "node-1");
    let said = cluster.until("no event", |api| events(api, "Scheduled").pop()).await;
    assert_eq!(said, "Successfully assigned default/rsyslogd to node-1");
    cluster.end().await;
}

#[tokio::test]
async fn a_pod_without_room_says_why_and_is_placed_once_a_node_comes() {
    let api = Api::default();
    api.put("nodes", node("small", "1Gi"));
    let cluster = Cluster::start(api);
    cluster.api.put("pods", pod("large", &["2Gi"], 0));
    let expected = "0/1 nodes are available: 1 Insufficient memory. preemption: 0/1 nodes are available: 1 Preemption is not \
                    helpful for scheduling.";
    let marked = cluster.until("no condition", |api| condition(api, "pods", "large", "PodScheduled")).await;
    assert_eq!((&marked["status"], &marked["reason"]), (&json!("False"), &json!("Unschedulable")));
    assert_eq!(marked["message"], expected);
    let said = cluster.until("no event", |api| events(api, "FailedScheduling").pop()).await;
    assert_eq!(said, expected);
    let why = cluster.explanations.get("default", "large").expect("it is explained");
    assert_eq!((why.nodes, why.reasons[0].node.as_str(), why.reasons[0].plugin), (1, "small", "NodeResourcesFit"));
    cluster.api.put("nodes", node("large", "4Gi"));
    assert_eq!(cluster.node_of("large").await, "large");
    cluster.until("still explained", |_| cluster.explanations.get("default", "large").is_none().then_some(())).await;
    cluster.end().await;
}

#[tokio::test]
async fn a_more_important_pod_takes_the_place_of_a_lesser_one() {
    let api = Api::default();
    api.put("nodes", node("only", "1Gi"));
    let mut lesser = pod("lesser", &["1Gi"], 0);
    lesser["spec"]["nodeName"] = "only".into();
    api.put("pods", lesser);
    let cluster = Cluster::start(api);
    cluster.api.put("pods", pod("greater", &["1Gi"], 100));
    assert_eq!(cluster.node_of("greater").await, "only");
    assert!(cluster.api.get("pods", "default", "lesser").is_none());
    let greater = cluster.api.get("pods", "default", "greater").expect("it is there");
    assert_eq!(greater["status"]["nominatedNodeName"], "only");
    let said = cluster.until("no event", |api| events(api, "Preempted").pop()).await;
    assert_eq!(said, "Preempted by pod uid-greater on node only");
    cluster.end().await;
}

/// Nodes `left` and `right` of 2Gi, each with a Pod of 1Gi that goes, once it is deleted, when a finalizer is taken off.
fn with_slow_victims() -> Api {
    let api = Api::default();
    for name in ["left", "right"] {
        api.put("nodes", node(name, "2Gi"));
        let mut lesser = pod(&format!("lesser-{name}"), &["1Gi"], 0);
        lesser["spec"]["nodeName"] = name.into();
        lesser["metadata"]["finalizers"] = json!(["example.com/slow"]);
        api.put("pods", lesser);
    }
    api
}

#[tokio::test]
async fn while_a_victim_takes_its_time_nobody_else_is_evicted() {
    let api = with_slow_victims();
    let cluster = Cluster::start(api);
    cluster.api.put("pods", pod("greater", &["2Gi"], 100));
    let promised =
        |api: &Api| api.get("pods", "default", "greater")?["status"]["nominatedNodeName"].as_str().map(str::to_owned);
    let node = cluster.until("no promise", promised).await;
    // Each of these wakes the Pod, which must not look for further victims.
    for index in 0..5 {
        let other = format!("other-{index}");
        cluster.api.put("pods", pod(&other, &["1Gi"], 0));
        cluster
            .until("it is tried", |api| {
                node_of(api, &other).or_else(|| condition(api, "pods", &other, "PodScheduled").map(|_| String::new()))
            })
            .await;
        cluster.api.remove("pods", "default", &other);
    }
    let leaving = |api: &Api| {
        let leaving = |pod: &Value| !pod["metadata"]["deletionTimestamp"].is_null();
        api.all("pods")
            .into_iter()
            .filter(leaving)
            .map(|pod| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    };
    let victim = format!("lesser-{node}");
    cluster.until("the victim is leaving", |api| leaving(api).contains(&victim).then_some(())).await;
    let marked = condition(&cluster.api, "pods", &victim, "DisruptionTarget").expect("it says why it goes");
    assert_eq!(marked["reason"], "PreemptionByScheduler");
    assert_eq!(marked["message"], "default-scheduler: preempting to accommodate a higher priority pod");
    assert_eq!(leaving(&cluster.api), [victim.as_str()]);
    cluster.api.remove("pods", "default", &victim);
    assert_eq!(cluster.node_of("greater").await, node);
    assert_eq!(leaving(&cluster.api), Vec::<String>::new());
    cluster.end().await;
}

#[tokio::test]
async fn a_binding_that_fails_is_tried_again() {
    let api = Api::default();
    api.put("nodes", node("only", "1Gi"));
    api.fail_next_binding("unlucky");
    let cluster = Cluster::start(api);
    cluster.api.put("pods", pod("unlucky", &["1Gi"], 0));
    assert_eq!(cluster.node_of("unlucky").await, "only");
    cluster.end().await;
}

#[tokio::test]
async fn many_pods_fill_the_nodes_and_never_overfill_them() {
    let api = Api::default();
    for index in 0..10 {
        api.put("nodes", node(&format!("n{index}"), "10Gi"));
    }
    let cluster = Cluster::start(api);
    for index in 0..110 {
        cluster.api.put("pods", pod(&format!("p{index}"), &["1Gi"], 0));
    }
    let placed = |api: &Api| {
        api.all("pods").iter().filter_map(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    cluster.until("100 are placed", |api| (placed(api).len() == 100).then_some(())).await;
    let left = |api: &Api| {
        (0..110).filter(|index| condition(api, "pods", &format!("p{index}"), "PodScheduled").is_some()).count()
    };
    cluster.until("10 say that there is no room", |api| (left(api) >= 10).then_some(())).await;
    let nodes = placed(&cluster.api);
    for index in 0..10 {
        assert_eq!(nodes.iter().filter(|node| **node == format!("n{index}")).count(), 10);
    }
    cluster.end().await;
}

fn member(name: &str, memory: &str) -> Value {
    let mut member = pod(name, &[memory], 0);
    member["spec"]["schedulingGroup"] = json!({"podGroupName": "gang"});
    member
}

#[tokio::test]
async fn a_gang_waits_for_its_members_and_for_room_and_then_goes_at_once() {
    let api = Api::default();
    api.put("nodes", node("a", "2Gi"));
    let cluster = Cluster::start(api);
    cluster.api.put("pods", member("m0", "1Gi"));
    let waits = |part: &'static str| {
        move |api: &Api| {
            condition(api, "pods", "m0", "PodScheduled")
                .filter(|c| c["message"].as_str().is_some_and(|text| text.contains(part)))
        }
    };
    cluster.until("it waits for its group", waits("waiting for pod's pod group \"gang\"")).await;
    cluster.api.put(
        "podgroups",
        json!({"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "PodGroup",
        "metadata": {"name": "gang", "namespace": "default"}, "spec": {"schedulingPolicy": {"gang": {"minCount": 3}}}}),
    );
    cluster.api.put("pods", member("m1", "1Gi"));
    cluster.api.put("pods", member("m2", "1Gi"));
    cluster.until("it waits for room", waits("minCount (3) cannot be satisfied: 2 scheduled, 1 remaining")).await;
    assert!((0..3).all(|index| node_of(&cluster.api, &format!("m{index}")).is_none()), "nobody goes ahead");
    let failed =
        cluster.until("the group says so", |api| condition(api, "podgroups", "gang", "PodGroupScheduled")).await;
    assert_eq!(failed["status"], "False");
    cluster.api.put("nodes", node("b", "1Gi"));
    for index in 0..3 {
        cluster.node_of(&format!("m{index}")).await;
    }
    let placed = |api: &Api| condition(api, "podgroups", "gang", "PodGroupScheduled").filter(|c| c["status"] == "True");
    cluster.until("the group is placed", placed).await;
    cluster.end().await;
}

#[tokio::test]
async fn groups_that_may_not_be_read_hold_nobody_up() {
    let api = Api::default();
    api.forbid_label_groups();
    api.put("nodes", node("only", "1Gi"));
    let cluster = Cluster::start(api);
    cluster.api.put("pods", pod("single", &["1Gi"], 0));
    assert_eq!(cluster.node_of("single").await, "only");
    cluster.end().await;
}

#[tokio::test]
async fn a_gang_that_lost_a_member_says_how_many_are_missing() {
    let api = Api::default();
    api.put("nodes", node("a", "1Gi"));
    let group = json!({"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "PodGroup",
        "metadata": {"name": "gang", "namespace": "default"}, "spec": {"schedulingPolicy": {"gang": {"minCount": 2}}}});
    api.put("podgroups", group);
    let cluster = Cluster::start(api);
    let says = |part: &'static str| {
        move |api: &Api| {
            condition(api, "podgroups", "gang", "PodGroupScheduled")
                .filter(|c| c["message"].as_str().is_some_and(|text| text.contains(part)))
        }
    };
    let first = cluster.until("it has nobody yet", says("has 0 of 2, 2 missing")).await;
    cluster.api.put("pods", member("m0", "1Gi"));
    cluster.api.put("pods", member("m1", "1Gi"));
    cluster.until("it waits for room", says("minCount (2) cannot be satisfied")).await;
    let why = cluster.explanations.get("default", "m0").expect("it is explained");
    assert!(why.reasons[0].plugin == "NodeResourcesFit" && why.nodes == 1, "{why:?}");
    cluster.api.remove("pods", "default", "m1");
    let last = cluster.until("it waits for members again", says("has 1 of 2, 1 missing")).await;
    assert_eq!(last["lastTransitionTime"], first["lastTransitionTime"], "it was false all the time");
    let why = cluster.explanations.get("default", "m0").expect("it is explained");
    assert!(why.message.contains("1 missing"), "{why:?}");
    cluster.end().await;
}

fn gang(min_count: u32, disruption_mode: &str) -> Value {
    json!({"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "PodGroup", "metadata": {"name": "gang", "namespace": "default"},
        "spec": {"schedulingPolicy": {"gang": {"minCount": min_count}}, "disruptionMode": disruption_mode}})
}

#[tokio::test]
async fn a_member_too_many_speaks_for_itself_only() {
    let api = Api::default();
    api.put("nodes", node("a", "2Gi"));
    api.put("podgroups", gang(2, "Pod"));
    let cluster = Cluster::start(api);
    for name in ["m0", "m1"] {
        cluster.api.put("pods", member(name, "1Gi"));
    }
    cluster.node_of("m1").await;
    cluster.api.put("pods", member("m2", "1Gi"));
    let marked = cluster.until("no condition", |api| condition(api, "pods", "m2", "PodScheduled")).await;
    assert!(marked["message"].as_str().is_some_and(|text| text.starts_with("0/1 nodes are available")), "{marked}");
    let group = cluster.until("no condition", |api| condition(api, "podgroups", "gang", "PodGroupScheduled")).await;
    assert_eq!((&group["status"], &group["message"]), (&json!("True"), &json!("2 pods have a node, minCount is 2")));
    cluster.end().await;
}

#[tokio::test]
async fn a_gang_that_goes_as_a_whole_says_why() {
    let api = Api::default();
    api.put("nodes", node("a", "1Gi"));
    api.put("nodes", node("b", "1Gi"));
    api.put("podgroups", gang(2, "PodGroup"));
    let cluster = Cluster::start(api);
    for name in ["m0", "m1"] {
        cluster.api.put("pods", member(name, "1Gi"));
    }
    for name in ["m0", "m1"] {
        cluster.node_of(name).await;
    }
    cluster.api.put("pods", pod("greater", &["1Gi"], 100));
    cluster.node_of("greater").await;
    cluster.until("both are gone", |api| (api.all("pods").len() == 1).then_some(())).await;
    let said = cluster.until("no condition", |api| condition(api, "podgroups", "gang", "DisruptionTarget")).await;
    assert_eq!((&said["status"], &said["reason"]), (&json!("True"), &json!("PreemptionByScheduler")));
    cluster.end().await;
}
