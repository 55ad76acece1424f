//! Empties namespaces that are being deleted: Pods first, then everything else that is namespaced, then the finalizer.
//!
//! Facts: `pkg/controller/namespace/deletion`.

mod conditions;

use std::collections::BTreeMap;
use std::time::Duration;

use carob_client::{During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject};
use carob_kit::chain;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::metadata::PartialObjectMeta;
use kube::{Resource, ResourceExt};

use crate::context::Context;
use crate::discovery::{self, Served};
use conditions::Outcome;

/// The finalizer in `spec.finalizers` that is ours to take away.
const FINALIZER: &str = "kubernetes";
/// How long finalizers of other parties are given before the next look (finalizerEstimateSeconds).
const FINALIZER_WAIT: Duration = Duration::from_secs(15);
const TERMINATING: &str = "Terminating";

pub(crate) struct NamespaceController {
    context: Context,
    namespaces: Informer<Namespace>,
    pods: Informer<Pod>,
}

/// What the deletion of one resource's objects left behind.
struct Left {
    objects: usize,
    finalizers: BTreeMap<String, usize>,
    wait: Duration,
}

impl NamespaceController {
    pub(crate) fn new(context: Context) -> Self {
        let (namespaces, pods) = (context.informers.of(), context.informers.of());
        Self { context, namespaces, pods }
    }

    pub(crate) fn namespaces(&self) -> &Informer<Namespace> {
        &self.namespaces
    }

    pub(crate) fn pods(&self) -> &Informer<Pod> {
        &self.pods
    }

    async fn empty(&self, namespace: &str, grace_secs: i64) -> Outcome {
        let mut outcome = Outcome::default();
        let served = match discovery::served(&self.context.client).await {
            Ok(served) => served,
            Err(error) => {
                outcome.discovery_error = Some(chain(&error).to_string());
                return outcome;
            }
        };
        let deletable = served.iter().filter(|served| served.namespaced);
        let (pods, others): (Vec<_>, Vec<_>) = deletable.partition(|served| is_pods(served));
        // Pods go first, so that nothing they use is taken from under them (feature OrderedNamespaceDeletion).
        for served in pods {
            self.empty_one(namespace, served, grace_secs, &mut outcome).await;
        }
        if outcome.remaining.is_empty() && outcome.delete_errors.is_empty() {
            for served in others {
                self.empty_one(namespace, served, grace_secs, &mut outcome).await;
            }
        }
        outcome
    }

    async fn empty_one(&self, namespace: &str, served: &Served, grace_secs: i64, outcome: &mut Outcome) {
        match self.delete_all(namespace, served, grace_secs).await {
            Ok(left) => outcome.add(&served.resource, left.objects, left.finalizers, left.wait),
            Err(error) => outcome.delete_errors.push(chain(&error).to_string()),
        }
    }

    async fn delete_all(&self, namespace: &str, served: &Served, grace_secs: i64) -> Result<Left, ReconcileError> {
        let resource = &served.resource;
        let api: Api<DynamicObject> = Api::namespaced_with(self.context.client.clone(), namespace, resource);
        let list = || async {
            let listed = api.list_metadata(&ListParams::default()).await;
            listed.during(|| format!("list {} of namespace {namespace}", resource.plural))
        };
        let found = list().await?;
        if found.items.is_empty() {
            return Ok(Left { objects: 0, finalizers: BTreeMap::new(), wait: Duration::ZERO });
        }
        let params = DeleteParams::background();
        if served.allows("deletecollection") {
            let deleted = api.delete_collection(&params, &ListParams::default()).await;
            deleted.unless_gone(|| format!("delete all {} of namespace {namespace}", resource.plural))?;
        } else {
            for object in &found.items {
                let name = object.name_any();
                let deleted = api.delete(&name, &params).await;
                deleted.unless_gone(|| format!("delete {} {namespace}/{name}", resource.plural))?;
            }
        }
        Ok(left_behind(served, &list().await?.items, grace_secs))
    }

    async fn set_conditions(&self, namespace: &Namespace, outcome: &Outcome) -> Result<Namespace, ReconcileError> {
        let mut namespace = namespace.clone();
        let status = namespace.status.get_or_insert_default();
        let mut changed = status.phase.as_deref() != Some(TERMINATING);
        status.phase = Some(TERMINATING.to_owned());
        for condition in outcome.conditions(&self.context.time()) {
            changed |= crate::condition::set(&mut status.conditions, condition);
        }
        if !changed {
            return Ok(namespace);
        }
        let name = namespace.name_any();
        let api: Api<Namespace> = self.context.cluster_api();
        let written = api.replace_status(&name, &PostParams::default(), &namespace).await;
        written.during(|| format!("write the conditions of namespace {name}"))
    }

    async fn finalize(&self, mut namespace: Namespace) -> Result<(), ReconcileError> {
        let name = namespace.name_any();
        if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        let api: Api<Namespace> = self.context.cluster_api();
        let params = PostParams::default();
        let done = api.replace_subresource("finalize", &name, &params, &namespace).await;
        done.unless_gone(|| format!("finalize namespace {name}")).map(drop)
    }
}

fn is_pods(served: &Served) -> bool {
    served.resource.group.is_empty() && served.resource.plural == "pods"
}

fn left_behind(served: &Served, objects: &[PartialObjectMeta<DynamicObject>], grace_secs: i64) -> Left {
    let mut finalizers = BTreeMap::new();
    for finalizer in objects.iter().flat_map(|object| object.meta().finalizers.iter().flatten()) {
        *finalizers.entry(finalizer.clone()).or_default() += 1;
    }
    let wait = match (objects.is_empty(), finalizers.is_empty()) {
        (true, _) => Duration::ZERO,
        (false, false) => FINALIZER_WAIT,
        (false, true) if is_pods(served) => Duration::from_secs(u64::try_from(grace_secs).unwrap_or(0).max(1)),
        (false, true) => Duration::from_secs(1),
    };
    Left { objects: objects.len(), finalizers, wait }
}

/// Namespaces to look at when a Pod changes: one that waits for the last of its Pods.
pub(crate) fn namespace_of_gone_pod(change: carob_client::Change<'_, Pod>) -> Option<ObjectKey> {
    change.new.is_none().then(|| ObjectKey::cluster(change.key().namespace))
}

impl Reconcile for NamespaceController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "namespace"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.namespaces.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let deleting = |namespace: &Namespace| namespace.metadata.deletion_timestamp.is_some();
        if !self.namespaces.get(None, &key.name).is_some_and(|namespace| deleting(&namespace)) {
            return Ok(Requeue::No);
        }
        let api: Api<Namespace> = self.context.cluster_api();
        let found = api.get_opt(&key.name).await.during(|| format!("get namespace {key}"))?;
        let Some(namespace) = found.filter(deleting) else { return Ok(Requeue::No) };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(Requeue::No);
        }
        let grace_secs = self.longest_grace_secs(&key.name);
        let outcome = self.empty(&key.name, grace_secs).await;
        let namespace = self.set_conditions(&namespace, &outcome).await?;
        if let Some(error) = outcome.error() {
            return Err(ReconcileError::Unusable(format!("namespace {key}: {error}")));
        }
        if !outcome.remaining.is_empty() {
            return Ok(Requeue::After(outcome.wait / 2 + Duration::from_secs(1)));
        }
        self.finalize(namespace).await?;
        Ok(Requeue::No)
    }
}

impl NamespaceController {
    fn longest_grace_secs(&self, namespace: &str) -> i64 {
        let grace = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        self.pods.list_in(namespace).iter().filter_map(|pod| grace(pod)).max().unwrap_or(0)
    }
}
