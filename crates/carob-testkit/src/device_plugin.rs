//! A real device plug-in: each of its devices is `/dev/zero` under another name, and they come, go and fail as a test says.
//!
//! The devices are in the file `devices`, an id and a health per line. It registers again when the node has started again, as
//! plug-ins do.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use carob_devices::pod_resources_v1::{ListPodResourcesRequest, ListPodResourcesResponse};
use carob_devices::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, ContainerPreferredAllocationResponse, Device,
    DevicePluginOptions, DeviceSpec, Empty, ListAndWatchResponse, Mount, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest,
};
use carob_devices::{VERSION, paths};
use carob_grpc::{Channel, ChannelConfig, Endpoint, Routes, Status, serve};
use fs_err as fs;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Process, spawn_and_read};
use crate::peer::{self, LIMITS, Peer, call, listen};

/// How often the file of devices is looked at, and the node while it is away.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A device plug-in beside a cluster's server, as a test sees it.
#[derive(Debug)]
pub struct DevicePluginProcess {
    program: PathBuf,
    arguments: Vec<String>,
    dir: PathBuf,
    process: Option<Process>,
}

impl DevicePluginProcess {
    /// Starts the program that a test was built with, for a resource with these devices. It registers in time.
    pub fn start(cluster: &Cluster, program: &str, resource: &str, devices: &[&str]) -> Result<Self> {
        let dir = cluster.host.dir().join(resource.replace('/', "_"));
        fs::create_dir_all(dir.join("faults"))?;
        let kubelet_dir = cluster.data_dir().join("kubelet");
        let arguments = vec![
            format!("resource={resource}"),
            format!("kubelet-dir={}", kubelet_dir.display()),
            format!("dir={}", dir.display()),
        ];
        let mut plugin = Self { program: program.into(), arguments, dir, process: None };
        plugin.list(devices)?;
        plugin.start_again(cluster)?;
        Ok(plugin)
    }

    /// Starts it again after [`DevicePluginProcess::kill`], or after it died.
    pub fn start_again(&mut self, cluster: &Cluster) -> Result<()> {
        self.process = None;
        let mut command = cluster.host.command(&self.program);
        command.args(&self.arguments);
        self.process = Some(spawn_and_read(command, &self.dir.with_extension("log"))?);
        Ok(())
    }

    /// Kills it with SIGKILL; its socket stays.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the plug-in is not running")?.kill()
    }

    /// Has it list these devices from now on: ids, followed by `=Unhealthy` where they are.
    pub fn list(&self, devices: &[&str]) -> Result<()> {
        let whole = self.dir.join(".devices");
        fs::write(&whole, devices.join("\n"))?;
        Ok(fs::rename(whole, self.dir.join("devices"))?)
    }

    pub fn fail(&self, method: &str, how: Option<&str>) -> Result<()> {
        peer::fail(&self.dir, method, how)
    }

    pub fn calls(&self, method: &str) -> Result<Vec<Value>> {
        peer::calls(&self.dir, method)
    }
}

/// Who has which devices, as the node tells exporters: namespace, Pod, container and device.
pub fn pod_resources(cluster: &Cluster) -> Result<Vec<[String; 4]>> {
    let socket = cluster.data_dir().join("kubelet/pod-resources/kubelet.sock");
    let config = ChannelConfig { connect_timeout: CONNECT_TIMEOUT, message_len_max: paths::MESSAGE_LEN_MAX, tls: None };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer: ListPodResourcesResponse = runtime.block_on(async {
        let node = Channel::new(vec![Endpoint::Unix(socket)], config);
        node.call(paths::LIST_POD_RESOURCES, ListPodResourcesRequest {}, Some(CONNECT_TIMEOUT)).await
    })?;
    let mut all = Vec::new();
    for pod in &answer.pod_resources {
        for container in &pod.containers {
            for id in container.devices.iter().flat_map(|devices| &devices.device_ids) {
                all.push([&pod.namespace, &pod.name, &container.name, id].map(Clone::clone));
            }
        }
    }
    all.sort();
    Ok(all)
}

struct Plugin {
    resource: String,
    kubelet_dir: PathBuf,
    dir: PathBuf,
}

impl Peer for Plugin {
    fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Serves until the process is ended, by arguments as [`DevicePluginProcess`] gives them. Says `ready` when it has registered.
pub fn serve_device_plugin(arguments: impl IntoIterator<Item = String>) -> Result<()> {
    let mut values = BTreeMap::new();
    for argument in arguments {
        let (key, value) = argument.split_once('=').with_context(|| format!("{argument} is no KEY=VALUE"))?;
        values.insert(key.to_owned(), value.to_owned());
    }
    let mut take = |key: &str| values.remove(key).with_context(|| format!("{key} is missing"));
    let plugin = Arc::new(Plugin {
        resource: take("resource")?,
        kubelet_dir: take("kubelet-dir")?.into(),
        dir: take("dir")?.into(),
    });
    if let Some(key) = values.keys().next() {
        bail!("{key} is unknown");
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(run(plugin))
}

async fn run(plugin: Arc<Plugin>) -> Result<()> {
    fs::write(plugin.dir.join("shared"), "shared\n")?;
    let name = format!("{}.sock", plugin.resource.replace('/', "_"));
    let sockets = plugin.kubelet_dir.join("device-plugins");
    let mut first = true;
    loop {
        let (end, left) = (CancellationToken::new(), Arc::new(Notify::new()));
        let server = tokio::spawn(serve(listen(&sockets.join(&name))?, routes(&plugin, &left), LIMITS, end.clone()));
        // The node may be starting just now.
        let registered = register(&plugin, &sockets, &name).await;
        if std::mem::take(&mut first) {
            writeln!(std::io::stdout(), "ready")?;
        }
        match registered {
            Ok(()) => left.notified().await,
            Err(error) => {
                writeln!(std::io::stderr(), "not registered: {error:#}")?;
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        end.cancel();
        server.await?;
    }
}

async fn register(plugin: &Plugin, sockets: &Path, name: &str) -> Result<()> {
    let config = ChannelConfig { connect_timeout: CONNECT_TIMEOUT, message_len_max: paths::MESSAGE_LEN_MAX, tls: None };
    let node = Channel::new(vec![Endpoint::Unix(sockets.join("kubelet.sock"))], config);
    let request = RegisterRequest {
        version: VERSION.to_owned(),
        endpoint: name.to_owned(),
        resource_name: plugin.resource.clone(),
        options: None,
    };
    let Empty {} = node.call(paths::REGISTER, request, Some(CONNECT_TIMEOUT)).await?;
    Ok(())
}

fn routes(plugin: &Arc<Plugin>, left: &Arc<Notify>) -> Routes {
    let mut routes = Routes::new(paths::MESSAGE_LEN_MAX);
    routes = call(routes, plugin, paths::GET_OPTIONS, Plugin::options, |_| json!({}));
    routes = call(routes, plugin, paths::GET_PREFERRED_ALLOCATION, Plugin::preferred, |request| {
        let request: &PreferredAllocationRequest = request;
        let asked = request.container_requests.first();
        json!({"available": asked.map(|asked| asked.available_device_i_ds.clone())})
    });
    routes = call(
        routes,
        plugin,
        paths::ALLOCATE,
        Plugin::allocate,
        |request: &AllocateRequest| json!({"ids": request.container_requests.first().map(|asked| asked.devices_ids.clone())}),
    );
    routes = call(routes, plugin, paths::PRE_START_CONTAINER, Plugin::pre_start, |request| {
        let request: &PreStartContainerRequest = request;
        json!({"ids": request.devices_ids})
    });
    let (plugin, left) = (Arc::clone(plugin), Arc::clone(left));
    routes.server_stream(paths::LIST_AND_WATCH, move |_: Empty| {
        let watch = Watch { plugin: Arc::clone(&plugin), left: Arc::clone(&left), shown: None };
        async move {
            Ok(stream::unfold(watch, |mut watch| async move {
                let next = watch.next().await.map_err(|error| Status::internal(format!("{error:#}")));
                Some((next, watch))
            }))
        }
    })
}

/// One watch of the node; its end is that of the node.
struct Watch {
    plugin: Arc<Plugin>,
    /// Told when the node has hung up.
    left: Arc<Notify>,
    shown: Option<String>,
}

impl Watch {
    async fn next(&mut self) -> Result<ListAndWatchResponse> {
        loop {
            let text = fs::read_to_string(self.plugin.dir.join("devices"))?;
            if self.shown.as_ref() != Some(&text) {
                let devices = text.split_whitespace().map(|line| {
                    let (id, health) = line.split_once('=').unwrap_or((line, "Healthy"));
                    Device { id: id.to_owned(), health: health.to_owned(), topology: None }
                });
                let devices = devices.collect();
                self.shown = Some(text);
                return Ok(ListAndWatchResponse { devices });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.left.notify_one();
    }
}

#[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "all calls have one form")]
impl Plugin {
    fn options(&self, _: &Empty) -> Result<DevicePluginOptions> {
        Ok(DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true })
    }

    /// The last of them, which nobody would choose unasked.
    fn preferred(&self, request: &PreferredAllocationRequest) -> Result<PreferredAllocationResponse> {
        let answer = request.container_requests.iter().map(|asked| {
            let mut ids = asked.available_device_i_ds.clone();
            ids.sort();
            ContainerPreferredAllocationResponse { device_i_ds: ids.pop().into_iter().collect() }
        });
        Ok(PreferredAllocationResponse { container_responses: answer.collect() })
    }

    fn allocate(&self, request: &AllocateRequest) -> Result<AllocateResponse> {
        let answer = request.container_requests.iter().map(|asked| {
            let ids = asked.devices_ids.join(",");
            let device = |id: &String| DeviceSpec {
                container_path: format!("/dev/card-{id}"),
                host_path: "/dev/zero".to_owned(),
                permissions: "rw".to_owned(),
            };
            ContainerAllocateResponse {
                envs: [("CARDS".to_owned(), ids.clone())].into(),
                mounts: vec![Mount {
                    container_path: "/etc/cards".to_owned(),
                    host_path: self.dir.join("shared").display().to_string(),
                    read_only: true,
                }],
                devices: asked.devices_ids.iter().map(device).collect(),
                annotations: [("example.com/cards".to_owned(), ids)].into(),
                cdi_devices: Vec::new(),
            }
        });
        Ok(AllocateResponse { container_responses: answer.collect() })
    }

    fn pre_start(&self, _: &PreStartContainerRequest) -> Result<PreStartContainerResponse> {
        Ok(PreStartContainerResponse {})
    }
}
