//! Volumes that containers get as block devices: a device of this machine, or a file that is shown as one.
//!
//! What a Pod has is noted by a link to the device in its directory; a file's device goes with the last Pod that has it.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use carob_sys::loop_device;
use fs_err as fs;

use super::VolumeError;
use super::persistent::PersistentError;
use crate::paths::PodDirs;

/// The devices of this node's Pods.
#[derive(Debug)]
pub(super) struct Devices {
    dirs: PodDirs,
    /// One attaches or detaches at a time: whether a device is needed depends on what all Pods have.
    turn: Mutex<()>,
}

impl Devices {
    pub(super) fn new(dirs: PodDirs) -> Self {
        Self { dirs, turn: Mutex::default() }
    }

    /// The device of the volume at `path`, noted for the Pod. May block.
    pub(super) fn attach(&self, uid: &str, volume: &str, path: &Path) -> Result<PathBuf, VolumeError> {
        let shown = || path.display().to_string();
        let kind = match fs::metadata(path) {
            Ok(meta) => meta.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(PersistentError::NoPath(shown()).into());
            }
            Err(error) => return Err(error.into()),
        };
        let _turn = self.turn.lock().expect("no holder of the devices panics");
        let device = if kind.is_block_device() {
            path.to_owned()
        } else if kind.is_file() {
            loop_device::attach(&fs::OpenOptions::new().read(true).write(true).open(path)?)?
        } else {
            let what = "neither a block device nor a file";
            return Err(PersistentError::Kind { path: shown(), what }.into());
        };
        let link = self.dirs.volume_device(uid, volume);
        if let Some(dir) = link.parent() {
            fs::create_dir_all(dir)?;
        }
        if !fs::read_link(&link).is_ok_and(|held| held == device) {
            remove(&link)?;
            symlink(&device, &link)?;
        }
        Ok(device)
    }

    /// Takes back the devices of a Pod. Nothing there is fine.
    pub(super) fn release(&self, uid: &str) -> io::Result<()> {
        let dir = self.dirs.volume_devices(uid);
        let _turn = self.turn.lock().expect("no holder of the devices panics");
        for link in super::entries(&dir)? {
            let device = fs::read_link(&link)?;
            let name = link.file_name().unwrap_or_default().to_owned();
            let is_loop = device.to_string_lossy().starts_with("/dev/loop");
            let of_others = |pod: &PathBuf| {
                let other =
                    self.dirs.volume_devices(&pod.file_name().unwrap_or_default().to_string_lossy()).join(&name);
                other != link && fs::read_link(&other).is_ok_and(|held| held == device)
            };
            if is_loop && device.exists() && !super::entries(self.dirs.pods())?.iter().any(of_others) {
                loop_device::detach(&device)?;
            }
            remove(&link)?;
        }
        super::remove_dir(&dir)
    }
}

fn remove(link: &Path) -> io::Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
