//! What a new start knows of the life before it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use carob_kit::fs::FaultFs;
use carob_kit::{Clock, ManualClock, SystemClock};

use super::{SMALL, open, settle};
use crate::{Durability, Event, EventKind, Expect, Op, Options, ReadError, Revision, Store, Txn, WatchItem};

async fn put(store: &Store, key: &str, value: &'static str) -> Revision {
    store.txn(Txn::put(key, Expect::Any, value)).await.expect("put").revision
}

fn events(store: &Store, after: Revision) -> Vec<Arc<Event>> {
    let mut watch = store.watch("/", after).expect("history reaches back");
    let mut events = Vec::new();
    while let Some(WatchItem::Event(event)) = watch.try_next() {
        events.push(event);
    }
    events
}

#[tokio::test(start_paused = true)]
async fn watches_resume_after_a_clean_end() {
    let fs = FaultFs::new();
    let store = open(&fs).await.expect("open");
    let created = put(&store, "/a", "1").await;
    put(&store, "/a", "2").await;
    let deleted = store.txn(Txn::delete("/a", Expect::Any)).await.expect("delete").revision;
    store.close().await.expect("close");

    let store = open(&fs).await.expect("open");
    assert_eq!(store.current(), deleted);
    let seen = events(&store, created);
    let [update, delete] = &seen[..] else { panic!("two events, not {seen:?}") };
    assert_eq!(update.previous.as_ref().map(|previous| previous.mod_revision), Some(created));
    assert_eq!((delete.kind, delete.revision(), &delete.entry.value[..]), (EventKind::Delete, deleted, &b"2"[..]));
    assert_eq!(put(&store, "/a", "3").await, Revision(deleted.0 + 1));
}

/// What a watcher has seen may have been undone, so it must not go on as if nothing had happened.
#[tokio::test(start_paused = true)]
async fn watchers_list_again_after_an_unclean_end() {
    let fs = FaultFs::new();
    let store = open(&fs).await.expect("open");
    let seen = put(&store, "/a", "1").await;
    settle().await;
    fs.kill();
    let store = open(&fs).await.expect("open");
    assert!(store.current() > seen);
    let error = store.watch("/", seen).expect_err("it may have seen more than there is");
    assert_eq!(error, ReadError::Compacted { requested: seen, compacted: store.current() });
    assert_eq!(store.get("/a").expect("it is there").mod_revision, seen);
}

#[tokio::test(start_paused = true)]
async fn history_before_a_checkpoint_is_compacted() {
    let fs = FaultFs::new();
    let store = open(&fs).await.expect("open");
    let first = put(&store, "/a", "1").await;
    for _ in 0..20 {
        store.txn(Txn::put("/b", Expect::Any, vec![0; 1800])).await.expect("put");
        settle().await;
    }
    let last = store.current();
    store.close().await.expect("close");
    let store = open(&fs).await.expect("open");
    assert!(matches!(store.watch("/", first), Err(ReadError::Compacted { .. })));
    let kept = events(&store, store.compacted());
    assert!(!kept.is_empty() && kept.len() < 20, "{} events", kept.len());
    assert_eq!(kept.last().map(|event| event.revision()), Some(last));
    assert_eq!(store.get("/a").expect("it is there").create_revision, first);
}

#[tokio::test(start_paused = true)]
async fn ends_of_entries_come_on_time() {
    let clock = Arc::new(ManualClock::new(SystemClock::new().now()));
    let fs = FaultFs::new();
    let open = || {
        let options = Options::new(Arc::clone(&clock) as Arc<dyn Clock>);
        Store::embedded_sized(Arc::new(fs.clone()), Path::new("store"), SMALL, options)
    };
    let store = open().await.expect("open");
    for (key, seconds) in [("/past", 60), ("/soon", 3600)] {
        let ttl = Some(Duration::from_secs(seconds));
        let op = Op::Put { value: "1".into(), ttl, durability: Durability::Durable };
        store.txn(Txn { key: key.into(), expect: Expect::Any, op }).await.expect("put");
    }
    store.close().await.expect("close");
    clock.advance(Duration::from_secs(600));
    let store = open().await.expect("open");
    settle().await;
    assert!(store.get("/past").is_none(), "it ended while the store was closed");
    tokio::time::sleep(Duration::from_secs(2900)).await;
    assert!(store.get("/soon").is_some());
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(store.get("/soon").is_none(), "its time went on while the store was closed");
}
