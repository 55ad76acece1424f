//! The volumes of Pods: made before the first container, kept up to date, given back at the end.

mod atomic;
pub mod certificates;
mod claim;
mod device;
mod empty_dir;
mod exclusive;
mod figures;
mod formatted;
mod host_path;
pub(crate) mod ownership;
pub mod payload;
mod persistent;
pub mod sub_path;

pub use figures::Figures;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use carob_api::quantity::Quantity;
use carob_kit::{Clock, KeyedLocks, chain};
use carob_sys::disks::{Disks, Machine};
use fs_err as fs;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::config::resources;
use crate::csi::{self, Csi, CsiError};
use crate::env::fields::FieldFacts;
use crate::events::Events;
use crate::files::{Files, FilesError};
use crate::objects::Objects;
use crate::paths::PodDirs;
use crate::plan::after;
use certificates::PodCertificates;
use claim::{Bound, ClaimError};
use device::Devices;
use empty_dir::{Medium, MediumError};
use exclusive::{Exclusive, ExclusiveError, is_exclusive};
use ownership::Group;
use payload::{PayloadError, Sources, Tokens};
use persistent::{PersistentError, Place};

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
    Medium(#[from] MediumError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Csi(#[from] Arc<CsiError>),
    #[error(transparent)]
    Growth(#[from] ClaimError),
    #[error("fsGroup {0} is not in range 0-2147483647")]
    FsGroup(i64),
    #[error("error processing PVC {namespace}/{name}")]
    Claim {
        namespace: String,
        name: String,
        #[source]
        source: ClaimError,
    },
    #[error(transparent)]
    Persistent(#[from] PersistentError),
    #[error(transparent)]
    Exclusive(#[from] ExclusiveError),
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
    /// An event's reason and message for each volume, in upstream's words.
    pub fn events(&self) -> Vec<(&'static str, String)> {
        let reason =
            |error: &VolumeError| if let VolumeError::Csi(error) = error { error.reason() } else { "FailedMount" };
        self.volumes.iter().map(|(_, error)| reason(error)).zip(self.messages()).collect()
    }

    /// One message a volume.
    fn messages(&self) -> Vec<String> {
        let message = |(name, error): &(String, VolumeError)| {
            let stage = if let VolumeError::Csi(error) = error { error.stage() } else { "MountVolume.SetUp" };
            format!("{stage} failed for volume {name:?} : {}", chain(error))
        };
        self.volumes.iter().map(message).collect()
    }
}

/// How often a claim is looked at whose volume may grow while a Pod has it.
const GROWTH_EVERY: Duration = Duration::from_secs(60);
/// In the directory of a volume, or beside what is mounted there: its files have been given to the Pod's group, and what the Pod did since stays.
const OWNED: &str = ".owned";

/// The volumes of one Pod, ready to be mounted into its containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounted {
    /// Where each volume is on this machine.
    pub paths: BTreeMap<String, PathBuf>,
    /// The volumes that no container may write to.
    pub read_only: BTreeSet<String>,
    /// The volumes that are block devices, with the device.
    pub devices: BTreeMap<String, PathBuf>,
    /// When a token in one of them has to be renewed.
    pub refresh_at: Option<Timestamp>,
    /// The PersistentVolumes that have just grown.
    pub grown: Vec<String>,
}

/// What volumes are made with.
pub struct VolumesParts {
    pub files: Files,
    pub dirs: PodDirs,
    pub objects: Arc<dyn Objects>,
    pub events: Arc<dyn Events>,
    pub clock: Arc<dyn Clock>,
    pub csi: Csi,
    pub node_name: String,
}

pub struct Volumes {
    files: Files,
    dirs: PodDirs,
    objects: Arc<dyn Objects>,
    clock: Arc<dyn Clock>,
    tokens: Tokens,
    certificates: PodCertificates,
    known: Mutex<Known>,
    devices: Arc<Devices>,
    disks: Arc<dyn Disks>,
    /// Whose turn it is to take a volume for one Pod alone.
    exclusive: KeyedLocks<String>,
    csi: Csi,
}

/// A volume that is ready.
#[derive(Debug, Clone)]
struct Ready {
    path: PathBuf,
    refresh_at: Option<Timestamp>,
    read_only: bool,
    /// The path is a block device.
    device: bool,
    /// The claim behind it.
    claim: Option<String>,
    /// The PersistentVolume of a driver.
    volume: Option<String>,
    /// The PersistentVolume that has just grown.
    grown: Option<String>,
}

impl Ready {
    fn at(path: PathBuf) -> Self {
        Self { path, refresh_at: None, read_only: false, device: false, claim: None, volume: None, grown: None }
    }
}

/// The claims' volumes of Pods by uid and volume: a refresh of other volumes does not ask the API for them again.
type Known = BTreeMap<(String, String), Ready>;

impl Volumes {
    pub fn new(parts: VolumesParts) -> Self {
        let VolumesParts { files, dirs, objects, events, clock, csi, node_name } = parts;
        let disks: Arc<dyn Disks> = Arc::new(Machine);
        let devices = Arc::new(Devices::new(dirs.clone(), Arc::clone(&disks)));
        let certificates = PodCertificates::new(
            files.clone(),
            dirs.clone(),
            Arc::clone(&objects),
            events,
            Arc::clone(&clock),
            node_name,
        );
        let (tokens, known) = (Tokens::default(), Mutex::default());
        Self {
            files,
            dirs,
            objects,
            clock,
            tokens,
            certificates,
            known,
            devices,
            disks,
            exclusive: KeyedLocks::default(),
            csi,
        }
    }

    pub(crate) fn certificates(&self) -> &PodCertificates {
        &self.certificates
    }

    /// Devices and mounts are those of `disks`.
    #[must_use]
    pub fn on(self, disks: Arc<dyn Disks>) -> Self {
        Self { devices: Arc::new(Devices::new(self.dirs.clone(), Arc::clone(&disks))), disks, ..self }
    }

    /// The volumes of drivers.
    pub(crate) fn csi(&self) -> &Csi {
        &self.csi
    }

    /// Makes every volume of the Pod and brings its files up to date. Doing it again changes only what has changed.
    pub async fn mount(&self, pod: &Arc<Pod>, facts: &FieldFacts) -> Result<Mounted, MountError> {
        let mut mounted = Mounted::default();
        let mut failed = Vec::new();
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        // Images are mounted by the runtime, when a container that wants them is made.
        for volume in volumes.filter(|volume| volume.image.is_none()) {
            match self.one(pod, volume, facts).await {
                Ok(ready) => {
                    let places = if ready.device { &mut mounted.devices } else { &mut mounted.paths };
                    places.insert(volume.name.clone(), ready.path);
                    if ready.read_only {
                        mounted.read_only.insert(volume.name.clone());
                    }
                    mounted.grown.extend(ready.grown);
                    let earliest = mounted.refresh_at.into_iter().chain(ready.refresh_at).min();
                    mounted.refresh_at = earliest;
                }
                Err(error) => failed.push((volume.name.clone(), error)),
            }
        }
        if failed.is_empty() { Ok(mounted) } else { Err(MountError { volumes: failed }) }
    }

    async fn one(&self, pod: &Arc<Pod>, volume: &Volume, facts: &FieldFacts) -> Result<Ready, VolumeError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let group = fs_group(pod)?;
        if let Some(source) = &volume.host_path {
            let path = PathBuf::from(&source.path);
            let (place, type_) = (path.clone(), source.type_.clone().unwrap_or_default());
            self.files.run(uid, "prepare a hostPath", move || host_path::prepare(&place, &type_)).await??;
            return Ok(Ready::at(path));
        }
        if let Some(source) = &volume.empty_dir {
            let path = self.dirs.volume(uid, "empty-dir", &volume.name);
            let (place, source, memory_max) = (path.clone(), source.clone(), memory_max(pod, facts));
            let medium = Medium::of(&source, pod)?;
            let made = move || empty_dir::prepare(&place, medium, &source, group, memory_max);
            self.files.run(uid, "prepare an emptyDir", made).await??;
            return Ok(Ready::at(path));
        }
        if let Some((name, read_only)) = claim::claim_name(pod, volume) {
            return self.claimed(pod, volume, &name, read_only, group).await;
        }
        if let Some(source) = volume.nfs.clone() {
            let path = self.dirs.volume(uid, "nfs", &volume.name);
            let (target, disks) = (path.clone(), Arc::clone(&self.disks));
            let mounted = move || persistent::mount_nfs(&*disks, &source, &[], &target, false);
            self.files.run(uid, "mount an NFS export", mounted).await??;
            return Ok(Ready::at(path));
        }
        if let Some(source) = &volume.csi {
            let read_only = source.read_only.unwrap_or(false);
            let source = csi::Source::Ephemeral(volume.name.clone(), Box::new(source.clone()));
            return self.of_driver(wanted(pod, source, read_only, group)).await;
        }
        let now = self.clock.now();
        let certificates = &self.certificates;
        let sources = Sources { pod, facts, objects: &*self.objects, tokens: &self.tokens, certificates, now };
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
        Ok(Ready { refresh_at, ..Ready::at(path) })
    }

    async fn of_driver(&self, wanted: csi::Wanted) -> Result<Ready, VolumeError> {
        let (read_only, device) = (wanted.read_only, wanted.block);
        let published = self.csi.mount(wanted).await?;
        Ok(Ready { refresh_at: published.refresh_at, read_only, device, ..Ready::at(published.path) })
    }

    /// A driver's volume behind a claim, as large as the claim says it may be by now.
    async fn of_driver_claimed(&self, bound: &Bound, wanted: csi::Wanted) -> Result<Ready, VolumeError> {
        let mut ready = self.of_driver(wanted.clone()).await?;
        if self.csi.is_expandable(&bound.volume).await {
            // A node may read single claims and watch none, so it looks (kubelet: with each look at the Pod).
            let again = after(self.clock.now(), GROWTH_EVERY);
            ready.refresh_at = Some(ready.refresh_at.map_or(again, |at| at.min(again)));
        }
        if let Some(growth) = claim::growth(&bound.claim, &bound.volume)? {
            self.csi.expand(csi::Expansion { wanted, bytes: growth.bytes }).await?;
            let meta = &bound.claim.metadata;
            let (namespace, name) =
                (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
            self.objects.set_claim_status(namespace, name, &growth.status).await.map_err(ClaimError::from)?;
            ready.grown = Some(bound.volume_name().to_owned());
        }
        ready.volume = Some(bound.volume_name().to_owned());
        Ok(ready)
    }

    /// The volume behind a claim.
    async fn claimed(
        &self,
        pod: &Arc<Pod>,
        volume: &Volume,
        name: &str,
        read_only: bool,
        group: Option<u32>,
    ) -> Result<Ready, VolumeError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let key = (uid.to_owned(), volume.name.clone());
        let now = self.clock.now();
        let known = self.known().get(&key).cloned();
        if let Some(known) = known.filter(|known| known.refresh_at.is_none_or(|at| at > now)) {
            return Ok(known);
        }
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let wrong = |source| VolumeError::Claim { namespace: namespace.clone(), name: name.to_owned(), source };
        let bound = claim::bound(&*self.objects, pod, volume, name, read_only).await.map_err(wrong)?;
        bound.check_use(&volume.name, pod).map_err(wrong)?;
        let spec = bound.volume.spec.clone().unwrap_or_default();
        if let Some(source) = spec.csi.clone() {
            let source = csi::Source::Persistent(Arc::clone(&bound.volume), Box::new(source));
            let mut wanted = wanted(pod, source, bound.read_only, group);
            wanted.block = bound.is_block();
            let ready = self.of_driver_claimed(&bound, wanted).await?;
            let ready = Ready { claim: Some(name.to_owned()), ..ready };
            self.known().insert(key, Ready { grown: None, ..ready.clone() });
            return Ok(ready);
        }
        let place = persistent::place(&spec)?;
        let plugin = match &place {
            Place::Local { .. } => "local-volume",
            Place::HostPath { .. } => "host-path",
            Place::Nfs { .. } => "nfs",
        };
        let target = if bound.is_block() {
            self.dirs.volume_device(uid, bound.volume_name())
        } else {
            self.dirs.volume(uid, plugin, bound.volume_name())
        };
        // What the Pod has it keeps, also where its claim is on its way out.
        let held = target.clone();
        let is_held = move || fs::symlink_metadata(held).is_ok();
        if bound.is_going() && !self.files.run(uid, "look for the volume", is_held).await? {
            return Err(wrong(ClaimError::Terminating));
        }
        let exclusive = if is_exclusive(&spec) {
            let turn = self.exclusive.take(bound.volume_name()).await;
            let (dirs, volume) = (self.dirs.clone(), bound.volume_name().to_owned());
            Some(Exclusive { dirs, uid: uid.to_owned(), volume, turn })
        } else {
            None
        };
        if bound.is_block() {
            let Place::Local { path, .. } = place else { return Err(PersistentError::NoDevice.into()) };
            let (devices, of_pod, volume) = (Arc::clone(&self.devices), uid.to_owned(), bound.volume_name().to_owned());
            let attach = move || {
                let _turn = exclusive.map(Exclusive::hold).transpose()?;
                devices.attach(&of_pod, &volume, &path)
            };
            let device = self.files.run(uid, "attach a block device", attach).await??;
            let claim = Some(name.to_owned());
            let ready = Ready { device: true, read_only: bound.read_only, claim, ..Ready::at(device) };
            self.known().insert(key, ready.clone());
            return Ok(ready);
        }
        // Whose files are the Pod's own is not touched: neither the machine's directories nor a server's.
        let group = group.filter(|_| matches!(place, Place::Local { .. }) && !bound.read_only);
        let on_root_mismatch = on_root_mismatch(pod);
        let (disks, place_, read_only) = (Arc::clone(&self.disks), place.clone(), bound.read_only);
        let beside = self.dirs.volume(uid, OWNED, bound.volume_name());
        let prepared = self.files.run(uid, "mount a persistent volume", move || -> Result<PathBuf, VolumeError> {
            let _turn = exclusive.map(Exclusive::hold).transpose()?;
            let path = persistent::prepare(&*disks, &place_, &target, read_only)?;
            // Not on the volume, where it is the user's.
            let done = if path == target { beside } else { target.join(OWNED) };
            if let Some(gid) = group
                && !done.try_exists()?
            {
                ownership::set(&path, Group { gid, read_only, on_root_mismatch })?;
                fs::create_dir_all(&done)?;
            }
            Ok(path)
        });
        let path = prepared.await??;
        let ready = Ready { read_only, claim: Some(name.to_owned()), ..Ready::at(path) };
        self.known().insert(key, ready.clone());
        Ok(ready)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no holder of the volumes panics")
    }

    /// Gives back all that [`Volumes::mount`] and the subPaths of its containers made. Nothing there is fine.
    pub async fn unmount(&self, uid: &str) -> Result<(), UnmountError> {
        self.tokens.forget(uid);
        self.certificates.end(uid).await;
        self.known().retain(|(of, _), _| of != uid);
        // What is bound out of a volume keeps it from its driver.
        let sub_paths = self.dirs.sub_paths(uid);
        self.files.run(uid, "give subPaths back", move || release_sub_paths(&sub_paths)).await??;
        self.csi.release(uid).await?;
        let (devices, disks) = (Arc::clone(&self.devices), Arc::clone(&self.disks));
        let (volumes, of_pod) = (self.dirs.volumes(uid), uid.to_owned());
        let released = self.files.run(uid, "give the volumes back", move || {
            devices.release(&of_pod)?;
            for plugin in entries(&volumes)? {
                for volume in entries(&plugin)? {
                    disks.unmount(&volume)?;
                    disks.between()?;
                }
            }
            remove_dir(&volumes)
        });
        Ok(released.await??)
    }
}

/// Why a Pod's volumes could not be given back.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    #[error(transparent)]
    Csi(#[from] CsiError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("give the volumes back")]
    Io(#[from] io::Error),
}

fn wanted(pod: &Arc<Pod>, source: csi::Source, read_only: bool, group: Option<u32>) -> csi::Wanted {
    let on_root_mismatch = on_root_mismatch(pod);
    csi::Wanted { pod: Arc::clone(pod), source, read_only, group, on_root_mismatch, block: false }
}

/// Whether files are left alone where the volume's root has the group already.
fn on_root_mismatch(pod: &Pod) -> bool {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    context.and_then(|context| context.fs_group_change_policy.as_deref()) == Some("OnRootMismatch")
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
