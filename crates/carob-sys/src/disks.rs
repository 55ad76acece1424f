//! What volumes have of a machine beside files: devices that show files, and limits of directory trees.
//!
//! Behind a trait, so that tests can break work off between any two effects and count what is left without changing the machine.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::project::Usage;
use crate::{loop_device, project};

/// The loop devices and the project quotas of a machine: those of this one, unless something stands in for it. All calls may block.
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

    /// Called where one effect is done and the next not begun. An error breaks the work off there, as the end of the process would.
    fn between(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The machine that this program runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine;

impl Disks for Machine {}
