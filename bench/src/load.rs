//! The load: runs inside the server's host and prints one JSON document.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::client::{Access, Client, Watch};
use crate::measure::{Moment, percentiles};

/// Clients of the throughput cases, as upstream was measured with.
const CLIENTS: usize = 16;
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// Runs one case.
pub(crate) async fn run(case: &str, kubeconfig: &Path) -> Result<Value> {
    let access = Access::from_kubeconfig(kubeconfig)?;
    match case {
        "configmaps" => {
            writes(&access, CONFIG_MAPS, 4000, config_map, |n| json!({ "data": { "key": format!("changed {n}") } }))
                .await
        }
        "pods" => {
            writes(&access, PODS, 2000, pending_pod, |n| json!({ "metadata": { "labels": { "n": n.to_string() } } }))
                .await
        }
        "reads" => reads(&access).await,
        "watchers" => watchers(&access).await,
        "start" => start_one_by_one(&access).await,
        "burst" => burst(&access).await,
        other => bail!("there is no case {other}"),
    }
}

fn config_map(n: usize) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": format!("bench-{n}") }, "data": { "key": "v".repeat(512) } })
}

/// A Pod that no node takes: the API's part of a Pod, without its processes.
fn pending_pod(n: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("bench-{n}"), "labels": { "bench": "pending" } },
        "spec": { "schedulerName": "nobody", "containers": [{ "name": "main", "image": "busybox" }] }
    })
}

fn sleeping_pod(n: usize) -> Value {
    let command = ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 1000 & wait $!; done"];
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("bench-{n}") },
        "spec": { "containers": [{ "name": "main", "image": "busybox", "imagePullPolicy": "Never", "command": command }] }
    })
}

/// Runs `work` for 0..count on [`CLIENTS`] connections and returns operations per second.
async fn spread<F, Fut>(access: &Access, count: usize, clients: usize, work: F) -> Result<f64>
where
    F: Fn(Client, Arc<AtomicUsize>) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(access.connect().await?);
    }
    let moment = Moment::now();
    let tasks: Vec<_> = connections.into_iter().map(|client| tokio::spawn(work(client, Arc::clone(&next)))).collect();
    for task in tasks {
        task.await??;
    }
    Ok(count as f64 / moment.elapsed().as_secs_f64())
}

/// Create, patch and delete of one kind.
async fn writes(
    access: &Access,
    path: &'static str,
    count: usize,
    object: fn(usize) -> Value,
    patch: fn(usize) -> Value,
) -> Result<Value> {
    let create = spread(access, count, CLIENTS, |mut client, next| async move {
        while let Some(n) = take(&next, count) {
            client.create(path, &object(n)).await?;
        }
        Ok(())
    });
    let create = create.await.context("create")?;
    let patch = spread(access, count, CLIENTS, |mut client, next| async move {
        while let Some(n) = take(&next, count) {
            client.patch(&format!("{path}/bench-{n}"), &patch(n)).await?;
        }
        Ok(())
    });
    let patch = patch.await.context("patch")?;
    let delete = spread(access, count, CLIENTS, |mut client, next| async move {
        while let Some(n) = take(&next, count) {
            client.delete(&format!("{path}/bench-{n}")).await?;
        }
        Ok(())
    });
    Ok(json!({ "create_per_s": create, "patch_per_s": patch, "delete_per_s": delete.await.context("delete")? }))
}

fn take(next: &AtomicUsize, count: usize) -> Option<usize> {
    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < count)
}

/// GET of one of 1 000 Pods, and LIST of all of them.
async fn reads(access: &Access) -> Result<Value> {
    const PODS_LISTED: usize = 1000;
    const GETS: usize = 40_000;
    const LISTS: usize = 400;
    spread(access, PODS_LISTED, CLIENTS, |mut client, next| async move {
        while let Some(n) = take(&next, PODS_LISTED) {
            client.create(PODS, &pending_pod(n)).await?;
        }
        Ok(())
    })
    .await?;
    let get = spread(access, GETS, CLIENTS, |mut client, next| async move {
        while let Some(n) = take(&next, GETS) {
            client.get(&format!("{PODS}/bench-{}", n % PODS_LISTED)).await?;
        }
        Ok(())
    });
    let get = get.await.context("get")?;
    let list_bytes = access.connect().await?.get(PODS).await?;
    let list = spread(access, LISTS, 4, |mut client, next| async move {
        while take(&next, LISTS).is_some() {
            client.get(PODS).await?;
        }
        Ok(())
    });
    let list = list.await.context("list")?;
    access.connect().await?.delete(&format!("{PODS}?labelSelector=bench%3Dpending")).await?;
    Ok(json!({ "get_per_s": get, "list_per_s": list, "list_bytes": list_bytes }))
}

/// Time from the answer to an update until 1 000 watchers have its event.
async fn watchers(access: &Access) -> Result<Value> {
    const WATCHERS: usize = 1000;
    const ROUNDS: usize = 50;
    let mut writer = access.connect().await?;
    writer.create(CONFIG_MAPS, &config_map(0)).await?;
    let (sent, _) = tokio::sync::broadcast::channel::<Moment>(ROUNDS);
    let mut tasks = Vec::new();
    for _ in 0..WATCHERS {
        let path = format!("{CONFIG_MAPS}?watch=1&fieldSelector=metadata.name%3Dbench-0");
        let mut watch = Watch::start(access.connect().await?, &path).await?;
        watch.until(|event| event["type"] == "ADDED").await?;
        let mut sent = sent.subscribe();
        tasks.push(tokio::spawn(async move {
            let mut samples = Vec::with_capacity(ROUNDS);
            for _ in 0..ROUNDS {
                watch.next().await?;
                let received = Moment::now();
                let moment = sent.recv().await?;
                samples.push(moment.elapsed().saturating_sub(received.elapsed()));
            }
            anyhow::Ok(samples)
        }));
    }
    for n in 0..ROUNDS {
        let moment = Moment::now();
        writer.patch(&format!("{CONFIG_MAPS}/bench-0"), &json!({ "data": { "key": n.to_string() } })).await?;
        sent.send(moment)?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut samples = Vec::new();
    for task in tasks {
        samples.extend(task.await??);
    }
    writer.delete(&format!("{CONFIG_MAPS}/bench-0")).await?;
    percentiles(samples)
}

fn is_running(event: &Value) -> bool {
    event["object"]["status"]["phase"] == "Running"
}

/// Pods one after the other: create to Running, delete to gone.
async fn start_one_by_one(access: &Access) -> Result<Value> {
    const ROUNDS: usize = 60;
    let mut client = access.connect().await?;
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for n in 0..ROUNDS {
        let path = format!("{PODS}?watch=1&fieldSelector=metadata.name%3Dbench-{n}");
        let mut watch = Watch::start(access.connect().await?, &path).await?;
        let moment = Moment::now();
        client.create(PODS, &sleeping_pod(n)).await?;
        watch.until(is_running).await?;
        starts.push(moment.elapsed());
        let moment = Moment::now();
        client.delete(&format!("{PODS}/bench-{n}")).await?;
        watch.until(|event| event["type"] == "DELETED").await?;
        ends.push(moment.elapsed());
    }
    Ok(json!({ "apply_to_running": percentiles(starts)?, "delete_to_gone": percentiles(ends)? }))
}

/// Thirty Pods at once; they are left running, so that their memory can be looked at.
async fn burst(access: &Access) -> Result<Value> {
    const BURST: usize = 30;
    let mut watch = Watch::start(access.connect().await?, &format!("{PODS}?watch=1")).await?;
    let mut clients = Vec::new();
    for _ in 0..BURST {
        clients.push(access.connect().await?);
    }
    let moment = Moment::now();
    let creates: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(n, mut client)| tokio::spawn(async move { client.create(PODS, &sleeping_pod(n)).await }))
        .collect();
    let mut running = std::collections::BTreeSet::new();
    watch
        .until(|event| {
            if is_running(event) {
                running.insert(event["object"]["metadata"]["name"].to_string());
            }
            running.len() == BURST
        })
        .await?;
    let elapsed = moment.elapsed();
    for create in creates {
        create.await??;
    }
    Ok(json!({ "pods": BURST, "all_running_s": elapsed.as_secs_f64() }))
}
