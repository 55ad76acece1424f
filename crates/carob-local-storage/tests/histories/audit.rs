//! What must hold whenever all processes run and nothing is left to do: each directory, device, limit, mount and object has what
//! it is for, and the other way round.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use carob_api::storage::parse_local_handle;
use carob_client::snapshots::VolumeSnapshot;
use fs_err as fs;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::cluster::{Cluster, Host};
use crate::kubelet::{claim_of, path_of, uid};
use crate::oracle::{Oracle, Seen, claim_uid, is_bound, policy};

/// The classes whose volumes are made without a Pod.
const IMMEDIATE: [&str; 2] = ["now", "now-kept"];

/// What is wrong, as far as it was looked for.
type Problems = Vec<String>;

fn bytes(quantity: Option<&Quantity>) -> i64 {
    let parsed = quantity.and_then(|text| carob_api::quantity::Quantity::parse(&text.0).ok());
    parsed.map_or(0, |quantity| quantity.value())
}

fn told(meta: &ObjectMeta) -> String {
    let finalizers = meta.finalizers.clone().unwrap_or_default().join(",");
    let going = if is_going(meta) { "going" } else { "staying" };
    format!("{} ({going}, {finalizers})", meta.name.as_deref().unwrap_or_default())
}

fn is_going(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

pub(crate) fn asked(claim: &PersistentVolumeClaim) -> i64 {
    bytes(claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage")))
}

pub(crate) fn capacity(volume: &PersistentVolume) -> i64 {
    bytes(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage")))
}

pub(crate) fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// The snapshot that a claim is to begin with.
fn restores(claim: &PersistentVolumeClaim) -> Option<&str> {
    let source = claim.spec.as_ref()?.data_source.as_ref()?;
    (source.kind == "VolumeSnapshot").then_some(source.name.as_str())
}

impl Seen {
    fn volume_of(&self, claim: &PersistentVolumeClaim) -> Option<&PersistentVolume> {
        let name = claim.spec.as_ref()?.volume_name.as_ref()?;
        self.volumes.iter().find(|volume| volume.metadata.name.as_ref() == Some(name))
    }

    fn claim(&self, of_uid: &str) -> Option<&PersistentVolumeClaim> {
        self.claims.iter().find(|claim| uid(&claim.metadata) == of_uid)
    }

    /// The Pods that a node has.
    fn pods_on(&self, node: &str) -> impl Iterator<Item = &Pod> {
        self.pods
            .iter()
            .filter(move |pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some(node)))
    }
}

/// Answers what is not as it has to be.
pub(crate) fn audit(cluster: &Cluster, oracle: &Oracle, seen: &Seen) -> Result<(), String> {
    let mut problems = Problems::new();
    claims(oracle, seen, &mut problems);
    volumes(oracle, seen, &mut problems);
    snapshots(seen, &mut problems);
    let lost = oracle.kept.iter().filter(|path| !path.exists());
    problems.extend(lost.map(|path| format!("{} was to be kept and is gone", path.display())));
    for host in &cluster.hosts {
        directories(host, oracle, seen, &mut problems);
        limits(host, seen, &mut problems);
        of_pods(host, seen, &mut problems);
    }
    if problems.is_empty() { Ok(()) } else { Err(format!("while nothing is left to do: {}", problems.join("; "))) }
}

fn claims(oracle: &Oracle, seen: &Seen, problems: &mut Problems) {
    for claim in &seen.claims {
        let spec = claim.spec.clone().unwrap_or_default();
        let name = claim.metadata.name.as_ref();
        if is_going(&claim.metadata) {
            let used = seen.pods.iter().any(|pod| claim_of(pod).as_ref() == name);
            let taken = seen.snapshots.iter().any(|snapshot| {
                let ready = snapshot.status.as_ref().and_then(|status| status.ready_to_use) == Some(true);
                snapshot.spec.source.persistent_volume_claim_name.as_ref() == name && !ready
            });
            if !used && !taken {
                problems.push(format!("the claim {} stays", told(&claim.metadata)));
            }
            continue;
        }
        if let Some(owner) = claim.metadata.owner_references.iter().flatten().find(|owner| owner.kind == "Pod")
            && !seen.pods.iter().any(|pod| uid(&pod.metadata) == owner.uid)
        {
            problems.push(format!("the claim {} outlives its Pod", told(&claim.metadata)));
        }
        if !is_bound(claim) {
            let selected = claim.metadata.annotations.iter().flatten().any(|(key, _)| key.ends_with("/selected-node"));
            let class = spec.storage_class_name.as_deref().unwrap_or_default();
            // What the user deleted before it was bound is not made again as long as it is there.
            let deleted = oracle.deleted.contains(&format!("pvc-{}", uid(&claim.metadata)));
            let free = spec.volume_name.is_none() && spec.data_source.is_none() && !deleted;
            if free && (selected || IMMEDIATE.contains(&class)) {
                problems.push(format!("the claim {} is not bound", told(&claim.metadata)));
            }
            continue;
        }
        let Some(volume) = seen.volume_of(claim) else {
            if !spec.volume_name.is_some_and(|name| oracle.deleted.contains(&name)) {
                problems.push(format!("the claim {} has lost its volume", told(&claim.metadata)));
            }
            continue;
        };
        let status = claim.status.clone().unwrap_or_default();
        if claim_uid(volume) != claim.metadata.uid.as_ref() {
            continue;
        }
        let shown = bytes(status.capacity.as_ref().and_then(|capacity| capacity.get("storage")));
        if status.phase.as_deref() != Some("Bound") || phase(volume) != "Bound" {
            problems.push(format!("{} is {:?} and its volume {}", told(&claim.metadata), status.phase, phase(volume)));
        }
        // What users made nobody lets grow.
        let is_made = volume.metadata.name.as_ref().is_some_and(|name| name.starts_with("pvc-"));
        if (is_made && capacity(volume) < asked(claim)) || shown != capacity(volume) {
            let has = capacity(volume);
            problems.push(format!("{} asks for {}, shows {shown} and has {has}", told(&claim.metadata), asked(claim)));
        }
    }
}

fn volumes(oracle: &Oracle, seen: &Seen, problems: &mut Problems) {
    for volume in &seen.volumes {
        let held = claim_uid(volume).and_then(|of| seen.claim(of));
        let name = volume.metadata.name.as_deref();
        let is_unused = held.is_some_and(|claim| !is_bound(claim));
        if is_unused && is_going(&volume.metadata) && oracle.deleted.contains(name.unwrap_or_default()) {
            continue;
        }
        let is_made = name.is_some_and(|name| name.starts_with("pvc-"));
        let expected: &[&str] = match held.and_then(|claim| claim.spec.as_ref()?.volume_name.as_deref()) {
            Some(bound) if Some(bound) == name => &["Bound"],
            _ if claim_uid(volume).is_none() => &["Available"],
            // A class that waits for no Pod has it to be bound still.
            None if held.is_some() => &[],
            _ if policy(volume) == "Retain" => &["Released"],
            _ if is_made => &[],
            _ => &["Failed", "Released"],
        };
        let stays = is_going(&volume.metadata) && phase(volume) != "Bound";
        if stays || !expected.contains(&phase(volume)) {
            problems.push(format!(
                "the volume {} is {}, expected: {expected:?}",
                told(&volume.metadata),
                phase(volume)
            ));
        }
    }
}

fn snapshots(seen: &Seen, problems: &mut Problems) {
    let name_of = |snapshot: &VolumeSnapshot| snapshot.metadata.name.clone().unwrap_or_default();
    for snapshot in &seen.snapshots {
        let name = name_of(snapshot);
        let ready = snapshot.status.as_ref().and_then(|status| status.ready_to_use) == Some(true);
        if is_going(&snapshot.metadata) {
            let wanted = seen.claims.iter().any(|claim| !is_bound(claim) && restores(claim) == Some(&name));
            if !wanted {
                problems.push(format!("the snapshot {} stays", told(&snapshot.metadata)));
            }
        } else if !ready {
            let of = snapshot.spec.source.persistent_volume_claim_name.as_ref();
            let claim = seen.claims.iter().find(|claim| claim.metadata.name.as_ref() == of);
            let volume = claim.filter(|claim| is_bound(claim) && !is_going(&claim.metadata));
            let volume = volume.and_then(|claim| seen.volume_of(claim));
            let is_made = volume.is_some_and(|volume| told(&volume.metadata).starts_with("pvc-"));
            if is_made && snapshot.status.is_none() {
                problems.push(format!("the snapshot {name} is not taken"));
            }
        }
    }
    for content in &seen.contents {
        let of = content.spec.volume_snapshot_ref.uid.as_deref().unwrap_or_default();
        if !seen.snapshots.iter().any(|snapshot| uid(&snapshot.metadata) == of) {
            problems.push(format!("the content {} stays", told(&content.metadata)));
        }
    }
}

/// What is in the directory of a host's volumes: by name, the record.
fn on_disk(host: &Host) -> BTreeMap<String, Value> {
    let entries = fs::read_dir(&host.volumes_dir).expect("listed");
    let names = entries.map(|entry| entry.expect("listed").file_name().to_string_lossy().into_owned());
    let record = |name: String| {
        let dir = host.volumes_dir.join(&name);
        let text = fs::read(dir.join("volume.json")).or_else(|_| fs::read(dir.join("snapshot.json")));
        let record = text.ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        (name, record)
    };
    names.filter(|name| name != "id").map(record).collect()
}

fn directories(host: &Host, oracle: &Oracle, seen: &Seen, problems: &mut Problems) {
    let mut expected = BTreeSet::new();
    for volume in &seen.volumes {
        let path = path_of(volume);
        if let Ok(inside) = path.strip_prefix(&host.volumes_dir) {
            expected.extend(inside.components().next().map(|name| name.as_os_str().to_string_lossy().into_owned()));
        }
    }
    let pool = fs::read_to_string(host.volumes_dir.join("id")).expect("the pool has a name");
    for content in &seen.contents {
        let status = content.status.clone().unwrap_or_default();
        let handle = status.snapshot_handle.filter(|_| status.ready_to_use == Some(true)).unwrap_or_default();
        if let Some((of, name)) = parse_local_handle(&handle)
            && of == pool.trim()
        {
            expected.insert(name.to_owned());
        }
    }
    let found = on_disk(host);
    for name in expected.iter().filter(|name| !found.contains_key(*name)) {
        problems.push(format!("{} has nothing of {name}", host.name));
    }
    for (name, record) in &found {
        let dir = host.volumes_dir.join(name);
        let is_kept = oracle.may_stay.contains(&dir.join("data")) || oracle.may_stay.contains(&dir.join("disk"));
        // Of a content that the user deletes first it goes with the snapshot.
        let of_content = |of: &str| seen.contents.iter().any(|content| uid(&content.metadata) == of);
        let is_taken = name.strip_prefix("snapshot-").is_some_and(of_content);
        if !expected.contains(name) && !is_kept && !is_taken {
            problems.push(format!("the directory {name} of {} is nobody's", host.name));
        }
        if record["published"] == false {
            problems.push(format!("the record of {name} on {} does not say that there is an object", host.name));
        }
    }
}

/// Each volume has room for what it says, and nothing else is limited.
fn limits(host: &Host, seen: &Seen, problems: &mut Problems) {
    let mut limits = host.machine.limits();
    for (name, record) in on_disk(host) {
        let dir = host.volumes_dir.join(&name);
        let volume = seen.volumes.iter().find(|volume| volume.metadata.name.as_ref() == Some(&name));
        let recorded = record["capacity_bytes"].as_i64().unwrap_or(0);
        let wanted = volume.map_or(recorded, capacity);
        if wanted != recorded {
            problems.push(format!("{name} says that it has {wanted}, its record {recorded}"));
        }
        if record.get("volume").is_none() || record.get("snapshot").is_some() {
            continue;
        }
        let has = if record["block"] == true {
            fs::metadata(dir.join("disk")).map_or(0, |meta| meta.len())
        } else {
            let project = host.machine.project_of(&dir.join("data")).expect("it is there");
            limits.remove(&project).unwrap_or(0)
        };
        if i64::try_from(has).ok() != Some(wanted) {
            problems.push(format!("{name} on {} is to have room for {wanted} and has room for {has}", host.name));
        }
    }
    if !limits.is_empty() {
        problems.push(format!("limits of nothing on {}: {limits:?}", host.name));
    }
}

/// What Pods have on a host is of Pods that are there.
fn of_pods(host: &Host, seen: &Seen, problems: &mut Problems) {
    let pods: Vec<&Pod> = seen.pods_on(host.name).collect();
    for found in host.pods_on_disk() {
        if !pods.iter().any(|pod| uid(&pod.metadata) == found) {
            problems.push(format!("{} has something of the Pod {found}, which is gone", host.name));
        }
    }
    let used: BTreeSet<PathBuf> = pods
        .iter()
        .filter_map(|pod| {
            let name = claim_of(pod)?;
            let claim = seen.claims.iter().find(|claim| claim.metadata.name.as_ref() == Some(&name))?;
            seen.volume_of(claim).map(path_of)
        })
        .collect();
    for shown in host.machine.shown().into_iter().filter(|shown| !used.contains(shown)) {
        problems.push(format!("a device of {} shows {}, which no Pod has", host.name, shown.display()));
    }
    for (target, device) in host.machine.mounts() {
        let of_pod = |pod: &&&Pod| target.starts_with(host.dirs.pod(&uid(&pod.metadata)));
        if pods.iter().find(of_pod).is_none() || !used.contains(&device) {
            problems.push(format!("{} is mounted on {}, and no Pod has it", device.display(), target.display()));
        }
        if !target.exists() {
            problems.push(format!("{} was mounted when its directory was removed", target.display()));
        }
    }
}
