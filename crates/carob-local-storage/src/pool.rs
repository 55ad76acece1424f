//! The directory that volumes are in: `<dir>/<volume>/{volume.json,data|disk}`. All calls may block.
//!
//! A volume appears and disappears by one rename each, so that none is ever half there under its name.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use carob_kit::fs::{Access as FileAccess, Fs, RealFs, make_private, write_atomic};
use carob_sys::{loop_device, project};
use fs_err as fs;
use rustix::fs::FallocateFlags;

use crate::plan::{Access, Wish};
use crate::record::{Record, RecordError};
use crate::tree;

/// Others look for volumes by name only.
const POOL_MODE: u32 = 0o711;
/// A volume's directory is for this program: what is in it is shown to containers by a mount.
const VOLUME_MODE: u32 = 0o700;
const ID_FILE: &str = "id";
const ID_LEN: usize = 16;
const RECORD_FILE: &str = "volume.json";
const DATA: &str = "data";
const DISK: &str = "disk";
const MAKING: &str = ".making-";
const REMOVING: &str = ".removing-";
/// Project ids that this program gives: high enough to be out of the way of those that people write into `/etc/projid`.
const PROJECTS: std::ops::Range<u32> = 0x4361_0000..0x4362_0000;

#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{}", path.display())]
    Record {
        path: PathBuf,
        #[source]
        source: RecordError,
    },
    #[error("{} was not made for the claim with the uid {uid}: it is left alone", path.display())]
    NotOurs { path: PathBuf, uid: String },
    #[error("{} has no record of who made it: it is left alone", path.display())]
    NoRecord { path: PathBuf },
    #[error("the claim asks for {wanted} bytes, the file system has {total}")]
    TooLarge { wanted: i64, total: u64 },
    #[error("limit the volume to {bytes} bytes")]
    Limit {
        bytes: i64,
        #[source]
        source: io::Error,
    },
    #[error("all {} project ids for quotas are in use", PROJECTS.len())]
    NoProject,
    #[error("{0:?} cannot be the name of a volume")]
    Name(String),
}

/// The directory, open.
#[derive(Debug)]
pub struct Pool {
    dir: PathBuf,
    id: String,
    /// Whether the file system keeps to limits of projects.
    has_quotas: bool,
    projects: Mutex<HashSet<u32>>,
}

impl Pool {
    /// Makes the directory where there is none, and removes what an earlier run left half made or half removed.
    pub fn open(dir: &Path) -> Result<Self, PoolError> {
        make_private(dir, POOL_MODE)?;
        let id = id(dir)?;
        let handle = fs::File::open(dir)?;
        let has_quotas = project::is_enforced(handle.as_fd())?;
        let pool = Self { dir: dir.to_owned(), id, has_quotas, projects: Mutex::default() };
        for name in RealFs.list(dir)? {
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(MAKING) || name.starts_with(REMOVING) {
                tree::remove(handle.as_fd(), name)?;
            } else if let Some(record) = pool.read(name)? {
                pool.projects().insert(record.project);
            }
        }
        Ok(pool)
    }

    /// Names the pool for as long as its directory is there.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether volumes get no more room than they ask for.
    pub fn has_quotas(&self) -> bool {
        self.has_quotas
    }

    fn projects(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.projects.lock().expect("no holder of the projects panics")
    }

    fn place(&self, name: &str) -> Result<PathBuf, PoolError> {
        let fine = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']) && name != ID_FILE;
        if fine { Ok(self.dir.join(name)) } else { Err(PoolError::Name(name.to_owned())) }
    }

    /// The record of a volume. What has none is not a volume of this pool.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Record>, PoolError> {
        if name == ID_FILE {
            return Ok(None);
        }
        let path = self.place(name)?.join(RECORD_FILE);
        match fs::read(&path) {
            Ok(bytes) => Record::parse(name, &bytes).map(Some).map_err(|source| PoolError::Record { path, source }),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What is to be shown to containers: a directory, or the file of a block device.
    pub(crate) fn content(&self, record: &Record) -> PathBuf {
        self.dir.join(&record.volume).join(if record.block { DISK } else { DATA })
    }

    /// Makes a volume, unless it is there. It survives a power loss when this returns.
    pub(crate) fn make(&self, wish: &Wish) -> Result<Record, PoolError> {
        let place = self.place(&wish.record.volume)?;
        if let Some(held) = self.read(&wish.record.volume)? {
            if held.claim_uid != wish.record.claim_uid {
                return Err(PoolError::NotOurs { path: place, uid: wish.record.claim_uid.clone() });
            }
            return Ok(held);
        }
        if place.try_exists()? {
            return Err(PoolError::NoRecord { path: place });
        }
        let stat = rustix::fs::statvfs(&self.dir).map_err(io::Error::from)?;
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        if u64::try_from(wish.record.capacity_bytes).is_ok_and(|wanted| wanted > total) {
            return Err(PoolError::TooLarge { wanted: wish.record.capacity_bytes, total });
        }
        let mut record = wish.record.clone();
        record.project = self.take_project()?;
        let made = self.fill(&place, &record, wish.access);
        if made.is_err() {
            self.projects().remove(&record.project);
        }
        made.map(|()| record)
    }

    fn fill(&self, place: &Path, record: &Record, access: Access) -> Result<(), PoolError> {
        let handle = fs::File::open(&self.dir)?;
        let draft_name = format!("{MAKING}{}", record.volume);
        tree::remove(handle.as_fd(), &draft_name)?;
        let draft = self.dir.join(&draft_name);
        make_private(&draft, VOLUME_MODE)?;
        if record.block {
            let disk = RealFs.open(&draft.join(DISK), FileAccess::Create)?;
            reserve(&draft.join(DISK), record.capacity_bytes)?;
            disk.sync_data()?;
        } else {
            let data = draft.join(DATA);
            fs::create_dir(&data)?;
            if record.project != 0 {
                limit(&data, record.project, record.capacity_bytes, true)?;
            }
            chown(&data, Some(access.uid), Some(access.gid))?;
            // Last, since a change of owner clears mode bits and the umask cut what mkdir was given.
            fs::set_permissions(&data, std::fs::Permissions::from_mode(access.mode))?;
        }
        write_record(&draft, record)?;
        RealFs.sync_dir(&draft)?;
        fs::rename(&draft, place)?;
        Ok(RealFs.sync_dir(&self.dir)?)
    }

    fn take_project(&self) -> Result<u32, PoolError> {
        if !self.has_quotas {
            return Ok(0);
        }
        let mut projects = self.projects();
        let free = PROJECTS.into_iter().find(|id| !projects.contains(id)).ok_or(PoolError::NoProject)?;
        projects.insert(free);
        Ok(free)
    }

    /// Notes that the volume's object is there.
    pub(crate) fn publish(&self, record: &Record) -> Result<(), PoolError> {
        let mut published = record.clone();
        published.published = true;
        write_record(&self.place(&record.volume)?, &published)
    }

    /// Gives a volume more room. Answers what it has now.
    pub(crate) fn grow(&self, name: &str, bytes: i64) -> Result<i64, PoolError> {
        let place = self.place(name)?;
        let Some(mut record) = self.read(name)? else { return Err(PoolError::NoRecord { path: place }) };
        if bytes <= record.capacity_bytes {
            return Ok(record.capacity_bytes);
        }
        let stat = rustix::fs::statvfs(&self.dir).map_err(io::Error::from)?;
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        if u64::try_from(bytes).is_ok_and(|wanted| wanted > total) {
            return Err(PoolError::TooLarge { wanted: bytes, total });
        }
        if record.block {
            let disk = place.join(DISK);
            reserve(&disk, bytes)?;
            if let Some(device) = loop_device::find(&fs::File::open(&disk)?.into_parts().0)? {
                loop_device::refresh_size(&device)?;
            }
        } else if record.project != 0 {
            limit(&place.join(DATA), record.project, bytes, false)?;
        }
        record.capacity_bytes = bytes;
        write_record(&place, &record)?;
        Ok(bytes)
    }

    /// Removes a volume that was made for the claim with that uid. Nothing there is fine.
    pub(crate) fn remove(&self, name: &str, claim_uid: &str) -> Result<(), PoolError> {
        let place = self.place(name)?;
        let Some(record) = self.read(name)? else {
            return if place.try_exists()? { Err(PoolError::NoRecord { path: place }) } else { Ok(()) };
        };
        if record.claim_uid != claim_uid {
            return Err(PoolError::NotOurs { path: place, uid: claim_uid.to_owned() });
        }
        let handle = fs::File::open(&self.dir)?;
        let rest = format!("{REMOVING}{name}");
        tree::remove(handle.as_fd(), &rest)?;
        fs::rename(&place, self.dir.join(&rest))?;
        tree::remove(handle.as_fd(), &rest)?;
        if record.project != 0 {
            // A limit without files costs a line in the file system's table; an id that is given again brings its own.
            project::limit(handle.as_fd(), record.project, 0)
                .map_err(|source| PoolError::Limit { bytes: 0, source })?;
            self.projects().remove(&record.project);
        }
        Ok(())
    }

    /// The volumes whose object may never have been made.
    pub(crate) fn unpublished(&self) -> Result<Vec<Record>, PoolError> {
        let mut found = Vec::new();
        for name in RealFs.list(&self.dir)? {
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            found.extend(self.read(name)?.filter(|record| !record.published));
        }
        Ok(found)
    }
}

fn write_record(volume: &Path, record: &Record) -> Result<(), PoolError> {
    let path = volume.join(RECORD_FILE);
    let bytes = record.bytes().map_err(|source| PoolError::Record { path: path.clone(), source })?;
    Ok(write_atomic(&RealFs, &path, &bytes)?)
}

fn limit(data: &Path, project: u32, bytes: i64, fresh: bool) -> Result<(), PoolError> {
    let set = || {
        let dir = fs::File::open(data)?;
        if fresh {
            project::assign(dir.as_fd(), project)?;
        }
        project::limit(dir.as_fd(), project, u64::try_from(bytes).unwrap_or(0))
    };
    set().map_err(|source| PoolError::Limit { bytes, source })
}

/// The pool's name, made with the directory.
fn id(dir: &Path) -> io::Result<String> {
    let path = dir.join(ID_FILE);
    match fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let id = carob_kit::random_suffix(ID_LEN);
    write_atomic(&RealFs, &path, id.as_bytes())?;
    Ok(id)
}

/// Extends a file and reserves the room for it on the disk, where the file system can.
fn reserve(path: &Path, bytes: i64) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    let len = u64::try_from(bytes).unwrap_or(0);
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(len),
        Err(error) => Err(io::Error::new(
            io::Error::from(error).kind(),
            format!("reserve {len} bytes for {}: {}", path.display(), io::Error::from(error)),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn wish(name: &str, uid: &str, block: bool) -> Wish {
        let mut record = Record::new(name, "ns", "c", uid);
        (record.block, record.capacity_bytes) = (block, 4096);
        Wish {
            record,
            access: Access { uid: 0, gid: 7, mode: 0o2770 },
            class: "local".to_owned(),
            access_modes: Vec::new(),
            policy: "Delete".to_owned(),
            mount_options: Vec::new(),
        }
    }

    #[test]
    fn a_volume_is_made_once_and_removed_for_its_own_claim_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let pool = Pool::open(dir.path()).expect("opened");
        let record = pool.make(&wish("v", "u1", false)).expect("made");
        let data = pool.content(&record);
        let meta = fs::metadata(&data).expect("there");
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o2770, 0, 7));
        assert_eq!(fs::metadata(dir.path().join("v")).expect("there").mode() & 0o777, 0o700);
        fs::write(data.join("file"), "x").expect("written");
        assert_eq!(pool.make(&wish("v", "u1", false)).expect("it is there"), record);
        assert!(data.join("file").exists());
        assert!(matches!(pool.make(&wish("v", "u2", false)), Err(PoolError::NotOurs { .. })));
        assert!(matches!(pool.remove("v", "u2"), Err(PoolError::NotOurs { .. })));
        assert_eq!(pool.unpublished().expect("listed"), std::slice::from_ref(&record));
        pool.publish(&record).expect("written");
        assert_eq!(pool.unpublished().expect("listed"), []);
        pool.remove("v", "u1").expect("removed");
        pool.remove("v", "u1").expect("removed twice");
        assert!(!dir.path().join("v").exists());
        for name in ["", ".", "..", "a/b", ".making-x", "id"] {
            assert!(pool.remove(name, "u1").is_err(), "{name:?}");
        }
    }

    #[test]
    fn what_has_no_record_is_left_alone_and_what_is_half_there_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let id = Pool::open(dir.path()).expect("opened").id().to_owned();
        for name in [".making-a/data", ".removing-b/data", "mine/data"] {
            fs::create_dir_all(dir.path().join(name)).expect("made");
        }
        let pool = Pool::open(dir.path()).expect("opened again");
        assert_eq!(pool.id(), id);
        assert!(!dir.path().join(".making-a").exists() && !dir.path().join(".removing-b").exists());
        assert!(matches!(pool.remove("mine", "u"), Err(PoolError::NoRecord { .. })));
        assert!(matches!(pool.make(&wish("mine", "u", false)), Err(PoolError::NoRecord { .. })));
        assert!(dir.path().join("mine/data").exists());
    }

    #[test]
    fn a_block_volume_has_its_size_and_grows() {
        let dir = tempfile::tempdir().expect("a directory");
        let pool = Pool::open(dir.path()).expect("opened");
        let record = pool.make(&wish("v", "u", true)).expect("made");
        let len = || fs::metadata(pool.content(&record)).expect("there").len();
        assert_eq!(len(), 4096);
        assert_eq!(pool.grow("v", 8192).expect("grown"), 8192);
        assert_eq!(pool.grow("v", 512).expect("never smaller"), 8192);
        assert_eq!(len(), 8192);
        assert!(matches!(pool.grow("v", i64::MAX), Err(PoolError::TooLarge { .. })));
        let mut greedy = wish("w", "u", false);
        greedy.record.capacity_bytes = i64::MAX;
        assert!(matches!(pool.make(&greedy), Err(PoolError::TooLarge { .. })));
    }
}
