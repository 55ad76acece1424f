//! Images made for tests: layers, configurations, archives and layouts, and a store in a directory of its own.

use std::path::Path;
use std::sync::Arc;

use carob_kit::{Clock, ManualClock};
use tempfile::TempDir;

use crate::digest::Digest;
use crate::store::{ImageStore, StoreConfig};

/// A store that goes with its directory.
pub(crate) struct TestStore {
    pub(crate) images: ImageStore,
    pub(crate) dir: TempDir,
}

impl TestStore {
    pub(crate) fn clock() -> Arc<dyn Clock> {
        Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH))
    }

    pub(crate) async fn new() -> Self {
        Self::with(StoreConfig::new("unused", Self::clock())).await
    }

    pub(crate) async fn with(mut config: StoreConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        config.root = dir.path().join("images");
        Self { images: ImageStore::open(config).await.unwrap(), dir }
    }

    pub(crate) fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("images")
    }

    pub(crate) fn files(&self, dir: &str) -> Vec<String> {
        let path: &Path = &self.root().join(dir);
        let mut names: Vec<String> = fs_err::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// A layer's archive, uncompressed.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) tar: Vec<u8>,
}

impl Layer {
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let files: Vec<(String, Vec<u8>)> =
            files.iter().map(|(name, content)| ((*name).to_owned(), content.as_bytes().to_vec())).collect();
        Self { tar: tar(&files) }
    }
}

pub(crate) fn append(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header, name, content).unwrap();
}

pub(crate) fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        append(&mut builder, name, content);
    }
    builder.into_inner().unwrap()
}

/// A configuration of these layers for this machine.
pub(crate) fn config(layers: &[Layer]) -> String {
    let architecture = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("\"{}\"", Digest::of(&layer.tar))).collect();
    format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{"Cmd":["/bin/sh"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    )
}

/// What `docker save` writes.
pub(crate) fn docker_archive(layers: &[Layer], tags: &[&str]) -> Vec<u8> {
    let names: Vec<String> = (0..layers.len()).map(|index| format!("\"{index}/layer.tar\"")).collect();
    let tags: Vec<String> = tags.iter().map(|tag| format!("{tag:?}")).collect();
    let manifest = format!(r#"[{{"Config":"c.json","RepoTags":[{}],"Layers":[{}]}}]"#, tags.join(","), names.join(","));
    let mut files = vec![("c.json".to_owned(), config(layers).into_bytes())];
    for (index, layer) in layers.iter().enumerate() {
        files.push((format!("{index}/layer.tar"), layer.tar.clone()));
    }
    files.push(("manifest.json".to_owned(), manifest.into_bytes()));
    tar(&files)
}

pub(crate) fn descriptor(bytes: &[u8]) -> String {
    format!(r#"{{"digest":"{}","size":{}}}"#, Digest::of(bytes), bytes.len())
}

/// A manifest of gzip-compressed layers, and all blobs that it leads to.
pub(crate) fn image(layers: &[Layer]) -> (String, Vec<Vec<u8>>) {
    use std::io::Write;
    let mut blobs = vec![config(layers).into_bytes()];
    let mut listed = Vec::new();
    for layer in layers {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&layer.tar).unwrap();
        let blob = gzip.finish().unwrap();
        listed.push(descriptor(&blob));
        blobs.push(blob);
    }
    let manifest =
        format!(r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#, descriptor(&blobs[0]), listed.join(","));
    (manifest, blobs)
}

/// The files of an OCI layout with one image, annotated in the index.
pub(crate) fn oci_layout(layers: &[Layer], annotations: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    let (manifest, blobs) = image(layers);
    let annotations: Vec<String> = annotations.iter().map(|(key, value)| format!("{key:?}:{value:?}")).collect();
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"digest":"{}","size":{},"annotations":{{{}}}}}]}}"#,
        Digest::of(manifest.as_bytes()),
        manifest.len(),
        annotations.join(",")
    );
    let mut files = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index.into_bytes()),
    ];
    for blob in blobs.into_iter().chain([manifest.into_bytes()]) {
        files.push((format!("blobs/sha256/{}", Digest::of(&blob).hex()), blob));
    }
    files
}
