//! Port-forward: each forwarded connection is a pair of SPDY streams, one for its bytes and one for what goes wrong (kubelet
//! `pkg/kubelet/portforward`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use carob_cri::{ByteStream, Cri, CriError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::spdy::session::{Arrivals, Stream};

/// The only protocol there is.
pub const PROTOCOL: &str = "portforward.k8s.io";
/// The same in a WebSocket's subprotocol (KEP-4006).
pub const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// Time in which the second stream of a pair follows the first (`DefaultStreamCreationTimeout`).
const PAIR_TIME_MAX: Duration = Duration::from_secs(30);
/// Bytes read at a time.
const READ_LEN: usize = 32 * 1024;

/// Where connections go.
#[derive(Clone)]
pub struct Target {
    pub cri: Arc<dyn Cri>,
    pub sandbox_id: String,
    /// As messages name the Pod.
    pub pod: String,
}

/// Serves a client's connections until it hangs up.
pub async fn serve(mut arrivals: Arrivals, target: Target) {
    let mut pending: HashMap<String, (Instant, Pair)> = HashMap::new();
    let mut connections = JoinSet::new();
    loop {
        let oldest = pending.values().map(|(since, _)| *since + PAIR_TIME_MAX).min();
        let overdue = async {
            match oldest {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // Every arm is cancel safe.
        tokio::select! {
            stream = arrivals.next() => match stream {
                Some(stream) => {
                    if let Some(whole) = pair_up(&mut pending, stream).await {
                        connections.spawn(connect(whole, target.clone()));
                    }
                }
                None => break,
            },
            Some(_) = connections.join_next() => {}
            () = overdue => {
                let now = Instant::now();
                pending.retain(|_, (since, _)| *since + PAIR_TIME_MAX > now);
            }
        }
    }
    connections.shutdown().await;
}

#[derive(Default)]
struct Pair {
    data: Option<Stream>,
    error: Option<Stream>,
}

struct Whole {
    port: u16,
    data: Stream,
    error: Stream,
}

/// Files a stream under its request; answers with the pair once it is whole.
async fn pair_up(pending: &mut HashMap<String, (Instant, Pair)>, stream: Stream) -> Option<Whole> {
    let is_error = match stream.headers.get("streamtype") {
        Some("error") => true,
        Some("data") => false,
        _ => {
            stream.outbound.reset().await;
            return None;
        }
    };
    let Some(port) = stream.headers.get("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0)
    else {
        stream.outbound.reset().await;
        return None;
    };
    // Clients before v1.4 name no request: their error stream comes first, its data stream right after it.
    let request = match stream.headers.get("requestid") {
        Some(id) => id.to_owned(),
        None if is_error => stream.id.to_string(),
        None => stream.id.saturating_sub(2).to_string(),
    };
    let (_, pair) = pending.entry(request.clone()).or_insert_with(|| (Instant::now(), Pair::default()));
    let slot = if is_error { &mut pair.error } else { &mut pair.data };
    *slot = Some(stream);
    if pair.data.is_none() || pair.error.is_none() {
        return None;
    }
    let (_, pair) = pending.remove(&request)?;
    Some(Whole { port, data: pair.data?, error: pair.error? })
}

async fn connect(whole: Whole, target: Target) {
    let Whole { port, data, error } = whole;
    let result = match target.cri.port_forward(&target.sandbox_id, port).await {
        Ok(io) => copy(io, data).await.map_err(|error| CriError::internal(error.to_string())),
        Err(error) => {
            data.outbound.reset().await;
            Err(error)
        }
    };
    if let Err(why) = result {
        let message = format!("error forwarding port {port} to pod {}: {why}", target.pod);
        error.outbound.send(Bytes::from(message)).await;
    }
    error.outbound.finish().await;
}

/// Copies both ways; each direction ends with its own source.
async fn copy(io: ByteStream, stream: Stream) -> std::io::Result<()> {
    let Stream { mut inbound, outbound, .. } = stream;
    let (mut from_pod, mut to_pod) = tokio::io::split(io);
    let into_pod = async {
        while let Some(bytes) = inbound.recv().await {
            to_pod.write_all(&bytes).await?;
        }
        to_pod.shutdown().await
    };
    let out_of_pod = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_LEN);
            if from_pod.read_buf(&mut buffer).await? == 0 || !outbound.send(buffer.split().freeze()).await {
                outbound.finish().await;
                return Ok(());
            }
        }
    };
    tokio::pin!(into_pod, out_of_pod);
    // A Pod that has closed its side ends the connection; a client that has closed its own still hears the answer.
    tokio::select! {
        done = &mut out_of_pod => done,
        done = &mut into_pod => match done {
            Ok(()) => out_of_pod.await,
            Err(error) => Err(error),
        },
    }
}
