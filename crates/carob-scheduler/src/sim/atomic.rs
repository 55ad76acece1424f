//! Whole Pods (as Kubernetes), whole jobs (gangs), and whole jobs within cells by priority (as Borg).

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::Policy;
use super::world::{JobId, State, World};
use crate::gang::{Domain, GangRequest, GangVerdict};
use crate::model::{GangRef, GangSource, PodInfo};
use crate::queue::GangSpec;
use crate::snapshot::NodeSlot;
use crate::verdict::{Preemption, Verdict};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pods,
    Gangs,
    Cells,
}

pub(super) struct Atomic {
    mode: Mode,
    /// Per cell: its nodes.
    cells: Vec<Domain>,
    /// Jobs that wait, the most important and oldest first.
    waiting: BTreeSet<(Reverse<i32>, JobId)>,
}

impl Atomic {
    pub(super) fn pods() -> Self {
        Self { mode: Mode::Pods, cells: Vec::new(), waiting: BTreeSet::new() }
    }

    pub(super) fn gangs() -> Self {
        Self { mode: Mode::Gangs, ..Self::pods() }
    }

    pub(super) fn cells(count: usize, world: &World) -> Self {
        let slots: Vec<NodeSlot> = world.snapshot.nodes().map(|(slot, _)| slot).collect();
        let cell = |cell: usize| Domain::new(slots.iter().copied().skip(cell).step_by(count).collect());
        let cells = (0..count).map(cell).collect();
        Self { mode: Mode::Cells, cells, waiting: BTreeSet::new() }
    }

    /// Tries a job; whether it runs now.
    fn try_job(&mut self, world: &mut World, job: JobId) -> bool {
        let done = match self.mode {
            Mode::Pods => place_pods(world, job),
            Mode::Gangs => place_gang(world, job),
            Mode::Cells => self.place_in_cell(world, job),
        };
        if done {
            world.start(job);
        }
        done
    }

    fn place_in_cell(&mut self, world: &mut World, job: JobId) -> bool {
        let cell = self.cells[job % self.cells.len()].clone();
        let whole = Arc::clone(&world.templates[world.jobs[job].group].0);
        for part in 0..world.pods_of(job) {
            let pod = world.pod(job, part, &whole);
            let seed = world.dice.next();
            let node = match world.core.schedule_within(&pod, &world.snapshot, seed, Some(&cell)) {
                Verdict::Placed(placement) => placement.node,
                Verdict::Unschedulable(verdict) => match verdict.preemption {
                    Preemption::Proposed(plan) if whole.priority > 0 => {
                        self.evict(world, &plan.victims);
                        plan.node
                    }
                    _ => {
                        world.release(job);
                        return false;
                    }
                },
            };
            world.hold(job, pod, &node);
        }
        true
    }

    /// The victims' jobs lose all their places and wait again.
    fn evict(&mut self, world: &mut World, victims: &[Arc<PodInfo>]) {
        let jobs: BTreeSet<JobId> = victims.iter().filter_map(|victim| World::job_of(victim)).collect();
        for job in jobs {
            world.release(job);
            world.counts.preempted += 1;
            let priority = world.scenario.groups[world.jobs[job].group].priority;
            self.waiting.insert((Reverse(priority), job));
        }
    }
}

impl Policy for Atomic {
    fn arrived(&mut self, world: &mut World, job: JobId) {
        if !self.try_job(world, job) {
            let priority = world.scenario.groups[world.jobs[job].group].priority;
            self.waiting.insert((Reverse(priority), job));
        }
    }

    fn freed(&mut self, world: &mut World) {
        // Jobs of one group are alike, so once one finds no room the others need not be tried.
        let mut hopeless: HashSet<(usize, usize)> = HashSet::new();
        for (priority, job) in self.waiting.clone() {
            let cell = if self.cells.is_empty() { 0 } else { job % self.cells.len() };
            let kind = (world.jobs[job].group, cell);
            // A job that holds something differs from the others of its group.
            let partial = !world.jobs[job].held.is_empty();
            if world.jobs[job].state != State::Waiting || (!partial && hopeless.contains(&kind)) {
                continue;
            }
            world.counts.retries += 1;
            if self.try_job(world, job) {
                self.waiting.remove(&(priority, job));
            } else if !partial {
                hopeless.insert(kind);
            }
        }
    }

    fn due(&mut self, _: &mut World, _: u64) {}
}

/// One Pod after the other; those that find a place keep it.
fn place_pods(world: &mut World, job: JobId) -> bool {
    let whole = Arc::clone(&world.templates[world.jobs[job].group].0);
    for part in world.jobs[job].held.len()..world.pods_of(job) {
        let pod = world.pod(job, part, &whole);
        let seed = world.dice.next();
        match world.core.schedule(&pod, &world.snapshot, seed) {
            Verdict::Placed(placement) => world.hold(job, pod, &placement.node),
            Verdict::Unschedulable(_) => return false,
        }
    }
    true
}

/// All Pods or none.
fn place_gang(world: &mut World, job: JobId) -> bool {
    let whole = Arc::clone(&world.templates[world.jobs[job].group].0);
    let count = world.pods_of(job);
    let pods: Vec<_> = (0..count).map(|part| world.pod(job, part, &whole)).collect();
    let gang = GangRef { namespace: "sim".into(), name: job.to_string().into(), source: GangSource::Field };
    let spec = GangSpec { min_count: count, ..GangSpec::default() };
    let seed = world.dice.next();
    let request = GangRequest { gang: &gang, spec: &spec, pods: &pods, placed: 0 };
    match world.core.schedule_gang(request, &mut world.snapshot, seed, &|_, _| Vec::new()) {
        GangVerdict::Placed { placed, .. } => {
            for (pod, placement) in placed {
                world.hold(job, pod, &placement.node);
            }
            true
        }
        GangVerdict::Unschedulable(_) => false,
    }
}
