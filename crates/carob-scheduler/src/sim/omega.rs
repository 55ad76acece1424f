//! Several schedulers that each decide on a copy of the cluster and commit what they decided, if nothing came between.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Policy;
use super::scenario::Conflict;
use super::world::{JobId, State, World};
use crate::core::Core;
use crate::model::{PodInfo, Str};
use crate::profile::Profile;
use crate::snapshot::Snapshot;
use crate::verdict::Verdict;

/// Pods and the nodes that were chosen for them.
type Transaction = Vec<(Arc<PodInfo>, Str)>;

struct Member {
    core: Core,
    copy: Snapshot,
    /// How much of the world's log the copy has taken in.
    seen: usize,
    queue: VecDeque<JobId>,
    /// What it is deciding on, and what it has decided, to be committed when its thinking is over.
    busy: Option<(JobId, Transaction)>,
}

pub(super) struct Omega {
    members: Vec<Member>,
    conflict: Conflict,
    decision: Duration,
    per_pod: Duration,
    /// Where in the log each node changed last.
    changed: HashMap<Str, usize>,
    noted: usize,
    stuck: Vec<(usize, JobId)>,
}

impl Omega {
    pub(super) fn new(
        schedulers: usize,
        conflict: Conflict,
        decision: Duration,
        per_pod: Duration,
        world: &World,
    ) -> Self {
        let member = || Member {
            core: Core::new(vec![Profile::default_for("default-scheduler")]),
            copy: world.snapshot.clone(),
            seen: 0,
            queue: VecDeque::new(),
            busy: None,
        };
        let members = (0..schedulers).map(|_| member()).collect();
        Self { members, conflict, decision, per_pod, changed: HashMap::new(), noted: 0, stuck: Vec::new() }
    }

    /// Lets a scheduler that is idle begin with its next job.
    fn begin(&mut self, world: &mut World, index: usize) {
        let member = &mut self.members[index];
        if member.busy.is_some() {
            return;
        }
        let Some(job) = member.queue.pop_front() else { return };
        for moved in &world.log[member.seen..] {
            if moved.came {
                member.copy.add_pod(Arc::clone(&moved.pod), &moved.node);
            } else {
                member.copy.remove_pod(&moved.pod.uid);
            }
        }
        member.seen = world.log.len();
        let whole = Arc::clone(&world.templates[world.jobs[job].group].0);
        let mut decided = Vec::new();
        for part in world.jobs[job].held.len()..world.pods_of(job) {
            let pod = world.pod(job, part, &whole);
            let seed = world.dice.next();
            let Verdict::Placed(placement) = member.core.schedule(&pod, &member.copy, seed) else { break };
            member.copy.add_pod(Arc::clone(&pod), &placement.node);
            decided.push((pod, placement.node));
        }
        for (pod, _) in &decided {
            member.copy.remove_pod(&pod.uid);
        }
        let thinking = self.decision + self.per_pod * u32::try_from(world.pods_of(job)).unwrap_or(u32::MAX);
        member.busy = Some((job, decided));
        world.timer(thinking, index as u64);
    }

    /// Notes which nodes changed since this was last called.
    fn note_changes(&mut self, world: &World) {
        for (at, moved) in world.log.iter().enumerate().skip(self.noted) {
            self.changed.insert(moved.node.clone(), at);
        }
        self.noted = world.log.len();
    }

    fn commit(&mut self, world: &mut World, index: usize) {
        self.note_changes(world);
        let Some((job, decided)) = self.members[index].busy.take() else { return };
        world.counts.transactions += 1;
        let seen = self.members[index].seen;
        let wanted = world.pods_of(job) - world.jobs[job].held.len();
        let enough = decided.len() == wanted;
        let mut collided = false;
        for (pod, node) in decided.iter().filter(|_| enough) {
            let conflict = match self.conflict {
                Conflict::Coarse => self.changed.get(node).is_some_and(|at| *at >= seen),
                Conflict::Fine => !has_room(world, pod, node),
            };
            if conflict {
                collided = true;
                break;
            }
        }
        if enough && !collided && all_have_room(world, &decided) {
            for (pod, node) in decided {
                world.hold(job, pod, &node);
            }
            world.start(job);
        } else if enough {
            world.counts.conflicts += 1;
            world.counts.retries += 1;
            self.members[index].queue.push_front(job);
        } else {
            self.stuck.push((index, job));
        }
        self.begin(world, index);
    }
}

fn has_room(world: &World, pod: &PodInfo, node: &Str) -> bool {
    let Some(node) = world.snapshot.slot(node).and_then(|slot| world.snapshot.node(slot)) else { return false };
    let (has, used, wants) = (&node.info.allocatable, node.requested(), &pod.template.requests);
    wants.cpu.0 <= (has.cpu - used.cpu).0 && wants.memory.0 <= (has.memory - used.memory).0
}

/// Whether several Pods of one transaction fit together.
fn all_have_room(world: &World, decided: &Transaction) -> bool {
    let mut wanted: HashMap<&Str, (i64, i64)> = HashMap::new();
    for (pod, node) in decided {
        let sums = wanted.entry(node).or_default();
        sums.0 += pod.template.requests.cpu.0;
        sums.1 += pod.template.requests.memory.0;
    }
    wanted.into_iter().all(|(node, (cpu, memory))| {
        world.snapshot.slot(node).and_then(|slot| world.snapshot.node(slot)).is_some_and(|node| {
            let (has, used) = (&node.info.allocatable, node.requested());
            cpu <= (has.cpu - used.cpu).0 && memory <= (has.memory - used.memory).0
        })
    })
}

impl Policy for Omega {
    fn arrived(&mut self, world: &mut World, job: JobId) {
        let index = job % self.members.len();
        self.members[index].queue.push_back(job);
        self.begin(world, index);
    }

    fn freed(&mut self, world: &mut World) {
        for (index, job) in std::mem::take(&mut self.stuck) {
            if world.jobs[job].state == State::Waiting {
                world.counts.retries += 1;
                self.members[index].queue.push_back(job);
            }
        }
        for index in 0..self.members.len() {
            self.begin(world, index);
        }
    }

    fn due(&mut self, world: &mut World, token: u64) {
        if let Ok(index) = usize::try_from(token) {
            self.commit(world, index);
        }
    }
}
