//! A cluster whose processes begin and end as a history says: the API keeps what it has, the controllers and the two nodes know
//! nothing of what they were before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use carob_apiserver::authn::ServiceAccountKeys;
use carob_apiserver::{ApiServer, UserInfo};
use carob_client::{Informers, in_process};
use carob_controllers::{Controllers, NodeGrace};
use carob_kit::Clock;
use carob_local_storage::{LocalStorage, Parts};
use carob_node::csi::paths::KubeletDirs;
use carob_node::csi::{Csi, CsiParts};
use carob_node::events::{Events, Subject};
use carob_node::files::Files;
use carob_node::objects::{ApiObjects, Objects};
use carob_node::paths::PodDirs;
use carob_node::volumes::{Volumes, VolumesParts};
use carob_store::{Options, Store};
use fs_err as fs;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::gate::{Fate, Gate, USER};
use crate::machine::{Machine, Process};

pub(crate) const NODES: [&str; 2] = ["n1", "n2"];
/// The node that writes in its own name, as one that has joined does.
const AGENT: &str = NODES[1];
pub(crate) const CONTROLLERS: &str = "controllers";
/// The label by which users say where a volume is.
pub(crate) const HOSTNAME: &str = "kubernetes.io/hostname";
/// Far longer than any history lasts: no Node is given up for its silence.
const GRACE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often the start of the cluster is looked at, each time after a moment.
const LOOKS_MAX: usize = 1000;
const MOMENT: Duration = Duration::from_millis(1);

/// The time of the runtime, which passes when nothing else is left to do.
#[derive(Debug)]
struct RuntimeClock(tokio::time::Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> Timestamp {
        let since = i64::try_from(self.0.elapsed().as_nanos()).unwrap_or(i64::MAX);
        // 2026-01-01.
        Timestamp::from_nanosecond(1_767_225_600_000_000_000 + i128::from(since)).expect("a history ends this year")
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

/// What the node's part has to say, nobody listens to.
struct Unheard;

impl Events for Unheard {
    fn normal(&self, _: &Subject, _: &str, _: String) {}

    fn warning(&self, _: &Subject, _: &str, _: String) {}
}

/// What users have on each node to make volumes of.
pub(crate) const PLACES: [&str; 4] = ["directory", "file", "disk", "raw-disk"];
const PLACE_BYTES: u64 = 64 << 10;

/// A node: its disk, its kernel's tables, and its process while it runs.
pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) machine: Machine,
    pub(crate) volumes_dir: PathBuf,
    pub(crate) dirs: PodDirs,
    pub(crate) root: PathBuf,
    pub(crate) running: Option<Running>,
}

/// The process of a node.
pub(crate) struct Running {
    pub(crate) process: Arc<Process>,
    pub(crate) volumes: Volumes,
    storage: LocalStorage,
    _informers: Arc<Informers>,
    _end: DropGuard,
}

struct Controlling {
    _controllers: Controllers,
    _informers: Arc<Informers>,
    _end: DropGuard,
}

pub(crate) struct Cluster {
    api: ApiServer,
    /// The user's way, which no gate is in.
    pub(crate) client: Client,
    pub(crate) gate: Gate,
    clock: Arc<dyn Clock>,
    controlling: Option<Controlling>,
    pub(crate) hosts: Vec<Host>,
}

pub(crate) fn from<K: DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).expect("the test's object decodes")
}

/// Waits until nothing goes on but what waits at the gate or for a time.
pub(crate) async fn settle() {
    tokio::time::sleep(MOMENT).await;
}

fn config_of_controllers() -> carob_controllers::Config {
    carob_controllers::Config {
        api_port: 6443,
        kubelet_port: None,
        load_balancers: false,
        cluster_cidrs: Vec::new(),
        root_ca_pem: "not really a certificate".to_owned(),
        token_signer: None,
        certificate_signer: None,
        server_url: "https://192.0.2.1:6443".to_owned(),
        snapshots: true,
        node_grace: NodeGrace { monitor: GRACE, startup: GRACE },
    }
}

impl Cluster {
    /// `root` is an empty directory for the nodes.
    pub(crate) async fn start(root: &Path) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(RuntimeClock(tokio::time::Instant::now()));
        let store = Store::in_memory(Options::new(Arc::clone(&clock)));
        let key = ServiceAccountKeys::generate_pkcs8().expect("a key can be made");
        let keys = Arc::new(ServiceAccountKeys::from_pkcs8(&key, &[]).expect("the key is one"));
        let mut config = carob_apiserver::Config::new(store, Arc::clone(&clock), keys);
        config.system.addresses = vec!["192.0.2.1:6443".parse().expect("an address")];
        config.system.local_storage = true;
        let api = ApiServer::new(config).expect("the API server starts");
        api.bootstrap().await.expect("the system's objects can be made");
        let gate = Gate::default();
        let client = in_process(gate.of(USER, api.in_process(UserInfo::master(USER))));
        gate.open();
        let hosts = NODES.map(|name| Host::new(name, root)).into();
        let mut cluster = Self { api, client, gate, clock, controlling: None, hosts };
        cluster.furnish().await;
        cluster
    }

    async fn furnish(&mut self) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        for name in NODES {
            nodes
                .create(&PostParams::default(), &from(json!({"metadata": {"name": name, "labels": {HOSTNAME: name}}})))
                .await
                .expect("a node");
            let ready = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}]);
            let patch = Patch::Strategic(json!({"status": {"conditions": ready}}));
            nodes.patch_status(name, &PatchParams::default(), &patch).await.expect("it is ready");
        }
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        for (name, by, mode, policy) in [
            ("kept", "carob.io/local", "WaitForFirstConsumer", "Retain"),
            ("now", "carob.io/local", "Immediate", "Delete"),
            ("now-kept", "carob.io/local", "Immediate", "Retain"),
            ("hand", "kubernetes.io/no-provisioner", "WaitForFirstConsumer", "Delete"),
        ] {
            let class = json!({"metadata": {"name": name}, "provisioner": by, "volumeBindingMode": mode,
                "reclaimPolicy": policy, "allowVolumeExpansion": true});
            classes.create(&PostParams::default(), &from(class)).await.expect("a class");
        }
        for at in 0..self.hosts.len() {
            self.begin_host(at, None).await;
        }
        self.begin_controllers();
        for running in self.hosts.iter().filter_map(|host| host.running.as_ref()) {
            running.storage.begun().await;
        }
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), "default");
        for _ in 0..LOOKS_MAX {
            settle().await;
            if accounts.get_opt("default").await.expect("it answers").is_some() {
                self.gate.close();
                return;
            }
        }
        panic!("the namespace has no account");
    }

    fn client_of(&self, who: &'static str, user: &str) -> Client {
        in_process(self.gate.of(who, self.api.in_process(UserInfo::component(user))))
    }

    pub(crate) fn begin_controllers(&mut self) {
        if self.controlling.is_some() {
            return;
        }
        let client = self.client_of(CONTROLLERS, "system:kube-controller-manager");
        let (informers, shutdown) = (Informers::new(client.clone()), CancellationToken::new());
        let controllers = Controllers::start(
            client,
            Arc::clone(&informers),
            config_of_controllers(),
            Arc::clone(&self.clock),
            shutdown.clone(),
        );
        let end = shutdown.drop_guard();
        self.controlling = Some(Controlling { _controllers: controllers, _informers: informers, _end: end });
    }

    /// Begins a node, which ends again after so many steps on its disk. Answers whether it runs.
    pub(crate) async fn begin_host(&mut self, at: usize, end_after: Option<u64>) -> bool {
        if self.hosts[at].running.is_some() {
            return true;
        }
        let name = self.hosts[at].name;
        let client = if name == AGENT {
            in_process(self.gate.of(name, self.api.in_process(UserInfo::node(name))))
        } else {
            self.client_of(name, "system:local-storage")
        };
        // As in the program, what all parts read is read by one that may read all.
        let reader = in_process(self.gate.of(self.hosts[at].name, self.api.in_process(UserInfo::master("reader"))));
        self.hosts[at].begin(client, reader, Arc::clone(&self.clock), end_after).await;
        self.hosts[at].running.is_some()
    }

    /// Ends the controllers. One of their writes that wait may be done still.
    pub(crate) async fn end_controllers(&mut self, last: Option<u64>) -> Option<String> {
        let done = last.and_then(|number| self.gate.pass(Some(CONTROLLERS), number, Fate::Unanswered));
        settle().await;
        self.controlling = None;
        settle().await;
        done
    }

    pub(crate) async fn end_host(&mut self, at: usize, last: Option<u64>) -> Option<String> {
        let name = self.hosts[at].name;
        let done = last.and_then(|number| self.gate.pass(Some(name), number, Fate::Unanswered));
        settle().await;
        if let Some(running) = self.hosts[at].running.take() {
            running.process.end_after(0);
        }
        settle().await;
        done
    }
}

impl Host {
    fn new(name: &'static str, root: &Path) -> Self {
        let root = root.join(name);
        let devices = root.join("dev");
        fs::create_dir_all(&devices).expect("made");
        let (machine, places) = (Machine::new(devices), root.join("places"));
        fs::create_dir_all(places.join(PLACES[0])).expect("made");
        for place in &PLACES[1..] {
            let file = fs::File::create(places.join(place)).expect("made");
            file.set_len(PLACE_BYTES).expect("it has room");
            if place.ends_with("disk") {
                machine.add_disk(places.join(place));
            }
        }
        Self {
            name,
            machine,
            volumes_dir: root.join("volumes"),
            dirs: PodDirs::new(root.join("pods"), root.join("logs"), None),
            root,
            running: None,
        }
    }

    /// The uids of the Pods that have something here.
    pub(crate) fn pods_on_disk(&self) -> Vec<String> {
        let dir = self.dirs.pods();
        if !dir.exists() {
            return Vec::new();
        }
        let entries = fs::read_dir(dir).expect("listed");
        entries.map(|entry| entry.expect("listed").file_name().to_string_lossy().into_owned()).collect()
    }

    async fn begin(&mut self, client: Client, reader: Client, clock: Arc<dyn Clock>, end_after: Option<u64>) {
        let (process, shutdown) = (self.machine.process(), CancellationToken::new());
        if let Some(steps) = end_after {
            process.end_after(steps);
        }
        let informers = Informers::new(reader.clone());
        let (dir, node_name) = (self.volumes_dir.clone(), self.name.to_owned());
        let config = carob_local_storage::Config { dir, node_name, as_node: self.name == AGENT };
        let parts =
            Parts { client, informers: Arc::clone(&informers), clock: Arc::clone(&clock), shutdown: shutdown.clone() };
        let storage = match LocalStorage::start_on(config, parts, process.clone()).await {
            Ok(storage) => storage,
            Err(_) if process.has_ended() => return,
            Err(error) => panic!("the volumes open after any crash: {}", carob_kit::chain(&error)),
        };
        let objects: Arc<dyn Objects> = Arc::new(ApiObjects::new(reader, &informers));
        let files = Files::default();
        let csi = Csi::new(CsiParts {
            dirs: KubeletDirs::new(self.root.join("kubelet")),
            files: files.clone(),
            objects: Arc::clone(&objects),
            clock: Arc::clone(&clock),
            node_name: self.name.to_owned(),
        });
        let volumes = Volumes::new(VolumesParts {
            files,
            dirs: self.dirs.clone(),
            objects,
            events: Arc::new(Unheard),
            clock,
            csi,
            node_name: self.name.to_owned(),
        });
        let volumes = volumes.on(process.clone());
        let end = shutdown.drop_guard();
        self.running = Some(Running { process, volumes, storage, _informers: informers, _end: end });
    }
}
