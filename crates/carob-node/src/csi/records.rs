//! `vol_data.json`: what is to be given back, for whoever finds a volume on disk (kubelet `pkg/volume/csi`, saveVolumeData).

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use carob_kit::fs::{RealFs, write_atomic};
use fs_err as fs;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::paths::{KubeletDirs, VolumeId, target};

const FILE: &str = "vol_data.json";
/// Bytes of a record; a driver's handle has 128 at most by the specification, and drivers have longer ones.
const RECORD_LEN_MAX: u64 = 64 << 10;

/// In the words that a kubelet has for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Record {
    #[serde(rename = "specVolID", skip_serializing_if = "String::is_empty")]
    pub(super) name: String,
    pub(super) volume_handle: String,
    pub(super) driver_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) node_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) volume_lifecycle_mode: String,
    #[serde(rename = "attachmentID", skip_serializing_if = "String::is_empty")]
    pub(super) attachment_id: String,
    /// The group that the files were given to. A kubelet passes over it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) fs_group: String,
}

impl Record {
    pub(super) fn volume(&self) -> VolumeId {
        VolumeId { driver: self.driver_name.clone(), handle: self.volume_handle.clone() }
    }

    /// `None` where there is no record. May block, as all here.
    pub(super) fn read(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(FILE);
        let file = match fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut text = Vec::new();
        file.take(RECORD_LEN_MAX).read_to_end(&mut text)?;
        let record: Self = serde_json::from_slice(&text)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display())))?;
        let named = !record.volume_handle.is_empty() && is_file_name(&record.driver_name);
        let unnamed = || io::Error::new(io::ErrorKind::InvalidData, format!("{}: it names no volume", path.display()));
        named.then_some(Some(record)).ok_or_else(unnamed)
    }

    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        write_atomic(&RealFs, &dir.join(FILE), &serde_json::to_vec(self)?)
    }
}

/// Whether a driver's name can be that of a directory.
pub(super) fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// Removes a directory that a driver was given, with the record beside it. Files are never removed: what a driver left is its own.
pub(super) fn remove(mount_dir: &Path) -> io::Result<()> {
    if is_mounted(mount_dir)? {
        return Err(io::Error::other(format!("{} is still mounted", mount_dir.display())));
    }
    let missing_is_fine = |done: io::Result<()>| match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    };
    missing_is_fine(fs::remove_dir(mount_dir))?;
    let Some(dir) = mount_dir.parent() else { return Ok(()) };
    missing_is_fine(fs::remove_file(dir.join(FILE)))?;
    missing_is_fine(fs::remove_dir(dir))
}

/// Whether something is mounted at `path`, also of the file system that is there anyway. A mount whose server is gone is one.
pub(super) fn is_mounted(path: &Path) -> io::Result<bool> {
    match statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::TYPE) {
        Ok(found) => Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        Err(Errno::NOTCONN | Errno::STALE | Errno::IO) => Ok(true),
        Err(error) => Err(io::Error::new(
            io::Error::from(error).kind(),
            format!("look for a mount at {}: {}", path.display(), io::Error::from(error)),
        )),
    }
}

/// A volume that a Pod has by its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OfPod {
    pub(super) uid: String,
    /// Where the driver was told to publish it.
    pub(super) target: PathBuf,
    /// The link to a block volume in the Pod's directory.
    pub(super) link: Option<PathBuf>,
    pub(super) record: Record,
}

/// A volume that is staged, or may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Staged {
    pub(super) volume: VolumeId,
    pub(super) staging: PathBuf,
    /// The PersistentVolume, where it is a block device.
    pub(super) device: Option<String>,
}

/// Removes what a driver was given for a block volume of a Pod.
pub(super) fn remove_device(target: &Path, link: &Path) -> io::Result<()> {
    if is_mounted(target)? {
        return Err(io::Error::other(format!("{} is still mounted", target.display())));
    }
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // Drivers bind devices over empty files.
        found => {
            let found = found?;
            if found.is_file() && found.len() > 0 || found.is_dir() {
                return Err(io::Error::other(format!("{} is no device: it stays", target.display())));
            }
            fs::remove_file(target)?;
        }
    }
    remove_dirs([target.parent()])?;
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes directories that are empty.
pub(super) fn remove_dirs<'a>(dirs: impl IntoIterator<Item = Option<&'a Path>>) -> io::Result<()> {
    for dir in dirs.into_iter().flatten() {
        match fs::remove_dir(dir) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {}
            done => done?,
        }
    }
    Ok(())
}

impl OfPod {
    pub(super) fn is_persistent(&self) -> bool {
        self.record.volume_lifecycle_mode != "Ephemeral"
    }
}

impl KubeletDirs {
    /// The volumes of one Pod. A directory without a record holds nothing that a driver knows of.
    pub(super) fn of_pod(&self, uid: &str) -> io::Result<Vec<OfPod>> {
        let mut found = Vec::new();
        for dir in names_in(&self.volumes(uid))?.map(|name| self.volume(uid, &name)) {
            if let Some(record) = Record::read(&dir)? {
                found.push(OfPod { uid: uid.to_owned(), target: target(&dir), link: None, record });
            }
        }
        let links = self.device_links(uid);
        for name in names_in(&links)? {
            if let Some(record) = Record::read(&self.device_record(&name))? {
                let (target, link) = (self.device(&name, uid), Some(links.join(&name)));
                found.push(OfPod { uid: uid.to_owned(), target, link, record });
            }
        }
        Ok(found)
    }

    /// The uids of Pods that have directories here.
    pub(super) fn uids(&self) -> io::Result<Vec<String>> {
        Ok(names_in(&self.pods())?.collect())
    }

    /// Whether any Pod has the volume.
    pub(super) fn is_used(&self, volume: &VolumeId) -> io::Result<bool> {
        for uid in self.uids()? {
            if self.of_pod(&uid)?.iter().any(|held| held.record.volume() == *volume) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The volumes that are staged, or may be.
    pub(super) fn staged_volumes(&self) -> io::Result<Vec<Staged>> {
        let mut found = Vec::new();
        for name in names_in(&self.devices())?.filter(|name| name != "staging" && name != "publish") {
            let record = Record::read(&self.device_record(&name))?;
            let staging = self.device_staging(&name);
            found.extend(record.map(|record| Staged { volume: record.volume(), staging, device: Some(name) }));
        }
        for driver in names_in(&self.staged())?.filter(|name| name != "volumeDevices") {
            let of_driver = self.staged().join(&driver);
            for volume in names_in(&of_driver)? {
                let dir = of_driver.join(volume);
                let staged =
                    |record: Record| Staged { volume: record.volume(), staging: dir.join("globalmount"), device: None };
                found.extend(Record::read(&dir)?.map(staged));
            }
        }
        Ok(found)
    }

    /// Removes what is left of a volume that is staged no longer.
    pub(super) fn remove_staged(&self, staged: &Staged) -> io::Result<()> {
        let Some(name) = &staged.device else { return remove(&staged.staging) };
        let (record, own) = (self.device_record(name), self.devices().join(name));
        // What a driver left there is its own.
        let published = self.devices().join("publish").join(name);
        remove_dirs([Some(&*staged.staging), Some(&*published)])?;
        match fs::remove_file(record.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        remove_dirs([Some(&*record), Some(&*own.join("dev")), Some(&*own)])
    }
}

pub(super) fn names_in(dir: &Path) -> io::Result<impl Iterator<Item = String>> {
    let names = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        list => list?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()?,
    };
    Ok(names.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(handle: &str) -> Record {
        Record { volume_handle: handle.to_owned(), driver_name: "d".to_owned(), ..Record::default() }
    }

    #[test]
    fn volumes_are_found_by_their_records() {
        let dir = tempfile::tempdir().expect("a directory");
        let dirs = KubeletDirs::new(dir.path());
        let held = Record { name: "pv".to_owned(), fs_group: "7".to_owned(), ..record("h") };
        held.write(&dirs.volume("u", "pv")).expect("written");
        fs::create_dir_all(dirs.volume("u", "other")).expect("made");
        let found = dirs.of_pod("u").expect("readable");
        assert_eq!(
            found,
            [OfPod { uid: "u".to_owned(), target: target(&dirs.volume("u", "pv")), link: None, record: held.clone() }]
        );
        assert!(dirs.is_used(&held.volume()).expect("readable"));
        assert!(!dirs.is_used(&record("other").volume()).expect("readable"));
        let staging = dirs.staging(&held.volume());
        held.write(staging.parent().expect("it is below the root")).expect("written");
        let staged = Staged { volume: held.volume(), staging, device: None };
        assert_eq!(dirs.staged_volumes().expect("readable"), [staged]);
    }

    #[test]
    fn what_is_no_record_is_told_and_files_are_never_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        for text in ["", "{}", "nonsense", r#"{"volumeHandle": "h", "driverName": "../.."}"#] {
            fs::write(dir.path().join(FILE), text).expect("written");
            let error = Record::read(dir.path()).expect_err("no record");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{text}");
        }
        let target = dir.path().join("v/mount");
        record("h").write(&dir.path().join("v")).expect("written");
        fs::create_dir_all(&target).expect("made");
        fs::write(target.join("data"), "x").expect("written");
        remove(&target).expect_err("there is data in it");
        assert!(target.join("data").exists());
        fs::remove_file(target.join("data")).expect("removed");
        remove(&target).expect("it is empty");
        assert!(!dir.path().join("v").exists());
        remove(&target).expect("nothing there is fine");
    }

    #[test]
    fn a_bind_of_the_same_file_system_is_a_mount() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).expect("made");
        fs::create_dir(&to).expect("made");
        assert!(!is_mounted(&to).expect("there"));
        rustix::mount::mount_bind(&from, &to).expect("bound");
        assert!(is_mounted(&to).expect("there"));
        rustix::mount::unmount(&to, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
        assert!(!is_mounted(&dir.path().join("none")).expect("nothing there is no mount"));
    }
}
