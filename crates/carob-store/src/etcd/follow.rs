//! The watch that the index follows, for as long as the store is open.

use std::sync::Arc;
use std::time::Duration;

use carob_kit::{Backoff, chain};

use super::messages::{Event as EtcdEvent, WatchCreateRequest, WatchRequest, WatchResponse, WatchUnion};
use super::{Etcd, EtcdError, WATCH, convert, load};
use crate::backend::BackendError;
use crate::entry::{Entry, Event, EventKind};
use crate::values::ValueError;

const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Writers that etcd has answered wait for the watch, so it is not long in coming back.
const RETRY_LONGEST: Duration = Duration::from_secs(1);

/// Why a watch ended.
enum End {
    Broken(EtcdError),
    /// etcd has forgotten what came after the revision that was seen last.
    Compacted,
}

impl<E: Into<EtcdError>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

impl Etcd {
    /// Keeps the index at what etcd holds, until etcd turns out to be another than it was.
    pub(super) async fn follow(self) {
        let mut retry = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        while self.shared.failure.get().is_none() {
            let error = match self.watch(&mut retry).await {
                End::Broken(error) => error,
                End::Compacted => match self.reload().await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
            };
            let delay = retry.fail();
            if self.shared.unreachable().is_none() {
                tracing::warn!(error = %chain(&error), "the watch on etcd ended");
            }
            self.shared.set_unreachable(Some(Arc::new(error)));
            tokio::time::sleep(delay).await;
        }
    }

    /// Follows one watch to its end.
    async fn watch(&self, retry: &mut Backoff) -> End {
        // A member that lags behind the others takes a watch on what it has not heard of yet, so it is no witness.
        let seen = match self.latest().await {
            Ok(_) => self.shared.current(),
            Err(error) => return error.into(),
        };
        // All keys there are (etcd `clientv3.WithFromKey` of the first).
        let create = WatchCreateRequest {
            key: vec![0],
            range_end: vec![0],
            start_revision: i64::try_from(seen.0).unwrap_or(i64::MAX).saturating_add(1),
            fragment: true,
        };
        let create = WatchRequest { request: Some(WatchUnion::Create(create)) };
        // Dropped, the requests' half would end the answers' too.
        let (requests, mut answers) = self.client.0.duplex::<WatchRequest, WatchResponse>(WATCH);
        if !requests.send(create).await {
            return EtcdError::Canceled("it takes no request".to_owned()).into();
        }
        let mut pending = Vec::new();
        loop {
            let answer = tokio::select! {
                answer = answers.next() => answer,
                () = self.restart.notified() => return EtcdError::Canceled("it was behind".to_owned()).into(),
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => return EtcdError::Canceled("without a word".to_owned()).into(),
                Err(error) => return error.into(),
            };
            if answer.compact_revision > 0 {
                return End::Compacted;
            }
            if answer.canceled {
                return EtcdError::Canceled(answer.cancel_reason).into();
            }
            if answer.created {
                retry.reset();
                if self.shared.unreachable().is_some() {
                    tracing::info!("etcd is followed again");
                    self.shared.set_unreachable(None);
                }
            }
            if let Err(error) = self.take_in(answer, &mut pending) {
                self.fail(BackendError::Open(error));
                return EtcdError::Closed.into();
            }
        }
    }

    /// Makes events visible, but for a revision of which more is to come: those of one transaction, or of keys that end
    /// together, are seen together.
    fn take_in(&self, answer: WatchResponse, pending: &mut Vec<EtcdEvent>) -> Result<(), ValueError> {
        pending.extend(answer.events);
        let Some(last) = pending.last().map(EtcdEvent::revision) else { return Ok(()) };
        let whole = if answer.fragment {
            pending.iter().rposition(|event| event.revision() != last).map_or(0, |before| before + 1)
        } else {
            pending.len()
        };
        let later = pending.split_off(whole);
        let events = std::mem::replace(pending, later);
        let Some(up_to) = events.last().map(|event| convert::of(event.revision())) else { return Ok(()) };
        let events = convert::events(&self.shared.read(), &self.prefix, events, self.values.as_deref())?;
        self.shared.publish_up_to(&events, up_to).wake();
        Ok(())
    }

    /// Takes in all of etcd where its history has a gap. Watchers that had not read up to here are told that they missed
    /// something.
    async fn reload(&self) -> Result<(), EtcdError> {
        tracing::warn!("etcd has compacted what was not seen yet: all keys are read again");
        let (fresh, _) = load(&self.client, &self.prefix, self.values.as_deref()).await?;
        let (at, seen) = (fresh.current(), self.shared.current());
        let events = {
            let index = self.shared.read();
            let mut events: Vec<Arc<Event>> = Vec::new();
            for entry in fresh.live().filter(|entry| entry.mod_revision > seen) {
                let previous = index.get(&entry.key).cloned();
                events.push(Arc::new(Event { kind: EventKind::Put, entry: Arc::clone(entry), previous }));
            }
            events.sort_by_key(|event| event.revision());
            for gone in index.live().filter(|entry| fresh.get(&entry.key).is_none()) {
                let entry = Entry::new(Arc::clone(&gone.key), gone.value.clone(), gone.create_revision, at);
                let previous = Some(Arc::clone(gone));
                events.push(Arc::new(Event { kind: EventKind::Delete, entry: Arc::new(entry), previous }));
            }
            events
        };
        // Changes between the two states have no event, so no watch may go on across them.
        self.shared.skip_to(&events, at);
        Ok(())
    }
}
