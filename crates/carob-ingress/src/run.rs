//! Keeps rules, certificates and ports as the objects say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carob_client::{
    Asker, Change, Driver, EventKind, EventRecorder, EventSource, Informers, ObjectKey, WorkOptions, reference,
};
use carob_kit::metrics::Exposition;
use carob_kit::{Backoff, Clock};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use crate::certificates::{Certificates, Reader, TlsError};
use crate::cluster::Cluster;
use crate::listen::{self, Port};
use crate::proxy::{Directory, Proxy};
use crate::route::{Remark, Routes};
use crate::status::{Key, Writer};

/// Waits before a port that another program has is tried again: nothing tells when it is free.
const BIND_AGAIN: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

#[derive(Debug, Clone)]
pub struct IngressConfig {
    /// `None`: not served.
    pub http_port: Option<u16>,
    pub https_port: Option<u16>,
    pub node_name: String,
    /// This node's, for the status of Ingresses.
    pub addresses: Vec<IpAddr>,
}

/// What the Ingress works with.
pub struct IngressParts {
    /// Writes the class, the status of Ingresses, and events.
    pub client: kube::Client,
    pub informers: Arc<Informers>,
    pub clock: Arc<dyn Clock>,
    pub shutdown: CancellationToken,
}

/// Why a port is not listened on, by its number.
type Problems = Arc<Mutex<BTreeMap<u16, String>>>;

/// A map that is changed in one step is whole also after a panic.
fn lock(problems: &Mutex<BTreeMap<u16, String>>) -> MutexGuard<'_, BTreeMap<u16, String>> {
    problems.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reverse proxy of Ingresses.
pub struct Ingress {
    parts: IngressParts,
    config: IngressConfig,
    cluster: Arc<Cluster>,
    certificates: Arc<Certificates>,
    reader: Reader,
    proxy: Arc<Proxy>,
    recorder: EventRecorder,
    changed: Arc<Notify>,
    ports: Vec<Port>,
    open: BTreeMap<u16, DropGuard>,
    serving: JoinSet<()>,
    problems: Problems,
    reported: BTreeSet<Remark>,
    again: Backoff,
}

impl Ingress {
    /// Must be called within a tokio runtime.
    pub fn new(config: IngressConfig, parts: IngressParts) -> Result<Self, TlsError> {
        let cluster = Cluster::new(&parts.informers);
        let certificates = Certificates::new()?;
        let tls = certificates.config()?;
        let mut ports: Vec<Port> = config.http_port.iter().map(|number| Port { number: *number, tls: None }).collect();
        ports.extend(config.https_port.iter().map(|number| Port { number: *number, tls: Some(Arc::clone(&tls)) }));
        let source = EventSource { component: "ingress-controller".to_owned(), host: Some(config.node_name.clone()) };
        let recorder =
            EventRecorder::new(parts.client.clone(), Arc::clone(&parts.clock), source, parts.shutdown.clone());
        Ok(Self {
            proxy: Proxy::new(Arc::clone(&cluster) as Arc<dyn Directory>),
            cluster,
            certificates,
            reader: Reader::default(),
            recorder,
            changed: Arc::default(),
            ports,
            open: BTreeMap::new(),
            serving: JoinSet::new(),
            problems: Arc::default(),
            reported: BTreeSet::new(),
            again: BIND_AGAIN,
            config,
            parts,
        })
    }

    /// What is not as it should be, for whoever asks for the server's health.
    pub fn remarks(&self) -> impl Fn() -> Vec<String> + Send + Sync + use<> {
        let problems = Arc::clone(&self.problems);
        move || lock(&problems).iter().map(|(port, why)| format!("ingress: port {port} is not served: {why}")).collect()
    }

    /// Writes what it counts.
    pub fn metrics(&self) -> impl Fn(&mut Exposition) + Send + Sync + use<> {
        let proxy = Arc::clone(&self.proxy);
        move |out| proxy.counts.write_metrics(out)
    }

    /// Serves until the shutdown.
    pub async fn run(mut self) {
        let (listens, listening) = watch::channel(Vec::new());
        let mut driver = Driver::new(self.parts.shutdown.clone());
        let asker = self.start_writer(&mut driver, listening);
        self.listen_for_changes();
        let shutdown = self.parts.shutdown.clone();
        tokio::select! {
            // Cancel safe: what is open is closed below.
            () = shutdown.cancelled() => {}
            () = self.keep(&listens, &asker) => {}
        }
        self.open.clear();
        while self.serving.join_next().await.is_some() {}
        driver.join().await;
    }

    fn start_writer(&self, driver: &mut Driver, listening: watch::Receiver<Vec<u16>>) -> Asker<Key> {
        let cluster = Arc::clone(&self.cluster);
        let nodes = self.parts.informers.of::<Node>();
        let reachable = |address: &&IpAddr| listen::is_reachable(**address);
        let writer = Writer {
            client: self.parts.client.clone(),
            ingresses: cluster.ingresses.clone(),
            classes: cluster.classes.clone(),
            nodes: nodes.clone(),
            node_name: self.config.node_name.clone(),
            addresses: self.config.addresses.iter().filter(reachable).copied().collect(),
            listens: listening,
        };
        let work = driver.work(writer, WorkOptions::default()).always([Key::Class]);
        let work = work.on(&cluster.ingresses, |change| [Key::Ingress(change.key())]).after(&cluster.classes);
        let asker = work.asker();
        let (served, name) = (Arc::clone(&cluster), self.config.node_name.clone());
        let concerned = move |change: Change<'_, Node>| {
            if *change.key().name == *name || facts(change.old) == facts(change.new) {
                return Vec::new();
            }
            keys(&served)
        };
        work.on(&nodes, concerned).start();
        asker
    }

    fn listen_for_changes(&self) {
        let changed = Arc::clone(&self.changed);
        self.cluster.ingresses.on_change(move |_| changed.notify_one());
        let changed = Arc::clone(&self.changed);
        self.cluster.classes.on_change(move |_| changed.notify_one());
        let changed = Arc::clone(&self.changed);
        self.cluster.secrets.on_change(move |_| changed.notify_one());
        let changed = Arc::clone(&self.changed);
        self.cluster.services.on_change(move |change| {
            let claims = |service: Option<&Arc<Service>>| service.map(|service| claimed(service)).unwrap_or_default();
            if claims(change.old) != claims(change.new) {
                changed.notify_one();
            }
        });
    }

    async fn keep(&mut self, listens: &watch::Sender<Vec<u16>>, asker: &Asker<Key>) {
        self.cluster.synced().await;
        loop {
            let again = self.update(listens, asker).await;
            let changed = Arc::clone(&self.changed);
            match again {
                // Whichever comes first: both are looked at in the same way.
                Some(wait) => drop(tokio::time::timeout(wait, changed.notified()).await),
                None => changed.notified().await,
            }
        }
    }

    /// Makes everything as the objects say now. Answers when to try again.
    async fn update(&mut self, listens: &watch::Sender<Vec<u16>>, asker: &Asker<Key>) -> Option<Duration> {
        let served = self.cluster.served();
        let mut remarks = Vec::new();
        self.cluster.replace_routes(Routes::new(&served, &mut remarks));
        let secrets = &self.cluster.secrets;
        self.reader.update(&self.certificates, &served, |key| secrets.get_key(key), &mut remarks);
        let again = self.open_and_close(served.first().map(|oldest| created(&oldest.metadata))).await;
        for ingress in &served {
            let told = lock(&self.problems);
            remarks.extend(told.iter().map(|(port, why)| {
                let message = format!("port {port} of node {} is not served: {why}", self.config.node_name);
                Remark::new(ingress, "PortNotServed", message)
            }));
        }
        self.report(remarks);
        let open: Vec<u16> = self.open.keys().copied().collect();
        let has_changed = listens.send_if_modified(|held| {
            *held != open && {
                *held = open;
                true
            }
        });
        if has_changed {
            for key in keys(&self.cluster) {
                asker.ask(key);
            }
        }
        again
    }

    /// Says in events what is new.
    fn report(&mut self, remarks: Vec<Remark>) {
        let remarks: BTreeSet<Remark> = remarks.into_iter().collect();
        for remark in remarks.difference(&self.reported) {
            if let Some(ingress) = self.cluster.ingresses.get_key(&remark.ingress) {
                self.recorder.record(reference(&*ingress), EventKind::Warning, remark.reason, remark.message.clone());
            }
        }
        self.reported = remarks;
    }

    /// Listens on what is wanted, since the time when the oldest Ingress was made, and free. Answers when to try again what
    /// another program has.
    async fn open_and_close(&mut self, wanted_since: Option<Created>) -> Option<Duration> {
        let mut problems = BTreeMap::new();
        let mut is_taken = false;
        for port in &self.ports {
            let number = port.number;
            let holder = wanted_since.and_then(|since| holder(&self.cluster, number, since));
            if let Some(holder) = &holder {
                problems.insert(number, format!("the load balancer Service {holder} has it"));
            }
            if wanted_since.is_none() || holder.is_some() {
                if self.open.remove(&number).is_some() {
                    info!(port = number, "an Ingress's port is closed");
                }
                continue;
            }
            if self.open.contains_key(&number) {
                continue;
            }
            match listen::bind(number).await {
                Ok(listener) => {
                    info!(port = number, tls = port.tls.is_some(), "Ingresses are served");
                    let end = CancellationToken::new();
                    let proxy = Arc::clone(&self.proxy);
                    self.serving.spawn(listen::serve(listener, port.clone(), proxy, end.clone()));
                    self.open.insert(number, end.drop_guard());
                }
                Err(error) => {
                    is_taken = true;
                    problems.insert(number, error.to_string());
                }
            }
        }
        // Ends of earlier ones, which have nothing to say.
        while self.serving.try_join_next().is_some() {}
        let mut told = lock(&self.problems);
        for (port, why) in problems.iter().filter(|(port, why)| told.get(port) != Some(why)) {
            warn!(port, why, "a port of Ingresses is not served (--ingress-http-port, --ingress-https-port)");
        }
        *told = problems;
        if !is_taken {
            self.again.reset();
            return None;
        }
        Some(self.again.fail())
    }
}

/// What of a Node decides whether its address is one of an Ingress.
fn facts(node: Option<&Arc<Node>>) -> Option<(Option<bool>, Vec<String>)> {
    let status = node?.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    let ready = conditions.find(|condition| condition.type_ == "Ready").map(|condition| condition.status == "True");
    Some((ready, status.addresses.iter().flatten().map(|address| address.address.clone()).collect()))
}

fn keys(cluster: &Cluster) -> Vec<Key> {
    cluster.served().iter().map(|ingress| Key::Ingress(ObjectKey::of(&**ingress))).collect()
}

/// The ports that a Service has on the nodes' own addresses, where the rules of Services come before any socket.
fn claimed(service: &Service) -> Vec<u16> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let has_address = status.and_then(|balancer| balancer.ingress.as_ref()).is_some_and(|ingress| !ingress.is_empty());
    if spec.type_.as_deref() != Some("LoadBalancer") || spec.load_balancer_class.is_some() || !has_address {
        return Vec::new();
    }
    let tcp = spec.ports.iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    tcp.filter_map(|port| u16::try_from(port.port).ok()).collect()
}

/// When an object was made.
type Created = Option<Timestamp>;

fn created(metadata: &ObjectMeta) -> Created {
    metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// The Service that has the port. One that is younger than all Ingresses gives it up, as the controller of load balancers has
/// it, so that who is older keeps it, whatever is seen first.
fn holder(cluster: &Cluster, port: u16, since: Created) -> Option<ObjectKey> {
    let services = cluster.services.list();
    let mut holders = services.iter().filter(|service| created(&service.metadata) <= since);
    holders.find(|service| claimed(service).contains(&port)).map(|service| ObjectKey::of(&**service))
}
