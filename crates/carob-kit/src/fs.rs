//! File operations as a trait, so that a test can make each one fail or cut the power after it.
//!
//! [`RealFs`] is the machine's file system. [`FaultFs`] is a model of one that loses, at a power loss, everything that
//! a real one may lose. Errors name the operation and the path.

mod fault;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err::os::unix::fs::{FileExt, OpenOptionsExt};
use rustix::fs::{FallocateFlags, IFlags, fallocate, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

pub use fault::{Fault, FaultFs};

/// Mode of new files: they may hold Secrets.
const FILE_MODE: u32 = 0o600;

/// Ends the names of files that a crash left half written.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    Write,
    /// A file that must not exist, to read and write, mode 0600.
    Create,
}

/// A file system. All calls may block.
pub trait Fs: Send + Sync + fmt::Debug {
    /// Makes a directory and those above it, as far as they do not exist, so that they survive a power loss.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// The names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn FsFile>>;

    /// Gives a file another name in one step, in place of the file that had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in `dir` survive a power loss (fsync(2) of the directory).
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the lock of a file, which is made if it does not exist, for as long as the returned value lives. Fails with
    /// [`io::ErrorKind::WouldBlock`] while another holds it (flock(2), so the end of a process ends its locks).
    fn lock(&self, path: &Path) -> io::Result<Box<dyn FsLock>>;
}

/// An open file. Positions are given with each call, so handles have no state and can be shared.
pub trait FsFile: Send + Sync + fmt::Debug {
    fn len(&self) -> io::Result<u64>;

    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads up to `into.len()` bytes, fewer only at the end of the file.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Extends the file to `len` bytes of zeros and reserves the room for them on the disk (fallocate(2)).
    fn preallocate(&self, len: u64) -> io::Result<()>;

    /// Makes everything written so far survive a power loss (fdatasync(2)).
    fn sync_data(&self) -> io::Result<()>;
}

/// A lock that is held.
pub trait FsLock: Send + Sync + fmt::Debug {}

/// Puts a file of `bytes` in place under `path` in one step: whenever the power fails, the file holds either what it
/// held before or all of `bytes`. `path` must have a parent directory and a file name.
pub fn write_atomic(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_beside(path)?;
    let dir = directory_of(&temporary);
    match fs.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = fs.open(&temporary, Access::Create)?;
    file.write_all_at(bytes, 0)?;
    file.sync_data()?;
    fs.rename(&temporary, path)?;
    fs.sync_dir(dir)
}

/// Puts a file of `bytes` in place under `path` in one step for whoever reads it: it holds either what it held before or
/// all of `bytes`, unless the power fails. For what a power failure makes void anyway.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_beside(path)?;
    let mut options = fs_err::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(FILE_MODE).open(&temporary)?;
    file.write_all(bytes)?;
    fs_err::rename(&temporary, path)
}

/// Makes the directory `path`, with those above it, and gives it `mode`, also where it was there with another one.
pub fn make_private(path: &Path, mode: u32) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), mode);
    let named = |error: io::Error| io::Error::new(error.kind(), format!("make directory {}: {error}", path.display()));
    builder.create(path).map_err(named)?;
    let shown = fs_err::metadata(path)?.permissions();
    if std::os::unix::fs::PermissionsExt::mode(&shown) & 0o7777 != mode {
        fs_err::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    }
    Ok(())
}

/// The directory that holds the name of `path`.
fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."))
}

/// Says that the directories in `dir` have nothing to do with each other, so that the file system may keep them apart.
///
/// ext4 looks for the inode of a new file where its directory is, and passes over those that were deleted within the last
/// minutes, one by one (`recently_deleted` in the kernel's `fs/ext4/ialloc.c`): half a millisecond a file after a hundred
/// Pods have come and gone. What is in directories that are apart (chattr(1), attribute `T`) does not add up. Elsewhere it
/// means nothing, and is left out.
pub fn keep_apart(dir: &Path) -> io::Result<()> {
    let file = fs_err::File::open(dir)?;
    let set = || ioctl_setflags(&file, ioctl_getflags(&file)? | IFlags::TOPDIR);
    match set() {
        Ok(()) | Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => Ok(()),
        Err(error) => {
            Err(io::Error::new(io::Error::from(error).kind(), format!("set attributes of {}: {error}", dir.display())))
        }
    }
}

/// Where a file is written before it gets its name.
fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} does not name a file", path.display())));
    };
    let mut temporary = name.to_owned();
    temporary.push(TEMPORARY_SUFFIX);
    Ok(path.with_file_name(temporary))
}

/// The machine's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFs;

impl Fs for RealFs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        for ancestor in dir.ancestors().filter(|ancestor| *ancestor != Path::new("")) {
            if ancestor.try_exists()? {
                break;
            }
            missing.push(ancestor);
        }
        fs_err::create_dir_all(dir)?;
        for made in missing {
            let parent = made.parent().filter(|parent| *parent != Path::new(""));
            self.sync_dir(parent.unwrap_or(Path::new(".")))?;
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let mut names = fs_err::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn FsFile>> {
        let mut options = fs_err::OpenOptions::new();
        options.read(true).write(access != Access::Read).create_new(access == Access::Create).mode(FILE_MODE);
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs_err::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs_err::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs_err::OpenOptions::new().read(true).open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FsLock>> {
        let file = fs_err::OpenOptions::new().read(true).write(true).create(true).mode(FILE_MODE).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(RealLock { _file: file })),
            Err(error) => {
                let error = io::Error::from(error);
                Err(io::Error::new(error.kind(), format!("lock {}: {error}", path.display())))
            }
        }
    }
}

#[derive(Debug)]
struct RealFile(fs_err::File);

impl RealFile {
    /// Extends the file to `len` bytes where the file system knows no fallocate(2), as some network ones do not.
    fn write_zeros(&self, len: u64) -> io::Result<()> {
        let zeros = vec![0; 64 << 10];
        let mut at = self.len()?;
        while at < len {
            let count = usize::try_from(len - at).map_or(zeros.len(), |rest| rest.min(zeros.len()));
            self.0.write_all_at(&zeros[..count], at)?;
            at += count as u64;
        }
        Ok(())
    }
}

impl FsFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            match self.0.read_at(&mut into[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        match fallocate(self.0.file(), FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => self.write_zeros(len),
            Err(errno) => {
                let error = io::Error::from(errno);
                let path = self.0.path().display();
                Err(io::Error::new(error.kind(), format!("preallocate {len} bytes of {path}: {error}")))
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// The lock goes with the descriptor.
#[derive(Debug)]
struct RealLock {
    _file: fs_err::File,
}

impl FsLock for RealLock {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_is_in_the_working_directory() {
        assert_eq!(directory_of(Path::new("config")), Path::new("."));
        assert_eq!(directory_of(Path::new("a/config")), Path::new("a"));
        assert_eq!(directory_of(Path::new("/config")), Path::new("/"));
    }

    /// What both file systems must do alike.
    fn file_operations(fs: &dyn Fs, root: &Path) {
        let dir = root.join("a/b");
        fs.create_dir_all(&dir).expect("make directories");
        let file = fs.open(&dir.join("one"), Access::Create).expect("create");
        file.preallocate(4096).expect("preallocate");
        file.write_all_at(b"hello", 4094).expect("write past the end");
        file.sync_data().expect("sync");
        assert_eq!(file.len().expect("length"), 4099);
        let mut buffer = [7; 8];
        assert_eq!(file.read_at(&mut buffer, 4093).expect("read"), 6);
        assert_eq!(buffer, *b"\0hello\x07\x07");

        let exists = fs.open(&dir.join("one"), Access::Create).expect_err("the file is there");
        assert_eq!(exists.kind(), io::ErrorKind::AlreadyExists);
        let missing = fs.open(&dir.join("two"), Access::Write).expect_err("the file is not there");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(missing.to_string().contains("two"), "{missing} names the file");

        fs.open(&dir.join("two"), Access::Create).expect("create");
        fs.rename(&dir.join("one"), &dir.join("two")).expect("rename over a file");
        fs.sync_dir(&dir).expect("sync the directory");
        assert_eq!(fs.list(&dir).expect("list"), ["two"]);
        assert_eq!(fs.open(&dir.join("two"), Access::Read).expect("open").len().expect("length"), 4099);
        fs.remove(&dir.join("two")).expect("remove");
        assert_eq!(fs.remove(&dir.join("two")).expect_err("it is gone").kind(), io::ErrorKind::NotFound);

        write_atomic(fs, &dir.join("version"), b"1").expect("write");
        write_atomic(fs, &dir.join("version"), b"22").expect("write again");
        assert_eq!(fs.list(&dir).expect("list"), ["version"]);
        assert_eq!(fs.open(&dir.join("version"), Access::Read).expect("open").len().expect("length"), 2);

        let lock = fs.lock(&dir.join("lock")).expect("lock");
        let held = fs.lock(&dir.join("lock")).expect_err("the lock is held");
        assert_eq!(held.kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        fs.lock(&dir.join("lock")).expect("the lock is free again");
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = root.path().join("record.json");
        replace(&path, b"longer than the next").expect("written");
        replace(&path, b"short").expect("written");
        assert_eq!(fs_err::read(&path).expect("readable"), b"short");
        assert_eq!(RealFs.list(root.path()).expect("readable"), ["record.json"], "nothing temporary is left");
        assert_eq!(replace(Path::new("/"), b"").expect_err("no name").kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn zeros_are_written_behind_what_is_there() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = root.path().join("f");
        let options = fs_err::OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = RealFile(options.expect("create"));
        file.write_all_at(b"data", 0).expect("write");
        file.write_zeros(100_000).expect("extend");
        file.write_zeros(10).expect("a longer file stays as it is");
        let mut bytes = vec![1; 100_001];
        assert_eq!(file.read_at(&mut bytes, 0).expect("read"), 100_000);
        assert_eq!(&bytes[..4], b"data");
        assert!(bytes[4..100_000].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_real_and_the_model_file_system_do_the_same() {
        let root = tempfile::tempdir().expect("a temporary directory");
        file_operations(&RealFs, root.path());
        file_operations(&FaultFs::new(), Path::new("root"));
    }
}
