//! The virtual cluster: time, jobs, who holds what, and what that cost.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use super::report::{Outcome, Sample, Span};
use super::scenario::{Arrivals, PolicyKind, Scenario};
use crate::core::Core;
use crate::model::{Bytes, MilliCpu, NodeInfo, PodInfo, PodKey, PodTemplate, Resources, Str};
use crate::profile::Profile;
use crate::snapshot::Snapshot;

/// Pods that a virtual node takes: more than fit by size.
const PODS_PER_NODE: i64 = 100_000;
/// So many moments of a run are kept for its picture, at even distances.
const SAMPLES: u32 = 800;
/// Spans on nodes that are kept for the picture of a run with few nodes.
const SPANS: usize = 5_000;

pub(super) type JobId = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// The job that started at this time is done, unless it was interrupted since.
    Finish(JobId, Duration),
    Due(u64),
    Arrive(JobId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not all parts have a place; those that do hold it for nothing.
    Waiting,
    Running,
    Done,
}

/// A part of a job that has a place.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) pod: Arc<PodInfo>,
    pub(super) node: Str,
    since: Duration,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) group: usize,
    pub(super) arrived: Duration,
    pub(super) started: Option<Duration>,
    pub(super) state: State,
    pub(super) held: Vec<Held>,
    duration: Option<Duration>,
}

/// A Pod that came to a node, or left it.
#[derive(Clone, Debug)]
pub(super) struct Moved {
    pub(super) pod: Arc<PodInfo>,
    pub(super) node: Str,
    pub(super) came: bool,
}

/// Random numbers by the scenario's seed (SplitMix64).
#[derive(Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From an exponential distribution with this mean.
    fn exponential(&mut self, mean: Duration) -> Duration {
        let uniform = ((self.next() >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        mean.mul_f64(-uniform.ln())
    }
}

/// What is counted while a run goes on. Amounts are byte-seconds.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) conflicts: u64,
    pub(super) transactions: u64,
    pub(super) retries: u64,
    pub(super) preempted: u64,
    wasted: f64,
    useful: f64,
}

pub(super) struct World {
    pub(super) now: Duration,
    pub(super) snapshot: Snapshot,
    pub(super) core: Core,
    pub(super) jobs: Vec<Job>,
    pub(super) dice: Dice,
    pub(super) counts: Counts,
    pub(super) scenario: Scenario,
    /// Per group: the template of a whole Pod, and of each container of one.
    pub(super) templates: Vec<(Arc<PodTemplate>, Vec<Arc<PodTemplate>>)>,
    /// Every change of who holds what, for schedulers that work on copies.
    pub(super) log: Vec<Moved>,
    /// Whether the log is read by anyone.
    logged: bool,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    sequence: u64,
    capacity: i64,
    /// Memory in use for work, and held for nothing.
    in_use: (i64, i64),
    last: Duration,
    samples: Vec<Sample>,
    spans: Vec<Span>,
}

fn resources(amounts: super::Amounts) -> Resources {
    Resources::new(MilliCpu(amounts.milli_cpu), Bytes(amounts.memory))
}

fn template(resources: Resources, priority: i32) -> Arc<PodTemplate> {
    let mut template = PodTemplate::plain("sim", resources);
    template.priority = priority;
    Arc::new(template)
}

impl World {
    pub(super) fn new(scenario: &Scenario, logged: bool) -> Self {
        let mut snapshot = Snapshot::default();
        let mut capacity = 0;
        for kind in &scenario.nodes {
            for number in 0..kind.count {
                let name = if kind.count == 1 { kind.name.clone() } else { format!("{}-{number}", kind.name) };
                let mut info = NodeInfo::new(&name, resources(kind.size), PODS_PER_NODE);
                info.labels = [("kubernetes.io/hostname", name.as_str())].into_iter().collect();
                snapshot.set_node(info);
                capacity += kind.size.memory;
            }
        }
        let templates = scenario.groups.iter().map(|group| {
            let mut whole = Resources::default();
            group.containers.iter().for_each(|container| whole.add(&resources(*container)));
            let parts =
                group.containers.iter().map(|container| template(resources(*container), group.priority)).collect();
            (template(whole, group.priority), parts)
        });
        let mut world = Self {
            now: Duration::ZERO,
            snapshot,
            core: Core::new(vec![Profile::default_for("default-scheduler")]),
            jobs: Vec::new(),
            dice: Dice(scenario.seed),
            counts: Counts::default(),
            templates: templates.collect(),
            scenario: scenario.clone(),
            log: Vec::new(),
            logged,
            events: BinaryHeap::new(),
            sequence: 0,
            capacity,
            in_use: (0, 0),
            last: Duration::ZERO,
            samples: Vec::new(),
            spans: Vec::new(),
        };
        world.plan_arrivals();
        world
    }

    fn plan_arrivals(&mut self) {
        for (index, group) in self.scenario.groups.clone().into_iter().enumerate() {
            let mut at = Duration::ZERO;
            for number in 0..group.jobs {
                match group.arrivals {
                    Arrivals::At(moment) => at = moment,
                    Arrivals::Every(pause) => at = pause * u32::try_from(number).unwrap_or(u32::MAX),
                    Arrivals::Poisson(mean) => at += self.dice.exponential(mean),
                }
                let duration =
                    group.duration.map(|mean| if group.random_duration { self.dice.exponential(mean) } else { mean });
                let job = self.jobs.len();
                self.jobs.push(Job {
                    group: index,
                    arrived: at,
                    started: None,
                    state: State::Waiting,
                    held: Vec::new(),
                    duration,
                });
                self.at(at, Event::Arrive(job));
            }
        }
    }

    /// The next event within the scenario's time, which it becomes.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        let Reverse((at, _, event)) = self.events.pop()?;
        if at > self.scenario.until {
            self.events.clear();
            return None;
        }
        self.advance(at);
        Some(event)
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }

    /// Sets a timer of the policy.
    pub(super) fn timer(&mut self, after: Duration, token: u64) {
        self.at(self.now + after, Event::Due(token));
    }

    fn advance(&mut self, now: Duration) {
        let seconds = now.saturating_sub(self.last).as_secs_f64();
        self.counts.useful += self.in_use.0 as f64 * seconds;
        self.counts.wasted += self.in_use.1 as f64 * seconds;
        self.now = now;
        self.last = now;
    }

    /// A Pod or container of a job. `part` numbers it within the job.
    pub(super) fn pod(&self, job: JobId, part: usize, template: &Arc<PodTemplate>) -> Arc<PodInfo> {
        let uid = format!("{job}.{part}");
        let mut pod = PodInfo::new(PodKey::new("sim", &uid), &uid, Arc::clone(template));
        pod.created = i64::try_from(self.jobs[job].arrived.as_micros()).unwrap_or(i64::MAX);
        pod.started = pod.created;
        Arc::new(pod)
    }

    pub(super) fn pods_of(&self, job: JobId) -> usize {
        self.scenario.groups[self.jobs[job].group].pods
    }

    /// Gives a part of a job its place, which it holds from now on. A snapshot that has it already is left as it is.
    pub(super) fn hold(&mut self, job: JobId, pod: Arc<PodInfo>, node: &Str) {
        self.snapshot.add_pod(Arc::clone(&pod), node);
        if self.logged {
            self.log.push(Moved { pod: Arc::clone(&pod), node: node.clone(), came: true });
        }
        self.in_use.1 += pod.template.requests.memory.0;
        self.jobs[job].held.push(Held { pod, node: node.clone(), since: self.now });
        self.sample();
    }

    /// All parts of the job have a place: it does its work.
    pub(super) fn start(&mut self, job: JobId) {
        self.close_spans(job, true);
        let memory = self.memory_of(job);
        self.in_use.0 += memory;
        self.in_use.1 -= memory;
        let now = self.now;
        let held = &mut self.jobs[job];
        held.state = State::Running;
        held.started = Some(now);
        held.held.iter_mut().for_each(|part| part.since = now);
        if let Some(duration) = held.duration {
            self.at(now + duration, Event::Finish(job, now));
        }
        self.sample();
    }

    /// The job that started then is done; `false` if it was interrupted since.
    pub(super) fn finish(&mut self, job: JobId, started: Duration) -> bool {
        if self.jobs[job].state != State::Running || self.jobs[job].started != Some(started) {
            return false;
        }
        self.release(job);
        self.jobs[job].state = State::Done;
        true
    }

    /// Takes all places from a job; it waits again.
    pub(super) fn release(&mut self, job: JobId) {
        let running = self.jobs[job].state == State::Running;
        self.close_spans(job, !running);
        let memory = self.memory_of(job);
        if running {
            self.in_use.0 -= memory;
        } else {
            self.in_use.1 -= memory;
        }
        for part in std::mem::take(&mut self.jobs[job].held) {
            self.snapshot.remove_pod(&part.pod.uid);
            if self.logged {
                self.log.push(Moved { pod: part.pod, node: part.node, came: false });
            }
        }
        self.jobs[job].state = State::Waiting;
        self.sample();
    }

    /// The job that a Pod is part of.
    pub(super) fn job_of(pod: &PodInfo) -> Option<JobId> {
        pod.uid.split_once('.')?.0.parse().ok()
    }

    fn memory_of(&self, job: JobId) -> i64 {
        self.jobs[job].held.iter().map(|part| part.pod.template.requests.memory.0).sum()
    }

    fn close_spans(&mut self, job: JobId, waiting: bool) {
        let now = self.now;
        for part in &self.jobs[job].held {
            if self.spans.len() < SPANS && now > part.since {
                self.spans.push(Span {
                    node: part.node.to_string(),
                    job,
                    from: part.since,
                    to: now,
                    memory: part.pod.template.requests.memory.0,
                    waiting,
                });
            }
        }
    }

    /// Notes what is in use. Of what changes within one step of the picture only the last is kept.
    fn sample(&mut self) {
        let step = self.scenario.until / SAMPLES;
        let sample = Sample { at: self.now, useful: self.in_use.0, held: self.in_use.1 };
        match self.samples.last_mut() {
            Some(last) if last.at == self.now || last.at + step > self.now => {
                (last.useful, last.held) = (sample.useful, sample.held);
            }
            _ => self.samples.push(sample),
        }
    }

    pub(super) fn outcome(mut self, kind: &PolicyKind) -> Outcome {
        let until = self.scenario.until;
        self.advance(until);
        for job in 0..self.jobs.len() {
            self.close_spans(job, self.jobs[job].state == State::Waiting);
        }
        let holders: Vec<JobId> = (0..self.jobs.len())
            .filter(|job| self.jobs[*job].state == State::Waiting && !self.jobs[*job].held.is_empty())
            .collect();
        let deadlocked = self.deadlocked(&holders);
        let mut waits: Vec<Duration> =
            self.jobs.iter().filter_map(|job| Some(job.started?.saturating_sub(job.arrived))).collect();
        waits.sort_unstable();
        let at =
            |hundredths: usize| waits.get((waits.len() * hundredths / 100).min(waits.len().saturating_sub(1))).copied();
        let total = self.capacity as f64 * until.as_secs_f64();
        const GB: f64 = 1e9;
        Outcome {
            policy: kind.to_string(),
            jobs: self.jobs.len(),
            placed: waits.len(),
            stranded: holders.len() - deadlocked,
            deadlocked,
            wasted_gb_seconds: self.counts.wasted / GB,
            conflicts: self.counts.conflicts,
            transactions: self.counts.transactions,
            retries: self.counts.retries,
            preempted: self.counts.preempted,
            wait_p50: at(50).unwrap_or_default(),
            wait_p99: at(99).unwrap_or_default(),
            utilisation: if total > 0.0 { self.counts.useful / total } else { 0.0 },
            until,
            capacity: self.capacity,
            nodes: self
                .snapshot
                .nodes()
                .map(|(_, node)| (node.info.name.to_string(), node.info.allocatable.memory.0))
                .collect(),
            samples: self.samples,
            spans: self.spans,
        }
    }

    /// How many of the jobs that hold places and wait would have all they need if the other waiting ones held nothing.
    fn deadlocked(&mut self, holders: &[JobId]) -> usize {
        if holders.len() < 2 {
            return 0;
        }
        let held: Vec<Vec<Held>> = holders.iter().map(|job| self.jobs[*job].held.clone()).collect();
        for part in held.iter().flatten() {
            self.snapshot.remove_pod(&part.pod.uid);
        }
        let mut count = 0;
        for job in holders {
            let whole = Arc::clone(&self.templates[self.jobs[*job].group].0);
            let mut placed = Vec::new();
            for part in 0..self.pods_of(*job) {
                let pod = self.pod(*job, usize::MAX - part, &whole);
                if let crate::verdict::Verdict::Placed(placement) = self.core.schedule(&pod, &self.snapshot, 0) {
                    self.snapshot.add_pod(Arc::clone(&pod), &placement.node);
                    placed.push(pod);
                }
            }
            count += usize::from(placed.len() == self.pods_of(*job));
            for pod in placed {
                self.snapshot.remove_pod(&pod.uid);
            }
        }
        count
    }
}
