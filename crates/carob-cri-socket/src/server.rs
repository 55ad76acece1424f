//! Our runtime on a socket, for crictl, or for a kubelet.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use carob_cri::{Cri, CriError};
use carob_grpc::{Routes, ServerLimits, Status};
use futures_util::StreamExt as _;
use prost::Message;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::code::to_status;
use crate::paths::{MESSAGE_LEN_MAX, image, runtime};
use crate::streams::StreamServer;

/// A kubelet has one or two connections, crictl one for each command.
const LIMITS: ServerLimits = ServerLimits { connections_max: 256, streams_max: 256 };

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("prepare the socket {}", path.display())]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is there and is no socket", .0.display())]
    NoSocket(PathBuf),
    #[error("another program listens on {}", .0.display())]
    InUse(PathBuf),
    #[error("listen for streams on loopback")]
    Streams(#[source] io::Error),
}

/// Serves `cri` on the socket at `path`, which only its owner can connect to, until the shutdown. `ready` is called once
/// it listens.
pub async fn serve(
    path: &Path,
    cri: Arc<dyn Cri>,
    ready: impl FnOnce(),
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let listener = listen(path).await?;
    let streams = StreamServer::bind(Arc::clone(&cri)).await.map_err(ServeError::Streams)?;
    let routes = routes(&cri, &streams);
    ready();
    tokio::join!(carob_grpc::serve(listener, routes, LIMITS, shutdown.clone()), streams.run(shutdown),);
    Ok(())
}

async fn listen(path: &Path) -> Result<UnixListener, ServeError> {
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    let failed = |source| ServeError::Socket { path: path.to_owned(), source };
    match tokio::fs::symlink_metadata(path).await {
        Ok(found) if !found.file_type().is_socket() => return Err(ServeError::NoSocket(path.to_owned())),
        // What a process left that was killed takes no connections.
        Ok(_) if tokio::net::UnixStream::connect(path).await.is_ok() => return Err(ServeError::InUse(path.to_owned())),
        Ok(_) => tokio::fs::remove_file(path).await.map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    tokio::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).await.map_err(failed)?;
    Ok(listener)
}

/// The rpcs, each handed to the runtime.
struct Rpcs {
    routes: Routes,
    cri: Arc<dyn Cri>,
}

impl Rpcs {
    fn with<Q, A, F, W>(self, path: &'static str, call: F) -> Self
    where
        Q: Message + Default + 'static,
        A: Message + 'static,
        F: Fn(Arc<dyn Cri>, Q) -> W + Send + Sync + 'static,
        W: Future<Output = Result<A, CriError>> + Send + 'static,
    {
        let Self { routes, cri } = self;
        let shared = Arc::clone(&cri);
        let routes = routes.unary(path, move |request: Q| {
            let call = call(Arc::clone(&shared), request);
            async move { call.await.map_err(to_status) }
        });
        Self { routes, cri }
    }
}

fn routes(cri: &Arc<dyn Cri>, streams: &Arc<StreamServer>) -> Routes {
    let rpcs = Rpcs { routes: Routes::new(MESSAGE_LEN_MAX), cri: Arc::clone(cri) };
    let rpcs = stats(images(containers(sandboxes(rpcs))));
    let (exec, attach, forward) = (Arc::clone(streams), Arc::clone(streams), Arc::clone(streams));
    let rpcs = rpcs
        .with(runtime!("Exec"), move |_, request| {
            let streams = Arc::clone(&exec);
            async move { streams.exec(request) }
        })
        .with(runtime!("Attach"), move |_, request| {
            let streams = Arc::clone(&attach);
            async move { streams.attach(request) }
        })
        .with(runtime!("PortForward"), move |_, request| {
            let streams = Arc::clone(&forward);
            async move { streams.port_forward(request) }
        });
    let events = Arc::clone(cri);
    rpcs.routes.server_stream(runtime!("GetContainerEvents"), move |request| {
        let cri = Arc::clone(&events);
        async move {
            let events = cri.get_container_events(request).await.map_err(to_status)?;
            Ok::<_, Status>(events.map(|event| event.map_err(to_status)))
        }
    })
}

fn sandboxes(rpcs: Rpcs) -> Rpcs {
    rpcs.with(runtime!("Version"), |cri, request| async move { cri.version(request).await })
        .with(runtime!("StopPodSandbox"), |cri, request| async move { cri.stop_pod_sandbox(request).await })
        .with(runtime!("RemovePodSandbox"), |cri, request| async move { cri.remove_pod_sandbox(request).await })
        .with(runtime!("PodSandboxStatus"), |cri, request| async move { cri.pod_sandbox_status(request).await })
        .with(runtime!("ListPodSandbox"), |cri, request| async move { cri.list_pod_sandbox(request).await })
        .with(runtime!("UpdateRuntimeConfig"), |cri, request| async move { cri.update_runtime_config(request).await })
        .with(runtime!("Status"), |cri, request| async move { cri.status(request).await })
        .with(runtime!("RuntimeConfig"), |cri, request| async move { cri.runtime_config(request).await })
        .with(runtime!("UpdatePodSandboxResources"), |cri, request| async move {
            cri.update_pod_sandbox_resources(request).await
        })
        .with(runtime!("RunPodSandbox"), |cri, request| async move { cri.run_pod_sandbox(request).await })
}

fn containers(rpcs: Rpcs) -> Rpcs {
    rpcs.with(runtime!("CreateContainer"), |cri, request| async move { cri.create_container(request).await })
        .with(runtime!("StartContainer"), |cri, request| async move { cri.start_container(request).await })
        .with(runtime!("RemoveContainer"), |cri, request| async move { cri.remove_container(request).await })
        .with(runtime!("ListContainers"), |cri, request| async move { cri.list_containers(request).await })
        .with(runtime!("ContainerStatus"), |cri, request| async move { cri.container_status(request).await })
        .with(runtime!("UpdateContainerResources"), |cri, request| async move {
            cri.update_container_resources(request).await
        })
        .with(runtime!("ReopenContainerLog"), |cri, request| async move { cri.reopen_container_log(request).await })
        .with(runtime!("CheckpointContainer"), |cri, request| async move { cri.checkpoint_container(request).await })
        .with(runtime!("StopContainer"), |cri, request| async move { cri.stop_container(request).await })
        .with(runtime!("ExecSync"), |cri, request| async move { cri.exec_sync(request).await })
}

fn stats(rpcs: Rpcs) -> Rpcs {
    rpcs.with(runtime!("ContainerStats"), |cri, request| async move { cri.container_stats(request).await })
        .with(runtime!("ListContainerStats"), |cri, request| async move { cri.list_container_stats(request).await })
        .with(runtime!("PodSandboxStats"), |cri, request| async move { cri.pod_sandbox_stats(request).await })
        .with(runtime!("ListPodSandboxStats"), |cri, request| async move { cri.list_pod_sandbox_stats(request).await })
        .with(
            runtime!("ListMetricDescriptors"),
            |cri, request| async move { cri.list_metric_descriptors(request).await },
        )
        .with(
            runtime!("ListPodSandboxMetrics"),
            |cri, request| async move { cri.list_pod_sandbox_metrics(request).await },
        )
}

fn images(rpcs: Rpcs) -> Rpcs {
    rpcs.with(image!("ListImages"), |cri, request| async move { cri.list_images(request).await })
        .with(image!("ImageStatus"), |cri, request| async move { cri.image_status(request).await })
        .with(image!("RemoveImage"), |cri, request| async move { cri.remove_image(request).await })
        .with(image!("ImageFsInfo"), |cri, request| async move { cri.image_fs_info(request).await })
        .with(image!("PullImage"), |cri, request| async move { cri.pull_image(request).await })
}
