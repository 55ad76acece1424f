//! Jobs: run Pods until enough of them have succeeded (`pkg/controller/job`).
//!
//! A Pod keeps a finalizer until its end has been counted: first its uid goes into the status as uncounted, then the finalizer
//! goes, then the uid is folded into the counts. Whatever is interrupted, no end is counted twice or lost.

mod decide;
mod indexes;
mod policy;
mod status;
mod tally;
#[cfg(test)]
mod tests;
mod ttl;

use std::sync::Arc;

use carob_client::{
    Change, During, EventKind, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject, reference,
};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, ObjectReference, Pod};
use kube::api::{Api, Patch, PatchParams};
use kube::core::Selector;
use serde_json::json;

use crate::context::Context;
use crate::index::{Index, OwnedBy};
use crate::ownership::{self, Owner, still_owner, version};
use crate::pod_control::{BURST, PodControl, pod_from_template, slow_start};
use crate::pods;
use crate::statuses;
use crate::versions::Versions;
use decide::{Decision, NewPod};
use indexes::INDEX;
use tally::{FINALIZER, INDEX_FAILURES, Tally, Wish, has_finalizer};

pub(crate) use status::finished_at;
pub(crate) use ttl::TtlController;

const INDEX_ENV: &str = "JOB_COMPLETION_INDEX";
/// Characters of a Job's name that a Pod's may begin with, so that index and suffix fit (maxGeneratedNameLength).
const NAME_CHARS_MAX: usize = 58;

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum JobKey {
    Job(ObjectKey),
    /// A Pod with our finalizer, in case its Job is gone.
    Pod(ObjectKey),
}

pub(crate) struct JobController {
    context: Context,
    jobs: Informer<Job>,
    control: PodControl,
    written: Versions,
}

impl JobController {
    pub(crate) fn new(context: Context) -> Self {
        let control = PodControl::new(context.clone(), "job-controller");
        Self { jobs: context.informers.of(), control, context, written: Versions::default() }
    }

    pub(crate) fn jobs(&self) -> &Informer<Job> {
        &self.jobs
    }

    pub(crate) fn pods(&self) -> &Informer<Pod> {
        self.control.pods()
    }

    /// The Job, and with its end the Pods that it leaves behind.
    pub(crate) fn keys_of_job(by_owner: &Index<Pod, OwnedBy>, change: Change<'_, Job>) -> Vec<JobKey> {
        let uid = change.old.filter(|_| change.new.is_none()).and_then(|job| job.metadata.uid.clone());
        let left = uid.map(|uid| by_owner.keys(&OwnedBy::Owner(uid))).unwrap_or_default();
        std::iter::once(JobKey::Job(change.key())).chain(left.into_iter().map(JobKey::Pod)).collect()
    }

    pub(crate) fn keys_of_pod(jobs: &Informer<Job>, change: Change<'_, Pod>) -> Vec<JobKey> {
        let selector = |job: &Job| Selector::try_from(job.spec.as_ref()?.selector.clone()?).ok();
        let mut keys: Vec<JobKey> = ownership::owners_of(jobs, change, selector).into_iter().map(JobKey::Job).collect();
        if let Some(pod) = change.new.filter(|pod| has_finalizer(pod)) {
            let owner = ownership::controller_key::<Job>(&pod.metadata);
            if owner.is_none_or(|owner| jobs.get_key(&owner).is_none()) {
                keys.push(JobKey::Pod(change.key()));
            }
        }
        keys
    }

    /// Pods whose Job is gone lose the finalizer, or they would stay for ever.
    async fn release_orphan(&self, key: &ObjectKey) -> Result<(), ReconcileError> {
        let Some(pod) = self.pods().get_key(key).filter(|pod| has_finalizer(pod)) else { return Ok(()) };
        if let Some(owner) = pods::controller(&pod.metadata) {
            let api: Api<Job> = self.context.api(&key.namespace);
            let job = api.get_opt(&owner.name).await.during(|| format!("get the job of pod {key}"))?;
            if job.is_some_and(|job| job.metadata.uid.as_deref() == Some(&owner.uid)) {
                return Ok(());
            }
        }
        self.release(&pod).await.map(drop)
    }

    /// Takes the finalizer away. Answers the resourceVersion.
    async fn release(&self, pod: &Pod) -> Result<u64, ReconcileError> {
        let key = ObjectKey::of(pod);
        let patch = json!({"metadata": {"uid": pod.metadata.uid, "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
        let api: Api<Pod> = self.context.api(&key.namespace);
        match api.patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            // Replaced by a namesake: the Pod that was meant is gone.
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(0),
            written => {
                let written = written.unless_gone(|| format!("take the finalizer from pod {key}"))?;
                Ok(written.as_ref().map_or(0, version))
            }
        }
    }

    /// The Job's Pods. One that has lost its owner reference is adopted again, with the finalizer; one that no longer matches is
    /// released.
    async fn claim(&self, owner: &Owner, spec: &JobSpec) -> Result<Vec<Arc<Pod>>, ReconcileError> {
        let selector: Selector = match &spec.selector {
            Some(selector) => ownership::selector(selector, &owner.key)?,
            None => return Err(ReconcileError::Unusable(format!("job {} has no selector", owner.key))),
        };
        let candidates = self.context.indexes.pods_by_owner.candidates(&owner.uid, &owner.key.namespace);
        let jobs: Api<Job> = self.context.api(&owner.key.namespace);
        let alive = still_owner(&jobs, owner);
        let pods = self.control.api(owner);
        let claimed = ownership::claim_with(&pods, owner, &selector, candidates, alive, &[FINALIZER]).await?;
        self.control.note_version(owner, claimed.version);
        Ok(claimed.objects)
    }

    async fn act(&self, owner: &Owner, job: &Job, spec: &JobSpec, decision: &Decision) -> Result<(), ReconcileError> {
        let reference = reference(job);
        let victims = &decision.delete;
        let counted = decision.end.as_ref().is_some_and(|end| !end.succeeded);
        let delete = |index: usize| self.delete(owner, &reference, &victims[index], counted);
        let (_, error) = slow_start(victims.len(), delete).await;
        if let Some(error) = error {
            return Err(error);
        }
        let new: Vec<Pod> = decision.create.iter().map(|new| new_pod(owner, spec, new)).collect();
        let create = |index: usize| {
            let pod = &new[index];
            let reference = &reference;
            async move { self.control.create(owner, reference, pod).await.map(drop) }
        };
        let (_, error) = slow_start(new.len(), create).await;
        error.map_or(Ok(()), Err)
    }

    /// Deletes a Pod; one whose end is not to be counted loses its finalizer first.
    async fn delete(
        &self,
        owner: &Owner,
        job: &ObjectReference,
        pod: &Pod,
        counted: bool,
    ) -> Result<(), ReconcileError> {
        if !counted && has_finalizer(pod) {
            let version = self.release(pod).await?;
            self.control.note_version(owner, version);
        }
        self.control.delete(owner, job, pod).await
    }

    async fn write_status(&self, key: &ObjectKey, job: &Job, wanted: Job) -> Result<(), ReconcileError> {
        if statuses::same(&job.status, &wanted.status) {
            return Ok(());
        }
        statuses::write(&self.context, &self.written, key, &wanted).await?;
        self.tell(job, &wanted);
        Ok(())
    }

    /// Events for what the status newly says.
    fn tell(&self, job: &Job, wanted: &Job) {
        for (kind, reason, message) in status::news(job, wanted) {
            let kind = if kind { EventKind::Normal } else { EventKind::Warning };
            self.control.recorder().record(reference(job), kind, &reason, message);
        }
    }

    async fn look_at(&self, key: &ObjectKey) -> Result<Requeue, ReconcileError> {
        self.written.settled(key, &self.jobs).await;
        let Some(job) = self.jobs.get_key(key) else {
            self.written.forget(key);
            self.control.forget(key);
            return Ok(Requeue::No);
        };
        let Some(spec) = job.spec.as_ref().filter(|spec| kept_by_us(spec)) else { return Ok(Requeue::No) };
        let owner = Owner::of(&*job);
        self.control.settled(&owner).await;
        let all = self.claim(&owner, spec).await?;
        let now = self.context.now();
        // A Job that is over, or that waits for its Pods to be collected, does not hold them back.
        if finished_at(&job).is_some() || job.metadata.deletion_timestamp.is_some() {
            return self.release_ended(&owner, &all).await;
        }
        let wish = Wish::of(&job);
        let tally = Tally::new(&wish, &all);
        let decision = decide::decide(&wish, &tally, &all, now);
        let acted = self.act(&owner, &job, spec, &decision).await;
        let wanted = status::after(&wish, &tally, &decision, &self.context.time());
        self.write_status(key, &job, wanted).await?;
        // Only once the status lists them may the finalizers go.
        for pod in tally.to_release.iter().take(BURST) {
            let version = self.release(pod).await?;
            self.control.note_version(&owner, version);
        }
        acted?;
        Ok(decision.look_again.map_or(Requeue::No, Requeue::After))
    }

    /// Takes the finalizer from Pods whose end nobody counts any more.
    async fn release_ended(&self, owner: &Owner, all: &[Arc<Pod>]) -> Result<Requeue, ReconcileError> {
        for pod in all.iter().filter(|pod| has_finalizer(pod) && !pods::is_active(pod)) {
            let version = self.release(pod).await?;
            self.control.note_version(owner, version);
        }
        Ok(Requeue::No)
    }
}

/// Whether the Job is not left to a controller of someone else's (spec.managedBy).
fn kept_by_us(spec: &JobSpec) -> bool {
    spec.managed_by.as_deref().is_none_or(|by| by == "kubernetes.io/job-controller")
}

fn new_pod(owner: &Owner, spec: &JobSpec, new: &NewPod) -> Pod {
    let mut pod = pod_from_template(&spec.template, owner);
    pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
    let Some(index) = new.index else { return pod };
    let base: String = owner.key.name.chars().take(NAME_CHARS_MAX).collect();
    pod.metadata.generate_name = Some(format!("{base}-{index}-"));
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    if let Some(failures) = new.failures {
        annotations.insert(INDEX_FAILURES.to_owned(), failures.to_string());
    }
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    if let Some(pod_spec) = &mut pod.spec {
        pod_spec.hostname.get_or_insert_with(|| format!("{}-{index}", owner.key.name));
        let containers = pod_spec.containers.iter_mut().map(|container| &mut container.env);
        let inits = pod_spec.init_containers.iter_mut().flatten().map(|container| &mut container.env);
        containers.chain(inits).for_each(|env| tell_index(env.get_or_insert_default()));
    }
    pod
}

/// Containers learn their index by a variable, unless the template sets one of that name.
fn tell_index(env: &mut Vec<EnvVar>) {
    if env.iter().any(|variable| variable.name == INDEX_ENV) {
        return;
    }
    let field =
        ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), ..ObjectFieldSelector::default() };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    env.push(EnvVar { name: INDEX_ENV.to_owned(), value_from: Some(source), value: None });
}

impl Reconcile for JobController {
    type Key = JobKey;

    fn name(&self) -> &'static str {
        "job"
    }

    fn subject(&self, key: &JobKey) -> Option<Subject> {
        match key {
            JobKey::Job(key) => self.jobs.subject(key),
            JobKey::Pod(key) => self.pods().subject(key),
        }
    }

    async fn reconcile(&self, key: JobKey) -> Result<Requeue, ReconcileError> {
        match key {
            JobKey::Job(key) => self.look_at(&key).await,
            JobKey::Pod(key) => self.release_orphan(&key).await.map(|()| Requeue::No),
        }
    }
}
