//! Sockets: accept, TLS, HTTP/1 and HTTP/2, shutdown. What a request means is decided in [`crate::ApiServer`].

mod activity;
mod cork;
mod fairness;
mod limits;
mod tls;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use carob_kit::Activity;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryFutureExt};
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::UnixTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::ApiServer;
use crate::authn::Peer;

use activity::Counted;
use cork::Cork;
pub(crate) use fairness::{Classified, FlowControl, seats_of_list};
pub use limits::Limits;
pub(crate) use limits::{Class, InFlight, RETRY_AFTER_S, Refused, is_heavy};
pub use tls::{Tls, TlsError};

/// Wait after accept(2) failed for want of descriptors or memory, where the listener stays readable and would spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Time in which the end of an idle connection has to be done, however its peer behaves.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 flow control window of one stream, bytes (apiserver `secure_serving.go`, `resourceBody99Percentile`).
const STREAM_WINDOW_LEN: u32 = 256 * 1024;
/// HTTP/2 flow control window of one connection, bytes: four streams' worth.
const CONNECTION_WINDOW_LEN: u32 = 1024 * 1024;

impl ApiServer {
    /// Serves connections from `listener` until `shutdown` is done, then gives requests under way
    /// [`Limits::shutdown_grace`] to end.
    pub async fn serve(&self, listener: TcpListener, tls: Tls, shutdown: impl Future<Output = ()>) {
        let limits = self.limits().clone();
        let places = Arc::new(Semaphore::new(limits.connections_max));
        let (closing, _) = watch::channel(false);
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
        tokio::pin!(shutdown);
        loop {
            // Both arms are cancel safe: a permit or a connection is taken only when the future is ready.
            let next = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            };
            let (place, stream) = tokio::select! {
                () = &mut shutdown => break,
                (place, accepted) = next => match (place, accepted) {
                    (Ok(place), Ok((stream, _))) => (place, stream),
                    (_, Err(error)) => {
                        warn!(%error, "accept a connection");
                        tokio::time::sleep(ACCEPT_BACKOFF).await;
                        continue;
                    }
                    (Err(_), _) => break,
                },
            };
            let connection = Connection { api: self.clone(), tls: tls.clone(), closing: closing.subscribe() };
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                connection.run(acceptor, stream).await;
                drop(place);
            });
        }
        drop(listener);
        self.begin_shutdown();
        closing.send_replace(true);
        // Every connection holds a receiver until it ends.
        if tokio::time::timeout(limits.shutdown_grace, closing.closed()).await.is_err() {
            warn!(connections = closing.receiver_count(), "requests were still under way when the server shut down");
        }
    }
}

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Remote(pub(crate) std::net::SocketAddr);

/// What one accepted connection needs.
struct Connection {
    api: ApiServer,
    tls: Tls,
    closing: watch::Receiver<bool>,
}

impl Connection {
    /// What is needed for the handshake alone is in a box of its own, and given back before the connection is served, which
    /// may be for hours.
    async fn run(self, acceptor: TlsAcceptor, stream: TcpStream) {
        let Some((stream, peer)) = Box::pin(self.handshake(acceptor, stream)).await else { return };
        if let Err(error) = self.serve(stream, peer).await {
            debug!(error = %carob_kit::chain(&error), "connection ended");
        }
    }

    async fn handshake(&self, acceptor: TlsAcceptor, stream: TcpStream) -> Option<(TlsStream<TcpStream>, Peer)> {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "set TCP_NODELAY");
        }
        let handshake = tokio::time::timeout(self.api.limits().handshake_timeout, acceptor.accept(stream));
        let stream = match handshake.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                debug!(%error, "TLS handshake");
                return None;
            }
            Err(_) => {
                debug!("TLS handshake timed out");
                return None;
            }
        };
        let now = u64::try_from(self.api.now().as_second()).unwrap_or_default();
        let peer = self.tls.peer(stream.get_ref().1, UnixTime::since_unix_epoch(Duration::from_secs(now)));
        if let Peer::Refused(reason) = &peer {
            debug!(%reason, "client certificate refused");
        }
        Some((stream, peer))
    }

    fn serve(self, stream: TlsStream<TcpStream>, peer: Peer) -> BoxFuture<'static, Result<(), ConnectionError>> {
        let api = self.api.clone();
        let activity = Activity::new();
        let counting = Arc::clone(&activity);
        let remote = stream.get_ref().0.peer_addr().ok();
        let service = service_fn(move |mut request: Request<Incoming>| {
            let under_way = counting.begin();
            if let Some(remote) = remote {
                request.extensions_mut().insert(Remote(remote));
            }
            let answer = api.handle_peer(request, peer.clone());
            async move { Ok::<_, Infallible>(answer.await.map(|body| Counted { body, _under_way: under_way })) }
        });
        // Over TLS a client speaks HTTP/2 only if that was agreed upon (RFC 9113, section 3.2).
        if stream.get_ref().1.alpn_protocol() == Some(tls::ALPN_HTTP2) {
            let cork = Cork::new(stream);
            let limits = self.api.limits().clone();
            let connection = Box::pin(self.http2().serve_connection(TokioIo::new(cork.share()), service));
            let silence = async move { activity.ceases(limits.header_timeout, limits.idle_timeout).await };
            let connection = run(connection, self.closing, silence, http2::Connection::graceful_shutdown).boxed();
            async move { cork.drive(connection).await.map_err(ConnectionError::Flush)?.map_err(ConnectionError::Http) }
                .boxed()
        } else {
            // hyper's time for a head counts between requests too, so an idle one ends by itself.
            let connection = self.http1().serve_connection(TokioIo::new(stream), service).with_upgrades();
            let never = std::future::pending();
            run(Box::pin(connection), self.closing, never, http1::UpgradeableConnection::graceful_shutdown)
                .map_err(ConnectionError::Http)
                .boxed()
        }
    }

    fn http1(&self) -> http1::Builder {
        let limits = self.api.limits();
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(limits.header_len_max);
        builder
    }

    fn http2(&self) -> http2::Builder<TokioExecutor> {
        let limits = self.api.limits();
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams_per_connection_max)
            .max_header_list_size(u32::try_from(limits.header_len_max).unwrap_or(u32::MAX))
            .initial_stream_window_size(STREAM_WINDOW_LEN)
            .initial_connection_window_size(CONNECTION_WINDOW_LEN);
        builder
    }
}

/// Why a connection ended before its peer or the server wanted it to.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("serve HTTP")]
    Http(#[source] hyper::Error),
    #[error("send what was written")]
    Flush(#[source] std::io::Error),
}

/// Runs a connection to its end. Once the server closes, or `silence` is over, `shut_down` lets only requests under way end;
/// after a silence there are none, so the peer has a moment to hear of the end and no more.
async fn run<C: Future<Output = Result<(), hyper::Error>>>(
    mut connection: Pin<Box<C>>,
    closing: watch::Receiver<bool>,
    silence: impl Future<Output = ()>,
    shut_down: impl FnOnce(Pin<&mut C>),
) -> Result<(), hyper::Error> {
    tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = told(closing) => {
            shut_down(connection.as_mut());
            connection.await
        }
        () = silence => {
            debug!("an idle connection is closed");
            shut_down(connection.as_mut());
            tokio::time::timeout(FAREWELL_TIMEOUT, connection).await.unwrap_or(Ok(()))
        }
    }
}

/// Waits until the flag is up, or nobody is left to raise it.
async fn told(mut flag: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is the end as well.
    drop(flag.wait_for(|up| *up).await);
}
