//! The whole system: Pods made by sixteen clients, until the last has a node.

use std::collections::HashSet;

use anyhow::{Context, Result};
use memchr::memmem;
use serde_json::{Value, json};

use super::{CLIENTS, NODES, PODS, Server, name, spread};
use crate::client::{Watch, name_of};
use crate::measure::{Meter, Moment};

const BOUND_NODES: usize = 1000;
const BOUND_PODS: usize = 5000;

/// A Pod as upstream's scheduler benchmark has it (test/integration/scheduler_perf, pod-default.yaml).
fn plain_pod(n: usize) -> Value {
    let resources = json!({ "requests": { "cpu": "100m", "memory": "500Mi" } });
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name(n) },
        "spec": { "containers": [{ "name": "pause", "image": "registry.k8s.io/pause:3.10", "resources": resources }] }
    })
}

/// A Node that is ready and that nobody serves, as in upstream's benchmark (node-default.yaml). Without heartbeats it counts as
/// lost after 40 s, by when this case is over.
fn node(n: usize) -> Value {
    let capacity = json!({ "cpu": "4", "memory": "32Gi", "pods": "110" });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name(n), "labels": { "topology.kubernetes.io/zone": format!("zone-{}", n % 3) } },
        "spec": { "podCIDR": format!("240.{}.{}.0/24", n / 256, n % 256) },
        "status": {
            "capacity": capacity, "allocatable": capacity,
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }]
        }
    })
}

/// On nodes that nobody serves: what is measured is the API, the store and the scheduler.
pub(super) async fn on_new_nodes(server: &Server) -> Result<Value> {
    let nodes = spread(server, BOUND_NODES, CLIENTS, |mut client, numbers| async move {
        while let Some(n) = numbers.take() {
            client.create(NODES, &node(n)).await?;
        }
        Ok(())
    });
    let nodes = nodes.await.context("create nodes")?;
    Ok(json!({ "nodes": nodes, "create_to_bound": create_to_bound(server).await? }))
}

/// On virtual nodes, which run the Pods besides, so that each Pod is written once more.
pub(super) async fn on_virtual_nodes(server: &Server) -> Result<Value> {
    let running = format!("{PODS}?watch=1&fieldSelector=status.phase%3DRunning");
    let mut running = server.access.connect().await?.watch(&running).await?;
    let moment = Moment::now();
    let bound = create_to_bound(server).await?;
    all(&mut running, |_| true).await.context("wait for running Pods")?;
    Ok(
        json!({ "create_to_bound": bound, "create_to_running_per_s": BOUND_PODS as f64 / moment.elapsed().as_secs_f64() }),
    )
}

async fn create_to_bound(server: &Server) -> Result<Value> {
    let bound = format!("{PODS}?watch=1&fieldSelector=spec.nodeName%21%3D");
    let mut bound = server.access.connect().await?.watch(&bound).await?;
    let meter = Meter::start(server.pid)?;
    let creates = spread(server, BOUND_PODS, CLIENTS, |mut client, numbers| async move {
        while let Some(n) = numbers.take() {
            client.create(PODS, &plain_pod(n)).await?;
        }
        Ok(())
    });
    let (creates, bound) =
        tokio::join!(creates, all(&mut bound, |event| memmem::find(event, b"\"nodeName\":\"").is_some()));
    bound.context("wait for bound Pods")?;
    let mut report = meter.stop(BOUND_PODS)?;
    report["creates"] = creates.context("create Pods")?;
    Ok(report)
}

/// Waits until every Pod was in an event about which `wanted` says yes. Events are scanned, not decoded.
async fn all(watch: &mut Watch, wanted: impl Fn(&[u8]) -> bool) -> Result<()> {
    let mut seen = HashSet::new();
    while seen.len() < BOUND_PODS {
        let event = watch.next().await?;
        if let Some(name) = name_of(event).filter(|_| wanted(event))
            && !seen.contains(name)
        {
            seen.insert(name.to_owned());
        }
    }
    Ok(())
}
