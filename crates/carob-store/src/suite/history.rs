//! Compaction: what can no longer be read says so, what can stays right.

use std::future::Future;

use super::{compacted, delete, event, fill, keys, page, put, text};
use crate::{Limits, ListOptions, Options, Revision, Store};

pub(super) async fn run<F: Future<Output = Store>>(open: &impl Fn(Options) -> F) {
    run_real(open).await;
    history_has_a_length(open(short(Limits { history_events_max: 10, ..Limits::default() })).await).await;
    history_has_an_age(open(Options::default()).await).await;
}

pub(super) async fn run_real<F: Future<Output = Store>>(open: &impl Fn(Options) -> F) {
    compaction_forgets_the_past_only(open(Options::default()).await).await;
    history_has_a_size(open(short(Limits { history_bytes_max: 100_000, ..Limits::default() })).await).await;
}

fn short(limits: Limits) -> Options {
    Options { limits, ..Options::default() }
}

async fn compaction_forgets_the_past_only(store: Store) {
    let one = put(&store, "/a", "1").await.revision;
    put(&store, "/b", "1").await;
    let two = put(&store, "/a", "2").await.revision;
    delete(&store, "/b").await;
    let three = put(&store, "/a", "3").await.revision;

    store.compact(two).expect("compact");
    assert_eq!(store.compacted(), two);
    compacted(store.get_at("/a", one));
    compacted(store.list("/", ListOptions { at: Some(one), ..ListOptions::default() }));
    compacted(store.watch("/", one));
    compacted(store.compact(one));
    let listed = page(&store, "/", ListOptions { at: Some(two), ..ListOptions::default() });
    assert_eq!(keys(&listed), ["/a", "/b"], "the revision itself is still whole");
    assert_eq!(text(&listed.entries[0].value), "2");
    let mut watch = store.watch("/a", two).expect("what is after it can be watched");
    assert_eq!(event(watch.next().await).revision(), three);

    store.compact(three).expect("compact");
    assert_eq!(store.stats().history_events, 0);
    assert_eq!(keys(&page(&store, "/", ListOptions::default())), ["/a"]);
    assert_eq!(text(&store.get("/a").expect("the present stays").value), "3");
    store.compact(three).expect("once more changes nothing");
}

async fn history_has_a_length(store: Store) {
    let end = fill(&store, "/p/", 50).await;
    assert_eq!(store.stats().history_events, 10);
    assert_eq!(store.compacted(), Revision(end.0 - 10));
    compacted(store.watch("/p/", Revision(end.0 - 11)));
    let mut watch = store.watch("/p/", store.compacted()).expect("history reaches this far");
    for revision in end.0 - 9..=end.0 {
        assert_eq!(event(watch.next().await).revision().0, revision);
    }
    assert_eq!(store.count("/p/"), 50, "the present is not history");

    // The revision to which age would compact has long been compacted for length by then.
    tokio::time::sleep(Limits::default().history_age.mul_f32(0.5)).await;
    let end = fill(&store, "/p/", 50).await;
    tokio::time::sleep(Limits::default().history_age.mul_f32(3.0)).await;
    assert_eq!((store.compacted(), store.stats().history_events), (end, 0));
    put(&store, "/p/0000", "still here").await;
}

async fn history_has_a_size(store: Store) {
    for _ in 0..100 {
        put(&store, "/large", &"x".repeat(10_000)).await;
    }
    let kept = store.stats().history_events;
    assert!((1..=10).contains(&kept), "{kept} superseded values of 10 kB are kept");
    assert_eq!(store.stats().live_keys, 1);
}

/// Events live one to two times the age, then the index holds the present only.
async fn history_has_an_age(store: Store) {
    let age = Limits::default().history_age;
    let first = put(&store, "/a", "1").await.revision;
    let second = put(&store, "/a", "2").await.revision;
    tokio::time::sleep(age.mul_f32(0.9)).await;
    assert!(store.get_at("/a", first).expect("history is younger than its age").is_some());
    tokio::time::sleep(age.mul_f32(1.2)).await;
    compacted(store.get_at("/a", first));
    assert_eq!(store.compacted(), second);
    assert_eq!(store.stats().history_events, 0);
    let third = put(&store, "/a", "3").await.revision;
    assert!(store.watch("/", second).is_ok(), "new history begins");
    tokio::time::sleep(age.mul_f32(2.1)).await;
    assert_eq!(store.compacted(), third);
}
