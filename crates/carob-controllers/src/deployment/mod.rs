//! Deployments: roll a template out through ReplicaSets (`pkg/controller/deployment`).

mod rollout;
mod sets;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use carob_client::{
    Change, During, EventKind, EventRecorder, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject,
    reference,
};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Selector;
use serde_json::json;

use crate::context::Context;
use crate::hash::template_hash;
use crate::index::OwnedBy;
use crate::namespaces;
use crate::ownership::{self, Owner, version};
use crate::pods;
use crate::statuses;
use crate::versions::Versions;
use rollout::{Scale, Step};
use sets::{Count, HASH_LABEL, REVISION, Sets, narrow};
use status::Progress;

pub(crate) struct DeploymentController {
    context: Context,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    recorder: EventRecorder,
    written_sets: Versions,
    written_deployments: Versions,
}

impl DeploymentController {
    pub(crate) fn new(context: Context) -> Self {
        Self {
            deployments: context.informers.of(),
            sets: context.informers.of(),
            pods: context.informers.of(),
            recorder: context.recorder("deployment-controller"),
            context,
            written_sets: Versions::default(),
            written_deployments: Versions::default(),
        }
    }

    pub(crate) fn deployments(&self) -> &Informer<Deployment> {
        &self.deployments
    }

    pub(crate) fn sets(&self) -> &Informer<ReplicaSet> {
        &self.sets
    }

    pub(crate) fn pods(&self) -> &Informer<Pod> {
        &self.pods
    }

    pub(crate) fn deployments_of_set(
        deployments: &Informer<Deployment>,
        change: Change<'_, ReplicaSet>,
    ) -> Vec<ObjectKey> {
        ownership::owners_of(deployments, change, |owner| {
            Selector::try_from(owner.spec.as_ref()?.selector.clone()).ok()
        })
    }

    /// A Deployment that recreates waits for the last Pod of its old sets to end.
    pub(crate) fn deployments_of_pod(sets: &Informer<ReplicaSet>, change: Change<'_, Pod>) -> Option<ObjectKey> {
        let pod = change.latest();
        if change.new.is_some_and(|pod| !pods::is_finished(pod)) {
            return None;
        }
        let set = sets.get_key(&ownership::controller_key::<ReplicaSet>(&pod.metadata)?)?;
        ownership::controller_key::<Deployment>(&set.metadata)
    }

    async fn claim(&self, owner: &Owner, deployment: &Deployment) -> Result<Vec<Arc<ReplicaSet>>, ReconcileError> {
        let Some(spec) = &deployment.spec else { return Ok(Vec::new()) };
        let selector = ownership::selector(&spec.selector, &owner.key)?;
        let api: Api<Deployment> = self.context.api(&owner.key.namespace);
        let alive = ownership::still_owner(&api, owner);
        let sets: Api<ReplicaSet> = self.context.api(&owner.key.namespace);
        let candidates = self.context.indexes.sets_by_owner.candidates(&owner.uid, &owner.key.namespace);
        let claimed = ownership::claim(&sets, owner, &selector, candidates, alive).await?;
        self.written_sets.note(&owner.key, claimed.version);
        Ok(claimed.objects)
    }

    /// Whether a Pod of an old set has not ended.
    fn old_pods_running(&self, sets: &Sets) -> bool {
        let uids = sets.old.iter().filter_map(|set| set.metadata.uid.clone());
        let mut pods = uids.flat_map(|uid| self.context.indexes.pods_by_owner.get(&OwnedBy::Owner(uid)));
        pods.any(|pod| !pods::is_finished(&pod))
    }

    /// Brings annotations and minReadySeconds of the new set up to date; answers it as it is then.
    async fn refresh_new(
        &self,
        key: &ObjectKey,
        deployment: &mut Arc<Deployment>,
        sets: &mut Sets,
    ) -> Result<(), ReconcileError> {
        let revision = sets.next_revision();
        let Some(new) = &mut sets.new else { return Ok(()) };
        let mut wanted = (**new).clone();
        let held = wanted.metadata.annotations.take().unwrap_or_default();
        wanted.metadata.annotations = Some(sets::new_set_annotations(deployment, &held, revision));
        if let (Some(set), Some(spec)) = (&mut wanted.spec, &deployment.spec) {
            set.min_ready_seconds = spec.min_ready_seconds;
        }
        if wanted.metadata.annotations != new.metadata.annotations || wanted.spec != new.spec {
            *new = Arc::new(self.replace_set(key, &wanted).await?);
        }
        self.note_revision(key, deployment, new).await
    }

    /// Gives the Deployment the revision of its new set, and `deployment` the metadata it has then.
    async fn note_revision(
        &self,
        key: &ObjectKey,
        deployment: &mut Arc<Deployment>,
        new: &ReplicaSet,
    ) -> Result<(), ReconcileError> {
        let revision = new.metadata.annotations.as_ref().and_then(|annotations| annotations.get(REVISION));
        let held = deployment.metadata.annotations.as_ref().and_then(|annotations| annotations.get(REVISION));
        if revision.is_none() || revision == held {
            return Ok(());
        }
        // With its version, so that nothing but the annotation is new in what comes back: the status is written with that.
        let patch = json!({"metadata": {
            "uid": deployment.metadata.uid,
            "resourceVersion": deployment.metadata.resource_version,
            "annotations": {REVISION: revision},
        }});
        let api: Api<Deployment> = self.context.api(&key.namespace);
        let written = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        let written = written.unless_gone(|| format!("note the revision of deployment {key}"))?;
        self.written_deployments.note(key, written.as_ref().map_or(0, version));
        if let Some(written) = written {
            Arc::make_mut(deployment).metadata = written.metadata;
        }
        Ok(())
    }

    async fn replace_set(&self, key: &ObjectKey, set: &ReplicaSet) -> Result<ReplicaSet, ReconcileError> {
        let name = set.name_any();
        let api: Api<ReplicaSet> = self.context.api(&key.namespace);
        let written = api.replace(&name, &PostParams::default(), set).await;
        let written = written.during(|| format!("update replica set {}/{name}", key.namespace))?;
        self.written_sets.note(key, version(&written));
        Ok(written)
    }

    fn tell_scaled(&self, deployment: &Deployment, name: &str, from: Count, to: Count) {
        let way = if to > from { "up" } else { "down" };
        let message = format!("Scaled {way} replica set {name} from {from} to {to}");
        self.recorder.record(reference(deployment), EventKind::Normal, "ScalingReplicaSet", message);
    }

    async fn scale(&self, key: &ObjectKey, deployment: &Deployment, scale: &Scale) -> Result<(), ReconcileError> {
        let mut set = (*scale.set).clone();
        let from = sets::size(&set);
        set.metadata.annotations.get_or_insert_default().extend(sets::size_annotations(deployment));
        if let Some(spec) = &mut set.spec {
            spec.replicas = Some(narrow(scale.to));
        }
        if set == *scale.set {
            return Ok(());
        }
        self.replace_set(key, &set).await?;
        if from != scale.to {
            self.tell_scaled(deployment, &set.name_any(), from, scale.to);
        }
        Ok(())
    }

    /// Makes the set of the current template. `Ok(None)`: its name is taken by another, and the collision is counted.
    async fn create(
        &self,
        owner: &Owner,
        deployment: &Deployment,
        sets: &Sets,
        replicas: Count,
    ) -> Result<Option<ReplicaSet>, ReconcileError> {
        let Some(set) = new_set(owner, deployment, sets, replicas)? else { return Ok(None) };
        let name = set.name_any();
        let api: Api<ReplicaSet> = self.context.api(&owner.key.namespace);
        match api.create(&PostParams::default(), &set).await {
            Ok(created) => {
                self.written_sets.note(&owner.key, version(&created));
                if replicas > 0 {
                    self.tell_scaled(deployment, &name, 0, replicas);
                }
                Ok(Some(created))
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let held = api.get_opt(&name).await.during(|| format!("get replica set {name}"))?;
                let ours =
                    |held: &ReplicaSet| pods::controller(&held.metadata).is_some_and(|owned| owned.uid == owner.uid);
                match held {
                    Some(held) if ours(&held) && Sets::new(deployment, vec![Arc::new(held.clone())]).new.is_some() => {
                        self.written_sets.note(&owner.key, version(&held));
                        Ok(Some(held))
                    }
                    _ => self.count_collision(&owner.key, deployment).await.map(|()| None),
                }
            }
            Err(error) => Err(error).during(|| format!("create replica set {}/{name}", owner.key.namespace)),
        }
    }

    async fn count_collision(&self, key: &ObjectKey, deployment: &Deployment) -> Result<(), ReconcileError> {
        let mut wanted = deployment.clone();
        let status = wanted.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
        let status = status.clone();
        self.write_status(key, deployment, status).await
    }

    async fn clean(&self, key: &ObjectKey, deployment: &Deployment, sets: &Sets) -> Result<(), ReconcileError> {
        let api: Api<ReplicaSet> = self.context.api(&key.namespace);
        for set in rollout::surplus_history(deployment, sets) {
            let preconditions = Some(Preconditions { uid: set.metadata.uid.clone(), resource_version: None });
            let params = DeleteParams { preconditions, ..DeleteParams::default() };
            let name = set.name_any();
            api.delete(&name, &params).await.unless_gone(|| format!("delete replica set {}/{name}", key.namespace))?;
        }
        Ok(())
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        status: DeploymentStatus,
    ) -> Result<(), ReconcileError> {
        if statuses::same(&deployment.status, &status) {
            return Ok(());
        }
        let mut wanted = deployment.clone();
        wanted.status = Some(status);
        statuses::write(&self.context, &self.written_deployments, key, &wanted).await
    }

    /// Takes one step. Answers what the status should tell of it.
    async fn step(
        &self,
        owner: &Owner,
        deployment: &mut Arc<Deployment>,
        sets: &mut Sets,
    ) -> Result<Progress, ReconcileError> {
        self.refresh_new(&owner.key, deployment, sets).await?;
        let running = self.old_pods_running(sets);
        match rollout::next_step(deployment, sets, running) {
            Step::Nothing => {}
            Step::Scale(scales) => {
                for scale in &scales {
                    self.scale(&owner.key, deployment, scale).await?;
                }
            }
            Step::Create { replicas } => match self.create(owner, deployment, sets, replicas).await {
                Ok(None) => return Ok(Progress::Nothing),
                Ok(Some(created)) => {
                    let name = created.name_any();
                    self.note_revision(&owner.key, deployment, &created).await?;
                    sets.new = Some(Arc::new(created));
                    return Ok(Progress::Created(name));
                }
                Err(error) if error.status().is_some_and(namespaces::is_terminating) => return Ok(Progress::Nothing),
                Err(error) => {
                    let ReconcileError::Request { cause, .. } = &error else { return Err(error) };
                    let progress = Progress::CreateFailed(cause.to_string());
                    let status = status::status(deployment, sets, &progress, self.context.now());
                    self.write_status(&owner.key, deployment, status).await?;
                    return Err(error);
                }
            },
        }
        Ok(sets.new.as_ref().map_or(Progress::Nothing, |new| Progress::Found(new.name_any())))
    }
}

/// The set of the current template, named after its hash.
fn new_set(
    owner: &Owner,
    deployment: &Deployment,
    sets: &Sets,
    replicas: Count,
) -> Result<Option<ReplicaSet>, ReconcileError> {
    let Some(spec) = &deployment.spec else { return Ok(None) };
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let hash = template_hash(&spec.template, collisions)?;
    let mut template: PodTemplateSpec = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let mut annotations = sets::new_set_annotations(deployment, &BTreeMap::new(), sets.next_revision());
    annotations.extend(sets::size_annotations(deployment));
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.clone());
    Ok(Some(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", owner.key.name)),
            namespace: owner.key.namespace().map(str::to_owned),
            labels: Some(labels.clone()),
            annotations: Some(annotations),
            owner_references: Some(vec![owner.reference.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(narrow(replicas)),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }))
}

impl Reconcile for DeploymentController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "deployment"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.deployments.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        self.written_sets.settled(&key, &self.sets).await;
        self.written_deployments.settled(&key, &self.deployments).await;
        let Some(mut deployment) = self.deployments.get_key(&key) else {
            self.written_sets.forget(&key);
            self.written_deployments.forget(&key);
            return Ok(Requeue::No);
        };
        let owner = Owner::of(&*deployment);
        let claimed = self.claim(&owner, &deployment).await?;
        let mut sets = Sets::new(&deployment, claimed);
        let deleting = deployment.metadata.deletion_timestamp.is_some();
        let progress = if deleting { Progress::Nothing } else { self.step(&owner, &mut deployment, &mut sets).await? };
        let now = self.context.now();
        let status = status::status(&deployment, &sets, &progress, now);
        let paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
        if !deleting && (paused || status::is_complete(&deployment, &status)) {
            self.clean(&key, &deployment, &sets).await?;
        }
        let left = status::deadline_left(&deployment, &status, now);
        self.write_status(&key, &deployment, status).await?;
        Ok(left.map_or(Requeue::No, Requeue::After))
    }
}
