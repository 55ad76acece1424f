//! The way down to an entry: one open directory of the new layer for each component, with those that it will cover.
//!
//! Every step opens a single name without following it (`O_NOFOLLOW`), relative to a directory that is open already.
//! Symbolic links are expanded here, inside the layer's root. So no name and no link of an archive leads out of the
//! layer, whatever else changes the directory meanwhile.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

/// What hides everything that lower layers have in the directory (kernel: filesystems/overlayfs.rst).
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";
/// As many symbolic links as the kernel follows in one path (path_resolution(7)).
pub(super) const SYMLINKS_MAX: usize = 40;
/// Of directories that the archive implies and no layer holds.
const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);

/// A directory of the new layer, and the directories of lower layers that show through it, topmost first.
#[derive(Debug)]
pub(super) struct Level {
    pub(super) dir: OwnedFd,
    pub(super) lowers: Vec<OwnedFd>,
}

/// Why the way down ended.
#[derive(Debug)]
pub(super) enum WalkError {
    Io(io::Error),
    NotADirectory(Vec<u8>),
    TooManySymlinks,
    TooDeep,
}

impl From<Errno> for WalkError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl From<io::Error> for WalkError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What a name in a directory stands for, as a container would see it.
enum Found {
    Directory,
    /// A directory that lower layers have and this one does not yet.
    LowerDirectory,
    Symlink(Vec<u8>),
    Other,
    Nothing,
}

/// The stack of open directories from the root.
#[derive(Debug)]
pub(super) struct Levels {
    /// Never empty: the first is the root.
    stack: Vec<Level>,
    /// The names between them.
    names: Vec<Vec<u8>>,
    /// The path, as the archive spelled it, that led here last.
    spelled: Option<Vec<Vec<u8>>>,
    depth_max: usize,
    /// Directories made on the way.
    pub(super) implied: u64,
}

impl Levels {
    pub(super) fn new(root: OwnedFd, lowers: Vec<OwnedFd>, depth_max: usize) -> Self {
        let root = Level { dir: root, lowers };
        Self { stack: vec![root], names: Vec::new(), spelled: None, depth_max, implied: 0 }
    }

    /// The directory that `components` lead to, made with all above it where it is missing.
    pub(super) fn descend(&mut self, components: &[&[u8]]) -> Result<&Level, WalkError> {
        if self.spelled.as_ref().is_none_or(|spelled| spelled != components) {
            self.spelled = None;
            self.walk(components)?;
            self.spelled = Some(components.iter().map(|component| component.to_vec()).collect());
        }
        Ok(self.top())
    }

    /// Has to be called when something was removed: what is open may be gone.
    pub(super) fn forget(&mut self) {
        self.stack.truncate(1);
        self.names.clear();
        self.spelled = None;
    }

    /// The names from the root to where [`Levels::descend`] led, without symbolic links.
    pub(super) fn names(&self) -> &[Vec<u8>] {
        &self.names
    }

    fn top(&self) -> &Level {
        self.stack.last().unwrap_or_else(|| unreachable!("the root is never popped"))
    }

    fn walk(&mut self, components: &[&[u8]]) -> Result<(), WalkError> {
        self.keep_common(components);
        let mut pending: VecDeque<Vec<u8>> =
            components[self.names.len()..].iter().map(|component| component.to_vec()).collect();
        let mut symlinks = 0;
        while let Some(name) = pending.pop_front() {
            if name == b".." {
                self.pop();
                continue;
            }
            match look_up(self.top(), &name)? {
                Found::Directory => self.push(name, false)?,
                Found::LowerDirectory | Found::Nothing => self.push(name, true)?,
                Found::Other => return Err(WalkError::NotADirectory(name)),
                Found::Symlink(target) => {
                    symlinks += 1;
                    if symlinks > SYMLINKS_MAX {
                        return Err(WalkError::TooManySymlinks);
                    }
                    if target.starts_with(b"/") {
                        while self.pop() {}
                    }
                    for part in components_of(&target).rev() {
                        pending.push_front(part.to_vec());
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes back only as far as the new path differs. What is on the stack was reached without links or is as good as.
    fn keep_common(&mut self, components: &[&[u8]]) {
        let common = self.names.iter().zip(components).take_while(|(name, component)| name == *component).count();
        while self.names.len() > common {
            self.pop();
        }
    }

    fn pop(&mut self) -> bool {
        if self.names.pop().is_none() {
            return false;
        }
        self.stack.pop();
        true
    }

    fn push(&mut self, name: Vec<u8>, make: bool) -> Result<(), WalkError> {
        if self.names.len() >= self.depth_max {
            return Err(WalkError::TooDeep);
        }
        let parent = self.top();
        let mut lowers = lower_directories(parent, &name)?;
        if make {
            imply(parent, &name, lowers.first())?;
        }
        let dir = open_dir(&parent.dir, &name)?;
        if is_opaque(&dir)? {
            lowers.clear();
        }
        self.implied += u64::from(make);
        self.stack.push(Level { dir, lowers });
        self.names.push(name);
        Ok(())
    }
}

/// The parts of a path that name something: without empty ones and `.`.
pub(super) fn components_of(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

pub(super) fn stat(dir: impl AsFd, name: &[u8]) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

pub(super) fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(super) fn is_whiteout(stat: &Stat) -> bool {
    kind_of(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn open_dir(parent: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

fn is_opaque(dir: impl AsFd) -> io::Result<bool> {
    let mut value = [0; 1];
    match rustix::fs::fgetxattr(dir, OPAQUE, &mut value) {
        Ok(len) => Ok(len == 1 && value == *b"y"),
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn look_up(level: &Level, name: &[u8]) -> Result<Found, WalkError> {
    if let Some(stat) = stat(&level.dir, name)? {
        if is_whiteout(&stat) {
            return Ok(Found::Nothing);
        }
        return found(&level.dir, name, &stat, Found::Directory);
    }
    match lower(level, name)? {
        Some((index, stat)) => found(&level.lowers[index], name, &stat, Found::LowerDirectory),
        None => Ok(Found::Nothing),
    }
}

fn found(dir: &OwnedFd, name: &[u8], stat: &Stat, directory: Found) -> Result<Found, WalkError> {
    Ok(match kind_of(stat) {
        FileType::Directory => directory,
        FileType::Symlink => Found::Symlink(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes()),
        _ => Found::Other,
    })
}

/// Which lower directory has the name, topmost first, unless it was removed above.
pub(super) fn lower(level: &Level, name: &[u8]) -> io::Result<Option<(usize, Stat)>> {
    for (index, dir) in level.lowers.iter().enumerate() {
        if let Some(stat) = stat(dir, name)? {
            return Ok((!is_whiteout(&stat)).then_some((index, stat)));
        }
    }
    Ok(None)
}

/// The lower directories that show through a directory of that name.
fn lower_directories(level: &Level, name: &[u8]) -> io::Result<Vec<OwnedFd>> {
    // A name that this layer removed, and may make again, hides all below.
    if stat(&level.dir, name)?.is_some_and(|stat| is_whiteout(&stat)) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for dir in &level.lowers {
        let Some(stat) = stat(dir, name)? else { continue };
        if kind_of(&stat) != FileType::Directory {
            break;
        }
        let opened = open_dir(dir, name)?;
        let hides_the_rest = is_opaque(&opened)?;
        found.push(opened);
        if hides_the_rest {
            break;
        }
    }
    Ok(found)
}

/// Makes a directory that the archive takes for granted: as the layer below has it, or a plain one.
fn imply(parent: &Level, name: &[u8], model: Option<&OwnedFd>) -> io::Result<()> {
    let removed = stat(&parent.dir, name)?.is_some();
    if removed {
        rustix::fs::unlinkat(&parent.dir, name, AtFlags::empty())?;
    }
    rustix::fs::mkdirat(&parent.dir, name, IMPLIED_MODE)?;
    let dir = open_dir(&parent.dir, name)?;
    if removed {
        rustix::fs::fsetxattr(&dir, OPAQUE, b"y", rustix::fs::XattrFlags::empty())?;
    }
    match model {
        Some(model) => copy_attributes(model, &dir),
        None => Ok(rustix::fs::fchmod(&dir, IMPLIED_MODE)?),
    }
}

/// Owner, mode, extended attributes (overlayfs' own left out) and time.
pub(super) fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    /// What the kernel gives at most (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
    const XATTR_LEN_MAX: usize = 64 << 10;
    let stat = rustix::fs::fstat(from)?;
    rustix::fs::fchown(to, Some(rustix::fs::Uid::from_raw(stat.st_uid)), Some(rustix::fs::Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    let mut names = vec![0; XATTR_LEN_MAX];
    let len = rustix::fs::flistxattr(from, &mut names[..])?;
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let mut value = vec![0; XATTR_LEN_MAX];
        let len = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        rustix::fs::fsetxattr(to, name, &value[..len], rustix::fs::XattrFlags::empty())?;
    }
    let modified = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.try_into().unwrap_or_default() };
    Ok(rustix::fs::futimens(to, &Timestamps { last_access: modified, last_modification: modified })?)
}
