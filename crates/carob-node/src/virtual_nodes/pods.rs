//! The Pods of all virtual nodes: one reconciler, which carries each a step on and writes what became of it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use carob_client::{Informer, ObjectKey, Reconcile, ReconcileError, Requeue};
use carob_kit::Clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::Value;

use super::addresses::Addresses;
use super::life::{AddressPool, Life, World};
use super::stages::Script;
use crate::admission::{Room, admit};
use crate::api::{ApiPods, PodApi as _, WriteError};
use crate::pod::{PodId, PodView};
use crate::status::NodeFacts;
use crate::status::patch::status_patch;

/// Gives a client that acts as the node of this name, and may do what that node may.
pub type ClientOf = Arc<dyn Fn(&str) -> Client + Send + Sync>;

impl AddressPool for Addresses {
    fn take(&mut self) -> Option<IpAddr> {
        Self::take(self).map(IpAddr::from)
    }

    fn give_back(&mut self, address: IpAddr) {
        if let IpAddr::V4(address) = address {
            Self::give_back(self, address);
        }
    }
}

/// One virtual node's side of its Pods.
pub(super) struct Place {
    pub(super) facts: NodeFacts,
    pub(super) room: Room,
    pub(super) addresses: Addresses,
    pub(super) pods: BTreeSet<ObjectKey>,
}

/// One Pod.
struct Seat {
    uid: String,
    node: String,
    life: Life,
    /// The version that our last write made: until the informer shows it, the Pod is as good as unknown.
    written: u64,
}

#[derive(Default)]
struct State {
    places: HashMap<String, Place>,
    seats: HashMap<ObjectKey, Seat>,
}

/// What there is to do for a Pod.
enum Task {
    Write(Value),
    Confirm,
    Nothing,
}

struct Step {
    id: PodId,
    node: String,
    task: Task,
    wake_at: Option<Timestamp>,
}

/// See the module.
pub(super) struct Pods {
    pub(super) pods: Informer<Pod>,
    pub(super) client_of: ClientOf,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) script: Script,
    state: Mutex<State>,
}

impl Pods {
    pub(super) fn new(pods: Informer<Pod>, client_of: ClientOf, clock: Arc<dyn Clock>, script: Script) -> Self {
        Self { pods, client_of, clock, script, state: Mutex::default() }
    }

    /// Takes up the Pods of a node from now on.
    pub(super) fn open(&self, node: &str, place: Place) {
        self.state().places.insert(node.to_owned(), place);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the state panics")
    }

    /// Carries one Pod on; `None` when there is nothing to carry on.
    fn step(&self, key: &ObjectKey) -> Option<Step> {
        let mut state = self.state();
        // Read under the lock: of two looks at a Pod the later one sees the newer version.
        let pod = self.pods.get_key(key);
        let of_seat = |seat: &Seat| {
            let pod = pod.as_ref().filter(|pod| pod.metadata.uid.as_ref() == Some(&seat.uid));
            pod.is_some_and(|pod| node_of(pod) == Some(&seat.node))
        };
        if state.seats.get(key).is_some_and(|seat| !of_seat(seat)) {
            state.leave(key);
        }
        let pod = pod?;
        let node = node_of(&pod)?.to_owned();
        let now = self.clock.now();
        if !state.seats.contains_key(key) && !state.seat(key, &pod, &node, &self.script, now, &self.pods) {
            return None;
        }
        let State { places, seats } = &mut *state;
        let (seat, place) = (seats.get_mut(key)?, places.get_mut(&node)?);
        if version(&pod) < seat.written {
            return None;
        }
        let world = World { script: &self.script, facts: &place.facts, now };
        let outcome = seat.life.step(&pod, &world, &mut place.addresses);
        let shown = pod.status.clone().unwrap_or_default();
        let task = match status_patch(&seat.uid, &shown, &outcome.status) {
            Some(body) => Task::Write(body),
            None if PodView::new(&pod).deletion().is_some() && outcome.finished => Task::Confirm,
            None => Task::Nothing,
        };
        Some(Step { id: PodId::of(&pod), node, task, wake_at: outcome.wake_at })
    }

    async fn carry_out(&self, key: &ObjectKey, step: &Step) -> Result<(), WriteError> {
        match &step.task {
            Task::Nothing => Ok(()),
            Task::Confirm => ApiPods((self.client_of)(&step.node)).confirm_deletion(&step.id).await,
            Task::Write(body) => {
                let version = ApiPods((self.client_of)(&step.node)).write_status(&step.id, body).await?;
                if let Some(seat) = self.state().seats.get_mut(key).filter(|seat| seat.uid == step.id.uid) {
                    seat.written = version;
                }
                Ok(())
            }
        }
    }
}

impl State {
    /// Gives a Pod that is new here a seat, if its node is one of ours.
    fn seat(
        &mut self,
        key: &ObjectKey,
        pod: &Arc<Pod>,
        node: &str,
        script: &Script,
        now: Timestamp,
        informer: &Informer<Pod>,
    ) -> bool {
        let Some(place) = self.places.get_mut(node) else { return false };
        let world = World { script, facts: &place.facts, now };
        let mut life = Life::of(pod, &world);
        let started = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        let view = PodView::new(pod);
        if !started && !view.is_terminal() && view.deletion().is_none() {
            let others: Vec<Arc<Pod>> = place.pods.iter().filter_map(|other| informer.get_key(other)).collect();
            let others: Vec<&Pod> = others.iter().map(|other| &**other).collect();
            if let Err(rejection) = admit(pod, &others, &place.room) {
                life.reject(rejection);
            }
        }
        for address in life.addresses() {
            if let IpAddr::V4(address) = address {
                place.addresses.keep(address);
            }
        }
        place.pods.insert(key.clone());
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.seats.insert(key.clone(), Seat { uid, node: node.to_owned(), life, written: 0 });
        true
    }

    /// Forgets a Pod that is gone.
    fn leave(&mut self, key: &ObjectKey) {
        let Some(seat) = self.seats.remove(key) else { return };
        let Some(place) = self.places.get_mut(&seat.node) else { return };
        place.pods.remove(key);
        for address in seat.life.addresses() {
            AddressPool::give_back(&mut place.addresses, address);
        }
    }
}

pub(super) fn node_of(pod: &Pod) -> Option<&String> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref())
}

/// Zero for servers whose versions are no numbers: then every version counts as new enough.
fn version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

impl Reconcile for Pods {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "virtual-nodes"
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(step) = self.step(&key) else { return Ok(Requeue::No) };
        match self.carry_out(&key, &step).await {
            // A Pod that is gone is told by the watch, too.
            Ok(()) | Err(WriteError::Gone(_)) => {}
            Err(error) => {
                let operation = format!("carry on pod {key} of virtual node {}", step.node);
                return Err(ReconcileError::Other { operation, cause: Box::new(error) });
            }
        }
        let wait = step.wake_at.map(|at| at.duration_since(self.clock.now()));
        Ok(wait.map_or(Requeue::No, |wait| Requeue::After(Duration::try_from(wait).unwrap_or(Duration::ZERO))))
    }
}
