//! Projects of the file system's quotas: which id a volume gets, and its limit.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use carob_sys::disks::Disks;
use fs_err as fs;

use super::PoolError;

/// Project ids that this program gives: high enough to be out of the way of those that people write into `/etc/projid`.
const IDS: std::ops::Range<u32> = 0x4361_0000..0x4362_0000;

/// The projects that volumes of the pool have.
#[derive(Debug)]
pub(super) struct Projects {
    /// Whether the file system keeps to limits of projects.
    pub(super) enforced: bool,
    taken: Mutex<HashSet<u32>>,
    disks: Arc<dyn Disks>,
}

/// The first id that no volume has, and that nothing on the file system has either: what was moved out of the pool by hand
/// still counts for its id.
fn free_id(taken: &HashSet<u32>, is_used: impl Fn(u32) -> io::Result<bool>) -> Result<u32, PoolError> {
    for id in IDS.filter(|id| !taken.contains(id)) {
        if !is_used(id)? {
            return Ok(id);
        }
    }
    Err(PoolError::NoProject(IDS.len()))
}

/// The limit that the kernel notes for so many bytes: it counts in KiB.
fn limit_of(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or(0).div_ceil(1024).saturating_mul(1024)
}

impl Projects {
    pub(super) fn new(enforced: bool, disks: Arc<dyn Disks>) -> Self {
        Self { enforced, taken: Mutex::default(), disks }
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.taken.lock().expect("no holder of the projects panics")
    }

    /// An id for a new volume; 0 where the file system has no quotas.
    pub(super) fn take(&self, pool: &fs::File) -> Result<u32, PoolError> {
        if !self.enforced {
            return Ok(0);
        }
        let mut taken = self.taken();
        let id = free_id(&taken, |id| Ok(self.disks.usage(pool.as_fd(), id)?.inodes > 0))?;
        taken.insert(id);
        Ok(id)
    }

    /// Gives an id back that was taken for a volume that was not made.
    pub(super) fn give_back(&self, id: u32) {
        self.taken().remove(&id);
    }

    /// Makes an empty directory count for a project with a limit.
    pub(super) fn begin(&self, data: &Path, id: u32, bytes: i64) -> Result<(), PoolError> {
        if id == 0 || !self.enforced {
            return Ok(());
        }
        let dir = fs::File::open(data)?;
        let set = || {
            self.disks.assign(dir.as_fd(), id)?;
            self.disks.between()?;
            self.disks.limit(dir.as_fd(), id, limit_of(bytes))
        };
        set().map_err(|source| PoolError::Limit { bytes, source })
    }

    /// Changes the limit of a volume.
    pub(super) fn limit(&self, data: &Path, id: u32, bytes: i64) -> Result<(), PoolError> {
        if id == 0 || !self.enforced {
            return Ok(());
        }
        let dir = fs::File::open(data)?;
        self.disks.limit(dir.as_fd(), id, limit_of(bytes)).map_err(|source| PoolError::Limit { bytes, source })
    }

    /// Takes note of a volume that was there before, and puts its limit right where it is another one.
    pub(super) fn keep(&self, data: &Path, id: u32, bytes: i64) -> Result<(), PoolError> {
        if id == 0 {
            return Ok(());
        }
        self.taken().insert(id);
        let dir = match fs::File::open(data) {
            Ok(dir) if self.enforced => dir,
            Ok(_) => return Ok(()),
            // Its Pod is told that the directory is lost.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let held = self.disks.usage(dir.as_fd(), id).map_err(|source| PoolError::Limit { bytes, source })?;
        if held.limit_bytes == limit_of(bytes) {
            return Ok(());
        }
        self.disks.limit(dir.as_fd(), id, limit_of(bytes)).map_err(|source| PoolError::Limit { bytes, source })
    }

    /// Lifts the limit of the project that a directory of the pool counts for, before it is removed: what a crash leaves of
    /// it is found and removed later, and no limit stays in the file system's table.
    pub(super) fn lift(&self, data: &Path) -> Result<Option<u32>, PoolError> {
        let dir = match fs::File::open(data) {
            Ok(dir) => dir,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let id = self.disks.project_of(dir.as_fd())?;
        if !IDS.contains(&id) {
            return Ok(None);
        }
        if self.enforced {
            self.disks.limit(dir.as_fd(), id, 0).map_err(|source| PoolError::Limit { bytes: 0, source })?;
        }
        Ok(Some(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_given_to_nobody_else_while_anything_has_it() {
        let mut taken = HashSet::new();
        let used = [IDS.start + 1];
        let next = |taken: &HashSet<u32>| free_id(taken, |id| Ok(used.contains(&id))).expect("one is free");
        let first = next(&taken);
        assert_eq!(first, IDS.start);
        taken.insert(first);
        assert_eq!(next(&taken), IDS.start + 2, "files that are not in the pool have the one between");
        taken.extend(IDS);
        assert!(matches!(free_id(&taken, |_| Ok(false)), Err(PoolError::NoProject(65_536))));
        assert!(matches!(free_id(&HashSet::new(), |_| Err(io::Error::other("no"))), Err(PoolError::Io(_))));
        assert_eq!([limit_of(1), limit_of(1024), limit_of(1025), limit_of(-1)], [1024, 1024, 2048, 0]);
    }
}
