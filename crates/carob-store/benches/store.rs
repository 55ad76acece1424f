//! What the store costs: durable commits, reads beside writers, watchers, memory.
//!
//! `cargo bench -p carob-store` measures on the disk of the target directory, with `-- DIR` in DIR. The p50 of one
//! fdatasync on that disk is printed beside the figures that contain one.
#![expect(clippy::print_stdout, reason = "the figures are the output")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use carob_kit::fs::{Access, Fs, RealFs};
use carob_store::{Expect, ListOptions, Options, Store, Txn, WatchItem};
use tokio::time::Instant;

const VALUE_BYTES: usize = 2048;
const RUN: Duration = Duration::from_secs(2);

fn main() {
    let dir = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
    let root = tempfile::tempdir_in(dir).expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
    runtime.expect("a runtime").block_on(async {
        // First, while nothing that was freed is there to be used again.
        memory_per_entry().await;
        println!("one fdatasync of {VALUE_BYTES} bytes, p50: {:?}", fdatasync_p50(&root.path().join("probe")));
        for writers in [1, 16, 128] {
            durable_commits(&root.path().join(format!("writers-{writers}")), writers).await;
        }
        commits("in memory", Store::in_memory(Options::default()), 128).await;
        lists_beside_writers().await;
        watchers("10 000 watchers, each of its own prefix", |number| format!("/other/{number}/")).await;
        watchers("10 000 watchers of what is written", |_| "/bench/".to_owned()).await;
    });
}

fn fdatasync_p50(path: &Path) -> Duration {
    let file = RealFs.open(path, Access::Create).expect("create");
    file.preallocate(16 << 20).expect("preallocate");
    let mut times: Vec<_> = (0..500)
        .map(|number| {
            let start = Instant::now();
            file.write_all_at(&[7; VALUE_BYTES], number * VALUE_BYTES as u64).expect("write");
            file.sync_data().expect("sync");
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

async fn durable_commits(dir: &Path, writers: usize) {
    let store = Store::embedded(dir, Options::default()).await.expect("open");
    commits("durable", store.clone(), writers).await;
    store.close().await.expect("close");
    let start = Instant::now();
    let store = Store::embedded(dir, Options::default()).await.expect("open");
    println!(
        "opened again with {} keys and {} events in {:?}",
        store.stats().live_keys,
        store.stats().history_events,
        start.elapsed()
    );
}

/// Each writer updates keys of its own, one after the other.
async fn commits(what: &str, store: Store, writers: usize) {
    let stop = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let tasks: Vec<_> =
        (0..writers).map(|writer| tokio::spawn(write(store.clone(), writer, Arc::clone(&stop)))).collect();
    tokio::time::sleep(RUN).await;
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.expect("a writer does not panic"));
    }
    let elapsed = start.elapsed();
    times.sort();
    println!(
        "{what}, {writers} writers: {:.0} commits/s, p50 {:?}, p99 {:?}",
        times.len() as f64 / elapsed.as_secs_f64(),
        times[times.len() / 2],
        times[times.len() * 99 / 100],
    );
}

async fn write(store: Store, writer: usize, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let key = format!("/bench/{writer:04}-{:04}", times.len() % 50);
        let start = Instant::now();
        store.txn(Txn::put(key, Expect::Any, value.clone())).await.expect("put");
        times.push(start.elapsed());
    }
    times
}

async fn beside_writers<T>(store: &Store, work: impl Future<Output = T>) -> (T, usize) {
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..16).map(|writer| tokio::spawn(write(store.clone(), writer, Arc::clone(&stop)))).collect();
    let done = work.await;
    stop.store(true, Ordering::Relaxed);
    let mut commits = 0;
    for task in tasks {
        commits += task.await.expect("a writer does not panic").len();
    }
    (done, commits)
}

async fn lists_beside_writers() {
    let store = Store::in_memory(Options::default());
    for number in 0..5000 {
        store.txn(Txn::put(format!("/list/{number:05}"), Expect::Any, "v")).await.expect("put");
    }
    let list = || {
        let start = Instant::now();
        let page = store.list("/list/", ListOptions::default()).expect("list");
        assert_eq!(page.entries.len(), 5000);
        start.elapsed()
    };
    let lists = async {
        let start = Instant::now();
        let mut times = Vec::new();
        while start.elapsed() < RUN {
            times.push(list());
            tokio::task::yield_now().await;
        }
        times.sort();
        times
    };
    let (times, commits) = beside_writers(&store, lists).await;
    println!(
        "list of 5000 beside 16 writers: p50 {:?}, p99 {:?}, {} lists and {commits} commits in {RUN:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times.len(),
    );
}

async fn watchers(what: &str, prefix: impl Fn(usize) -> String) {
    let store = Store::in_memory(Options::default());
    let tasks: Vec<_> = (0..10_000)
        .map(|number| {
            let mut watch = store.watch(&prefix(number), store.current()).expect("watch");
            tokio::spawn(async move {
                let mut events = 0_u64;
                while let WatchItem::Event(_) = watch.next().await {
                    events += 1;
                }
                events
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let start = Instant::now();
    let ((), commits) = beside_writers(&store, tokio::time::sleep(RUN)).await;
    store.close().await.expect("close");
    let mut events = 0;
    for task in tasks {
        events += task.await.expect("a watcher does not panic");
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{what}: {:.0} commits/s, {:.0} events/s", commits as f64 / seconds, events as f64 / seconds);
}

async fn memory_per_entry() {
    const ENTRIES: u64 = 100_000;
    let store = Store::in_memory(Options::default());
    let before = resident_bytes();
    let mut payload = 0;
    for number in 0..ENTRIES {
        let key = format!("/registry/pods/namespace-{}/pod-{number:08}", number % 10);
        let value = Bytes::from(vec![b'v'; 256]);
        payload += key.len() as u64 + value.len() as u64;
        store.txn(Txn::put(key, Expect::Any, value)).await.expect("put");
    }
    store.compact(store.current()).expect("compact");
    let grown = resident_bytes() - before;
    println!("memory: {} bytes an entry beside key and value", (grown.saturating_sub(payload)) / ENTRIES);
}

fn resident_bytes() -> u64 {
    let statm = fs_err::read_to_string("/proc/self/statm").expect("statm");
    let pages: u64 = statm.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("the second field of statm");
    pages * 4096
}
