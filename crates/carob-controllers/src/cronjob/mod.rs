//! CronJobs: make a Job whenever a schedule is due (`pkg/controller/cronjob/cronjob_controllerv2.go`).

use std::sync::Arc;
use std::time::Duration;

use carob_client::{
    Change, During, EventKind, EventRecorder, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Subject,
    reference,
};
use carob_kit::chain;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};

use crate::condition;
use crate::context::Context;
use crate::job::finished_at;
use crate::namespaces;
use crate::ownership::{self, Owner, version};
use crate::pod_control::said;
use crate::pods;
use crate::statuses;
use crate::versions::Versions;
use carob_api::cron::{self, Schedule};

const SCHEDULED_ANNOTATION: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Missed times beyond which the user is warned.
const MISSED_ORDINARY: usize = 100;
/// A moment that is waited past the due time, since timers may fire early (nextScheduleDelta).
const PAST_DUE: Duration = Duration::from_millis(100);

pub(crate) struct CronJobController {
    context: Context,
    cron_jobs: Informer<CronJob>,
    jobs: Informer<Job>,
    recorder: EventRecorder,
    written_jobs: Versions,
    written: Versions,
}

/// What the schedule says.
struct Due {
    /// The time that a Job is to be made for, if any.
    now: Option<Timestamp>,
    next: Option<Duration>,
    zone: TimeZone,
}

impl CronJobController {
    pub(crate) fn new(context: Context) -> Self {
        Self {
            cron_jobs: context.informers.of(),
            jobs: context.informers.of(),
            recorder: context.recorder("cronjob-controller"),
            written_jobs: Versions::default(),
            written: Versions::default(),
            context,
        }
    }

    pub(crate) fn cron_jobs(&self) -> &Informer<CronJob> {
        &self.cron_jobs
    }

    pub(crate) fn jobs(&self) -> &Informer<Job> {
        &self.jobs
    }

    pub(crate) fn cron_jobs_of(cron_jobs: &Informer<CronJob>, change: Change<'_, Job>) -> Vec<ObjectKey> {
        // A CronJob selects nothing: it has what it made.
        ownership::owners_of(cron_jobs, change, |_| None)
    }

    fn tell(&self, cron: &CronJob, kind: EventKind, reason: &str, message: impl Into<String>) {
        self.recorder.record(reference(cron), kind, reason, message);
    }

    /// The status with what became of the Jobs since it was written.
    fn catch_up(&self, cron: &CronJob, own: &[Arc<Job>]) -> CronJobStatus {
        let mut status = cron.status.clone().unwrap_or_default();
        let listed = status.active.take().unwrap_or_default();
        let uid = |job: &Job| job.metadata.uid.clone();
        let is_listed = |job: &Job| listed.iter().any(|reference| reference.uid == uid(job));
        for job in own {
            let ended = finished_at(job).is_some();
            if !ended && !is_listed(job) {
                let message = format!("Saw a job that the controller did not create or forgot: {}", job.name_any());
                self.tell(cron, EventKind::Warning, "UnexpectedJob", message);
            } else if ended && is_listed(job) {
                let kind = ended_as(job);
                let message = format!("Saw completed job: {}, condition: {kind}", job.name_any());
                self.tell(cron, EventKind::Normal, "SawCompletedJob", message);
            }
            let completed = job.status.as_ref().and_then(|status| status.completion_time.clone());
            if completed.is_some() && completed > status.last_successful_time {
                status.last_successful_time = completed;
            }
        }
        let mut active = listed;
        active.retain(|reference| {
            let job = own.iter().find(|job| uid(job) == reference.uid);
            if job.is_none() {
                let message = format!("Active job went missing: {}", reference.name.as_deref().unwrap_or_default());
                self.tell(cron, EventKind::Normal, "MissingJob", message);
            }
            job.is_some_and(|job| finished_at(job).is_none())
        });
        status.active = (!active.is_empty()).then_some(active);
        status
    }

    async fn trim(
        &self,
        key: &ObjectKey,
        cron: &CronJob,
        spec: &CronJobSpec,
        own: &[Arc<Job>],
    ) -> Result<(), ReconcileError> {
        let limits = [
            ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
            ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
        ];
        for (kind, limit) in limits {
            let mut ended: Vec<_> =
                own.iter().filter(|job| finished_at(job).is_some() && ended_as(job) == kind).collect();
            ended.sort_by_key(|job| job.status.as_ref().and_then(|status| status.start_time.clone()));
            let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
            for job in ended.into_iter().take(surplus) {
                self.delete(key, cron, &job.name_any()).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, key: &ObjectKey, cron: &CronJob, job: &str) -> Result<(), ReconcileError> {
        let api: Api<Job> = self.context.api(&key.namespace);
        match api.delete(job, &DeleteParams::background()).await {
            Ok(_) => self.tell(cron, EventKind::Normal, "SuccessfulDelete", format!("Deleted job {job}")),
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => {
                self.tell(cron, EventKind::Warning, "FailedDelete", format!("Deleted job: {}", said(&error)));
                return Err(error).during(|| format!("delete job {}/{job}", key.namespace));
            }
        }
        Ok(())
    }

    /// Reads schedule and time zone; what is wrong with them is told to the user.
    fn schedule(&self, cron: &CronJob, spec: &CronJobSpec) -> Option<(Schedule, TimeZone)> {
        let zone = match spec.time_zone.as_deref() {
            None => TimeZone::UTC,
            Some(name) => match cron::zone(name) {
                Ok(zone) => zone,
                Err(error) => {
                    let message = format!("invalid timeZone: \"{name}\": {}", chain(&error));
                    self.tell(cron, EventKind::Warning, "UnknownTimeZone", message);
                    return None;
                }
            },
        };
        match Schedule::parse(&spec.schedule) {
            Ok(schedule) => Some((schedule, zone)),
            Err(error) => {
                let message = format!("unparseable schedule: \"{}\" : {error}", spec.schedule);
                self.tell(cron, EventKind::Warning, "UnparseableSchedule", message);
                None
            }
        }
    }

    fn due(&self, cron: &CronJob, spec: &CronJobSpec, status: &CronJobStatus, now: Timestamp) -> Option<Due> {
        let (schedule, zone) = self.schedule(cron, spec)?;
        let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
        let mut earliest = status.last_schedule_time.as_ref().map_or(created, |time| time.0);
        if let Some(secs) = spec.starting_deadline_seconds {
            let deadline = Duration::from_secs(u64::try_from(secs).unwrap_or(0));
            earliest = earliest.max(now.checked_sub(deadline).unwrap_or(Timestamp::MIN));
        }
        let due = schedule.last_due(earliest, now, &zone, MISSED_ORDINARY);
        if due.is_some_and(|(_, missed)| missed > MISSED_ORDINARY) {
            let message =
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.tell(cron, EventKind::Warning, "TooManyMissedTimes", message);
        }
        let next = schedule.next(now, &zone).and_then(|next| Duration::try_from(next.duration_since(now)).ok());
        Some(Due { now: due.map(|(time, _)| time), next: next.map(|wait| wait + PAST_DUE), zone })
    }

    /// Makes the Job of a due time, unless the policy is against it.
    async fn start(
        &self,
        key: &ObjectKey,
        cron: &CronJob,
        spec: &CronJobSpec,
        status: &mut CronJobStatus,
        due: Timestamp,
        zone: &TimeZone,
    ) -> Result<(), ReconcileError> {
        let active = status.active.clone().unwrap_or_default();
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell(cron, EventKind::Normal, "JobAlreadyActive", message);
                return Ok(());
            }
            Some("Replace") => {
                for job in &active {
                    self.delete(key, cron, job.name.as_deref().unwrap_or_default()).await?;
                }
                status.active = None;
            }
            _ => {}
        }
        let job = new_job(cron, spec, due, zone);
        let name = job.name_any();
        let api: Api<Job> = self.context.api(&key.namespace);
        match api.create(&PostParams::default(), &job).await {
            Ok(created) => {
                self.written_jobs.note(key, version(&created));
                self.tell(cron, EventKind::Normal, "SuccessfulCreate", format!("Created job {name}"));
                status.active.get_or_insert_default().push(job_reference(&created));
            }
            // Made by us a moment ago, before the status could say so.
            Err(kube::Error::Api(error)) if error.is_already_exists() => {}
            Err(kube::Error::Api(error)) if namespaces::is_terminating(&error) => return Ok(()),
            Err(error) => {
                self.tell(cron, EventKind::Warning, "FailedCreate", format!("Error creating job: {}", said(&error)));
                return Err(error).during(|| format!("create job {}/{name}", key.namespace));
            }
        }
        status.last_schedule_time = Some(Time(due));
        Ok(())
    }

    async fn write_status(&self, key: &ObjectKey, cron: &CronJob, status: CronJobStatus) -> Result<(), ReconcileError> {
        if statuses::same(&cron.status.clone().unwrap_or_default(), &status) {
            return Ok(());
        }
        let wanted = CronJob { status: Some(status), ..cron.clone() };
        statuses::write(&self.context, &self.written, key, &wanted).await
    }
}

fn ended_as(job: &Job) -> &'static str {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.clone());
    if condition::is_true(&conditions, "Failed") { "Failed" } else { "Complete" }
}

fn job_reference(job: &Job) -> ObjectReference {
    ObjectReference { resource_version: job.metadata.resource_version.clone(), ..reference(job) }
}

/// A time in a zone as Go prints it (RFC 3339), where no offset is `Z`.
fn in_zone(time: Timestamp, zone: &TimeZone) -> String {
    let zoned = time.to_zoned(zone.clone());
    let format = if zoned.offset().seconds() == 0 { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
    zoned.strftime(format).to_string()
}

/// The Job of one time; its name holds the time in minutes, so that none is made twice.
fn new_job(cron: &CronJob, spec: &CronJobSpec, due: Timestamp, zone: &TimeZone) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_ANNOTATION.to_owned(), in_zone(due, zone));
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", cron.name_any(), due.as_second() / 60)),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![Owner::of(cron).reference]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

impl Reconcile for CronJobController {
    type Key = ObjectKey;

    fn name(&self) -> &'static str {
        "cronjob"
    }

    fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.cron_jobs.subject(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, ReconcileError> {
        self.written.settled(&key, &self.cron_jobs).await;
        self.written_jobs.settled(&key, &self.jobs).await;
        let Some(cron) = self.cron_jobs.get_key(&key) else {
            self.written.forget(&key);
            self.written_jobs.forget(&key);
            return Ok(Requeue::No);
        };
        let spec = &cron.spec;
        let ours = |job: &Job| {
            pods::controller(&job.metadata).is_some_and(|owner| Some(&owner.uid) == cron.metadata.uid.as_ref())
        };
        let own: Vec<_> = self.jobs.list_in(&key.namespace).into_iter().filter(|job| ours(job)).collect();
        let mut status = self.catch_up(&cron, &own);
        self.trim(&key, &cron, spec, &own).await?;
        let idle = cron.metadata.deletion_timestamp.is_some() || spec.suspend == Some(true);
        let due = if idle { None } else { self.due(&cron, spec, &status, self.context.now()) };
        let started = match &due {
            Some(Due { now: Some(time), zone, .. }) => self.start(&key, &cron, spec, &mut status, *time, zone).await,
            Some(Due { now: None, .. }) | None => Ok(()),
        };
        self.write_status(&key, &cron, status).await?;
        started?;
        Ok(due.and_then(|due| due.next).map_or(Requeue::No, Requeue::After))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_in_its_zone() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let zone = |hours| TimeZone::fixed(jiff::tz::offset(hours));
        assert_eq!(in_zone(at(0), &TimeZone::UTC), "1970-01-01T00:00:00Z");
        assert_eq!(in_zone(at(0), &zone(0)), "1970-01-01T00:00:00Z");
        assert_eq!(in_zone(at(86_400), &zone(2)), "1970-01-02T02:00:00+02:00");
        assert_eq!(in_zone(at(0), &zone(-5)), "1969-12-31T19:00:00-05:00");
    }
}
