//! The pipeline that every request passes: who, what, may they, how many at once, how long; then the handler.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tracing::error;

use crate::authn::{Peer, forget_credentials};
use crate::authz::impersonated;
use crate::body::{Body, BoxError, RequestBody, whole};
use crate::config::Config;
use crate::definitions::Definitions;
use crate::error::ApiError;
use crate::identity::{GROUP_MASTERS, Identity};
use crate::in_process::InProcess;
use crate::request::{Asked, Notes, Query, RequestInfo, Verb};
use crate::server::{Class, Limits, RETRY_AFTER_S, Refused, is_heavy};
use crate::state::{StartError, State};
use crate::system::SystemConfig;
use crate::{aggregation, dispatch, nonresource, respond};

/// The API server. Clones share everything.
#[derive(Clone)]
pub struct ApiServer(Arc<State>);

impl ApiServer {
    /// Reads Services out of the store, so that no address is given away twice, and CustomResourceDefinitions, so that their
    /// kinds are served from the first request on. Spawns two tasks, which follow the definitions and the APIServices; so it has to
    /// be called within a runtime.
    pub fn new(config: Config) -> Result<Self, StartError> {
        let state = Arc::new(State::new(config)?);
        let definitions = Definitions::load(&state.store, &state.catalogue);
        tokio::spawn(definitions.follow(Arc::downgrade(&state), state.store.clone()));
        tokio::spawn(aggregation::follow(Arc::downgrade(&state), state.store.clone()));
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
        let started = self.0.clock.monotonic();
        let (parts, body) = request.into_parts();
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let info = match RequestInfo::new(&parts.method, parts.uri.path(), &query) {
            Ok(info) => info,
            Err(error) => return respond::error(carob_api::Status::bad_request(error.to_string()).into()),
        };
        let label = info.metrics_label();
        let gzip = respond::accepts_gzip(&parts.headers);
        let notes = Arc::new(Notes::default());
        let mut response = self.clone().limited(parts, body, query, info, caller, &notes).await;
        respond::warn(&mut response, &notes.warnings());
        respond::finish(&mut response, gzip);
        let elapsed = self.0.clock.monotonic().saturating_sub(started);
        self.0.metrics.observe(label, response.status(), elapsed);
        response
    }

    /// Reads the body before the request takes a place, which it then holds for no longer than its answer takes.
    async fn limited(
        self,
        mut parts: Parts,
        body: RequestBody,
        query: Query,
        info: RequestInfo,
        caller: Caller,
        notes: &Arc<Notes>,
    ) -> Response<Body> {
        let admitted = catch_unwind(AssertUnwindSafe(|| self.admit(&parts, &query, &info, caller)));
        let (user, class) = match admitted {
            Ok(Ok(admitted)) => admitted,
            Ok(Err(error)) => return respond::error(error),
            Err(panic) => return panicked(&info.path, panic.as_ref()),
        };
        forget_credentials(&mut parts.headers);
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
        let Some(_place) = in_flight.enter(class, info.verb.is_mutating()) else { return too_many_requests() };
        let request_timeout = self.0.limits.request_timeout;
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

    /// Who asks, and whether they may.
    fn admit(
        &self,
        parts: &Parts,
        query: &Query,
        info: &RequestInfo,
        caller: Caller,
    ) -> Result<(Identity, Class), ApiError> {
        let inner = &self.0;
        let (user, class) = match caller {
            Caller::Known(user) if user.in_group(GROUP_MASTERS) => (user, Class::Exempt),
            Caller::Known(user) => (user, Class::InProcess),
            Caller::Peer(peer) => {
                let found = inner.authn.identify(&peer, &parts.headers).map_err(|error| {
                    tracing::debug!(%error, path = info.path, "unauthenticated request");
                    unauthorized()
                })?;
                // Only here: the identity of an in-process client is fixed.
                let user = impersonated(&inner.authz, found, &parts.headers)?;
                let class = Class::of(&user);
                (user, class)
            }
        };
        inner.authz.check(&user, &info.attributes(query))?;
        Ok((user, class))
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
            None => {
                if let Some(answer) = aggregation::openapi_v3(inner, &parts, &user).await {
                    return answer;
                }
                nonresource::answer(inner, &parts, &info.path, &query, &user)
            }
            Some(resource) => {
                let asked = Asked { parts, query, verb: info.verb, resource, user, notes };
                dispatch::answer(inner, asked, body).await
            }
        }
    }
}

type Panic = Box<dyn std::any::Any + Send>;

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

fn timed_out() -> ApiError {
    carob_api::Status::timeout("request did not complete within the allotted timeout", 0).into()
}

/// Worded as apiserver `pkg/server/filters/wrap.go`.
fn panicked(path: &str, panic: &(dyn std::any::Any + Send)) -> Response<Body> {
    error!(path, panic = panic_text(panic), "a request handler panicked");
    let text = "This request caused apiserver to panic. Look in the logs for details.";
    respond::error(carob_api::Status::internal(text).into())
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
