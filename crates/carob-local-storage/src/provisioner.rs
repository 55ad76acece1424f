//! Carries out what [`crate::plan`] says: directories in the pool, objects over the API.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use carob_api::storage::{PROVISIONER_PROTECTION, SELECTED_NODE};
use carob_client::snapshots::{VolumeSnapshot, VolumeSnapshotContent};
use carob_client::{
    Change, During, EventKind, EventRecorder, Informer, Informers, ObjectKey, Reconcile, ReconcileError, Requeue,
    Subject, reference,
};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::origin::{Begins, Obstacle, is_copy, of_claim, of_snapshot};
use crate::plan::{self, ClaimPlan, NODE_LABEL, VolumePlan, Wish, claim_plan, volume_plan};
use crate::pool::{Origin, Pool, PoolError};
use crate::record::Record;

/// Time until what could not be removed, since it was just being made, is looked at again.
const LEFTOVERS_AGAIN: Duration = Duration::from_secs(1);

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    Claim(ObjectKey),
    Volume(ObjectKey),
    /// The Node, whose label says that the pool is here.
    Node,
    /// Volumes whose object was never made.
    Leftovers,
}

impl Key {
    /// The claim, and what was made for it here, where it may not need that.
    pub(crate) fn of_claim(pool: &Pool, node: &str, change: Change<'_, PersistentVolumeClaim>) -> Vec<Self> {
        let claim = change.latest();
        let selected = claim.metadata.annotations.as_ref().and_then(|all| all.get(SELECTED_NODE));
        let is_elsewhere = selected.is_some_and(|selected| selected != node);
        let may_stay = change.new.is_some() && claim.metadata.deletion_timestamp.is_none() && !is_elsewhere;
        let mut keys = vec![Self::Claim(change.key())];
        keys.extend((!may_stay && pool.is_unpublished(&plan::volume_name(claim))).then_some(Self::Leftovers));
        keys
    }

    /// The volume, its claim, which may want it to grow, and what was made here under its name though it is on another node.
    pub(crate) fn of_volume(pool: &Pool, change: Change<'_, PersistentVolume>) -> Vec<Self> {
        if !change.versions().any(|volume| plan::is_ours(volume)) {
            return Vec::new();
        }
        let is_elsewhere = plan::pool_of(change.latest()) != Some(pool.id());
        let claim = change.new.and_then(|volume| volume.spec.as_ref()?.claim_ref.as_ref()).map(|held| {
            ObjectKey::new(held.namespace.as_deref().unwrap_or_default(), held.name.as_deref().unwrap_or_default())
        });
        let mut keys = vec![Self::Volume(change.key())];
        keys.extend(claim.filter(|_| !is_elsewhere).map(Self::Claim));
        keys.extend((is_elsewhere && pool.is_unpublished(&change.key().name)).then_some(Self::Leftovers));
        keys
    }

    /// The claims that may have waited for a class.
    pub(crate) fn of_class(claims: &Informer<PersistentVolumeClaim>, change: Change<'_, StorageClass>) -> Vec<Self> {
        let name = change.key().name;
        let of_class = claims.list().into_iter().filter(|claim| *plan::class_of(claim) == *name);
        of_class.map(|claim| Self::Claim(ObjectKey::of(&*claim))).collect()
    }
}

pub(crate) struct Provisioner {
    client: kube::Client,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
    pool: Arc<Pool>,
    /// The volumes whose object is being made now.
    making: Mutex<HashSet<String>>,
    node_name: String,
    recorder: EventRecorder,
    shutdown: CancellationToken,
}

/// A volume whose object is being made. Dropping it says that it no longer is.
struct Making<'a> {
    all: &'a Mutex<HashSet<String>>,
    name: String,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        lock(self.all).remove(&self.name);
    }
}

fn lock(making: &Mutex<HashSet<String>>) -> MutexGuard<'_, HashSet<String>> {
    making.lock().expect("no holder of the names panics")
}

impl Provisioner {
    pub(crate) fn new(
        client: kube::Client,
        informers: &Informers,
        pool: Arc<Pool>,
        node_name: String,
        recorder: EventRecorder,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            client,
            claims: informers.of(),
            volumes: informers.of(),
            classes: informers.of(),
            nodes: informers.of(),
            pool,
            making: Mutex::default(),
            node_name,
            recorder,
            shutdown,
        }
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(crate) fn node_name(&self) -> &str {
        &self.node_name
    }

    pub(crate) fn claims(&self) -> &Informer<PersistentVolumeClaim> {
        &self.claims
    }

    pub(crate) fn volumes(&self) -> &Informer<PersistentVolume> {
        &self.volumes
    }

    pub(crate) fn classes(&self) -> &Informer<StorageClass> {
        &self.classes
    }

    pub(crate) fn nodes(&self) -> &Informer<Node> {
        &self.nodes
    }

    fn api_of_volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    fn api_of_claims(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn in_pool<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&Pool) -> Result<T, PoolError> + Send + 'static,
    ) -> Result<T, ReconcileError> {
        in_pool(&self.pool, what, work).await
    }

    /// The claim as the API has it, if it is the one with that uid.
    async fn live_claim(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<Option<PersistentVolumeClaim>, ReconcileError> {
        let found = self.api_of_claims(namespace).get_opt(name).await;
        let found = found.during(|| format!("get claim {namespace}/{name}"))?;
        Ok(found.filter(|claim| claim.metadata.uid.as_deref() == Some(uid)))
    }

    /// `copies`: whether it is the turn of those whose volume is a copy, or of the others.
    async fn reconcile_claim(&self, key: &ObjectKey, copies: bool) -> Result<(), ReconcileError> {
        let Some(claim) = self.claims.get_key(key).filter(|claim| is_copy(claim) == copies) else { return Ok(()) };
        let class = self.classes.get(None, plan::class_of(&claim));
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
        let volume = name.and_then(|name| self.volumes.get(None, name));
        let done = match claim_plan(&claim, class.as_deref(), volume.as_deref(), &self.node_name) {
            ClaimPlan::Nothing => return Ok(()),
            ClaimPlan::Refuse(why) => {
                self.failed(&claim, &why);
                return self.give_back(&claim).await;
            }
            ClaimPlan::Others => {
                let message = "Assuming an external populator will provision the volume";
                self.recorder.record(reference(&*claim), EventKind::Normal, "Provisioning", message);
                return Ok(());
            }
            ClaimPlan::Make(wish) => {
                let origin = match self.origin(&claim, &wish.begins).await? {
                    Ok(origin) => origin,
                    Err(Obstacle::Wait(why)) => {
                        // Whatever it waits for asks for it when it changes.
                        self.failed(&claim, &why);
                        return Ok(());
                    }
                    Err(Obstacle::Never(why)) => {
                        self.failed(&claim, &why);
                        return self.give_back(&claim).await;
                    }
                };
                self.make(&claim, *wish, origin).await
            }
            ClaimPlan::Grow { volume, bytes } => return self.grow(&claim, &volume, bytes).await,
        };
        if let Err(error) = &done {
            self.failed(&claim, &carob_kit::chain(error).to_string());
        }
        done
    }

    fn failed(&self, claim: &PersistentVolumeClaim, why: &str) {
        let class = plan::class_of(claim);
        let message = format!("failed to provision volume with StorageClass {class:?}: {why}");
        self.recorder.record(reference(claim), EventKind::Warning, "ProvisioningFailed", message);
    }

    /// Takes the node off a claim whose volume cannot be made: the scheduler tells its Pod, and may choose another one.
    async fn give_back(&self, claim: &PersistentVolumeClaim) -> Result<(), ReconcileError> {
        let is_selected =
            claim.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(SELECTED_NODE));
        if !is_selected {
            return Ok(());
        }
        let key = ObjectKey::of(claim);
        let (uid, version) = (&claim.metadata.uid, &claim.metadata.resource_version);
        let patch = json!({"metadata": {"uid": uid, "resourceVersion": version, "annotations": {SELECTED_NODE: null}}});
        let api = self.api_of_claims(&key.namespace);
        let patched = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.unless_gone(|| format!("take the node off claim {key}")).map(drop)
    }

    /// What the volume is a copy of, as the API has it now.
    async fn origin(
        &self,
        claim: &PersistentVolumeClaim,
        begins: &Begins,
    ) -> Result<Result<Option<Origin>, Obstacle>, ReconcileError> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        Ok(match begins {
            Begins::Empty | Begins::Others => Ok(None),
            Begins::Claim(name) => {
                let source = self.api_of_claims(namespace).get_opt(name).await;
                let source = source.during(|| format!("get claim {namespace}/{name}"))?;
                let bound = source.as_ref().and_then(|source| source.spec.as_ref()?.volume_name.clone());
                let volume = match bound.filter(|bound| !bound.is_empty()) {
                    Some(bound) => {
                        self.api_of_volumes().get_opt(&bound).await.during(|| format!("get volume {bound}"))?
                    }
                    None => None,
                };
                of_claim(claim, name, source.as_ref(), volume.as_ref(), self.pool.id()).map(Some)
            }
            Begins::Snapshot(name) => {
                let api: Api<VolumeSnapshot> = Api::namespaced(self.client.clone(), namespace);
                let snapshot = api.get_opt(name).await.during(|| format!("get snapshot {namespace}/{name}"))?;
                let bound = snapshot
                    .as_ref()
                    .and_then(|snapshot| snapshot.status.as_ref()?.bound_volume_snapshot_content_name.clone());
                let content = match bound {
                    Some(bound) => {
                        let api: Api<VolumeSnapshotContent> = Api::all(self.client.clone());
                        api.get_opt(&bound).await.during(|| format!("get snapshot content {bound}"))?
                    }
                    None => None,
                };
                of_snapshot(claim, name, snapshot.as_ref(), content.as_ref(), self.pool.id()).map(Some)
            }
        })
    }

    /// Whether a claim is still there, for as long as this runs.
    fn is_wanted(&self, claim: &PersistentVolumeClaim) -> impl Fn() -> bool + Send + use<> {
        let (claims, key, uid) = (self.claims.clone(), ObjectKey::of(claim), claim.metadata.uid.clone());
        let shutdown = self.shutdown.clone();
        move || {
            let is_there = |held: Arc<PersistentVolumeClaim>| {
                held.metadata.uid == uid && held.metadata.deletion_timestamp.is_none()
            };
            !shutdown.is_cancelled() && claims.get_key(&key).is_some_and(is_there)
        }
    }

    async fn make(
        &self,
        claim: &PersistentVolumeClaim,
        wish: Wish,
        origin: Option<Origin>,
    ) -> Result<(), ReconcileError> {
        let wish = Arc::new(wish);
        let making = Making { all: &self.making, name: wish.record.volume.clone() };
        lock(making.all).insert(making.name.clone());
        let (wanted, is_wanted) = (Arc::clone(&wish), self.is_wanted(claim));
        let make = move |pool: &Pool| pool.make(&wanted, origin.as_ref(), &is_wanted);
        let record = self.in_pool("make the volume", make).await?;
        let path = self.pool.content(&record).display().to_string();
        let object = plan::object(&wish, &path, self.pool.id());
        let object: PersistentVolume = serde_json::from_value(object).map_err(|cause| ReconcileError::Other {
            operation: "write the volume's object".to_owned(),
            cause: Box::new(cause),
        })?;
        match self.api_of_volumes().create(&PostParams::default(), &object).await {
            Ok(_) => {
                let message = format!("Successfully provisioned volume {}", record.volume);
                self.recorder.record(reference(claim), EventKind::Normal, "ProvisioningSucceeded", message);
            }
            // Made before a restart, or by another node where the class waits for no Pod.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let name = &record.volume;
                let found = self.api_of_volumes().get_opt(name).await.during(|| format!("get volume {name}"))?;
                if !found.as_ref().is_some_and(|volume| plan::has_content(volume, self.pool.id())) {
                    if found.is_some_and(|volume| plan::pool_of(&volume) != Some(self.pool.id())) {
                        // What had an object here is kept, whoever has the name now.
                        let is_new = self.pool.is_unpublished(name);
                        return if is_new { self.remove_from_pool(&record).await } else { Ok(()) };
                    }
                    // Once that is gone it is this claim's turn, or what was made for it is left over.
                    return Err(ReconcileError::Other {
                        operation: format!("create volume {name}"),
                        cause: "the volume of that name is being deleted".into(),
                    });
                }
            }
            Err(error) => return Err(error).during(|| format!("create volume {}", record.volume)),
        }
        self.publish(&record.volume).await
    }

    /// Notes that the volume's object is there.
    async fn publish(&self, name: &str) -> Result<(), ReconcileError> {
        let name = name.to_owned();
        self.in_pool("note that the volume is published", move |pool| pool.publish(&name)).await
    }

    async fn remove_from_pool(&self, record: &Record) -> Result<(), ReconcileError> {
        let name = record.volume.clone();
        self.in_pool("remove the volume", move |pool| pool.remove(&name)).await
    }

    /// Whether what is in the pool under a name is that of the object which has it.
    async fn has_content(&self, name: &str) -> Result<bool, ReconcileError> {
        let found = self.api_of_volumes().get_opt(name).await.during(|| format!("get volume {name}"))?;
        Ok(found.is_some_and(|volume| plan::has_content(&volume, self.pool.id())))
    }

    async fn grow(&self, claim: &PersistentVolumeClaim, name: &str, bytes: i64) -> Result<(), ReconcileError> {
        let Some(volume) = self.volumes.get(None, name) else { return Ok(()) };
        if plan::pool_of(&volume) != Some(self.pool.id()) {
            return Ok(());
        }
        let of_pool = name.to_owned();
        let grown = self.in_pool("resize the volume", move |pool| pool.grow(&of_pool, bytes)).await;
        let grown = grown.inspect_err(|error| {
            let message = format!("resize volume {name:?} failed: {}", carob_kit::chain(error));
            self.recorder.record(reference(claim), EventKind::Warning, "VolumeResizeFailed", message);
        })?;
        let size = json!({"storage": plan::quantity(grown)});
        let patch = Patch::Merge(json!({"spec": {"capacity": size}}));
        let patched = self.api_of_volumes().patch(name, &PatchParams::default(), &patch).await;
        patched.unless_gone(|| format!("write the capacity of volume {name}"))?;
        let key = ObjectKey::of(claim);
        // As resizers leave it when they are done (RecoverVolumeExpansionFailure).
        let status = json!({"capacity": size, "allocatedResources": size});
        let patch = Patch::Merge(json!({"metadata": {"uid": claim.metadata.uid}, "status": status}));
        let patched = self.api_of_claims(&key.namespace).patch_status(&key.name, &PatchParams::default(), &patch).await;
        if patched.unless_gone(|| format!("write the capacity of claim {key}"))?.is_some() {
            let message = "Resize volume succeeded";
            self.recorder.record(reference(claim), EventKind::Normal, "VolumeResizeSuccessful", message);
        }
        Ok(())
    }

    async fn reconcile_volume(&self, key: &ObjectKey) -> Result<(), ReconcileError> {
        let Some(volume) = self.volumes.get_key(key) else { return Ok(()) };
        // Before anything lets the object go: without it, only its record says that there is data.
        // As the API has it now: the object that was seen may be gone, and what is here be made for the next one of that name.
        if self.pool.is_unpublished(&key.name) && self.has_content(&key.name).await? {
            self.publish(&key.name).await?;
        }
        match volume_plan(&volume, self.pool.id()) {
            VolumePlan::Nothing => Ok(()),
            VolumePlan::Finalizers(finalizers) => self.write_finalizers(&volume, &finalizers).await,
            VolumePlan::Remove => self.remove(&volume).await.inspect_err(|error| {
                let message = carob_kit::chain(error).to_string();
                self.recorder.record(reference(&*volume), EventKind::Warning, "VolumeFailedDelete", message);
            }),
        }
    }

    async fn write_finalizers(&self, volume: &PersistentVolume, finalizers: &[String]) -> Result<(), ReconcileError> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let (uid, version) = (&volume.metadata.uid, &volume.metadata.resource_version);
        let patch = json!({"metadata": {"uid": uid, "resourceVersion": version, "finalizers": finalizers}});
        let patched = self.api_of_volumes().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.unless_gone(|| format!("write the finalizers of volume {name}")).map(drop)
    }

    /// Removes a released volume: what is on it, then its object. The claim is looked up once more before.
    async fn remove(&self, volume: &PersistentVolume) -> Result<(), ReconcileError> {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let held = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone()).unwrap_or_default();
        let uid = held.uid.unwrap_or_default();
        let (namespace, claim) = (held.namespace.unwrap_or_default(), held.name.unwrap_or_default());
        if self.live_claim(&namespace, &claim, &uid).await?.is_some_and(|claim| {
            claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).is_none_or(|bound| bound == name)
        }) {
            return Ok(());
        }
        // The object may have changed since it was seen: only what is still to be removed is.
        let found = self.api_of_volumes().get_opt(&name).await.during(|| format!("get volume {name}"))?;
        let Some(current) = found.filter(|current| volume_plan(current, self.pool.id()) == VolumePlan::Remove) else {
            return Ok(());
        };
        if current.metadata.uid != volume.metadata.uid {
            return Ok(());
        }
        let of_pool = name.clone();
        self.in_pool("remove the volume", move |pool| pool.remove(&of_pool)).await?;
        if current.metadata.deletion_timestamp.is_none() {
            let preconditions = Some(Preconditions { uid: current.metadata.uid.clone(), resource_version: None });
            let params = DeleteParams { preconditions, ..DeleteParams::default() };
            let deleted = self.api_of_volumes().delete(&name, &params).await;
            deleted.unless_gone(|| format!("delete volume {name}"))?;
        }
        let found = self.api_of_volumes().get_opt(&name).await.during(|| format!("get volume {name}"))?;
        let Some(rest) = found.filter(|rest| rest.metadata.uid == current.metadata.uid) else { return Ok(()) };
        let mut finalizers = rest.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|finalizer| finalizer != PROVISIONER_PROTECTION);
        self.write_finalizers(&rest, &finalizers).await
    }

    /// Has the Node say that the pool is here. Volumes say the same, and so their Pods come here.
    async fn reconcile_node(&self) -> Result<(), ReconcileError> {
        let Some(node) = self.nodes.get(None, &self.node_name) else { return Ok(()) };
        let label = node.metadata.labels.as_ref().and_then(|labels| labels.get(NODE_LABEL));
        if label.map(String::as_str) == Some(self.pool.id()) {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"metadata": {"labels": {NODE_LABEL: self.pool.id()}}}));
        let api: Api<Node> = Api::all(self.client.clone());
        let patched = api.patch(&self.node_name, &PatchParams::default(), &patch).await;
        patched.unless_gone(|| format!("label node {}", self.node_name)).map(drop)
    }

    /// Removes volumes whose object was never made and never will be: their claim is gone, or has its volume on another node.
    async fn reconcile_leftovers(&self) -> Result<Requeue, ReconcileError> {
        let mut requeue = Requeue::No;
        for record in self.in_pool("list the volumes", Pool::unpublished).await? {
            if lock(&self.making).contains(&record.volume) {
                requeue = Requeue::After(LEFTOVERS_AGAIN);
                continue;
            }
            let object = self.api_of_volumes().get_opt(&record.volume).await;
            match object.during(|| format!("get volume {}", record.volume))? {
                Some(volume) if plan::has_content(&volume, self.pool.id()) => self.publish(&record.volume).await?,
                // Its name is still that of one which goes.
                Some(volume) if plan::pool_of(&volume) == Some(self.pool.id()) => {
                    requeue = Requeue::After(LEFTOVERS_AGAIN);
                }
                // Another node was first.
                Some(_) => self.remove_from_pool(&record).await?,
                None => {
                    let claim = self.live_claim(&record.namespace, &record.claim, &record.claim_uid).await?;
                    let annotations = claim.as_ref().and_then(|claim| claim.metadata.annotations.as_ref());
                    let selected = annotations.and_then(|all| all.get(SELECTED_NODE));
                    if claim.is_none() || selected.is_some_and(|selected| *selected != self.node_name) {
                        self.remove_from_pool(&record).await?;
                    }
                }
            }
        }
        Ok(requeue)
    }
}

/// Does what blocks in a thread of its own.
pub(crate) async fn in_pool<T: Send + 'static>(
    pool: &Arc<Pool>,
    what: &str,
    work: impl FnOnce(&Pool) -> Result<T, PoolError> + Send + 'static,
) -> Result<T, ReconcileError> {
    let pool = Arc::clone(pool);
    let other =
        |cause: Box<dyn std::error::Error + Send + Sync>| ReconcileError::Other { operation: what.to_owned(), cause };
    let done = tokio::task::spawn_blocking(move || work(&pool)).await.map_err(|error| other(Box::new(error)))?;
    done.map_err(|error| other(Box::new(error)))
}

/// Makes the volumes that are copies, which takes as long as there is to copy.
pub(crate) struct Copies(pub(crate) Arc<Provisioner>);

impl Copies {
    /// The claim, and those that wait for a volume of it to copy.
    pub(crate) fn of_claim(
        claims: &Informer<PersistentVolumeClaim>,
        change: Change<'_, PersistentVolumeClaim>,
    ) -> Vec<ObjectKey> {
        let key = change.key();
        let mut keys = Self::waiting_for(claims, &key.namespace, &Begins::Claim(key.name.to_string()));
        keys.extend(change.new.is_some_and(|claim| is_copy(claim)).then_some(key));
        keys
    }

    /// The claims that may have waited for a class.
    pub(crate) fn of_class(
        claims: &Informer<PersistentVolumeClaim>,
        change: Change<'_, StorageClass>,
    ) -> Vec<ObjectKey> {
        let keys = Key::of_class(claims, change).into_iter();
        keys.filter_map(|key| if let Key::Claim(key) = key { Some(key) } else { None }).collect()
    }

    /// The claims that wait for a snapshot.
    pub(crate) fn of_snapshot(
        claims: &Informer<PersistentVolumeClaim>,
        change: Change<'_, VolumeSnapshot>,
    ) -> Vec<ObjectKey> {
        let key = change.key();
        Self::waiting_for(claims, &key.namespace, &Begins::Snapshot(key.name.to_string()))
    }

    fn waiting_for(claims: &Informer<PersistentVolumeClaim>, namespace: &str, begins: &Begins) -> Vec<ObjectKey> {
        let waits = |claim: &Arc<PersistentVolumeClaim>| {
            claim.spec.as_ref().is_some_and(|spec| spec.volume_name.is_none())
                && crate::origin::begins_with(claim).as_ref() == Ok(begins)
        };
        claims.list_in(namespace).into_iter().filter(waits).map(|claim| ObjectKey::of(&*claim)).collect()
    }
}

impl Reconcile for Copies {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "local-storage-copies"
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        self.0.reconcile_claim(&key, true).await.map(|()| Requeue::No)
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.0.claims.subject(key)
    }
}

/// Makes all other volumes, lets them grow, and removes them.
pub(crate) struct Volumes(pub(crate) Arc<Provisioner>);

impl Reconcile for Volumes {
    type Key = Key;

    fn name(&self) -> &'static str {
        "local-storage"
    }

    async fn reconcile(&self, key: Key) -> Result<Requeue, ReconcileError> {
        match &key {
            Key::Claim(key) => self.0.reconcile_claim(key, false).await?,
            Key::Volume(key) => self.0.reconcile_volume(key).await?,
            Key::Node => self.0.reconcile_node().await?,
            Key::Leftovers => return self.0.reconcile_leftovers().await,
        }
        Ok(Requeue::No)
    }

    fn subject(&self, key: &Key) -> Option<Subject> {
        match key {
            Key::Claim(key) => self.0.claims.subject(key),
            Key::Volume(key) => self.0.volumes.subject(key),
            Key::Node | Key::Leftovers => None,
        }
    }
}
