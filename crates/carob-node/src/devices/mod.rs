//! Devices of plug-ins: what a kubelet does for them (`pkg/kubelet/cm/devicemanager`).
//!
//! Start at [`Devices`]. A plug-in registers on a socket, or in the directory of plug-ins that CSI drivers register in too, and
//! lists its devices for as long as it runs ([`plugins`]). A Pod is given devices before it is taken in, and with them what
//! the plug-in answers ([`answer`]), which each start of the container follows. Which devices there are and who has them is
//! decided in [`state`], kept on disk by [`note`] and told to exporters by [`pod_resources`].
//!
//! Plug-ins are asked without a lock: one that hangs holds up the Pods that want its devices. Those are set aside meanwhile.

mod answer;
mod note;
mod plugins;
mod pod_resources;
mod state;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use carob_api::pod::is_extended;
use carob_csi::DriverError;
use carob_kit::Clock;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus, ResourceHealth, ResourceStatus};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio_util::sync::CancellationToken;

pub use answer::AnswerError;
pub(crate) use answer::WithDevices;
pub use note::NoteError;
pub use plugins::ConnectError;
pub(crate) use plugins::DEVICE_PLUGIN;
use plugins::Plugin;
pub use state::{ChoiceError, ListError};
use state::{Holder, State};

use crate::config::resources::{ResourceError, amount};
use crate::files::{Files, FilesError};
use crate::pod::PodId;

const FILES_OF: &str = "devices";

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(transparent)]
    Quantity(#[from] ResourceError),
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    #[error("unknown Device Plugin {0}")]
    NoPlugin(String),
    #[error("device plugin GetPreferredAllocation rpc failed with err")]
    Preferred(#[source] DriverError),
    #[error("the plug-in of {resource} did not allocate")]
    Allocate {
        resource: String,
        #[source]
        source: DriverError,
    },
    #[error(transparent)]
    Answer(#[from] AnswerError),
    #[error("device plugin PreStartContainer rpc failed with err")]
    PreStart(#[source] DriverError),
    #[error("note who has which devices")]
    Note(#[source] io::Error),
}

/// The devices of this node. Clones share everything.
#[derive(Clone)]
pub struct Devices(Arc<Inner>);

struct Inner {
    /// Where plug-ins have their sockets and the node has its own.
    dir: PathBuf,
    /// Where the node has its socket for exporters.
    pod_resources_dir: PathBuf,
    files: Files,
    clock: Arc<dyn Clock>,
    known: Mutex<Known>,
    /// Counts changes of what there is.
    changed: watch::Sender<u64>,
    /// Held while the note is written, so that the last one written is the newest.
    writing: AsyncMutex<()>,
    shutdown: CancellationToken,
}

#[derive(Default)]
struct Known {
    state: State,
    /// By resource; one that has left stays until another comes.
    plugins: HashMap<String, Plugin>,
    connections: u64,
}

impl Devices {
    /// `root`: a kubelet's root directory.
    pub fn new(root: &Path, files: Files, clock: Arc<dyn Clock>, shutdown: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            dir: root.join("device-plugins"),
            pod_resources_dir: root.join("pod-resources"),
            files,
            clock,
            known: Mutex::default(),
            changed: watch::Sender::new(0),
            writing: AsyncMutex::new(()),
            shutdown,
        }))
    }

    /// For tests of what has no devices.
    #[cfg(test)]
    pub(crate) fn without_plugins(clock: Arc<dyn Clock>) -> Self {
        Self::new(Path::new("/nonexistent"), Files::in_runtime(), clock, CancellationToken::new())
    }

    /// Takes over what an earlier life of the node noted.
    pub fn recall(&self) -> Result<(), NoteError> {
        let (registered, given) = note::read(&self.0.dir.join(note::FILE))?;
        self.known().state = State::recall(registered, given, self.0.clock.now());
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Each change of it is whole.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts up whenever the amounts or the health of devices may have changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// How many there are and how many Pods can have, by resource.
    pub(crate) fn amounts(&self) -> BTreeMap<String, (usize, usize)> {
        self.known().state.amounts()
    }

    /// The uids of Pods that have devices.
    pub(crate) fn holders(&self) -> BTreeSet<String> {
        self.known().state.holders()
    }

    /// Whether the Pod asks for devices of a plug-in.
    pub(crate) fn wants(&self, pod: &Pod) -> bool {
        let known = self.known();
        let limits =
            pod.spec.iter().flat_map(containers).filter_map(|container| container.resources.as_ref()?.limits.as_ref());
        limits.flat_map(BTreeMap::keys).any(|name| is_extended(name) && known.state.is_device(name))
    }

    /// Takes devices back from all Pods but these, which are taken in or being decided about.
    pub(crate) fn keep_only(&self, uids: &HashSet<String>) {
        self.known().state.keep_only(uids);
    }

    pub(crate) fn forget(&self, uid: &str) {
        self.known().state.forget(uid);
    }

    /// Gives the containers of a Pod their devices.
    pub(crate) async fn admit(&self, pod: &Pod) -> Result<(), DeviceError> {
        for container in pod.spec.iter().flat_map(containers) {
            self.give(pod, container).await?;
        }
        Ok(())
    }

    /// What a container is to be started with. One that has no devices yet, because it is a static Pod's or what was noted is
    /// lost, is given them now.
    pub(crate) async fn for_start(&self, pod: &Pod, container: &Container) -> Result<WithDevices, DeviceError> {
        let holder = Holder { uid: PodId::of(pod).uid, container: container.name.clone() };
        let mut all = WithDevices::default();
        for (resource, _) in self.wanted(container)? {
            let has = self.known().state.of(&holder, &resource).is_some();
            if !has {
                self.give(pod, container).await?;
            }
            let (given, plugin) = {
                let known = self.known();
                (known.state.of(&holder, &resource).cloned(), known.plugins.get(&resource).cloned())
            };
            let Some(given) = given else { continue };
            if let Some(plugin) = plugin.filter(|plugin| plugin.options.pre_start) {
                let ids = given.devices.iter().cloned().collect();
                plugin.client.pre_start(ids).await.map_err(|error| DeviceError::PreStart(error.into()))?;
            }
            if let Some(answer) = &given.answer {
                all.add(answer);
            }
        }
        Ok(all)
    }

    /// How many devices of which resources a container asks for.
    fn wanted(&self, container: &Container) -> Result<Vec<(String, usize)>, ResourceError> {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        let mut wanted = Vec::new();
        for name in limits.into_iter().flat_map(BTreeMap::keys).filter(|name| is_extended(name)) {
            let count = amount(limits, name)?.map_or(0, |quantity| usize::try_from(quantity.value()).unwrap_or(0));
            if count > 0 && self.known().state.is_device(name) {
                wanted.push((name.clone(), count));
            }
        }
        Ok(wanted)
    }

    async fn give(&self, pod: &Pod, container: &Container) -> Result<(), DeviceError> {
        let holder = Holder { uid: PodId::of(pod).uid, container: container.name.clone() };
        let ended: Vec<&str> = pod.spec.iter().flat_map(that_end_first).map(|init| init.name.as_str()).collect();
        let mut given = false;
        for (resource, count) in self.wanted(container)? {
            let (offer, plugin) = {
                let known = self.known();
                (known.state.offer(&holder, &resource, count, &ended)?, known.plugins.get(&resource).cloned())
            };
            let Some(offer) = offer else { continue };
            let plugin = plugin.ok_or_else(|| DeviceError::NoPlugin(resource.clone()))?;
            let choice = offer.available.len() + offer.reused.len() > count && offer.reused.len() < count;
            let preferred = if choice && plugin.options.preferred_allocation {
                let all = offer.available.union(&offer.reused).cloned().collect();
                let size = i32::try_from(count).unwrap_or(i32::MAX);
                let asked = plugin.client.preferred(all, offer.reused.into_iter().collect(), size).await;
                asked.map_err(|error| DeviceError::Preferred(error.into()))?
            } else {
                Vec::new()
            };
            let chosen = self.known().state.reserve(&holder, &resource, count, &ended, &preferred)?;
            let reservation = Reservation { devices: self, holder: &holder, resource: &resource };
            let answer = plugin.client.allocate(chosen.into_iter().collect()).await;
            let answer =
                answer.map_err(|error| DeviceError::Allocate { resource: resource.clone(), source: error.into() })?;
            let answer = answer::check(answer)?;
            self.known().state.settle(&holder, &resource, answer);
            drop(reservation);
            given = true;
        }
        if given { self.write().await.map_err(DeviceError::Note) } else { Ok(()) }
    }

    /// Notes who has which devices.
    async fn write(&self) -> io::Result<()> {
        let _writing = self.0.writing.lock().await;
        let text = note::text(&self.known().state)?;
        let path = self.0.dir.join(note::FILE);
        let write = move || carob_kit::fs::write_atomic(&carob_kit::fs::RealFs, &path, &text);
        self.0
            .files
            .run(FILES_OF, "note who has which devices", write)
            .await
            .map_err(|error: FilesError| io::Error::from(error))?
    }

    /// Says in a Pod's status which devices its containers have and how these are.
    pub(crate) fn show(&self, uid: &str, status: &mut PodStatus) {
        let known = self.known();
        for shown in status.container_statuses.iter_mut().flatten() {
            let of_container = known.state.given().filter(|(holder, _, given)| {
                holder.uid == uid && holder.container == shown.name && given.answer.is_some()
            });
            let of_resource = of_container.map(|(_, resource, given)| ResourceStatus {
                name: resource.to_owned(),
                resources: Some(
                    given
                        .devices
                        .iter()
                        .map(|id| ResourceHealth {
                            resource_id: id.clone(),
                            health: Some(known.state.health(resource, id).to_owned()),
                            message: None,
                        })
                        .collect(),
                ),
            });
            shown.allocated_resources_status = Some(of_resource.collect()).filter(|list: &Vec<_>| !list.is_empty());
        }
    }
}

/// Devices that are set aside; dropped without an answer, they are given back.
struct Reservation<'a> {
    devices: &'a Devices,
    holder: &'a Holder,
    resource: &'a str,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.devices.known().state.give_back(self.holder, self.resource);
    }
}

/// Init containers first: what they had is used again.
fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// The containers that have ended before later ones start.
fn that_end_first(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().filter(|init| init.restart_policy.as_deref() != Some("Always"))
}
