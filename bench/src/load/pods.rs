//! Pods with processes: how fast they start and end.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::{Value, json};

use super::{PODS, Server, name};
use crate::measure::{Meter, Moment, percentiles};

fn sleeping_pod(n: usize) -> Value {
    let command = ["sh", "-c", "trap 'exit 0' TERM; echo listening; while true; do sleep 1000 & wait $!; done"];
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name(n) },
        "spec": { "containers": [{ "name": "main", "image": "busybox", "imagePullPolicy": "Never", "command": command }] }
    })
}

fn is_running(event: &Value) -> bool {
    event["object"]["status"]["phase"] == "Running"
}

/// Pods one after the other: create to Running, delete to gone.
pub(super) async fn one_by_one(server: &Server) -> Result<Value> {
    const ROUNDS: usize = 60;
    let mut client = server.access.connect().await?;
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    let meter = Meter::start(server.pid)?;
    for n in 0..ROUNDS {
        let path = format!("{PODS}?watch=1&fieldSelector=metadata.name%3D{}", name(n));
        let mut watch = server.access.connect().await?.watch(&path).await?;
        let moment = Moment::now();
        client.create(PODS, &sleeping_pod(n)).await?;
        watch.until(is_running).await?;
        starts.push(moment.elapsed());
        // Until the shell listens for TERM it is deaf to it, as any first process of a PID namespace is (signal(7)).
        let log = format!("{PODS}/{}/log?follow=true", name(n));
        server.access.connect().await?.watch(&log).await?.next().await?;
        let moment = Moment::now();
        client.delete(&format!("{PODS}/{}", name(n))).await?;
        watch.until(|event| event["type"] == "DELETED").await?;
        ends.push(moment.elapsed());
    }
    let cost = meter.stop(ROUNDS)?;
    Ok(json!({ "apply_to_running": percentiles(starts)?, "delete_to_gone": percentiles(ends)?, "lives": cost }))
}

/// Thirty Pods at once; they are left running, so that their memory can be looked at.
pub(super) async fn burst(server: &Server) -> Result<Value> {
    const BURST: usize = 30;
    let mut watch = server.access.connect().await?.watch(&format!("{PODS}?watch=1")).await?;
    let mut clients = Vec::new();
    for _ in 0..BURST {
        clients.push(server.access.connect().await?);
    }
    let meter = Meter::start(server.pid)?;
    let moment = Moment::now();
    let creates: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(n, mut client)| tokio::spawn(async move { client.create(PODS, &sleeping_pod(n)).await }))
        .collect();
    let mut running = BTreeSet::new();
    watch
        .until(|event| {
            if is_running(event) {
                running.insert(event["object"]["metadata"]["name"].to_string());
            }
            running.len() == BURST
        })
        .await?;
    let elapsed = moment.elapsed();
    let starts = meter.stop(BURST)?;
    for create in creates {
        create.await??;
    }
    Ok(json!({ "pods": BURST, "all_running_s": elapsed.as_secs_f64(), "starts": starts }))
}
