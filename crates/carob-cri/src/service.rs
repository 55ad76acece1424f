use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tokio::sync::watch;

use crate::{CriError, Streaming, v1};

/// What happens to containers, in order. An item that is an error ends the stream: the reader has missed events and
/// lists what there is before it subscribes again.
pub type ContainerEvents = BoxStream<'static, Result<v1::ContainerEventResponse, CriError>>;

/// `runtime.v1.RuntimeService`: sandboxes and containers.
///
/// The `Stream*` rpcs of KEP-5825 are not here: they say what the lists say, in parts, which only a socket needs.
#[async_trait]
pub trait RuntimeService: Send + Sync {
    async fn version(&self, request: v1::VersionRequest) -> Result<v1::VersionResponse, CriError>;

    /// Creates and starts a sandbox; it is ready when this returns.
    async fn run_pod_sandbox(&self, request: v1::RunPodSandboxRequest) -> Result<v1::RunPodSandboxResponse, CriError>;

    /// Ends every process of the sandbox and gives its addresses back. Idempotent.
    async fn stop_pod_sandbox(
        &self,
        request: v1::StopPodSandboxRequest,
    ) -> Result<v1::StopPodSandboxResponse, CriError>;

    /// Removes a sandbox, ending its containers first. Idempotent.
    async fn remove_pod_sandbox(
        &self,
        request: v1::RemovePodSandboxRequest,
    ) -> Result<v1::RemovePodSandboxResponse, CriError>;

    async fn pod_sandbox_status(
        &self,
        request: v1::PodSandboxStatusRequest,
    ) -> Result<v1::PodSandboxStatusResponse, CriError>;

    async fn list_pod_sandbox(
        &self,
        request: v1::ListPodSandboxRequest,
    ) -> Result<v1::ListPodSandboxResponse, CriError>;

    async fn create_container(
        &self,
        request: v1::CreateContainerRequest,
    ) -> Result<v1::CreateContainerResponse, CriError>;

    async fn start_container(&self, request: v1::StartContainerRequest)
    -> Result<v1::StartContainerResponse, CriError>;

    /// Ends a container, by force after `timeout` seconds. Idempotent.
    async fn stop_container(&self, request: v1::StopContainerRequest) -> Result<v1::StopContainerResponse, CriError>;

    /// Removes a container, by force where it runs. Idempotent.
    async fn remove_container(
        &self,
        request: v1::RemoveContainerRequest,
    ) -> Result<v1::RemoveContainerResponse, CriError>;

    async fn list_containers(&self, request: v1::ListContainersRequest)
    -> Result<v1::ListContainersResponse, CriError>;

    async fn container_status(
        &self,
        request: v1::ContainerStatusRequest,
    ) -> Result<v1::ContainerStatusResponse, CriError>;

    async fn update_container_resources(
        &self,
        request: v1::UpdateContainerResourcesRequest,
    ) -> Result<v1::UpdateContainerResourcesResponse, CriError>;

    /// Makes the runtime write to a new file at the container's log path, after the old one was renamed.
    async fn reopen_container_log(
        &self,
        request: v1::ReopenContainerLogRequest,
    ) -> Result<v1::ReopenContainerLogResponse, CriError>;

    /// Runs a command to its end. Each output is cut at 16 MiB; past `timeout` seconds the command is ended and the call
    /// fails with `DeadlineExceeded`.
    async fn exec_sync(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, CriError>;

    async fn container_stats(&self, request: v1::ContainerStatsRequest)
    -> Result<v1::ContainerStatsResponse, CriError>;

    async fn list_container_stats(
        &self,
        request: v1::ListContainerStatsRequest,
    ) -> Result<v1::ListContainerStatsResponse, CriError>;

    async fn pod_sandbox_stats(
        &self,
        request: v1::PodSandboxStatsRequest,
    ) -> Result<v1::PodSandboxStatsResponse, CriError>;

    async fn list_pod_sandbox_stats(
        &self,
        request: v1::ListPodSandboxStatsRequest,
    ) -> Result<v1::ListPodSandboxStatsResponse, CriError>;

    async fn update_runtime_config(
        &self,
        request: v1::UpdateRuntimeConfigRequest,
    ) -> Result<v1::UpdateRuntimeConfigResponse, CriError>;

    async fn status(&self, request: v1::StatusRequest) -> Result<v1::StatusResponse, CriError>;

    async fn runtime_config(&self, request: v1::RuntimeConfigRequest) -> Result<v1::RuntimeConfigResponse, CriError>;

    /// Subscribes to the events of all containers, from now on.
    async fn get_container_events(&self, request: v1::GetEventsRequest) -> Result<ContainerEvents, CriError>;

    async fn exec_url(&self, _request: v1::ExecRequest) -> Result<v1::ExecResponse, CriError> {
        Err(CriError::unimplemented("Exec"))
    }

    async fn attach_url(&self, _request: v1::AttachRequest) -> Result<v1::AttachResponse, CriError> {
        Err(CriError::unimplemented("Attach"))
    }

    async fn port_forward_url(&self, _request: v1::PortForwardRequest) -> Result<v1::PortForwardResponse, CriError> {
        Err(CriError::unimplemented("PortForward"))
    }

    async fn checkpoint_container(
        &self,
        _request: v1::CheckpointContainerRequest,
    ) -> Result<v1::CheckpointContainerResponse, CriError> {
        Err(CriError::unimplemented("CheckpointContainer"))
    }

    async fn list_metric_descriptors(
        &self,
        _request: v1::ListMetricDescriptorsRequest,
    ) -> Result<v1::ListMetricDescriptorsResponse, CriError> {
        Err(CriError::unimplemented("ListMetricDescriptors"))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: v1::ListPodSandboxMetricsRequest,
    ) -> Result<v1::ListPodSandboxMetricsResponse, CriError> {
        Err(CriError::unimplemented("ListPodSandboxMetrics"))
    }

    /// Tells the runtime that the Pod's cgroup was resized. Best effort by contract.
    async fn update_pod_sandbox_resources(
        &self,
        _request: v1::UpdatePodSandboxResourcesRequest,
    ) -> Result<v1::UpdatePodSandboxResourcesResponse, CriError> {
        Err(CriError::unimplemented("UpdatePodSandboxResources"))
    }
}

/// How far a pull is. Totals grow while layers become known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PullProgress {
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub layers_done: u32,
    pub layers_total: u32,
}

/// `runtime.v1.ImageService`: images.
#[async_trait]
pub trait ImageService: Send + Sync {
    async fn list_images(&self, request: v1::ListImagesRequest) -> Result<v1::ListImagesResponse, CriError>;

    /// Answers without an image where there is none.
    async fn image_status(&self, request: v1::ImageStatusRequest) -> Result<v1::ImageStatusResponse, CriError>;

    /// Fetches an image and answers with its id.
    async fn pull_image(&self, request: v1::PullImageRequest) -> Result<v1::PullImageResponse, CriError>;

    /// Removes an image with all its tags. Idempotent.
    async fn remove_image(&self, request: v1::RemoveImageRequest) -> Result<v1::RemoveImageResponse, CriError>;

    async fn image_fs_info(&self, request: v1::ImageFsInfoRequest) -> Result<v1::ImageFsInfoResponse, CriError>;

    /// [`ImageService::pull_image`] that says how far it is. No rpc of CRI: a runtime behind a socket stays silent.
    async fn pull_image_with_progress(
        &self,
        request: v1::PullImageRequest,
        _progress: watch::Sender<PullProgress>,
    ) -> Result<v1::PullImageResponse, CriError> {
        self.pull_image(request).await
    }
}

/// All that a node asks of a runtime.
pub trait Cri: RuntimeService + ImageService + Streaming {}
impl<T: RuntimeService + ImageService + Streaming + ?Sized> Cri for T {}
