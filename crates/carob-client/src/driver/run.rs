//! The loop of one reconciler. It alone owns which keys run, which wait for a time, and which failed how often.
//!
//! A reconcile that panics costs its key alone: it is tried again as after an error, and after [`PANICS_MAX`] panics in a row
//! the key is set aside until its object changes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use carob_kit::{Backoff, Panicked, catch_panic, catch_panic_in, chain, moment_after, random_u64};
use futures_util::future::{BoxFuture, join_all};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::{Queue, Reconcile, Requeue, ScanFn, Subject, WorkOptions};
use crate::error::ReconcileError;
use crate::events::{EventKind, EventRecorder};

/// Waits after a key's failures (client-go `util/workqueue`, DefaultTypedControllerRateLimiter, whose longest is 1000 s;
/// ours is shorter since a retry costs one local request).
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_LONGEST: Duration = Duration::from_secs(300);
/// Panics in a row after which a key is set aside.
const PANICS_MAX: u32 = 3;
/// Keys that may be set aside. Past it, one that panics is tried again with the longest wait instead.
const SET_ASIDE_MAX: usize = 4096;
/// A key that is set aside is tried once after this long though its object has not changed, since the cause may lie elsewhere.
const SET_ASIDE_FOR: Duration = Duration::from_secs(3600);
/// Failures in a row after which a conflict is no longer ordinary and is logged.
const CONFLICTS_ORDINARY: u32 = 5;

type Outcome<K> = (K, Result<Result<Requeue, ReconcileError>, Panicked>);

pub(super) async fn run<R: Reconcile>(
    reconciler: Arc<R>,
    options: WorkOptions,
    queue: Arc<Queue<R::Key>>,
    ready: Vec<BoxFuture<'static, ()>>,
    scans: Vec<ScanFn<R::Key>>,
    recorder: Option<EventRecorder>,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = shutdown.cancelled() => return,
        _ = join_all(ready) => {}
    }
    queue.began();
    let mut state = State::new(&*reconciler, &queue, recorder);
    let mut tasks: JoinSet<Outcome<R::Key>> = JoinSet::new();
    let mut scan_at = options.scan_every.map(next_scan);
    loop {
        let free = tasks.len() < options.workers.max(1);
        // Every arm is cancel safe: a key leaves its queue, a task its set, only when the arm is taken.
        tokio::select! {
            () = shutdown.cancelled() => break,
            key = queue.keys.pop_timed(), if free => {
                if let Some(key) = key.and_then(|(key, waited)| state.begin(key, waited)) {
                    let reconciler = Arc::clone(&reconciler);
                    tasks.spawn(async move {
                        let outcome = catch_panic(async { reconciler.reconcile(key.clone()).await }).await;
                        (key, outcome)
                    });
                }
            }
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => match ended {
                Ok((key, outcome)) => state.end(key, outcome),
                // Panics are caught in the task and nothing aborts it.
                Err(error) => error!(name = reconciler.name(), %error, "a reconcile was broken off"),
            },
            () = at(state.next_delayed()) => state.release_due(),
            () = at(scan_at) => {
                scan_at = options.scan_every.map(next_scan);
                scan(reconciler.name(), &queue, &scans);
            }
            () = queue.overflow.notified(), if queue.keys.is_empty() => scan(reconciler.name(), &queue, &scans),
        }
    }
    // What runs is given its end: it may be between two writes.
    while tasks.join_next().await.is_some() {}
    // Informers outlive the driver and go on to tell of changes.
    queue.keys.close();
}

fn next_scan(every: Duration) -> Instant {
    let span = u64::try_from(every.as_millis() / 2).unwrap_or(u64::MAX).max(1);
    moment_after(Instant::now(), every.saturating_add(Duration::from_millis(random_u64() % span)))
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn scan<K: Hash + Eq + Clone>(name: &str, queue: &Queue<K>, scans: &[ScanFn<K>]) {
    queue.scans.fetch_add(1, Ordering::Relaxed);
    for scan in scans {
        if let Err(panicked) = catch_panic_in(|| scan(&mut |key| queue.push(key))) {
            error!(name, "a full scan: {panicked}");
        }
    }
}

struct State<'a, R: Reconcile> {
    reconciler: &'a R,
    queue: &'a Queue<R::Key>,
    recorder: Option<EventRecorder>,
    running: HashMap<R::Key, Instant>,
    /// Keys that were asked for while they ran.
    again: HashSet<R::Key>,
    delayed: BTreeSet<(Instant, R::Key)>,
    due: HashMap<R::Key, Instant>,
    failures: HashMap<R::Key, Failures>,
    set_aside: HashMap<R::Key, SetAside>,
}

/// The failures of one key in a row.
struct Failures {
    backoff: Backoff,
    panics: u32,
}

impl Failures {
    fn new() -> Self {
        Self { backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST), panics: 0 }
    }
}

/// Why a key is not reconciled.
struct SetAside {
    /// The object as it was when it made the reconciler panic.
    subject: Option<Subject>,
    until: Instant,
}

impl<'a, R: Reconcile> State<'a, R> {
    fn new(reconciler: &'a R, queue: &'a Queue<R::Key>, recorder: Option<EventRecorder>) -> Self {
        Self {
            reconciler,
            queue,
            recorder,
            running: HashMap::new(),
            again: HashSet::new(),
            delayed: BTreeSet::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            set_aside: HashMap::new(),
        }
    }

    /// The key, if it may run now; one that runs already is noted for when it ends.
    fn begin(&mut self, key: R::Key, waited: Duration) -> Option<R::Key> {
        if self.running.contains_key(&key) {
            self.again.insert(key);
            return None;
        }
        if self.is_set_aside(&key) {
            return None;
        }
        // The coming look decides when the next one is due.
        self.forget_delay(&key);
        let now = Instant::now();
        self.queue.times().begin(now, waited);
        self.running.insert(key.clone(), now);
        Some(key)
    }

    fn end(&mut self, key: R::Key, outcome: Result<Result<Requeue, ReconcileError>, Panicked>) {
        if let Some(begun) = self.running.remove(&key) {
            self.queue.times().end(begun);
        }
        let delay = match outcome {
            Ok(Ok(requeue)) => {
                self.queue.succeeded.fetch_add(1, Ordering::Relaxed);
                self.failures.remove(&key);
                match requeue {
                    Requeue::No => None,
                    Requeue::After(delay) => Some(delay),
                }
            }
            Ok(Err(error)) => Some(self.failed(&key, &error)),
            Err(panicked) => Some(self.panicked(&key, &panicked)),
        };
        if self.again.remove(&key) && !self.set_aside.contains_key(&key) {
            self.queue.push(key);
        } else if let Some(delay) = delay {
            self.delay(key, moment_after(Instant::now(), delay));
        }
    }

    fn failed(&mut self, key: &R::Key, error: &ReconcileError) -> Duration {
        self.queue.failed.fetch_add(1, Ordering::Relaxed);
        let known = self.failures.entry(key.clone()).or_insert_with(Failures::new);
        known.panics = 0;
        let wait = known.backoff.fail();
        let (name, failures) = (self.reconciler.name(), known.backoff.failures());
        // An error that stays is told less and less often: at the first failure, the second, the fourth and so on.
        if (error.is_conflict() && failures <= CONFLICTS_ORDINARY) || !failures.is_power_of_two() {
            debug!(name, ?key, failures, ?wait, "reconcile: {}", chain(error));
        } else {
            warn!(name, ?key, failures, ?wait, "reconcile: {}", chain(error));
        }
        wait
    }

    /// Answers how long to wait with the key.
    fn panicked(&mut self, key: &R::Key, panicked: &Panicked) -> Duration {
        self.queue.panicked.fetch_add(1, Ordering::Relaxed);
        let name = self.reconciler.name();
        let known = self.failures.entry(key.clone()).or_insert_with(Failures::new);
        known.panics = known.panics.saturating_add(1);
        let (panics, wait) = (known.panics, known.backoff.fail());
        if panics < PANICS_MAX {
            error!(name, ?key, panics, ?wait, "a reconcile {panicked}");
            return wait;
        }
        if self.set_aside.len() >= SET_ASIDE_MAX {
            error!(name, ?key, panics, "a reconcile {panicked}; too many objects are set aside for this one to be");
            return RETRY_LONGEST;
        }
        error!(name, ?key, panics, "a reconcile {panicked}; the object is set aside until it changes");
        self.failures.remove(key);
        let subject = self.reconciler.subject(key);
        if let (Some(recorder), Some(subject)) = (&self.recorder, &subject) {
            let message = format!(
                "The {name} controller {panicked}. After {panics} such panics it leaves this object alone until it changes"
            );
            recorder.record(subject.reference.clone(), EventKind::Warning, "ControllerPanicked", message);
        }
        let until = moment_after(Instant::now(), SET_ASIDE_FOR);
        self.set_aside.insert(key.clone(), SetAside { subject, until });
        self.show_set_aside();
        SET_ASIDE_FOR
    }

    /// Whether the key is to be left alone still. One whose object has changed, or that has waited long, is not.
    fn is_set_aside(&mut self, key: &R::Key) -> bool {
        let Some(set_aside) = self.set_aside.get(key) else { return false };
        let same = set_aside.subject.as_ref().map(Subject::version)
            == self.reconciler.subject(key).as_ref().map(Subject::version);
        if same && Instant::now() < set_aside.until {
            return true;
        }
        self.set_aside.remove(key);
        self.show_set_aside();
        false
    }

    fn show_set_aside(&self) {
        let keys = self.set_aside.keys().map(|key| format!("{key:?}")).collect();
        *self.queue.set_aside.lock().expect("no holder of the keys panics") = keys;
    }

    fn delay(&mut self, key: R::Key, when: Instant) {
        self.forget_delay(&key);
        self.due.insert(key.clone(), when);
        self.delayed.insert((when, key));
    }

    fn forget_delay(&mut self, key: &R::Key) {
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
