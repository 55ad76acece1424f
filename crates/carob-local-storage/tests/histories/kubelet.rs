//! The node's part: the volumes of Pods that are bound to it, mounted and given back by the node's own code, and what the Pods
//! write to them.

use std::collections::BTreeMap;
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

pub(crate) fn is_block(volume: &PersistentVolume) -> bool {
    volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()) == Some("Block")
}

/// Where a volume's content is.
pub(crate) fn path_of(volume: &PersistentVolume) -> PathBuf {
    let local = volume.spec.as_ref().and_then(|spec| spec.local.as_ref());
    PathBuf::from(local.map(|local| local.path.clone()).unwrap_or_default())
}

/// What is on a volume; `None` where there is no such file.
pub(crate) fn words_at(path: &Path, block: bool) -> Option<String> {
    let file = if block { path.to_owned() } else { path.join(WORDS) };
    let bytes = fs::read(file).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
}

fn write_at(path: &Path, block: bool, words: &str) {
    let file = if block { path.to_owned() } else { path.join(WORDS) };
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(!block).truncate(false).open(file).expect("a Pod can write to its volume");
    file.file().write_all_at(words.as_bytes(), 0).expect("written");
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
    /// By the path of the volume.
    pub(crate) written: BTreeMap<PathBuf, Written>,
    pub(crate) what: String,
}

impl Cluster {
    /// Has a node look at a Pod, by the node's number.
    pub(crate) async fn look_at_pod(&self, at: usize, name: &str, count: &mut u64) -> Looked {
        let mut looked = Looked::default();
        let host = &self.hosts[at];
        let Some(running) = &host.running else { return looked };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let Some(pod) = pods.get_opt(name).await.expect("it answers") else { return looked };
        if pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) != Some(host.name) {
            return looked;
        }
        let of_pod = uid(&pod.metadata);
        if pod.metadata.deletion_timestamp.is_some() {
            looked.what = format!("{} ends {name}", host.name);
            if self.give_back(running, at, &of_pod).await {
                let params = DeleteParams::default().grace_period(0);
                drop(pods.delete(name, &params).await);
            }
            return looked;
        }
        looked.what = format!("{} runs {name}", host.name);
        let pod = Arc::new(pod);
        let mounted = in_real_time(running.volumes.mount(&pod, &FieldFacts::default())).await;
        match mounted {
            Ok(mounted) if !running.process.has_ended() => {
                assert!(mounted.paths.len() + mounted.devices.len() <= 1, "a Pod here has one volume");
                self.write(&pod, count, &mut looked).await;
            }
            Ok(_) => {}
            Err(error) => looked.what = format!("{}: {error}", looked.what),
        }
        looked
    }

    /// The Pod writes something new to each volume that it has.
    async fn write(&self, pod: &Pod, count: &mut u64, looked: &mut Looked) {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), "default");
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let of_pod = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        for source in of_pod.filter_map(|volume| volume.persistent_volume_claim.as_ref()) {
            // A Pod may have its volumes for longer than their objects are there.
            let Some(claim) = claims.get_opt(&source.claim_name).await.expect("it answers") else { continue };
            let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
            let Some(volume) = volumes.get_opt(&name).await.expect("it answers") else { continue };
            let (path, block) = (path_of(&volume), is_block(&volume));
            *count += 1;
            // As long as all others, so that new ones cover old ones.
            let words = format!("{:>8} of {}", count, uid(&claim.metadata));
            let before = words_at(&path, block);
            if before.is_none() && block {
                continue;
            }
            write_at(&path, block, &words);
            let copies = claim.spec.as_ref().is_some_and(|spec| spec.data_source_ref.is_some());
            let written = Written { claim_uid: uid(&claim.metadata), volume, words, before, copies };
            looked.written.insert(path, written);
        }
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
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let list = pods.list(&kube::api::ListParams::default()).await.expect("it answers");
        let there: Vec<String> = list.items.iter().map(|pod| uid(&pod.metadata)).collect();
        for pod in self.pods_on_disk(at) {
            if !there.contains(&pod) && !self.give_back(running, at, &pod).await {
                return;
            }
        }
    }

    /// The uids of the Pods that have something on a node.
    pub(crate) fn pods_on_disk(&self, at: usize) -> Vec<String> {
        let dir = self.hosts[at].dirs.pods();
        if !dir.exists() {
            return Vec::new();
        }
        let entries = fs::read_dir(dir).expect("listed");
        entries.map(|entry| entry.expect("listed").file_name().to_string_lossy().into_owned()).collect()
    }
}
