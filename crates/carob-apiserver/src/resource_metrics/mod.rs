//! `metrics.k8s.io`: what nodes and Pods use, asked of the nodes when someone asks for it. Nothing is stored, and nothing is
//! asked while nobody does. An APIService of the user for this group is answered by whoever it names, before this is reached.
//!
//! A rate takes two samples of a node. The last two are kept; who asks often is answered out of them or with the next one, and
//! who asks for the first time waits for [`FIRST_WINDOW`].

mod usage;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use carob_api::{Status, kinds, meta};
use carob_store::{Entry, ListOptions};
use futures_util::StreamExt as _;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::body::Body;
use crate::error::{ApiError, ApiResult};
use crate::registry::{self, Call, Selection};
use crate::request::Verb;
use crate::subresource;
use usage::{Sample, Usage};

/// Between the first two samples of a node.
const FIRST_WINDOW: Duration = Duration::from_secs(1);
/// A sample is good for so long (metrics-server `--metric-resolution`).
const FRESH_MAX: Duration = Duration::from_secs(15);
/// An older sample tells nothing of how things are now.
const STALE: Duration = Duration::from_secs(90);
/// How long a node may take to answer (metrics-server `--kubelet-request-timeout`).
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes of a node's answer; a container takes some 500.
const ANSWER_LEN_MAX: usize = 16 << 20;
/// Nodes that are asked at a time.
const NODES_AT_A_TIME: usize = 16;
/// What a node is asked.
const PATH: &str = "/metrics/resource";

pub(crate) const GROUP: &str = "metrics.k8s.io";

/// The last samples of the nodes.
#[derive(Default)]
pub(crate) struct ResourceMetrics {
    /// A node's lock is held while it is asked, so that all who want to know wait for one answer.
    nodes: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Pair>>>>,
}

/// Two samples of a node, the older first, and when the newer one was taken.
#[derive(Default)]
struct Pair {
    old: Option<Arc<Sample>>,
    new: Option<(Arc<Sample>, Timestamp)>,
}

type Samples = (Arc<Sample>, Arc<Sample>);

impl ResourceMetrics {
    fn of(&self, node: &str) -> Arc<tokio::sync::Mutex<Pair>> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(nodes.entry(node.to_owned()).or_default())
    }

    /// Forgets the nodes that there are no more.
    fn keep(&self, there: &BTreeSet<String>) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).retain(|node, _| there.contains(node));
    }
}

impl Pair {
    fn fresh(&self, now: Timestamp) -> Option<Samples> {
        let (new, at) = self.new.as_ref()?;
        let is_fresh = Duration::try_from(now.duration_since(*at)).is_ok_and(|age| age < FRESH_MAX);
        self.old.clone().zip(Some(Arc::clone(new))).filter(|_| is_fresh)
    }

    fn take(&mut self, sample: Sample, now: Timestamp) {
        let recent = |at: &Timestamp| Duration::try_from(now.duration_since(*at)).is_ok_and(|age| age < STALE);
        self.old = self.new.take().filter(|(_, at)| recent(at)).map(|(sample, _)| sample);
        self.new = Some((Arc::new(sample), now));
    }
}

/// Answers for the group's kinds, `nodes` and `pods`.
pub(crate) async fn answer(call: &Call<'_>, verb: &Verb) -> ApiResult<Response<Body>> {
    let of_nodes = call.def.plural() == "nodes";
    match verb {
        Verb::Get => {
            let name = call.name.clone();
            let found = if of_nodes { nodes(call).await? } else { pods(call).await? };
            let found = found.into_iter().find(|object| meta::name(object) == name).ok_or_else(|| call.not_found())?;
            registry::answer_value(call, StatusCode::OK, &found)
        }
        Verb::List => {
            let items = if of_nodes { nodes(call).await? } else { pods(call).await? };
            let kind = format!("{}List", call.def.kind());
            let list = json!({"kind": kind, "apiVersion": call.api_version(), "metadata": {}, "items": items});
            registry::answer_value(call, StatusCode::OK, &list)
        }
        _ => Err(Status::method_not_supported(call.resource(), verb.as_str()).into()),
    }
}

/// The stored objects of the core kind `plural` that the request is about.
fn wanted(call: &Call<'_>, plural: &str) -> ApiResult<Vec<Arc<Entry>>> {
    let missing = || ApiError::from(Status::internal("the table has neither nodes nor Pods"));
    let def = kinds::by_resource("", "v1", plural).ok_or_else(missing)?;
    let mut selection = Selection::parse(def, &call.query)?;
    if !call.name.is_empty() {
        selection = selection.and_name(&call.name);
    }
    let namespace = Some(call.namespace.as_str()).filter(|namespace| !namespace.is_empty());
    let page = call.api.store.list(&def.storage_prefix(namespace), ListOptions::default());
    let page = page.map_err(|error| Status::internal(carob_kit::chain(&error).to_string()))?;
    Ok(page.entries.into_iter().filter(|entry| selection.matches(entry)).collect())
}

fn decode(entry: &Entry) -> ApiResult<Value> {
    crate::stored::decode(entry)
}

async fn nodes(call: &Call<'_>) -> ApiResult<Vec<Value>> {
    let all: Vec<Value> = wanted(call, "nodes")?.iter().map(|entry| decode(entry)).collect::<ApiResult<_>>()?;
    let names: BTreeSet<String> = all.iter().map(|node| meta::name(node).to_owned()).collect();
    let everything = call.name.is_empty() && call.query.text("labelSelector").is_none();
    if everything && call.query.text("fieldSelector").is_none() {
        call.api.resource_metrics.keep(&names);
    }
    let samples = sample(call, names).await;
    let metrics = all.iter().filter_map(|node| {
        let (old, new) = samples.get(meta::name(node))?;
        let used = usage::of_node(old, new)?;
        let mut object = head(call, node, &used);
        object["usage"] = quantities(&used);
        Some(object)
    });
    Ok(metrics.collect())
}

async fn pods(call: &Call<'_>) -> ApiResult<Vec<Value>> {
    let all: Vec<Value> = wanted(call, "pods")?.iter().map(|entry| decode(entry)).collect::<ApiResult<_>>()?;
    let running = |pod: &&Value| meta::str_at(pod, &["status", "phase"]) == Some("Running");
    let node_of = |pod: &Value| meta::str_at(pod, &["spec", "nodeName"]).unwrap_or_default().to_owned();
    let names: BTreeSet<String> = all.iter().filter(running).map(node_of).filter(|node| !node.is_empty()).collect();
    let samples = sample(call, names).await;
    let metrics = all.iter().filter(running).filter_map(|pod| {
        let (old, new) = samples.get(&node_of(pod))?;
        let used = usage::of_pod(old, new, meta::namespace(pod), meta::name(pod))?;
        let shortest = used.values().min_by_key(|usage| usage.window_ms)?;
        let mut object = head(call, pod, shortest);
        let containers = used.iter().map(|(name, usage)| json!({"name": name, "usage": quantities(usage)}));
        object["containers"] = containers.collect();
        Some(object)
    });
    Ok(metrics.collect())
}

/// What an object of either kind begins with.
fn head(call: &Call<'_>, of: &Value, used: &Usage) -> Value {
    let now = meta::format_time(call.api.clock.now());
    let mut metadata = json!({"name": meta::name(of), "creationTimestamp": now});
    if !meta::namespace(of).is_empty() {
        metadata["namespace"] = meta::namespace(of).into();
    }
    if let Some(labels) = meta::at(of, &["metadata", "labels"]) {
        metadata["labels"] = labels.clone();
    }
    let at = Timestamp::from_millisecond(used.at_ms).unwrap_or_else(|_| call.api.clock.now());
    json!({
        "kind": call.def.kind(), "apiVersion": call.api_version(), "metadata": metadata,
        "timestamp": meta::format_time(at), "window": window(used.window_ms),
    })
}

/// As Go writes a duration.
fn window(ms: i64) -> String {
    let (minutes, ms) = (ms / 60_000, ms % 60_000);
    let seconds = format!("{}.{:03}", ms / 1000, ms % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    if minutes > 0 { format!("{minutes}m{seconds}s") } else { format!("{seconds}s") }
}

fn quantities(used: &Usage) -> Value {
    let memory = used.memory_bytes;
    let memory = if memory.is_multiple_of(1024) { format!("{}Ki", memory / 1024) } else { memory.to_string() };
    json!({"cpu": format!("{}n", used.cpu_nanos), "memory": memory})
}

/// Two samples of each node that answers; what a node does not say is missing from the answer, as metrics-server has it.
async fn sample(call: &Call<'_>, names: BTreeSet<String>) -> BTreeMap<String, Samples> {
    let of_node = async |name: String| {
        let samples = of(call, &name).await;
        (name, samples)
    };
    let answers = futures_util::stream::iter(names.into_iter().map(of_node)).buffer_unordered(NODES_AT_A_TIME);
    let answers: Vec<(String, ApiResult<Samples>)> = answers.collect().await;
    let mut samples = BTreeMap::new();
    for (name, answer) in answers {
        match answer {
            Ok(pair) => {
                samples.insert(name, pair);
            }
            Err(error) => tracing::debug!(node = name, %error, "a node does not say what it uses"),
        }
    }
    samples
}

async fn of(call: &Call<'_>, node: &str) -> ApiResult<Samples> {
    let pair = call.api.resource_metrics.of(node);
    let mut pair = pair.lock().await;
    let clock = &call.api.clock;
    if let Some(samples) = pair.fresh(clock.now()) {
        return Ok(samples);
    }
    let sample = ask(call, node).await?;
    pair.take(sample, clock.now());
    if pair.old.is_none() {
        tokio::time::sleep(FIRST_WINDOW).await;
        let sample = ask(call, node).await?;
        pair.take(sample, clock.now());
    }
    pair.fresh(clock.now()).ok_or_else(|| Status::internal("a node's samples are old as soon as they are taken").into())
}

async fn ask(call: &Call<'_>, node: &str) -> ApiResult<Sample> {
    let address = subresource::address_of(call, node)?;
    let answer = subresource::read_from_node(call.api, address, PATH, ANSWER_LEN_MAX);
    let late = |_| ApiError::from(Status::service_unavailable(&format!("node {node} did not answer in time")));
    let text = tokio::time::timeout(ANSWER_TIME_MAX, answer).await.map_err(late)??;
    Ok(usage::parse(&String::from_utf8_lossy(&text), call.api.clock.now().as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_quantities_are_written_as_go_does() {
        for (ms, text) in [(1000, "1s"), (15_003, "15.003s"), (1500, "1.5s"), (60_000, "1m0s"), (75_250, "1m15.25s")] {
            assert_eq!(window(ms), text);
        }
        let used = Usage { at_ms: 0, window_ms: 1, cpu_nanos: 12, memory_bytes: 4096 };
        assert_eq!(quantities(&used), json!({"cpu": "12n", "memory": "4Ki"}));
        assert_eq!(quantities(&Usage { memory_bytes: 5, ..used })["memory"], "5");
    }

    #[test]
    fn samples_are_kept_in_pairs_while_they_tell_something() {
        let at = |second: i64| Timestamp::from_second(second).expect("within the calendar");
        let mut pair = Pair::default();
        assert!(pair.fresh(at(0)).is_none());
        pair.take(Sample::default(), at(0));
        assert!(pair.fresh(at(0)).is_none(), "one is not enough");
        pair.take(Sample::default(), at(1));
        assert!(pair.fresh(at(15)).is_some());
        assert!(pair.fresh(at(16)).is_none());
        pair.take(Sample::default(), at(16));
        assert!(pair.fresh(at(16)).is_some(), "what is there serves for the next");
        pair.take(Sample::default(), at(200));
        assert!(pair.fresh(at(200)).is_none(), "the older one is from long ago");
    }
}
