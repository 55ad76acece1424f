//! Takes events from anywhere without waiting, and writes them one after the other.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use carob_kit::{Clock, catch_panic, random_u64};
use k8s_openapi::api::core::v1::{Event, EventSource as Source, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::correlator::{Correlator, Verdict, event_name};
use crate::error::sentence;

/// Events that wait to be written (client-go `tools/record/event.go`, maxQueuedEvents). Later ones are dropped and counted.
const QUEUED_MAX: usize = 1000;
/// Tries to write one event while the API cannot be reached (maxTriesPerEvent).
const TRIES_MAX: u32 = 12;
/// Time between them; the first wait is a random part of it (defaultSleepDuration).
const TRY_EVERY: Duration = Duration::from_secs(10);

/// Who writes events: `kubelet` on a host, `replicaset-controller` on none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventSource {
    pub component: String,
    pub host: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Normal,
    Warning,
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        })
    }
}

/// Counts of one recorder since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecorderStats {
    pub written: u64,
    /// Found no place in the queue.
    pub overflowed: u64,
    /// Were over their object's budget.
    pub limited: u64,
    /// Were refused by the API, or it could not be reached for too long.
    pub failed: u64,
}

#[derive(Default)]
struct Counters {
    written: AtomicU64,
    overflowed: AtomicU64,
    limited: AtomicU64,
    failed: AtomicU64,
}

/// Records core/v1 Events. Cheap to clone; recording never waits.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Event>,
    source: Arc<EventSource>,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
}

impl EventRecorder {
    /// Starts the task that writes; it ends with `shutdown`, or with the last clone. Must be called within a tokio runtime.
    pub fn new(client: kube::Client, clock: Arc<dyn Clock>, source: EventSource, shutdown: CancellationToken) -> Self {
        let (queue, mut events) = mpsc::channel(QUEUED_MAX);
        let counters = Arc::<Counters>::default();
        let writer = Writer { client, clock: Arc::clone(&clock), counters: Arc::clone(&counters) };
        tokio::spawn(async move {
            // An event that makes the writer panic is lost, the next ones are not.
            let write = async { while catch_panic(writer.run(&mut events)).await.is_err() {} };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = write => {}
            }
        });
        Self { queue, source: Arc::new(source), clock, counters }
    }

    /// Records that `reason` happened to the object; see [`reference`].
    pub fn record(&self, object: ObjectReference, kind: EventKind, reason: &str, message: impl Into<String>) {
        let event = self.event(object, kind, reason, message.into());
        if let Err(mpsc::error::TrySendError::Full(event)) = self.queue.try_send(event) {
            let dropped = self.counters.overflowed.fetch_add(1, Ordering::Relaxed) + 1;
            let (reason, message) = (event.reason.unwrap_or_default(), event.message.unwrap_or_default());
            warn!(dropped, reason, message, "the queue of events is full: an event is dropped");
        }
    }

    pub fn stats(&self) -> RecorderStats {
        RecorderStats {
            written: self.counters.written.load(Ordering::Relaxed),
            overflowed: self.counters.overflowed.load(Ordering::Relaxed),
            limited: self.counters.limited.load(Ordering::Relaxed),
            failed: self.counters.failed.load(Ordering::Relaxed),
        }
    }

    fn event(&self, object: ObjectReference, kind: EventKind, reason: &str, message: String) -> Event {
        let now = self.clock.now();
        let namespace = object.namespace.clone().unwrap_or_else(|| "default".to_owned());
        Event {
            metadata: ObjectMeta {
                name: Some(event_name(object.name.as_deref().unwrap_or_default(), now)),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: object,
            type_: Some(kind.to_string()),
            reason: Some(reason.to_owned()),
            message: Some(message),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(Source { component: Some(self.source.component.clone()), host: self.source.host.clone() }),
            reporting_component: Some(self.source.component.clone()),
            reporting_instance: self.source.host.clone(),
            ..Event::default()
        }
    }
}

/// A reference to an object of a built-in kind, as events hold it.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference { resource_version: object.meta().resource_version.clone(), ..object.object_ref(&()) }
}

struct Writer {
    client: kube::Client,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
}

impl Writer {
    async fn run(&self, events: &mut mpsc::Receiver<Event>) {
        let mut correlator = Correlator::new();
        while let Some(event) = events.recv().await {
            match correlator.correlate(event, self.clock.now(), self.clock.monotonic()) {
                Verdict::Create(event) => self.write(event, false).await,
                Verdict::Count(event) => self.write(event, true).await,
                Verdict::Drop => {
                    self.counters.limited.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Writes one event, waiting while the API cannot be reached. One that the API refuses is given up at once.
    async fn write(&self, event: Event, exists: bool) {
        for tried in 1..=TRIES_MAX {
            match self.try_write(&event, exists).await {
                Ok(()) => {
                    self.counters.written.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Err(kube::Error::Api(status)) => {
                    self.counters.failed.fetch_add(1, Ordering::Relaxed);
                    debug!(reason = event.reason, "an event is refused: {}", status.message);
                    return;
                }
                Err(error) if tried == TRIES_MAX => {
                    self.counters.failed.fetch_add(1, Ordering::Relaxed);
                    warn!(reason = event.reason, "an event is given up: {}", sentence(&error));
                }
                Err(error) => {
                    debug!(tried, "write an event: {}", sentence(&error));
                    tokio::time::sleep(if tried == 1 { part_of(TRY_EVERY) } else { TRY_EVERY }).await;
                }
            }
        }
    }

    async fn try_write(&self, event: &Event, exists: bool) -> kube::Result<()> {
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        if exists {
            let name = event.metadata.name.as_deref().unwrap_or_default();
            let patch = json!({
                "count": event.count,
                "lastTimestamp": event.last_timestamp,
                "message": event.message,
            });
            match events.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                // Events expire after an hour: the next one begins again.
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                done => return done.map(drop),
            }
        }
        events.create(&PostParams::default(), event).await.map(drop)
    }
}

fn part_of(wait: Duration) -> Duration {
    let span = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX).max(1);
    Duration::from_nanos(random_u64() % span)
}
