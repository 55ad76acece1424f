//! Keeps a number of Pods running: ReplicaSets and ReplicationControllers, which differ in their types alone
//! (`pkg/controller/replicaset`).

mod kinds;
mod rank;

use std::sync::Arc;

use carob_client::{Change, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject, reference};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::Resource;
use kube::api::Api;
use kube::core::Selector;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::availability;
use crate::context::Context;
use crate::index::OwnedBy;
use crate::ownership::{self, Owner};
use crate::pod_control::{BURST, PodControl, pod_from_template, slow_start};
use crate::pods;
use crate::statuses;
use crate::versions::Versions;

/// What the two kinds have in common.
pub(crate) trait Replicated:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + PartialEq
    + Serialize
    + DeserializeOwned
    + std::fmt::Debug
    + Send
    + Sync
    + 'static
{
    /// The name of upstream's controller, and of its event source.
    const NAME: &'static str;
    const COMPONENT: &'static str;

    fn replicas(&self) -> i32;
    fn min_ready_secs(&self) -> i32;
    fn selector(&self) -> Result<Selector, ReconcileError>;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn has_status_of(&self, other: &Self) -> bool;
    /// A copy with this status, and the failure condition set or taken away.
    fn with_status(&self, counts: &Counts, failure: Option<Failure>, now: Timestamp) -> Self;
}

/// The numbers in a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) replicas: i32,
    pub(crate) fully_labeled: i32,
    pub(crate) ready: i32,
    pub(crate) available: i32,
    pub(crate) terminating: i32,
}

/// Why Pods could not be made or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

pub(crate) struct ReplicaController<K: Replicated> {
    context: Context,
    owners: Informer<K>,
    control: PodControl,
    written: Versions,
}

impl<K: Replicated> ReplicaController<K> {
    pub(crate) fn new(context: Context) -> Self {
        let control = PodControl::new(context.clone(), K::COMPONENT);
        Self { owners: context.informers.of(), context, control, written: Versions::default() }
    }

    pub(crate) fn owners(&self) -> &Informer<K> {
        &self.owners
    }

    pub(crate) fn pods(&self) -> &Informer<Pod> {
        self.control.pods()
    }

    /// The owners that a change of a Pod concerns.
    pub(crate) fn owners_of_pod(owners: &Informer<K>, change: Change<'_, Pod>) -> Vec<ObjectKey> {
        ownership::owners_of(owners, change, |owner| owner.selector().ok())
    }

    async fn claim(&self, owner: &Owner, object: &K) -> Result<Vec<Arc<Pod>>, ReconcileError> {
        let candidates = self.context.indexes.pods_by_owner.candidates(&owner.uid, &owner.key.namespace);
        let candidates = candidates.into_iter().filter(|pod| !pods::is_finished(pod)).collect();
        let owners: Api<K> = self.context.api(&owner.key.namespace);
        let alive = ownership::still_owner(&owners, owner);
        let claimed = ownership::claim(&self.control.api(owner), owner, &object.selector()?, candidates, alive).await?;
        self.control.note_version(owner, claimed.version);
        Ok(claimed.objects)
    }

    /// Creates what is missing or deletes what is too many. Answers what failed, and the reason that the status gives for it.
    async fn scale(&self, owner: &Owner, object: &K, active: &[Arc<Pod>]) -> Option<(&'static str, ReconcileError)> {
        let wanted = usize::try_from(object.replicas()).unwrap_or(0);
        let reference = reference(object);
        if active.len() < wanted {
            let pod = pod_from_template(object.template()?, owner);
            let missing = (wanted - active.len()).min(BURST);
            let create = |_| async { self.control.create(owner, &reference, &pod).await.map(drop) };
            let (_, error) = slow_start(missing, create).await;
            error.map(|error| ("FailedCreate", error))
        } else {
            let surplus = (active.len() - wanted).min(BURST);
            if surplus == 0 {
                return None;
            }
            let victims = rank::victims(active, &self.siblings(active), surplus);
            let delete = |index: usize| self.control.delete(owner, &reference, &victims[index]);
            let (_, error) = slow_start(victims.len(), delete).await;
            error.map(|error| ("FailedDelete", error))
        }
    }

    /// All Pods of the same namespace that any controller has on the Nodes of these; used to spread what is left.
    fn siblings(&self, active: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let Some(first) = active.first() else { return Vec::new() };
        let Some(owner) = pods::controller(&first.metadata) else { return active.to_vec() };
        let namespace = first.metadata.namespace.as_deref().unwrap_or_default();
        let family = self.family(namespace, &owner.name);
        let of = |uid: String| self.context.indexes.pods_by_owner.get(&OwnedBy::Owner(uid));
        family.into_iter().flat_map(of).filter(|pod| pods::is_active(pod)).collect()
    }

    /// The uids of the owners that the same Deployment, if any, has.
    fn family(&self, namespace: &str, name: &str) -> Vec<String> {
        let Some(owner) = self.owners.get(Some(namespace), name) else { return Vec::new() };
        let uid = |owner: &K| owner.meta().uid.clone().unwrap_or_default();
        let Some(parent) = pods::controller(owner.meta()).map(|parent| parent.uid.clone()) else {
            return vec![uid(&owner)];
        };
        let same = |other: &K| pods::controller(other.meta()).is_some_and(|other| other.uid == parent);
        self.owners.list_in(namespace).iter().filter(|other| same(other)).map(|other| uid(other)).collect()
    }

    async fn write_status(&self, object: &K, counts: &Counts, failure: Option<Failure>) -> Result<(), ReconcileError> {
        let wanted = object.with_status(counts, failure, self.context.now());
        if wanted.has_status_of(object) {
            return Ok(());
        }
        statuses::write(&self.context, &self.written, &ObjectKey::of(object), &wanted).await
    }
}

/// The words for the status: what the API said.
fn message(error: &ReconcileError) -> String {
    match error {
        ReconcileError::Request { cause, .. } => cause.to_string(),
        error => error.to_string(),
    }
}

/// Counts the claimed Pods (calculateStatus).
fn count<K: Replicated>(object: &K, active: &[Arc<Pod>], terminating: usize, now: Timestamp) -> Counts {
    let template_labels = object.template().and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let labelled = |pod: &Pod| {
        let labels = pod.metadata.labels.as_ref();
        template_labels
            .into_iter()
            .flatten()
            .all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
    };
    let number = |predicate: &dyn Fn(&Pod) -> bool| {
        i32::try_from(active.iter().filter(|pod| predicate(pod)).count()).unwrap_or(i32::MAX)
    };
    Counts {
        replicas: number(&|_| true),
        fully_labeled: number(&labelled),
        ready: number(&pods::is_ready),
        available: number(&|pod| availability::is_available(pod, object.min_ready_secs(), now)),
        terminating: i32::try_from(terminating).unwrap_or(i32::MAX),
    }
}

impl<K: Replicated> Reconcile for ReplicaController<K> {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        K::NAME
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.owners.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        self.written.settled(&key, &self.owners).await;
        let Some(object) = self.owners.get_key(&key) else {
            self.written.forget(&key);
            self.control.forget(&key);
            return Ok(Requeue::No);
        };
        let owner = Owner::of(&*object);
        self.control.settled(&owner).await;
        let claimed = self.claim(&owner, &object).await?;
        self.control.prune(&owner, claimed.iter().map(|pod| &**pod));
        let (leaving, active): (Vec<_>, Vec<_>) =
            claimed.into_iter().partition(|pod| self.control.is_deleted(&owner, pod));
        let failed =
            if object.meta().deletion_timestamp.is_none() { self.scale(&owner, &object, &active).await } else { None };
        let now = self.context.now();
        let counts = count(&*object, &active, leaving.len(), now);
        let failure = failed.as_ref().map(|(reason, error)| Failure { reason, message: message(error) });
        self.write_status(&object, &counts, failure).await?;
        if let Some((_, error)) = failed {
            return Err(error);
        }
        Ok(availability::next_change(active.iter().map(|pod| &**pod), object.min_ready_secs(), now))
    }
}
