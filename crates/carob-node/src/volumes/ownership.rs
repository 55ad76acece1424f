//! `fsGroup`: the files of a volume belong to a group of the Pod, and new ones do too (kubelet `pkg/volume/volume_linux.go`).
//!
//! What is in a volume may change meanwhile, by Pods that use it too: every entry is opened without following links, and changed
//! by its descriptor. Mounts inside the volume are left alone.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Directories that are open at a time, and so how deep a volume may be. What is deeper is refused: it would keep its old group.
const DEPTH_MAX: usize = 256;

const READ_WRITE: u32 = 0o660;
const READ_ONLY: u32 = 0o440;
const ENTER: u32 = 0o110;
const SET_GID: u32 = 0o2000;

const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Who is to own a volume's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) gid: u32,
    pub(crate) read_only: bool,
    /// Leaves a volume as it is whose root is right already (`fsGroupChangePolicy: OnRootMismatch`).
    pub(crate) on_root_mismatch: bool,
}

/// Gives the volume at `path` to the group, its root as the last: where this breaks off, it is done again.
pub(crate) fn set(path: &Path, group: Group) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("give {} to the group {}: {error}", path.display(), group.gid))
    };
    let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| named(error.into()))?;
    if group.on_root_mismatch && is_right(root.as_fd(), group).map_err(named)? {
        return Ok(());
    }
    walk(root.as_fd(), group, 0).map_err(named)?;
    change(root.as_fd(), group).map_err(named)
}

fn is_right(root: BorrowedFd<'_>, group: Group) -> io::Result<bool> {
    let stat = rustix::fs::fstat(root)?;
    let wanted = mask(true, group.read_only);
    Ok(stat.st_gid == group.gid && stat.st_mode & wanted == wanted)
}

fn mask(is_dir: bool, read_only: bool) -> u32 {
    let access = if read_only { READ_ONLY } else { READ_WRITE };
    if is_dir { access | ENTER | SET_GID } else { access }
}

/// Changes what is in a directory, not itself.
fn walk(dir: BorrowedFd<'_>, group: Group, depth: usize) -> io::Result<()> {
    if depth == DEPTH_MAX {
        return Err(io::Error::other(format!("directories deeper than {DEPTH_MAX}")));
    }
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let opened = rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let opened: OwnedFd = match opened {
            Ok(opened) => opened,
            // Gone meanwhile.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        if FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode).is_dir() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = match rustix::fs::openat2(dir, name, flags, Mode::empty(), INSIDE) {
                Ok(inner) => inner,
                // A mount, or another entry by now, whose turn may come.
                Err(Errno::XDEV | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(error.into()),
            };
            walk(inner.as_fd(), group, depth + 1)?;
            change(inner.as_fd(), group)?;
        } else {
            change(opened.as_fd(), group)?;
        }
    }
    Ok(())
}

fn change(entry: BorrowedFd<'_>, group: Group) -> io::Result<()> {
    let stat = rustix::fs::fstat(entry)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if stat.st_gid != group.gid {
        rustix::fs::chownat(entry, c"", None, Some(Gid::from_raw(group.gid)), AtFlags::EMPTY_PATH)?;
    }
    if kind.is_symlink() {
        return Ok(());
    }
    let wanted = (stat.st_mode & 0o7777) | mask(kind.is_dir(), group.read_only);
    // A change of owner clears bits, so the mode is looked at after it.
    if rustix::fs::fstat(entry)?.st_mode & 0o7777 != wanted {
        rustix::fs::chmod(format!("/proc/self/fd/{}", entry.as_raw_fd()), Mode::from_raw_mode(wanted))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use fs_err as fs;

    use super::*;

    #[test]
    fn everything_in_the_volume_goes_to_the_group_and_nothing_outside() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("a/b")).expect("made");
        fs::write(volume.join("a/b/file"), "x").expect("written");
        fs::set_permissions(volume.join("a/b/file"), std::fs::Permissions::from_mode(0o600)).expect("set");
        fs::write(dir.path().join("outside"), "x").expect("written");
        symlink("../outside", volume.join("link")).expect("linked");
        let before = fs::metadata(dir.path().join("outside")).expect("there");
        let group = Group { gid: 4242, read_only: false, on_root_mismatch: true };
        set(&volume, group).expect("set");
        let shown = |path: &str| {
            let meta = fs::symlink_metadata(volume.join(path)).expect("there");
            (meta.gid(), meta.mode() & 0o7777)
        };
        assert_eq!(shown("a/b/file"), (4242, 0o660));
        assert_eq!((shown("a").0, shown("a").1 & 0o2770), (4242, 0o2770));
        assert_eq!((shown("").0, shown("").1 & 0o2770), (4242, 0o2770));
        assert_eq!(shown("link").0, 4242, "the link itself");
        let after = fs::metadata(dir.path().join("outside")).expect("there");
        assert_eq!((after.gid(), after.mode()), (before.gid(), before.mode()));
        fs::write(volume.join("a/new"), "x").expect("written");
        std::os::unix::fs::chown(volume.join("a/new"), None, Some(7)).expect("set");
        set(&volume, group).expect("the root is right");
        assert_eq!(shown("a/new").0, 7, "so what is in it is left alone");
        set(&volume, Group { on_root_mismatch: false, ..group }).expect("set");
        assert_eq!(shown("a/new").0, 4242);
    }
}
