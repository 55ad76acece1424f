//! Containers one by one: Swarm, whose affinity constraint strands a Pod on a node that is too small, and Mesos, whose
//! frameworks hold what they were offered until they have enough.

use std::sync::Arc;
use std::time::Duration;

use super::Policy;
use super::scenario::Strategy;
use super::world::{JobId, State, World};
use crate::core::pick;
use crate::model::{PodTemplate, Str};
use crate::snapshot::NodeState;

/// The timer's token for new offers; those of jobs are far below.
const OFFERS: u64 = u64::MAX;

pub(super) struct Hoard {
    strategy: Strategy,
    /// After this long without progress everything is given back and tried again.
    hold: Option<Duration>,
    waiting: Vec<JobId>,
    /// How often each job gave back what it held, so that old timers are told from new ones.
    rounds: Vec<u64>,
    /// Frameworks are offered resources in turn, a container at a time; Swarm's queue is served to the end of a job.
    in_turn: bool,
}

impl Hoard {
    pub(super) fn swarm(strategy: Strategy) -> Self {
        Self { strategy, hold: None, waiting: Vec::new(), rounds: Vec::new(), in_turn: false }
    }

    pub(super) fn mesos(hold: Option<Duration>) -> Self {
        Self { strategy: Strategy::Random, hold, waiting: Vec::new(), rounds: Vec::new(), in_turn: true }
    }

    /// Serves the waiting jobs until none gets any further.
    fn serve(&mut self, world: &mut World) {
        if self.in_turn {
            while self.offer(world) {}
        } else {
            for job in self.waiting.clone() {
                while self.next_container(world, job) {}
            }
        }
        self.waiting.retain(|job| world.jobs[*job].state == State::Waiting);
    }

    /// Offers the next place to a job by chance, and to the others in turn until one takes it.
    fn offer(&mut self, world: &mut World) -> bool {
        let count = self.waiting.len();
        let first = pick(world.dice.next(), count);
        (0..count).any(|turn| self.next_container(world, self.waiting[(first + turn) % count]))
    }

    /// Places the next container of a job, if it can be placed now.
    fn next_container(&mut self, world: &mut World, job: JobId) -> bool {
        if world.jobs[job].state != State::Waiting {
            return false;
        }
        let part = world.jobs[job].held.len();
        let containers = world.templates[world.jobs[job].group].1.len();
        let template = Arc::clone(&world.templates[world.jobs[job].group].1[part % containers]);
        // The first container of a Pod goes anywhere, the others where the first one is.
        let tied =
            (!part.is_multiple_of(containers)).then(|| world.jobs[job].held[part - part % containers].node.clone());
        let Some(node) = self.choose(world, &template, tied.as_ref()) else { return false };
        let pod = world.pod(job, part, &template);
        world.hold(job, pod, &node);
        if world.jobs[job].held.len() == containers * world.pods_of(job) {
            world.start(job);
        } else if part == 0
            && let Some(hold) = self.hold
        {
            self.rounds.resize(self.rounds.len().max(job + 1), 0);
            world.timer(hold, (job as u64) << 32 | self.rounds[job]);
        }
        true
    }

    fn choose(&self, world: &mut World, template: &PodTemplate, tied: Option<&Str>) -> Option<Str> {
        let fits = |node: &NodeState| {
            let (has, used, wants) = (&node.info.allocatable, node.requested(), &template.requests);
            wants.cpu.0 <= (has.cpu - used.cpu).0 && wants.memory.0 <= (has.memory - used.memory).0
        };
        if let Some(tied) = tied {
            let slot = world.snapshot.slot(tied)?;
            return world.snapshot.node(slot).filter(|node| fits(node)).map(|_| tied.clone());
        }
        let candidates: Vec<&NodeState> =
            world.snapshot.nodes().map(|(_, node)| node).filter(|node| fits(node)).collect();
        let rank = |node: &&NodeState| match self.strategy {
            Strategy::Spread => node.pods().len() as i64,
            Strategy::Binpack => (node.info.allocatable.memory - node.requested().memory).0,
            Strategy::Random => 0,
        };
        let least = candidates.iter().map(rank).min()?;
        let best: Vec<Str> =
            candidates.into_iter().filter(|node| rank(node) == least).map(|node| Arc::clone(&node.info.name)).collect();
        let chosen = pick(world.dice.next(), best.len());
        best.into_iter().nth(chosen)
    }
}

impl Policy for Hoard {
    fn arrived(&mut self, world: &mut World, job: JobId) {
        self.waiting.push(job);
        if self.in_turn {
            // Frameworks that come at the same moment are there together when offers go out.
            world.timer(Duration::ZERO, OFFERS);
        } else {
            self.serve(world);
        }
    }

    fn freed(&mut self, world: &mut World) {
        world.counts.retries += self.waiting.len() as u64;
        self.serve(world);
    }

    fn due(&mut self, world: &mut World, token: u64) {
        if token == OFFERS {
            self.serve(world);
            return;
        }
        let Ok(job) = usize::try_from(token >> 32) else { return };
        let round = token & u64::from(u32::MAX);
        if world.jobs[job].state != State::Waiting || self.rounds[job] != round {
            return;
        }
        self.rounds[job] += 1;
        world.counts.retries += 1;
        world.release(job);
        // Whoever gave back stands at the end of the line.
        self.waiting.retain(|other| *other != job);
        self.waiting.push(job);
        self.serve(world);
    }
}
