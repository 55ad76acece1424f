//! The tunnel by which the server reaches this machine's kubelet API where nobody can reach it from outside (`--tunnel`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use carob_client::UpgradeError;
use carob_kit::{Backoff, Part, chain};
use carob_streams::reverse::{PATH, PROTOCOL, serve};
use http::Uri;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::parts;

const TUNNEL: &str = "tunnel";
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// A tunnel that held so long is opened again at once when it ends.
const HELD: Duration = Duration::from_secs(30);

pub(super) fn part(server: Uri, tls: ClientConfig, settings: &Settings) -> Part {
    let kubelet = kubelet(settings);
    Part::new(TUNNEL, move |context| {
        let (server, tls) = (server.clone(), tls.clone());
        async move {
            context.ready();
            keep(&server, &tls, kubelet, &context.shutdown()).await;
            Ok(())
        }
    })
    .needs(&[parts::API, parts::NODE])
}

/// Where this machine reaches its own kubelet API.
fn kubelet(settings: &Settings) -> SocketAddr {
    let listens = settings.kubelet_ip();
    let ip = if listens.is_unspecified() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { listens };
    SocketAddr::new(ip, settings.kubelet_port)
}

/// Opens the tunnel, and again whenever it has ended.
async fn keep(server: &Uri, tls: &ClientConfig, kubelet: SocketAddr, shutdown: &CancellationToken) {
    let mut retry = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
    loop {
        let begun = Instant::now();
        // Both branches are cancel safe: what is cancelled is the tunnel.
        let ended = tokio::select! {
            ended = run(server, tls, kubelet) => ended,
            () = shutdown.cancelled() => return,
        };
        if begun.elapsed() >= HELD {
            retry.reset();
        }
        let delay = retry.fail();
        match ended {
            Ok(()) => tracing::info!(?delay, "the tunnel to the server has ended"),
            Err(error) => tracing::warn!(?delay, "no tunnel to the server: {}", chain(&error)),
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn run(server: &Uri, tls: &ClientConfig, kubelet: SocketAddr) -> Result<(), UpgradeError> {
    let io = carob_client::upgraded(server, tls.clone(), PATH, PROTOCOL).await?;
    tracing::info!(%server, "the server reaches this node through a tunnel");
    serve(io, move || TcpStream::connect(kubelet)).await.map_err(UpgradeError::Http)
}
