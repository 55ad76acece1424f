//! The end of the log: the segment that is being written. Blocking.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use carob_kit::fs::{Fs, FsFile, FsLock};
use carob_kit::{chain, random_u64};

use super::LogSizes;
use super::file::{self, Kind, NewFile};
use super::frame::{self, FrameBuffer};
use crate::backend::BackendError;
use crate::entry::{Event, Revision};
use crate::values::Values;

/// Memory kept between batches for their encoding, in bytes.
const BUFFER_KEEP_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Log {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    sizes: LogSizes,
    segment: OpenSegment,
    /// The last revision written.
    last: Revision,
    /// The greatest revision that an unclean start would take as issued: what may be answered before an fsync.
    reserved: Revision,
    buffer: FrameBuffer,
    _lock: Box<dyn FsLock>,
}

/// A segment that frames can be appended to.
#[derive(Debug)]
pub(super) struct OpenSegment {
    pub(super) file: Arc<dyn FsFile>,
    pub(super) number: u64,
    pub(super) salt: u32,
    pub(super) len: u64,
    /// Where the next frame goes.
    pub(super) offset: u64,
    /// How much of the segment has been fsynced.
    pub(super) synced: u64,
}

/// Where a segment begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begin {
    /// What the frames before it came to.
    pub(super) before: Revision,
    /// The revision after which it goes on.
    pub(super) start: Revision,
    pub(super) reserved: Revision,
}

/// Makes the segment `number`.
pub(super) fn create_segment(
    fs: &dyn Fs,
    dir: &Path,
    number: u64,
    begin: &Begin,
    len: u64,
) -> Result<OpenSegment, BackendError> {
    let io = |cause| BackendError::Io { operation: "begin a segment of the log", cause };
    #[expect(clippy::cast_possible_truncation, reason = "a salt needs no more bits")]
    let salt = random_u64() as u32;
    let new = NewFile::create(fs, Kind::Segment.path(dir, number)).map_err(io)?;
    if let Err(cause) = new.file.preallocate(len) {
        if let Err(error) = new.discard() {
            tracing::warn!("a segment that was not begun stays: {}", chain(&error));
        }
        return Err(match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BackendError::NoSpace(cause),
            _ => io(cause),
        });
    }
    let Begin { before, start, reserved } = *begin;
    let header = file::Header { number, before, start, reserved, salt };
    new.file.write_all_at(&header.encode(Kind::Segment), 0).map_err(io)?;
    let file = new.name(dir).map_err(io)?;
    let offset = file::HEADER_BYTES as u64;
    Ok(OpenSegment { file, number, salt, len, offset, synced: offset })
}

impl Log {
    /// A log that goes on in `segment` after the revision `last`.
    pub(super) fn new(
        fs: Arc<dyn Fs>,
        dir: PathBuf,
        sizes: LogSizes,
        lock: Box<dyn FsLock>,
        segment: OpenSegment,
        last: Revision,
        reserved: Revision,
    ) -> Self {
        Self { fs, dir, sizes, segment, last, reserved, buffer: FrameBuffer::new(None), _lock: lock }
    }

    /// The same log, which keeps values sealed.
    pub(super) fn sealing(self, values: Option<Arc<dyn Values>>) -> Self {
        Self { buffer: FrameBuffer::new(values), ..self }
    }

    /// The number of the segment being written.
    pub(super) fn segment(&self) -> u64 {
        self.segment.number
    }

    pub(super) fn append(&mut self, events: &[Arc<Event>], durable: bool) -> Result<(), BackendError> {
        let Some(last) = events.last().map(|event| event.revision()) else { return Ok(()) };
        self.buffer.clear(BUFFER_KEEP_BYTES);
        for event in events {
            self.buffer.push(event.kind, &event.entry).map_err(BackendError::Seal)?;
        }
        let durable = durable || last > self.reserved;
        let mut reserved = self.reserved;
        if durable && last.0 + self.sizes.revision_block / 2 > reserved.0 {
            reserved = Revision(last.0 + self.sizes.revision_block);
        }
        self.write(false, reserved)?;
        self.last = last;
        if durable {
            self.sync()?;
            self.reserved = reserved;
        }
        Ok(())
    }

    /// Writes the frame in the buffer, into the next segment if this one has no room.
    fn write(&mut self, end: bool, reserved: Revision) -> Result<(), BackendError> {
        let frame_bytes = self.buffer.len() as u64;
        if self.segment.offset + frame_bytes > self.segment.len {
            self.next_segment(frame_bytes)?;
        }
        let segment = &mut self.segment;
        let header = frame::Header { end, before: self.last.0, reserved: reserved.0, synced: segment.synced };
        let bytes = self.buffer.finish(&header, segment.salt);
        segment
            .file
            .write_all_at(bytes, segment.offset)
            .map_err(|cause| BackendError::Io { operation: "write the log", cause })?;
        segment.offset += frame_bytes;
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Result<(), BackendError> {
        if self.segment.synced < self.segment.offset {
            let synced = self.segment.file.sync_data();
            synced.map_err(|cause| BackendError::Io { operation: "fsync the log", cause })?;
            self.segment.synced = self.segment.offset;
        }
        Ok(())
    }

    /// Begins the next segment and returns its number. All before it is durable then.
    pub(super) fn begin_segment(&mut self) -> Result<u64, BackendError> {
        self.next_segment(0)?;
        Ok(self.segment.number)
    }

    fn next_segment(&mut self, frame_bytes: u64) -> Result<(), BackendError> {
        self.sync()?;
        let len = self.sizes.segment_bytes.max(file::HEADER_BYTES as u64 + frame_bytes);
        let begin = Begin { before: self.last, start: self.last, reserved: self.reserved.max(self.last) };
        self.segment = create_segment(&*self.fs, &self.dir, self.segment.number + 1, &begin, len)?;
        Ok(())
    }

    /// Makes everything durable and says that nothing more was issued.
    pub(super) fn close(&mut self) -> Result<(), BackendError> {
        // First, so that the last frame proves all others to have been safe.
        self.sync()?;
        self.buffer.clear(BUFFER_KEEP_BYTES);
        self.write(true, self.last)?;
        self.sync()?;
        let end = file::CleanEnd { segment: self.segment.number, offset: self.segment.offset };
        end.write(&*self.fs, &self.dir)
            .map_err(|cause| BackendError::Io { operation: "mark the end of the log", cause })
    }
}
