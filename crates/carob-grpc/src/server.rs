//! The answering end, on a unix socket.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::places::{Counted, Place, Places};
use crate::routes::Routes;

/// Bytes of a request's headers.
const HEADERS_LEN_MAX: u32 = 16 << 10;
/// A caller is asked so often whether it is there, so that a connection that speaks no HTTP/2 does not keep its place.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Time without a connection after one could not be taken: descriptors may be free then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time at the end for calls that are under way.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// What callers may take of a server.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// For a further one, the connection that has been without a call the longest is closed. Where all have calls, it waits.
    pub connections_max: usize,
    /// Calls at a time on one connection.
    pub streams_max: u32,
}

/// Answers calls until the shutdown.
pub async fn serve(listener: UnixListener, routes: Routes, limits: ServerLimits, shutdown: CancellationToken) {
    let routes = Arc::new(routes);
    let places = Places::new(limits.connections_max);
    let connections = TaskTracker::new();
    loop {
        let next = async {
            let (stream, _) = listener.accept().await?;
            Ok::<_, io::Error>((stream, places.take().await))
        };
        let next = tokio::select! {
            next = next => next,
            () = shutdown.cancelled() => break,
        };
        match next {
            Ok((stream, place)) => {
                let (routes, shutdown) = (Arc::clone(&routes), shutdown.clone());
                connections.spawn(connection(stream, routes, limits.streams_max, place, shutdown));
            }
            Err(error) => {
                tracing::warn!(%error, "a gRPC connection could not be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    let ended = tokio::time::timeout(FAREWELL_MAX, connections.wait()).await.is_ok();
    tracing::debug!(ended, "gRPC connections are closed");
}

async fn connection(
    stream: UnixStream,
    routes: Arc<Routes>,
    streams_max: u32,
    place: Place,
    shutdown: CancellationToken,
) {
    let taken = place.clone();
    let service = service_fn(move |request| {
        let (routes, call) = (Arc::clone(&routes), taken.begin_call());
        async move {
            let answer = routes.answer(request).await;
            Ok::<_, Infallible>(answer.map(|body| Counted { body, _call: call }))
        }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams_max)
        .max_header_list_size(HEADERS_LEN_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let leaves = async {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = place.leave.cancelled() => {}
        }
    };
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = leaves => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(FAREWELL_MAX, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %carob_kit::chain(&error), "a gRPC connection broke");
    }
}
