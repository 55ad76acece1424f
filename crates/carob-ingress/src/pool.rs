//! Connections to endpoints: made, kept for a while, and bounded.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::debug;

use crate::body::RequestBody;
use crate::endpoints::Protocol;
use crate::socket;

/// Connections to endpoints at a time, whether they are used or not.
const CONNECTIONS_MAX: usize = 8192;
/// Connections to one endpoint that are kept while nothing uses them.
const IDLE_PER_ENDPOINT_MAX: usize = 64;
/// Those to all endpoints.
const IDLE_MAX: usize = 2048;
/// How long one is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent HTTP/2 endpoint is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Header of an answer, bytes.
const HEADER_LEN_MAX: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{CONNECTIONS_MAX} connections to endpoints are open")]
    Full,
    #[error("connect to {0}")]
    Connect(SocketAddr, #[source] std::io::Error),
    #[error("connecting to {0} takes too long")]
    Timeout(SocketAddr),
    #[error("begin HTTP with {0}")]
    Handshake(SocketAddr, #[source] hyper::Error),
}

/// A connection that a request can be sent on.
pub(crate) struct Sender {
    pub(crate) at: SocketAddr,
    /// It has carried a request before, and its endpoint may have ended it meanwhile.
    pub(crate) is_used: bool,
    kind: Kind,
}

enum Kind {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

impl Sender {
    /// Sends a request. The error holds the request where none of it was sent.
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match &mut self.kind {
            Kind::Http1(sender) => sender.try_send_request(request).await,
            Kind::Http2(sender) => sender.try_send_request(request).await,
        }
    }
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    /// Dropped with this: whoever waits to throw the connection away then need not.
    _taken: oneshot::Sender<()>,
}

#[derive(Default)]
struct Connections {
    idle: HashMap<SocketAddr, Vec<Idle>>,
    idle_count: usize,
    /// One connection to each HTTP/2 endpoint, which all requests share.
    shared: HashMap<SocketAddr, http2::SendRequest<RequestBody>>,
}

pub(crate) struct Pool {
    connections: Mutex<Connections>,
    places: Arc<Semaphore>,
}

impl Pool {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { connections: Mutex::default(), places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) })
    }

    /// Nothing is left half done where a holder panics.
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to the endpoint: one that was used before, or with `fresh` a new one.
    pub(crate) async fn take(
        self: &Arc<Self>,
        at: SocketAddr,
        protocol: Protocol,
        fresh: bool,
    ) -> Result<Sender, ConnectError> {
        let kept = if fresh { None } else { self.connections().take(at, protocol) };
        match kept {
            Some(kind) => Ok(Sender { at, is_used: true, kind }),
            None => self.connect(at, protocol).await,
        }
    }

    async fn connect(self: &Arc<Self>, at: SocketAddr, protocol: Protocol) -> Result<Sender, ConnectError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| ConnectError::Full)?;
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(at)).await;
        let stream =
            stream.map_err(|_| ConnectError::Timeout(at))?.map_err(|error| ConnectError::Connect(at, error))?;
        socket::prepare(&stream);
        let kind = match protocol {
            Protocol::Http1 => Kind::Http1(http1_over(at, stream, place).await?),
            Protocol::H2c => {
                let sender = http2_over(at, stream, place, Arc::clone(self)).await?;
                self.connections().shared.insert(at, sender.clone());
                Kind::Http2(sender)
            }
        };
        Ok(Sender { at, is_used: false, kind })
    }

    /// Keeps a connection for later requests, once the answer that it carries has passed.
    pub(crate) fn keep(self: &Arc<Self>, sender: Sender) {
        let Kind::Http1(mut http1) = sender.kind else { return };
        let (pool, at) = (Arc::clone(self), sender.at);
        tokio::spawn(async move {
            // An error is the connection's end.
            if http1.ready().await.is_err() {
                return;
            }
            let (taken, is_taken) = oneshot::channel();
            if !pool.connections().put(at, Idle { sender: http1, _taken: taken }) {
                return;
            }
            if tokio::time::timeout(IDLE_TIMEOUT, is_taken).await.is_err() {
                pool.connections().drop_oldest(at);
            }
        });
    }
}

impl Connections {
    fn take(&mut self, at: SocketAddr, protocol: Protocol) -> Option<Kind> {
        match protocol {
            Protocol::H2c => {
                let sender = self.shared.get(&at).filter(|sender| !sender.is_closed())?;
                Some(Kind::Http2(sender.clone()))
            }
            Protocol::Http1 => {
                let idle = self.idle.get_mut(&at)?;
                // What was used last is the most likely to be there.
                let mut found = None;
                while let Some(Idle { sender, .. }) = idle.pop() {
                    self.idle_count -= 1;
                    if sender.is_ready() {
                        found = Some(Kind::Http1(sender));
                        break;
                    }
                }
                if idle.is_empty() {
                    self.idle.remove(&at);
                }
                found
            }
        }
    }

    fn put(&mut self, at: SocketAddr, connection: Idle) -> bool {
        let held = self.idle.get(&at).map_or(0, Vec::len);
        if held >= IDLE_PER_ENDPOINT_MAX || self.idle_count >= IDLE_MAX {
            return false;
        }
        self.idle.entry(at).or_default().push(connection);
        self.idle_count += 1;
        true
    }

    /// The one that has waited longest is at the front, and all wait equally long: it is the one whose time is over.
    fn drop_oldest(&mut self, at: SocketAddr) {
        let Some(idle) = self.idle.get_mut(&at) else { return };
        if !idle.is_empty() {
            idle.remove(0);
            self.idle_count -= 1;
        }
        if idle.is_empty() {
            self.idle.remove(&at);
        }
    }
}

async fn http1_over(
    at: SocketAddr,
    stream: TcpStream,
    place: OwnedSemaphorePermit,
) -> Result<http1::SendRequest<RequestBody>, ConnectError> {
    let mut builder = http1::Builder::new();
    let handshake = builder.max_buf_size(HEADER_LEN_MAX).handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| ConnectError::Handshake(at, error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, %at, "a connection to an endpoint ended");
        }
        drop(place);
    });
    Ok(sender)
}

async fn http2_over(
    at: SocketAddr,
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    pool: Arc<Pool>,
) -> Result<http2::SendRequest<RequestBody>, ConnectError> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(PING_EVERY).max_header_list_size(64 * 1024);
    let (sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|error| ConnectError::Handshake(at, error))?;
    let weak = Arc::downgrade(&pool);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, %at, "a connection to an endpoint ended");
        }
        if let Some(pool) = weak.upgrade() {
            let mut connections = pool.connections();
            if connections.shared.get(&at).is_some_and(http2::SendRequest::is_closed) {
                connections.shared.remove(&at);
            }
        }
        drop(place);
    });
    Ok(sender)
}
