//! One object, and a thousand that watch it: each on a connection of its own, HTTP/1.1 over TLS, as a thousand clients are.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::sync::{Barrier, mpsc};

use super::{CONFIG_MAPS, Server, name};
use crate::client::Watch;
use crate::measure::{Meter, Moment, percentiles};

const WATCHERS: usize = 1000;
const ROUNDS: usize = 50;

/// Time from sending an update until its event has arrived at each watcher.
///
/// A watcher notes when bytes arrive, and decrypts them only once all watchers have theirs: a thousand decryptions in a row
/// would else be measured along, as the wait of those that come last.
pub(super) async fn run(server: &Server) -> Result<Value> {
    let mut writer = server.access.connect().await?;
    let object =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name(0) }, "data": { "key": "-" } });
    writer.create(CONFIG_MAPS, &object).await?;
    let all_have_it = Arc::new(Barrier::new(WATCHERS));
    let (arrivals, mut arrived) = mpsc::channel(WATCHERS);
    let mut tasks = Vec::new();
    for _ in 0..WATCHERS {
        let path = format!("{CONFIG_MAPS}?watch=1&fieldSelector=metadata.name%3D{}", name(0));
        let mut watch = server.access.connect().await?.watch(&path).await?;
        watch.until(|event| event["type"] == "ADDED").await?;
        tasks.push(tokio::spawn(follow(watch, Arc::clone(&all_have_it), arrivals.clone())));
    }
    drop(arrivals);
    let meter = Meter::start(server.pid)?;
    let mut samples = Vec::with_capacity(ROUNDS * WATCHERS);
    let mut answered = Vec::with_capacity(ROUNDS);
    for n in 0..ROUNDS {
        let sent = Moment::now();
        writer.patch(&format!("{CONFIG_MAPS}/{}", name(0)), &json!({ "data": { "key": n.to_string() } })).await?;
        answered.push(sent.elapsed());
        for _ in 0..WATCHERS {
            let arrival: Moment = arrived.recv().await.ok_or_else(|| anyhow::anyhow!("a watcher ended"))?;
            samples.push(arrival.since(sent));
        }
        // Those who read are done before the next round begins.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let cost = meter.stop(ROUNDS * WATCHERS)?;
    for task in tasks {
        task.await??;
    }
    writer.delete(&format!("{CONFIG_MAPS}/{}", name(0))).await?;
    Ok(json!({
        "transport": format!("{WATCHERS} connections, HTTP/1.1 over TLS"),
        "update_to_event": percentiles(samples)?,
        "update_to_answer": percentiles(answered)?,
        "events": cost,
    }))
}

async fn follow(mut watch: Watch, all_have_it: Arc<Barrier>, arrivals: mpsc::Sender<Moment>) -> Result<()> {
    for _ in 0..ROUNDS {
        watch.arrived().await?;
        let moment = Moment::now();
        all_have_it.wait().await;
        arrivals.send(moment).await?;
        watch.next().await?;
    }
    Ok(())
}
