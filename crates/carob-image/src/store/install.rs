//! The last part of every pull and import: layers in their order, then the record.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use oci_spec::image::ImageConfiguration;

use super::layers::{LayerError, NewLayer, OpenArchive};
use super::{ImageStore, StoreError};
use crate::blobs::{BlobError, Lease};
use crate::digest::{Digest, DigestError};
use crate::progress::{Progress, ProgressEvent};
use crate::record::{ImageId, ImageRecord, LayerRecord, Names, chain_ids, size_of_layers};

/// Layers that one image may have: what one overlayfs mount takes (kernel `OVL_MAX_STACK` is 500; docker allows 127).
pub(crate) const LAYERS_MAX: usize = 127;

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("image configuration {id} is not one")]
    Config {
        id: ImageId,
        #[source]
        source: oci_spec::OciSpecError,
    },
    #[error("image configuration {id} is for {os}, not linux")]
    NotLinux { id: ImageId, os: String },
    #[error("image configuration {id} has an invalid layer")]
    DiffId {
        id: ImageId,
        #[source]
        source: DigestError,
    },
    #[error("image configuration {id} has {configured} layers, its manifest {listed}")]
    LayerCount { id: ImageId, configured: usize, listed: usize },
    #[error("image configuration {id} has {layers} layers, at most {LAYERS_MAX} are allowed")]
    TooManyLayers { id: ImageId, layers: usize },
    #[error("unpack image {id}")]
    Layer {
        id: ImageId,
        #[source]
        source: Box<LayerError>,
    },
    #[error("store the configuration of image {id}")]
    Blob {
        id: ImageId,
        #[source]
        source: Box<BlobError>,
    },
    #[error("record image {id}")]
    Record {
        id: ImageId,
        #[source]
        source: Box<StoreError>,
    },
}

/// An image's configuration, understood.
#[derive(Debug)]
pub(crate) struct Configured {
    pub(crate) id: ImageId,
    bytes: Vec<u8>,
    config: ImageConfiguration,
    diff_ids: Vec<Digest>,
    chain_ids: Vec<Digest>,
}

impl Configured {
    /// Understands a configuration that comes with `listed` layers' archives.
    pub(crate) fn new(bytes: Vec<u8>, listed: usize) -> Result<Self, InstallError> {
        let id = ImageId(Digest::of(&bytes));
        let config = ImageConfiguration::from_reader(&bytes[..])
            .map_err(|source| InstallError::Config { id: id.clone(), source })?;
        if config.os().to_string() != "linux" {
            return Err(InstallError::NotLinux { id, os: config.os().to_string() });
        }
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() > LAYERS_MAX {
            return Err(InstallError::TooManyLayers { id, layers: diff_ids.len() });
        }
        if diff_ids.len() != listed {
            return Err(InstallError::LayerCount { id, configured: diff_ids.len(), listed });
        }
        let diff_ids: Vec<Digest> = diff_ids
            .iter()
            .map(|diff_id| diff_id.parse())
            .collect::<Result<_, _>>()
            .map_err(|source| InstallError::DiffId { id: id.clone(), source })?;
        let chain_ids = chain_ids(&diff_ids);
        Ok(Self { id, bytes, config, diff_ids, chain_ids })
    }

    /// The layers, lowest first.
    pub(crate) fn layers(&self) -> impl Iterator<Item = NewLayer> {
        self.diff_ids.iter().zip(&self.chain_ids).enumerate().map(|(index, (diff_id, chain_id))| NewLayer {
            diff_id: diff_id.clone(),
            chain_id: chain_id.clone(),
            below: self.chain_ids[..index].iter().rev().cloned().collect(),
        })
    }
}

/// What an installation ends with: names, and the manifest if there is one.
#[derive(Debug, Default)]
pub(crate) struct Naming {
    pub(crate) names: Names,
    pub(crate) manifest: Option<(Digest, Vec<u8>)>,
}

/// Where the archive of a layer is, once it is here.
pub(crate) type ArchiveSource<'a, E> = BoxFuture<'a, Result<OpenArchive, E>>;

impl ImageStore {
    /// Leases on all layers of an image: what is here stays here.
    pub(crate) fn lease_layers(&self, configured: &Configured) -> Vec<Lease> {
        configured.chain_ids.iter().map(|chain_id| self.inner.layers.leases.take(chain_id)).collect()
    }

    pub(crate) fn has_layer(&self, layer: &NewLayer) -> bool {
        self.inner.layers.has(&layer.chain_id)
    }

    /// Unpacks what is not here yet, in order, each as soon as its archive is, and records the image. The caller holds
    /// leases on the layers.
    pub(crate) async fn install<E: From<InstallError>>(
        &self,
        configured: Configured,
        archives: Vec<(Digest, ArchiveSource<'_, E>)>,
        naming: Naming,
        progress: &Arc<dyn Progress>,
    ) -> Result<Arc<ImageRecord>, E> {
        let mut layers = Vec::with_capacity(archives.len());
        for (layer, (name, archive)) in configured.layers().zip(archives) {
            layers.push(self.install_layer(&configured.id, layer, name, archive, progress).await?);
        }
        let store = self.clone();
        let id = configured.id.clone();
        let record = move || store.record(configured, layers, naming);
        let recorded = tokio::task::spawn_blocking(record).await;
        let failed = |source| InstallError::Record { id, source: Box::new(StoreError::Worker(source)) };
        Ok(recorded.map_err(failed)??)
    }

    async fn install_layer<E: From<InstallError>>(
        &self,
        id: &ImageId,
        layer: NewLayer,
        name: Digest,
        archive: ArchiveSource<'_, E>,
        progress: &Arc<dyn Progress>,
    ) -> Result<LayerRecord, E> {
        let turn = self.inner.layers.turn(&layer.chain_id).await;
        if let Some(present) = self.inner.layers.get(&layer) {
            progress.event(ProgressEvent::Present { layer: name });
            return Ok(present);
        }
        let open = archive.await?;
        progress.event(ProgressEvent::Unpacking { layer: name.clone() });
        let inner = Arc::clone(&self.inner);
        let diff_id = layer.diff_id.clone();
        // The turn goes along: the work ends on its thread even when the caller is dropped.
        let made = tokio::task::spawn_blocking(move || {
            let made = inner.layers.make(&layer, open);
            drop(turn);
            made
        });
        let failed = |source| InstallError::Layer { id: id.clone(), source: Box::new(source) };
        let made = made.await.map_err(|source| failed(LayerError::Worker { layer: diff_id, source }))?;
        let made = made.map_err(failed)?;
        progress.event(ProgressEvent::Unpacked { layer: name });
        Ok(made)
    }

    /// Makes everything durable, then the record that speaks of it.
    fn record(
        &self,
        configured: Configured,
        layers: Vec<LayerRecord>,
        naming: Naming,
    ) -> Result<Arc<ImageRecord>, InstallError> {
        let id = configured.id;
        let blob = |source| InstallError::Blob { id: id.clone(), source: Box::new(source) };
        let blobs = &self.inner.blobs;
        let _config_lease = blobs.leases.take(&id.0);
        blobs.put(&id.0, &configured.bytes).map_err(blob)?;
        let mut manifest_lease = None;
        if let Some((digest, bytes)) = &naming.manifest {
            manifest_lease = Some(blobs.leases.take(digest));
            blobs.put(digest, bytes).map_err(blob)?;
        }
        let image = ImageRecord {
            id: id.clone(),
            tags: Vec::new(),
            digests: Vec::new(),
            size_bytes: size_of_layers(&layers),
            layers,
            config: Arc::new(configured.config),
            pinned: false,
            fetched: self.inner.clock.now(),
            manifests: naming.manifest.into_iter().map(|(digest, _)| digest).collect(),
        };
        let record = |source| InstallError::Record { id: id.clone(), source: Box::new(source) };
        self.sync_file_system().map_err(record)?;
        self.change(|index| index.put(image, naming.names)).map_err(record)?;
        drop(manifest_lease);
        self.touch(&id);
        let gone = || record(StoreError::Vanished { id: id.clone() });
        self.get(&id.to_string()).ok_or_else(gone)
    }
}
