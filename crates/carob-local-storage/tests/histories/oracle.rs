//! What must hold after each step, whatever happened: it knows what users made and what Pods wrote, and looks at the API and at the
//! disks. How controllers decide it knows nothing of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use carob_api::storage::{BIND_COMPLETED, PROVISIONER_PROTECTION, parse_local_handle};
use carob_client::snapshots::{VolumeSnapshot, VolumeSnapshotContent};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::Resource;
use kube::api::{Api, ListParams};
use serde::de::DeserializeOwned;

use crate::cluster::Cluster;
use crate::kubelet::{Looked, Written, path_of, uid, words_at};

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// What is on the volumes that Pods have written to, by path.
    written: BTreeMap<PathBuf, Written>,
    /// All that was ever written.
    words: BTreeSet<String>,
    /// Volumes by the claims that have them, by uid.
    pairs: BTreeMap<String, String>,
    /// The policy that volumes had last, by uid.
    policies: BTreeMap<String, String>,
    /// Volumes that users have given to other claims, by path.
    given_away: BTreeSet<PathBuf>,
    /// What is on snapshots that are ready, by path.
    taken: BTreeMap<PathBuf, Option<String>>,
    /// The paths of volumes that outlive their objects, by what the policy was.
    pub(crate) kept: BTreeSet<PathBuf>,
    /// The paths of volumes that may outlive their objects.
    pub(crate) may_stay: BTreeSet<PathBuf>,
    /// The names of volumes that the user has deleted, and of which a claim may have been told already.
    pub(crate) deleted: BTreeSet<String>,
}

/// What the API has.
pub(crate) struct Seen {
    pub(crate) claims: Vec<PersistentVolumeClaim>,
    pub(crate) volumes: Vec<PersistentVolume>,
    pub(crate) snapshots: Vec<VolumeSnapshot>,
    pub(crate) contents: Vec<VolumeSnapshotContent>,
    pub(crate) pods: Vec<Pod>,
}

async fn all<K>(cluster: &Cluster) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api: Api<K> = Api::all(cluster.client.clone());
    api.list(&ListParams::default()).await.expect("the API answers").items
}

impl Seen {
    pub(crate) async fn of(cluster: &Cluster) -> Self {
        Self {
            claims: all(cluster).await,
            volumes: all(cluster).await,
            snapshots: all(cluster).await,
            contents: all(cluster).await,
            pods: all(cluster).await,
        }
    }
}

pub(crate) fn policy(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

pub(crate) fn claim_uid(volume: &PersistentVolume) -> Option<&String> {
    volume.spec.as_ref()?.claim_ref.as_ref()?.uid.as_ref()
}

pub(crate) fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(BIND_COMPLETED))
}

impl Oracle {
    /// The user gives a volume with all that is on it to whichever claim wants it.
    pub(crate) fn given_away(&mut self, path: &Path) {
        self.given_away.insert(path.to_owned());
    }

    pub(crate) fn noted(&mut self, looked: &Looked) -> Result<(), String> {
        if let Some((path, written)) = &looked.written {
            self.check_first(path, written)?;
            self.words.insert(written.words.clone());
            if let Some(before) = self.written.get(path)
                && before.claim_uid != written.claim_uid
                && !self.given_away.contains(path)
            {
                return Err(format!(
                    "{} of the claim {} serves {}",
                    path.display(),
                    before.claim_uid,
                    written.claim_uid
                ));
            }
            self.written.insert(path.clone(), written.clone());
        }
        Ok(())
    }

    /// What a claim finds on its volume when nothing was written to it yet: nothing, or what it is a copy of.
    fn check_first(&self, path: &Path, written: &Written) -> Result<(), String> {
        if self.written.contains_key(path) {
            return Ok(());
        }
        let found = written.before.as_deref().unwrap_or_default();
        if found.is_empty() || (written.copies && self.words.contains(found)) {
            return Ok(());
        }
        Err(format!("{} of the new claim {} holds {found:?}", path.display(), written.claim_uid))
    }

    /// A snapshot stays as it was when it became ready.
    fn check_snapshots(&mut self, cluster: &Cluster, seen: &Seen) -> Result<(), String> {
        for content in &seen.contents {
            let status = content.status.clone().unwrap_or_default();
            let handle = status.snapshot_handle.filter(|_| status.ready_to_use == Some(true)).unwrap_or_default();
            let Some((_, name)) = parse_local_handle(&handle) else { continue };
            let places = cluster.hosts.iter().map(|host| host.volumes_dir.join(name));
            let Some(place) = places.into_iter().find(|place| place.exists()) else {
                if content.metadata.deletion_timestamp.is_some() {
                    continue;
                }
                return Err(format!("the snapshot {name} is ready and not there"));
            };
            let block = content.spec.source_volume_mode.as_deref() == Some("Block");
            let words = words_at(&place.join(if block { "disk" } else { "data" }));
            if words.as_deref().is_some_and(|words| !words.is_empty() && !self.words.contains(words)) {
                return Err(format!("the snapshot {name} holds {words:?}, which nobody wrote"));
            }
            let before = self.taken.entry(place).or_insert_with(|| words.clone());
            if *before != words && content.metadata.deletion_timestamp.is_none() {
                return Err(format!("the snapshot {name} held {before:?} and holds {words:?}"));
            }
        }
        Ok(())
    }

    pub(crate) fn check(&mut self, cluster: &Cluster, seen: &Seen) -> Result<(), String> {
        for volume in &seen.volumes {
            self.policies.insert(uid(&volume.metadata), policy(volume).to_owned());
            let is_noted = volume.metadata.finalizers.iter().flatten().any(|name| name == PROVISIONER_PROTECTION);
            if policy(volume) == "Retain" {
                self.kept.insert(path_of(volume));
                self.may_stay.insert(path_of(volume));
            } else {
                self.kept.remove(&path_of(volume));
                // An object that goes before its node has seen the new policy leaves what is on the volume.
                if is_noted {
                    self.may_stay.remove(&path_of(volume));
                }
            }
        }
        self.check_pairs(seen)?;
        self.check_snapshots(cluster, seen)?;
        self.check_data(cluster, seen)
    }

    fn check_pairs(&mut self, seen: &Seen) -> Result<(), String> {
        let volume_uids: BTreeSet<String> = seen.volumes.iter().map(|volume| uid(&volume.metadata)).collect();
        let mut now: BTreeMap<String, String> = BTreeMap::new();
        let mut taken: BTreeMap<String, String> = BTreeMap::new();
        for claim in seen.claims.iter().filter(|claim| is_bound(claim)) {
            let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_ref());
            let volume = seen.volumes.iter().find(|volume| volume.metadata.name.as_ref() == name);
            let Some(volume) = volume.filter(|volume| claim_uid(volume) == claim.metadata.uid.as_ref()) else {
                continue;
            };
            let (of_claim, of_volume) = (uid(&claim.metadata), uid(&volume.metadata));
            if let Some(other) = taken.insert(of_volume.clone(), of_claim.clone()) {
                return Err(format!("the volume {of_volume} serves the claims {other} and {of_claim}"));
            }
            now.insert(of_claim, of_volume);
        }
        for claim in &seen.claims {
            let of_claim = uid(&claim.metadata);
            if let Some(of_volume) = self.pairs.get(&of_claim)
                && volume_uids.contains(of_volume)
                && now.get(&of_claim) != Some(of_volume)
            {
                return Err(format!("the claim {of_claim} has lost its volume {of_volume}, which is there"));
            }
        }
        self.pairs.extend(now);
        Ok(())
    }

    /// What Pods wrote is there, unless the claim is gone and the volume's policy says that the data goes with it.
    fn check_data(&mut self, cluster: &Cluster, seen: &Seen) -> Result<(), String> {
        let mut gone = Vec::new();
        for (path, written) in &self.written {
            if words_at(path).as_ref() == Some(&written.words) {
                continue;
            }
            let claim_is_there = seen.claims.iter().any(|claim| uid(&claim.metadata) == written.claim_uid);
            let policy = self.policies.get(&uid(&written.volume.metadata)).map_or("Delete", String::as_str);
            // What users made is theirs, whatever the policy says.
            let is_made = cluster.hosts.iter().any(|host| path.starts_with(&host.volumes_dir));
            if claim_is_there || policy != "Delete" || !is_made {
                let found = words_at(path);
                return Err(format!(
                    "{} holds {found:?} and not {:?}; its claim is there: {claim_is_there}, its policy is {policy}",
                    path.display(),
                    written.words
                ));
            }
            gone.push(path.clone());
        }
        for path in gone {
            self.written.remove(&path);
        }
        Ok(())
    }
}
