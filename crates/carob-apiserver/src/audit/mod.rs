//! Audit: what was asked, by whom, and what came of it, as events of audit.k8s.io/v1 (apiserver `pkg/audit`,
//! `pkg/endpoints/filters/audit.go`).
//!
//! [`Auditor::begin`] looks a request up in the policy; the [`Trail`] that it gives goes with the request through its stages. A
//! stage that nobody wants costs one comparison.

mod body;
mod log;
mod policy;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use carob_api::meta;
use carob_kit::Clock;
use carob_kit::metrics::{Exposition, Kind};
use http::header::USER_AGENT;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub(crate) use self::body::{RESPONSE_LEN_MAX, decode};
pub(crate) use self::log::AuditLog;
pub use self::log::{AuditLogConfig, AuditLogError};
use self::policy::Scope;
pub use self::policy::{AuditPolicy, PolicyError as AuditPolicyError};
pub(crate) use self::policy::{Level, Stage};
use crate::authz::Attributes;
use crate::identity::UserInfo;
use crate::request::Notes;

/// Characters of a user agent that are kept (apiserver `pkg/audit/request.go`, `maxUserAgentLength`).
const USER_AGENT_LEN_MAX: usize = 1024;
const TRUNCATED: &str = "...TRUNCATED";

/// Records requests.
pub(crate) struct Auditor {
    policy: AuditPolicy,
    log: AuditLog,
    clock: Arc<dyn Clock>,
}

/// What is known of a request at its beginning.
pub(crate) struct Asked<'a> {
    pub(crate) id: String,
    pub(crate) uri: String,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) attributes: &'a Attributes<'a>,
    /// Who asks, and as whom if that is someone else.
    pub(crate) user: &'a UserInfo,
    pub(crate) impersonated: Option<&'a UserInfo>,
    pub(crate) sources: Vec<String>,
}

/// The record of one request.
pub(crate) struct Trail {
    log: AuditLog,
    clock: Arc<dyn Clock>,
    scope: Scope,
    notes: Arc<Notes>,
    /// What all events of the request have in common.
    event: Map<String, Value>,
    request_object: Option<Value>,
}

impl Auditor {
    pub(crate) fn new(policy: AuditPolicy, log: AuditLog, clock: Arc<dyn Clock>) -> Self {
        Self { policy, log, clock }
    }

    /// `None` for a request that the policy records nothing of.
    pub(crate) fn begin(&self, asked: Asked<'_>, notes: &Arc<Notes>) -> Option<Trail> {
        let scope = self.policy.scope(asked.user, asked.attributes);
        if scope.level == Level::None {
            return None;
        }
        Some(Trail {
            log: self.log.clone(),
            clock: Arc::clone(&self.clock),
            event: common(&asked, &scope, self.clock.now()),
            scope,
            notes: Arc::clone(notes),
            request_object: None,
        })
    }

    /// Under upstream's names.
    pub(crate) fn write_metrics(&self, out: &mut Exposition) {
        let counters = self.log.counters();
        let help = "Counter of audit events generated and sent to the audit backend.";
        out.single("apiserver_audit_event_total", Kind::Counter, help, counters.events.load(Ordering::Relaxed));
        let help = "Counter of audit events that failed to be audited properly.";
        let errors = counters.errors.load(Ordering::Relaxed);
        out.family("apiserver_audit_error_total", Kind::Counter, help).sample(&[("plugin", "log")], errors);
    }
}

fn micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

fn user(user: &UserInfo) -> Value {
    let mut value = json!({ "username": user.name });
    if !user.uid.is_empty() {
        value["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        value["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        value["extra"] = json!(user.extra);
    }
    value
}

fn common(asked: &Asked<'_>, scope: &Scope, now: Timestamp) -> Map<String, Value> {
    let mut event = Map::new();
    let mut set = |key: &str, value: Value| {
        event.insert(key.to_owned(), value);
    };
    set("kind", "Event".into());
    set("apiVersion", "audit.k8s.io/v1".into());
    set("level", scope.level.as_str().into());
    set("auditID", asked.id.as_str().into());
    set("stage", Value::Null);
    set("requestURI", asked.uri.as_str().into());
    set("verb", asked.attributes.verb.into());
    set("user", user(asked.user));
    if let Some(impersonated) = asked.impersonated {
        set("impersonatedUser", user(impersonated));
    }
    if !asked.sources.is_empty() {
        set("sourceIPs", json!(asked.sources));
    }
    let agent = asked.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    if !agent.is_empty() {
        let is_long = agent.len() > USER_AGENT_LEN_MAX;
        let agent = if is_long { format!("{}{TRUNCATED}", &agent[..USER_AGENT_LEN_MAX]) } else { agent.to_owned() };
        set("userAgent", agent.into());
    }
    if let Some(at) = &asked.attributes.resource {
        let mut reference = Map::new();
        for (key, value) in [
            ("resource", at.resource),
            ("namespace", at.namespace),
            ("name", at.name),
            ("apiGroup", at.group),
            ("apiVersion", at.version),
            ("subresource", at.subresource),
        ] {
            if !value.is_empty() {
                reference.insert(key.to_owned(), value.into());
            }
        }
        set("objectRef", reference.into());
    }
    set("requestReceivedTimestamp", micros(now).into());
    event
}

impl Trail {
    pub(crate) fn id(&self) -> &str {
        self.event.get("auditID").and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn level(&self) -> Level {
        self.scope.level
    }

    /// Notes what the client sent, and which object it names.
    pub(crate) fn sent(&mut self, mut object: Value) {
        if let Some(reference) = self.event.get_mut("objectRef").and_then(Value::as_object_mut) {
            for (key, value) in [
                ("uid", meta::uid(&object)),
                ("resourceVersion", meta::resource_version(&object)),
                ("name", meta::name(&object)),
            ] {
                if !value.is_empty() {
                    reference.entry(key).or_insert_with(|| value.into());
                }
            }
        }
        if self.scope.level >= Level::Request {
            self.trim(&mut object);
            self.request_object = Some(object);
        }
    }

    fn trim(&self, object: &mut Value) {
        if !self.scope.omit_managed_fields {
            return;
        }
        meta::remove(object, &["metadata", "managedFields"]);
        for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
            meta::remove(item, &["metadata", "managedFields"]);
        }
    }

    /// The line of a stage; `None` for one that is not recorded.
    fn line(&self, stage: Stage, code: Option<StatusCode>, answer: Option<Value>) -> Option<Vec<u8>> {
        if !self.scope.records(stage) {
            return None;
        }
        let mut event = self.event.clone();
        event.insert("stage".to_owned(), stage.as_str().into());
        if let Some(code) = code {
            event.insert("responseStatus".to_owned(), status(code, answer.as_ref()));
        }
        if let Some(object) = &self.request_object {
            event.insert("requestObject".to_owned(), object.clone());
        }
        if let Some(mut answer) = answer.filter(|_| self.scope.level >= Level::RequestResponse) {
            self.trim(&mut answer);
            event.insert("responseObject".to_owned(), answer);
        }
        event.insert("stageTimestamp".to_owned(), micros(self.clock.now()).into());
        let annotations = self.notes.annotations();
        if !annotations.is_empty() {
            event.insert("annotations".to_owned(), json!(annotations));
        }
        let mut line = Value::Object(event).to_string().into_bytes();
        line.push(b'\n');
        Some(line)
    }

    /// Records a stage. `answer` is the response's object where it was read.
    pub(crate) async fn record(&self, stage: Stage, code: Option<StatusCode>, answer: Option<Value>) {
        if let Some(line) = self.line(stage, code, answer) {
            self.log.record(line).await;
        }
    }

    /// As [`Trail::record`] where nothing can wait.
    fn record_now(&self, stage: Stage, code: Option<StatusCode>) {
        if let Some(line) = self.line(stage, code, None) {
            self.log.record_now(line);
        }
    }
}

/// Records the end of a stream when it is dropped.
pub(crate) struct StreamEnd {
    pub(crate) trail: Trail,
    pub(crate) code: StatusCode,
}

impl Drop for StreamEnd {
    fn drop(&mut self) {
        self.trail.record_now(Stage::ResponseComplete, Some(self.code));
    }
}

/// The code, and of a Status what it says.
fn status(code: StatusCode, answer: Option<&Value>) -> Value {
    let mut status = json!({ "metadata": {}, "code": code.as_u16() });
    if let Some(answer) = answer.filter(|answer| meta::kind(answer) == "Status" && meta::api_version(answer) == "v1") {
        for field in ["status", "message", "reason", "details"] {
            if let Some(value) = answer.get(field) {
                status[field] = value.clone();
            }
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use carob_kit::SystemClock;

    use super::*;
    use crate::authz::ResourceAttributes;

    fn auditor(level: &str) -> (Auditor, tempfile::TempDir) {
        let policy = json!({
            "kind": "Policy", "apiVersion": "audit.k8s.io/v1", "omitManagedFields": true, "rules": [{ "level": level }],
        });
        let dir = tempfile::tempdir().expect("a directory");
        let config = AuditLogConfig { path: dir.path().join("a.log"), max_size_mb: 0, max_backups: 0, max_age_days: 0 };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let log = AuditLog::open(config, Arc::clone(&clock)).expect("it opens");
        (Auditor::new(AuditPolicy::parse(policy).expect("sound"), log, clock), dir)
    }

    fn trail(auditor: &Auditor, notes: &Arc<Notes>) -> Option<Trail> {
        let resource =
            ResourceAttributes { resource: "pods", version: "v1", namespace: "n", ..ResourceAttributes::default() };
        let attributes = Attributes { verb: "create", resource: Some(resource), path: "/api/v1/namespaces/n/pods" };
        let (mut headers, user) = (HeaderMap::new(), UserInfo::new("jane", []));
        headers.insert(USER_AGENT, "kubectl".parse().expect("a value"));
        let asked = Asked {
            id: "id-1".to_owned(),
            uri: "/api/v1/namespaces/n/pods?x=1".to_owned(),
            headers: &headers,
            attributes: &attributes,
            user: &user,
            impersonated: None,
            sources: vec!["192.0.2.1".to_owned()],
        };
        auditor.begin(asked, notes)
    }

    fn event(trail: &Trail, stage: Stage, code: Option<StatusCode>, answer: Option<Value>) -> Value {
        serde_json::from_slice(&trail.line(stage, code, answer).expect("it is recorded")).expect("JSON")
    }

    #[tokio::test]
    async fn an_event_says_what_its_level_lets_it() {
        let pod = json!({ "kind": "Pod", "metadata": { "name": "p", "managedFields": [1] }, "spec": {} });
        let notes: Arc<Notes> = Arc::default();
        notes.annotate("authorization.k8s.io/decision", "allow");
        let (auditor_all, _dir) = auditor("RequestResponse");
        let mut all = trail(&auditor_all, &notes).expect("it is recorded");
        all.sent(pod.clone());
        let found = event(&all, Stage::ResponseComplete, Some(StatusCode::CREATED), Some(pod.clone()));
        assert_eq!(
            found["objectRef"],
            json!({ "resource": "pods", "namespace": "n", "name": "p", "apiVersion": "v1" })
        );
        assert_eq!((&found["stage"], &found["level"]), (&json!("ResponseComplete"), &json!("RequestResponse")));
        assert_eq!(found["responseStatus"], json!({ "metadata": {}, "code": 201 }));
        assert_eq!(found["requestObject"], json!({ "kind": "Pod", "metadata": { "name": "p" }, "spec": {} }));
        assert_eq!(found["responseObject"], found["requestObject"]);
        assert_eq!(found["annotations"]["authorization.k8s.io/decision"], "allow");
        assert_eq!((&found["userAgent"], &found["sourceIPs"]), (&json!("kubectl"), &json!(["192.0.2.1"])));

        let (auditor_less, _dir) = auditor("Metadata");
        let mut less = trail(&auditor_less, &notes).expect("it is recorded");
        less.sent(pod.clone());
        let refusal = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "message": "no" });
        let found = event(&less, Stage::ResponseComplete, Some(StatusCode::FORBIDDEN), Some(refusal));
        assert_eq!(
            found["responseStatus"],
            json!({ "metadata": {}, "code": 403, "status": "Failure", "reason": "Forbidden", "message": "no" })
        );
        assert!(found.get("requestObject").is_none() && found.get("responseObject").is_none());
        assert_eq!(found["objectRef"]["name"], "p");
        let (none, _dir) = auditor("None");
        assert!(trail(&none, &notes).is_none());
    }
}
