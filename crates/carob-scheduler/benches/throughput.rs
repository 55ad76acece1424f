//! How many Pods a second the core alone places: per case and cluster size, with the time of one decision at the median
//! and the 99th percentile. Arguments: `--json` for one JSON document, a part of a case's name to run only that, or
//! `--scenarios` to run the simulator's shipped scenarios instead.

use std::sync::Arc;
use std::time::Duration;

use carob_kit::{Clock, SystemClock};
use carob_scheduler::{
    AffinityTerm, Bytes, Core, GangRef, GangRequest, GangSource, GangSpec, GangVerdict, Labels, MilliCpu, NodeInfo,
    NodeRequirement, NodeSelectorTerm, Operator, PodInfo, PodKey, PodTemplate, Preemption, Profile, Requirement,
    Resources, Selector, Snapshot, SpreadConstraint, Verdict, WhenUnsatisfiable,
};

const NODES: [usize; 4] = [100, 1_000, 5_000, 15_000];
/// Decisions that are measured per case; before these, a tenth as many warm up.
const DECISIONS: usize = 5_000;
/// A case ends after this long though not all decisions were taken.
const LONGEST: Duration = Duration::from_secs(10);
const ZONES: usize = 10;

type Setup = fn(&mut Snapshot);
type Template = fn(usize) -> PodTemplate;

struct Case {
    name: &'static str,
    /// The floor that upstream's CI holds at 5 000 nodes, Pods a second (test/integration/scheduler_perf).
    upstream: Option<u32>,
    setup: Setup,
    template: Template,
    gang: usize,
}

const CASES: [Case; 9] = [
    Case { name: "plain", upstream: Some(270), setup: empty, template: plain, gang: 1 },
    Case { name: "node-affinity", upstream: Some(220), setup: empty, template: node_affinity, gang: 1 },
    Case { name: "pod-affinity", upstream: Some(35), setup: empty, template: pod_affinity, gang: 1 },
    Case { name: "anti-affinity", upstream: Some(60), setup: empty, template: anti_affinity, gang: 1 },
    Case { name: "spread", upstream: Some(85), setup: empty, template: spread, gang: 1 },
    Case { name: "preemption", upstream: Some(160), setup: full, template: important, gang: 1 },
    Case { name: "distinct-templates", upstream: None, setup: empty, template: distinct, gang: 1 },
    Case { name: "gang-8", upstream: None, setup: empty, template: gang_member, gang: 8 },
    Case { name: "gang-64", upstream: None, setup: empty, template: gang_member, gang: 64 },
];

struct Figures {
    case: &'static str,
    nodes: usize,
    per_second: f64,
    p50: Duration,
    p99: Duration,
    upstream: Option<u32>,
}

fn request(cpu: i64) -> Resources {
    Resources::new(MilliCpu(cpu), Bytes(500 << 20))
}

fn plain(_: usize) -> PodTemplate {
    PodTemplate::plain("bench", request(100))
}

fn labelled() -> PodTemplate {
    let mut pod = plain(0);
    pod.labels = Labels::from_iter([("app", "bench")]);
    pod
}

fn node_affinity(_: usize) -> PodTemplate {
    let mut pod = plain(0);
    let zones = ["zone-0", "zone-1"];
    let requirement = Requirement::new("topology.kubernetes.io/zone", Operator::In, &zones);
    pod.node_choice.required = Some([NodeSelectorTerm([NodeRequirement::Label(requirement)].into())].into());
    pod
}

fn term(key: &str) -> AffinityTerm {
    AffinityTerm {
        selector: Selector::equal(&[("app", "bench")]),
        namespaces: ["bench".into()].into(),
        namespace_selector: Selector::Nothing,
        topology_key: key.into(),
    }
}

fn pod_affinity(_: usize) -> PodTemplate {
    let mut pod = labelled();
    pod.affinity.required = [term("topology.kubernetes.io/zone")].into();
    pod
}

fn anti_affinity(number: usize) -> PodTemplate {
    let mut pod = labelled();
    // Enough groups that each finds a free node.
    let group = format!("group-{}", number % 50);
    pod.labels = Labels::from_iter([("app", group.as_str())]);
    let mut own = term("kubernetes.io/hostname");
    own.selector = Selector::equal(&[("app", &group)]);
    pod.affinity.required_anti = [own].into();
    pod
}

fn spread(_: usize) -> PodTemplate {
    let mut pod = labelled();
    pod.spread = [SpreadConstraint {
        max_skew: 5,
        topology_key: "topology.kubernetes.io/zone".into(),
        when: WhenUnsatisfiable::DoNotSchedule,
        selector: Selector::equal(&[("app", "bench")]),
        min_domains: 1,
        honor_affinity: true,
        honor_taints: false,
    }]
    .into();
    pod
}

fn important(_: usize) -> PodTemplate {
    let mut pod = PodTemplate::plain("bench", request(3_000));
    pod.priority = 10;
    pod
}

fn distinct(number: usize) -> PodTemplate {
    let mut pod = plain(0);
    pod.labels = Labels::from_iter([("pod", number.to_string().as_str())]);
    pod
}

fn gang_member(number: usize) -> PodTemplate {
    let mut pod = plain(0);
    pod.gang = Some(gang(number));
    pod
}

fn gang(number: usize) -> GangRef {
    GangRef { namespace: "bench".into(), name: format!("g{number}").into(), source: GangSource::Field }
}

fn empty(_: &mut Snapshot) {}

/// Each node holds four Pods of low priority and has room for no more.
fn full(snapshot: &mut Snapshot) {
    let template = Arc::new(PodTemplate::plain("bench", request(900)));
    let names: Vec<_> = snapshot.nodes().map(|(_, node)| Arc::clone(&node.info.name)).collect();
    for (index, name) in names.iter().flat_map(|name| [name; 4]).enumerate() {
        let uid = format!("low-{index}");
        snapshot.add_pod(Arc::new(PodInfo::new(PodKey::new("bench", &uid), &uid, Arc::clone(&template))), name);
    }
}

fn cluster(nodes: usize) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for number in 0..nodes {
        let name = format!("node-{number}");
        let zone = format!("zone-{}", number % ZONES);
        let mut info = NodeInfo::new(&name, Resources::new(MilliCpu(4_000), Bytes(32 << 30)), 110);
        info.labels = Labels::from_iter([("kubernetes.io/hostname", &*name), ("topology.kubernetes.io/zone", &*zone)]);
        snapshot.set_node(info);
    }
    snapshot
}

struct Bench {
    core: Core,
    snapshot: Snapshot,
    templates: std::collections::HashMap<usize, Arc<PodTemplate>>,
    pods: usize,
}

impl Bench {
    fn pod(&mut self, case: &Case, group: usize) -> Arc<PodInfo> {
        // Templates are shared as the converter shares them; distinct ones are what that case is about.
        let key = match case.name {
            "distinct-templates" => self.pods,
            "anti-affinity" => self.pods % 50,
            _ if case.gang > 1 => group,
            _ => 0,
        };
        let template = Arc::clone(self.templates.entry(key).or_insert_with(|| Arc::new((case.template)(key))));
        self.pods += 1;
        let uid = format!("pod-{}", self.pods);
        Arc::new(PodInfo::new(PodKey::new("bench", &uid), &uid, template))
    }

    /// Takes one decision; the number of Pods that it was about.
    fn decide(&mut self, case: &Case, number: usize) -> usize {
        if case.gang > 1 {
            return self.decide_gang(case, number);
        }
        let pod = self.pod(case, number);
        match self.core.schedule(&pod, &self.snapshot, number as u64) {
            Verdict::Placed(placement) => self.snapshot.add_pod(pod, &placement.node),
            Verdict::Unschedulable(verdict) => {
                if let Preemption::Proposed(plan) = verdict.preemption {
                    for victim in &plan.victims {
                        self.snapshot.remove_pod(&victim.uid);
                    }
                    self.snapshot.add_pod(pod, &plan.node);
                }
            }
        }
        1
    }

    fn decide_gang(&mut self, case: &Case, number: usize) -> usize {
        let pods: Vec<_> = (0..case.gang).map(|_| self.pod(case, number)).collect();
        let (gang, spec) = (gang(number), GangSpec { min_count: case.gang, ..GangSpec::default() });
        let request = GangRequest { gang: &gang, spec: &spec, pods: &pods, placed: 0 };
        let verdict = self.core.schedule_gang(request, &mut self.snapshot, number as u64, &|_, _| Vec::new());
        match verdict {
            GangVerdict::Placed { placed, .. } => placed.len(),
            GangVerdict::Unschedulable(_) => 0,
        }
    }
}

fn measure(case: &Case, nodes: usize, clock: &SystemClock) -> Figures {
    let mut snapshot = cluster(nodes);
    (case.setup)(&mut snapshot);
    let core = Core::new(vec![Profile::default_for("default-scheduler")]);
    let mut bench = Bench { core, snapshot, templates: Default::default(), pods: 0 };
    let decisions = (DECISIONS / case.gang).min(nodes * 30 / case.gang).max(10);
    for number in 0..decisions / 10 {
        bench.decide(case, number);
    }
    let start = clock.monotonic();
    let (mut times, mut pods) = (Vec::with_capacity(decisions), 0);
    for number in decisions..decisions * 2 {
        let before = clock.monotonic();
        pods += bench.decide(case, number);
        let after = clock.monotonic();
        times.push(after.saturating_sub(before));
        if after.saturating_sub(start) > LONGEST {
            break;
        }
    }
    let took = clock.monotonic().saturating_sub(start);
    times.sort_unstable();
    let at = |hundredths: usize| times[(times.len() * hundredths / 100).min(times.len() - 1)];
    let per_second = pods as f64 / took.as_secs_f64();
    Figures { case: case.name, nodes, per_second, p50: at(50), p99: at(99), upstream: case.upstream }
}

#[expect(clippy::print_stdout, reason = "printing the figures is what a benchmark is for")]
fn simulate() {
    for name in ["rsyslogd", "deadlock", "cells", "omega", "day", "huge"] {
        let clock = SystemClock::new();
        let text = fs_err::read_to_string(format!("{}/scenarios/{name}.yaml", env!("CARGO_MANIFEST_DIR")));
        let value = serde_saphyr::from_str(&text.expect("a shipped scenario")).expect("YAML");
        let report =
            carob_scheduler::sim::simulate(&carob_scheduler::sim::Scenario::parse(value).expect("a valid scenario"));
        println!("{} ({:.1?})\n{}", report.scenario, clock.monotonic(), report.table());
    }
}

#[expect(clippy::print_stdout, reason = "printing the figures is what a benchmark is for")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let json = arguments.iter().any(|argument| argument == "--json");
    if arguments.iter().any(|argument| argument == "--scenarios") {
        return simulate();
    }
    let only = arguments.iter().find(|argument| !argument.starts_with("--"));
    let clock = SystemClock::new();
    let mut documents = Vec::new();
    for case in CASES.iter().filter(|case| only.is_none_or(|only| case.name.contains(only.as_str()))) {
        for nodes in NODES {
            let figures = measure(case, nodes, &clock);
            let Figures { case, nodes, per_second, p50, p99, upstream } = figures;
            if json {
                documents.push(serde_json::json!({"case": case, "nodes": nodes, "podsPerSecond": per_second.round(),
                    "p50Micros": p50.as_micros(), "p99Micros": p99.as_micros(), "upstreamFloor": upstream}));
            } else {
                println!("{case:20} {nodes:6} nodes {per_second:10.0} pods/s  p50 {p50:>9.1?}  p99 {p99:>9.1?}");
            }
        }
    }
    if json {
        println!("{}", serde_json::Value::Array(documents));
    }
}
