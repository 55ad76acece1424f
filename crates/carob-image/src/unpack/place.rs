//! Putting one entry after the other into the new layer.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, makedev};
use rustix::io::Errno;

use super::UnpackLimits;
use super::error::UnpackError;
use super::levels::{
    Level, Levels, OPAQUE, SYMLINKS_MAX, WalkError, components_of, copy_attributes, is_whiteout, kind_of, lower, stat,
};
use crate::tarball::{Entry, Kind, TarReader, quoted};

/// What begins the name of a whiteout (OCI image-spec, layer.md "Whiteouts").
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The whiteout of everything that lower layers have in its directory.
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// Other names of aufs' own bookkeeping, which mean nothing outside it.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// Bytes of content that are copied at a time.
const COPY_LEN: usize = 128 << 10;
/// What every entry takes on disk beside its content, for the limit: an inode and a name.
const ENTRY_LEN: u64 = 512;

/// The layer that is being built.
pub(super) struct Tree {
    levels: Levels,
    limits: UnpackLimits,
    bytes: u64,
    entries: u64,
    /// Set last, for entries placed in a directory change its time.
    directory_times: Vec<(Vec<u8>, (i64, u32))>,
    warned_of_attributes: bool,
    /// What content passes through.
    buffer: Vec<u8>,
}

impl Tree {
    pub(super) fn new(root: OwnedFd, lowers: Vec<OwnedFd>, limits: UnpackLimits) -> Self {
        let levels = Levels::new(root, lowers, limits.depth_max);
        Self {
            levels,
            limits,
            bytes: 0,
            entries: 0,
            directory_times: Vec::new(),
            warned_of_attributes: false,
            buffer: vec![0; COPY_LEN],
        }
    }

    /// Places the entry; its content is read from `reader`.
    pub(super) fn place(&mut self, entry: &Entry, reader: &mut TarReader<impl Read>) -> Result<(), UnpackError> {
        self.count(entry)?;
        check(entry, &self.limits)?;
        let components =
            cleaned(&entry.path).ok_or_else(|| UnpackError::ParentInPath { entry: quoted(&entry.path) })?;
        let Some((name, parents)) = components.split_last() else { return self.place_root(entry) };
        self.levels.descend(parents).map_err(|error| walk_error(entry, parents, &self.limits, error))?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            return self.hide(entry, parents, name, hidden);
        }
        let opaque = self.make_way(entry, parents, name)?;
        let level = self.descend_again(entry, parents)?;
        match &entry.kind {
            Kind::Directory => {
                let dir = make_directory(level, name).map_err(write(entry, "make directory"))?;
                if opaque {
                    set_opaque(&dir).map_err(write(entry, "mark as opaque"))?;
                }
                self.set_attributes(entry, &dir)?;
                let mut path = self.levels.names().join(&b'/');
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                self.directory_times.push((path, entry.mtime));
                Ok(())
            }
            Kind::File => {
                let file = make_file(level, name).map_err(write(entry, "create"))?;
                self.fill(entry, &file, reader)?;
                self.set_attributes(entry, &file)?;
                set_times(&file, entry.mtime).map_err(write(entry, "set the time of"))
            }
            Kind::HardLink(target) => self.link(entry, parents, name, target),
            Kind::Symlink(target) => {
                rustix::fs::symlinkat(target.as_slice(), &level.dir, *name)
                    .map_err(|errno| write(entry, "make symbolic link")(errno.into()))?;
                self.set_attributes_at(entry, parents, name)
            }
            Kind::CharDevice { major, minor } => {
                self.make_node(entry, parents, name, FileType::CharacterDevice, makedev(*major, *minor))
            }
            Kind::BlockDevice { major, minor } => {
                self.make_node(entry, parents, name, FileType::BlockDevice, makedev(*major, *minor))
            }
            Kind::Fifo => self.make_node(entry, parents, name, FileType::Fifo, 0),
        }
    }

    fn fill(&mut self, entry: &Entry, file: &OwnedFd, reader: &mut TarReader<impl Read>) -> Result<(), UnpackError> {
        let Some(sparse) = &entry.sparse else { return self.fill_part(entry, file, reader, 0, entry.size) };
        if sparse.real_size > self.limits.bytes_max {
            return Err(UnpackError::TooManyBytes { entry: quoted(&entry.path), max: self.limits.bytes_max });
        }
        for part in &sparse.parts {
            self.fill_part(entry, file, reader, part.offset, part.len)?;
        }
        rustix::fs::ftruncate(file, sparse.real_size).map_err(|errno| write(entry, "set the size of")(errno.into()))
    }

    /// Writes the next `len` bytes of the entry's content at `offset`.
    fn fill_part(
        &mut self,
        entry: &Entry,
        file: &OwnedFd,
        reader: &mut TarReader<impl Read>,
        mut offset: u64,
        mut len: u64,
    ) -> Result<(), UnpackError> {
        while len > 0 {
            let wanted = usize::try_from(len).unwrap_or(usize::MAX).min(self.buffer.len());
            let read = reader.read_content(&mut self.buffer[..wanted])?;
            let mut rest = &self.buffer[..read];
            len -= read as u64;
            while !rest.is_empty() {
                let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, rest, offset));
                let written = written.map_err(|errno| write(entry, "write")(errno.into()))?;
                offset += written as u64;
                rest = &rest[written..];
            }
        }
        Ok(())
    }

    /// Sets the directories' times. Returns bytes and inodes of the layer.
    pub(super) fn finish(mut self) -> Result<(u64, u64), UnpackError> {
        self.levels.forget();
        let Ok(root) = self.levels.descend(&[]) else { return Ok((self.bytes, self.entries)) };
        for (path, mtime) in std::mem::take(&mut self.directory_times) {
            let set = || -> io::Result<()> {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                match rustix::fs::openat2(&root.dir, path.as_slice(), flags, Mode::empty(), resolve) {
                    Ok(dir) => set_times(&dir, mtime),
                    // A later entry replaced the directory.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
                    Err(errno) => Err(errno.into()),
                }
            };
            let failed = |source| UnpackError::Write { operation: "set the time of", entry: quoted(&path), source };
            set().map_err(failed)?;
        }
        Ok((self.bytes, self.entries + self.levels.implied))
    }

    fn count(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(UnpackError::TooManyEntries { entry: quoted(&entry.path), max: self.limits.entries_max });
        }
        self.bytes = self.bytes.saturating_add(entry.size).saturating_add(ENTRY_LEN);
        if self.bytes > self.limits.bytes_max {
            return Err(UnpackError::TooManyBytes { entry: quoted(&entry.path), max: self.limits.bytes_max });
        }
        Ok(())
    }

    fn descend_again(&mut self, entry: &Entry, parents: &[&[u8]]) -> Result<&Level, UnpackError> {
        let limits = self.limits.clone();
        self.levels.descend(parents).map_err(|error| walk_error(entry, parents, &limits, error))
    }

    /// `./` itself: only its attributes are taken.
    fn place_root(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        match entry.kind {
            Kind::Directory if entry.path.is_empty() => Err(UnpackError::EmptyPath { entry: String::new() }),
            Kind::Directory => {
                self.levels.forget();
                let root = self.descend_again(entry, &[])?.dir.try_clone().map_err(write(entry, "open"))?;
                self.set_attributes(entry, &root)?;
                self.directory_times.push((b".".to_vec(), entry.mtime));
                Ok(())
            }
            _ if entry.path.is_empty() => Err(UnpackError::EmptyPath { entry: String::new() }),
            _ => Err(UnpackError::ReplacesRoot { entry: quoted(&entry.path) }),
        }
    }

    /// A whiteout hides what lower layers have. It says nothing about what this layer itself holds under the name.
    fn hide(&mut self, entry: &Entry, parents: &[&[u8]], name: &[u8], hidden: &[u8]) -> Result<(), UnpackError> {
        let level = self.descend_again(entry, parents)?;
        if name == OPAQUE_WHITEOUT {
            set_opaque(&level.dir).map_err(write(entry, "apply opaque whiteout"))?;
            self.levels.forget();
            return Ok(());
        }
        if name.starts_with(AUFS_PREFIX) {
            return Ok(());
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(UnpackError::EmptyWhiteout { entry: quoted(&entry.path) });
        }
        let apply = || -> io::Result<()> {
            match stat(&level.dir, hidden)? {
                Some(stat) if kind_of(&stat) == FileType::Directory => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    set_opaque(&rustix::fs::openat(&level.dir, hidden, flags, Mode::empty())?)
                }
                Some(_) => Ok(()),
                None => {
                    let mode = Mode::empty();
                    Ok(rustix::fs::mknodat(&level.dir, hidden, FileType::CharacterDevice, mode, 0)?)
                }
            }
        };
        apply().map_err(write(entry, "apply whiteout"))?;
        self.levels.forget();
        Ok(())
    }

    /// Removes what this layer holds under the name, unless both are directories. Returns whether the new entry, if it
    /// is a directory, has to hide lower ones, because what it replaces hid them.
    fn make_way(&mut self, entry: &Entry, parents: &[&[u8]], name: &[u8]) -> Result<bool, UnpackError> {
        let level = self.descend_again(entry, parents)?;
        let Some(there) = stat(&level.dir, name).map_err(write(entry, "look up"))? else { return Ok(false) };
        let was_directory = kind_of(&there) == FileType::Directory;
        if was_directory && entry.kind == Kind::Directory {
            return Ok(false);
        }
        let remove = if was_directory { remove_tree(&level.dir, name) } else { unlink(&level.dir, name) };
        remove.map_err(write(entry, "replace"))?;
        self.levels.forget();
        Ok(true)
    }

    fn link(&mut self, entry: &Entry, parents: &[&[u8]], name: &[u8], target: &[u8]) -> Result<(), UnpackError> {
        let source = link_source(entry, target)?;
        let dangling = || UnpackError::DanglingLink { entry: quoted(&entry.path), target: quoted(target) };
        let Some((source_name, source_parents)) = source.split_last() else { return Err(dangling()) };
        let from = self.descend_again(entry, source_parents)?;
        let found = stat(&from.dir, source_name).map_err(write(entry, "look up the target of"))?;
        match found {
            Some(stat) if is_whiteout(&stat) => return Err(dangling()),
            Some(_) => {}
            // The file is in a layer below: this layer gets a copy, as overlayfs would make one.
            None => {
                let copied = copy_up(from, source_name).map_err(write(entry, "copy the target of"))?;
                self.bytes = self.bytes.saturating_add(copied.ok_or_else(dangling)?);
                self.entries += 1;
            }
        }
        let from = self.descend_again(entry, source_parents)?.dir.try_clone().map_err(write(entry, "open"))?;
        let to = self.descend_again(entry, parents)?;
        rustix::fs::linkat(&from, *source_name, &to.dir, name, AtFlags::empty())
            .map_err(|errno| write(entry, "make hard link")(errno.into()))
    }

    fn make_node(
        &mut self,
        entry: &Entry,
        parents: &[&[u8]],
        name: &[u8],
        kind: FileType,
        device: u64,
    ) -> Result<(), UnpackError> {
        let level = self.descend_again(entry, parents)?;
        let mode = Mode::from_raw_mode(entry.mode & 0o7777);
        let make = || -> io::Result<()> {
            rustix::fs::mknodat(&level.dir, name, kind, mode, device)?;
            // The process's umask took its part of the mode.
            Ok(rustix::fs::chmodat(&level.dir, name, mode, AtFlags::empty())?)
        };
        make().map_err(write(entry, "make"))?;
        self.set_attributes_at(entry, parents, name)?;
        let level = self.descend_again(entry, parents)?;
        rustix::fs::chmodat(&level.dir, name, mode, AtFlags::empty())
            .map_err(|errno| write(entry, "set the mode of")(errno.into()))
    }

    /// Owner, then attributes and mode: changing the owner clears capabilities and setuid bits (chown(2)).
    fn set_attributes(&mut self, entry: &Entry, file: &OwnedFd) -> Result<(), UnpackError> {
        let (uid, gid) = owner(entry)?;
        rustix::fs::fchown(file, Some(uid), Some(gid))
            .map_err(|errno| write(entry, "set the owner of")(errno.into()))?;
        for (name, value) in &entry.xattrs {
            let set = |name: &[u8]| rustix::fs::fsetxattr(file, name, value, XattrFlags::empty());
            self.set_attribute(entry, name, set)?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode & 0o7777))
            .map_err(|errno| write(entry, "set the mode of")(errno.into()))
    }

    /// The same for what must not be opened: links, devices, pipes.
    fn set_attributes_at(&mut self, entry: &Entry, parents: &[&[u8]], name: &[u8]) -> Result<(), UnpackError> {
        let (uid, gid) = owner(entry)?;
        let dir = self.descend_again(entry, parents)?.dir.try_clone().map_err(write(entry, "open"))?;
        rustix::fs::chownat(&dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| write(entry, "set the owner of")(errno.into()))?;
        let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        for (attribute, value) in &entry.xattrs {
            let set = |attribute: &[u8]| rustix::fs::lsetxattr(path.as_slice(), attribute, value, XattrFlags::empty());
            self.set_attribute(entry, attribute, set)?;
        }
        rustix::fs::utimensat(&dir, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| write(entry, "set the time of")(errno.into()))
    }

    fn set_attribute(
        &mut self,
        entry: &Entry,
        name: &[u8],
        set: impl FnOnce(&[u8]) -> rustix::io::Result<()>,
    ) -> Result<(), UnpackError> {
        // What overlayfs noted in the layers that an image was built in says nothing about ours, and would change what is seen.
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            return Ok(());
        }
        // Other security attributes are labels of the machine that built the image, for its policy.
        if name.starts_with(b"security.") && name != b"security.capability" {
            return Ok(());
        }
        match set(name) {
            // File systems differ in what they hold, and links and devices take none of the user's; docker goes on as well.
            Err(Errno::NOTSUP | Errno::PERM) => {
                if !std::mem::replace(&mut self.warned_of_attributes, true) {
                    let (entry, attribute) = (quoted(&entry.path), quoted(name));
                    tracing::warn!(entry, attribute, "the file system holds no such attribute; it is left out");
                }
                Ok(())
            }
            result => result.map_err(|errno| write(entry, "set an attribute of")(errno.into())),
        }
    }
}

fn write<'a>(entry: &'a Entry, operation: &'static str) -> impl FnOnce(io::Error) -> UnpackError + use<'a> {
    move |source| UnpackError::Write { operation, entry: quoted(&entry.path), source }
}

fn walk_error(entry: &Entry, parents: &[&[u8]], limits: &UnpackLimits, error: WalkError) -> UnpackError {
    let name = quoted(&entry.path);
    match error {
        WalkError::Io(source) => {
            let operation = if parents.is_empty() { "open the root for" } else { "make the directories above" };
            UnpackError::Write { operation, entry: name, source }
        }
        WalkError::NotADirectory(component) => {
            UnpackError::NotADirectory { entry: name, component: quoted(&component) }
        }
        WalkError::TooManySymlinks => UnpackError::SymlinkLoop { entry: name, max: SYMLINKS_MAX },
        WalkError::TooDeep => UnpackError::TooDeep { entry: name, max: limits.depth_max },
    }
}

/// What can be refused without looking at the disk.
fn check(entry: &Entry, limits: &UnpackLimits) -> Result<(), UnpackError> {
    let name = || quoted(&entry.path);
    if entry.path.len() > limits.path_len_max {
        return Err(UnpackError::PathTooLong { entry: name(), len: entry.path.len(), max: limits.path_len_max });
    }
    if entry.path.contains(&0) {
        return Err(UnpackError::NulInPath { entry: name() });
    }
    if let Kind::Symlink(target) = &entry.kind {
        if target.is_empty() {
            return Err(UnpackError::EmptySymlink { entry: name() });
        }
        if target.contains(&0) {
            return Err(UnpackError::NulInPath { entry: name() });
        }
        if target.len() > limits.path_len_max {
            return Err(UnpackError::PathTooLong { entry: name(), len: target.len(), max: limits.path_len_max });
        }
    }
    Ok(())
}

/// The components of a hard link's target, which is a path from the layer's root.
fn link_source<'a>(entry: &Entry, target: &'a [u8]) -> Result<Vec<&'a [u8]>, UnpackError> {
    let (name, quoted_target) = (quoted(&entry.path), quoted(target));
    if target.contains(&0) {
        return Err(UnpackError::NulInPath { entry: name });
    }
    cleaned(target).ok_or(UnpackError::EscapingLink { entry: name, target: quoted_target })
}

/// The components of a path from the layer's root, as Go's `path.Clean` leaves them; `None` where it leads out of the root. A
/// leading slash is harmless, and some builders write one.
fn cleaned(path: &[u8]) -> Option<Vec<&[u8]>> {
    let mut components = Vec::new();
    for component in components_of(path) {
        if component == b".." {
            components.pop()?;
        } else {
            components.push(component);
        }
    }
    Some(components)
}

fn owner(entry: &Entry) -> Result<(Uid, Gid), UnpackError> {
    let id = |id: u64, what| match u32::try_from(id) {
        // The highest number means "unchanged" to chown(2).
        Ok(number) if number != u32::MAX => Ok(number),
        _ => Err(UnpackError::Id { entry: quoted(&entry.path), what, id }),
    };
    Ok((Uid::from_raw(id(entry.uid, "user id")?), Gid::from_raw(id(entry.gid, "group id")?)))
}

fn make_directory(level: &Level, name: &[u8]) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(&level.dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&level.dir, name, flags, Mode::empty())?)
}

fn make_file(level: &Level, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&level.dir, name, flags, Mode::RUSR | Mode::WUSR)?)
}

fn set_opaque(dir: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())?)
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn set_times(file: &OwnedFd, mtime: (i64, u32)) -> io::Result<()> {
    Ok(rustix::fs::futimens(file, &times(mtime))?)
}

fn unlink(dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// Removes a directory of this layer, which is at most as deep as the limit allowed it to become.
fn remove_tree(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for child in rustix::fs::Dir::read_from(&dir)? {
        let child = child?;
        let child_name = child.file_name().to_bytes();
        if child_name == b"." || child_name == b".." {
            continue;
        }
        match stat(&dir, child_name)? {
            Some(stat) if kind_of(&stat) == FileType::Directory => remove_tree(&dir, child_name)?,
            Some(_) => unlink(&dir, child_name)?,
            None => {}
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Copies a file that only a lower layer has into this one. Returns its size, or `None` if no layer has it.
fn copy_up(level: &Level, name: &[u8]) -> io::Result<Option<u64>> {
    let Some((index, stat)) = lower(level, name)? else { return Ok(None) };
    let from = &level.lowers[index];
    match kind_of(&stat) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut source = std::fs::File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
            let mut copy = std::fs::File::from(make_file(level, name)?);
            let len = io::copy(&mut source, &mut copy)?;
            copy_attributes(&source.into(), &copy.into())?;
            Ok(Some(len))
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target, &level.dir, name)?;
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            rustix::fs::chownat(&level.dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(Some(0))
        }
        _ => Err(Errno::PERM.into()),
    }
}
