//! Answers to requests for streams: the switch to what the client speaks, and the work that goes on behind it.

use std::sync::Arc;

use carob_cri::{Cri, ExecStart};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::TaskTracker;

use crate::remote::{self, Kind, pair};
use crate::spdy::{self, session::Arrivals};
use crate::upgrade::{self, Body, Transport, UpgradeError};
use crate::{channels, forward, forward_channels, spdy_remote, tunnel};

/// Exec or attach. The process starts when the client listens: one that is refused, or hangs up before, has started nothing.
/// What outlives the request is one of `tasks`.
pub fn session(
    cri: Arc<dyn Cri>,
    tasks: &TaskTracker,
    mut request: Request<Incoming>,
    kind: Kind,
    start: ExecStart,
) -> Result<Response<Body>, UpgradeError> {
    let (client, framing) = pair();
    let begin = start.clone();
    let talk = async move {
        let begun = match kind {
            Kind::Exec => cri.exec(begin).await,
            Kind::Attach => cri.attach(begin).await,
        };
        match begun {
            Ok(session) => remote::run(kind, session, client).await,
            Err(error) => client.refuse(kind, &error).await,
        }
    };
    match upgrade::transport(request.headers())? {
        Transport::WebSocket => {
            let (name, protocol) = upgrade::choose(request.headers(), Transport::WebSocket, &channels::PROTOCOLS)?;
            let (response, socket) = upgrade::websocket(&mut request, name)?;
            let streams = channels::Streams { stdout: start.stdout, terminal: start.tty };
            on_socket(tasks, socket, move |socket| async move {
                tokio::join!(talk, channels::serve(socket, protocol, streams, framing));
            });
            Ok(response)
        }
        Transport::Spdy => {
            let (name, version) = upgrade::choose(request.headers(), Transport::Spdy, &spdy_remote::PROTOCOLS)?;
            let (response, upgraded) = upgrade::spdy(&mut request, name)?;
            let wanted =
                spdy_remote::Wanted { stdin: start.stdin, stdout: start.stdout, stderr: start.stderr, tty: start.tty };
            tasks.spawn(async move {
                let Ok(io) = upgraded.await else { return };
                over_spdy(TokioIo::new(io), async |arrivals| {
                    tokio::join!(talk, spdy_remote::serve(arrivals, wanted, version, framing));
                })
                .await;
            });
            Ok(response)
        }
    }
}

/// Port-forward. `ports` are those of the request, which clients over WebSocket channels have to name.
pub fn port_forward<E: From<UpgradeError>>(
    target: forward::Target,
    tasks: &TaskTracker,
    mut request: Request<Incoming>,
    ports: impl FnOnce() -> Result<Vec<u16>, E>,
) -> Result<Response<Body>, E> {
    match upgrade::transport(request.headers())? {
        Transport::WebSocket => {
            let headers = request.headers();
            if let Ok((name, ())) = upgrade::choose(headers, Transport::WebSocket, &[(forward::TUNNEL_PROTOCOL, ())]) {
                let (response, socket) = upgrade::websocket(&mut request, name)?;
                on_socket(tasks, socket, |socket| async move {
                    let (io, tunnel) = tunnel::open(socket);
                    let serve = over_spdy(io, async |arrivals| forward::serve(arrivals, target).await);
                    tokio::join!(tunnel, serve);
                });
                return Ok(response);
            }
            let (name, encoding) = upgrade::choose(headers, Transport::WebSocket, &forward_channels::PROTOCOLS)?;
            let ports = ports()?;
            let (response, socket) = upgrade::websocket(&mut request, name)?;
            on_socket(tasks, socket, move |socket| async move {
                forward_channels::serve(socket, encoding, ports, target).await;
            });
            Ok(response)
        }
        Transport::Spdy => {
            let (name, ()) = upgrade::choose(request.headers(), Transport::Spdy, &[(forward::PROTOCOL, ())])?;
            let (response, upgraded) = upgrade::spdy(&mut request, name)?;
            tasks.spawn(async move {
                let Ok(io) = upgraded.await else { return };
                over_spdy(TokioIo::new(io), async |arrivals| forward::serve(arrivals, target).await).await;
            });
            Ok(response)
        }
    }
}

/// Does the work on a WebSocket once the client has it, beside the request.
fn on_socket<S, W>(
    tasks: &TaskTracker,
    socket: impl Future<Output = hyper::Result<S>> + Send + 'static,
    work: impl FnOnce(S) -> W + Send + 'static,
) where
    S: Send + 'static,
    W: Future<Output = ()> + Send,
{
    tasks.spawn(async move {
        match socket.await {
            Ok(socket) => work(socket).await,
            Err(error) => tracing::debug!(%error, "a client did not follow through with its WebSocket"),
        }
    });
}

/// Runs a SPDY connection beside the work on its streams, until both are through.
async fn over_spdy<S>(io: S, work: impl AsyncFnOnce(Arrivals))
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (arrivals, connection) = spdy::session::serve(io);
    let (ended, ()) = tokio::join!(connection, work(arrivals));
    if let Err(error) = ended {
        tracing::debug!(error = %carob_kit::chain(&error), "a SPDY connection broke");
    }
}
