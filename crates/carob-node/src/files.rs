//! Work on file systems that may not answer, away from the threads that serve the API.
//!
//! A volume may be on a server that is gone, and a call to it then hangs for as long as that lasts; no time-out ends it. So each
//! piece of work has a thread of its own, and there is a limit for each Pod: what hangs holds up its own Pod alone.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

/// Threads at a time; further work waits for one.
const THREADS_MAX: usize = 64;
/// Threads that the work of one Pod may have, so that a Pod whose volumes hang leaves the others theirs. Further work waits for one;
/// where all of them hang, it is refused at once.
const THREADS_PER_POD_MAX: usize = 2;
/// How long work may take before its caller goes on without it. Removing a million files takes less.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("the file system did not answer within {} s: {what}", patience.as_secs())]
    Hangs { what: &'static str, patience: Duration },
    #[error("the file system still does not answer: {what} has to wait")]
    StillHangs { what: &'static str },
    #[error("start a thread to {what}")]
    Thread {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the thread that was to {what} panicked")]
    Panicked { what: &'static str },
}

impl From<FilesError> for io::Error {
    fn from(error: FilesError) -> Self {
        let kind = match &error {
            FilesError::Hangs { .. } | FilesError::StillHangs { .. } => io::ErrorKind::TimedOut,
            FilesError::Thread { .. } | FilesError::Panicked { .. } => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// Runs work on files. Clones share the limits.
#[derive(Debug, Clone)]
pub struct Files {
    patience: Duration,
    /// Tests let no time pass while work is done, which tokio knows of its own threads only.
    #[cfg(test)]
    in_runtime: bool,
    places: Arc<Semaphore>,
    /// By Pod uid, for as long as there is work.
    running: Arc<Mutex<HashMap<String, OfPod>>>,
}

/// The threads of one Pod.
#[derive(Debug)]
struct OfPod {
    free: Arc<Semaphore>,
    /// Work that waits for a thread or has one.
    count: usize,
    /// How many of the threads nobody waits for any more.
    hanging: usize,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            patience: PATIENCE,
            #[cfg(test)]
            in_runtime: false,
            places: Arc::new(Semaphore::new(THREADS_MAX)),
            running: Arc::default(),
        }
    }
}

/// Counts a piece of a Pod's work for as long as it waits for a thread or has one.
struct Counted {
    running: Arc<Mutex<HashMap<String, OfPod>>>,
    uid: String,
    /// Whether the work is done, and whether it is counted among what hangs. Both are set while `running` is locked.
    state: Arc<WorkState>,
}

#[derive(Debug, Default)]
struct WorkState {
    ended: AtomicBool,
    hangs: AtomicBool,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut running = lock(&self.running);
        self.state.ended.store(true, Ordering::Relaxed);
        if let Some(of_pod) = running.get_mut(&self.uid) {
            of_pod.count -= 1;
            of_pod.hanging -= usize::from(self.state.hangs.load(Ordering::Relaxed));
            if of_pod.count == 0 {
                running.remove(&self.uid);
            }
        }
    }
}

fn lock(running: &Mutex<HashMap<String, OfPod>>) -> MutexGuard<'_, HashMap<String, OfPod>> {
    running.lock().expect("no holder of the counts panics")
}

impl Files {
    /// For tests in tokio's paused time.
    #[cfg(test)]
    pub(crate) fn in_runtime() -> Self {
        Self { in_runtime: true, ..Self::default() }
    }

    /// Runs `work` for the Pod with `uid`. Work that hangs goes on in its thread when the caller is told so.
    pub async fn run<T: Send + 'static>(
        &self,
        uid: &str,
        what: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, FilesError> {
        #[cfg(test)]
        if self.in_runtime {
            return tokio::task::spawn_blocking(work).await.map_err(|_| FilesError::Panicked { what });
        }
        let (counted, free) = self.count(uid).ok_or(FilesError::StillHangs { what })?;
        let state = Arc::clone(&counted.state);
        let both = async { (free.acquire_owned().await, Arc::clone(&self.places).acquire_owned().await) };
        let Ok((Ok(own), Ok(place))) = tokio::time::timeout(self.patience, both).await else {
            return Err(FilesError::StillHangs { what });
        };
        let (sender, answer) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("files {what}")).spawn(move || {
            let _held = (counted, own, place);
            // The caller may have gone on without it.
            drop(sender.send(work()));
        });
        thread.map_err(|source| FilesError::Thread { what, source })?;
        match tokio::time::timeout(self.patience, answer).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) => Err(FilesError::Panicked { what }),
            Err(_) => {
                self.give_up(uid, &state);
                Err(FilesError::Hangs { what, patience: self.patience })
            }
        }
    }

    /// Counts work that nobody waits for any more among what hangs, unless it has just ended.
    fn give_up(&self, uid: &str, state: &WorkState) {
        let mut running = lock(&self.running);
        let of_pod = running.get_mut(uid).filter(|_| !state.ended.load(Ordering::Relaxed));
        if let Some(of_pod) = of_pod {
            of_pod.hanging += 1;
            state.hangs.store(true, Ordering::Relaxed);
        }
    }

    /// `None` where all threads of the Pod hang.
    fn count(&self, uid: &str) -> Option<(Counted, Arc<Semaphore>)> {
        let mut running = lock(&self.running);
        let of_pod = running.entry(uid.to_owned()).or_insert_with(|| OfPod {
            free: Arc::new(Semaphore::new(THREADS_PER_POD_MAX)),
            count: 0,
            hanging: 0,
        });
        if of_pod.hanging >= THREADS_PER_POD_MAX {
            return None;
        }
        of_pod.count += 1;
        let counted = Counted { running: Arc::clone(&self.running), uid: uid.to_owned(), state: Arc::default() };
        Some((counted, Arc::clone(&of_pod.free)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_beyond_the_threads_of_a_pod_waits_for_one() {
        let files = Files::default();
        let (release, waits) = mpsc::sync_channel::<()>(THREADS_PER_POD_MAX * 3);
        let waits = Arc::new(Mutex::new(waits));
        let work = || {
            let (files, waits) = (files.clone(), Arc::clone(&waits));
            let work = move || waits.lock().expect("no holder panics").recv().is_ok();
            tokio::spawn(async move { files.run("a", "read a directory", work).await })
        };
        let all: Vec<_> = (0..THREADS_PER_POD_MAX * 3).map(|_| work()).collect();
        while lock(&files.running).get("a").is_none_or(|of_pod| of_pod.count < all.len()) {
            tokio::task::yield_now().await;
        }
        for _ in &all {
            release.send(()).expect("somebody waits");
        }
        for one in all {
            assert!(one.await.expect("no panic").expect("a thread"), "it was released");
        }
    }

    #[tokio::test]
    async fn what_hangs_holds_up_its_own_pod_alone() {
        let files = Files { patience: Duration::from_millis(200), ..Files::default() };
        let (release, hangs) = mpsc::sync_channel::<()>(1);
        let hangs = Arc::new(Mutex::new(hangs));
        for _ in 0..THREADS_PER_POD_MAX {
            let hangs = Arc::clone(&hangs);
            let work = move || hangs.lock().expect("no holder panics").recv().is_ok();
            let answer = files.run("a", "mount volumes", work).await;
            assert!(matches!(answer, Err(FilesError::Hangs { .. })), "{answer:?}");
        }
        let answer = files.run("a", "mount volumes", || ()).await.expect_err("its threads hang");
        assert_eq!(answer.to_string(), "the file system still does not answer: mount volumes has to wait");
        assert_eq!(files.run("b", "mount volumes", || 7).await.expect("others go on"), 7);
        drop(release);
        // To tell of a panic, with where it was, may take longer.
        let files = Files { patience: PATIENCE, ..files };
        while lock(&files.running).contains_key("a") {
            tokio::task::yield_now().await;
        }
        assert_eq!(files.run("a", "mount volumes", || 8).await.expect("it answers again"), 8);
        let panics = files.run("b", "mount volumes", || panic!("as a test wants")).await;
        assert!(matches!(panics, Err::<(), _>(FilesError::Panicked { .. })));
    }
}
