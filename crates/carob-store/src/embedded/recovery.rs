//! Opens a directory: which files make the store, whether they belong together, and where to go on. Blocking.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use carob_kit::fs::{Access, Fs, FsLock, write_atomic};

use super::file::{self, Kind, TEMPORARY_SUFFIX};
use super::log::{Begin, Log, OpenSegment, create_segment};
use super::{FORMAT, LogSizes, checkpoint, frame};
use crate::backend::OpenError;
use crate::entry::{Event, EventKind, Revision};
use crate::index::Index;
use crate::limits::Limits;
use crate::values::Values;

pub(super) const FORMAT_FILE: &str = "FORMAT";
const FORMAT_PREFIX: &str = "carob-store ";
pub(super) const LOCK_FILE: &str = "lock";

/// The number of a store's first segment.
pub(super) const FIRST_SEGMENT: u64 = 1;

/// Bytes read of the file that names the format; no format will need more.
const FORMAT_BYTES_MAX: usize = 64;

/// Bytes that are written again at once.
const REWRITE_BYTES: usize = 64 << 10;

pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) log: Log,
    /// The first segment that is needed.
    pub(super) first_segment: u64,
}

/// Opens the store in `dir`, or makes one. What is damaged is left as it is.
pub(super) fn open(
    fs: Arc<dyn Fs>,
    dir: &Path,
    sizes: LogSizes,
    limits: &Limits,
    values: Option<Arc<dyn Values>>,
) -> Result<Recovered, OpenError> {
    let io = |cause| OpenError::Io { operation: "open the store", cause };
    fs.create_dir_all(dir).map_err(io)?;
    let lock_path = dir.join(LOCK_FILE);
    let lock = fs.lock(&lock_path).map_err(|cause| match cause.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked { path: lock_path },
        _ => io(cause),
    })?;
    let files = Files::list(&*fs, dir).map_err(io)?;
    if !read_format(&*fs, dir)? {
        return make(fs, dir, sizes, lock, &files, values);
    }
    let first_segment = files.checkpoint.unwrap_or(FIRST_SEGMENT);
    let index = match files.checkpoint {
        Some(number) => checkpoint::read(&*fs, dir, number)?,
        None => Index::new(Revision::EMPTY),
    };
    let current = index.current();
    let end = (Kind::Checkpoint.path(dir, first_segment), 0);
    let segment_bytes = sizes.segment_bytes;
    let mut replay = Replay { fs: &*fs, dir, limits, segment_bytes, last: current, reserved: current, index, end };
    let segments: Vec<u64> = files.segments.iter().copied().filter(|number| *number >= first_segment).collect();
    let end = replay.segments(first_segment, &segments)?;
    let Replay { index, last, reserved, .. } = replay;
    let mut index = index.opened(values.as_deref()).map_err(OpenError::Value)?;

    check_clean_end(&*fs, dir, &end)?;
    end.make_safe().map_err(io)?;
    // Before anything is written: from here on the log may end anywhere.
    file::remove_if_there(&*fs, &dir.join(file::CLEAN_FILE)).map_err(io)?;
    fs.sync_dir(dir).map_err(io)?;
    for name in &files.temporary {
        file::remove_if_there(&*fs, &dir.join(name)).map_err(io)?;
    }
    checkpoint::remove_before(&*fs, dir, first_segment).map_err(io)?;
    let (segment, last, reserved) = if end.clean {
        // What was reserved before the clean end has been taken back by it.
        (end.segment, last, last)
    } else {
        tell_unclean(dir, &end).map_err(io)?;
        let start = reserved.max(last);
        drop(index.skip_to(start));
        let reserved = Revision(start.0 + sizes.revision_block);
        let begin = Begin { before: last, start, reserved };
        let segment = create_segment(&*fs, dir, end.segment.number + 1, &begin, sizes.segment_bytes)
            .map_err(|cause| OpenError::Begin { path: dir.to_owned(), cause })?;
        (segment, start, reserved)
    };
    let log = Log::new(fs, dir.to_owned(), sizes, lock, segment, last, reserved).sealing(values);
    Ok(Recovered { index, log, first_segment })
}

/// A log that was closed ends where its closing said it does: a shorter one has lost what had been acknowledged.
fn check_clean_end(fs: &dyn Fs, dir: &Path, end: &End) -> Result<(), OpenError> {
    let io = |cause| OpenError::Io { operation: "read how the store was closed", cause };
    let Some(noted) = file::CleanEnd::read(fs, dir).map_err(io)? else { return Ok(()) };
    let OpenSegment { file, number, offset, .. } = &end.segment;
    let (number, offset) = (*number, *offset);
    let segment = Kind::Segment.path(dir, number);
    let (path, what) = match noted {
        None => (dir.join(file::CLEAN_FILE), "it does not say where the log ends"),
        Some(noted) if !end.clean || noted != file::CleanEnd { segment: number, offset } => {
            (segment, "the log does not end where it ended when the store was closed")
        }
        Some(_) if frame::bytes_behind(&**file, offset).map_err(io)? > 0 => {
            (segment, "something is written behind the end of a log that was closed")
        }
        Some(_) => return Ok(()),
    };
    Err(OpenError::Damaged { path, offset, what })
}

/// Says what an unclean stop has cost: bytes behind the last whole frame belong to a write that nobody was told had succeeded.
fn tell_unclean(dir: &Path, end: &End) -> io::Result<()> {
    let OpenSegment { file, number, offset, .. } = &end.segment;
    let cut = frame::bytes_behind(&**file, *offset)?;
    let segment = Kind::Segment.path(dir, *number);
    if cut == 0 {
        tracing::info!(segment = %segment.display(), offset, "the store was not closed; its log ends in a whole frame");
    } else {
        tracing::warn!(
            segment = %segment.display(), offset, cut,
            "the store was not closed: {cut} bytes of a write that had not ended are cut off"
        );
    }
    Ok(())
}

/// The files of a directory that are the store's.
struct Files {
    /// Ascending.
    segments: Vec<u64>,
    /// The newest.
    checkpoint: Option<u64>,
    temporary: Vec<String>,
}

impl Files {
    fn list(fs: &dyn Fs, dir: &Path) -> io::Result<Self> {
        let mut files = Self { segments: Vec::new(), checkpoint: None, temporary: Vec::new() };
        for name in fs.list(dir)? {
            let Some(name) = name.to_str() else { continue };
            if let Some(number) = Kind::Segment.number(name) {
                files.segments.push(number);
            } else if let Some(number) = Kind::Checkpoint.number(name) {
                files.checkpoint = files.checkpoint.max(Some(number));
            } else if let Some(complete) = name.strip_suffix(TEMPORARY_SUFFIX) {
                let number = Kind::Segment.number(complete).or_else(|| Kind::Checkpoint.number(complete));
                if number.is_some() || complete == FORMAT_FILE || complete == file::CLEAN_FILE {
                    files.temporary.push(name.to_owned());
                }
            }
        }
        files.segments.sort_unstable();
        Ok(files)
    }
}

/// Whether there is a store, of a format that this program knows.
fn read_format(fs: &dyn Fs, dir: &Path) -> Result<bool, OpenError> {
    let path = dir.join(FORMAT_FILE);
    let io = |cause| OpenError::Io { operation: "read the store's format", cause };
    let file = match fs.open(&path, Access::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = [0; FORMAT_BYTES_MAX];
    let count = file.read_at(&mut bytes, 0).map_err(io)?;
    let number = std::str::from_utf8(&bytes[..count])
        .ok()
        .and_then(|text| text.strip_prefix(FORMAT_PREFIX)?.strip_suffix('\n')?.parse().ok());
    match number {
        Some(FORMAT) => Ok(true),
        Some(found) if found > FORMAT => Err(OpenError::NewerFormat { path: dir.to_owned(), found, known: FORMAT }),
        _ => Err(OpenError::Damaged { path, offset: 0, what: "it names no format" }),
    }
}

/// Makes a store. A directory in which the making of one was cut short holds its first segment, without a frame.
fn make(
    fs: Arc<dyn Fs>,
    dir: &Path,
    sizes: LogSizes,
    lock: Box<dyn FsLock>,
    files: &Files,
    values: Option<Arc<dyn Values>>,
) -> Result<Recovered, OpenError> {
    let io = |cause| OpenError::Io { operation: "make the store", cause };
    let first = Kind::Segment.path(dir, FIRST_SEGMENT);
    let cut_short = match files.segments[..] {
        [] => true,
        [FIRST_SEGMENT] => is_unused(&*fs, &first).map_err(io)?,
        _ => false,
    };
    if !cut_short || files.checkpoint.is_some() {
        let path = dir.join(FORMAT_FILE);
        return Err(OpenError::Damaged { path, offset: 0, what: "it is missing, but there is data beside it" });
    }
    file::remove_if_there(&*fs, &first).map_err(io)?;
    let begin = Begin { before: Revision::EMPTY, start: Revision::EMPTY, reserved: Revision::EMPTY };
    let segment = create_segment(&*fs, dir, FIRST_SEGMENT, &begin, sizes.segment_bytes)
        .map_err(|cause| OpenError::Begin { path: dir.to_owned(), cause })?;
    write_atomic(&*fs, &dir.join(FORMAT_FILE), format_text().as_bytes()).map_err(io)?;
    let log = Log::new(fs, dir.to_owned(), sizes, lock, segment, Revision::EMPTY, Revision::EMPTY).sealing(values);
    Ok(Recovered { index: Index::new(Revision::EMPTY), log, first_segment: FIRST_SEGMENT })
}

/// What the file that names the format holds.
pub(super) fn format_text() -> String {
    format!("{FORMAT_PREFIX}{FORMAT}\n")
}

fn is_unused(fs: &dyn Fs, path: &Path) -> io::Result<bool> {
    let file = fs.open(path, Access::Read)?;
    Ok(match file::Header::read(Kind::Segment, &*file, FIRST_SEGMENT)? {
        Some(header) => frame::read(&*file, file::HEADER_BYTES as u64, header.salt)?.is_none(),
        None => false,
    })
}

/// The reading of the log into an index.
struct Replay<'a> {
    fs: &'a dyn Fs,
    dir: &'a Path,
    limits: &'a Limits,
    /// What a segment has at least.
    segment_bytes: u64,
    index: Index,
    /// The last revision read.
    last: Revision,
    /// The greatest revision that may have been issued.
    reserved: Revision,
    /// The file read last, and where its last whole frame ended.
    end: (PathBuf, u64),
}

/// Where the log ends.
struct End {
    segment: OpenSegment,
    clean: bool,
    /// How much of the segment is known to have been fsynced, in bytes.
    proven: u64,
}

impl End {
    /// Makes durable what was read: a process that was killed may have left it in the kernel's cache only, and what is
    /// written next will take it for safe. After an fsync that failed the cache holds bytes that no later fsync would
    /// write (fsync(2)), so they are written again.
    fn make_safe(&self) -> io::Result<()> {
        let OpenSegment { file, offset: end, .. } = &self.segment;
        let mut piece = vec![0; REWRITE_BYTES];
        let mut start = self.proven;
        while start < *end {
            let wanted = usize::try_from(end - start).map_or(REWRITE_BYTES, |rest| rest.min(REWRITE_BYTES));
            let count = file.read_at(&mut piece[..wanted], start)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.write_all_at(&piece[..count], start)?;
            start += count as u64;
        }
        file.sync_data()
    }
}

impl Replay<'_> {
    fn segments(&mut self, first: u64, numbers: &[u64]) -> Result<End, OpenError> {
        let mut end = None;
        let last = numbers.last().copied().unwrap_or(first);
        for number in first..=last {
            let path = Kind::Segment.path(self.dir, number);
            if numbers.binary_search(&number).is_err() {
                return Err(OpenError::Damaged { path, offset: 0, what: "the segment is missing" });
            }
            end = Some(self.segment(number, &path, number == last)?);
        }
        let path = Kind::Segment.path(self.dir, first);
        end.ok_or(OpenError::Damaged { path, offset: 0, what: "the segment is missing" })
    }

    fn segment(&mut self, number: u64, path: &Path, is_last: bool) -> Result<End, OpenError> {
        let io = |cause| OpenError::Io { operation: "read the log", cause };
        let damaged = |offset, what| OpenError::Damaged { path: path.to_owned(), offset, what };
        let file = self.fs.open(path, Access::Write).map_err(io)?;
        let header = file::Header::read(Kind::Segment, &*file, number).map_err(io)?;
        let header = header.ok_or_else(|| damaged(0, "the segment's header is broken"))?;
        if header.before != self.last || header.start < self.last {
            let (path, offset) = self.end.clone();
            return Err(OpenError::Damaged { path, offset, what: "changes are missing that a later segment follows" });
        }
        // It had its whole length before it had its name, so no crash can have shortened it.
        let len = file.len().map_err(io)?;
        if len < self.segment_bytes {
            return Err(damaged(len, "the segment is shorter than it was made"));
        }
        self.last = header.start;
        self.reserved = self.reserved.max(header.reserved);
        if header.start > self.index.current() {
            drop(self.index.skip_to(header.start));
        }
        let mut offset = file::HEADER_BYTES as u64;
        let (mut clean, mut proven) = (false, offset);
        while let Some(frame) = frame::read(&*file, offset, header.salt).map_err(io)? {
            self.frame(&frame).map_err(|what| damaged(offset, what))?;
            clean = frame.header.end;
            proven = proven.max(frame.header.synced.min(offset));
            offset += frame.len;
        }
        // A broken frame is the torn end of the log, unless something later knew it to be whole. For a segment that is
        // not the last, the next one's header does.
        if is_last && frame::proves_synced(&*file, offset, header.salt).map_err(io)? {
            return Err(damaged(offset, "a frame is broken that had been fsynced"));
        }
        self.end = (path.to_owned(), offset);
        let segment = OpenSegment { file, number, salt: header.salt, len, offset, synced: offset };
        Ok(End { segment, clean, proven })
    }

    fn frame(&mut self, frame: &frame::Frame) -> Result<(), &'static str> {
        const NO_SENSE: &str = "a frame makes no sense";
        if frame.header.before != self.last.0 {
            return Err("a frame does not follow the one before it");
        }
        for record in frame.decode().ok_or(NO_SENSE)? {
            if record.mod_revision != self.last.next() {
                return Err("a record does not follow the one before it");
            }
            self.last = record.mod_revision;
            let event = event_of(&self.index, record).ok_or(NO_SENSE)?;
            self.index.apply(&Arc::new(event));
        }
        drop(self.index.trim(self.limits.history_events_max, self.limits.history_bytes_max));
        self.reserved = self.reserved.max(Revision(frame.header.reserved)).max(self.last);
        Ok(())
    }
}

/// The event that `record` was written for; `None` if it cannot have been.
fn event_of(index: &Index, record: frame::Record) -> Option<Event> {
    let previous = index.get(&record.key).cloned();
    let created = previous.as_ref().map_or(record.mod_revision, |previous| previous.create_revision);
    if record.create_revision != created {
        return None;
    }
    let kind = record.kind;
    let mut entry = record.into_entry();
    if let Some(previous) = &previous {
        entry.key = Arc::clone(&previous.key);
        if kind == EventKind::Delete {
            entry.value = previous.value.clone();
        }
    } else if kind == EventKind::Delete {
        return None;
    }
    Some(Event { kind, entry: Arc::new(entry), previous })
}
