//! One object, and a thousand that watch it: as a thousand clients, each on a connection of its own, and as ten clients of a
//! hundred watches each, which share their client's connection as those of client-go do.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::{Barrier, mpsc};
use tokio::task::JoinHandle;

use super::{CONFIG_MAPS, Server, name};
use crate::client::{Client, Watch};
use crate::measure::{Meter, Moment, percentiles, pss_kib};

const WATCHERS: usize = 1000;
/// Connections of HTTP/2 that carry all watches.
const CLIENTS: usize = 10;
const ROUNDS: usize = 50;

type Followers = Vec<JoinHandle<Result<()>>>;

fn watch_path() -> String {
    format!("{CONFIG_MAPS}?watch=1&fieldSelector=metadata.name%3D{}", name(0))
}

async fn make_object(writer: &mut Client) -> Result<()> {
    let object =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name(0) }, "data": { "key": "-" } });
    writer.create(CONFIG_MAPS, &object).await?;
    Ok(())
}

/// A connection for each watcher, HTTP/1.1 over TLS.
///
/// A watcher notes when bytes arrive, and decrypts them only once all watchers have theirs: a thousand decryptions in a row
/// would else be measured along, as the wait of those that come last.
pub(super) async fn on_their_own(server: &Server) -> Result<Value> {
    let mut writer = server.access.connect().await?;
    make_object(&mut writer).await?;
    let without = pss_kib(server.pid)?;
    let all_have_it = Arc::new(Barrier::new(WATCHERS));
    let (arrivals, arrived) = mpsc::channel(WATCHERS);
    let mut followers = Followers::new();
    for _ in 0..WATCHERS {
        let mut watch = server.access.connect().await?.watch(&watch_path()).await?;
        watch.until(|event| event["type"] == "ADDED").await?;
        followers.push(tokio::spawn(follow(watch, Arc::clone(&all_have_it), arrivals.clone())));
    }
    drop(arrivals);
    let memory = kib_per_watcher(server, without)?;
    let transport = format!("{WATCHERS} connections, HTTP/1.1 over TLS");
    let mut report = update(server, writer, followers, arrived, &transport).await?;
    report["server_kib_per_watcher"] = json!(memory);
    Ok(report)
}

/// Watches that share their client's connection, HTTP/2 over TLS. A watcher's event has arrived when it was read.
pub(super) async fn sharing(server: &Server) -> Result<Value> {
    let mut writer = server.access.connect().await?;
    make_object(&mut writer).await?;
    let without = pss_kib(server.pid)?;
    let (arrivals, arrived) = mpsc::channel(WATCHERS);
    let mut followers = Followers::new();
    for _ in 0..CLIENTS {
        let mut client = server.access.connect_http2().await?;
        for _ in 0..WATCHERS / CLIENTS {
            let mut watch = client.watch(&watch_path()).await?;
            watch.frame().await.context("the watch ended")??;
            followers.push(tokio::spawn(follow_frames(watch, arrivals.clone())));
        }
    }
    drop(arrivals);
    let memory = kib_per_watcher(server, without)?;
    let transport = format!("{CLIENTS} connections of {} watches, HTTP/2 over TLS", WATCHERS / CLIENTS);
    let mut report = update(server, writer, followers, arrived, &transport).await?;
    report["server_kib_per_watcher"] = json!(memory);
    Ok(report)
}

/// What open watches add to the server's memory; what an earlier case has left to be reused is not seen.
fn kib_per_watcher(server: &Server, without: u64) -> Result<f64> {
    Ok((pss_kib(server.pid)? as f64 - without as f64) / WATCHERS as f64)
}

/// Time from sending an update until its event has arrived at each watcher.
async fn update(
    server: &Server,
    mut writer: Client,
    followers: Followers,
    mut arrived: mpsc::Receiver<Moment>,
    transport: &str,
) -> Result<Value> {
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
    for task in followers {
        task.await??;
    }
    writer.delete(&format!("{CONFIG_MAPS}/{}", name(0))).await?;
    Ok(json!({
        "transport": transport,
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

async fn follow_frames(mut watch: Incoming, arrivals: mpsc::Sender<Moment>) -> Result<()> {
    for _ in 0..ROUNDS {
        watch.frame().await.context("the watch ended")??;
        arrivals.send(Moment::now()).await?;
    }
    Ok(())
}
