//! What the store does when its disk fails it, and when lazy writes are safe.

use std::time::Duration;

use carob_kit::fs::{Fault, FaultFs};

use super::{open, settle};
use crate::limits::LAZY_SYNC_DELAY;
use crate::{Durability, Expect, Op, Revision, Store, Txn, TxnError, TxnOk};

async fn put(store: &Store, key: &str, bytes: usize) -> Result<TxnOk, TxnError> {
    store.txn(Txn::put(key, Expect::Any, vec![b'v'; bytes])).await
}

async fn put_lazy(store: &Store, key: &str) -> Revision {
    let op = Op::Put { value: "v".into(), ttl: None, durability: Durability::Lazy };
    store.txn(Txn { key: key.into(), expect: Expect::Any, op }).await.expect("put").revision
}

/// Whether a lazy write survives a power loss after `wait`, for one seed of many.
async fn survives(wait: Duration, then_durable: bool, seed: u64) -> bool {
    let fs = FaultFs::new();
    let store = open(&fs).await.expect("open");
    put(&store, "/durable", 1).await.expect("put");
    let revision = put_lazy(&store, "/lazy").await;
    tokio::time::sleep(wait).await;
    if then_durable {
        put(&store, "/durable", 2).await.expect("put");
    }
    fs.restart(seed);
    drop(store);
    settle().await;
    let store = open(&fs).await.expect("open");
    assert!(store.get("/durable").is_some());
    let next = put(&store, "/durable", 3).await.expect("put").revision;
    assert!(next > revision, "a lazy revision is not issued again");
    store.get("/lazy").is_some()
}

#[tokio::test(start_paused = true)]
async fn a_lazy_write_is_safe_after_its_delay_or_the_next_durable_one() {
    let mut lost = 0;
    for seed in 0..32 {
        assert!(survives(LAZY_SYNC_DELAY + Duration::from_millis(1), false, seed).await);
        assert!(survives(Duration::ZERO, true, seed).await);
        lost += u32::from(!survives(LAZY_SYNC_DELAY / 2, false, seed).await);
    }
    assert!(lost > 0, "before that it may be lost, or the model proves nothing");
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_fsync_only_reads_go_on() {
    let fs = FaultFs::new();
    let store = open(&fs).await.expect("open");
    let before = put(&store, "/a", 1).await.expect("put").revision;
    let mut watch = store.watch("/", before).expect("watch");
    // The write of the frame is spared, its fsync is not.
    fs.fail_after(1, Fault::Io);
    let failed = put(&store, "/a", 2).await.expect_err("the fsync failed");
    assert!(matches!(failed, TxnError::Failed(_)), "{failed:?}");
    let failed = put(&store, "/a", 3).await.expect_err("for good");
    assert!(matches!(failed, TxnError::Failed(_)), "{failed:?}");
    assert!(store.failure().is_some());
    assert_eq!(store.current(), before);
    assert_eq!(store.get("/a").expect("reads go on").mod_revision, before);
    assert!(watch.try_next().is_none(), "nobody saw what is not safe");
    store.clone().close().await.expect_err("the end is not clean");
    settle().await;
    assert!(put(&open(&fs).await.expect("open"), "/a", 4).await.is_ok(), "a new start finds out what is on the disk");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_what_has_no_room_and_nothing_else() {
    let mut refused = 0;
    for after in 0..20 {
        let fs = FaultFs::new();
        let store = open(&fs).await.expect("open");
        put(&store, "/a", 3900).await.expect("the segment has room");
        fs.fail_after(after, Fault::NoSpace);
        let at = store.current();
        match put(&store, "/b", 3900).await {
            Err(TxnError::NoSpace(_)) => {
                refused += 1;
                assert_eq!((store.current(), store.get("/b").is_none()), (at, true));
                let done = put(&store, "/b", 3900).await.expect("there is room again");
                assert_eq!(done.revision, Revision(at.0 + 1), "what was not written took no revision");
                store.close().await.expect("close");
                settle().await;
                assert_eq!(open(&fs).await.expect("open").count("/"), 2);
            }
            // Any other operation needs no room, so a disk that says so is broken.
            Err(error) => assert!(matches!(error, TxnError::Failed(_)), "{error:?}"),
            Ok(_) => fs.clear_fault(),
        }
    }
    assert_eq!(refused, 1, "one operation asks for room");
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_fails_is_tried_again_later() {
    let mut failed_quietly = 0;
    for after in 0..120 {
        let fs = FaultFs::new();
        let store = open(&fs).await.expect("open");
        fs.fail_after(after, Fault::NoSpace);
        for round in 0..20 {
            if put(&store, &format!("/{}", round % 3), 1800).await.is_err() {
                break;
            }
            settle().await;
        }
        fs.clear_fault();
        if store.failure().is_some() {
            continue;
        }
        failed_quietly += 1;
        for round in 0..40 {
            put(&store, &format!("/{}", round % 3), 1800).await.expect("put");
            settle().await;
        }
        let segments = segments(&fs);
        assert!(segments <= 5, "{segments} segments stay after a fault in operation {after}");
        store.close().await.expect("close");
        settle().await;
        assert_eq!(open(&fs).await.expect("open").count("/"), 3);
    }
    assert!(failed_quietly > 10, "only {failed_quietly} operations may fail without ending the store");
}

fn segments(fs: &FaultFs) -> usize {
    use carob_kit::fs::Fs;
    let names = fs.list(std::path::Path::new("store")).expect("list");
    names.iter().filter(|name| name.to_string_lossy().starts_with("segment-")).count()
}
