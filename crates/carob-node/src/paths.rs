//! Where a Pod's things are on disk.

use std::path::{Path, PathBuf};

use crate::pod::PodId;

/// The directories of all Pods: `<data-dir>/pods/<uid>/..` and the logs beside them.
#[derive(Debug, Clone)]
pub struct PodDirs {
    pods: PathBuf,
    logs: PathBuf,
    log_links: Option<PathBuf>,
}

impl PodDirs {
    /// `logs` is where upstream has `/var/log/pods`; `log_links`, where given, its `/var/log/containers`.
    pub fn new(pods: impl Into<PathBuf>, logs: impl Into<PathBuf>, log_links: Option<PathBuf>) -> Self {
        Self { pods: pods.into(), logs: logs.into(), log_links }
    }

    pub fn pods(&self) -> &Path {
        &self.pods
    }

    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods.join(uid)
    }

    pub fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }

    /// The directory of one volume, named as upstream's plugins are.
    pub fn volume(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.volumes(uid).join(format!("kubernetes.io~{plugin}")).join(name)
    }

    pub fn volume_devices(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumeDevices").join("kubernetes.io~local-volume")
    }

    /// The link to the block device that a volume is, by the volume's name.
    pub fn volume_device(&self, uid: &str, volume: &str) -> PathBuf {
        self.volume_devices(uid).join(volume)
    }

    /// Links to the files that are shown as the Pod's block devices, by the names of the volumes.
    pub fn volume_device_files(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumeDevices").join("carob.io~files")
    }

    pub fn sub_paths(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volume-subpaths")
    }

    /// Where the entry that one mount of one container names is pinned.
    pub fn sub_path(&self, uid: &str, volume: &str, container: &str, index: usize) -> PathBuf {
        self.sub_paths(uid).join(volume).join(container).join(index.to_string())
    }

    /// The file that says which users of the machine the Pod's are (kubelet's name for it).
    pub fn user_range(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("userns")
    }

    pub fn hosts(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("etc-hosts")
    }

    /// The file in which the run `attempt` of a container leaves its last words.
    pub fn termination_log(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.pod(uid).join("containers").join(container).join(attempt.to_string())
    }

    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// `<namespace>_<name>_<uid>` as upstream names it.
    pub fn pod_logs(&self, id: &PodId) -> PathBuf {
        self.logs.join(format!("{}_{}_{}", id.namespace, id.name, id.uid))
    }

    /// A container's log relative to its Pod's.
    pub fn log_name(container: &str, attempt: u32) -> String {
        format!("{container}/{attempt}.log")
    }

    pub fn log(&self, id: &PodId, container: &str, attempt: u32) -> PathBuf {
        self.pod_logs(id).join(Self::log_name(container, attempt))
    }

    /// The link by which log collectors find a container's log (`/var/log/containers`).
    pub fn log_link(&self, id: &PodId, container: &str, container_id: &str) -> Option<PathBuf> {
        let name = format!("{}_{}_{container}-{container_id}.log", id.name, id.namespace);
        self.log_links.as_ref().map(|dir| dir.join(name))
    }
}
