//! One request: where it leads, its way there, and its answer's way back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use carob_kit::chain;
use carob_kit::metrics::{Exposition, Kind};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::body::{self, AnswerBody, RequestBody};
use crate::endpoints::{Protocol, Targets, Unserved};
use crate::headers::{self, Origin, Unfit};
use crate::pool::{ConnectError, Pool, Sender};
use crate::route::{Backend, host_name};

/// Requests under way at a time; further ones get 503.
const REQUESTS_MAX: usize = 8192;
/// Connections at a time that were handed over to another protocol, such as WebSocket; a further request for it gets 503.
const UPGRADED_MAX: usize = 4096;
/// Endpoints that one request is offered to, each after the one before could not be reached.
const TRIES_MAX: usize = 3;
/// How long an endpoint may take until its answer begins.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// What the cluster has for requests.
pub(crate) trait Directory: Send + Sync + 'static {
    fn find(&self, host: &str, path: &str) -> Option<Arc<Backend>>;

    fn targets(&self, backend: &Backend) -> Result<Targets, Unserved>;
}

/// Answers by the class of their code.
#[derive(Debug, Default)]
pub(crate) struct Counts([AtomicU64; 5]);

impl Counts {
    fn count(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(count) = self.0.get(class) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn write_metrics(&self, out: &mut Exposition) {
        let help = "Requests for Ingresses, by the class of their answer.";
        let family = out.family("carob_ingress_requests_total", Kind::Counter, help);
        for (class, count) in self.0.iter().enumerate() {
            family.sample(&[("code", &format!("{}xx", class + 1))], count.load(Ordering::Relaxed));
        }
    }
}

/// Why a request has no answer of a backend.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("too many requests are under way")]
    Full,
    #[error("CONNECT is not served")]
    Connect,
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error("the target of the request cannot be passed on")]
    Target(#[source] http::Error),
    #[error("no Ingress has a rule for this host and path")]
    NoRule,
    #[error("the backend cannot be reached")]
    Unserved(#[from] Unserved),
    #[error("no endpoint of the backend can be reached")]
    Unreachable(#[source] ConnectError),
    #[error("the backend ended the connection without an answer")]
    NoAnswer(#[source] hyper::Error),
    #[error("the backend did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    #[error("the backend changed to a protocol that was not asked for")]
    Unasked,
}

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unfit(Unfit::Host) | Self::Target(_) => StatusCode::BAD_REQUEST,
            Self::Unfit(Unfit::Circle) => StatusCode::LOOP_DETECTED,
            Self::NoRule => StatusCode::NOT_FOUND,
            Self::Full | Self::Unserved(_) | Self::Unreachable(ConnectError::Full) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unreachable(_) | Self::NoAnswer(_) | Self::Unasked => StatusCode::BAD_GATEWAY,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// What the client is told; causes name addresses of the cluster, and are for the log.
    fn answer(&self) -> Response<AnswerBody> {
        let mut response = Response::new(body::text(format!("{self}\n")));
        *response.status_mut() = self.status();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }
}

/// What a request holds until it is answered.
type Place = OwnedSemaphorePermit;

pub(crate) struct Proxy {
    directory: Arc<dyn Directory>,
    pool: Arc<Pool>,
    requests: Arc<Semaphore>,
    upgraded: Arc<Semaphore>,
    /// Which endpoint is next.
    turn: AtomicUsize,
    pub(crate) counts: Counts,
}

impl Proxy {
    pub(crate) fn new(directory: Arc<dyn Directory>) -> Arc<Self> {
        Arc::new(Self {
            directory,
            pool: Pool::new(),
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            upgraded: Arc::new(Semaphore::new(UPGRADED_MAX)),
            turn: AtomicUsize::new(0),
            counts: Counts::default(),
        })
    }

    pub(crate) async fn answer(&self, request: Request<Incoming>, origin: Origin) -> Response<AnswerBody> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let answer = match self.pass(request, origin).await {
            Ok(answer) => answer,
            Err(failure) => {
                debug!(%method, %uri, error = %chain(&failure), "a request is not served");
                failure.answer()
            }
        };
        self.counts.count(answer.status());
        answer
    }

    async fn pass(&self, mut request: Request<Incoming>, origin: Origin) -> Result<Response<AnswerBody>, Failure> {
        let place = Arc::clone(&self.requests).try_acquire_owned().map_err(|_| Failure::Full)?;
        if request.method() == Method::CONNECT {
            return Err(Failure::Connect);
        }
        let client = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        let authority = headers::authority(&parts.uri, &parts.headers, parts.version)?;
        let backend = self.directory.find(&host_name(&authority), parts.uri.path()).ok_or(Failure::NoRule)?;
        let targets = self.directory.targets(&backend)?;
        let upgrade = headers::wants_upgrade(&parts) && targets.protocol == Protocol::Http1;
        let handed_over = if upgrade {
            Some(Arc::clone(&self.upgraded).try_acquire_owned().map_err(|_| Failure::Full)?)
        } else {
            None
        };
        headers::forward(&mut parts.headers, &authority, origin, upgrade, targets.protocol)?;
        retarget(&mut parts, &authority, targets.protocol)?;
        let mut answer = self.offer(&parts, body, &targets).await?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            if !upgrade {
                return Err(Failure::Unasked);
            }
            let backend = hyper::upgrade::on(&mut answer);
            tokio::spawn(join(client, backend, handed_over));
            let (mut parts, _) = answer.into_parts();
            headers::switch(&mut parts.headers);
            return Ok(Response::from_parts(parts, body::empty()));
        }
        Ok(pass_back(answer, place))
    }

    /// Offers the request to endpoints until one takes it.
    async fn offer(
        &self,
        parts: &request::Parts,
        body: Incoming,
        targets: &Targets,
    ) -> Result<Response<Incoming>, Failure> {
        let (body, mut is_sent) = RequestBody::new(body);
        let may_repeat = body.is_empty() && parts.method.is_safe();
        let mut message = with_body(parts, body);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut tries = 0;
        let mut fresh = false;
        loop {
            let at = targets.addresses[turn.wrapping_add(tries) % targets.addresses.len()];
            let sender = self.pool.take(at, targets.protocol, fresh).await;
            let mut sender = match sender {
                Ok(sender) => sender,
                Err(error) => {
                    tries += 1;
                    if tries >= TRIES_MAX.min(targets.addresses.len()) || matches!(error, ConnectError::Full) {
                        return Err(Failure::Unreachable(error));
                    }
                    debug!(error = %chain(&error), "an endpoint cannot be reached: the next one is tried");
                    continue;
                }
            };
            let was_used = sender.is_used;
            let mut error = match in_time(sender.send(message), &is_sent).await? {
                Ok(answer) => {
                    self.keep(sender, &answer);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            // An endpoint may end a connection that it has not heard of for long while a request is on the way. Those that change
            // nothing can be sent again (RFC 9110, section 9.2.2); one that was not sent at all can, whatever it is.
            message = match error.take_message() {
                Some(unsent) if was_used => unsent,
                None if was_used && may_repeat => {
                    let (body, is_sent_again) = RequestBody::empty();
                    is_sent = is_sent_again;
                    with_body(parts, body)
                }
                Some(_) | None => return Err(Failure::NoAnswer(error.into_error())),
            };
            fresh = true;
        }
    }

    fn keep(&self, sender: Sender, answer: &Response<Incoming>) {
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            self.pool.keep(sender);
        }
    }
}

/// Waits for an answer: as long as the request's body comes, and for a while after that.
async fn in_time<T>(answer: impl Future<Output = T>, is_sent: &CancellationToken) -> Result<T, Failure> {
    tokio::pin!(answer);
    tokio::select! {
        answered = &mut answer => Ok(answered),
        () = is_sent.cancelled() => {
            tokio::time::timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| Failure::Timeout)
        }
    }
}

/// The target as the backend gets it.
fn retarget(parts: &mut request::Parts, authority: &str, protocol: Protocol) -> Result<(), Failure> {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let mut uri = Uri::builder().path_and_query(path);
    if protocol == Protocol::H2c {
        uri = uri.scheme("http").authority(authority);
    }
    parts.uri = uri.build().map_err(Failure::Target)?;
    parts.version = if protocol == Protocol::H2c { Version::HTTP_2 } else { Version::HTTP_11 };
    // What the client's connection left here is not the backend's.
    parts.extensions.clear();
    Ok(())
}

fn with_body(parts: &request::Parts, body: RequestBody) -> Request<RequestBody> {
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.version_mut() = parts.version;
    *request.headers_mut() = parts.headers.clone();
    request
}

fn pass_back(answer: Response<Incoming>, place: Place) -> Response<AnswerBody> {
    let (mut parts, body) = answer.into_parts();
    headers::answer(&mut parts.headers);
    // Each side has its own.
    parts.version = Version::default();
    Response::from_parts(parts, body::holding(body, place))
}

/// Copies bytes both ways until both sides have ended.
async fn join(client: OnUpgrade, backend: OnUpgrade, place: Option<Place>) {
    let (client, backend) = match tokio::try_join!(client, backend) {
        Ok(both) => both,
        Err(error) => return debug!(%error, "hand a connection over to another protocol"),
    };
    let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut backend).await {
        debug!(%error, "a connection of another protocol broke off");
    }
    drop(place);
}

/// The address of whoever asks, as backends are told it.
pub(crate) fn origin(client: SocketAddr, port: u16, tls: bool) -> Origin {
    Origin { client: client.ip(), port, tls }
}
