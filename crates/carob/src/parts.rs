//! The parts of a server and of an agent, each a function that makes a [`Part`]: what it needs, how it starts, what is told of it.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use anyhow::{Context, Result};
use async_trait::async_trait;
use carob_apiserver::authn::ServiceAccountKeys;
use carob_apiserver::{ApiServer, Tls, UserInfo};
use carob_client::{DriverStats, ElectionConfig, Ended, Informers, LeaderElector, write_work_metrics};
use carob_cni::{CniConfig, CniNetwork};
use carob_controllers::{Controllers, TokenSigner};
use carob_cri::Cri;
use carob_cri::v1::{LinuxContainerResources, VersionRequest};
use carob_cri_socket::RemoteRuntime;
use carob_dns::{Dns, DnsConfig, DnsParts};
use carob_image::{ImageStore, StoreConfig};
use carob_ingress::{Ingress, IngressConfig, IngressParts};
use carob_kit::{Clock, Health, Part, PartContext, PartError};
use carob_local_storage::LocalStorage;
use carob_net::{NetConfig, PodNetwork, has_records};
use carob_node::{Access, ClusterDns, KubeletApi, NetworkRules, Node, NodeConfig, NodeIdentity, NodeParts};
use carob_proxy::nodes::{NodesConfig, NodesParts};
use carob_proxy::policy::{Admissions, PolicyConfig, PolicyParts};
use carob_proxy::{PodInterfaces, ProxyConfig, ProxyParts, TableConfig};
use carob_runtime::{Network, PodGroups, Runtime, RuntimeConfig, WithFormer};
use carob_scheduler::{Explanations, Scheduler, SchedulerConfig};
use carob_store::Store;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::config::Settings;
use crate::pki::{KUBELET_CLIENT, Pki};
use crate::signer::ClusterSigner;
use crate::{admin, kubeconfig, memory, renewal, tls, virtual_nodes};

/// The API, which every part needs that has something to say.
pub(crate) const API: &str = "api";
/// The shared watches: they end after those who read them, and before the API.
pub(crate) const INFORMERS: &str = "informers";
const SYSTEM_OBJECTS: &str = "system-objects";
const CONTROLLERS: &str = "controllers";
const SCHEDULER: &str = "scheduler";
const VIRTUAL_NODES: &str = "virtual-nodes";
const IMAGES: &str = "images";
pub(crate) const NODE: &str = "node";
const CRI_SOCKET: &str = "cri-socket";
const LOCAL_STORAGE: &str = "local-storage";
const DNS: &str = "dns";
const INGRESS: &str = "ingress";
const PROXY: &str = "proxy";
const NODE_ROUTES: &str = "node-routes";
const POLICIES: &str = "network-policies";
const IMAGE_COLLECTION: &str = "image-collection";
const ADMIN: &str = "admin-socket";
pub(crate) const CERTIFICATES: &str = "certificates";
const MEMORY: &str = "memory";

/// This machine's list of resolvers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What parts are made of.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) settings: Arc<Settings>,
    pub(crate) clients: Clients,
    /// How this node's kubelet API serves.
    pub(crate) kubelet_tls: Arc<rustls::ServerConfig>,
    /// Tells this machine's Node from one that another machine has registered under the name.
    pub(crate) machine_id: String,
    pub(crate) informers: Arc<Informers>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) health: Arc<Health>,
    pub(crate) machine: Arc<Machine>,
    /// `None` on an agent.
    pub(crate) store: Option<Store>,
}

/// What the parts of a control plane are made of besides.
#[derive(Clone)]
pub(crate) struct Control {
    pub(crate) common: Common,
    pub(crate) api: ApiServer,
    pub(crate) pki: Arc<Pki>,
    pub(crate) shown: Arc<tls::Shown>,
    pub(crate) signer: Arc<ClusterSigner>,
}

/// How parts reach the API.
#[derive(Clone)]
pub(crate) enum Clients {
    /// In this process, each under its own name.
    InProcess(ApiServer),
    /// On another machine, all in the name of this node.
    OfNode(kube::Client),
}

/// What the node and its tools share, once it is open. It is opened once: a part that starts again goes on with it.
#[derive(Default)]
pub(crate) struct Machine {
    images: OnceLock<ImageStore>,
    runtime: Mutex<Option<Arc<Runtime>>>,
    pods_left: Mutex<Option<watch::Receiver<usize>>>,
    /// Where Pods wait for their network policies.
    admissions: Arc<Admissions>,
}

impl Machine {
    /// `None` where no node runs, or none yet.
    pub(crate) fn runtime(&self) -> Option<Arc<Runtime>> {
        self.slot().clone()
    }

    pub(crate) fn take_runtime(&self) -> Option<Arc<Runtime>> {
        self.slot().take()
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Runtime>>> {
        self.runtime.lock().expect("no holder of the runtime panics")
    }

    /// How many Pods have something on this machine; `None` before the node has begun.
    pub(crate) fn pods_left(&self) -> Option<watch::Receiver<usize>> {
        self.pods_left.lock().expect("no holder of the count panics").clone()
    }

    pub(crate) fn images(&self) -> Result<ImageStore> {
        self.images.get().cloned().context("the image store is not open")
    }
}

impl Common {
    fn client(&self, user: carob_apiserver::Identity) -> kube::Client {
        match &self.clients {
            Clients::InProcess(api) => carob_client::in_process(api.in_process(user)),
            Clients::OfNode(client) => client.clone(),
        }
    }

    fn component(&self, name: &str) -> kube::Client {
        self.client(UserInfo::component(name))
    }
}

fn plain(error: anyhow::Error) -> PartError {
    error.into()
}

pub(crate) fn api(control: &Control, listener: TcpListener, tls: Tls) -> Part {
    let (api, address) = (control.api.clone(), control.common.settings.listen);
    let mut first = Some(listener);
    Part::new(API, move |context| {
        let (api, tls, bound) = (api.clone(), tls.clone(), first.take());
        async move {
            let listener = match bound {
                Some(listener) => listener,
                None => TcpListener::bind(address).await?,
            };
            context.ready();
            api.serve(listener, tls, context.shutdown().cancelled_owned()).await;
            Ok(())
        }
    })
}

pub(crate) fn informers(common: &Common) -> Part {
    let informers = Arc::clone(&common.informers);
    Part::new(INFORMERS, move |context| {
        let informers = Arc::clone(&informers);
        async move {
            context.ready();
            context.shutdown().cancelled().await;
            // Whoever watches the API while it ends takes its end for a failure.
            informers.end();
            Ok(())
        }
    })
    .needs(&[API])
}

/// Keeps the objects that the API server makes itself as they have to be.
pub(crate) fn system_objects(control: &Control) -> Part {
    let api = control.api.clone();
    Part::new(SYSTEM_OBJECTS, move |context| {
        let api = api.clone();
        async move {
            context.ready();
            api.keep_system(context.shutdown().cancelled_owned()).await;
            Ok(())
        }
    })
    .needs(&[API])
}

pub(crate) fn controllers(control: &Control, keys: Arc<ServiceAccountKeys>) -> Part {
    let control = control.clone();
    Part::new(CONTROLLERS, move |context| {
        let common = &control.common;
        let settings = &common.settings;
        let config = carob_controllers::Config {
            api_port: settings.listen.port(),
            cluster_cidrs: settings.cluster_cidrs.clone(),
            kubelet_port: Some(settings.kubelet_port),
            load_balancers: settings.load_balancers,
            root_ca_pem: control.pki.ca_pem.clone(),
            token_signer: Some(Arc::new(SecretTokens(Arc::clone(&keys)))),
            certificate_signer: Some(control.signer.clone()),
            server_url: kubeconfig::server_url(settings.listen, &settings.node_ips),
            snapshots: settings.local_storage,
            node_grace: settings.node_grace,
        };
        let client = common.component("system:kube-controller-manager");
        let (informers, clock, health) =
            (Arc::clone(&common.informers), Arc::clone(&common.clock), Arc::clone(&common.health));
        let election = election(common, "kube-controller-manager");
        async move {
            let (leases, shutdown) = (client.clone(), context.shutdown());
            let lead = |clock, shutdown| async {
                let controllers = Controllers::start(client, informers, config, clock, shutdown);
                let (counts, remarks) = (controllers.stats(), controllers.stats());
                health.add_metrics(CONTROLLERS, move |out| write_work_metrics(out, &counts()));
                health.add_remarks(CONTROLLERS, move || set_aside(&remarks()));
                let begun = controllers.begun();
                let tell = async {
                    begun.await;
                    context.ready();
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = controllers.join() => {}
                    () = tell => {}
                }
            };
            let Some(election) = election else {
                lead(clock, shutdown).await;
                return Ok(());
            };
            // Who waits to lead does what it has to.
            context.ready();
            let mut elector = LeaderElector::new(leases, Arc::clone(&clock), election)?;
            match elector.run(shutdown, |end| lead(clock, end)).await {
                Ended::Shutdown | Ended::Finished => Ok(()),
                Ended::Lost => Err("another server leads the controllers now".into()),
            }
        }
    })
    .needs(&[API, INFORMERS])
}

/// How servers that share a store agree on who does what one alone may do; `None` where there is one server.
fn election(common: &Common, name: &str) -> Option<ElectionConfig> {
    common.settings.datastore.as_ref()?;
    let identity = format!("{}_{}", common.settings.node_name, carob_kit::uid());
    Some(ElectionConfig::new("kube-system", name, identity))
}

fn set_aside(stats: &DriverStats) -> Vec<String> {
    let of = |(name, stats): &(&'static str, carob_client::WorkStats)| {
        let (count, first) = (stats.set_aside.len(), stats.set_aside.first()?);
        Some(format!("the {name} controller leaves {count} objects alone that made it panic, {first} among them"))
    };
    stats.iter().filter_map(of).collect()
}

pub(crate) fn scheduler(common: &Common, explanations: Explanations) -> Part {
    let common = common.clone();
    let figures = carob_scheduler::Figures::default();
    let shown = figures.clone();
    common.health.add_metrics(SCHEDULER, move |out| shown.write(out));
    Part::new(SCHEDULER, move |context| {
        let config = SchedulerConfig {
            explanations: explanations.clone(),
            figures: figures.clone(),
            election: election(&common, "kube-scheduler"),
            ..SchedulerConfig::default()
        };
        let client = common.component("system:kube-scheduler");
        let (informers, clock) = (Arc::clone(&common.informers), Arc::clone(&common.clock));
        async move {
            context.ready();
            Ok(Scheduler::run(client, informers, config, clock, context.shutdown()).await?)
        }
    })
    .needs(&[API, INFORMERS])
}

/// `None` where the settings ask for no virtual nodes.
pub(crate) fn virtual_nodes(control: &Control) -> Option<Part> {
    control.common.settings.virtual_nodes.as_ref()?;
    let control = control.clone();
    let part = Part::new(VIRTUAL_NODES, move |context| {
        let common = &control.common;
        let nodes = virtual_nodes::make(&common.settings, &control.api, &common.informers, &common.clock);
        async move {
            let Some(nodes) = nodes else { return Ok(()) };
            let mut ready = nodes.ready();
            let tell = async {
                if ready.wait_for(|ready| *ready).await.is_ok() {
                    context.ready();
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                ended = nodes.run(context.shutdown()) => Ok(ended?),
                () = tell => Ok(()),
            }
        }
    });
    Some(part.needs(&[API, INFORMERS]))
}

pub(crate) fn images(common: &Common) -> Part {
    let common = common.clone();
    Part::new(IMAGES, move |context| {
        let common = common.clone();
        async move {
            if common.machine.images.get().is_none() {
                let mut config = StoreConfig::new(&common.settings.images_dir, Arc::clone(&common.clock));
                config.registries = common.settings.registries.clone();
                let images = ImageStore::open(config).await?;
                // Nothing else sets it: one run of a part goes at a time.
                common.machine.images.get_or_init(|| images);
            }
            context.ready();
            context.shutdown().cancelled().await;
            Ok(())
        }
    })
}

/// Removes images that nothing uses when the disk fills.
pub(crate) fn image_collection(common: &Common) -> Part {
    let common = common.clone();
    Part::new(IMAGE_COLLECTION, move |context| {
        let common = common.clone();
        async move {
            let (images, settings) = (common.machine.images()?, &common.settings);
            context.ready();
            let (run_dir, policy) = (settings.run_dir.clone(), settings.image_gc.clone());
            carob_runtime::collect_images(images, run_dir, policy, context.shutdown().cancelled_owned()).await;
            Ok(())
        }
    })
    .needs(&[IMAGES])
}

/// Opens the runtime, which takes up the Pods that an earlier server left running, and runs the node on it.
pub(crate) fn node(common: &Common) -> Part {
    let common = common.clone();
    Part::new(NODE, move |context| {
        let common = common.clone();
        async move { run_node(&common, context).await.map_err(plain) }
    })
    .needs(&[API, INFORMERS, IMAGES])
}

async fn run_node(common: &Common, context: PartContext) -> Result<()> {
    let settings = &common.settings;
    let cri = runtime_of(common).await?;
    let version = cri.version(VersionRequest::default()).await.context("ask the runtime for its version")?;
    let address = SocketAddr::new(settings.kubelet_ip(), settings.kubelet_port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address} (--kubelet-port)"))?;
    let kubelet_port = listener.local_addr().context("the port of the kubelet API")?.port();
    let access = Access { users: vec![KUBELET_CLIENT.to_owned()], groups: vec!["system:masters".to_owned()] };
    let parts = NodeParts {
        client: common.client(UserInfo::node(&settings.node_name)),
        informers: Arc::clone(&common.informers),
        cri,
        clock: Arc::clone(&common.clock),
        network_rules: network_rules(common),
        api: Some(KubeletApi { listener, tls: Arc::clone(&common.kubelet_tls), access }),
        shutdown: context.shutdown(),
    };
    let node = Node::new(node_config(common, kubelet_port, version.runtime_name), parts).context("make the node")?;
    *common.machine.pods_left.lock().expect("no holder of the count panics") = Some(node.pods_left());
    let mut ready = node.ready();
    let tell = async {
        // Whoever could say that it is ready has ended otherwise, which is seen below.
        if ready.wait_for(|ready| *ready).await.is_ok() {
            context.ready();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = node.run() => Ok(()),
        () = tell => Ok(()),
    }
}

/// Serves our own runtime to others. `None` where the settings name no socket for that.
pub(crate) fn cri_socket(common: &Common) -> Option<Part> {
    let path = common.settings.serve_cri.clone()?;
    let machine = Arc::clone(&common.machine);
    let part = Part::new(CRI_SOCKET, move |context| {
        let (path, runtime) = (path.clone(), machine.runtime());
        async move {
            let runtime = runtime.context("the node has not opened the runtime").map_err(plain)?;
            Ok(carob_cri_socket::serve(&path, runtime, || context.ready(), context.shutdown()).await?)
        }
    });
    Some(part.needs(&[NODE]))
}

/// The control groups of Pods that another runtime runs.
struct Groups(PodGroups);

impl carob_cri_socket::PodGroups for Groups {
    fn make(&self, group: &Path, limits: Option<&LinuxContainerResources>) -> Result<(), PartError> {
        Ok(self.0.make(group, limits)?)
    }

    fn remove(&self, group: &Path) -> Result<(), PartError> {
        Ok(self.0.remove(group)?)
    }
}

/// What runs the Pods: the runtime that the settings name, or our own.
async fn runtime_of(common: &Common) -> Result<Arc<dyn Cri>> {
    if let Some(endpoint) = &common.settings.runtime_endpoint {
        let remote = RemoteRuntime::new(endpoint, Arc::new(Groups(PodGroups::detect()?)))
            .context("--container-runtime-endpoint")?;
        return Ok(Arc::new(remote));
    }
    if let Some(runtime) = common.machine.runtime() {
        return Ok(runtime);
    }
    let (images, clock) = (common.machine.images()?, Arc::clone(&common.clock));
    let runtime = open_runtime(&common.settings, images, clock).await?;
    *common.machine.slot() = Some(Arc::clone(&runtime));
    Ok(runtime)
}

/// Opens the runtime, which takes up what an earlier process has left running.
pub(crate) async fn open_runtime(
    settings: &Settings,
    images: ImageStore,
    clock: Arc<dyn Clock>,
) -> Result<Arc<Runtime>> {
    let network = open_network(settings, &clock).await?;
    let runtime = Runtime::open(RuntimeConfig {
        data_dir: settings.data_dir.clone(),
        run_dir: settings.run_dir.clone(),
        cgroup_root: settings.cgroup_root.clone().into(),
        instance: settings.instance.clone(),
        die_with_parent: settings.die_with_parent,
        handlers: settings.runtime_handlers.clone(),
        images: Arc::new(images),
        network,
        clock,
    });
    runtime.await.context("open the runtime")
}

/// The network that the settings name, with what others still have of it.
async fn open_network(settings: &Settings, clock: &Arc<dyn Clock>) -> Result<Arc<dyn Network>> {
    let (own_dir, cni_dir) = (settings.run_dir.join("net"), settings.run_dir.join("cni"));
    let by_plugins = settings.cni_conf_dir.clone();
    let mut networks: Vec<Arc<dyn Network>> = Vec::new();
    if by_plugins.is_none() || has_records(&own_dir)? {
        let config = NetConfig {
            instance: settings.instance.clone(),
            state_dir: own_dir,
            pod_cidrs: Vec::new(),
            cluster_cidrs: settings.cluster_cidrs.clone(),
            clock: Arc::clone(clock),
        };
        networks.push(Arc::new(PodNetwork::open(config).await.context("open the Pod network")?));
    }
    if by_plugins.is_some() || has_records(&cni_dir)? {
        let config = CniConfig {
            // Without one, sandboxes of before are taken back by the configuration that each was made by.
            conf_dir: by_plugins.clone().unwrap_or_else(|| cni_dir.clone()),
            bin_dirs: settings.cni_bin_dirs.clone(),
            state_dir: cni_dir,
        };
        let network: Arc<dyn Network> = Arc::new(CniNetwork::open(config).context("open the network of CNI plug-ins")?);
        let at = if by_plugins.is_some() { 0 } else { networks.len() };
        networks.insert(at, network);
    }
    let current = networks.remove(0);
    Ok(if networks.is_empty() { current } else { Arc::new(WithFormer { current, former: networks }) })
}

fn node_config(common: &Common, kubelet_port: u16, runtime: String) -> NodeConfig {
    let settings = &common.settings;
    NodeConfig {
        identity: NodeIdentity {
            name: settings.node_name.clone(),
            addresses: settings.node_ips.clone(),
            kubelet_port,
            kubelet_version: crate::VERSION.to_owned(),
            pods_max: settings.max_pods as usize,
            eviction: settings.eviction.clone(),
            machine_id: Some(common.machine_id.clone()),
            // Whoever deletes the Node of a machine that has joined wants it to leave.
            stays_deleted: matches!(common.clients, Clients::OfNode(_)),
            ..NodeIdentity::default()
        },
        runtime,
        data_dir: settings.data_dir.clone(),
        kubelet_dir: settings.kubelet_dir.clone(),
        cgroup_root: settings.cgroup_root.clone(),
        log_dir: settings.log_dir(),
        log_link_dir: settings.log_link_dir(),
        dns: ClusterDns { servers: settings.cluster_dns.clone(), domain: settings.cluster_domain.clone() },
        seccomp_default: false,
        resolv_conf: RESOLV_CONF.into(),
        hosts: "/etc/hosts".into(),
        manifests: settings.manifests.clone(),
        shutdown: settings.shutdown.clone(),
    }
}

/// Makes volumes on this machine's disk.
pub(crate) fn local_storage(common: &Common) -> Part {
    let common = common.clone();
    Part::new(LOCAL_STORAGE, move |context| {
        let settings = &common.settings;
        let as_node = matches!(common.clients, Clients::OfNode(_));
        let config =
            carob_local_storage::Config { dir: settings.volumes_dir(), node_name: settings.node_name.clone(), as_node };
        let client = common.component("system:local-storage");
        let parts = carob_local_storage::Parts {
            client: client.clone(),
            informers: Arc::clone(&common.informers),
            clock: Arc::clone(&common.clock),
            shutdown: context.shutdown(),
        };
        let health = Arc::clone(&common.health);
        async move {
            if as_node {
                // The API may be away, or be one that gives a node no such rights: what is here goes on all the same.
                context.ready();
                let shutdown = context.shutdown();
                tokio::select! {
                    () = carob_local_storage::until_allowed(&client) => {}
                    () = shutdown.cancelled() => return Ok(()),
                }
            }
            let storage = LocalStorage::start(config, parts).await?;
            let (counts, remarks) = (storage.stats(), storage.stats());
            health.add_metrics(LOCAL_STORAGE, move |out| write_work_metrics(out, &counts()));
            health.add_remarks(LOCAL_STORAGE, move || set_aside(&remarks()));
            let begun = storage.begun();
            let tell = async {
                begun.await;
                context.ready();
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = storage.join() => Ok(()),
                () = tell => Ok(()),
            }
        }
    })
    .needs(&[API, INFORMERS])
}

pub(crate) fn dns(common: &Common, client: kube::Client) -> Part {
    let common = common.clone();
    Part::new(DNS, move |context| {
        let settings = &common.settings;
        let config = DnsConfig {
            domain: settings.cluster_domain.clone(),
            cluster_dns: settings.cluster_dns.clone(),
            listen: settings.node_ips.clone(),
            node_name: settings.node_name.clone(),
            cluster_cidrs: settings.cluster_cidrs.clone(),
            service_cidrs: settings.service_cidrs.clone(),
            resolv_conf: RESOLV_CONF.into(),
        };
        let (client, informers) = (client.clone(), Arc::clone(&common.informers));
        async move {
            let dns = Dns::bind(config)
                .await
                .context("the cluster's DNS server (--node-ip, --disable dns)")
                .map_err(plain)?;
            context.ready();
            dns.run(DnsParts { client, informers, shutdown: context.shutdown() }).await;
            Ok(())
        }
    })
    .needs(&[API, INFORMERS])
}

pub(crate) fn ingress(common: &Common, client: kube::Client) -> Part {
    let common = common.clone();
    Part::new(INGRESS, move |context| {
        let settings = &common.settings;
        let config = IngressConfig {
            http_port: settings.ingress_http_port,
            https_port: settings.ingress_https_port,
            node_name: settings.node_name.clone(),
            addresses: settings.node_ips.clone(),
        };
        let parts = IngressParts {
            client: client.clone(),
            informers: Arc::clone(&common.informers),
            clock: Arc::clone(&common.clock),
            shutdown: context.shutdown(),
        };
        let health = Arc::clone(&common.health);
        async move {
            let ingress = Ingress::new(config, parts)?;
            health.add_remarks(INGRESS, ingress.remarks());
            health.add_metrics(INGRESS, ingress.metrics());
            context.ready();
            ingress.run().await;
            Ok(())
        }
    })
    .needs(&[API, INFORMERS])
}

pub(crate) fn proxy(common: &Common) -> Part {
    let common = common.clone();
    Part::new(PROXY, move |context| {
        let config = ProxyConfig {
            table: service_table(&common.settings),
            node_name: common.settings.node_name.clone(),
            node_addresses: common.settings.node_ips.clone(),
        };
        let parts = ProxyParts {
            client: common.component("system:kube-proxy"),
            informers: Arc::clone(&common.informers),
            clock: Arc::clone(&common.clock),
            shutdown: context.shutdown(),
        };
        async move {
            context.ready();
            carob_proxy::run(config, parts).await;
            Ok(())
        }
    })
    .needs(&[API, INFORMERS])
}

pub(crate) fn policies(common: &Common) -> Part {
    let common = common.clone();
    Part::new(POLICIES, move |context| {
        let settings = &common.settings;
        let config = PolicyConfig { table: policies_table(&settings.instance), node_name: settings.node_name.clone() };
        let parts = PolicyParts {
            informers: Arc::clone(&common.informers),
            admissions: Arc::clone(&common.machine.admissions),
            shutdown: context.shutdown(),
        };
        async move {
            context.ready();
            carob_proxy::policy::run(config, parts).await;
            Ok(())
        }
    })
    .needs(&[API, INFORMERS])
}

/// Routes to other nodes' Pods.
pub(crate) fn node_routes(common: &Common) -> Part {
    let common = common.clone();
    Part::new(NODE_ROUTES, move |context| {
        let settings = &common.settings;
        let config = NodesConfig {
            node_name: settings.node_name.clone(),
            node_addresses: settings.node_ips.clone(),
            cluster_cidrs: settings.cluster_cidrs.clone(),
            tunnel: carob_net::tunnel_interface(&settings.instance),
        };
        let parts = NodesParts { informers: Arc::clone(&common.informers), shutdown: context.shutdown() };
        async move {
            context.ready();
            carob_proxy::nodes::run(config, parts).await;
            Ok(())
        }
    })
    .needs(&[API, INFORMERS])
}

/// Where no Pod runs on, takes back what Pods need of the machine.
pub(crate) async fn leave(runtime: &Runtime, settings: &Settings) -> Result<()> {
    let has_left = runtime.leave().await?;
    if has_left && settings.proxy {
        // Routes within the cluster's ranges may be those of plug-ins.
        let routes: &[IpNet] = if settings.cni_conf_dir.is_some() { &[] } else { &settings.cluster_cidrs };
        remove_rules(&settings.instance, routes).await?;
    }
    Ok(())
}

/// Removes the tables of Services and of policies that an instance has in the kernel, and its ways to other nodes' Pods: routes
/// within the cluster's ranges, and the tunnel with those through it.
pub(crate) async fn remove_rules(instance: &str, cluster_cidrs: &[IpNet]) -> Result<()> {
    carob_proxy::remove(&services_table(instance)).await?;
    carob_proxy::remove(&policies_table(instance)).await?;
    Ok(carob_proxy::nodes::remove(&carob_net::tunnel_interface(instance), cluster_cidrs).await?)
}

fn services_table(instance: &str) -> String {
    format!("carob-services-{instance}")
}

fn policies_table(instance: &str) -> String {
    format!("carob-policies-{instance}")
}

fn service_table(settings: &Settings) -> TableConfig {
    let [of_any_instance, of_this_instance] = carob_net::pod_interfaces(&settings.instance);
    TableConfig {
        table: services_table(&settings.instance),
        cluster_cidrs: settings.cluster_cidrs.clone(),
        service_cidrs: settings.service_cidrs.clone(),
        pod_interfaces: Some(PodInterfaces { of_any_instance, of_this_instance }),
    }
}

pub(crate) fn admin(common: &Common) -> Part {
    let common = common.clone();
    Part::new(ADMIN, move |context| {
        let common = common.clone();
        async move {
            let (machine, settings) = (Arc::clone(&common.machine), Arc::clone(&common.settings));
            let subjects = admin::Subjects { machine, settings, store: common.store.clone() };
            context.ready();
            admin::serve(&common.settings.run_dir, subjects, context.shutdown()).await.map_err(plain)
        }
    })
    .needs(&[IMAGES])
}

pub(crate) fn certificates(control: &Control) -> Part {
    let control = control.clone();
    Part::new(CERTIFICATES, move |context| {
        let control = control.clone();
        async move {
            context.ready();
            let common = &control.common;
            renewal::keep(&common.settings, &control.pki, &control.shown, &*common.clock, context.shutdown())
                .await
                .map_err(plain)
        }
    })
}

pub(crate) fn memory() -> Part {
    Part::new(MEMORY, |context| async move {
        context.ready();
        memory::keep_small(context.shutdown()).await.map_err(plain)
    })
}

/// `None` where another program keeps to network policies.
fn network_rules(common: &Common) -> Option<Arc<dyn NetworkRules>> {
    let policies = || Arc::new(Policies(Arc::clone(&common.machine.admissions))) as Arc<dyn NetworkRules>;
    common.settings.proxy.then(policies)
}

/// Pods wait for their network policies.
struct Policies(Arc<Admissions>);

#[async_trait]
impl NetworkRules for Policies {
    async fn in_force(&self, pod: &Arc<Pod>, addresses: &[IpAddr]) -> Result<(), PartError> {
        Ok(self.0.admit(pod, addresses).await?)
    }
}

/// Signs the tokens that controllers put into Secrets.
struct SecretTokens(Arc<ServiceAccountKeys>);

impl TokenSigner for SecretTokens {
    fn sign(&self, claims: &serde_json::Value) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.sign(claims)?)
    }
}

#[cfg(test)]
mod tests {
    use carob_client::WorkStats;

    use super::*;

    #[test]
    fn controllers_are_told_by_name() {
        let sick = WorkStats { depth: 2, panicked: 3, set_aside: vec!["default/a".to_owned()], ..WorkStats::default() };
        let stats = vec![("job", sick), ("cronjob", WorkStats::default())];
        assert_eq!(
            set_aside(&stats),
            ["the job controller leaves 1 objects alone that made it panic, default/a among them"]
        );
    }
}
