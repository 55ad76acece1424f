//! The volumes of Pods: made before the first container, kept up to date, given back at the end.

mod atomic;
mod empty_dir;
mod host_path;
pub mod payload;
pub mod sub_path;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use carob_api::quantity::Quantity;
use carob_kit::{Clock, chain};
use fs_err as fs;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::config::resources;
use crate::env::fields::FieldFacts;
use crate::files::{Files, FilesError};
use crate::objects::Objects;
use crate::paths::PodDirs;
use payload::{PayloadError, Sources, Tokens};

/// Why one volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error(transparent)]
    HostPath(#[from] host_path::HostPathError),
    #[error("prepare the directory")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Files(#[from] FilesError),
    // The words of the kubelet: no driver can be registered with this node.
    #[error(
        "kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name {0} not found in the list of registered \
         CSI drivers"
    )]
    NoCsiDriver(String),
    #[error("fsGroup {0} is not in range 0-2147483647")]
    FsGroup(i64),
    #[error("the volume source is not supported")]
    Unsupported,
}

/// The volumes that failed, with what the event says of each.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.messages().join("; "))]
pub struct MountError {
    pub volumes: Vec<(String, VolumeError)>,
}

impl MountError {
    /// One message a volume, in upstream's words.
    pub fn messages(&self) -> Vec<String> {
        let message = |(name, error): &(String, VolumeError)| {
            format!("MountVolume.SetUp failed for volume {name:?} : {}", chain(error))
        };
        self.volumes.iter().map(message).collect()
    }
}

/// The volumes of one Pod, ready to be mounted into its containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounted {
    /// Where each volume is on this machine.
    pub paths: BTreeMap<String, PathBuf>,
    /// When a token in one of them has to be renewed.
    pub refresh_at: Option<Timestamp>,
}

pub struct Volumes {
    files: Files,
    dirs: PodDirs,
    objects: Arc<dyn Objects>,
    clock: Arc<dyn Clock>,
    tokens: Tokens,
}

impl Volumes {
    pub fn new(files: Files, dirs: PodDirs, objects: Arc<dyn Objects>, clock: Arc<dyn Clock>) -> Self {
        Self { files, dirs, objects, clock, tokens: Tokens::default() }
    }

    /// Makes every volume of the Pod and brings its files up to date. Doing it again changes only what has changed.
    pub async fn mount(&self, pod: &Pod, facts: &FieldFacts) -> Result<Mounted, MountError> {
        let mut mounted = Mounted::default();
        let mut failed = Vec::new();
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        // Images are mounted by the runtime, when a container that wants them is made.
        for volume in volumes.filter(|volume| volume.image.is_none()) {
            match self.one(pod, volume, facts).await {
                Ok((path, refresh_at)) => {
                    mounted.paths.insert(volume.name.clone(), path);
                    let earliest = mounted.refresh_at.into_iter().chain(refresh_at).min();
                    mounted.refresh_at = earliest;
                }
                Err(error) => failed.push((volume.name.clone(), error)),
            }
        }
        if failed.is_empty() { Ok(mounted) } else { Err(MountError { volumes: failed }) }
    }

    async fn one(
        &self,
        pod: &Pod,
        volume: &Volume,
        facts: &FieldFacts,
    ) -> Result<(PathBuf, Option<Timestamp>), VolumeError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let group = fs_group(pod)?;
        if let Some(source) = &volume.host_path {
            let path = PathBuf::from(&source.path);
            let (place, type_) = (path.clone(), source.type_.clone().unwrap_or_default());
            self.files.run(uid, "prepare a hostPath", move || host_path::prepare(&place, &type_)).await??;
            return Ok((path, None));
        }
        if let Some(source) = &volume.empty_dir {
            let path = self.dirs.volume(uid, "empty-dir", &volume.name);
            let (place, source, memory_max) = (path.clone(), source.clone(), memory_max(pod, facts));
            let made = move || empty_dir::prepare(&place, &source, group, memory_max);
            self.files.run(uid, "prepare an emptyDir", made).await??;
            return Ok((path, None));
        }
        if let Some(source) = &volume.csi {
            return Err(VolumeError::NoCsiDriver(source.driver.clone()));
        }
        let now = self.clock.now();
        let sources = Sources { pod, facts, objects: &*self.objects, tokens: &self.tokens, now };
        let payload = sources.payload(volume).await?.ok_or(VolumeError::Unsupported)?;
        let path = self.dirs.volume(uid, plugin(volume), &volume.name);
        let (dir, refresh_at) = (path.clone(), payload.refresh_at);
        // Secrets and tokens never reach a disk.
        let in_memory = volume.config_map.is_none();
        let written = self.files.run(uid, "write the files of a volume", move || {
            if in_memory {
                empty_dir::in_memory(&dir, None)?;
            } else {
                fs::create_dir_all(&dir)?;
            }
            atomic::write(&dir, &payload, group, now)
        });
        written.await??;
        Ok((path, refresh_at))
    }

    /// Gives back all that [`Volumes::mount`] and the subPaths of its containers made. Nothing there is fine.
    pub fn unmount(&self, uid: &str) -> io::Result<()> {
        self.tokens.forget(uid);
        release_sub_paths(&self.dirs.sub_paths(uid))?;
        for plugin in entries(&self.dirs.volumes(uid))? {
            for volume in entries(&plugin)? {
                empty_dir::release(&volume)?;
            }
        }
        remove_dir(&self.dirs.volumes(uid))
    }
}

/// The most that a volume in memory may hold: what the Pod's containers may use together, or what the node can give (kubelet
/// `pkg/volume/emptydir`, calculateEmptyDirMemorySize).
fn memory_max(pod: &Pod, facts: &FieldFacts) -> Option<i64> {
    let of_pod = resources::pod(pod).ok().and_then(|made| resources::Limits::of(&made).memory_bytes);
    let of_node = facts.allocatable.get("memory").and_then(|text| Quantity::parse(text).ok()).map(|all| all.value());
    [of_pod, of_node].into_iter().flatten().filter(|bytes| *bytes > 0).min()
}

fn plugin(volume: &Volume) -> &'static str {
    if volume.config_map.is_some() {
        "configmap"
    } else if volume.secret.is_some() {
        "secret"
    } else if volume.downward_api.is_some() {
        "downward-api"
    } else {
        "projected"
    }
}

fn fs_group(pod: &Pod) -> Result<Option<u32>, VolumeError> {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let Some(group) = context.and_then(|context| context.fs_group) else { return Ok(None) };
    i32::try_from(group).ok().and_then(|id| u32::try_from(id).ok()).map(Some).ok_or(VolumeError::FsGroup(group))
}

fn release_sub_paths(root: &Path) -> io::Result<()> {
    for volume in entries(root)? {
        for container in entries(&volume)? {
            for target in entries(&container)? {
                sub_path::release(&target)?;
            }
        }
    }
    remove_dir(root)
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        list => list?.map(|entry| entry.map(|entry| entry.path())).collect(),
    }
}

pub(crate) fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
