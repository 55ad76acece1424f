//! Entries that end.

use std::future::Future;
use std::time::Duration;

use super::{event, put, put_lazy};
use crate::{EventKind, Options, Store};

pub(super) async fn run<F: Future<Output = Store>>(open: &impl Fn(Options) -> F) {
    an_entry_ends_on_time(open(Options::default()).await).await;
    a_later_put_moves_the_end(open(Options::default()).await).await;
    many_ends_at_once(open(Options::default()).await).await;
    an_end_beyond_time_is_none(open(Options::default()).await).await;
}

const HOUR: Duration = Duration::from_secs(3600);

async fn put_for(store: &Store, key: &str, ttl: Duration) {
    put_lazy(store, key, "event", Some(ttl)).await;
}

async fn an_entry_ends_on_time(store: Store) {
    let mut watch = store.watch("/", store.current()).expect("the present can be watched");
    put_for(&store, "/e", HOUR).await;
    put(&store, "/stays", "1").await;
    let (created, _) = (event(watch.next().await), event(watch.next().await));
    tokio::time::sleep(Duration::from_secs(3599)).await;
    assert!(store.get("/e").is_some());
    let ended = event(watch.next().await);
    assert_eq!((ended.kind, &*ended.entry.key), (EventKind::Delete, "/e"));
    assert_eq!(ended.revision(), store.current());
    assert_eq!(ended.entry.create_revision, created.revision());
    assert!(store.get("/e").is_none() && store.get("/stays").is_some());
}

async fn a_later_put_moves_the_end(store: Store) {
    put_for(&store, "/later", HOUR).await;
    put_for(&store, "/never", HOUR).await;
    put_for(&store, "/again", HOUR).await;
    tokio::time::sleep(HOUR / 2).await;
    put_for(&store, "/later", HOUR).await;
    put(&store, "/never", "1").await;
    super::delete(&store, "/again").await;
    put(&store, "/again", "1").await;
    tokio::time::sleep(HOUR.mul_f32(0.75)).await;
    for key in ["/later", "/never", "/again"] {
        assert!(store.get(key).is_some(), "{key}");
    }
    tokio::time::sleep(HOUR).await;
    assert!(store.get("/later").is_none());
    assert!(store.get("/never").is_some() && store.get("/again").is_some());
}

async fn many_ends_at_once(store: Store) {
    let mut watch = store.watch("/", store.current()).expect("the present can be watched");
    for number in 0..1200 {
        put_for(&store, &format!("/e/{number}"), Duration::from_millis(3_600_000 - number)).await;
        event(watch.next().await);
    }
    for _ in 0..1200 {
        assert_eq!(event(watch.next().await).kind, EventKind::Delete);
    }
    assert_eq!(store.count("/"), 0);
}

async fn an_end_beyond_time_is_none(store: Store) {
    put_for(&store, "/e", Duration::MAX).await;
    tokio::time::sleep(HOUR * 24).await;
    assert!(store.get("/e").is_some());
}
