//! The pipeline that every request passes: who, what, may they, how many at once, how long; then the handler.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use tracing::error;

use carob_api::Status;
use carob_kit::chain;
use carob_store::Store;

use crate::audit::{Level, Stage, Trail};
use crate::authn::{Peer, forget_credentials};
use crate::authz::impersonated;
use crate::body::{Body, BoxError, RequestBody, whole};
use crate::config::Config;
use crate::definitions::Definitions;
use crate::error::ApiError;
use crate::identity::{GROUP_MASTERS, Identity};
use crate::in_process::InProcess;
use crate::metrics::Pending;
use crate::policy::report_types;
use crate::request::{Asked, Notes, Query, RequestInfo, Verb};
use crate::server::{Class, Classified, Limits, RETRY_AFTER_S, Refused, Remote, is_heavy, seats_of_list};
use crate::state::{StartError, State};
use crate::system::SystemConfig;
use crate::{aggregation, audit, dispatch, metrics, nonresource, respond, tunnels};

/// The API server. Clones share everything.
#[derive(Clone)]
pub struct ApiServer(Arc<State>);

impl ApiServer {
    /// Reads Services out of the store, so that no address is given away twice, and CustomResourceDefinitions, so that their
    /// kinds are served from the first request on. Spawns tasks that follow the definitions, the APIServices and the policies; so it has to
    /// be called within a runtime.
    pub fn new(config: Config) -> Result<Self, StartError> {
        let state = Arc::new(State::new(config)?);
        let definitions = Definitions::load(&state.store, &state.catalogue);
        tokio::spawn(definitions.follow(Arc::downgrade(&state), state.store.clone()));
        tokio::spawn(aggregation::follow(Arc::downgrade(&state), state.store.clone()));
        tokio::spawn(report_types(Arc::downgrade(&state), state.store.clone()));
        Ok(Self(state))
    }

    /// Answers one request as `user`, whatever identity its headers claim.
    pub fn handle<B>(&self, request: Request<B>, user: Identity) -> BoxFuture<'static, Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Box::pin(self.clone().run(request.map(erase), Caller::Known(user)))
    }

    /// The API as a service for `kube::Client::new`, always as `user`.
    pub fn in_process(&self, user: Identity) -> InProcess {
        InProcess { api: self.clone(), user }
    }

    /// Answers a request from a socket: its headers and the peer's certificate say who asks.
    pub(crate) fn handle_peer<B>(&self, request: Request<B>, peer: Peer) -> BoxFuture<'static, Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Box::pin(self.clone().run(request.map(erase), Caller::Peer(peer)))
    }

    pub(crate) fn of(state: Arc<State>) -> Self {
        Self(state)
    }

    pub(crate) fn state(&self) -> &State {
        &self.0
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    pub(crate) fn system_config(&self) -> &SystemConfig {
        &self.0.system
    }

    pub(crate) fn store(&self) -> &carob_store::Store {
        &self.0.store
    }

    pub(crate) fn is_bootstrapped(&self) -> bool {
        self.0.is_bootstrapped()
    }

    pub(crate) fn mark_bootstrapped(&self) {
        self.0.mark_bootstrapped();
    }

    pub(crate) fn now(&self) -> jiff::Timestamp {
        self.0.clock.now()
    }

    /// Ends watches and other streams; new requests are still answered.
    pub fn begin_shutdown(&self) {
        self.0.begin_shutdown();
    }

    async fn run(self, request: Request<RequestBody>, caller: Caller) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let info = match RequestInfo::new(&parts.method, parts.uri.path(), &query) {
            Ok(info) => info,
            Err(error) => return respond::error(carob_api::Status::bad_request(error.to_string()).into()),
        };
        let mut pending = Pending::begin(&self.0, metrics::Asked::of(&self.0, &parts, &query, &info));
        let gzip = respond::accepts_gzip(&parts.headers);
        let notes = Arc::new(Notes::default());
        let mut response = self.clone().limited(parts, body, query, info, caller, &notes).await;
        respond::warn(&mut response, &notes.warnings());
        respond::finish(&mut response, gzip);
        pending.answered(response.status().as_u16(), notes.time_waited(), response.body().size_hint().exact());
        response.map(|body| body.holding(pending))
    }

    /// Who asks, and whether they may; what is recorded of it.
    async fn limited(
        self,
        mut parts: Parts,
        body: RequestBody,
        query: Query,
        info: RequestInfo,
        caller: Caller,
        notes: &Arc<Notes>,
    ) -> Response<Body> {
        let who = match AssertUnwindSafe(self.identify(&parts, caller)).catch_unwind().await {
            Ok(Ok(who)) => who,
            Ok(Err(error)) => {
                let trail = self.audited(&parts, &query, &info, &Who::nobody(), notes);
                return recorded(trail, respond::error(error), false).await;
            }
            Err(panic) => return panicked(&info.path, panic.as_ref()),
        };
        let mut trail = self.audited(&parts, &query, &info, &who, notes);
        if let Some(trail) = &trail {
            trail.record(Stage::RequestReceived, None, None).await;
        }
        let is_long = info.is_long_running();
        let may = catch_unwind(AssertUnwindSafe(|| self.authorize(&who.user, &query, &info, trail.is_some(), notes)));
        let response = match may {
            Ok(Ok(())) => {
                forget_credentials(&mut parts.headers);
                let flow = self.0.flow_control.classify(&who.user, &info.attributes(&query));
                let flow = flow.as_ref();
                let mut response = self.within_limits(parts, body, query, info, who, notes, flow, &mut trail).await;
                name_flow(&mut response, flow);
                response
            }
            Ok(Err(error)) => respond::error(error),
            Err(panic) => panicked(&info.path, panic.as_ref()),
        };
        recorded(trail, response, is_long).await
    }

    /// Reads the body before the request takes a place, which it then holds for no longer than its answer takes.
    #[expect(clippy::too_many_arguments, reason = "they are the parts of one request")]
    async fn within_limits(
        self,
        parts: Parts,
        body: RequestBody,
        query: Query,
        info: RequestInfo,
        who: Who,
        notes: &Arc<Notes>,
        flow: Option<&Classified>,
        trail: &mut Option<Trail>,
    ) -> Response<Body> {
        let Who { user, class, .. } = who;
        let path = info.path.clone();
        if info.is_long_running() {
            // It answers at once and streams afterwards; dialling a node has its own time-out.
            let answer =
                AssertUnwindSafe(self.answer(parts, body, query, info, user, Arc::clone(notes))).catch_unwind().await;
            return answered(&path, answer);
        }
        let in_flight = &self.0.in_flight;
        // The bytes count as long as the request has its place.
        let (body, _held) = match in_flight.read(class, body).await {
            Ok(read) => read,
            Err(Refused::Full) => return too_many_requests(),
            Err(Refused::Error(error)) => return respond::error(error),
        };
        if let Some(trail) = trail
            && info.verb.is_mutating()
            && let Some(object) = audit::decode(text_of(&parts, &CONTENT_TYPE), &body)
        {
            trail.sent(object);
        }
        let _seat = match flow {
            None => None,
            Some(flow) => {
                let since = self.0.clock.monotonic();
                match self.0.flow_control.enter(flow, self.seats(flow, &info, &query)).await {
                    Ok(seat) => {
                        let waited = self.0.clock.monotonic().saturating_sub(since);
                        self.0.flow_control.note_wait(flow, waited);
                        notes.waited(waited);
                        seat
                    }
                    Err(_) => return too_many_requests(),
                }
            }
        };
        let request_timeout = match asked_timeout(&query) {
            Ok(asked) => asked.map_or(self.0.limits.request_timeout, |asked| asked.min(self.0.limits.request_timeout)),
            Err(status) => return respond::error(status.into()),
        };
        let is_heavy = is_heavy(info.verb == Verb::Patch, body.len());
        let answer = self.clone().answer(parts, whole(body), query, info, user, Arc::clone(notes));
        let answer = async {
            if is_heavy {
                let turn = in_flight.enter_heavy().await;
                on_a_thread(async move {
                    // A request that times out holds its turn until its thread is free.
                    let _turn = turn;
                    answer.await
                })
                .await
            } else {
                AssertUnwindSafe(answer).catch_unwind().await
            }
        };
        match tokio::time::timeout(request_timeout, answer).await {
            Ok(answer) => answered(&path, answer),
            Err(_) => respond::error(timed_out()),
        }
    }

    /// How many seats a request takes: one, or more for a long list.
    fn seats(&self, flow: &Classified, info: &RequestInfo, query: &Query) -> u32 {
        let list = info.resource.as_ref().filter(|_| flow.is_limited() && info.verb == Verb::List);
        let Some(at) = list else { return 1 };
        let served = self.0.catalogue.snapshot();
        let Some(def) = served.kinds.resource(&at.group, &at.version, &at.resource) else { return 1 };
        let namespace = (!at.namespace.is_empty()).then_some(at.namespace.as_str());
        let limit = query.integer("limit").ok().flatten().and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        seats_of_list(self.0.store.count(&def.storage_prefix(namespace)).min(limit))
    }

    async fn identify(&self, parts: &Parts, caller: Caller) -> Result<Who, ApiError> {
        let inner = &self.0;
        match caller {
            Caller::Known(user) => {
                let class = if user.in_group(GROUP_MASTERS) { Class::Exempt } else { Class::InProcess };
                Ok(Who { user, class, impersonator: None })
            }
            Caller::Peer(peer) => {
                let found = inner.authn.identify(&peer, &parts.headers, parts.uri.path()).await.map_err(|error| {
                    tracing::debug!(%error, path = parts.uri.path(), "unauthenticated request");
                    unauthorized()
                })?;
                // Only here: the identity of an in-process client is fixed.
                let user = impersonated(&inner.authz, Arc::clone(&found), &parts.headers)?;
                let class = Class::of(&user);
                let impersonator = Some(found).filter(|found| !Arc::ptr_eq(found, &user));
                Ok(Who { user, class, impersonator })
            }
        }
    }

    /// The record of the request, if the policy wants one.
    fn audited(
        &self,
        parts: &Parts,
        query: &Query,
        info: &RequestInfo,
        who: &Who,
        notes: &Arc<Notes>,
    ) -> Option<Trail> {
        let auditor = self.0.auditor.as_ref()?;
        let remote = parts.extensions.get::<Remote>().map(|remote| remote.0.ip().to_canonical().to_string());
        let forwarded = text_of(parts, &FORWARDED_FOR).split(',').map(|one| one.trim().to_owned());
        let asked = audit::Asked {
            id: Some(text_of(parts, &AUDIT_ID)).filter(|id| !id.is_empty()).map_or_else(carob_kit::uid, str::to_owned),
            uri: parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned(),
            headers: &parts.headers,
            attributes: &info.attributes(query),
            user: who.impersonator.as_ref().unwrap_or(&who.user),
            impersonated: who.impersonator.as_ref().map(|_| &*who.user),
            sources: forwarded.filter(|one| !one.is_empty()).chain(remote).collect(),
        };
        auditor.begin(asked, notes)
    }

    fn authorize(
        &self,
        user: &Identity,
        query: &Query,
        info: &RequestInfo,
        is_audited: bool,
        notes: &Notes,
    ) -> Result<(), ApiError> {
        let attributes = info.attributes(query);
        let outcome = self.0.authz.check(user, &attributes);
        if is_audited {
            notes.annotate("authorization.k8s.io/decision", if outcome.is_ok() { "allow" } else { "forbid" });
            let reason = self.0.authz.explain(user, &attributes).unwrap_or_default();
            notes.annotate("authorization.k8s.io/reason", reason);
        }
        outcome
    }

    async fn answer(
        self,
        mut parts: Parts,
        body: RequestBody,
        query: Query,
        info: RequestInfo,
        user: Identity,
        notes: Arc<Notes>,
    ) -> Result<Response<Body>, ApiError> {
        let inner = &self.0;
        let body = match aggregation::answer(inner, &mut parts, body, &user).await {
            Ok(answer) => return answer,
            Err(body) => body,
        };
        match info.resource {
            None if info.path == carob_streams::reverse::PATH => tunnels::answer(inner, &mut parts, &user),
            None => {
                if nonresource::shows_kinds(&info.path) {
                    inner.catalogue.settled().await;
                }
                if let Some(answer) = aggregation::openapi_v3(inner, &parts, &user).await {
                    return answer;
                }
                nonresource::answer(inner, &parts, &info.path, &query, &user)
            }
            Some(resource) => {
                let asked = Asked { parts, query, verb: info.verb, resource, user, notes };
                if inner.store.is_shared() {
                    be_fresh(&inner.store, &asked.query).await?;
                }
                dispatch::answer(inner, asked, body).await
            }
        }
    }
}

type Panic = Box<dyn std::any::Any + Send>;

/// Waits until what other servers have written before can be read. A version that the client names says how fresh its answer has
/// to be; without one it is as fresh as there is. A store that is not what it was is not read at all.
async fn be_fresh(store: &Store, query: &Query) -> Result<(), ApiError> {
    let unavailable = |error: String| ApiError::from(Status::service_unavailable(&error));
    if let Some(failure) = store.failure() {
        return Err(unavailable(chain(&*failure).to_string()));
    }
    if query.text("resourceVersion").is_none() {
        store.caught_up().await.map_err(|error| unavailable(chain(&error).to_string()))?;
    }
    Ok(())
}

/// Runs a future on a thread that may be busy for as long as it likes.
async fn on_a_thread<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Result<T, Panic> {
    let runtime = tokio::runtime::Handle::current();
    let task = tokio::task::spawn_blocking(move || runtime.block_on(future));
    match task.await {
        Ok(outcome) => Ok(outcome),
        Err(error) => Err(error.try_into_panic().unwrap_or_else(|error| Box::new(error.to_string()))),
    }
}

fn answered(path: &str, answer: Result<Result<Response<Body>, ApiError>, Panic>) -> Response<Body> {
    match answer {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => respond::error(error),
        Err(panic) => panicked(path, panic.as_ref()),
    }
}

/// Who asks.
struct Who {
    user: Identity,
    class: Class,
    /// Who has asked to act as the user.
    impersonator: Option<Identity>,
}

impl Who {
    /// Of a request whose sender could not be told.
    fn nobody() -> Self {
        Self { user: Arc::default(), class: Class::Other, impersonator: None }
    }
}

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A header's text, empty where it is none.
fn text_of<'p>(parts: &'p Parts, name: &HeaderName) -> &'p str {
    parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Says by which objects the request was held up or not (apiserver `pkg/server/filters/priority-and-fairness.go`).
fn name_flow(response: &mut Response<Body>, flow: Option<&Classified>) {
    let Some(flow) = flow else { return };
    for (name, uid) in [(FLOW_SCHEMA, flow.schema_uid()), (PRIORITY_LEVEL, flow.level_uid())] {
        if let Ok(uid) = HeaderValue::from_str(uid) {
            response.headers_mut().insert(name, uid);
        }
    }
}

const FLOW_SCHEMA: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const PRIORITY_LEVEL: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// Marks the response of a handler that panicked.
#[derive(Clone, Copy)]
struct Panicked;

/// Records what came of a request.
async fn recorded(trail: Option<Trail>, mut response: Response<Body>, is_long: bool) -> Response<Body> {
    let Some(trail) = trail else { return response };
    let code = response.status();
    if let Ok(id) = HeaderValue::from_str(trail.id()) {
        response.headers_mut().insert(AUDIT_ID, id);
    }
    if response.extensions_mut().remove::<Panicked>().is_some() {
        trail.record(Stage::Panic, Some(code), None).await;
        return response;
    }
    if is_long && !code.is_client_error() && !code.is_server_error() {
        trail.record(Stage::ResponseStarted, Some(code), None).await;
        return response.map(|body| body.holding(audit::StreamEnd { trail, code }));
    }
    // What a refusal says is part of every event; other objects are for the highest level.
    let wants_object = trail.level() >= Level::RequestResponse || !code.is_success();
    let is_readable = response.body().size_hint().exact().is_some_and(|len| len <= audit::RESPONSE_LEN_MAX)
        && !response.headers().contains_key(CONTENT_ENCODING);
    let mut answer = None;
    if wants_object && is_readable {
        let (parts, body) = response.into_parts();
        let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        response = match body.collect().await {
            Ok(whole) => {
                let bytes = whole.to_bytes();
                answer = audit::decode(content_type, &bytes);
                Response::from_parts(parts, Body::from(bytes))
            }
            Err(error) => respond::error(carob_api::Status::internal(error).into()),
        };
    }
    trail.record(Stage::ResponseComplete, Some(code), answer).await;
    response
}

enum Caller {
    Known(Identity),
    Peer(Peer),
}

fn erase<B>(body: B) -> RequestBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Worded as apiserver `pkg/endpoints/filters/authentication.go` has it.
fn unauthorized() -> ApiError {
    carob_api::Status::unauthorized("Unauthorized").into()
}

/// How long the client waits, of a request that has an end (apiserver `pkg/endpoints/filters/request_deadline.go`).
fn asked_timeout(query: &Query) -> Result<Option<Duration>, Status> {
    let Some(text) = query.get("timeout").filter(|text| !text.is_empty()) else { return Ok(None) };
    let nanos = if text == "0" { Some(0) } else { carob_api::proto::nanos(text) };
    let nanos = nanos.ok_or_else(|| {
        let why = format!("time: invalid duration {text:?}");
        Status::bad_request(format!("invalid timeout specified in the request URL - {why}"))
    })?;
    // Zero is as long as it takes, and so is less.
    Ok(u64::try_from(nanos).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos))
}

fn timed_out() -> ApiError {
    carob_api::Status::timeout("request did not complete within the allotted timeout", 0).into()
}

/// Worded as apiserver `pkg/server/filters/wrap.go`.
fn panicked(path: &str, panic: &(dyn std::any::Any + Send)) -> Response<Body> {
    error!(path, panic = panic_text(panic), "a request handler panicked");
    let text = "This request caused apiserver to panic. Look in the logs for details.";
    let mut response = respond::error(carob_api::Status::internal(text).into());
    response.extensions_mut().insert(Panicked);
    response
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?")
}

/// Plain text, as apiserver `pkg/server/filters/maxinflight.go` answers.
fn too_many_requests() -> Response<Body> {
    let mut response = Response::new(Body::from("Too many requests, please try again later.\n".to_owned()));
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
