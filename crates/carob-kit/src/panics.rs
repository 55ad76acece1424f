//! Panics as values: caught where a key, a Pod, a connection or a part can be given up alone, counted by their place, never
//! silent.
//!
//! [`observe_panics`] installs the process's hook, which sees every panic, also those of tasks that nothing waits for.
//! [`catch_panic`] turns the panic of one future into an error.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use crate::Backoff;

/// Places that are counted apart. A program has few places that can panic; past this many they are counted as `other`.
const PLACES_MAX: usize = 256;
/// Waits before a task that panicked is run again.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_LONGEST: Duration = Duration::from_secs(60);

/// How often each place has panicked since the start of the process.
static COUNTS: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// Where this thread panicked last: a panic is caught on its own thread, after the hook has seen it.
    static LAST_PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic that was caught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    /// File and line; unknown where [`observe_panics`] has not been called.
    pub place: Option<String>,
    pub message: String,
}

impl Panicked {
    /// From what `catch_unwind` caught on this thread.
    pub fn new(payload: &(dyn Any + Send)) -> Self {
        Self { place: LAST_PLACE.with(|place| place.borrow_mut().take()), message: message(payload).to_owned() }
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "panicked at {place}: {}", self.message),
            None => write!(f, "panicked: {}", self.message),
        }
    }
}

impl std::error::Error for Panicked {}

/// Has `report` told of every panic of this process, with its place, and counts them. For the program's start.
pub fn observe_panics(report: fn(&Panicked)) {
    std::panic::set_hook(Box::new(move |info| {
        let place = info.location().map(|location| format!("{}:{}", location.file(), location.line()));
        let panicked = Panicked { place, message: message(info.payload()).to_owned() };
        count(panicked.place.as_deref().unwrap_or("unknown"));
        // Fails only while the thread ends, when nothing catches any more.
        if LAST_PLACE.try_with(|last| last.replace(panicked.place.clone())).is_err() {
            count("other");
        }
        report(&panicked);
    }));
}

/// How often each place has panicked, by file and line.
pub fn panic_counts() -> Vec<(String, u64)> {
    let counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    counts.iter().map(|(place, count)| (place.clone(), *count)).collect()
}

fn count(place: &str) {
    let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let place = if counts.contains_key(place) || counts.len() < PLACES_MAX { place } else { "other" };
    let count = counts.entry(place.to_owned()).or_default();
    *count = count.saturating_add(1);
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}

/// What the future comes to, or how it panicked. It is dropped on the way out, as by any unwinding.
///
/// Cancel safe if the future is.
pub async fn catch_panic<F: Future>(future: F) -> Result<F::Output, Panicked> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(payload) => Poll::Ready(Err(Panicked::new(&*payload))),
    })
    .await
}

/// What the closure answers, or how it panicked.
pub fn catch_panic_in<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| Panicked::new(&*payload))
}

/// Runs a task to its end, and from its beginning again, after a wait that grows, each time it panics. For the tasks of a part
/// that carry no state of their own: what a panic has left undone is found again by looking.
pub async fn keep_running<F: Future>(mut task: impl FnMut() -> F) -> F::Output {
    let mut wait = Backoff::new(AGAIN_FIRST, AGAIN_LONGEST);
    loop {
        // The hook has told of the panic.
        match catch_panic(task()).await {
            Ok(output) => return output,
            Err(_) => tokio::time::sleep(wait.fail()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panic_becomes_an_error_with_its_words() {
        let caught = catch_panic(async { panic!("number {}", 7) }).await;
        assert_eq!(caught.map_err(|panicked| panicked.message), Err::<(), _>("number 7".to_owned()));
        let caught = catch_panic(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            std::panic::panic_any(3u8)
        });
        assert_eq!(caught.await.map_err(|p| p.message), Err::<(), _>("a panic without a message".to_owned()));
        assert_eq!(catch_panic(async { 5 }).await, Ok(5));
        assert_eq!(catch_panic_in(|| 6), Ok(6));
        assert_eq!(
            catch_panic_in(|| -> u8 { panic!("no") }).map_err(|p| p.to_string()),
            Err("panicked: no".to_owned())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_run_again_until_it_ends() {
        let mut tries = 0;
        let began = tokio::time::Instant::now();
        let output = keep_running(|| {
            tries += 1;
            let tried = tries;
            async move { if tried < 4 { panic!("try {tried}") } else { tried } }
        });
        assert_eq!(output.await, 4);
        assert_eq!(began.elapsed(), Duration::from_millis(700));
    }

    #[test]
    fn places_are_counted_and_bounded() {
        for number in 0..PLACES_MAX * 2 {
            count(&format!("place {number}"));
        }
        count("place 1");
        let counts = panic_counts();
        assert!(counts.len() <= PLACES_MAX + 1);
        assert!(counts.contains(&("place 1".to_owned(), 2)));
        assert!(
            counts.iter().any(|(place, count)| place == "other" && *count >= u64::try_from(PLACES_MAX).unwrap_or(0))
        );
    }
}
