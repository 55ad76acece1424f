//! Priority and fairness: FlowSchemas say to which level and flow a request belongs, PriorityLevelConfigurations how many requests
//! of a level are answered at once and what becomes of the rest (apiserver `pkg/util/flowcontrol`).
//!
//! What the objects say is in [`config`], who gets a seat in [`dispatch`]; both pure. Watches and other streams take no seat. Bodies are
//! read before a request asks for one, within limits of their own ([`super::InFlight`]).

mod config;
mod dispatch;
mod queues;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carob_kit::metrics::{Exposition, Histogram, Kind, Series};
use carob_store::{Entry, Store};
use serde_json::Value;
use tokio::sync::oneshot;
use tracing::warn;

pub(crate) use self::config::Classified;
use self::config::{Compiled, Level, Schema};
pub(crate) use self::dispatch::Rejection;
use self::dispatch::{Dispatch, Entered, Granted};
use crate::authz::Attributes;
use crate::current::{Follower, View, prefix_of};
use crate::identity::UserInfo;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: (&str, &str, &str) = (GROUP, "v1", "flowschemas");
const LEVELS: (&str, &str, &str) = (GROUP, "v1", "prioritylevelconfigurations");
/// Objects of a list that take one seat, and the most seats of a request (`pkg/util/flowcontrol/request`).
const OBJECTS_PER_SEAT: usize = 100;
const SEATS_MAX: u32 = 10;
/// Schemas that are counted apart; further ones are counted together.
const SERIES_MAX: usize = 512;

/// Upper bounds of the time that a request waits, in seconds (`pkg/util/flowcontrol/metrics/metrics.go`).
const WAIT_BOUNDS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];

/// The objects, compiled when they change.
struct Objects {
    schemas: BTreeMap<Arc<str>, Arc<Schema>>,
    levels: BTreeMap<Arc<str>, Arc<Level>>,
    level_prefix: String,
    compiled: Arc<Compiled>,
}

impl View for Objects {
    fn clear(&mut self, prefix: &str) {
        if prefix == self.level_prefix { self.levels.clear() } else { self.schemas.clear() }
    }

    fn put(&mut self, entry: &Entry) {
        let object: Value = match serde_json::from_slice(&entry.value) {
            Ok(object) => object,
            Err(error) => {
                warn!(key = %entry.key, %error, "a stored object cannot be used");
                return self.remove(&entry.key);
            }
        };
        if entry.key.starts_with(&self.level_prefix) {
            self.levels.insert(Arc::clone(&entry.key), Arc::new(Level::of(&object)));
        } else {
            self.schemas.insert(Arc::clone(&entry.key), Arc::new(Schema::of(&object)));
        }
    }

    fn remove(&mut self, key: &str) {
        self.levels.remove(key);
        self.schemas.remove(key);
    }

    fn settle(&mut self) {
        self.compiled = Arc::new(Compiled::new(self.schemas.values().cloned(), self.levels.values().cloned()));
    }
}

/// Decides which requests are answered at once, later, or not.
pub(crate) struct FlowControl {
    objects: Follower<Objects>,
    shared: Arc<Mutex<Shared>>,
    /// Time that a request may wait for its turn.
    wait_max: Duration,
    counted: Series<Counted>,
    waits: Series<Histogram>,
}

struct Shared {
    dispatch: Dispatch<oneshot::Sender<Seat>>,
    /// What `dispatch` was configured by.
    compiled: Arc<Compiled>,
}

#[derive(Default)]
struct Counted {
    dispatched: u64,
    rejected: BTreeMap<&'static str, u64>,
}

/// Seats that are taken until this is dropped.
pub(crate) struct Seat {
    shared: Arc<Mutex<Shared>>,
    level: String,
    /// 0 once they are another's to give back.
    seats: u32,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.seats > 0 {
            let granted = lock(&self.shared).dispatch.release(&self.level, self.seats);
            hand_out(&self.shared, granted);
        }
    }
}

/// A place in a queue, which is given up when this is dropped.
struct Waiting<'f> {
    shared: &'f Arc<Mutex<Shared>>,
    level: &'f str,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let granted = lock(self.shared).dispatch.give_up(self.level, self.id);
        hand_out(self.shared, granted);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells those whose turn it is. Who does not wait any more gives the seats back, which may be another's turn.
fn hand_out(shared: &Arc<Mutex<Shared>>, granted: Vec<Granted<oneshot::Sender<Seat>>>) {
    for Granted { level, seats, who } in granted {
        // A seat that is not taken is dropped here, outside of the lock.
        drop(who.send(Seat { shared: Arc::clone(shared), level, seats }));
    }
}

impl FlowControl {
    /// `seats` are those of all levels together.
    pub(crate) fn new(store: &Store, seats: usize, request_timeout: Duration) -> Self {
        let level_prefix = prefix_of(LEVELS);
        let objects = Objects {
            schemas: BTreeMap::new(),
            levels: BTreeMap::new(),
            level_prefix: level_prefix.clone(),
            compiled: Arc::default(),
        };
        let seats = u32::try_from(seats).unwrap_or(u32::MAX);
        let shared = Shared { dispatch: Dispatch::new(seats), compiled: Arc::default() };
        Self {
            objects: Follower::new(store, [prefix_of(SCHEMAS), level_prefix], objects),
            shared: Arc::new(Mutex::new(shared)),
            // `pkg/server/options/server_run_options.go`: a quarter of the time for a request.
            wait_max: request_timeout / 4,
            counted: Series::new(&["flow_schema", "priority_level"], SERIES_MAX),
            waits: Series::new(&["flow_schema", "priority_level", "execute"], SERIES_MAX),
        }
    }

    /// `None` before the system's objects are made: nothing is held up then.
    pub(crate) fn classify(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Option<Classified> {
        let compiled = self.objects.ask(|objects| Arc::clone(&objects.compiled));
        let mut shared = lock(&self.shared);
        if !Arc::ptr_eq(&shared.compiled, &compiled) {
            shared.dispatch.configure(compiled.levels.values());
            let levels: Vec<String> = compiled.levels.keys().cloned().collect();
            shared.compiled = Arc::clone(&compiled);
            // Some level may have got more seats.
            let granted: Vec<_> = levels.iter().flat_map(|level| shared.dispatch.advance(level)).collect();
            drop(shared);
            hand_out(&self.shared, granted);
        } else {
            drop(shared);
        }
        compiled.classify(user, attributes)
    }

    /// Waits for the seats of a request.
    pub(crate) async fn enter(&self, request: &Classified, seats: u32) -> Result<Option<Seat>, Rejection> {
        let outcome = self.seat(request, seats).await;
        self.counted.change(&[&request.schema.name, &request.level.name], Counted::default, |counted| match &outcome {
            Ok(_) => counted.dispatched += 1,
            Err(why) => *counted.rejected.entry(why.as_str()).or_default() += 1,
        });
        outcome
    }

    async fn seat(&self, request: &Classified, seats: u32) -> Result<Option<Seat>, Rejection> {
        if request.level.limit.is_none() {
            return Ok(None);
        }
        let level = &request.level.name;
        let (sender, receiver) = oneshot::channel();
        let (entered, seats) = {
            let mut shared = lock(&self.shared);
            let seats = shared.dispatch.clamp(level, seats);
            (shared.dispatch.enter(level, request.flow, seats, || sender), seats)
        };
        let id = match entered {
            Entered::Granted => {
                return Ok(Some(Seat { shared: Arc::clone(&self.shared), level: level.clone(), seats }));
            }
            Entered::Rejected(why) => return Err(why),
            Entered::Queued(id) => id,
        };
        let _waiting = Waiting { shared: &self.shared, level, id };
        match tokio::time::timeout(self.wait_max, receiver).await {
            Ok(Ok(seat)) => Ok(Some(seat)),
            // A sender that is gone has given up on all who wait.
            Ok(Err(_)) | Err(_) => Err(Rejection::Timeout),
        }
    }

    /// Notes how long a request of a flow waited before it had its seats.
    pub(crate) fn note_wait(&self, flow: &Classified, waited: Duration) {
        let values = [flow.schema.name.as_str(), flow.level.name.as_str(), "true"];
        self.waits.observe_time(&values, WAIT_BOUNDS, waited);
    }

    /// Under upstream's names.
    pub(crate) fn write_metrics(&self, out: &mut Exposition) {
        let usage = lock(&self.shared).dispatch.usage();
        for (name, help, value) in [
            ("apiserver_flowcontrol_nominal_limit_seats", "Nominal number of seats of a priority level.", 0),
            ("apiserver_flowcontrol_current_executing_seats", "Seats that are taken in a priority level.", 1),
            ("apiserver_flowcontrol_current_inqueue_requests", "Requests that wait for seats of a priority level.", 2),
        ] {
            let family = out.family(name, Kind::Gauge, help);
            for level in &usage {
                let number = [u64::from(level.nominal), u64::from(level.used), level.waiting as u64][value];
                family.sample(&[("priority_level", &level.level)], number);
            }
        }
        let help = "Number of requests executed, by priority level and flow schema.";
        let family = out.family("apiserver_flowcontrol_dispatched_requests_total", Kind::Counter, help);
        self.counted.each(|labels, counted| family.sample(labels, counted.dispatched));
        let help = "Number of requests rejected, by priority level, flow schema and reason.";
        let family = out.family("apiserver_flowcontrol_rejected_requests_total", Kind::Counter, help);
        self.counted.each(|labels, counted| {
            for (reason, count) in &counted.rejected {
                family.sample(&[labels, &[("reason", reason)]].concat(), count);
            }
        });
        let help = "Length of time a request spent waiting in its queue, in seconds.";
        self.waits.write(out, "apiserver_flowcontrol_request_wait_duration_seconds", help);
    }
}

impl Classified {
    pub(crate) fn schema_uid(&self) -> &str {
        &self.schema.uid
    }

    pub(crate) fn level_uid(&self) -> &str {
        &self.level.uid
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.level.limit.is_some()
    }
}

/// The seats of a list of so many objects.
pub(crate) fn seats_of_list(objects: usize) -> u32 {
    u32::try_from(objects.div_ceil(OBJECTS_PER_SEAT)).unwrap_or(u32::MAX).clamp(1, SEATS_MAX)
}

#[cfg(test)]
mod tests {
    use carob_store::{Expect, Options, Txn};
    use serde_json::json;

    use super::*;

    async fn put(store: &Store, key: &str, object: Value) {
        store.txn(Txn::put(key, Expect::Any, object.to_string())).await.expect("the store takes it");
    }

    async fn control(queuing: Value) -> (FlowControl, Store) {
        let store = Store::in_memory(Options::default());
        let control = FlowControl::new(&store, 1, Duration::from_secs(60));
        let level = json!({ "metadata": { "name": "l", "uid": "lu" }, "spec": { "type": "Limited", "limited": { "limitResponse": queuing } } });
        put(&store, "/registry/prioritylevelconfigurations/l", level).await;
        let rules = json!([{
            "subjects": [{ "kind": "User", "user": { "name": "*" } }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
        }]);
        let schema = json!({ "metadata": { "name": "s", "uid": "su" }, "spec": {
            "priorityLevelConfiguration": { "name": "l" }, "rules": rules,
        } });
        put(&store, "/registry/flowschemas/s", schema).await;
        (control, store)
    }

    fn classified(control: &FlowControl) -> Classified {
        let attributes = Attributes { verb: "get", resource: None, path: "/x" };
        control.classify(&UserInfo::new("jane", []), &attributes).expect("it is classified")
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_its_turn_and_not_for_ever() {
        let (control, _store) =
            control(json!({ "type": "Queue", "queuing": { "queues": 1, "handSize": 1, "queueLengthLimit": 1 } })).await;
        let request = classified(&control);
        assert_eq!((request.schema_uid(), request.level_uid()), ("su", "lu"));
        let first = control.enter(&request, 1).await.expect("there is a seat");
        let waiting = control.enter(&request, 1);
        tokio::pin!(waiting);
        assert!(futures_util::FutureExt::now_or_never(&mut waiting).is_none());
        assert_eq!(control.enter(&request, 1).await.err(), Some(Rejection::QueueFull));
        drop(first);
        let second = waiting.await.expect("it is its turn");
        assert_eq!(control.enter(&request, 1).await.err(), Some(Rejection::Timeout), "after a quarter of a minute");
        drop(second);
        control.enter(&request, 9).await.expect("no request needs more than there is");
        let mut out = Exposition::default();
        control.write_metrics(&mut out);
        let text = out.into_text();
        assert!(
            text.contains("rejected_requests_total{flow_schema=\"s\",priority_level=\"l\",reason=\"queue-full\"} 1"),
            "{text}"
        );
        assert!(text.contains("current_executing_seats{priority_level=\"l\"} 0"), "{text}");
    }

    #[tokio::test]
    async fn who_goes_away_while_waiting_takes_no_seat() {
        let (control, store) =
            control(json!({ "type": "Queue", "queuing": { "queues": 1, "handSize": 1, "queueLengthLimit": 9 } })).await;
        let request = classified(&control);
        let first = control.enter(&request, 1).await.expect("there is a seat");
        {
            let gone = control.enter(&request, 1);
            tokio::pin!(gone);
            assert!(futures_util::FutureExt::now_or_never(&mut gone).is_none());
        }
        drop(first);
        control.enter(&request, 1).await.expect("the seat is free");
        // A level that queues no more refuses at once.
        let level = json!({ "metadata": { "name": "l" }, "spec": { "type": "Limited", "limited": {} } });
        put(&store, "/registry/prioritylevelconfigurations/l", level).await;
        let request = classified(&control);
        let _seat = control.enter(&request, 1).await.expect("there is a seat");
        assert_eq!(control.enter(&request, 1).await.err(), Some(Rejection::Concurrency));
    }

    #[test]
    fn long_lists_take_more_seats() {
        assert_eq!([0, 1, 100, 101, 1_000_000].map(seats_of_list), [1, 1, 1, 2, 10]);
    }
}
