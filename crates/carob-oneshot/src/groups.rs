//! The container's own control groups, where containers look for them.
//!
//! On v1 they are a mount a controller. The container library takes eighty calls for each, so that half of a container's
//! making went into them; and it must not see them before (see [`crate::tree`]). They are mounted when it is done, and
//! before the container is started.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, mount_remount, move_mount, open_tree,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::error::{Error, Result};

const PLACE: &str = "/sys/fs/cgroup";

/// Copies of the groups' mounts, by the names that they have in a container.
pub(crate) struct OwnGroups(Vec<(String, OwnedFd)>);

impl OwnGroups {
    /// Takes the copies, as long as the host's groups are in sight.
    pub(crate) fn of(groups: &[(String, PathBuf)]) -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let copy = |(name, path): &(String, PathBuf)| {
            open_tree(CWD, path, flags).map(|copy| (name.clone(), copy)).map_err(failed(path))
        };
        groups.iter().map(copy).collect::<Result<_>>().map(Self)
    }

    /// Mounts them, read-only, in the container whose first process this is. The calling process stays in its mount
    /// namespace, and gets the one that it was in: who leaves one as the last waits until every processor has seen it go, and
    /// that is better done when the container's maker has answered.
    pub(crate) fn show(&self, pid: i32) -> Result<Option<OwnedFd>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let entered = |error: rustix::io::Errno| Error::Enter { pid, source: error.into() };
        let own = rustix::fs::open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let left = own.map_err(entered)?;
        enter_mounts_of(pid).map_err(entered)?;
        self.mount().map_err(failed(Path::new(PLACE)))?;
        Ok(Some(left))
    }

    fn mount(&self) -> rustix::io::Result<()> {
        let place = rustix::fs::open(PLACE, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(tmpfs.as_fd(), "mode", "755")?;
        fsconfig_create(tmpfs.as_fd())?;
        let attributes =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let tmpfs = fsmount(tmpfs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        for (name, _) in &self.0 {
            rustix::fs::mkdirat(&tmpfs, name.as_str(), Mode::from_raw_mode(0o755))?;
        }
        let both_empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(tmpfs.as_fd(), "", place.as_fd(), "", both_empty)?;
        for (name, copy) in &self.0 {
            move_mount(copy.as_fd(), "", tmpfs.as_fd(), name.as_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        }
        mount_change(PLACE, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        self.0.iter().try_for_each(|(name, _)| make_read_only(&Path::new(PLACE).join(name)))?;
        make_read_only(Path::new(PLACE))
    }
}

fn enter_mounts_of(pid: i32) -> rustix::io::Result<()> {
    let target = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH)?;
    let target = pidfd_open(target, PidfdFlags::empty())?;
    move_into_thread_name_spaces(target.as_fd(), ThreadNameSpaceType::MOUNT)
}

fn make_read_only(mount: &Path) -> rustix::io::Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount(mount, flags, c"")
}

fn failed(target: &Path) -> impl FnOnce(rustix::io::Errno) -> Error {
    let target = target.to_owned();
    move |error| Error::Mount { what: "the container's own groups", target, source: error.into() }
}
