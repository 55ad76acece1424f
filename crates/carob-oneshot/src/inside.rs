//! Paths inside a root that may hold anything: links of it lead nowhere else, and what is missing is made.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

/// As many symbolic links as the kernel follows in one path (path_resolution(7)).
const SYMLINKS_MAX: usize = 40;
/// What runc gives a working directory that it makes, and mount points.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// What is to be at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Directory,
    File,
}

/// Opens what `path` means inside `root`, for its path alone. Directories above it that are missing are made, and so is what is
/// wanted at its end, also where a link dangles.
pub(crate) fn make(root: &Path, path: &Path, wanted: Wanted) -> io::Result<OwnedFd> {
    let mut way = vec![open_directory(CWD, root.as_os_str())?];
    let mut pending: VecDeque<OsString> = names(path).collect();
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            // Above the root is the root.
            way.truncate(way.len().saturating_sub(1).max(1));
            continue;
        }
        let here = way.last().ok_or(Errno::NOENT)?;
        let is_last = pending.is_empty();
        let kind = match rustix::fs::statat(here, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Some(FileType::from_raw_mode(found.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        match kind {
            Some(FileType::Symlink) => {
                links += 1;
                if links > SYMLINKS_MAX {
                    return Err(Errno::LOOP.into());
                }
                let target = OsString::from_vec(rustix::fs::readlinkat(here, &name, Vec::new())?.into_bytes());
                let target = Path::new(&target);
                if target.is_absolute() {
                    way.truncate(1);
                }
                for name in names(target).collect::<Vec<_>>().into_iter().rev() {
                    pending.push_front(name);
                }
            }
            Some(FileType::Directory) => way.push(open_directory(here, &name)?),
            Some(_) if is_last => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                return Ok(rustix::fs::openat(here, &name, flags, Mode::empty())?);
            }
            Some(_) => return Err(Errno::NOTDIR.into()),
            None if is_last && wanted == Wanted::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                return Ok(rustix::fs::openat(here, &name, flags, FILE_MODE)?);
            }
            None => {
                rustix::fs::mkdirat(here, &name, DIRECTORY_MODE)?;
                // The umask took its part of the mode.
                rustix::fs::chmodat(here, &name, DIRECTORY_MODE, AtFlags::empty())?;
                way.push(open_directory(here, &name)?);
            }
        }
    }
    way.pop().ok_or_else(|| Errno::NOENT.into())
}

/// Whether a link is at the path; what is above it is followed inside the root.
pub(crate) fn is_link(root: &Path, path: &Path) -> io::Result<bool> {
    let root = open_directory(CWD, root.as_os_str())?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(&root, path, flags, Mode::empty(), rustix::fs::ResolveFlags::IN_ROOT) {
        Ok(found) => Ok(FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Symlink),
        // What is missing is made by the container library.
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn open_directory(parent: impl AsFd, name: &std::ffi::OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn what_is_missing_is_made_inside() {
        let outer = tempfile::tempdir().expect("a directory");
        let root = outer.path().join("root");
        fs_err::create_dir_all(root.join("etc")).expect("made");
        fs_err::write(root.join("file"), "x").expect("written");
        symlink("/run/systemd/resolve/stub", root.join("etc/resolv.conf")).expect("a link");
        symlink("../../../up", root.join("etc/climbs")).expect("a link");
        symlink("/loop", root.join("loop")).expect("a link");
        let made = |path: &str, wanted| make(&root, Path::new(path), wanted).map(drop).map_err(|error| error.kind());
        assert_eq!(made("/etc/resolv.conf", Wanted::File), Ok(()));
        assert!(root.join("run/systemd/resolve/stub").is_file());
        assert_eq!(made("/etc/climbs/deep", Wanted::Directory), Ok(()));
        assert!(root.join("up/deep").is_dir() && !outer.path().join("up").exists());
        assert_eq!(made("app/data/../x", Wanted::Directory), Ok(()));
        let mode = fs_err::metadata(root.join("app/x")).expect("made").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        assert_eq!(made("/file", Wanted::File), Ok(()));
        assert_eq!(fs_err::read_to_string(root.join("file")).expect("kept"), "x");
        assert_eq!(made("/file/below", Wanted::Directory), Err(io::ErrorKind::NotADirectory));
        assert!(made("/loop/x", Wanted::Directory).is_err());
        assert!(is_link(&root, Path::new("/etc/resolv.conf")).expect("looked at"));
        assert!(!is_link(&root, Path::new("/none/at/all")).expect("looked at"));
    }
}
