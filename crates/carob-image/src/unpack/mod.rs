//! Layers from archives: each is unpacked once, into a directory of its own that overlayfs stacks.
//!
//! Whiteouts become what overlayfs understands: a removed name a character device 0:0, a directory that hides all below
//! it the attribute `trusted.overlay.opaque` (kernel: filesystems/overlayfs.rst). Entries are put where a container
//! would see them: names that lie behind symbolic links, and directories that the archive implies but does not hold,
//! are looked up in the layers below.

mod decompress;
mod error;
mod levels;
mod place;

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::digest::{Digest, Hasher};
use crate::tarball::TarReader;

pub(crate) use decompress::decompress;
pub use error::UnpackError;
use place::Tree;

/// How much one layer may hold. What goes beyond is refused by name, before it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Entries in one layer. The largest public images have about half a million.
    pub entries_max: u64,
    /// Bytes of all files of one layer.
    pub bytes_max: u64,
    /// Bytes of one path: what a path can have in a system call (`PATH_MAX`, with its NUL 4096).
    pub path_len_max: usize,
    /// Directories above an entry; each is held open while it is worked in.
    pub depth_max: usize,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self { entries_max: 2_000_000, bytes_max: 64 << 30, path_len_max: 4095, depth_max: 200 }
    }
}

/// What came out of an archive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Of the uncompressed archive.
    pub(crate) diff_id: Digest,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// Unpacks an archive, compressed or not, into the empty directory `target`. `lowers` are the layers below, topmost
/// first. Blocks. What is in `target` after an error is garbage.
pub(crate) fn unpack(
    archive: impl Read,
    target: &Path,
    lowers: &[PathBuf],
    limits: &UnpackLimits,
) -> Result<Unpacked, UnpackError> {
    let hashed = Hashed { inner: decompress(archive)?, hasher: Hasher::new() };
    let mut reader = TarReader::new(hashed);
    let open = |path: &PathBuf| open_directory(path);
    let lowers: Vec<OwnedFd> = lowers.iter().map(open).collect::<Result<_, _>>()?;
    let mut tree = Tree::new(open_directory(target)?, lowers, limits.clone());
    while let Some(entry) = reader.next_entry()? {
        tree.place(&entry, &mut reader)?;
    }
    let (bytes, inodes) = tree.finish()?;
    let mut hashed = reader.into_inner();
    // The digest is of the whole archive, of which the padding behind the end marker is a part.
    let limit = limits.bytes_max;
    let rest = io::copy(&mut Read::take(&mut hashed, limit), &mut io::sink());
    if rest.map_err(UnpackError::Tail)? == limit {
        return Err(UnpackError::TooManyBytes { entry: "(end of archive)".to_owned(), max: limit });
    }
    Ok(Unpacked { diff_id: hashed.hasher.finish(), bytes, inodes })
}

fn open_directory(path: &Path) -> Result<OwnedFd, UnpackError> {
    let open = || fs_err::File::open(path).map(|file| OwnedFd::from(file.into_file()));
    open().map_err(|source| UnpackError::Directory { path: path.to_owned(), source })
}

/// Hashes what passes.
struct Hashed<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..len]);
        Ok(len)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
