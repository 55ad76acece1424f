//! The mount tree in which a container is made: what that takes of the host's, and nothing else.
//!
//! The container library reads the mount table a dozen times, and copies it for the container. The host's has mounts of
//! every Pod in it, so that a container would take the longer to make the more there are (a quarter of all the time, with
//! thirty Pods).
//!
//! The library also moves its process into the groups again that it was born in or has entered, which costs a grace period
//! of the kernel (7.7 ms on an idle 6.18). It leaves that out where it finds no tree of groups; so of those, this tree has
//! the container's own, for the container to mount, and nothing above them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, move_mount,
    open_tree, unmount,
};

use crate::error::{Error, Result};

/// What the kernel shows of itself: every container's maker needs it.
const KERNEL: [&str; 3] = ["/dev", "/proc", "/sys"];
/// Where the library looks for groups.
const GROUPS: &str = "/sys/fs/cgroup";

/// A mount with all below it, as it is in the host's tree, and of the same peers: what is mounted there later arrives in
/// the copy too, where a volume wants that.
struct HostMount {
    path: PathBuf,
    mount: OwnedFd,
}

impl HostMount {
    fn of(path: &Path) -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let mount = open_tree(CWD, path, flags).map_err(failed("a copy of the host's", path))?;
        Ok(Self { path: path.to_owned(), mount })
    }

    /// Attaches it at its path below the working directory.
    fn place(&self) -> Result<()> {
        let target = below_here(&self.path);
        let place = || -> io::Result<()> {
            if !target.exists() {
                let kind = FileType::from_raw_mode(rustix::fs::fstat(&self.mount)?.st_mode);
                make_mount_point(target, kind == FileType::Directory)?;
            }
            Ok(move_mount(self.mount.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
        };
        place().map_err(|source| Error::Mount { what: "a copy of the host's", target: self.path.clone(), source })
    }
}

/// Makes these paths, what the kernel shows and a directory at `place` the whole tree of the calling process, which is in
/// a mount namespace of its own.
pub(crate) fn enter(place: &Path, needed: &[&Path]) -> Result<()> {
    let kernel = KERNEL.iter().map(|path| HostMount::of(Path::new(path))).collect::<Result<Vec<HostMount>>>()?;
    let needed = outermost(needed).into_iter().map(HostMount::of).collect::<Result<Vec<HostMount>>>()?;
    begin(place).map_err(failed("a tree of its own", place))?;
    for copy in &kernel {
        copy.place()?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change(below_here(&copy.path), private).map_err(failed("a copy of the host's", &copy.path))?;
    }
    hide_groups().map_err(failed("the container's own groups", Path::new(GROUPS)))?;
    needed.iter().try_for_each(HostMount::place)?;
    make_mount_point(below_here(place), true).map_err(|source| Error::Mount {
        what: "a tree of its own",
        target: place.to_owned(),
        source,
    })?;
    become_root().map_err(failed("a tree of its own", place))
}

fn failed(what: &'static str, target: &Path) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |error| Error::Mount { what, target: target.to_owned(), source: error.into() }
}

/// An empty tree, in the place of one that keeps no peers: nothing that is done here comes back to the host.
fn begin(place: &Path) -> rustix::io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", place, "tmpfs", flags, c"mode=0755")?;
    rustix::process::chdir(place)
}

fn hide_groups() -> rustix::io::Result<()> {
    let groups = below_here(Path::new(GROUPS));
    match unmount(groups, UnmountFlags::DETACH) {
        // No mount of its own, as in some containers.
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(error),
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", groups, "tmpfs", flags, c"mode=0755")
}

fn become_root() -> rustix::io::Result<()> {
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

fn below_here(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn make_mount_point(target: &Path, directory: bool) -> io::Result<()> {
    if directory {
        return fs_err::create_dir_all(target);
    }
    fs_err::create_dir_all(target.parent().unwrap_or(target))?;
    fs_err::write(target, "")
}

/// The paths that are below none of the others, each once.
fn outermost<'a>(paths: &[&'a Path]) -> Vec<&'a Path> {
    let mut sorted = paths.to_vec();
    sorted.sort_unstable();
    let mut kept: Vec<&Path> = Vec::with_capacity(sorted.len());
    for path in sorted {
        // In this order all that is below a path follows it at once.
        if !kept.last().is_some_and(|last| path.starts_with(last)) {
            kept.push(path);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_copy_brings_along_is_not_copied_again() {
        let paths = ["/data/pods/1/b", "/run/s", "/run/s/shm", "/run/sets", "/data/pods/1/b", "/run/s/a/b", "/run/s-2"];
        let paths = paths.map(Path::new);
        let expected = ["/data/pods/1/b", "/run/s", "/run/s-2", "/run/sets"].map(Path::new);
        assert_eq!(outermost(&paths), expected);
    }
}
