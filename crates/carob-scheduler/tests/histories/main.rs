//! Whatever happens, in whatever order: no node is overfilled, no Pod is placed twice, no gang is placed in part, nobody is
//! evicted for nothing, and whoever waits is placed once there is room.

#![expect(clippy::cast_possible_truncation, reason = "the numbers of a small random cluster")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use carob_scheduler::{
    Bytes, ClusterEvent, Core, GangRef, GangRequest, GangSource, GangSpec, GangVerdict, MilliCpu, Next, NodeInfo,
    PodInfo, PodKey, PodTemplate, Preempt, Preemption, Profile, Queue, Resources, Snapshot, Unit, Verdict,
};
use proptest::prelude::*;

const NODES: u64 = 6;
const GANGS: u64 = 4;
/// Members that a gang needs, by its number.
const GANG_SIZES: [usize; 4] = [2, 3, 4, 2];

type Step = (u8, u64, u64);

struct Cluster {
    snapshot: Snapshot,
    core: Core,
    queue: Queue,
    now: Duration,
    pods: BTreeMap<String, Arc<PodInfo>>,
    count: u64,
    seed: u64,
}

fn gang(number: u64) -> GangRef {
    GangRef { namespace: "default".into(), name: format!("g{}", number % GANGS).into(), source: GangSource::Field }
}

fn node(name: &str, size: u64) -> NodeInfo {
    let size = 1 + (size % 4) as i64;
    NodeInfo::new(name, Resources::new(MilliCpu(1000 * size), Bytes(1000 * size)), 1 + 2 * size)
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self {
            snapshot: Snapshot::default(),
            core: Core::new(vec![Profile::default_for("default-scheduler")]),
            queue: Queue::default(),
            now: Duration::ZERO,
            pods: BTreeMap::new(),
            count: 0,
            seed: 0,
        };
        for (number, min_count) in (0..).zip(GANG_SIZES) {
            let spec = GangSpec { min_count, ..GangSpec::default() };
            cluster.queue.set_gang(&gang(number), Some(spec), cluster.now);
        }
        cluster
    }

    fn step(&mut self, (what, a, b): Step) -> Result<(), TestCaseError> {
        match what {
            0 => self.set_node(&format!("n{}", a % NODES), b),
            1 => self.remove_node(&format!("n{}", a % NODES)),
            2..=5 => self.create(a, b, None),
            6..=7 => self.create(a, b, Some(gang(b))),
            8 => self.delete(a),
            9 => self.now += Duration::from_millis(a * 20),
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
        template.priority = if gang.is_some() { 5 } else { (a % 3) as i32 * 5 };
        template.gang = gang;
        let uid = format!("p{}", self.count);
        let pod = Arc::new(PodInfo::new(PodKey::new("default", &uid), &uid, Arc::new(template)));
        self.pods.insert(uid, Arc::clone(&pod));
        self.queue.upsert(pod, self.now);
    }

    fn delete(&mut self, a: u64) {
        let Some(pod) = self.pods.values().nth((a % self.pods.len().max(1) as u64) as usize).cloned() else { return };
        self.gone(&pod);
    }

    fn gone(&mut self, pod: &Arc<PodInfo>) {
        self.pods.remove(&*pod.uid);
        self.queue.remove(&pod.key, self.now);
        self.snapshot.withdraw(&pod.uid);
        self.snapshot.remove_pod(&pod.uid);
        if let Some(gang) = &pod.template.gang {
            self.queue.set_placed(gang, &pod.uid, false, self.now);
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

    fn decide(&mut self) -> Result<(), TestCaseError> {
        self.seed += 1;
        match self.queue.pop(self.now) {
            None => Ok(()),
            Some(Next::Pod(pod)) => self.decide_pod(&pod),
            Some(Next::Gang { gang, spec, pods, placed }) => self.decide_gang(&gang, &spec, &pods, placed),
        }
    }

    fn decide_pod(&mut self, pod: &Arc<PodInfo>) -> Result<(), TestCaseError> {
        prop_assert!(self.snapshot.pod(&pod.uid).is_none(), "{} is tried though it has a node", pod.key);
        prop_assert!(self.pods.contains_key(&*pod.uid), "{} is tried though it is gone", pod.key);
        match self.core.schedule(pod, &self.snapshot, self.seed) {
            Verdict::Placed(placement) => {
                self.place(pod, &placement.node);
                Ok(())
            }
            Verdict::Unschedulable(verdict) => {
                if let Preemption::Proposed(plan) = &verdict.preemption {
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

    fn evict(&mut self, pod: &Arc<PodInfo>, plan: &Preempt) -> Result<(), TestCaseError> {
        prop_assert!(!plan.victims.is_empty());
        self.snapshot.nominate(Arc::clone(pod), &plan.node);
        for victim in &plan.victims {
            prop_assert!(victim.template.priority < pod.template.priority, "{} must not evict {}", pod.key, victim.key);
            self.gone(victim);
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
        let request = GangRequest { gang, spec, pods, placed: before };
        match self.core.schedule_gang(request, &mut self.snapshot, self.seed, &|_, _| Vec::new()) {
            GangVerdict::Placed { placed, waiting } => {
                prop_assert!(placed.len() + before >= spec.min_count, "{gang} is placed in part");
                for (pod, placement) in placed {
                    self.place(&pod, &placement.node);
                }
                let plugins =
                    waiting.iter().flat_map(|(_, verdict)| verdict.plugins().iter().collect::<Vec<_>>()).collect();
                self.queue.rejected(&unit, plugins, self.now);
            }
            GangVerdict::Unschedulable(failure) => {
                prop_assert!(
                    pods.iter().all(|pod| self.snapshot.pod(&pod.uid).is_none()),
                    "{gang} holds what it cannot use"
                );
                for (pod, plan) in failure.preemption.iter().filter(|(_, plan)| !plan.victims.is_empty()) {
                    self.evict(pod, plan)?;
                }
                self.queue.rejected(&unit, failure.plugins(), self.now);
                if let Some(victim) = failure.preemption.iter().find_map(|(_, plan)| plan.victims.first()) {
                    self.queue.wake(&ClusterEvent::PodGone(victim), self.now);
                }
            }
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
            self.set_node(&format!("spare{number}"), 3);
        }
        for _ in 0..self.pods.len() * 4 + 40 {
            self.now += Duration::from_secs(11);
            self.decide()?;
            self.check()?;
        }
        for pod in self.pods.values().filter(|pod| self.snapshot.pod(&pod.uid).is_none()) {
            let held = pod.template.gang.as_ref().and_then(|gang| self.queue.gang_wait(gang, self.now));
            prop_assert!(held.is_some(), "{} is still without a node", pod.key);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_invariants_hold_after_every_step(steps in proptest::collection::vec((0..20u8, 0..1000u64, 0..1000u64), 1..150)) {
        let mut cluster = Cluster::new();
        for step in steps {
            cluster.step(step)?;
        }
        cluster.settle()?;
    }
}
