//! The calling end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream};
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use hyper::client::conn::http2::SendRequest;
use prost::Message;
use tokio::sync::{Mutex, mpsc};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

use crate::answers::{Answers, Sender};
use crate::body::{AnswerBody, Said, watched};
use crate::connect::{ConnectError, Connector};
use crate::endpoint::Endpoint;
use crate::error::{Broken, CallError, Failure};

/// Messages on their way into a stream; beyond, the sender waits.
const OUTGOING_MAX: usize = 64;

/// How a server is reached.
#[derive(Clone)]
pub struct ChannelConfig {
    /// For each endpoint, TLS included.
    pub connect_timeout: Duration,
    /// Bytes of one message, either way.
    pub message_len_max: usize,
    /// For `https` endpoints.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// Calls go over one connection, and to the next endpoint when that is gone. Clones share the connection.
#[derive(Clone)]
pub struct Channel {
    inner: Arc<Inner>,
}

struct Inner {
    endpoints: Vec<Endpoint>,
    connector: Connector,
    message_len_max: usize,
    /// The endpoint to try first.
    next: AtomicUsize,
    current: Mutex<Option<Connection>>,
}

/// A connection and where it leads to.
#[derive(Clone)]
struct Connection {
    sender: SendRequest<Body>,
    origin: Arc<str>,
    endpoint: usize,
}

impl Channel {
    /// Connects with the first call.
    pub fn new(endpoints: Vec<Endpoint>, config: ChannelConfig) -> Self {
        let connector = Connector::new(config.tls, config.connect_timeout);
        let message_len_max = config.message_len_max;
        let inner =
            Inner { endpoints, connector, message_len_max, next: AtomicUsize::new(0), current: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// One request, one answer. `within` bounds all of it, the connection included; the server hears of it.
    pub async fn call<Q, A>(&self, path: &'static str, request: Q, within: Option<Duration>) -> Result<A, CallError>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let (len, max) = (request.encoded_len(), self.inner.message_len_max);
        if len > max {
            return Err(CallError::TooLong { len, max });
        }
        let said = Said::default();
        let mut grpc = self.grpc(&said);
        let mut request = tonic::Request::new(request);
        if let Some(within) = within {
            request.set_timeout(within);
        }
        let codec = ProstCodec::<Q, A>::default();
        let answer = grpc.unary(request, PathAndQuery::from_static(path), codec);
        let answer = match within {
            Some(within) => match tokio::time::timeout(within, answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    self.leave().await;
                    return Err(CallError::Late(within));
                }
            },
            None => answer.await,
        };
        answer.map(tonic::Response::into_inner).map_err(|status| CallError::of(status, said.get()))
    }

    /// One request, a stream of answers. The call begins when the answers are first asked for.
    pub fn server_stream<Q, A>(&self, path: &'static str, request: Q) -> Answers<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.open(path, stream::once(async move { request }))
    }

    /// A stream of requests and one of answers. The call begins when the answers are first asked for.
    pub fn duplex<Q, A>(&self, path: &'static str) -> (Sender<Q>, Answers<A>)
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let (sender, receiver) = mpsc::channel::<Q>(OUTGOING_MAX);
        let requests = stream::unfold(receiver, |mut receiver| async move {
            let request = receiver.recv().await?;
            Some((request, receiver))
        });
        (Sender(sender), self.open(path, requests))
    }

    fn open<Q, A>(&self, path: &'static str, requests: impl Stream<Item = Q> + Send + 'static) -> Answers<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let said = Said::default();
        let mut grpc = self.grpc(&said);
        let opening = async move {
            let codec = ProstCodec::<Q, A>::default();
            let opened = grpc.streaming(tonic::Request::new(requests), PathAndQuery::from_static(path), codec).await;
            opened.map(tonic::Response::into_inner)
        };
        Answers::new(opening.boxed(), said)
    }

    fn grpc(&self, said: &Said) -> Grpc<Call> {
        let limit = self.inner.message_len_max;
        let call = Call { channel: self.clone(), said: said.clone() };
        Grpc::new(call).max_decoding_message_size(limit).max_encoding_message_size(limit)
    }

    /// Makes the next call go to another endpoint, where there is one. Calls that are under way go on.
    pub async fn leave(&self) {
        if self.inner.endpoints.len() > 1 {
            let left = self.inner.current.lock().await.take();
            let at = left.map_or_else(|| self.inner.next.load(Ordering::Relaxed), |connection| connection.endpoint);
            self.inner.next.store(at.wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// The connection that there is, or one to the first endpoint that can be reached.
    async fn connection(&self) -> Result<Connection, CallError> {
        let inner = &self.inner;
        let mut current = inner.current.lock().await;
        if let Some(connection) = current.as_ref().filter(|connection| !connection.sender.is_closed()) {
            return Ok(connection.clone());
        }
        *current = None;
        let mut failure =
            CallError::Unreached { endpoint: "a server".to_owned(), source: Arc::new(ConnectError::NoEndpoint) };
        for _ in 0..inner.endpoints.len() {
            let index = inner.next.load(Ordering::Relaxed) % inner.endpoints.len();
            let endpoint = &inner.endpoints[index];
            match inner.connector.connect(endpoint).await {
                Ok(sender) => {
                    let connection = Connection { sender, origin: endpoint.origin().into(), endpoint: index };
                    *current = Some(connection.clone());
                    return Ok(connection);
                }
                Err(source) => {
                    failure = CallError::Unreached { endpoint: endpoint.to_string(), source: Arc::new(source) };
                }
            }
            inner.next.store(index.wrapping_add(1), Ordering::Relaxed);
        }
        Err(failure)
    }

    /// Sends a request on a connection that takes it. One that was closed meanwhile gives the request back.
    async fn send(&self, mut request: Request<Body>) -> Result<Response<hyper::body::Incoming>, CallError> {
        let path = request.uri().path().to_owned();
        // Each attempt finds a closed connection or an endpoint that is gone; a server that accepts and closes ends it.
        let mut attempts = self.inner.endpoints.len() + 1;
        loop {
            let mut connection = self.connection().await?;
            let uri = format!("{}{path}", connection.origin);
            *request.uri_mut() = uri.parse::<Uri>().map_err(|error| CallError::Malformed(error.to_string()))?;
            let mut failed = match connection.sender.try_send_request(request).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            self.forget(&connection).await;
            attempts -= 1;
            match failed.take_message() {
                Some(unsent) if attempts > 0 => request = unsent,
                Some(_) => {
                    let endpoint = self.inner.endpoints[connection.endpoint].to_string();
                    let source = Arc::new(ConnectError::Http(failed.into_error()));
                    return Err(CallError::Unreached { endpoint, source });
                }
                None => return Err(CallError::Broken(Arc::new(Broken::Http(failed.into_error())))),
            }
        }
    }

    /// Drops a connection that is closed; one that lost a single call stays.
    async fn forget(&self, connection: &Connection) {
        if !connection.sender.is_closed() {
            return;
        }
        let mut current = self.inner.current.lock().await;
        if current.as_ref().is_some_and(|held| held.sender.is_closed()) {
            *current = None;
            self.inner.next.store(connection.endpoint.wrapping_add(1), Ordering::Relaxed);
        }
    }
}

/// One call, as tonic wants to make it.
struct Call {
    channel: Channel,
    said: Said,
}

impl tower::Service<Request<Body>> for Call {
    type Response = Response<AnswerBody>;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Response<AnswerBody>, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (channel, said) = (self.channel.clone(), self.said.clone());
        async move {
            let answer = channel.send(request).await.map_err(Failure)?;
            Ok(watched(answer, said))
        }
        .boxed()
    }
}
