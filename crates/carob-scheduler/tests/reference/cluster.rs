//! Random clusters: nodes, Pods and facts made from small numbers, so that a failing history can be shrunk.

use std::sync::Arc;

use carob_scheduler::{
    AffinityTerm, Bytes, ClaimFacts, ClaimKey, ClassFacts, DriverLimit, Effect, FitStrategy, HostPort, Labels,
    MilliCpu, NodeChoice, NodeInfo, NodeRequirement, NodeSelectorTerm, Operator, PodInfo, PodKey, PodTemplate,
    PodVolume, PreferredNodeTerm, Profile, Requirement, Resources, Selector, SpreadConstraint, Str, Taint, Toleration,
    TolerationOperator, VolumeFacts, VolumeInfo, WeightedTerm, WhenUnsatisfiable,
};

use crate::drive::Dice;

impl Dice {
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
    allocatable.ephemeral = Bytes(100 * dice.below(4) as i64);
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

fn volume_of_pod(dice: &mut Dice) -> PodVolume {
    match dice.below(6) {
        0 => PodVolume::InlineCsi { driver: "csi".into() },
        1 | 2 => {
            let id = dice.of(&["d1", "d2"]).into();
            PodVolume::Disk { id, read_only: dice.one_in(2), shareable: dice.one_in(2) }
        }
        _ => PodVolume::Claim { name: dice.of(&CLAIMS).into(), ephemeral: false },
    }
}

const CLAIMS: [&str; 4] = ["c1", "c2", "c3", "c4"];
const VOLUMES: [&str; 5] = ["v1", "v2", "v3", "v4", "v5"];

/// The classes that there are: one whose volumes are made where a Pod goes, one whose volumes exist, one that does not wait.
pub(crate) fn classes() -> Vec<(Str, ClassFacts)> {
    let only_in_a = NodeSelectorTerm([NodeRequirement::Label(Requirement::new(KEYS[1], Operator::In, &["a"]))].into());
    let class =
        |provisioner: &str, waits, topologies| ClassFacts { provisioner: provisioner.into(), waits, topologies };
    vec![
        ("made".into(), class("csi", true, Vec::new())),
        ("made-in-a".into(), class("csi", true, vec![only_in_a])),
        ("local".into(), class("kubernetes.io/no-provisioner", true, Vec::new())),
        ("at-once".into(), class("csi", false, Vec::new())),
    ]
}

/// Changes a claim, a volume or a limit.
pub(crate) fn change_volumes(facts: &mut VolumeFacts, a: u64, b: u64) {
    let mut dice = Dice::new(b * 1000 + a);
    match a % 4 {
        0 | 1 => {
            let key = ClaimKey { namespace: dice.of(&["default", "other"]).into(), name: dice.of(&CLAIMS).into() };
            if dice.one_in(8) {
                facts.claims.remove(&key);
            } else {
                facts.claims.insert(key, claim(&mut dice));
            }
        }
        2 => {
            let name: Str = dice.of(&VOLUMES).into();
            if dice.one_in(8) {
                facts.volumes.remove(&name);
            } else {
                facts.volumes.insert(name.clone(), volume(name, &mut dice));
            }
        }
        _ => {
            let limits = vec![DriverLimit { driver: "csi".into(), count: dice.below(4) as i64 }];
            facts.limits.insert(format!("n{}", dice.below(8)).into(), limits);
        }
    }
}

fn claim(dice: &mut Dice) -> ClaimFacts {
    let bound = dice.one_in(2);
    ClaimFacts {
        uid: dice.of(&["u1", "u2"]).into(),
        volume: bound.then(|| dice.of(&VOLUMES).into()),
        bound,
        class: (!dice.one_in(6)).then(|| dice.of(&["made", "made-in-a", "local", "local", "at-once"]).into()),
        request: Bytes(10 * dice.below(4) as i64),
        access_modes: vec![dice.of(&["ReadWriteOnce", "ReadWriteOnce", "ReadWriteOncePod"]).into()],
        selector: dice.one_in(5).then(|| Selector::equal(&[("tier", "fast")])),
        terminating: dice.one_in(12),
        lost: dice.one_in(12),
        volume_mode_block: dice.one_in(8),
        selected_node: dice.one_in(6).then(|| format!("n{}", dice.below(8)).into()),
        owners: Vec::new(),
    }
}

fn volume(name: Str, dice: &mut Dice) -> VolumeInfo {
    let owner = ClaimKey { namespace: "default".into(), name: dice.of(&CLAIMS).into() };
    let csi = dice.one_in(2);
    VolumeInfo {
        labels: if dice.one_in(2) { Labels::from_iter([("tier", "fast")]) } else { Labels::default() },
        capacity: Bytes(10 * dice.below(4) as i64),
        class: "local".into(),
        access_modes: vec!["ReadWriteOnce".into(), "ReadWriteOncePod".into()],
        volume_mode_block: dice.one_in(8),
        affinity: dice.one_in(2).then(|| [zone_term(dice)].into()),
        zones: if dice.one_in(3) { vec![(KEYS[1].into(), vec!["a".into(), "c".into()])] } else { Vec::new() },
        claim: dice.one_in(4).then_some(owner),
        claim_uid: dice.one_in(2).then(|| dice.of(&["u1", "u2"]).into()),
        csi_driver: csi.then(|| "csi".into()),
        csi_handle: csi.then(|| name.clone()),
        available: !dice.one_in(4),
        name,
    }
}

/// Profiles that differ in what plugins can be told.
pub(crate) fn profile(number: u64) -> Profile {
    let mut profile = Profile::default_for("default-scheduler");
    match number % 4 {
        0 => {}
        1 => {
            profile.fit = FitStrategy::MostAllocated;
            profile.fit_resources[0].weight = 3;
            profile.hard_affinity_weight = 7;
        }
        2 => {
            profile.fit = FitStrategy::RequestedToCapacityRatio(vec![(0, 0), (40, 8), (100, 3)]);
            profile.fit_resources[1].weight = 2;
            profile.ignore_preferred_of_existing = true;
            profile.ignored_groups.push("example.com".into());
        }
        _ => {
            let mut dice = Dice::new(number);
            let preferred = [PreferredNodeTerm { weight: 20, term: zone_term(&mut dice) }].into();
            let terms =
                [NodeSelectorTerm([NodeRequirement::Label(Requirement::new(KEYS[2], Operator::Exists, &[]))].into())];
            profile.added_affinity =
                Some(NodeChoice { required: Some(terms.into()), preferred, ..NodeChoice::default() });
            profile.hard_affinity_weight = 0;
        }
    }
    profile
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
    if dice.one_in(8) {
        let (ip, protocol) = (dice.of(&["10.0.0.1", "10.0.0.2"]).into(), dice.of(&["TCP", "UDP"]).into());
        pod.host_ports = [HostPort { ip, protocol, port: 80 }].into();
    }
    if dice.one_in(16) {
        pod.wants_node = Some(format!("n{}", dice.below(8)).into());
    }
    if dice.one_in(5) {
        pod.requests.ephemeral = Bytes(50 * dice.below(4) as i64);
    }
    if dice.one_in(4) {
        pod.volumes = (0..=dice.below(2)).map(|_| volume_of_pod(&mut dice)).collect();
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
