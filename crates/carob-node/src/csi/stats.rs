//! How full a volume is, as its driver says (`NodeGetVolumeStats`).

use carob_csi::v1::volume_usage::Unit;
use carob_csi::v1::{NodeGetVolumeStatsResponse, VolumeUsage};

use super::Csi;

/// What a driver says of a volume; what it does not say is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) bytes_available: u64,
    pub(crate) bytes_used: u64,
    pub(crate) inodes: u64,
    pub(crate) inodes_free: u64,
}

impl Csi {
    /// `None` where the driver leaves it to the file system, is gone, or does not answer.
    pub(crate) async fn usage(&self, uid: &str, volume: &str) -> Option<Usage> {
        let published = self.0.state().published.get(&(uid.to_owned(), volume.to_owned())).cloned()?;
        let registered = self.0.drivers.get(&published.volume.driver)?;
        if !registered.driver.capabilities().await.ok()?.stats {
            return None;
        }
        let path = published.path.display().to_string();
        match registered.driver.stats(published.volume.handle, path).await {
            Ok(answer) => Some(usage(&answer)),
            Err(error) => {
                tracing::debug!(error = %carob_kit::chain(&error), uid, volume, "a driver does not say how full a volume is");
                None
            }
        }
    }
}

fn usage(answer: &NodeGetVolumeStatsResponse) -> Usage {
    let mut usage = Usage::default();
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    for said in &answer.usage {
        let VolumeUsage { available, total, used, .. } = *said;
        match said.unit() {
            Unit::Bytes => {
                (usage.bytes, usage.bytes_available, usage.bytes_used) =
                    (number(total), number(available), number(used));
            }
            Unit::Inodes => (usage.inodes, usage.inodes_free) = (number(total), number(available)),
            Unit::Unknown => {}
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_below_zero_are_none() {
        let said = |unit: Unit, total| VolumeUsage { available: 1, total, used: 2, unit: unit.into() };
        let usage_ = vec![said(Unit::Bytes, -5), said(Unit::Inodes, 7), said(Unit::Unknown, 9)];
        let answer = NodeGetVolumeStatsResponse { usage: usage_, volume_condition: None };
        let expected = Usage { bytes: 0, bytes_available: 1, bytes_used: 2, inodes: 7, inodes_free: 1 };
        assert_eq!(usage(&answer), expected);
    }
}
