//! gRPC as etcd speaks it, over hyper's HTTP/2: one connection, and the next endpoint when that is gone
//! (grpc `doc/PROTOCOL-HTTP2.md`).

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

/// Time to connect, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent connection is asked so often whether the other side is there (etcd refuses pings within 5 s of each other).
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one message: many values of the size limit.
const MESSAGE_BYTES_MAX: usize = 512 << 20;
/// Bytes before a message: whether it is compressed, and its length.
const HEAD_LEN: usize = 5;

/// gRPC's code of a server that cannot serve for now.
const UNAVAILABLE: u32 = 14;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A call that did not end well.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RpcError {
    /// The request was not sent.
    #[error("no endpoint of etcd can be reached")]
    Unreached(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// It was sent, and nobody knows what became of it.
    #[error("the connection to etcd broke before the answer")]
    Broken(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// etcd's own words, with the code of gRPC.
    #[error("etcd answers: {message}")]
    Status { code: u32, message: String },
    #[error("etcd's answer is not gRPC: {0}")]
    Malformed(&'static str),
}

fn cause(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Arc<dyn std::error::Error + Send + Sync> {
    Arc::from(error.into())
}

/// Where etcd is, and how it is reached.
#[derive(Clone)]
pub(super) struct Channel {
    inner: Arc<Inner>,
}

struct Inner {
    endpoints: Vec<Uri>,
    tls: Option<TlsConnector>,
    /// The endpoint to try first.
    next: AtomicUsize,
    connection: Mutex<Option<SendRequest<Body>>>,
}

impl Channel {
    pub(super) fn new(endpoints: Vec<Uri>, tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        let tls = tls.map(|config| {
            let mut config = rustls::ClientConfig::clone(&config);
            config.alpn_protocols = vec![b"h2".to_vec()];
            TlsConnector::from(Arc::new(config))
        });
        let inner = Inner { endpoints, tls, next: AtomicUsize::new(0), connection: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// One request, one answer.
    pub(super) async fn call<Q: Message, A: Message + Default>(
        &self,
        path: &'static str,
        request: &Q,
    ) -> Result<A, RpcError> {
        let mut connection = self.connection().await?;
        let body = Full::new(framed(request)).boxed_unsync();
        let answer = async {
            let response = connection.send_request(head(path, body)?).await;
            let response = response.map_err(|error| RpcError::Broken(cause(error)))?;
            let headers = check(&response)?;
            let body = response.into_body().collect().await.map_err(|error| RpcError::Broken(cause(error)))?;
            status(body.trailers().unwrap_or(&headers))?;
            let mut bytes = body.aggregate();
            if bytes.remaining() < HEAD_LEN {
                return Err(RpcError::Malformed("a message without a head"));
            }
            let length = length(&mut bytes)?;
            A::decode(bytes.take(length)).map_err(|_| RpcError::Malformed("a message that cannot be decoded"))
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
        let answer = answer.unwrap_or_else(|late| Err(RpcError::Broken(cause(late))));
        // A member that has lost the others may stay without them, while another has not.
        if matches!(answer, Err(RpcError::Broken(_) | RpcError::Status { code: UNAVAILABLE, .. })) {
            self.give_up().await;
        }
        answer
    }

    /// A stream that is begun by one request, and stays open until it is dropped. A member that has lost the others ends it
    /// (etcd `clientv3.WithRequireLeader`).
    pub(super) async fn stream<Q: Message>(&self, path: &'static str, first: &Q) -> Result<Answers, RpcError> {
        let mut connection = self.connection().await?;
        let first = futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(framed(first)))]);
        // The requests' side stays open, else etcd would end the answers' too.
        let frames = first.chain(futures_util::stream::pending());
        let mut request = head(path, StreamBody::new(frames).boxed_unsync())?;
        request.headers_mut().insert("hasleader", HeaderValue::from_static("true"));
        let opened = tokio::time::timeout(ANSWER_TIMEOUT, connection.send_request(request)).await;
        let opened = opened.map_err(cause).and_then(|opened| opened.map_err(cause));
        let response = match opened {
            Ok(response) => response,
            Err(error) => {
                self.give_up().await;
                return Err(RpcError::Broken(error));
            }
        };
        let headers = check(&response)?;
        status(&headers)?;
        Ok(Answers { body: response.into_body(), buffer: BytesMut::new() })
    }

    /// The connection that there is, or one to the first endpoint that can be reached.
    async fn connection(&self) -> Result<SendRequest<Body>, RpcError> {
        let mut held = self.inner.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        let mut failure = RpcError::Malformed("no endpoint is given");
        for _ in 0..self.inner.endpoints.len() {
            let at = self.inner.next.load(Ordering::Relaxed) % self.inner.endpoints.len();
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.connect(&self.inner.endpoints[at])).await;
            match connected.unwrap_or_else(|late| Err(RpcError::Unreached(cause(late)))) {
                Ok(connection) => {
                    *held = Some(connection.clone());
                    return Ok(connection);
                }
                Err(error) => failure = error,
            }
            self.inner.next.fetch_add(1, Ordering::Relaxed);
        }
        Err(failure)
    }

    /// Drops a connection that is of no use, and tries another endpoint next.
    async fn give_up(&self) {
        *self.inner.connection.lock().await = None;
        self.inner.next.fetch_add(1, Ordering::Relaxed);
    }

    async fn connect(&self, endpoint: &Uri) -> Result<SendRequest<Body>, RpcError> {
        let unreached = |error: std::io::Error| RpcError::Unreached(cause(error));
        let host = endpoint.host().ok_or(RpcError::Malformed("an endpoint without a host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let address = (host, endpoint.port_u16().unwrap_or(2379));
        let tcp = TcpStream::connect(address).await.map_err(unreached)?;
        tcp.set_nodelay(true).map_err(unreached)?;
        if endpoint.scheme_str() != Some("https") {
            return handshake(tcp).await;
        }
        let tls =
            self.inner.tls.as_ref().ok_or(RpcError::Malformed("an https endpoint, and nothing says whom to trust"))?;
        let name = ServerName::try_from(host.to_owned()).map_err(|error| RpcError::Unreached(cause(error)))?;
        handshake(tls.connect(name, tcp).await.map_err(unreached)?).await
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Body>, RpcError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connected = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = connected.map_err(|error| RpcError::Unreached(cause(error)))?;
    // It ends with the last sender, or with the connection, which every call on it then sees.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to etcd ended");
        }
    });
    Ok(sender)
}

fn head(path: &'static str, body: Body) -> Result<Request<Body>, RpcError> {
    // The authority of a request means nothing to etcd.
    Request::post(format!("http://etcd{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .map_err(|_| RpcError::Malformed("a request that cannot be made"))
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(HEAD_LEN + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes.freeze()
}

fn check(response: &Response<Incoming>) -> Result<HeaderMap, RpcError> {
    if response.status() != StatusCode::OK {
        return Err(RpcError::Malformed("an answer that is not 200"));
    }
    Ok(response.headers().clone())
}

/// The status of a call, from its trailers, or from its headers where there is nothing else. None is a stream that goes on.
fn status(headers: &HeaderMap) -> Result<(), RpcError> {
    let Some(code) = headers.get("grpc-status") else { return Ok(()) };
    let code = code.to_str().ok().and_then(|code| code.parse().ok());
    match code.ok_or(RpcError::Malformed("a status that is no number"))? {
        0 => Ok(()),
        code => {
            let message = headers.get("grpc-message").map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned());
            Err(RpcError::Status { code, message: message.unwrap_or_default() })
        }
    }
}

/// Takes the head of a message, and says how long it is.
fn length(bytes: &mut impl Buf) -> Result<usize, RpcError> {
    let compressed = bytes.get_u8();
    let length = bytes.get_u32() as usize;
    if compressed != 0 || length > MESSAGE_BYTES_MAX {
        return Err(RpcError::Malformed("a message that is compressed or too long"));
    }
    Ok(length)
}

/// The answers of a stream.
pub(super) struct Answers {
    body: Incoming,
    buffer: BytesMut,
}

impl Answers {
    /// The next message; an error when there will be none.
    ///
    /// Cancel safe: what has come is kept.
    pub(super) async fn next<A: Message + Default>(&mut self) -> Result<A, RpcError> {
        loop {
            if self.buffer.len() >= HEAD_LEN {
                let length = length(&mut &self.buffer[..HEAD_LEN])?;
                if self.buffer.len() >= HEAD_LEN + length {
                    self.buffer.advance(HEAD_LEN);
                    let message = self.buffer.split_to(length);
                    return A::decode(message).map_err(|_| RpcError::Malformed("a message that cannot be decoded"));
                }
            }
            let Some(frame) = self.body.frame().await else {
                return Err(RpcError::Broken(cause("the stream ended")));
            };
            let frame = frame.map_err(|error| RpcError::Broken(cause(error)))?;
            match frame.into_data() {
                Ok(data) => self.buffer.extend_from_slice(&data),
                Err(frame) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        status(trailers)?;
                    }
                }
            }
        }
    }
}
