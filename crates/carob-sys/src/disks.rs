//! What volumes have of a machine beside files: devices that show files, limits of directory trees, and mounts.
//!
//! Behind a trait, so that tests can break work off between any two effects and count what is left without changing the machine.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fs_err as fs;
use rustix::mount::UnmountFlags;

use crate::project::Usage;
use crate::{loop_device, project};

/// Whether something is mounted at `path`, which is on another file system than the directory that it is in then.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let Some(parent) = path.parent() else { return Ok(true) };
    Ok(fs::symlink_metadata(path)?.dev() != fs::symlink_metadata(parent)?.dev())
}

/// Takes away whatever is mounted at `path`; the directory itself is its caller's.
pub fn unmount(path: &Path) -> io::Result<()> {
    while is_mount_point(path)? {
        rustix::mount::unmount(path, UnmountFlags::DETACH)
            .map_err(|error| io::Error::other(format!("unmount {}: {error}", path.display())))?;
    }
    Ok(())
}

/// The devices, project quotas and mounts of a machine: those of this one, unless something stands in for it. All calls may block.
pub trait Disks: fmt::Debug + Send + Sync {
    /// As [`loop_device::attach`].
    fn attach(&self, file: &fs_err::File) -> io::Result<PathBuf> {
        loop_device::attach(file)
    }

    /// As [`loop_device::find`].
    fn find(&self, file: &File) -> io::Result<Option<PathBuf>> {
        loop_device::find(file)
    }

    /// As [`loop_device::detach`].
    fn detach(&self, device: &Path) -> io::Result<()> {
        loop_device::detach(device)
    }

    /// As [`loop_device::refresh_size`].
    fn refresh_size(&self, device: &Path) -> io::Result<()> {
        loop_device::refresh_size(device)
    }

    /// As [`loop_device::is_of`].
    fn is_of(&self, device: &Path, path: &Path) -> io::Result<bool> {
        loop_device::is_of(device, path)
    }

    /// As [`project::is_enforced`].
    fn is_enforced(&self, of: BorrowedFd<'_>) -> io::Result<bool> {
        project::is_enforced(of)
    }

    /// As [`project::assign`].
    fn assign(&self, dir: BorrowedFd<'_>, project: u32) -> io::Result<()> {
        project::assign(dir, project)
    }

    /// As [`project::limit`].
    fn limit(&self, of: BorrowedFd<'_>, project: u32, bytes: u64) -> io::Result<()> {
        project::limit(of, project, bytes)
    }

    /// As [`project::of`].
    fn project_of(&self, dir: BorrowedFd<'_>) -> io::Result<u32> {
        project::of(dir)
    }

    /// As [`project::usage`].
    fn usage(&self, of: BorrowedFd<'_>, project: u32) -> io::Result<Usage> {
        project::usage(of, project)
    }

    /// Whether `path` is a block device.
    fn is_device(&self, path: &Path) -> io::Result<bool> {
        Ok(fs::metadata(path)?.file_type().is_block_device())
    }

    /// Whether a device is mounted anywhere.
    fn is_mounted(&self, device: &Path) -> io::Result<bool> {
        let wanted = fs::metadata(device)?.rdev();
        let (major, minor) = (rustix::fs::major(wanted), rustix::fs::minor(wanted));
        let wanted = format!("{major}:{minor}");
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        // The third field (proc_pid_mountinfo(5)).
        Ok(mounts.lines().any(|line| line.split(' ').nth(2) == Some(wanted.as_str())))
    }

    /// As [`is_mount_point`].
    fn is_mount_point(&self, path: &Path) -> io::Result<bool> {
        is_mount_point(path)
    }

    /// As [`unmount`].
    fn unmount(&self, path: &Path) -> io::Result<()> {
        unmount(path)
    }

    /// Runs one of the programs that look at a device, format, check or mount it.
    fn run(&self, program: &str, arguments: &[&str]) -> io::Result<Output> {
        Command::new(program).args(arguments).output()
    }

    /// Called where one effect is done and the next not begun. An error breaks the work off there, as the end of the process would.
    fn between(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The machine that this program runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine;

impl Disks for Machine {}
