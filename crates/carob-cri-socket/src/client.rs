//! A runtime behind a socket, as the node sees it: calls with upstream's times, streams by the URLs that it gives (cri-client
//! `pkg/remote_runtime.go`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use carob_cri::{
    ByteStream, Code, ContainerEvents, CriError, ExecSession, ExecStart, ImageService, RuntimeService, Streaming, v1,
};
use carob_grpc::{Answers, Channel, ChannelConfig, Endpoint, EndpointError};
use carob_kit::names::Names;
use carob_streams::client::{self, Wanted};
use futures_util::{StreamExt as _, stream};
use prost::Message;

use crate::code::to_error;
use crate::groups::{self, PodGroups};
use crate::paths::{MESSAGE_LEN_MAX, image, runtime};

type Reply<T> = Result<T, CriError>;

/// Time to connect (`minConnectionTimeout`).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for an answer (`runtimeRequestTimeout` of a kubelet). A sandbox may take twice that; a pull, as long as it takes.
const REQUEST: Duration = Duration::from_secs(120);
const SANDBOX: Duration = Duration::from_secs(240);
/// Time in which a runtime without events says so.
const EVENTS_REFUSAL_TIME: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum RemoteRuntimeError {
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("the runtime's endpoint {0} is not a unix socket")]
    NotUnix(String),
}

/// Drives a runtime such as containerd or CRI-O.
pub struct RemoteRuntime {
    channel: Channel,
    names: Names,
    groups: Arc<dyn PodGroups>,
}

impl RemoteRuntime {
    /// `endpoint`: `unix:///run/containerd/containerd.sock`. Connects with the first call, and again when that is needed.
    pub fn new(endpoint: &str, groups: Arc<dyn PodGroups>) -> Result<Self, RemoteRuntimeError> {
        let endpoint = Endpoint::parse(endpoint, None)?;
        if !matches!(endpoint, Endpoint::Unix(_)) {
            return Err(RemoteRuntimeError::NotUnix(endpoint.to_string()));
        }
        let config = ChannelConfig { connect_timeout: CONNECT_TIMEOUT, message_len_max: MESSAGE_LEN_MAX, tls: None };
        Ok(Self { channel: Channel::new(vec![endpoint], config), names: Names::default(), groups })
    }

    async fn ask<Q, A>(&self, path: &'static str, request: Q, within: Option<Duration>) -> Reply<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.channel.call(path, request, within).await.map_err(to_error)
    }

    /// The control group of a sandbox's Pod; none of a sandbox that is gone.
    async fn group(&self, sandbox: &str) -> Reply<Option<PathBuf>> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
        match self.pod_sandbox_status(request).await {
            Ok(answer) => Ok(answer.status.as_ref().and_then(groups::of)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// CRI's seconds, of which no number below zero means anything.
fn seconds(timeout: i64) -> Duration {
    Duration::from_secs(u64::try_from(timeout).unwrap_or(0))
}

#[async_trait]
impl RuntimeService for RemoteRuntime {
    async fn version(&self, request: v1::VersionRequest) -> Reply<v1::VersionResponse> {
        self.ask(runtime!("Version"), request, Some(REQUEST)).await
    }

    async fn stop_pod_sandbox(&self, request: v1::StopPodSandboxRequest) -> Reply<v1::StopPodSandboxResponse> {
        self.ask(runtime!("StopPodSandbox"), request, Some(REQUEST)).await
    }

    async fn pod_sandbox_status(&self, request: v1::PodSandboxStatusRequest) -> Reply<v1::PodSandboxStatusResponse> {
        self.ask(runtime!("PodSandboxStatus"), request, Some(REQUEST)).await
    }

    async fn list_pod_sandbox(&self, request: v1::ListPodSandboxRequest) -> Reply<v1::ListPodSandboxResponse> {
        self.ask(runtime!("ListPodSandbox"), request, Some(REQUEST)).await
    }

    async fn create_container(&self, request: v1::CreateContainerRequest) -> Reply<v1::CreateContainerResponse> {
        self.ask(runtime!("CreateContainer"), request, Some(REQUEST)).await
    }

    async fn start_container(&self, request: v1::StartContainerRequest) -> Reply<v1::StartContainerResponse> {
        self.ask(runtime!("StartContainer"), request, Some(REQUEST)).await
    }

    async fn remove_container(&self, request: v1::RemoveContainerRequest) -> Reply<v1::RemoveContainerResponse> {
        self.ask(runtime!("RemoveContainer"), request, Some(REQUEST)).await
    }

    async fn list_containers(&self, request: v1::ListContainersRequest) -> Reply<v1::ListContainersResponse> {
        self.ask(runtime!("ListContainers"), request, Some(REQUEST)).await
    }

    async fn container_status(&self, request: v1::ContainerStatusRequest) -> Reply<v1::ContainerStatusResponse> {
        self.ask(runtime!("ContainerStatus"), request, Some(REQUEST)).await
    }

    async fn update_container_resources(
        &self,
        request: v1::UpdateContainerResourcesRequest,
    ) -> Reply<v1::UpdateContainerResourcesResponse> {
        self.ask(runtime!("UpdateContainerResources"), request, Some(REQUEST)).await
    }

    async fn reopen_container_log(
        &self,
        request: v1::ReopenContainerLogRequest,
    ) -> Reply<v1::ReopenContainerLogResponse> {
        self.ask(runtime!("ReopenContainerLog"), request, Some(REQUEST)).await
    }

    async fn container_stats(&self, request: v1::ContainerStatsRequest) -> Reply<v1::ContainerStatsResponse> {
        self.ask(runtime!("ContainerStats"), request, Some(REQUEST)).await
    }

    async fn list_container_stats(
        &self,
        request: v1::ListContainerStatsRequest,
    ) -> Reply<v1::ListContainerStatsResponse> {
        self.ask(runtime!("ListContainerStats"), request, Some(REQUEST)).await
    }

    async fn pod_sandbox_stats(&self, request: v1::PodSandboxStatsRequest) -> Reply<v1::PodSandboxStatsResponse> {
        self.ask(runtime!("PodSandboxStats"), request, Some(REQUEST)).await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: v1::ListPodSandboxStatsRequest,
    ) -> Reply<v1::ListPodSandboxStatsResponse> {
        self.ask(runtime!("ListPodSandboxStats"), request, Some(REQUEST)).await
    }

    async fn update_runtime_config(
        &self,
        request: v1::UpdateRuntimeConfigRequest,
    ) -> Reply<v1::UpdateRuntimeConfigResponse> {
        self.ask(runtime!("UpdateRuntimeConfig"), request, Some(REQUEST)).await
    }

    async fn status(&self, request: v1::StatusRequest) -> Reply<v1::StatusResponse> {
        self.ask(runtime!("Status"), request, Some(REQUEST)).await
    }

    async fn runtime_config(&self, request: v1::RuntimeConfigRequest) -> Reply<v1::RuntimeConfigResponse> {
        self.ask(runtime!("RuntimeConfig"), request, Some(REQUEST)).await
    }

    async fn list_metric_descriptors(
        &self,
        request: v1::ListMetricDescriptorsRequest,
    ) -> Reply<v1::ListMetricDescriptorsResponse> {
        self.ask(runtime!("ListMetricDescriptors"), request, Some(REQUEST)).await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        request: v1::ListPodSandboxMetricsRequest,
    ) -> Reply<v1::ListPodSandboxMetricsResponse> {
        self.ask(runtime!("ListPodSandboxMetrics"), request, Some(REQUEST)).await
    }

    async fn checkpoint_container(
        &self,
        request: v1::CheckpointContainerRequest,
    ) -> Reply<v1::CheckpointContainerResponse> {
        self.ask(runtime!("CheckpointContainer"), request, Some(REQUEST)).await
    }

    async fn run_pod_sandbox(&self, request: v1::RunPodSandboxRequest) -> Reply<v1::RunPodSandboxResponse> {
        let mut request = request;
        groups::prepare(&self.groups, &mut request)?;
        self.ask(runtime!("RunPodSandbox"), request, Some(SANDBOX)).await
    }

    async fn remove_pod_sandbox(&self, request: v1::RemovePodSandboxRequest) -> Reply<v1::RemovePodSandboxResponse> {
        let group = self.group(&request.pod_sandbox_id).await?;
        let answer = self.ask(runtime!("RemovePodSandbox"), request, Some(REQUEST)).await?;
        if let Some(group) = group {
            groups::remove(&self.groups, &group)?;
        }
        Ok(answer)
    }

    /// Ours is the group; a runtime that has this rpc wants to know of it.
    async fn update_pod_sandbox_resources(
        &self,
        request: v1::UpdatePodSandboxResourcesRequest,
    ) -> Reply<v1::UpdatePodSandboxResourcesResponse> {
        if let Some(group) = self.group(&request.pod_sandbox_id).await? {
            groups::limit(&self.groups, &group, request.resources.as_ref())?;
        }
        match self.ask(runtime!("UpdatePodSandboxResources"), request, Some(REQUEST)).await {
            Err(error) if error.code == Code::Unimplemented => Ok(v1::UpdatePodSandboxResourcesResponse {}),
            told => told,
        }
    }

    async fn stop_container(&self, request: v1::StopContainerRequest) -> Reply<v1::StopContainerResponse> {
        let within = REQUEST.saturating_add(seconds(request.timeout));
        self.ask(runtime!("StopContainer"), request, Some(within)).await
    }

    async fn exec_sync(&self, request: v1::ExecSyncRequest) -> Reply<v1::ExecSyncResponse> {
        let within = (request.timeout > 0).then(|| REQUEST.saturating_add(seconds(request.timeout)));
        self.ask(runtime!("ExecSync"), request, within).await
    }

    /// A runtime that has no events says so at once; one that has them may be silent until there is one.
    async fn get_container_events(&self, request: v1::GetEventsRequest) -> Reply<ContainerEvents> {
        let mut answers = self.channel.server_stream(runtime!("GetContainerEvents"), request);
        let first = match tokio::time::timeout(EVENTS_REFUSAL_TIME, answers.next()).await {
            Ok(Ok(Some(event))) => Some(event),
            Ok(Ok(None)) => return Ok(stream::empty().boxed()),
            Ok(Err(error)) => return Err(to_error(error)),
            Err(_) => None,
        };
        Ok(stream::iter(first.map(Ok)).chain(events(answers)).boxed())
    }

    async fn exec_url(&self, request: v1::ExecRequest) -> Reply<v1::ExecResponse> {
        self.ask(runtime!("Exec"), request, Some(REQUEST)).await
    }

    async fn attach_url(&self, request: v1::AttachRequest) -> Reply<v1::AttachResponse> {
        self.ask(runtime!("Attach"), request, Some(REQUEST)).await
    }

    async fn port_forward_url(&self, request: v1::PortForwardRequest) -> Reply<v1::PortForwardResponse> {
        self.ask(runtime!("PortForward"), request, Some(REQUEST)).await
    }
}

fn events(
    answers: Answers<v1::ContainerEventResponse>,
) -> impl stream::Stream<Item = Reply<v1::ContainerEventResponse>> + Send {
    stream::unfold(Some(answers), |answers| async move {
        let mut answers = answers?;
        match answers.next().await {
            Ok(Some(event)) => Some((Ok(event), Some(answers))),
            Ok(None) => None,
            Err(error) => Some((Err(to_error(error)), None)),
        }
    })
}

#[async_trait]
impl ImageService for RemoteRuntime {
    async fn list_images(&self, request: v1::ListImagesRequest) -> Reply<v1::ListImagesResponse> {
        self.ask(image!("ListImages"), request, Some(REQUEST)).await
    }

    async fn image_status(&self, request: v1::ImageStatusRequest) -> Reply<v1::ImageStatusResponse> {
        self.ask(image!("ImageStatus"), request, Some(REQUEST)).await
    }

    async fn remove_image(&self, request: v1::RemoveImageRequest) -> Reply<v1::RemoveImageResponse> {
        self.ask(image!("RemoveImage"), request, Some(REQUEST)).await
    }

    async fn image_fs_info(&self, request: v1::ImageFsInfoRequest) -> Reply<v1::ImageFsInfoResponse> {
        self.ask(image!("ImageFsInfo"), request, Some(REQUEST)).await
    }

    async fn pull_image(&self, request: v1::PullImageRequest) -> Reply<v1::PullImageResponse> {
        self.ask(image!("PullImage"), request, None).await
    }
}

#[async_trait]
impl Streaming for RemoteRuntime {
    async fn exec(&self, start: ExecStart) -> Reply<ExecSession> {
        let wanted = wanted(&start);
        let ExecStart { container_id, cmd, tty, stdin, stdout, stderr } = start;
        let answer = self
            .exec_url(v1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr, ..Default::default() })
            .await?;
        Ok(client::session(&self.names, &answer.url, wanted).await?)
    }

    async fn attach(&self, start: ExecStart) -> Reply<ExecSession> {
        let wanted = wanted(&start);
        let ExecStart { container_id, cmd: _, tty, stdin, stdout, stderr } = start;
        let answer = self
            .attach_url(v1::AttachRequest { container_id, stdin, tty, stdout, stderr, ..Default::default() })
            .await?;
        Ok(client::session(&self.names, &answer.url, wanted).await?)
    }

    async fn port_forward(&self, pod_sandbox_id: &str, port: u16) -> Reply<ByteStream> {
        let request = v1::PortForwardRequest { pod_sandbox_id: pod_sandbox_id.to_owned(), port: vec![i32::from(port)] };
        let answer = self.port_forward_url(request).await?;
        Ok(client::port_forward(&self.names, &answer.url, port).await?)
    }
}

fn wanted(start: &ExecStart) -> Wanted {
    Wanted { stdin: start.stdin, stdout: start.stdout, stderr: start.stderr, tty: start.tty }
}
