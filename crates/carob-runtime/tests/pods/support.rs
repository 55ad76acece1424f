//! A runtime in throw-away directories and control groups, with one image made of this machine's busybox.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use carob_cri::{ImageService as _, RuntimeService, v1};
use carob_image::{
    Credentials, ImageId, ImageRecord, Progress, PullError, Reference, RemoveOutcome, StoreError, Usage,
};
use carob_net::{AttachRequest, Attachment, NetConfig, PodNetwork};
use carob_runtime::{Images, Network, NetworkError, Runtime, RuntimeConfig};
use carob_sys::cgroup::{Cgroup, Layout};
use futures_util::StreamExt;
use ipnet::IpNet;
use oci_spec::image::ImageConfiguration;

pub(crate) const IMAGE: &str = "busybox";
/// The same with a second layer and what images in the wild have: a VOLUME with content, a link that dangles.
pub(crate) const ODD_IMAGE: &str = "odd";

static HOSTS: AtomicU32 = AtomicU32::new(0);

/// One image, whose only layer is a directory; and an odd one on top of it, which no list shows.
struct OneImage {
    record: Arc<ImageRecord>,
    layer: PathBuf,
    odd: Arc<ImageRecord>,
    odd_layer: PathBuf,
}

#[async_trait]
impl Images for OneImage {
    fn find(&self, name: &str) -> Option<Arc<ImageRecord>> {
        let records = [(IMAGE, &self.record), (ODD_IMAGE, &self.odd)];
        let found = records.into_iter().find(|(own, record)| name == *own || name == record.id.to_string());
        found.map(|(_, record)| Arc::clone(record))
    }

    fn layers(&self, id: &ImageId) -> Option<Vec<PathBuf>> {
        let base = vec![self.layer.clone()];
        Some(if *id == self.odd.id { [vec![self.odd_layer.clone()], base].concat() } else { base })
    }

    fn touch(&self, _id: &ImageId) {}

    fn list(&self) -> Vec<Arc<ImageRecord>> {
        vec![Arc::clone(&self.record)]
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }

    async fn pull(
        &self,
        _reference: &Reference,
        _credentials: Option<&Credentials>,
        _progress: Arc<dyn Progress>,
    ) -> Result<Arc<ImageRecord>, PullError> {
        Ok(Arc::clone(&self.record))
    }

    async fn remove(&self, _name: &str) -> Result<RemoveOutcome, StoreError> {
        Ok(RemoveOutcome::Absent)
    }
}

/// Sandboxes have a network namespace of their own and nothing in it.
struct NoNetwork;

#[async_trait]
impl Network for NoNetwork {
    async fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetworkError> {
        assert!(request.netns.exists(), "the namespace is there when the sandbox joins the network");
        Ok(Attachment { ips: vec!["10.244.0.2".parse().expect("an address")], interface: "eth0" })
    }

    async fn detach(&self, _sandbox_id: &str) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn sweep(&self, _live: &BTreeSet<String>) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn set_pod_cidrs(&self, _pod_cidrs: Vec<IpNet>) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn remove(&self) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn unready(&self) -> Option<String> {
        None
    }
}

/// A busybox with its links, and users to look up.
fn make_layer(directory: &Path) {
    let bin = directory.join("bin");
    for name in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
        fs_err::create_dir_all(directory.join(name)).expect("a directory");
    }
    fs_err::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
    for applet in [
        "sh", "cat", "echo", "sleep", "id", "mknod", "ls", "kill", "unshare", "stty", "env", "true", "head",
        "hostname", "nc",
    ] {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).expect("a link");
    }
    fs_err::write(directory.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
        .expect("a file");
    fs_err::write(directory.join("etc/group"), "root:x:0:\napp:x:1000:\nextra:x:2000:app\n").expect("a file");
}

pub(crate) fn one_image(directory: &Path) -> Arc<dyn Images> {
    let layer = directory.join("layer");
    if !layer.exists() {
        make_layer(&layer);
    }
    let odd_layer = directory.join("odd-layer");
    if !odd_layer.exists() {
        make_odd_layer(&odd_layer);
    }
    let odd = record(2, ODD_IMAGE, r#"{"Env": ["PATH=/bin", "", "NOVALUE"], "Volumes": {"/data": {}}}"#);
    let record = record(1, IMAGE, r#"{"Env": ["PATH=/bin"]}"#);
    Arc::new(OneImage { record: Arc::new(record), layer, odd: Arc::new(odd), odd_layer })
}

fn make_odd_layer(directory: &Path) {
    let data = directory.join("data");
    fs_err::create_dir_all(&data).expect("a directory");
    fs_err::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o750)).expect("a mode");
    fs_err::write(data.join("kept"), "from the image\n").expect("a file");
    fs_err::create_dir(directory.join("etc")).expect("a directory");
    std::os::unix::fs::symlink("/run/resolve/hostname", directory.join("etc/hostname")).expect("a link");
}

fn record(number: u32, name: &str, config: &str) -> ImageRecord {
    let rootfs = r#""rootfs": {"type": "layers", "diff_ids": []}"#;
    let config = format!(r#"{{"architecture": "amd64", "os": "linux", {rootfs}, "config": {config}}}"#);
    ImageRecord {
        id: format!("sha256:{number:064x}").parse().expect("an id"),
        tags: vec![name.to_owned()],
        digests: Vec::new(),
        manifests: BTreeSet::new(),
        size_bytes: 1,
        layers: Vec::new(),
        config: Arc::new(ImageConfiguration::from_reader(config.as_bytes()).expect("a configuration")),
        pinned: false,
        fetched: jiff::Timestamp::UNIX_EPOCH,
    }
}

/// A runtime whose Pods are joined to no network.
pub(crate) fn config(directory: &Path, cgroup_root: &Path, die_with_parent: bool) -> RuntimeConfig {
    RuntimeConfig {
        data_dir: directory.join("data"),
        run_dir: directory.join("run"),
        cgroup_root: cgroup_root.to_owned(),
        instance: "test".to_owned(),
        die_with_parent,
        handlers: BTreeMap::new(),
        images: one_image(directory),
        network: Arc::new(NoNetwork),
        clock: Arc::new(carob_kit::SystemClock::new()),
    }
}

/// A runtime of its own. [`Host::close`] fails where anything is left behind.
pub(crate) struct Host {
    pub(crate) runtime: Arc<Runtime>,
    directory: tempfile::TempDir,
    cgroup_root: PathBuf,
}

impl Host {
    pub(crate) async fn new() -> Self {
        Self::open(tempfile::tempdir().expect("a directory"), Arc::new(NoNetwork)).await
    }

    /// With carob's own Pod network, in the network namespace of the calling process.
    pub(crate) async fn with_network() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let network = PodNetwork::open(NetConfig {
            instance: "test".to_owned(),
            state_dir: directory.path().join("network"),
            pod_cidrs: vec!["10.244.0.0/24".parse().expect("a CIDR")],
            cluster_cidrs: vec!["10.244.0.0/16".parse().expect("a CIDR")],
            clock: Arc::new(carob_kit::SystemClock::new()),
        });
        Self::open(directory, Arc::new(network.await.expect("the network opens"))).await
    }

    async fn open(directory: tempfile::TempDir, network: Arc<dyn Network>) -> Self {
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        let cgroup_root = PathBuf::from(format!("/carob-runtime-test-{}-{number}", std::process::id()));
        let config = RuntimeConfig { network, ..config(directory.path(), &cgroup_root, false) };
        let runtime = Runtime::open(config).await.expect("the runtime opens");
        Self { runtime, directory, cgroup_root }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn cgroup_root(&self) -> &Path {
        &self.cgroup_root
    }

    /// Opens a second runtime on the same directories, as a new process would.
    pub(crate) async fn reopen(&mut self) {
        let config = config(self.directory.path(), &self.cgroup_root, false);
        self.runtime = Runtime::open(config).await.expect("the runtime opens again");
    }

    pub(crate) fn sandbox_config(&self, name: &str) -> v1::PodSandboxConfig {
        let metadata = v1::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        };
        let cgroup_parent = self.cgroup_root.join(format!("kubepods/besteffort/pod{name}")).display().to_string();
        v1::PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            log_directory: self.directory().join("logs").join(name).display().to_string(),
            linux: Some(v1::LinuxPodSandboxConfig { cgroup_parent, ..v1::LinuxPodSandboxConfig::default() }),
            ..v1::PodSandboxConfig::default()
        }
    }

    pub(crate) async fn run_sandbox(&self, name: &str) -> String {
        self.run_sandbox_with(self.sandbox_config(name)).await
    }

    pub(crate) async fn run_sandbox_with(&self, config: v1::PodSandboxConfig) -> String {
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        self.runtime.run_pod_sandbox(request).await.expect("the sandbox runs").pod_sandbox_id
    }

    pub(crate) async fn create(&self, sandbox: &str, config: v1::ContainerConfig) -> String {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: None,
        };
        self.runtime.create_container(request).await.expect("the container is created").container_id
    }

    pub(crate) async fn start(&self, container: &str) {
        let request = v1::StartContainerRequest { container_id: container.to_owned() };
        self.runtime.start_container(request).await.expect("the container starts");
    }

    pub(crate) async fn run(&self, sandbox: &str, config: v1::ContainerConfig) -> String {
        let container = self.create(sandbox, config).await;
        self.start(&container).await;
        container
    }

    pub(crate) async fn status(&self, container: &str) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        self.runtime.container_status(request).await.expect("the container is known").status.expect("a status")
    }

    /// Waits for the event that a container has ended.
    pub(crate) async fn wait(&self, container: &str) -> v1::ContainerStatus {
        let mut events = self.runtime.get_container_events(v1::GetEventsRequest {}).await.expect("a stream");
        loop {
            let status = self.status(container).await;
            if status.state() == v1::ContainerState::ContainerExited {
                return status;
            }
            let event = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
            event.expect("the container ends in time").expect("the stream goes on").expect("no event is missed");
        }
    }

    pub(crate) async fn stop(&self, container: &str, timeout: i64) {
        let request = v1::StopContainerRequest { container_id: container.to_owned(), timeout };
        self.runtime.stop_container(request).await.expect("the container stops");
    }

    pub(crate) async fn exec(&self, container: &str, command: &[&str]) -> v1::ExecSyncResponse {
        let request = v1::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 20,
        };
        self.runtime.exec_sync(request).await.expect("the command runs")
    }

    /// What a container has written to one stream, without the log's own columns.
    pub(crate) async fn log(&self, container: &str, stream: &str) -> String {
        let path = self.status(container).await.log_path;
        let text = fs_err::read_to_string(path).expect("a log");
        let (whole, part) = (format!(" {stream} F "), format!(" {stream} P "));
        let said = |line: &str| match (line.split_once(&whole), line.split_once(&part)) {
            (Some((_, text)), _) => format!("{text}\n"),
            (None, Some((_, text))) => text.to_owned(),
            (None, None) => String::new(),
        };
        text.lines().map(said).collect()
    }

    pub(crate) async fn remove_sandbox(&self, sandbox: &str) {
        let stop = v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        self.runtime.stop_pod_sandbox(stop).await.expect("the sandbox stops");
        let remove = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        self.runtime.remove_pod_sandbox(remove).await.expect("the sandbox is removed");
    }

    /// Removes all sandboxes, and fails where anything of them is left.
    pub(crate) async fn close(self) {
        for sandbox in self.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.expect("a list").items
        {
            self.remove_sandbox(&sandbox.id).await;
        }
        assert_eq!(self.leftovers(), Vec::<String>::new(), "nothing is left behind");
        let images = self.runtime.list_images(v1::ListImagesRequest::default()).await.expect("a list").images;
        assert_eq!(images.len(), 1, "images do not go with Pods");
    }

    /// Waits until every process of the host that there is now has ended.
    pub(crate) fn until_processes_end(&self) {
        use rustix::event::{PollFd, PollFlags, poll};
        use rustix::process::{Pid, PidfdFlags, pidfd_open};

        let layout = Layout::detect().expect("control groups");
        for pid in Cgroup::new(&layout, &self.cgroup_root).pids().expect("readable") {
            match pidfd_open(Pid::from_raw(pid).expect("a process"), PidfdFlags::empty()) {
                Ok(process) => assert_eq!(poll(&mut [PollFd::new(&process, PollFlags::IN)], None), Ok(1)),
                Err(error) => assert_eq!(error, rustix::io::Errno::SRCH, "it has ended already"),
            }
        }
    }

    /// Mounts, groups, processes and directories of sandboxes.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let run = self.directory().join("run");
        let mounts = carob_sys::mountinfo::read().expect("a mount table");
        let below = mounts.iter().map(|mount| &mount.target).filter(|target| target.starts_with(&run));
        let mut left: Vec<String> = below
            .filter(|target| **target != run.join("rootfs"))
            .map(|target| format!("mount {}", target.display()))
            .collect();
        let layout = Layout::detect().expect("control groups");
        for parent in ["kubepods", "kubepods/besteffort", "kubepods/burstable"] {
            let group = Cgroup::new(&layout, self.cgroup_root.join(parent));
            let pods = group.children().expect("readable").into_iter().filter(|name| name.starts_with("pod"));
            left.extend(pods.map(|name| format!("group {parent}/{name}")));
        }
        let all = Cgroup::new(&layout, &self.cgroup_root).pids().expect("readable");
        left.extend(all.into_iter().map(|pid| format!("process {pid}")));
        for directory in ["run/sandboxes", "data/layers"] {
            let entries = fs_err::read_dir(self.directory().join(directory)).expect("a directory");
            left.extend(entries.map(|entry| entry.expect("an entry").path().display().to_string()));
        }
        left
    }
}

impl Drop for Host {
    /// Also after a test that failed: no process, mount or group stays.
    fn drop(&mut self) {
        let Ok(layout) = Layout::detect() else { return };
        let group = Cgroup::new(&layout, &self.cgroup_root);
        end_all(&group);
        let directory = self.directory.path().to_owned();
        for mount in carob_sys::mountinfo::read().unwrap_or_default().iter().rev() {
            if mount.target.starts_with(&directory) {
                rustix::mount::unmount(&mount.target, rustix::mount::UnmountFlags::DETACH).ok();
            }
        }
        group.remove().ok();
    }
}

/// Kills what is left in a group, and waits until it is gone.
fn end_all(group: &Cgroup) {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    let pids = group.pids().unwrap_or_default();
    let processes = pids.into_iter().filter_map(|pid| pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok());
    let processes: Vec<_> = processes.collect();
    if group.kill().is_ok() {
        for process in &processes {
            poll(&mut [PollFd::new(process, PollFlags::IN)], None).ok();
        }
    }
}

/// A container that runs a shell script, in a PID namespace of its own with the default seccomp profile.
pub(crate) fn script(name: &str, script: &str) -> v1::ContainerConfig {
    let security = v1::LinuxContainerSecurityContext {
        namespace_options: Some(v1::NamespaceOption {
            pid: v1::NamespaceMode::Container as i32,
            ..v1::NamespaceOption::default()
        }),
        seccomp: Some(v1::SecurityProfile::default()),
        ..v1::LinuxContainerSecurityContext::default()
    };
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: IMAGE.to_owned(), ..v1::ImageSpec::default() }),
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()],
        log_path: format!("{name}/0.log"),
        linux: Some(v1::LinuxContainerConfig { resources: None, security_context: Some(security) }),
        ..v1::ContainerConfig::default()
    }
}

/// Changes the security of a container.
pub(crate) fn secured(
    mut config: v1::ContainerConfig,
    change: impl FnOnce(&mut v1::LinuxContainerSecurityContext),
) -> v1::ContainerConfig {
    change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
    config
}
