//! Volumes that containers get as block devices: a device of this machine, or a file that is shown as one.
//!
//! What a Pod has is noted by a link to the device in its directory. Which file is shown is noted before it is, so that a device is
//! found and taken back though the process ended before it could note that one; it goes with the last Pod that has its file.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use carob_sys::disks::Disks;
use fs_err as fs;

use super::VolumeError;
use super::persistent::PersistentError;
use crate::paths::PodDirs;

/// The devices of this node's Pods.
#[derive(Debug)]
pub(super) struct Devices {
    dirs: PodDirs,
    disks: Arc<dyn Disks>,
    /// One attaches or detaches at a time: whether a device is needed depends on what all Pods have.
    turn: Mutex<()>,
}

impl Devices {
    pub(super) fn new(dirs: PodDirs, disks: Arc<dyn Disks>) -> Self {
        Self { dirs, disks, turn: Mutex::default() }
    }

    /// The device of the volume at `path`, noted for the Pod. May block.
    pub(super) fn attach(&self, uid: &str, volume: &str, path: &Path) -> Result<PathBuf, VolumeError> {
        let shown = || path.display().to_string();
        let is_file = match fs::metadata(path) {
            Ok(meta) => meta.is_file(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(PersistentError::NoPath(shown()).into());
            }
            Err(error) => return Err(error.into()),
        };
        let _turn = self.turn.lock().expect("no holder of the devices panics");
        let device = if self.disks.is_device(path)? {
            path.to_owned()
        } else if is_file {
            note(&self.dirs.volume_device_files(uid).join(volume), path)?;
            self.disks.between()?;
            self.disks.attach(&fs::OpenOptions::new().read(true).write(true).open(path)?)?
        } else {
            let what = "neither a block device nor a file";
            return Err(PersistentError::Kind { path: shown(), what }.into());
        };
        self.disks.between()?;
        note(&self.dirs.volume_device(uid, volume), &device)?;
        Ok(device)
    }

    /// Takes back the devices of a Pod. Nothing there is fine.
    pub(super) fn release(&self, uid: &str) -> io::Result<()> {
        let (links, files) = (self.dirs.volume_devices(uid), self.dirs.volume_device_files(uid));
        let _turn = self.turn.lock().expect("no holder of the devices panics");
        for noted in super::entries(&files)? {
            let (file, link) = (fs::read_link(&noted)?, links.join(noted.file_name().unwrap_or_default()));
            if !self.others_have(uid, &file)?
                && let Some(device) = self.device_of(&file, &link)?
            {
                self.disks.detach(&device)?;
                self.disks.between()?;
            }
            remove(&link)?;
            self.disks.between()?;
            remove(&noted)?;
        }
        // A device of the machine stays as it is, loop devices of its administrator's included.
        super::remove_dir(&files)?;
        super::remove_dir(&links)
    }

    /// The device that shows a file, which may be gone meanwhile: `link` says which one it was.
    fn device_of(&self, file: &Path, link: &Path) -> io::Result<Option<PathBuf>> {
        match fs::File::open(file) {
            Ok(file) => return self.disks.find(file.file()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let Ok(device) = fs::read_link(link) else { return Ok(None) };
        // Others may have taken the device's name since.
        Ok(self.disks.is_of(&device, file)?.then_some(device))
    }

    /// Whether another Pod has a file as a device, too.
    fn others_have(&self, uid: &str, file: &Path) -> io::Result<bool> {
        for pod in super::entries(self.dirs.pods())? {
            let other = pod.file_name().unwrap_or_default().to_string_lossy();
            let noted = super::entries(&self.dirs.volume_device_files(&other))?;
            if other != uid && noted.iter().any(|link| fs::read_link(link).is_ok_and(|held| held == file)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Has `link` lead to `target`.
fn note(link: &Path, target: &Path) -> io::Result<()> {
    if fs::read_link(link).is_ok_and(|held| held == target) {
        return Ok(());
    }
    if let Some(dir) = link.parent() {
        fs::create_dir_all(dir)?;
    }
    remove(link)?;
    symlink(target, link)
}

fn remove(link: &Path) -> io::Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// Devices by the inodes of their files. The process ends at the step that is said.
    #[derive(Debug, Default)]
    struct Table {
        shown: Mutex<Vec<u64>>,
        left: Mutex<Option<u64>>,
    }

    impl Disks for Table {
        fn attach(&self, file: &fs::File) -> io::Result<PathBuf> {
            let inode = file.metadata()?.ino();
            self.shown.lock().expect("held").push(inode);
            Ok(PathBuf::from(format!("/dev/loop{inode}")))
        }

        fn find(&self, file: &File) -> io::Result<Option<PathBuf>> {
            let inode = file.metadata()?.ino();
            let found = self.shown.lock().expect("held").contains(&inode);
            Ok(found.then(|| PathBuf::from(format!("/dev/loop{inode}"))))
        }

        fn detach(&self, device: &Path) -> io::Result<()> {
            self.shown.lock().expect("held").retain(|inode| device != Path::new(&format!("/dev/loop{inode}")));
            Ok(())
        }

        fn between(&self) -> io::Result<()> {
            match self.left.lock().expect("held").as_mut() {
                Some(0) => Err(io::Error::other("it ends here")),
                Some(left) => {
                    *left -= 1;
                    Ok(())
                }
                None => Ok(()),
            }
        }
    }

    #[test]
    fn a_device_is_taken_back_wherever_the_process_ended() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("disk");
        fs::write(&file, "x").expect("written");
        let (table, dirs) =
            (Arc::new(Table::default()), PodDirs::new(dir.path().join("pods"), dir.path().join("logs"), None));
        for steps in 0..6 {
            let devices = Devices::new(dirs.clone(), table.clone());
            *table.left.lock().expect("held") = Some(steps);
            let first = devices.attach("one", "v", &file).is_ok() && devices.release("one").is_ok();
            *table.left.lock().expect("held") = None;
            let next = Devices::new(dirs.clone(), table.clone());
            next.release("one").expect("released");
            assert!(table.shown.lock().expect("held").is_empty(), "after {steps} steps, whole: {first}");
            assert!(!dirs.volume_devices("one").exists() && !dirs.volume_device_files("one").exists());
        }
    }

    #[test]
    fn a_device_stays_for_the_other_pod_and_one_of_the_machine_stays_anyway() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("disk");
        fs::write(&file, "x").expect("written");
        let (table, dirs) =
            (Arc::new(Table::default()), PodDirs::new(dir.path().join("pods"), dir.path().join("logs"), None));
        let devices = Devices::new(dirs.clone(), table.clone());
        devices.attach("one", "v", &file).expect("attached");
        devices.attach("two", "w", &file).expect("attached");
        devices.release("one").expect("released");
        assert!(!table.shown.lock().expect("held").is_empty(), "the other Pod has it");
        note(&dirs.volume_device("three", "v"), Path::new("/dev/loop0")).expect("noted");
        devices.release("three").expect("released");
        devices.release("two").expect("released");
        assert!(table.shown.lock().expect("held").is_empty());
    }
}
