//! The unpacked layers: one directory for each chain ID, made once whoever asks.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use carob_kit::KeyedLocks;

use crate::blobs::Leases;
use crate::digest::Digest;
use crate::record::LayerRecord;
use crate::unpack::{UnpackError, UnpackLimits, unpack};

/// The directory inside a layer's that overlayfs mounts: room is left for more about the layer beside it.
const CONTENT: &str = "fs";

#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("make the directory of layer {layer}")]
    Create {
        layer: Digest,
        #[source]
        source: io::Error,
    },
    #[error("open the archive of layer {layer}")]
    Open {
        layer: Digest,
        #[source]
        source: io::Error,
    },
    #[error("unpack layer {layer}")]
    Unpack {
        layer: Digest,
        #[source]
        source: Box<UnpackError>,
    },
    #[error("layer {expected} unpacks to {found}: its archive is not the one that the image's configuration names")]
    Mismatch { expected: Digest, found: Digest },
    #[error("the worker that unpacked layer {layer} failed")]
    Worker {
        layer: Digest,
        #[source]
        source: tokio::task::JoinError,
    },
}

/// What one layer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
}

/// Opens a layer's archive, when it is needed.
pub(crate) type OpenArchive = Box<dyn FnOnce() -> io::Result<Box<dyn Read + Send>> + Send>;

/// One layer to be made.
pub(crate) struct NewLayer {
    pub(crate) diff_id: Digest,
    pub(crate) chain_id: Digest,
    /// The layers below, topmost first.
    pub(crate) below: Vec<Digest>,
}

#[derive(Debug)]
pub(crate) struct LayerStore {
    dir: PathBuf,
    temporary: PathBuf,
    limits: UnpackLimits,
    pub(crate) leases: Leases,
    present: Mutex<BTreeMap<Digest, Size>>,
    /// Of layers that someone is unpacking.
    turns: KeyedLocks<Digest>,
}

impl LayerStore {
    pub(super) fn new(dir: PathBuf, temporary: PathBuf, limits: UnpackLimits) -> Self {
        let (leases, present, turns) = (Leases::default(), Mutex::default(), KeyedLocks::default());
        Self { dir, temporary, limits, leases, present, turns }
    }

    /// The directory to mount.
    pub(super) fn path(&self, chain_id: &Digest) -> PathBuf {
        self.dir.join(chain_id.hex()).join(CONTENT)
    }

    pub(super) fn has(&self, chain_id: &Digest) -> bool {
        self.present().contains_key(chain_id)
    }

    pub(super) fn mark(&self, layer: &LayerRecord) {
        let size = Size { bytes: layer.unpacked_bytes, inodes: layer.inodes };
        self.present().insert(layer.chain_id.clone(), size);
    }

    pub(super) fn total(&self) -> (usize, Size) {
        let present = self.present();
        let bytes = present.values().map(|size| size.bytes).sum();
        let inodes = present.values().map(|size| size.inodes).sum();
        (present.len(), Size { bytes, inodes })
    }

    fn present(&self) -> MutexGuard<'_, BTreeMap<Digest, Size>> {
        // No holder panics half way.
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else makes the layer.
    pub(crate) async fn turn(&self, chain_id: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        self.turns.take(chain_id).await
    }

    /// The layer as it is here, if it is.
    pub(crate) fn get(&self, layer: &NewLayer) -> Option<LayerRecord> {
        let size = *self.present().get(&layer.chain_id)?;
        Some(record(layer, size))
    }

    /// Unpacks the layer into a temporary directory and moves it to its place if it is the right one. Whoever calls
    /// this has the layer's turn and a lease on it and on those below. Not yet durable.
    pub(crate) fn make(&self, layer: &NewLayer, open: OpenArchive) -> Result<LayerRecord, LayerError> {
        let id = || layer.diff_id.clone();
        let create = |source| LayerError::Create { layer: id(), source };
        let temporary = TemporaryDir::new(&self.temporary).map_err(create)?;
        let content = temporary.path.join(CONTENT);
        fs_err::create_dir(&content).map_err(create)?;
        let archive = open().map_err(|source| LayerError::Open { layer: id(), source })?;
        let lowers: Vec<PathBuf> = layer.below.iter().map(|chain_id| self.path(chain_id)).collect();
        let unpacked = unpack(archive, &content, &lowers, &self.limits)
            .map_err(|source| LayerError::Unpack { layer: id(), source: Box::new(source) })?;
        if unpacked.diff_id != layer.diff_id {
            return Err(LayerError::Mismatch { expected: id(), found: unpacked.diff_id });
        }
        match fs_err::rename(&temporary.path, self.dir.join(layer.chain_id.hex())) {
            // Another process that has the store open was faster: it is the same layer.
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {}
            moved => moved.map_err(create)?,
        }
        let size = Size { bytes: unpacked.bytes, inodes: unpacked.inodes };
        self.present().insert(layer.chain_id.clone(), size);
        Ok(record(layer, size))
    }

    /// Removes all layers but these and those on lease. Returns the bytes that became free.
    pub(super) fn retain(&self, keep: impl Fn(&Digest) -> bool) -> io::Result<u64> {
        let mut freed = 0;
        let mut doomed = Vec::new();
        {
            // Moved away under the lock, so that a job that makes such a layer again finds its place free.
            let mut present = self.present();
            let unused: Vec<Digest> =
                present.keys().filter(|id| !keep(id) && !self.leases.is_held(id)).cloned().collect();
            for chain_id in unused {
                let temporary = TemporaryDir::unused(&self.temporary);
                fs_err::rename(self.dir.join(chain_id.hex()), &temporary.path)?;
                doomed.push(temporary);
                freed += present.remove(&chain_id).map_or(0, |size| size.bytes);
            }
        }
        drop(doomed);
        Ok(freed)
    }

    /// Removes directories that no record speaks of: a crash came before the record.
    pub(super) fn remove_unknown(&self) -> io::Result<()> {
        for entry in fs_err::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| format!("sha256:{}", name.to_string_lossy())).unwrap_or_default();
            if !name.parse().is_ok_and(|chain_id: Digest| self.has(&chain_id)) {
                fs_err::remove_dir_all(&path)?;
            }
        }
        Ok(())
    }
}

fn record(layer: &NewLayer, size: Size) -> LayerRecord {
    LayerRecord {
        diff_id: layer.diff_id.clone(),
        chain_id: layer.chain_id.clone(),
        unpacked_bytes: size.bytes,
        inodes: size.inodes,
    }
}

/// A directory that goes when it was not moved away; what a crash leaves is removed when the store opens.
struct TemporaryDir {
    path: PathBuf,
}

impl TemporaryDir {
    fn unused(parent: &Path) -> Self {
        Self { path: parent.join(format!("layer-{}", carob_kit::uid())) }
    }

    fn new(parent: &Path) -> io::Result<Self> {
        let dir = Self::unused(parent);
        fs_err::create_dir(&dir.path)?;
        Ok(dir)
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        match fs_err::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "a temporary directory stays until the store is opened again");
            }
            Ok(()) | Err(_) => {}
        }
    }
}
