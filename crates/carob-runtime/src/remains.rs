//! What a runtime that was killed leaves on the machine, taken away.

use std::path::{Path, PathBuf};

use carob_sys::cgroup::{Cgroup, Layout};
use rustix::mount::UnmountFlags;

use crate::error::RuntimeError;
use crate::files;

type Result<T> = std::result::Result<T, RuntimeError>;

/// Where a runtime that has ended had its things.
#[derive(Debug, Clone)]
pub struct Remains {
    /// The group that had nothing but the runtime's Pods and shims below it.
    pub cgroup: PathBuf,
    /// Directories of the runtime alone, with whatever is mounted below them.
    pub dirs: Vec<PathBuf>,
}

impl Remains {
    /// Ends the processes, then removes groups, mounts and directories. What is gone already is no error, and a part that
    /// cannot be removed keeps no other one: the error is the first.
    pub async fn remove(&self) -> Result<()> {
        let ended = self.end_processes().await;
        let (this, layout) = (self.clone(), Layout::detect()?);
        let removed = tokio::task::spawn_blocking(move || {
            let groups = Cgroup::new(&layout, &this.cgroup).remove().map_err(RuntimeError::from);
            groups.and(remove_all(&this.dirs))
        });
        ended.and(removed.await?)
    }

    async fn end_processes(&self) -> Result<()> {
        let group = Cgroup::new(&Layout::detect()?, &self.cgroup);
        crate::sandbox::end_processes(&group, &self.cgroup).await
    }
}

/// Removes directories with whatever is mounted below them. What is gone already is no error, and one that cannot be removed
/// keeps no other one: the error is the first.
pub async fn remove_directories(dirs: Vec<PathBuf>) -> Result<()> {
    tokio::task::spawn_blocking(move || remove_all(&dirs)).await?
}

fn remove_all(dirs: &[PathBuf]) -> Result<()> {
    let mut outcome = Ok(());
    for dir in dirs {
        let (unmounted, removed) = (unmount_below(dir), files::remove_directory(dir));
        outcome = outcome.and(unmounted).and(removed);
    }
    outcome
}

/// Takes off every mount at the directory and below it, the last one first.
fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = carob_sys::mountinfo::read().map_err(RuntimeError::file("read the mounts below", dir))?;
    for mount in mounts.iter().rev().filter(|mount| mount.target.starts_with(dir)) {
        match rustix::mount::unmount(&mount.target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(RuntimeError::file("unmount", &mount.target)(error.into())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::mount::{MountFlags, mount};

    use super::*;

    #[tokio::test]
    async fn mounts_and_directories_go_and_what_is_gone_is_no_error() {
        let own = tempfile::tempdir().expect("a directory");
        let dir = own.path().join("run");
        let inner = dir.join("a");
        fs_err::create_dir_all(&inner).expect("made");
        mount("tmpfs", &inner, "tmpfs", MountFlags::empty(), None).expect("mounted");
        let deeper = inner.join("b");
        fs_err::create_dir(&deeper).expect("made");
        mount("tmpfs", &deeper, "tmpfs", MountFlags::empty(), None).expect("mounted");
        let cgroup = PathBuf::from("/carob-test-remains-none");
        let remains = Remains { cgroup, dirs: vec![dir.clone(), own.path().join("never-there")] };
        for _ in 0..2 {
            remains.remove().await.expect("removed");
            assert!(!dir.exists());
        }
    }
}
