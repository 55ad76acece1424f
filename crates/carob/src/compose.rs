//! The composition root: makes what the parts of a server have in common, lists the parts, and ends them in order.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use carob_apiserver::authn::{Issuance, ServiceAccountKeys};
use carob_apiserver::{ApiServer, Config, Joining, NetworkDialer, Tls, UserInfo};
use carob_client::Informers;
use carob_kit::{Clock, Health, Part, Supervisor};
use carob_scheduler::Explanations;
use carob_store::{Options, Store, Values};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::api_files::own_issuer;
use crate::authority::{self, Agreed};
use crate::config::Settings;
use crate::explainer::Schedulers;
use crate::parts::{self, Clients, Common, Control, Machine};
use crate::pki::{FRONT_PROXY_CLIENT, Names, Pki};
use crate::signer::ClusterSigner;
use crate::state::State;
use crate::{addresses, identity, kubeconfig, tls, virtual_nodes};

/// A server whose parts run.
pub(crate) struct Server {
    pub(crate) settings: Arc<Settings>,
    pub(crate) client: kube::Client,
    pub(crate) informers: Arc<Informers>,
    /// How the parts are.
    pub(crate) health: Arc<Health>,
    supervisor: Supervisor,
    machine: Arc<Machine>,
    store: Store,
    /// Held as long as the server runs: one server a run directory.
    _lock: std::fs::File,
}

impl Server {
    /// Makes and starts all parts. They are not ready yet when this returns: see [`crate::ready`]. An error is of what no part
    /// could do without: the directories, the certificates, the store, the API's port.
    pub(crate) async fn start(mut settings: Settings, clock: Arc<dyn Clock>) -> Result<Self> {
        let lock = prepare_directories(&settings.data_dir, &settings.run_dir)?;
        let state = State::check(&settings)?;
        let agreed = match settings.datastore.clone() {
            Some(etcd) => authority::agree(&etcd, &mut settings, clock.now()).await?,
            None => {
                settings.cluster_cidrs = addresses::of_server(&settings).await?;
                Agreed::Yes
            }
        };
        warn_of_few_addresses(&settings);
        let names = Names::of(&settings)?;
        let pki =
            Pki::open(&settings.data_dir.join("pki"), &names, clock.now()).context("the cluster's certificates")?;
        let signer = ClusterSigner::open(&settings.data_dir.join("pki"), clock.now())?;
        let listener = TcpListener::bind(settings.listen)
            .await
            .with_context(|| format!("listen on {} (--bind-address, --https-listen-port)", settings.listen))?;
        // Port 0 is any that is free.
        settings.listen = listener.local_addr().context("the port that the API listens on")?;
        let shown = tls::Shown::new(&pki)?;
        let store = open_store(&settings, &clock).await?;
        ensure_same_cluster(&store, &pki, &settings)?;
        if let (Agreed::ToPublish, Some(etcd)) = (agreed, settings.datastore.clone()) {
            authority::publish(&etcd, &mut settings).await?;
        }
        state.complete()?;
        let explanations = Explanations::default();
        let keys = service_account_keys(&pki)?;
        let health = Health::new();
        let mut config = Config::new(store.clone(), Arc::clone(&clock), Arc::clone(&keys));
        config.explainer = Some(Arc::new(Schedulers::new(explanations.clone(), &settings.run_dir)));
        config.health = Arc::clone(&health);
        let api = make_api(config, &settings, &pki, &shown)?;
        let client = carob_client::in_process(api.in_process(UserInfo::master("system:carob")));
        kubeconfig::write(&settings, &pki)?;
        kubeconfig::write_schedulers(&settings, &pki)?;
        // What the other parts are allowed to do is among what this makes. Where it fails, its part tries again.
        if let Err(error) = api.bootstrap().await {
            tracing::error!(error = %carob_kit::chain(&error), "the API server could not make its own objects yet");
        }
        let tls = Tls::new(shown.api.clone(), tls::roots(&pki)?)?;
        let common = Common {
            clients: Clients::InProcess(api.clone()),
            kubelet_tls: tls::kubelet_server(tls::roots(&pki)?, Arc::clone(&shown.kubelet))?,
            machine_id: identity::of_machine(&settings)?,
            settings: Arc::new(settings),
            // One set of informers for all parts: each kind is watched, decoded and held once. Parts write under their own names.
            informers: Informers::new(client.clone()),
            clock,
            health: Arc::clone(&health),
            machine: Arc::default(),
            store: Some(store.clone()),
        };
        let control = Control { common, api, pki: Arc::new(pki), shown: Arc::new(shown), signer: Arc::new(signer) };
        let mut list = vec![
            parts::api(&control, listener, tls),
            parts::system_objects(&control),
            parts::informers(&control.common),
        ];
        list.extend(chosen(&control, keys, explanations, &client));
        let supervisor = Supervisor::start(list, &health)?;
        let Common { settings, informers, machine, .. } = control.common;
        Ok(Self { settings, client, informers, health, supervisor, machine, store, _lock: lock })
    }

    /// How many Pods have something on this machine; `None` where no node has begun.
    pub(crate) fn pods_left(&self) -> Option<watch::Receiver<usize>> {
        self.machine.pods_left()
    }

    /// Waits until a part fails, and says which. It is started again; this is for who cannot do without any of them.
    ///
    /// Cancel safe.
    pub(crate) async fn failure(&self) -> anyhow::Error {
        let (part, why) = self.health.failure().await;
        anyhow!("{part} {why}")
    }

    /// Ends the parts, the API as the last of them, then the store, each also where one before it failed. Pods run on; without
    /// any, nothing is left on the machine but files.
    ///
    /// The error is the first.
    pub(crate) async fn stop(self) -> Result<()> {
        let Self { settings, supervisor, client, store, machine, .. } = self;
        drop(client);
        let parts = supervisor.stop().await.map_err(anyhow::Error::from_boxed);
        let store = store.close().await.context("close the store");
        let left = match machine.take_runtime() {
            Some(runtime) => parts::leave(&runtime, &settings).await.context("leave the machine as it was"),
            None => Ok(()),
        };
        parts.and(store).and(left)
    }
}

/// The parts that the settings ask for, each after those it needs.
fn chosen(
    control: &Control,
    keys: Arc<ServiceAccountKeys>,
    explanations: Explanations,
    system_client: &kube::Client,
) -> Vec<Part> {
    let common = &control.common;
    let settings = &common.settings;
    let mut list = Vec::new();
    if settings.controllers {
        list.push(parts::controllers(control, keys));
    }
    if settings.scheduler {
        list.push(parts::scheduler(common, explanations));
    }
    list.extend(parts::virtual_nodes(control));
    list.extend(of_machine(common, system_client));
    if settings.ingress {
        list.push(parts::ingress(common, system_client.clone()));
    }
    list.push(parts::certificates(control));
    list
}

/// The parts of a machine that runs Pods, be it a server's or an agent's.
pub(crate) fn of_machine(common: &Common, dns_client: &kube::Client) -> Vec<Part> {
    let settings = &common.settings;
    let mut list = vec![parts::images(common)];
    if settings.node {
        list.push(parts::node(common));
        list.extend(parts::cri_socket(common));
    }
    if settings.local_storage {
        list.push(parts::local_storage(common));
    }
    if settings.dns {
        list.push(parts::dns(common, dns_client.clone()));
    }
    if settings.proxy {
        list.extend([parts::proxy(common), parts::policies(common)]);
        // Plug-ins have ways of their own between nodes.
        if settings.cni_conf_dir.is_none() {
            list.push(parts::node_routes(common));
        }
    }
    // Another runtime keeps its images itself.
    if settings.node && settings.runtime_endpoint.is_none() {
        list.push(parts::image_collection(common));
    }
    list.extend([parts::admin(common), parts::memory()]);
    list
}

/// Pods beyond the addresses of this node's part of the cluster's range wait for one for ever, unless they use the host's network.
fn warn_of_few_addresses(settings: &Settings) {
    /// Size of a Node's range, as the node controller gives it (--node-cidr-mask-size-ipv4).
    const NODE_PREFIX_V4: u8 = 24;
    /// Addresses of a range that no Pod has: the network's, the gateway's and the broadcast address.
    const NOT_FOR_PODS: u32 = 3;
    for cidr in settings.cluster_cidrs.iter().filter(|cidr| cidr.addr().is_ipv4()) {
        let prefix = cidr.prefix_len().max(NODE_PREFIX_V4);
        let addresses = 1u32.checked_shl(u32::from(32 - prefix)).unwrap_or(u32::MAX).saturating_sub(NOT_FOR_PODS);
        if settings.node && settings.max_pods > addresses {
            tracing::warn!(
                "--max-pods {} is more than the {addresses} addresses that a /{prefix} of {cidr} has for Pods: more Pods than that \
                 can run only in the host's network",
                settings.max_pods
            );
        }
    }
}

/// Makes the directories and locks the run directory.
pub(crate) fn prepare_directories(data_dir: &Path, run_dir: &Path) -> Result<std::fs::File> {
    for dir in [data_dir, run_dir] {
        fs_err::create_dir_all(dir)?;
        fs_err::set_permissions(dir, PermissionsExt::from_mode(0o711))?;
    }
    lock(run_dir)
}

/// Makes sure that nothing else runs with the run directory.
pub(crate) fn lock(run_dir: &Path) -> Result<std::fs::File> {
    fs_err::create_dir_all(run_dir)?;
    let path = run_dir.join("lock");
    let file = fs_err::OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another carob runs with {}", run_dir.display()))?;
    Ok(file.into_parts().0)
}

/// Refuses a store whose objects are of a cluster with another authority: neither would trust what the other has signed.
fn ensure_same_cluster(store: &Store, pki: &Pki, settings: &Settings) -> Result<()> {
    if !store.is_shared() {
        return Ok(());
    }
    let Some(entry) = store.get(authority::TRUSTED) else { return Ok(()) };
    let object: serde_json::Value =
        serde_json::from_slice(&entry.value).with_context(|| format!("read {}", authority::TRUSTED))?;
    let trusted = object["data"]["client-ca-file"].as_str().unwrap_or_default();
    ensure!(trusted.contains(pki.ca_pem.trim()), "{}", authority::other_cluster(settings));
    Ok(())
}

async fn open_store(settings: &Settings, clock: &Arc<dyn Clock>) -> Result<Store> {
    let encryption = settings.api_files.encryption.clone();
    let values = encryption.map(|encryption| encryption as Arc<dyn Values>);
    let store = open_store_with(settings, Options { values, ..Options::new(Arc::clone(clock)) }).await?;
    // What stays as it was can be read all the same.
    match store.reseal().await {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "what was kept otherwise is kept as --encryption-provider-config says now"),
        Err(error) => {
            tracing::warn!(error = %carob_kit::chain(&error), "not everything is kept as --encryption-provider-config says")
        }
    }
    Ok(store)
}

async fn open_store_with(settings: &Settings, options: Options) -> Result<Store> {
    if let Some(etcd) = &settings.datastore {
        return Store::etcd(etcd.clone(), options).await.context("open the store in etcd (--datastore-endpoint)");
    }
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

fn make_api(mut config: Config, settings: &Settings, pki: &Pki, shown: &tls::Shown) -> Result<ApiServer> {
    config.issuance =
        settings.api_files.issuance.clone().unwrap_or_else(|| Issuance::of(&own_issuer(&settings.cluster_domain)));
    config.service_cidrs.clone_from(&settings.service_cidrs);
    let network = NetworkDialer::new(tls::kubelet_client(pki, shown)?, Arc::clone(&config.tunnels));
    config.dialer = virtual_nodes::dialer(settings, network);
    config.system.addresses = settings.node_ips.iter().map(|ip| (*ip, settings.listen.port()).into()).collect();
    config.system.hostname.clone_from(&settings.node_name);
    config.system.dns_addresses = if settings.dns { settings.cluster_dns.clone() } else { Vec::new() };
    config.system.local_storage = settings.local_storage;
    config.system.client_ca_pem.clone_from(&pki.ca_pem);
    config.pod_security = settings.api_files.pod_security.clone();
    config.audit.clone_from(&settings.api_files.audit);
    config.authentication = settings.api_files.authentication.clone();
    config.proxy_client = Some(shown.front_proxy_client.clone());
    config.system.proxy_ca_pem.clone_from(&pki.front_proxy_ca_pem);
    FRONT_PROXY_CLIENT.clone_into(&mut config.system.proxy_client_name);
    config.system.joining = Some(Joining {
        cluster_domain: settings.cluster_domain.clone(),
        cluster_dns: settings.cluster_dns.clone(),
        cluster_cidrs: settings.cluster_cidrs.clone(),
    });
    ApiServer::new(config).context("make the API server")
}
