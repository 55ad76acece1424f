//! Deletes Jobs a while after they ended, where they ask for it (`pkg/controller/ttlafterfinished`).

use std::time::Duration;

use carob_client::{During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, DeleteParams, Preconditions};

use super::finished_at;
use crate::context::Context;

pub(crate) struct TtlController {
    context: Context,
    jobs: Informer<Job>,
}

impl TtlController {
    pub(crate) fn new(context: Context) -> Self {
        Self { jobs: context.informers.of(), context }
    }

    pub(crate) fn jobs(&self) -> &Informer<Job> {
        &self.jobs
    }
}

/// How long the Job is still to be kept; `None` if it is not to be deleted at all.
fn left(job: &Job, now: Timestamp) -> Option<Duration> {
    let secs = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let end = finished_at(job)?.checked_add(Duration::from_secs(u64::try_from(secs).unwrap_or(0))).ok()?;
    Some(Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO))
}

impl Reconcile for TtlController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "ttl-after-finished-controller"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.jobs.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        let job = self.jobs.get_key(&key).filter(|job| job.metadata.deletion_timestamp.is_none());
        let Some(job) = job else { return Ok(Requeue::No) };
        match left(&job, self.context.now()) {
            None => Ok(Requeue::No),
            Some(left) if !left.is_zero() => Ok(Requeue::After(left)),
            Some(_) => {
                // At the version that was looked at: its time may have been extended since.
                let preconditions = Preconditions {
                    uid: job.metadata.uid.clone(),
                    resource_version: job.metadata.resource_version.clone(),
                };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::foreground() };
                let api: Api<Job> = self.context.api(&key.namespace);
                api.delete(&key.name, &params).await.unless_gone(|| format!("delete job {key}"))?;
                Ok(Requeue::No)
            }
        }
    }
}
