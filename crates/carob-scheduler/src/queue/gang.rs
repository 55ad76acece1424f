//! Gangs in the queue: held until enough members are there, then tried as one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Next, Place, Queue, Unit};
use crate::model::{GangRef, GangSource, PodInfo, PodKey, Str};

/// What a group asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GangSpec {
    /// So many members get a node together, or none does. One: the members need not wait for each other.
    pub min_count: usize,
    /// All members go to one domain of each of these topology keys.
    pub topology: Vec<Str>,
    /// If they can, they go to one domain of the first of these keys where they fit, which is no condition.
    pub preferred: Vec<Str>,
    /// The group's own priority, in place of the highest of its members.
    pub priority: Option<i32>,
    /// Preempting one member preempts all (`disruptionMode: PodGroup`).
    pub disrupt_together: bool,
    /// How long the group waits for its members before it says that it waited too long.
    pub timeout: Option<Duration>,
}

impl Default for GangSpec {
    fn default() -> Self {
        Self {
            min_count: 1,
            topology: Vec::new(),
            preferred: Vec::new(),
            priority: None,
            disrupt_together: false,
            timeout: None,
        }
    }
}

impl GangSpec {
    /// The annotation of a group that names the topology keys it prefers to be within, the most wanted first, separated by
    /// commas: upstream's API has a place for the constraint only.
    pub const PREFERRED_TOPOLOGY: &str = "carob.io/preferred-topology";
    /// So many preferred keys are looked at, the first ones: each costs a look at all nodes per try.
    const PREFERRED_MAX: usize = 4;

    /// The keys that an annotation names.
    pub fn preferred_of(annotation: Option<&str>) -> Vec<Str> {
        let keys = annotation.unwrap_or_default().split(',').map(str::trim).filter(|key| !key.is_empty());
        keys.take(Self::PREFERRED_MAX).map(Str::from).collect()
    }
}

/// Why the Pods of a group are not tried yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GangWait {
    /// The group's object is not there.
    NoGroup { name: Str },
    /// Members are missing.
    Members { name: Str, have: usize, need: usize, overdue: bool },
}

impl GangWait {
    /// What the condition of the members says. The first is upstream's wording (plugins/gangscheduling).
    pub fn message(&self) -> String {
        match self {
            Self::NoGroup { name } => format!("waiting for pod's pod group \"{name}\" to appear in scheduling queue"),
            Self::Members { name, have, need, overdue } => {
                let late = if *overdue { ", longer than its schedule timeout" } else { "" };
                let missing = need.saturating_sub(*have);
                format!(
                    "waiting for minCount pods from a gang to appear in scheduling queue: pod group \"{name}\" has {have} of {need}, {missing} missing{late}"
                )
            }
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Gang {
    spec: Option<GangSpec>,
    /// Members without a node.
    pending: BTreeSet<PodKey>,
    /// Members with a node, by uid.
    placed: BTreeSet<Str>,
    since: Duration,
}

impl Gang {
    /// Whether nothing is known of the group any more.
    fn is_over(&self) -> bool {
        self.pending.is_empty() && self.placed.is_empty() && self.spec.is_none()
    }

    /// A label without an object that describes the group means nothing.
    fn effective(&self, gang: &GangRef) -> Option<GangSpec> {
        match (&self.spec, gang.source) {
            (Some(spec), _) => Some(spec.clone()),
            (None, GangSource::Label) => Some(GangSpec::default()),
            (None, GangSource::Field) => None,
        }
    }
}

impl Queue {
    /// Takes in what a group asks for, or that its object is gone.
    pub fn set_gang(&mut self, gang: &GangRef, spec: Option<GangSpec>, now: Duration) {
        let known = self.gangs.entry(gang.clone()).or_insert_with(|| Gang { since: now, ..Gang::default() });
        let changed = known.spec != spec;
        known.spec = spec;
        if known.is_over() {
            self.gangs.remove(gang);
        } else if changed {
            self.review(gang, now);
        }
    }

    pub fn gang(&self, gang: &GangRef) -> Option<&GangSpec> {
        self.gangs.get(gang)?.spec.as_ref()
    }

    /// A member has a node, or has it no more.
    pub fn set_placed(&mut self, gang: &GangRef, uid: &Str, placed: bool, now: Duration) {
        let known = self.gangs.entry(gang.clone()).or_insert_with(|| Gang { since: now, ..Gang::default() });
        let changed = if placed { known.placed.insert(uid.clone()) } else { known.placed.remove(uid) };
        if known.is_over() {
            self.gangs.remove(gang);
            self.forget(&Unit::Gang(gang.clone()));
        } else if changed {
            self.review(gang, now);
        }
    }

    /// Why a group's Pods are held, if they are.
    pub fn gang_wait(&self, gang: &GangRef, now: Duration) -> Option<GangWait> {
        let known = self.gangs.get(gang)?;
        let name = gang.name.clone();
        let Some(spec) = known.effective(gang) else { return Some(GangWait::NoGroup { name }) };
        let have = known.pending.len() + known.placed.len();
        let overdue = spec.timeout.is_some_and(|timeout| now.saturating_sub(known.since) > timeout);
        (have < spec.min_count).then_some(GangWait::Members { name, have, need: spec.min_count, overdue })
    }

    /// The members of a group that have no node.
    pub(crate) fn members(&self, gang: &GangRef) -> impl Iterator<Item = &Arc<PodInfo>> {
        self.gangs.get(gang).into_iter().flat_map(|known| &known.pending).filter_map(|key| self.pods.get(key))
    }

    pub(super) fn join(&mut self, gang: GangRef, pod: &PodInfo, now: Duration) {
        let known = self.gangs.entry(gang.clone()).or_insert_with(|| Gang { since: now, ..Gang::default() });
        if known.pending.is_empty() && known.placed.is_empty() {
            known.since = now;
        }
        known.pending.insert(pod.key.clone());
        self.review(&gang, now);
    }

    pub(super) fn leave(&mut self, gang: &GangRef, key: &PodKey, now: Duration) {
        let Some(known) = self.gangs.get_mut(gang) else { return };
        known.pending.remove(key);
        if known.is_over() {
            self.gangs.remove(gang);
            self.forget(&Unit::Gang(gang.clone()));
        } else {
            self.review(gang, now);
        }
    }

    /// Decides whether the group is tried as one, its members one by one, or nobody yet.
    fn review(&mut self, gang: &GangRef, now: Duration) {
        let Some(known) = self.gangs.get(gang) else { return };
        let unit = Unit::Gang(gang.clone());
        let pending: Vec<PodKey> = known.pending.iter().cloned().collect();
        let held = |key: &PodKey| self.pods.get(key).is_some_and(|pod| !pod.gates.is_empty());
        let free = pending.iter().filter(|key| !held(key)).count();
        let Some(spec) = known.effective(gang) else {
            self.hold(&unit, &pending);
            return;
        };
        if pending.is_empty() {
            self.forget(&unit);
        } else if free + known.placed.len() < spec.min_count {
            self.hold(&unit, &pending);
        } else if spec.min_count <= 1 && spec.topology.is_empty() && spec.preferred.is_empty() {
            self.forget(&unit);
            self.release(&pending, now);
        } else {
            let priority = spec.priority.or_else(|| self.members(gang).map(|pod| pod.template.priority).max());
            self.hold_singles(&pending);
            self.admit(&unit, priority.unwrap_or(0), now);
        }
    }

    fn admit(&mut self, unit: &Unit, priority: i32, now: Duration) {
        if !self.units.contains_key(unit) {
            self.arrive(unit.clone(), priority, now);
        }
        self.set_priority(unit, priority);
        self.retry(unit, now);
    }

    /// Members that need not wait for each other are tried one by one.
    fn release(&mut self, pending: &[PodKey], now: Duration) {
        for key in pending {
            let Some(pod) = self.pods.get(key).cloned() else { continue };
            let unit = Unit::Pod(key.clone());
            let known = self.units.contains_key(&unit);
            if !known || matches!(self.units.get(&unit), Some(waiting) if waiting.place == Place::Held) {
                self.enter(unit, &pod, known, now);
            }
        }
    }

    fn hold(&mut self, unit: &Unit, pending: &[PodKey]) {
        if self.units.get(unit).is_some_and(|waiting| waiting.place != Place::Out) {
            self.set_place(unit, Place::Held);
        }
        self.hold_singles(pending);
    }

    fn hold_singles(&mut self, pending: &[PodKey]) {
        for key in pending {
            self.forget(&Unit::Pod(key.clone()));
        }
    }

    pub(super) fn gang_work(&self, gang: GangRef) -> Option<Next> {
        let known = self.gangs.get(&gang)?;
        let spec = known.effective(&gang)?;
        let mut pods: Vec<Arc<PodInfo>> = self.members(&gang).filter(|pod| pod.gates.is_empty()).cloned().collect();
        pods.sort_by(|a, b| {
            (std::cmp::Reverse(a.template.priority), a.created, &a.key).cmp(&(
                std::cmp::Reverse(b.template.priority),
                b.created,
                &b.key,
            ))
        });
        Some(Next::Gang { placed: known.placed.len(), spec, pods, gang })
    }
}
