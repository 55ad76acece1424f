//! Connections through one that the other end has opened: an agent that nobody can reach keeps a connection to its server, and the
//! server reaches the agent's kubelet API through it.
//!
//! The connection begins as a request to [`PATH`] with an upgrade to [`PROTOCOL`]. Then the roles are reversed: on it the server that
//! was called is the client of HTTP/2, and each connection through it is a `CONNECT` (RFC 9113, 8.5). Flow control and the number of
//! connections are HTTP/2's; a ping finds out that the other end is gone.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::rt::{Read, Write};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::upgrade::Upgraded;

/// Where an API server takes tunnels.
pub const PATH: &str = "/carob/v1/tunnel";
/// What both ends speak, with its version.
pub const PROTOCOL: &str = "carob-tunnel/1";
/// What every connection leads to.
const KUBELET: &str = "kubelet";
/// Connections through one tunnel; at the limit the next ones wait for their turn.
const CONNECTIONS_MAX: u32 = 256;
/// A tunnel on which nothing comes for so long is asked whether the other end is there, and given up when that says nothing
/// (client-go: 30 s and 15 s).
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// The end that opens connections.
#[derive(Debug, Clone)]
pub struct Tunnel(SendRequest<Empty<Bytes>>);

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("ask for a connection through the tunnel")]
    Ask(#[source] hyper::Error),
    #[error("the node's end of the tunnel answers with {0}")]
    Refused(StatusCode),
}

impl Tunnel {
    /// Makes a tunnel of a connection. The future is the work on it: it ends with the tunnel.
    pub async fn on<T>(
        io: T,
    ) -> Result<(Self, impl Future<Output = Result<(), hyper::Error>> + Send + 'static), hyper::Error>
    where
        T: Read + Write + Send + Unpin + 'static,
    {
        let (sender, work) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(io)
            .await?;
        Ok((Self(sender), work))
    }

    /// Whether the other end has gone.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// A connection to the kubelet API of the other end's node. Waits while there are as many as there may be.
    pub async fn open(&self) -> Result<Upgraded, OpenError> {
        let mut sender = self.0.clone();
        sender.ready().await.map_err(OpenError::Ask)?;
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = http::Uri::from_static(KUBELET);
        let response = sender.send_request(request).await.map_err(OpenError::Ask)?;
        if response.status() != StatusCode::OK {
            return Err(OpenError::Refused(response.status()));
        }
        hyper::upgrade::on(response).await.map(TokioIo::new).map_err(OpenError::Ask)
    }
}

/// The end that is reached: joins each connection with one that `dial` makes, until the tunnel ends.
pub async fn serve<T, D, F, S>(io: T, dial: D) -> Result<(), hyper::Error>
where
    T: Read + Write + Send + Unpin + 'static,
    D: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let dial = dial.clone();
        async move { Ok::<_, Infallible>(answer(request, dial).await) }
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(CONNECTIONS_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(io, service)
        .await
}

async fn answer<D, F, S>(mut request: Request<Incoming>, dial: D) -> Response<Empty<Bytes>>
where
    D: Fn() -> F,
    F: Future<Output = io::Result<S>>,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut response = Response::new(Empty::new());
    if request.method() != Method::CONNECT || request.uri().authority().is_none_or(|place| place != KUBELET) {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    }
    let mut target = match dial().await {
        Ok(target) => target,
        Err(error) => {
            tracing::warn!(%error, "the kubelet API cannot be reached through the tunnel");
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            return response;
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    // Ends with either end of the connection, or with the tunnel.
    tokio::spawn(async move {
        let joined = async {
            let mut io = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
            tokio::io::copy_bidirectional(&mut io, &mut target).await
        };
        if let Err(error) = joined.await {
            tracing::debug!(%error, "a connection through the tunnel ended");
        }
    });
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    /// Answers every connection with what it is sent.
    fn echo() -> impl Future<Output = io::Result<DuplexStream>> + Send {
        let (near, mut far) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            let (mut from, mut to) = tokio::io::split(&mut far);
            tokio::io::copy(&mut from, &mut to).await.expect("copied");
            to.shutdown().await.expect("ended");
        });
        async { Ok(near) }
    }

    async fn tunnel<D, F>(dial: D) -> (Tunnel, tokio::task::JoinHandle<Result<(), hyper::Error>>)
    where
        D: Fn() -> F + Clone + Send + 'static,
        F: Future<Output = io::Result<DuplexStream>> + Send + 'static,
    {
        let (server, agent) = tokio::io::duplex(64 << 10);
        let serving = tokio::spawn(serve(TokioIo::new(agent), dial));
        let (tunnel, work) = Tunnel::on(TokioIo::new(server)).await.expect("a tunnel");
        tokio::spawn(work);
        (tunnel, serving)
    }

    #[tokio::test]
    async fn connections_through_one_tunnel_do_not_mix() {
        let (tunnel, _serving) = tunnel(echo).await;
        let mut open = Vec::new();
        for number in 0..20_u8 {
            let mut connection = tunnel.open().await.expect("opened");
            connection.write_all(&vec![number; 5000]).await.expect("written");
            connection.shutdown().await.expect("ended");
            open.push((number, connection));
        }
        for (number, mut connection) in open {
            let mut back = Vec::new();
            connection.read_to_end(&mut back).await.expect("read");
            assert_eq!(back, vec![number; 5000]);
        }
    }

    #[tokio::test]
    async fn a_kubelet_that_cannot_be_reached_is_told_and_the_tunnel_stays() {
        let (tunnel, _serving) = tunnel(|| async { Err(io::ErrorKind::ConnectionRefused.into()) }).await;
        for _ in 0..2 {
            let error = tunnel.open().await.expect_err("refused").to_string();
            assert!(error.contains("502"), "{error}");
        }
        assert!(!tunnel.is_closed());
    }

    #[tokio::test]
    async fn a_tunnel_ends_with_its_other_end() {
        let (tunnel, serving) = tunnel(echo).await;
        let mut connection = tunnel.open().await.expect("opened");
        serving.abort();
        assert!(serving.await.expect_err("aborted").is_cancelled());
        let mut back = Vec::new();
        drop(connection.read_to_end(&mut back).await);
        tunnel.open().await.expect_err("it has ended");
        assert!(tunnel.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_other_end_is_given_up() {
        let (server, mut agent) = tokio::io::duplex(64 << 10);
        let (tunnel, work) = Tunnel::on(TokioIo::new(server)).await.expect("a tunnel");
        let work = tokio::spawn(work);
        // It takes what comes, and says nothing.
        let mut bytes = [0; 1024];
        while agent.read(&mut bytes).await.expect("read") > 0 {}
        work.await.expect("it ends").expect_err("it was given up");
        assert!(tunnel.is_closed());
    }
}
