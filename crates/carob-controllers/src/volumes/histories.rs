//! Random histories of the binder: what it decides and writes, over old versions of objects and broken off between any two
//! writes, never takes a volume from the claim that has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use carob_api::storage::BIND_COMPLETED;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::decide::{ClaimStep, Surroundings, VolumeStep, claim_ref, claim_step, volume_step};
use super::{volume_name, writes};

const CLAIMS: [&str; 3] = ["a", "b", "c"];
const VOLUMES: [&str; 3] = ["x", "y", "z"];
/// Versions of an object that a reader may still see.
const VERSIONS_SEEN_MAX: usize = 3;

/// One thing that happens. Numbers choose among what there is.
#[derive(Debug, Clone)]
enum Act {
    MakeClaim {
        name: usize,
        wants: Option<usize>,
    },
    MakeVolume {
        name: usize,
        meant_for: Option<usize>,
        retain: bool,
    },
    DeleteClaim(usize),
    DeleteVolume(usize),
    /// Looks at a claim as it was so many versions ago, and is broken off after so many writes.
    SyncClaim {
        name: usize,
        back: usize,
        writes: usize,
    },
    SyncVolume {
        name: usize,
        back: usize,
        writes: usize,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let name = || 0..CLAIMS.len();
    let (back, writes) = (0..VERSIONS_SEEN_MAX, 0..5usize);
    prop_oneof![
        2 => (name(), proptest::option::weighted(0.2, name())).prop_map(|(name, wants)| Act::MakeClaim { name, wants }),
        2 => (name(), proptest::option::weighted(0.3, name()), any::<bool>())
            .prop_map(|(name, meant_for, retain)| Act::MakeVolume { name, meant_for, retain }),
        1 => name().prop_map(Act::DeleteClaim),
        1 => name().prop_map(Act::DeleteVolume),
        6 => (name(), back.clone(), writes.clone()).prop_map(|(name, back, writes)| Act::SyncClaim { name, back, writes }),
        6 => (name(), back, writes).prop_map(|(name, back, writes)| Act::SyncVolume { name, back, writes }),
    ]
}

/// An API of two kinds: patches apply to the version that they name only.
#[derive(Default)]
struct World {
    objects: BTreeMap<(&'static str, &'static str), Vec<Value>>,
    version: u64,
    /// Volumes that a claim has for good, by the uids of both.
    pairs: BTreeSet<(String, String)>,
    /// Whose the data on a volume is, by the volume's uid.
    owners: BTreeMap<String, String>,
}

fn typed<T: DeserializeOwned>(value: &Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value.clone()).expect("the world holds objects of these kinds"))
}

impl World {
    fn seen<T: DeserializeOwned>(&self, kind: &'static str, name: &'static str, back: usize) -> Option<Arc<T>> {
        let versions = self.objects.get(&(kind, name))?;
        versions.get(versions.len().saturating_sub(1 + back)).map(typed)
    }

    fn make(&mut self, kind: &'static str, name: &'static str, mut object: Value) {
        if self.objects.contains_key(&(kind, name)) {
            return;
        }
        self.version += 1;
        object["metadata"]["uid"] = format!("{name}-{}", self.version).into();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert((kind, name), vec![object]);
    }

    /// Answers the new object; nothing where the patch is of another version.
    fn patch<T: DeserializeOwned>(&mut self, kind: &'static str, name: &str, patch: &Value) -> Option<Arc<T>> {
        let (_, versions) = self.objects.iter_mut().find(|((of, key), _)| *of == kind && *key == name)?;
        let (mut object, meta) = (versions.last()?.clone(), &patch["metadata"]);
        if object["metadata"]["uid"] != meta["uid"] || object["metadata"]["resourceVersion"] != meta["resourceVersion"]
        {
            return None;
        }
        carob_api::patch::merge_patch(&mut object, patch).expect("patches of the binder apply");
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        versions.push(object.clone());
        Some(typed(&object))
    }

    /// The claim that a volume names, asked for as the binder asks the API: the newest one, with that uid.
    fn claim_of(&self, volume: &PersistentVolume) -> Option<Arc<PersistentVolumeClaim>> {
        let held = claim_ref(volume)?;
        let name = CLAIMS.into_iter().find(|name| Some(*name) == held.name.as_deref())?;
        self.seen::<PersistentVolumeClaim>("claim", name, 0).filter(|claim| claim.metadata.uid == held.uid)
    }

    fn sync_claim(&mut self, name: &'static str, back: usize, writes_max: usize) {
        let Some(claim) = self.seen::<PersistentVolumeClaim>("claim", name, back) else { return };
        let all: Vec<Arc<PersistentVolume>> =
            VOLUMES.into_iter().filter_map(|name| self.seen("volume", name, back)).collect();
        // A volume that an informer does not know is asked for.
        let named = volume_name(&claim).and_then(|wanted| VOLUMES.into_iter().find(|name| *name == wanted));
        let named = named.and_then(|name| self.seen("volume", name, back));
        let around = Surroundings { named, volumes: all, ..Surroundings::default() };
        match claim_step(&claim, &around) {
            ClaimStep::Bind(volume) => self.bind(&volume, &claim, writes_max),
            ClaimStep::Lost(_) => {
                if let Some(patch) = writes::claim_status(&claim, "Lost", None).filter(|_| writes_max > 0) {
                    self.patch::<PersistentVolumeClaim>("claim", name, &patch);
                }
            }
            ClaimStep::Wait { .. } | ClaimStep::SetClass(_) => {}
        }
    }

    /// As the binder does it, broken off after `writes_max` writes or at the first that is refused.
    fn bind(&mut self, volume: &PersistentVolume, claim: &PersistentVolumeClaim, writes_max: usize) {
        let mut left = writes_max;
        let mut next = || left.checked_sub(1).map(|rest| left = rest).is_some();
        let (volume_key, claim_key) =
            (volume.metadata.name.clone().unwrap_or_default(), claim.metadata.name.clone().unwrap_or_default());
        let mut volume = volume.clone();
        if let Some(patch) = writes::volume_binding(&volume, claim) {
            if !next() {
                return;
            }
            let Some(written) = self.patch::<PersistentVolume>("volume", &volume_key, &patch) else { return };
            volume = (*written).clone();
        }
        let now = Time(jiff::Timestamp::UNIX_EPOCH);
        if let Some(patch) = writes::volume_status(&volume, "Bound", None, &now) {
            if !next() {
                return;
            }
            self.patch::<PersistentVolume>("volume", &volume_key, &patch);
        }
        let mut claim = claim.clone();
        if let Some(patch) = writes::claim_binding(&claim, &volume) {
            if !next() {
                return;
            }
            let Some(written) = self.patch::<PersistentVolumeClaim>("claim", &claim_key, &patch) else { return };
            claim = (*written).clone();
        }
        if let Some(patch) = writes::claim_status(&claim, "Bound", Some(&volume)).filter(|_| next()) {
            self.patch::<PersistentVolumeClaim>("claim", &claim_key, &patch);
        }
    }

    fn sync_volume(&mut self, name: &'static str, back: usize, writes_max: usize) {
        let Some(volume) = self.seen::<PersistentVolume>("volume", name, back) else { return };
        let claim = self.claim_of(&volume);
        let now = Time(jiff::Timestamp::UNIX_EPOCH);
        let phase = match volume_step(&volume, claim.as_deref()) {
            VolumeStep::Phase(phase) => phase,
            VolumeStep::Release => "Released",
            VolumeStep::Fail(_) => "Failed",
            VolumeStep::Unbind { entirely } => {
                if writes_max > 0 {
                    self.patch::<PersistentVolume>("volume", name, &writes::unbinding(&volume, entirely));
                }
                return;
            }
            VolumeStep::AskClaim | VolumeStep::Mismatch { .. } => return,
        };
        if let Some(patch) = writes::volume_status(&volume, phase, None, &now).filter(|_| writes_max > 0) {
            self.patch::<PersistentVolume>("volume", name, &patch);
        }
    }

    fn run(&mut self, act: &Act) {
        match act {
            Act::MakeClaim { name, wants } => {
                let wants = wants.map(|volume| VOLUMES[volume]);
                let object = json!({"metadata": {"name": CLAIMS[*name], "namespace": "ns"}, "spec": {
                    "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": wants,
                    "resources": {"requests": {"storage": "1Gi"}}}});
                self.make("claim", CLAIMS[*name], object);
            }
            Act::MakeVolume { name, meant_for, retain } => {
                let claim_ref = meant_for.map(|claim| json!({"namespace": "ns", "name": CLAIMS[claim]}));
                let object = json!({"metadata": {"name": VOLUMES[*name]}, "spec": {
                    "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "claimRef": claim_ref,
                    "persistentVolumeReclaimPolicy": if *retain { "Retain" } else { "Delete" }}});
                self.make("volume", VOLUMES[*name], object);
            }
            Act::DeleteClaim(name) => drop(self.objects.remove(&("claim", CLAIMS[*name]))),
            Act::DeleteVolume(name) => drop(self.objects.remove(&("volume", VOLUMES[*name]))),
            Act::SyncClaim { name, back, writes } => self.sync_claim(CLAIMS[*name], *back, *writes),
            Act::SyncVolume { name, back, writes } => self.sync_volume(VOLUMES[*name], *back, *writes),
        }
    }

    /// What has to hold after every write.
    fn check(&mut self) -> Result<(), TestCaseError> {
        let volumes: Vec<Arc<PersistentVolume>> =
            VOLUMES.into_iter().filter_map(|name| self.seen("volume", name, 0)).collect();
        let claims: Vec<Arc<PersistentVolumeClaim>> =
            CLAIMS.into_iter().filter_map(|name| self.seen("claim", name, 0)).collect();
        let uid =
            |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| meta.uid.clone().unwrap_or_default();
        let mut taken: BTreeMap<String, String> = BTreeMap::new();
        let mut now = BTreeSet::new();
        for claim in &claims {
            let is_bound = claim.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(BIND_COMPLETED));
            let Some(volume) = volumes.iter().find(|volume| volume.metadata.name.as_deref() == volume_name(claim))
            else {
                continue;
            };
            if is_bound && claim_ref(volume).and_then(|held| held.uid.clone()) == claim.metadata.uid {
                let other = taken.insert(uid(&volume.metadata), uid(&claim.metadata));
                prop_assert_eq!(other, None, "two claims have one volume");
                now.insert((uid(&volume.metadata), uid(&claim.metadata)));
            }
        }
        for (volume, claim) in &self.pairs {
            let both = volumes.iter().any(|one| uid(&one.metadata) == *volume)
                && claims.iter().any(|one| uid(&one.metadata) == *claim);
            prop_assert!(!both || now.contains(&(volume.clone(), claim.clone())), "{} left {}", claim, volume);
        }
        for (volume, claim) in &now {
            // What a claim has had is never given to another one, whether it is there still or not.
            let owner = self.owners.entry(volume.clone()).or_insert_with(|| claim.clone());
            prop_assert_eq!(&*owner, claim, "the data of one claim was given to another one");
        }
        self.pairs = now;
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn a_bound_pair_stays_bound_and_no_data_changes_hands(acts in proptest::collection::vec(act(), 1..80)) {
        let mut world = World::default();
        for act in &acts {
            world.run(act);
            world.check()?;
        }
    }
}
