//! Services by the thousand, and names: how soon packets follow an endpoint that changes, what a connection costs, and how many
//! questions are answered.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Mutex;

use super::{CLIENTS, Server, name, spread};
use crate::measure::{Meter, Moment, percentiles};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const SERVICE_COUNT: usize = 10_000;
const ENDPOINTS: u8 = 10;
/// Times that the probed Service's endpoint changes.
const CHANGES: usize = 200;
/// Connections whose cost is measured, each way.
const CONNECTIONS: usize = 2000;
/// The Service that is probed: an address in the default range that no other gets soon.
const PROBE: Ipv4Addr = Ipv4Addr::new(10, 96, 250, 1);
/// The node's address, where the probed endpoints are ([`carob_testkit::Host`]).
const NODE: &str = carob_testkit::Host::ADDRESS;
/// The address of the cluster's DNS server.
const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Questions under way at a time.
const ASKERS: usize = 32;
const QUESTIONS: usize = 200_000;

fn service(n: usize) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name(n) },
        "spec": { "ports": [{ "port": 80, "protocol": "TCP" }] } })
}

fn slice(service: &str, addresses: &[String], port: u16) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({ "addresses": [address] })).collect();
    json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
        "metadata": { "name": service, "labels": { "kubernetes.io/service-name": service } },
        "ports": [{ "port": port, "protocol": "TCP" }] })
}

/// Answers each connection with a byte.
async fn answering(byte: u8) -> Result<u16> {
    let listener = TcpListener::bind("0.0.0.0:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that has gone already needs no answer.
            if stream.try_write(&[byte]).is_err() {}
        }
    });
    Ok(port)
}

/// The byte that a connection is answered with; `None` where it is refused or broken off.
async fn answer(target: SocketAddr) -> Option<u8> {
    let mut stream = TcpStream::connect(target).await.ok()?;
    stream.read_u8().await.ok()
}

async fn connections(target: SocketAddr) -> Result<Value> {
    let mut taken = Vec::new();
    for _ in 0..CONNECTIONS {
        let moment = Moment::now();
        ensure!(answer(target).await.is_some(), "{target} did not answer");
        taken.push(moment.elapsed());
    }
    percentiles(taken)
}

/// A Service of one endpoint, which is now here and now there.
struct Probe {
    ports: [u16; 2],
}

impl Probe {
    async fn make(server: &Server) -> Result<Self> {
        let ports = [answering(0).await?, answering(1).await?];
        let mut client = server.access.connect().await?;
        let mut service = service(0);
        service["metadata"]["name"] = "probe".into();
        service["spec"]["clusterIP"] = PROBE.to_string().into();
        client.create(SERVICES, &service).await?;
        client.create(SLICES, &slice("probe", &[NODE.to_owned()], ports[0])).await?;
        Ok(Self { ports })
    }

    /// How long after the answer to a write of the slice a new connection is led to the new endpoint.
    async fn changes(&self, server: &Server) -> Result<Value> {
        let mut client = server.access.connect().await?;
        let target = SocketAddr::from((PROBE, 80));
        let mut taken = Vec::new();
        for round in 1..=CHANGES {
            let side = round % 2;
            let ports = json!({ "ports": [{ "port": self.ports[side], "protocol": "TCP" }] });
            client.patch(&format!("{SLICES}/probe"), &ports).await?;
            let moment = Moment::now();
            while answer(target).await.map(usize::from) != Some(side) {
                ensure!(moment.elapsed() < Duration::from_secs(10), "the change {round} is in force for nobody");
            }
            taken.push(moment.elapsed());
        }
        percentiles(taken)
    }
}

/// The same measurements with one Service and with ten thousand.
pub(super) async fn services(server: &Server) -> Result<Value> {
    let probe = Probe::make(server).await?;
    let few = json!({ "change_to_packet": probe.changes(server).await? });
    let made = spread(server, SERVICE_COUNT, CLIENTS, |mut client, numbers| async move {
        while let Some(n) = numbers.take() {
            client.create(SERVICES, &service(n)).await?;
            let [high, low] = u16::try_from(n)?.to_be_bytes();
            // Addresses that nobody has: nothing is sent there.
            let addresses: Vec<String> = (1..=ENDPOINTS).map(|last| format!("10.{last}.{high}.{low}")).collect();
            client.create(SLICES, &slice(&name(n), &addresses, 8080)).await?;
        }
        Ok(())
    });
    let made = made.await?;
    let many = probe.changes(server).await?;
    let by_service = connections(SocketAddr::from((PROBE, 80))).await?;
    let direct = connections(SocketAddr::new(NODE.parse()?, probe.ports[CHANGES % 2])).await?;
    let ratio = by_service["p50_ms"].as_f64().context("a median")? / direct["p50_ms"].as_f64().context("a median")?;
    Ok(json!({
        "few": few, "made": made, "change_to_packet": many,
        "connection": { "by_service": by_service, "direct": direct, "ratio": ratio },
    }))
}

/// A question for the address of `kubernetes.default.svc.cluster.local` (RFC 1035, 4.1).
fn question(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let mut bytes = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["kubernetes", "default", "svc", "cluster", "local"] {
        bytes.extend(u8::try_from(label.len()));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

/// Questions for a name of the cluster, by the address that Pods use.
pub(super) async fn names(server: &Server) -> Result<Value> {
    let (asked, taken) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let meter = Meter::start(server.pid)?;
    let mut tasks = Vec::new();
    for _ in 0..ASKERS {
        let (asked, taken) = (Arc::clone(&asked), Arc::clone(&taken));
        tasks.push(tokio::spawn(async move {
            let socket = UdpSocket::bind("0.0.0.0:0").await?;
            socket.connect((DNS, 53)).await?;
            let (mut own, mut buffer) = (Vec::new(), [0; 512]);
            loop {
                let number = asked.fetch_add(1, Ordering::Relaxed);
                if number >= QUESTIONS {
                    break;
                }
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "it tells questions apart that are asked one after the other"
                )]
                let bytes = question(number as u16);
                let moment = Moment::now();
                socket.send(&bytes).await?;
                let received = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await??;
                ensure!(
                    received > bytes.len() && buffer[..2] == bytes[..2] && buffer[7] == 1,
                    "question {number} has no answer"
                );
                own.push(moment.elapsed());
            }
            taken.lock().await.append(&mut own);
            Ok::<_, anyhow::Error>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    let mut answers = meter.stop(QUESTIONS)?;
    let cpu = answers["server_cpu_us_per_operation"].as_f64().context("the server's CPU time")?;
    answers["per_s_of_a_core"] = json!(1e6 / cpu);
    let latency = percentiles(std::mem::take(&mut *taken.lock().await))?;
    Ok(json!({ "answers": answers, "latency": latency }))
}
