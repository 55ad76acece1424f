//! Gangs that wait for members: what their Pods and they themselves say meanwhile.

use std::time::Duration;

use super::Loop;
use super::act::Nomination;
use crate::model::{GangRef, PodKey};
use crate::queue::GangWait;

impl Loop {
    /// Says on the group, and on the member that came last, what the group waits for. The other members' conditions are left
    /// as they are, since each arrival would write all of them; who asks about them is told what is so now.
    pub(super) fn tell_held(&mut self, gang: &GangRef, arrived: Option<&PodKey>) {
        let now = self.clock.monotonic();
        let Some(wait) = self.cluster.queue.gang_wait(gang, now) else { return };
        let message = wait.message();
        for pod in self.cluster.queue.members(gang) {
            self.cluster.explanations.put_message(&pod.key, message.clone(), self.clock.now());
        }
        if let Some(key) = arrived {
            self.mark(key, message.clone(), Nomination::Keep);
        }
        self.mark_group(gang, false, message);
        if let Some(timeout) = self.cluster.queue.gang(gang).and_then(|spec| spec.timeout) {
            self.overdue.entry(gang.clone()).or_insert(now + timeout);
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
                // It had its members in between and began to wait anew.
                self.overdue.insert(gang, now + timeout);
                continue;
            }
            let members: Vec<PodKey> = self.cluster.queue.members(&gang).map(|pod| pod.key.clone()).collect();
            for key in &members {
                self.cluster.explanations.put_message(key, wait.message(), self.clock.now());
                self.mark(key, wait.message(), Nomination::Keep);
            }
        }
    }
}
