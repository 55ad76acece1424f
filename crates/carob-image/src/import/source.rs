//! The members of an archive or a directory, by name and in any order.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{ImportError, ImportSource};
use crate::blobs::RemovedOnDrop;
use crate::manifest::DOCUMENT_LEN_MAX;
use crate::tarball::{Kind, TarReader};
use crate::unpack::decompress;

/// Members of one archive: far more than the layers and documents of thousands of images.
const MEMBERS_MAX: usize = 100_000;
/// Links followed to a member: docker's older archives have one for a layer that is there twice.
const LINKS_MAX: usize = 8;

/// An opened archive or directory.
pub(super) enum Source {
    Tar { file: Arc<std::fs::File>, members: HashMap<String, Member>, _spool: Option<RemovedOnDrop> },
    Directory(OwnedFd),
}

pub(super) enum Member {
    File { offset: u64, len: u64 },
    Link(String),
}

impl Source {
    /// Opens it; what is compressed, or a stream, is spooled to a file first, which may have at most `max` bytes.
    pub(super) fn open(from: ImportSource, temporary: &Path, max: u64) -> Result<Self, ImportError> {
        let (file, spool) = match from {
            ImportSource::Reader(reader) => spool(reader, temporary, max)?,
            ImportSource::Path(path) => {
                let open = |source| ImportError::Open { path: path.clone(), source };
                let file = fs_err::File::open(&path).map_err(open)?.into_file();
                if file.metadata().map_err(open)?.is_dir() {
                    return Ok(Self::Directory(file.into()));
                }
                if is_tar(&file).map_err(open)? { (file, None) } else { spool(Box::new(file), temporary, max)? }
            }
        };
        let members = list(&file)?;
        Ok(Self::Tar { file: Arc::new(file), members, _spool: spool })
    }

    pub(super) fn has(&self, member: &str) -> bool {
        self.len(member).is_some()
    }

    /// Bytes of a member, if it is there.
    pub(super) fn len(&self, member: &str) -> Option<u64> {
        match self {
            Self::Tar { members, .. } => find(members, member).ok().map(|(_, len)| len),
            Self::Directory(dir) => {
                let file = open_beneath(dir, member).ok()?;
                file.metadata().ok().map(|metadata| metadata.len())
            }
        }
    }

    /// The content of a member.
    pub(super) fn open_member(&self, member: &str) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Self::Tar { file, members, .. } => {
                let (offset, len) = find(members, member).map_err(io::Error::other)?;
                Ok(Box::new(Section { file: Arc::clone(file), offset, left: len }))
            }
            Self::Directory(dir) => Ok(Box::new(open_beneath(dir, member)?)),
        }
    }

    /// A short member, whole.
    pub(super) fn document(&self, member: &str) -> Result<Vec<u8>, ImportError> {
        let len = self.len(member).ok_or_else(|| ImportError::Missing { member: member.to_owned() })?;
        if len > DOCUMENT_LEN_MAX {
            let member = member.to_owned();
            return Err(ImportError::DocumentTooLong { member, len, max: DOCUMENT_LEN_MAX });
        }
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            self.open_member(member)?.take(DOCUMENT_LEN_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|source| ImportError::Read { member: member.to_owned(), source })
    }
}

/// A file of the directory or below it, not behind any symbolic link.
fn open_beneath(dir: &OwnedFd, member: &str) -> io::Result<std::fs::File> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::openat2(dir, member, flags, Mode::empty(), resolve)?.into())
}

fn is_tar(file: &std::fs::File) -> io::Result<bool> {
    /// Where a tar header says so (POSIX ustar, field `magic`).
    const MAGIC: (u64, &[u8]) = (257, b"ustar");
    let mut magic = [0; 5];
    let len = rustix::io::pread(file, &mut magic, MAGIC.0)?;
    Ok(&magic[..len] == MAGIC.1)
}

fn spool(
    reader: Box<dyn Read + Send>,
    temporary: &Path,
    max: u64,
) -> Result<(std::fs::File, Option<RemovedOnDrop>), ImportError> {
    let path = RemovedOnDrop(temporary.join(format!("import-{}", carob_kit::uid())));
    let create = || fs_err::OpenOptions::new().read(true).write(true).create_new(true).open(&path.0);
    let mut file = create().map_err(ImportError::Spool)?.into_file();
    let plain = decompress(reader).map_err(ImportError::Recognise)?;
    let copied = io::copy(&mut plain.take(max.saturating_add(1)), &mut file).map_err(ImportError::Spool)?;
    if copied > max {
        return Err(ImportError::TooLong { max });
    }
    file.flush().map_err(ImportError::Spool)?;
    file.seek(SeekFrom::Start(0)).map_err(ImportError::Spool)?;
    Ok((file, Some(path)))
}

fn list(file: &std::fs::File) -> Result<HashMap<String, Member>, ImportError> {
    let mut members = HashMap::new();
    let mut reader = TarReader::new(io::BufReader::with_capacity(64 << 10, file));
    while let Some(entry) = reader.next_entry()? {
        let name = clean(&String::from_utf8_lossy(&entry.path));
        let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
        let member = match entry.kind {
            Kind::File => Member::File { offset: reader.position(), len: entry.size },
            Kind::Symlink(target) => Member::Link(relative(directory, &String::from_utf8_lossy(&target))),
            Kind::HardLink(target) => Member::Link(clean(&String::from_utf8_lossy(&target))),
            Kind::Directory | Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => continue,
        };
        members.insert(name, member);
        if members.len() > MEMBERS_MAX {
            return Err(ImportError::TooManyMembers { max: MEMBERS_MAX });
        }
    }
    Ok(members)
}

fn clean(name: &str) -> String {
    name.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

/// A symbolic link's target as a member's name. One that climbs out of the archive names nothing in it.
fn relative(directory: &str, target: &str) -> String {
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

fn find(members: &HashMap<String, Member>, name: &str) -> Result<(u64, u64), ImportError> {
    let mut at = clean(name);
    for _ in 0..LINKS_MAX {
        match members.get(&at) {
            Some(Member::File { offset, len }) => return Ok((*offset, *len)),
            Some(Member::Link(target)) => at = target.clone(),
            None => return Err(ImportError::Missing { member: name.to_owned() }),
        }
    }
    Err(ImportError::Link { member: name.to_owned() })
}

/// A part of a file that several threads may read parts of.
struct Section {
    file: Arc<std::fs::File>,
    offset: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(&*self.file, &mut buffer[..len], self.offset))?;
        if read == 0 && len > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
