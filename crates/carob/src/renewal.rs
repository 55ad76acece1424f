//! Renewing the cluster's certificates before they end, while the server runs.

use std::sync::Arc;
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

/// Renews certificates when they come close to their end, until `shutdown`.
pub(crate) async fn keep(
    settings: Settings,
    mut pki: Pki,
    shown: Shown,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) -> Result<()> {
    let (dir, names) = (settings.data_dir.join("pki"), Names::of(&settings)?);
    loop {
        let left = clock.now().duration_until(renew_at(&pki)?);
        let left = Duration::try_from(left).unwrap_or(Duration::ZERO);
        tokio::select! {
            // Both branches are cancel safe.
            () = tokio::time::sleep(left.min(LOOK_EVERY)) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        pki = Pki::open(&dir, &names, clock.now()).context("renew the cluster's certificates")?;
        shown.replace(&pki)?;
        kubeconfig::write(&settings.kubeconfig, settings.listen, &pki)?;
        kubeconfig::write_schedulers(&settings, &pki)?;
    }
}
