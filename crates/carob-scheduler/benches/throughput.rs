//! How many Pods a second the core alone places: per case and cluster size, with the time of one decision at the median
//! and the 99th percentile, and the memory of the whole process. A table goes to standard error, one JSON document to
//! standard output. Arguments: a part of a case's name to run only that, or `--scenarios` to run the simulator's shipped
//! scenarios instead.

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use carob_kit::{Clock, SystemClock};
use carob_scheduler::{
    AffinityTerm, Bytes, Core, GangRef, GangRequest, GangSource, GangSpec, GangVerdict, Labels, MilliCpu, NodeInfo,
    NodeRequirement, NodeSelectorTerm, Operator, PodInfo, PodKey, PodTemplate, Preemption, Profile, Requirement,
    Resources, Selector, Snapshot, SpreadConstraint, Verdict, WhenUnsatisfiable,
};
use serde_json::{Value, json};

const NODES: [usize; 4] = [100, 1_000, 5_000, 15_000];
/// Pods that are decided about per case; before these, a tenth as many warm up.
const PODS: usize = 5_000;
/// Upstream's floors are for so many nodes.
const FLOOR_NODES: usize = 5_000;
/// Each case runs in a process of its own, which is told by this what to run.
const ONE: &str = "--one";
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
    /// How many templates there are; the pods of a case take them in turn.
    templates: usize,
    gang: usize,
    /// How many Pods fit, per hundred nodes.
    room: usize,
}

const PLAIN: Case =
    Case { name: "plain", upstream: Some(270), setup: empty, template: plain, templates: 1, gang: 1, room: 4_000 };

const CASES: [Case; 9] = [
    PLAIN,
    Case { name: "node-affinity", upstream: Some(220), template: node_affinity, room: 800, ..PLAIN },
    Case { name: "pod-affinity", upstream: Some(35), template: pod_affinity, room: 400, ..PLAIN },
    Case { name: "anti-affinity", upstream: Some(60), template: anti_affinity, templates: 50, ..PLAIN },
    Case { name: "spread", upstream: Some(85), template: spread, ..PLAIN },
    Case { name: "preemption", upstream: Some(160), setup: full, template: important, room: 100, ..PLAIN },
    Case { name: "distinct-templates", upstream: None, template: distinct, templates: usize::MAX, ..PLAIN },
    Case { name: "gang-8", upstream: None, template: gang_member, templates: usize::MAX, gang: 8, ..PLAIN },
    Case { name: "gang-64", upstream: None, template: gang_member, templates: usize::MAX, gang: 64, ..PLAIN },
];

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
    let group = format!("group-{number}");
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
    templates: HashMap<usize, Arc<PodTemplate>>,
    pods: usize,
}

impl Bench {
    fn pod(&mut self, case: &Case, number: usize) -> Arc<PodInfo> {
        // Templates are shared as the converter shares them.
        let key = number % case.templates;
        let template = Arc::clone(self.templates.entry(key).or_insert_with(|| Arc::new((case.template)(key))));
        self.pods += 1;
        let uid = format!("pod-{}", self.pods);
        Arc::new(PodInfo::new(PodKey::new("bench", &uid), &uid, template))
    }

    /// Takes one decision; the number of Pods that got room by it.
    fn decide(&mut self, case: &Case, number: usize) -> usize {
        if case.gang > 1 {
            return self.decide_gang(case, number);
        }
        let pod = self.pod(case, number);
        match self.core.schedule(&pod, &self.snapshot, number as u64) {
            Verdict::Placed(placement) => {
                self.snapshot.add_pod(pod, &placement.node);
                1
            }
            Verdict::Unschedulable(verdict) => {
                let Preemption::Proposed(plan) = verdict.preemption else { return 0 };
                for victim in &plan.victims {
                    self.snapshot.remove_pod(&victim.uid);
                }
                self.snapshot.add_pod(pod, &plan.node);
                1
            }
        }
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

/// Runs one case; the figures as JSON.
fn measure(case: &Case, nodes: usize) -> Value {
    let clock = SystemClock::new();
    let mut snapshot = cluster(nodes);
    (case.setup)(&mut snapshot);
    let core = Core::new(vec![Profile::default_for("default-scheduler")]);
    let mut bench = Bench { core, snapshot, templates: HashMap::new(), pods: 0 };
    // With the tenth that warms up, nine tenths of what fits.
    let pods = PODS.min(case.room * nodes / 100 * 9 / 11);
    let decisions = (pods / case.gang).max(1);
    for number in 0..decisions / 10 {
        bench.decide(case, number);
    }
    let start = clock.monotonic();
    let (mut times, mut placed) = (Vec::with_capacity(decisions), 0);
    for number in decisions..decisions * 2 {
        let before = clock.monotonic();
        placed += bench.decide(case, number);
        let after = clock.monotonic();
        times.push(after.saturating_sub(before));
        if after.saturating_sub(start) > LONGEST {
            break;
        }
    }
    let took = clock.monotonic().saturating_sub(start);
    assert_eq!(placed, times.len() * case.gang, "there is room for every Pod of {}", case.name);
    times.sort_unstable();
    let micros = |hundredths: usize| {
        let time: Duration = times[(times.len() * hundredths / 100).min(times.len() - 1)];
        (time.as_secs_f64() * 1e7).round() / 10.0
    };
    let per_second = (placed as f64 / took.as_secs_f64()).round();
    let floor = case.upstream.filter(|_| nodes == FLOOR_NODES);
    json!({
        "case": case.name,
        "nodes": nodes,
        "pods": placed,
        "podsPerSecond": per_second,
        "p50Micros": micros(50),
        "p99Micros": micros(99),
        "peakRssKiB": peak_rss_kib(),
        "upstreamFloor": floor,
        "timesUpstream": floor.map(|floor| (per_second / f64::from(floor)).round()),
    })
}

/// The most memory that this process had resident (proc_pid_status(5), VmHWM).
fn peak_rss_kib() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it is always there");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Runs a case in a process of its own, so that its memory is its own.
fn measure_apart(case: &Case, nodes: usize) -> Value {
    let program = std::env::current_exe().expect("this program's path");
    let output = Command::new(program).args([ONE, case.name, &nodes.to_string()]).output().expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} on {nodes} nodes: {errors}", case.name);
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

fn row(figures: &Value) -> String {
    let number = |name: &str| figures[name].as_f64().unwrap_or_default();
    let mut row = format!(
        "{:20} {:>6} {:>10.0} {:>9.1} {:>9.1} {:>8.1}",
        figures["case"].as_str().unwrap_or_default(),
        number("nodes"),
        number("podsPerSecond"),
        number("p50Micros"),
        number("p99Micros"),
        number("peakRssKiB") / 1024.0,
    );
    if figures["upstreamFloor"].is_number() {
        row.push_str(&format!(" {:>9.0} {:>7.0}", number("upstreamFloor"), number("timesUpstream")));
    }
    row
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

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "printing the figures is what a benchmark is for")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let only = match *words.as_slice() {
        ["--scenarios"] => return simulate(),
        [ONE, name, nodes] => {
            let case = CASES.iter().find(|case| case.name == name).expect("a case");
            return println!("{}", measure(case, nodes.parse().expect("a number of nodes")));
        }
        [only] => only,
        _ => "",
    };
    eprintln!(
        "{:20} {:>6} {:>10} {:>9} {:>9} {:>8} {:>9} {:>7}",
        "CASE", "NODES", "PODS/S", "P50 us", "P99 us", "RSS MiB", "UPSTREAM", "TIMES"
    );
    let mut all = Vec::new();
    for case in CASES.iter().filter(|case| case.name.contains(only)) {
        for nodes in NODES {
            let figures = measure_apart(case, nodes);
            eprintln!("{}", row(&figures));
            all.push(figures);
        }
    }
    println!("{}", json!({"decisions": all}));
}
