//! Takes the next decision and starts what it asks for.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use carob_client::{EventKind, ObjectKey, sentence};
use carob_kit::chain;
use tokio::task::JoinError;
use tracing::{debug, warn};

use super::Loop;
use super::act::{Mark, Nomination};
use super::cluster::Place;
use super::error::ActError;
use super::groups::is_satisfied;
use super::inbox::{Changed, Kind};
use super::suspects::{Doing, Judgement};
use crate::figures::Outcome;
use crate::gang::{GangFailure, GangRequest, GangVerdict};
use crate::model::{GangRef, PodInfo, PodKey};
use crate::queue::{ClusterEvent, GangSpec, Next, Unit};
use crate::snapshot::Snapshot;
use crate::verdict::{Placement, Preempt, Preemption, Unschedulable, Verdict};

/// How a write ended.
#[derive(Debug)]
pub(super) enum Done {
    Bound { pod: Arc<PodInfo>, result: Result<(), ActError> },
    Evicted { victim: Arc<PodInfo>, preemptor: Unit, result: Result<(), ActError> },
    Wrote(Result<(), ActError>),
}

impl Loop {
    /// Decides about what is next; nothing to do is `false`.
    pub(super) fn decide_next(&mut self) -> bool {
        let now = self.clock.monotonic();
        let Some(next) = self.cluster.queue.pop(now) else { return false };
        self.seed = self.seed.wrapping_add(1);
        let unit = match &next {
            Next::Pod(pod) => Unit::Pod(pod.key.clone()),
            Next::Gang { gang, .. } => Unit::Gang(gang.clone()),
        };
        if let Judgement::Leave { first } = self.suspects.begin(Doing::Decision(unit.clone()), &self.sources, now) {
            if first {
                self.leave(&next);
            }
            self.cluster.queue.failed(&unit, now);
            return true;
        }
        let (profile, outcome) = match next {
            Next::Pod(pod) => (Arc::clone(&pod.template.scheduler_name), self.decide_pod(&pod, now)),
            Next::Gang { gang, spec, pods, placed } => {
                let profile = pods.first().map(|pod| Arc::clone(&pod.template.scheduler_name)).unwrap_or_default();
                (profile, self.decide_gang(&gang, &spec, &pods, placed, now))
            }
        };
        self.figures.decided(&profile, outcome, self.clock.monotonic().saturating_sub(now));
        self.suspects.end();
        true
    }

    /// Says on Pods that the scheduler leaves them alone.
    fn leave(&self, next: &Next) {
        const MESSAGE: &str =
            "the scheduler panicked each time it decided about this pod, and leaves it alone until it changes";
        match next {
            Next::Pod(pod) => self.actor.warn(pod, MESSAGE),
            Next::Gang { pods, .. } => pods.iter().for_each(|pod| self.actor.warn(pod, MESSAGE)),
        }
    }

    fn decide_pod(&mut self, pod: &Arc<PodInfo>, now: Duration) -> Outcome {
        match self.core.schedule(pod, &self.cluster.snapshot, self.seed) {
            Verdict::Placed(placement) => {
                let outcome = self.assume(pod, &placement);
                if let Some(gang) = &pod.template.gang {
                    self.mark_group(gang, true, String::new());
                }
                outcome
            }
            Verdict::Unschedulable(verdict) => {
                let unit = Unit::Pod(pod.key.clone());
                let message = verdict.message();
                debug!(pod = %pod.key, message, "a pod has no node");
                let nominate = match &verdict.preemption {
                    Preemption::Proposed(plan) => self.preempt(pod, plan, &unit),
                    Preemption::NotEligible(_) => Nomination::Keep,
                    Preemption::Off | Preemption::Useless(_) => {
                        self.cluster.snapshot.withdraw(&pod.uid);
                        Nomination::Clear
                    }
                };
                self.actor.warn(pod, &message);
                self.explain(pod, &verdict, &message);
                self.mark(&pod.key, message, nominate);
                self.cluster.queue.rejected(&unit, verdict.plugins(), now);
                Outcome::Unschedulable
            }
        }
    }

    fn decide_gang(
        &mut self,
        gang: &GangRef,
        spec: &GangSpec,
        pods: &[Arc<PodInfo>],
        placed_before: usize,
        now: Duration,
    ) -> Outcome {
        let unit = Unit::Gang(gang.clone());
        let request = GangRequest { gang, spec, pods, placed: placed_before };
        let queue = &self.cluster.queue;
        let mates = |victim: &PodInfo, snapshot: &Snapshot| {
            let together =
                victim.template.gang.as_ref().filter(|gang| queue.gang(gang).is_some_and(|spec| spec.disrupt_together));
            together.map(|gang| members(gang, snapshot)).unwrap_or_default()
        };
        match self.core.schedule_gang(request, &mut self.cluster.snapshot, self.seed, &mates) {
            GangVerdict::Placed { placed, waiting } => {
                let count = placed.len();
                for (pod, placement) in placed {
                    self.cluster.queue.set_placed(gang, &pod.uid, true, now);
                    self.cluster.queue.remove(&pod.key, now);
                    let _: Outcome = self.assume(&pod, &placement);
                }
                let plugins =
                    waiting.iter().flat_map(|(_, verdict)| verdict.plugins().iter().collect::<Vec<_>>()).collect();
                for (pod, verdict) in waiting {
                    let message = verdict.message();
                    self.explain(&pod, &verdict, &message);
                    self.actor.warn(&pod, &message);
                    self.mark(&pod.key, message, Nomination::Keep);
                }
                let message = format!("{} pods have a node, minCount is {}", placed_before + count, spec.min_count);
                if let Some(first) = pods.first() {
                    self.tell_group(gang, first, EventKind::Normal, "Scheduled", &message);
                }
                self.mark_group(gang, true, message);
                self.cluster.queue.rejected(&unit, plugins, now);
                Outcome::Scheduled
            }
            GangVerdict::Unschedulable(failure) => {
                self.gang_fails(&unit, &failure, now);
                Outcome::Unschedulable
            }
        }
    }

    fn gang_fails(&mut self, unit: &Unit, failure: &GangFailure, now: Duration) {
        let message = self.failure_message(failure);
        debug!(gang = %failure.gang, message, "a gang has no nodes");
        let mut promised: Vec<(PodKey, Nomination)> = Vec::new();
        for (pod, plan) in &failure.preemption {
            promised.push((pod.key.clone(), self.preempt(pod, plan, unit)));
        }
        let members: Vec<PodKey> = self.cluster.queue.members(&failure.gang).map(|pod| pod.key.clone()).collect();
        let otherwise = if failure.pending { Nomination::Keep } else { Nomination::Clear };
        self.explain_gang(failure, &members, &message);
        for key in members {
            let nominate = promised
                .iter()
                .find(|(promised, _)| *promised == key)
                .map_or_else(|| otherwise.clone(), |(_, node)| node.clone());
            if nominate == Nomination::Clear
                && let Some(pod) = self.cluster.queue.pod(&key).cloned()
            {
                self.cluster.snapshot.withdraw(&pod.uid);
            }
            self.mark(&key, message.clone(), nominate);
        }
        if !is_satisfied(failure) {
            self.mark_group(&failure.gang, false, message);
        }
        self.cluster.queue.rejected(unit, failure.plugins(), now);
    }

    /// Counts the Pod on its node from now on, and binds it.
    fn assume(&mut self, pod: &Arc<PodInfo>, placement: &Placement) -> Outcome {
        let plan = match self.core.claim_plan(pod, placement.slot, &self.cluster.snapshot) {
            Ok(plan) => plan,
            Err(reason) => {
                warn!(pod = %pod.key, reason, "the claims of a pod no longer fit its node");
                self.cluster.queue.failed(&Unit::Pod(pod.key.clone()), self.clock.monotonic());
                return Outcome::Error;
            }
        };
        self.cluster.snapshot.withdraw(&pod.uid);
        self.cluster.snapshot.add_pod(Arc::clone(pod), &placement.node);
        if let Some(known) = self.cluster.known.get_mut(&pod.key) {
            known.place = Place::Assumed;
        }
        let (mut actor, pod, node) = (self.actor.clone(), Arc::clone(pod), Arc::clone(&placement.node));
        self.writes.spawn(async move {
            let result = actor.bind(&pod, &node, &plan).await;
            Done::Bound { pod, result }
        });
        Outcome::Scheduled
    }

    /// Promises the room to the Pod and evicts who is in it.
    fn preempt(&mut self, pod: &Arc<PodInfo>, plan: &Preempt, unit: &Unit) -> Nomination {
        self.withdraw_lesser(pod, plan);
        self.cluster.snapshot.nominate(Arc::clone(pod), &plan.node);
        self.figures.preempted(plan.victims.len());
        let mut victims = plan.victims.clone();
        let mut disrupted = HashSet::new();
        for victim in &plan.victims {
            let together = victim
                .template
                .gang
                .as_ref()
                .filter(|gang| self.cluster.queue.gang(gang).is_some_and(|spec| spec.disrupt_together));
            if let Some(gang) = together {
                disrupted.insert(gang.clone());
            }
            let mates = together.map(|gang| members(gang, &self.cluster.snapshot)).unwrap_or_default();
            victims.extend(mates.into_iter().filter(|mate| !plan.victims.contains(mate)));
        }
        let now = self.clock.now();
        for victim in victims.into_iter().filter(|victim| !victim.terminating) {
            self.cluster.evict(&victim);
            let (actor, pod, node, preemptor) =
                (self.actor.clone(), Arc::clone(pod), Arc::clone(&plan.node), unit.clone());
            self.writes.spawn(async move {
                let result = actor.evict(&victim, &pod, &node, now).await;
                Done::Evicted { victim, preemptor, result }
            });
        }
        for gang in &disrupted {
            self.mark_disrupted(gang, pod);
        }
        Nomination::Set(Arc::clone(&plan.node))
    }

    /// Pods of lower priority that were promised room on the node look for another place.
    fn withdraw_lesser(&mut self, pod: &PodInfo, plan: &Preempt) {
        let Some(node) = self.cluster.snapshot.node(plan.slot) else { return };
        let lesser = |other: &&Arc<PodInfo>| other.template.priority < pod.template.priority;
        let lesser: Vec<Arc<PodInfo>> = node.nominated().iter().filter(lesser).cloned().collect();
        for other in lesser {
            self.cluster.snapshot.withdraw(&other.uid);
            let gang = other.template.gang.clone().filter(|_| self.cluster.queue.pod(&other.key).is_some());
            let unit = gang.map_or_else(|| Unit::Pod(other.key.clone()), Unit::Gang);
            self.cluster.queue.activate(&unit, self.clock.monotonic());
            let (actor, key) = (self.actor.clone(), other.key.clone());
            self.writes.spawn(async move { Done::Wrote(actor.clear_nomination(&key).await) });
        }
    }

    pub(super) fn explain(&self, pod: &PodInfo, verdict: &Unschedulable, message: &str) {
        self.cluster.explanations.put(&pod.key, verdict, message, self.clock.now());
    }

    pub(super) fn mark(&mut self, key: &PodKey, message: String, nominate: Nomination) {
        let Some(pod) = self.sources.pods.get(Some(&key.namespace), &key.name) else { return };
        let mark = Mark { pod, message, nominate, now: self.clock.now() };
        let actor = self.actor.clone();
        self.writes.spawn(async move { Done::Wrote(actor.mark(&mark).await) });
    }

    pub(super) fn finished(&mut self, done: Result<Done, JoinError>) {
        let now = self.clock.monotonic();
        match done {
            Ok(Done::Bound { pod, result: Ok(()) }) => {
                // Members of gangs are counted as decisions only: they do not wait one by one.
                if let Some((came, attempts)) = self.cluster.queue.history(&Unit::Pod(pod.key.clone())) {
                    self.figures.bound(now.saturating_sub(came), attempts);
                }
                self.cluster.queue.remove(&pod.key, now);
            }
            Ok(Done::Bound { pod, result: Err(error) }) => self.unbind(&pod, &error, now),
            Ok(Done::Evicted { result: Ok(()), .. } | Done::Wrote(Ok(()))) => {}
            Ok(Done::Evicted { victim, preemptor, result: Err(error) }) => {
                if !error.is_gone() {
                    warn!(error = %sentence(&error), "a victim could not be evicted");
                }
                self.cluster.spare(&victim);
                let key = ObjectKey { namespace: victim.key.namespace.clone(), name: victim.key.name.clone() };
                self.change(&Changed { kind: Kind::Pod, key });
                self.cluster.queue.delay(&preemptor, now);
            }
            Ok(Done::Wrote(Err(error))) => {
                if !error.is_gone() {
                    warn!(error = %sentence(&error), "a status could not be written");
                }
            }
            Err(error) => warn!(error = %chain(&error), "a write of the scheduler ended early"),
        }
    }

    /// The Pod did not get to its node: its room is free again, and it is tried again after a pause.
    fn unbind(&mut self, pod: &Arc<PodInfo>, error: &ActError, now: Duration) {
        if error.is_gone() {
            debug!(pod = %pod.key, "a pod went before it was bound");
        } else {
            warn!(pod = %pod.key, error = %sentence(error), "a pod could not be bound");
            self.actor.warn(pod, &sentence(error));
        }
        let current = self
            .cluster
            .known
            .get_mut(&pod.key)
            .filter(|known| known.info.uid == pod.uid && known.place == Place::Assumed);
        let Some(known) = current else { return };
        known.place = Place::Waiting;
        self.cluster.snapshot.remove_pod(&pod.uid);
        match &pod.template.gang {
            Some(gang) if self.cluster.queue.pod(&pod.key).is_none() => {
                self.cluster.queue.set_placed(gang, &pod.uid, false, now);
                self.cluster.queue.upsert(Arc::clone(pod), now);
                self.cluster.queue.delay(&Unit::Gang(gang.clone()), now);
            }
            _ if error.is_gone() => drop(self.cluster.queue.remove(&pod.key, now)),
            _ => self.cluster.queue.failed(&Unit::Pod(pod.key.clone()), now),
        }
        self.cluster.queue.wake(&ClusterEvent::PodGone(pod), now);
    }
}

/// The Pods of a gang that have a node.
fn members(gang: &GangRef, snapshot: &Snapshot) -> Vec<Arc<PodInfo>> {
    let pods = snapshot.nodes().flat_map(|(_, node)| node.pods());
    pods.filter(|pod| pod.template.gang.as_ref() == Some(gang)).cloned().collect()
}
