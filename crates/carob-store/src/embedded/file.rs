//! Names of files, and the header with which segments and checkpoints begin.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic, by kind |
//! | 8 | 8 | the file's number, as in its name |
//! | 16 | 8 | the revision before the file's content: what the frames before it must have come to |
//! | 24 | 8 | the revision at which its content begins; greater than the one before after an unclean end |
//! | 32 | 8 | no revision above this one has been issued |
//! | 40 | 4 | salt of the checksums in this file |
//! | 44 | 4 | CRC-32 of everything before |

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use carob_kit::fs::{Access, Fs, FsFile, write_atomic};

use super::frame::{Fields, checksum};
use crate::entry::Revision;

pub(super) const HEADER_BYTES: usize = 48;

/// The suffix of a file that is not complete.
pub(super) const TEMPORARY_SUFFIX: &str = ".tmp";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Segment,
    Checkpoint,
}

impl Kind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Segment => b"carobSeg",
            Self::Checkpoint => b"carobChk",
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Segment => "segment-",
            Self::Checkpoint => "checkpoint-",
        }
    }

    pub(super) fn path(self, dir: &Path, number: u64) -> PathBuf {
        dir.join(format!("{}{number:016x}", self.prefix()))
    }

    /// The number of a file of this kind by its name.
    pub(super) fn number(self, name: &str) -> Option<u64> {
        let digits = name.strip_prefix(self.prefix())?;
        (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) number: u64,
    pub(super) before: Revision,
    pub(super) start: Revision,
    pub(super) reserved: Revision,
    pub(super) salt: u32,
}

impl Header {
    pub(super) fn encode(&self, kind: Kind) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(kind.magic());
        for (at, number) in [(8, self.number), (16, self.before.0), (24, self.start.0), (32, self.reserved.0)] {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes[40..44].copy_from_slice(&self.salt.to_le_bytes());
        let crc = checksum(0, &bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(kind: Kind, bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let magic = fields.take(8)?;
        let header = Self {
            number: fields.u64()?,
            before: Revision(fields.u64()?),
            start: Revision(fields.u64()?),
            reserved: Revision(fields.u64()?),
            salt: fields.u32()?,
        };
        let whole = magic == kind.magic() && fields.u32()? == checksum(0, &bytes[..44]);
        whole.then_some(header)
    }

    /// Reads a file's header; `None` if it is not one of this kind and number.
    pub(super) fn read(kind: Kind, file: &dyn FsFile, number: u64) -> io::Result<Option<Self>> {
        let mut bytes = [0; HEADER_BYTES];
        if file.read_at(&mut bytes, 0)? < HEADER_BYTES {
            return Ok(None);
        }
        Ok(Self::decode(kind, &bytes).filter(|header| header.number == number))
    }
}

/// A file that has no name of its own yet.
pub(super) struct NewFile<'a> {
    fs: &'a dyn Fs,
    pub(super) file: Arc<dyn FsFile>,
    temporary: PathBuf,
    path: PathBuf,
}

impl<'a> NewFile<'a> {
    pub(super) fn create(fs: &'a dyn Fs, path: PathBuf) -> io::Result<Self> {
        let mut temporary = path.clone().into_os_string();
        temporary.push(TEMPORARY_SUFFIX);
        let temporary = PathBuf::from(temporary);
        remove_if_there(fs, &temporary)?;
        let file = fs.open(&temporary, Access::Create)?;
        Ok(Self { fs, file, temporary, path })
    }

    /// Makes the content durable, then gives it its name, durably.
    pub(super) fn name(self, dir: &Path) -> io::Result<Arc<dyn FsFile>> {
        self.file.sync_data()?;
        self.fs.rename(&self.temporary, &self.path)?;
        self.fs.sync_dir(dir)?;
        Ok(self.file)
    }

    /// Gives the room back.
    pub(super) fn discard(self) -> io::Result<()> {
        self.fs.remove(&self.temporary)
    }
}

/// Where a log ended when it was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CleanEnd {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// The file that says so. It is there only while no process has the store open.
pub(super) const CLEAN_FILE: &str = "CLEAN";
/// Bytes read of it.
const CLEAN_BYTES_MAX: usize = 128;

impl CleanEnd {
    pub(super) fn write(self, fs: &dyn Fs, dir: &Path) -> io::Result<()> {
        let text = format!("segment {:016x} ends at {}\n", self.segment, self.offset);
        write_atomic(fs, &dir.join(CLEAN_FILE), text.as_bytes())
    }

    /// `None` if there is no such file; `Some(None)` if it makes no sense.
    pub(super) fn read(fs: &dyn Fs, dir: &Path) -> io::Result<Option<Option<Self>>> {
        let file = match fs.open(&dir.join(CLEAN_FILE), Access::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = [0; CLEAN_BYTES_MAX];
        let count = file.read_at(&mut bytes, 0)?;
        let parse = |text: &str| {
            let (segment, offset) = text.strip_prefix("segment ")?.strip_suffix('\n')?.split_once(" ends at ")?;
            Some(Self { segment: u64::from_str_radix(segment, 16).ok()?, offset: offset.parse().ok()? })
        };
        Ok(Some(std::str::from_utf8(&bytes[..count]).ok().and_then(parse)))
    }
}

pub(super) fn remove_if_there(fs: &dyn Fs, path: &Path) -> io::Result<()> {
    match fs.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
