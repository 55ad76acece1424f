//! What users do: claims, Pods, snapshots and volumes that come, change and go.

use carob_api::storage::PROVISIONED_BY;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::audit::phase;
use crate::cluster::{HOSTNAME, NODES, PLACES, from};
use crate::history::{History, pick};
use crate::kubelet::{VOLUME, path_of};
use crate::oracle::policy;

const CLAIMS: u64 = 4;
const PODS: u64 = 4;
const SNAPSHOTS: u64 = 2;
/// The classes of claims whose volumes are made for them, the usual one twice.
const MADE: [&str; 5] = ["local", "local", "kept", "now", "now-kept"];
/// The classes of volumes that users make.
const BY_HAND: [&str; 2] = ["", "hand"];

fn claim_name(number: u64) -> String {
    format!("c{}", number % CLAIMS)
}

fn snapshot_name(number: u64) -> String {
    format!("s{}", number % SNAPSHOTS)
}

fn pod_name(number: u64) -> String {
    format!("p{}", number % PODS)
}

/// The name of the volume that is made of a place.
fn volume_name(at: usize, place: usize) -> String {
    format!("{}-{}", NODES[at], PLACES[place])
}

fn is_block(claim: &PersistentVolumeClaim) -> bool {
    claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()) == Some("Block")
}

/// A claim has it, and nobody has deleted it.
fn is_in_use(volume: &PersistentVolume) -> bool {
    phase(volume) == "Bound" && volume.metadata.deletion_timestamp.is_none()
}

/// Orders objects by their last change: names and uids are others in each run.
fn version(meta: &ObjectMeta) -> Option<u64> {
    meta.resource_version.as_ref().and_then(|text| text.parse().ok())
}

impl History {
    async fn create_claim(&mut self, name: &str, spec: Value) {
        let what = format!("claim {name}: {spec}");
        let claim: PersistentVolumeClaim = from(json!({"metadata": {"name": name}, "spec": spec}));
        if self.claims().create(&PostParams::default(), &claim).await.is_ok() {
            self.tell(what);
        }
    }

    pub(crate) async fn make_claim(&mut self, a: u64, b: u64) {
        let by_hand = (b / 20).is_multiple_of(4);
        let class = if by_hand { BY_HAND[pick(b, 2)] } else { MADE[pick(b, 5)] };
        let mode = if (b / 5).is_multiple_of(2) { "Block" } else { "Filesystem" };
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "volumeMode": mode, "storageClassName": class,
            "resources": {"requests": {"storage": "64Ki"}}});
        if by_hand && (b / 80).is_multiple_of(2) {
            spec["volumeName"] = volume_name(pick(a, 2), pick(b / 160, 4)).into();
        }
        self.create_claim(&claim_name(a), spec).await;
    }

    /// A volume of something that is there, for whichever claim wants it or for one by name.
    pub(crate) async fn make_volume(&mut self, a: u64, b: u64) {
        let (at, place) = (pick(a, 2), pick(a / 2, 4));
        let path = self.cluster.hosts[at].root.join("places").join(PLACES[place]);
        let (class, policy) = (BY_HAND[pick(b, 2)], ["Retain", "Delete"][pick(b / 2, 2)]);
        let mode = if matches!(PLACES[place], "file" | "raw-disk") { "Block" } else { "Filesystem" };
        let mut spec = json!({"capacity": {"storage": "64Ki"}, "accessModes": ["ReadWriteOnce"], "volumeMode": mode,
            "persistentVolumeReclaimPolicy": policy, "storageClassName": class,
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": HOSTNAME, "operator": "In", "values": [NODES[at]]}]}]}}});
        let kind = if PLACES[place] == "directory" && (b / 4).is_multiple_of(2) { "hostPath" } else { "local" };
        spec[kind] = json!({"path": path});
        if (b / 8).is_multiple_of(3) {
            spec["claimRef"] = json!({"namespace": "default", "name": claim_name(b / 24)});
        }
        let name = volume_name(at, place);
        let volume: PersistentVolume = from(json!({"metadata": {"name": name}, "spec": spec}));
        if self.volumes().create(&PostParams::default(), &volume).await.is_ok() {
            self.oracle.given_away(&path);
            self.tell(format!("{name}: {kind}, {mode}, class {class:?}, {policy}, for {:?}", spec["claimRef"]["name"]));
        }
    }

    pub(crate) async fn make_pod(&mut self, a: u64, b: u64) {
        let name = pod_name(a);
        let mut container = json!({"name": "main", "image": "i"});
        let (volume, block, what) = if b.is_multiple_of(8) {
            let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": MADE[pick(b / 8, 5)],
                "resources": {"requests": {"storage": "64Ki"}}});
            (
                json!({"name": VOLUME, "ephemeral": {"volumeClaimTemplate": {"spec": spec}}}),
                false,
                "one of its own".to_owned(),
            )
        } else {
            let Some(held) = self.some_claim(b).await else { return };
            let claim = held.metadata.name.clone().unwrap_or_default();
            let volume = json!({"name": VOLUME, "persistentVolumeClaim": {"claimName": claim}});
            (volume, is_block(&held), claim)
        };
        if block {
            container["volumeDevices"] = json!([{"name": VOLUME, "devicePath": "/dev/v"}]);
        } else {
            container["volumeMounts"] = json!([{"name": VOLUME, "mountPath": "/v"}]);
        }
        let pod = json!({"metadata": {"name": name}, "spec": {"automountServiceAccountToken": false,
            "schedulerName": "nobody", "containers": [container], "volumes": [volume]}});
        if self.cluster.pods().create(&PostParams::default(), &from(pod)).await.is_ok() {
            self.tell(format!("pod {name} with {what}"));
        }
    }

    pub(crate) async fn delete_pod(&mut self, a: u64, b: u64) {
        let (name, force) = (pod_name(a), b.is_multiple_of(4));
        let params = if force { DeleteParams::default().grace_period(0) } else { DeleteParams::default() };
        if self.cluster.pods().delete(&name, &params).await.is_ok() {
            self.tell(format!("pod {name} is deleted{}", if force { " with force" } else { "" }));
        }
    }

    pub(crate) async fn delete_claim(&mut self, a: u64) {
        let Some(name) = self.some_claim(a).await.and_then(|claim| claim.metadata.name) else { return };
        if self.claims().delete(&name, &DeleteParams::default()).await.is_ok() {
            self.tell(format!("claim {name} is deleted"));
        }
    }

    pub(crate) async fn grow(&mut self, a: u64, b: u64) {
        let Some(claim) = self.some_claim(a).await else { return };
        let (name, size) = (claim.metadata.name.clone().unwrap_or_default(), format!("{}Ki", 128 * (1 + b % 4)));
        let patch = json!({"metadata": {"resourceVersion": claim.metadata.resource_version},
            "spec": {"resources": {"requests": {"storage": size}}}});
        let patched = self.claims().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
        if patched.is_ok() {
            self.tell(format!("{name} asks for {size}"));
        }
    }

    /// A claim that begins with what another one has, or with a snapshot.
    pub(crate) async fn make_copy(&mut self, a: u64, b: u64) {
        let class = ["local", "now"][pick(b, 2)];
        let (source, mode) = if b.is_multiple_of(3) {
            let of = snapshot_name(b / 3);
            let Some(held) = self.snapshots().get_opt(&of).await.expect("it answers") else { return };
            let claim = held.spec.source.persistent_volume_claim_name.unwrap_or_default();
            let mode = self.mode_of(&claim).await.unwrap_or_else(|| "Filesystem".to_owned());
            (json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": of}), mode)
        } else {
            let Some(held) = self.some_claim(b / 3).await else { return };
            let of = held.metadata.name.clone().unwrap_or_default();
            let mode = held.spec.and_then(|spec| spec.volume_mode).unwrap_or_default();
            (json!({"kind": "PersistentVolumeClaim", "name": of}), mode)
        };
        let spec = json!({"accessModes": ["ReadWriteOnce"], "volumeMode": mode, "storageClassName": class,
            "dataSource": source, "resources": {"requests": {"storage": "512Ki"}}});
        self.create_claim(&claim_name(a), spec).await;
    }

    async fn mode_of(&self, claim: &str) -> Option<String> {
        self.claims().get_opt(claim).await.expect("it answers")?.spec?.volume_mode
    }

    pub(crate) async fn make_snapshot(&mut self, a: u64, b: u64) {
        let Some(of) = self.some_claim(b).await.and_then(|claim| claim.metadata.name) else { return };
        let name = snapshot_name(a);
        let snapshot = json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": {"name": name}, "spec": {"source": {"persistentVolumeClaimName": of}}});
        if self.snapshots().create(&PostParams::default(), &from(snapshot)).await.is_ok() {
            self.tell(format!("snapshot {name} of {of}"));
        }
    }

    pub(crate) async fn delete_snapshot(&mut self, a: u64) {
        let name = snapshot_name(a);
        if self.snapshots().delete(&name, &DeleteParams::default()).await.is_ok() {
            self.tell(format!("snapshot {name} is deleted"));
        }
    }

    /// The user deletes the content of a snapshot himself.
    pub(crate) async fn delete_content(&mut self, a: u64) {
        let mut all = self.contents().list(&ListParams::default()).await.expect("it answers").items;
        all.sort_by_key(|content| version(&content.metadata));
        let at = pick(a, u64::try_from(all.len()).expect("there are few"));
        let Some(name) = all.get(at).and_then(|content| content.metadata.name.clone()) else { return };
        let deleted = self.contents().delete(&name, &DeleteParams::default()).await;
        self.tell(format!("{name} is deleted: {}", deleted.is_ok()));
    }

    /// One of the claims that are there.
    async fn some_claim(&self, a: u64) -> Option<PersistentVolumeClaim> {
        let mut all = self.claims().list(&ListParams::default()).await.expect("it answers").items;
        let at = pick(a, u64::try_from(all.len()).expect("there are few"));
        (at < all.len()).then(|| all.swap_remove(at))
    }

    /// One of the volumes, in the order of their last changes.
    async fn some_volume(&self, a: u64) -> Option<PersistentVolume> {
        let mut all = self.volumes().list(&ListParams::default()).await.expect("it answers").items;
        all.sort_by_key(|volume| version(&volume.metadata));
        let at = pick(a, u64::try_from(all.len()).expect("there are few"));
        (at < all.len()).then(|| all.swap_remove(at))
    }

    /// The user changes what becomes of a volume that a claim has. Once it is released, it is too late to have it kept.
    pub(crate) async fn change_policy(&mut self, a: u64, b: u64) {
        let Some(volume) = self.some_volume(a).await.filter(is_in_use) else { return };
        let name = volume.metadata.name.clone().unwrap_or_default();
        let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone()).unwrap_or_default();
        let held = self.claims().get_opt(&claim.name.unwrap_or_default()).await.expect("it answers");
        if held.is_none_or(|held| held.metadata.uid != claim.uid || held.metadata.deletion_timestamp.is_some()) {
            return;
        }
        let policy = ["Retain", "Retain", "Delete"][pick(b, 3)];
        let patch = json!({"spec": {"persistentVolumeReclaimPolicy": policy}});
        let patched = self.volumes().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
        self.tell(format!("the policy of {name} is {policy}: {}", patched.is_ok()));
    }

    pub(crate) async fn delete_volume(&mut self, a: u64) {
        let Some(volume) = self.some_volume(a).await else { return };
        let name = volume.metadata.name.unwrap_or_default();
        let deleted = self.volumes().delete(&name, &DeleteParams::default()).await;
        self.oracle.deleted.insert(name.clone());
        self.tell(format!("{name} is deleted: {}", deleted.is_ok()));
    }

    /// The user gives a released volume that was kept to whichever claim wants it.
    pub(crate) async fn reuse(&mut self, a: u64) {
        let all = self.volumes().list(&ListParams::default()).await.expect("it answers").items;
        let free: Vec<PersistentVolume> =
            all.into_iter().filter(|volume| policy(volume) == "Retain" && phase(volume) == "Released").collect();
        let Some(volume) = free.get(pick(a, u64::try_from(free.len()).expect("there are few"))) else { return };
        let name = volume.metadata.name.clone().unwrap_or_default();
        let patch =
            json!({"metadata": {"resourceVersion": volume.metadata.resource_version}, "spec": {"claimRef": null}});
        if self.volumes().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.is_err() {
            return;
        }
        self.oracle.given_away(&path_of(volume));
        self.tell(format!("{name} is free for any claim"));
        let was_made = volume.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(PROVISIONED_BY));
        if was_made {
            // Whoever wants just this one says so.
            let spec = volume.spec.clone().unwrap_or_default();
            let wants = json!({"accessModes": ["ReadWriteOnce"], "volumeMode": spec.volume_mode, "volumeName": name,
                "storageClassName": spec.storage_class_name, "resources": {"requests": spec.capacity}});
            self.create_claim(&claim_name(a), wants).await;
        }
    }
}
