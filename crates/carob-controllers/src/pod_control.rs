//! Creates and deletes Pods for the controllers that own them, and remembers what it did until the informer shows it, so
//! that no controller counts its own Pods twice.
//!
//! Upstream counts expected creations and deletions (`pkg/controller/controller_utils.go`, UIDTrackingControllerExpectations).
//! Here a reconcile waits for the resourceVersion of the last write of its predecessor instead: there is no count that can go
//! wrong, and no time-out that has to repair it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::sync::Mutex;

use carob_client::{During, EventKind, EventRecorder, Informer, ObjectKey, ReconcileError};
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodTemplateSpec};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams, Preconditions};

use crate::context::Context;
use crate::namespaces;
use crate::ownership::{Owner, version};
use crate::pods;

/// Pods that one reconcile creates or deletes at most (BurstReplicas).
pub(crate) const BURST: usize = 500;

pub(crate) struct PodControl {
    context: Context,
    pods: Informer<Pod>,
    recorder: EventRecorder,
    written: Mutex<HashMap<ObjectKey, Written>>,
}

/// What was written for an owner and may not have come back yet.
#[derive(Default)]
struct Written {
    /// Of the owner: one that is made again under its name begins without.
    uid: String,
    version: u64,
    deleted: HashSet<String>,
}

impl PodControl {
    pub(crate) fn new(context: Context, component: &str) -> Self {
        let recorder = context.recorder(component);
        Self { pods: context.informers.of(), context, recorder, written: Mutex::default() }
    }

    pub(crate) fn pods(&self) -> &Informer<Pod> {
        &self.pods
    }

    pub(crate) fn recorder(&self) -> &EventRecorder {
        &self.recorder
    }

    pub(crate) fn api(&self, owner: &Owner) -> Api<Pod> {
        self.context.api(&owner.key.namespace)
    }

    /// Waits until the informer shows all that was written for the owner.
    pub(crate) async fn settled(&self, owner: &Owner) {
        let version = self.with(owner, |written| written.version);
        self.pods.reached(version).await;
    }

    /// Forgets an owner that is gone.
    pub(crate) fn forget(&self, owner: &ObjectKey) {
        self.written.lock().expect("no holder of the writes panics").remove(owner);
    }

    /// Whether the Pod was deleted by us, though the informer may not show it yet.
    pub(crate) fn is_deleted(&self, owner: &Owner, pod: &Pod) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        pods::is_deleting(pod) || self.with(owner, |written| written.deleted.contains(uid))
    }

    pub(crate) fn note_version(&self, owner: &Owner, version: u64) {
        self.with(owner, |written| written.version = written.version.max(version));
    }

    fn with<T>(&self, owner: &Owner, f: impl FnOnce(&mut Written) -> T) -> T {
        let mut all = self.written.lock().expect("no holder of the writes panics");
        let written = all.entry(owner.key.clone()).or_default();
        if written.uid != owner.uid {
            *written = Written { uid: owner.uid.clone(), ..Written::default() };
        }
        f(written)
    }

    /// Creates a Pod. `None`: the namespace is going away, there is nothing to be done.
    pub(crate) async fn try_create(&self, owner: &Owner, pod: &Pod) -> kube::Result<Option<Pod>> {
        match self.api(owner).create(&PostParams::default(), pod).await {
            Ok(created) => {
                self.note_version(owner, version(&created));
                Ok(Some(created))
            }
            Err(kube::Error::Api(status)) if namespaces::is_terminating(&status) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates a Pod and says so in an Event of the owner, as most controllers do.
    pub(crate) async fn create(
        &self,
        owner: &Owner,
        object: &ObjectReference,
        pod: &Pod,
    ) -> Result<Option<Pod>, ReconcileError> {
        let created = self.try_create(owner, pod).await;
        match &created {
            Ok(None) => {}
            Ok(Some(created)) => {
                let message = format!("Created pod: {}", created.name_any());
                self.recorder.record(object.clone(), EventKind::Normal, "SuccessfulCreate", message);
            }
            Err(error) => {
                let message = format!("Error creating: {}", said(error));
                self.recorder.record(object.clone(), EventKind::Warning, "FailedCreate", message);
            }
        }
        created.during(|| format!("create a pod of {}", owner.key))
    }

    /// Deletes a Pod. Answers whether it was there.
    pub(crate) async fn try_delete(&self, owner: &Owner, pod: &Pod) -> kube::Result<bool> {
        let preconditions = Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        match self.api(owner).delete(&pod.name_any(), &params).await {
            Ok(answer) => {
                let version = answer.left().as_ref().map_or(0, version);
                self.with(owner, |written| {
                    written.version = written.version.max(version);
                    written.deleted.extend(pod.metadata.uid.clone());
                });
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes a Pod and says so in an Event of the owner, as most controllers do.
    pub(crate) async fn delete(
        &self,
        owner: &Owner,
        object: &ObjectReference,
        pod: &Pod,
    ) -> Result<(), ReconcileError> {
        let name = pod.name_any();
        let deleted = self.try_delete(owner, pod).await;
        match &deleted {
            Ok(false) => {}
            Ok(true) => {
                let message = format!("Deleted pod: {name}");
                self.recorder.record(object.clone(), EventKind::Normal, "SuccessfulDelete", message);
            }
            Err(error) => {
                let message = format!("Error deleting: {}", said(error));
                self.recorder.record(object.clone(), EventKind::Warning, "FailedDelete", message);
            }
        }
        deleted.during(|| format!("delete pod {}/{name}", owner.key.namespace)).map(drop)
    }

    /// Drops the memory of deletions that the informer shows by now. Called with the owner's Pods as the informer has them.
    pub(crate) fn prune<'a>(&self, owner: &Owner, shown: impl Iterator<Item = &'a Pod>) {
        let alive: HashSet<&str> =
            shown.filter(|pod| !pods::is_deleting(pod)).filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        self.with(owner, |written| written.deleted.retain(|uid| alive.contains(uid.as_str())));
    }
}

/// What the API said, without the words that the client puts around it.
pub(crate) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}

/// A Pod as a template describes it; its name is generated from its owner's (GetPodFromTemplate).
pub(crate) fn pod_from_template(template: &PodTemplateSpec, owner: &Owner) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.key.name)),
            namespace: owner.key.namespace().map(str::to_owned),
            labels: non_empty(meta.labels),
            annotations: non_empty(meta.annotations),
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner.reference.clone()]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

fn non_empty(map: Option<BTreeMap<String, String>>) -> Option<BTreeMap<String, String>> {
    map.filter(|map| !map.is_empty())
}

/// Runs `work` `count` times: once, then twice as many at a time while all succeed, so that what cannot succeed is not
/// tried hundreds of times (slowStartBatch). Answers how many succeeded and the first error.
pub(crate) async fn slow_start<F, Fut>(count: usize, work: F) -> (usize, Option<ReconcileError>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<(), ReconcileError>>,
{
    let (mut done, mut batch) = (0, 1);
    while done < count {
        let size = batch.min(count - done);
        let results = join_all((done..done + size).map(&work)).await;
        let succeeded = results.iter().filter(|result| result.is_ok()).count();
        if let Some(error) = results.into_iter().find_map(Result::err) {
            return (done + succeeded, Some(error));
        }
        done += size;
        batch *= 2;
    }
    (done, None)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn batches_double_until_one_fails() {
        let tried = AtomicUsize::new(0);
        let fail_from = |limit: usize| {
            tried.store(0, Ordering::Relaxed);
            let tried = &tried;
            slow_start(20, move |index| {
                tried.fetch_add(1, Ordering::Relaxed);
                let error = (index >= limit).then(|| ReconcileError::Unusable(format!("number {index}")));
                async move { error.map_or(Ok(()), Err) }
            })
        };
        let (done, error) = fail_from(100).await;
        assert_eq!((done, error.is_none(), tried.load(Ordering::Relaxed)), (20, true, 20));
        let (done, error) = fail_from(0).await;
        assert_eq!((done, error.is_some(), tried.load(Ordering::Relaxed)), (0, true, 1));
        let (done, error) = fail_from(5).await;
        assert_eq!(
            (done, error.map(|e| e.to_string()), tried.load(Ordering::Relaxed)),
            (5, Some("number 5".into()), 7)
        );
    }
}
