//! The suite that each backend must pass: what the API server may rely on, whatever keeps the data.
//!
//! [`run_all`] opens a store of its own for each case. Time is tokio's and must be paused.

mod history;
mod reads;
mod time;
mod txns;
mod watches;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::{
    Durability, Entry, Event, Expect, ListOptions, Op, Options, Page, ReadError, Revision, Store, Txn, TxnError, TxnOk,
    WatchItem,
};

/// Runs every case on stores that `open` makes. They must be empty, and be kept until they are dropped.
///
/// # Panics
/// When a case fails.
pub async fn run_all<F: Future<Output = Store>>(open: impl Fn(Options) -> F) {
    txns::run(&open).await;
    reads::run(&open).await;
    watches::run(&open).await;
    history::run(&open).await;
    time::run(&open).await;
}

/// Runs the cases that need neither a paused clock nor a store that nobody else serves: for what keeps its keys elsewhere.
///
/// # Panics
/// When a case fails.
pub async fn run_real<F: Future<Output = Store>>(open: impl Fn(Options) -> F) {
    txns::run_real(&open).await;
    reads::run(&open).await;
    watches::run(&open).await;
    history::run_real(&open).await;
}

/// Runs the cases that race tasks against each other, for runtimes of several threads. Time need not be paused.
///
/// # Panics
/// When a case fails.
pub async fn run_races<F: Future<Output = Store>>(open: impl Fn(Options) -> F) {
    txns::one_of_many_creators_wins(open(Options::default()).await).await;
    txns::concurrent_increments_all_count(open(Options::default()).await).await;
    reads::lists_race_with_writers(open(Options::default()).await).await;
    watches::watchers_race_with_writers(open(Options::default()).await).await;
}

async fn put(store: &Store, key: &str, value: &str) -> TxnOk {
    store.txn(Txn::put(key, Expect::Any, value.to_owned())).await.expect("a put without condition")
}

async fn delete(store: &Store, key: &str) -> TxnOk {
    store.txn(Txn::delete(key, Expect::Any)).await.expect("the delete of a key that is there")
}

async fn put_lazy(store: &Store, key: &str, value: &str, ttl: Option<Duration>) -> TxnOk {
    let op = Op::Put { value: value.to_owned().into(), ttl, durability: Durability::Lazy };
    store.txn(Txn { key: key.into(), expect: Expect::Any, op }).await.expect("a put without condition")
}

/// Puts `count` keys `<prefix>0000`, `<prefix>0001` and so on, lazily for speed.
async fn fill(store: &Store, prefix: &str, count: usize) -> Revision {
    let mut last = store.current();
    for number in 0..count {
        last = put_lazy(store, &format!("{prefix}{number:04}"), &number.to_string(), None).await.revision;
    }
    last
}

fn conflict(result: Result<TxnOk, TxnError>) -> Option<Arc<Entry>> {
    match result {
        Err(TxnError::Conflict { actual }) => actual,
        other => panic!("expected a conflict, got {other:?}"),
    }
}

fn page(store: &Store, prefix: &str, options: ListOptions<'_>) -> Page {
    store.list(prefix, options).expect("a revision that can be read")
}

fn keys(page: &Page) -> Vec<&str> {
    page.entries.iter().map(|entry| &*entry.key).collect()
}

fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).expect("values of the suite are text")
}

fn event(item: WatchItem) -> Arc<Event> {
    match item {
        WatchItem::Event(event) => event,
        other => panic!("expected an event, got {other:?}"),
    }
}

fn compacted<T: std::fmt::Debug>(result: Result<T, ReadError>) {
    assert!(matches!(result, Err(ReadError::Compacted { .. })), "expected Compacted, got {result:?}");
}
