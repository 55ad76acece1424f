//! Work on file systems that may not answer, away from the threads that serve the API.
//!
//! A volume may be on a server that is gone, and a call to it then hangs for as long as that lasts; no time-out ends it. So each
//! piece of work has a thread of its own, and there is a limit for each Pod: what hangs holds up its own Pod alone.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

/// Threads at a time; further work waits for one.
const THREADS_MAX: usize = 64;
/// Threads that the work of one Pod may have, so that a Pod whose volumes hang leaves the others theirs.
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
    /// Threads by Pod uid, hanging ones included.
    running: Arc<Mutex<HashMap<String, usize>>>,
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

/// Counts a thread of a Pod for as long as it runs.
struct Counted {
    running: Arc<Mutex<HashMap<String, usize>>>,
    uid: String,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut running = lock(&self.running);
        if let Some(count) = running.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.uid);
            }
        }
    }
}

fn lock(running: &Mutex<HashMap<String, usize>>) -> MutexGuard<'_, HashMap<String, usize>> {
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
        let counted = self.count(uid).ok_or(FilesError::StillHangs { what })?;
        let place = tokio::time::timeout(self.patience, Arc::clone(&self.places).acquire_owned()).await;
        let Ok(Ok(place)) = place else { return Err(FilesError::StillHangs { what }) };
        let (sender, answer) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("files {what}")).spawn(move || {
            let _held = (counted, place);
            // The caller may have gone on without it.
            drop(sender.send(work()));
        });
        thread.map_err(|source| FilesError::Thread { what, source })?;
        match tokio::time::timeout(self.patience, answer).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) => Err(FilesError::Panicked { what }),
            Err(_) => Err(FilesError::Hangs { what, patience: self.patience }),
        }
    }

    /// `None` where the Pod has its threads already.
    fn count(&self, uid: &str) -> Option<Counted> {
        let mut running = lock(&self.running);
        let count = running.entry(uid.to_owned()).or_default();
        if *count >= THREADS_PER_POD_MAX {
            return None;
        }
        *count += 1;
        Some(Counted { running: Arc::clone(&self.running), uid: uid.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

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
