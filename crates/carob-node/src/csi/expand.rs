//! A volume that has grown: its driver lets the node see it (`pkg/volume/csi/expander.go`).

use std::collections::BTreeMap;
use std::sync::Arc;

use carob_csi::v1;
use k8s_openapi::api::core::v1::PersistentVolume;

use super::Csi;
use super::error::{CsiError, EXPAND};
use super::mount::{Source, Wanted};

/// A volume of a Pod that is to be shown larger.
pub(crate) struct Expansion {
    pub(crate) wanted: Wanted,
    pub(crate) bytes: i64,
}

impl Csi {
    /// Whether the driver of a volume grows it on the node. One that is gone is asked when it is back.
    pub(crate) async fn is_expandable(&self, volume: &Arc<PersistentVolume>) -> bool {
        let source = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
        let Some(registered) = source.and_then(|source| self.0.drivers.get(&source.driver)) else { return false };
        registered.driver.capabilities().await.is_ok_and(|can| can.expand)
    }

    pub(crate) async fn expand(&self, expansion: Expansion) -> Result<(), Arc<CsiError>> {
        self.0.expand(expansion).await.map_err(Arc::new)
    }
}

impl super::Inner {
    async fn expand(&self, Expansion { wanted, bytes }: Expansion) -> Result<(), CsiError> {
        let volume = wanted.volume();
        let no_driver = || CsiError::NoDriver { step: EXPAND, driver: volume.driver.clone() };
        let registered = self.drivers.wait(&volume.driver).await.ok_or_else(no_driver)?;
        let can = registered.driver.capabilities().await.map_err(CsiError::driver(EXPAND))?;
        if !can.expand {
            return Err(CsiError::NotExpandable(volume.driver));
        }
        let Source::Persistent(_, source) = &wanted.source else { return Err(CsiError::NotExpandable(volume.driver)) };
        let secrets = match &source.node_expand_secret_ref {
            Some(secret) => {
                self.secret("NodeExpandSecretRef", secret.namespace.as_deref(), secret.name.as_deref()).await?
            }
            None => BTreeMap::new(),
        };
        let lock = self.lock_of(&volume);
        let _turn = lock.lock().await;
        let (path, staging) = if wanted.block {
            (self.dirs.device(wanted.name(), wanted.uid()), self.dirs.device_staging(wanted.name()))
        } else {
            let path = super::paths::target(&self.dirs.volume(wanted.uid(), wanted.name()));
            (path, self.dirs.staging(&volume))
        };
        let request = v1::NodeExpandVolumeRequest {
            volume_id: volume.handle.clone(),
            volume_path: path.display().to_string(),
            capacity_range: Some(v1::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            staging_target_path: if can.stage { staging.display().to_string() } else { String::new() },
            volume_capability: Some(wanted.capability(can, None)),
            secrets,
        };
        registered.driver.expand(request).await.map(drop).map_err(CsiError::driver(EXPAND))
    }
}
