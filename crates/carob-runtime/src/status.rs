//! Records as CRI says them: pure, but for the lists.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use carob_cri::v1;

use crate::record::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord};
use crate::runtime::{Container, Runtime, Sandbox};

impl SandboxRecord {
    fn ips(&self) -> &[IpAddr] {
        match &self.phase {
            SandboxPhase::Creating => &[],
            SandboxPhase::Ready { ips, .. } | SandboxPhase::Stopped { ips } => ips,
        }
    }

    fn state(&self) -> v1::PodSandboxState {
        match self.phase {
            SandboxPhase::Ready { .. } => v1::PodSandboxState::SandboxReady,
            SandboxPhase::Creating | SandboxPhase::Stopped { .. } => v1::PodSandboxState::SandboxNotready,
        }
    }
}

pub(crate) fn sandbox_status(record: &SandboxRecord) -> v1::PodSandboxStatus {
    let mut ips = record.ips().iter().map(IpAddr::to_string);
    let network = ips
        .next()
        .map(|ip| v1::PodSandboxNetworkStatus { ip, additional_ips: ips.map(|ip| v1::PodIp { ip }).collect() });
    let options = crate::runtime::namespace_options(&record.config);
    v1::PodSandboxStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: record.state() as i32,
        created_at: record.created_at_ns,
        network,
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(options) }) }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

fn sandbox_item(record: &SandboxRecord) -> v1::PodSandbox {
    v1::PodSandbox {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: record.state() as i32,
        created_at: record.created_at_ns,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

fn container_state(phase: &ContainerPhase) -> v1::ContainerState {
    match phase {
        ContainerPhase::Created { .. } => v1::ContainerState::ContainerCreated,
        ContainerPhase::Running { .. } => v1::ContainerState::ContainerRunning,
        ContainerPhase::Exited { .. } => v1::ContainerState::ContainerExited,
    }
}

pub(crate) fn container_status(record: &ContainerRecord) -> v1::ContainerStatus {
    let resources = record.config.linux.as_ref().and_then(|linux| linux.resources.clone());
    let user = v1::LinuxContainerUser {
        uid: record.user.uid.into(),
        gid: record.user.gid.into(),
        supplemental_groups: record.user.additional_gids.iter().map(|gid| i64::from(*gid)).collect(),
    };
    let status = v1::ContainerStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: container_state(&record.phase) as i32,
        created_at: record.created_at_ns,
        image: record.config.image.clone(),
        image_ref: record.image_ref.clone(),
        image_id: record.image_id.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: record.config.mounts.clone(),
        log_path: record.log_path.clone(),
        resources: Some(v1::ContainerResources { linux: resources }),
        user: Some(v1::ContainerUser { linux: Some(user) }),
        stop_signal: record.config.stop_signal,
        ..v1::ContainerStatus::default()
    };
    match &record.phase {
        ContainerPhase::Created { .. } => status,
        ContainerPhase::Running { started_at_ns, .. } => v1::ContainerStatus { started_at: *started_at_ns, ..status },
        ContainerPhase::Exited { started_at_ns, finished_at_ns, exit_code, reason, message } => v1::ContainerStatus {
            started_at: *started_at_ns,
            finished_at: *finished_at_ns,
            exit_code: *exit_code,
            reason: reason.clone(),
            message: message.clone(),
            ..status
        },
    }
}

fn container_item(record: &ContainerRecord) -> v1::Container {
    v1::Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox_id.clone(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_ref.clone(),
        image_id: record.image_id.clone(),
        state: container_state(&record.phase) as i32,
        created_at: record.created_at_ns,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    }
}

/// Whether an id or the beginning of one is meant; empty means any.
fn id_matches(wanted: &str, id: &str) -> bool {
    id.starts_with(wanted)
}

fn labels_match(wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn sandbox_matches(record: &SandboxRecord, filter: &v1::PodSandboxFilter) -> bool {
    id_matches(&filter.id, &record.id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == record.state() as i32)
        && labels_match(&filter.label_selector, &record.config.labels)
}

fn container_matches(record: &ContainerRecord, filter: &v1::ContainerFilter) -> bool {
    id_matches(&filter.id, &record.id)
        && id_matches(&filter.pod_sandbox_id, &record.sandbox_id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == container_state(&record.phase) as i32)
        && labels_match(&filter.label_selector, &record.config.labels)
}

impl Runtime {
    /// Those that match, by id. The others are not copied: every worker asks for its own after every event.
    pub(crate) fn list_sandboxes(&self, filter: Option<&v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let item = |sandbox: &Arc<Sandbox>| {
            let record = sandbox.record.lock().expect("no holder panics");
            filter.is_none_or(|filter| sandbox_matches(&record, filter)).then(|| sandbox_item(&record))
        };
        let mut items: Vec<v1::PodSandbox> = self.sandboxes().iter().filter_map(item).collect();
        items.sort_by(|one, other| one.id.cmp(&other.id));
        items
    }

    /// As [`Runtime::list_sandboxes`].
    pub(crate) fn list_containers(&self, filter: Option<&v1::ContainerFilter>) -> Vec<v1::Container> {
        let item = |container: &Arc<Container>| {
            let record = container.record.borrow();
            filter.is_none_or(|filter| container_matches(&record, filter)).then(|| container_item(&record))
        };
        let mut items: Vec<v1::Container> = self.containers().iter().filter_map(item).collect();
        items.sort_by(|one, other| one.id.cmp(&other.id));
        items
    }

    pub(crate) fn container_statuses(&self, sandbox: &str) -> Vec<v1::ContainerStatus> {
        let mut statuses: Vec<v1::ContainerStatus> =
            self.containers_of(sandbox).iter().map(|container| container_status(&container.record.borrow())).collect();
        statuses.sort_by_key(|status| status.created_at);
        statuses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str, phase: ContainerPhase) -> ContainerRecord {
        ContainerRecord {
            id: id.into(),
            sandbox_id: "s1".into(),
            config: v1::ContainerConfig {
                labels: [("app".to_owned(), id.to_owned())].into(),
                ..v1::ContainerConfig::default()
            },
            image_id: "sha256:1".into(),
            image_ref: "r@sha256:2".into(),
            cgroup: "/kubepods/pod1/c1".into(),
            log_path: String::new(),
            stop_signal: 15,
            user: carob_shim::params::ResolvedUser { uid: 7, ..Default::default() },
            created_at_ns: 1,
            phase,
        }
    }

    #[test]
    fn the_state_follows_the_phase() {
        let exited = ContainerPhase::Exited {
            started_at_ns: 2,
            finished_at_ns: 3,
            exit_code: 137,
            reason: "OOMKilled".into(),
            message: String::new(),
        };
        let cases = [
            (ContainerPhase::Created { pid: 9 }, v1::ContainerState::ContainerCreated, (0, 0, 0)),
            (ContainerPhase::Running { pid: 9, started_at_ns: 2 }, v1::ContainerState::ContainerRunning, (2, 0, 0)),
            (exited, v1::ContainerState::ContainerExited, (2, 3, 137)),
        ];
        for (phase, state, (started, finished, code)) in cases {
            let status = container_status(&container("c1", phase));
            assert_eq!(status.state(), state);
            assert_eq!((status.started_at, status.finished_at, status.exit_code), (started, finished, code));
        }
    }

    #[test]
    fn lists_are_filtered() {
        let records = [
            container("aa", ContainerPhase::Created { pid: 1 }),
            container("ab", ContainerPhase::Running { pid: 2, started_at_ns: 1 }),
        ];
        let filter = |id: &str, app: Option<&str>| v1::ContainerFilter {
            id: id.into(),
            label_selector: app.map(|app| ("app".to_owned(), app.to_owned())).into_iter().collect(),
            ..v1::ContainerFilter::default()
        };
        let running = v1::ContainerFilter {
            state: Some(v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning as i32 }),
            ..v1::ContainerFilter::default()
        };
        let elsewhere = v1::ContainerFilter { pod_sandbox_id: "s2".into(), ..v1::ContainerFilter::default() };
        let cases: [(v1::ContainerFilter, &[&str]); 6] = [
            (filter("", None), &["aa", "ab"]),
            (filter("a", None), &["aa", "ab"]),
            (filter("ab", None), &["ab"]),
            (filter("", Some("aa")), &["aa"]),
            (running, &["ab"]),
            (elsewhere, &[]),
        ];
        for (filter, expected) in cases {
            let matching = records.iter().filter(|record| container_matches(record, &filter));
            let ids: Vec<&str> = matching.map(|record| record.id.as_str()).collect();
            assert_eq!(ids, expected, "{filter:?}");
        }
    }
}
