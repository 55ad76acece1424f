//! What of the cgroup filesystems a container's maker sees.
//!
//! The container library moves its process into the groups again that it was born in or has entered, which costs a grace
//! period of the kernel (7.7 ms on an idle 6.18), and reads the mount table a dozen times to find them. It leaves that
//! out where it finds no tree; so its mount namespace keeps the container's own groups, for the container to mount, and
//! nothing above them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use carob_sys::cgroup::Cgroup;
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, move_mount,
    open_tree, unmount,
};

use crate::error::{Error, Result};

/// Where the library looks for groups.
const TREES: &str = "/sys/fs/cgroup";
/// The mount that [`TREES`] is on.
const PARENT: &str = "/sys";

/// In the calling process's own mount namespace, leaves of all groups the given one, under the path that it has.
pub(crate) fn show_only(group: &Cgroup) -> Result<()> {
    let failed = |source| Error::Mount { what: "the container's own groups", target: TREES.into(), source };
    let copies: io::Result<Vec<(PathBuf, OwnedFd)>> = group
        .directories()
        .into_iter()
        .filter(|directory| directory.starts_with(TREES))
        .map(|directory| {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let copy = open_tree(CWD, &directory, flags)?;
            Ok((directory, copy))
        })
        .collect();
    let copies = copies.map_err(failed)?;
    match replace_trees() {
        Ok(()) => {}
        // No mounts of their own, as in some containers: all stay in sight, and the library takes longer.
        Err(rustix::io::Errno::INVAL) => return Ok(()),
        Err(error) => return Err(failed(error.into())),
    }
    copies.iter().try_for_each(|(directory, copy)| put_back(directory, copy)).map_err(failed)
}

/// What is unmounted here must not be unmounted for the host: that follows from the mount below it.
fn replace_trees() -> rustix::io::Result<()> {
    mount_change(PARENT, MountPropagationFlags::DOWNSTREAM)?;
    unmount(TREES, UnmountFlags::DETACH)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", TREES, "tmpfs", flags, c"mode=0755")
}

fn put_back(directory: &Path, copy: &OwnedFd) -> io::Result<()> {
    fs_err::create_dir_all(directory)?;
    Ok(move_mount(copy.as_fd(), "", CWD, directory, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}
