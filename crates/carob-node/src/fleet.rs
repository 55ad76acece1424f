//! The workers of all Pods on the node: one each, told what the API and the runtime say.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use carob_client::{Changed, Informer, ObjectKey};
use carob_cri::v1::{
    ContainerEventResponse, ContainerEventType, GetEventsRequest, ListContainersRequest, ListPodSandboxRequest,
};
use carob_cri::{Code, CriError};
use carob_kit::Backoff;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Rejection, Room, admit, admit_resize};
use crate::allocation::{Allocation, Pending};
use crate::config::labels;
use crate::pod::{PodId, PodView};
use crate::server::PodSource;
use crate::worker::{Order, Tools, Worker};

/// Waits between tries to subscribe to the runtime's events.
const SUBSCRIBE_BASE: Duration = Duration::from_millis(100);
const SUBSCRIBE_MAX: Duration = Duration::from_secs(10);
/// How often a runtime without an event stream is looked at: the one permitted poll.
const RELIST_EVERY: Duration = Duration::from_secs(1);

impl PodSource for Fleet {
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.list()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods.get(Some(namespace), name)
    }
}

struct Seat {
    id: PodId,
    orders: watch::Sender<Order>,
    nudge: Arc<Notify>,
    given: Allocation,
}

pub struct Fleet {
    tools: Arc<Tools>,
    pods: Informer<Pod>,
    room: Room,
    /// By uid.
    seats: Mutex<HashMap<String, Seat>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Fleet {
    /// `pods` are those bound to this node.
    pub fn new(tools: Arc<Tools>, pods: Informer<Pod>, room: Room, shutdown: CancellationToken) -> Arc<Self> {
        Arc::new(Self { tools, pods, room, seats: Mutex::default(), tasks: TaskTracker::new(), shutdown })
    }

    /// Works until the shutdown; then every worker lets go of its Pod, which runs on.
    pub async fn run(self: &Arc<Self>) {
        self.pods.synced().await;
        let changes = self.pods.subscribe();
        for pod in self.pods.list() {
            self.tell(&pod, true);
        }
        self.end_strays().await;
        if let Err(error) = self.sweep() {
            tracing::warn!(%error, "cannot remove what is left of pods that are gone");
        }
        let events = tokio::spawn(Arc::clone(self).listen());
        loop {
            // Both arms are cancel safe.
            tokio::select! {
                changed = changes.next() => match changed {
                    Changed::Key(key) => self.changed(&key),
                    Changed::Everything => self.compare_all(),
                },
                () = self.shutdown.cancelled() => break,
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
        events.abort();
    }

    fn seats(&self) -> MutexGuard<'_, HashMap<String, Seat>> {
        self.seats.lock().expect("no holder of the seats panics")
    }

    fn changed(self: &Arc<Self>, key: &ObjectKey) {
        let pod = self.pods.get_key(key);
        let uid = pod.as_ref().and_then(|pod| pod.metadata.uid.clone());
        // A Pod made anew under a name ends the one that had it before.
        let of_key = |seat: &Seat| seat.id.namespace == *key.namespace && seat.id.name == *key.name;
        for seat in self.seats().values().filter(|seat| of_key(seat) && Some(&seat.id.uid) != uid.as_ref()) {
            seat.orders.send_modify(|order| order.gone = true);
        }
        if let Some(pod) = pod {
            self.tell(&pod, false);
        }
        self.retry_resizes();
    }

    fn compare_all(self: &Arc<Self>) {
        let pods = self.pods.list();
        let known: HashSet<&str> = pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        for (uid, seat) in self.seats().iter() {
            if !known.contains(uid.as_str()) {
                seat.orders.send_modify(|order| order.gone = true);
            }
        }
        for pod in &pods {
            self.tell(pod, false);
        }
        self.retry_resizes();
    }

    /// Gives a Pod's worker its object, and a Pod without a worker a worker. `adopted`: it was here before the node's process.
    fn tell(self: &Arc<Self>, pod: &Arc<Pod>, adopted: bool) {
        let id = PodId::of(pod);
        if self.pass_on(&id.uid, pod) {
            return;
        }
        let started = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        let known = adopted || started;
        let rejection = if known { None } else { self.refuse(pod) };
        let given = if known { Allocation::remembered(pod) } else { Allocation::asked(pod) };
        let resized = !given.is_asked(pod);
        let uid = id.uid.clone();
        self.hire(id, Order { pod: given.impose(pod), gone: false, pending: None }, given, rejection);
        if resized {
            self.pass_on(&uid, pod);
        }
    }

    /// Passes a Pod's object on to its worker, with the resources that it may have. Answers whether it has a worker.
    fn pass_on(&self, uid: &str, pod: &Arc<Pod>) -> bool {
        let mut seats = self.seats();
        let Some(seat) = seats.get(uid) else { return false };
        let change = (!seat.given.is_asked(pod)).then(|| self.grant(&seats, uid, pod));
        let Some(seat) = seats.get_mut(uid) else { return false };
        if let Some(Ok(())) = change {
            seat.given = Allocation::asked(pod);
        }
        let pod = seat.given.impose(pod);
        seat.orders.send_modify(|order| {
            order.pod = pod;
            order.pending = change.and_then(Result::err);
        });
        true
    }

    /// Whether a Pod may have what it asks for, beside what the others have been given.
    fn grant(&self, seats: &HashMap<String, Seat>, uid: &str, pod: &Pod) -> Result<(), Pending> {
        let others = given_to_others(seats, uid);
        let others: Vec<&Pod> = others.iter().map(|pod| &**pod).collect();
        admit_resize(pod, &others, &self.room)
    }

    /// Something may have given room back: those that wait for more are looked at again.
    fn retry_resizes(&self) {
        let waiting: Vec<PodId> = {
            let seats = self.seats();
            let waits = |seat: &&Seat| seat.orders.borrow().pending.is_some();
            seats.values().filter(waits).map(|seat| seat.id.clone()).collect()
        };
        for id in waiting {
            if let Some(pod) = self.pods.get(Some(&id.namespace), &id.name).filter(|pod| PodId::of(pod) == id) {
                self.pass_on(&id.uid, &pod);
            }
        }
    }

    fn refuse(&self, pod: &Pod) -> Option<Rejection> {
        let view = PodView::new(pod);
        if view.is_terminal() || view.deletion().is_some() {
            return None;
        }
        // Only Pods that have been taken in before count, so that of two that do not fit together one stays.
        let taken = given_to_others(&self.seats(), "");
        let others: Vec<&Pod> = taken.iter().map(|other| &**other).collect();
        admit(pod, &others, &self.room).err()
    }

    fn hire(self: &Arc<Self>, id: PodId, order: Order, given: Allocation, rejection: Option<Rejection>) {
        let (orders, inbox) = watch::channel(order);
        let nudge = Arc::new(Notify::new());
        let uid = id.uid.clone();
        self.seats().insert(uid.clone(), Seat { id, orders, nudge: Arc::clone(&nudge), given });
        let mut worker = Worker::new(Arc::clone(&self.tools), inbox, nudge, self.shutdown.child_token());
        if let Some(rejection) = rejection {
            worker.reject(rejection);
        }
        let fleet = Arc::clone(self);
        self.tasks.spawn(async move {
            worker.run().await;
            fleet.seats().remove(&uid);
        });
    }

    /// Ends what runs here of Pods that the API does not know: they were deleted while the node was away.
    async fn end_strays(self: &Arc<Self>) {
        let mut retry = Backoff::new(SUBSCRIBE_BASE, SUBSCRIBE_MAX);
        loop {
            match self.strays().await {
                Ok(strays) => {
                    for pod in strays {
                        let id = PodId::of(&pod);
                        tracing::info!(pod = %id, "ending a pod that the API no longer has");
                        self.hire(
                            id,
                            Order { pod: Arc::new(pod), gone: true, pending: None },
                            Allocation::default(),
                            None,
                        );
                    }
                    return;
                }
                Err(error) => {
                    let delay = retry.fail();
                    tracing::warn!(%error, ?delay, "cannot list what the runtime has");
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    async fn strays(&self) -> Result<Vec<Pod>, CriError> {
        let sandboxes = self.tools.cri.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
        let containers = self.tools.cri.list_containers(ListContainersRequest::default()).await?.containers;
        let mut strays: HashMap<String, Pod> = HashMap::new();
        for sandbox in sandboxes {
            let Some(meta) = sandbox.metadata else { continue };
            if self.seats().contains_key(&meta.uid) || strays.contains_key(&meta.uid) {
                continue;
            }
            let of_pod = containers.iter().filter(|container| container.labels.get(labels::POD_UID) == Some(&meta.uid));
            let names: HashSet<String> =
                of_pod.filter_map(|container| container.metadata.as_ref().map(|meta| meta.name.clone())).collect();
            let containers = names.into_iter().map(|name| Container { name, ..Container::default() }).collect();
            let metadata = ObjectMeta {
                name: Some(meta.name),
                namespace: Some(meta.namespace),
                uid: Some(meta.uid.clone()),
                ..ObjectMeta::default()
            };
            let spec = PodSpec { containers, ..PodSpec::default() };
            strays.insert(meta.uid, Pod { metadata, spec: Some(spec), status: None });
        }
        Ok(strays.into_values().collect())
    }

    /// Removes the directories of Pods that neither the API nor the runtime knows: they ended while the machine was down.
    fn sweep(&self) -> std::io::Result<()> {
        for entry in fs_err::read_dir(self.tools.dirs.pods())? {
            let uid = entry?.file_name().to_string_lossy().into_owned();
            if !self.seats().contains_key(&uid) {
                tracing::info!(uid, "removing what is left of a pod that is gone");
                self.tools.volumes.unmount(&uid)?;
                crate::volumes::remove_dir(&self.tools.dirs.pod(&uid))?;
            }
        }
        Ok(())
    }

    /// Wakes workers when something happens to their containers.
    async fn listen(self: Arc<Self>) {
        let mut retry = Backoff::new(SUBSCRIBE_BASE, SUBSCRIBE_MAX);
        let mut warned = false;
        loop {
            match self.tools.cri.get_container_events(GetEventsRequest {}).await {
                Ok(mut events) => {
                    // What happened before the subscription would otherwise go unseen.
                    self.nudge_all();
                    while let Some(Ok(event)) = events.next().await {
                        retry.reset();
                        self.nudge(&event);
                    }
                }
                Err(error) if error.code == Code::Unimplemented => {
                    if !std::mem::replace(&mut warned, true) {
                        tracing::warn!("the runtime tells no events: its containers are listed every second");
                    }
                    tokio::time::sleep(RELIST_EVERY).await;
                    self.nudge_all();
                    continue;
                }
                Err(error) => tracing::warn!(%error, "cannot subscribe to the runtime's events"),
            }
            tokio::time::sleep(retry.fail()).await;
        }
    }

    fn nudge(&self, event: &ContainerEventResponse) {
        // Its worker has made it and is about to start it: nothing to look at in between.
        if event.container_event_type() == ContainerEventType::ContainerCreatedEvent {
            return;
        }
        let sandbox = event.pod_sandbox_status.as_ref().and_then(|status| status.metadata.as_ref());
        let from_labels = || event.containers_statuses.iter().find_map(|status| status.labels.get(labels::POD_UID));
        let Some(uid) = sandbox.map(|meta| &meta.uid).or_else(from_labels) else { return self.nudge_all() };
        if let Some(seat) = self.seats().get(uid) {
            seat.nudge.notify_one();
        }
    }

    fn nudge_all(&self) {
        for seat in self.seats().values() {
            seat.nudge.notify_one();
        }
    }
}

/// The Pods but the one with `uid`, each with what it has been given, which is not yet what it asks for. One that the API has
/// no more has made room, though it is still being cleaned up after.
fn given_to_others(seats: &HashMap<String, Seat>, uid: &str) -> Vec<Arc<Pod>> {
    let given = |(other, seat): (&String, &Seat)| {
        let order = seat.orders.borrow();
        (other != uid && !order.gone).then(|| Arc::clone(&order.pod))
    };
    seats.iter().filter_map(given).collect()
}
