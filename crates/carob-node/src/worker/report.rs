//! Reports to the API what became of the Pod, one write at a time and only what changed.

use std::sync::Arc;
use std::time::Duration;

use carob_kit::{Backoff, chain};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

use super::steps::Done;
use super::{Shown, Worker};
use crate::api::WriteError;
use crate::events::Subject;
use crate::plan::{Intent, after, spec_hash};
use crate::pod::{PodId, PodView};
use crate::status::patch::{is_owned, status_patch};
use crate::status::status_for;

/// Waits between tries to write while the API does not answer.
const WRITE_RETRY_BASE: Duration = Duration::from_millis(200);
const WRITE_RETRY_MAX: Duration = Duration::from_secs(30);

/// How long news of a Pod that is being started wait for more of them. Most Pods run before that: one write instead of
/// four, each of which every watcher of Pods would be told. (The kubelet's status manager batches as well.)
const STARTING_WAIT: Duration = Duration::from_millis(500);

/// How long news of a container that makes way for another image wait, so that a quick swap shows as one change and does not
/// take the Pod out of service. (The kubelet sees an exit when it next lists containers, up to a second later.)
const REPLACING_WAIT: Duration = Duration::from_secs(1);

/// What the API has been told.
pub(super) struct Report {
    /// The status as last written, or as the API showed it at first.
    written: PodStatus,
    writing: bool,
    retry: Backoff,
    not_before: Option<Timestamp>,
    /// News of a start wait until then.
    held_until: Option<Timestamp>,
    confirming: bool,
    confirmed: bool,
    /// Whether a mirror has ever shown the Pod.
    mirrored: bool,
}

/// How a write of a status ended.
pub(super) struct Wrote {
    /// Of the object that was written.
    uid: String,
    status: PodStatus,
    how: Result<(), WriteError>,
}

impl Report {
    pub(super) fn new(shown: PodStatus) -> Self {
        Self {
            written: shown,
            writing: false,
            retry: Backoff::new(WRITE_RETRY_BASE, WRITE_RETRY_MAX),
            not_before: None,
            held_until: None,
            confirming: false,
            confirmed: false,
            mirrored: false,
        }
    }

    /// From now on another object shows the Pod, at first with this status. Answers whether it is the first mirror.
    pub(super) fn show(&mut self, status: PodStatus) -> bool {
        self.written = status;
        self.not_before = None;
        !std::mem::replace(&mut self.mirrored, true)
    }

    pub(super) fn wake_at(&self) -> Option<Timestamp> {
        [self.not_before, self.held_until].into_iter().flatten().min()
    }

    /// Whether news wait for more, for `wait` at most; `since_before`: until when the first of them do.
    fn hold(&mut self, wait: Duration, since_before: Option<Timestamp>, now: Timestamp) -> bool {
        let until = since_before.unwrap_or_else(|| after(now, wait));
        self.held_until = (now < until).then_some(until);
        self.held_until.is_some()
    }

    pub(super) fn forget_write(&mut self) {
        self.writing = false;
        self.confirming = false;
    }

    /// Takes over what others wrote into the status: their conditions, and a phase that ends the Pod.
    pub(super) fn merge_foreign(mine: &mut PodStatus, theirs: &PodStatus) {
        let own = mine.conditions.take().unwrap_or_default();
        let foreign = theirs.conditions.iter().flatten().filter(|condition| !is_owned(condition)).cloned();
        let own = own.into_iter().filter(is_owned);
        mine.conditions = Some(own.chain(foreign).collect());
        mine.nominated_node_name.clone_from(&theirs.nominated_node_name);
        mine.resource_claim_statuses.clone_from(&theirs.resource_claim_statuses);
        mine.qos_class.clone_from(&theirs.qos_class);
        let ended = |phase: Option<&str>| matches!(phase, Some("Succeeded" | "Failed"));
        if ended(theirs.phase.as_deref()) && !ended(mine.phase.as_deref()) {
            mine.phase.clone_from(&theirs.phase);
            mine.reason.clone_from(&theirs.reason);
            mine.message.clone_from(&theirs.message);
        }
    }

    fn fail(&mut self, now: Timestamp, id: &PodId, error: &WriteError) {
        let delay = self.retry.fail();
        match error {
            // The watch says so too, in a moment, and ends the worker.
            WriteError::Gone(_) => tracing::debug!(pod = %id, ?delay, "the API has no such pod to update"),
            WriteError::Failed { .. } => {
                tracing::warn!(pod = %id, error = %chain(error), ?delay, "the API does not take the pod's status");
            }
        }
        self.not_before = Some(after(now, delay));
    }
}

impl Worker {
    /// Brings the status up to date and writes what of it changed; at the end of a deletion confirms it.
    pub(super) fn report(&mut self, intent: Intent, now: Timestamp) {
        let held_until = self.report.held_until.take();
        if self.stale {
            // Nothing is told from a picture that is known to be old.
            return;
        }
        let mut status = status_for(&self.pod, &self.observed, intent, &self.tools.node_facts(), now);
        self.tools.devices.show(&self.id.uid, &mut status);
        self.announce_back_off(&status);
        if self.pod.status.as_ref() != Some(&status) {
            let seen_for = self.tools.clock.monotonic().saturating_sub(self.seen_at);
            let old = self.pod.status.clone().unwrap_or_default();
            self.tools.figures.changed(&old, &status, seen_for);
            self.set_status(status.clone());
        }
        let may_write = !self.gone && !self.report.writing && self.report.not_before.is_none_or(|at| at <= now);
        let Some(id) = self.shown_as().filter(|_| may_write) else { return };
        self.report.not_before = None;
        let wait = self.wait_for_more(&status, intent);
        if wait.is_some() && held_until.is_some_and(|until| now < until) {
            self.report.held_until = held_until;
            return;
        }
        if let Some(body) = status_patch(&id.uid, &self.report.written, &status) {
            if wait.is_some_and(|wait| self.report.hold(wait, held_until, now)) {
                return;
            }
            self.report.writing = true;
            let tools = Arc::clone(&self.tools);
            self.steps.spawn(async move {
                let how = tools.pods.patch_status(&id, &body).await;
                Done::Wrote(Box::new(Wrote { uid: id.uid, status, how }))
            });
        } else if self.may_confirm() {
            self.report.confirming = true;
            let (tools, id) = (Arc::clone(&self.tools), self.id.clone());
            self.steps.spawn(async move { Done::Confirmed(tools.pods.confirm_deletion(&id).await) });
        }
    }

    /// Steps of a start are under way: what they lead to follows soon, and is worth this wait. A container that runs is not
    /// ready before its start is through.
    fn wait_for_more(&self, status: &PodStatus, intent: Intent) -> Option<Duration> {
        if intent != Intent::Run || !matches!(status.phase.as_deref(), Some("Pending" | "Running")) {
            return None;
        }
        if self.is_replacing() {
            return Some(REPLACING_WAIT);
        }
        let busy = &self.observed.busy;
        let busy = busy.pod || busy.volumes || !busy.starting.is_empty();
        busy.then_some(STARTING_WAIT)
    }

    /// A container is being ended, or has been, because its image changed, and the next one does not run yet.
    fn is_replacing(&self) -> bool {
        let members = PodView::new(&self.pod).app_members();
        members.iter().any(|member| {
            let busy = &self.observed.busy;
            self.observed.newest(member.name()).is_some_and(|run| {
                let under_way = busy.killing.contains_key(&run.id) || busy.starting.contains(member.name());
                under_way && !run.spec_hash.is_empty() && run.spec_hash != spec_hash(member)
            })
        })
    }

    fn may_confirm(&self) -> bool {
        let asked = PodView::new(&self.pod).deletion().is_some();
        asked && self.observed.finished && !self.report.confirming && !self.report.confirmed
    }

    /// The object that the API shows the Pod by; `None` while there is none.
    fn shown_as(&self) -> Option<PodId> {
        match &self.shown {
            Shown::Itself => Some(self.id.clone()),
            Shown::Mirror { uid, .. } => Some(PodId { uid: uid.clone(), ..self.id.clone() }),
            Shown::Nowhere => None,
        }
    }

    pub(super) fn wrote(&mut self, Wrote { uid, status, how }: Wrote) {
        self.report.writing = false;
        if self.shown_as().is_none_or(|shown| shown.uid != uid) {
            // Another object shows the Pod by now, which has been told nothing of it.
            return;
        }
        match how {
            Ok(()) => {
                self.report.retry.reset();
                self.report.written = status;
            }
            Err(error) => self.report.fail(self.tools.clock.now(), &self.id, &error),
        }
    }

    pub(super) fn confirmed(&mut self, how: Result<(), WriteError>) {
        self.report.confirming = false;
        match how {
            Ok(()) | Err(WriteError::Gone(_)) => self.report.confirmed = true,
            Err(error) => self.report.fail(self.tools.clock.now(), &self.id, &error),
        }
    }

    /// One event for each run that ended for want of memory, unless the API shows that end already.
    pub(super) fn announce_out_of_memory(&mut self) {
        let view = PodView::new(&self.pod);
        for run in &self.observed.containers {
            let Some(exit) = run.exit().filter(|exit| exit.reason == "OOMKilled") else { continue };
            if !self.announced_out_of_memory.insert(run.id.clone()) {
                continue;
            }
            let Some(member) = view.member(&run.name) else { continue };
            let shown = view.last_status(&run.name).into_iter().flat_map(|status| [&status.state, &status.last_state]);
            let id = self.tools.node_facts().container_id(&run.id);
            let mut ends = shown.flatten().filter_map(|state| state.terminated.as_ref());
            if ends.any(|end| end.container_id.as_ref() == Some(&id)) {
                continue;
            }
            let message = format!("Container {} ran {}", run.name, exit.message);
            self.tools.events.warning(&Subject::container(&self.pod, &member), "OOMKilled", message);
        }
        self.announced_out_of_memory.retain(|id| self.observed.containers.iter().any(|run| run.id == *id));
    }

    /// One event for each run that waits for its next, when the waiting begins.
    fn announce_back_off(&mut self, status: &PodStatus) {
        let lists = [&status.init_container_statuses, &status.container_statuses];
        for shown in lists.into_iter().flatten().flatten() {
            let waiting = shown.state.as_ref().and_then(|state| state.waiting.as_ref());
            if waiting.and_then(|waiting| waiting.reason.as_deref()) != Some("CrashLoopBackOff") {
                continue;
            }
            let Some(run) = self.observed.newest(&shown.name) else { continue };
            if !self.announced_back_off.insert(run.id.clone()) {
                continue;
            }
            let Some(member) = PodView::new(&self.pod).member(&shown.name) else { continue };
            let message = format!("Back-off restarting failed container {} in pod {}", shown.name, self.id);
            self.tools.events.warning(&Subject::container(&self.pod, &member), "BackOff", message);
        }
        let known = |id: &String| self.observed.containers.iter().any(|run| run.id == *id);
        self.announced_back_off.retain(known);
    }
}
