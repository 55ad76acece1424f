//! Container images on disk: references, pulling from registries, importing archives, unpacked layers, garbage.
//!
//! Start at [`ImageStore`]. A pull or an import ends in a content-addressed record and one unpacked directory for
//! each layer, shared by all images that stand on the same layers; the runtime mounts those with overlayfs. Spawns one
//! task per pull, shared by all who wait for the same image and ended when the last of them goes.
//!
//! This crate never names the runtime, decides when an image is pulled, or follows a path that an archive chose.

mod blobs;
mod credentials;
mod digest;
mod gc;
mod import;
mod manifest;
mod progress;
mod pull;
mod record;
mod reference;
mod registries;
mod registry;
mod store;
mod tarball;
#[cfg(test)]
mod testing;
mod unpack;

pub use blobs::BlobError;
pub use credentials::Credentials;
pub use digest::{Digest, DigestError};
pub use gc::{GcPolicy, GcReport};
pub use import::{ImportError, ImportSource};
pub use manifest::ManifestError;
pub use progress::{NoProgress, Progress, ProgressEvent};
pub use pull::{PullError, PullFailure, RetryPolicy};
pub use record::{ImageId, ImageRecord, LayerRecord};
pub use reference::{Reference, ReferenceError};
pub use registries::{Mirror, RegistriesConfig, RegistryAccess, RegistryAuth, RegistryTls};
pub use registry::RegistryError;
pub use store::{ImageStore, InstallError, LayerError, RemoveOutcome, StoreConfig, StoreError, Usage};
pub use tarball::TarError;
pub use unpack::{UnpackError, UnpackLimits};
