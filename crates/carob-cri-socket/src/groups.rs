//! What CRI leaves to whoever drives a runtime: the control group of a Pod, with the Pod's limits, around its sandbox.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use carob_cri::{CriError, v1};

/// Where a sandbox keeps the path of its Pod's group, so that it is found when the sandbox is removed.
const GROUP_ANNOTATION: &str = "carob.io/pod-cgroup";

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// Makes and removes control groups. Both block for less than a disk would.
pub trait PodGroups: Send + Sync {
    /// Makes the group with its limits, or gives an existing one these.
    fn make(&self, group: &Path, limits: Option<&v1::LinuxContainerResources>) -> Outcome;
    /// Removes the group, unless something runs in it.
    fn remove(&self, group: &Path) -> Outcome;
}

fn failed(error: Box<dyn Error + Send + Sync>) -> CriError {
    CriError::internal(carob_kit::chain(&*error).to_string())
}

/// Makes the group that a sandbox asks for, and has the sandbox remember it.
pub(crate) fn prepare(groups: &Arc<dyn PodGroups>, request: &mut v1::RunPodSandboxRequest) -> Result<(), CriError> {
    let Some(config) = &mut request.config else { return Ok(()) };
    let Some(linux) = config.linux.as_ref().filter(|linux| !linux.cgroup_parent.is_empty()) else { return Ok(()) };
    groups.make(Path::new(&linux.cgroup_parent), linux.resources.as_ref()).map_err(failed)?;
    config.annotations.insert(GROUP_ANNOTATION.to_owned(), linux.cgroup_parent.clone());
    Ok(())
}

/// The group of a sandbox's Pod.
pub(crate) fn of(status: &v1::PodSandboxStatus) -> Option<PathBuf> {
    status.annotations.get(GROUP_ANNOTATION).map(PathBuf::from)
}

pub(crate) fn limit(
    groups: &Arc<dyn PodGroups>,
    group: &Path,
    limits: Option<&v1::LinuxContainerResources>,
) -> Result<(), CriError> {
    groups.make(group, limits).map_err(failed)
}

pub(crate) fn remove(groups: &Arc<dyn PodGroups>, group: &Path) -> Result<(), CriError> {
    groups.remove(group).map_err(failed)
}
