//! `carob server`.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result};
use carob_kit::{Clock, SystemClock};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::ServerArgs;
use crate::compose::Server;
use crate::config::{Settings, with_config_file};
use crate::{notify, ready};

/// Runs a server until it is told to end, or a part of it fails.
pub(crate) async fn main(arguments: ServerArgs) -> Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let settings = Settings::new(with_config_file(arguments)?)?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut server = Server::start(settings, Arc::clone(&clock)).await?;
    let informers = Arc::clone(&server.informers);
    let settings = server.settings.clone();
    // All branches are cancel safe: they wait, and change nothing.
    tokio::select! {
        ready = ready::wait(&informers, &settings, server.nodes_ready.clone()) => ready?,
        failure = server.failure() => return Err(failure),
        _ = terminate.recv() => return server.stop().await,
        _ = interrupt.recv() => return server.stop().await,
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "carob is ready after {:.3} s; export KUBECONFIG={}",
        clock.monotonic().as_secs_f64(),
        settings.kubeconfig.display()
    )?;
    drop(out);
    notify::ready()?;
    tokio::select! {
        failure = server.failure() => Err(failure),
        _ = terminate.recv() => server.stop().await,
        _ = interrupt.recv() => server.stop().await,
    }
}
