//! What gangs and their members are told to say: while members are missing, when there is no room, and once they go.

use std::time::Duration;

use carob_client::{EventKind, reference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::act::Nomination;
use super::decide::Done;
use super::{Loop, WRITES_MAX, group_status};
use crate::gang::GangFailure;
use crate::model::{GangRef, GangSource, PodInfo, PodKey};
use crate::queue::GangWait;

/// The gang has its minimum; what found no node are members beyond it.
pub(super) fn is_satisfied(failure: &GangFailure) -> bool {
    failure.scheduled >= failure.min_count
}

impl Loop {
    /// Tells all members why their gang has no nodes. One that was not tried, or could have had a node alone, shares the fate
    /// of the first that found none.
    pub(super) fn explain_gang(&self, failure: &GangFailure, members: &[PodKey], message: &str) {
        let Some((first, why)) = failure.failed.first() else {
            return self.cluster.explanations.put_message(members.iter(), message, self.clock.now());
        };
        let untold = members.iter().filter(|key| !failure.failed.iter().any(|(pod, _)| pod.key == **key));
        self.cluster.explanations.put_for(untold, &first.key, why, message, self.clock.now());
        for (pod, verdict) in &failure.failed {
            self.explain(pod, verdict, message);
            self.actor.warn(pod, message);
        }
        if !is_satisfied(failure) {
            self.tell_group(&failure.gang, first, EventKind::Warning, "FailedScheduling", message);
        }
    }

    /// Why a gang got no nodes, for its condition and its members'.
    pub(super) fn failure_message(&self, failure: &GangFailure) -> String {
        if is_satisfied(failure)
            && let Some((_, why)) = failure.failed.first()
        {
            return why.message();
        }
        let message = failure.message();
        match self.cluster.queue.gang(&failure.gang).map(|spec| spec.topology.join(", ")) {
            Some(keys) if failure.failed.is_empty() && !keys.is_empty() => {
                format!("{message}. no node has the label of the topology: {keys}")
            }
            _ => message,
        }
    }

    /// Records what happened to a group on the group itself.
    pub(super) fn tell_group(&self, gang: &GangRef, member: &PodInfo, kind: EventKind, reason: &str, message: &str) {
        let (namespace, name) = (Some(&*gang.namespace), &*gang.name);
        let group = match gang.source {
            GangSource::Field => {
                let group = self.sources.groups.as_ref().and_then(|groups| groups.get(namespace, name));
                group.map(|group| reference(&*group))
            }
            GangSource::Label => {
                let group = self.sources.label_groups.as_ref().and_then(|groups| groups.get(namespace, name));
                group.map(|group| reference(&*group))
            }
        };
        if let Some(group) = group {
            self.actor.tell(group, member, kind, reason, message);
        }
    }

    /// Writes whether a PodGroup has its nodes; a label's group has a phase instead, see [`Loop::tell_phases`].
    pub(super) fn mark_group(&mut self, gang: &GangRef, placed: bool, message: String) {
        let now = self.clock.now();
        self.write_condition(gang, |old| group_status::scheduled(old, placed, &message, now));
    }

    /// Writes on a PodGroup that all of it goes, since one of its Pods has to make room.
    pub(super) fn mark_disrupted(&mut self, gang: &GangRef, by: &PodInfo) {
        let message = format!("{}: preempting to accommodate a higher priority pod", by.template.scheduler_name);
        let now = self.clock.now();
        self.write_condition(gang, |old| group_status::disrupted(old, &message, now));
    }

    fn write_condition(&mut self, gang: &GangRef, change: impl FnOnce(&[Condition]) -> Option<Condition>) {
        let groups = self.sources.groups.as_ref().filter(|_| gang.source == GangSource::Field);
        let Some(group) = groups.and_then(|groups| groups.get(Some(&gang.namespace), &gang.name)) else { return };
        let old = group.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let Some(condition) = change(old) else { return };
        let (actor, gang) = (self.actor.clone(), gang.clone());
        self.writes.spawn(async move { Done::Wrote(actor.mark_group(&gang, condition).await) });
    }

    /// Writes the phases of those label's groups whose members changed.
    pub(super) fn tell_phases(&mut self) {
        let Some(groups) = self.sources.label_groups.clone() else { return };
        for gang in self.cluster.census.take_changed(WRITES_MAX.saturating_sub(self.writes.len())) {
            let Some(group) = groups.get(Some(&gang.namespace), &gang.name) else { continue };
            let status = self.cluster.census.status(&gang, group.spec.min_member, &group.status, self.clock.now());
            let Some(status) = status else { continue };
            let actor = self.actor.clone();
            self.writes.spawn(async move { Done::Wrote(actor.mark_label_group(&gang, &status).await) });
        }
    }

    /// Says on the group, and on the member that came last, what the group waits for. The other members' conditions are left
    /// as they are, since each arrival would write all of them; who asks about them is told what is so now.
    pub(super) fn tell_held(&mut self, gang: &GangRef, arrived: Option<&PodKey>) {
        let now = self.clock.monotonic();
        let Some(wait) = self.cluster.queue.gang_wait(gang, now) else { return };
        let message = wait.message();
        let members = self.cluster.queue.members(gang).map(|pod| &pod.key);
        self.cluster.explanations.put_message(members, &message, self.clock.now());
        if let Some(key) = arrived {
            self.mark(key, message.clone(), Nomination::Keep);
        }
        self.mark_group(gang, false, message);
        if let Some(timeout) = self.cluster.queue.gang(gang).and_then(|spec| spec.timeout) {
            self.overdue.entry(gang.clone()).or_insert(now.saturating_add(timeout));
        }
    }

    /// When the next held gang will have waited longer than it wants to.
    pub(super) fn next_overdue(&self) -> Option<Duration> {
        self.overdue.values().min().copied()
    }

    /// Has the members of gangs that waited too long say so. Nothing was held for them, so nothing has to be given up.
    pub(super) fn tell_overdue(&mut self) {
        let now = self.clock.monotonic();
        let late: Vec<GangRef> =
            self.overdue.iter().filter(|(_, at)| **at < now).map(|(gang, _)| gang.clone()).collect();
        for gang in late {
            self.overdue.remove(&gang);
            let Some(wait) = self.cluster.queue.gang_wait(&gang, now) else { continue };
            let timeout = self.cluster.queue.gang(&gang).and_then(|spec| spec.timeout);
            if let (GangWait::Members { overdue: false, .. }, Some(timeout)) = (&wait, timeout) {
                // It had its members in between and began to wait again.
                self.overdue.insert(gang, now.saturating_add(timeout));
                continue;
            }
            let members: Vec<PodKey> = self.cluster.queue.members(&gang).map(|pod| pod.key.clone()).collect();
            self.cluster.explanations.put_message(members.iter(), &wait.message(), self.clock.now());
            for key in &members {
                self.mark(key, wait.message(), Nomination::Keep);
            }
        }
    }
}
