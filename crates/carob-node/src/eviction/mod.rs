//! Ends Pods that the node cannot go on with: those that take more of the disk than they may ([`storage`]), and, while the node
//! is short of something, one after the other by rank (kubelet `pkg/kubelet/eviction`).
//!
//! [`thresholds`], [`decide`] and [`rank`] are pure; [`Evictor`] measures, and carries out.

pub mod decide;
pub mod rank;
pub mod storage;
pub mod thresholds;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use carob_cri::CriError;
use carob_cri::v1::{
    ImageFsInfoRequest, ImageSpec, ListContainersRequest, ListImagesRequest, ListPodSandboxRequest,
    ListPodSandboxStatsRequest, PodSandboxFilter, PodSandboxState, PodSandboxStats, RemoveImageRequest,
};
use carob_kit::chain;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::Rejection;
use crate::config::labels;
use crate::events::Subject;
use crate::fleet::Fleet;
use crate::machine::facts::{self, Strain};
use crate::pod::PodId;
use crate::worker::Tools;
use decide::{Memory, Observation, Observations, Shortage, Verdict};
use rank::{Candidate, Used, is_critical, message, rank};
use thresholds::{EvictionConfig, Pressure, Signal};

pub(crate) use storage::{DiskUse, measure};

/// The reason of a Pod that was ended, in its status and its event.
pub const EVICTED: &str = "Evicted";
/// How often the node is measured (kubelet `evictionMonitoringPeriod`).
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// And while memory is short, or nearly, and while something is being reclaimed: what the shortage comes to by then is bounded
/// by it.
const MEASURE_EVERY_SHORT: Duration = Duration::from_secs(1);
/// Memory that is left when that begins, in hundredths of what the highest threshold wants.
const NEARLY_PERCENT: u64 = 200;
/// How long an evicted Pod is waited for before another one goes: until then it has not given back what it holds (kubelet
/// `podCleanupTimeout`).
const CLEANUP_MAX: Duration = Duration::from_secs(30);
/// Whose threads the measuring of disks takes.
const FILES_OF: &str = "eviction";

pub type Pressures = BTreeSet<Pressure>;

/// Watches over the node.
pub struct Evictor {
    pub fleet: Arc<Fleet>,
    pub tools: Arc<Tools>,
    pub config: EvictionConfig,
    pub data_dir: PathBuf,
    /// What the node's object says of it, and what Pods are taken in by.
    pub pressures: watch::Sender<Pressures>,
}

/// What earlier looks have left.
#[derive(Default)]
struct Seen {
    memory: Memory,
    /// The Pod that was evicted last.
    going: Option<Going>,
    /// Until when nothing more is reclaimed, since there was nothing.
    nothing_until: Option<Timestamp>,
    /// When Pods are next held to their own limits, which takes a walk through their files.
    limits_at: Option<Timestamp>,
    /// Where the runtime keeps images. It is asked once: its answer takes a walk through all of them.
    image_dir: Option<PathBuf>,
}

/// A Pod that was evicted, and until when it is waited for.
struct Going {
    uid: String,
    until: Timestamp,
}

/// What was done about a shortage.
enum Reclaimed {
    Nothing,
    Images,
    /// The Pod with this uid is being ended.
    Pod(String),
}

impl Evictor {
    /// Measures, and ends Pods, until the shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut seen = Seen { image_dir: self.image_dir().await, ..Seen::default() };
        loop {
            let wait = match self.round(&mut seen).await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "cannot measure what the node has left");
                    MEASURE_EVERY
                }
            };
            // Both arms are cancel safe.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Looks once. Answers how long until the next look.
    async fn round(&self, seen: &mut Seen) -> io::Result<Duration> {
        let observations = self.observe(seen.image_dir.clone()).await?;
        let now = self.tools.clock.now();
        let Verdict { pressures, shortage } = seen.memory.look(&self.config, &observations, now);
        self.pressures.send_if_modified(|shown| {
            let changed = *shown != pressures;
            shown.clone_from(&pressures);
            changed
        });
        let mut evicted = 0;
        if seen.limits_at.is_none_or(|at| at <= now) {
            evicted = storage::evict_over_limits(&self.fleet, &self.tools).await;
            seen.limits_at = Some(crate::plan::after(now, MEASURE_EVERY));
        }
        if let Some(last) = seen.going.take()
            && last.until > now
            && !self.is_cleaned_up(&last.uid).await
        {
            seen.going = Some(last);
        }
        let mut is_reclaiming = evicted > 0 || seen.going.is_some();
        if let Some(shortage) = shortage
            && !is_reclaiming
            && seen.nothing_until.is_none_or(|until| until <= now)
        {
            match self.reclaim(&shortage).await {
                Reclaimed::Nothing => seen.nothing_until = Some(crate::plan::after(now, MEASURE_EVERY)),
                Reclaimed::Images => is_reclaiming = true,
                Reclaimed::Pod(uid) => {
                    seen.going = Some(Going { uid, until: crate::plan::after(now, CLEANUP_MAX) });
                    is_reclaiming = true;
                }
            }
        }
        let is_urgent = is_reclaiming || self.is_nearly_short(&observations);
        Ok(if is_urgent { MEASURE_EVERY_SHORT } else { MEASURE_EVERY })
    }

    /// Whether a Pod that was evicted has given back what it held.
    async fn is_cleaned_up(&self, uid: &str) -> bool {
        if self.tools.dirs.volumes(uid).exists() {
            return false;
        }
        let label_selector = BTreeMap::from([(labels::POD_UID.to_owned(), uid.to_owned())]);
        let filter = PodSandboxFilter { label_selector, ..PodSandboxFilter::default() };
        let listed = self.tools.cri.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await;
        listed.is_ok_and(|listed| listed.items.iter().all(|one| one.state() != PodSandboxState::SandboxReady))
    }

    /// Whether memory may run out before the next usual look.
    fn is_nearly_short(&self, observations: &Observations) -> bool {
        let Some(seen) = observations.get(&Signal::MemoryAvailable) else { return false };
        let of_memory = self.config.thresholds.iter().filter(|threshold| threshold.signal == Signal::MemoryAvailable);
        let highest = of_memory.map(|threshold| threshold.amount.of(seen.capacity)).max().unwrap_or(0);
        seen.available < highest.saturating_mul(NEARLY_PERCENT) / 100
    }

    async fn observe(&self, images: Option<PathBuf>) -> io::Result<Observations> {
        let data_dir = self.data_dir.clone();
        let measured = self.tools.files.run(FILES_OF, "measure the disk", move || {
            let nodefs = facts::strain(&data_dir)?;
            let device = |path: &PathBuf| fs_err::metadata(path).map(|found| found.dev());
            let imagefs = match images {
                Some(dir) if dir.is_dir() && device(&dir)? != device(&data_dir)? => Some(facts::strain(&dir)?),
                Some(_) | None => None,
            };
            Ok::<_, io::Error>((nodefs, imagefs, facts::memory_total()?))
        });
        let (nodefs, imagefs, memory_total) = measured.await.map_err(io::Error::from)??;
        Ok(observations(&nodefs, imagefs.as_ref(), memory_total))
    }

    /// Where the runtime keeps images, if it says so and a threshold wants to know.
    async fn image_dir(&self) -> Option<PathBuf> {
        let of_images = |signal| matches!(signal, Signal::ImagefsAvailable | Signal::ImagefsInodesFree);
        if !self.config.thresholds.iter().any(|threshold| of_images(threshold.signal)) {
            return None;
        }
        let info = self.tools.cri.image_fs_info(ImageFsInfoRequest {}).await.ok()?;
        let first = info.image_filesystems.into_iter().next()?;
        first.fs_id.map(|id| PathBuf::from(id.mountpoint))
    }

    /// Images that nothing uses go first, then one Pod: what its end gives back is seen at a later look.
    async fn reclaim(&self, shortage: &Shortage) -> Reclaimed {
        let (signal, resource) = (shortage.threshold.signal, shortage.threshold.signal.resource());
        let node = &self.tools.settings.node_name;
        let said = format!("Attempting to reclaim {resource}");
        self.tools.events.warning(&Subject::node(node, node), "EvictionThresholdMet", said);
        if signal.pressure() == Pressure::Disk {
            match self.remove_images().await {
                Ok(0) => {}
                Ok(removed) => {
                    tracing::info!(removed, "removed images that nothing uses, for want of {resource}");
                    return Reclaimed::Images;
                }
                Err(error) => tracing::warn!(%error, "cannot remove images that nothing uses"),
            }
        }
        let candidates = match self.candidates(signal.pressure()).await {
            Ok(candidates) => candidates,
            Err(error) => {
                tracing::warn!(%error, "cannot measure what pods use");
                return Reclaimed::Nothing;
            }
        };
        let Some(first) = rank(signal.pressure(), candidates).into_iter().next() else {
            tracing::warn!("the node is short of {resource}, and has no pod to evict");
            return Reclaimed::Nothing;
        };
        let id = PodId::of(&first.pod);
        let why = Rejection { reason: EVICTED.into(), message: message(shortage, &first) };
        tracing::info!(pod = %id, why = why.message, "evicting a pod");
        self.tools.figures.evicted(signal.name());
        self.fleet.evict(&id.uid, why);
        Reclaimed::Pod(id.uid)
    }

    async fn candidates(&self, pressure: Pressure) -> Result<Vec<Candidate>, CriError> {
        let stats = self.tools.cri.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await?.stats;
        let mut candidates = Vec::new();
        for pod in self.fleet.running_pods().into_iter().filter(|pod| !is_critical(pod)) {
            let uid = PodId::of(&pod).uid;
            let of_pod = |stats: &&PodSandboxStats| {
                let meta = stats.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref());
                meta.is_some_and(|meta| meta.uid == uid)
            };
            // A Pod of which nothing runs gives nothing back.
            let Some(stats) = stats.iter().find(of_pod) else { continue };
            let disk = match pressure {
                Pressure::Disk => measure(&self.tools, &pod).await.ok(),
                Pressure::Memory | Pressure::Pid => Some(DiskUse::default()),
            };
            let used = disk.and_then(|disk| used(stats, &disk, pressure));
            candidates.push(Candidate { pod, used });
        }
        Ok(candidates)
    }

    /// Removes the images of which no container was made and that are not pinned. Answers how many.
    async fn remove_images(&self) -> Result<usize, CriError> {
        let containers = self.tools.cri.list_containers(ListContainersRequest::default()).await?.containers;
        let used: HashSet<String> = containers
            .into_iter()
            .flat_map(|one| [Some(one.image_ref), Some(one.image_id), one.image.map(|image| image.image)])
            .flatten()
            .collect();
        let images = self.tools.cri.list_images(ListImagesRequest::default()).await?.images;
        let mut removed = 0;
        for image in images.into_iter().filter(|image| !image.pinned) {
            let names = image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id]);
            if names.into_iter().any(|name| used.contains(name)) {
                continue;
            }
            let spec = ImageSpec { image: image.id.clone(), ..ImageSpec::default() };
            match self.tools.cri.remove_image(RemoveImageRequest { image: Some(spec) }).await {
                Ok(_) => removed += 1,
                // One that is being pulled or used by now stays; so do those that the runtime was given by hand.
                Err(error) => tracing::debug!(image = image.id, %error, "an image stays"),
            }
        }
        Ok(removed)
    }
}

fn observations(nodefs: &Strain, imagefs: Option<&Strain>, memory_total: u64) -> Observations {
    // Where images have no disk of their own, the thresholds of both hold for the one that there is, and so the higher one.
    let imagefs = imagefs.unwrap_or(nodefs);
    let all = [
        (Signal::MemoryAvailable, nodefs.memory_available_bytes, memory_total),
        (Signal::NodefsAvailable, nodefs.disk_free_bytes, nodefs.disk_total_bytes),
        (Signal::NodefsInodesFree, nodefs.inodes_free, nodefs.inodes_total),
        (Signal::ImagefsAvailable, imagefs.disk_free_bytes, imagefs.disk_total_bytes),
        (Signal::ImagefsInodesFree, imagefs.inodes_free, imagefs.inodes_total),
        (Signal::PidAvailable, nodefs.pids_max.saturating_sub(nodefs.pids_used), nodefs.pids_max),
    ];
    // A file system without a count of inodes, as btrfs, is never short of them.
    let known = all.into_iter().filter(|(_, _, capacity)| *capacity > 0);
    known.map(|(signal, available, capacity)| (signal, Observation { available, capacity })).collect()
}

fn used(stats: &PodSandboxStats, disk: &DiskUse, pressure: Pressure) -> Option<Used> {
    let linux = stats.linux.as_ref()?;
    let working_set = |memory: &carob_cri::v1::MemoryUsage| memory.working_set_bytes.map_or(0, |bytes| bytes.value);
    let memory_of: BTreeMap<String, u64> = linux
        .containers
        .iter()
        .filter_map(|one| {
            let name = one.attributes.as_ref()?.metadata.as_ref()?.name.clone();
            Some((name, one.memory.as_ref().map_or(0, working_set)))
        })
        .collect();
    Some(Used {
        memory_bytes: linux.memory.as_ref().map(working_set)?,
        disk_bytes: disk.total(),
        processes: linux.process.as_ref().and_then(|process| process.process_count).map_or(0, |count| count.value),
        containers: match pressure {
            Pressure::Memory => memory_of,
            Pressure::Disk => disk.containers.clone(),
            Pressure::Pid => BTreeMap::new(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_counted_is_never_short() {
        let nodefs = Strain {
            memory_available_bytes: 1,
            disk_total_bytes: 100,
            disk_free_bytes: 30,
            pids_max: 10,
            pids_used: 11,
            ..Strain::default()
        };
        let seen = observations(&nodefs, None, 4);
        assert_eq!(seen[&Signal::NodefsAvailable], Observation { available: 30, capacity: 100 });
        assert_eq!(
            seen[&Signal::ImagefsAvailable],
            Observation { available: 30, capacity: 100 },
            "it is the same disk"
        );
        let images = Strain { disk_total_bytes: 50, disk_free_bytes: 20, ..Strain::default() };
        let apart = observations(&nodefs, Some(&images), 4);
        assert_eq!(apart[&Signal::ImagefsAvailable], Observation { available: 20, capacity: 50 });
        assert_eq!(seen[&Signal::PidAvailable], Observation { available: 0, capacity: 10 });
        assert!(!seen.contains_key(&Signal::NodefsInodesFree));
    }
}
