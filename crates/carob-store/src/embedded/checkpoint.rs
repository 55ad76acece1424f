//! Checkpoints: all entries of one revision in one file. Blocking.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use carob_kit::fs::{Access, Fs, FsFile};
use carob_kit::{chain, random_u64};

use super::file::{self, Kind, NewFile};
use super::frame::{self, FrameBuffer};
use crate::backend::{BackendError, OpenError, Snapshot};
use crate::entry::EventKind;
use crate::index::Index;
use crate::values::Values;

/// Bytes after which a frame of a checkpoint takes no further entry.
const FRAME_BYTES: usize = 256 << 10;

/// Writes what came before segment `segment`, then removes the files that it replaces.
pub(super) fn write(
    fs: &dyn Fs,
    dir: &Path,
    segment: u64,
    snapshot: &Snapshot,
    values: Option<Arc<dyn Values>>,
) -> Result<(), BackendError> {
    let io = |cause| BackendError::Io { operation: "write a checkpoint", cause };
    let new = NewFile::create(fs, Kind::Checkpoint.path(dir, segment)).map_err(io)?;
    let mut out = FileWriter { file: &*new.file, offset: 0 };
    if let Err(cause) = write_content(&mut out, segment, snapshot, values) {
        if let Err(error) = new.discard() {
            tracing::warn!("an unfinished checkpoint stays: {}", chain(&error));
        }
        return Err(io(cause));
    }
    new.name(dir).map_err(io)?;
    remove_before(fs, dir, segment)
        .map_err(|cause| BackendError::Io { operation: "remove what a checkpoint replaced", cause })
}

/// A file that is written from its beginning.
struct FileWriter<'a> {
    file: &'a dyn FsFile,
    offset: u64,
}

impl Write for FileWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.offset)?;
        self.offset += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn write_content(
    out: &mut dyn Write,
    segment: u64,
    snapshot: &Snapshot,
    values: Option<Arc<dyn Values>>,
) -> io::Result<()> {
    let revision = snapshot.revision;
    #[expect(clippy::cast_possible_truncation, reason = "a salt needs no more bits")]
    let salt = random_u64() as u32;
    let header = file::Header { number: segment, before: revision, start: revision, reserved: revision, salt };
    out.write_all(&header.encode(Kind::Checkpoint))?;
    let mut buffer = FrameBuffer::new(values);
    let mut entries = snapshot.entries.iter();
    let mut before = 0;
    loop {
        buffer.clear(FRAME_BYTES);
        let mut count = 0;
        while buffer.len() < FRAME_BYTES
            && let Some(entry) = entries.next()
        {
            buffer.push(EventKind::Put, entry).map_err(io::Error::other)?;
            count += 1;
        }
        let header = frame::Header { end: count == 0, before, ..frame::Header::default() };
        out.write_all(buffer.finish(&header, salt))?;
        before += count;
        if count == 0 {
            return Ok(());
        }
    }
}

/// Removes checkpoints and segments with a number below `segment`.
pub(super) fn remove_before(fs: &dyn Fs, dir: &Path, segment: u64) -> io::Result<()> {
    for name in fs.list(dir)? {
        let Some(name) = name.to_str() else { continue };
        let number = Kind::Checkpoint.number(name).or_else(|| Kind::Segment.number(name));
        if number.is_some_and(|number| number < segment) {
            fs.remove(&dir.join(name))?;
        }
    }
    Ok(())
}

/// Reads the checkpoint before segment `segment`.
pub(super) fn read(fs: &dyn Fs, dir: &Path, segment: u64) -> Result<Index, OpenError> {
    let path = Kind::Checkpoint.path(dir, segment);
    let io = |cause| OpenError::Io { operation: "read a checkpoint", cause };
    let damaged = |offset, what| OpenError::Damaged { path: path.clone(), offset, what };
    let file = fs.open(&path, Access::Read).map_err(io)?;
    let header = file::Header::read(Kind::Checkpoint, &*file, segment).map_err(io)?;
    let header = header.ok_or_else(|| damaged(0, "the checkpoint's header is broken"))?;
    let mut index = Index::new(header.start);
    let mut offset = file::HEADER_BYTES as u64;
    let mut last_key: Option<Arc<str>> = None;
    loop {
        let frame = frame::read(&*file, offset, header.salt).map_err(io)?;
        let frame = frame.ok_or_else(|| damaged(offset, "a part of the checkpoint is broken"))?;
        if frame.header.before != index.live_keys() as u64 {
            return Err(damaged(offset, "a part of the checkpoint is missing"));
        }
        let records = frame.decode().ok_or_else(|| damaged(offset, "a part of the checkpoint makes no sense"))?;
        for record in records {
            let in_order = last_key.as_ref().is_none_or(|last| **last < *record.key);
            let in_time = record.create_revision <= record.mod_revision && record.mod_revision <= header.start;
            if !in_order || !in_time || record.kind != EventKind::Put {
                return Err(damaged(offset, "an entry of the checkpoint makes no sense"));
            }
            last_key = Some(Arc::clone(&record.key));
            index.load(Arc::new(record.into_entry()));
        }
        if frame.header.end {
            return Ok(index);
        }
        offset += frame.len;
    }
}
