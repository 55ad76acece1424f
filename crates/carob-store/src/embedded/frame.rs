//! Frames and the records in them, as bytes. Pure but for the reading of a file.
//!
//! All numbers are little-endian. A frame is a header, its records, and zeros up to a multiple of eight bytes:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic |
//! | 4 | 4 | CRC-32 of everything behind it, begun with the file's salt |
//! | 8 | 4 | length of the records in bytes |
//! | 12 | 4 | number of records |
//! | 16 | 8 | flags |
//! | 24 | 8 | the revision before the first record; in a checkpoint, the number of entries before |
//! | 32 | 8 | no revision above this one has been issued, if the log should end here uncleanly |
//! | 40 | 8 | what of this file was fsynced before the frame was written, in bytes |

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use carob_kit::fs::FsFile;
use crc32fast::Hasher;

use crate::entry::{Entry, EventKind, Revision};
use crate::limits::KEY_BYTES_MAX;
use crate::values::{self, ValueError, Values};

const MAGIC: u32 = u32::from_le_bytes(*b"cFrm");
const HEADER_BYTES: usize = 48;
const ALIGN_BYTES: usize = 8;

/// Bytes that a record adds to its key and value.
const RECORD_OVERHEAD_BYTES: usize = 31;

/// Bytes read at once in the search for a later frame.
const SEARCH_WINDOW_BYTES: usize = 64 << 10;

/// What a frame says beside its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    /// The last frame of a log that was closed, or of a checkpoint.
    pub(super) end: bool,
    pub(super) before: u64,
    pub(super) reserved: u64,
    pub(super) synced: u64,
}

const FLAG_END: u64 = 1;

/// A frame in the making.
#[derive(Debug)]
pub(super) struct FrameBuffer {
    bytes: Vec<u8>,
    records: u32,
    values: Option<Arc<dyn Values>>,
}

impl FrameBuffer {
    pub(super) fn new(values: Option<Arc<dyn Values>>) -> Self {
        Self { bytes: vec![0; HEADER_BYTES], records: 0, values }
    }

    /// Starts the next frame; gives memory back that only an uncommonly large one needs.
    pub(super) fn clear(&mut self, keep_bytes: usize) {
        self.bytes.truncate(HEADER_BYTES);
        self.bytes.shrink_to(keep_bytes);
        self.records = 0;
    }

    pub(super) fn push(&mut self, kind: EventKind, entry: &Entry) -> Result<(), ValueError> {
        let value = match kind {
            EventKind::Put => values::seal(self.values.as_deref(), &entry.key, &entry.value)?,
            EventKind::Delete => Bytes::new(),
        };
        let key = entry.key.as_bytes();
        self.bytes.reserve(RECORD_OVERHEAD_BYTES + key.len() + value.len());
        self.bytes.push(if kind == EventKind::Put { 1 } else { 2 });
        let key_bytes = u16::try_from(key.len()).expect("a key is no longer than KEY_BYTES_MAX");
        self.bytes.extend_from_slice(&key_bytes.to_le_bytes());
        let value_bytes = u32::try_from(value.len()).expect("a value is no longer than VALUE_BYTES_MAX");
        self.bytes.extend_from_slice(&value_bytes.to_le_bytes());
        for number in [entry.create_revision.0, entry.mod_revision.0, entry.expires_ms.map_or(0, NonZeroU64::get)] {
            self.bytes.extend_from_slice(&number.to_le_bytes());
        }
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(&value);
        self.records += 1;
        Ok(())
    }

    /// The length that the finished frame will have.
    pub(super) fn len(&self) -> usize {
        self.bytes.len().next_multiple_of(ALIGN_BYTES)
    }

    /// The frame's bytes. Push nothing more before the next [`FrameBuffer::clear`].
    pub(super) fn finish(&mut self, header: &Header, salt: u32) -> &[u8] {
        let length = u32::try_from(self.bytes.len() - HEADER_BYTES).expect("a batch is limited to a few MiB");
        let flags = if header.end { FLAG_END } else { 0 };
        self.bytes.resize(self.len(), 0);
        self.bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        self.bytes[8..12].copy_from_slice(&length.to_le_bytes());
        self.bytes[12..16].copy_from_slice(&self.records.to_le_bytes());
        for (at, number) in [(16, flags), (24, header.before), (32, header.reserved), (40, header.synced)] {
            self.bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = checksum(salt, &self.bytes[8..]);
        self.bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        &self.bytes
    }
}

pub(super) fn checksum(salt: u32, bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(salt);
    hasher.update(bytes);
    hasher.finalize()
}

/// A frame whose checksum is right.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) header: Header,
    pub(super) records: u32,
    /// The frame's length in the file.
    pub(super) len: u64,
    body: Vec<u8>,
}

/// The fields of a frame's header, which may be anything.
struct Head {
    crc: u32,
    length: u32,
    records: u32,
    header: Header,
}

impl Head {
    fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.u32()? != MAGIC {
            return None;
        }
        let (crc, length, records) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let end = fields.u64()? & FLAG_END != 0;
        let header = Header { end, before: fields.u64()?, reserved: fields.u64()?, synced: fields.u64()? };
        Some(Self { crc, length, records, header })
    }
}

/// Reads the frame at `offset`; `None` if there is no whole one.
pub(super) fn read(file: &dyn FsFile, offset: u64, salt: u32) -> io::Result<Option<Frame>> {
    let mut bytes = [0; HEADER_BYTES];
    if file.read_at(&mut bytes, offset)? < HEADER_BYTES {
        return Ok(None);
    }
    let Some(Head { crc, length, records, header }) = Head::decode(&bytes) else { return Ok(None) };
    let len = (HEADER_BYTES as u64 + u64::from(length)).next_multiple_of(ALIGN_BYTES as u64);
    // Checked before the allocation.
    let file_bytes = file.len()?;
    if offset.checked_add(len).is_none_or(|end| end > file_bytes) {
        return Ok(None);
    }
    let body_bytes = usize::try_from(len).map_err(io::Error::other)? - HEADER_BYTES;
    let mut body = vec![0; body_bytes];
    if file.read_at(&mut body, offset + HEADER_BYTES as u64)? < body_bytes {
        return Ok(None);
    }
    let mut hasher = Hasher::new_with_initial(salt);
    hasher.update(&bytes[8..]);
    hasher.update(&body);
    if hasher.finalize() != crc {
        return Ok(None);
    }
    Ok(Some(Frame { header, records, len, body }))
}

/// Whether any whole frame behind `offset` was written when the bytes at `offset` had been fsynced.
pub(super) fn proves_synced(file: &dyn FsFile, offset: u64, salt: u32) -> io::Result<bool> {
    let mut window = vec![0; SEARCH_WINDOW_BYTES];
    let mut start = offset;
    loop {
        let filled = file.read_at(&mut window, start)?;
        for (position, word) in window[..filled].chunks_exact(ALIGN_BYTES).enumerate() {
            if word.starts_with(&MAGIC.to_le_bytes()) {
                let at = start + (position * ALIGN_BYTES) as u64;
                if read(file, at, salt)?.is_some_and(|frame| frame.header.synced > offset) {
                    return Ok(true);
                }
            }
        }
        if filled < window.len() {
            return Ok(false);
        }
        start += filled as u64;
    }
}

/// How many bytes there are between `offset` and the zeros that end the file.
pub(super) fn bytes_behind(file: &dyn FsFile, offset: u64) -> io::Result<u64> {
    let mut window = vec![0; SEARCH_WINDOW_BYTES];
    let (mut start, mut last) = (offset, 0);
    loop {
        let filled = file.read_at(&mut window, start)?;
        if let Some(position) = window[..filled].iter().rposition(|byte| *byte != 0) {
            last = start + position as u64 + 1 - offset;
        }
        if filled < window.len() {
            return Ok(last);
        }
        start += filled as u64;
    }
}

/// One change as it was written.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) kind: EventKind,
    pub(super) key: Arc<str>,
    pub(super) value: Bytes,
    pub(super) create_revision: Revision,
    pub(super) mod_revision: Revision,
    pub(super) expires_ms: Option<NonZeroU64>,
}

impl Record {
    pub(super) fn into_entry(self) -> Entry {
        let mut entry = Entry::new(self.key, self.value, self.create_revision, self.mod_revision);
        entry.expires_ms = self.expires_ms;
        entry
    }
}

impl Frame {
    /// The records, in order; `None` if they are not what the header announces.
    pub(super) fn decode(&self) -> Option<Vec<Record>> {
        let mut fields = Fields(&self.body);
        (0..self.records).map(|_| decode_record(&mut fields)).collect()
    }
}

fn decode_record(fields: &mut Fields<'_>) -> Option<Record> {
    let kind = match fields.take(1)? {
        [1] => EventKind::Put,
        [2] => EventKind::Delete,
        _ => return None,
    };
    let key_bytes = usize::from(fields.u16()?);
    let value_bytes = usize::try_from(fields.u32()?).ok()?;
    let (created, modified, expires_ms) = (fields.u64()?, fields.u64()?, fields.u64()?);
    if key_bytes > KEY_BYTES_MAX {
        return None;
    }
    let key = std::str::from_utf8(fields.take(key_bytes)?).ok()?.into();
    // Copied, so that an entry that lives long does not keep its whole frame.
    let value = Bytes::copy_from_slice(fields.take(value_bytes)?);
    Some(Record {
        kind,
        key,
        value,
        create_revision: Revision(created),
        mod_revision: Revision(modified),
        expires_ms: NonZeroU64::new(expires_ms),
    })
}

/// Bytes that are taken from the front; `None` where they end.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use carob_kit::fs::{Access, FaultFs, Fs};
    use proptest::prelude::*;

    use super::*;

    const SALT: u32 = 7;

    fn file_of(bytes: &[u8]) -> Arc<dyn FsFile> {
        let fs = FaultFs::new();
        fs.create_dir_all(Path::new("d")).expect("make the directory");
        let file = fs.open(Path::new("d/f"), Access::Create).expect("create");
        file.write_all_at(bytes, 0).expect("write");
        file
    }

    fn entry(key: &str, value: &[u8], expires_ms: u64) -> Entry {
        let mut entry = Entry::new(key.into(), Bytes::copy_from_slice(value), Revision(3), Revision(5));
        entry.expires_ms = NonZeroU64::new(expires_ms);
        entry
    }

    fn sample() -> Vec<u8> {
        let mut buffer = FrameBuffer::new(None);
        buffer.push(EventKind::Put, &entry("/a", b"value", 9)).expect("as it is");
        buffer.push(EventKind::Delete, &entry("/é", b"is not written", 0)).expect("as it is");
        let header = Header { end: true, before: 4, reserved: 100, synced: 48 };
        buffer.finish(&header, SALT).to_vec()
    }

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let bytes = sample();
        assert_eq!(bytes.len() % ALIGN_BYTES, 0);
        let frame = read(&*file_of(&bytes), 0, SALT).expect("read").expect("a whole frame");
        assert_eq!(frame.header, Header { end: true, before: 4, reserved: 100, synced: 48 });
        assert_eq!(frame.len, bytes.len() as u64);
        let records = frame.decode().expect("two records");
        let [put, delete] = &records[..] else { panic!("two records, not {records:?}") };
        assert_eq!((put.kind, &*put.key, &put.value[..]), (EventKind::Put, "/a", &b"value"[..]));
        assert_eq!((put.create_revision, put.mod_revision), (Revision(3), Revision(5)));
        assert_eq!(put.expires_ms.map(NonZeroU64::get), Some(9));
        assert_eq!((delete.kind, &*delete.key, delete.value.len()), (EventKind::Delete, "/é", 0));
        assert_eq!(delete.expires_ms, None);
    }

    #[test]
    fn a_frame_of_another_file_is_none() {
        assert!(read(&*file_of(&sample()), 0, SALT + 1).expect("read").is_none());
    }

    proptest! {
        #![proptest_config(crate::fixed_seed())]

        #[test]
        fn records_of_any_bytes_are_decoded_or_refused(body in prop::collection::vec(any::<u8>(), 0..200), records in 0..9u32) {
            let frame = Frame { header: Header::default(), records, len: 0, body };
            if let Some(records) = frame.decode() {
                prop_assert!(records.iter().all(|record| record.key.len() <= KEY_BYTES_MAX));
            }
        }

        #[test]
        fn a_file_of_any_bytes_has_no_frame(bytes in prop::collection::vec(any::<u8>(), 0..200), length in any::<u32>()) {
            let mut bytes = [&MAGIC.to_le_bytes()[..], &bytes].concat();
            if bytes.len() >= 12 {
                bytes[8..12].copy_from_slice(&length.to_le_bytes());
            }
            prop_assert!(read(&*file_of(&bytes), 0, SALT).expect("read").is_none());
        }
    }
}
