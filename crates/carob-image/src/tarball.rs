//! Reading tar archives that may be hostile: ustar, GNU long names and pax headers, each with a limit.
//!
//! The `tar` crate decodes the fields of a header; walking the archive is done here, because the crate reads long names
//! and pax records of any length into memory.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

const BLOCK_LEN: usize = 512;
/// Longest pax header or GNU long name. Extended attributes are in pax headers, at most 64 KiB each (xattr(7)).
const EXTENSION_LEN_MAX: u64 = 1 << 20;
/// Parts of one sparse file: its map is at most as long as another extension, and a part takes four bytes of it.
const PARTS_MAX: usize = 1 << 18;
/// Characters of an entry's name that errors quote.
const QUOTED_LEN_MAX: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("read the archive after entry {after:?}")]
    Read {
        after: String,
        #[source]
        source: io::Error,
    },
    #[error("the archive ends inside entry {entry:?}")]
    Truncated { entry: String },
    #[error("what follows entry {after:?} is not a tar header: its checksum is wrong")]
    Checksum { after: String },
    #[error("entry {entry:?} has an invalid {field}")]
    Field {
        entry: String,
        field: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("entry {entry:?} has an extended header of {len} bytes, at most {EXTENSION_LEN_MAX} are allowed")]
    ExtensionTooLong { entry: String, len: u64 },
    #[error("entry {entry:?} has a malformed pax header: {reason}")]
    Pax { entry: String, reason: &'static str },
    #[error("entry {entry:?} is a sparse file with a malformed map: {reason}")]
    Sparse { entry: String, reason: &'static str },
    #[error("entry {entry:?} is of type {kind:?}, which is not supported")]
    Kind { entry: String, kind: char },
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// One entry; its content is read from the [`TarReader`] before the next one.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// As the archive spells it.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Bytes of content.
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds since the epoch.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of a file with holes: where its content belongs.
    pub(crate) sparse: Option<Sparse>,
}

/// A file of which the archive holds the parts that are not zeros (GNU tar manual, "Storing Sparse Files").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sparse {
    pub(crate) real_size: u64,
    /// In order, without overlaps, within the size; together as long as the content.
    pub(crate) parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// What pax and GNU headers said about the entry that follows them.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: SparseRecords,
}

/// What pax headers say of a sparse file, in the formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
struct SparseRecords {
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    /// Offsets and lengths in turn; in format 1.0 they are at the beginning of the content.
    map: Vec<u64>,
    in_content: bool,
}

/// Walks an archive once, front to back. Reading from it yields the current entry's content.
#[derive(Debug)]
pub(crate) struct TarReader<R> {
    inner: R,
    /// Bytes of content left, and of padding behind it.
    content_left: u64,
    padding_left: u64,
    /// The entry before, for errors.
    last: String,
    /// Bytes read so far.
    position: u64,
}

/// An entry's name for errors: printable and not too long.
pub(crate) fn quoted(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(QUOTED_LEN_MAX).collect()
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, content_left: 0, padding_left: 0, last: String::new(), position: 0 }
    }

    /// Where the current entry's content begins, in bytes from the start of the archive.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, or `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.read_header()? else { return Ok(None) };
            let name = quoted(&header.path_bytes());
            let kind = header.entry_type();
            let size = header.entry_size().map_err(|source| field(&name, "size", source))?;
            match kind {
                EntryType::XHeader => {
                    let records = self.read_extension(&name, size)?;
                    extensions.read_pax(&name, &records)?;
                }
                // Global records are comments and defaults that no image builder writes; git puts a commit there.
                EntryType::XGlobalHeader => drop(self.read_extension(&name, size)?),
                EntryType::GNULongName => extensions.path = Some(until_nul(self.read_extension(&name, size)?)),
                EntryType::GNULongLink => extensions.link = Some(until_nul(self.read_extension(&name, size)?)),
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, TarError> {
        let sparse_name = extensions.sparse.name.clone();
        let path = sparse_name.or(extensions.path).unwrap_or_else(|| header.path_bytes().into_owned());
        let name = quoted(&path);
        let number = |value: io::Result<u64>, what| value.map_err(|source| field(&name, what, source));
        let link = || extensions.link.clone().or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let device = || -> Result<(u32, u32), TarError> {
            let part = |value: io::Result<Option<u32>>| {
                value.map(Option::unwrap_or_default).map_err(|source| field(&name, "device number", source))
            };
            Ok((part(header.device_major())?, part(header.device_minor())?))
        };
        let kind = match header.entry_type() {
            // Archives older than POSIX mark a directory by its name alone.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link().unwrap_or_default()),
            EntryType::Link => Kind::HardLink(link().unwrap_or_default()),
            EntryType::Char => device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
            EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            EntryType::Fifo => Kind::Fifo,
            other => return Err(TarError::Kind { entry: name, kind: char::from(other.as_byte()) }),
        };
        let size = match kind {
            Kind::File => extensions.size.map_or_else(|| number(header.entry_size(), "size"), Ok)?,
            _ => 0,
        };
        let mtime = match extensions.mtime {
            Some(mtime) => mtime,
            None => (i64::try_from(number(header.mtime(), "time")?).unwrap_or(i64::MAX), 0),
        };
        let mut entry = Entry {
            kind,
            size,
            sparse: None,
            mode: header.mode().map_err(|source| field(&name, "mode", source))?,
            uid: extensions.uid.map_or_else(|| number(header.uid(), "user id"), Ok)?,
            gid: extensions.gid.map_or_else(|| number(header.gid(), "group id"), Ok)?,
            mtime,
            xattrs: extensions.xattrs,
            path,
        };
        let old_map =
            if header.entry_type() == EntryType::GNUSparse { Some(self.old_map(header, &name)?) } else { None };
        self.begin_content(size);
        self.last.clone_from(&name);
        if entry.kind == Kind::File {
            entry.sparse = self.sparse(extensions.sparse, old_map, &name)?;
            entry.size = self.content_left;
        }
        Ok(entry)
    }

    /// Where the content of a file belongs, if it has holes.
    fn sparse(
        &mut self,
        records: SparseRecords,
        old_map: Option<(u64, Vec<u64>)>,
        name: &str,
    ) -> Result<Option<Sparse>, TarError> {
        let malformed = |reason| TarError::Sparse { entry: name.to_owned(), reason };
        let (real_size, map) = match (old_map, records.real_size) {
            (Some(map), _) => map,
            (None, Some(size)) if records.in_content => (size, self.map_in_content(name)?),
            (None, Some(size)) => (size, records.map),
            (None, None) if records.map.is_empty() && !records.in_content => return Ok(None),
            (None, None) => return Err(malformed("no size")),
        };
        let mut parts = Vec::with_capacity(map.len() / 2);
        let (mut end, mut stored) = (0, 0u64);
        for pair in map.chunks(2) {
            let &[offset, len] = pair else { return Err(malformed("an offset without a length")) };
            let after = offset.checked_add(len).filter(|after| offset >= end && *after <= real_size);
            end = after.ok_or_else(|| malformed("a part out of place"))?;
            stored = stored.saturating_add(len);
            parts.push(Part { offset, len });
        }
        if stored != self.content_left {
            return Err(malformed("its parts are not as long as its content"));
        }
        Ok(Some(Sparse { real_size, parts }))
    }

    /// Format 1.0: lines of decimal numbers before the content, the number of parts first, filled up to a block.
    fn map_in_content(&mut self, name: &str) -> Result<Vec<u64>, TarError> {
        let malformed = |reason| TarError::Sparse { entry: name.to_owned(), reason };
        let (mut numbers, mut wanted, mut line) = (Vec::new(), None, Vec::new());
        let mut block = [0; BLOCK_LEN];
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            let mut filled = 0;
            while filled < BLOCK_LEN {
                match self.read_content(&mut block[filled..])? {
                    0 => return Err(malformed("it does not end")),
                    len => filled += len,
                }
            }
            for byte in block {
                match (byte, wanted) {
                    (b'0'..=b'9', _) if line.len() < 20 => line.push(byte),
                    (b'\n', None) => {
                        let count: usize = text(&line)
                            .and_then(|text| text.parse().ok())
                            .ok_or_else(|| malformed("no number of parts"))?;
                        if count > PARTS_MAX {
                            return Err(malformed("too many parts"));
                        }
                        wanted = Some(count * 2);
                        line.clear();
                    }
                    (b'\n', Some(wanted)) if numbers.len() < wanted => {
                        let number = text(&line).and_then(|text| text.parse().ok());
                        numbers.push(number.ok_or_else(|| malformed("a line that is not a number"))?);
                        line.clear();
                    }
                    // What fills the last block.
                    (_, Some(wanted)) if numbers.len() >= wanted => break,
                    _ => return Err(malformed("a line that is not a number")),
                }
            }
        }
        Ok(numbers)
    }

    /// GNU tar's format of before POSIX: the map is in the header and in blocks that follow it.
    fn old_map(&mut self, header: &Header, name: &str) -> Result<(u64, Vec<u64>), TarError> {
        let malformed = |reason| TarError::Sparse { entry: name.to_owned(), reason };
        let gnu = header.as_gnu().ok_or_else(|| malformed("not a header of GNU tar"))?;
        let real_size = gnu.real_size().map_err(|source| field(name, "real size", source))?;
        let mut map = Vec::new();
        let mut add = |parts: &[tar::GnuSparseHeader]| -> Result<(), TarError> {
            for part in parts.iter().filter(|part| !part.is_empty()) {
                map.push(part.offset().map_err(|source| field(name, "offset", source))?);
                map.push(part.length().map_err(|source| field(name, "length", source))?);
            }
            if map.len() / 2 > PARTS_MAX { Err(malformed("too many parts")) } else { Ok(()) }
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            let read = self.inner.read_exact(block.as_mut_bytes());
            read.map_err(|source| {
                if source.kind() == io::ErrorKind::UnexpectedEof {
                    TarError::Truncated { entry: name.to_owned() }
                } else {
                    TarError::Read { after: name.to_owned(), source }
                }
            })?;
            self.position += BLOCK_LEN as u64;
            add(block.sparse())?;
            more = block.is_extended();
        }
        Ok((real_size, map))
    }

    fn begin_content(&mut self, size: u64) {
        self.content_left = size;
        self.padding_left = size.wrapping_neg() % BLOCK_LEN as u64;
    }

    /// `None` at the end: two blocks of zeros, of which one is enough, or just nothing more.
    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        let mut filled = 0;
        while filled < BLOCK_LEN {
            let read = self.inner.read(&mut header.as_mut_bytes()[filled..]);
            match read.map_err(|source| TarError::Read { after: self.last.clone(), source })? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(TarError::Truncated { entry: self.last.clone() }),
                len => filled += len,
            }
        }
        self.position += BLOCK_LEN as u64;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The checksum is of the header with its own field as spaces (POSIX ustar).
        let sum = header
            .as_bytes()
            .iter()
            .enumerate()
            .map(|(index, byte)| if (148..156).contains(&index) { u32::from(b' ') } else { u32::from(*byte) });
        if header.cksum().ok() != Some(sum.sum()) {
            return Err(TarError::Checksum { after: self.last.clone() });
        }
        zero_blank_numbers(&mut header);
        Ok(Some(header))
    }

    fn read_extension(&mut self, name: &str, size: u64) -> Result<Vec<u8>, TarError> {
        if size > EXTENSION_LEN_MAX {
            return Err(TarError::ExtensionTooLong { entry: name.to_owned(), len: size });
        }
        self.begin_content(size);
        name.clone_into(&mut self.last);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(|source| self.content_error(source))?;
        Ok(bytes)
    }

    /// Moves to the next header.
    fn skip_rest(&mut self) -> Result<(), TarError> {
        io::copy(&mut *self, &mut io::sink()).map_err(|source| self.content_error(source))?;
        self.content_left = std::mem::take(&mut self.padding_left);
        io::copy(&mut *self, &mut io::sink()).map_err(|source| self.content_error(source))?;
        Ok(())
    }

    /// The next part of the current entry's content; 0 at its end.
    pub(crate) fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        self.read(buffer).map_err(|source| self.content_error(source))
    }

    fn content_error(&self, source: io::Error) -> TarError {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            return TarError::Truncated { entry: self.last.clone() };
        }
        TarError::Read { after: self.last.clone(), source }
    }
}

/// The content of the current entry; ending early is `UnexpectedEof`.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.content_left).unwrap_or(usize::MAX).min(buffer.len());
        if len == 0 {
            return Ok(0);
        }
        let read = self.inner.read(&mut buffer[..len])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content_left -= read as u64;
        self.position += read as u64;
        Ok(read)
    }
}

/// A number that was left blank is 0, as Go's and GNU's tar read it. Fields of the ustar header: mode, uid, gid, size,
/// mtime, and the device's two numbers.
fn zero_blank_numbers(header: &mut Header) {
    for range in [100..108, 108..116, 116..124, 124..136, 136..148, 329..337, 337..345] {
        let field = &mut header.as_mut_bytes()[range];
        if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
            field[0] = b'0';
        }
    }
}

fn field(entry: &str, field: &'static str, source: io::Error) -> TarError {
    TarError::Field { entry: entry.to_owned(), field, source }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

impl Extensions {
    /// Records are `"<length> <key>=<value>\n"`, the length of all of it (POSIX pax, "Extended Header").
    fn read_pax(&mut self, entry: &str, mut rest: &[u8]) -> Result<(), TarError> {
        let malformed = |reason| TarError::Pax { entry: entry.to_owned(), reason };
        while !rest.is_empty() && rest[0] != 0 {
            let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(|| malformed("no length"))?;
            let len: usize = text(&rest[..space]).and_then(|text| text.parse().ok()).unwrap_or(0);
            let record = rest.get(space + 1..len).ok_or_else(|| malformed("a length that does not fit"))?;
            rest = &rest[len..];
            let record = record.strip_suffix(b"\n").ok_or_else(|| malformed("a record without end"))?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(|| malformed("no key"))?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            self.set(key, value).ok_or_else(|| malformed("a value that is not a number"))?;
        }
        Ok(())
    }

    /// `None` when a number is wanted and is not there.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let number = || text(value).and_then(|text| text.parse().ok());
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = Some(number()?),
            b"GNU.sparse.major" => self.sparse.in_content = number()? == 1u64,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.map.push(number()?),
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',').map(|part| text(part)?.parse().ok());
                self.sparse.map = numbers.collect::<Option<_>>()?;
            }
            b"mtime" => self.mtime = Some(time(text(value)?)?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Some(())
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// A decimal number of seconds with a fraction, as whole seconds rounded down and nanoseconds.
fn time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_times_have_fractions_and_signs() {
        for (text, expect) in [
            ("0", Some((0, 0))),
            ("1350244992.023960108", Some((1_350_244_992, 23_960_108))),
            ("1.5", Some((1, 500_000_000))),
            ("-1.5", Some((-2, 500_000_000))),
            ("1.0000000019", Some((1, 1))),
            ("x", None),
            ("1.x", None),
            ("", None),
        ] {
            assert_eq!(time(text), expect, "{text}");
        }
    }

    #[test]
    fn an_archive_without_end_marker_is_complete() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(3);
        header.set_cksum();
        builder.append_data(&mut header, "a", &b"abc"[..]).unwrap();
        let bytes = builder.into_inner().unwrap();
        let mut reader = TarReader::new(&bytes[..1024]);
        let entry = reader.next_entry().unwrap().unwrap();
        assert_eq!((entry.path.as_slice(), entry.size, reader.position()), (&b"a"[..], 3, 512));
        assert!(reader.next_entry().unwrap().is_none());
    }
}
