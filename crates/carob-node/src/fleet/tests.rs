//! Static Pods while nobody answers for the API, against the runtime in memory, in tokio's paused time.

use std::collections::BTreeMap;

use carob_client::{Informers, in_process};
use serde_json::json;

use super::*;
use crate::manifests::HASH;
use crate::worker::tests::Bench;

fn static_pod(name: &str, uid: &str, grace: i64) -> Arc<Pod> {
    let metadata = json!({"name": name, "namespace": "ns", "uid": uid, "annotations": {HASH: uid}});
    let spec = json!({"terminationGracePeriodSeconds": grace, "containers": [{"name": "app", "image": "app:1"}]});
    Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a Pod"))
}

fn manifests(pods: &[Arc<Pod>]) -> Arc<Manifests> {
    let named = |pod: &Arc<Pod>| {
        let id = PodId::of(pod);
        ((id.namespace, id.name), Arc::clone(pod))
    };
    Arc::new(Manifests { pods: pods.iter().map(named).collect::<BTreeMap<_, _>>(), complete: true })
}

struct Node {
    bench: Bench,
    fleet: Arc<Fleet>,
    manifests: watch::Sender<Arc<Manifests>>,
    _pressures: watch::Sender<Pressures>,
    closing: watch::Sender<bool>,
    shutdown: CancellationToken,
}

/// A node whose API never answers.
fn alone(first: Arc<Manifests>) -> Node {
    let bench = Bench::new();
    let nobody = tower::service_fn(|_request: http::Request<kube::client::Body>| {
        std::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>()
    });
    let informers = Informers::new(in_process(nobody));
    let (manifests, receiver) = watch::channel(first);
    let (pressures, short) = watch::channel(Pressures::new());
    let (closing, is_closing) = watch::channel(false);
    let (pods, nodes) = (informers.of(), informers.of());
    let sources = Sources { pods, nodes, manifests: receiver, pressures: short, closing: is_closing };
    let room = Room { cpu_milli: 1000, memory_bytes: 1 << 30, pods: 10, ..Room::default() };
    let shutdown = CancellationToken::new();
    let fleet = Fleet::new(bench.tools(), sources, room, shutdown.clone());
    let running = Arc::clone(&fleet);
    tokio::spawn(async move { running.run(std::future::pending()).await });
    Node { bench, fleet, manifests, _pressures: pressures, closing, shutdown }
}

const OLD: &str = "00000000000000000000000000000001";
const NEW: &str = "00000000000000000000000000000002";

#[tokio::test(start_paused = true)]
async fn static_pods_live_without_an_api() {
    let node = alone(manifests(&[static_pod("web-n", OLD, 5)]));
    node.bench.until("running", |bench| bench.running() == ["app#0"]).await;
    let shown = || node.fleet.pod("ns", "web-n").and_then(|pod| pod.status.clone()?.phase);
    node.bench.until("shown", |_| shown().as_deref() == Some("Running")).await;

    // The same name with another meaning waits for the end of the one before it, which has its grace.
    node.bench.make_stubborn("app");
    node.manifests.send_replace(manifests(&[static_pod("web-n", NEW, 5)]));
    node.bench.until("told to end", |bench| bench.calls().contains(&"stop app#0 5".to_owned())).await;
    assert_eq!(node.bench.running(), ["app#0"], "not both at a time");
    node.bench.until("replaced", |_| node.fleet.pods().iter().any(|pod| PodId::of(pod).uid == NEW)).await;
    node.bench.until("running again", |bench| bench.running() == ["app#0"]).await;

    node.manifests.send_replace(manifests(&[]));
    node.bench.until("gone", |bench| bench.running().is_empty()).await;
    node.bench.until("forgotten", |_| *node.fleet.count().borrow() == 0).await;
    assert_eq!(node.bench.writes(), 0, "there was nobody to tell");
    node.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn what_a_manifest_no_longer_names_is_ended_at_the_start_of_the_node() {
    let node = alone(manifests(&[static_pod("web-n", OLD, 0)]));
    node.bench.until("running", |bench| bench.running() == ["app#0"]).await;
    node.shutdown.cancel();
    node.bench.until("let go", |_| node.fleet.tasks.is_empty()).await;
    assert_eq!(node.bench.running(), ["app#0"], "Pods outlive the node's process");
    let later = node.again(manifests(&[]));
    node.bench.until("ended", |bench| bench.running().is_empty()).await;
    later.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_node_that_shuts_down_takes_no_pod_and_knows_when_its_own_are_over() {
    let node = alone(manifests(&[static_pod("web-n", OLD, 5)]));
    node.bench.until("running", |bench| bench.running() == ["app#0"]).await;
    node.closing.send_replace(true);
    node.manifests.send_replace(manifests(&[static_pod("web-n", OLD, 5), static_pod("late-n", NEW, 5)]));
    let reason = |name| node.fleet.pod("ns", name).and_then(|pod| pod.status.clone()?.reason);
    node.bench.until("refused", |_| reason("late-n").as_deref() == Some("NodeShutdown")).await;
    let unfinished = || node.fleet.unfinished_pods().iter().map(|pod| PodId::of(pod).uid).collect::<Vec<_>>();
    node.bench.until("the refused one is over", |_| unfinished() == [OLD]).await;
    node.fleet.evict(OLD, Rejection { reason: shutdown::TERMINATED.into(), message: String::new() });
    node.fleet.until_over(OLD).await;
    assert!(node.bench.running().is_empty() && unfinished().is_empty());
    assert_eq!(reason("web-n").as_deref(), Some("Terminated"));
    node.fleet.until_over("a Pod that nobody knows").await;
    node.shutdown.cancel();
}

impl Node {
    /// Another life of the node on the same runtime.
    fn again(&self, first: Arc<Manifests>) -> CancellationToken {
        let (sender, manifests) = watch::channel(first);
        let (pressures, short) = watch::channel(Pressures::new());
        let sources = Sources {
            pods: self.fleet.pods.clone(),
            nodes: self.fleet.nodes.clone(),
            manifests,
            pressures: short,
            closing: self.fleet.closing.clone(),
        };
        let shutdown = CancellationToken::new();
        let fleet = Fleet::new(self.bench.tools(), sources, self.fleet.machine.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _keep = (sender, pressures);
            fleet.run(std::future::pending()).await;
        });
        shutdown
    }
}
