//! Looks at a Pod through the runtime and says what is there, in the plan's terms.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use carob_cri::v1::{
    ContainerFilter, ContainerState, ContainerStatus, ContainerStatusRequest, ListContainersRequest,
    ListPodSandboxRequest, PodSandbox, PodSandboxFilter, PodSandboxState, PodSandboxStatusRequest,
};
use carob_cri::{Cri, CriError};
use jiff::Timestamp;

use crate::config::resources::Limits;
use crate::config::{labels, notes};
use crate::paths::PodDirs;
use crate::plan::{ContainerPhase, Exit, ObservedContainer, ObservedSandbox, ObservedUser};
use crate::pod::PodId;
use crate::termination;

/// What the runtime has of one Pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    pub sandbox: Option<ObservedSandbox>,
    pub older_sandboxes: Vec<ObservedSandbox>,
    pub containers: Vec<ObservedContainer>,
}

/// Looks at one Pod. It remembers containers that ended: they do not change any more.
pub struct Observer {
    cri: Arc<dyn Cri>,
    dirs: PodDirs,
    id: PodId,
    ended: HashMap<String, ObservedContainer>,
}

impl Observer {
    pub fn new(cri: Arc<dyn Cri>, dirs: PodDirs, id: PodId) -> Self {
        Self { cri, dirs, id, ended: HashMap::new() }
    }

    /// The current state. `members`: the number of containers in the spec, which share what they may say at their end.
    pub async fn look(&mut self, members: usize) -> Result<Seen, CriError> {
        let selector = BTreeMap::from([(labels::POD_UID.to_owned(), self.id.uid.clone())]);
        let filter = PodSandboxFilter { label_selector: selector.clone(), ..PodSandboxFilter::default() };
        let mut sandboxes = self.cri.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await?.items;
        sandboxes.sort_by_key(|sandbox| (sandbox.metadata.as_ref().map(|meta| meta.attempt), sandbox.created_at));
        let filter = ContainerFilter { label_selector: selector, ..ContainerFilter::default() };
        let listed = self.cri.list_containers(ListContainersRequest { filter: Some(filter) }).await?.containers;
        let mut containers = Vec::new();
        for container in listed {
            match self.container(&container.id, &container.pod_sandbox_id, members).await {
                Ok(seen) => containers.push(seen),
                // It went away between the two calls.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        self.ended.retain(|id, _| containers.iter().any(|container| container.id == *id));
        containers.sort_by_key(|run| std::cmp::Reverse((run.created_at, run.attempt)));
        let newest = sandboxes.pop();
        let mut seen = Seen { containers, ..Seen::default() };
        for sandbox in sandboxes {
            seen.older_sandboxes.push(observed_sandbox(&sandbox, Vec::new()));
        }
        if let Some(sandbox) = newest {
            let ips = self.addresses(&sandbox).await?;
            seen.sandbox = Some(observed_sandbox(&sandbox, ips));
        }
        Ok(seen)
    }

    async fn addresses(&self, sandbox: &PodSandbox) -> Result<Vec<std::net::IpAddr>, CriError> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.id.clone(), verbose: false };
        let status = match self.cri.pod_sandbox_status(request).await {
            Ok(answer) => answer.status,
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        let Some(network) = status.and_then(|status| status.network) else { return Ok(Vec::new()) };
        let all = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|more| more.ip));
        Ok(all.filter_map(|ip| ip.parse().ok()).collect())
    }

    async fn container(&mut self, id: &str, sandbox: &str, members: usize) -> Result<ObservedContainer, CriError> {
        if let Some(known) = self.ended.get(id) {
            return Ok(known.clone());
        }
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let status = self.cri.container_status(request).await?.status;
        let status = status.ok_or_else(|| CriError::not_found(format!("container {id} has no status")))?;
        let seen = self.observed(status, sandbox, members);
        if seen.exit().is_some() {
            self.ended.insert(id.to_owned(), seen.clone());
        }
        Ok(seen)
    }

    fn observed(&self, status: ContainerStatus, sandbox: &str, members: usize) -> ObservedContainer {
        let state = status.state();
        let note = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
        let (name, attempt) = status.metadata.clone().map(|meta| (meta.name, meta.attempt)).unwrap_or_default();
        let started_at = (status.started_at > 0).then(|| nanos(status.started_at));
        let phase = match state {
            ContainerState::ContainerCreated => ContainerPhase::Created,
            ContainerState::ContainerRunning => {
                ContainerPhase::Running { started_at: started_at.unwrap_or_else(|| nanos(status.created_at)) }
            }
            ContainerState::ContainerExited => ContainerPhase::Exited(Exit {
                code: status.exit_code,
                reason: exit_reason(&status),
                message: termination::cut(self.last_words(&status, &name, attempt), members),
                started_at,
                finished_at: nanos(status.finished_at),
            }),
            ContainerState::ContainerUnknown => ContainerPhase::Unknown,
        };
        let delay_s = note(notes::RESTART_DELAY_S).parse().unwrap_or(0);
        let user = status.user.as_ref().and_then(|user| user.linux.clone());
        ObservedContainer {
            sandbox_id: sandbox.to_owned(),
            name,
            attempt,
            created_at: nanos(status.created_at),
            phase,
            image: image_name(&status),
            restart_delay: Duration::from_secs(delay_s),
            cycle: note(notes::CYCLE).parse().unwrap_or(0),
            spec_hash: note(notes::SPEC_IMAGE),
            memory_request: note(notes::MEMORY_REQUEST).parse().ok(),
            user: user.map(|user| ObservedUser {
                uid: user.uid,
                gid: user.gid,
                supplemental_groups: user.supplemental_groups,
            }),
            limits: status.resources.and_then(|resources| resources.linux).map(|linux| Limits::of(&linux)),
            image_ref: status.image_ref,
            id: status.id,
        }
    }

    fn last_words(&self, status: &ContainerStatus, name: &str, attempt: u32) -> String {
        let fallback =
            status.annotations.get(notes::TERMINATION_POLICY).is_some_and(|policy| policy == "FallbackToLogsOnError");
        let file = self.dirs.termination_log(&self.id.uid, name, attempt);
        let log = self.dirs.log(&self.id, name, attempt);
        let said = termination::message(&file, &log, fallback, status.exit_code);
        match said {
            Ok(text) if text.is_empty() => status.message.clone(),
            Ok(text) => text,
            Err(error) => format!("Error on reading termination message: {error}"),
        }
    }
}

fn exit_reason(status: &ContainerStatus) -> String {
    match status.reason.as_str() {
        "" if status.exit_code == 0 => "Completed".to_owned(),
        "" => "Error".to_owned(),
        given => given.to_owned(),
    }
}

/// The image as the user named it, as far as the runtime kept that.
fn image_name(status: &ContainerStatus) -> String {
    let Some(image) = &status.image else { return String::new() };
    if image.user_specified_image.is_empty() { image.image.clone() } else { image.user_specified_image.clone() }
}

fn observed_sandbox(sandbox: &PodSandbox, ips: Vec<std::net::IpAddr>) -> ObservedSandbox {
    ObservedSandbox {
        id: sandbox.id.clone(),
        attempt: sandbox.metadata.as_ref().map_or(0, |meta| meta.attempt),
        ready: sandbox.state() == PodSandboxState::SandboxReady,
        ips,
    }
}

/// CRI counts nanoseconds since 1970; zero and nonsense are the epoch.
fn nanos(since_epoch: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(since_epoch)).unwrap_or(Timestamp::UNIX_EPOCH)
}
