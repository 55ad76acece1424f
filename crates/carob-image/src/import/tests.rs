//! Archives as docker, containerd and skopeo write them, and some that nobody should.

use std::io::Write;

use crate::store::StoreConfig;
use crate::testing::{self, Layer, TestStore};
use crate::{ImportError, ImportSource, NoProgress};

use super::*;

fn busybox() -> Vec<Layer> {
    vec![Layer::of(&[("bin/sh", "shell"), ("etc/passwd", "root:x:0:0")]), Layer::of(&[("etc/motd", "hello")])]
}

async fn import(store: &TestStore, bytes: Vec<u8>) -> Result<Vec<Arc<ImageRecord>>, ImportError> {
    store.images.import(ImportSource::Reader(Box::new(std::io::Cursor::new(bytes))), Arc::new(NoProgress)).await
}

fn check_busybox(store: &TestStore, image: &ImageRecord) {
    let layers = store.images.layers(&image.id).unwrap();
    assert_eq!(fs_err::read_to_string(layers[0].join("etc/motd")).unwrap(), "hello", "topmost first");
    assert_eq!(fs_err::read_to_string(layers[1].join("bin/sh")).unwrap(), "shell");
    assert_eq!(image.config.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["/bin/sh"]);
    assert_eq!(store.images.usage().layers, 2);
}

#[tokio::test]
async fn an_archive_of_docker_save() {
    let store = TestStore::new().await;
    let archive = testing::docker_archive(&busybox(), &["busybox:1.36", "docker.io/library/busybox:latest"]);
    let images = import(&store, archive.clone()).await.unwrap();
    check_busybox(&store, &images[0]);
    for name in ["busybox", "busybox:1.36", "docker.io/library/busybox:latest", &images[0].id.to_string()] {
        assert_eq!(store.images.get(name).unwrap().id, images[0].id, "{name}");
    }
    let again = import(&store, archive).await.unwrap();
    assert_eq!((again[0].id.clone(), store.images.list().len()), (images[0].id.clone(), 1));
}

#[tokio::test]
async fn a_layout_as_tar_compressed_tar_and_directory() {
    let layout = testing::oci_layout(&busybox(), &[("io.containerd.image.name", "docker.io/library/busybox:1")]);
    let tar = testing::tar(&layout);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    for bytes in [tar.clone(), gzip.finish().unwrap(), zstd::encode_all(&tar[..], 1).unwrap()] {
        let store = TestStore::new().await;
        let images = import(&store, bytes).await.unwrap();
        check_busybox(&store, &images[0]);
        assert!(images[0].digests.iter().all(|name| name.starts_with("docker.io/library/busybox@sha256:")));
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in &layout {
        fs_err::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs_err::write(dir.path().join(name), content).unwrap();
    }
    let store = TestStore::new().await;
    let from = ImportSource::Path(dir.path().to_owned());
    let images = store.images.import(from, Arc::new(NoProgress)).await.unwrap();
    check_busybox(&store, &images[0]);
    assert!(store.images.get("busybox:1").is_some());
}

#[tokio::test]
async fn a_layer_that_is_there_twice_may_be_a_link() {
    let layers = [Layer::of(&[("a", "1")]), Layer::of(&[("a", "1")])];
    let config = testing::config(&layers);
    let manifest = br#"[{"Config":"c.json","RepoTags":null,"Layers":["x/layer.tar","y/layer.tar"]}]"#;
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in
        [("c.json", config.as_bytes()), ("manifest.json", &manifest[..]), ("x/layer.tar", &layers[0].tar)]
    {
        testing::append(&mut builder, name, content);
    }
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder.append_link(&mut link, "y/layer.tar", "../x/layer.tar").unwrap();
    let store = TestStore::new().await;
    let images = import(&store, builder.into_inner().unwrap()).await.unwrap();
    assert_eq!((images[0].layers.len(), images[0].tags.len()), (2, 0));
}

/// What must be refused, with a part of the words that it is refused with.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let layers = busybox();
    let docker = |manifest: &str| {
        let config = testing::config(&layers);
        testing::tar(&[
            ("c.json".to_owned(), config.into_bytes()),
            ("manifest.json".to_owned(), manifest.as_bytes().to_vec()),
            ("0".to_owned(), layers[0].tar.clone()),
            ("1".to_owned(), layers[1].tar.clone()),
        ])
    };
    let mut wrong_config = testing::oci_layout(&layers, &[]);
    let mut wrong_manifest = testing::oci_layout(&layers, &[]);
    for (name, content) in &mut wrong_config {
        if name.starts_with("blobs/") && content.starts_with(b"{\"architecture") {
            content.push(b' ');
        }
    }
    for (name, content) in &mut wrong_manifest {
        if name.starts_with("blobs/") && content.starts_with(b"{\"schemaVersion") {
            content.push(b' ');
        }
    }
    let swapped = docker(r#"[{"Config":"c.json","RepoTags":[],"Layers":["1","0"]}]"#);
    let huge = testing::tar(&[("manifest.json".to_owned(), vec![b' '; 5 << 20])]);
    let windows = testing::tar(&[
        ("manifest.json".to_owned(), br#"[{"Config":"c","Layers":[]}]"#.to_vec()),
        (
            "c".to_owned(),
            br#"{"architecture":"amd64","os":"windows","rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec(),
        ),
    ]);
    let mut truncated = testing::docker_archive(&layers, &["a"]);
    truncated.truncate(600);
    vec![
        ("it holds no image", testing::tar(&[("readme".to_owned(), b"x".to_vec())])),
        ("decode manifest.json", docker("{}")),
        ("missing.json is not in it", docker(r#"[{"Config":"missing.json","Layers":[]}]"#)),
        ("has 2 layers, its manifest 1", docker(r#"[{"Config":"c.json","Layers":["0"]}]"#)),
        ("open the archive of layer sha256:", docker(r#"[{"Config":"c.json","Layers":["0","9"]}]"#)),
        (
            "names an image: image name \"BAD\" must be lower-case",
            docker(r#"[{"Config":"c.json","RepoTags":["BAD"],"Layers":["0","1"]}]"#),
        ),
        ("its archive is not the one that the image's configuration names", swapped),
        ("manifest.json has 5242880 bytes, at most", huge),
        ("is for windows, not linux", windows),
        ("has the digest sha256:", testing::tar(&wrong_config)),
        ("has the digest sha256:", testing::tar(&wrong_manifest)),
        ("the archive ends inside entry", truncated),
        ("../../etc/passwd is not in it", docker(r#"[{"Config":"../../etc/passwd","Layers":[]}]"#)),
        ("is not one", docker(r#"[{"Config":"0","Layers":[]}]"#)),
    ]
}

#[tokio::test]
async fn broken_and_hostile_archives_are_refused_and_leave_nothing() {
    let store = TestStore::new().await;
    for (part, archive) in hostile() {
        let error = import(&store, archive).await.expect_err(part);
        let words = carob_kit::chain(&error).to_string();
        assert!(words.contains(part), "{words}\nhas no {part}");
        assert_eq!(store.images.list().len(), 0);
        assert_eq!(fs_err::read_dir(store.root().join("tmp")).unwrap().count(), 0, "{part}");
    }
}

#[tokio::test]
async fn an_archive_larger_than_the_limit_is_not_spooled_to_its_end() {
    let mut config = StoreConfig::new("unused", TestStore::clock());
    config.limits.bytes_max = 4096;
    let store = TestStore::with(config).await;
    let error = import(&store, testing::docker_archive(&busybox(), &["a"])).await.unwrap_err();
    assert!(matches!(error, ImportError::TooLong { max: 4096 }), "{error}");
}
