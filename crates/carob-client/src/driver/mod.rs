//! Runs reconcilers: keys in, each key at most once at a time, again later when asked or when it failed.

mod run;
#[cfg(test)]
mod tests;
mod times;

use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use carob_kit::{KeyQueue, catch_panic_in};
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::error::ReconcileError;
use crate::events::{EventRecorder, reference};
use crate::informer::{Change, Informer};
pub use times::{WorkTimes, write_work_metrics};

/// Keys that wait for one reconciler. Past it, keys are not taken and a full scan is run instead.
const WAITING_KEYS_MAX: usize = 262_144;
/// Time between full scans, which repair what a lost event broke. A random part up to half as much again is added.
const SCAN_EVERY: Duration = Duration::from_secs(600);

/// One controller: looks at the object of a key and takes it one step nearer to what it should be.
///
/// It is told no more than the key, so that a restart, a missed event and the happy path are one path.
pub trait Reconcile: Send + Sync + 'static {
    type Key: Hash + Eq + Ord + Clone + Send + Sync + fmt::Debug + 'static;

    /// For logs and metrics, as upstream names the controller: `replicaset`.
    fn name(&self) -> &'static str;

    /// Never runs twice at a time for one key. Cancel safe it must be only at shutdown.
    fn reconcile(&self, key: Self::Key) -> impl Future<Output = Result<Requeue, ReconcileError>> + Send;

    /// The object that a key stands for, as it is known now: where it makes the reconciler panic again and again, it is said so
    /// on the object, and a change of it is the sign to try again. `None` for keys that stand for no one object.
    fn subject(&self, _key: &Self::Key) -> Option<Subject> {
        None
    }
}

/// The object that a key stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// With uid and resourceVersion.
    pub reference: ObjectReference,
}

impl Subject {
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self { reference: reference(object) }
    }

    fn version(&self) -> (Option<&str>, Option<&str>) {
        (self.reference.uid.as_deref(), self.reference.resource_version.as_deref())
    }
}

/// When to look at a key again if no event asks for it earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requeue {
    No,
    After(Duration),
}

/// How a reconciler is run.
#[derive(Debug, Clone, Copy)]
pub struct WorkOptions {
    /// Keys reconciled at the same time.
    pub workers: usize,
    /// `None`: the reconciler's informers tell it all.
    pub scan_every: Option<Duration>,
}

impl Default for WorkOptions {
    /// Five workers, as most controllers of upstream's have (`--concurrent-*-syncs`).
    fn default() -> Self {
        Self { workers: 5, scan_every: Some(SCAN_EVERY) }
    }
}

/// Counts of one reconciler since its start.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WorkStats {
    /// Keys that wait now.
    pub depth: usize,
    /// Keys that were queued.
    pub added: u64,
    /// How long keys waited, and how long their reconciles took.
    pub times: WorkTimes,
    /// Reconciles that ended well.
    pub succeeded: u64,
    /// Reconciles that failed, conflicts included.
    pub failed: u64,
    /// Reconciles that panicked.
    pub panicked: u64,
    /// Keys that are left alone until their object changes, since it made the reconciler panic again and again.
    pub set_aside: Vec<String>,
    /// Full scans.
    pub scans: u64,
}

/// The counts of each reconciler, by its name.
pub type DriverStats = Vec<(&'static str, WorkStats)>;

/// Owns the tasks of all reconcilers of one part. Dropping it breaks them off; [`Driver::join`] lets them finish.
pub struct Driver {
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
    stats: Arc<Mutex<Vec<(&'static str, StatsFn)>>>,
    begun: Vec<watch::Receiver<bool>>,
    events: Option<Events>,
}

type Events = Arc<dyn Fn(&'static str) -> EventRecorder + Send + Sync>;

type StatsFn = Arc<dyn Fn() -> WorkStats + Send + Sync>;

impl Driver {
    /// A driver whose reconcilers end when `shutdown` is cancelled.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { shutdown, tasks: JoinSet::new(), stats: Arc::default(), begun: Vec::new(), events: None }
    }

    /// Has the reconcilers that are started later say in Events that they leave an object alone; `recorder` makes the recorder of
    /// one, by its name.
    pub fn tell_in_events(&mut self, recorder: impl Fn(&'static str) -> EventRecorder + Send + Sync + 'static) {
        self.events = Some(Arc::new(recorder));
    }

    /// Waits until every reconciler that has been started has its first lists and works.
    pub fn begun(&self) -> impl Future<Output = ()> + Send + use<> {
        let begun = self.begun.clone();
        async move {
            for mut began in begun {
                // One that was ended before it began is not waited for.
                if began.wait_for(|began| *began).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Prepares a reconciler: give it its sources, then [`Work::start`] it.
    pub fn work<R: Reconcile>(&mut self, reconciler: R, options: WorkOptions) -> Work<'_, R> {
        self.work_asking(|_| reconciler, options)
    }

    /// As [`Driver::work`], for a reconciler that asks for keys of its own.
    pub fn work_asking<R, F>(&mut self, make: F, options: WorkOptions) -> Work<'_, R>
    where
        R: Reconcile,
        F: FnOnce(Asker<R::Key>) -> R,
    {
        let queue = Arc::new(Queue::new());
        let reconciler = Arc::new(make(Asker { queue: Arc::clone(&queue) }));
        Work { driver: self, reconciler, options, queue, ready: Vec::new(), scans: Vec::new() }
    }

    /// Reads the counts of all reconcilers, also of those that are started later.
    pub fn stats(&self) -> impl Fn() -> DriverStats + Send + Sync + use<> {
        let stats = Arc::clone(&self.stats);
        move || {
            let stats = stats.lock().expect("no holder of the counts panics");
            stats.iter().map(|(name, read)| (*name, read())).collect()
        }
    }

    /// Waits until the shutdown has been asked for and every running reconcile has ended.
    ///
    /// # Panics
    /// When the loop of a reconciler did; its reconciles do not bring it down.
    pub async fn join(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
}

/// Asks a reconciler to look at a key. It keeps nothing running.
pub struct Asker<K> {
    queue: Arc<Queue<K>>,
}

impl<K> Clone for Asker<K> {
    fn clone(&self) -> Self {
        Self { queue: Arc::clone(&self.queue) }
    }
}

impl<K: Hash + Eq + Clone> Asker<K> {
    pub fn ask(&self, key: K) {
        self.queue.push(key);
    }
}

type ScanFn<K> = Box<dyn Fn(&mut dyn FnMut(K)) + Send + Sync>;

/// A reconciler that is being set up.
pub struct Work<'a, R: Reconcile> {
    driver: &'a mut Driver,
    reconciler: Arc<R>,
    options: WorkOptions,
    queue: Arc<Queue<R::Key>>,
    ready: Vec<BoxFuture<'static, ()>>,
    scans: Vec<ScanFn<R::Key>>,
}

impl<R: Reconcile> Work<'_, R> {
    /// Reconciles the keys that `map` makes of each change of the informer's objects, and of each object in a full scan.
    pub fn on<K, I>(mut self, informer: &Informer<K>, map: impl Fn(Change<'_, K>) -> I + Send + Sync + 'static) -> Self
    where
        K: Resource + Send + Sync + 'static,
        I: IntoIterator<Item = R::Key>,
    {
        let map = Arc::new(map);
        let (queue, on_change) = (Arc::clone(&self.queue), Arc::clone(&map));
        let name = self.reconciler.name();
        informer.on_change(move |change| keys_of(name, &*on_change, change, &mut |key| queue.push(key)));
        let scanned = informer.clone();
        self.scans.push(Box::new(move |take| {
            for object in scanned.list() {
                keys_of(name, &*map, Change { old: None, new: Some(&object) }, take);
            }
        }));
        self.after(informer)
    }

    /// Starts only once `informer` has its first list, without reconciling anything because of it.
    pub fn after<K: Resource + Send + Sync + 'static>(mut self, informer: &Informer<K>) -> Self {
        let informer = informer.clone();
        self.ready.push(Box::pin(async move { informer.synced().await }));
        self
    }

    /// Reconciles these keys at the start and in every full scan, whatever the informers hold.
    pub fn always(mut self, keys: impl IntoIterator<Item = R::Key>) -> Self {
        let keys: Vec<R::Key> = keys.into_iter().collect();
        keys.iter().cloned().for_each(|key| self.queue.push(key));
        self.scans.push(Box::new(move |take| keys.iter().cloned().for_each(&mut *take)));
        self
    }

    pub fn asker(&self) -> Asker<R::Key> {
        Asker { queue: Arc::clone(&self.queue) }
    }

    pub fn start(self) {
        let begun = self.queue.begun.subscribe();
        self.driver.begun.push(begun);
        self.start_unawaited();
    }

    /// As [`Work::start`], for a reconciler of a kind that may not be served: [`Driver::begun`] does not wait for it.
    pub fn start_unawaited(self) {
        let Self { driver, reconciler, options, queue, ready, scans } = self;
        let counted = Arc::clone(&queue);
        let entry: (&'static str, StatsFn) = (reconciler.name(), Arc::new(move || counted.stats()));
        driver.stats.lock().expect("no holder of the counts panics").push(entry);
        let recorder = driver.events.as_ref().map(|recorder| recorder(reconciler.name()));
        let shutdown = driver.shutdown.clone();
        driver.tasks.spawn(run::run(reconciler, options, queue, ready, scans, recorder, shutdown));
    }
}

/// Hands on the keys that `map` makes of a change. One that it panics on costs that change alone.
fn keys_of<K, T, I>(name: &str, map: &impl Fn(Change<'_, K>) -> I, change: Change<'_, K>, take: &mut dyn FnMut(T))
where
    K: Resource,
    I: IntoIterator<Item = T>,
{
    if let Err(panicked) = catch_panic_in(|| map(change).into_iter().for_each(take)) {
        error!(name, key = %change.key(), "which keys a change asks for: {panicked}");
    }
}

/// The keys that wait for a reconciler, and its counts.
struct Queue<K> {
    keys: KeyQueue<K>,
    /// Notified when a key found no place: everything has to be looked at.
    overflow: Notify,
    added: AtomicU64,
    times: Mutex<WorkTimes>,
    succeeded: AtomicU64,
    failed: AtomicU64,
    panicked: AtomicU64,
    scans: AtomicU64,
    set_aside: Mutex<Vec<String>>,
    begun: watch::Sender<bool>,
}

impl<K: Hash + Eq + Clone> Queue<K> {
    fn new() -> Self {
        Self {
            keys: KeyQueue::new(WAITING_KEYS_MAX),
            overflow: Notify::new(),
            added: AtomicU64::new(0),
            times: Mutex::default(),
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            scans: AtomicU64::new(0),
            set_aside: Mutex::default(),
            begun: watch::Sender::new(false),
        }
    }

    fn began(&self) {
        self.begun.send_replace(true);
    }

    fn push(&self, key: K) {
        match self.keys.push(key) {
            Ok(is_new) => {
                self.added.fetch_add(u64::from(is_new), Ordering::Relaxed);
            }
            Err(_full) => self.overflow.notify_one(),
        }
    }

    fn times(&self) -> MutexGuard<'_, WorkTimes> {
        self.times.lock().expect("no holder of the times panics")
    }

    fn stats(&self) -> WorkStats {
        WorkStats {
            depth: self.keys.len(),
            added: self.added.load(Ordering::Relaxed),
            times: self.times().clone(),
            succeeded: self.succeeded.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            panicked: self.panicked.load(Ordering::Relaxed),
            set_aside: self.set_aside.lock().expect("no holder of the keys panics").clone(),
            scans: self.scans.load(Ordering::Relaxed),
        }
    }
}
