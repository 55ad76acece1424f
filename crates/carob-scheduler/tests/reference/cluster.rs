//! Random clusters: nodes, Pods and facts made from small numbers, so that a failing history can be shrunk.

use std::sync::Arc;

use carob_scheduler::{
    AffinityTerm, Bytes, Effect, HostPort, Labels, MilliCpu, NodeInfo, NodeRequirement, NodeSelectorTerm, Operator,
    PodInfo, PodKey, PodTemplate, PreferredNodeTerm, Requirement, Resources, Selector, SpreadConstraint, Str, Taint,
    Toleration, TolerationOperator, WeightedTerm, WhenUnsatisfiable,
};

/// A stream of small random numbers (xorshift64*).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }
}

const KEYS: [&str; 3] = ["kubernetes.io/hostname", "topology.kubernetes.io/zone", "rack"];

pub(crate) fn node(number: u64, variant: u64) -> NodeInfo {
    let mut dice = Dice::new(variant * 1000 + number);
    let name = format!("n{number}");
    let mut labels = vec![(Str::from(KEYS[0]), Str::from(name.as_str()))];
    for (key, values) in [(KEYS[1], ["a", "b", "c"]), (KEYS[2], ["1", "2", "2"])] {
        if !dice.one_in(5) {
            labels.push((key.into(), dice.of(&values).into()));
        }
    }
    let mut allocatable =
        Resources::new(MilliCpu(500 + 500 * dice.below(5) as i64), Bytes(500 + 500 * dice.below(5) as i64));
    allocatable.set_scalar("example.com/gpu".into(), dice.below(3) as i64);
    let mut info = NodeInfo::new(&name, allocatable, 2 + dice.below(4) as i64);
    info.labels = Labels::new(labels);
    info.unschedulable = dice.one_in(8);
    for effect in [Effect::NoSchedule, Effect::PreferNoSchedule] {
        if dice.one_in(4) {
            info.taints.push(Taint { key: "t".into(), value: dice.of(&["1", "2"]).into(), effect });
        }
    }
    for image in ["img-a", "img-b"] {
        if dice.one_in(2) {
            info.images.push((image.into(), Bytes((50 + dice.below(2000) as i64) << 20)));
        }
    }
    info
}

fn term(dice: &mut Dice) -> AffinityTerm {
    AffinityTerm {
        selector: selector(dice),
        namespaces: if dice.one_in(4) { Box::default() } else { ["default".into()].into() },
        namespace_selector: if dice.one_in(4) { Selector::equal(&[("team", "x")]) } else { Selector::Nothing },
        topology_key: dice.of(&KEYS).into(),
    }
}

pub(crate) fn selector(dice: &mut Dice) -> Selector {
    match dice.below(5) {
        0 => Selector::everything(),
        1 => Selector::Nothing,
        2 => Selector::All([Requirement::new("app", Operator::NotIn, &["x"])].into()),
        _ => Selector::equal(&[("app", dice.of(&["x", "y"]))]),
    }
}

fn weighted(dice: &mut Dice) -> WeightedTerm {
    WeightedTerm { weight: 1 + dice.below(100) as i64, term: term(dice) }
}

fn spread(dice: &mut Dice) -> SpreadConstraint {
    SpreadConstraint {
        max_skew: 1 + dice.below(2) as i64,
        topology_key: dice.of(&KEYS).into(),
        when: if dice.one_in(2) { WhenUnsatisfiable::DoNotSchedule } else { WhenUnsatisfiable::ScheduleAnyway },
        selector: selector(dice),
        min_domains: 1 + dice.below(3) as i64,
        honor_affinity: !dice.one_in(3),
        honor_taints: dice.one_in(3),
    }
}

fn zone_term(dice: &mut Dice) -> NodeSelectorTerm {
    let zone = dice.of(&["a", "b"]);
    NodeSelectorTerm([NodeRequirement::Label(Requirement::new(KEYS[1], Operator::In, &[zone]))].into())
}

/// One of a few hundred kinds of Pods; most ask for little, each tenth for a bit of everything.
pub(crate) fn template(number: u64) -> PodTemplate {
    let mut dice = Dice::new(number + 77);
    let mut pod = PodTemplate::plain(
        dice.of(&["default", "other"]),
        Resources::new(MilliCpu(250 * dice.below(5) as i64), Bytes(250 * dice.below(5) as i64)),
    );
    (pod.scored_cpu, pod.scored_memory) =
        (MilliCpu(pod.requests.cpu.0.max(100)), Bytes(pod.requests.memory.0.max(200)));
    pod.priority = [0, 5, 10][dice.below(3) as usize];
    pod.may_preempt = !dice.one_in(8);
    if !dice.one_in(4) {
        pod.labels = Labels::from_iter([("app", dice.of(&["x", "y"]))]);
    }
    if dice.one_in(3) {
        let key: Str = if dice.one_in(2) { "".into() } else { "t".into() };
        let operator =
            if key.is_empty() || dice.one_in(2) { TolerationOperator::Exists } else { TolerationOperator::Equal };
        pod.tolerations = [Toleration { key, operator, value: "1".into(), effect: None }].into();
    }
    if dice.one_in(4) {
        pod.node_choice.required = Some([zone_term(&mut dice)].into());
    }
    if dice.one_in(4) {
        pod.node_choice.preferred =
            [PreferredNodeTerm { weight: 1 + dice.below(50) as i64, term: zone_term(&mut dice) }].into();
    }
    if dice.one_in(6) {
        pod.host_ports =
            [HostPort { ip: "0.0.0.0".into(), protocol: "TCP".into(), port: 80 + dice.below(2) as i32 }].into();
    }
    if dice.one_in(5) {
        pod.requests.set_scalar("example.com/gpu".into(), 1 + dice.below(2) as i64);
    }
    if dice.one_in(3) {
        pod.images = [Str::from(dice.of(&["img-a", "img-b", "img-c"]))].into();
    }
    if dice.one_in(4) {
        pod.affinity.required = [term(&mut dice)].into();
    }
    if dice.one_in(4) {
        pod.affinity.required_anti = [term(&mut dice)].into();
    }
    if dice.one_in(4) {
        pod.affinity.preferred = [weighted(&mut dice)].into();
        pod.affinity.preferred_anti = [weighted(&mut dice)].into();
    }
    if dice.one_in(3) {
        pod.spread = (0..=dice.below(2)).map(|_| spread(&mut dice)).collect();
    }
    pod
}

pub(crate) fn pod(name: &str, template: &Arc<PodTemplate>, started: i64) -> Arc<PodInfo> {
    let mut pod = PodInfo::new(PodKey::new(&template.namespace, name), name, Arc::clone(template));
    pod.started = started;
    Arc::new(pod)
}
