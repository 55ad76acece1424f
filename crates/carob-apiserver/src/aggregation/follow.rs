//! The task that keeps APIServices: registers what CustomResourceDefinitions serve, and checks whether other servers answer.
//!
//! A check follows every change of an APIService, its Service or its endpoints; what no event tells, a server that hangs, is
//! found by a check every [`RECHECK`] (kube-aggregator pkg/controllers/status/remote). Services are watched only while an
//! APIService leads to one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use carob_api::kinds::{self, Definition};
use carob_api::strategy::aggregation::{AVAILABLE, local_condition};
use carob_api::{Status, meta};
use carob_store::{Entry, EventKind, ListOptions, Store, Watch, WatchItem};
use futures_util::{StreamExt, stream};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use super::check::{self, Finding};
use super::documents;
use super::register::{Step, Wanted, is_outdated, step};
use super::service::ApiService;
use super::{API_SERVICES, name_of};
use crate::ApiServer;
use crate::current::prefix_of;
use crate::own_requests::{self, Sent};
use crate::state::State;

/// Time between two checks of a server that nothing is told of.
const RECHECK: Duration = Duration::from_secs(30);
/// The first pause after a failed check; it doubles up to [`RECHECK`].
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_DOUBLINGS_MAX: u32 = 16;
/// Checks under way at once; others wait.
const CHECKS_MAX: usize = 16;
/// APIServices that are registered at once.
const REGISTER_AT_ONCE_MAX: usize = 32;

const DEFINITIONS: (&str, &str, &str) = ("apiextensions.k8s.io", "v1", "customresourcedefinitions");
const SERVICES: (&str, &str, &str) = ("", "v1", "services");
const SLICES: (&str, &str, &str) = ("discovery.k8s.io", "v1", "endpointslices");
const PATH: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// Follows APIServices until the server is gone.
pub(crate) async fn follow(api: Weak<State>, store: Store) {
    let mut keeper = match api.upgrade().map(ApiServer::of) {
        Some(server) => Keeper::start(server, store).await,
        None => return,
    };
    loop {
        let wake = keeper.next().await;
        let Some(server) = api.upgrade().map(ApiServer::of) else { return };
        match wake {
            Wake::Service(WatchItem::Event(event)) => {
                let is_there = event.kind == EventKind::Put;
                keeper.service(&server, name_of(&event.entry.key), is_there).await;
            }
            Wake::Definition(WatchItem::Event(event)) => {
                let concerned = keeper.definition(&event.entry, event.kind == EventKind::Put);
                keeper.register(&server, concerned).await;
            }
            Wake::Target(WatchItem::Event(event)) => keeper.target(&server, &event.entry.key),
            Wake::Checked(checked) => keeper.checked(checked),
            Wake::Due => {}
            Wake::Service(WatchItem::Closed)
            | Wake::Definition(WatchItem::Closed)
            | Wake::Target(WatchItem::Closed) => return,
            Wake::Service(WatchItem::Lagged)
            | Wake::Definition(WatchItem::Lagged)
            | Wake::Target(WatchItem::Lagged) => {
                let store = keeper.store.clone();
                keeper = Keeper::start(server, store).await;
                continue;
            }
        }
        keeper.begin_checks(&server);
    }
}

enum Wake {
    Service(WatchItem),
    Definition(WatchItem),
    /// A Service or an EndpointSlice.
    Target(WatchItem),
    Checked(Checked),
    Due,
}

/// The outcome of a check.
struct Checked {
    name: String,
    is_passed: bool,
}

/// When an APIService is checked next.
struct Due {
    at: Instant,
    failures: u32,
    /// What was checked last leads there.
    target: Arc<ApiService>,
    is_running: bool,
}

struct Keeper {
    store: Store,
    services: Watch,
    definitions: Watch,
    /// Watches of Services and EndpointSlices, while there is a server that is reached by them.
    targets: Option<[Watch; 2]>,
    wanted: Wanted,
    due: BTreeMap<String, Due>,
    checks: JoinSet<Checked>,
}

impl Keeper {
    /// Looks at everything there is.
    async fn start(server: ApiServer, store: Store) -> Self {
        let (services, watch_services) = store.list_and_watch(&prefix_of(API_SERVICES));
        let (definitions, watch_definitions) = store.list_and_watch(&prefix_of(DEFINITIONS));
        let mut keeper = Self {
            store,
            services: watch_services,
            definitions: watch_definitions,
            targets: None,
            wanted: Wanted::default(),
            due: BTreeMap::new(),
            checks: JoinSet::new(),
        };
        for entry in &definitions {
            keeper.definition(entry, true);
        }
        let mut names: BTreeSet<String> = keeper.wanted.names().cloned().collect();
        names.extend(services.iter().map(|entry| name_of(&entry.key).to_owned()));
        keeper.register(&server, names.into_iter().collect()).await;
        keeper.remove_outdated(&server, &services).await;
        for entry in &services {
            keeper.service(&server, name_of(&entry.key), true).await;
        }
        keeper.begin_checks(&server);
        keeper
    }

    /// Every arm is cancel safe: an event, an outcome or a moment is taken only by the arm that completes.
    async fn next(&mut self) -> Wake {
        let waiting = self.due.values().filter(|due| !due.is_running).map(|due| due.at).min();
        // Those that are due while all places are taken begin when a check ends.
        let next_due = waiting.filter(|_| self.checks.len() < CHECKS_MAX);
        let targets = async {
            match &mut self.targets {
                Some([services, slices]) => tokio::select! {
                    item = services.next() => item,
                    item = slices.next() => item,
                },
                None => std::future::pending().await,
            }
        };
        let due = async {
            match next_due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            item = self.services.next() => Wake::Service(item),
            item = self.definitions.next() => Wake::Definition(item),
            item = targets => Wake::Target(item),
            Some(outcome) = self.checks.join_next(), if !self.checks.is_empty() => match outcome {
                Ok(checked) => Wake::Checked(checked),
                // A check that panicked is logged by the hook; its APIService stays as it was until it changes.
                Err(_) => Wake::Due,
            },
            () = due => Wake::Due,
        }
    }

    /// Takes over what a definition serves. Answers which APIServices that concerns.
    fn definition(&mut self, entry: &Entry, is_there: bool) -> Vec<String> {
        let parsed = if is_there { Definition::parse(&entry.value).ok() } else { None };
        self.wanted.set(name_of(&entry.key), parsed.as_ref())
    }

    fn stored(&self, name: &str) -> Option<Value> {
        let (group, version, plural) = API_SERVICES;
        let key = kinds::by_resource(group, version, plural)?.storage_key("", name);
        let entry = self.store.get(&key)?;
        let mut object: Value = serde_json::from_slice(&entry.value).ok()?;
        meta::set(&mut object, &["metadata", "resourceVersion"], entry.mod_revision.to_string());
        Some(object)
    }

    async fn register(&self, server: &ApiServer, names: Vec<String>) {
        let steps = names.into_iter().map(|name| {
            let step = step(&self.wanted, &name, self.stored(&name).as_ref());
            carry_out(server, name, step)
        });
        stream::iter(steps).buffer_unordered(REGISTER_AT_ONCE_MAX).collect::<Vec<()>>().await;
    }

    async fn remove_outdated(&self, server: &ApiServer, services: &[Arc<Entry>]) {
        let served = server.state().catalogue.snapshot();
        let is_served = |group: &str, version: &str| served.find(group, version).is_some();
        for entry in services {
            let name = name_of(&entry.key).to_owned();
            if let Some(held) = self.stored(&name).filter(|held| is_outdated(held, is_served)) {
                carry_out(server, name, Step::Delete { uid: meta::uid(&held).to_owned() }).await;
            }
        }
    }

    /// An APIService has changed or gone.
    async fn service(&mut self, server: &ApiServer, name: &str, is_there: bool) {
        self.register(server, vec![name.to_owned()]).await;
        let state = server.state();
        state.aggregator.changed();
        let service = state.aggregator.service(name).filter(|_| is_there);
        match service {
            Some(service) if service.remote.is_some() => self.expect_check(name, service),
            other => {
                self.due.remove(name);
                if other.is_some() {
                    self.settle_local(server, name).await;
                }
            }
        }
        if self.due.is_empty() {
            self.targets = None;
        } else if self.targets.is_none() {
            let watch = |kind| self.store.list_and_watch(&prefix_of(kind)).1;
            self.targets = Some([watch(SERVICES), watch(SLICES)]);
        }
    }

    /// A check, unless the server that the last one asked is still the one: then only its status was written.
    fn expect_check(&mut self, name: &str, service: Arc<ApiService>) {
        let leads_to = |service: &ApiService| match &service.remote {
            Some(Ok(remote)) => Some(Arc::clone(remote)),
            _ => None,
        };
        let at = Instant::now();
        match self.due.get_mut(name) {
            Some(due) => {
                let same = match (leads_to(&due.target), leads_to(&service)) {
                    (Some(old), Some(new)) => Arc::ptr_eq(&old, &new),
                    _ => false,
                };
                // Someone else may have written its status.
                let is_undone = due.target.is_available != service.is_available && due.failures == 0;
                due.target = service;
                if !same || is_undone {
                    due.at = at;
                }
            }
            None => {
                self.due.insert(name.to_owned(), Due { at, failures: 0, target: service, is_running: false });
            }
        }
    }

    /// What this server answers itself is always available.
    async fn settle_local(&self, server: &ApiServer, name: &str) {
        let Some(held) = self.stored(name) else { return };
        let conditions = meta::items_at(&held, &["status", "conditions"]);
        let is_right = |condition: &&Value| {
            condition["type"] == AVAILABLE && condition["status"] == "True" && condition["reason"] == "Local"
        };
        if conditions.iter().find(is_right).is_none() {
            let others = conditions.iter().filter(|condition| condition["type"] != AVAILABLE).cloned();
            let now = meta::format_time(server.now());
            let conditions: Vec<Value> = others.chain([local_condition(&now)]).collect();
            write_status(server, &held, conditions).await;
        }
    }

    /// A Service or an EndpointSlice has changed.
    fn target(&mut self, server: &ApiServer, key: &str) {
        let namespace = key.rsplit('/').nth(1).unwrap_or_default();
        let now = Instant::now();
        for service in server.state().aggregator.remotes() {
            let is_there = match &service.remote {
                Some(Ok(remote)) => remote.spec.namespace == namespace,
                _ => false,
            };
            if is_there && let Some(due) = self.due.get_mut(&service.name) {
                due.at = now;
            }
        }
    }

    fn begin_checks(&mut self, server: &ApiServer) {
        let now = Instant::now();
        for (name, due) in &mut self.due {
            if self.checks.len() >= CHECKS_MAX {
                return;
            }
            if due.is_running || due.at > now {
                continue;
            }
            let Some(service) = server.state().aggregator.service(name) else { continue };
            due.is_running = true;
            // A change while the check runs asks for another one.
            due.at = carob_kit::moment_after(now, RECHECK);
            let (server, name) = (server.clone(), name.clone());
            self.checks.spawn(async move {
                let is_passed = run_check(&server, &service).await;
                Checked { name, is_passed }
            });
        }
    }

    fn checked(&mut self, checked: Checked) {
        let Some(due) = self.due.get_mut(&checked.name) else { return };
        due.is_running = false;
        if checked.is_passed {
            due.failures = 0;
            return;
        }
        let pause = RETRY_FIRST.saturating_mul(1 << due.failures.min(RETRY_DOUBLINGS_MAX)).min(RECHECK);
        due.failures = due.failures.saturating_add(1);
        due.at = due.at.min(carob_kit::moment_after(Instant::now(), pause));
    }
}

/// Checks one APIService and says what was found in its status. Answers whether it can be asked.
async fn run_check(server: &ApiServer, service: &ApiService) -> bool {
    let state = server.state();
    let found = match &service.remote {
        None => return true,
        Some(Err(why)) => Finding { status: "False", reason: "FailedDiscoveryCheck", message: why.clone() },
        Some(Ok(remote)) => match service_finding(&state.store, remote) {
            Some(found) => found,
            None => check::of_server(service, remote).await,
        },
    };
    if found.is_passed()
        && let Some(Ok(remote)) = &service.remote
        && documents::refresh(service, remote).await
    {
        state.aggregator.changed();
    }
    // Before the server is ready itself a failure may be its own.
    if found.reason == "FailedDiscoveryCheck" && !server.is_bootstrapped() {
        return false;
    }
    let (group, version, plural) = API_SERVICES;
    let Some(def) = kinds::by_resource(group, version, plural) else { return false };
    let Some(entry) = state.store.get(&def.storage_key("", &service.name)) else { return true };
    let Ok(mut held) = serde_json::from_slice::<Value>(&entry.value) else { return true };
    meta::set(&mut held, &["metadata", "resourceVersion"], entry.mod_revision.to_string());
    let now = meta::format_time(server.now());
    if let Some(conditions) = check::conditions(meta::items_at(&held, &["status", "conditions"]), &found, &now) {
        info!(
            apiservice = service.name,
            status = found.status,
            reason = found.reason,
            message = found.message,
            "availability"
        );
        if !write_status(server, &held, conditions).await {
            return false;
        }
    }
    found.is_passed()
}

/// What the stored Service and its slices say of a server.
fn service_finding(store: &Store, remote: &super::service::Remote) -> Option<Finding> {
    let (namespace, name) = (&remote.spec.namespace, &remote.spec.name);
    let parse = |entry: &Entry| serde_json::from_slice::<Value>(&entry.value).ok();
    let key = kinds::by_resource("", "v1", "services")?.storage_key(namespace, name);
    let service = store.get(&key).and_then(|entry| parse(&entry));
    let (group, version, plural) = SLICES;
    let prefix = kinds::by_resource(group, version, plural)?.storage_prefix(Some(namespace));
    let slices = store.list(&prefix, ListOptions::default()).map(|page| page.entries).unwrap_or_default();
    let slices = slices.iter().filter_map(|entry| parse(entry));
    let of_service = |slice: &Value| meta::label(slice, "kubernetes.io/service-name") == Some(name);
    let slices: Vec<Value> = slices.filter(of_service).collect();
    check::of_service(service.as_ref(), &slices, remote)
}

/// Writes the conditions of an object that was read; answers whether that went through.
async fn write_status(server: &ApiServer, held: &Value, conditions: Vec<Value>) -> bool {
    let revision = meta::resource_version(held);
    let patch = json!({ "metadata": { "resourceVersion": revision }, "status": { "conditions": conditions } });
    let path = format!("{PATH}/{}/status", meta::name(held));
    accepted(meta::name(held), own_requests::merge_patch(server, &path, &patch).await)
}

async fn carry_out(server: &ApiServer, name: String, step: Step) {
    let path = format!("{PATH}/{name}");
    let sent = match step {
        Step::None => return,
        Step::Create(object) => own_requests::send(server, Method::POST, PATH, &object).await,
        Step::Update(object) => own_requests::send(server, Method::PUT, &path, &object).await,
        Step::Delete { uid } => {
            let options = json!({
                "kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", "preconditions": { "uid": uid },
            });
            own_requests::send(server, Method::DELETE, &path, &options).await
        }
    };
    accepted(&name, sent);
}

/// A conflict means that a newer state is on its way here; anything else is logged.
fn accepted(name: &str, sent: Result<Sent, http::Error>) -> bool {
    match sent {
        Ok(sent) if sent.code.is_success() => true,
        Ok(sent) if matches!(sent.code, StatusCode::CONFLICT | StatusCode::NOT_FOUND) => false,
        Ok(sent) => {
            warn!(apiservice = name, status = %sent.code, answer = sent.text(), "an APIService could not be written");
            false
        }
        Err(error) => {
            warn!(apiservice = name, error = %Status::internal(error), "a request to the server itself could not be built");
            false
        }
    }
}
