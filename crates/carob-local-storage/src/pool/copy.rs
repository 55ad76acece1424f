//! Copies what is on a volume: blocks are shared where the file system can (xfs, btrfs: `FICLONE`), and copied where not.
//!
//! Containers may write to the source meanwhile, and may be hostile: no link is followed, no mount is entered, nothing is opened
//! but directories and files, and what vanishes is left out. Each file is as it was at some moment, and where blocks are shared, at
//! one moment.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

/// Directories that are in each other. Each is open twice while what is in it is copied.
const DEPTH_MAX: usize = 128;
/// Files with several names that are remembered, so that the copy has one file for them. Those beyond are files of their own.
const LINKED_MAX: usize = 65_536;
/// Bytes between two looks at whether the copy is still wanted.
const CHUNK_BYTES: u64 = 16 << 20;
/// `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` (`linux/limits.h`).
const XATTR_BYTES_MAX: usize = 64 << 10;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::NO_MAGICLINKS);

/// A copy in progress.
pub(super) struct Copy<'a> {
    /// Asked now and then: `false` ends the copy.
    wanted: &'a dyn Fn() -> bool,
    /// Where files with several names are in the copy, by device and inode of the source.
    linked: HashMap<(u64, u64), PathBuf>,
    /// The root of the copy.
    root: Option<OwnedFd>,
    /// Whether some bytes had to be copied.
    pub(super) has_copied: bool,
}

fn named(error: Errno, name: &Path) -> io::Error {
    let kind = io::Error::from(error).kind();
    io::Error::new(kind, format!("copy {}: {}", name.display(), io::Error::from(error)))
}

fn is_gone(error: Errno) -> bool {
    error == Errno::NOENT
}

impl<'a> Copy<'a> {
    pub(super) fn new(wanted: &'a dyn Fn() -> bool) -> Self {
        Self { wanted, linked: HashMap::new(), root: None, has_copied: false }
    }

    fn go_on(&self) -> io::Result<()> {
        if (self.wanted)() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::Interrupted, "it is no longer wanted")) }
    }

    /// Copies what is in the directory `from` into the empty directory `to`, which becomes like it.
    pub(super) fn directory(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let open = |path: &Path| rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(|error| named(error, path));
        let (source, target) = (open(from)?, open(to)?);
        self.root = Some(open(to)?);
        self.inside(source.as_fd(), target.as_fd(), Path::new(""), 0)?;
        let stat = rustix::fs::fstat(&source)?;
        dress(source.as_fd(), target.as_fd(), &stat)
    }

    fn inside(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: &Path, depth: usize) -> io::Result<()> {
        if depth == DEPTH_MAX {
            let error = format!("copy {}: more than {DEPTH_MAX} directories are in each other", at.display());
            return Err(io::Error::other(error));
        }
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.go_on()?;
            let place = at.join(OsStr::from_bytes(name.to_bytes()));
            self.entry(from, to, name, &place, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        place: &Path,
        depth: usize,
    ) -> io::Result<()> {
        let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // What something is mounted on belongs to others.
        let seen =
            match rustix::fs::openat2(from, name, look, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_XDEV) {
                Ok(seen) => seen,
                Err(error) if is_gone(error) || error == Errno::XDEV => return Ok(()),
                Err(error) => return Err(named(error, place)),
            };
        let stat = rustix::fs::fstat(&seen)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let source = match rustix::fs::openat2(&seen, c".", DIRECTORY, Mode::empty(), INSIDE) {
                    Ok(source) => source,
                    Err(error) if is_gone(error) => return Ok(()),
                    Err(error) => return Err(named(error, place)),
                };
                rustix::fs::mkdirat(to, name, Mode::RWXU).map_err(|error| named(error, place))?;
                let target = rustix::fs::openat(to, name, DIRECTORY, Mode::empty())?;
                self.inside(source.as_fd(), target.as_fd(), place, depth + 1)?;
                dress(source.as_fd(), target.as_fd(), &stat)
            }
            FileType::RegularFile => self.file_entry(&seen, to, name, place, &stat),
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(&seen, c"", Vec::new()).map_err(|error| named(error, place))?;
                rustix::fs::symlinkat(&link, to, name).map_err(|error| named(error, place))?;
                own(to, name, &stat)
            }
            kind => {
                // Pipes, sockets and device nodes are their names: what is behind them is not the volume's.
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev).map_err(|error| named(error, place))?;
                own(to, name, &stat)?;
                Ok(rustix::fs::chmodat(to, name, mode, AtFlags::empty())?)
            }
        }
    }

    fn file_entry(
        &mut self,
        seen: &OwnedFd,
        to: BorrowedFd<'_>,
        name: &CStr,
        place: &Path,
        stat: &Stat,
    ) -> io::Result<()> {
        let key = (stat.st_dev, stat.st_ino);
        if let (Some(first), Some(root)) = (self.linked.get(&key), &self.root) {
            return rustix::fs::linkat(root, first, to, name, AtFlags::empty()).map_err(|error| named(error, place));
        }
        // The same file that was looked at, whatever has its name by now.
        let source = format!("/proc/self/fd/{}", seen.as_raw_fd());
        let source = rustix::fs::open(source.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let source = source.map_err(|error| named(error, place))?;
        let fresh = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let target =
            rustix::fs::openat(to, name, fresh, Mode::RUSR | Mode::WUSR).map_err(|error| named(error, place))?;
        self.file(source.as_fd(), target.as_fd())
            .map_err(|error| io::Error::new(error.kind(), format!("copy {}: {error}", place.display())))?;
        dress(source.as_fd(), target.as_fd(), stat)?;
        if stat.st_nlink > 1 && self.linked.len() < LINKED_MAX {
            self.linked.insert(key, place.to_owned());
        }
        Ok(())
    }

    /// Copies the content of a file into an empty one.
    pub(super) fn file(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
        match rustix::fs::ioctl_ficlone(to, from) {
            Ok(()) => return Ok(()),
            // This file system shares no blocks, or not those of this file (ioctl_ficlone(2)).
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        self.has_copied = true;
        let len = u64::try_from(rustix::fs::fstat(from)?.st_size).unwrap_or(0);
        let mut at = 0;
        while at < len {
            let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(data) => data,
                // Only a hole is left.
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let hole = rustix::fs::seek(from, SeekFrom::Hole(data))?;
            at = self.range(from, to, data, hole.min(len))?;
        }
        Ok(rustix::fs::ftruncate(to, len)?)
    }

    /// Copies bytes of one place of a file to the same place of another one. Answers how far there were any.
    fn range(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> io::Result<u64> {
        let mut at = start;
        while at < end {
            self.go_on()?;
            let part = usize::try_from((end - at).min(CHUNK_BYTES)).unwrap_or(usize::MAX);
            let (mut read_at, mut write_at) = (at, at);
            let moved = rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), part)?;
            if moved == 0 {
                // It was cut meanwhile.
                return Ok(u64::MAX);
            }
            at = at.saturating_add(moved as u64);
        }
        Ok(at)
    }
}

/// Gives a link, pipe, socket or node the owner and times of another one.
fn own(dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(dir, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(rustix::fs::utimensat(dir, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times(stat: &Stat) -> Timestamps {
    let time =
        |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanoseconds).unwrap_or(0) };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Gives a file or directory the owner, mode, attributes and times of another one.
pub(super) fn dress(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to, Some(owner), Some(group))?;
    // After the owner, whose change clears mode bits and capabilities.
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    attributes(from, to)?;
    Ok(rustix::fs::futimens(to, &times(stat))?)
}

fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0; XATTR_BYTES_MAX];
    let length = match rustix::fs::flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        // The file system has none.
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = CString::new(name)?;
        let mut value = vec![0; XATTR_BYTES_MAX];
        match rustix::fs::fgetxattr(from, &name, &mut value[..]) {
            Ok(length) => rustix::fs::fsetxattr(to, &name, &value[..length], XattrFlags::empty())?,
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
