//! An API server on an in-memory store, asked in process.

use std::sync::Arc;

use bytes::Bytes;
use carob_apiserver::authn::ServiceAccountKeys;
use carob_apiserver::{ApiServer, Body, Config, Identity, UserInfo};
use carob_kit::SystemClock;
use carob_store::{Options, Store};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

pub(crate) struct Rig {
    pub(crate) api: ApiServer,
    pub(crate) store: Store,
    user: Identity,
}

/// One answer, its body as JSON where it is JSON and as a string where it is not.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().or_else(|| self.body.as_str()).unwrap_or_default()
    }

    pub(crate) fn warnings(&self) -> Vec<&str> {
        self.headers.get_all("warning").iter().filter_map(|value| value.to_str().ok()).collect()
    }

    #[track_caller]
    pub(crate) fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.body);
        self.body
    }
}

impl Rig {
    /// With the system's namespaces and the default ServiceAccount of `default`.
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::made(Store::in_memory(Options::default()), change).await
    }

    /// Another server on the store of an earlier one.
    pub(crate) async fn on(store: Store) -> Self {
        Self::made(store, |_| {}).await
    }

    async fn made(store: Store, change: impl FnOnce(&mut Config)) -> Self {
        let keys = ServiceAccountKeys::generate_pkcs8().expect("ring makes keys");
        let keys = ServiceAccountKeys::from_pkcs8(&keys, &[]).expect("its own key is good");
        let mut config = Config::new(store.clone(), Arc::new(SystemClock::new()), Arc::new(keys));
        change(&mut config);
        let api = ApiServer::new(config).expect("the configuration is good");
        api.bootstrap().await.expect("the system's objects can be made");
        let rig = Self { api, store, user: UserInfo::master("admin") };
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
        let made = rig.post("/api/v1/namespaces/default/serviceaccounts", &account).await;
        assert!(matches!(made.code, 201 | 409), "{}", made.body);
        rig
    }

    /// The same server for someone else.
    pub(crate) fn as_user(&self, user: Identity) -> Self {
        Self { api: self.api.clone(), store: self.store.clone(), user }
    }

    pub(crate) async fn raw(&self, request: Request<Full<Bytes>>) -> Response<Body> {
        self.api.handle(request, self.user.clone()).await
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("user-agent", "rig/1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a test's request is valid");
        let (parts, body) = self.raw(request).await.into_parts();
        let bytes = body.collect().await.expect("the body does not break off").to_bytes();
        let text = || Value::from(String::from_utf8_lossy(&bytes).into_owned());
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| text());
        Answer { code: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub(crate) async fn patch(&self, path: &str, kind: &str, body: &Value) -> Answer {
        let kind = format!("application/{kind}");
        self.send("PATCH", path, &[("content-type", &kind)], body.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], "").await
    }

    /// Opens a watch.
    pub(crate) async fn watch(&self, path: &str) -> Events {
        let request = Request::builder().uri(path).body(Full::new(Bytes::new())).expect("a test's path is valid");
        let response = self.raw(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        Events { body: response.into_body(), buffer: Vec::new() }
    }
}

/// The events of a watch.
pub(crate) struct Events {
    body: Body,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("an event is JSON"));
            }
            let frame = self.body.frame().await?.expect("the stream does not break off");
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// Type and name of the next event.
    pub(crate) async fn brief(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event comes");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

pub(crate) fn config_map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "k": "v" } })
}

pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "image": "busybox" }] },
    })
}
