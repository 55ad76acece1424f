//! What was converted last for watches. A thousand of them are told of one event at the same time: the first one asks the webhook, the
//! others wait for its outcome.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use carob_store::{Entry, Revision};
use tokio::sync::OnceCell;

use crate::error::ApiResult;

/// Events that are kept of one kind.
const KEPT_MAX: usize = 64;
/// Longest converted object that is kept once it has been handed out, in bytes.
const KEPT_LEN_MAX: usize = 128 * 1024;

type Outcome = Arc<OnceCell<ApiResult<Arc<Entry>>>>;

/// An object at a revision, in a version.
#[derive(PartialEq, Eq, Clone)]
struct Key {
    object: Arc<str>,
    revision: Revision,
    api_version: String,
}

#[derive(Default)]
pub(super) struct Recent(Mutex<VecDeque<(Key, Outcome)>>);

impl Recent {
    /// The entry in `api_version`: what another caller is waiting for or has got, or what `convert` makes. A failure is the answer
    /// of those that waited for it; whoever comes later tries again.
    pub(super) async fn get(
        &self,
        api_version: &str,
        entry: &Entry,
        convert: impl Future<Output = ApiResult<Arc<Entry>>>,
    ) -> ApiResult<Arc<Entry>> {
        let key =
            Key { object: Arc::clone(&entry.key), revision: entry.mod_revision, api_version: api_version.to_owned() };
        let cell = self.cell(&key);
        let outcome = cell.get_or_init(|| convert).await.clone();
        if outcome.as_ref().map_or(true, |made| made.value.len() > KEPT_LEN_MAX) {
            self.lock().retain(|(own, _)| *own != key);
        }
        outcome
    }

    fn cell(&self, key: &Key) -> Outcome {
        let mut kept = self.lock();
        if let Some((_, found)) = kept.iter().rev().find(|(own, _)| own == key) {
            return Arc::clone(found);
        }
        if kept.len() >= KEPT_MAX {
            kept.pop_front();
        }
        let made = Outcome::default();
        kept.push_back((key.clone(), Arc::clone(&made)));
        made
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(Key, Outcome)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use carob_api::Status;

    use super::*;

    fn entry(revision: u64) -> Arc<Entry> {
        Arc::new(Entry::new("/k".into(), bytes::Bytes::from_static(b"{}"), Revision(1), Revision(revision)))
    }

    #[tokio::test]
    async fn an_event_is_converted_once_and_a_failure_is_not_kept() {
        let (recent, calls) = (Recent::default(), AtomicUsize::new(0));
        let get = |revision: u64, fails: bool| {
            let (recent, calls) = (&recent, &calls);
            async move {
                let convert = async {
                    calls.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                    if fails { Err(Status::internal("no").into()) } else { Ok(entry(revision)) }
                };
                recent.get("v2", &entry(revision), convert).await
            }
        };
        let both = futures_util::future::join(get(5, false), get(5, false)).await;
        assert!(both.0.is_ok() && both.1.is_ok());
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        get(6, true).await.expect_err("it fails");
        get(6, false).await.expect("it is tried again");
        assert_eq!(calls.load(Ordering::Relaxed), 3);
        for revision in 100..100 + KEPT_MAX as u64 {
            get(revision, false).await.expect("it is made");
        }
        assert_eq!(recent.lock().len(), KEPT_MAX);
    }
}
