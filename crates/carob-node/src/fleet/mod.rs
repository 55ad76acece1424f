//! The workers of all Pods on the node: one for each, which is sent what the API and the runtime say of its Pod.
//!
//! [`devices`](self::devices) has what concerns devices of plug-ins, [`manifests`](self::manifests) has what concerns static Pods alone, [`strays`] what is left of Pods that nobody wants.

mod devices;
mod manifests;
mod strays;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carob_client::{Changed, Informer, ObjectKey, Subscription};
use carob_cri::Code;
use carob_cri::v1::{ContainerEventResponse, ContainerEventType, GetEventsRequest};
use carob_kit::{Backoff, Panicked, catch_panic, catch_panic_in, chain, keep_running};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{NODE_AFFINITY, Rejection, Room, admit, admit_resize, admit_under};
use crate::allocation::{Allocation, Pending};
use crate::config::labels;
use crate::events::Subject;
use crate::eviction::Pressures;
use crate::manifests::{Manifests, mirror};
use crate::pod::{PodId, PodView};
use crate::server::PodSource;
use crate::shutdown;
use crate::worker::{Ending, Order, Tools, Worker};

/// Waits between tries to subscribe to the runtime's events.
const SUBSCRIBE_BASE: Duration = Duration::from_millis(100);
const SUBSCRIBE_MAX: Duration = Duration::from_secs(10);
/// Waits between tries to reach the API about a Pod that has no worker.
const DECIDE_BASE: Duration = Duration::from_millis(200);
const DECIDE_MAX: Duration = Duration::from_secs(10);
/// Waits before a Pod's worker that panicked is started again.
const RESTART_BASE: Duration = Duration::from_secs(1);
const RESTART_MAX: Duration = Duration::from_secs(300);
/// How often a runtime without an event stream is looked at: the one permitted poll.
const RELIST_EVERY: Duration = Duration::from_secs(1);

impl PodSource for Fleet {
    fn pods(&self) -> Vec<Arc<Pod>> {
        let of_api = self.pods.list().into_iter().filter(|pod| !mirror::is_mirror(pod));
        of_api.chain(self.static_pods()).collect()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.static_pod(namespace, name).or_else(|| self.pods.get(Some(namespace), name))
    }
}

/// Where it is said that a Pod is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Api,
    Manifests,
}

/// Who has said what is to run, and is believed about what is not.
#[derive(Debug, Default)]
struct Known {
    api: bool,
    manifests: bool,
    /// What was left of Pods that nobody wants has been removed.
    swept: bool,
}

/// What the fleet keeps of a Pod's worker.
struct Assigned {
    id: PodId,
    orders: watch::Sender<Order>,
    /// Something happened to the Pod's containers.
    wake: Arc<Notify>,
    given: Allocation,
    /// The Pod's status as its worker sees it.
    status: Arc<Mutex<PodStatus>>,
    /// Whether the Pod is over and holds nothing here any more.
    over: watch::Receiver<bool>,
}

/// What the fleet is told.
pub struct Sources {
    /// The Pods bound to this node.
    pub pods: Informer<Pod>,
    /// The node's own object alone.
    pub nodes: Informer<Node>,
    /// What the node runs without being told to by the API.
    pub manifests: watch::Receiver<Arc<Manifests>>,
    /// What the node is short of.
    pub pressures: watch::Receiver<Pressures>,
    /// Whether the machine is about to shut down.
    pub closing: watch::Receiver<bool>,
}

pub struct Fleet {
    tools: Arc<Tools>,
    pods: Informer<Pod>,
    /// The node's own object.
    nodes: Informer<Node>,
    /// What the machine can give, for as long as the node's object does not say.
    machine: Room,
    /// By uid.
    workers: Mutex<HashMap<String, Assigned>>,
    /// How many workers there are.
    count: watch::Sender<usize>,
    /// Uids of Pods without a worker about which the API is being asked.
    undecided: Mutex<HashSet<String>>,
    /// What the node runs without being told to by the API.
    manifests: watch::Receiver<Arc<Manifests>>,
    /// What the node is short of.
    pressures: watch::Receiver<Pressures>,
    /// Whether the machine is about to shut down.
    closing: watch::Receiver<bool>,
    /// Something changed that the mirrors of static Pods may depend on.
    mirrors: Notify,
    /// Whether the Pods of the API are taken in.
    begun: AtomicBool,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Fleet {
    pub fn new(tools: Arc<Tools>, sources: Sources, machine: Room, shutdown: CancellationToken) -> Arc<Self> {
        let Sources { pods, nodes, manifests, pressures, closing } = sources;
        Arc::new(Self {
            tools,
            pods,
            nodes,
            machine,
            workers: Mutex::default(),
            count: watch::Sender::new(0),
            undecided: Mutex::default(),
            manifests,
            pressures,
            closing,
            mirrors: Notify::new(),
            begun: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            shutdown,
        })
    }

    /// Works until the shutdown; then every worker lets go of its Pod, which runs on. Static Pods run at once, those of the API
    /// when `may_begin` is over and it is in reach.
    pub async fn run(self: &Arc<Self>, may_begin: impl Future<Output = ()>) {
        let fleet = Arc::clone(self);
        let events = tokio::spawn(keep_running(move || Arc::clone(&fleet).listen()));
        let (fleet, shutdown) = (Arc::clone(self), self.shutdown.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = keep_running(|| Arc::clone(&fleet).keep_mirrors()) => {}
                () = shutdown.cancelled() => {}
            }
        });
        let (fleet, shutdown) = (Arc::clone(self), self.shutdown.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = keep_running(|| Arc::clone(&fleet).follow_devices()) => {}
                () = shutdown.cancelled() => {}
            }
        });
        let in_reach = async {
            tokio::join!(may_begin, self.pods.synced(), self.nodes.synced());
        };
        tokio::pin!(in_reach);
        let mut manifests = self.manifests.clone();
        let mut known = Known::default();
        let mut changes = None;
        self.compare_manifests(&mut known).await;
        loop {
            // Every arm is cancel safe.
            tokio::select! {
                () = &mut in_reach, if changes.is_none() => {
                    changes = Some(self.pods.subscribe());
                    self.begin(&mut known).await;
                }
                Ok(()) = manifests.changed() => self.compare_manifests(&mut known).await,
                changed = next(changes.as_ref()) => match changed {
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

    /// Takes in the Pods that the API has.
    async fn begin(self: &Arc<Self>, known: &mut Known) {
        // Those that have started before the node's process did keep what they have.
        let (started, others): (Vec<_>, Vec<_>) = self.pods.list().into_iter().partition(|pod| has_started(pod));
        for pod in started.iter().chain(&others) {
            self.deliver(pod);
        }
        self.end_strays(From::Api).await;
        known.api = true;
        self.begun.store(true, Ordering::Release);
        self.show_mirrors();
        self.sweep_once(known).await;
    }

    /// How many Pods have something on this machine.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// The Pods that have workers and are not over.
    pub fn running_pods(&self) -> Vec<Arc<Pod>> {
        let workers = self.workers();
        let pods = workers.values().map(|worker| worker.orders.borrow()).filter(|order| !order.gone);
        pods.map(|order| Arc::clone(&order.pod)).filter(|pod| !PodView::new(pod).is_terminal()).collect()
    }

    /// The Pods that have something on this machine, over or not.
    pub fn unfinished_pods(&self) -> Vec<Arc<Pod>> {
        let workers = self.workers();
        let unfinished = workers.values().filter(|worker| !*worker.over.borrow());
        unfinished.map(|worker| Arc::clone(&worker.orders.borrow().pod)).collect()
    }

    /// Ends a Pod for good, for the reason that its status and an event then show.
    pub fn evict(&self, uid: &str, why: Rejection) {
        self.end(uid, Ending { why, by: None });
    }

    /// As [`Fleet::evict`], and says when it has to be over.
    pub fn end(&self, uid: &str, ending: Ending) {
        if let Some(worker) = self.workers().get(uid) {
            worker.orders.send_modify(|order| order.ending = Some(ending));
        }
    }

    /// Waits until a Pod is over and has given back all that it held here. One that nobody works on holds nothing.
    pub async fn until_over(&self, uid: &str) {
        let over = self.workers().get(uid).map(|worker| worker.over.clone());
        if let Some(mut over) = over {
            // A worker that has ended has given all back.
            let _over = over.wait_for(|over| *over).await;
        }
    }

    fn workers(&self) -> MutexGuard<'_, HashMap<String, Assigned>> {
        // A panic over one Pod has left the others' entries whole.
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(self: &Arc<Self>, key: &ObjectKey) {
        let pod = self.pods.get_key(key);
        let uid = pod.as_ref().and_then(|pod| pod.metadata.uid.clone());
        // A Pod created again under a name is another Pod: the one that had the name before is ended.
        let of_key = |worker: &Assigned| {
            worker.id.namespace == *key.namespace && worker.id.name == *key.name && !worker.id.is_static()
        };
        for worker in self.workers().values().filter(|worker| of_key(worker) && Some(&worker.id.uid) != uid.as_ref()) {
            worker.orders.send_modify(|order| order.gone = true);
        }
        if let Some(pod) = pod {
            self.deliver(&pod);
        }
        self.show_mirrors();
        self.retry_resizes();
    }

    fn compare_all(self: &Arc<Self>) {
        let pods = self.pods.list();
        let known: HashSet<&str> = pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        for (uid, worker) in self.workers().iter() {
            if !known.contains(uid.as_str()) && !worker.id.is_static() {
                worker.orders.send_modify(|order| order.gone = true);
            }
        }
        for pod in &pods {
            self.deliver(pod);
        }
        self.show_mirrors();
        self.retry_resizes();
    }

    /// Gives a Pod's worker its object, and a Pod without a worker a worker. A panic over it costs this Pod alone.
    fn deliver(self: &Arc<Self>, pod: &Arc<Pod>) {
        if let Err(panicked) = catch_panic_in(|| self.deliver_to_worker(pod)) {
            self.report_panic(pod, &panicked);
        }
    }

    fn deliver_to_worker(self: &Arc<Self>, pod: &Arc<Pod>) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        // A mirror Pod stands for one that runs, or for none: then whoever made it wants something run that no admission has seen.
        if mirror::is_mirror(pod) || self.pass_on(uid, pod) || self.undecided().contains(uid) {
            return;
        }
        let rejection = if has_started(pod) { None } else { self.refuse(pod, &self.room()) };
        if rejection.as_ref().is_some_and(|rejection| rejection.reason == NODE_AFFINITY) {
            return self.ask_for_labels(pod);
        }
        if rejection.is_none() && !has_started(pod) && self.wants_devices(pod) {
            return self.ask_for_devices(pod);
        }
        self.take_in(pod, rejection);
    }

    /// Gives a Pod its worker.
    fn take_in(self: &Arc<Self>, pod: &Arc<Pod>, rejection: Option<Rejection>) {
        let (id, known) = (PodId::of(pod), has_started(pod));
        let given = if known { Allocation::remembered(pod) } else { Allocation::asked(pod) };
        let resized = !given.is_asked(pod);
        let uid = id.uid.clone();
        self.start_worker(id, Order { shown: self.shown(pod), ..Order::new(given.impose(pod)) }, given, rejection);
        if resized {
            self.pass_on(&uid, pod);
        }
    }

    /// What the node can give now.
    fn room(&self) -> Room {
        self.nodes.list().first().map_or_else(|| self.machine.clone(), |node| self.room_of(node))
    }

    fn room_of(&self, node: &Node) -> Room {
        self.machine.with_node(node).unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "the node's object says an amount that cannot be read");
            Room { labels: node.metadata.labels.clone().unwrap_or_default(), ..self.machine.clone() }
        })
    }

    fn undecided(&self) -> MutexGuard<'_, HashSet<String>> {
        self.undecided.lock().expect("no holder of the uids panics")
    }

    /// Runs `decide` for a Pod that has no worker. Until its end nothing else is decided about the Pod.
    fn decide_later(self: &Arc<Self>, pod: &Arc<Pod>, decide: impl Future<Output = ()> + Send + 'static) {
        let uid = PodId::of(pod).uid;
        self.undecided().insert(uid.clone());
        let (fleet, key) = (Arc::clone(self), ObjectKey::of(&**pod));
        self.tasks.spawn(async move {
            tokio::select! {
                () = decide => {}
                () = fleet.shutdown.cancelled() => return,
            }
            fleet.undecided().remove(&uid);
            // What the watch said of the Pod meanwhile was passed over.
            fleet.changed(&key);
        });
    }

    /// The labels that the node knows do not fit, but the scheduler may have seen newer ones: the API is asked before the Pod
    /// is refused (kubelet `pkg/kubelet/lifecycle/predicate.go`, generalFilter).
    fn ask_for_labels(self: &Arc<Self>, pod: &Arc<Pod>) {
        let (fleet, asked) = (Arc::clone(self), Arc::clone(pod));
        self.decide_later(pod, async move {
            let room = fleet.fresh_room().await;
            fleet.decide(&asked, &room).await;
        });
    }

    async fn fresh_room(&self) -> Room {
        let mut retry = Backoff::new(DECIDE_BASE, DECIDE_MAX);
        loop {
            match self.tools.objects.node(&self.tools.settings.node_name).await {
                Ok(Some(node)) => return self.room_of(&node),
                Ok(None) => return self.machine.clone(),
                Err(error) => {
                    let delay = retry.fail();
                    tracing::warn!(error = %chain(&error), ?delay, "cannot read the node's labels");
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    /// Passes a Pod's object on to its worker, with the resources that it may have. Answers whether it has a worker.
    fn pass_on(&self, uid: &str, pod: &Arc<Pod>) -> bool {
        let mut workers = self.workers();
        let Some(worker) = workers.get(uid) else { return false };
        let change = (!worker.given.is_asked(pod)).then(|| self.grant(&workers, uid, pod));
        let Some(worker) = workers.get_mut(uid) else { return false };
        if let Some(Ok(())) = change {
            worker.given = Allocation::asked(pod);
        }
        let pod = worker.given.impose(pod);
        worker.orders.send_modify(|order| {
            order.pod = pod;
            order.pending = change.and_then(Result::err);
        });
        true
    }

    /// Whether a Pod may have what it asks for, beside what the others have been given.
    fn grant(&self, workers: &HashMap<String, Assigned>, uid: &str, pod: &Pod) -> Result<(), Pending> {
        let others = given_to_others(workers, uid);
        let others: Vec<&Pod> = others.iter().map(|pod| &**pod).collect();
        admit_resize(pod, &others, &self.room())
    }

    /// Something may have given room back: those that wait for more are looked at again.
    fn retry_resizes(&self) {
        let waiting: Vec<PodId> = {
            let workers = self.workers();
            let waits = |worker: &&Assigned| worker.orders.borrow().pending.is_some();
            workers.values().filter(waits).map(|worker| worker.id.clone()).collect()
        };
        for id in waiting {
            if let Some(pod) = self.pods.get(Some(&id.namespace), &id.name).filter(|pod| PodId::of(pod) == id) {
                self.pass_on(&id.uid, &pod);
            }
        }
    }

    fn refuse(&self, pod: &Pod, room: &Room) -> Option<Rejection> {
        let view = PodView::new(pod);
        if view.is_terminal() || view.deletion().is_some() {
            return None;
        }
        // Only Pods that have been taken in before count, so that of two that do not fit together one stays.
        let taken = given_to_others(&self.workers(), "");
        let others: Vec<&Pod> = taken.iter().map(|other| &**other).collect();
        if *self.closing.borrow() {
            return Some(shutdown::refusal());
        }
        let short = admit_under(pod, &self.pressures.borrow());
        short.and_then(|()| admit(pod, &others, room)).err()
    }

    fn start_worker(self: &Arc<Self>, id: PodId, order: Order, given: Allocation, rejection: Option<Rejection>) {
        let of = Arc::clone(&order.pod);
        let (orders, inbox) = watch::channel(order);
        let wake = Arc::new(Notify::new());
        let uid = id.uid.clone();
        let status: Arc<Mutex<PodStatus>> = Arc::default();
        let (over, is_over) = watch::channel(false);
        let worker = Assigned {
            id: id.clone(),
            orders,
            wake: Arc::clone(&wake),
            given,
            status: Arc::clone(&status),
            over: is_over,
        };
        self.assign(uid.clone(), worker);
        let fleet = Arc::clone(self);
        self.tasks.spawn(async move {
            let mut wait = Backoff::new(RESTART_BASE, RESTART_MAX);
            loop {
                let (inbox, wake) = (inbox.clone(), Arc::clone(&wake));
                let mut worker = Worker::new(Arc::clone(&fleet.tools), inbox, wake, fleet.shutdown.child_token());
                worker.publish_to(Arc::clone(&status));
                worker.show_over_in(over.clone());
                if let Some(rejection) = rejection.clone() {
                    worker.reject(rejection);
                }
                let Err(panicked) = catch_panic(worker.run()).await else { break };
                // The next worker finds out from the runtime what this one has left, as after a restart of the node.
                fleet.report_panic(&of, &panicked);
                tokio::select! {
                    () = tokio::time::sleep(wait.fail()) => {}
                    () = fleet.shutdown.cancelled() => break,
                }
            }
            let left = {
                let mut workers = fleet.workers();
                workers.remove(&uid);
                workers.len()
            };
            fleet.count.send_replace(left);
            if id.is_static() && !fleet.shutdown.is_cancelled() {
                fleet.static_pod_ended();
            }
        });
    }

    /// Says that the node panicked over a Pod, which costs that Pod alone.
    fn report_panic(&self, pod: &Pod, panicked: &Panicked) {
        tracing::error!(pod = %PodId::of(pod), "the work on a pod {panicked}");
        self.tools.events.warning(
            &Subject::pod(pod),
            "NodePanicked",
            format!("The node {panicked}; it begins with this pod again"),
        );
    }

    fn assign(&self, uid: String, worker: Assigned) {
        let count = {
            let mut workers = self.workers();
            workers.insert(uid, worker);
            workers.len()
        };
        self.count.send_replace(count);
    }

    /// Wakes workers when something happens to their containers.
    async fn listen(self: Arc<Self>) {
        let mut retry = Backoff::new(SUBSCRIBE_BASE, SUBSCRIBE_MAX);
        let mut warned = false;
        loop {
            match self.tools.cri.get_container_events(GetEventsRequest {}).await {
                Ok(mut events) => {
                    // What happened before the subscription would otherwise go unseen.
                    self.wake_all();
                    while let Some(Ok(event)) = events.next().await {
                        retry.reset();
                        self.wake(&event);
                    }
                }
                Err(error) if error.code == Code::Unimplemented => {
                    if !std::mem::replace(&mut warned, true) {
                        tracing::warn!("the runtime sends no events: its containers are listed every second");
                    }
                    tokio::time::sleep(RELIST_EVERY).await;
                    self.wake_all();
                    continue;
                }
                Err(error) => tracing::warn!(%error, "cannot subscribe to the runtime's events"),
            }
            tokio::time::sleep(retry.fail()).await;
        }
    }

    fn wake(&self, event: &ContainerEventResponse) {
        // Its worker has made it and is about to start it: nothing to look at in between.
        if event.container_event_type() == ContainerEventType::ContainerCreatedEvent {
            return;
        }
        let sandbox = event.pod_sandbox_status.as_ref().and_then(|status| status.metadata.as_ref());
        let from_labels = || event.containers_statuses.iter().find_map(|status| status.labels.get(labels::POD_UID));
        let Some(uid) = sandbox.map(|meta| &meta.uid).or_else(from_labels) else { return self.wake_all() };
        if let Some(worker) = self.workers().get(uid) {
            worker.wake.notify_one();
        }
    }

    fn wake_all(&self) {
        for worker in self.workers().values() {
            worker.wake.notify_one();
        }
    }
}

async fn next(changes: Option<&Subscription>) -> Changed {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

fn has_started(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| status.start_time.is_some())
}

/// The Pods but the one with `uid`, each with what it has been given, which is not yet what it asks for. One that the API has
/// no more has made room, though it is still being cleaned up after.
fn given_to_others(workers: &HashMap<String, Assigned>, uid: &str) -> Vec<Arc<Pod>> {
    let given = |(other, worker): (&String, &Assigned)| {
        let order = worker.orders.borrow();
        (other != uid && !order.gone).then(|| Arc::clone(&order.pod))
    };
    workers.iter().filter_map(given).collect()
}
