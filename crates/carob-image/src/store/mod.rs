//! The images of one data directory.

mod install;
mod layers;
mod locks;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carob_kit::Clock;
use carob_kit::fs::{RealFs, write_atomic};
use oci_spec::image::ImageConfiguration;

use crate::blobs::{BlobError, Blobs};
use crate::gc::{self, Candidate, GcPolicy, GcReport};
use crate::pull::{Jobs, RetryPolicy};
use crate::record::{INDEX_VERSION, ImageId, ImageRecord, Index, IndexFile, add_names};
use crate::reference::Reference;
use crate::registries::RegistriesConfig;
use crate::registry::Registries;
use crate::unpack::UnpackLimits;
pub use install::InstallError;
pub(crate) use install::{ArchiveSource, Configured, LAYERS_MAX, Naming};
pub use layers::LayerError;
use layers::LayerStore;
pub(crate) use layers::OpenArchive;
use locks::Locks;

/// What an [`ImageStore`] is opened with.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// `<data-dir>/images`.
    pub root: PathBuf,
    pub clock: Arc<dyn Clock>,
    pub registries: RegistriesConfig,
    pub limits: UnpackLimits,
    pub retry: RetryPolicy,
}

impl StoreConfig {
    pub fn new(root: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Self {
        let (registries, limits, retry) = Default::default();
        Self { root: root.into(), clock, registries, limits, retry }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{operation} image store {root}")]
    Io {
        operation: &'static str,
        root: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("image index {path} cannot be read")]
    Decode {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("image index {path} has format {found}, this carob knows {INDEX_VERSION}")]
    Version { path: PathBuf, found: u32 },
    #[error("configuration of image {id}")]
    Config {
        id: ImageId,
        #[source]
        source: BlobError,
    },
    #[error("configuration of image {id} cannot be read")]
    ConfigDecode {
        id: ImageId,
        #[source]
        source: oci_spec::OciSpecError,
    },
    #[error("image {id} was removed at the moment that it was recorded")]
    Vanished { id: ImageId },
    /// The blocking thread that did the work panicked: a bug.
    #[error("the image store's worker failed")]
    Worker(#[source] tokio::task::JoinError),
}

/// What [`ImageStore::remove`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoveOutcome {
    /// Nothing goes by that name.
    Absent,
    /// The name is gone, the image has others.
    Untagged,
    /// The image is gone, and with it the layers that no other image needs.
    Removed { id: ImageId, freed_bytes: u64 },
}

/// What the store takes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Every layer counted once.
    pub bytes: u64,
    pub inodes: u64,
    pub images: usize,
    pub layers: usize,
}

/// The images of one data directory. Clones share one store. Several processes may have it open: each sees what the others
/// add and remove, and nothing leaves the disk while another one may be using it.
#[derive(Debug, Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    root: PathBuf,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: UnpackLimits,
    pub(crate) retry: RetryPolicy,
    pub(crate) blobs: Blobs,
    pub(crate) layers: LayerStore,
    pub(crate) registries: Registries,
    pub(crate) jobs: Jobs,
    /// Never locked while the disk is written.
    state: Mutex<State>,
    /// Held by the thread that changes the index.
    writer: Mutex<()>,
    /// Held while the index is read, so that an older one never takes the place of a newer.
    reader: Mutex<()>,
    locks: Locks,
}

#[derive(Debug, Default)]
struct State {
    index: Index,
    /// Which index file that is.
    file: Option<FileMark>,
    /// Monotonic time of the last use, since the store was opened.
    last_used: HashMap<ImageId, Duration>,
}

/// Tells one index file from those that replaced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileMark {
    inode: u64,
    modified: (i64, i64),
}

const INDEX_FILE: &str = "images.json";

impl ImageStore {
    /// Opens or creates the store, and removes what a crash left half done.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        blocking(move || Self::open_blocking(config)).await
    }

    fn open_blocking(config: StoreConfig) -> Result<Self, StoreError> {
        let root = config.root;
        let io = |operation, source| StoreError::Io { operation, root: root.clone(), source };
        let (blobs, layers, temporary) = (root.join("blobs/sha256"), root.join("layers"), root.join("tmp"));
        for dir in [&blobs, &layers, &temporary] {
            fs_err::create_dir_all(dir).map_err(|source| io("create", source))?;
        }
        // Layers have setuid files: no other user of the machine reaches them (CVE-2021-41103).
        carob_kit::fs::make_private(&root, 0o700).map_err(|source| io("create", source))?;
        let locks = Locks::open(&root).map_err(|source| io("lock", source))?;
        let held = locks.index().map_err(|source| io("lock", source))?;
        // What other processes are about to add is half done as well.
        let alone = held.is_alone().map_err(|source| io("lock", source))?;
        if alone {
            remove_entries(&temporary).map_err(|source| io("clean", source))?;
        }
        let blobs = Blobs::new(blobs, temporary.clone());
        let (index, file) = read_index(&root, &blobs)?;
        let layers = LayerStore::new(layers, temporary, config.limits.clone());
        mark_layers(&layers, &index);
        if alone {
            layers.remove_unknown().map_err(|source| io("clean", source))?;
            blobs.retain(|digest| index.uses_blob(digest)).map_err(|source| io("clean", source))?;
        }
        drop(held);
        let inner = Inner {
            clock: config.clock,
            limits: config.limits,
            retry: config.retry,
            blobs,
            layers,
            registries: Registries::new(config.registries),
            jobs: Jobs::default(),
            state: Mutex::new(State { index, file, last_used: HashMap::new() }),
            writer: Mutex::default(),
            reader: Mutex::default(),
            locks,
            root,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Finds an image by name in any spelling, by ID (`sha256:…`), or by the ID's bare hex digits.
    pub fn get(&self, name: &str) -> Option<Arc<ImageRecord>> {
        find(&self.current().index, name).cloned()
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// All images, by ID.
    pub fn list(&self) -> Vec<Arc<ImageRecord>> {
        self.current().index.images.values().cloned().collect()
    }

    /// Takes the name away, or by ID all names; the last name takes the image along. The caller has made sure that no
    /// container uses it.
    pub async fn remove(&self, name: &str) -> Result<RemoveOutcome, StoreError> {
        let (store, name) = (self.clone(), name.to_owned());
        blocking(move || store.remove_blocking(&name)).await
    }

    fn remove_blocking(&self, name: &str) -> Result<RemoveOutcome, StoreError> {
        let outcome = self.change(|index| {
            let Some(image) = find(index, name) else { return RemoveOutcome::Absent };
            let id = image.id.clone();
            let by_id = name.trim_start_matches("sha256:") == id.0.hex();
            if !by_id {
                for spelled in spellings(name) {
                    index.drop_name(&spelled);
                }
            }
            let is_last = index.images.get(&id).is_some_and(|image| image.tags.is_empty());
            if by_id || is_last {
                index.images.remove(&id);
                return RemoveOutcome::Removed { id, freed_bytes: 0 };
            }
            RemoveOutcome::Untagged
        })?;
        match outcome {
            RemoveOutcome::Removed { id, .. } => {
                let freed_bytes = self.collect_unused()?;
                Ok(RemoveOutcome::Removed { id, freed_bytes })
            }
            other => Ok(other),
        }
    }

    /// Adds a name to an image. `None` when there is no such image.
    pub async fn tag(&self, id: &ImageId, reference: &Reference) -> Result<Option<Arc<ImageRecord>>, StoreError> {
        let (store, id, reference) = (self.clone(), id.clone(), reference.clone());
        blocking(move || {
            store.change(|index| {
                let Some(tag) = reference.tagged() else { return };
                if index.images.contains_key(&id) {
                    index.drop_name(&tag);
                    index.change(&id, |image| add_names(&mut image.tags, [tag]));
                }
            })?;
            Ok(store.get(&id.to_string()))
        })
        .await
    }

    /// Protects the image from garbage collection, or no longer. `None` when there is no such image.
    pub async fn pin(&self, name: &str, pinned: bool) -> Result<Option<Arc<ImageRecord>>, StoreError> {
        let Some(image) = self.get(name) else { return Ok(None) };
        let store = self.clone();
        blocking(move || {
            store.change(|index| {
                index.change(&image.id, |image| image.pinned = pinned);
            })?;
            Ok(store.get(&image.id.to_string()))
        })
        .await
    }

    /// The image's unpacked layers, topmost first, ready for overlayfs' `lowerdir=`. `None` when there is no such image.
    pub fn layers(&self, id: &ImageId) -> Option<Vec<PathBuf>> {
        let state = self.current();
        let image = state.index.images.get(id)?;
        Some(image.layers.iter().rev().map(|layer| self.inner.layers.path(&layer.chain_id)).collect())
    }

    /// Counts as a use of the image, which garbage collection goes by. Kept in memory: a restart counts as a use of all.
    pub fn touch(&self, id: &ImageId) {
        let now = self.inner.clock.monotonic();
        self.state().last_used.insert(id.clone(), now);
    }

    pub fn usage(&self) -> Usage {
        let images = self.current().index.images.len();
        let (layers, size) = self.inner.layers.total();
        Usage { bytes: size.bytes, inodes: size.inodes, images, layers }
    }

    /// Removes unused images by the policy. `in_use` are the images of existing containers.
    pub async fn collect_garbage(&self, policy: &GcPolicy, in_use: &[ImageId]) -> Result<GcReport, StoreError> {
        let (store, policy, in_use) = (self.clone(), policy.clone(), in_use.to_vec());
        blocking(move || {
            let (used, total) = store.file_system()?;
            store.collect_from(&policy, &in_use, used, total)
        })
        .await
    }

    fn collect_from(
        &self,
        policy: &GcPolicy,
        in_use: &[ImageId],
        used_bytes: u64,
        total_bytes: u64,
    ) -> Result<GcReport, StoreError> {
        let now = self.inner.clock.monotonic();
        let candidates: Vec<Candidate> = {
            let state = self.current();
            let unused = state.index.images.values().filter(|image| !image.is_kept() && !in_use.contains(&image.id));
            unused
                .map(|image| Candidate {
                    id: image.id.clone(),
                    unused_for: now.saturating_sub(state.last_used.get(&image.id).copied().unwrap_or_default()),
                })
                .collect()
        };
        let plan = gc::plan(policy, candidates, used_bytes, total_bytes);
        let mut report = GcReport::default();
        let mut left_to_free = plan.bytes_to_free;
        for (id, is_for_space) in plan.order {
            if is_for_space && left_to_free == 0 {
                continue;
            }
            if let RemoveOutcome::Removed { id, freed_bytes } = self.remove_blocking(&id.to_string())? {
                left_to_free = left_to_free.saturating_sub(freed_bytes);
                report.freed_bytes += freed_bytes;
                report.removed.push(id);
            }
        }
        report.short_bytes = left_to_free;
        Ok(report)
    }

    /// Removes layers and blobs that no image needs. Returns the bytes that became free: none while another process has the
    /// store open, which may be using them.
    fn collect_unused(&self) -> Result<u64, StoreError> {
        let io = |source| self.io("clean", source);
        // No record may appear between looking and removing; whoever is about to make one holds leases.
        let _writer = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.inner.locks.index().map_err(|source| self.io("lock", source))?;
        if !held.is_alone().map_err(|source| self.io("lock", source))? {
            return Ok(0);
        }
        let _reader = self.inner.reader.lock().unwrap_or_else(PoisonError::into_inner);
        self.reload_locked()?;
        let index = self.state().index.clone();
        self.inner.blobs.retain(|digest| index.uses_blob(digest)).map_err(io)?;
        self.inner.layers.retain(|chain_id| index.uses_layer(chain_id)).map_err(io)
    }

    /// The state with what other processes have changed.
    fn current(&self) -> MutexGuard<'_, State> {
        if let Err(error) = self.reload() {
            tracing::warn!(error = %carob_kit::chain(&error), "images that other processes added are not seen");
        }
        self.state()
    }

    /// Reads the index again if another process has written it.
    fn reload(&self) -> Result<(), StoreError> {
        let _reader = self.inner.reader.lock().unwrap_or_else(PoisonError::into_inner);
        self.reload_locked()
    }

    fn reload_locked(&self) -> Result<(), StoreError> {
        let mark = mark_of(&self.inner.root).map_err(|source| self.io("look at the index of", source))?;
        if self.state().file == mark {
            return Ok(());
        }
        let (index, file) = read_index(&self.inner.root, &self.inner.blobs)?;
        mark_layers(&self.inner.layers, &index);
        let mut state = self.state();
        (state.index, state.file) = (index, file);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No holder panics half way.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn io(&self, operation: &'static str, source: io::Error) -> StoreError {
        StoreError::Io { operation, root: self.inner.root.clone(), source }
    }

    /// Changes the index: first a copy, then the file, then what everyone sees.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Index) -> T) -> Result<T, StoreError> {
        let _writer = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let _held = self.inner.locks.index().map_err(|source| self.io("lock", source))?;
        let _reader = self.inner.reader.lock().unwrap_or_else(PoisonError::into_inner);
        self.reload_locked()?;
        let mut next = self.state().index.clone();
        let result = change(&mut next);
        let file = write_index(&self.inner.root, &next).map_err(|source| self.io("write the index of", source))?;
        let mut state = self.state();
        (state.index, state.file) = (next, file);
        Ok(result)
    }

    /// Makes unpacked layers durable all at once: thousands of single fsyncs would take minutes on a disk.
    pub(crate) fn sync_file_system(&self) -> Result<(), StoreError> {
        let sync = || -> io::Result<()> { Ok(rustix::fs::syncfs(fs_err::File::open(&self.inner.root)?.file())?) };
        sync().map_err(|source| self.io("sync", source))
    }

    /// Used and total bytes of the file system, as `df` counts them.
    fn file_system(&self) -> Result<(u64, u64), StoreError> {
        let stat = rustix::fs::statvfs(&self.inner.root).map_err(|errno| self.io("measure", errno.into()))?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize);
        let usable = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_add(stat.f_bavail);
        Ok((used, usable.saturating_mul(stat.f_frsize)))
    }
}

impl Inner {
    /// Where files are made before they are moved to their place; emptied when the store opens.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }
}

/// The names that a text may stand for: as it is, and completed.
fn spellings(name: &str) -> Vec<String> {
    let mut spellings = vec![name.to_owned()];
    if let Ok(reference) = name.parse::<Reference>() {
        spellings.extend(reference.digest().map(|digest| reference.with_digest(digest)));
        // With a digest, the tag is only a remark (containerd and docker agree).
        if reference.digest().is_none() {
            spellings.extend(reference.tagged());
        }
    }
    spellings
}

fn find<'a>(index: &'a Index, name: &str) -> Option<&'a Arc<ImageRecord>> {
    if name.len() == 64
        && let Some(image) = index.find(&format!("sha256:{name}"))
    {
        return Some(image);
    }
    spellings(name).iter().find_map(|spelled| index.find(spelled))
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(StoreError::Worker)?
}

fn remove_entries(dir: &Path) -> io::Result<()> {
    for entry in fs_err::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { fs_err::remove_dir_all(&path)? } else { fs_err::remove_file(&path)? }
    }
    Ok(())
}

fn mark_layers(layers: &LayerStore, index: &Index) {
    for layer in index.images.values().flat_map(|image| &image.layers) {
        layers.mark(layer);
    }
}

/// `None` where there is no index yet.
fn mark_of(root: &Path) -> io::Result<Option<FileMark>> {
    use std::os::unix::fs::MetadataExt as _;
    match fs_err::metadata(root.join(INDEX_FILE)) {
        Ok(found) => Ok(Some(FileMark { inode: found.ino(), modified: (found.mtime(), found.mtime_nsec()) })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The index with the mark of its file, which may be older than the index: then it is read once more.
fn read_index(root: &Path, blobs: &Blobs) -> Result<(Index, Option<FileMark>), StoreError> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let path = root.join(INDEX_FILE);
    let look = |source| StoreError::Io { operation: "look at the index of", root: root.to_owned(), source };
    let mark = mark_of(root).map_err(look)?;
    let bytes = match fs_err::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Index::default(), mark)),
        Err(source) => return Err(StoreError::Io { operation: "read", root: root.to_owned(), source }),
    };
    let decode = |source| StoreError::Decode { path: path.clone(), source };
    let versioned: Versioned = serde_json::from_slice(&bytes).map_err(decode)?;
    if versioned.version != INDEX_VERSION {
        return Err(StoreError::Version { path, found: versioned.version });
    }
    let file: IndexFile = serde_json::from_slice(&bytes).map_err(decode)?;
    let mut index = Index::default();
    for image in file.images {
        let id = image.id.clone();
        let config = blobs.read(&id.0).map_err(|source| StoreError::Config { id: id.clone(), source })?;
        let config = ImageConfiguration::from_reader(&config[..])
            .map_err(|source| StoreError::ConfigDecode { id: id.clone(), source })?;
        index.images.insert(id, Arc::new(image.with_config(config)));
    }
    Ok((index, mark))
}

fn write_index(root: &Path, index: &Index) -> io::Result<Option<FileMark>> {
    write_atomic(&RealFs, &root.join(INDEX_FILE), &serde_json::to_vec(&index.on_disk())?)?;
    mark_of(root)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
