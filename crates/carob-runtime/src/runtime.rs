//! The runtime: what it holds, and how its parts find each other.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use carob_cri::v1;
use carob_kit::Clock;
use carob_shim::Exit;
use carob_sys::capability;
use carob_sys::cgroup::{Cgroup, Layout};
use tokio::sync::{broadcast, oneshot, watch};

use crate::error::RuntimeError;
use crate::handlers::Handlers;
use crate::images::Images;
use crate::network::Network;
use crate::paths::Paths;
use crate::programs::{Programs, Unpacking};
use crate::record::{self, ContainerRecord, SandboxPhase, SandboxRecord};
use crate::shim::Shim;
use crate::spec::HostFacts;

/// Container events that a reader may be behind before it has to start again with a list.
const EVENTS_MAX: usize = 1024;

/// What a [`Runtime`] is opened with.
#[derive(Clone)]
pub struct RuntimeConfig {
    /// Writable layers are kept below it.
    pub data_dir: PathBuf,
    /// On a tmpfs: sockets and records, which mean nothing after a reboot.
    pub run_dir: PathBuf,
    /// The group below which Pods are (`/` for `/kubepods`), the same that the node builds its paths from.
    pub cgroup_root: PathBuf,
    /// The instance's id, which names the group of the shims.
    pub instance: String,
    /// Pods end with this process, however it ends: `carob run`.
    pub die_with_parent: bool,
    /// Programs of other OCI runtimes by the handlers of RuntimeClasses that select them.
    pub handlers: BTreeMap<String, PathBuf>,
    pub images: Arc<dyn Images>,
    pub network: Arc<dyn Network>,
    pub clock: Arc<dyn Clock>,
}

/// Runs sandboxes and containers; implements CRI's services and streaming.
pub struct Runtime {
    pub(crate) config: RuntimeConfig,
    pub(crate) paths: Paths,
    pub(crate) host: HostFacts,
    pub(crate) layout: Layout,
    programs: Unpacking,
    pub(crate) handlers: Handlers,
    pub(crate) events: broadcast::Sender<v1::ContainerEventResponse>,
    state: Mutex<State>,
    /// For tasks that must not keep the runtime alive.
    pub(crate) me: Weak<Self>,
}

#[derive(Default)]
struct State {
    sandboxes: HashMap<String, Arc<Sandbox>>,
    containers: HashMap<String, Arc<Container>>,
}

/// A sandbox that is known by its id.
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) record: Mutex<SandboxRecord>,
    /// `None` once it has ended.
    pub(crate) shim: Mutex<Option<Shim>>,
    /// Held by what changes the sandbox as a whole.
    pub(crate) operation: tokio::sync::Mutex<()>,
    /// Ends of containers that are being created: their processes can die before they are known.
    pub(crate) early_exits: Mutex<HashMap<String, Exit>>,
    /// Commands under way, by the shim's name for them.
    pub(crate) execs: Mutex<HashMap<String, oneshot::Sender<Exit>>>,
}

/// A container that is known by its id.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) sandbox: Arc<Sandbox>,
    /// Watched by who waits for its end.
    pub(crate) record: watch::Sender<ContainerRecord>,
    /// Held by what changes the container.
    pub(crate) operation: tokio::sync::Mutex<()>,
    /// Whether it has been sent its stop signal.
    pub(crate) asked_to_stop: AtomicBool,
}

impl Runtime {
    /// Opens the runtime of these directories, and takes up the Pods that an earlier process has left running. What it
    /// left half done or behind is removed.
    pub async fn open(config: RuntimeConfig) -> Result<Arc<Self>, RuntimeError> {
        let layout = Layout::detect()?;
        let host = host_facts(&layout)?;
        let programs = Unpacking::start().map_err(RuntimeError::Programs)?;
        let handlers = Handlers::open(&config.handlers).await;
        let paths = Paths::new(&config.data_dir, &config.run_dir);
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let runtime = Arc::new_cyclic(|me| Self {
            config,
            paths,
            host,
            layout,
            programs,
            handlers,
            events,
            state: Mutex::default(),
            me: Weak::clone(me),
        });
        runtime.take_up().await?;
        Ok(runtime)
    }

    /// The programs that run beside and inside Pods.
    pub(crate) async fn programs(&self) -> Result<Arc<Programs>, RuntimeError> {
        self.programs.finish().await.map_err(RuntimeError::Programs)
    }

    /// Takes the network, the run directory's mount and the groups of Pods off the machine, unless a sandbox is left that needs them.
    /// The runtime is of no use afterwards.
    pub async fn leave(&self) -> Result<bool, RuntimeError> {
        let ended = |sandbox: &Arc<Sandbox>| matches!(sandbox.record().phase, SandboxPhase::Stopped { .. });
        if !self.sandboxes().iter().all(ended) {
            return Ok(false);
        }
        let removed = self.config.network.remove().await;
        removed.map_err(|source| RuntimeError::WholeNetwork { operation: "remove the network", source })?;
        crate::files::release_run_dir(&self.config.run_dir)?;
        // The shims have ended with their sandboxes; one that has not yet keeps the group until the next server stops.
        match self.cgroup(&self.shims_cgroup()).remove() {
            Err(error) if !error.is_busy() => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        // Another instance or a kubelet may have its Pods below the same groups.
        let pods = self.config.cgroup_root.join("kubepods");
        let groups = [pods.join("burstable"), pods.join("besteffort"), pods, self.config.cgroup_root.clone()];
        for group in groups.iter().filter(|group| group.file_name().is_some()) {
            self.cgroup(group).remove_if_empty()?;
        }
        Ok(true)
    }

    /// What this machine is, as far as containers see it.
    pub fn host(&self) -> &HostFacts {
        &self.host
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the state panics")
    }

    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, RuntimeError> {
        self.find_sandbox(id).ok_or_else(|| RuntimeError::NoSandbox(id.to_owned()))
    }

    pub(crate) fn find_sandbox(&self, id: &str) -> Option<Arc<Sandbox>> {
        self.state().sandboxes.get(id).cloned()
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, RuntimeError> {
        self.find_container(id).ok_or_else(|| RuntimeError::NoContainer(id.to_owned()))
    }

    pub(crate) fn find_container(&self, id: &str) -> Option<Arc<Container>> {
        self.state().containers.get(id).cloned()
    }

    pub(crate) fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.state().sandboxes.values().cloned().collect()
    }

    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.state().containers.values().cloned().collect()
    }

    pub(crate) fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        self.state().containers.values().filter(|container| container.sandbox.id == sandbox).cloned().collect()
    }

    pub(crate) fn insert_sandbox(&self, sandbox: Arc<Sandbox>) {
        self.state().sandboxes.insert(sandbox.id.clone(), sandbox);
    }

    pub(crate) fn insert_container(&self, container: Arc<Container>) {
        self.state().containers.insert(container.id.clone(), container);
    }

    pub(crate) fn forget_sandbox(&self, id: &str) {
        self.state().sandboxes.remove(id);
    }

    pub(crate) fn forget_container(&self, id: &str) {
        self.state().containers.remove(id);
    }

    pub(crate) fn now_ns(&self) -> i64 {
        // Fits until the year 2262.
        i64::try_from(self.config.clock.now().as_nanosecond()).unwrap_or(i64::MAX)
    }

    pub(crate) fn cgroup(&self, path: &Path) -> Cgroup {
        Cgroup::new(&self.layout, path)
    }

    /// The group of all shims of this instance, beside those of the Pods.
    pub(crate) fn shims_cgroup(&self) -> PathBuf {
        self.config.cgroup_root.join(format!("carob-shims-{}", self.config.instance))
    }

    pub(crate) fn save_sandbox(&self, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        let record = sandbox.record();
        Ok(record::write(&self.paths.sandbox_record(&sandbox.id), &record)?)
    }

    /// Changes a container's record, here and on disk.
    pub(crate) fn update_container(
        &self,
        container: &Container,
        change: impl FnOnce(&mut ContainerRecord),
    ) -> Result<(), RuntimeError> {
        let mut fresh = container.record.borrow().clone();
        change(&mut fresh);
        record::write(&self.paths.container_record(&container.sandbox.id, &container.id), &fresh)?;
        container.record.send_replace(fresh);
        Ok(())
    }
}

impl Sandbox {
    pub(crate) fn new(record: SandboxRecord, shim: Option<Shim>) -> Self {
        Self {
            id: record.id.clone(),
            record: Mutex::new(record),
            shim: Mutex::new(shim),
            operation: tokio::sync::Mutex::default(),
            early_exits: Mutex::default(),
            execs: Mutex::default(),
        }
    }

    pub(crate) fn record(&self) -> SandboxRecord {
        self.record.lock().expect("no holder panics").clone()
    }

    pub(crate) fn set_phase(&self, phase: SandboxPhase) {
        self.record.lock().expect("no holder panics").phase = phase;
    }

    /// The connection to the shim of a sandbox that is alive.
    pub(crate) fn shim(&self) -> Result<Shim, RuntimeError> {
        self.find_shim().ok_or_else(|| RuntimeError::SandboxNotReady(self.id.clone()))
    }

    pub(crate) fn find_shim(&self) -> Option<Shim> {
        self.shim.lock().expect("no holder panics").clone()
    }

    pub(crate) fn set_shim(&self, shim: Option<Shim>) {
        *self.shim.lock().expect("no holder panics") = shim;
    }

    pub(crate) fn shim_error(&self) -> impl FnOnce(crate::ShimError) -> RuntimeError {
        let sandbox = self.id.clone();
        move |source| RuntimeError::Shim { sandbox, source }
    }

    /// The options of the namespaces that its containers share.
    pub(crate) fn namespace_options(&self) -> v1::NamespaceOption {
        namespace_options(&self.record().config)
    }
}

impl Container {
    pub(crate) fn new(record: ContainerRecord, sandbox: Arc<Sandbox>) -> Self {
        Self {
            id: record.id.clone(),
            sandbox,
            record: watch::Sender::new(record),
            operation: tokio::sync::Mutex::default(),
            asked_to_stop: AtomicBool::new(false),
        }
    }

    /// Waits for its end; at once when it has ended.
    pub(crate) async fn exited(&self) {
        let mut watcher = self.record.subscribe();
        // The sender is in `self`, so the wait cannot fail for want of one.
        if watcher.wait_for(|record| record.phase.is_exited()).await.is_err() {
            tracing::error!(container = self.id, "a container's record went away while it was in use");
        }
    }
}

pub(crate) fn namespace_options(config: &v1::PodSandboxConfig) -> v1::NamespaceOption {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
}

pub(crate) fn host_facts(layout: &Layout) -> Result<HostFacts, RuntimeError> {
    let bounding = capability::bounding().map_err(RuntimeError::file("read the capabilities of", "/proc/self"))?;
    let resource = capability::number("CAP_SYS_RESOURCE").is_some_and(|number| bounding >> number & 1 == 1);
    let path = "/proc/self/oom_score_adj";
    let own = fs_err::read_to_string(path).map_err(RuntimeError::file("read", path))?;
    let own: i32 = own.trim().parse().unwrap_or(0);
    let (cgroup_trees, hugetlb) = match layout {
        Layout::V2 { root } => {
            let path = root.join("cgroup.controllers");
            let names = fs_err::read_to_string(&path).map_err(RuntimeError::file("read", &path))?;
            (Vec::new(), names.split_whitespace().any(|name| name == "hugetlb"))
        }
        Layout::V1 { controllers, .. } => {
            let name = |controller: &String| controller.strip_prefix("name=").unwrap_or(controller).to_owned();
            let trees = controllers.iter().map(|(controller, tree)| (name(controller), tree.clone())).collect();
            (trees, controllers.contains_key("hugetlb"))
        }
    };
    Ok(HostFacts {
        bounding,
        // Without the capability a process can go no lower than it is (proc(5), `oom_score_adj`).
        oom_score_adj_min: if resource { -1000 } else { own },
        cgroup_trees,
        hugetlb,
        apparmor: Path::new("/sys/kernel/security/apparmor").exists(),
        // There while SELinux is on, whether it enforces or not (selinux(8)).
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        arch: std::env::consts::ARCH,
    })
}
