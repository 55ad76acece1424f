//! The pipeline that every request passes: who, what, may they, how many at once, how long; then the handler.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use carob_kit::Clock;
use carob_store::Store;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::watch;
use tracing::error;

use crate::admission::Pipeline;
use crate::allocate::Services;
use crate::authn::{Authentication, Peer, ServiceAccountTokens, StaticTokens};
use crate::authz::{Authorization, impersonated, is_public};
use crate::body::{Body, BoxError, RequestBody};
use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::error::ApiError;
use crate::identity::Identity;
use crate::in_process::InProcess;
use crate::lookup::Lookup;
use crate::metrics::Metrics;
use crate::openapi::OpenApi;
use crate::request::{Query, RequestInfo, ResourceRequest, Verb};
use crate::respond;
use crate::server::{InFlight, Limits, RETRY_AFTER_S};
use crate::{dispatch, nonresource};

/// An API server could not be made from its configuration.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the service CIDR {cidr} holds no addresses to give away")]
    ServiceCidr { cidr: ipnet::IpNet },
    #[error("list the stored Services")]
    Services(#[source] carob_store::ReadError),
    #[error("no service CIDR is configured")]
    NoServiceCidr,
}

/// The API server. Clones share everything.
#[derive(Clone)]
pub struct ApiServer(Arc<Inner>);

/// What handlers work with.
pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Limits,
    pub(crate) authn: Authentication,
    pub(crate) authz: Authorization,
    pub(crate) tokens: Arc<ServiceAccountTokens>,
    pub(crate) admission: Pipeline,
    pub(crate) services: Services,
    pub(crate) dialer: Arc<dyn crate::NodeDialer>,
    pub(crate) explainer: Option<Arc<dyn crate::Explainer>>,
    pub(crate) catalogue: Catalogue,
    /// The address that legacy discovery names.
    pub(crate) advertised: Option<std::net::SocketAddr>,
    pub(crate) openapi: OpenApi,
    pub(crate) metrics: Metrics,
    in_flight: InFlight,
    /// True once the server has begun to shut down: streams end.
    closing: watch::Sender<bool>,
}

impl Inner {
    /// Turns true when streams should end.
    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }
}

impl ApiServer {
    /// Reads Services out of the store, so that no address is given away twice.
    pub fn new(config: Config) -> Result<Self, StartError> {
        let store = config.store.clone();
        let lookup = Arc::new(Lookup::new(store.clone()));
        let tokens = Arc::new(ServiceAccountTokens::new(
            config.service_account_keys,
            config.issuer,
            config.audiences,
            Arc::clone(&config.clock),
            Arc::clone(&lookup) as _,
        ));
        let authn =
            Authentication::new(vec![Box::new(StaticTokens::new(config.static_tokens)), Box::new(Arc::clone(&tokens))]);
        let services = Services::restore(&store, &config.service_cidrs, config.node_ports)?;
        let inner = Inner {
            authn,
            authz: Authorization::new(lookup, config.authorizers),
            tokens,
            admission: Pipeline::new(store.clone(), Arc::clone(&config.clock), config.mutators, config.validators),
            services,
            dialer: config.dialer,
            explainer: config.explainer,
            catalogue: Catalogue::new(config.unstable_versions),
            advertised: config.advertise_address,
            openapi: OpenApi::default(),
            metrics: Metrics::default(),
            in_flight: InFlight::new(&config.limits),
            closing: watch::channel(false).0,
            limits: config.limits,
            clock: config.clock,
            store,
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Answers one request in the name of `user`, whatever its headers say of itself.
    pub fn handle<B>(&self, request: Request<B>, user: Identity) -> BoxFuture<'static, Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Box::pin(self.clone().run(request.map(erase), Caller::Known(user)))
    }

    /// The API as a service for `kube::Client::new`, always in the name of `user`.
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

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    pub(crate) fn now(&self) -> jiff::Timestamp {
        self.0.clock.now()
    }

    /// Ends watches and other streams; new requests are still answered.
    pub fn begin_shutdown(&self) {
        self.0.closing.send_replace(true);
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
        let mut response = self.limited(parts, body, query, info, caller).await;
        respond::finish(&mut response, gzip);
        let elapsed = self.0.clock.monotonic().saturating_sub(started);
        self.0.metrics.observe(label, response.status(), elapsed);
        response
    }

    async fn limited(
        &self,
        parts: Parts,
        body: RequestBody,
        query: Query,
        info: RequestInfo,
        caller: Caller,
    ) -> Response<Body> {
        let long_running = info.is_long_running();
        let place = if long_running { None } else { self.0.in_flight.enter(info.verb.is_mutating()) };
        if place.is_none() && !long_running {
            return too_many_requests();
        }
        let path = info.path.clone();
        let answer = AssertUnwindSafe(self.authorized(parts, body, query, info, caller)).catch_unwind();
        let answer = if long_running {
            // A long-running request answers at once and streams afterwards; dialling a node has its own time-out.
            answer.await
        } else {
            match tokio::time::timeout(self.0.limits.request_timeout, answer).await {
                Ok(answer) => answer,
                Err(_) => return respond::error(timed_out()),
            }
        };
        drop(place);
        match answer {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => respond::error(error),
            Err(panic) => {
                error!(%path, panic = panic_text(panic.as_ref()), "a request handler panicked");
                respond::error(panicked())
            }
        }
    }

    async fn authorized(
        &self,
        parts: Parts,
        body: RequestBody,
        query: Query,
        info: RequestInfo,
        caller: Caller,
    ) -> Result<Response<Body>, ApiError> {
        let inner = &self.0;
        let user = match caller {
            Caller::Known(user) => user,
            Caller::Peer(peer) => {
                let found = inner.authn.identify(&peer, &parts.headers).map_err(|error| {
                    tracing::debug!(%error, path = info.path, "unauthenticated request");
                    unauthorized()
                })?;
                if found.name == crate::identity::USER_ANONYMOUS && !is_public(&info.path) {
                    return Err(unauthorized());
                }
                // Only here: the identity of an in-process client is fixed.
                impersonated(&inner.authz, found, &parts.headers)?
            }
        };
        inner.authz.check(&user, &info.attributes(&query))?;
        match info.resource {
            None => nonresource::answer(inner, &parts, &info.path, &query),
            Some(resource) => {
                dispatch::answer(inner, Asked { parts, query, verb: info.verb, resource, user }, body).await
            }
        }
    }
}

/// A request on a resource, authorised.
pub(crate) struct Asked {
    pub(crate) parts: Parts,
    pub(crate) query: Query,
    pub(crate) verb: Verb,
    pub(crate) resource: ResourceRequest,
    pub(crate) user: Identity,
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
fn panicked() -> ApiError {
    carob_api::Status::internal("This request caused apiserver to panic. Look in the logs for details.").into()
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
