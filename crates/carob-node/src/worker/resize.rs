//! Gives running containers, and their Pod as a whole, other resources.

use std::sync::Arc;
use std::time::Duration;

use carob_cri::v1::{ContainerStatsRequest, UpdateContainerResourcesRequest, UpdatePodSandboxResourcesRequest};
use carob_cri::{Code, CriError};
use carob_kit::chain;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::Worker;
use super::steps::Done;
use super::tools::Tools;
use crate::allocation::Pending;
use crate::config::resources::Limits;
use crate::events::Subject;
use crate::plan::{Change, Group, ResizeFailure, after};

/// Time until a step that failed is tried again (kubelet `pkg/kubelet/allocation`, retryDelay is minutes; nothing here costs
/// others anything).
const RETRY_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(super) enum ResizeError {
    #[error("change the limits of the pod")]
    Pod(#[source] CriError),
    #[error("change the resources of container {name:?}")]
    Container {
        name: String,
        #[source]
        source: CriError,
    },
    #[error("attempting to set container {name:?} memory limit ({limit}) below current usage ({usage})")]
    MemoryInUse { name: String, limit: i64, usage: u64 },
}

impl Worker {
    pub(super) fn limit_pod(&mut self, limits: Option<Limits>) {
        let Some(sandbox) = &self.observed.sandbox else { return };
        let (tools, id) = (Arc::clone(&self.tools), sandbox.id.clone());
        self.observed.busy.resizing = true;
        if limits.is_none() {
            self.resizing = true;
            let message = format!("Pod resize started: {}", resources_of(&self.pod));
            self.tools.events.normal(&Subject::pod(&self.pod), "ResizeStarted", message);
        }
        self.steps.spawn(async move {
            let settings = limits.unwrap_or_default().settings();
            let request =
                UpdatePodSandboxResourcesRequest { pod_sandbox_id: id, overhead: None, resources: Some(settings) };
            let how = match tools.cri.update_pod_sandbox_resources(request).await {
                // Such a runtime puts no limits on Pods as a whole.
                Err(error) if error.code == Code::Unimplemented => Ok(()),
                how => how.map(|_| ()).map_err(ResizeError::Pod),
            };
            Done::PodLimited { limits, how }
        });
    }

    pub(super) fn resize(&mut self, changes: Vec<Change>) {
        self.observed.busy.resizing = true;
        let tools = Arc::clone(&self.tools);
        self.steps.spawn(async move { Done::Resized(change_all(&tools, changes).await) });
    }

    pub(super) fn pod_limited(&mut self, limits: Option<Limits>, how: Result<(), ResizeError>) {
        let done = how.is_ok();
        self.resized(how);
        if !done {
            return;
        }
        self.observed.resize.group = limits.map_or(Group::Open, Group::Set);
        if limits.is_some() && std::mem::take(&mut self.resizing) {
            let message = format!("Pod resize completed: {}", resources_of(&self.pod));
            self.tools.events.normal(&Subject::pod(&self.pod), "ResizeCompleted", message);
        }
    }

    pub(super) fn resized(&mut self, how: Result<(), ResizeError>) {
        self.observed.busy.resizing = false;
        self.stale = true;
        self.observed.resize.failure = how.err().map(|error| {
            let message = chain(&error).to_string();
            let shown = format!("Pod resize error: {message}");
            self.tools.events.warning(&Subject::pod(&self.pod), "ResizeError", shown);
            ResizeFailure { message, retry_at: after(self.tools.clock.now(), RETRY_AFTER) }
        });
    }

    /// Takes over why the Pod does not get what it asks for, and tells of it once.
    pub(super) fn take_pending(&mut self, pending: Option<Pending>) {
        if let Some(Pending { reason, message }) = pending.as_ref().filter(|_| pending != self.observed.resize.pending)
        {
            let reason = if *reason == "Infeasible" { "ResizeInfeasible" } else { "ResizeDeferred" };
            let message = format!("Pod resize {}: {message}", reason.trim_start_matches("Resize"));
            self.tools.events.warning(&Subject::pod(&self.pod), reason, message);
        }
        self.observed.resize.pending = pending;
    }
}

async fn change_all(tools: &Tools, changes: Vec<Change>) -> Result<(), ResizeError> {
    for change in changes {
        let failed = |source| ResizeError::Container { name: change.name.clone(), source };
        if let Some(limit) = change.to.memory_bytes {
            let request = ContainerStatsRequest { container_id: change.id.clone() };
            let stats = tools.cri.container_stats(request).await.map_err(failed)?.stats;
            let usage = stats.and_then(|stats| stats.memory).and_then(|memory| memory.usage_bytes);
            if let Some(usage) = usage.map(|usage| usage.value).filter(|usage| i128::from(*usage) > i128::from(limit)) {
                return Err(ResizeError::MemoryInUse { name: change.name, limit, usage });
            }
        }
        let linux = Some(change.to.settings());
        let request = UpdateContainerResourcesRequest { container_id: change.id.clone(), linux, ..Default::default() };
        tools.cri.update_container_resources(request).await.map_err(failed)?;
    }
    Ok(())
}

/// What events of a resize tell: each container's resources, as JSON.
fn resources_of(pod: &Pod) -> String {
    let spec = pod.spec.iter();
    let all = spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    let containers: Vec<_> =
        all.map(|container| json!({"name": container.name, "resources": container.resources})).collect();
    json!({"containers": containers, "generation": pod.metadata.generation}).to_string()
}
