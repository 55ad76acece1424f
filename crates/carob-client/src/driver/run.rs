//! The loop of one reconciler. It alone owns which keys run, which wait for a time, and which failed how often.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use carob_kit::{Backoff, chain, random_u64};
use futures_util::future::{BoxFuture, join_all};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Queue, Reconcile, Requeue, ScanFn, WorkOptions};
use crate::error::ReconcileError;

/// Waits after a key's failures (client-go `util/workqueue`, DefaultTypedControllerRateLimiter, whose longest is 1000 s;
/// ours is shorter since a retry costs one local request).
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_LONGEST: Duration = Duration::from_secs(300);
/// Failures in a row after which a conflict is no longer ordinary and is logged.
const CONFLICTS_ORDINARY: u32 = 5;

type Outcome<K> = (K, Result<Requeue, ReconcileError>);

pub(super) async fn run<R: Reconcile>(
    reconciler: Arc<R>,
    options: WorkOptions,
    queue: Arc<Queue<R::Key>>,
    ready: Vec<BoxFuture<'static, ()>>,
    scans: Vec<ScanFn<R::Key>>,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = shutdown.cancelled() => return,
        _ = join_all(ready) => {}
    }
    let name = reconciler.name();
    let mut state = State::new(name, &queue);
    let mut tasks: JoinSet<Outcome<R::Key>> = JoinSet::new();
    let mut scan_at = options.scan_every.map(next_scan);
    loop {
        let free = tasks.len() < options.workers.max(1);
        // Every arm is cancel safe: a key leaves its queue, a task its set, only when the arm is taken.
        tokio::select! {
            () = shutdown.cancelled() => break,
            key = queue.keys.pop(), if free => {
                if let Some(key) = key.and_then(|key| state.begin(key)) {
                    let reconciler = Arc::clone(&reconciler);
                    tasks.spawn(async move { (key.clone(), reconciler.reconcile(key).await) });
                }
            }
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => match ended {
                Ok((key, outcome)) => state.end(key, outcome),
                Err(error) => resume(error),
            },
            () = at(state.next_delayed()) => state.release_due(),
            () = at(scan_at) => {
                scan_at = options.scan_every.map(next_scan);
                scan(&queue, &scans);
            }
            () = queue.overflow.notified(), if queue.keys.is_empty() => scan(&queue, &scans),
        }
    }
    // What runs is given its end: it may be between two writes.
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            resume(error);
        }
    }
}

fn resume(error: tokio::task::JoinError) {
    if error.is_panic() {
        std::panic::resume_unwind(error.into_panic());
    }
}

fn next_scan(every: Duration) -> Instant {
    let span = u64::try_from(every.as_millis() / 2).unwrap_or(u64::MAX).max(1);
    Instant::now() + every + Duration::from_millis(random_u64() % span)
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn scan<K: Hash + Eq + Clone>(queue: &Queue<K>, scans: &[ScanFn<K>]) {
    queue.scans.fetch_add(1, Ordering::Relaxed);
    for scan in scans {
        scan(&mut |key| queue.push(key));
    }
}

struct State<'a, K> {
    name: &'static str,
    queue: &'a Queue<K>,
    running: HashSet<K>,
    /// Keys that were asked for while they ran.
    again: HashSet<K>,
    delayed: BTreeSet<(Instant, K)>,
    due: HashMap<K, Instant>,
    failures: HashMap<K, Backoff>,
}

impl<'a, K: Hash + Eq + Ord + Clone + std::fmt::Debug> State<'a, K> {
    fn new(name: &'static str, queue: &'a Queue<K>) -> Self {
        Self {
            name,
            queue,
            running: HashSet::new(),
            again: HashSet::new(),
            delayed: BTreeSet::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
        }
    }

    /// The key, if it may run now; one that runs already is noted for when it ends.
    fn begin(&mut self, key: K) -> Option<K> {
        if self.running.contains(&key) {
            self.again.insert(key);
            return None;
        }
        // The coming look decides anew when the next one is due.
        self.forget_delay(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    fn end(&mut self, key: K, outcome: Result<Requeue, ReconcileError>) {
        self.running.remove(&key);
        let delay = match outcome {
            Ok(requeue) => {
                self.queue.succeeded.fetch_add(1, Ordering::Relaxed);
                self.failures.remove(&key);
                match requeue {
                    Requeue::No => None,
                    Requeue::After(delay) => Some(delay),
                }
            }
            Err(error) => Some(self.failed(&key, &error)),
        };
        if self.again.remove(&key) {
            self.queue.push(key);
        } else if let Some(delay) = delay {
            self.delay(key, Instant::now() + delay);
        }
    }

    fn failed(&mut self, key: &K, error: &ReconcileError) -> Duration {
        self.queue.failed.fetch_add(1, Ordering::Relaxed);
        let backoff = self.failures.entry(key.clone()).or_insert_with(|| Backoff::new(RETRY_FIRST, RETRY_LONGEST));
        let wait = backoff.fail();
        let (name, failures) = (self.name, backoff.failures());
        if error.is_conflict() && failures <= CONFLICTS_ORDINARY {
            debug!(name, ?key, failures, "reconcile: {}", chain(error));
        } else {
            warn!(name, ?key, failures, ?wait, "reconcile: {}", chain(error));
        }
        wait
    }

    fn delay(&mut self, key: K, when: Instant) {
        self.forget_delay(&key);
        self.due.insert(key.clone(), when);
        self.delayed.insert((when, key));
    }

    fn forget_delay(&mut self, key: &K) {
        if let Some(when) = self.due.remove(key) {
            self.delayed.remove(&(when, key.clone()));
        }
    }

    fn next_delayed(&self) -> Option<Instant> {
        self.delayed.first().map(|(when, _)| *when)
    }

    fn release_due(&mut self) {
        let now = Instant::now();
        while self.next_delayed().is_some_and(|when| when <= now) {
            if let Some((_, key)) = self.delayed.pop_first() {
                self.due.remove(&key);
                self.queue.push(key);
            }
        }
    }
}
