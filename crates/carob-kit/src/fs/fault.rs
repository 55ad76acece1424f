//! A file system in memory that fails and loses power as told.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Access, Fs, FsFile, FsLock};

/// What a disk writes in one piece, in bytes.
const SECTOR_BYTES: usize = 512;

/// What happens to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// EIO. Of a write, the first half reaches the file. A failed fsync leaves what was written in the cache, but not
    /// marked as unwritten: it can be read, and the next fsync succeeds without it reaching the disk, as on Linux.
    Io,
    /// ENOSPC, nothing is done.
    NoSpace,
    /// The operation is done as far as the cache, then the machine is off until [`FaultFs::restart`].
    PowerLoss,
}

/// A model of a file system over a disk with a cache.
///
/// At a power loss the bytes of files survive that were fsynced; of the other sectors written, any may survive and any
/// may not. Creations, renames and removals survive once their directory was fsynced; of the others, any first part
/// does, as in a journal. Directories themselves always survive.
#[derive(Debug, Clone, Default)]
pub struct FaultFs {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Changes of names that no fsync has made durable, in order.
    pending: Vec<NameChange>,
    dirs: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    /// Changing operations so far.
    operations: u64,
    fault: Option<(u64, Fault)>,
    off: bool,
    /// Counts restarts; handles of an earlier life are dead.
    life: u64,
}

#[derive(Debug, Default)]
struct Inode {
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// Numbers of sectors written since the last fsync.
    dirty: BTreeSet<usize>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Link { path: PathBuf, inode: usize },
    Unlink { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
}

impl NameChange {
    fn dir(&self) -> Option<&Path> {
        match self {
            Self::Link { path, .. } | Self::Unlink { path } | Self::Rename { to: path, .. } => path.parent(),
        }
    }

    fn apply(self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link { path, inode } => {
                names.insert(path, inode);
            }
            Self::Unlink { path } => {
                names.remove(&path);
            }
            Self::Rename { from, to } => {
                if let Some(inode) = names.remove(&from) {
                    names.insert(to, inode);
                }
            }
        }
    }
}

impl FaultFs {
    pub fn new() -> Self {
        Self::default()
    }

    /// How many changing operations there have been.
    pub fn operations(&self) -> u64 {
        self.lock_state().operations
    }

    /// Lets `fault` befall the changing operation after the next `after` ones, once.
    pub fn fail_after(&self, after: u64, fault: Fault) {
        let mut state = self.lock_state();
        state.fault = Some((state.operations + after, fault));
    }

    /// Forgets a fault that has not come to pass.
    pub fn clear_fault(&self) {
        self.lock_state().fault = None;
    }

    /// True once a [`Fault::PowerLoss`] has come to pass.
    pub fn is_off(&self) -> bool {
        self.lock_state().off
    }

    /// Cuts the power, if it is still on, and starts again with what survives; `seed` chooses from what may.
    pub fn restart(&self, seed: u64) {
        let mut random = SplitMix(seed);
        let mut guard = self.lock_state();
        let state = &mut *guard;
        let survivors = random.below(state.pending.len() as u64 + 1);
        for change in state.pending.drain(..).take(usize::try_from(survivors).unwrap_or(usize::MAX)) {
            change.apply(&mut state.durable_names);
        }
        state.names = state.durable_names.clone();
        for inode in &mut state.inodes {
            inode.lose_power(&mut random);
        }
        state.locks.clear();
        state.fault = None;
        state.off = false;
        state.life += 1;
    }

    /// Ends the process: its handles are dead and its locks are free, what it wrote stays.
    pub fn kill(&self) {
        let mut state = self.lock_state();
        state.locks.clear();
        state.fault = None;
        state.life += 1;
    }

    /// Changes a file's durable bytes behind everybody's back, as a failing disk does.
    ///
    /// # Panics
    /// When there is no such file: a mistake in the test.
    pub fn corrupt(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock_state();
        let inode = state.names[path];
        let inode = &mut state.inodes[inode];
        change(&mut inode.durable);
        inode.cached = inode.durable.clone();
        inode.dirty.clear();
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the file system panics")
    }
}

impl Inode {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.cached.len() < end {
            self.cached.resize(end, 0);
        }
        self.cached[offset..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty.extend(offset / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES);
        }
    }

    fn sync(&mut self) {
        self.durable.resize(self.cached.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            self.keep(sector);
        }
    }

    /// Brings one sector from the cache to the disk.
    fn keep(&mut self, sector: usize) {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(self.cached.len());
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[start..end].copy_from_slice(&self.cached[start..end]);
    }

    fn lose_power(&mut self, random: &mut SplitMix) {
        // All, none, a first part, or any sectors: the ends of the range are the likeliest to be got wrong.
        let dirty: Vec<usize> = std::mem::take(&mut self.dirty).into_iter().collect();
        let (choice, first) = (random.below(4), random.below(dirty.len() as u64 + 1));
        for (position, sector) in dirty.into_iter().enumerate() {
            let survives = match choice {
                0 => false,
                1 => true,
                2 => (position as u64) < first,
                _ => random.below(2) == 0,
            };
            if survives {
                self.keep(sector);
            }
        }
        if self.durable.len() < self.cached.len() && random.below(2) == 0 {
            self.durable.resize(self.cached.len(), 0);
        }
        self.cached = self.durable.clone();
    }
}

impl State {
    fn check_power(&self, operation: &str, path: &Path) -> io::Result<()> {
        if self.off { Err(failed(operation, path, io::ErrorKind::Other, "the power is off")) } else { Ok(()) }
    }

    /// Counts a changing operation; `Some` is the fault that befalls it.
    fn begin(&mut self, operation: &str, path: &Path) -> io::Result<Option<Fault>> {
        self.check_power(operation, path)?;
        let number = self.operations;
        self.operations += 1;
        let fault = match self.fault {
            Some((at, fault)) if at == number => fault,
            _ => return Ok(None),
        };
        self.fault = None;
        match fault {
            Fault::NoSpace => Err(failed(operation, path, io::ErrorKind::StorageFull, "no space left on device")),
            Fault::Io | Fault::PowerLoss => Ok(Some(fault)),
        }
    }

    /// The outcome of an operation that was done before its fault came to pass.
    fn end(&mut self, fault: Option<Fault>, operation: &str, path: &Path) -> io::Result<()> {
        match fault {
            None => Ok(()),
            Some(Fault::PowerLoss) => {
                self.off = true;
                self.check_power(operation, path)
            }
            Some(Fault::Io | Fault::NoSpace) => {
                Err(failed(operation, path, io::ErrorKind::Other, "input/output error"))
            }
        }
    }

    fn change_names(&mut self, change: NameChange, operation: &str, path: &Path) -> io::Result<()> {
        let fault = self.begin(operation, path)?;
        if fault != Some(Fault::Io) {
            change.clone().apply(&mut self.names);
            self.pending.push(change);
        }
        self.end(fault, operation, path)
    }

    fn find(&self, operation: &str, path: &Path) -> io::Result<usize> {
        let missing = || failed(operation, path, io::ErrorKind::NotFound, "no such file");
        self.names.get(path).copied().ok_or_else(missing)
    }
}

fn failed(operation: &str, path: &Path, kind: io::ErrorKind, what: &str) -> io::Error {
    io::Error::new(kind, format!("{operation} {}: {what}", path.display()))
}

impl Fs for FaultFs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        let fault = state.begin("create", dir)?;
        if fault != Some(Fault::Io) {
            state.dirs.extend(dir.ancestors().map(Path::to_owned));
        }
        state.end(fault, "create", dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let state = self.lock_state();
        state.check_power("list", dir)?;
        if !state.dirs.contains(dir) {
            return Err(failed("list", dir, io::ErrorKind::NotFound, "no such directory"));
        }
        let children = state.names.keys().chain(&state.dirs).filter(|path| path.parent() == Some(dir));
        let mut names: Vec<_> = children.filter_map(|path| path.file_name().map(OsString::from)).collect();
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn FsFile>> {
        let mut state = self.lock_state();
        state.check_power("open", path)?;
        let inode = if access == Access::Create {
            if state.names.contains_key(path) {
                return Err(failed("create", path, io::ErrorKind::AlreadyExists, "the file exists"));
            }
            if !path.parent().is_some_and(|dir| state.dirs.contains(dir)) {
                return Err(failed("create", path, io::ErrorKind::NotFound, "no such directory"));
            }
            state.inodes.push(Inode::default());
            let inode = state.inodes.len() - 1;
            state.change_names(NameChange::Link { path: path.to_owned(), inode }, "create", path)?;
            inode
        } else {
            state.find("open", path)?
        };
        let life = state.life;
        Ok(Arc::new(ModelFile { fs: self.clone(), path: path.to_owned(), inode, life }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.find("rename", from)?;
        state.change_names(NameChange::Rename { from: from.to_owned(), to: to.to_owned() }, "rename", from)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.find("remove", path)?;
        state.change_names(NameChange::Unlink { path: path.to_owned() }, "remove", path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut guard = self.lock_state();
        let state = &mut *guard;
        let fault = state.begin("sync", dir)?;
        if fault != Some(Fault::Io) {
            let (synced, rest) = std::mem::take(&mut state.pending).into_iter().partition(|c| c.dir() == Some(dir));
            state.pending = rest;
            let synced: Vec<NameChange> = synced;
            for change in synced {
                change.apply(&mut state.durable_names);
            }
        }
        state.end(fault, "sync", dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FsLock>> {
        let mut state = self.lock_state();
        state.check_power("lock", path)?;
        if !state.locks.insert(path.to_owned()) {
            return Err(failed("lock", path, io::ErrorKind::WouldBlock, "the lock is held"));
        }
        let life = state.life;
        Ok(Box::new(ModelLock { fs: self.clone(), path: path.to_owned(), life }))
    }
}

#[derive(Debug)]
struct ModelFile {
    fs: FaultFs,
    path: PathBuf,
    inode: usize,
    life: u64,
}

impl ModelFile {
    fn state(&self, operation: &str) -> io::Result<MutexGuard<'_, State>> {
        let state = self.fs.lock_state();
        if state.life == self.life {
            state.check_power(operation, &self.path)?;
            Ok(state)
        } else {
            Err(failed(operation, &self.path, io::ErrorKind::Other, "opened before the power was lost"))
        }
    }

    /// One changing operation: `change` gets the file and the fault that befalls it.
    fn change(&self, operation: &str, change: impl FnOnce(&mut Inode, Option<Fault>)) -> io::Result<()> {
        let mut state = self.state(operation)?;
        let fault = state.begin(operation, &self.path)?;
        change(&mut state.inodes[self.inode], fault);
        state.end(fault, operation, &self.path)
    }
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).expect("a model file fits into memory")
}

impl FsFile for ModelFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state("stat")?.inodes[self.inode].cached.len() as u64)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.state("read")?;
        let cached = &state.inodes[self.inode].cached;
        let rest = cached.get(position(offset)..).unwrap_or_default();
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change("write", |inode, fault| {
            let reached = if fault == Some(Fault::Io) { bytes.len() / 2 } else { bytes.len() };
            inode.write(&bytes[..reached], position(offset));
        })
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.change("preallocate", |inode, fault| {
            if fault != Some(Fault::Io) && inode.cached.len() < position(len) {
                inode.cached.resize(position(len), 0);
            }
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change("sync", |inode, fault| match fault {
            None => inode.sync(),
            Some(Fault::Io) => inode.dirty.clear(),
            Some(Fault::PowerLoss | Fault::NoSpace) => {}
        })
    }
}

#[derive(Debug)]
struct ModelLock {
    fs: FaultFs,
    path: PathBuf,
    life: u64,
}

impl FsLock for ModelLock {}

impl Drop for ModelLock {
    fn drop(&mut self) {
        let mut state = self.fs.lock_state();
        if state.life == self.life {
            state.locks.remove(&self.path);
        }
    }
}

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(fs: &FaultFs, path: &str) -> Option<Vec<u8>> {
        let file = fs.open(Path::new(path), Access::Read).ok()?;
        let mut bytes = vec![0; position(file.len().expect("length"))];
        file.read_at(&mut bytes, 0).expect("read");
        Some(bytes)
    }

    /// A directory `d` with a durable file `d/f` of two sectors of `a`.
    fn with_file() -> (FaultFs, Arc<dyn FsFile>) {
        let fs = FaultFs::new();
        fs.create_dir_all(Path::new("d")).expect("make the directory");
        let file = fs.open(Path::new("d/f"), Access::Create).expect("create");
        file.write_all_at(&[b'a'; 2 * SECTOR_BYTES], 0).expect("write");
        file.sync_data().expect("sync");
        fs.sync_dir(Path::new("d")).expect("sync the directory");
        (fs, file)
    }

    #[test]
    fn only_what_was_fsynced_is_sure_to_survive() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..64 {
            let (fs, file) = with_file();
            file.write_all_at(&[b'b'; 2 * SECTOR_BYTES], 0).expect("write");
            fs.restart(seed);
            let bytes = contents(&fs, "d/f").expect("the file was durable");
            assert!(bytes.chunks(SECTOR_BYTES).all(|sector| sector.iter().all(|b| *b == sector[0])));
            outcomes.insert((bytes[0], bytes[SECTOR_BYTES]));
        }
        let all = [(b'a', b'a'), (b'a', b'b'), (b'b', b'a'), (b'b', b'b')];
        assert_eq!(outcomes, BTreeSet::from(all), "each sector is lost or kept by itself");
    }

    #[test]
    fn names_survive_after_their_directory_was_fsynced() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..64 {
            let (fs, _file) = with_file();
            fs.rename(Path::new("d/f"), Path::new("d/g")).expect("rename");
            fs.open(Path::new("d/h"), Access::Create).expect("create");
            fs.restart(seed);
            let names = fs.list(Path::new("d")).expect("list");
            outcomes.insert(names.iter().map(|name| name.to_string_lossy().into_owned()).collect::<String>());
        }
        assert_eq!(outcomes, BTreeSet::from(["f", "g", "gh"].map(str::to_owned)), "in order, each or not");
    }

    #[test]
    fn the_chosen_operation_fails_and_the_next_does_not() {
        let (fs, file) = with_file();
        fs.fail_after(1, Fault::NoSpace);
        file.write_all_at(b"1", 0).expect("the first operation is spared");
        let full = file.write_all_at(b"2", 0).expect_err("the second fails");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        file.write_all_at(b"3", 0).expect("the third is spared");

        fs.fail_after(0, Fault::PowerLoss);
        file.sync_data().expect_err("the power goes");
        assert!(fs.is_off());
        file.len().expect_err("nothing works without power");
        fs.restart(1);
        file.len().expect_err("the handle is of an earlier life");
        assert!(contents(&fs, "d/f").is_some());
    }

    #[test]
    fn what_a_failed_fsync_left_in_the_cache_never_reaches_the_disk() {
        let (fs, file) = with_file();
        file.write_all_at(b"b", 0).expect("write");
        fs.fail_after(0, Fault::Io);
        file.sync_data().expect_err("it fails");
        file.sync_data().expect("the next one knows of nothing to write");
        assert_eq!(contents(&fs, "d/f").expect("the file is there")[0], b'b');
        fs.restart(1);
        assert_eq!(contents(&fs, "d/f").expect("the file is there")[0], b'a');
    }

    #[test]
    fn what_a_killed_process_wrote_stays() {
        let (fs, file) = with_file();
        let lock = fs.lock(Path::new("d/lock")).expect("lock");
        file.write_all_at(b"b", 0).expect("write");
        fs.kill();
        file.write_all_at(b"c", 0).expect_err("the process is dead");
        let next = fs.lock(Path::new("d/lock")).expect("its locks are free");
        drop(lock);
        fs.lock(Path::new("d/lock")).expect_err("the dead hold nothing, and free nothing");
        drop(next);
        assert_eq!(contents(&fs, "d/f").expect("the file stays")[0], b'b');
    }
}
