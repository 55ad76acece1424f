//! The composition root: makes the parts of a server from its settings, starts them, and ends them in order.

use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use carob_apiserver::authn::ServiceAccountKeys;
use carob_apiserver::{ApiServer, Config, DirectDialer, Tls, UserInfo};
use carob_client::Informers;
use carob_controllers::{Controllers, TokenSigner};
use carob_dns::{Dns, DnsConfig, DnsParts};
use carob_image::{ImageStore, StoreConfig};
use carob_kit::Clock;
use carob_net::{NetConfig, PodNetwork};
use carob_node::{Access, ClusterDns, KubeletApi, Node, NodeConfig, NodeIdentity, NodeParts};
use carob_proxy::policy::{PolicyConfig, PolicyParts};
use carob_proxy::{PodInterfaces, ProxyConfig, ProxyParts, TableConfig};
use carob_runtime::{Runtime, RuntimeConfig};
use carob_scheduler::{Explanations, Scheduler, SchedulerConfig};
use carob_store::{Options, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::explainer::Schedulers;
use crate::pki::{KUBELET_CLIENT, Names, Pki};
use crate::ready::NodesReady;
use crate::{addresses, admin, kubeconfig, memory, renewal, tls, virtual_nodes};

/// This machine's list of resolvers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A server whose parts run.
pub(crate) struct Server {
    pub(crate) settings: Settings,
    pub(crate) client: kube::Client,
    pub(crate) informers: Arc<Informers>,
    pub(crate) nodes_ready: NodesReady,
    store: Store,
    /// Where this machine is a node.
    runtime: Option<Arc<Runtime>>,
    parts: JoinSet<(&'static str, Result<()>)>,
    /// Ends every part but the API, which the others need to say their last words.
    parts_shutdown: CancellationToken,
    api_shutdown: CancellationToken,
    /// Held as long as the server runs: one server a run directory.
    _lock: std::fs::File,
}

impl Server {
    /// Makes and starts all parts. They are not ready yet when this returns: see [`crate::ready`].
    pub(crate) async fn start(mut settings: Settings, clock: Arc<dyn Clock>) -> Result<Self> {
        let lock = prepare_directories(&settings)?;
        settings.cluster_cidrs = addresses::of_server(&settings).await?;
        let names = Names::of(&settings)?;
        let pki =
            Pki::open(&settings.data_dir.join("pki"), &names, clock.now()).context("the cluster's certificates")?;
        let listener = TcpListener::bind(settings.listen)
            .await
            .with_context(|| format!("listen on {} (--bind-address, --https-listen-port)", settings.listen))?;
        let shown = tls::Shown::new(&pki)?;
        let store = open_store(&settings, &clock).await?;
        let explanations = Explanations::default();
        let schedulers = Schedulers::new(explanations.clone(), &settings.run_dir);
        let keys = service_account_keys(&pki)?;
        let api = make_api(&settings, &pki, &shown, store.clone(), Arc::clone(&clock), schedulers, Arc::clone(&keys))?;
        let as_component = |name: &str| carob_client::in_process(api.in_process(UserInfo::component(name)));
        let controllers_client = as_component("system:kube-controller-manager");
        let scheduler_client = as_component("system:kube-scheduler");
        let proxy_client = as_component("system:kube-proxy");
        let node_client = carob_client::in_process(api.in_process(UserInfo::node(&settings.node_name)));
        let client = carob_client::in_process(api.in_process(UserInfo::master("system:carob")));
        // One set of informers for all parts: each kind is watched, decoded and held once. Parts write under their own names.
        let informers = Informers::new(client.clone());
        let (virtual_nodes_ready, virtual_nodes) = virtual_nodes::prepare(&settings, &api, &informers, &clock);
        let mut server = Self {
            client,
            informers,
            // Without a node there is none to wait for.
            nodes_ready: NodesReady { node: watch::channel(true).1, virtual_nodes: virtual_nodes_ready },
            store,
            runtime: None,
            parts: JoinSet::new(),
            parts_shutdown: CancellationToken::new(),
            api_shutdown: CancellationToken::new(),
            settings,
            _lock: lock,
        };
        let tls = Tls::new(shown.api.clone(), tls::roots(&pki)?)?;
        let shutdown = server.api_shutdown.clone();
        server.part("the API server", async move {
            api.serve(listener, tls, shutdown.cancelled_owned()).await;
            Ok(())
        });
        kubeconfig::write_schedulers(&server.settings, &pki)?;
        if server.settings.controllers {
            server.start_controllers(controllers_client, &pki, keys, &clock);
        }
        if server.settings.scheduler {
            server.start_scheduler(scheduler_client, explanations, &clock);
        }
        if let Some(virtual_nodes) = virtual_nodes {
            let shutdown = server.parts_shutdown.clone();
            server.part("the virtual nodes", async move { Ok(virtual_nodes.run(shutdown).await?) });
        }
        kubeconfig::write(&server.settings.kubeconfig, server.settings.listen, &pki)?;
        let images = ImageStore::open(StoreConfig::new(&server.settings.images_dir, Arc::clone(&clock))).await?;
        if server.settings.node {
            server.runtime = Some(server.start_node(node_client, &pki, &shown, images.clone(), &clock).await?);
        }
        if server.settings.dns {
            server.start_dns().await?;
        }
        if server.settings.proxy {
            server.start_proxy(proxy_client, &clock);
        }
        let subjects = admin::Subjects { images, runtime: server.runtime.clone() };
        let (run_dir, shutdown) = (server.settings.run_dir.clone(), server.parts_shutdown.clone());
        server.part("the administration socket", async move { admin::serve(&run_dir, subjects, shutdown).await });
        let (settings, shutdown) = (server.settings.clone(), server.parts_shutdown.clone());
        server.part("the renewal of certificates", renewal::keep(settings, pki, shown, clock, shutdown));
        let shutdown = server.parts_shutdown.clone();
        server.part("the return of free memory", memory::keep_small(shutdown));
        Ok(server)
    }

    fn start_controllers(
        &mut self,
        client: kube::Client,
        pki: &Pki,
        keys: Arc<ServiceAccountKeys>,
        clock: &Arc<dyn Clock>,
    ) {
        let config = carob_controllers::Config {
            api_addresses: self.settings.node_ips.clone(),
            api_port: self.settings.listen.port(),
            cluster_cidrs: self.settings.cluster_cidrs.clone(),
            service_cidrs: self.settings.service_cidrs.clone(),
            kubelet_port: Some(self.settings.kubelet_port),
            load_balancers: self.settings.load_balancers,
            dns_addresses: if self.settings.dns { self.settings.cluster_dns.clone() } else { Vec::new() },
            root_ca_pem: pki.ca_pem.clone(),
            system_client: self.client.clone(),
            token_signer: Some(Arc::new(SecretTokens(keys))),
        };
        let (informers, shutdown) = (Arc::clone(&self.informers), self.parts_shutdown.clone());
        let controllers = Controllers::start(client, informers, config, Arc::clone(clock), shutdown);
        self.part("the controllers", async move {
            controllers.join().await;
            Ok(())
        });
    }

    fn start_scheduler(&mut self, client: kube::Client, explanations: Explanations, clock: &Arc<dyn Clock>) {
        let config = SchedulerConfig { explanations, ..SchedulerConfig::default() };
        let (informers, shutdown, clock) =
            (Arc::clone(&self.informers), self.parts_shutdown.clone(), Arc::clone(clock));
        self.part(
            "the scheduler",
            async move { Ok(Scheduler::run(client, informers, config, clock, shutdown).await?) },
        );
    }

    /// Opens the runtime, which takes up the Pods that an earlier server left running, and starts the node on it.
    async fn start_node(
        &mut self,
        client: kube::Client,
        pki: &Pki,
        shown: &tls::Shown,
        images: ImageStore,
        clock: &Arc<dyn Clock>,
    ) -> Result<Arc<Runtime>> {
        let settings = &self.settings;
        let network = NetConfig {
            instance: settings.instance.clone(),
            state_dir: settings.run_dir.join("net"),
            pod_cidrs: Vec::new(),
            cluster_cidrs: settings.cluster_cidrs.clone(),
            clock: Arc::clone(clock),
        };
        let network = PodNetwork::open(network).await.context("open the Pod network")?;
        let runtime = Runtime::open(RuntimeConfig {
            data_dir: settings.data_dir.clone(),
            run_dir: settings.run_dir.clone(),
            cgroup_root: settings.cgroup_root.clone().into(),
            instance: settings.instance.clone(),
            die_with_parent: settings.die_with_parent,
            images: Arc::new(images),
            network: Arc::new(network),
            clock: Arc::clone(clock),
        });
        let runtime = runtime.await.context("open the runtime")?;
        let address = SocketAddr::new(settings.listen.ip(), settings.kubelet_port);
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("listen on {address} (--kubelet-port)"))?;
        let kubelet_port = listener.local_addr().context("the port of the kubelet API")?.port();
        let access = Access { users: vec![KUBELET_CLIENT.to_owned()], groups: vec!["system:masters".to_owned()] };
        let parts = NodeParts {
            client,
            informers: Arc::clone(&self.informers),
            cri: runtime.clone(),
            clock: Arc::clone(clock),
            api: Some(KubeletApi { listener, tls: tls::kubelet_server(pki, shown)?, access }),
            shutdown: self.parts_shutdown.clone(),
        };
        let node = Node::new(node_config(settings, kubelet_port), parts).context("make the node")?;
        self.nodes_ready.node = node.ready();
        self.part("the node", async move {
            node.run().await;
            Ok(())
        });
        Ok(runtime)
    }

    async fn start_dns(&mut self) -> Result<()> {
        let settings = &self.settings;
        let config = DnsConfig {
            domain: settings.cluster_domain.clone(),
            cluster_dns: settings.cluster_dns.clone(),
            listen: settings.node_ips.clone(),
            node_name: settings.node_name.clone(),
            cluster_cidrs: settings.cluster_cidrs.clone(),
            service_cidrs: settings.service_cidrs.clone(),
            resolv_conf: RESOLV_CONF.into(),
        };
        let parts = DnsParts {
            client: self.client.clone(),
            informers: Arc::clone(&self.informers),
            shutdown: self.parts_shutdown.clone(),
        };
        let dns = Dns::bind(config).await.context("the cluster's DNS server (--node-ip, --disable dns)")?;
        self.part("the DNS server", async move {
            dns.run(parts).await;
            Ok(())
        });
        Ok(())
    }

    fn start_proxy(&mut self, client: kube::Client, clock: &Arc<dyn Clock>) {
        let config = ProxyConfig {
            table: service_table(&self.settings),
            node_name: self.settings.node_name.clone(),
            node_addresses: self.settings.node_ips.clone(),
        };
        let parts = ProxyParts {
            client,
            informers: Arc::clone(&self.informers),
            clock: Arc::clone(clock),
            shutdown: self.parts_shutdown.clone(),
        };
        self.part("the proxy", async move {
            carob_proxy::run(config, parts).await;
            Ok(())
        });
        let config = PolicyConfig { table: policy_table(&self.settings), node_name: self.settings.node_name.clone() };
        let parts = PolicyParts { informers: Arc::clone(&self.informers), shutdown: self.parts_shutdown.clone() };
        self.part("the network policies", async move {
            carob_proxy::policy::run(config, parts).await;
            Ok(())
        });
    }

    fn part(&mut self, name: &'static str, work: impl Future<Output = Result<()>> + Send + 'static) {
        self.parts.spawn(async move { (name, work.await) });
    }

    /// Waits until a part ends, which none should before it is told to, and says which.
    ///
    /// Cancel safe.
    pub(crate) async fn failure(&mut self) -> anyhow::Error {
        match self.parts.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow!("{name} ended"),
            Some(Ok((name, Err(error)))) => error.context(format!("{name} failed")),
            Some(Err(error)) => anyhow::Error::new(error).context("a part of the server panicked"),
            None => anyhow!("the server has no parts"),
        }
    }

    /// Ends the parts, then the API, then the store, each also where one before it failed. Pods run on; without any,
    /// nothing is left on the machine but files.
    ///
    /// The error is the first.
    pub(crate) async fn stop(self) -> Result<()> {
        let Self { settings, mut parts, parts_shutdown, api_shutdown, informers, client, store, runtime, .. } = self;
        parts_shutdown.cancel();
        let others = until_left(&mut parts, 1).await;
        // Whoever watches the API while it ends takes its end for a failure.
        informers.end();
        drop(client);
        api_shutdown.cancel();
        let api = until_left(&mut parts, 0).await;
        let store = store.close().await.context("close the store");
        let left = match runtime {
            Some(runtime) => leave(&runtime, &settings).await.context("leave the machine as it was"),
            None => Ok(()),
        };
        others.and(api).and(store).and(left)
    }
}

/// Where no Pod runs on, takes back what Pods need of the machine.
async fn leave(runtime: &Runtime, settings: &Settings) -> Result<()> {
    let has_left = runtime.leave().await?;
    if has_left && settings.proxy {
        carob_proxy::remove(&service_table(settings).table).await?;
        carob_proxy::remove(&policy_table(settings)).await?;
    }
    Ok(())
}

fn policy_table(settings: &Settings) -> String {
    format!("carob-policies-{}", settings.instance)
}

fn service_table(settings: &Settings) -> TableConfig {
    let [of_any_instance, of_this_instance] = carob_net::pod_interfaces(&settings.instance);
    TableConfig {
        table: format!("carob-services-{}", settings.instance),
        cluster_cidrs: settings.cluster_cidrs.clone(),
        service_cidrs: settings.service_cidrs.clone(),
        pod_interfaces: Some(PodInterfaces { of_any_instance, of_this_instance }),
    }
}

/// Waits until so many parts are left, and returns the first error of those that ended.
async fn until_left(parts: &mut JoinSet<(&'static str, Result<()>)>, left: usize) -> Result<()> {
    let mut outcome = Ok(());
    while parts.len() > left {
        let Some(ended) = parts.join_next().await else { break };
        let ended = ended.context("a part of the server panicked").and_then(|(name, ended)| ended.context(name));
        outcome = outcome.and(ended);
    }
    outcome
}

fn node_config(settings: &Settings, kubelet_port: u16) -> NodeConfig {
    NodeConfig {
        identity: NodeIdentity {
            name: settings.node_name.clone(),
            addresses: settings.node_ips.clone(),
            kubelet_port,
            kubelet_version: crate::VERSION.to_owned(),
            pods_max: settings.max_pods as usize,
            ..NodeIdentity::default()
        },
        data_dir: settings.data_dir.clone(),
        cgroup_root: settings.cgroup_root.clone(),
        log_dir: settings.log_dir(),
        log_link_dir: settings.log_link_dir(),
        dns: ClusterDns { servers: settings.cluster_dns.clone(), domain: settings.cluster_domain.clone() },
        seccomp_default: false,
        resolv_conf: RESOLV_CONF.into(),
        hosts: "/etc/hosts".into(),
    }
}

/// Makes the directories and locks the run directory.
fn prepare_directories(settings: &Settings) -> Result<std::fs::File> {
    for dir in [&settings.data_dir, &settings.run_dir] {
        fs_err::create_dir_all(dir)?;
        fs_err::set_permissions(dir, PermissionsExt::from_mode(0o711))?;
    }
    let path = settings.run_dir.join("lock");
    let file = fs_err::OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another carob runs with {}", settings.run_dir.display()))?;
    Ok(file.into_parts().0)
}

async fn open_store(settings: &Settings, clock: &Arc<dyn Clock>) -> Result<Store> {
    let options = Options::new(Arc::clone(clock));
    if settings.in_memory {
        return Ok(Store::in_memory(options));
    }
    let dir = settings.data_dir.join("store");
    Store::embedded(&dir, options).await.with_context(|| format!("open the store {}", dir.display()))
}

fn service_account_keys(pki: &Pki) -> Result<Arc<ServiceAccountKeys>> {
    let key = pki.service_account_key()?;
    let keys = ServiceAccountKeys::from_pkcs8(key.secret_der(), &[]).context("the ServiceAccount signing key")?;
    Ok(Arc::new(keys))
}

/// Signs the tokens that controllers put into Secrets.
struct SecretTokens(Arc<ServiceAccountKeys>);

impl TokenSigner for SecretTokens {
    fn sign(&self, claims: &serde_json::Value) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.sign(claims)?)
    }
}

fn make_api(
    settings: &Settings,
    pki: &Pki,
    shown: &tls::Shown,
    store: Store,
    clock: Arc<dyn Clock>,
    schedulers: Schedulers,
    keys: Arc<ServiceAccountKeys>,
) -> Result<ApiServer> {
    let mut config = Config::new(store, clock, keys);
    config.explainer = Some(Arc::new(schedulers));
    config.issuer = format!("https://kubernetes.default.svc.{}", settings.cluster_domain);
    config.audiences = vec![config.issuer.clone()];
    config.service_cidrs.clone_from(&settings.service_cidrs);
    config.dialer = virtual_nodes::dialer(settings, DirectDialer::new(tls::kubelet_client(pki, shown)?));
    config.advertise_address = settings.node_ips.first().map(|ip| (*ip, settings.listen.port()).into());
    ApiServer::new(config).context("make the API server")
}
