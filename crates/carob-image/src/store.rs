//! The images of one data directory.

use std::path::PathBuf;
use std::sync::Arc;

use carob_kit::Clock;

use crate::gc::{GcPolicy, GcReport};
use crate::import::{ImportError, ImportSource};
use crate::progress::Progress;
use crate::pull::PullError;
use crate::record::{ImageId, ImageRecord};
use crate::registries::RegistriesConfig;
use crate::unpack::UnpackLimits;
use crate::{Credentials, Reference};

/// What an [`ImageStore`] is opened with.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// `<data-dir>/images`.
    pub root: PathBuf,
    pub clock: Arc<dyn Clock>,
    pub registries: RegistriesConfig,
    pub limits: UnpackLimits,
}

impl StoreConfig {
    pub fn new(root: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Self {
        Self { root: root.into(), clock, registries: RegistriesConfig::default(), limits: UnpackLimits::default() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("image store {root}")]
    Io {
        root: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What [`ImageStore::remove`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoveOutcome {
    /// Nothing goes by that name.
    Absent,
    /// The name is gone, the image has others.
    Untagged,
    /// The image and the layers that no other image needs are gone.
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

/// The images of one data directory. Clones share one store; a second process on the same directory is refused.
#[derive(Debug, Clone)]
pub struct ImageStore {}

impl ImageStore {
    /// Opens or creates the store, and removes what a crash left half done.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        unimplemented!()
    }

    /// Fetches the image that `reference` means now, unpacks it, and names it. Concurrent pulls of one image with the
    /// same credentials share one job, which ends when the last caller drops its future: that is how to cancel.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        progress: Arc<dyn Progress>,
    ) -> Result<Arc<ImageRecord>, PullError> {
        unimplemented!()
    }

    /// Takes every image of a docker-save tar or an OCI layout (tar or directory), under the names it carries.
    pub async fn import(
        &self,
        source: ImportSource,
        progress: Arc<dyn Progress>,
    ) -> Result<Vec<Arc<ImageRecord>>, ImportError> {
        unimplemented!()
    }

    /// Finds an image by name in any spelling, by ID (`sha256:…`), or by the ID's bare hex digits.
    pub fn get(&self, name: &str) -> Option<Arc<ImageRecord>> {
        unimplemented!()
    }

    /// All images, by ID.
    pub fn list(&self) -> Vec<Arc<ImageRecord>> {
        unimplemented!()
    }

    /// Takes the name away, or by ID all names; the last name takes the image along. The caller has made sure that no
    /// container uses it.
    pub async fn remove(&self, name: &str) -> Result<RemoveOutcome, StoreError> {
        unimplemented!()
    }

    /// Adds a name to an image.
    pub async fn tag(&self, id: &ImageId, reference: &Reference) -> Result<Option<Arc<ImageRecord>>, StoreError> {
        unimplemented!()
    }

    /// Protects the image from garbage collection, or no longer. `None` when there is no such image.
    pub async fn pin(&self, name: &str, pinned: bool) -> Result<Option<Arc<ImageRecord>>, StoreError> {
        unimplemented!()
    }

    /// The image's unpacked layers, topmost first, ready for overlayfs' `lowerdir=`. `None` when there is no such image.
    pub fn layers(&self, id: &ImageId) -> Option<Vec<PathBuf>> {
        unimplemented!()
    }

    /// Counts as a use of the image, which garbage collection goes by. Kept in memory: a restart counts as a use of all.
    pub fn touch(&self, id: &ImageId) {
        unimplemented!()
    }

    pub fn usage(&self) -> Usage {
        unimplemented!()
    }

    /// Removes unused images by the policy. `in_use` are the images of existing containers.
    pub async fn collect_garbage(&self, policy: &GcPolicy, in_use: &[ImageId]) -> Result<GcReport, StoreError> {
        unimplemented!()
    }
}
