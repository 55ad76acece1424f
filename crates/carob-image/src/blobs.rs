//! Content-addressed files: configurations and manifests for as long as their image, layers' archives only until they
//! are unpacked.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::digest::{Digest, Hasher};

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("write blob {digest}")]
    Write {
        digest: Digest,
        #[source]
        source: io::Error,
    },
    #[error("read blob {digest}")]
    Read {
        digest: Digest,
        #[source]
        source: io::Error,
    },
    #[error("blob {expected} has the digest {found}")]
    Digest { expected: Digest, found: Digest },
    #[error("blob {digest} has {found} bytes instead of {expected}")]
    Size { digest: Digest, expected: u64, found: u64 },
}

/// Counts who needs what: nothing that someone holds a lease on is removed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leases(Arc<Mutex<HashMap<Digest, usize>>>);

/// Keeps one thing from being removed while it is held.
#[derive(Debug)]
pub(crate) struct Lease {
    digest: Digest,
    leases: Leases,
}

impl Leases {
    pub(crate) fn take(&self, digest: &Digest) -> Lease {
        *self.count().entry(digest.clone()).or_default() += 1;
        Lease { digest: digest.clone(), leases: self.clone() }
    }

    pub(crate) fn is_held(&self, digest: &Digest) -> bool {
        self.count().contains_key(digest)
    }

    fn count(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, usize>> {
        // No holder panics half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut count = self.leases.count();
        if let Some(holders) = count.get_mut(&self.digest) {
            *holders -= 1;
            if *holders == 0 {
                count.remove(&self.digest);
            }
        }
    }
}

/// The directory of blobs.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    dir: PathBuf,
    temporary: PathBuf,
    pub(crate) leases: Leases,
}

impl Blobs {
    pub(crate) fn new(dir: PathBuf, temporary: PathBuf) -> Self {
        Self { dir, temporary, leases: Leases::default() }
    }

    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// A file to write a blob to, which becomes one when it is complete and right.
    pub(crate) fn writer(&self, digest: &Digest) -> Result<BlobWriter, BlobError> {
        let temporary = self.temporary.join(format!("blob-{}", carob_kit::uid()));
        let file = fs_err::File::create_new(&temporary)
            .map_err(|source| BlobError::Write { digest: digest.clone(), source })?;
        Ok(BlobWriter {
            file,
            temporary: RemovedOnDrop(temporary),
            target: self.path(digest),
            digest: digest.clone(),
            hasher: Hasher::new(),
            len: 0,
        })
    }

    /// Writes a small blob at once.
    pub(crate) fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), BlobError> {
        let mut writer = self.writer(digest)?;
        writer.write(bytes)?;
        writer.commit(bytes.len() as u64)
    }

    pub(crate) fn read(&self, digest: &Digest) -> Result<Vec<u8>, BlobError> {
        let bytes =
            fs_err::read(self.path(digest)).map_err(|source| BlobError::Read { digest: digest.clone(), source })?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(BlobError::Digest { expected: digest.clone(), found });
        }
        Ok(bytes)
    }

    /// Removes all but these and those on lease.
    pub(crate) fn retain(&self, keep: impl Fn(&Digest) -> bool) -> io::Result<()> {
        for entry in fs_err::read_dir(&self.dir)? {
            let path = entry?.path();
            let digest = path.file_name().and_then(|name| format!("sha256:{}", name.to_string_lossy()).parse().ok());
            if digest.is_none_or(|digest| !keep(&digest) && !self.leases.is_held(&digest)) {
                remove_if_there(&path)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A temporary file that goes when nobody wants it; what a crash leaves is removed when the store opens.
#[derive(Debug)]
pub(crate) struct RemovedOnDrop(pub(crate) PathBuf);

impl Drop for RemovedOnDrop {
    fn drop(&mut self) {
        if let Err(error) = remove_if_there(&self.0) {
            tracing::warn!(%error, "a temporary file stays until the store is opened again");
        }
    }
}

/// A blob on its way. Blocks, in small steps.
#[derive(Debug)]
pub(crate) struct BlobWriter {
    file: fs_err::File,
    temporary: RemovedOnDrop,
    target: PathBuf,
    digest: Digest,
    hasher: Hasher,
    len: u64,
}

impl BlobWriter {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|source| BlobError::Write { digest: self.digest.clone(), source })
    }

    /// Makes it a blob, if size and digest are as they should be.
    pub(crate) fn commit(self, expected_len: u64) -> Result<(), BlobError> {
        let digest = self.digest;
        if self.len != expected_len {
            return Err(BlobError::Size { digest, expected: expected_len, found: self.len });
        }
        let found = self.hasher.finish();
        if found != digest {
            return Err(BlobError::Digest { expected: digest, found });
        }
        fs_err::rename(&self.temporary.0, self.target).map_err(|source| BlobError::Write { digest, source })
    }
}
