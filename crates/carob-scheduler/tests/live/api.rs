//! A small API server in memory: streaming lists and watches, bindings, status patches, deletions, events. It keeps state
//! and nothing else; what it is told is what it shows.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;

type Answer = UnsyncBoxBody<Bytes, Infallible>;

/// Lines that may wait in one watch.
const WATCH_LINES_MAX: usize = 4096;

#[derive(Default)]
struct State {
    /// By plural, then by namespace and name.
    objects: BTreeMap<String, BTreeMap<(String, String), Value>>,
    watches: Vec<(String, mpsc::Sender<Bytes>)>,
    version: u64,
    /// Whether the coscheduling plugin's groups are there but may not be read; otherwise they are not there.
    forbids_label_groups: bool,
    /// Names of Pods whose next binding fails.
    fail_binding: Vec<String>,
}

#[derive(Clone, Default)]
pub(crate) struct Api(Arc<Mutex<State>>);

/// A request's path: the plural, the namespace, the name and the subresource, as far as they are there.
struct Path {
    plural: String,
    namespace: String,
    name: Option<String>,
    subresource: Option<String>,
}

impl Path {
    fn parse(path: &str) -> Option<Self> {
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        parts.drain(..if parts.first() == Some(&"api") { 2 } else { 3.min(parts.len()) });
        let mut namespace = String::new();
        if parts.len() > 2 && parts[0] == "namespaces" {
            namespace = parts[1].to_owned();
            parts.drain(..2);
        }
        let mut parts = parts.into_iter().map(str::to_owned);
        Some(Self { plural: parts.next()?, namespace, name: parts.next(), subresource: parts.next() })
    }
}

impl Api {
    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        carob_client::in_process(tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        }))
    }

    /// Creates or replaces an object.
    pub(crate) fn put(&self, plural: &str, mut object: Value) {
        let meta = &object["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = (text(&meta["namespace"]), text(&meta["name"]));
        let mut state = self.state();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", key.1).into();
        }
        let known = state.objects.entry(plural.to_owned()).or_default().contains_key(&key);
        state.store(plural, key, object, if known { "MODIFIED" } else { "ADDED" });
    }

    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state().objects.get(plural)?.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(crate) fn all(&self, plural: &str) -> Vec<Value> {
        self.state().objects.get(plural).map(|objects| objects.values().cloned().collect()).unwrap_or_default()
    }

    /// Removes an object, finalizers or not.
    pub(crate) fn remove(&self, plural: &str, namespace: &str, name: &str) {
        self.state().remove(plural, &(namespace.to_owned(), name.to_owned()));
    }

    pub(crate) fn forbid_label_groups(&self) {
        self.state().forbids_label_groups = true;
    }

    pub(crate) fn fail_next_binding(&self, pod: &str) {
        self.state().fail_binding.push(pod.to_owned());
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.expect("bodies are whole").to_bytes();
        let body: Value =
            if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("bodies are JSON") };
        if head.uri.path().starts_with("/apis/scheduling.x-k8s.io/") {
            return if self.state().forbids_label_groups { status(403, "Forbidden") } else { no_such_path() };
        }
        let Some(path) = Path::parse(head.uri.path()) else { return status(404, "NotFound") };
        if head.method == Method::GET && head.uri.query().is_some_and(|query| query.contains("limit=1")) {
            return whole(200, &json!({"metadata": {"resourceVersion": "1"}, "items": []}));
        }
        if head.method == Method::GET {
            return self.watch(&path.plural);
        }
        self.write(&head.method, &path, body)
    }

    fn watch(&self, plural: &str) -> Response<Answer> {
        let mut state = self.state();
        let mut lines = String::new();
        for object in state.objects.get(plural).into_iter().flat_map(BTreeMap::values) {
            lines.push_str(&json!({"type": "ADDED", "object": object}).to_string());
            lines.push('\n');
        }
        let end =
            json!({"resourceVersion": state.version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}});
        lines.push_str(&json!({"type": "BOOKMARK", "object": {"metadata": end}}).to_string());
        lines.push('\n');
        let (sender, receiver) = mpsc::channel(WATCH_LINES_MAX);
        sender.try_send(Bytes::from(lines)).expect("a new watch has room");
        state.watches.push((plural.to_owned(), sender));
        Response::new(Stream(receiver).boxed_unsync())
    }

    fn write(&self, method: &Method, path: &Path, body: Value) -> Response<Answer> {
        let mut state = self.state();
        let name = path.name.clone().unwrap_or_default();
        let key = (path.namespace.clone(), name.clone());
        if path.plural == "events" {
            let count = state.objects.entry("events".to_owned()).or_default().len();
            state.store("events", (path.namespace.clone(), count.to_string()), body.clone(), "ADDED");
            return whole(201, &body);
        }
        let Some(mut object) = state.objects.get(&path.plural).and_then(|objects| objects.get(&key)).cloned() else {
            return status(404, "NotFound");
        };
        match (method, path.subresource.as_deref()) {
            (&Method::POST, Some("binding")) => {
                if let Some(at) = state.fail_binding.iter().position(|pod| *pod == name) {
                    state.fail_binding.remove(at);
                    return status(500, "InternalError");
                }
                if !object["spec"]["nodeName"].is_null() {
                    return status(409, "Conflict");
                }
                object["spec"]["nodeName"] = body["target"]["name"].clone();
                state.store(&path.plural, key, object, "MODIFIED");
                status(201, "")
            }
            (&Method::PATCH, Some("status")) => {
                patch_status(&mut object, &body["status"]);
                state.store(&path.plural, key, object.clone(), "MODIFIED");
                whole(200, &object)
            }
            (&Method::DELETE, None) => {
                if object["metadata"]["finalizers"].is_null() {
                    state.remove(&path.plural, &key);
                } else {
                    object["metadata"]["deletionTimestamp"] = "2020-01-01T00:00:00Z".into();
                    state.store(&path.plural, key, object.clone(), "MODIFIED");
                }
                whole(200, &object)
            }
            _ => status(405, "MethodNotAllowed"),
        }
    }
}

/// Conditions are merged by type, null removes, everything else replaces.
fn patch_status(object: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else { return };
    if object["status"].is_null() {
        object["status"] = json!({});
    }
    for (field, value) in fields {
        if field != "conditions" {
            object["status"][field] = value.clone();
            continue;
        }
        let mut conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        for condition in value.as_array().into_iter().flatten() {
            conditions.retain(|held| held["type"] != condition["type"]);
            conditions.push(condition.clone());
        }
        object["status"]["conditions"] = conditions.into();
    }
}

impl State {
    fn store(&mut self, plural: &str, key: (String, String), mut object: Value, kind: &str) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.tell(plural, kind, &object);
        self.objects.entry(plural.to_owned()).or_default().insert(key, object);
    }

    fn remove(&mut self, plural: &str, key: &(String, String)) {
        self.version += 1;
        let removed = self.objects.get_mut(plural).and_then(|objects| objects.remove(key));
        if let Some(mut object) = removed {
            object["metadata"]["resourceVersion"] = self.version.to_string().into();
            self.tell(plural, "DELETED", &object);
        }
    }

    fn tell(&mut self, plural: &str, kind: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({"type": kind, "object": object})));
        self.watches.retain(|(watched, sender)| watched != plural || sender.try_send(line.clone()).is_ok());
    }
}

fn whole(code: u16, body: &Value) -> Response<Answer> {
    let body = Full::new(Bytes::from(body.to_string())).boxed_unsync();
    Response::builder().status(code).body(body).expect("the code is valid")
}

fn status(code: u16, reason: &str) -> Response<Answer> {
    let outcome = if code < 300 { "Success" } else { "Failure" };
    whole(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": outcome, "reason": reason, "message": reason, "code": code}),
    )
}

/// What upstream answers for a group that it does not serve: no Status, plain text.
fn no_such_path() -> Response<Answer> {
    let body = Full::new(Bytes::from_static(b"404 page not found\n")).boxed_unsync();
    Response::builder().status(404).body(body).expect("the code is valid")
}

/// A watch: lines as they come, without end.
struct Stream(mpsc::Receiver<Bytes>);

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}
