//! The node's part: the volumes of Pods that are bound to it, mounted and given back by the node's own code, and what the Pods
//! write to them.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use carob_node::env::fields::FieldFacts;
use fs_err as fs;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams};

use crate::cluster::{Cluster, Running};

/// The file that a Pod writes to in a directory.
const WORDS: &str = "words";
/// More bytes than words have.
const WORDS_MAX: usize = 256;
/// The name that the volume has in each Pod.
pub(crate) const VOLUME: &str = "v";

/// What a Pod wrote to a volume.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) claim_uid: String,
    pub(crate) volume: PersistentVolume,
    pub(crate) words: String,
    /// What was there before.
    pub(crate) before: Option<String>,
    /// The claim asked for a copy of something.
    pub(crate) copies: bool,
}

pub(crate) fn uid(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> String {
    meta.uid.clone().unwrap_or_default()
}

/// Where a volume's content is.
pub(crate) fn path_of(volume: &PersistentVolume) -> PathBuf {
    let spec = volume.spec.as_ref();
    let local = spec.and_then(|spec| spec.local.as_ref()).map(|local| &local.path);
    let host = spec.and_then(|spec| spec.host_path.as_ref()).map(|host| &host.path);
    PathBuf::from(local.or(host).cloned().unwrap_or_default())
}

/// Where on a volume words are: those of a disk are at its beginning, be it mounted or not.
fn place_of_words(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(WORDS) } else { path.to_owned() }
}

/// What is on a volume; `None` where there is no such file.
pub(crate) fn words_at(path: &Path) -> Option<String> {
    let file = fs::File::open(place_of_words(path)).ok()?;
    let mut bytes = [0; WORDS_MAX];
    let length = file.file().read_at(&mut bytes, 0).ok()?;
    Some(String::from_utf8_lossy(&bytes[..length]).trim_end_matches('\0').to_owned())
}

fn write_at(path: &Path, words: &str) {
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create(path.is_dir()).truncate(false);
    let file = options.open(place_of_words(path)).expect("a Pod can write to its volume");
    file.file().write_all_at(words.as_bytes(), 0).expect("written");
}

/// The claim that a Pod has a volume of.
pub(crate) fn claim_of(pod: &Pod) -> Option<String> {
    let volume = pod.spec.as_ref()?.volumes.as_ref()?.iter().find(|volume| volume.name == VOLUME)?;
    match &volume.persistent_volume_claim {
        Some(source) => Some(source.claim_name.clone()),
        None => {
            volume.ephemeral.as_ref().map(|_| format!("{}-{VOLUME}", pod.metadata.name.as_deref().unwrap_or_default()))
        }
    }
}

/// Runs work whose threads the runtime knows nothing of: no time passes for what waits for them.
async fn in_real_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::resume();
    let done = work.await;
    tokio::time::pause();
    done
}

/// What a look at one Pod came to.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// What the Pod wrote, and to which path.
    pub(crate) written: Option<(PathBuf, Written)>,
    pub(crate) what: String,
}

impl Cluster {
    /// Has a node look at a Pod, by the node's number.
    pub(crate) async fn look_at_pod(&self, at: usize, pod: Pod, count: &mut u64) -> Looked {
        let mut looked = Looked::default();
        let host = &self.hosts[at];
        let Some(running) = &host.running else { return looked };
        if pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) != Some(host.name) {
            return looked;
        }
        let name = pod.metadata.name.clone().unwrap_or_default();
        let of_pod = uid(&pod.metadata);
        if pod.metadata.deletion_timestamp.is_some() {
            looked.what = format!("{} ends {name}", host.name);
            if self.give_back(running, at, &of_pod).await {
                let params = DeleteParams::default().grace_period(0);
                drop(self.pods().delete(&name, &params).await);
            }
            return looked;
        }
        looked.what = format!("{} runs {name}", host.name);
        let pod = Arc::new(pod);
        let mounted = in_real_time(running.volumes.mount(&pod, &FieldFacts::default())).await;
        match mounted {
            Ok(mounted) if !running.process.has_ended() => {
                assert!(mounted.paths.len() + mounted.devices.len() == 1, "a Pod here has one volume");
                self.write(at, &pod, mounted.paths.values().next(), count, &mut looked).await;
            }
            Ok(_) => {}
            Err(error) => looked.what = format!("{}: {error}", looked.what),
        }
        looked
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// The Pod writes something new to its volume, which it has at `shown`.
    async fn write(&self, at: usize, pod: &Pod, shown: Option<&PathBuf>, count: &mut u64, looked: &mut Looked) {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), "default");
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        // A Pod may have its volume for longer than its objects are there.
        let Some(claim) = claims.get_opt(&claim_of(pod).unwrap_or_default()).await.expect("it answers") else { return };
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
        let Some(volume) = volumes.get_opt(&name).await.expect("it answers") else { return };
        let path = path_of(&volume);
        if let Some(shown) = shown.filter(|shown| **shown != path) {
            assert_eq!(
                self.hosts[at].machine.mounts().get(shown),
                Some(&path),
                "the volume is mounted where it is shown"
            );
        }
        let before = words_at(&path);
        if before.is_none() && !path.is_dir() {
            return;
        }
        *count += 1;
        // As long as all others, so that new ones cover old ones.
        let words = format!("{:>8} of {}", count, uid(&claim.metadata));
        write_at(&path, &words);
        let copies = claim.spec.as_ref().is_some_and(|spec| spec.data_source_ref.is_some());
        looked.written = Some((path, Written { claim_uid: uid(&claim.metadata), volume, words, before, copies }));
    }

    /// Answers whether all of a Pod's volumes are given back.
    async fn give_back(&self, running: &Running, at: usize, pod: &str) -> bool {
        let released = in_real_time(running.volumes.unmount(pod)).await.is_ok();
        if released && !running.process.has_ended() {
            let dir = self.hosts[at].dirs.pod(pod);
            if dir.exists() {
                fs::remove_dir_all(dir).expect("removed");
            }
        }
        released && !running.process.has_ended()
    }

    /// Gives back what Pods have on a node that are gone from the API.
    pub(crate) async fn sweep(&self, at: usize) {
        let Some(running) = &self.hosts[at].running else { return };
        let list = self.pods().list(&kube::api::ListParams::default()).await.expect("it answers");
        let there: Vec<String> = list.items.iter().map(|pod| uid(&pod.metadata)).collect();
        for pod in self.hosts[at].pods_on_disk() {
            if !there.contains(&pod) && !self.give_back(running, at, &pod).await {
                return;
            }
        }
    }
}
