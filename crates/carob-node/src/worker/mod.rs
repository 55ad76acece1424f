//! The worker of one Pod: looks, decides, acts, reports; and waits for the next event.
//!
//! Nothing it does blocks it: each step of a plan is a task of its own, and its end is an event. Workers share nothing but
//! their [`Tools`], so no Pod waits for another.

mod kill;
mod probes;
mod report;
mod resize;
mod sandbox;
mod start;
mod steps;
#[cfg(test)]
pub(crate) mod tests;
pub mod tools;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carob_kit::{Backoff, chain};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission::Rejection;
use crate::allocation::{Allocation, Pending};
use crate::events::Subject;
use crate::eviction::EVICTED;
use crate::image::Attempts;
use crate::observe::Observer;
use crate::plan::{Group, Intent, KillReason, Observed, ProbeFacts, Volumes, cycle, plan_pod, spec_hash};
use crate::pod::{PodId, PodView};
use crate::probe::watch::Finding;
use crate::probe::{Answer, Prober};
use crate::shutdown::TERMINATED;
use crate::status::patch::{BY_KUBELET, DISRUPTION};
use crate::status::runtime_id;
use crate::volumes::Mounted;
use steps::Done;
pub use tools::{NetworkRules, Settings, Tools};

/// Waits between tries of a step that failed and has no delay of its own.
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What a worker is told.
#[derive(Debug, Clone)]
pub struct Order {
    pub pod: Arc<Pod>,
    /// The API has no such Pod (any more): end it without asking.
    pub gone: bool,
    /// The Pod asks for other resources than those in `pod`, and does not get them for this reason.
    pub pending: Option<Pending>,
    /// The Pod may not go on, and ends for that.
    pub ending: Option<Ending>,
    pub shown: Shown,
}

impl Order {
    /// To run a Pod of the API as it asks for.
    pub fn new(pod: Arc<Pod>) -> Self {
        Self { pod, gone: false, pending: None, ending: None, shown: Shown::Itself }
    }
}

/// Why the node ends a Pod.
#[derive(Debug, Clone)]
pub struct Ending {
    pub why: Rejection,
    /// When it is to be over at the latest; `None`: when the Pod's own grace is, or what its reason gives it.
    pub by: Option<Timestamp>,
}

/// Where the API shows a Pod, and its status.
#[derive(Debug, Clone, PartialEq)]
pub enum Shown {
    /// By the object that the node has it from.
    Itself,
    /// By an object that the node has made for a static Pod.
    Mirror { uid: String, status: Box<PodStatus> },
    /// A static Pod has no mirror yet.
    Nowhere,
}

impl Shown {
    /// Of the object that stands for a static Pod.
    pub fn uid(&self) -> Option<&str> {
        match self {
            Self::Mirror { uid, .. } => Some(uid),
            Self::Itself | Self::Nowhere => None,
        }
    }
}

/// A kill under way.
struct Killing {
    deadline: Timestamp,
    overtaken: CancellationToken,
}

pub struct Worker {
    tools: Arc<Tools>,
    id: PodId,
    /// When the node first saw the Pod in its present life, by the monotonic clock.
    seen_at: Duration,
    orders: watch::Receiver<Order>,
    wake: Arc<Notify>,
    shutdown: CancellationToken,
    /// The Pod object with the status as the node sees it.
    pod: Arc<Pod>,
    gone: bool,
    observer: Observer,
    observed: Observed,
    /// Something happened that only a look at the runtime tells.
    stale: bool,
    stopping: Option<KillReason>,
    steps: JoinSet<Done>,
    starting: HashMap<String, CancellationToken>,
    killing: HashMap<String, Killing>,
    attempts: Arc<Mutex<Attempts>>,
    mounted: Mounted,
    refreshing: bool,
    /// Tells that an object in the Pod's volumes changed; begun with the volumes.
    volumes_changed: Arc<Notify>,
    watchers: JoinSet<()>,
    probes: probes::Probes,
    findings: mpsc::Receiver<Finding>,
    retry: Backoff,
    /// Not before then, after a step that failed.
    hold_until: Option<Timestamp>,
    sandbox_retry: Backoff,
    announced_back_off: HashSet<String>,
    /// Runs that ended for want of memory, of which an event was written.
    announced_out_of_memory: HashSet<String>,
    /// A resize has been told of that is not through yet.
    resizing: bool,
    report: report::Report,
    shown: Shown,
    /// Where others read the status as it is seen here.
    published: Option<Arc<Mutex<PodStatus>>>,
    /// Whether the Pod is over and has given back all that it held here.
    over: watch::Sender<bool>,
}

impl Worker {
    pub fn new(
        tools: Arc<Tools>,
        orders: watch::Receiver<Order>,
        wake: Arc<Notify>,
        shutdown: CancellationToken,
    ) -> Self {
        let Order { pod, gone, pending, shown, .. } = orders.borrow().clone();
        let id = PodId::of(&pod);
        let observer = Observer::new(Arc::clone(&tools.cri), tools.dirs.clone(), id.clone());
        let (probes, findings) = probes::Probes::new(Prober { cri: Arc::clone(&tools.cri) });
        let report = report::Report::new(pod.status.clone().unwrap_or_default());
        let mut worker = Self {
            seen_at: tools.clock.monotonic(),
            tools,
            id,
            orders,
            wake,
            shutdown,
            pod: Arc::clone(&pod),
            gone,
            observer,
            observed: Observed::default(),
            stale: true,
            stopping: None,
            steps: JoinSet::new(),
            starting: HashMap::new(),
            killing: HashMap::new(),
            attempts: Arc::default(),
            mounted: Mounted::default(),
            refreshing: false,
            volumes_changed: Arc::default(),
            watchers: JoinSet::new(),
            probes,
            findings,
            retry: Backoff::new(RETRY_BASE, RETRY_MAX),
            hold_until: None,
            sandbox_retry: Backoff::new(RETRY_BASE, RETRY_MAX),
            announced_back_off: HashSet::new(),
            announced_out_of_memory: HashSet::new(),
            resizing: false,
            report,
            shown: Shown::Itself,
            published: None,
            over: watch::Sender::new(false),
        };
        worker.adopt(&pod);
        worker.take_pending(pending);
        worker.take_shown(shown);
        worker
    }

    /// Has the status be read by others too.
    pub fn publish_to(&mut self, place: Arc<Mutex<PodStatus>>) {
        self.published = Some(place);
    }

    /// Where others learn that the Pod is over and holds nothing any more.
    pub fn show_over_in(&mut self, over: watch::Sender<bool>) {
        self.over = over;
    }

    /// Takes over what an earlier life of the node left: verdicts of probes, a deletion that has begun, and perhaps a resize.
    fn adopt(&mut self, pod: &Pod) {
        let view = PodView::new(pod);
        if let Some(deletion) = view.deletion() {
            let began = deletion.checked_sub(view.grace()).unwrap_or(deletion);
            self.stopping = Some(KillReason::PodDeleted);
            self.observed.stopping_since = Some(began.min(self.tools.clock.now()));
        }
        if pod.status.as_ref().is_some_and(|status| status.start_time.is_some()) {
            self.observed.resize.group = Group::Open;
        }
        self.remember_probes(&view);
        if self.gone {
            self.mark_deleted();
        }
    }

    /// Takes over the verdicts of probes that the status shows, but where there are newer ones.
    fn remember_probes(&mut self, view: &PodView<'_>) {
        for member in view.members() {
            let Some(shown) = view.last_status(member.name()) else { continue };
            let id = shown.container_id.as_deref().and_then(runtime_id);
            if let Some(id) = id {
                let facts = self.observed.probes.entry(id.to_owned()).or_default();
                *facts = facts.or(remembered(shown));
            }
        }
    }

    /// Fails the Pod: before anything of it has started, or because it may not go on.
    pub fn reject(&mut self, rejection: Rejection) {
        let mut status = self.pod.status.clone().unwrap_or_default();
        self.tools.events.warning(&Subject::pod(&self.pod), &rejection.reason, rejection.message.clone());
        if [EVICTED, TERMINATED].contains(&&*rejection.reason) && status.start_time.is_some() {
            let now = Time(crate::status::whole_seconds(self.tools.clock.now()));
            let conditions = status.conditions.get_or_insert_default();
            conditions.retain(|condition| condition.type_ != DISRUPTION);
            conditions.push(PodCondition {
                type_: DISRUPTION.to_owned(),
                status: "True".to_owned(),
                reason: Some(BY_KUBELET.to_owned()),
                message: Some(rejection.message.clone()),
                last_transition_time: Some(now),
                observed_generation: self.pod.metadata.generation,
                ..PodCondition::default()
            });
        }
        status.phase = Some("Failed".to_owned());
        status.reason = Some(rejection.reason.into_owned());
        status.message = Some(rejection.message);
        self.set_status(status);
    }

    /// Works until the Pod is gone from the API and from the machine, or the node shuts down.
    pub async fn run(mut self) {
        while !self.shutdown.is_cancelled() {
            if self.stale {
                self.look().await;
            }
            let now = self.tools.clock.now();
            let plan = plan_pod(&self.pod, &self.observed, now);
            self.note_intent(plan.intent, now);
            if self.hold_until.is_none_or(|until| until <= now) {
                self.carry_out(plan.actions);
            }
            self.sync_probes(plan.intent, now);
            self.refresh_volumes(plan.intent, now);
            self.report(plan.intent, now);
            let over = self.observed.finished && self.steps.is_empty();
            self.over.send_if_modified(|shown| std::mem::replace(shown, over) != over);
            if self.gone && self.observed.finished && self.steps.is_empty() {
                match sandbox::clean(&self.tools, &self.id).await {
                    Ok(()) => {
                        self.tools.probe_counts.forget(&self.id.uid);
                        return;
                    }
                    Err(error) => self.hold(&error, "clean up after the pod"),
                }
            }
            self.wait(plan.wake_at).await;
        }
    }

    async fn look(&mut self) {
        let members = PodView::new(&self.pod).members().len();
        match self.observer.look(members).await {
            Ok(seen) => {
                self.stale = false;
                self.observed.sandbox = seen.sandbox;
                self.observed.older_sandboxes = seen.older_sandboxes;
                self.observed.cycle = cycle(&PodView::new(&self.pod), &seen.containers);
                self.observed.containers = seen.containers;
                self.announce_out_of_memory();
                let known = |id: &String| self.observed.containers.iter().any(|container| container.id == *id);
                let forgotten: Vec<_> = self.observed.probes.keys().filter(|id| !known(id)).cloned().collect();
                for id in forgotten {
                    self.observed.probes.remove(&id);
                }
            }
            Err(error) => self.hold(&error, "look at the pod"),
        }
    }

    /// Remembers since when the Pod is being ended, and for what; a deletion overrides other reasons.
    fn note_intent(&mut self, intent: Intent, now: Timestamp) {
        let Intent::Stop { reason, .. } = intent else { return };
        if self.stopping.is_none() || (reason == KillReason::PodDeleted && self.stopping != Some(reason)) {
            self.stopping = Some(reason);
            self.observed.stopping_since = Some(now);
        }
        for stop in self.starting.values() {
            stop.cancel();
        }
    }

    fn sync_probes(&mut self, intent: Intent, now: Timestamp) {
        let stopping = matches!(intent, Intent::Stop { .. });
        let pod_ips = self.observed.sandbox.as_ref().map(|sandbox| sandbox.ips.clone()).unwrap_or_default();
        let pod_ip = self.tools.field_facts(&self.pod, &pod_ips).pod_ips.first().copied();
        let pod = Arc::clone(&self.pod);
        self.probes.sync(&PodView::new(&pod), &self.observed, pod_ip, stopping, now);
    }

    /// After a failure: tells of it and lets some time pass before anything is tried again.
    fn hold(&mut self, error: &(dyn std::error::Error + 'static), what: &str) {
        let delay = self.retry.fail();
        tracing::warn!(pod = %self.id, error = %chain(error), ?delay, "failed to {what}, will be tried again");
        self.hold_until = Some(crate::plan::after(self.tools.clock.now(), delay));
    }

    async fn wait(&mut self, wake_at: Option<Timestamp>) {
        let now = self.tools.clock.now();
        let held = self.hold_until.filter(|until| *until > now);
        // While held, a wake-up of the plan would only spin.
        let times = [if held.is_some() { held } else { wake_at }, self.report.wake_at(), self.refresh_at()];
        let next = times.into_iter().flatten().min();
        let sleep = next.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO));
        // Every arm is cancel safe: what is not taken stays where it is.
        tokio::select! {
            Some(done) = self.steps.join_next() => match done {
                Ok(done) => self.done(done),
                Err(error) => self.lost_step(&error),
            },
            changed = self.orders.changed() => match changed {
                Ok(()) => self.take_order(),
                // Whoever gives orders is gone: so is the node.
                Err(_) => self.shutdown.cancel(),
            },
            () = self.wake.notified() => self.stale = true,
            () = self.volumes_changed.notified() => self.mounted.refresh_at = Some(self.tools.clock.now()),
            Some(finding) = self.findings.recv() => self.found(finding),
            () = sleep_for(sleep) => self.stale |= self.hold_until.is_some_and(|until| until <= self.tools.clock.now()),
            () = self.shutdown.cancelled() => {}
        }
    }

    fn take_order(&mut self) {
        let Order { pod, gone, pending, ending, shown } = self.orders.borrow_and_update().clone();
        if PodId::of(&pod) != self.id {
            return;
        }
        let changed = pod.metadata.labels != self.pod.metadata.labels
            || pod.metadata.annotations != self.pod.metadata.annotations
            || !Allocation::asked(&self.pod).is_asked(&pod);
        self.take_pending(pending);
        self.take_shown(shown);
        self.forget_other_images(&pod);
        self.adopt_object(&pod);
        self.mounted.refresh_at = if changed { Some(self.tools.clock.now()) } else { self.mounted.refresh_at };
        if let Some(Ending { why, by }) = ending {
            self.observed.end_by = by;
            if !PodView::new(&self.pod).is_terminal() {
                self.reject(why);
            }
        }
        self.gone |= gone;
        if self.gone {
            self.mark_deleted();
        }
    }

    /// A start that failed, or is under way, for an image that the spec no longer names has no bearing on the next one.
    fn forget_other_images(&mut self, fresh: &Pod) {
        let (before, after) = (PodView::new(&self.pod), PodView::new(fresh));
        for member in after.members() {
            let name = member.name();
            if before.member(name).is_some_and(|old| spec_hash(&old) != spec_hash(&member)) {
                self.observed.start_failures.remove(name);
                if let Some(stop) = self.starting.get(name) {
                    stop.cancel();
                }
            }
        }
    }

    /// Takes the object from the API, but for what the node itself knows better: its own part of the status.
    fn adopt_object(&mut self, fresh: &Arc<Pod>) {
        let mut pod = Pod::clone(fresh);
        let theirs = pod.status.take().unwrap_or_default();
        let mut mine = self.pod.status.clone().unwrap_or_default();
        report::Report::merge_foreign(&mut mine, &theirs);
        pod.status = Some(mine);
        self.pod = Arc::new(pod);
    }

    /// A mirror that was just made shows nothing yet; one of an earlier life of the node remembers what this one cannot know:
    /// since when things are as they are.
    fn take_shown(&mut self, shown: Shown) {
        if self.shown.uid() == shown.uid() && !matches!((&self.shown, &shown), (Shown::Itself, Shown::Nowhere)) {
            return;
        }
        if let Shown::Mirror { status, .. } = &shown {
            let first = self.report.show(PodStatus::clone(status));
            let older = |time: &PodStatus| time.start_time.as_ref().map(|time| time.0);
            let own = self.pod.status.clone().unwrap_or_default();
            let runs = !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
            if first && runs && older(status).is_some_and(|theirs| older(&own).is_none_or(|mine| theirs < mine)) {
                self.set_status(PodStatus::clone(status));
                let pod = Arc::clone(&self.pod);
                self.remember_probes(&PodView::new(&pod));
                self.stale = true;
            }
        }
        self.shown = shown;
    }

    fn set_status(&mut self, status: PodStatus) {
        if let Some(place) = &self.published {
            // Whoever panicked while holding it had nothing to change.
            *place.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = status.clone();
        }
        Arc::make_mut(&mut self.pod).status = Some(status);
    }

    /// A Pod that the API has no more is ended as if its deletion gave it no time (kubelet `calculateEffectiveGracePeriod`).
    fn mark_deleted(&mut self) {
        let now = self.tools.clock.now();
        let meta = &mut Arc::make_mut(&mut self.pod).metadata;
        if meta.deletion_timestamp.is_none() {
            meta.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
            meta.deletion_grace_period_seconds = Some(0);
        }
    }

    fn found(&mut self, finding: Finding) {
        let pod = Arc::clone(&self.pod);
        let name =
            self.observed.containers.iter().find(|run| run.id == finding.container_id).map(|run| run.name.clone());
        let Some(member) = name.and_then(|name| PodView::new(&pod).member(&name)) else { return };
        self.tools.probe_counts.note(&self.id, member.name(), finding.kind, &finding.answer, finding.took);
        let subject = Subject::container(&pod, &member);
        let word = finding.kind.word();
        match &finding.answer {
            Answer::Success => {}
            Answer::Warning(why) => {
                self.tools.events.warning(&subject, "ProbeWarning", format!("{word} probe warning: {why}"));
            }
            Answer::Failure(why) => {
                self.tools.events.warning(&subject, "Unhealthy", format!("{word} probe failed: {why}"));
            }
            Answer::NotAsked(why) => {
                self.tools.events.warning(&subject, "Unhealthy", format!("{word} probe errored: {why}"));
            }
        }
        if let Some(verdict) = finding.verdict {
            let facts = self.observed.probes.entry(finding.container_id).or_default();
            probes::note(facts, finding.kind, verdict);
        }
    }

    fn volumes_mounted(&self) -> bool {
        self.observed.volumes == Volumes::Mounted
    }
}

/// What the API shows of a container's probes: `started` and `ready` are all that is ever shown of them.
fn remembered(shown: &ContainerStatus) -> ProbeFacts {
    let yes = |flag: bool| flag.then_some(true);
    ProbeFacts { startup: yes(shown.started == Some(true)), liveness: None, readiness: yes(shown.ready) }
}

pub(crate) async fn sleep_for(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}
