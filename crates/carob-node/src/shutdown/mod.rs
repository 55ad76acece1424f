//! Ends Pods in order before the machine shuts down (kubelet `pkg/kubelet/nodeshutdown`): logind is asked for the time, and says when.
//!
//! [`periods`] is pure; [`ShutdownWatch`] listens, and carries out.

mod logind;
pub mod periods;

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use carob_kit::{Backoff, Clock, chain};
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::Rejection;
use crate::events::{Events, Subject};
use crate::fleet::Fleet;
use crate::plan::after;
use crate::pod::PodId;
use crate::worker::{Ending, Tools};
use logind::{Lock, Logind, LogindError};
use periods::Periods;

/// The reason of a Pod that was ended before a shutdown, and what its status says.
pub const TERMINATED: &str = "Terminated";
const ENDED: &str = "Pod was terminated in response to imminent node shutdown.";
/// The reason of events about the node, and of Pods that it does not take in.
const NODE_SHUTDOWN: &str = "NodeShutdown";
/// Where logind is told to let shutdowns wait longer, if it does not anyway (logind.conf(5)): after what users and packages say,
/// and gone with the boot.
const LOGIND_CONF: &str = "/run/systemd/logind.conf.d/99-carob.conf";
/// Waits between tries to reach logind.
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether logind has taken its new configuration, and the first wait before that, which doubles: it says
/// nothing.
const RELOAD_LOOKS: u32 = 5;
const RELOAD_BASE: Duration = Duration::from_millis(100);

/// Why a Pod is not taken in while the machine is about to shut down.
pub fn refusal() -> Rejection {
    Rejection { reason: NODE_SHUTDOWN.into(), message: "Pod was rejected as the node is shutting down.".to_owned() }
}

/// Takes back what logind was told for this machine. Another instance on it tells logind again when it starts.
pub fn forget_delay() -> std::io::Result<()> {
    match fs_err::remove_file(LOGIND_CONF) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Logind(#[from] LogindError),
    #[error("have logind wait longer")]
    Conf(#[source] std::io::Error),
}

/// Waits for shutdowns of the machine.
pub struct ShutdownWatch {
    fleet: Arc<Fleet>,
    clock: Arc<dyn Clock>,
    events: Arc<dyn Events>,
    periods: Periods,
    node_name: String,
    closing: watch::Sender<bool>,
}

impl ShutdownWatch {
    /// `closing` is what the Node says of it, and why no Pod is taken in then. `None` where Pods get no time.
    pub fn new(
        periods: Periods,
        fleet: &Arc<Fleet>,
        tools: &Tools,
        node_name: &str,
        closing: watch::Sender<bool>,
    ) -> Option<Self> {
        if periods.is_empty() {
            return None;
        }
        let (fleet, clock, events) = (Arc::clone(fleet), Arc::clone(&tools.clock), Arc::clone(&tools.events));
        Some(Self { fleet, clock, events, periods, node_name: node_name.to_owned(), closing })
    }

    /// Works until the node's own end, which is not the machine's.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut retry = Backoff::new(RETRY_BASE, RETRY_MAX);
        let mut said = false;
        loop {
            let failed = tokio::select! {
                Err(error) = self.follow(&mut retry, &mut said) => error,
                () = shutdown.cancelled() => return,
            };
            let delay = retry.fail();
            if !std::mem::replace(&mut said, true) {
                tracing::warn!(
                    error = %chain(&failed),
                    "no logind: a shutdown of the machine does not wait for Pods until one is found"
                );
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Holds a lock, and ends Pods when a shutdown is near; fails with the connection to logind.
    async fn follow(&self, retry: &mut Backoff, said: &mut bool) -> Result<Infallible, WatchError> {
        let mut logind = Logind::connect().await?;
        self.provide_for_delay(&logind).await?;
        let mut lock: Option<Lock> = None;
        let mut is_near = logind.is_near().await?;
        loop {
            if self.closing.send_if_modified(|closing| std::mem::replace(closing, is_near) != is_near) {
                let what = if is_near { "event" } else { "cancellation" };
                let node = Subject::node(&self.node_name, &self.node_name);
                self.events.normal(&node, NODE_SHUTDOWN, format!("Shutdown manager detected shutdown {what}"));
            }
            if is_near {
                self.end_pods().await;
                // The shutdown goes on as soon as nobody holds a lock.
                drop(lock.take());
            } else {
                lock = Some(logind.inhibit("carob", "Pods are given time to end").await?);
                retry.reset();
                *said = false;
                tracing::info!(grace = ?self.periods.total(), "a shutdown of the machine waits for Pods");
            }
            is_near = logind.next().await?;
        }
    }

    /// Sees to it that logind waits as long as Pods have.
    async fn provide_for_delay(&self, logind: &Logind) -> Result<(), WatchError> {
        let wanted = self.periods.total();
        let mut has = logind.delay_max().await?;
        if has >= wanted {
            return Ok(());
        }
        let seconds = wanted.as_secs().saturating_add(u64::from(wanted.subsec_nanos() > 0));
        let text = format!(
            "# Written by carob, for its flags --shutdown-grace-period*\n[Login]\nInhibitDelayMaxSec={seconds}\n"
        );
        let path = Path::new(LOGIND_CONF);
        let dir = path.parent().unwrap_or(path);
        fs_err::create_dir_all(dir).and_then(|()| fs_err::write(path, text)).map_err(WatchError::Conf)?;
        logind.reload().await?;
        for look in 0..RELOAD_LOOKS {
            tokio::time::sleep(RELOAD_BASE * 2_u32.pow(look)).await;
            has = logind.delay_max().await?;
            if has >= wanted {
                return Ok(());
            }
        }
        // Some time is better than none.
        tracing::warn!(
            ?has,
            ?wanted,
            "logind lets a shutdown wait less long than Pods have: it does not take InhibitDelayMaxSec from {LOGIND_CONF}"
        );
        Ok(())
    }

    /// Ends all Pods, those of low priority first. Each group has its period, and is not waited for longer.
    async fn end_pods(&self) {
        for (grace, pods) in self.periods.groups(&self.fleet.unfinished_pods()) {
            tracing::info!(pods = pods.len(), ?grace, "pods end, since the machine is about to shut down");
            let by = after(self.clock.now(), grace);
            let over = pods.iter().map(|pod| async move {
                let uid = PodId::of(pod).uid;
                let why = Rejection { reason: TERMINATED.into(), message: ENDED.to_owned() };
                self.fleet.end(&uid, Ending { why, by: Some(by) });
                self.fleet.until_over(&uid).await;
            });
            if tokio::time::timeout(grace, join_all(over)).await.is_err() {
                tracing::warn!(?grace, "not all of these pods have ended in time");
            }
        }
    }
}
