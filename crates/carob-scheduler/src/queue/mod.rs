//! Pods that wait for a node: those to try now, those that back off, those that only an event can help, and those held
//! back. A gang waits as one. Time is passed in; nothing here waits.

mod event;
mod gang;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::model::{GangRef, PodInfo, PodKey};
use crate::plugin::{Plugin, PluginSet};

pub use event::ClusterEvent;
use gang::Gang;
pub use gang::{GangSpec, GangWait};

/// The pause after a first failed attempt; it doubles with each further one (podInitialBackoffSeconds).
pub const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
/// The longest pause (podMaxBackoffSeconds).
pub const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// After this long a Pod is tried again though no event seemed to help (podMaxInUnschedulablePodsDuration).
const MAX_UNSCHEDULABLE: Duration = Duration::from_secs(5 * 60);

/// What is tried at once: one Pod, or a gang as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    Pod(PodKey),
    Gang(GangRef),
}

/// The next thing to decide.
#[derive(Clone, Debug)]
pub enum Next {
    Pod(Arc<PodInfo>),
    Gang {
        gang: GangRef,
        spec: GangSpec,
        /// The members without a node, the most important and oldest first.
        pods: Vec<Arc<PodInfo>>,
        /// How many members have a node already.
        placed: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Held back by a scheduling gate, or by a gang that is not complete.
    Held,
    Active,
    Backoff {
        until: Duration,
        /// After an error it waits its time; after a mere rejection it may be tried when there is nothing else to do.
        strict: bool,
    },
    Unschedulable {
        since: Duration,
    },
    /// Handed out by [`Queue::pop`].
    Out,
}

#[derive(Debug)]
struct Waiting {
    place: Place,
    priority: i32,
    /// When it came, and the order among those that came at the same time.
    since: (Duration, u64),
    attempts: u32,
    last_attempt: Duration,
    rejected_by: PluginSet,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Queue {
    pods: HashMap<PodKey, Arc<PodInfo>>,
    units: BTreeMap<Unit, Waiting>,
    gangs: BTreeMap<GangRef, Gang>,
    active: BTreeSet<(Reverse<i32>, (Duration, u64), Unit)>,
    backoff: BTreeSet<(Duration, Unit)>,
    /// By when they became so.
    unschedulable: BTreeSet<(Duration, Unit)>,
    arrivals: u64,
    /// Units that were handed out.
    out: usize,
    initial_backoff: Duration,
    max_backoff: Duration,
}

/// How many units wait, each in its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub active: usize,
    pub backoff: usize,
    pub unschedulable: usize,
    /// By a scheduling gate, or by a gang that is not complete.
    pub held: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self::new(INITIAL_BACKOFF, MAX_BACKOFF)
    }
}

impl Queue {
    pub fn new(initial_backoff: Duration, max_backoff: Duration) -> Self {
        Self {
            pods: HashMap::new(),
            units: BTreeMap::new(),
            gangs: BTreeMap::new(),
            active: BTreeSet::new(),
            backoff: BTreeSet::new(),
            unschedulable: BTreeSet::new(),
            arrivals: 0,
            out: 0,
            initial_backoff,
            max_backoff,
        }
    }

    /// How many Pods wait, in whatever way.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    pub fn counts(&self) -> Counts {
        let (active, backoff, unschedulable) = (self.active.len(), self.backoff.len(), self.unschedulable.len());
        let elsewhere = active + backoff + unschedulable + self.out;
        Counts { active, backoff, unschedulable, held: self.units.len().saturating_sub(elsewhere) }
    }

    /// When a unit came, and how often it was tried.
    pub fn history(&self, unit: &Unit) -> Option<(Duration, u32)> {
        self.units.get(unit).map(|waiting| (waiting.since.0, waiting.attempts))
    }

    /// Whether something is to be tried now.
    pub fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    pub fn pod(&self, key: &PodKey) -> Option<&Arc<PodInfo>> {
        self.pods.get(key)
    }

    /// Adds a Pod that needs a node, or takes in its new version.
    pub fn upsert(&mut self, pod: Arc<PodInfo>, now: Duration) {
        let old = self.pods.insert(pod.key.clone(), Arc::clone(&pod));
        if let Some(old) = &old {
            if old.uid != pod.uid || old.template.gang != pod.template.gang {
                self.detach(old, now);
            } else if old.template == pod.template && old.gates == pod.gates {
                return;
            }
        }
        match &pod.template.gang {
            Some(gang) => self.join(gang.clone(), &pod, now),
            None => self.enter(Unit::Pod(pod.key.clone()), &pod, old.is_some(), now),
        }
    }

    /// Forgets a Pod that has a node, ended, or was deleted.
    pub fn remove(&mut self, key: &PodKey, now: Duration) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(key)?;
        self.detach(&pod, now);
        Some(pod)
    }

    /// The most important and longest waiting thing to decide. It stays known until its outcome is told.
    pub fn pop(&mut self, now: Duration) -> Option<Next> {
        self.tick(now);
        let unit = match self.active.first() {
            Some((_, _, unit)) => unit.clone(),
            None => self.early()?,
        };
        self.set_place(&unit, Place::Out);
        let waiting = self.units.get_mut(&unit)?;
        waiting.attempts += 1;
        waiting.last_attempt = now;
        match unit {
            Unit::Pod(key) => self.pods.get(&key).cloned().map(Next::Pod),
            Unit::Gang(gang) => self.gang_work(gang),
        }
    }

    /// Nothing could take it: it waits for an event that one of these plugins cares about.
    pub fn rejected(&mut self, unit: &Unit, by: PluginSet, now: Duration) {
        if let Some(waiting) = self.units.get_mut(unit).filter(|waiting| waiting.place == Place::Out) {
            waiting.rejected_by = by;
            self.set_place(unit, Place::Unschedulable { since: now });
        }
    }

    /// Something went wrong on the way: it is tried again after its pause.
    pub fn failed(&mut self, unit: &Unit, now: Duration) {
        let Some(waiting) = self.units.get(unit).filter(|waiting| waiting.place == Place::Out) else { return };
        let until = now + self.pause(waiting.attempts);
        self.set_place(unit, Place::Backoff { until, strict: true });
    }

    /// Counts a failed attempt against a unit that was not handed out, and lets it pause.
    pub fn delay(&mut self, unit: &Unit, now: Duration) {
        let Some(waiting) = self.units.get_mut(unit).filter(|waiting| waiting.place != Place::Held) else { return };
        waiting.attempts += 1;
        waiting.last_attempt = now;
        let until = now + self.pause(self.units[unit].attempts);
        self.set_place(unit, Place::Backoff { until, strict: true });
    }

    /// Tries a unit again though nothing in particular helped it.
    pub fn activate(&mut self, unit: &Unit, now: Duration) {
        self.retry(unit, now);
    }

    /// Tells of a change in the cluster, which wakes what it may help.
    pub fn wake(&mut self, event: &ClusterEvent<'_>, now: Duration) {
        let concerned: PluginSet = Plugin::ALL.into_iter().filter(|plugin| event.concerns(*plugin)).collect();
        let helped: Vec<Unit> = self
            .unschedulable
            .iter()
            .map(|(_, unit)| unit)
            .filter(|unit| self.is_helped(unit, event, concerned))
            .cloned()
            .collect();
        for unit in helped {
            self.retry(&unit, now);
        }
    }

    /// Lets those go on whose pause or patience is over.
    pub fn tick(&mut self, now: Duration) {
        while let Some((until, unit)) = self.backoff.first().cloned() {
            if until > now {
                break;
            }
            self.set_place(&unit, Place::Active);
        }
        while let Some((since, unit)) = self.unschedulable.first().cloned() {
            if since + MAX_UNSCHEDULABLE > now {
                break;
            }
            self.retry(&unit, now);
        }
    }

    /// When [`Queue::tick`] has something to do next.
    pub fn deadline(&self) -> Option<Duration> {
        let patience = self.unschedulable.first().map(|(since, _)| *since + MAX_UNSCHEDULABLE);
        self.backoff.first().map(|(until, _)| *until).into_iter().chain(patience).min()
    }

    /// Something in its pause that no error put there, when there is nothing else to do.
    fn early(&self) -> Option<Unit> {
        let eager = |unit: &Unit| {
            matches!(self.units.get(unit), Some(Waiting { place: Place::Backoff { strict: false, .. }, .. }))
        };
        self.backoff.iter().map(|(_, unit)| unit).find(|unit| eager(unit)).cloned()
    }

    fn pause(&self, attempts: u32) -> Duration {
        self.initial_backoff.saturating_mul(1 << attempts.saturating_sub(1).min(30)).min(self.max_backoff)
    }

    /// Puts a unit where it is tried again, now or after the rest of its pause.
    fn retry(&mut self, unit: &Unit, now: Duration) {
        let Some(waiting) = self.units.get(unit) else { return };
        if matches!(waiting.place, Place::Out | Place::Active | Place::Backoff { .. }) {
            return;
        }
        let until = waiting.last_attempt + self.pause(waiting.attempts);
        let place =
            if waiting.attempts == 0 || until <= now { Place::Active } else { Place::Backoff { until, strict: false } };
        self.set_place(unit, place);
    }

    /// A single Pod comes, or comes in a new version.
    fn enter(&mut self, unit: Unit, pod: &PodInfo, known: bool, now: Duration) {
        let gated = !pod.gates.is_empty();
        if !known || !self.units.contains_key(&unit) {
            self.arrive(unit.clone(), pod.template.priority, now);
        }
        let out = matches!(self.units.get(&unit), Some(Waiting { place: Place::Out, .. }));
        if gated {
            self.set_place(&unit, Place::Held);
        } else if !out {
            self.set_priority(&unit, pod.template.priority);
            self.retry(&unit, now);
        }
    }

    fn arrive(&mut self, unit: Unit, priority: i32, now: Duration) {
        self.arrivals += 1;
        let since = (now, self.arrivals);
        let rejected_by = PluginSet::NONE;
        let waiting = Waiting { place: Place::Held, priority, since, attempts: 0, last_attempt: now, rejected_by };
        self.units.insert(unit, waiting);
    }

    fn set_priority(&mut self, unit: &Unit, priority: i32) {
        let Some(place) =
            self.units.get(unit).filter(|waiting| waiting.priority != priority).map(|waiting| waiting.place)
        else {
            return;
        };
        self.set_place(unit, Place::Held);
        if let Some(waiting) = self.units.get_mut(unit) {
            waiting.priority = priority;
        }
        self.set_place(unit, place);
    }

    fn set_place(&mut self, unit: &Unit, place: Place) {
        let Some(waiting) = self.units.get_mut(unit) else { return };
        let old = std::mem::replace(&mut waiting.place, place);
        let rank = (Reverse(waiting.priority), waiting.since);
        match old {
            Place::Active => drop(self.active.remove(&(rank.0, rank.1, unit.clone()))),
            Place::Backoff { until, .. } => drop(self.backoff.remove(&(until, unit.clone()))),
            Place::Unschedulable { since } => drop(self.unschedulable.remove(&(since, unit.clone()))),
            Place::Out => self.out -= 1,
            Place::Held => {}
        }
        match place {
            Place::Active => drop(self.active.insert((rank.0, rank.1, unit.clone()))),
            Place::Backoff { until, .. } => drop(self.backoff.insert((until, unit.clone()))),
            Place::Unschedulable { since } => drop(self.unschedulable.insert((since, unit.clone()))),
            Place::Out => self.out += 1,
            Place::Held => {}
        }
    }

    fn forget(&mut self, unit: &Unit) {
        self.set_place(unit, Place::Held);
        self.units.remove(unit);
    }

    fn detach(&mut self, pod: &PodInfo, now: Duration) {
        self.forget(&Unit::Pod(pod.key.clone()));
        if let Some(gang) = pod.template.gang.clone() {
            self.leave(&gang, &pod.key, now);
        }
    }

    fn is_helped(&self, unit: &Unit, event: &ClusterEvent<'_>, concerned: PluginSet) -> bool {
        let Some(waiting) = self.units.get(unit) else { return false };
        let plugins = || waiting.rejected_by.iter().filter(|plugin| concerned.has(*plugin));
        let helps = |pod: &PodInfo| plugins().any(|plugin| event.helps(plugin, pod));
        match unit {
            Unit::Pod(key) => self.pods.get(key).is_some_and(|pod| helps(pod)),
            Unit::Gang(gang) => self.members(gang).any(|pod| helps(pod)),
        }
    }
}
