//! The load: runs inside the server's host and prints one JSON document. One module a kind of load.

mod bound;
mod net;
mod pods;
mod requests;
mod watchers;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::client::{Access, Client};
use crate::measure::Meter;

/// Clients of the throughput cases, as upstream was measured with.
const CLIENTS: usize = 16;
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// The server under load.
#[derive(Clone)]
struct Server {
    access: Access,
    /// Its PID, as this process counts.
    pid: u32,
}

/// Runs one case.
pub(crate) async fn run(case: &str, kubeconfig: &Path, pid: u32) -> Result<Value> {
    let server = Server { access: Access::from_kubeconfig(kubeconfig)?, pid };
    match case {
        "configmaps" => requests::config_maps(&server).await,
        "pods" => requests::pods(&server).await,
        "reads" => requests::reads(&server).await,
        "watchers" => watchers::on_their_own(&server).await,
        "shared-watchers" => watchers::sharing(&server).await,
        "start" => pods::one_by_one(&server).await,
        "burst" => pods::burst(&server).await,
        "bound" => bound::on_new_nodes(&server).await,
        "services" => net::services(&server).await,
        "names" => net::names(&server).await,
        "virtual" => bound::on_virtual_nodes(&server).await,
        other => bail!("there is no case {other}"),
    }
}

/// A Pod that no node takes: the API's part of a Pod, without its processes.
fn pending_pod(n: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name(n), "labels": { "bench": "pending" } },
        "spec": { "schedulerName": "nobody", "containers": [{ "name": "main", "image": "busybox" }] }
    })
}

fn name(n: usize) -> String {
    format!("bench-{n}")
}

/// Runs `work` for 0..count on so many connections, and tells what that came to.
async fn spread<F, Fut>(server: &Server, count: usize, clients: usize, work: F) -> Result<Value>
where
    F: Fn(Client, Numbers) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    let numbers = Numbers { next: Arc::default(), count };
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(server.access.connect().await?);
    }
    let meter = Meter::start(server.pid)?;
    let tasks: Vec<_> = connections.into_iter().map(|client| tokio::spawn(work(client, numbers.clone()))).collect();
    for task in tasks {
        task.await??;
    }
    meter.stop(count)
}

/// Hands out each number once.
#[derive(Clone)]
struct Numbers {
    next: Arc<AtomicUsize>,
    count: usize,
}

impl Numbers {
    fn take(&self) -> Option<usize> {
        Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < self.count)
    }
}
