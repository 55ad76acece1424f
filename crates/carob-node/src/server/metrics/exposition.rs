//! Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use carob_cri::v1::{
    ContainerState, ContainerStats, CpuUsage, ListContainersRequest, ListPodSandboxRequest, MemoryUsage,
    NetworkInterfaceUsage, PodSandboxMetadata, PodSandboxState, PodSandboxStats,
};
use http::{Response, StatusCode};
use jiff::Timestamp;

use super::{MachineUsage, started, stats, value};
use crate::probe::counts::{BUCKETS, Counted};
use crate::server::Shared;
use crate::server::routes::{RequestError, text};
use carob_streams::upgrade::Body;

type Started = BTreeMap<(String, String), Timestamp>;

pub(in crate::server) async fn resource(shared: &Arc<Shared>) -> Result<Response<Body>, RequestError> {
    let (stats, machine) = stats(shared).await?;
    let now_ms = shared.tools.clock.now().as_millisecond();
    Ok(text(StatusCode::OK, render_resource(&stats, &machine, &started(shared), now_ms)))
}

pub(in crate::server) async fn cadvisor(shared: &Arc<Shared>) -> Result<Response<Body>, RequestError> {
    let (stats, machine) = stats(shared).await?;
    let now = shared.tools.clock.now();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut out = render_cadvisor(&stats, &started(shared), now.as_millisecond());
    let mut cores = Metric::new("machine_cpu_cores", GAUGE, "Number of logical CPU cores.");
    cores.add(&[], cpus as f64, None);
    let mut memory = Metric::new("machine_memory_bytes", GAUGE, "Amount of memory installed on the machine.");
    memory.add(&[], machine.memory_total_bytes as f64, None);
    write(&mut out, [cores, memory]);
    Ok(text(StatusCode::OK, out))
}

/// What runs on the node (kubelet `pkg/kubelet/metrics`).
pub(in crate::server) async fn kubelet(shared: &Arc<Shared>) -> Result<Response<Body>, RequestError> {
    let failed = |error: carob_cri::CriError| RequestError::Internal(error.message);
    let sandboxes = shared.tools.cri.list_pod_sandbox(ListPodSandboxRequest::default()).await.map_err(failed)?.items;
    let containers =
        shared.tools.cri.list_containers(ListContainersRequest::default()).await.map_err(failed)?.containers;
    let running = sandboxes.iter().filter(|sandbox| sandbox.state() == PodSandboxState::SandboxReady).count();
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for container in &containers {
        *states.entry(state_name(container.state())).or_default() += 1;
    }
    Ok(text(StatusCode::OK, render_kubelet(&shared.node_name, running, &states)))
}

fn state_name(state: ContainerState) -> &'static str {
    match state {
        ContainerState::ContainerCreated => "created",
        ContainerState::ContainerRunning => "running",
        ContainerState::ContainerExited => "exited",
        ContainerState::ContainerUnknown => "unknown",
    }
}

fn render_kubelet(node: &str, running_pods: usize, containers: &BTreeMap<&str, usize>) -> String {
    let mut name = Metric::new("kubelet_node_name", GAUGE, "The node's name. The count is always 1.");
    name.add(&[("node", node)], 1.0, None);
    let mut pods = Metric::new("kubelet_running_pods", GAUGE, "Number of pods that have a running pod sandbox");
    pods.add(&[], running_pods as f64, None);
    let mut by_state = Metric::new("kubelet_running_containers", GAUGE, "Number of containers by state");
    for (state, count) in containers {
        by_state.add(&[("container_state", state)], *count as f64, None);
    }
    let mut out = String::new();
    write(&mut out, [name, pods, by_state]);
    out
}

pub(in crate::server) fn probes(shared: &Shared) -> Response<Body> {
    text(StatusCode::OK, render_probes(&shared.tools.probe_counts.all()))
}

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

/// One metric in the Prometheus text format.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    lines: Vec<String>,
}

impl Metric {
    fn new(name: &'static str, kind: &'static str, help: &'static str) -> Self {
        Self { name, kind, help, lines: Vec::new() }
    }

    fn add(&mut self, labels: &[(&str, &str)], value: f64, at_ms: Option<i64>) {
        self.add_as("", labels, value, at_ms);
    }

    /// A line of the metric's name with a suffix, as histograms have them.
    fn add_as(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64, at_ms: Option<i64>) {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let at = at_ms.map(|at| format!(" {at}")).unwrap_or_default();
        self.lines.push(format!("{}{suffix}{labels} {value}{at}", self.name));
    }

    /// What is not known is left out.
    fn put(&mut self, labels: &[(&str, &str)], value: Option<f64>, at_ms: i64) {
        if let Some(value) = value {
            self.add(labels, value, Some(at_ms));
        }
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn write(out: &mut String, metrics: impl IntoIterator<Item = Metric>) {
    for Metric { name, kind, help, lines } in metrics {
        if !lines.is_empty() {
            let written = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{}\n", lines.join("\n"));
            debug_assert!(written.is_ok(), "a String takes every write");
        }
    }
}

fn seconds(usage: Option<&CpuUsage>) -> Option<f64> {
    usage.and_then(|usage| value(usage.usage_core_nano_seconds)).map(|ns| ns as f64 / 1e9)
}

fn bytes(usage: Option<&MemoryUsage>, of: impl Fn(&MemoryUsage) -> Option<u64>) -> Option<f64> {
    usage.and_then(of).map(|bytes| bytes as f64)
}

fn working_set(usage: Option<&MemoryUsage>) -> Option<f64> {
    bytes(usage, |usage| value(usage.working_set_bytes))
}

fn since(started: &Started, uid: &str, container: &str) -> Option<f64> {
    started.get(&(uid.to_owned(), container.to_owned())).map(|at| at.as_millisecond() as f64 / 1e3)
}

fn meta(pod: &PodSandboxStats) -> Option<&PodSandboxMetadata> {
    pod.attributes.as_ref()?.metadata.as_ref()
}

fn name(container: &ContainerStats) -> Option<&str> {
    container.attributes.as_ref()?.metadata.as_ref().map(|meta| meta.name.as_str())
}

fn render_resource(stats: &[PodSandboxStats], machine: &MachineUsage, started: &Started, now_ms: i64) -> String {
    let mut container_cpu =
        Metric::new("container_cpu_usage_seconds_total", COUNTER, "Processor time of the container");
    let mut container_memory = Metric::new("container_memory_working_set_bytes", GAUGE, "Working set of the container");
    let mut container_start =
        Metric::new("container_start_time_seconds", GAUGE, "When the container began, in seconds since 1970");
    let mut container_swap = Metric::new("container_swap_usage_bytes", GAUGE, "Swap that the container uses");
    let mut node_cpu = Metric::new("node_cpu_usage_seconds_total", COUNTER, "Processor time of the node");
    let mut node_memory = Metric::new("node_memory_working_set_bytes", GAUGE, "Working set of the node");
    let mut pod_cpu = Metric::new("pod_cpu_usage_seconds_total", COUNTER, "Processor time of the pod");
    let mut pod_memory = Metric::new("pod_memory_working_set_bytes", GAUGE, "Working set of the pod");
    for pod in stats {
        let (Some(meta), Some(linux)) = (meta(pod), &pod.linux) else { continue };
        let of_pod = [("namespace", meta.namespace.as_str()), ("pod", meta.name.as_str())];
        pod_cpu.put(&of_pod, seconds(linux.cpu.as_ref()), now_ms);
        pod_memory.put(&of_pod, working_set(linux.memory.as_ref()), now_ms);
        for container in &linux.containers {
            let Some(name) = name(container) else { continue };
            let labels = [("container", name), of_pod[0], of_pod[1]];
            container_cpu.put(&labels, seconds(container.cpu.as_ref()), now_ms);
            container_memory.put(&labels, working_set(container.memory.as_ref()), now_ms);
            container_start.put(&labels, since(started, &meta.uid, name), now_ms);
            let swap = container.swap.as_ref().and_then(|swap| value(swap.swap_usage_bytes));
            container_swap.put(&labels, swap.map(|bytes| bytes as f64), now_ms);
        }
    }
    node_cpu.add(&[], machine.cpu_ns as f64 / 1e9, Some(now_ms));
    let used = machine.memory_total_bytes.saturating_sub(machine.memory_available_bytes);
    node_memory.add(&[], used as f64, Some(now_ms));
    let mut error = Metric::new("resource_scrape_error", GAUGE, "1 if the numbers could not be had");
    error.add(&[], 0.0, None);
    let mut out = String::new();
    let of_containers = [container_cpu, container_memory, container_start, container_swap];
    write(&mut out, of_containers.into_iter().chain([node_cpu, node_memory, pod_cpu, pod_memory, error]));
    out
}

/// The metrics of cAdvisor that dashboards and rules read, with its labels.
fn render_cadvisor(stats: &[PodSandboxStats], started: &Started, now_ms: i64) -> String {
    let mut cpu = Metric::new("container_cpu_usage_seconds_total", COUNTER, "Cumulative cpu time consumed in seconds.");
    let mut usage = Metric::new("container_memory_usage_bytes", GAUGE, "Current memory usage in bytes.");
    let mut working = Metric::new("container_memory_working_set_bytes", GAUGE, "Current working set in bytes.");
    let mut rss = Metric::new("container_memory_rss", GAUGE, "Size of RSS in bytes.");
    let mut faults = Metric::new("container_memory_failures_total", COUNTER, "Memory faults.");
    let mut swap = Metric::new("container_memory_swap", GAUGE, "Container swap usage in bytes.");
    let mut disk = Metric::new("container_fs_usage_bytes", GAUGE, "Bytes that are consumed on this filesystem.");
    let mut inodes = Metric::new("container_fs_inodes_used", GAUGE, "Inodes that are used on this filesystem.");
    let mut start = Metric::new("container_start_time_seconds", GAUGE, "Start time of the container since 1970.");
    let mut processes = Metric::new("container_processes", GAUGE, "Number of processes.");
    type Count = fn(&NetworkInterfaceUsage) -> Option<u64>;
    let mut network = [
        ("container_network_receive_bytes_total", (|usage| value(usage.rx_bytes)) as Count),
        ("container_network_receive_errors_total", |usage| value(usage.rx_errors)),
        ("container_network_transmit_bytes_total", |usage| value(usage.tx_bytes)),
        ("container_network_transmit_errors_total", |usage| value(usage.tx_errors)),
    ]
    .map(|(name, count)| (Metric::new(name, COUNTER, "Cumulative count of the interface."), count));
    for pod in stats {
        let (Some(meta), Some(linux)) = (meta(pod), &pod.linux) else { continue };
        let id = pod.attributes.as_ref().map(|attributes| attributes.id.as_str()).unwrap_or_default();
        // An empty container stands for the Pod as a whole, as in cAdvisor.
        let whole = [("container", ""), ("id", id), ("namespace", &meta.namespace), ("pod", &meta.name)];
        cpu.put(&whole, seconds(linux.cpu.as_ref()), now_ms);
        working.put(&whole, working_set(linux.memory.as_ref()), now_ms);
        let count = linux.process.as_ref().and_then(|process| value(process.process_count));
        processes.put(&whole, count.map(|count| count as f64), now_ms);
        for interface in linux.network.iter().flat_map(|network| &network.interfaces) {
            let labels = [whole[1], ("interface", interface.name.as_str()), whole[2], whole[3]];
            for (metric, count) in &mut network {
                metric.put(&labels, count(interface).map(|count| count as f64), now_ms);
            }
        }
        for container in &linux.containers {
            let Some(name) = name(container) else { continue };
            let id = container.attributes.as_ref().map(|attributes| attributes.id.as_str()).unwrap_or_default();
            let labels = [("container", name), ("id", id), whole[2], whole[3]];
            let memory = container.memory.as_ref();
            cpu.put(&labels, seconds(container.cpu.as_ref()), now_ms);
            usage.put(&labels, bytes(memory, |usage| value(usage.usage_bytes)), now_ms);
            working.put(&labels, working_set(memory), now_ms);
            rss.put(&labels, bytes(memory, |usage| value(usage.rss_bytes)), now_ms);
            for (kind, count) in [
                ("pgfault", bytes(memory, |usage| value(usage.page_faults))),
                ("pgmajfault", bytes(memory, |usage| value(usage.major_page_faults))),
            ] {
                let labels =
                    [labels[0], ("failure_type", kind), labels[1], labels[2], labels[3], ("scope", "container")];
                faults.put(&labels, count, now_ms);
            }
            let swapped = container.swap.as_ref().and_then(|swap| value(swap.swap_usage_bytes));
            swap.put(&labels, swapped.map(|bytes| bytes as f64), now_ms);
            let layer = container.writable_layer.as_ref();
            let on_disk = layer.and_then(|layer| value(layer.used_bytes)).map(|bytes| bytes as f64);
            disk.put(&labels, on_disk, now_ms);
            let count = layer.and_then(|layer| value(layer.inodes_used)).map(|count| count as f64);
            inodes.put(&labels, count, now_ms);
            start.put(&labels, since(started, &meta.uid, name), now_ms);
        }
    }
    let mut out = String::new();
    let network = network.into_iter().map(|(metric, _)| metric);
    let first = [cpu, usage, working, rss, faults, swap, disk, inodes, start, processes];
    write(&mut out, first.into_iter().chain(network));
    out
}

/// Upstream `pkg/kubelet/prober`: `prober_probe_total` and `prober_probe_duration_seconds`.
fn render_probes(counted: &[Counted]) -> String {
    let mut total = Metric::new(
        "prober_probe_total",
        COUNTER,
        "Cumulative number of a liveness, readiness or startup probe for a container by result.",
    );
    let mut took =
        Metric::new("prober_probe_duration_seconds", "histogram", "Duration in seconds for a probe response.");
    for one in counted {
        let of = |result| {
            [
                ("container", one.container.as_str()),
                ("namespace", one.pod.namespace.as_str()),
                ("pod", one.pod.name.as_str()),
                ("pod_uid", one.pod.uid.as_str()),
                ("probe_type", one.kind.word()),
                ("result", result),
            ]
        };
        for (result, count) in [("failed", one.failed), ("successful", one.successful), ("unknown", one.unknown)] {
            if count > 0 {
                total.add(&of(result), count as f64, None);
            }
        }
        let labels = of("");
        let labels = [labels[0], labels[1], labels[2], labels[4]];
        let mut below = 0u64;
        for (bound, count) in BUCKETS.iter().zip(one.buckets) {
            below = below.saturating_add(count);
            let bound = bound.to_string();
            let labels = [labels[0], ("le", bound.as_str()), labels[1], labels[2], labels[3]];
            took.add_as("_bucket", &labels, below as f64, None);
        }
        let all = one.failed.saturating_add(one.successful).saturating_add(one.unknown);
        let infinite = [labels[0], ("le", "+Inf"), labels[1], labels[2], labels[3]];
        took.add_as("_bucket", &infinite, all as f64, None);
        took.add_as("_sum", &labels, one.seconds, None);
        took.add_as("_count", &labels, all as f64, None);
    }
    let mut out = String::new();
    write(&mut out, [total, took]);
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use carob_cri::v1::{
        ContainerAttributes, ContainerMetadata, LinuxPodSandboxStats, NetworkUsage, PodSandboxAttributes, UInt64Value,
    };

    use super::*;
    use crate::pod::PodId;
    use crate::probe::counts::ProbeCounts;
    use crate::probe::{Answer, ProbeKind};

    fn number(value: u64) -> UInt64Value {
        UInt64Value { value }
    }

    fn stats() -> PodSandboxStats {
        let meta = PodSandboxMetadata {
            name: "p\"q".to_owned(),
            namespace: "ns".to_owned(),
            uid: "u".to_owned(),
            ..PodSandboxMetadata::default()
        };
        let container = ContainerStats {
            attributes: Some(ContainerAttributes {
                id: "1".to_owned(),
                metadata: Some(ContainerMetadata { name: "c".to_owned(), attempt: 0 }),
                ..ContainerAttributes::default()
            }),
            memory: Some(MemoryUsage { rss_bytes: Some(number(5)), ..MemoryUsage::default() }),
            ..ContainerStats::default()
        };
        let eth0 = NetworkInterfaceUsage {
            name: "eth0".to_owned(),
            rx_bytes: Some(number(7)),
            ..NetworkInterfaceUsage::default()
        };
        let network = NetworkUsage { interfaces: vec![eth0], ..NetworkUsage::default() };
        PodSandboxStats {
            attributes: Some(PodSandboxAttributes { metadata: Some(meta), ..PodSandboxAttributes::default() }),
            linux: Some(LinuxPodSandboxStats {
                cpu: Some(CpuUsage { usage_core_nano_seconds: Some(number(1_500_000_000)), ..CpuUsage::default() }),
                network: Some(network),
                containers: vec![container],
                ..LinuxPodSandboxStats::default()
            }),
        }
    }

    #[test]
    fn what_runs_on_a_node_is_counted() {
        let states = BTreeMap::from([("exited", 2), ("running", 1)]);
        let text = render_kubelet("n", 1, &states);
        for line in [
            "kubelet_node_name{node=\"n\"} 1",
            "kubelet_running_pods 1",
            "kubelet_running_containers{container_state=\"exited\"} 2",
        ] {
            assert!(text.lines().any(|own| own == line), "{line}: {text}");
        }
    }

    #[test]
    fn metrics_carry_names_and_times() {
        let machine = MachineUsage { cpu_ns: 0, memory_total_bytes: 10, memory_available_bytes: 4 };
        let started =
            BTreeMap::from([(("u".to_owned(), "c".to_owned()), Timestamp::from_second(3).expect("in the calendar"))]);
        let shown = render_resource(&[stats()], &machine, &started, 7);
        for line in [
            "pod_cpu_usage_seconds_total{namespace=\"ns\",pod=\"p\\\"q\"} 1.5 7\n",
            "node_memory_working_set_bytes 6 7\n",
            "container_start_time_seconds{container=\"c\",namespace=\"ns\",pod=\"p\\\"q\"} 3 7\n",
            "resource_scrape_error 0\n",
        ] {
            assert!(shown.contains(line), "{line} in {shown}");
        }
        assert!(!shown.contains("pod_memory"), "what is not known is left out: {shown}");
        let shown = render_cadvisor(&[stats()], &started, 7);
        for line in [
            "container_memory_rss{container=\"c\",id=\"1\",namespace=\"ns\",pod=\"p\\\"q\"} 5 7\n",
            "container_network_receive_bytes_total{id=\"\",interface=\"eth0\",namespace=\"ns\",pod=\"p\\\"q\"} 7 7\n",
        ] {
            assert!(shown.contains(line), "{line} in {shown}");
        }
    }

    #[test]
    fn probes_are_counted_by_result() {
        let counts = ProbeCounts::default();
        let pod = PodId { namespace: "ns".to_owned(), name: "p".to_owned(), uid: "u".to_owned() };
        counts.note(&pod, "c", ProbeKind::Liveness, &Answer::Success, Duration::from_millis(20));
        counts.note(&pod, "c", ProbeKind::Liveness, &Answer::Failure("no".to_owned()), Duration::from_secs(60));
        let shown = render_probes(&counts.all());
        for line in [
            "prober_probe_total{container=\"c\",namespace=\"ns\",pod=\"p\",pod_uid=\"u\",probe_type=\"Liveness\",result=\"failed\"} 1\n",
            "prober_probe_duration_seconds_bucket{container=\"c\",le=\"0.025\",namespace=\"ns\",pod=\"p\",probe_type=\"Liveness\"} 1\n",
            "prober_probe_duration_seconds_bucket{container=\"c\",le=\"+Inf\",namespace=\"ns\",pod=\"p\",probe_type=\"Liveness\"} 2\n",
            "prober_probe_duration_seconds_count{container=\"c\",namespace=\"ns\",pod=\"p\",probe_type=\"Liveness\"} 2\n",
        ] {
            assert!(shown.contains(line), "{line} in {shown}");
        }
        counts.forget("u");
        assert_eq!(render_probes(&counts.all()), "");
    }
}
