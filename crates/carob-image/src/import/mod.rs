//! Images from files: archives of `docker save`, and OCI layouts as a tar or as a directory.

mod source;

use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use serde::Deserialize;

use crate::digest::{Digest, DigestError};
use crate::manifest::{Descriptor, Document, INDEX_DEPTH_MAX, Machine, Manifest, ManifestError};
use crate::progress::{Progress, ProgressEvent};
use crate::record::{ImageRecord, Names};
use crate::reference::{Reference, ReferenceError};
use crate::store::{ArchiveSource, Configured, ImageStore, InstallError, Naming, OpenArchive};
use source::Source;

/// Where an import reads from.
pub enum ImportSource {
    /// A tar file (also compressed) or a directory with an OCI layout.
    Path(PathBuf),
    /// A tar stream; it is spooled into the store's directory first, for its index may come last.
    Reader(Box<dyn Read + Send>),
}

impl fmt::Debug for ImportSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "Path({})", path.display()),
            Self::Reader(_) => f.write_str("Reader(..)"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("open {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("spool the archive")]
    Spool(#[source] io::Error),
    #[error("the archive has more than {max} bytes")]
    TooLong { max: u64 },
    #[error("recognise the archive")]
    Recognise(#[source] crate::UnpackError),
    #[error("list the archive")]
    Tar(#[from] crate::tarball::TarError),
    #[error("the archive has more than {max} members")]
    TooManyMembers { max: usize },
    #[error("it holds no image: neither manifest.json nor index.json is in it")]
    NoImage,
    #[error("{member} is not in it")]
    Missing { member: String },
    #[error("member {member} is a link in a loop or to somewhere else")]
    Link { member: String },
    #[error("read {member}")]
    Read {
        member: String,
        #[source]
        source: io::Error,
    },
    #[error("{member} has {len} bytes, at most {max} are allowed")]
    DocumentTooLong { member: String, len: u64, max: u64 },
    #[error("{member} has the digest {found}")]
    Digest { member: String, found: Digest },
    #[error("decode {member}")]
    Decode {
        member: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{member}")]
    Manifest {
        member: String,
        #[source]
        source: ManifestError,
    },
    #[error("{member} has an invalid layer name")]
    LayerName {
        member: String,
        #[source]
        source: DigestError,
    },
    #[error("{member} names an image")]
    Name {
        member: String,
        #[source]
        source: ReferenceError,
    },
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The blocking thread that did the work panicked: a bug.
    #[error("the import's worker failed")]
    Worker(#[source] tokio::task::JoinError),
}

/// One image that was found, ready to be installed.
struct Found {
    configured: Configured,
    layers: Vec<(Digest, String)>,
    naming: Naming,
}

impl ImageStore {
    /// Takes every image of a docker-save tar or an OCI layout (tar or directory), under the names it carries. An image
    /// without a name is taken, too, and can be given one by its ID.
    pub async fn import(
        &self,
        from: ImportSource,
        progress: Arc<dyn Progress>,
    ) -> Result<Vec<Arc<ImageRecord>>, ImportError> {
        let (temporary, max) = (self.inner.temporary(), self.inner.limits.bytes_max);
        let listed = tokio::task::spawn_blocking(move || -> Result<_, ImportError> {
            let source = Arc::new(Source::open(from, &temporary, max)?);
            let found = find_images(&source)?;
            Ok((source, found))
        });
        let (source, found) = listed.await.map_err(ImportError::Worker)??;
        let mut images = Vec::with_capacity(found.len());
        for image in found {
            let _leases = self.lease_layers(&image.configured);
            let sizes = image.layers.iter().map(|(name, member)| (name.clone(), source.len(member).unwrap_or(0)));
            progress.event(ProgressEvent::Resolved { layers: sizes.collect() });
            let archives = image.layers.into_iter().map(|(name, member)| {
                let source = Arc::clone(&source);
                let open: OpenArchive = Box::new(move || source.open_member(&member));
                let ready: ArchiveSource<'_, ImportError> = async move { Ok(open) }.boxed();
                (name, ready)
            });
            images.push(self.install(image.configured, archives.collect(), image.naming, &progress).await?);
        }
        Ok(images)
    }
}

fn find_images(source: &Source) -> Result<Vec<Found>, ImportError> {
    // Newer docker writes both; its own manifest.json has the names in full.
    if source.has("manifest.json") {
        return docker_archive(source);
    }
    if source.has("index.json") {
        return oci_layout(source);
    }
    Err(ImportError::NoImage)
}

/// One entry of docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn docker_archive(source: &Source) -> Result<Vec<Found>, ImportError> {
    const MEMBER: &str = "manifest.json";
    let bytes = source.document(MEMBER)?;
    let decode = |source| ImportError::Decode { member: MEMBER.to_owned(), source };
    let images: Vec<DockerImage> = serde_json::from_slice(&bytes).map_err(decode)?;
    images
        .into_iter()
        .map(|image| {
            let configured = Configured::new(source.document(&image.config)?, image.layers.len())?;
            let tags = image.repo_tags.iter().flatten().map(|tag| full_name(MEMBER, tag));
            let names = Names { tags: tags.collect::<Result<_, _>>()?, digests: Vec::new() };
            let layers = configured.layers().map(|layer| layer.diff_id).zip(image.layers).collect();
            Ok(Found { configured, layers, naming: Naming { names, manifest: None } })
        })
        .collect()
}

fn full_name(member: &str, name: &str) -> Result<String, ImportError> {
    let reference: Reference =
        name.parse().map_err(|source| ImportError::Name { member: member.to_owned(), source })?;
    Ok(reference.tagged().unwrap_or_else(|| reference.to_string()))
}

/// The name that containerd, and so docker and nerdctl, give an image in a layout.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The specification's own, which may be a whole name or a mere tag (OCI image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

fn oci_layout(source: &Source) -> Result<Vec<Found>, ImportError> {
    const MEMBER: &str = "index.json";
    let decode = |source| ImportError::Manifest { member: MEMBER.to_owned(), source };
    let Document::Index(index) = Document::parse(&source.document(MEMBER)?).map_err(decode)? else {
        return Err(ImportError::Manifest { member: MEMBER.to_owned(), source: ManifestError::Unknown });
    };
    index.manifests.iter().map(|descriptor| oci_image(source, descriptor)).collect()
}

fn oci_image(source: &Source, named: &Descriptor) -> Result<Found, ImportError> {
    let (digest, bytes, manifest) = resolve(source, named, 0)?;
    let config = blob(source, &manifest.config.digest)?;
    let configured = Configured::new(config, manifest.layers.len())?;
    let mut names = Names::default();
    // A mere tag names nothing without a repository.
    let name = named
        .annotations
        .get(CONTAINERD_NAME)
        .or_else(|| named.annotations.get(REF_NAME).filter(|name| name.contains(['/', ':'])));
    if let Some(name) = name {
        let reference: Reference =
            name.parse().map_err(|source| ImportError::Name { member: "index.json".to_owned(), source })?;
        names.tags.extend(reference.tagged());
        names.digests.push(reference.with_digest(&named.digest));
    }
    let layers = manifest.layers.iter().map(|layer| (layer.digest.clone(), blob_name(&layer.digest))).collect();
    Ok(Found { configured, layers, naming: Naming { names, manifest: Some((digest, bytes)) } })
}

/// Follows indexes to the manifest for this machine.
fn resolve(source: &Source, descriptor: &Descriptor, depth: usize) -> Result<(Digest, Vec<u8>, Manifest), ImportError> {
    let member = || blob_name(&descriptor.digest);
    let failed = |source| ImportError::Manifest { member: member(), source };
    if depth > INDEX_DEPTH_MAX {
        return Err(failed(ManifestError::TooDeep));
    }
    let bytes = blob(source, &descriptor.digest)?;
    match Document::parse(&bytes).map_err(failed)? {
        Document::Manifest(manifest) => Ok((descriptor.digest.clone(), bytes, manifest)),
        Document::Index(index) => resolve(source, Machine::this().choose(&index).map_err(failed)?, depth + 1),
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn blob(source: &Source, digest: &Digest) -> Result<Vec<u8>, ImportError> {
    let member = blob_name(digest);
    let bytes = source.document(&member)?;
    let found = Digest::of(&bytes);
    if found != *digest {
        return Err(ImportError::Digest { member, found });
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
