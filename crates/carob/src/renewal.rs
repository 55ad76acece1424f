//! Renewing the cluster's certificates before they end, while the server runs.

use std::time::Duration;

use anyhow::{Context, Result};
use carob_kit::Clock;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::kubeconfig;
use crate::pki::{Names, Pki, renew_at};
use crate::tls::Shown;

/// The longest time between two looks at the calendar, which may be set while the server sleeps.
const LOOK_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Renews certificates when they come close to their end, until `shutdown`. `first` are those that were there at the start.
pub(crate) async fn keep(
    settings: &Settings,
    first: &Pki,
    shown: &Shown,
    clock: &dyn Clock,
    shutdown: CancellationToken,
) -> Result<()> {
    let (dir, names) = (settings.data_dir.join("pki"), Names::of(settings)?);
    let mut renew = renew_at(first)?;
    loop {
        let left = Duration::try_from(clock.now().duration_until(renew)).unwrap_or(Duration::ZERO);
        tokio::select! {
            // Both branches are cancel safe.
            () = tokio::time::sleep(left.min(LOOK_EVERY)) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        let pki = Pki::open(&dir, &names, clock.now()).context("renew the cluster's certificates")?;
        shown.replace(&pki)?;
        kubeconfig::write(settings, &pki)?;
        kubeconfig::write_schedulers(settings, &pki)?;
        renew = renew_at(&pki)?;
    }
}
