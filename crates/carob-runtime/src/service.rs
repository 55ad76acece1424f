//! CRI's services, each call handed to the module that does it.
//!
//! What changes something runs in a task of its own: a caller that gives up leaves nothing half done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use carob_cri::{ByteStream, ContainerEvents, CriError, ExecSession, ExecStart, RuntimeService, Streaming, v1};

use crate::error::RuntimeError;
use crate::runtime::Runtime;
use crate::status::{container_status, sandbox_status};

type Reply<T> = std::result::Result<T, CriError>;

impl Runtime {
    fn shared(&self) -> Reply<Arc<Self>> {
        self.me.upgrade().ok_or_else(|| CriError::internal("the runtime is being closed"))
    }

    async fn to_the_end<T, F>(&self, work: impl FnOnce(Arc<Self>) -> F) -> Reply<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RuntimeError>> + Send + 'static,
    {
        let task = tokio::spawn(work(self.shared()?));
        task.await.map_err(|error| CriError::from(RuntimeError::from(error)))?.map_err(CriError::from)
    }
}

#[async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _request: v1::VersionRequest) -> Reply<v1::VersionResponse> {
        Ok(v1::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "carob".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        })
    }

    async fn run_pod_sandbox(&self, request: v1::RunPodSandboxRequest) -> Reply<v1::RunPodSandboxResponse> {
        let pod_sandbox_id = self.to_the_end(|runtime| async move { runtime.run_sandbox(request).await }).await?;
        Ok(v1::RunPodSandboxResponse { pod_sandbox_id })
    }

    async fn stop_pod_sandbox(&self, request: v1::StopPodSandboxRequest) -> Reply<v1::StopPodSandboxResponse> {
        self.to_the_end(|runtime| async move { runtime.stop_sandbox(&request.pod_sandbox_id).await }).await?;
        Ok(v1::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(&self, request: v1::RemovePodSandboxRequest) -> Reply<v1::RemovePodSandboxResponse> {
        self.to_the_end(|runtime| async move { runtime.remove_sandbox(&request.pod_sandbox_id).await }).await?;
        Ok(v1::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(&self, request: v1::PodSandboxStatusRequest) -> Reply<v1::PodSandboxStatusResponse> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        Ok(v1::PodSandboxStatusResponse {
            status: Some(sandbox_status(&sandbox.record())),
            info: BTreeMap::new(),
            containers_statuses: self.container_statuses(&sandbox.id),
            timestamp: self.now_ns(),
        })
    }

    async fn list_pod_sandbox(&self, request: v1::ListPodSandboxRequest) -> Reply<v1::ListPodSandboxResponse> {
        Ok(v1::ListPodSandboxResponse { items: self.list_sandboxes(request.filter.as_ref()) })
    }

    async fn create_container(&self, request: v1::CreateContainerRequest) -> Reply<v1::CreateContainerResponse> {
        let container_id = self.to_the_end(|runtime| async move { runtime.create(request).await }).await?;
        Ok(v1::CreateContainerResponse { container_id })
    }

    async fn start_container(&self, request: v1::StartContainerRequest) -> Reply<v1::StartContainerResponse> {
        self.to_the_end(|runtime| async move { runtime.start(&request.container_id).await }).await?;
        Ok(v1::StartContainerResponse {})
    }

    async fn stop_container(&self, request: v1::StopContainerRequest) -> Reply<v1::StopContainerResponse> {
        let timeout = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        self.to_the_end(|runtime| async move { runtime.stop(&request.container_id, timeout).await }).await?;
        Ok(v1::StopContainerResponse {})
    }

    async fn remove_container(&self, request: v1::RemoveContainerRequest) -> Reply<v1::RemoveContainerResponse> {
        self.to_the_end(|runtime| async move { runtime.remove(&request.container_id).await }).await?;
        Ok(v1::RemoveContainerResponse {})
    }

    async fn list_containers(&self, request: v1::ListContainersRequest) -> Reply<v1::ListContainersResponse> {
        Ok(v1::ListContainersResponse { containers: self.list_containers(request.filter.as_ref()) })
    }

    async fn container_status(&self, request: v1::ContainerStatusRequest) -> Reply<v1::ContainerStatusResponse> {
        let container = self.container(&request.container_id)?;
        let status = container_status(&container.record.borrow());
        Ok(v1::ContainerStatusResponse { status: Some(status), info: BTreeMap::new() })
    }

    async fn update_container_resources(
        &self,
        request: v1::UpdateContainerResourcesRequest,
    ) -> Reply<v1::UpdateContainerResourcesResponse> {
        self.to_the_end(|runtime| async move { runtime.update_resources(request).await }).await?;
        Ok(v1::UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: v1::ReopenContainerLogRequest,
    ) -> Reply<v1::ReopenContainerLogResponse> {
        self.reopen_log(&request.container_id).await?;
        Ok(v1::ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: v1::ExecSyncRequest) -> Reply<v1::ExecSyncResponse> {
        self.to_the_end(|runtime| async move { runtime.exec_to_end(request).await }).await
    }

    async fn container_stats(&self, request: v1::ContainerStatsRequest) -> Reply<v1::ContainerStatsResponse> {
        let container = self.container(&request.container_id)?;
        Ok(v1::ContainerStatsResponse { stats: Some(self.stats_of(&container).await?) })
    }

    async fn list_container_stats(
        &self,
        request: v1::ListContainerStatsRequest,
    ) -> Reply<v1::ListContainerStatsResponse> {
        let filter = request.filter.map(|filter| v1::ContainerFilter {
            id: filter.id,
            state: None,
            pod_sandbox_id: filter.pod_sandbox_id,
            label_selector: filter.label_selector,
        });
        let mut stats = Vec::new();
        for item in self.list_containers(filter.as_ref()) {
            // One that was removed meanwhile uses nothing.
            if let Some(container) = self.find_container(&item.id) {
                stats.push(self.stats_of(&container).await?);
            }
        }
        Ok(v1::ListContainerStatsResponse { stats })
    }

    async fn pod_sandbox_stats(&self, request: v1::PodSandboxStatsRequest) -> Reply<v1::PodSandboxStatsResponse> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        Ok(v1::PodSandboxStatsResponse { stats: Some(self.sandbox_stats(&sandbox).await?) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: v1::ListPodSandboxStatsRequest,
    ) -> Reply<v1::ListPodSandboxStatsResponse> {
        let filter = request.filter.map(|filter| v1::PodSandboxFilter {
            id: filter.id,
            state: None,
            label_selector: filter.label_selector,
        });
        let mut stats = Vec::new();
        for item in self.list_sandboxes(filter.as_ref()) {
            if let Some(sandbox) = self.find_sandbox(&item.id) {
                stats.push(self.sandbox_stats(&sandbox).await?);
            }
        }
        Ok(v1::ListPodSandboxStatsResponse { stats })
    }

    async fn update_runtime_config(
        &self,
        request: v1::UpdateRuntimeConfigRequest,
    ) -> Reply<v1::UpdateRuntimeConfigResponse> {
        let network = request.runtime_config.and_then(|config| config.network_config).unwrap_or_default();
        let cidrs: Result<Vec<ipnet::IpNet>, _> =
            network.pod_cidr.split(',').filter(|cidr| !cidr.is_empty()).map(str::parse).collect();
        let cidrs =
            cidrs.map_err(|_| CriError::invalid_argument(format!("{:?} is no list of CIDRs", network.pod_cidr)))?;
        if !cidrs.is_empty() {
            let set = self.config.network.set_pod_cidrs(cidrs).await;
            set.map_err(|error| CriError::internal(carob_kit::chain(&error).to_string()))?;
        }
        Ok(v1::UpdateRuntimeConfigResponse {})
    }

    async fn status(&self, _request: v1::StatusRequest) -> Reply<v1::StatusResponse> {
        // A runtime that cannot make containers does not open.
        let runtime = v1::RuntimeCondition { r#type: "RuntimeReady".to_owned(), status: true, ..Default::default() };
        let unready = self.config.network.unready().await;
        let network = v1::RuntimeCondition {
            r#type: "NetworkReady".to_owned(),
            status: unready.is_none(),
            reason: unready.as_ref().map_or_else(String::new, |_| "NetworkPluginNotReady".to_owned()),
            message: unready.unwrap_or_default(),
        };
        Ok(v1::StatusResponse {
            status: Some(v1::RuntimeStatus { conditions: vec![runtime, network] }),
            info: BTreeMap::new(),
            runtime_handlers: self.handlers.list(),
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
            }),
        })
    }

    async fn runtime_config(&self, _request: v1::RuntimeConfigRequest) -> Reply<v1::RuntimeConfigResponse> {
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs as i32 };
        Ok(v1::RuntimeConfigResponse { linux: Some(linux) })
    }

    async fn get_container_events(&self, _request: v1::GetEventsRequest) -> Reply<ContainerEvents> {
        Ok(self.subscribe())
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: v1::UpdatePodSandboxResourcesRequest,
    ) -> Reply<v1::UpdatePodSandboxResourcesResponse> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        if let Some(resources) = &request.resources {
            let wanted = crate::spec::resources_for(resources, self.host.hugetlb);
            self.open_ended_groups(&sandbox.id);
            let applied = self.cgroup(&sandbox.record().cgroup).apply(&wanted);
            applied.map_err(|error| CriError::from(RuntimeError::from(error)))?;
        }
        Ok(v1::UpdatePodSandboxResourcesResponse {})
    }
}

#[async_trait]
impl Streaming for Runtime {
    async fn exec(&self, start: ExecStart) -> Reply<ExecSession> {
        self.to_the_end(|runtime| async move { runtime.exec_session(start).await }).await
    }

    async fn attach(&self, start: ExecStart) -> Reply<ExecSession> {
        Ok(self.attach_session(start).await?)
    }

    async fn port_forward(&self, pod_sandbox_id: &str, port: u16) -> Reply<ByteStream> {
        Ok(self.forward(pod_sandbox_id, port).await?)
    }
}
