use std::collections::VecDeque;

use tokio::time::Instant;

use super::*;

/// A reconciler whose outcomes a test writes down; it keeps a log of begins and ends.
struct Scripted {
    began: Instant,
    log: Arc<Mutex<Vec<String>>>,
    takes: Duration,
    outcomes: Mutex<VecDeque<Result<Requeue, ReconcileError>>>,
}

impl Scripted {
    fn new(takes: Duration, outcomes: impl IntoIterator<Item = Result<Requeue, ReconcileError>>) -> Self {
        let outcomes = Mutex::new(outcomes.into_iter().collect());
        Self { began: Instant::now(), log: Arc::default(), takes, outcomes }
    }

    fn write(&self, what: &str, key: u32) {
        let at = self.began.elapsed().as_millis();
        self.log.lock().expect("no panic").push(format!("{at} {what} {key}"));
    }
}

impl Reconcile for Scripted {
    type Key = u32;

    fn name(&self) -> &'static str {
        "scripted"
    }

    async fn reconcile(&self, key: u32) -> Result<Requeue, ReconcileError> {
        self.write("begin", key);
        tokio::time::sleep(self.takes).await;
        self.write("end", key);
        self.outcomes.lock().expect("no panic").pop_front().unwrap_or(Ok(Requeue::No))
    }
}

fn failure() -> Result<Requeue, ReconcileError> {
    Err(ReconcileError::Unusable("it does not work".to_owned()))
}

fn options(workers: usize) -> WorkOptions {
    WorkOptions { workers, scan_every: None }
}

async fn wait_ms(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_never_runs_twice_at_a_time_but_again_if_asked_for_meanwhile() {
    let shutdown = CancellationToken::new();
    let mut driver = Driver::new(shutdown.clone());
    let reconciler = Scripted::new(Duration::from_millis(100), []);
    let log = Arc::clone(&reconciler.log);
    let work = driver.work(reconciler, options(4));
    let ask = work.asker();
    work.start();
    ask.ask(1);
    wait_ms(10).await;
    for _ in 0..3 {
        ask.ask(1);
        wait_ms(10).await;
    }
    wait_ms(500).await;
    assert_eq!(*log.lock().expect("no panic"), ["0 begin 1", "100 end 1", "100 begin 1", "200 end 1"]);
    shutdown.cancel();
    driver.join().await;
}

#[tokio::test(start_paused = true)]
async fn no_more_keys_run_than_there_are_workers() {
    let shutdown = CancellationToken::new();
    let mut driver = Driver::new(shutdown.clone());
    let reconciler = Scripted::new(Duration::from_millis(100), []);
    let log = Arc::clone(&reconciler.log);
    driver.work(reconciler, options(2)).always([1, 2, 3]).start();
    wait_ms(500).await;
    let log = log.lock().expect("no panic").clone();
    assert_eq!(log, ["0 begin 1", "0 begin 2", "100 end 1", "100 end 2", "100 begin 3", "200 end 3"]);
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_with_growing_waits_and_a_success_forgets_them() {
    let mut driver = Driver::new(CancellationToken::new());
    let outcomes = [failure(), failure(), failure(), Ok(Requeue::After(Duration::from_secs(1))), failure()];
    let reconciler = Scripted::new(Duration::ZERO, outcomes);
    let log = Arc::clone(&reconciler.log);
    driver.work(reconciler, options(1)).always([7]).start();
    let stats = driver.stats();
    wait_ms(5000).await;
    let begins: Vec<u64> = log
        .lock()
        .expect("no panic")
        .iter()
        .filter_map(|line| line.strip_suffix(" begin 7").and_then(|at| at.parse().ok()))
        .collect();
    let waits: Vec<u64> = begins.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // Paused time moves in whole milliseconds, so each wait may show one more.
    for (wait, expected) in waits.iter().zip([5, 10, 20, 1000, 5]) {
        assert!((expected..=expected + 2).contains(wait), "{waits:?}");
    }
    assert_eq!(waits.len(), 5);
    let (name, counts) = stats().remove(0);
    assert_eq!((name, counts.succeeded, counts.failed), ("scripted", 2, 4));
}

#[tokio::test(start_paused = true)]
async fn a_delay_past_the_end_of_time_is_no_panic() {
    let shutdown = CancellationToken::new();
    let mut driver = Driver::new(shutdown.clone());
    let outcomes = [Ok(Requeue::After(Duration::MAX)), Ok(Requeue::After(Duration::from_secs(u64::MAX)))];
    let reconciler = Scripted::new(Duration::ZERO, outcomes);
    let log = Arc::clone(&reconciler.log);
    driver.work(reconciler, WorkOptions { workers: 1, scan_every: Some(Duration::MAX) }).always([1, 2]).start();
    wait_ms(100_000).await;
    assert_eq!(log.lock().expect("no panic").len(), 4, "each ran once and waits for ever");
    shutdown.cancel();
    driver.join().await;
}

/// Panics for key 1 as long as its object has the version that it began with.
struct Panicking {
    version: Arc<AtomicU64>,
    tries: Arc<AtomicU64>,
}

impl Reconcile for Panicking {
    type Key = u32;

    fn name(&self) -> &'static str {
        "panicking"
    }

    async fn reconcile(&self, key: u32) -> Result<Requeue, ReconcileError> {
        if key == 1 {
            self.tries.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            assert_ne!(self.version.load(Ordering::Relaxed), 0, "the first version cannot be worked with");
        }
        Ok(Requeue::No)
    }

    fn subject(&self, key: &u32) -> Option<Subject> {
        let version = Some(self.version.load(Ordering::Relaxed).to_string());
        let reference =
            ObjectReference { name: Some(key.to_string()), resource_version: version, ..Default::default() };
        Some(Subject { reference })
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_panics_is_set_aside_until_its_object_changes_and_costs_no_other() {
    let shutdown = CancellationToken::new();
    let mut driver = Driver::new(shutdown.clone());
    let (version, tries) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let reconciler = Panicking { version: Arc::clone(&version), tries: Arc::clone(&tries) };
    let work = driver.work(reconciler, options(2)).always([1, 2]);
    let ask = work.asker();
    work.start();
    let stats = driver.stats();
    let counts = || stats().remove(0).1;
    driver.begun().await;
    wait_ms(1000).await;
    assert_eq!((tries.load(Ordering::Relaxed), counts().panicked), (3, 3));
    assert_eq!(counts().set_aside, ["1"]);
    for _ in 0..3 {
        ask.ask(1);
        ask.ask(2);
        wait_ms(1000).await;
    }
    assert_eq!(tries.load(Ordering::Relaxed), 3, "it is left alone");
    assert_eq!(counts().succeeded, 4, "the other is not");

    version.store(1, Ordering::Relaxed);
    ask.ask(1);
    wait_ms(1000).await;
    assert_eq!((tries.load(Ordering::Relaxed), counts().succeeded), (4, 5));
    assert!(counts().set_aside.is_empty());
    shutdown.cancel();
    driver.join().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_set_aside_is_tried_again_after_an_hour() {
    let mut driver = Driver::new(CancellationToken::new());
    let tries = Arc::<AtomicU64>::default();
    let reconciler = Panicking { version: Arc::default(), tries: Arc::clone(&tries) };
    driver.work(reconciler, options(1)).always([1]).start();
    wait_ms(3_590_000).await;
    assert_eq!(tries.load(Ordering::Relaxed), 3);
    wait_ms(20_000).await;
    assert_eq!(tries.load(Ordering::Relaxed), 6);
}

#[tokio::test(start_paused = true)]
async fn an_event_makes_a_delayed_key_run_at_once_and_drops_its_delay() {
    let mut driver = Driver::new(CancellationToken::new());
    let reconciler = Scripted::new(Duration::ZERO, [Ok(Requeue::After(Duration::from_secs(60)))]);
    let log = Arc::clone(&reconciler.log);
    let work = driver.work(reconciler, options(1)).always([1]);
    let ask = work.asker();
    work.start();
    wait_ms(1000).await;
    ask.ask(1);
    wait_ms(120_000).await;
    assert_eq!(log.lock().expect("no panic").len(), 4, "two runs: the delay of the first was overtaken");
}

#[tokio::test(start_paused = true)]
async fn a_full_scan_comes_after_its_time_and_part_of_it() {
    let mut driver = Driver::new(CancellationToken::new());
    let reconciler = Scripted::new(Duration::ZERO, []);
    let every = Duration::from_secs(600);
    driver.work(reconciler, WorkOptions { workers: 1, scan_every: Some(every) }).always([1]).start();
    let stats = driver.stats();
    wait_ms(599_000).await;
    assert_eq!((stats()[0].1.scans, stats()[0].1.succeeded), (0, 1));
    wait_ms(302_000).await;
    assert_eq!((stats()[0].1.scans, stats()[0].1.succeeded), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_what_runs() {
    let shutdown = CancellationToken::new();
    let mut driver = Driver::new(shutdown.clone());
    let reconciler = Scripted::new(Duration::from_millis(100), []);
    let log = Arc::clone(&reconciler.log);
    driver.work(reconciler, options(1)).always([1, 2]).start();
    wait_ms(50).await;
    shutdown.cancel();
    driver.join().await;
    assert_eq!(*log.lock().expect("no panic"), ["0 begin 1", "100 end 1"]);
}
