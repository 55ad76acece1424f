use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use tokio::sync::broadcast::error::RecvError;

use super::{Container, EXIT_KILL, EXIT_TERM, FakeRuntime, Sandbox, end};
use crate::v1::{self, ContainerEventType, ContainerState, PodSandboxState};
use crate::{Code, ContainerEvents, CriError, RuntimeService};

fn selected(labels: &BTreeMap<String, String>, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

impl FakeRuntime {
    fn missing(id: &str) -> CriError {
        CriError::not_found(format!("{id} does not exist"))
    }

    fn label_of(&self, id: &str) -> Result<(String, bool, bool), CriError> {
        let state = self.lock();
        let container = state.containers.get(id).ok_or_else(|| Self::missing(id))?;
        let running = container.state == ContainerState::ContainerRunning;
        let stubborn = state.stubborn.contains(container.name());
        Ok((format!("{}#{}", container.name(), container.attempt()), running, stubborn))
    }

    fn finish(&self, id: &str, code: i32) {
        let now = (self.now_ns)();
        let ended = {
            let mut state = self.lock();
            let container = state.containers.get_mut(id);
            container.filter(|container| container.state == ContainerState::ContainerRunning).map(|container| {
                end(id, container, code, now);
            })
        };
        if ended.is_some() {
            self.tell(id, ContainerEventType::ContainerStoppedEvent);
        }
    }
}

fn status(id: &str, container: &Container) -> v1::ContainerStatus {
    let config = &container.config;
    v1::ContainerStatus {
        id: id.to_owned(),
        metadata: config.metadata.clone(),
        state: container.state.into(),
        created_at: container.created_at,
        started_at: container.started_at,
        finished_at: container.finished_at,
        exit_code: container.exit_code,
        image: config.image.clone(),
        image_ref: config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        ..v1::ContainerStatus::default()
    }
}

fn sandbox(id: &str, sandbox: &Sandbox) -> v1::PodSandbox {
    v1::PodSandbox {
        id: id.to_owned(),
        metadata: sandbox.config.metadata.clone(),
        state: sandbox.state.into(),
        created_at: sandbox.created_at,
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: String::new(),
    }
}

#[async_trait]
impl RuntimeService for FakeRuntime {
    async fn version(&self, _request: v1::VersionRequest) -> Result<v1::VersionResponse, CriError> {
        Ok(v1::VersionResponse {
            runtime_name: "fake".to_owned(),
            runtime_version: "1".to_owned(),
            runtime_api_version: "v1".to_owned(),
            version: "0.1.0".to_owned(),
        })
    }

    async fn run_pod_sandbox(&self, request: v1::RunPodSandboxRequest) -> Result<v1::RunPodSandboxResponse, CriError> {
        self.check("sandbox")?;
        let config = request.config.unwrap_or_default();
        let meta = config.metadata.clone().unwrap_or_default();
        self.note(format!("sandbox {}#{}", meta.name, meta.attempt));
        let created_at = (self.now_ns)();
        let mut state = self.lock();
        state.made += 1;
        let id = format!("sandbox-{}", state.made);
        let ip = format!("10.1.0.{}", state.made);
        let made = Sandbox { config, state: PodSandboxState::SandboxReady, created_at, ip };
        state.sandboxes.insert(id.clone(), made);
        Ok(v1::RunPodSandboxResponse { pod_sandbox_id: id })
    }

    async fn stop_pod_sandbox(
        &self,
        request: v1::StopPodSandboxRequest,
    ) -> Result<v1::StopPodSandboxResponse, CriError> {
        let id = request.pod_sandbox_id;
        self.note(format!("stop {id}"));
        let running: Vec<String> = {
            let mut state = self.lock();
            if let Some(sandbox) = state.sandboxes.get_mut(&id) {
                sandbox.state = PodSandboxState::SandboxNotready;
                sandbox.ip.clear();
            }
            let inside = state.containers.iter().filter(|(_, container)| container.sandbox_id == id);
            inside.map(|(id, _)| id.clone()).collect()
        };
        for container in running {
            self.finish(&container, EXIT_KILL);
        }
        Ok(v1::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: v1::RemovePodSandboxRequest,
    ) -> Result<v1::RemovePodSandboxResponse, CriError> {
        let id = request.pod_sandbox_id;
        let mut state = self.lock();
        state.containers.retain(|_, container| container.sandbox_id != id);
        state.sandboxes.remove(&id);
        Ok(v1::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: v1::PodSandboxStatusRequest,
    ) -> Result<v1::PodSandboxStatusResponse, CriError> {
        let state = self.lock();
        let id = request.pod_sandbox_id;
        let sandbox = state.sandboxes.get(&id).ok_or_else(|| Self::missing(&id))?;
        let status = v1::PodSandboxStatus {
            id,
            metadata: sandbox.config.metadata.clone(),
            state: sandbox.state.into(),
            created_at: sandbox.created_at,
            network: Some(v1::PodSandboxNetworkStatus { ip: sandbox.ip.clone(), additional_ips: Vec::new() }),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
            ..v1::PodSandboxStatus::default()
        };
        Ok(v1::PodSandboxStatusResponse { status: Some(status), ..v1::PodSandboxStatusResponse::default() })
    }

    async fn list_pod_sandbox(
        &self,
        request: v1::ListPodSandboxRequest,
    ) -> Result<v1::ListPodSandboxResponse, CriError> {
        let filter = request.filter.unwrap_or_default();
        let state = self.lock();
        let all = state.sandboxes.iter().map(|(id, record)| sandbox(id, record));
        Ok(v1::ListPodSandboxResponse {
            items: all.filter(|it| selected(&it.labels, &filter.label_selector)).collect(),
        })
    }

    async fn create_container(
        &self,
        request: v1::CreateContainerRequest,
    ) -> Result<v1::CreateContainerResponse, CriError> {
        let config = request.config.unwrap_or_default();
        let meta = config.metadata.clone().unwrap_or_default();
        self.check(&format!("create {}", meta.name))?;
        let created_at = (self.now_ns)();
        let mut state = self.lock();
        if state.sandboxes.get(&request.pod_sandbox_id).is_none_or(|it| it.state != PodSandboxState::SandboxReady) {
            return Err(CriError::failed_precondition("the sandbox is not ready"));
        }
        state.made += 1;
        let id = format!("container-{}", state.made);
        let made = Container {
            config,
            sandbox_id: request.pod_sandbox_id,
            state: ContainerState::ContainerCreated,
            created_at,
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
        };
        state.containers.insert(id.clone(), made);
        Ok(v1::CreateContainerResponse { container_id: id })
    }

    async fn start_container(
        &self,
        request: v1::StartContainerRequest,
    ) -> Result<v1::StartContainerResponse, CriError> {
        let id = request.container_id;
        let (label, ..) = self.label_of(&id)?;
        self.note(format!("start {label}"));
        let now = (self.now_ns)();
        if let Some(container) = self.lock().containers.get_mut(&id) {
            container.state = ContainerState::ContainerRunning;
            container.started_at = now;
        }
        self.tell(&id, ContainerEventType::ContainerStartedEvent);
        Ok(v1::StartContainerResponse {})
    }

    async fn stop_container(&self, request: v1::StopContainerRequest) -> Result<v1::StopContainerResponse, CriError> {
        let id = request.container_id;
        let (label, running, stubborn) = self.label_of(&id)?;
        self.note(format!("stop {label} {}", request.timeout));
        if running && stubborn {
            tokio::time::sleep(Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0))).await;
            self.finish(&id, EXIT_KILL);
        } else if running {
            self.finish(&id, EXIT_TERM);
        }
        Ok(v1::StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: v1::RemoveContainerRequest,
    ) -> Result<v1::RemoveContainerResponse, CriError> {
        self.lock().containers.remove(&request.container_id);
        Ok(v1::RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: v1::ListContainersRequest,
    ) -> Result<v1::ListContainersResponse, CriError> {
        let filter = request.filter.unwrap_or_default();
        let state = self.lock();
        let all = state.containers.iter().map(|(id, container)| v1::Container {
            id: id.clone(),
            pod_sandbox_id: container.sandbox_id.clone(),
            metadata: container.config.metadata.clone(),
            state: container.state.into(),
            created_at: container.created_at,
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
            ..v1::Container::default()
        });
        let wanted = |it: &v1::Container| {
            selected(&it.labels, &filter.label_selector) && filter.state.is_none_or(|state| state.state == it.state)
        };
        Ok(v1::ListContainersResponse { containers: all.filter(wanted).collect() })
    }

    async fn container_status(
        &self,
        request: v1::ContainerStatusRequest,
    ) -> Result<v1::ContainerStatusResponse, CriError> {
        let state = self.lock();
        let id = request.container_id;
        let container = state.containers.get(&id).ok_or_else(|| Self::missing(&id))?;
        let status = Some(status(&id, container));
        Ok(v1::ContainerStatusResponse { status, ..v1::ContainerStatusResponse::default() })
    }

    async fn update_container_resources(
        &self,
        _request: v1::UpdateContainerResourcesRequest,
    ) -> Result<v1::UpdateContainerResourcesResponse, CriError> {
        Ok(v1::UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        _request: v1::ReopenContainerLogRequest,
    ) -> Result<v1::ReopenContainerLogResponse, CriError> {
        Ok(v1::ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, CriError> {
        let word = request.cmd.first().cloned().unwrap_or_default();
        self.note(format!("exec {}", request.cmd.join(" ")));
        self.check(&format!("exec {word}"))?;
        if word == "sleep" {
            // It outlasts every limit.
            let limit = u64::try_from(request.timeout).unwrap_or(0);
            if limit > 0 {
                tokio::time::sleep(Duration::from_secs(limit)).await;
                return Err(CriError::new(Code::DeadlineExceeded, "the command did not end in time"));
            }
            std::future::pending::<()>().await;
        }
        let (exit_code, output) = self.lock().commands.get(&word).cloned().unwrap_or((0, String::new()));
        Ok(v1::ExecSyncResponse { stdout: output.into_bytes(), stderr: Vec::new(), exit_code })
    }

    async fn container_stats(
        &self,
        _request: v1::ContainerStatsRequest,
    ) -> Result<v1::ContainerStatsResponse, CriError> {
        Ok(v1::ContainerStatsResponse::default())
    }

    async fn list_container_stats(
        &self,
        _request: v1::ListContainerStatsRequest,
    ) -> Result<v1::ListContainerStatsResponse, CriError> {
        Ok(v1::ListContainerStatsResponse::default())
    }

    async fn pod_sandbox_stats(
        &self,
        _request: v1::PodSandboxStatsRequest,
    ) -> Result<v1::PodSandboxStatsResponse, CriError> {
        Ok(v1::PodSandboxStatsResponse::default())
    }

    async fn list_pod_sandbox_stats(
        &self,
        _request: v1::ListPodSandboxStatsRequest,
    ) -> Result<v1::ListPodSandboxStatsResponse, CriError> {
        Ok(v1::ListPodSandboxStatsResponse::default())
    }

    async fn update_runtime_config(
        &self,
        request: v1::UpdateRuntimeConfigRequest,
    ) -> Result<v1::UpdateRuntimeConfigResponse, CriError> {
        let network = request.runtime_config.and_then(|config| config.network_config).unwrap_or_default();
        self.note(format!("ranges {}", network.pod_cidr));
        Ok(v1::UpdateRuntimeConfigResponse {})
    }

    async fn status(&self, _request: v1::StatusRequest) -> Result<v1::StatusResponse, CriError> {
        let condition = |kind: &str| v1::RuntimeCondition {
            r#type: kind.to_owned(),
            status: true,
            ..v1::RuntimeCondition::default()
        };
        let conditions = vec![condition("RuntimeReady"), condition("NetworkReady")];
        Ok(v1::StatusResponse { status: Some(v1::RuntimeStatus { conditions }), ..v1::StatusResponse::default() })
    }

    async fn runtime_config(&self, _request: v1::RuntimeConfigRequest) -> Result<v1::RuntimeConfigResponse, CriError> {
        Ok(v1::RuntimeConfigResponse::default())
    }

    async fn get_container_events(&self, _request: v1::GetEventsRequest) -> Result<ContainerEvents, CriError> {
        let events = self.events.subscribe();
        let stream = futures_util::stream::unfold(Some(events), |events| async {
            let mut events = events?;
            match events.recv().await {
                Ok(event) => Some((Ok(event), Some(events))),
                Err(RecvError::Lagged(missed)) => {
                    Some((Err(CriError::new(Code::DataLoss, format!("{missed} events were missed"))), None))
                }
                Err(RecvError::Closed) => None,
            }
        });
        Ok(stream.boxed())
    }
}
