//! What the store knows about one image, and all of them on disk.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Bytes of the unpacked files.
    pub unpacked_bytes: u64,
    pub inodes: u64,
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
    /// The manifests that named it, kept as blobs. None for archives of docker's older format.
    pub manifests: BTreeSet<Digest>,
}

impl ImageRecord {
    /// Whether it has a name and came out of an archive: what a registry gave has the digest under which that registry knows it.
    pub fn is_imported(&self) -> bool {
        self.digests.is_empty() && !self.tags.is_empty()
    }

    /// Whether it is never removed but by the user. An image that was imported is: no registry has it to be fetched again.
    pub fn is_kept(&self) -> bool {
        self.pinned || self.is_imported()
    }

    fn is_named(&self, name: &str) -> bool {
        self.tags.iter().chain(&self.digests).any(|found| found == name)
    }
}

/// Keeps a list of names sorted and without doubles.
pub(crate) fn add_names(list: &mut Vec<String>, names: impl IntoIterator<Item = String>) {
    list.extend(names);
    list.sort_unstable();
    list.dedup();
}

/// All images. A value: changes are made to a copy, written, and then take its place.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    pub(crate) images: BTreeMap<ImageId, Arc<ImageRecord>>,
}

/// The names that an image gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) tags: Vec<String>,
    pub(crate) digests: Vec<String>,
}

impl Index {
    /// By tag or digest in full spelling, or by ID.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<ImageRecord>> {
        if let Ok(id) = name.parse::<ImageId>() {
            return self.images.get(&id);
        }
        self.images.values().find(|image| image.is_named(name))
    }

    /// Adds an image, or more names of one that is there. A name moves from the image that had it before.
    pub(crate) fn put(&mut self, mut image: ImageRecord, names: Names) {
        if let Some(present) = self.images.get(&image.id) {
            add_names(&mut image.tags, present.tags.iter().cloned());
            add_names(&mut image.digests, present.digests.iter().cloned());
            image.manifests.extend(present.manifests.iter().cloned());
            image.pinned |= present.pinned;
        }
        for name in names.tags.iter().chain(&names.digests) {
            self.drop_name(name);
        }
        add_names(&mut image.tags, names.tags);
        add_names(&mut image.digests, names.digests);
        self.images.insert(image.id.clone(), Arc::new(image));
    }

    /// Takes a name from whichever image has it.
    pub(crate) fn drop_name(&mut self, name: &str) {
        for image in self.images.values_mut() {
            if image.is_named(name) {
                let image = Arc::make_mut(image);
                image.tags.retain(|tag| tag != name);
                image.digests.retain(|digest| digest != name);
            }
        }
    }

    /// Changes an image in place.
    pub(crate) fn change(&mut self, id: &ImageId, change: impl FnOnce(&mut ImageRecord)) -> bool {
        let Some(image) = self.images.get_mut(id) else { return false };
        change(Arc::make_mut(image));
        true
    }

    pub(crate) fn uses_layer(&self, chain_id: &Digest) -> bool {
        self.images.values().any(|image| image.layers.iter().any(|layer| layer.chain_id == *chain_id))
    }

    pub(crate) fn uses_blob(&self, digest: &Digest) -> bool {
        self.images.values().any(|image| image.id.0 == *digest || image.manifests.contains(digest))
    }

    pub(crate) fn on_disk(&self) -> IndexFile {
        let images = self.images.values().map(|image| ImageFile {
            id: image.id.clone(),
            tags: image.tags.clone(),
            digests: image.digests.clone(),
            manifests: image.manifests.clone(),
            layers: image.layers.clone(),
            pinned: image.pinned,
            fetched: image.fetched,
        });
        IndexFile { version: INDEX_VERSION, images: images.collect() }
    }
}

/// The format of the index file. One that is newer is refused, never rewritten.
pub(crate) const INDEX_VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct IndexFile {
    pub(crate) version: u32,
    pub(crate) images: Vec<ImageFile>,
}

/// An image in the index file; its configuration is a blob.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ImageFile {
    pub(crate) id: ImageId,
    tags: Vec<String>,
    digests: Vec<String>,
    manifests: BTreeSet<Digest>,
    layers: Vec<LayerRecord>,
    pinned: bool,
    fetched: Timestamp,
}

impl ImageFile {
    pub(crate) fn with_config(self, config: ImageConfiguration) -> ImageRecord {
        ImageRecord {
            size_bytes: size_of_layers(&self.layers),
            id: self.id,
            tags: self.tags,
            digests: self.digests,
            manifests: self.manifests,
            layers: self.layers,
            config: Arc::new(config),
            pinned: self.pinned,
            fetched: self.fetched,
        }
    }
}

pub(crate) fn size_of_layers(layers: &[LayerRecord]) -> u64 {
    layers.iter().map(|layer| layer.unpacked_bytes).sum()
}

/// The chain IDs of layers, lowest first (OCI image-spec, config.md "Layer ChainID").
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Option<Digest> = None;
    diff_ids
        .iter()
        .map(|diff_id| {
            let id = match &chain {
                None => diff_id.clone(),
                Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
            };
            chain = Some(id.clone());
            id
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str) -> ImageRecord {
        let config = ImageConfiguration::from_reader(
            &br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#[..],
        );
        let file = ImageFile {
            id: ImageId(Digest::of(id.as_bytes())),
            tags: Vec::new(),
            digests: Vec::new(),
            manifests: BTreeSet::new(),
            layers: Vec::new(),
            pinned: false,
            fetched: Timestamp::UNIX_EPOCH,
        };
        file.with_config(config.unwrap())
    }

    fn tagged(tag: &str) -> Names {
        Names { tags: vec![tag.to_owned()], digests: Vec::new() }
    }

    #[test]
    fn a_tag_moves_to_the_image_that_it_means_now() {
        let mut index = Index::default();
        index.put(image("old"), tagged("a:latest"));
        index.put(image("old"), tagged("a:1"));
        index.put(image("new"), tagged("a:latest"));
        assert_eq!(index.find("a:latest").unwrap().id, image("new").id);
        assert_eq!(index.find("a:1").unwrap().tags, ["a:1".to_owned()]);
        assert_eq!(index.find(&image("old").id.to_string()).unwrap().id, image("old").id);
        assert!(index.find("b").is_none());
    }

    #[test]
    fn a_pin_survives_another_pull() {
        let mut index = Index::default();
        index.put(image("x"), tagged("x:1"));
        assert!(index.change(&image("x").id, |image| image.pinned = true));
        index.put(image("x"), tagged("x:2"));
        assert!(index.find("x:1").unwrap().pinned);
        assert!(!index.change(&image("y").id, |image| image.pinned = true));
    }

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let layers = ["a", "b", "c"].map(|layer| Digest::of(layer.as_bytes()));
        let second = Digest::of(format!("{} {}", layers[0], layers[1]).as_bytes());
        let third = Digest::of(format!("{second} {}", layers[2]).as_bytes());
        assert_eq!(chain_ids(&layers), [layers[0].clone(), second, third]);
    }
}
