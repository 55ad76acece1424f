//! `carob agent`.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use carob_kit::{Clock, PartState, SystemClock};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::agent::Agent;
use crate::cli::AgentArgs;
use crate::commands::server::OOM_SCORE;
use crate::notify;

/// How long a start may take before it is said what is missing.
const START_LATE: Duration = Duration::from_secs(60);

/// Runs this machine as a node of a cluster until it is told to end.
pub(crate) async fn main(arguments: AgentArgs) -> Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    info!(server = %arguments.server, data_dir = %arguments.directories.data_dir.display(), "carob {} joins", crate::VERSION);
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let ended = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(ended);
    carob_sys::oom::protect(OOM_SCORE).context("protect the agent from the want of memory")?;
    let agent = tokio::select! {
        agent = Agent::start(arguments, Arc::clone(&clock)) => agent?,
        () = &mut ended => return Ok(()),
    };
    let announce = async {
        let mut told = false;
        if tokio::time::timeout(START_LATE, agent.health.all_ready()).await.is_err() {
            let parts = agent.health.parts().into_iter().filter(|part| part.state != PartState::Ready);
            let missing: Vec<String> = parts.map(|part| format!("{} {}", part.name, part.state)).collect();
            warn!("after {} s not everything is ready: {}", START_LATE.as_secs(), missing.join("; "));
            // A service manager would end what is not ready in time.
            notify::ready()?;
            told = true;
            agent.health.all_ready().await;
        }
        let node = &agent.settings.node_name;
        writeln!(
            std::io::stdout().lock(),
            "carob agent is ready after {:.3} s as {node}",
            clock.monotonic().as_secs_f64()
        )?;
        if told { Ok(()) } else { notify::ready() }
    };
    // Both branches are cancel safe: they wait, and change nothing.
    tokio::select! {
        told = async { announce.await?; std::future::pending::<Result<()>>().await } => told?,
        () = &mut ended => {}
    }
    info!("the agent ends: Pods run on");
    agent.stop().await
}
