//! Carries out what [`super::decide`] says of claims and volumes.
//!
//! A volume's `claimRef` with the claim's uid is what decides whose it is: it is written first, and only over the version of
//! the volume that was looked at, so that no two claims can have one volume, whoever else writes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use carob_api::storage::{BIND_COMPLETED, DEFAULT_CLASS, STORAGE_PROVISIONERS, default_class};
use carob_client::{
    Asker, Change, During, EventKind, EventRecorder, Grouped, Informer, ObjectKey, Reconcile, ReconcileError, Requeue,
    Subject, reference,
};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::decide::{ClaimStep, Notice, Surroundings, VolumeStep, claim_ref, claim_step, others, phase, volume_step};
use super::users::ClaimUsers;
use super::writes::{self, at};
use super::{annotation, class_of_claim, class_of_volume, volume_name};
use crate::context::Context;

/// A claim, or a volume by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum BinderKey {
    Claim(ObjectKey),
    Volume(ObjectKey),
}

pub(crate) struct Binder {
    context: Context,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    users: ClaimUsers,
    /// Volumes by the claim that they name; under none those that name none.
    by_claim: Arc<Grouped<Option<ObjectKey>, PersistentVolume>>,
    recorder: EventRecorder,
    /// What each waiting claim was last told, with its uid: changes of others do not say it again.
    told: Mutex<HashMap<ObjectKey, (Option<String>, Notice)>>,
    ask: Asker<BinderKey>,
}

fn key_of(held: &ObjectReference) -> ObjectKey {
    ObjectKey::new(held.namespace.as_deref().unwrap_or_default(), held.name.as_deref().unwrap_or_default())
}

fn is_unbound(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, BIND_COMPLETED).is_none()
}

impl Binder {
    pub(crate) fn new(context: Context, users: ClaimUsers, ask: Asker<BinderKey>) -> Self {
        let volumes: Informer<PersistentVolume> = context.informers.of();
        Self {
            claims: context.informers.of(),
            classes: context.informers.of(),
            by_claim: Grouped::new(&volumes, |volume: &PersistentVolume| vec![claim_ref(volume).map(key_of)]),
            volumes,
            users,
            recorder: context.recorder("persistentvolume-controller"),
            told: Mutex::default(),
            context,
            ask,
        }
    }

    /// The claim that changed, the volumes that it named or names now, and those that name it where it went before it named them.
    pub(crate) fn keys_of_claim(
        volumes: &Informer<PersistentVolume>,
        change: Change<'_, PersistentVolumeClaim>,
    ) -> Vec<BinderKey> {
        let key = change.key();
        let named = change.versions().filter_map(|claim| volume_name(claim).map(ObjectKey::cluster));
        let mut keys: Vec<BinderKey> = named.map(BinderKey::Volume).collect();
        let is_gone = |old: &PersistentVolumeClaim| change.new.is_none_or(|new| new.metadata.uid != old.metadata.uid);
        if change.old.is_some_and(|old| is_unbound(old) && is_gone(old)) {
            let names_it = |volume: &Arc<PersistentVolume>| claim_ref(volume).map(key_of).as_ref() == Some(&key);
            let of_claim = volumes.list().into_iter().filter(names_it);
            keys.extend(of_claim.map(|volume| BinderKey::Volume(ObjectKey::of(&*volume))));
        }
        keys.push(BinderKey::Claim(key));
        keys
    }

    /// The volume that changed, the claims that it names or named, and, where it can be had now, all that may want it.
    pub(crate) fn keys_of_volume(
        claims: &Informer<PersistentVolumeClaim>,
        change: Change<'_, PersistentVolume>,
    ) -> Vec<BinderKey> {
        let mut keys = vec![BinderKey::Volume(change.key())];
        let named = change.versions().filter_map(|volume| claim_ref(volume).map(key_of));
        keys.extend(named.map(BinderKey::Claim));
        let name = change.key().name;
        let free = change.new.filter(|volume| claim_ref(volume).is_none());
        let was_bound = change.old.is_some_and(|volume| phase(volume) == "Bound");
        if free.is_some() || change.new.is_none() || was_bound {
            let wants = |claim: &&Arc<PersistentVolumeClaim>| match volume_name(claim) {
                Some(named) => *named == *name,
                None => {
                    is_unbound(claim) && free.is_some_and(|volume| class_of_volume(volume) == class_of_claim(claim))
                }
            };
            let all = claims.list();
            keys.extend(all.iter().filter(wants).map(|claim| BinderKey::Claim(ObjectKey::of(&**claim))));
        }
        keys
    }

    /// The claims that wait for a class of that name, or for any.
    pub(crate) fn keys_of_class(
        claims: &Informer<PersistentVolumeClaim>,
        change: Change<'_, StorageClass>,
    ) -> Vec<BinderKey> {
        let name = change.key().name;
        let waits = |claim: &&Arc<PersistentVolumeClaim>| {
            let class = class_of_claim(claim);
            is_unbound(claim) && (class.is_empty() || *class == *name)
        };
        claims.list().iter().filter(waits).map(|claim| BinderKey::Claim(ObjectKey::of(&**claim))).collect()
    }

    /// The unbound claims that a Pod without a node names: what they wait for is said with its name.
    pub(crate) fn keys_of_pod(keys: Vec<ObjectKey>, claims: &Informer<PersistentVolumeClaim>) -> Vec<BinderKey> {
        let unbound = |key: &ObjectKey| claims.get_key(key).is_some_and(|claim| is_unbound(&claim));
        keys.into_iter().filter(unbound).map(BinderKey::Claim).collect()
    }

    /// What the volume objects are now, where the informer has not seen that one: it may be behind.
    async fn volume(&self, name: &str) -> Result<Option<Arc<PersistentVolume>>, ReconcileError> {
        if let Some(volume) = self.volumes.get(None, name) {
            return Ok(Some(volume));
        }
        let found = self.context.cluster_api::<PersistentVolume>().get_opt(name).await;
        Ok(found.during(|| format!("get volume {name}"))?.map(Arc::new))
    }

    /// The claim that a volume names by name and uid. Where the informer has none, or another one of that name, the API is asked:
    /// a claim that is gone by mistake would cost its data.
    async fn claim_of(&self, volume: &PersistentVolume) -> Result<Option<Arc<PersistentVolumeClaim>>, ReconcileError> {
        let Some(held) = claim_ref(volume) else { return Ok(None) };
        let key = key_of(held);
        let is_it = |claim: &Arc<PersistentVolumeClaim>| claim.metadata.uid == held.uid;
        if let Some(claim) = self.claims.get_key(&key).filter(is_it) {
            return Ok(Some(claim));
        }
        let found = self.context.api::<PersistentVolumeClaim>(&key.namespace).get_opt(&key.name).await;
        Ok(found.during(|| format!("get claim {key}"))?.map(Arc::new).filter(is_it))
    }

    async fn surroundings(
        &self,
        key: &ObjectKey,
        claim: &PersistentVolumeClaim,
    ) -> Result<Surroundings, ReconcileError> {
        let named = match volume_name(claim) {
            Some(name) => self.volume(name).await?,
            None => None,
        };
        let class = class_of_claim(claim);
        let class = if class.is_empty() { None } else { self.classes.get(None, class) };
        let mut volumes = self.by_claim.get(&Some(key.clone()));
        if !class.as_deref().is_some_and(super::decide::is_delayed) {
            volumes.extend(self.by_claim.get(&None));
        }
        Ok(Surroundings {
            named,
            volumes,
            class,
            default_class: default_class_of(&self.classes.list()),
            unscheduled: self.users.unscheduled(key),
        })
    }

    fn say(&self, of: ObjectReference, notice: &Notice) {
        let kind = if notice.warning { EventKind::Warning } else { EventKind::Normal };
        self.recorder.record(of, kind, notice.reason, notice.message.clone());
    }

    /// Says what a claim waits for, once for as long as it waits for that.
    fn say_once(&self, key: &ObjectKey, claim: &PersistentVolumeClaim, notice: &Notice) {
        let now = (claim.metadata.uid.clone(), notice.clone());
        let before = self.told.lock().expect("no holder of the notices panics").insert(key.clone(), now.clone());
        if before.as_ref() != Some(&now) {
            self.say(reference(claim), notice);
        }
    }

    fn forget(&self, key: &ObjectKey) {
        self.told.lock().expect("no holder of the notices panics").remove(key);
    }

    async fn reconcile_claim(&self, key: &ObjectKey) -> Result<(), ReconcileError> {
        let Some(claim) = self.claims.get_key(key) else {
            self.forget(key);
            return Ok(());
        };
        let around = self.surroundings(key, &claim).await?;
        match claim_step(&claim, &around) {
            ClaimStep::Bind(volume) => {
                self.forget(key);
                self.ask_others(key, &claim, &volume);
                self.bind(&volume, &claim).await
            }
            ClaimStep::SetClass(class) => {
                let patch = json!({"metadata": at(&claim.metadata), "spec": {"storageClassName": class}});
                self.patch_claim(&claim, patch).await.map(drop)
            }
            ClaimStep::Wait { notice, provisioner } => {
                if let Some(notice) = &notice {
                    self.say_once(key, &claim, notice);
                }
                if let Some(provisioner) = provisioner {
                    self.ask_provisioner(&claim, &provisioner).await?;
                }
                self.write_claim_status(&claim, "Pending", None).await
            }
            ClaimStep::Lost(notice) => {
                let is_lost = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost");
                self.write_claim_status(&claim, "Lost", None).await?;
                if !is_lost {
                    self.say(reference(&*claim), &notice);
                }
                Ok(())
            }
        }
    }

    /// Has the other volumes looked at that name a claim which has one: what was made for it meanwhile is given up.
    fn ask_others(&self, key: &ObjectKey, claim: &PersistentVolumeClaim, volume: &PersistentVolume) {
        for other in others(claim, volume, &self.by_claim.get(&Some(key.clone()))) {
            self.ask.ask(BinderKey::Volume(ObjectKey::of(&**other)));
        }
    }

    /// Puts the provisioner's name on the claim, by which an external one knows that it is its turn.
    async fn ask_provisioner(&self, claim: &PersistentVolumeClaim, provisioner: &str) -> Result<(), ReconcileError> {
        if STORAGE_PROVISIONERS.iter().all(|name| annotation(&claim.metadata, name) == Some(provisioner)) {
            return Ok(());
        }
        let names: BTreeMap<&str, &str> = STORAGE_PROVISIONERS.iter().map(|name| (*name, provisioner)).collect();
        let mut metadata = at(&claim.metadata);
        metadata["annotations"] = json!(names);
        self.patch_claim(claim, json!({"metadata": metadata})).await.map(drop)
    }

    /// Writes what is missing for the two to be bound: the volume's claim first, then the rest side by side.
    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), ReconcileError> {
        let written = self.bind_volume(volume, claim).await?;
        let volume = written.as_ref().unwrap_or(volume);
        let (of_volume, of_claim) =
            futures_util::future::join(self.write_volume_phase(volume, "Bound", None), self.bind_claim(volume, claim))
                .await;
        of_volume.and(of_claim)
    }

    async fn bind_volume(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> Result<Option<PersistentVolume>, ReconcileError> {
        let Some(patch) = writes::volume_binding(volume, claim) else { return Ok(None) };
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let api = self.context.cluster_api::<PersistentVolume>();
        let written = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        written.during(|| format!("bind volume {name}")).map(Some)
    }

    async fn bind_claim(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), ReconcileError> {
        let written = match writes::claim_binding(claim, volume) {
            None => None,
            Some(patch) => match self.patch_claim(claim, patch).await? {
                Some(claim) => Some(claim),
                // It is gone: its volume is released when that is seen.
                None => return Ok(()),
            },
        };
        self.write_claim_status(written.as_ref().unwrap_or(claim), "Bound", Some(volume)).await
    }

    async fn patch_claim(
        &self,
        claim: &PersistentVolumeClaim,
        patch: Value,
    ) -> Result<Option<PersistentVolumeClaim>, ReconcileError> {
        let key = ObjectKey::of(claim);
        let api: Api<PersistentVolumeClaim> = self.context.api(&key.namespace);
        let patched = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.unless_gone(|| format!("write claim {key}"))
    }

    async fn write_claim_status(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<(), ReconcileError> {
        let Some(patch) = writes::claim_status(claim, phase, volume) else { return Ok(()) };
        let key = ObjectKey::of(claim);
        let api: Api<PersistentVolumeClaim> = self.context.api(&key.namespace);
        let patched = api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.unless_gone(|| format!("write the status of claim {key}")).map(drop)
    }

    async fn write_volume_phase(
        &self,
        volume: &PersistentVolume,
        wanted: &str,
        notice: Option<&Notice>,
    ) -> Result<(), ReconcileError> {
        let Some(patch) = writes::volume_status(volume, wanted, notice, &self.context.time()) else { return Ok(()) };
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let api = self.context.cluster_api::<PersistentVolume>();
        let patched = api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        let written = patched.unless_gone(|| format!("write the phase of volume {name}"))?;
        if let (Some(notice), Some(_)) = (notice, written) {
            self.say(reference(volume), notice);
        }
        Ok(())
    }

    async fn reconcile_volume(&self, key: &ObjectKey) -> Result<(), ReconcileError> {
        let Some(volume) = self.volumes.get_key(key) else { return Ok(()) };
        let claim = self.claim_of(&volume).await?;
        match volume_step(&volume, claim.as_deref()) {
            VolumeStep::Phase(phase) => self.write_volume_phase(&volume, phase, None).await,
            VolumeStep::AskClaim => {
                if let Some(held) = claim_ref(&volume) {
                    self.ask.ask(BinderKey::Claim(key_of(held)));
                }
                Ok(())
            }
            VolumeStep::Mismatch { of_volume, of_claim } => {
                self.say(reference(&*volume), &of_volume);
                if let Some(claim) = claim {
                    self.say_once(&ObjectKey::of(&*claim), &claim, &of_claim);
                }
                Ok(())
            }
            VolumeStep::Unbind { entirely } => {
                let patch = Patch::Merge(writes::unbinding(&volume, entirely));
                let api = self.context.cluster_api::<PersistentVolume>();
                let written = api.patch(&key.name, &PatchParams::default(), &patch).await;
                match written.unless_gone(|| format!("unbind volume {}", key.name))? {
                    Some(volume) => self.write_volume_phase(&volume, "Available", None).await,
                    None => Ok(()),
                }
            }
            // What failed before stays told.
            VolumeStep::Release if phase(&volume) == "Failed" => Ok(()),
            VolumeStep::Release => self.write_volume_phase(&volume, "Released", None).await,
            VolumeStep::Fail(notice) => self.write_volume_phase(&volume, "Failed", Some(&notice)).await,
        }
    }
}

fn default_class_of(classes: &[Arc<StorageClass>]) -> Option<String> {
    let is_default =
        |class: &&Arc<StorageClass>| DEFAULT_CLASS.iter().any(|name| annotation(&class.metadata, name) == Some("true"));
    let named = |class: &Arc<StorageClass>| {
        let created = class.metadata.creation_timestamp.as_ref().map(|time| time.0);
        class.metadata.name.clone().map(|name| (created, name))
    };
    default_class(classes.iter().filter(is_default).filter_map(named))
}

impl Reconcile for Binder {
    type Key = BinderKey;

    fn name(&self) -> &'static str {
        "persistentvolume-binder"
    }

    async fn reconcile(&self, key: BinderKey) -> Result<Requeue, ReconcileError> {
        match &key {
            BinderKey::Claim(key) => self.reconcile_claim(key).await?,
            BinderKey::Volume(key) => self.reconcile_volume(key).await?,
        }
        Ok(Requeue::No)
    }

    fn subject(&self, key: &BinderKey) -> Option<Subject> {
        match key {
            BinderKey::Claim(key) => self.claims.subject(key),
            BinderKey::Volume(key) => self.volumes.subject(key),
        }
    }
}
