//! Whatever happens, in whatever order: no node is overfilled, no Pod is placed twice, no gang is placed in part, nobody is
//! evicted for nothing, and whoever waits is tried in time and placed once there is room.
//!
//! `cargo test` runs a few hundred histories, `cargo xtask soak` a hundred thousand.

#![expect(clippy::cast_possible_truncation, reason = "the numbers of a small random cluster")]

#[path = "../drive/mod.rs"]
mod drive;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use carob_scheduler::{
    Bytes, ClusterEvent, Core, GangFailure, GangRef, GangRequest, GangSource, GangSpec, GangVerdict, Labels,
    MAX_BACKOFF, MilliCpu, Next, NodeInfo, PodInfo, PodKey, PodTemplate, Preempt, Preemption, Profile, Queue,
    Resources, Snapshot, Str, Unit, Verdict,
};
use drive::Step;
use proptest::prelude::*;

/// What `cargo test` runs: within a second or two.
const USUAL_HISTORIES: u64 = 256;
const NODES: u64 = 6;
const GANGS: u64 = 6;
/// Without any event that helps a Pod is tried again after this (podMaxInUnschedulablePodsDuration), and its pause.
const PATIENCE: Duration = Duration::from_secs(5 * 60).saturating_add(MAX_BACKOFF);

struct Cluster {
    snapshot: Snapshot,
    core: Core,
    queue: Queue,
    now: Duration,
    pods: BTreeMap<String, Arc<PodInfo>>,
    /// When each Pod came or was tried last.
    tried: BTreeMap<String, Duration>,
    count: u64,
    seed: u64,
}

fn gang(number: u64) -> GangRef {
    GangRef { namespace: "default".into(), name: format!("g{}", number % GANGS).into(), source: GangSource::Field }
}

/// Gangs of all kinds: plain ones, one within a rack, one that prefers a rack, one that is evicted as a whole.
fn spec(number: u64) -> GangSpec {
    let keys = |wanted: bool| if wanted { vec![Str::from("rack")] } else { Vec::new() };
    GangSpec {
        min_count: [2, 3, 4, 2, 3, 2][(number % GANGS) as usize],
        topology: keys(number == 3),
        preferred: keys(number == 4),
        disrupt_together: number == 5,
        ..GangSpec::default()
    }
}

fn node(name: &str, size: u64) -> NodeInfo {
    let capacity = 1 + (size % 4) as i64;
    let mut info =
        NodeInfo::new(name, Resources::new(MilliCpu(1000 * capacity), Bytes(1000 * capacity)), 1 + 2 * capacity);
    info.labels = Labels::from_iter([("rack", ["x", "y"][(size / 4 % 2) as usize])]);
    info
}

/// One that remembers nothing, for questions about what might be.
fn core() -> Core {
    Core::new(vec![Profile::default_for("default-scheduler")])
}

fn members(gang: &GangRef, snapshot: &Snapshot) -> Vec<Arc<PodInfo>> {
    let pods = snapshot.nodes().flat_map(|(_, node)| node.pods());
    pods.filter(|pod| pod.template.gang.as_ref() == Some(gang)).cloned().collect()
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self {
            snapshot: Snapshot::default(),
            core: core(),
            queue: Queue::default(),
            now: Duration::ZERO,
            pods: BTreeMap::new(),
            tried: BTreeMap::new(),
            count: 0,
            seed: 0,
        };
        for number in 0..GANGS {
            cluster.queue.set_gang(&gang(number), Some(spec(number)), cluster.now);
        }
        cluster
    }

    fn step(&mut self, (what, a, b): Step) -> Result<(), TestCaseError> {
        match what {
            0 => self.set_node(&format!("n{}", a % NODES), b),
            1 => self.remove_node(&format!("n{}", a % NODES)),
            2..=5 => self.create(a, b, None),
            6..=8 => self.create(a, b, Some(gang(b))),
            9 => self.delete(a),
            10 => self.now += Duration::from_millis(a * 20),
            11 => self.now += Duration::from_secs(a),
            12 => self.drain()?,
            _ => {
                for _ in 0..a % 4 {
                    self.decide()?;
                }
            }
        }
        self.check()
    }

    fn set_node(&mut self, name: &str, size: u64) {
        // Nodes do not shrink below what runs on them here; that is another matter.
        if self.snapshot.slot(name).is_none() {
            let info = node(name, size);
            self.snapshot.set_node(info.clone());
            self.queue.wake(&ClusterEvent::NodeAdded(&info), self.now);
        }
    }

    fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.snapshot.slot(name) else { return };
        let pods: Vec<_> = self.snapshot.node(slot).expect("a named slot").pods().to_vec();
        for pod in pods {
            self.gone(&pod);
        }
        self.snapshot.remove_node(name);
        self.queue.wake(&ClusterEvent::NodeRemoved, self.now);
    }

    fn create(&mut self, a: u64, b: u64, gang: Option<GangRef>) {
        self.count += 1;
        let requests = Resources::new(MilliCpu(250 * (1 + (a % 5) as i64)), Bytes(250 * (1 + (b % 5) as i64)));
        let mut template = PodTemplate::plain("default", requests);
        template.priority = if gang.is_some() { [0, 5, 10][(b % GANGS % 3) as usize] } else { (a % 3) as i32 * 5 };
        template.gang = gang;
        let uid = format!("p{}", self.count);
        let pod = Arc::new(PodInfo::new(PodKey::new("default", &uid), &uid, Arc::new(template)));
        self.pods.insert(uid.clone(), Arc::clone(&pod));
        self.tried.insert(uid, self.now);
        self.queue.upsert(pod, self.now);
    }

    fn delete(&mut self, a: u64) {
        let Some(pod) = self.pods.values().nth((a % self.pods.len().max(1) as u64) as usize).cloned() else { return };
        self.gone(&pod);
    }

    fn gone(&mut self, pod: &Arc<PodInfo>) {
        self.pods.remove(&*pod.uid);
        self.tried.remove(&*pod.uid);
        self.queue.remove(&pod.key, self.now);
        self.snapshot.withdraw(&pod.uid);
        self.snapshot.remove_pod(&pod.uid);
        if let Some(gang) = &pod.template.gang {
            self.queue.set_placed(gang, &pod.uid, false, self.now);
            // Who is left of a gang may be held from now on, and starts to wait again when it is not.
            for mate in self.pods.values().filter(|mate| mate.template.gang.as_ref() == Some(gang)) {
                self.tried.insert(mate.uid.to_string(), self.now);
            }
        }
        self.queue.wake(&ClusterEvent::PodGone(pod), self.now);
    }

    fn place(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.snapshot.withdraw(&pod.uid);
        self.snapshot.add_pod(Arc::clone(pod), node);
        if let Some(gang) = &pod.template.gang {
            self.queue.set_placed(gang, &pod.uid, true, self.now);
        }
        self.queue.remove(&pod.key, self.now);
        self.queue.wake(&ClusterEvent::PodPlaced(pod), self.now);
    }

    /// Decides about what is next; nothing to do is `false`.
    fn decide(&mut self) -> Result<bool, TestCaseError> {
        self.seed += 1;
        match self.queue.pop(self.now) {
            None => return Ok(false),
            Some(Next::Pod(pod)) => self.decide_pod(&pod)?,
            Some(Next::Gang { gang, spec, pods, placed }) => self.decide_gang(&gang, &spec, &pods, placed)?,
        }
        Ok(true)
    }

    /// Decides until there is nothing to do; then nobody has waited for longer than the queue promises.
    fn drain(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..self.pods.len() * 20 + 20 {
            if !self.decide()? {
                return self.nobody_starves();
            }
        }
        Err(TestCaseError::fail("there is no end of deciding"))
    }

    fn nobody_starves(&self) -> Result<(), TestCaseError> {
        for pod in self.waiting() {
            let waited = self.now.saturating_sub(self.tried[&*pod.uid]);
            prop_assert!(waited <= PATIENCE, "{} was not tried for {waited:?}", pod.key);
        }
        Ok(())
    }

    /// The Pods without a node that nothing holds back.
    fn waiting(&self) -> impl Iterator<Item = &Arc<PodInfo>> {
        let held = |pod: &PodInfo| {
            let gang = pod.template.gang.as_ref();
            gang.is_some_and(|gang| self.queue.gang_wait(gang, self.now).is_some())
        };
        self.pods.values().filter(move |pod| self.snapshot.pod(&pod.uid).is_none() && !held(pod))
    }

    fn decide_pod(&mut self, pod: &Arc<PodInfo>) -> Result<(), TestCaseError> {
        prop_assert!(self.snapshot.pod(&pod.uid).is_none(), "{} is tried though it has a node", pod.key);
        prop_assert!(self.pods.contains_key(&*pod.uid), "{} is tried though it is gone", pod.key);
        self.tried.insert(pod.uid.to_string(), self.now);
        match self.core.schedule(pod, &self.snapshot, self.seed) {
            Verdict::Placed(placement) => {
                self.place(pod, &placement.node);
                Ok(())
            }
            Verdict::Unschedulable(verdict) => {
                if let Preemption::Proposed(plan) = &verdict.preemption {
                    self.nobody_is_evicted_for_nothing(pod, plan)?;
                    self.evict(pod, plan)?;
                    let again = self.core.schedule(pod, &self.snapshot, self.seed);
                    let helped = matches!(&again, Verdict::Placed(placement) if placement.node == plan.node);
                    prop_assert!(helped, "{} was promised {} for nothing", pod.key, plan.node);
                }
                self.queue.rejected(&Unit::Pod(pod.key.clone()), verdict.plugins(), self.now);
                // The victims went before the rejection was told: as in a running cluster, their end wakes the Pod.
                if let Preemption::Proposed(plan) = &verdict.preemption {
                    self.queue.wake(&ClusterEvent::PodGone(&plan.victims[0]), self.now);
                }
                Ok(())
            }
        }
    }

    /// With any one of the victims left, the Pod does not fit.
    fn nobody_is_evicted_for_nothing(&self, pod: &Arc<PodInfo>, plan: &Preempt) -> Result<(), TestCaseError> {
        for spared in &plan.victims {
            let mut without = self.snapshot.clone();
            for victim in plan.victims.iter().filter(|victim| *victim != spared) {
                without.remove_pod(&victim.uid);
            }
            let table = core().evaluate(pod, &without);
            let fits = table.iter().any(|(name, verdict)| *name == plan.node && verdict.is_ok());
            prop_assert!(!fits, "{} need not go for {}", spared.key, pod.key);
        }
        Ok(())
    }

    fn evict(&mut self, pod: &Arc<PodInfo>, plan: &Preempt) -> Result<(), TestCaseError> {
        self.snapshot.nominate(Arc::clone(pod), &plan.node);
        for victim in &plan.victims {
            prop_assert!(victim.template.priority < pod.template.priority, "{} must not evict {}", pod.key, victim.key);
            let gang = victim.template.gang.as_ref();
            let together = gang.filter(|gang| self.queue.gang(gang).is_some_and(|spec| spec.disrupt_together));
            let mates = together.map(|gang| members(gang, &self.snapshot)).unwrap_or_default();
            self.gone(victim);
            for mate in &mates {
                self.gone(mate);
            }
        }
        Ok(())
    }

    fn decide_gang(
        &mut self,
        gang: &GangRef,
        spec: &GangSpec,
        pods: &[Arc<PodInfo>],
        before: usize,
    ) -> Result<(), TestCaseError> {
        let unit = Unit::Gang(gang.clone());
        for pod in pods {
            self.tried.insert(pod.uid.to_string(), self.now);
        }
        match self.schedule_gang(gang, spec, pods, before) {
            GangVerdict::Placed { placed, waiting } => {
                prop_assert!(placed.len() + before >= spec.min_count, "{gang} is placed in part");
                for (pod, placement) in placed {
                    self.place(&pod, &placement.node);
                }
                self.is_within_its_topology(gang, spec)?;
                let plugins =
                    waiting.iter().flat_map(|(_, verdict)| verdict.plugins().iter().collect::<Vec<_>>()).collect();
                self.queue.rejected(&unit, plugins, self.now);
            }
            GangVerdict::Unschedulable(failure) => {
                let free = pods.iter().all(|pod| self.snapshot.pod(&pod.uid).is_none());
                prop_assert!(free, "{gang} holds what it cannot use");
                self.make_room(gang, spec, pods, before, &failure)?;
                self.queue.rejected(&unit, failure.plugins(), self.now);
                if let Some(victim) = failure.preemption.iter().find_map(|(_, plan)| plan.victims.first()) {
                    self.queue.wake(&ClusterEvent::PodGone(victim), self.now);
                }
            }
        }
        Ok(())
    }

    fn schedule_gang(&mut self, gang: &GangRef, spec: &GangSpec, pods: &[Arc<PodInfo>], placed: usize) -> GangVerdict {
        let request = GangRequest { gang, spec, pods, placed };
        let queue = &self.queue;
        let mates = |victim: &PodInfo, snapshot: &Snapshot| {
            let gang = victim.template.gang.as_ref();
            let together = gang.filter(|gang| queue.gang(gang).is_some_and(|spec| spec.disrupt_together));
            together.map(|gang| members(gang, snapshot)).unwrap_or_default()
        };
        self.core.schedule_gang(request, &mut self.snapshot, self.seed, &mates)
    }

    /// Evicts what a gang asks for; then it fits, all of its minimum at once.
    fn make_room(
        &mut self,
        gang: &GangRef,
        spec: &GangSpec,
        pods: &[Arc<PodInfo>],
        before: usize,
        failure: &GangFailure,
    ) -> Result<(), TestCaseError> {
        if failure.preemption.is_empty() {
            return Ok(());
        }
        let promised = failure.preemption.len() + before;
        prop_assert_eq!(promised, spec.min_count, "{} makes room for its minimum and no more", gang);
        prop_assert!(failure.preemption.iter().any(|(_, plan)| !plan.victims.is_empty()));
        for (pod, plan) in &failure.preemption {
            self.evict(pod, plan)?;
        }
        let request = GangRequest { gang, spec, pods, placed: before };
        let again = core().schedule_gang(request, &mut self.snapshot.clone(), self.seed, &|_, _| Vec::new());
        prop_assert!(matches!(again, GangVerdict::Placed { .. }), "{} made room in vain", gang);
        Ok(())
    }

    fn is_within_its_topology(&self, gang: &GangRef, spec: &GangSpec) -> Result<(), TestCaseError> {
        for key in &spec.topology {
            let here = |node: &carob_scheduler::NodeState| {
                let member = node.pods().iter().any(|pod| pod.template.gang.as_ref() == Some(gang));
                member.then(|| node.info.labels.get(key).cloned())
            };
            let values: BTreeSet<_> = self.snapshot.nodes().filter_map(|(_, node)| here(node)).collect();
            prop_assert!(values.len() == 1, "{} is in {:?} of {}", gang, values, key);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let mut seen = BTreeSet::new();
        for (_, node) in self.snapshot.nodes() {
            let (has, used) = (&node.info.allocatable, node.requested());
            prop_assert!(used.cpu <= has.cpu && used.memory <= has.memory, "{} is overfilled", node.info.name);
            prop_assert!(node.pods().len() as i64 <= node.info.max_pods, "{} has too many Pods", node.info.name);
            let sum: i64 = node.pods().iter().map(|pod| pod.template.requests.cpu.0).sum();
            prop_assert_eq!(sum, used.cpu.0, "the sum of {} is wrong", node.info.name);
            for pod in node.pods() {
                prop_assert!(seen.insert(pod.uid.to_string()), "{} is placed twice", pod.key);
                prop_assert!(self.pods.contains_key(&*pod.uid), "{} is placed though it is gone", pod.key);
            }
        }
        Ok(())
    }

    /// With room for all, all that can be placed are, within the time that the queue promises.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for number in 0..40 {
            self.set_node(&format!("spare{number}"), 3 + number % 2 * 4);
        }
        for _ in 0..self.pods.len() * 4 + 40 {
            self.now += Duration::from_secs(11);
            self.decide()?;
            self.check()?;
        }
        // A gang that is tied to the rack of members that it has may find that rack full.
        let tied = |pod: &PodInfo| {
            let gang = pod.template.gang.as_ref();
            gang.is_some_and(|gang| self.queue.gang(gang).is_some_and(|spec| !spec.topology.is_empty()))
        };
        let stuck = self.waiting().find(|pod| !tied(pod));
        prop_assert!(stuck.is_none(), "{} is still without a node", stuck.expect("checked").key);
        Ok(())
    }
}

#[test]
fn the_invariants_hold_after_every_step() {
    let count =
        drive::histories(&drive::Shape { kinds: 22, longest: 150, usual: USUAL_HISTORIES, threads: 1 }, |steps| {
            let mut cluster = Cluster::new();
            for step in steps {
                cluster.step(*step)?;
            }
            cluster.settle()
        });
    assert!(count > 0);
}
