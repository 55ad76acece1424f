//! Gets, lists and pages.

use std::future::Future;

use super::{delete, fill, keys, page, put, text};
use crate::{ListOptions, Options, ReadError, Revision, Store};

pub(super) async fn run<F: Future<Output = Store>>(open: &impl Fn(Options) -> F) {
    a_prefix_is_just_that(open(Options::default()).await).await;
    pages_show_one_revision(open(Options::default()).await).await;
    a_long_list_is_whole(open(Options::default()).await).await;
    lists_race_with_writers(open(Options::default()).await).await;
    old_revisions_can_be_read(open(Options::default()).await).await;
    the_future_cannot_be_read(open(Options::default()).await).await;
    wait_for_waits(open(Options::default()).await).await;
}

async fn a_prefix_is_just_that(store: Store) {
    for key in ["/a/1", "/a/2", "/ab/1", "/b/é", "/b/z"] {
        put(&store, key, "1").await;
    }
    for (prefix, after, expected) in [
        ("/a/", None, vec!["/a/1", "/a/2"]),
        ("/a", None, vec!["/a/1", "/a/2", "/ab/1"]),
        ("/a/1", None, vec!["/a/1"]),
        ("/a/1", Some("/a/1"), vec![]),
        ("/a/", Some("/a/1"), vec!["/a/2"]),
        ("/a/", Some("/a/10"), vec!["/a/2"]),
        ("/a/", Some("/a/2"), vec![]),
        ("/a/", Some("/"), vec!["/a/1", "/a/2"]),
        ("/a/", Some("/b/"), vec![]),
        ("/b/", None, vec!["/b/z", "/b/é"]),
        ("/c/", None, vec![]),
        ("", None, vec!["/a/1", "/a/2", "/ab/1", "/b/z", "/b/é"]),
    ] {
        let listed = page(&store, prefix, ListOptions { after, ..ListOptions::default() });
        assert_eq!(keys(&listed), expected, "{prefix:?} after {after:?}");
        assert_eq!(listed.revision, store.current());
    }
    assert_eq!((store.count("/a/"), store.count("")), (2, 5));
}

async fn pages_show_one_revision(store: Store) {
    let at = fill(&store, "/p/", 10).await;
    let first = page(&store, "/p/", ListOptions { limit: Some(4), ..ListOptions::default() });
    assert_eq!((first.revision, first.remaining, first.more()), (at, 6, true));

    put(&store, "/p/0005", "changed").await;
    delete(&store, "/p/0006").await;
    put(&store, "/p/0006x", "new").await;
    let rest = ListOptions { at: Some(first.revision), after: Some("/p/0003"), limit: Some(4) };
    let second = page(&store, "/p/", rest);
    assert_eq!(keys(&second), ["/p/0004", "/p/0005", "/p/0006", "/p/0007"]);
    assert_eq!(text(&second.entries[1].value), "5");
    assert_eq!((second.revision, second.remaining), (at, 2));
    let third = page(&store, "/p/", ListOptions { after: Some("/p/0007"), ..rest });
    assert_eq!(keys(&third), ["/p/0008", "/p/0009"]);
    assert_eq!((third.remaining, third.more()), (0, false));
    let exact = page(&store, "/p/", ListOptions { limit: Some(10), ..ListOptions::default() });
    assert_eq!((exact.entries.len(), exact.more()), (10, false), "a limit that is met by all leaves nothing");
}

/// Longer than what is read under one lock.
async fn a_long_list_is_whole(store: Store) {
    fill(&store, "/p/", 2500).await;
    let all = page(&store, "/p/", ListOptions::default());
    assert_eq!(all.entries.len(), 2500);
    assert!(all.entries.is_sorted_by(|a, b| a.key < b.key));
    let some = page(&store, "/p/", ListOptions { limit: Some(1), ..ListOptions::default() });
    assert_eq!((some.entries.len(), some.remaining), (1, 2499));
    let some = page(&store, "/p/", ListOptions { limit: Some(2048), ..ListOptions::default() });
    assert_eq!((some.entries.len(), some.remaining), (2048, 452));
}

/// Every revision adds one key, so a list that shows one revision has as many.
pub(super) async fn lists_race_with_writers(store: Store) {
    const KEYS: usize = 3000;
    let writer = tokio::spawn({
        let store = store.clone();
        async move { fill(&store, "/p/", KEYS).await }
    });
    let mut listed = 0;
    while listed < KEYS {
        let all = page(&store, "/p/", ListOptions::default());
        assert_eq!(all.entries.len() as u64, all.revision.0 - Revision::EMPTY.0);
        assert!(all.entries.len() >= listed, "time does not go back");
        listed = all.entries.len();
        tokio::task::yield_now().await;
    }
    writer.await.expect("the writer does not panic");
}

async fn old_revisions_can_be_read(store: Store) {
    let one = put(&store, "/a", "1").await.revision;
    let two = put(&store, "/a", "2").await.revision;
    let gone = delete(&store, "/a").await.revision;
    let back = put(&store, "/a", "3").await.revision;
    for (at, expected) in [(Revision::EMPTY, None), (one, Some("1")), (two, Some("2")), (gone, None), (back, Some("3"))]
    {
        let entry = store.get_at("/a", at).expect("history reaches back");
        assert_eq!(entry.as_ref().map(|entry| text(&entry.value)), expected, "at {at}");
        let listed = page(&store, "/", ListOptions { at: Some(at), ..ListOptions::default() });
        assert_eq!(listed.entries.first().map(|entry| text(&entry.value)), expected, "at {at}");
        assert_eq!(listed.revision, at);
    }
}

async fn the_future_cannot_be_read(store: Store) {
    let future = Revision(store.current().0 + 1);
    let error = ReadError::Future { requested: future, current: store.current() };
    assert_eq!(store.get_at("/a", future).expect_err("not yet"), error);
    let listed = store.list("/", ListOptions { at: Some(future), ..ListOptions::default() });
    assert_eq!(listed.expect_err("not yet"), error);
    assert_eq!(store.watch("/", future).expect_err("not yet"), error);
    assert_eq!(store.compact(future).expect_err("not yet"), error);
}

async fn wait_for_waits(store: Store) {
    store.wait_for(store.current()).await.expect("it is there");
    let awaited = Revision(store.current().0 + 2);
    let waiter = tokio::spawn({
        let store = store.clone();
        async move {
            store.wait_for(awaited).await.expect("it will come");
            store.current()
        }
    });
    put(&store, "/a", "1").await;
    put(&store, "/a", "2").await;
    assert!(waiter.await.expect("the waiter does not panic") >= awaited);
}
