//! The life of a sandbox: made, stopped, removed.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use carob_cri::v1;
use carob_net::{AttachRequest, HostPort, Protocol};
use carob_shim::params::InfraParams;
use carob_shim::protocol::{self, ProcessKind, Reply, Request, Spawn, StdinMode};
use carob_shim::{EXITS_FILE, Exit, ExitCause, ExitRecord, read_exits};
use carob_sys::cgroup::Cgroup;
use carob_sys::netlink::new_netns;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::RuntimeError;
use crate::files;
use crate::programs::{Programs, in_memory};
use crate::record::{SandboxPhase, SandboxRecord};
use crate::runtime::{Container, Runtime, Sandbox, namespace_options};
use crate::shim::{self, Shim, ShimEvents, ShimStart};
use crate::spec::resources_for;
use crate::user_namespace;

type Result<T> = std::result::Result<T, RuntimeError>;

/// The infra process is nobody's workload and small: it is killed last (kubelet `pkg/kubelet/qos/policy.go`).
const INFRA_OOM_SCORE: i32 = -998;

impl Runtime {
    /// Makes a sandbox and starts its infra process. On failure nothing of it is left.
    pub(crate) async fn run_sandbox(self: &Arc<Self>, request: v1::RunPodSandboxRequest) -> Result<String> {
        let config = request.config.ok_or(RuntimeError::Missing("sandbox configuration"))?;
        if config.metadata.is_none() {
            return Err(RuntimeError::Missing("sandbox metadata"));
        }
        let other = self.handlers.program(&request.runtime_handler)?;
        if user_namespace::ids(&namespace_options(&config))?.is_some() && other.is_some() {
            return Err(RuntimeError::Unsupported("the runtime handler does not support user namespaces"));
        }
        let id = new_id();
        let cgroup = self.pod_cgroup(&config, &id);
        let record = SandboxRecord {
            id: id.clone(),
            config,
            cgroup,
            runtime_handler: request.runtime_handler,
            created_at_ns: self.now_ns(),
            phase: SandboxPhase::Creating,
        };
        let sandbox = Arc::new(Sandbox::new(record, None));
        match self.make_sandbox(&sandbox).await {
            Ok(()) => {
                self.announce_sandbox(v1::ContainerEventType::ContainerCreatedEvent, &sandbox);
                self.announce_sandbox(v1::ContainerEventType::ContainerStartedEvent, &sandbox);
                Ok(id)
            }
            Err(error) => {
                self.forget_sandbox(&id);
                if let Err(error) = self.take_down(&sandbox).await {
                    tracing::error!(sandbox = id, error = %carob_kit::chain(&error), "undo a sandbox that failed");
                }
                Err(error)
            }
        }
    }

    fn pod_cgroup(&self, config: &v1::PodSandboxConfig, id: &str) -> PathBuf {
        let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
        if parent.is_empty() {
            self.config.cgroup_root.join("kubepods").join(format!("pod{id}"))
        } else {
            parent.into()
        }
    }

    async fn make_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<()> {
        let record = sandbox.record();
        let begun = record.clone();
        self.blocking(move |runtime| runtime.begin(&begun)).await?;
        let (of_shim, prepared, of_network) = (record.clone(), record.clone(), sandbox.id.clone());
        let programs = self.programs().await?;
        let makes_network = self.config.network.attaches_early() && owns_network(&record.config)?;
        // None needs another, and each takes a millisecond or two.
        let (shim, prepared, network) = tokio::join!(
            self.blocking(move |runtime| runtime.start_shim(&of_shim, &programs)),
            self.blocking(move |runtime| runtime.prepare(&prepared)),
            self.blocking(move |_| makes_network.then(|| make_network(of_network)).transpose()),
        );
        let (pid, socket) = shim?;
        // Known from here on: if something else went wrong it is ended with the sandbox.
        let shim = self.talk_to_shim(sandbox, pid, socket).await?;
        prepared?;
        let network = network?;
        let infra = self.start_infra(sandbox, &shim, &record, network.as_ref());
        let (infra_pid, ips) = match &network {
            Some(made) => {
                let netns = format!("/proc/self/fd/{}", made.as_raw_fd());
                // Both to their ends, so that nothing comes up after the sandbox has been taken down.
                let (infra, attached) = tokio::join!(infra, self.attach(&record, netns));
                (infra?, attached?)
            }
            None => {
                let infra_pid = infra.await?;
                let is_host = namespace_options(&record.config).network() == v1::NamespaceMode::Node;
                let netns = format!("/proc/{infra_pid}/ns/net");
                (infra_pid, if is_host { Vec::new() } else { self.attach(&record, netns).await? })
            }
        };
        sandbox.set_phase(SandboxPhase::Ready { shim_pid: shim.pid(), infra_pid, ips });
        self.save_sandbox(sandbox)?;
        self.insert_sandbox(Arc::clone(sandbox));
        Ok(())
    }

    async fn attach(&self, record: &SandboxRecord, netns: String) -> Result<Vec<IpAddr>> {
        let request = AttachRequest {
            sandbox_id: record.id.clone(),
            netns: netns.into(),
            host_ports: host_ports(&record.config),
            args: network_args(&record.config, &record.id),
        };
        let attached = self.config.network.attach(&request).await;
        Ok(attached.map_err(|source| RuntimeError::Network { sandbox: record.id.clone(), source })?.ips)
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let runtime = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&runtime)).await?
    }

    /// The sandbox's directory, by whose record someone finds what is left of a sandbox that was not made to the end.
    fn begin(&self, record: &SandboxRecord) -> Result<()> {
        files::make_directory(&self.paths.sandbox(&record.id))?;
        Ok(crate::record::write(&self.paths.sandbox_record(&record.id), record)?)
    }

    /// The other directories, groups, mounts, files.
    fn prepare(&self, record: &SandboxRecord) -> Result<()> {
        files::make_directory(&self.paths.containers(&record.id))?;
        files::make_directory(&self.paths.library_state(&record.id))?;
        files::make_directory(&self.paths.sandbox_layers(&record.id))?;
        let pod = self.cgroup(&record.cgroup);
        pod.create()?;
        pod.mark(&self.config.instance)?;
        if let Some(resources) = record.config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) {
            pod.apply(&resources_for(resources, self.host.hugetlb))?;
        }
        self.cgroup(&record.cgroup.join(&record.id)).create_unified()?;
        if namespace_options(&record.config).ipc() != v1::NamespaceMode::Node {
            files::mount_shm(&self.paths.shm(&record.id))?;
        }
        files::write_sandbox_files(&self.paths, &record.id, &record.config)?;
        Ok(())
    }

    fn start_shim(&self, record: &SandboxRecord, programs: &Programs) -> Result<(Pid, OwnedFd)> {
        let (directory, layers) = (self.paths.sandbox(&record.id), self.paths.sandbox_layers(&record.id));
        let remove_with_parent: Vec<&Path> =
            if self.config.die_with_parent { vec![&layers, &directory] } else { Vec::new() };
        let shims = self.shims_cgroup();
        self.cgroup(&shims).create()?;
        let start = ShimStart {
            layout: &self.layout,
            directory: &directory,
            cgroup: &record.cgroup,
            own_cgroup: &shims,
            remove_with_parent,
        };
        let failed = |source| RuntimeError::Shim { sandbox: record.id.clone(), source };
        shim::start(programs, &start).map_err(failed)
    }

    /// Takes up the conversation with a shim and starts the task that handles what it says.
    pub(crate) async fn talk_to_shim(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        pid: Pid,
        socket: OwnedFd,
    ) -> Result<Shim> {
        let (shim, events) = Shim::new(pid, socket).map_err(sandbox.shim_error())?;
        let version = match shim.ask(&Request::Hello, &[]).await.map_err(sandbox.shim_error())? {
            (Reply::Hello { version, .. }, _) => version,
            _ => return Err(sandbox.shim_error()(crate::ShimError::Answer)),
        };
        if version != protocol::VERSION {
            let (sandbox, ours) = (sandbox.id.clone(), protocol::VERSION);
            return Err(RuntimeError::ShimVersion { sandbox, version, ours });
        }
        sandbox.set_shim(Some(shim.clone()));
        tokio::spawn(handle_events(self.me.clone(), Arc::clone(sandbox), events));
        Ok(shim)
    }

    async fn start_infra(
        &self,
        sandbox: &Sandbox,
        shim: &Shim,
        record: &SandboxRecord,
        network: Option<&OwnedFd>,
    ) -> Result<i32> {
        let options = namespace_options(&record.config);
        let own = |mode: v1::NamespaceMode| mode != v1::NamespaceMode::Node;
        let sysctls = record.config.linux.as_ref().map(|linux| linux.sysctls.clone()).unwrap_or_default();
        let new_network = own(options.network());
        let params = InfraParams {
            layout: self.layout.clone(),
            cgroup: record.cgroup.clone(),
            new_network,
            new_ipc: own(options.ipc()),
            // A Pod in the host's network has the host's name.
            new_uts: new_network,
            new_pid: options.pid() == v1::NamespaceMode::Pod,
            user_ids: user_namespace::ids(&options)?,
            hostname: (new_network && !record.config.hostname.is_empty()).then(|| record.config.hostname.clone()),
            sysctls: sysctls.into_iter().collect(),
            oom_score_adj: INFRA_OOM_SCORE.max(self.host.oom_score_adj_min),
            root: self.paths.rootfs(),
        };
        let text = serde_json::to_vec(&params).map_err(RuntimeError::Parameters)?;
        let params = in_memory("infra", &text).map_err(|error| RuntimeError::Descriptors("parameters", error))?;
        let spawn = Spawn {
            id: sandbox.id.clone(),
            kind: ProcessKind::Infra,
            terminal: false,
            stdin: StdinMode::Closed,
            log_path: String::new(),
            action: "infra".to_owned(),
        };
        let programs = self.programs().await?;
        let fds = [programs.oneshot(), params.as_fd(), programs.shim()];
        let fds: Vec<BorrowedFd<'_>> = fds.into_iter().chain(network.map(AsFd::as_fd)).collect();
        let (pid, _, _) = shim.spawn(spawn, &fds).await.map_err(sandbox.shim_error())?;
        Ok(pid)
    }

    /// Ends every process of a sandbox and gives back its addresses. A sandbox that is not known is stopped.
    pub(crate) async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let Some(sandbox) = self.find_sandbox(id) else { return Ok(()) };
        let _operation = sandbox.operation.lock().await;
        self.stop_locked(&sandbox).await
    }

    async fn stop_locked(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        self.end_processes(sandbox).await?;
        for container in self.containers_of(&sandbox.id) {
            container.exited().await;
        }
        self.detach_network(sandbox).await?;
        let was_ready = self.mark_stopped(sandbox)?;
        if was_ready {
            self.announce_sandbox(v1::ContainerEventType::ContainerStoppedEvent, sandbox);
        }
        Ok(())
    }

    /// True when it was not stopped before.
    pub(crate) fn mark_stopped(&self, sandbox: &Sandbox) -> Result<bool> {
        let ips = match sandbox.record().phase {
            SandboxPhase::Ready { ips, .. } => ips,
            SandboxPhase::Creating => Vec::new(),
            SandboxPhase::Stopped { .. } => return Ok(false),
        };
        sandbox.set_phase(SandboxPhase::Stopped { ips });
        self.save_sandbox(sandbox)?;
        Ok(true)
    }

    pub(crate) async fn detach_network(&self, sandbox: &Sandbox) -> Result<()> {
        let detached = self.config.network.detach(&sandbox.id).await;
        detached.map_err(|source| RuntimeError::Network { sandbox: sandbox.id.clone(), source })
    }

    /// Ends the shim with all its processes; without a shim, the processes by their group.
    pub(crate) async fn end_processes(&self, sandbox: &Sandbox) -> Result<()> {
        if let Some(shim) = sandbox.find_shim() {
            match shim.tell(&Request::Shutdown).await {
                // Gone: it has ended, by itself or before it could answer.
                Ok(()) | Err(crate::ShimError::Gone) => {}
                Err(error) => return Err(sandbox.shim_error()(error)),
            }
            sandbox.set_shim(None);
        }
        let cgroup = sandbox.record().cgroup;
        self.end_group(&cgroup).await
    }

    /// Kills all processes of a group, and returns when none is left.
    pub(crate) async fn end_group(&self, cgroup: &Path) -> Result<()> {
        end_processes(&self.cgroup(cgroup), cgroup).await
    }

    /// Removes a sandbox with its containers. One that is not known is removed.
    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let Some(sandbox) = self.find_sandbox(id) else { return Ok(()) };
        let _operation = sandbox.operation.lock().await;
        self.stop_locked(&sandbox).await?;
        let containers = self.containers_of(id);
        self.remove_traces(&sandbox).await?;
        for container in &containers {
            self.forget_container(&container.id);
            self.announce_container(v1::ContainerEventType::ContainerDeletedEvent, container);
        }
        self.forget_sandbox(id);
        self.announce_sandbox(v1::ContainerEventType::ContainerDeletedEvent, &sandbox);
        Ok(())
    }

    /// Takes down a sandbox of which nobody has heard, or of which an earlier process has left parts.
    pub(crate) async fn take_down(&self, sandbox: &Sandbox) -> Result<()> {
        self.end_processes(sandbox).await?;
        self.detach_network(sandbox).await?;
        self.remove_traces(sandbox).await
    }

    /// Mounts, groups and directories. The processes are gone.
    async fn remove_traces(&self, sandbox: &Sandbox) -> Result<()> {
        let record = sandbox.record();
        let others_in_pod =
            self.sandboxes().iter().any(|other| other.id != record.id && other.record().cgroup == record.cgroup);
        if others_in_pod {
            self.cgroup(&record.cgroup.join(&record.id)).remove()?;
            for container in self.containers_of(&record.id) {
                let cgroup = container.record.borrow().cgroup.clone();
                self.cgroup(&cgroup).remove()?;
            }
        } else {
            self.cgroup(&record.cgroup).remove()?;
        }
        let paths = self.paths.clone();
        tokio::task::spawn_blocking(move || -> Result<()> {
            files::unmount(&paths.shm(&record.id))?;
            files::remove_directory(&paths.sandbox_layers(&record.id))?;
            // Last, since the record is in it: as long as it is there, someone comes back to finish.
            files::remove_directory(&paths.sandbox(&record.id))
        })
        .await?
    }

    /// The infra process has ended: the sandbox cannot be used any more.
    fn infra_ended(&self, sandbox: &Sandbox) -> Result<()> {
        if self.mark_stopped(sandbox)? {
            self.announce_sandbox(v1::ContainerEventType::ContainerStoppedEvent, sandbox);
        }
        Ok(())
    }

    async fn process_exited(&self, sandbox: &Sandbox, record: ExitRecord) -> Result<()> {
        let exec = sandbox.execs.lock().expect("no holder panics").remove(&record.id);
        if let Some(exec) = exec {
            // Whoever started the command may be gone.
            if exec.send(record.exit).is_err() {
                tracing::debug!(id = record.id, "nobody waits for the end of this command");
            }
            return Ok(());
        }
        if record.id == sandbox.id {
            return self.infra_ended(sandbox);
        }
        match self.known_or_early(sandbox, &record) {
            Some(container) => self.container_exited(&container, record.exit).await,
            None => Ok(()),
        }
    }

    /// The container that has ended; one that is not known yet will find its end when it is.
    fn known_or_early(&self, sandbox: &Sandbox, record: &ExitRecord) -> Option<Arc<Container>> {
        let mut early = sandbox.early_exits.lock().expect("no holder panics");
        let known = self.find_container(&record.id);
        if known.is_none() {
            early.insert(record.id.clone(), record.exit);
        }
        known
    }

    /// The shim is gone. Where nobody asked it to go, the sandbox is lost with all its processes.
    pub(crate) async fn shim_gone(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        sandbox.execs.lock().expect("no holder panics").clear();
        sandbox.set_shim(None);
        if self.find_sandbox(&sandbox.id).is_none() {
            // Never made known, or removed already: whoever does that cleans up.
            return Ok(());
        }
        let cgroup = sandbox.record().cgroup;
        self.end_group(&cgroup).await?;
        let path = self.paths.sandbox(&sandbox.id).join(EXITS_FILE);
        let kept = read_exits(&path).map_err(RuntimeError::file("read", &path))?;
        for container in self.containers_of(&sandbox.id) {
            let known = kept.iter().find(|record| record.id == container.id).map(|record| record.exit);
            match known {
                Some(exit) => self.container_exited(&container, exit).await?,
                None => self.container_lost(&container)?,
            }
        }
        self.infra_ended(sandbox)
    }
}

fn make_network(sandbox: String) -> Result<OwnedFd> {
    new_netns().map_err(|source| RuntimeError::NetworkNamespace { sandbox, source })
}

/// Whether a sandbox has a network namespace that can be made before its infra process: one in a user namespace is made there.
fn owns_network(config: &v1::PodSandboxConfig) -> Result<bool> {
    let options = namespace_options(config);
    Ok(options.network() != v1::NamespaceMode::Node && user_namespace::ids(&options)?.is_none())
}

pub(crate) async fn end_processes(group: &Cgroup, name: &Path) -> Result<()> {
    loop {
        let pids = group.pids()?;
        if pids.is_empty() {
            return Ok(());
        }
        group.kill()?;
        for pid in pids.into_iter().filter_map(Pid::from_raw) {
            let failed = |error| RuntimeError::file("wait for the processes of", name)(error);
            match pidfd_open(pid, PidfdFlags::NONBLOCK) {
                Ok(process) => shim::wait_for_exit(&process).await.map_err(failed)?,
                Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

/// Handles what a shim says until it is gone. A failure is logged: nobody waits for it here.
async fn handle_events(runtime: std::sync::Weak<Runtime>, sandbox: Arc<Sandbox>, mut events: ShimEvents) {
    while let Some(record) = events.recv().await {
        let Some(runtime) = runtime.upgrade() else { return };
        let id = record.id.clone();
        if let Err(error) = runtime.process_exited(&sandbox, record).await {
            tracing::error!(process = id, error = %carob_kit::chain(&error), "handle the end of a process");
        }
    }
    let Some(runtime) = runtime.upgrade() else { return };
    if let Err(error) = runtime.shim_gone(&sandbox).await {
        tracing::error!(sandbox = sandbox.id, error = %carob_kit::chain(&error), "handle the end of a shim");
    }
}

/// An id as containerd makes them: 32 random bytes in hexadecimal.
pub(crate) fn new_id() -> String {
    let [one, two] = [carob_kit::random_bytes(), carob_kit::random_bytes()].map(u128::from_be_bytes);
    format!("{one:032x}{two:032x}")
}

/// What a lost process is reported with: nobody saw it end.
pub(crate) fn lost_exit(at_ns: i64) -> Exit {
    Exit { cause: ExitCause::Code(255), at_ns }
}

/// The ports of the host that lead to the Pod. Those without a host port only document.
/// What plug-ins for Kubernetes look for (containerd and CRI-O tell them the same).
fn network_args(config: &v1::PodSandboxConfig, id: &str) -> Vec<(String, String)> {
    let metadata = config.metadata.clone().unwrap_or_default();
    let args = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &metadata.namespace),
        ("K8S_POD_NAME", &metadata.name),
        ("K8S_POD_INFRA_CONTAINER_ID", id),
        ("K8S_POD_UID", &metadata.uid),
    ];
    args.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn host_ports(config: &v1::PodSandboxConfig) -> Vec<HostPort> {
    let port = |mapping: &v1::PortMapping| {
        let host_port = u16::try_from(mapping.host_port).ok().filter(|port| *port != 0)?;
        Some(HostPort {
            host_ip: mapping.host_ip.parse().ok(),
            host_port,
            pod_port: u16::try_from(mapping.container_port).ok()?,
            protocol: match mapping.protocol() {
                v1::Protocol::Tcp => Protocol::Tcp,
                v1::Protocol::Udp => Protocol::Udp,
                v1::Protocol::Sctp => Protocol::Sctp,
            },
        })
    };
    config.port_mappings.iter().filter_map(port).collect()
}
