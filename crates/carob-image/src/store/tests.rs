//! The life of images on disk: names, pins, garbage, crashes and a second process.

use carob_kit::ManualClock;

use super::*;
use crate::testing::{self, Layer, TestStore};
use crate::{ImportSource, NoProgress};

async fn add(store: &TestStore, layers: &[Layer], tag: &str) -> ImageId {
    let archive = testing::docker_archive(layers, &[tag]);
    let from = ImportSource::Reader(Box::new(io::Cursor::new(archive)));
    store.images.import(from, Arc::new(NoProgress)).await.unwrap()[0].id.clone()
}

fn base() -> Layer {
    Layer::of(&[("base", "shared by all")])
}

fn top(content: &str) -> Layer {
    Layer::of(&[("top", content)])
}

fn config_of(store: &TestStore) -> StoreConfig {
    StoreConfig::new(store.root(), TestStore::clock())
}

#[tokio::test]
async fn names_come_and_go_and_the_last_takes_the_image_along() {
    let store = TestStore::new().await;
    let a = add(&store, &[base(), top("a")], "a:1").await;
    let b = add(&store, &[base(), top("b")], "b:1").await;
    store.images.tag(&a, &"a:2".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(store.images.remove("a:1").await.unwrap(), RemoveOutcome::Untagged);
    assert!(store.images.get("a:1").is_none() && store.images.get("a:2").is_some());
    assert_eq!(store.images.usage().layers, 3, "the base is there once");
    let outcome = store.images.remove("docker.io/library/a:2").await.unwrap();
    assert!(matches!(outcome, RemoveOutcome::Removed { id, freed_bytes } if id == a && freed_bytes > 0));
    assert_eq!(store.images.remove("a:2").await.unwrap(), RemoveOutcome::Absent);
    assert_eq!((store.images.usage().layers, store.images.layers(&b).unwrap().len()), (2, 2));
    assert!(store.images.layers(&b).unwrap().iter().all(|path| path.is_dir()));
    store.images.remove(&b.to_string()).await.unwrap();
    let empty: [String; 0] = [];
    assert_eq!(
        (store.files("layers"), store.files("blobs/sha256"), store.files("tmp")),
        (empty.to_vec(), vec![], vec![])
    );
}

#[tokio::test]
async fn images_survive_a_restart_and_what_a_crash_left_does_not() {
    let store = TestStore::new().await;
    let id = add(&store, &[base(), top("a")], "a:1").await;
    store.images.pin("a:1", true).await.unwrap().unwrap();
    let before = (store.files("layers"), store.files("blobs/sha256"));
    let TestStore { images, dir } = store;
    drop(images);
    let root = dir.path().join("images");
    fs_err::create_dir_all(root.join("layers").join("0".repeat(64)).join("fs/deep")).unwrap();
    fs_err::write(root.join("blobs/sha256").join("1".repeat(64)), "half").unwrap();
    fs_err::write(root.join("tmp/blob-x"), "half").unwrap();
    let images = ImageStore::open(StoreConfig::new(&root, TestStore::clock())).await.unwrap();
    let store = TestStore { images, dir };
    assert_eq!((store.files("layers"), store.files("blobs/sha256")), before);
    assert_eq!(store.files("tmp"), Vec::<String>::new());
    let image = store.images.get("a:1").unwrap();
    assert_eq!((&image.id, image.pinned), (&id, true));
    assert!(image.config.config().as_ref().unwrap().cmd().is_some());
}

#[tokio::test]
async fn processes_share_a_store() {
    let store = TestStore::new().await;
    let a = add(&store, &[base(), top("a")], "a:1").await;
    let other = ImageStore::open(config_of(&store)).await.unwrap();
    assert_eq!(other.get("a:1").unwrap().id, a);
    let b = add(&store, &[base(), top("b")], "b:1").await;
    assert_eq!(other.layers(&b).unwrap().len(), 2, "what one adds the others see");
    other.tag(&b, &"c:1".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(store.images.get("c:1").unwrap().id, b, "also the other way");
    assert_eq!(store.images.get("a:1").unwrap().id, a, "nothing that one wrote is lost");
    let outcome = other.remove(&a.to_string()).await.unwrap();
    assert!(matches!(outcome, RemoveOutcome::Removed { freed_bytes: 0, .. }), "the first may be using it: {outcome:?}");
    assert!(store.images.get("a:1").is_none());
    assert_eq!(store.files("layers").len(), 3);
    drop(other);
    let outcome = store.images.remove(&b.to_string()).await.unwrap();
    assert!(matches!(outcome, RemoveOutcome::Removed { freed_bytes: 1.., .. }), "{outcome:?}");
    assert_eq!(store.files("layers"), Vec::<String>::new(), "alone again, it removes what nothing needs");
}

#[tokio::test]
async fn an_index_that_cannot_be_understood_is_refused_and_kept() {
    for (text, part) in
        [("{\"version\":99}", "has format 99"), ("{\"version\":1,", "cannot be read"), ("", "cannot be read")]
    {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("images.json"), text).unwrap();
        let error = ImageStore::open(StoreConfig::new(dir.path(), TestStore::clock())).await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(fs_err::read_to_string(dir.path().join("images.json")).unwrap(), text);
    }
}

/// The digest under which a registry knows an image.
fn as_pulled(store: &TestStore, id: &ImageId, name: &str) {
    let digest = format!("docker.io/library/{name}@{id}");
    store.images.change(|index| assert!(index.change(id, |image| image.digests.push(digest)))).unwrap();
}

#[tokio::test]
async fn garbage_is_the_longest_unused_until_enough_is_free() {
    let clock = Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH));
    let store = TestStore::with(StoreConfig::new("unused", Arc::clone(&clock) as Arc<dyn Clock>)).await;
    let mut ids = Vec::new();
    for name in ["used", "pinned", "imported", "oldest", "old", "young"] {
        ids.push(add(&store, &[base(), top(name)], name).await);
        if name != "imported" {
            as_pulled(&store, &ids[ids.len() - 1], name);
        }
        clock.advance(Duration::from_secs(100));
    }
    store.images.pin("pinned", true).await.unwrap();
    let policy = GcPolicy::default();
    let collect = |used| store.images.collect_from(&policy, &ids[..1], used, 1_000_000).unwrap();
    assert_eq!(collect(849_999), GcReport::default());
    let report = collect(850_000);
    assert_eq!(report.removed, [ids[3].clone(), ids[4].clone()], "the youngest was used 100 s ago");
    assert!(report.freed_bytes > 0 && report.short_bytes > 40_000);
    let there = [("used", true), ("pinned", true), ("imported", true)];
    for (name, is_there) in there.into_iter().chain([("oldest", false), ("old", false), ("young", true)]) {
        assert_eq!(store.images.get(name).is_some(), is_there, "{name}");
    }
    clock.advance(Duration::from_hours(1));
    let policy = GcPolicy { maximum_age: Some(Duration::from_mins(30)), ..GcPolicy::default() };
    store.images.touch(&ids[5]);
    assert_eq!(store.images.collect_garbage(&policy, &ids[..1]).await.unwrap().removed, []);
    clock.advance(Duration::from_hours(1));
    assert_eq!(store.images.collect_garbage(&policy, &ids[..1]).await.unwrap().removed, [ids[5].clone()]);
}
