//! Snapshots of volumes, and what volumes are copied from.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use carob_kit::fs::{Access as FileAccess, Fs, RealFs, write_atomic};
use fs_err as fs;

use super::{Copy, DATA, DISK, Pool, PoolError, REMOVING};
use crate::record::{Record, SnapshotRecord};

const SNAPSHOT_FILE: &str = "snapshot.json";

/// What a volume begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Volume(String),
    Snapshot(String),
}

impl Origin {
    fn name(&self) -> &str {
        match self {
            Self::Volume(name) | Self::Snapshot(name) => name,
        }
    }
}

/// A snapshot, and how it came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) record: SnapshotRecord,
    /// It is of one moment: its blocks were shared, or the volume was a device that nothing had.
    pub(crate) at_once: bool,
}

/// What is known of something that is to be copied.
struct Source {
    block: bool,
    capacity_bytes: i64,
}

fn mode_of(block: bool) -> &'static str {
    if block { "block device" } else { "directory" }
}

impl Pool {
    /// The record of a snapshot. What has none is not a snapshot of this pool.
    pub(crate) fn snapshot(&self, name: &str) -> Result<Option<SnapshotRecord>, PoolError> {
        let path = self.place(name)?.join(SNAPSHOT_FILE);
        match fs::read(&path) {
            Ok(bytes) => {
                SnapshotRecord::parse(name, &bytes).map(Some).map_err(|source| PoolError::Record { path, source })
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes a snapshot of a volume for the object with the uid `owner`, unless it is there. It survives a power loss when this
    /// returns.
    pub(crate) fn take(
        &self,
        name: &str,
        owner: &str,
        volume: &str,
        now_ns: i64,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Taken, PoolError> {
        let place = self.place(name)?;
        if let Some(record) = self.snapshot(name)? {
            if record.owner_uid != owner {
                return Err(PoolError::NotOurs { path: place, uid: owner.to_owned() });
            }
            return Ok(Taken { at_once: !record.copied, record });
        }
        if place.try_exists()? {
            return Err(PoolError::NoRecord { path: place });
        }
        let held = self.read(volume)?.ok_or_else(|| PoolError::NoOrigin(volume.to_owned()))?;
        let mut record = SnapshotRecord::new(name, owner, volume, now_ns);
        (record.block, record.capacity_bytes) = (held.block, held.capacity_bytes);
        self.draft(name, |draft| {
            let disk = held.block.then(|| RealFs.open(&draft.join(DISK), FileAccess::Create)).transpose()?;
            if disk.is_none() {
                fs::create_dir(draft.join(DATA))?;
            }
            let origin = Origin::Volume(volume.to_owned());
            let has_copied = self.copy_into(&origin, held.block, held.capacity_bytes, draft, wanted)?;
            let unused = held.block && self.device_of(&held)?.is_none();
            record.copied = has_copied && !unused;
            if let Some(disk) = disk {
                disk.sync_data()?;
            }
            self.disks.between()?;
            let path = draft.join(SNAPSHOT_FILE);
            let bytes = record.bytes().map_err(|source| PoolError::Record { path: path.clone(), source })?;
            Ok(write_atomic(&RealFs, &path, &bytes)?)
        })?;
        Ok(Taken { at_once: !record.copied, record })
    }

    /// The device that shows a volume's file.
    fn device_of(&self, record: &Record) -> Result<Option<std::path::PathBuf>, PoolError> {
        Ok(self.disks.find(fs::File::open(self.content(record))?.file())?)
    }

    /// Removes a snapshot, and what is left of an attempt that failed. Nothing there is fine.
    pub(crate) fn remove_snapshot(&self, name: &str) -> Result<(), PoolError> {
        let place = self.place(name)?;
        if self.snapshot(name)?.is_some() {
            return self.take_away(name);
        }
        self.discard(&format!("{REMOVING}{name}"))?;
        if place.try_exists()? { Err(PoolError::NoRecord { path: place }) } else { Ok(()) }
    }

    fn source(&self, origin: &Origin) -> Result<Option<Source>, PoolError> {
        Ok(match origin {
            Origin::Volume(name) => {
                self.read(name)?.map(|held| Source { block: held.block, capacity_bytes: held.capacity_bytes })
            }
            Origin::Snapshot(name) => {
                self.snapshot(name)?.map(|held| Source { block: held.block, capacity_bytes: held.capacity_bytes })
            }
        })
    }

    /// Copies what is on `origin` into the draft of a volume.
    pub(super) fn copy(
        &self,
        origin: &Origin,
        record: &Record,
        draft: &Path,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(), PoolError> {
        self.copy_into(origin, record.block, record.capacity_bytes, draft, wanted).map(drop)
    }

    /// Answers whether bytes had to be copied.
    fn copy_into(
        &self,
        origin: &Origin,
        block: bool,
        room: i64,
        draft: &Path,
        wanted: &dyn Fn() -> bool,
    ) -> Result<bool, PoolError> {
        let name = origin.name().to_owned();
        let _held = self.hold(&name);
        let Some(source) = self.source(origin)? else { return Err(PoolError::NoOrigin(name)) };
        if source.block != block {
            return Err(PoolError::OtherMode(name, mode_of(source.block)));
        }
        if source.capacity_bytes > room {
            return Err(PoolError::Smaller { name, has: source.capacity_bytes, wanted: room });
        }
        self.disks.between()?;
        let mut copy = Copy::new(wanted);
        let content = self.dir.join(&name);
        let mut copied = || -> io::Result<bool> {
            if block {
                let from = fs::File::open(content.join(DISK))?;
                let to = fs::OpenOptions::new().write(true).open(draft.join(DISK))?;
                copy.file(from.as_fd(), to.as_fd())?;
            } else {
                copy.directory(&content.join(DATA), &draft.join(DATA))?;
                // One call for however many files there are.
                rustix::fs::syncfs(fs::File::open(draft)?)?;
            }
            Ok(copy.has_copied)
        };
        copied().map_err(|source| PoolError::Copy { name, source })
    }
}
