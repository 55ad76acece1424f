//! The node as a whole: what it is made of and how it runs.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use carob_client::{EventRecorder, EventSource, Informers, Selection};
use carob_cri::Cri;
use carob_kit::Clock;
use carob_kit::fs::{keep_apart, make_private};
use fs_err as fs;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission::Room;
use crate::api::ApiPods;
use crate::config::network::ClusterDns;
use crate::config::resources::{Machine, ResourceError, amounts, huge_pages};
use crate::csi::paths::KubeletDirs;
use crate::csi::plugins::Plugins;
use crate::csi::{Csi, CsiParts};
use crate::devices::{Devices, NoteError};
use crate::events::Events;
use crate::eviction::{Evictor, Pressures};
use crate::figures::NodeFigures;
use crate::files::Files;
use crate::fleet::{Fleet, Sources};
use crate::image::Images;
use crate::logs::rotate::Rotation;
use crate::machine::facts::{self, HugePages, MachineFacts};
use crate::machine::object::{NodeIdentity, allocatable};
use crate::machine::register::Registrar;
use crate::manifests::directory::Directory;
use crate::manifests::url::Fetcher;
use crate::manifests::{Collector, ManifestConfig, Manifests};
use crate::objects::{ApiObjects, Objects};
use crate::paths::PodDirs;
use crate::probe::counts::ProbeCounts;
use crate::server::{Access, ApiReviews, KubeletServer, PodSource};
use crate::shutdown::ShutdownWatch;
use crate::shutdown::periods::Periods;
use crate::user_ranges::UserRanges;
use crate::volumes::{Volumes, VolumesParts};
use crate::worker::{NetworkRules, Settings, Tools};

/// Mode of the directories that have the Pods' files and logs (kubelet `setupDataDirs`).
const PODS_MODE: u32 = 0o750;

/// All that an operator decides about a node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub identity: NodeIdentity,
    /// The runtime's name, as it gives it (`Version`).
    pub runtime: String,
    /// Pods' directories are made in `<data_dir>/pods`.
    pub data_dir: PathBuf,
    /// Where upstream has `/var/lib/kubelet`: plug-ins register here, and their volumes are below it.
    pub kubelet_dir: PathBuf,
    /// Where upstream has `/var/log/pods`.
    pub log_dir: PathBuf,
    /// Where upstream has `/var/log/containers`; `None` for no links.
    pub log_link_dir: Option<PathBuf>,
    pub dns: ClusterDns,
    /// Containers that name no seccomp profile get the runtime's, not none.
    pub seccomp_default: bool,
    /// The group below which Pods have theirs: `/` for `/kubepods`.
    pub cgroup_root: String,
    /// The machine's files that Pods inherit from: `/etc/resolv.conf` and `/etc/hosts` as a rule.
    pub resolv_conf: PathBuf,
    pub hosts: PathBuf,
    /// Where it is said which Pods run here without the API.
    pub manifests: ManifestConfig,
    /// How long Pods get to end before the machine shuts down.
    pub shutdown: Periods,
}

/// The node's own API, on 10250 as a rule.
pub struct KubeletApi {
    pub listener: TcpListener,
    /// Must ask clients for certificates of the cluster's CA.
    pub tls: Arc<rustls::ServerConfig>,
    pub access: Access,
}

/// What the node works with.
pub struct NodeParts {
    pub client: Client,
    pub informers: Arc<Informers>,
    pub cri: Arc<dyn Cri>,
    pub clock: Arc<dyn Clock>,
    /// `None`: logs, exec and the like cannot be had from this node.
    pub api: Option<KubeletApi>,
    /// What Pods wait for before their containers run.
    pub network_rules: Option<Arc<dyn NetworkRules>>,
    pub shutdown: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("look at the machine")]
    Machine(#[source] io::Error),
    #[error("prepare the node's directories")]
    Directories(#[source] io::Error),
    #[error("recall who has which devices")]
    Devices(#[from] NoteError),
    #[error("compute what the node can give")]
    Allocatable(#[from] ResourceError),
}

/// A node, ready to run.
pub struct Node {
    fleet: Arc<Fleet>,
    objects: Arc<ApiObjects>,
    registrar: Registrar,
    plugins: Plugins,
    devices: Devices,
    rotation: Rotation,
    server: Option<(KubeletServer, KubeletApi)>,
    directory: Option<Directory>,
    fetcher: Option<Fetcher>,
    evictor: Evictor,
    closing: Option<ShutdownWatch>,
    ready: watch::Receiver<bool>,
    ours: watch::Receiver<bool>,
    shutdown: CancellationToken,
}

impl Node {
    /// Puts the node together. Must be called within a tokio runtime.
    pub fn new(config: NodeConfig, parts: NodeParts) -> Result<Self, NodeError> {
        let NodeParts { client, informers, cri, clock, api, network_rules, shutdown } = parts;
        let pods_dir = config.data_dir.join("pods");
        make_directories(&config, &pods_dir)?;
        let machine = facts::read().map_err(NodeError::Machine)?;
        let strain = facts::strain(&config.data_dir).map_err(NodeError::Machine)?;
        let huge_pages = facts::huge_pages().map_err(NodeError::Machine)?;
        let allocatable = allocatable(&config.identity, &machine, &strain, &huge_pages);
        let room = room(&config.identity, &machine, &allocatable)?;
        let dirs = PodDirs::new(pods_dir, config.log_dir.clone(), config.log_link_dir.clone());
        let objects = Arc::new(ApiObjects::new(client.clone(), &informers));
        let source = EventSource { component: "kubelet".to_owned(), host: Some(config.identity.name.clone()) };
        let events: Arc<dyn Events> =
            Arc::new(EventRecorder::new(client.clone(), Arc::clone(&clock), source, shutdown.child_token()));
        let as_objects: Arc<dyn Objects> = objects.clone();
        let files = Files::default();
        let csi = csi(&config, &files, &as_objects, &clock)?;
        let devices = devices(&config, &files, &clock, &shutdown)?;
        let volumes = volumes(&config, (&files, &dirs), &as_objects, &events, &clock, &csi);
        let tools = Arc::new(Tools {
            volumes,
            files: files.clone(),
            images: Images::new(Arc::clone(&cri), Arc::clone(&as_objects), Arc::clone(&events), Arc::clone(&clock)),
            objects: as_objects,
            events,
            pods: Arc::new(ApiPods(client.clone())),
            clock: Arc::clone(&clock),
            cri: Arc::clone(&cri),
            user_ranges: Arc::new(UserRanges::new(dirs.clone())),
            devices: devices.clone(),
            dirs,
            settings: settings(&config, &machine, &huge_pages, allocatable),
            probe_counts: ProbeCounts::default(),
            figures: NodeFigures::default(),
            network_rules,
        });
        let fields = |fields: String| Selection { fields: Some(fields), ..Selection::default() };
        let name = &config.identity.name;
        let pods = informers.of_selected::<Pod>(fields(format!("spec.nodeName={name}")));
        let nodes = informers.of_selected::<NodeObject>(fields(format!("metadata.name={name}")));
        let (ready_sender, ready) = watch::channel(false);
        let (ours_sender, ours) = watch::channel(false);
        let (manifests, directory, fetcher) = manifests(config.manifests, &tools);
        let (pressures, short) = watch::channel(Pressures::new());
        let (closing, is_closing) = watch::channel(false);
        let fleet = Fleet::new(
            Arc::clone(&tools),
            Sources { pods, nodes: nodes.clone(), manifests, pressures: short.clone(), closing: is_closing.clone() },
            room,
            shutdown.child_token(),
        );
        let evictor = Evictor {
            fleet: Arc::clone(&fleet),
            tools: Arc::clone(&tools),
            config: config.identity.eviction.clone(),
            data_dir: config.data_dir.clone(),
            pressures,
        };
        let closing = ShutdownWatch::new(config.shutdown, &fleet, &tools, name, closing);
        let server = api.map(|api| {
            let source: Arc<dyn PodSource> = fleet.clone();
            let reviews = Box::new(ApiReviews::new(client.clone(), name.clone()));
            let server = KubeletServer::new(source, Arc::clone(&tools), name.clone(), api.access.clone(), reviews);
            (server, api)
        });
        let plugins = Plugins::new(csi.clone(), devices.clone(), files, client.clone(), nodes.clone(), ours.clone());
        let registrar = Registrar {
            client,
            cri,
            clock,
            identity: config.identity,
            machine,
            data_dir: config.data_dir,
            nodes,
            events: Arc::clone(&tools.events),
            pressures: short,
            closing: is_closing,
            csi,
            devices: devices.clone(),
            ready: ready_sender,
            ours: ours_sender,
        };
        let rotation = Rotation::new(Arc::clone(&tools));
        Ok(Self {
            fleet,
            objects,
            registrar,
            plugins,
            devices,
            rotation,
            server,
            directory,
            fetcher,
            evictor,
            closing,
            ready,
            ours,
            shutdown,
        })
    }

    /// Becomes true once the API shows the node as ready.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// How many Pods have something on this machine: also those that the API has no more, until all of them is given back.
    pub fn pods_left(&self) -> watch::Receiver<usize> {
        self.fleet.count()
    }

    /// Runs until the shutdown, or until one of its tasks ends before. Pods run on.
    ///
    /// # Panics
    /// When one of its tasks did; what concerns one Pod costs that Pod alone.
    pub async fn run(self) {
        let mut tasks = JoinSet::new();
        let shutdown = self.shutdown;
        if let Some((server, api)) = self.server {
            tasks.spawn(server.serve(api.listener, api.tls, shutdown.child_token()));
        }
        let (csi, nodes, end) = (self.plugins.csi.clone(), self.plugins.nodes.clone(), shutdown.child_token());
        tasks.spawn(async move { csi.attachments().follow(nodes, end).await });
        tasks.spawn(self.plugins.run(shutdown.child_token()));
        let pods: Arc<dyn PodSource> = self.fleet.clone();
        tasks.spawn(self.devices.clone().tell_who_has_them(pods));
        tasks.spawn(self.devices.run());
        tasks.spawn(self.registrar.run(shutdown.child_token()));
        tasks.spawn(self.rotation.run(shutdown.child_token()));
        tasks.spawn(self.evictor.run(shutdown.child_token()));
        if let Some(closing) = self.closing {
            tasks.spawn(closing.run(shutdown.child_token()));
        }
        if let Some(directory) = self.directory {
            tasks.spawn(directory.run(shutdown.child_token()));
        }
        if let Some(fetcher) = self.fetcher {
            tasks.spawn(fetcher.run(shutdown.child_token()));
        }
        // Without the Services a container would miss variables for good, and Pods of a Node that is another machine's are that
        // machine's. Static Pods wait for neither.
        let mut ours = self.ours;
        let may_begin = async {
            if ours.wait_for(|ours| *ours).await.is_err() {
                // The registrar has ended, which is seen below.
                std::future::pending::<()>().await;
            }
            self.objects.synced().await;
        };
        let pods = self.fleet.run(may_begin);
        let others = async {
            while let Some(ended) = tasks.join_next().await {
                match ended {
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    _ if shutdown.is_cancelled() => {}
                    // A node without one of them is none: whoever runs it starts it again.
                    _ => return,
                }
            }
        };
        tokio::pin!(pods, others);
        tokio::select! {
            () = &mut pods => others.await,
            () = &mut others => {
                if shutdown.is_cancelled() {
                    pods.await;
                }
            }
        }
    }
}

/// The volumes of drivers, with what is left of them from before.
fn csi(
    config: &NodeConfig,
    files: &Files,
    objects: &Arc<dyn Objects>,
    clock: &Arc<dyn Clock>,
) -> Result<Csi, NodeError> {
    let dirs = KubeletDirs::new(&config.kubelet_dir);
    make_private(&dirs.pods(), PODS_MODE).map_err(NodeError::Directories)?;
    let csi = Csi::new(CsiParts {
        dirs,
        files: files.clone(),
        objects: Arc::clone(objects),
        clock: Arc::clone(clock),
        node_name: config.identity.name.clone(),
    });
    csi.recall().map_err(NodeError::Directories)?;
    Ok(csi)
}

fn volumes(
    config: &NodeConfig,
    (files, dirs): (&Files, &PodDirs),
    objects: &Arc<dyn Objects>,
    events: &Arc<dyn Events>,
    clock: &Arc<dyn Clock>,
    csi: &Csi,
) -> Volumes {
    Volumes::new(VolumesParts {
        files: files.clone(),
        dirs: dirs.clone(),
        objects: Arc::clone(objects),
        events: Arc::clone(events),
        clock: Arc::clone(clock),
        csi: csi.clone(),
        node_name: config.identity.name.clone(),
    })
}

/// Makes the directories of Pods and their logs.
fn make_directories(config: &NodeConfig, pods_dir: &Path) -> Result<(), NodeError> {
    if let Some(dir) = &config.log_link_dir {
        fs::create_dir_all(dir).map_err(NodeError::Directories)?;
    }
    // Other users of the machine read no Pod's token, and run no file that a container left in a volume.
    for dir in [pods_dir, &config.log_dir] {
        make_private(dir, PODS_MODE).map_err(NodeError::Directories)?;
        keep_apart(dir).map_err(NodeError::Directories)?;
    }
    Ok(())
}

/// The devices of plug-ins, with what Pods have of them from before.
fn devices(
    config: &NodeConfig,
    files: &Files,
    clock: &Arc<dyn Clock>,
    shutdown: &CancellationToken,
) -> Result<Devices, NodeError> {
    let devices = Devices::new(&config.kubelet_dir, files.clone(), Arc::clone(clock), shutdown.child_token());
    devices.recall()?;
    Ok(devices)
}

type Places = (watch::Receiver<Arc<Manifests>>, Option<Directory>, Option<Fetcher>);

fn manifests(config: ManifestConfig, tools: &Tools) -> Places {
    let places = usize::from(config.path.is_some()) + usize::from(config.url.is_some());
    let node_name = tools.settings.node_name.clone();
    let collector = Arc::new(Collector::new(node_name.clone(), Arc::clone(&tools.events), places));
    let directory = config.path.map(|path| Directory {
        path,
        node_name: node_name.clone(),
        collector: Arc::clone(&collector),
        files: tools.files.clone(),
        clock: Arc::clone(&tools.clock),
    });
    let fetcher = config.url.map(|manifest| Fetcher {
        manifest,
        node_name,
        collector: Arc::clone(&collector),
        clock: Arc::clone(&tools.clock),
    });
    (collector.manifests(), directory, fetcher)
}

fn settings(
    config: &NodeConfig,
    machine: &MachineFacts,
    huge_pages: &HugePages,
    allocatable: BTreeMap<String, String>,
) -> Settings {
    let machine = Machine {
        memory_bytes: machine.memory_bytes,
        unified_cgroups: machine.unified_cgroups,
        huge_page_sizes: huge_pages.keys().copied().collect(),
    };
    Settings {
        node_name: config.identity.name.clone(),
        runtime: config.runtime.clone(),
        node_ips: config.identity.addresses.clone(),
        machine,
        allocatable,
        dns: config.dns.clone(),
        seccomp_default: config.seccomp_default,
        cgroup_root: config.cgroup_root.clone(),
        resolv_conf: config.resolv_conf.clone(),
        hosts: config.hosts.clone(),
    }
}

fn room(
    identity: &NodeIdentity,
    machine: &MachineFacts,
    allocatable: &BTreeMap<String, String>,
) -> Result<Room, ResourceError> {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    let quantities = allocatable.iter().map(|(key, text)| (key.clone(), Quantity(text.clone()))).collect();
    let given = amounts(Some(&quantities))?;
    let labels = crate::machine::object::node(identity, machine.architecture).metadata.labels.unwrap_or_default();
    Ok(Room {
        cpu_milli: given.cpu_milli.unwrap_or(0),
        memory_bytes: given.memory_bytes.unwrap_or(0),
        huge_pages: huge_pages(Some(&quantities))?,
        pods: identity.pods_max,
        labels,
        no_apparmor: Some(if machine.apparmor {
            "this node applies no profiles"
        } else {
            "AppArmor is not enabled on the host"
        }),
    })
}
