//! The directory that volumes and snapshots are in: `<dir>/<volume>/{volume.json,data|disk}` and
//! `<dir>/<snapshot>/{snapshot.json,data|disk}`. All calls may block.
//!
//! Each appears and disappears by one rename, so that none is ever half there under its name.

mod copy;
#[cfg(test)]
mod histories;
mod projects;
mod snapshots;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use carob_api::storage::local_pool_prefix;
use carob_kit::fs::{Access as FileAccess, Fs, RealFs, make_private, write_atomic};
use carob_sys::disks::{Disks, Machine};
use fs_err as fs;
use rustix::fs::FallocateFlags;

use crate::plan::{Access, Wish};
use crate::record::{Record, RecordError};
use copy::Copy;
use projects::Projects;
pub(crate) use snapshots::Origin;

/// Others look for volumes by name only.
const POOL_MODE: u32 = 0o711;
/// A volume's directory is for this program: what is in it is shown to containers by a mount.
const VOLUME_MODE: u32 = 0o700;
const ID_FILE: &str = "id";
/// Characters of an id after those that tell the node.
const ID_LEN: usize = 16;
const RECORD_FILE: &str = "volume.json";
const DATA: &str = "data";
const DISK: &str = "disk";
const MAKING: &str = ".making-";
const REMOVING: &str = ".removing-";

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
    #[error("{} was not made for the owner with the uid {uid}: it is left alone", path.display())]
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
    #[error("all {0} project ids for quotas are in use")]
    NoProject(usize),
    #[error("{0:?} cannot be the name of a volume or a snapshot")]
    Name(String),
    #[error("{0} is being copied: it goes when that is done")]
    Busy(String),
    #[error("{0} is not on this node")]
    NoOrigin(String),
    #[error("{0} is a {1}, which is copied to a {1} only")]
    OtherMode(String, &'static str),
    #[error("{name} has {has} bytes, {wanted} are asked for")]
    Smaller { name: String, has: i64, wanted: i64 },
    #[error("copy {name}")]
    Copy {
        name: String,
        #[source]
        source: io::Error,
    },
}

/// The directory, open.
#[derive(Debug)]
pub struct Pool {
    dir: PathBuf,
    id: String,
    projects: Projects,
    /// How often each volume and snapshot is being copied: until it is not, it is not removed.
    copied: Mutex<HashMap<String, usize>>,
    /// The volumes whose object may never have been made. Whoever changes a record holds this.
    unpublished: Mutex<BTreeSet<String>>,
    disks: Arc<dyn Disks>,
}

/// What is being copied. Dropping it says that it no longer is.
#[derive(Debug)]
struct Held<'a> {
    pool: &'a Pool,
    name: String,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut copied = self.pool.copied();
        match copied.get_mut(&self.name) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => drop(copied.remove(&self.name)),
        }
    }
}

impl Pool {
    /// Makes the directory where there is none, removes what an earlier run left half made or half removed, and puts limits right
    /// that are not what the records say. What is made gets an id that tells the name of the node.
    pub fn open(dir: &Path, node: &str) -> Result<Self, PoolError> {
        Self::open_on(dir, node, Arc::new(Machine))
    }

    /// As [`Pool::open`], on a machine that something may stand in for.
    pub fn open_on(dir: &Path, node: &str, disks: Arc<dyn Disks>) -> Result<Self, PoolError> {
        make_private(dir, POOL_MODE)?;
        let id = id(dir, node)?;
        let enforced = disks.is_enforced(fs::File::open(dir)?.as_fd())?;
        let (projects, copied) = (Projects::new(enforced, Arc::clone(&disks)), Mutex::default());
        let pool = Self { dir: dir.to_owned(), id, projects, copied, unpublished: Mutex::default(), disks };
        for name in RealFs.list(dir)? {
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(MAKING) || name.starts_with(REMOVING) {
                pool.discard(name)?;
            } else if let Some(record) = pool.read(name)? {
                pool.projects.keep(&pool.dir.join(name).join(DATA), record.project, record.capacity_bytes)?;
                if !record.published {
                    pool.unpublished_names().insert(name.to_owned());
                }
            }
        }
        Ok(pool)
    }

    /// Names the pool for as long as its directory is there.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn copied(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.copied.lock().expect("no holder of the counts panics")
    }

    fn unpublished_names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.unpublished.lock().expect("no holder of the records panics")
    }

    /// Keeps a volume or snapshot from being removed while it is copied.
    fn hold(&self, name: &str) -> Held<'_> {
        *self.copied().entry(name.to_owned()).or_default() += 1;
        Held { pool: self, name: name.to_owned() }
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

    /// Makes a volume, unless it is there, with what is on `origin`. It survives a power loss when this returns. A copy ends early
    /// once it is not `wanted` any more.
    pub(crate) fn make(
        &self,
        wish: &Wish,
        origin: Option<&Origin>,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Record, PoolError> {
        let place = self.place(&wish.record.volume)?;
        if let Some(held) = self.read(&wish.record.volume)? {
            if held.claim_uid != wish.record.claim_uid {
                return Err(PoolError::NotOurs { path: place, uid: wish.record.claim_uid.clone() });
            }
            if !held.published {
                // An earlier attempt failed once it had its name.
                self.unpublished_names().insert(held.volume.clone());
            }
            return Ok(held);
        }
        if place.try_exists()? {
            return Err(PoolError::NoRecord { path: place });
        }
        self.check_size(wish.record.capacity_bytes)?;
        let mut record = wish.record.clone();
        record.project = if record.block { 0 } else { self.projects.take(&fs::File::open(&self.dir)?)? };
        let made = self.draft(&record.volume, |draft| {
            self.fill(draft, &record, wish.access, origin, wanted)?;
            self.disks.between()?;
            write_record(draft, &record)
        });
        match made {
            Ok(()) => {
                self.unpublished_names().insert(record.volume.clone());
                Ok(record)
            }
            Err(error) => {
                // It may have its name already, and then what is counted for it, too: the next attempt, or the next start, finds it.
                if !place.try_exists()? {
                    self.projects.give_back(record.project);
                } else {
                    self.unpublished_names().insert(record.volume.clone());
                }
                Err(error)
            }
        }
    }

    fn check_size(&self, wanted: i64) -> Result<(), PoolError> {
        let stat = rustix::fs::statvfs(&self.dir).map_err(io::Error::from)?;
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        if u64::try_from(wanted).is_ok_and(|wanted| wanted > total) {
            return Err(PoolError::TooLarge { wanted, total });
        }
        Ok(())
    }

    /// Makes a directory of the pool that has all of its content as soon as it has its name. What is left of one that failed
    /// goes at once.
    fn draft(&self, name: &str, fill: impl FnOnce(&Path) -> Result<(), PoolError>) -> Result<(), PoolError> {
        let draft_name = format!("{MAKING}{name}");
        self.discard(&draft_name)?;
        let draft = self.dir.join(&draft_name);
        make_private(&draft, VOLUME_MODE)?;
        let whole = || {
            self.disks.between()?;
            fill(&draft)?;
            RealFs.sync_dir(&draft)?;
            self.disks.between()?;
            Ok::<_, PoolError>(fs::rename(&draft, self.dir.join(name))?)
        };
        if let Err(error) = whole() {
            // Why it failed is what matters; what cannot be removed now is at the next start.
            if self.disks.between().is_ok() {
                self.discard(&draft_name).unwrap_or_else(|rest| {
                    tracing::warn!(error = %carob_kit::chain(&rest), "what is left of {name} stays until the next start");
                });
            }
            return Err(error);
        }
        self.disks.between()?;
        Ok(RealFs.sync_dir(&self.dir)?)
    }

    fn fill(
        &self,
        draft: &Path,
        record: &Record,
        access: Access,
        origin: Option<&Origin>,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(), PoolError> {
        if record.block {
            let disk = RealFs.open(&draft.join(DISK), FileAccess::Create)?;
            if let Some(origin) = origin {
                self.copy(origin, record, draft, wanted)?;
            }
            reserve(&draft.join(DISK), record.capacity_bytes)?;
            return Ok(disk.sync_data()?);
        }
        let data = draft.join(DATA);
        fs::create_dir(&data)?;
        self.disks.between()?;
        self.projects.begin(&data, record.project, record.capacity_bytes)?;
        self.disks.between()?;
        if let Some(origin) = origin {
            // Owner and mode are the origin's too.
            return self.copy(origin, record, draft, wanted);
        }
        chown(&data, Some(access.uid), Some(access.gid))?;
        // Last, since a change of owner clears mode bits and the umask cut what mkdir was given.
        Ok(fs::set_permissions(&data, std::fs::Permissions::from_mode(access.mode))?)
    }

    /// Notes that the volume's object is there. A volume that is gone meanwhile stays gone.
    pub(crate) fn publish(&self, name: &str) -> Result<(), PoolError> {
        let place = self.place(name)?;
        let mut unpublished = self.unpublished_names();
        // As it is now: it may have grown since it was made.
        if let Some(mut record) = self.read(name)?.filter(|record| !record.published) {
            record.published = true;
            write_record(&place, &record)?;
        }
        unpublished.remove(name);
        Ok(())
    }

    /// Gives a volume more room. Answers what it has now.
    pub(crate) fn grow(&self, name: &str, bytes: i64) -> Result<i64, PoolError> {
        let place = self.place(name)?;
        let Some(record) = self.read(name)? else { return Err(PoolError::NoRecord { path: place }) };
        if bytes <= record.capacity_bytes {
            return Ok(record.capacity_bytes);
        }
        self.check_size(bytes)?;
        if record.block {
            let disk = place.join(DISK);
            reserve(&disk, bytes)?;
            if let Some(device) = self.disks.find(fs::File::open(&disk)?.file())? {
                self.disks.refresh_size(&device)?;
            }
        } else {
            self.projects.limit(&place.join(DATA), record.project, bytes)?;
        }
        self.disks.between()?;
        let _turn = self.unpublished_names();
        // As it is now: its object may have been made meanwhile.
        let Some(mut record) = self.read(name)? else { return Err(PoolError::NoRecord { path: place }) };
        record.capacity_bytes = bytes;
        write_record(&place, &record)?;
        Ok(bytes)
    }

    /// Removes a volume, and what is left of an attempt that failed. Nothing there is fine. Its name says which claim it was made for; a user may have given it to another one
    /// since, so its record does not say which claim has it last.
    pub(crate) fn remove(&self, name: &str) -> Result<(), PoolError> {
        let place = self.place(name)?;
        if self.read(name)?.is_some() {
            self.take_away(name)?;
        } else {
            self.discard(&format!("{REMOVING}{name}"))?;
            if place.try_exists()? {
                return Err(PoolError::NoRecord { path: place });
            }
        }
        self.unpublished_names().remove(name);
        Ok(())
    }

    /// Removes a directory of the pool, unless it is being copied.
    fn take_away(&self, name: &str) -> Result<(), PoolError> {
        let rest = format!("{REMOVING}{name}");
        self.discard(&rest)?;
        let copied = self.copied();
        if copied.contains_key(name) {
            return Err(PoolError::Busy(name.to_owned()));
        }
        fs::rename(self.dir.join(name), self.dir.join(&rest))?;
        drop(copied);
        self.disks.between()?;
        self.discard(&rest)
    }

    /// Takes away the device that shows a file which is about to go: once it is gone nobody finds the device by it. One that is open
    /// goes when it no longer is.
    fn hide(&self, disk: &Path) -> Result<(), PoolError> {
        let file = match fs::File::open(disk) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(device) = self.disks.find(file.file())? {
            self.disks.detach(&device)?;
            self.disks.between()?;
        }
        Ok(())
    }

    /// Removes what is half made or half removed. Nothing there is fine.
    fn discard(&self, rest: &str) -> Result<(), PoolError> {
        let project = self.projects.lift(&self.dir.join(rest).join(DATA))?;
        self.disks.between()?;
        self.hide(&self.dir.join(rest).join(DISK))?;
        tree::remove(fs::File::open(&self.dir)?.as_fd(), rest)?;
        if let Some(project) = project {
            self.projects.give_back(project);
        }
        Ok(())
    }

    /// The volumes whose object may never have been made.
    pub(crate) fn unpublished(&self) -> Result<Vec<Record>, PoolError> {
        let names: Vec<String> = self.unpublished_names().iter().cloned().collect();
        let records = names.iter().map(|name| self.read(name));
        records.filter_map(Result::transpose).collect()
    }

    /// Whether the object of a volume that is here may never have been made.
    pub(crate) fn is_unpublished(&self, name: &str) -> bool {
        self.unpublished_names().contains(name)
    }
}

fn write_record(volume: &Path, record: &Record) -> Result<(), PoolError> {
    let path = volume.join(RECORD_FILE);
    let bytes = record.bytes().map_err(|source| PoolError::Record { path: path.clone(), source })?;
    Ok(write_atomic(&RealFs, &path, &bytes)?)
}

/// The pool's name, made with the directory.
fn id(dir: &Path, node: &str) -> io::Result<String> {
    let path = dir.join(ID_FILE);
    match fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let id = format!("{}{}", local_pool_prefix(node), carob_kit::random_suffix(ID_LEN));
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
