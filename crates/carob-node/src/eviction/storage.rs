//! Pods that take more of the node's disk than their limits say are ended (kubelet `pkg/kubelet/eviction`, localStorageEviction).

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use carob_api::quantity::Quantity;
use carob_cri::v1::{ContainerStatsFilter, ListContainerStatsRequest};
use fs_err as fs;
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};

use super::{EVICTED, rank};
use crate::admission::Rejection;
use crate::config::labels;
use crate::fleet::Fleet;
use crate::pod::{PodId, PodView};
use crate::worker::Tools;

pub(super) const STORAGE: &str = "ephemeral-storage";

/// What a Pod takes of the disk, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// emptyDir volumes on disk, by name.
    pub volumes: BTreeMap<String, u64>,
    /// Writable layers and logs, by container.
    pub containers: BTreeMap<String, u64>,
}

impl DiskUse {
    pub(crate) fn total(&self) -> u64 {
        self.volumes.values().chain(self.containers.values()).fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// Whether a Pod has a limit that this module watches.
fn is_limited(pod: &Pod) -> bool {
    let view = PodView::new(pod);
    let volume = disk_volumes(pod).any(|(_, limit)| limit.is_some());
    volume || view.members().iter().any(|member| storage_limit(member.spec.resources.as_ref()).is_some())
}

/// Name and limit of the Pod's emptyDir volumes on disk.
fn disk_volumes(pod: &Pod) -> impl Iterator<Item = (&str, Option<u64>)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let source = volume.empty_dir.as_ref()?;
        let on_disk = source.medium.as_deref().is_none_or(str::is_empty);
        on_disk.then(|| (volume.name.as_str(), source.size_limit.as_ref().and_then(|limit| bytes(&limit.0))))
    })
}

fn storage_limit(resources: Option<&ResourceRequirements>) -> Option<u64> {
    bytes(&resources?.limits.as_ref()?.get(STORAGE)?.0)
}

/// Zero and what cannot be read limit nothing: the API has refused the latter.
fn bytes(text: &str) -> Option<u64> {
    Quantity::parse(text).ok().and_then(|quantity| u64::try_from(quantity.value()).ok()).filter(|bytes| *bytes > 0)
}

/// Why the Pod is to be ended, if it is. Pure.
pub fn over_limit(pod: &Pod, used: &DiskUse) -> Option<Rejection> {
    let evicted = |message: String| Some(Rejection { reason: EVICTED.into(), message });
    let text_of = |resources: Option<&ResourceRequirements>| {
        resources.and_then(|it| it.limits.as_ref()?.get(STORAGE)).map(|limit| limit.0.clone()).unwrap_or_default()
    };
    for (name, limit) in disk_volumes(pod) {
        let Some(limit) = limit.filter(|limit| used.volumes.get(name).is_some_and(|used| used > limit)) else {
            continue;
        };
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let text = volumes
            .filter(|volume| volume.name == name)
            .find_map(|volume| volume.empty_dir.as_ref()?.size_limit.clone());
        let text = text.map_or_else(|| limit.to_string(), |text| text.0);
        return evicted(format!("Usage of EmptyDir volume {name:?} exceeds the limit {text:?}. "));
    }
    let view = PodView::new(pod);
    // A Pod has a limit where each of its containers has one (kubelet podEphemeralStorageLimitEviction).
    let limits: Option<Vec<u64>> =
        view.app_members().iter().map(|member| storage_limit(member.spec.resources.as_ref())).collect();
    let limit = limits.map(|limits| limits.into_iter().fold(0, u64::saturating_add)).filter(|limit| *limit > 0);
    if let Some(limit) = limit.filter(|limit| used.total() > *limit) {
        let limit = rank::quantity(STORAGE, limit);
        return evicted(format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "));
    }
    for member in view.members() {
        let Some(limit) = storage_limit(member.spec.resources.as_ref()) else { continue };
        if used.containers.get(member.name()).is_some_and(|used| *used > limit) {
            let text = text_of(member.spec.resources.as_ref());
            let message = format!("Container {} exceeded its local ephemeral storage limit {text:?}. ", member.name());
            return evicted(message);
        }
    }
    None
}

/// Ends the Pods that are over their limits. Answers how many.
pub(super) async fn evict_over_limits(fleet: &Fleet, tools: &Arc<Tools>) -> usize {
    let mut evicted = 0;
    for pod in fleet.running_pods().into_iter().filter(|pod| is_limited(pod)) {
        let id = PodId::of(&pod);
        match measure(tools, &pod).await {
            Ok(used) => {
                if let Some(rejection) = over_limit(&pod, &used) {
                    tracing::info!(pod = %id, why = rejection.message, "ending a pod that takes too much of the disk");
                    fleet.evict(&id.uid, rejection);
                    evicted += 1;
                }
            }
            Err(error) => tracing::warn!(pod = %id, %error, "cannot measure what a pod takes of the disk"),
        }
    }
    evicted
}

/// What a Pod takes of the disk.
pub(crate) async fn measure(tools: &Arc<Tools>, pod: &Pod) -> io::Result<DiskUse> {
    let id = PodId::of(pod);
    let selector = BTreeMap::from([(labels::POD_UID.to_owned(), id.uid.clone())]);
    let filter = ContainerStatsFilter { label_selector: selector, ..ContainerStatsFilter::default() };
    let stats = tools.cri.list_container_stats(ListContainerStatsRequest { filter: Some(filter) }).await;
    let mut containers: BTreeMap<String, u64> = BTreeMap::new();
    for stats in stats.map_err(io::Error::other)?.stats {
        let name = stats.attributes.and_then(|attributes| attributes.metadata).map(|metadata| metadata.name);
        let layer = stats.writable_layer.and_then(|layer| layer.used_bytes).map_or(0, |used| used.value);
        let sum = containers.entry(name.unwrap_or_default()).or_default();
        *sum = sum.saturating_add(layer);
    }
    let dir = |name: &str| tools.dirs.volume(&id.uid, "empty-dir", name);
    let volumes: Vec<(String, PathBuf)> = disk_volumes(pod).map(|(name, _)| (name.to_owned(), dir(name))).collect();
    let logs = tools.dirs.pod_logs(&id);
    let measured = tools.files.run(&id.uid, "measure what the pod takes", move || -> io::Result<DiskUse> {
        let mut used = DiskUse { volumes: BTreeMap::new(), containers };
        for (name, path) in volumes {
            used.volumes.insert(name, disk_use(&path)?);
        }
        for (name, sum) in &mut used.containers {
            *sum = sum.saturating_add(disk_use(&logs.join(name))?);
        }
        Ok(used)
    });
    measured.await.map_err(io::Error::from)?
}

/// Bytes that a directory takes with all below it, on its own file system; a file with several names counts once. What vanishes
/// meanwhile counts nothing.
fn disk_use(root: &Path) -> io::Result<u64> {
    /// Bytes of a block of `st_blocks` (stat(2)).
    const BLOCK: u64 = 512;
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let top = match fs::symlink_metadata(root) {
        Err(error) if missing(&error) => return Ok(0),
        found => found?,
    };
    let (mut sum, mut several, mut pending) =
        (top.blocks().saturating_mul(BLOCK), HashSet::new(), vec![root.to_owned()]);
    while let Some(dir) = pending.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(error) if missing(&error) => continue,
            entries => entries?,
        };
        for entry in entries {
            let found = match entry.and_then(|entry| entry.metadata().map(|found| (entry.path(), found))) {
                Err(error) if missing(&error) => continue,
                found => found?,
            };
            let (path, found) = found;
            if found.dev() != top.dev() || (found.nlink() > 1 && !found.is_dir() && !several.insert(found.ino())) {
                continue;
            }
            sum = sum.saturating_add(found.blocks().saturating_mul(BLOCK));
            if found.is_dir() {
                pending.push(path);
            }
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec}))
            .expect("a Pod")
    }

    fn limited(limits: &[Option<&str>]) -> Pod {
        let container = |(number, limit): (usize, Option<&str>)| {
            let limits = limit.map_or(json!({}), |limit| json!({"ephemeral-storage": limit}));
            json!({"name": format!("c{number}"), "resources": {"limits": limits}})
        };
        let containers: Vec<Value> = limits.iter().copied().enumerate().map(container).collect();
        pod(json!({"containers": containers, "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}},
            {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}, {"name": "free", "emptyDir": {}}]}))
    }

    #[test]
    fn limits_are_those_of_volumes_pod_and_containers() {
        const MI: u64 = 1 << 20;
        let used = |volumes: &[(&str, u64)], containers: &[(&str, u64)]| DiskUse {
            volumes: volumes.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect(),
            containers: containers.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect(),
        };
        for (limits, used, message) in [
            (&[None][..], used(&[("v", MI)], &[("c0", 1 << 40)]), None),
            (&[None], used(&[("v", MI + 1)], &[]), Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ")),
            (&[Some("2Mi"), None], used(&[("free", 9 * MI)], &[("c0", 2 * MI)]), None),
            (
                &[Some("2Mi"), None],
                used(&[], &[("c0", 2 * MI + 1)]),
                Some("Container c0 exceeded its local ephemeral storage limit \"2Mi\". "),
            ),
            (
                &[Some("2Mi"), Some("1Mi")],
                used(&[("free", 2 * MI)], &[("c0", MI), ("c1", 1)]),
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "),
            ),
            (
                &[Some("9223372036854775807"), Some("8Ei")],
                used(&[("free", u64::MAX)], &[("c0", u64::MAX)]),
                Some("Pod ephemeral"),
            ),
        ] {
            let rejection = over_limit(&limited(limits), &used);
            let found = rejection.as_ref().map(|rejection| rejection.message.as_str());
            match message {
                Some("Pod ephemeral") => {
                    assert!(found.is_some_and(|found| found.starts_with("Pod ephemeral")), "{found:?}")
                }
                message => assert_eq!(found, message),
            }
        }
        assert!(is_limited(&limited(&[None])));
        assert!(!is_limited(&pod(json!({"containers": [{"name": "c"}], "volumes": [{"name": "v", "emptyDir": {}}]}))));
    }

    #[test]
    fn a_directory_takes_what_its_files_take() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(disk_use(&dir.path().join("none")).expect("nothing there"), 0);
        let empty = disk_use(dir.path()).expect("measured");
        fs::create_dir(dir.path().join("deep")).expect("made");
        fs::write(dir.path().join("deep/file"), vec![1; 1 << 20]).expect("written");
        fs::hard_link(dir.path().join("deep/file"), dir.path().join("same")).expect("linked");
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).expect("linked");
        let used = disk_use(dir.path()).expect("measured") - empty;
        assert!((1 << 20..3 << 19).contains(&used), "{used}");
    }
}
