//! Watches: order, resumption, what they see of whom, progress.

use std::future::Future;

use super::{delete, event, fill, put, text};
use crate::{EventKind, Limits, Options, Revision, Store, WatchItem};

pub(super) async fn run<F: Future<Output = Store>>(open: &impl Fn(Options) -> F) {
    events_come_in_order(open(Options::default()).await).await;
    a_watch_sees_its_prefix(open(Options::default()).await).await;
    a_watch_resumes_anywhere(open(Options::default()).await).await;
    watchers_share_events(open(Options::default()).await).await;
    watchers_race_with_writers(open(Options::default()).await).await;
    progress_is_what_was_seen(open(Options::default()).await).await;
    a_slow_watcher_is_ended(open(short()).await).await;
    watchers_leave_nothing_behind(open(Options::default()).await).await;
    a_watch_goes_on_where_its_list_ended(open(Options::default()).await).await;
}

async fn a_watch_goes_on_where_its_list_ended(store: Store) {
    put(&store, "/a/x", "1").await;
    put(&store, "/b/x", "1").await;
    let (entries, mut watch) = store.list_and_watch("/a/");
    let keys: Vec<&str> = entries.iter().map(|entry| &*entry.key).collect();
    assert_eq!(keys, ["/a/x"]);
    assert!(!watch.is_behind() && watch.try_next().is_none());
    put(&store, "/b/x", "2").await;
    assert!(!watch.is_behind(), "another prefix");
    // Whoever has been told that its write is done finds it in every watch.
    let changed = delete(&store, "/a/x").await.revision;
    assert!(watch.is_behind());
    let event = event(watch.try_next().expect("there is one"));
    assert_eq!((event.kind, event.revision()), (EventKind::Delete, changed));
    assert!(!watch.is_behind());
}

fn short() -> Options {
    Options { limits: Limits { history_events_max: 100, ..Limits::default() }, ..Options::default() }
}

async fn events_come_in_order(store: Store) {
    let mut watch = store.watch("/", store.current()).expect("the present can be watched");
    let created = put(&store, "/a", "1").await.revision;
    let updated = put(&store, "/a", "2").await.revision;
    let deleted = delete(&store, "/a").await.revision;

    let first = event(watch.next().await);
    assert_eq!((first.kind, first.revision()), (EventKind::Put, created));
    assert!(first.is_create() && first.previous.is_none());
    let second = event(watch.next().await);
    assert_eq!((second.kind, second.revision(), second.is_create()), (EventKind::Put, updated, false));
    assert_eq!(text(&second.previous.as_ref().expect("there was one").value), "1");
    let third = event(watch.next().await);
    assert_eq!((third.kind, third.revision()), (EventKind::Delete, deleted));
    assert_eq!(text(&third.entry.value), "2", "a delete shows the last value");
    assert_eq!(third.previous.as_ref().expect("there was one").mod_revision, updated);
    assert!(watch.try_next().is_none());
}

async fn a_watch_sees_its_prefix(store: Store) {
    let start = store.current();
    let prefixes = ["", "/", "/a", "/a/", "/a/x", "/a/é", "/a/b/", "/b/", "/a/zz"];
    let mut watches = prefixes.map(|prefix| store.watch(prefix, start).expect("the present can be watched"));
    let keys = ["/a/x", "/a/xy", "/a/b/c", "/b/x", "/ax", "/a/é", "/a/è", "/c"];
    for key in keys {
        put(&store, key, "1").await;
    }
    for (prefix, watch) in prefixes.iter().zip(&mut watches) {
        let mut seen = Vec::new();
        while let Some(item) = watch.try_next() {
            seen.push(event(item).entry.key.to_string());
        }
        let expected: Vec<_> = keys.into_iter().filter(|key| key.starts_with(prefix)).collect();
        assert_eq!(seen, expected, "watching {prefix:?}");
    }
}

async fn a_watch_resumes_anywhere(store: Store) {
    let end = fill(&store, "/p/", 200).await;
    fill(&store, "/q/", 3).await;
    // Later revisions first, so that a log that exists is extended backwards.
    let mut watches = Vec::new();
    for after in (Revision::EMPTY.0..=end.0).rev().step_by(7) {
        watches.push((after, store.watch("/p/", Revision(after)).expect("history reaches back")));
    }
    let last = put(&store, "/p/last", "1").await.revision;
    for (after, mut watch) in watches {
        let mut expected: Vec<_> = (after + 1..=end.0).collect();
        expected.push(last.0);
        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            seen.push(event(watch.next().await).revision().0);
        }
        assert_eq!(seen, expected, "after {after}");
        assert!(watch.try_next().is_none());
    }
}

async fn watchers_share_events(store: Store) {
    let mut one = store.watch("/a", store.current()).expect("the present can be watched");
    let mut other = store.watch("/", store.current()).expect("the present can be watched");
    let done = put(&store, "/a", "1").await;
    let (seen, seen_too) = (event(one.next().await), event(other.next().await));
    assert!(std::sync::Arc::ptr_eq(&seen, &seen_too), "an event is made once");
    assert!(std::sync::Arc::ptr_eq(&seen.entry, &done.entry), "and so is its entry");
    assert!(std::sync::Arc::ptr_eq(&seen.entry, &store.get("/a").expect("it is there")));
}

/// List, then watch from there, while others write: nothing is missed, nothing comes twice.
pub(super) async fn watchers_race_with_writers(store: Store) {
    const WRITES: u64 = 300;
    let end = Revision(Revision::EMPTY.0 + 2 * WRITES);
    let writers = ["/a", "/b"].map(|key| {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 0..WRITES {
                put(&store, key, &number.to_string()).await;
            }
        })
    });
    let watchers: Vec<_> = (0..20)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut seen = store.current();
                let mut watch = store.watch("/", seen).expect("the present can be watched");
                while seen < end {
                    let revision = event(watch.next().await).revision();
                    assert_eq!(revision.0, seen.0 + 1);
                    seen = revision;
                }
            })
        })
        .collect();
    for task in writers.into_iter().chain(watchers) {
        task.await.expect("neither writers nor watchers panic");
    }
}

async fn progress_is_what_was_seen(store: Store) {
    let start = store.current();
    let mut watch = store.watch("/a/", start).expect("the present can be watched");
    assert_eq!(watch.progress(), start);
    let other = put(&store, "/b/1", "1").await.revision;
    assert_eq!(watch.progress(), other, "what is not watched has been seen at once");
    let first = put(&store, "/a/1", "1").await.revision;
    let second = put(&store, "/a/2", "1").await.revision;
    let later = put(&store, "/b/1", "2").await.revision;
    assert_eq!(watch.progress(), other, "an event that was not returned has not been seen");
    assert_eq!(event(watch.next().await).revision(), first);
    assert_eq!(watch.progress(), first);
    assert_eq!(event(watch.next().await).revision(), second);
    assert_eq!(watch.progress(), later);
}

async fn a_slow_watcher_is_ended(store: Store) {
    let start = store.current();
    let mut slow = store.watch("/p/", start).expect("the present can be watched");
    let mut aside = store.watch("/q/", start).expect("the present can be watched");
    put(&store, "/p/0000", "1").await;
    event(slow.next().await);
    fill(&store, "/p/", 99).await;
    put(&store, "/p/0000", "2").await;
    assert_eq!(event(slow.try_next().expect("history still has it")).revision().0, start.0 + 2);
    fill(&store, "/p/", 300).await;
    while let WatchItem::Event(event) = slow.next().await {
        assert!(event.revision().0 < start.0 + 70, "only what had been taken out comes before the end");
    }
    assert!(matches!(slow.next().await, WatchItem::Lagged), "for good");
    put(&store, "/q/1", "1").await;
    assert_eq!(event(aside.next().await).revision(), store.current(), "who missed nothing goes on");
}

async fn watchers_leave_nothing_behind(store: Store) {
    let watches: Vec<_> = (0..1000)
        .map(|number| store.watch(&format!("/p/{}", number % 100), store.current()).expect("the present"))
        .collect();
    assert_eq!(store.stats().watchers, 1000);
    drop(watches);
    assert_eq!(store.stats().watchers, 0);
}
