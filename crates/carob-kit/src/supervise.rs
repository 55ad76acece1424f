//! Keeps the parts of a program running: each starts once those it needs are ready, one that fails or panics is started again
//! and costs nothing but itself, and in the end those that others need go last.
//!
//! Start at [`Supervisor::start`]. What is to be told of the parts is in [`Health`], which outlives them.

use std::collections::{BTreeMap, HashSet};
use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::metrics::{Exposition, Kind};
use crate::panics::catch_panic;
use crate::{Backoff, chain};

/// Waits before a part that failed is started again.
const START_AGAIN_FIRST: Duration = Duration::from_secs(1);
const START_AGAIN_LONGEST: Duration = Duration::from_secs(60);
/// A part that ran this long after it was ready begins with the shortest wait again.
const SETTLED_AFTER: Duration = Duration::from_secs(600);

/// Why a part ended.
pub type PartError = Box<dyn Error + Send + Sync>;
type Running = Pin<Box<dyn Future<Output = Result<(), PartError>> + Send>>;

/// One part of a program.
pub struct Part {
    name: &'static str,
    needs: Vec<&'static str>,
    run: Box<dyn FnMut(PartContext) -> Running + Send>,
}

impl Part {
    /// `run` is called for each start, the first one and those after a failure; what it makes runs until its shutdown.
    pub fn new<F>(name: &'static str, mut run: impl FnMut(PartContext) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<(), PartError>> + Send + 'static,
    {
        Self { name, needs: Vec::new(), run: Box::new(move |context| Box::pin(run(context))) }
    }

    /// Parts that have to be ready before this one starts, and that end after it.
    #[must_use]
    pub fn needs(mut self, names: &[&'static str]) -> Self {
        self.needs.extend_from_slice(names);
        self
    }
}

/// What a running part is given.
#[derive(Clone)]
pub struct PartContext {
    name: &'static str,
    health: Arc<Health>,
    shutdown: CancellationToken,
}

impl PartContext {
    /// Cancelled when the part has to end, and when this run of it is over, whatever ended it: tasks of a run that panicked do
    /// not live on beside those of the next one.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Says that the part does its work now.
    pub fn ready(&self) {
        self.health.set(self.name, PartState::Ready);
    }
}

/// How a part is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartState {
    /// It waits for a part that it needs.
    Waiting(&'static str),
    Starting,
    Ready,
    /// It is started again after a while.
    Failed(String),
    Ended,
}

impl fmt::Display for PartState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting(needed) => write!(f, "waits for {needed}"),
            Self::Starting => f.write_str("is starting"),
            Self::Ready => f.write_str("is ready"),
            Self::Failed(why) => f.write_str(why),
            Self::Ended => f.write_str("has ended"),
        }
    }
}

/// A part as [`Health`] shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartHealth {
    pub name: &'static str,
    pub state: PartState,
    /// Starts after the first one.
    pub restarts: u64,
}

type Remarks = Box<dyn Fn() -> Vec<String> + Send + Sync>;
type Metrics = Box<dyn Fn(&mut Exposition) + Send + Sync>;

/// How the parts of a program are, for whoever is asked: `/readyz`, `/metrics`, the log.
#[derive(Default)]
pub struct Health {
    parts: watch::Sender<BTreeMap<&'static str, (PartState, u64)>>,
    remarks: Mutex<BTreeMap<&'static str, Remarks>>,
    metrics: Mutex<BTreeMap<&'static str, Metrics>>,
}

impl Health {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Every part, ordered by name.
    pub fn parts(&self) -> Vec<PartHealth> {
        let parts = self.parts.borrow();
        parts
            .iter()
            .map(|(name, (state, restarts))| PartHealth { name, state: state.clone(), restarts: *restarts })
            .collect()
    }

    /// What the parts have to say besides, for instance of objects that they have set aside.
    pub fn remarks(&self) -> Vec<String> {
        lock(&self.remarks).values().flat_map(|remarks| remarks()).collect()
    }

    /// Adds what a part has to say. A second call for the same name takes the place of the first.
    pub fn add_remarks(&self, name: &'static str, remarks: impl Fn() -> Vec<String> + Send + Sync + 'static) {
        lock(&self.remarks).insert(name, Box::new(remarks));
    }

    /// Adds figures of a part. A second call for the same name takes the place of the first.
    pub fn add_metrics(&self, name: &'static str, metrics: impl Fn(&mut Exposition) + Send + Sync + 'static) {
        lock(&self.metrics).insert(name, Box::new(metrics));
    }

    /// Writes the figures of all parts, of their restarts, and of panics.
    pub fn write_metrics(&self, out: &mut Exposition) {
        let parts = self.parts();
        let ready = out.family("carob_part_ready", Kind::Gauge, "Whether a part of this program is ready.");
        for part in &parts {
            ready.sample(&[("part", part.name)], u8::from(part.state == PartState::Ready));
        }
        let restarts = out.family("carob_part_restarts_total", Kind::Counter, "Starts of a part after its first one.");
        for part in &parts {
            restarts.sample(&[("part", part.name)], part.restarts);
        }
        let panics = out.family("carob_panics_total", Kind::Counter, "Panics, by their place in the program.");
        for (place, count) in crate::panics::panic_counts() {
            panics.sample(&[("place", &place)], count);
        }
        for metrics in lock(&self.metrics).values() {
            metrics(out);
        }
    }

    /// Waits until every part is ready.
    ///
    /// Cancel safe.
    pub async fn all_ready(&self) {
        self.when(|parts| {
            (!parts.is_empty() && parts.values().all(|(state, _)| *state == PartState::Ready)).then_some(())
        })
        .await;
    }

    /// Waits until a part has failed, and says which and why.
    ///
    /// Cancel safe.
    pub async fn failure(&self) -> (&'static str, String) {
        self.when(|parts| {
            parts.iter().find_map(|(name, (state, _))| match state {
                PartState::Failed(why) => Some((*name, why.clone())),
                PartState::Waiting(_) | PartState::Starting | PartState::Ready | PartState::Ended => None,
            })
        })
        .await
    }

    async fn ready(&self, name: &str) {
        self.when(|parts| parts.get(name).filter(|(state, _)| *state == PartState::Ready).map(drop)).await;
    }

    async fn when<T>(&self, find: impl Fn(&BTreeMap<&'static str, (PartState, u64)>) -> Option<T>) -> T {
        let mut parts = self.parts.subscribe();
        loop {
            if let Some(found) = find(&parts.borrow_and_update()) {
                return found;
            }
            // The sender is this value itself, so it cannot be gone.
            if parts.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn set(&self, name: &'static str, state: PartState) {
        self.parts.send_if_modified(|parts| {
            let (held, _) = parts.entry(name).or_insert((PartState::Starting, 0));
            let before = std::mem::replace(held, state);
            before != *held
        });
    }

    fn count_restart(&self, name: &'static str) {
        self.parts.send_modify(|parts| {
            let (_, restarts) = parts.entry(name).or_insert((PartState::Starting, 0));
            *restarts = restarts.saturating_add(1);
        });
    }
}

/// A part that panicked while it added something has not broken what is there.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A list of parts that cannot be run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WiringError {
    #[error("two parts have the name {0}")]
    Twice(&'static str),
    #[error("the part {part} needs {needed}, which is no part before it")]
    Needs { part: &'static str, needed: &'static str },
}

/// Runs parts. Dropping it breaks them off; [`Supervisor::stop`] lets them end in order.
pub struct Supervisor {
    tasks: JoinSet<Ended>,
    /// How each part is ended, and what it needs.
    parts: BTreeMap<&'static str, (CancellationToken, Vec<&'static str>)>,
}

type Ended = (&'static str, Result<(), PartError>);

impl Supervisor {
    /// Starts parts, listed so that each comes after those it needs. Must be called within a tokio runtime.
    pub fn start(parts: Vec<Part>, health: &Arc<Health>) -> Result<Self, WiringError> {
        let mut known = BTreeMap::new();
        for part in &parts {
            if let Some(needed) = part.needs.iter().find(|needed| !known.contains_key(**needed)) {
                return Err(WiringError::Needs { part: part.name, needed });
            }
            if known.insert(part.name, (CancellationToken::new(), part.needs.clone())).is_some() {
                return Err(WiringError::Twice(part.name));
            }
            health.set(part.name, PartState::Starting);
        }
        let mut tasks = JoinSet::new();
        for part in parts {
            let Some((shutdown, _)) = known.get(part.name) else { continue };
            let (health, shutdown) = (Arc::clone(health), shutdown.clone());
            tasks.spawn(async move { (part.name, keep(part, health, shutdown).await) });
        }
        Ok(Self { tasks, parts: known })
    }

    /// Ends all parts, each once nothing that runs needs it any more, and waits for them. The error is the first.
    pub async fn stop(mut self) -> Result<(), PartError> {
        let mut outcome = Ok(());
        loop {
            let needed: HashSet<&str> = self.parts.values().flat_map(|(_, needs)| needs.iter().copied()).collect();
            for (name, (shutdown, _)) in &self.parts {
                if !needed.contains(name) {
                    shutdown.cancel();
                }
            }
            match self.tasks.join_next().await {
                None => return outcome,
                Some(Ok((name, ended))) => {
                    self.parts.remove(name);
                    outcome = outcome.and(ended);
                }
                // The loop of a part catches its panics, so this is a mistake of the loop itself: nothing more can be waited for.
                Some(Err(error)) => return outcome.and(Err(error.into())),
            }
        }
    }
}

/// Runs one part until its shutdown. The error is of its end, not of runs before.
async fn keep(mut part: Part, health: Arc<Health>, shutdown: CancellationToken) -> Result<(), PartError> {
    for needed in &part.needs {
        health.set(part.name, PartState::Waiting(needed));
        tokio::select! {
            () = health.ready(needed) => {}
            () = shutdown.cancelled() => {
                health.set(part.name, PartState::Ended);
                return Ok(());
            }
        }
    }
    let mut wait = Backoff::new(START_AGAIN_FIRST, START_AGAIN_LONGEST);
    loop {
        health.set(part.name, PartState::Starting);
        let began = Instant::now();
        let run_shutdown = shutdown.child_token();
        let _ends_with_the_run = run_shutdown.clone().drop_guard();
        let context = PartContext { name: part.name, health: Arc::clone(&health), shutdown: run_shutdown };
        let ended = catch_panic((part.run)(context)).await;
        if shutdown.is_cancelled() {
            health.set(part.name, PartState::Ended);
            return ended.unwrap_or_else(|panicked| Err(panicked.into()));
        }
        let why = match ended {
            Ok(Ok(())) => "ended though it was not told to".to_owned(),
            Ok(Err(error)) => format!("failed: {}", chain(&*error)),
            Err(panicked) => panicked.to_string(),
        };
        if began.elapsed() >= SETTLED_AFTER {
            wait.reset();
        }
        let pause = wait.fail();
        error!(part = part.name, again_in = ?pause, "{} {why}", part.name);
        health.set(part.name, PartState::Failed(why));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => {
                health.set(part.name, PartState::Ended);
                return Ok(());
            }
        }
        health.count_restart(part.name);
        info!(part = part.name, "starting {} again", part.name);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    type Log = Arc<Mutex<Vec<String>>>;

    /// A part that writes down its start and its end, and runs until it is told to end.
    fn steady(name: &'static str, log: &Log) -> Part {
        let log = Arc::clone(log);
        Part::new(name, move |context| {
            let log = Arc::clone(&log);
            async move {
                lock(&log).push(format!("{name} starts"));
                context.ready();
                context.shutdown().cancelled().await;
                tokio::time::sleep(Duration::from_millis(5)).await;
                lock(&log).push(format!("{name} ends"));
                Ok(())
            }
        })
    }

    fn state(health: &Health, name: &str) -> PartState {
        health.parts().into_iter().find(|part| part.name == name).expect("it is known").state
    }

    #[tokio::test(start_paused = true)]
    async fn parts_start_after_what_they_need_and_end_before_it() {
        let (log, health) = (Log::default(), Health::new());
        let parts = vec![
            steady("api", &log),
            steady("informers", &log).needs(&["api"]),
            steady("scheduler", &log).needs(&["informers"]),
            steady("node", &log).needs(&["api"]),
        ];
        let supervisor = Supervisor::start(parts, &health).expect("a sound list");
        health.all_ready().await;
        supervisor.stop().await.expect("a clean end");
        let log = lock(&log).clone();
        let at = |text: &str| log.iter().position(|line| line == text).unwrap_or_else(|| panic!("{text}: {log:?}"));
        assert!(at("api starts") < at("informers starts") && at("informers starts") < at("scheduler starts"));
        assert!(at("scheduler ends") < at("informers ends"));
        assert!(at("informers ends") < at("api ends") && at("node ends") < at("api ends"));
        assert_eq!(state(&health, "api"), PartState::Ended);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_fails_or_panics_is_started_again_and_costs_no_other() {
        let (log, health) = (Log::default(), Health::new());
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&tries);
        let sick = Part::new("sick", move |context| {
            let tried = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                match tried {
                    0 => Err("no port is free".into()),
                    1 => panic!("an index out of bounds"),
                    2 => Ok(()),
                    _ => {
                        context.ready();
                        context.shutdown().cancelled().await;
                        Err("the last words".into())
                    }
                }
            }
        });
        let parts = vec![steady("well", &log), sick, steady("waiting", &log).needs(&["sick"])];
        let supervisor = Supervisor::start(parts, &health).expect("a sound list");
        let began = Instant::now();
        let (name, why) = health.failure().await;
        assert_eq!((name, why.as_str()), ("sick", "failed: no port is free"));
        assert_eq!(state(&health, "well"), PartState::Ready);
        assert_eq!(state(&health, "waiting"), PartState::Waiting("sick"));
        health.all_ready().await;
        assert_eq!(began.elapsed(), Duration::from_secs(1 + 2 + 4), "waits double");
        assert_eq!(*lock(&log), ["well starts", "waiting starts"], "what is well is left alone");
        let metrics = figures(&health);
        assert!(metrics.contains("carob_part_restarts_total{part=\"sick\"} 3\n"), "{metrics}");
        assert!(metrics.contains("carob_part_ready{part=\"well\"} 1\n"), "{metrics}");
        let error = supervisor.stop().await.expect_err("its end failed");
        assert_eq!(error.to_string(), "the last words");
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_can_be_ended_while_it_waits() {
        let (log, health) = (Log::default(), Health::new());
        let never = Part::new("never", |_| async { Err("it cannot start".into()) });
        let parts = vec![never, steady("waiting", &log).needs(&["never"])];
        let supervisor = Supervisor::start(parts, &health).expect("a sound list");
        health.failure().await;
        supervisor.stop().await.expect("nothing failed at its end");
        assert!(lock(&log).is_empty());
    }

    #[tokio::test]
    async fn lists_that_cannot_be_run_are_refused() {
        let (log, health) = (Log::default(), Health::new());
        let wrong = |parts| Supervisor::start(parts, &health).err().expect("refused").to_string();
        assert_eq!(wrong(vec![steady("a", &log), steady("a", &log)]), "two parts have the name a");
        let late = vec![steady("a", &log).needs(&["b"]), steady("b", &log)];
        assert_eq!(wrong(late), "the part a needs b, which is no part before it");
    }

    fn figures(health: &Health) -> String {
        let mut out = Exposition::default();
        health.write_metrics(&mut out);
        out.into_text()
    }

    #[test]
    fn remarks_and_figures_of_parts_are_told_with_the_rest() {
        let health = Health::new();
        health.add_remarks("controllers", || vec!["job default/a is set aside".to_owned()]);
        health.add_metrics("controllers", |out| out.single("depth", Kind::Gauge, "Keys.", 3));
        assert_eq!(health.remarks(), ["job default/a is set aside"]);
        let text = figures(&health);
        assert!(text.ends_with("# HELP depth Keys.\n# TYPE depth gauge\ndepth 3\n"), "{text}");
    }
}
