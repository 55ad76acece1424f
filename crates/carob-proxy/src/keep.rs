//! Keeps one table: what changed is gathered while a transaction is written, and becomes the next one.

use std::time::Duration;

use carob_kit::{Backoff, chain};
use carob_sys::netlink::NetlinkError;
use carob_sys::nft::{Command, Transaction, table_exists};
use tokio::sync::Notify;
use tracing::{debug, info, warn};

/// How often to look whether the table is still there: whoever flushes all of nftables does not tell.
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// The pause after a transaction, in times of what it took, and the longest. The kernel looks at all rules whenever one is
/// added (`nft_table_validate`), so many changes at a time are gathered to few transactions; a change that comes alone does not wait.
const REST: u32 = 2;
const REST_MAX: Duration = Duration::from_millis(50);
/// Waits between tries to write the table.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));

#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("write nftables rules")]
    Write(#[source] NetlinkError),
    #[error("look for an nftables table")]
    Look(#[source] NetlinkError),
    #[error("forget tracked connections")]
    Forget(#[source] NetlinkError),
    #[error("change the routes to other nodes' Pods")]
    Routes(#[source] NetlinkError),
    /// The blocking thread panicked: a bug.
    #[error("the proxy's worker failed")]
    Worker(#[source] tokio::task::JoinError),
}

/// What a table holds.
pub(crate) trait Rules {
    fn has_news(&self) -> bool;

    /// Takes all news; the transaction to what should be, with `whole` in place of whatever the table holds.
    async fn step(&mut self, whole: bool) -> Transaction;

    /// The transaction is in force, or there was nothing to change.
    async fn written(&mut self);

    /// Removes chains that nothing leads to, in a transaction of its own: kernels before 6.2 count what led to a chain as
    /// there until a moment after it is gone, and then refuse (`pkg/proxy/nftables`, staleChains).
    fn clean(&self) -> Transaction;

    fn cleaned(&mut self);
}

/// Writes what the rules say, each time that news `arrived`. Never ends.
pub(crate) async fn keep(rules: &mut impl Rules, arrived: &Notify, table: &str) {
    let mut retry = RETRY;
    // An earlier process may have written anything.
    let mut whole = true;
    loop {
        let outcome = write(rules, table, whole).await;
        let wait = match &outcome {
            Ok(took) => {
                tokio::time::sleep(REST_MAX.min(took.saturating_mul(REST))).await;
                whole = false;
                retry.reset();
                if rules.has_news() {
                    continue;
                }
                CHECK_EVERY
            }
            Err(error) => {
                whole = true;
                warn!(error = %chain(error), table, "rules are not in force");
                retry.fail()
            }
        };
        let has_arrived = tokio::time::timeout(wait, arrived.notified()).await.is_ok();
        if !has_arrived && outcome.is_ok() {
            whole = is_gone(table).await;
        }
    }
}

/// Answers how long the kernel took.
async fn write(rules: &mut impl Rules, table: &str, whole: bool) -> Result<Duration, ProxyError> {
    let change = rules.step(whole).await;
    if change.is_empty() {
        rules.written().await;
        return Ok(Duration::ZERO);
    }
    let started = tokio::time::Instant::now();
    blocking(move || change.commit()).await?.map_err(ProxyError::Write)?;
    let took = started.elapsed();
    if whole {
        info!(table, milliseconds = took.as_millis(), "all rules are written");
    } else {
        debug!(table, microseconds = took.as_micros(), "rules are changed");
    }
    rules.written().await;
    let clean = rules.clean();
    if clean.is_empty() {
        return Ok(took);
    }
    match blocking(move || clean.commit()).await? {
        Ok(()) => rules.cleaned(),
        // They are empty, and are tried again with the next change.
        Err(error) => debug!(table, error = %chain(&error), "chains that lead nowhere cannot be removed yet"),
    }
    Ok(took)
}

async fn is_gone(table: &str) -> bool {
    let name = table.to_owned();
    match blocking(move || table_exists(&name)).await.and_then(|found| found.map_err(ProxyError::Look)) {
        Ok(true) => false,
        Ok(false) => {
            warn!(table, "the rules were removed by someone else: they are written again");
            true
        }
        Err(error) => {
            warn!(table, error = %chain(&error), "the rules cannot be looked at");
            false
        }
    }
}

/// Removes a table with all its rules, for a machine that is left.
pub async fn remove(table: &str) -> Result<(), ProxyError> {
    let mut change = Transaction::new(table);
    change.push(Command::AddTable).push(Command::DeleteTable);
    blocking(move || change.commit()).await?.map_err(ProxyError::Write)
}

/// Runs the work on a blocking thread, to its end also where the caller's future is dropped.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ProxyError> {
    tokio::task::spawn_blocking(work).await.map_err(ProxyError::Worker)
}
