//! Block volumes: a driver shows a device at a path, and the Pod's directory has a link to it (`pkg/volume/csi/csi_block.go`).

use std::io;
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::path::PathBuf;

use carob_csi::v1;
use carob_kit::fs::make_private;
use fs_err as fs;

use super::Inner;
use super::drivers::Registered;
use super::error::{CsiError, MAP};
use super::mount::{DIR_MODE, Publishing, Wanted};
use super::paths::VolumeId;

impl Inner {
    /// Notes that the Pod has the volume, before the driver hears of it.
    pub(super) async fn record_device(&self, wanted: &Wanted, volume: &VolumeId) -> Result<(), CsiError> {
        let record = wanted.record(volume, &self.node_name);
        let (uid, name) = (wanted.uid().to_owned(), wanted.name().to_owned());
        let (data, links, target) =
            (self.dirs.device_record(&name), self.dirs.device_links(&uid), self.dirs.device(&name, &uid));
        let noted = self.files.run(&uid, "make the directory of a block volume", move || {
            make_private(&data, DIR_MODE)?;
            record.write(&data)?;
            make_private(target.parent().unwrap_or(&target), DIR_MODE)?;
            make_private(&links, DIR_MODE)?;
            match symlink(&target, links.join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        });
        Ok(noted.await??)
    }

    pub(super) async fn publish_device(
        &self,
        job: Publishing<'_>,
        registered: &Registered,
    ) -> Result<PathBuf, CsiError> {
        let Publishing { wanted, volume, can, staging, context, object } = job;
        let path = self.dirs.device(wanted.name(), wanted.uid());
        let (volume_context, secrets) = self.words(wanted, object).await?;
        let request = v1::NodePublishVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context: context,
            staging_target_path: staging.unwrap_or_default(),
            target_path: path.display().to_string(),
            volume_capability: Some(wanted.capability(can, None)),
            readonly: wanted.read_only,
            secrets,
            volume_context,
        };
        registered.driver.publish(request).await.map_err(CsiError::driver(MAP))?;
        let at = path.clone();
        let is_there = self.files.run(wanted.uid(), "look at the device", move || {
            fs::metadata(at).is_ok_and(|found| found.file_type().is_block_device())
        });
        if !is_there.await? {
            let driver = volume.driver.clone();
            return Err(CsiError::NotPublished { driver, wanted: "block device", path: path.display().to_string() });
        }
        Ok(path)
    }
}
