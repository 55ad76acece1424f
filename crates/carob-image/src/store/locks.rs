//! What keeps the processes that have one store open out of each other's way (flock(2)). Blocking.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// The index is read, changed and written by one process at a time.
const INDEX: &str = "lock";
/// Held shared by every process for as long as it has the store open.
const USERS: &str = "users";

#[derive(Debug)]
pub(super) struct Locks {
    index: File,
    users: File,
}

impl Locks {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let open = |name| -> io::Result<File> {
            let file = fs_err::OpenOptions::new().create(true).truncate(false).write(true).open(root.join(name))?;
            Ok(file.into_file())
        };
        let locks = Self { index: open(INDEX)?, users: open(USERS)? };
        // A process that finds itself alone keeps others out until it has cleaned up.
        let held = locks.index()?;
        flock(&locks.users, FlockOperation::LockShared)?;
        drop(held);
        Ok(locks)
    }

    /// Waits until no other process is at the index, and keeps them away for as long as the answer is held.
    pub(super) fn index(&self) -> io::Result<Held<'_>> {
        flock(&self.index, FlockOperation::LockExclusive)?;
        Ok(Held(self))
    }
}

pub(super) struct Held<'a>(&'a Locks);

impl Held<'_> {
    /// Whether no other process has the store open. None can open it before this is dropped.
    pub(super) fn is_alone(&self) -> io::Result<bool> {
        let alone = match flock(&self.0.users, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => true,
            Err(rustix::io::Errno::WOULDBLOCK) => false,
            Err(error) => return Err(error.into()),
        };
        // Back to shared; a lock that could not be changed is gone (flock(2)). Nobody else is exclusive: that takes the index.
        flock(&self.0.users, FlockOperation::LockShared)?;
        Ok(alone)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Err(error) = flock(&self.0.index, FlockOperation::Unlock) {
            tracing::error!(%error, "the image store's index stays locked until this process ends");
        }
    }
}
