//! The streams behind the URLs of Exec, Attach and PortForward: HTTP on loopback, a URL for each, good once (cri-streaming
//! `pkg/streaming`).

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use carob_cri::v1::{
    AttachRequest, AttachResponse, ExecRequest, ExecResponse, PortForwardRequest, PortForwardResponse,
};
use carob_cri::{Code, Cri, CriError, ExecStart};
use carob_streams::forward::Target;
use carob_streams::remote::Kind;
use carob_streams::serve;
use carob_streams::upgrade::{Body, UpgradeError};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// URLs that wait for their client, and how long one is good (`maxInFlight`, `cacheTTL`).
const WAITING_MAX: usize = 1000;
const WAITING_TIME_MAX: Duration = Duration::from_secs(60);
/// Connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// Time for the head of a request.
const HEAD_TIME_MAX: Duration = Duration::from_secs(10);
/// Time without a connection after one could not be taken: descriptors may be free then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a URL stands for.
enum Asked {
    Session(Kind, ExecStart),
    Forward { sandbox_id: String, ports: Vec<u16> },
}

pub(crate) struct StreamServer {
    cri: Arc<dyn Cri>,
    address: SocketAddr,
    listener: TcpListener,
    waiting: Mutex<HashMap<String, (Instant, Asked)>>,
    tasks: TaskTracker,
}

impl StreamServer {
    pub(crate) async fn bind(cri: Arc<dyn Cri>) -> io::Result<Arc<Self>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok(Arc::new(Self { cri, address, listener, waiting: Mutex::default(), tasks: TaskTracker::new() }))
    }

    pub(crate) fn exec(&self, request: ExecRequest) -> Result<ExecResponse, CriError> {
        let ExecRequest { container_id, cmd, tty, stdin, stdout, stderr, .. } = request;
        if cmd.is_empty() {
            return Err(CriError::invalid_argument("no command is given"));
        }
        let start = ExecStart { container_id, cmd, tty, stdin, stdout, stderr };
        Ok(ExecResponse { url: self.url("exec", Asked::Session(Kind::Exec, checked(start)?))? })
    }

    pub(crate) fn attach(&self, request: AttachRequest) -> Result<AttachResponse, CriError> {
        let AttachRequest { container_id, stdin, tty, stdout, stderr, .. } = request;
        let start = ExecStart { container_id, cmd: Vec::new(), tty, stdin, stdout, stderr };
        Ok(AttachResponse { url: self.url("attach", Asked::Session(Kind::Attach, checked(start)?))? })
    }

    pub(crate) fn port_forward(&self, request: PortForwardRequest) -> Result<PortForwardResponse, CriError> {
        if request.pod_sandbox_id.is_empty() {
            return Err(CriError::invalid_argument("no sandbox is named"));
        }
        let port = |port: &i32| u16::try_from(*port).ok().filter(|port| *port > 0);
        let ports: Option<Vec<u16>> = request.port.iter().map(port).collect();
        let ports = ports.ok_or_else(|| CriError::invalid_argument(format!("{:?} are not ports", request.port)))?;
        let asked = Asked::Forward { sandbox_id: request.pod_sandbox_id, ports };
        Ok(PortForwardResponse { url: self.url("portforward", asked)? })
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, (Instant, Asked)>> {
        // Nothing that holds it can panic between two changes.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn url(&self, what: &str, asked: Asked) -> Result<String, CriError> {
        let mut waiting = self.waiting();
        let now = Instant::now();
        waiting.retain(|_, (until, _)| *until > now);
        if waiting.len() >= WAITING_MAX {
            return Err(CriError::new(Code::ResourceExhausted, "maximum number of in-flight requests exceeded"));
        }
        let token = format!("{:032x}", u128::from_be_bytes(carob_kit::random_bytes()));
        let url = format!("http://{}/{what}/{token}", self.address);
        waiting.insert(format!("{what}/{token}"), (now + WAITING_TIME_MAX, asked));
        Ok(url)
    }

    fn take(&self, path: &str) -> Option<Asked> {
        let (until, asked) = self.waiting().remove(path.strip_prefix('/')?)?;
        (until > Instant::now()).then_some(asked)
    }

    /// Serves until the shutdown, which cuts open streams.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let connections = TaskTracker::new();
        loop {
            let next = async {
                // The semaphore is never closed.
                let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
                self.listener.accept().await.map(|(stream, _)| (stream, place))
            };
            let next = tokio::select! {
                next = next => next,
                () = shutdown.cancelled() => break,
            };
            match next {
                Ok((stream, place)) => {
                    let (server, shutdown) = (Arc::clone(&self), shutdown.clone());
                    connections.spawn(async move {
                        tokio::select! {
                            () = server.connection(stream) => {}
                            () = shutdown.cancelled() => {}
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection for a stream could not be taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        connections.close();
        connections.wait().await;
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let service = service_fn(move |request| {
            let server = Arc::clone(&self);
            async move { Ok::<_, Infallible>(server.answer(request)) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME_MAX)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(error = %carob_kit::chain(&error), "a connection for a stream broke");
        }
    }

    fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let Some(asked) = self.take(request.uri().path()) else {
            return words(StatusCode::NOT_FOUND, "404: the URL is not, or no longer, good");
        };
        let cri = Arc::clone(&self.cri);
        let answer: Result<_, UpgradeError> = match asked {
            Asked::Session(kind, start) => serve::session(cri, &self.tasks, request, kind, start),
            Asked::Forward { sandbox_id, ports } => {
                let target = Target { cri, pod: sandbox_id.clone(), sandbox_id };
                serve::port_forward(target, &self.tasks, request, || Ok(ports))
            }
        };
        answer.unwrap_or_else(|error| words(StatusCode::BAD_REQUEST, &error.to_string()))
    }
}

/// The rules of upstream's server (`validateExecRequest`).
fn checked(start: ExecStart) -> Result<ExecStart, CriError> {
    if start.container_id.is_empty() {
        return Err(CriError::invalid_argument("missing required container_id"));
    }
    if start.tty && start.stderr {
        return Err(CriError::invalid_argument("tty and stderr cannot both be true"));
    }
    if !start.stdin && !start.stdout && !start.stderr {
        return Err(CriError::invalid_argument("one of stdin, stdout, or stderr must be set"));
    }
    Ok(start)
}

fn words(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}
