//! Keeps the table of Services.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use carob_client::{EventKind, EventRecorder, EventSource, Grouped, Informer, Informers, ObjectKey, reference};
use carob_kit::{Clock, chain};
use carob_sys::nft::Transaction;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::flows::{FlowCheck, FlowChecks};
use crate::health::HealthPorts;
use crate::keep::{ProxyError, Rules, blocking, keep};
use crate::model::{self, NodeFacts};
use crate::ranges;
use crate::state::{Conflict, State, Step};
use crate::table::{self, TableConfig};

/// The label that names the Service of a slice, and the one of slices that are for names only.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";
/// How long the start waits for the ServiceCIDRs: a server of another version may not let a node have them.
const CIDRS_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub struct ProxyConfig {
    pub table: TableConfig,
    pub node_name: String,
    pub node_addresses: Vec<IpAddr>,
}

/// What the proxy works with.
pub struct ProxyParts {
    /// Writes events.
    pub client: kube::Client,
    pub informers: Arc<Informers>,
    pub clock: Arc<dyn Clock>,
    pub shutdown: CancellationToken,
}

/// Keeps the rules as the API's Services and EndpointSlices say, until `shutdown`. The rules stay behind: what is
/// connected goes on, and the next server takes them over.
pub async fn run(config: ProxyConfig, parts: ProxyParts) {
    let shutdown = parts.shutdown.clone();
    tokio::select! {
        // Cancel safe: a transaction that was handed to its thread is written whole.
        () = shutdown.cancelled() => {}
        () = Proxy::new(config, parts).run() => {}
    }
}

/// What informers say, gathered.
#[derive(Default)]
struct Inbox {
    news: Mutex<News>,
    arrived: Notify,
}

#[derive(Default)]
struct News {
    /// At most one entry per Service that there is or was.
    services: BTreeSet<ObjectKey>,
    everything: bool,
    /// ServiceCIDRs changed.
    cidrs: bool,
}

impl Inbox {
    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().expect("no holder of the news panics")
    }

    fn service_changed(&self, key: ObjectKey) {
        self.news().services.insert(key);
        self.arrived.notify_one();
    }
}

/// The Service of a slice that leads to endpoints.
fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    let service = labels.get(SERVICE_NAME).filter(|_| !labels.contains_key(HEADLESS))?;
    Some(ObjectKey::new(slice.metadata.namespace.as_deref().unwrap_or_default(), service))
}

struct Proxy {
    config: ProxyConfig,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    slices_of: Arc<Grouped<ObjectKey, EndpointSlice>>,
    nodes: Informer<Node>,
    cidrs: Informer<ServiceCIDR>,
    /// The ranges of the configuration; those in force are the table's.
    configured: Vec<IpNet>,
    recorder: EventRecorder,
    inbox: Arc<Inbox>,
    node: NodeFacts,
    state: State,
    health: HealthPorts,
    /// To be looked at once the next transaction is written.
    flows: Vec<FlowCheck>,
}

impl Proxy {
    fn new(config: ProxyConfig, parts: ProxyParts) -> Self {
        let slices = parts.informers.of();
        let source = EventSource { component: "kube-proxy".to_owned(), host: Some(config.node_name.clone()) };
        Self {
            services: parts.informers.of(),
            slices_of: Grouped::new(&slices, |slice| service_of(slice).into_iter().collect()),
            slices,
            nodes: parts.informers.of(),
            cidrs: parts.informers.of(),
            configured: config.table.service_cidrs.clone(),
            recorder: EventRecorder::new(parts.client, parts.clock, source, parts.shutdown),
            inbox: Arc::default(),
            node: NodeFacts { name: config.node_name.clone(), zone: None, addresses: config.node_addresses.clone() },
            state: State::default(),
            health: HealthPorts::default(),
            flows: Vec::new(),
            config,
        }
    }

    fn listen(&self) {
        let inbox = Arc::clone(&self.inbox);
        self.services.on_change(move |change| inbox.service_changed(change.key()));
        let inbox = Arc::clone(&self.inbox);
        self.slices.on_change(move |change| {
            for service in change.versions().filter_map(|slice| service_of(slice)) {
                inbox.service_changed(service);
            }
        });
        let inbox = Arc::clone(&self.inbox);
        self.cidrs.on_change(move |_| {
            inbox.news().cidrs = true;
            inbox.arrived.notify_one();
        });
        let (inbox, name) = (Arc::clone(&self.inbox), self.config.node_name.clone());
        self.nodes.on_change(move |change| {
            if *change.key().name == *name
                && change.old.and_then(|node| zone(node)) != change.new.and_then(|node| zone(node))
            {
                inbox.news().everything = true;
                inbox.arrived.notify_one();
            }
        });
    }

    async fn run(mut self) {
        self.listen();
        self.services.synced().await;
        self.slices.synced().await;
        self.nodes.synced().await;
        if tokio::time::timeout(CIDRS_PATIENCE, self.cidrs.synced()).await.is_err() {
            warn!("ServiceCIDRs are not known yet: Services have the configured addresses only");
        }
        let (inbox, table) = (Arc::clone(&self.inbox), self.config.table.table.clone());
        keep(&mut self, &inbox.arrived, &table).await;
    }

    /// Takes all news into the state.
    async fn take(&mut self) -> Step {
        let (mut keys, everything) = {
            let mut news = self.inbox.news();
            (std::mem::take(&mut news.services), std::mem::take(&mut news.everything))
        };
        if everything {
            self.node.zone = self.nodes.get(None, &self.config.node_name).as_deref().and_then(zone).map(str::to_owned);
            keys.extend(self.services.keys());
            keys.extend(self.state.keys().cloned());
        }
        let mut step = Step::default();
        for key in &keys {
            self.update(key, &mut step).await;
        }
        for conflict in std::mem::take(&mut step.conflicts) {
            self.tell_of(&conflict);
        }
        for port in &step.unserved {
            warn!(port, "there are too many ports of Services: this one is not served");
        }
        self.inbox.news().services.extend(std::mem::take(&mut step.freed));
        step
    }

    /// Takes the ranges of Services as they are now; the transaction gets what that changes.
    fn take_ranges(&mut self, change: &mut Transaction) {
        if !std::mem::take(&mut self.inbox.news().cidrs) {
            return;
        }
        let (pods, own) = (&self.config.table.cluster_cidrs, &self.config.node_addresses);
        let ranges = ranges::of_services(&self.configured, &self.cidrs.list(), pods, own);
        for (cidr, range) in &ranges.left_out {
            warn!(cidr, %range, "a ServiceCIDR has addresses of Pods or of this machine: it is not kept to Services");
        }
        let before = std::mem::replace(&mut self.config.table.service_cidrs, ranges.used);
        table::change_service_cidrs(change, &before, &self.config.table.service_cidrs);
    }

    async fn update(&mut self, key: &ObjectKey, step: &mut Step) {
        let service = self.services.get_key(key);
        let slices = if service.is_some() { self.slices_of.get(key) } else { Vec::new() };
        let ports = service.as_ref().map(|service| model::ports(service, &slices, &self.node)).unwrap_or_default();
        let health = service.as_ref().and_then(|service| model::health_check(service, &slices, &self.node));
        self.state.update(key, ports, step);
        if let Err(error) = self.health.set(key, health).await
            && let Some(service) = &service
        {
            let port = health.map_or(0, |(port, _)| port);
            let message = format!("node {} failed to start healthcheck {key} on port {port}: {error}", self.node.name);
            self.recorder.record(reference(&**service), EventKind::Warning, "FailedToStartServiceHealthcheck", message);
        }
    }

    fn tell_of(&self, conflict: &Conflict) {
        let Some(service) = self.services.get_key(&conflict.loser) else { return };
        let message = format!("{} is taken by Service {} on node {}", conflict.what, conflict.holder, self.node.name);
        self.recorder.record(reference(&*service), EventKind::Warning, "AddressTaken", message);
    }
}

impl Rules for Proxy {
    fn has_news(&self) -> bool {
        let news = self.inbox.news();
        news.everything || news.cidrs || !news.services.is_empty()
    }

    async fn step(&mut self, whole: bool) -> Transaction {
        let mut step = self.take().await;
        self.flows.append(&mut step.flows);
        let mut change = self.state.change(&self.config.table, &mut step);
        self.take_ranges(&mut change);
        if whole { self.state.replace(&self.config.table) } else { change }
    }

    /// Connections to what is no endpoint any more are ended now: any earlier, and they would find it again.
    async fn written(&mut self) {
        if self.flows.is_empty() {
            return;
        }
        let checks = FlowChecks::new(std::mem::take(&mut self.flows));
        let forgotten = blocking(move || checks.forget_stale()).await;
        if let Err(error) = forgotten.and_then(|forgotten| forgotten.map_err(ProxyError::Forget)) {
            warn!(error = %chain(&error), "connections to endpoints that are gone stay in the kernel's table");
        }
    }

    fn clean(&self) -> Transaction {
        self.state.clean(&self.config.table)
    }

    fn cleaned(&mut self) {
        self.state.cleaned();
    }
}

fn zone(node: &Node) -> Option<&str> {
    node.metadata.labels.as_ref()?.get(ZONE).map(String::as_str)
}
