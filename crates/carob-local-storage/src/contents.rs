//! Takes and removes the snapshots that VolumeSnapshotContents stand for: what upstream's csi-snapshotter does for a CSI driver.
//! Which content there is for a snapshot is the snapshot controller's to decide.

use std::sync::Arc;

use carob_api::storage::{CONTENT_PROTECTION, local_handle, parse_local_handle};
use carob_client::snapshots::{BEING_DELETED, ContentStatus, SnapshotError, VolumeSnapshotContent};
use carob_client::{
    During, EventKind, EventRecorder, Informer, Informers, ObjectKey, Reconcile, ReconcileError, Requeue, Subject,
    reference,
};
use carob_kit::Clock;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::plan::PROVISIONER;
use crate::pool::{Pool, PoolError};
use crate::provisioner::in_pool;
use crate::record::SnapshotRecord;

/// What is to be done about a content.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Nothing,
    /// A snapshot of the volume is taken under the name.
    Take {
        name: String,
        volume: String,
    },
    /// It was taken before: what there is of it is told.
    Look {
        name: String,
    },
    /// It is removed, and the content may go.
    Remove {
        name: String,
    },
    /// The content may go, and the snapshot stays.
    Release,
    /// Its handle is of no pool: why, or `None` where it is being deleted and may go.
    Stray(Option<String>),
}

fn plan(content: &VolumeSnapshotContent, pool: &str) -> Plan {
    let (meta, spec) = (&content.metadata, &content.spec);
    if spec.driver != PROVISIONER {
        return Plan::Nothing;
    }
    let handle = spec.source.volume_handle.as_ref().or(spec.source.snapshot_handle.as_ref());
    let Some((of_pool, in_pool)) = handle.and_then(|handle| parse_local_handle(handle)) else {
        let why = format!("the handle {:?} is not of the form <pool>/<name>", handle.map_or("", String::as_str));
        return Plan::Stray(meta.deletion_timestamp.is_none().then_some(why));
    };
    if of_pool != pool {
        return Plan::Nothing;
    }
    // The content's own uid, so that no two contents ever mean one snapshot that was taken for them.
    let taken = format!("snapshot-{}", meta.uid.as_deref().unwrap_or_default());
    let is_of_volume = spec.source.volume_handle.is_some();
    let name = if is_of_volume { taken } else { in_pool.to_owned() };
    let has = |list: &Option<Vec<String>>| list.iter().flatten().any(|name| name == CONTENT_PROTECTION);
    if meta.deletion_timestamp.is_some() {
        let is_free = spec.volume_snapshot_ref.uid.as_ref().is_none_or(String::is_empty)
            || meta.annotations.as_ref().is_some_and(|all| all.contains_key(BEING_DELETED));
        return match spec.deletion_policy.as_str() {
            _ if !is_free || !has(&meta.finalizers) => Plan::Nothing,
            "Delete" => Plan::Remove { name },
            _ => Plan::Release,
        };
    }
    let status = content.status.as_ref();
    if status.is_some_and(|status| status.ready_to_use == Some(true) && status.snapshot_handle.is_some()) {
        return Plan::Nothing;
    }
    if !is_of_volume {
        return Plan::Look { name };
    }
    // What a crash leaves of a snapshot is found again by the finalizer.
    if has(&meta.finalizers) { Plan::Take { name, volume: in_pool.to_owned() } } else { Plan::Nothing }
}

pub(crate) struct Contents {
    client: kube::Client,
    contents: Informer<VolumeSnapshotContent>,
    pool: Arc<Pool>,
    clock: Arc<dyn Clock>,
    recorder: EventRecorder,
    shutdown: CancellationToken,
    /// See [`crate::Config`].
    as_node: bool,
}

impl Contents {
    pub(crate) fn new(
        client: kube::Client,
        informers: &Informers,
        pool: Arc<Pool>,
        clock: Arc<dyn Clock>,
        recorder: EventRecorder,
        shutdown: CancellationToken,
        as_node: bool,
    ) -> Self {
        Self { client, contents: informers.of(), pool, clock, recorder, shutdown, as_node }
    }

    pub(crate) fn contents(&self) -> &Informer<VolumeSnapshotContent> {
        &self.contents
    }

    fn api(&self) -> Api<VolumeSnapshotContent> {
        Api::all(self.client.clone())
    }

    fn is_wanted(&self, key: &ObjectKey) -> impl Fn() -> bool + Send + use<> {
        let (contents, key, shutdown) = (self.contents.clone(), key.clone(), self.shutdown.clone());
        move || {
            let is_there = |content: Arc<VolumeSnapshotContent>| content.metadata.deletion_timestamp.is_none();
            !shutdown.is_cancelled() && contents.get_key(&key).is_some_and(is_there)
        }
    }

    async fn take(&self, content: &VolumeSnapshotContent, name: String, volume: String) -> Result<(), ReconcileError> {
        let owner = content.metadata.uid.clone().unwrap_or_default();
        let now = i64::try_from(self.clock.now().as_nanosecond()).unwrap_or(0);
        let wanted = self.is_wanted(&ObjectKey::of(content));
        let take = move |pool: &Pool| pool.take(&name, &owner, &volume, now, &wanted);
        let taken = in_pool(&self.pool, "take the snapshot", take).await;
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) => {
                let why = carob_kit::chain(&error).to_string();
                self.failed(content, "SnapshotCreationFailed", &why).await?;
                return Err(error);
            }
        };
        if !taken.at_once {
            let message = "The file system shares no blocks: the volume was copied file by file while it could be written \
                           to, so files may be of different moments";
            self.recorder.record(reference(content), EventKind::Warning, "SnapshotCopied", message);
        }
        self.ready(content, &taken.record).await
    }

    async fn look(&self, content: &VolumeSnapshotContent, name: String) -> Result<(), ReconcileError> {
        let found = in_pool(&self.pool, "look for the snapshot", {
            let name = name.clone();
            move |pool| match pool.snapshot(&name) {
                // What cannot be a name is the name of nothing.
                Err(PoolError::Name(_)) => Ok(None),
                found => found,
            }
        });
        match found.await? {
            Some(record) => self.ready(content, &record).await,
            None => {
                let why = format!("there is no snapshot {name} in the pool {}", self.pool.id());
                self.failed(content, "SnapshotContentCheckandUpdateFailed", &why).await
            }
        }
    }

    /// Tells that the snapshot is there.
    async fn ready(&self, content: &VolumeSnapshotContent, record: &SnapshotRecord) -> Result<(), ReconcileError> {
        let status = ContentStatus {
            snapshot_handle: Some(local_handle(self.pool.id(), &record.snapshot)),
            creation_time: Some(record.taken_at_ns),
            restore_size: Some(record.capacity_bytes),
            ready_to_use: Some(true),
            error: None,
        };
        self.write_status(content, &status).await
    }

    /// Tells why there is no snapshot.
    async fn failed(&self, content: &VolumeSnapshotContent, reason: &str, why: &str) -> Result<(), ReconcileError> {
        let message = format!("{PROVISIONER}: {why}");
        self.recorder.record(reference(content), EventKind::Warning, reason, message.clone());
        let held = content.status.clone().unwrap_or_default();
        if held.error.as_ref().and_then(|error| error.message.as_ref()) == Some(&message) {
            return Ok(());
        }
        let error = SnapshotError { time: Some(Time(self.clock.now())), message: Some(message) };
        self.write_status(content, &ContentStatus { ready_to_use: Some(false), error: Some(error), ..held }).await
    }

    async fn write_status(
        &self,
        content: &VolumeSnapshotContent,
        status: &ContentStatus,
    ) -> Result<(), ReconcileError> {
        let name = content.metadata.name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(json!({"metadata": {"uid": content.metadata.uid}, "status": status}));
        let patched = self.api().patch_status(name, &PatchParams::default(), &patch).await;
        patched.unless_gone(|| format!("write the status of snapshot content {name}")).map(drop)
    }

    async fn release(&self, content: &VolumeSnapshotContent) -> Result<(), ReconcileError> {
        let (name, meta) = (content.metadata.name.as_deref().unwrap_or_default(), &content.metadata);
        let mut finalizers = meta.finalizers.clone().unwrap_or_default();
        finalizers.retain(|finalizer| finalizer != CONTENT_PROTECTION);
        let patch = json!({"metadata": {
            "uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers}});
        let patched = self.api().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.unless_gone(|| format!("write the finalizers of snapshot content {name}")).map(drop)
    }
}

impl Reconcile for Contents {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "local-storage-snapshots"
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(content) = self.contents.get_key(&key) else { return Ok(Requeue::No) };
        match plan(&content, self.pool.id()) {
            Plan::Nothing => {}
            Plan::Stray(_) if self.as_node => {}
            Plan::Take { name, volume } => self.take(&content, name, volume).await?,
            Plan::Look { name } => self.look(&content, name).await?,
            Plan::Stray(Some(why)) => self.failed(&content, "SnapshotCreationFailed", &why).await?,
            Plan::Release | Plan::Stray(None) => self.release(&content).await?,
            Plan::Remove { name } => {
                let removed = in_pool(&self.pool, "remove the snapshot", move |pool| pool.remove_snapshot(&name)).await;
                if let Err(error) = &removed {
                    let message = carob_kit::chain(error).to_string();
                    self.recorder.record(reference(&*content), EventKind::Warning, "SnapshotDeleteError", message);
                }
                removed?;
                self.release(&content).await?;
            }
        }
        Ok(Requeue::No)
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.contents.subject(key)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn of(change: &Value) -> Plan {
        let mut object = json!({"metadata": {"name": "x", "uid": "xu", "finalizers": [CONTENT_PROTECTION]}, "spec": {
            "driver": PROVISIONER, "deletionPolicy": "Delete", "source": {"volumeHandle": "pool/pvc-1"},
            "volumeSnapshotRef": {"namespace": "ns", "name": "s", "uid": "su"}}});
        carob_api::patch::merge_patch(&mut object, change).expect("it applies");
        plan(&serde_json::from_value(object).expect("a content"), "pool")
    }

    #[test]
    fn a_content_of_this_pool_is_taken_and_of_others_left_alone() {
        let take = Plan::Take { name: "snapshot-xu".to_owned(), volume: "pvc-1".to_owned() };
        assert_eq!(of(&json!({})), take);
        let ready = json!({"status": {"readyToUse": true, "snapshotHandle": "pool/snapshot-xu"}});
        for change in [
            json!({"spec": {"driver": "other"}}),
            json!({"spec": {"source": {"volumeHandle": "elsewhere/pvc-1"}}}),
            json!({"metadata": {"finalizers": null}}),
            ready,
        ] {
            assert_eq!(of(&change), Plan::Nothing, "{change}");
        }
        let known = json!({"spec": {"source": {"volumeHandle": null, "snapshotHandle": "pool/snapshot-1"}}});
        assert_eq!(of(&known), Plan::Look { name: "snapshot-1".to_owned() });
        assert!(matches!(of(&json!({"spec": {"source": {"volumeHandle": "pvc-1"}}})), Plan::Stray(Some(_))));
    }

    #[test]
    fn what_is_deleted_goes_once_its_snapshot_does_and_as_its_policy_says() {
        let going = |annotated: bool, uid: Option<&str>, policy: &str| {
            let annotations = annotated.then(|| json!({BEING_DELETED: "yes"}));
            of(&json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations},
                "spec": {"deletionPolicy": policy, "volumeSnapshotRef": {"uid": uid}}}))
        };
        let remove = Plan::Remove { name: "snapshot-xu".to_owned() };
        assert_eq!(going(false, Some("su"), "Delete"), Plan::Nothing, "its snapshot is there");
        assert_eq!(going(true, Some("su"), "Delete"), remove);
        assert_eq!(going(true, Some("su"), "Retain"), Plan::Release);
        assert_eq!(going(false, None, "Delete"), remove);
        assert_eq!(going(false, Some(""), "Retain"), Plan::Release);
    }
}
