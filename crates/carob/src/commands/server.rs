//! `carob server`.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use carob_kit::{Clock, SystemClock};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::cli::ServerArgs;
use crate::commands::run;
use crate::compose::Server;
use crate::config::{Settings, with_config_file};
use crate::{notify, ready};

/// How long a start may take before it is said what is missing. The server goes on: an API without a ready node is an API.
const START_LATE: Duration = Duration::from_secs(60);

/// How likely the kernel is to kill the server for want of memory, of -1000 to 1000.
pub(crate) const OOM_SCORE: i32 = -999;

/// Runs a server until it is told to end.
pub(crate) async fn main(arguments: ServerArgs) -> Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let settings = Settings::new(with_config_file(arguments)?)?;
    info!(
        listen = %settings.listen,
        data_dir = %settings.data_dir.display(),
        run_dir = %settings.run_dir.display(),
        node = settings.node.then_some(&settings.node_name),
        "carob {} starts",
        crate::VERSION
    );
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    run::remove_leftovers(&settings.data_dir).await;
    // The API and the Pods' keeper go last (kubelet `oomScoreAdj`, -999).
    carob_sys::oom::protect(OOM_SCORE).context("protect the server from the want of memory")?;
    let server = Server::start(settings, Arc::clone(&clock)).await?;
    let (informers, settings, health) =
        (Arc::clone(&server.informers), Arc::clone(&server.settings), Arc::clone(&server.health));
    let announce = async {
        let ready = ready::wait(&informers, &settings, &health);
        tokio::pin!(ready);
        let mut told = false;
        if tokio::time::timeout(START_LATE, &mut ready).await.is_err() {
            let missing = ready::missing(&informers, &settings, &health);
            warn!("the API serves, but after {} s not everything is ready: {missing}", START_LATE.as_secs());
            // A service manager would end what is not ready in time, and the API with it.
            notify::ready()?;
            told = true;
            ready.await;
        }
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "carob is ready after {:.3} s; export KUBECONFIG={}",
            clock.monotonic().as_secs_f64(),
            settings.kubeconfig.display()
        )?;
        drop(out);
        if told { Ok(()) } else { notify::ready() }
    };
    // All branches are cancel safe: they wait, and change nothing.
    tokio::select! {
        told = async { announce.await?; std::future::pending::<Result<()>>().await } => told?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("the server ends: Pods run on");
    server.stop().await
}
