//! What the store knows about one image.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

/// An image's identity: the digest of its configuration, as docker and CRI define it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(pub Digest);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ImageId {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        text.parse().map(Self)
    }
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Of the uncompressed archive.
    pub diff_id: Digest,
    /// Of this layer and all below it (OCI image-spec, config.md "Layer ChainID"); names the unpacked directory.
    pub chain_id: Digest,
    /// Bytes that the unpacked layer takes on disk.
    pub unpacked_bytes: u64,
}

/// One image as the store holds it.
#[derive(Debug, Clone)]
pub struct ImageRecord {
    pub id: ImageId,
    /// Names with a tag in full spelling: `docker.io/library/busybox:1.36`. Sorted.
    pub tags: Vec<String>,
    /// Names with the manifest's digest: `docker.io/library/busybox@sha256:…`. Sorted.
    pub digests: Vec<String>,
    /// Bytes of the unpacked layers; layers shared with other images count in each.
    pub size_bytes: u64,
    /// Lowest first.
    pub layers: Vec<LayerRecord>,
    pub config: Arc<ImageConfiguration>,
    /// Pinned images are never collected as garbage.
    pub pinned: bool,
    /// When it was pulled or imported last.
    pub fetched: Timestamp,
}
