//! Making a Pod's sandbox and giving it back.

use std::io;
use std::sync::Arc;

use carob_cri::CriError;
use carob_cri::v1::{ListContainersRequest, ListPodSandboxRequest, PodSandboxFilter, StopPodSandboxRequest};
use carob_cri::v1::{PodSandboxConfig, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest};
use fs_err as fs;
use k8s_openapi::api::core::v1::Pod;

use super::tools::Tools;
use crate::config::labels;
use crate::config::network::{HostNameTooLong, host_name, resolver, uts_name};
use crate::config::resources::ResourceError;
use crate::config::sandbox::{SandboxFacts, config};
use crate::events::Subject;
use crate::objects::FetchError;
use crate::pod::{PodId, PodView};
use crate::user_ranges::{RangeError, UserRange};
use crate::volumes::{UnmountError, remove_dir};

#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    #[error(transparent)]
    HostName(#[from] HostNameTooLong),
    #[error(transparent)]
    Resources(#[from] ResourceError),
    #[error("prepare the pod's directories")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Users(#[from] RangeError),
    #[error("look up the runtime class")]
    RuntimeClass(#[source] FetchError),
    #[error("RuntimeClass {0:?} not found")]
    NoRuntimeClass(String),
    #[error(transparent)]
    Runtime(#[from] CriError),
}

/// The sandbox's config; the same for every call about the same attempt.
pub(super) fn sandbox_config(tools: &Tools, pod: &Pod, attempt: u32) -> Result<PodSandboxConfig, SandboxError> {
    let host = host_name(pod, &tools.settings.dns.domain);
    let resolv_conf = match fs::read_to_string(&tools.settings.resolv_conf) {
        Ok(text) => text,
        // A machine without one has no name service to inherit.
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error.into()),
    };
    let facts = SandboxFacts {
        attempt,
        hostname: uts_name(pod, &host)?,
        dns: resolver(pod, &tools.settings.dns, &resolv_conf),
        users: users(tools, pod)?,
        seccomp_default: tools.settings.seccomp_default,
        cgroup_root: tools.settings.cgroup_root.clone(),
        machine: tools.settings.machine.clone(),
    };
    Ok(config(pod, facts, &tools.dirs)?)
}

/// The range of users that the Pod has, where it has a user namespace of its own. It got that with its first sandbox.
pub(super) fn users(tools: &Tools, pod: &Pod) -> Result<Option<UserRange>, RangeError> {
    if PodView::new(pod).host_users() { Ok(None) } else { tools.user_ranges.find(&PodId::of(pod).uid) }
}

/// Stops the sandbox that is replaced, if any, and makes the next one.
pub(super) async fn create(
    tools: &Tools,
    pod: &Pod,
    attempt: u32,
    replaces: Option<String>,
) -> Result<(), SandboxError> {
    let subject = Subject::pod(pod);
    if let Some(old) = replaces {
        let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
        tools.events.normal(&subject, "SandboxChanged", message);
        stop(tools, &old).await?;
    }
    let made = run(tools, pod, attempt).await;
    tools.figures.sandbox_made(made.is_err());
    if let Err(error) = &made {
        let message = format!("Failed to create pod sandbox: {}", carob_kit::chain(error));
        tools.events.warning(&subject, "FailedCreatePodSandBox", message);
    }
    made
}

async fn run(tools: &Tools, pod: &Pod, attempt: u32) -> Result<(), SandboxError> {
    let id = PodId::of(pod);
    let dirs = [tools.dirs.pod_logs(&id), tools.dirs.pod(&id.uid)];
    let made = tools.files.run(&id.uid, "make the directories", move || dirs.iter().try_for_each(fs::create_dir_all));
    made.await.map_err(io::Error::from)??;
    if !PodView::new(pod).host_users() {
        let (ranges, uid) = (Arc::clone(&tools.user_ranges), id.uid.clone());
        let assigned = tools.files.run(&id.uid, "choose the pod's users", move || ranges.assign(&uid));
        assigned.await.map_err(io::Error::from)??;
    }
    let config = sandbox_config(tools, pod, attempt)?;
    let runtime_handler = match pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()) {
        None | Some("") => String::new(),
        Some(class) => {
            let found = tools.objects.runtime_handler(class).await.map_err(SandboxError::RuntimeClass)?;
            found.ok_or_else(|| SandboxError::NoRuntimeClass(class.to_owned()))?
        }
    };
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler };
    tools.operation("run_podsandbox", tools.cri.run_pod_sandbox(request)).await?;
    Ok(())
}

pub(super) async fn stop(tools: &Tools, id: &str) -> Result<(), CriError> {
    let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    tools.operation("stop_podsandbox", tools.cri.stop_pod_sandbox(request)).await.map(|_| ())
}

pub(super) async fn remove(tools: &Tools, id: &str) -> Result<(), CriError> {
    let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
    tools.operation("remove_podsandbox", tools.cri.remove_pod_sandbox(request)).await.map(|_| ())
}

pub(super) async fn remove_container(tools: &Tools, id: &str) -> Result<(), CriError> {
    let request = RemoveContainerRequest { container_id: id.to_owned() };
    tools.operation("remove_container", tools.cri.remove_container(request)).await.map(|_| ())
}

/// Removes a run that nothing shows any more, with its log, the log's link and its last words.
pub(super) async fn remove_run(
    tools: &Tools,
    pod: &PodId,
    id: &str,
    name: &str,
    attempt: u32,
) -> Result<(), CleanError> {
    remove_container(tools, id).await?;
    if let Some(link) = tools.dirs.log_link(pod, name, id) {
        remove_link(&link)?;
    }
    crate::logs::files::remove(&tools.dirs.log(pod, name, attempt))?;
    remove_link(&tools.dirs.termination_log(&pod.uid, name, attempt))?;
    Ok(())
}

/// Why something of a Pod that is over could not be given back.
#[derive(Debug, thiserror::Error)]
pub(super) enum CleanError {
    #[error("remove what the runtime has")]
    Runtime(#[from] CriError),
    #[error(transparent)]
    Unmount(#[from] UnmountError),
    #[error("remove what is on disk")]
    Io(#[from] io::Error),
}

/// Removes every trace of a Pod that is gone from the API: containers, sandboxes, directories, logs.
pub(super) async fn clean(tools: &Arc<Tools>, id: &PodId) -> Result<(), CleanError> {
    let selector = std::collections::BTreeMap::from([(labels::POD_UID.to_owned(), id.uid.clone())]);
    let filter = carob_cri::v1::ContainerFilter { label_selector: selector.clone(), ..Default::default() };
    for container in tools.cri.list_containers(ListContainersRequest { filter: Some(filter) }).await?.containers {
        remove_container(tools, &container.id).await?;
        let name = container.metadata.map(|meta| meta.name).unwrap_or_default();
        if let Some(link) = tools.dirs.log_link(id, &name, &container.id) {
            remove_link(&link)?;
        }
    }
    let filter = PodSandboxFilter { label_selector: selector, ..PodSandboxFilter::default() };
    for sandbox in tools.cri.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await?.items {
        stop(tools, &sandbox.id).await?;
        remove(tools, &sandbox.id).await?;
    }
    tools.volumes.unmount(&id.uid).await?;
    let (work, of_pod) = (Arc::clone(tools), id.clone());
    let removed = tools.files.run(&id.uid, "remove what is on disk", move || -> io::Result<()> {
        remove_dir(&work.dirs.pod(&of_pod.uid))?;
        remove_dir(&work.dirs.pod_logs(&of_pod))
    });
    Ok(removed.await.map_err(io::Error::from)??)
}

fn remove_link(link: &std::path::Path) -> io::Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
