//! Revisions, conditions, limits.

use std::collections::BTreeSet;
use std::future::Future;

use super::{conflict, delete, put, text};
use crate::{Expect, KEY_BYTES_MAX, Limits, Options, Revision, Store, Txn, TxnError};

pub(super) async fn run<F: Future<Output = Store>>(open: &impl Fn(Options) -> F) {
    run_real(open).await;
    changes_sent_together_see_each_other(open(Options::default()).await).await;
    a_full_store_takes_deletes(open(small()).await).await;
}

pub(super) async fn run_real<F: Future<Output = Store>>(open: &impl Fn(Options) -> F) {
    revisions_grow_by_one(open(Options::default()).await).await;
    conditions_hold(open(Options::default()).await).await;
    a_delete_tells_what_was(open(Options::default()).await).await;
    one_of_many_creators_wins(open(Options::default()).await).await;
    concurrent_increments_all_count(open(Options::default()).await).await;
    too_large_is_refused(open(small()).await).await;
    a_closed_store_says_so(open(Options::default()).await).await;
}

fn small() -> Options {
    let limits = Limits { value_bytes_max: 100, store_bytes_max: 250, ..Limits::default() };
    Options { limits, ..Options::default() }
}

async fn revisions_grow_by_one(store: Store) {
    assert_eq!(store.current(), Revision::EMPTY);
    let created = put(&store, "/a", "1").await;
    assert_eq!(created.revision, Revision(2));
    assert!(created.previous.is_none());
    let updated = put(&store, "/a", "2").await;
    assert_eq!(updated.revision, Revision(3));
    assert_eq!(updated.entry.create_revision, Revision(2), "an update keeps the creation");
    assert_eq!(updated.entry.mod_revision, Revision(3));
    assert_eq!(text(&updated.previous.expect("there was one").value), "1");
    delete(&store, "/a").await;
    let again = put(&store, "/a", "3").await;
    assert_eq!(again.entry.create_revision, Revision(5), "a key that was absent is created anew");
    assert_eq!(store.current(), Revision(5));
    assert_eq!(store.stats().live_keys, 1);
    assert_eq!(store.stats().live_bytes, 3);
}

async fn conditions_hold(store: Store) {
    let created = store.txn(Txn::put("/a", Expect::Absent, "1")).await.expect("it is absent");
    let at = created.revision;
    let actual = conflict(store.txn(Txn::put("/a", Expect::Absent, "2")).await).expect("it is there");
    assert_eq!(actual.mod_revision, at);
    let wrong = Expect::Revision(Revision(at.0 + 1));
    conflict(store.txn(Txn::put("/a", wrong, "2")).await).expect("it has another revision");
    conflict(store.txn(Txn::delete("/a", wrong)).await).expect("it has another revision");
    conflict(store.txn(Txn::delete("/a", Expect::Absent)).await).expect("what is absent cannot be deleted");
    assert!(conflict(store.txn(Txn::put("/b", Expect::Revision(at), "2")).await).is_none());
    assert!(conflict(store.txn(Txn::delete("/b", Expect::Any)).await).is_none());
    assert_eq!(store.current(), at, "a conflict takes no revision");
    let updated = store.txn(Txn::put("/a", Expect::Revision(at), "2")).await.expect("the revision is right");
    store.txn(Txn::delete("/a", Expect::Revision(updated.revision))).await.expect("the revision is right");
    assert!(store.get("/a").is_none());
}

async fn a_delete_tells_what_was(store: Store) {
    let created = put(&store, "/a", "1").await;
    let deleted = delete(&store, "/a").await;
    assert_eq!(deleted.previous.expect("there was one").mod_revision, created.revision);
    assert_eq!(deleted.entry.mod_revision, deleted.revision);
    assert_eq!(deleted.entry.create_revision, created.revision);
    assert_eq!(text(&deleted.entry.value), "1");
    assert_eq!((store.stats().live_keys, store.stats().live_bytes), (0, 0));
}

/// They are likely to be one batch, decided before any of them is in the index.
async fn changes_sent_together_see_each_other(store: Store) {
    put(&store, "/a", "0").await;
    let sent: Vec<_> = [
        Txn::delete("/a", Expect::Any),
        Txn::delete("/a", Expect::Any),
        Txn::put("/a", Expect::Absent, "1"),
        Txn::put("/a", Expect::Absent, "2"),
        Txn::put("/a", Expect::Any, "3"),
    ]
    .map(|txn| {
        let store = store.clone();
        tokio::spawn(async move { store.txn(txn).await })
    })
    .into();
    let mut answers = Vec::new();
    for task in sent {
        answers.push(task.await.expect("a writer does not panic"));
    }
    let [deleted, gone, created, there, updated] = <[_; 5]>::try_from(answers).expect("five answers");
    assert_eq!(deleted.expect("it was there").revision, Revision(3));
    assert!(conflict(gone).is_none());
    let created = created.expect("it was absent by then");
    assert_eq!((created.revision, created.entry.create_revision), (Revision(4), Revision(4)));
    assert!(created.previous.is_none());
    assert_eq!(conflict(there).expect("it was there by then").mod_revision, Revision(4));
    let updated = updated.expect("without condition");
    assert_eq!((updated.revision, updated.entry.create_revision), (Revision(5), Revision(4)));
}

pub(super) async fn one_of_many_creators_wins(store: Store) {
    let creators: Vec<_> = (0..64)
        .map(|number: u32| {
            let store = store.clone();
            tokio::spawn(async move { store.txn(Txn::put("/a", Expect::Absent, number.to_string())).await })
        })
        .collect();
    let mut won = 0;
    for creator in creators {
        match creator.await.expect("a creator does not panic") {
            Ok(_) => won += 1,
            Err(TxnError::Conflict { actual }) => assert!(actual.is_some(), "the loser is told of the winner"),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(won, 1);
}

pub(super) async fn concurrent_increments_all_count(store: Store) {
    put(&store, "/counter", "0").await;
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut revisions = Vec::new();
                while revisions.len() < 25 {
                    let entry = store.get("/counter").expect("it is there");
                    let next = text(&entry.value).parse::<u32>().expect("a number") + 1;
                    let txn = Txn::put("/counter", Expect::Revision(entry.mod_revision), next.to_string());
                    match store.txn(txn).await {
                        Ok(done) => revisions.push(done.revision),
                        Err(error) => assert!(matches!(error, TxnError::Conflict { .. }), "{error}"),
                    }
                    assert!(store.get("/counter").is_some(), "what was answered can be read");
                }
                revisions
            })
        })
        .collect();
    let mut revisions = BTreeSet::new();
    for worker in workers {
        let done = worker.await.expect("a worker does not panic");
        assert!(done.is_sorted(), "a writer's revisions grow");
        revisions.extend(done);
    }
    assert_eq!(revisions.len(), 200, "no revision is issued twice");
    assert_eq!(text(&store.get("/counter").expect("it is there").value), "200");
}

async fn too_large_is_refused(store: Store) {
    store.txn(Txn::put("/a", Expect::Any, vec![0; 100])).await.expect("just the limit");
    let large = store.txn(Txn::put("/a", Expect::Any, vec![0; 101])).await.expect_err("above the limit");
    assert!(matches!(large, TxnError::TooLarge { bytes: 101, max: 100, .. }), "{large:?}");
    let long = store.txn(Txn::put("k".repeat(KEY_BYTES_MAX + 1), Expect::Any, "1")).await.expect_err("too long");
    assert!(matches!(long, TxnError::KeyTooLong { .. }), "{long:?}");
    put(&store, &"k".repeat(64), "1").await;
}

async fn a_full_store_takes_deletes(store: Store) {
    for key in ["/a", "/b"] {
        store.txn(Txn::put(key, Expect::Any, vec![0; 100])).await.expect("there is room");
    }
    let full = store.txn(Txn::put("/c", Expect::Any, vec![0; 100])).await.expect_err("there is no room");
    assert!(matches!(full, TxnError::Full { bytes: 204, max: 250 }), "{full:?}");
    assert_eq!(store.current(), Revision(3));
    store.txn(Txn::put("/a", Expect::Any, vec![0; 50])).await.expect("less than before is no more");
    delete(&store, "/b").await;
    store.txn(Txn::put("/c", Expect::Any, vec![0; 100])).await.expect("there is room again");
}

async fn a_closed_store_says_so(store: Store) {
    let other = store.clone();
    let mut watch = store.watch("/", store.current()).expect("the present can be watched");
    put(&store, "/a", "1").await;
    store.close().await.expect("close");
    let closed = other.txn(Txn::put("/a", Expect::Any, "2")).await.expect_err("it is closed");
    assert!(matches!(closed, TxnError::Closed), "{closed:?}");
    super::event(watch.next().await);
    assert!(matches!(watch.next().await, crate::WatchItem::Closed), "after the last event");
    assert!(matches!(watch.next().await, crate::WatchItem::Closed), "for good");
    other.wait_for(Revision(99)).await.expect_err("it will not come");
    other.clone().close().await.expect("closing twice is closing");
    assert_eq!(text(&other.get("/a").expect("reads go on").value), "1");
}
