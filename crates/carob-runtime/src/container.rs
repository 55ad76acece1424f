//! The life of a container: created, started, stopped, removed.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use carob_cri::v1;
use carob_image::ImageRecord;
use carob_kit::fs::replace;
use carob_shim::Exit;
use carob_shim::params::{CreateParams, Layers, ResolvedUser, Staged, UserNamespace};
use carob_shim::protocol::{CREATE_BY_OTHER, ProcessKind, Request, Spawn, StdinMode};
use serde_json::{Value, json};

use crate::error::RuntimeError;
use crate::files;
use crate::programs::in_memory;
use crate::record::{ContainerPhase, ContainerRecord, SandboxPhase};
use crate::runtime::{Container, Runtime, Sandbox};
use crate::sandbox::{lost_exit, new_id};
use crate::shim::ShimError;
use crate::spec::{ContainerSpec, SandboxView, SpecInput, StagedMount, merged, oci_spec_for, resources_for};
use crate::{devices, exec, handlers, mount_points, user_namespace};

type Result<T> = std::result::Result<T, RuntimeError>;

/// How a container that could not be started shows (containerd `container_start.go`).
const START_ERROR: &str = "StartError";
const NOT_STARTED: i32 = 128;
/// In runc's words: the kernel ended what was making the container, within the container's limit.
const OUT_OF_MEMORY: &str = "container init was OOM-killed (memory limit too low?)";

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// The longest message of a container's end that is kept, in bytes.
const MESSAGE_BYTES_MAX: usize = 4096;

/// What a created container waits for.
enum Waiting<'a> {
    /// A word on the socket of the container library.
    ForWord(UnixStream),
    /// Another runtime, which made it.
    ForOther(&'a Path),
}

/// A container that is being created.
struct Draft {
    id: String,
    sandbox: Arc<Sandbox>,
    config: v1::ContainerConfig,
    image: Arc<ImageRecord>,
    layers: Vec<PathBuf>,
    cgroup: PathBuf,
    log_path: String,
    infra_pid: i32,
    target_pid: Option<i32>,
    /// Another OCI runtime that makes it.
    program: Option<PathBuf>,
}

impl Runtime {
    /// Creates a container; its first process waits to be started. On failure nothing of it is left.
    pub(crate) async fn create(self: &Arc<Self>, request: v1::CreateContainerRequest) -> Result<String> {
        let config = request.config.ok_or(RuntimeError::Missing("container configuration"))?;
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        // A sandbox that is being stopped waits for this one, which then is one of those to be ended.
        let _operation = sandbox.operation.lock().await;
        let draft = Arc::new(self.draft(Arc::clone(&sandbox), config)?);
        match self.create_from(&draft).await {
            Ok(container) => {
                self.announce_container(v1::ContainerEventType::ContainerCreatedEvent, &container);
                Ok(draft.id.clone())
            }
            Err(error) => {
                if let Err(error) = self.remove_container_traces(&draft.sandbox, &draft.id, &draft.cgroup).await {
                    tracing::error!(container = draft.id, error = %carob_kit::chain(&error), "undo a container that failed");
                }
                Err(error)
            }
        }
    }

    fn draft(&self, sandbox: Arc<Sandbox>, config: v1::ContainerConfig) -> Result<Draft> {
        let record = sandbox.record();
        let SandboxPhase::Ready { infra_pid, .. } = record.phase else {
            return Err(RuntimeError::SandboxNotReady(record.id));
        };
        if !config.cdi_devices.is_empty() {
            return Err(RuntimeError::Unsupported("CDI devices are not supported"));
        }
        let name = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
        let no_image = || RuntimeError::NoImage(name.to_owned());
        let image = self.config.images.find(name).ok_or_else(no_image)?;
        let layers = self.config.images.layers(&image.id).ok_or_else(no_image)?;
        let id = new_id();
        let log_path = match (record.config.log_directory.as_str(), config.log_path.as_str()) {
            ("", _) | (_, "") => String::new(),
            (directory, file) => Path::new(directory).join(file).display().to_string(),
        };
        let options = security(&config).namespace_options.unwrap_or_default();
        let target_pid = match options.pid() {
            v1::NamespaceMode::Target => self.container(&options.target_id)?.record.borrow().phase.pid(),
            v1::NamespaceMode::Pod | v1::NamespaceMode::Container | v1::NamespaceMode::Node => None,
        };
        let cgroup = record.cgroup.join(&id);
        let program = self.handlers.program(&record.runtime_handler)?.map(Path::to_owned);
        Ok(Draft { id, sandbox, config, image, layers, cgroup, log_path, infra_pid, target_pid, program })
    }

    async fn create_from(self: &Arc<Self>, draft: &Arc<Draft>) -> Result<Arc<Container>> {
        let shim = draft.sandbox.shim()?;
        let (spec, layers) = {
            let (runtime, draft) = (Arc::clone(self), Arc::clone(draft));
            tokio::task::spawn_blocking(move || runtime.prepare_container(&draft)).await??
        };
        if !spec.capabilities_lost.is_empty() {
            tracing::warn!(container = draft.id, lost = ?spec.capabilities_lost, "this machine cannot give capabilities");
        }
        let params = CreateParams {
            layout: self.layout.clone(),
            id: draft.id.clone(),
            directory: self.paths.sandbox(&draft.sandbox.id),
            bundle: self.paths.container(&draft.sandbox.id, &draft.id),
            state_root: self.paths.library_state(&draft.sandbox.id),
            cgroup: draft.cgroup.clone(),
            own_groups_only: spec.own_groups_only,
            shown_groups: spec.shown_groups,
            rootfs: self.paths.rootfs(),
            layers,
            staged: self.staged(draft, &spec.staged),
            user: spec.user,
            user_namespace: user_namespace::ids(&draft.sandbox.namespace_options())?.map(|ids| {
                let path = format!("/proc/{}/ns/user", draft.infra_pid).into();
                UserNamespace { ids, path }
            }),
            terminal: draft.config.tty,
            runtime: draft.program.clone(),
        };
        let text = serde_json::to_vec(&params).map_err(RuntimeError::Parameters)?;
        let params = in_memory("create", &text).map_err(|error| RuntimeError::Descriptors("parameters", error))?;
        let spawn = Spawn {
            id: draft.id.clone(),
            kind: ProcessKind::Container,
            terminal: draft.config.tty,
            stdin: match (draft.config.stdin, draft.config.stdin_once) {
                (false, _) => StdinMode::Closed,
                (true, false) => StdinMode::Open,
                (true, true) => StdinMode::Once,
            },
            log_path: draft.log_path.clone(),
            action: if draft.program.is_some() { CREATE_BY_OTHER } else { "create" }.to_owned(),
        };
        let programs = self.programs().await?;
        let fds = [programs.oneshot(), params.as_fd()];
        let (pid, detail, _) = match shim.spawn(spawn, &fds).await {
            Ok(answer) => answer,
            Err(ShimError::Refused(why)) => return self.keep_failed(draft, why),
            Err(error) => return Err(draft.sandbox.shim_error()(error)),
        };
        let user: ResolvedUser = serde_json::from_str(&detail).map_err(RuntimeError::Answer)?;
        if draft.program.is_some() {
            // Another runtime may have lifted limits that it was not told of (crun does that on cgroup v1).
            self.limit(draft)?;
        }
        let container = self.keep_container(draft, user, ContainerPhase::Created { pid })?;
        let early = draft.sandbox.early_exits.lock().expect("no holder panics").remove(&draft.id);
        if let Some(exit) = early {
            self.container_exited(&container, exit).await?;
        }
        Ok(container)
    }

    /// Makes the container's own layer, over those of its image.
    fn make_layers(&self, draft: &Draft, config: &Value) -> Result<Layers> {
        let own = self.paths.container_layers(&draft.sandbox.id, &draft.id);
        let (upper, work) = (own.join("upper"), own.join("work"));
        files::make_directory(&own)?;
        files::make_root_directory(&upper)?;
        files::make_root_directory(&work)?;
        let mut lower = draft.layers.clone();
        lower.push(mount_points::layer_for(&self.paths, config)?);
        Ok(Layers { lower, upper, work })
    }

    /// A container that could not be made is kept with its end: whoever starts it is told why, and finds it as one that has
    /// failed to start (containerd `internal/cri/server/container_start.go`).
    fn keep_failed(&self, draft: &Draft, why: String) -> Result<Arc<Container>> {
        let out_of_memory = self.cgroup(&draft.cgroup).oom_kills()? > 0;
        let message = if out_of_memory { OUT_OF_MEMORY.to_owned() } else { why };
        let phase = ContainerPhase::Exited {
            started_at_ns: 0,
            finished_at_ns: self.now_ns(),
            exit_code: NOT_STARTED,
            reason: START_ERROR.to_owned(),
            message: exec::cut(&message, MESSAGE_BYTES_MAX).to_owned(),
        };
        self.keep_container(draft, ResolvedUser::default(), phase)
    }

    /// What has to be laid together for the container's mounts, with a place for what is written to it.
    fn staged(&self, draft: &Draft, staged: &[StagedMount]) -> Vec<Staged> {
        let own = self.paths.container_layers(&draft.sandbox.id, &draft.id);
        let place = |(number, staged): (usize, &StagedMount)| match staged {
            StagedMount::Bind { source, mapped } => Staged::Bind { source: source.clone(), mapped: *mapped },
            StagedMount::Image(lower) => Staged::Image { lower: lower.clone() },
            StagedMount::Volume(path) => {
                let own = own.join(format!("volume-{number}"));
                Staged::Volume { path: path.clone(), upper: own.join("upper"), work: own.join("work") }
            }
        };
        staged.iter().enumerate().map(place).collect()
    }

    fn keep_container(&self, draft: &Draft, user: ResolvedUser, phase: ContainerPhase) -> Result<Arc<Container>> {
        let image_id = draft.image.id.to_string();
        let record = ContainerRecord {
            id: draft.id.clone(),
            sandbox_id: draft.sandbox.id.clone(),
            config: draft.config.clone(),
            image_ref: draft.image.digests.first().cloned().unwrap_or_else(|| image_id.clone()),
            image_id,
            cgroup: draft.cgroup.clone(),
            log_path: draft.log_path.clone(),
            stop_signal: stop_signal(&draft.config, &draft.image),
            user,
            created_at_ns: self.now_ns(),
            phase,
        };
        crate::record::write(&self.paths.container_record(&draft.sandbox.id, &draft.id), &record)?;
        self.config.images.touch(&draft.image.id);
        let container = Arc::new(Container::new(record, Arc::clone(&draft.sandbox)));
        self.insert_container(Arc::clone(&container));
        Ok(container)
    }

    fn limit(&self, draft: &Draft) -> Result<()> {
        let resources = draft.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        let Some(resources) = resources else { return Ok(()) };
        Ok(self.cgroup(&draft.cgroup).apply(&resources_for(resources, self.host.hugetlb))?)
    }

    /// Everything that blocks: directories, the group with its limits, the configuration.
    fn prepare_container(&self, draft: &Draft) -> Result<(ContainerSpec, Layers)> {
        let security = security(&draft.config);
        let sandbox = draft.sandbox.record();
        let mut config = draft.config.clone();
        config.mounts.iter_mut().try_for_each(resolve_mount)?;
        let devices = devices::granted(&config, security.privileged)?;
        let files = files::sandbox_files(&self.paths, &sandbox.id, &sandbox.config);
        let own_ipc = draft.sandbox.namespace_options().ipc() != v1::NamespaceMode::Node;
        let view = SandboxView {
            infra_pid: draft.infra_pid,
            hostname: sandbox.config.hostname.clone(),
            shm: if own_ipc { self.paths.shm(&sandbox.id) } else { "/dev/shm".into() },
            hostname_file: files.hostname,
            resolv_conf_file: files.resolv_conf.filter(|path| path.exists()),
            cgroup: draft.cgroup.clone(),
            user_ids: user_namespace::ids(&draft.sandbox.namespace_options())?,
        };
        let rootfs = self.paths.rootfs().display().to_string();
        let seccomp_file = localhost_profile(&security)?;
        let images = crate::image_volume::resolve(&*self.config.images, &config.mounts)?;
        let mut spec = oci_spec_for(&SpecInput {
            images: &images,
            config: &config,
            sandbox: &view,
            image: &draft.image.config,
            host: &self.host,
            rootfs: &rootfs,
            devices: &devices,
            target_pid: draft.target_pid,
            seccomp_file: seccomp_file.as_ref(),
        })?;
        let group = self.cgroup(&draft.cgroup);
        group.create()?;
        self.limit(draft)?;
        group.allow_devices(&spec.device_rules)?;
        if draft.program.is_some() {
            spec.config["linux"]["resources"] = json!({"devices": handlers::device_rules(&spec.device_rules)});
        }
        let layers = self.make_layers(draft, &spec.config)?;
        for staged in self.staged(draft, &spec.staged) {
            if let Staged::Volume { upper, work, .. } = staged {
                files::make_root_directory(&upper)?;
                files::make_root_directory(&work)?;
            }
        }
        files::make_directory(&self.paths.container(&sandbox.id, &draft.id))?;
        if let Some(directory) = Path::new(&draft.log_path).parent().filter(|_| !draft.log_path.is_empty()) {
            fs_err::create_dir_all(directory).map_err(RuntimeError::file("make directory", directory))?;
        }
        let path = self.paths.container_config(&sandbox.id, &draft.id);
        let text = serde_json::to_vec(&spec.config).map_err(RuntimeError::Parameters)?;
        replace(&path, &text).map_err(RuntimeError::file("write", &path))?;
        Ok((spec, layers))
    }

    /// Lets the first process of a created container run.
    pub(crate) async fn start(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _operation = container.operation.lock().await;
        let pid = match container.record.borrow().phase {
            ContainerPhase::Created { pid } => pid,
            ContainerPhase::Running { .. } => return Err(state_error(id, "running already")),
            ContainerPhase::Exited { ref reason, ref message, .. } if reason == START_ERROR => {
                return Err(RuntimeError::NotStarted(message.clone()));
            }
            ContainerPhase::Exited { .. } => return Err(state_error(id, "not there any more: it has ended")),
        };
        let sandbox = &container.sandbox;
        let other = self.handlers.program(&sandbox.record().runtime_handler)?;
        let failed = |source| RuntimeError::Start { id: id.to_owned(), source };
        let waiting = match other {
            Some(program) => Waiting::ForOther(program),
            None => {
                let socket = self.paths.start_socket(&sandbox.id, id);
                Waiting::ForWord(UnixStream::from(carob_sys::packet::connect_stream(&socket).map_err(failed)?))
            }
        };
        let started_at_ns = self.now_ns();
        // Before it runs: its end, which may come at once, is to find it running.
        self.update_container(&container, |record| {
            record.phase = ContainerPhase::Running { pid, started_at_ns };
        })?;
        match waiting {
            Waiting::ForWord(mut stream) => stream.write_all(b"start container").map_err(failed)?,
            Waiting::ForOther(program) => {
                handlers::manage(program, &self.paths.library_state(&sandbox.id), &["start", id]).await?;
            }
        }
        self.announce_container(v1::ContainerEventType::ContainerStartedEvent, &container);
        Ok(())
    }

    /// Ends a container: by its stop signal, then by force. One that is not known has ended.
    pub(crate) async fn stop(&self, id: &str, timeout: Duration) -> Result<()> {
        let Some(container) = self.find_container(id) else { return Ok(()) };
        if !timeout.is_zero() {
            self.ask_to_stop(&container).await?;
            // Nobody is kept out meanwhile: another stop may have less time for it.
            if tokio::time::timeout(timeout, container.exited()).await.is_ok() {
                return Ok(());
            }
        }
        let _operation = container.operation.lock().await;
        self.kill_locked_container(&container).await
    }

    /// Sends the container's own signal, once: to many programs a second one means more than the first.
    async fn ask_to_stop(&self, container: &Container) -> Result<()> {
        let _operation = container.operation.lock().await;
        let (exited, stop_signal) = {
            let record = container.record.borrow();
            (record.phase.is_exited(), record.stop_signal)
        };
        if exited || container.asked_to_stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.signal(container, stop_signal).await?;
        container.asked_to_stop.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn kill_locked_container(&self, container: &Container) -> Result<()> {
        if container.record.borrow().phase.is_exited() {
            return Ok(());
        }
        self.signal(container, SIGKILL).await?;
        let cgroup = container.record.borrow().cgroup.clone();
        self.cgroup(&cgroup).kill()?;
        container.exited().await;
        Ok(())
    }

    async fn signal(&self, container: &Container, signal: i32) -> Result<()> {
        // A sandbox without a shim is being ended as a whole.
        let Some(shim) = container.sandbox.find_shim() else { return Ok(()) };
        match shim.tell(&Request::Signal { id: container.id.clone(), signal }).await {
            Ok(()) | Err(crate::ShimError::Gone) => Ok(()),
            Err(error) => Err(container.sandbox.shim_error()(error)),
        }
    }

    /// Removes a container, by force where it runs. One that is not known is removed.
    pub(crate) async fn remove(&self, id: &str) -> Result<()> {
        let Some(container) = self.find_container(id) else { return Ok(()) };
        let _operation = container.operation.lock().await;
        self.kill_locked_container(&container).await?;
        let cgroup = container.record.borrow().cgroup.clone();
        self.remove_container_traces(&container.sandbox, id, &cgroup).await?;
        self.forget_container(id);
        self.announce_container(v1::ContainerEventType::ContainerDeletedEvent, &container);
        Ok(())
    }

    /// Has another runtime that made a container delete what it keeps of it.
    async fn have_other_forget(&self, sandbox: &Sandbox, id: &str) {
        let state = self.paths.library_state(&sandbox.id);
        let deleted = match self.handlers.program(&sandbox.record().runtime_handler) {
            Ok(Some(program)) if state.join(id).exists() => {
                handlers::manage(program, &state, &["delete", "--force", id]).await
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        // Its files are removed in any case, and its processes and groups have been.
        if let Err(error) = deleted {
            tracing::warn!(container = id, error = %carob_kit::chain(&error), "another runtime does not delete a container");
        }
    }

    pub(crate) async fn remove_container_traces(&self, sandbox: &Sandbox, id: &str, cgroup: &Path) -> Result<()> {
        self.end_group(cgroup).await?;
        self.cgroup(cgroup).remove()?;
        sandbox.early_exits.lock().expect("no holder panics").remove(id);
        self.have_other_forget(sandbox, id).await;
        let (paths, sandbox, id) = (self.paths.clone(), sandbox.id.clone(), id.to_owned());
        tokio::task::spawn_blocking(move || -> Result<()> {
            files::remove_directory(&paths.container_layers(&sandbox, &id))?;
            files::remove_directory(&paths.library_state(&sandbox).join(&id))?;
            files::remove_directory(&paths.container(&sandbox, &id))
        })
        .await?
    }

    /// The first process of a container has ended: what is left of the container ends too, and the exit is kept here
    /// before the shim forgets it.
    pub(crate) async fn container_exited(&self, container: &Container, exit: Exit) -> Result<()> {
        let (cgroup, phase) = {
            let record = container.record.borrow();
            (record.cgroup.clone(), record.phase.clone())
        };
        if phase.is_exited() {
            return Ok(());
        }
        let group = self.cgroup(&cgroup);
        // On v1 the kernel may have killed a child of the first process only, which then gives up.
        let out_of_memory = exit.cause.code() != 0 && group.oom_kills()? > 0;
        if !group.pids()?.is_empty() {
            group.kill()?;
        }
        let reason = match (out_of_memory, exit.cause.code()) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        };
        let message = if out_of_memory { out_of_memory_message(&cgroup) } else { String::new() };
        self.end_container(container, &phase, exit, reason, &message)?;
        if let Some(shim) = container.sandbox.find_shim() {
            match shim.tell(&Request::Forget { id: container.id.clone() }).await {
                Ok(()) | Err(crate::ShimError::Gone) => {}
                Err(error) => return Err(container.sandbox.shim_error()(error)),
            }
        }
        Ok(())
    }

    /// A container's process is gone and nobody saw how.
    pub(crate) fn container_lost(&self, container: &Container) -> Result<()> {
        let phase = container.record.borrow().phase.clone();
        if phase.is_exited() {
            return Ok(());
        }
        let message = "the process was lost with its shim";
        self.end_container(container, &phase, lost_exit(self.now_ns()), "ContainerStatusUnknown", message)
    }

    fn end_container(
        &self,
        container: &Container,
        phase: &ContainerPhase,
        exit: Exit,
        reason: &str,
        message: &str,
    ) -> Result<()> {
        let started_at_ns = match phase {
            ContainerPhase::Running { started_at_ns, .. } => *started_at_ns,
            ContainerPhase::Created { .. } | ContainerPhase::Exited { .. } => 0,
        };
        self.update_container(container, |record| {
            record.phase = ContainerPhase::Exited {
                started_at_ns,
                finished_at_ns: exit.at_ns,
                exit_code: exit.cause.code(),
                reason: reason.to_owned(),
                message: exec::cut(message, MESSAGE_BYTES_MAX).to_owned(),
            };
        })?;
        self.announce_container(v1::ContainerEventType::ContainerStoppedEvent, container);
        Ok(())
    }

    /// Changes the limits of a container in place.
    pub(crate) async fn update_resources(&self, request: v1::UpdateContainerResourcesRequest) -> Result<()> {
        let container = self.container(&request.container_id)?;
        let _operation = container.operation.lock().await;
        let update = request.linux.ok_or(RuntimeError::Missing("resources"))?;
        let cgroup = container.record.borrow().cgroup.clone();
        if container.record.borrow().phase.is_exited() {
            return Err(state_error(&container.id, "not there any more: it has ended"));
        }
        self.cgroup(&cgroup).apply(&resources_for(&update, self.host.hugetlb))?;
        self.update_container(&container, |record| {
            let linux = record.config.linux.get_or_insert_default();
            let current = linux.resources.clone().unwrap_or_default();
            linux.resources = Some(merged(&current, &update));
        })
    }

    /// Takes the CPU limits of containers that have ended away: on cgroup v1 their Pod's could not be lowered below them, and the
    /// groups stay for as long as the containers are known.
    pub(crate) fn open_ended_groups(&self, sandbox: &str) {
        let open = carob_sys::cgroup::Resources { cpu_quota_us: Some(-1), ..Default::default() };
        for container in self.containers_of(sandbox) {
            let cgroup = {
                let record = container.record.borrow();
                record.phase.is_exited().then(|| record.cgroup.clone())
            };
            let Some(cgroup) = cgroup else { continue };
            // The group may be gone with its container by now; where it is not, the Pod's own limit fails and tells of it.
            if let Err(error) = self.cgroup(&cgroup).apply(&open) {
                tracing::debug!(error = %carob_kit::chain(&error), "the group of an ended container keeps its limits");
            }
        }
    }

    /// Lets the shim go on in a new log file.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        if !matches!(container.record.borrow().phase, ContainerPhase::Running { .. }) {
            return Err(state_error(id, "not running"));
        }
        let shim = container.sandbox.shim()?;
        shim.tell(&Request::ReopenLog { id: id.to_owned() }).await.map_err(container.sandbox.shim_error())
    }
}

/// What the kernel killed, where its log says so.
fn out_of_memory_message(cgroup: &Path) -> String {
    match carob_sys::oom::last_victim(cgroup) {
        Ok(Some(victim)) => format!("out of memory: the kernel killed {} (PID {})", victim.name, victim.pid),
        Ok(None) => "out of memory".to_owned(),
        Err(error) => {
            tracing::warn!(%error, "the kernel's log does not say what it killed");
            "out of memory".to_owned()
        }
    }
}

fn state_error(id: &str, state: &'static str) -> RuntimeError {
    RuntimeError::State { id: id.to_owned(), state }
}

fn security(config: &v1::ContainerConfig) -> v1::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// What the Pod says, else what the image says, else `SIGTERM`.
fn stop_signal(config: &v1::ContainerConfig, image: &ImageRecord) -> i32 {
    let named = match config.stop_signal() {
        v1::Signal::RuntimeDefault => image.config.config().as_ref().and_then(|config| config.stop_signal().clone()),
        signal => Some(signal.as_str_name().to_owned()),
    };
    named.and_then(|name| signal_number(&name)).unwrap_or(SIGTERM)
}

/// A signal by name or number, as images (`SIGQUIT`, `QUIT`, `3`, `RTMIN+3`) and CRI (`SIGRTMINPLUS3`) write them.
fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 34] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("IOT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("STKFLT", 16),
        ("CHLD", 17),
        ("CLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("XCPU", 24),
        ("XFSZ", 25),
        ("VTALRM", 26),
        ("PROF", 27),
        ("WINCH", 28),
        ("IO", 29),
        ("POLL", 29),
        ("PWR", 30),
        ("SYS", 31),
    ];
    /// The first and last real-time signal that the C library leaves to programs (signal(7)).
    const REALTIME: (i32, i32) = (34, 64);
    if let Ok(number) = name.parse::<i32>() {
        return (1..=REALTIME.1).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == bare) {
        return Some(*number);
    }
    let offset =
        |text: &str| if text.is_empty() { Some(0) } else { text.trim_start_matches(['+', '-']).parse::<i32>().ok() };
    let number = if let Some(rest) = bare.strip_prefix("RTMIN") {
        REALTIME.0 + offset(rest.trim_start_matches("PLUS"))?
    } else {
        REALTIME.1 - offset(bare.strip_prefix("RTMAX")?.trim_start_matches("MINUS"))?
    };
    (REALTIME.0..=REALTIME.1).contains(&number).then_some(number)
}

/// Follows the links of a volume's path on the host, and makes a directory where nothing is.
fn resolve_mount(mount: &mut v1::Mount) -> Result<()> {
    if mount.host_path.is_empty() || mount.image.is_some() {
        return Ok(());
    }
    let path = PathBuf::from(&mount.host_path);
    if !path.exists() {
        fs_err::create_dir_all(&path).map_err(RuntimeError::file("make directory", &path))?;
    }
    let resolved = fs_err::canonicalize(&path).map_err(RuntimeError::file("find", &path))?;
    mount.host_path = resolved.display().to_string();
    Ok(())
}

fn localhost_profile(security: &v1::LinuxContainerSecurityContext) -> Result<Option<Value>> {
    let Some(profile) = security.seccomp.as_ref() else { return Ok(None) };
    if profile.profile_type() != v1::security_profile::ProfileType::Localhost {
        return Ok(None);
    }
    let path = PathBuf::from(profile.localhost_ref.trim_start_matches("localhost/"));
    let text = fs_err::read(&path).map_err(RuntimeError::file("read the seccomp profile", &path))?;
    serde_json::from_slice(&text).map(Some).map_err(|source| RuntimeError::SeccompFile { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_spellings() {
        let cases = [
            ("SIGQUIT", Some(3)),
            ("quit", Some(3)),
            ("15", Some(15)),
            ("SIGRTMIN", Some(34)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMINPLUS3", Some(37)),
            ("SIGRTMAXMINUS14", Some(50)),
            ("RTMAX-1", Some(63)),
            ("0", None),
            ("65", None),
            ("RTMIN+99", None),
            ("SIGNONE", None),
        ];
        for (name, expected) in cases {
            assert_eq!(signal_number(name), expected, "{name}");
        }
    }

    #[test]
    fn every_signal_of_cri_has_a_number() {
        for value in 1..=65 {
            let signal = v1::Signal::try_from(value).expect("CRI's own number");
            assert!(signal_number(signal.as_str_name()).is_some(), "{}", signal.as_str_name());
        }
    }
}
