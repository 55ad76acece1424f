//! The sockets for clients: bound while there is an Ingress to serve and nobody else has their port.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use carob_kit::{Activity, chain};
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::body;
use crate::certificates::ALPN_HTTP2;
use crate::headers::Origin;
use crate::proxy::{Proxy, origin};
use crate::socket;

/// Connections of clients at a time on each port; further ones wait in the kernel's accept queue.
const CONNECTIONS_MAX: usize = 8192;
/// Time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a request's header. On an HTTP/1 connection it counts between requests too.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for which an HTTP/2 connection may have no request under way.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Header of a request, bytes; beyond it 431.
const HEADER_LEN_MAX: usize = 64 * 1024;
/// Streams of one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// A silent HTTP/2 client is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Wait after accept(2) failed for want of descriptors or memory, where the listener stays readable and would spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Time in which requests under way have to end when a port is closed or the server ends.
const GRACE: Duration = Duration::from_secs(10);

/// A port that clients come to.
#[derive(Clone)]
pub(crate) struct Port {
    pub(crate) number: u16,
    /// `None`: plain HTTP.
    pub(crate) tls: Option<Arc<ServerConfig>>,
}

/// Binds the port on all addresses.
pub(crate) async fn bind(number: u16) -> io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, number))).await {
        Ok(listener) => Ok(listener),
        Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => Err(error),
        // A machine without IPv6.
        Err(_) => TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, number))).await,
    }
}

/// Serves clients of a port until `end`, then gives requests under way [`GRACE`] to end.
pub(crate) async fn serve(listener: TcpListener, port: Port, proxy: Arc<Proxy>, end: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (closing, _) = watch::channel(());
    // Connections that are still there after the grace end with this.
    let abandoned = CancellationToken::new();
    let _abandon = abandoned.clone().drop_guard();
    loop {
        // Cancel safe: a permit or a connection is taken only when the future is ready.
        let next = async { (Arc::clone(&places).acquire_owned().await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            () = end.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, client)) => {
                let client =
                    Client { address: client, port: port.clone(), proxy: Arc::clone(&proxy), end: end.clone() };
                let (under_way, abandoned) = (closing.subscribe(), abandoned.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = client.converse(stream) => {}
                        () = abandoned.cancelled() => {}
                    }
                    drop((place, under_way));
                });
            }
            Err(error) => {
                warn!(%error, port = port.number, "accept a connection of an Ingress's client");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    drop(listener);
    // Every connection holds a receiver until it ends.
    if tokio::time::timeout(GRACE, closing.closed()).await.is_err() {
        let connections = closing.receiver_count();
        warn!(connections, port = port.number, "requests to an Ingress were still under way when its port was closed");
    }
}

/// One accepted connection.
struct Client {
    address: SocketAddr,
    port: Port,
    proxy: Arc<Proxy>,
    end: CancellationToken,
}

impl Client {
    async fn converse(self, stream: TcpStream) {
        socket::prepare(&stream);
        let Some(tls) = self.port.tls.clone() else {
            return self.http1(stream).await;
        };
        let handshake = Box::pin(tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls).accept(stream)));
        match handshake.await {
            Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2) => self.http2(stream).await,
            Ok(Ok(stream)) => self.http1(stream).await,
            Ok(Err(error)) => debug!(%error, "TLS handshake of an Ingress's client"),
            Err(_) => debug!("TLS handshake of an Ingress's client timed out"),
        }
    }

    fn origin(&self) -> Origin {
        origin(self.address, self.port.number, self.port.tls.is_some())
    }

    async fn http1(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let (proxy, origin) = (Arc::clone(&self.proxy), self.origin());
        let service = service_fn(move |request: Request<Incoming>| {
            let proxy = Arc::clone(&proxy);
            async move { Ok::<_, Infallible>(proxy.answer(request, origin).await) }
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_LEN_MAX)
            .max_header_size(HEADER_LEN_MAX);
        let connection = Box::pin(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
        let never = std::future::pending();
        self.run(connection, never, http1::UpgradeableConnection::graceful_shutdown).await;
    }

    async fn http2(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let (proxy, origin) = (Arc::clone(&self.proxy), self.origin());
        let activity = Activity::new();
        let counting = Arc::clone(&activity);
        let service = service_fn(move |request: Request<Incoming>| {
            let (proxy, under_way) = (Arc::clone(&proxy), counting.begin());
            async move {
                let answer = proxy.answer(request, origin).await;
                Ok::<_, Infallible>(answer.map(|body| body::counted(body, under_way)))
            }
        });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(u32::try_from(HEADER_LEN_MAX).unwrap_or(u32::MAX))
            .keep_alive_interval(PING_EVERY);
        let connection = Box::pin(builder.serve_connection(TokioIo::new(stream), service));
        let silence = async move { activity.ceases(HEADER_TIMEOUT, IDLE_TIMEOUT).await };
        self.run(connection, silence, http2::Connection::graceful_shutdown).await;
    }

    /// Runs a connection to its end. Once the port is closed, or `silence` is over, `shut_down` lets only requests under way end.
    async fn run<C: Future<Output = Result<(), hyper::Error>>>(
        &self,
        mut connection: Pin<Box<C>>,
        silence: impl Future<Output = ()>,
        shut_down: impl FnOnce(Pin<&mut C>),
    ) {
        let outcome = tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = self.end.cancelled() => {
                shut_down(connection.as_mut());
                connection.await
            }
            () = silence => {
                shut_down(connection.as_mut());
                tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = outcome {
            debug!(error = %chain(&error), client = %self.address, "a connection of an Ingress's client ended");
        }
    }
}

/// Whether clients of other machines reach the address.
pub(crate) fn is_reachable(address: IpAddr) -> bool {
    !address.is_loopback() && !address.is_unspecified()
}
