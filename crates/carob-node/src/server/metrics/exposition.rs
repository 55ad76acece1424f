//! Prometheus' text format.

use std::collections::BTreeMap;
use std::sync::Arc;

use carob_cri::v1::{
    Container, ContainerState, ContainerStats, CpuUsage, ListContainersRequest, ListPodSandboxRequest, MemoryUsage,
    NetworkInterfaceUsage, PodSandboxMetadata, PodSandboxState, PodSandboxStats,
};
use carob_kit::metrics::{Exposition, Family, Kind, write_process_metrics};
use http::{Response, StatusCode};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{MachineUsage, started, stats, value};
use crate::pod::PodId;
use crate::probe::counts::Counted;
use crate::server::Shared;
use crate::server::routes::{RequestError, text};
use crate::volumes::Figures;
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
    let containers = shared.tools.cri.list_containers(ListContainersRequest::default()).await;
    let containers = containers.map_err(|error| RequestError::Internal(error.message))?.containers;
    let mut out = Exposition::default();
    write_cadvisor(&mut out, &stats, &images(containers), &started(shared), now.as_millisecond());
    out.single("machine_cpu_cores", Kind::Gauge, "Number of logical CPU cores.", cpus);
    let help = "Amount of memory installed on the machine.";
    out.single("machine_memory_bytes", Kind::Gauge, help, machine.memory_total_bytes);
    Ok(text(StatusCode::OK, out.into_text()))
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
    let mut out = Exposition::default();
    write_kubelet(&mut out, &shared.node_name, running, &states);
    write_volumes(&mut out, &shared.source.pods(), &shared.tools.volumes.figures().await);
    shared.tools.figures.write(&mut out);
    write_process_metrics(&mut out);
    Ok(text(StatusCode::OK, out.into_text()))
}

/// The image of each container, by its id, as its Pod names it.
fn images(containers: Vec<Container>) -> BTreeMap<String, String> {
    let of = |container: Container| {
        let image = container.image.unwrap_or_default();
        let name = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
        (container.id, name)
    };
    containers.into_iter().map(of).collect()
}

fn state_name(state: ContainerState) -> &'static str {
    match state {
        ContainerState::ContainerCreated => "created",
        ContainerState::ContainerRunning => "running",
        ContainerState::ContainerExited => "exited",
        ContainerState::ContainerUnknown => "unknown",
    }
}

fn write_kubelet(out: &mut Exposition, node: &str, running_pods: usize, containers: &BTreeMap<&str, usize>) {
    let help = "The node's name. The count is always 1.";
    out.family("kubelet_node_name", Kind::Gauge, help).sample(&[("node", node)], 1);
    let help = "Number of pods that have a running pod sandbox";
    out.single("kubelet_running_pods", Kind::Gauge, help, running_pods);
    let by_state = out.family("kubelet_running_containers", Kind::Gauge, "Number of containers by state");
    for (state, count) in containers {
        by_state.sample(&[("container_state", state)], count);
    }
}

/// How full the volumes behind claims are (kubelet `pkg/kubelet/metrics/collectors/volume_stats.go`). A claim that several Pods
/// use is told once.
fn write_volumes(out: &mut Exposition, pods: &[Arc<Pod>], figures: &[Figures]) {
    let namespaces: BTreeMap<String, String> =
        pods.iter().map(|pod| PodId::of(pod)).map(|id| (id.uid, id.namespace)).collect();
    let claims: BTreeMap<(&str, &str), &Figures> = figures
        .iter()
        .filter_map(|figures| Some(((namespaces.get(&figures.uid)?.as_str(), figures.claim.as_str()), figures)))
        .collect();
    type Value = fn(&Figures) -> u64;
    let families: [(&str, &str, Value); 6] = [
        ("kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume", |of| of.capacity_bytes),
        ("kubelet_volume_stats_available_bytes", "Number of available bytes in the volume", |of| of.available_bytes),
        ("kubelet_volume_stats_used_bytes", "Number of used bytes in the volume", |of| of.used_bytes),
        ("kubelet_volume_stats_inodes", "Maximum number of inodes in the volume", |of| of.inodes),
        ("kubelet_volume_stats_inodes_free", "Number of free inodes in the volume", |of| of.inodes_free),
        ("kubelet_volume_stats_inodes_used", "Number of used inodes in the volume", |of| {
            of.inodes.saturating_sub(of.inodes_free)
        }),
    ];
    for (name, help, value) in families {
        let family = out.family(name, Kind::Gauge, help);
        for ((namespace, claim), figures) in &claims {
            family.sample(&[("namespace", namespace), ("persistentvolumeclaim", claim)], value(figures));
        }
    }
}

pub(in crate::server) fn probes(shared: &Shared) -> Response<Body> {
    text(StatusCode::OK, render_probes(&shared.tools.probe_counts.all()))
}

/// Adds a sample; what is not known is left out.
fn put(family: &mut Family, labels: &[(&str, &str)], value: Option<f64>, at_ms: i64) {
    if let Some(value) = value {
        family.sample_at(labels, value, at_ms);
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
        Family::new("container_cpu_usage_seconds_total", Kind::Counter, "Processor time of the container");
    let mut container_memory =
        Family::new("container_memory_working_set_bytes", Kind::Gauge, "Working set of the container");
    let mut container_start =
        Family::new("container_start_time_seconds", Kind::Gauge, "When the container began, in seconds since 1970");
    let mut container_swap = Family::new("container_swap_usage_bytes", Kind::Gauge, "Swap that the container uses");
    let mut node_cpu = Family::new("node_cpu_usage_seconds_total", Kind::Counter, "Processor time of the node");
    let mut node_memory = Family::new("node_memory_working_set_bytes", Kind::Gauge, "Working set of the node");
    let mut pod_cpu = Family::new("pod_cpu_usage_seconds_total", Kind::Counter, "Processor time of the pod");
    let mut pod_memory = Family::new("pod_memory_working_set_bytes", Kind::Gauge, "Working set of the pod");
    for pod in stats {
        let (Some(meta), Some(linux)) = (meta(pod), &pod.linux) else { continue };
        let of_pod = [("namespace", meta.namespace.as_str()), ("pod", meta.name.as_str())];
        put(&mut pod_cpu, &of_pod, seconds(linux.cpu.as_ref()), now_ms);
        put(&mut pod_memory, &of_pod, working_set(linux.memory.as_ref()), now_ms);
        for container in &linux.containers {
            let Some(name) = name(container) else { continue };
            let labels = [("container", name), of_pod[0], of_pod[1]];
            put(&mut container_cpu, &labels, seconds(container.cpu.as_ref()), now_ms);
            put(&mut container_memory, &labels, working_set(container.memory.as_ref()), now_ms);
            put(&mut container_start, &labels, since(started, &meta.uid, name), now_ms);
            let swap = container.swap.as_ref().and_then(|swap| value(swap.swap_usage_bytes));
            put(&mut container_swap, &labels, swap.map(|bytes| bytes as f64), now_ms);
        }
    }
    node_cpu.sample_at(&[], machine.cpu_ns as f64 / 1e9, now_ms);
    let used = machine.memory_total_bytes.saturating_sub(machine.memory_available_bytes);
    node_memory.sample_at(&[], used as f64, now_ms);
    let mut error = Family::new("resource_scrape_error", Kind::Gauge, "1 if the numbers could not be had");
    error.sample(&[], 0.0);
    let of_containers = [container_cpu, container_memory, container_start, container_swap];
    let mut out = Exposition::default();
    out.add(of_containers.into_iter().chain([node_cpu, node_memory, pod_cpu, pod_memory, error]));
    out.into_text()
}

/// The metrics of cAdvisor that dashboards and rules read, with its labels.
fn write_cadvisor(
    out: &mut Exposition,
    stats: &[PodSandboxStats],
    images: &BTreeMap<String, String>,
    started: &Started,
    now_ms: i64,
) {
    let mut cpu =
        Family::new("container_cpu_usage_seconds_total", Kind::Counter, "Cumulative cpu time consumed in seconds.");
    let mut usage = Family::new("container_memory_usage_bytes", Kind::Gauge, "Current memory usage in bytes.");
    let mut working = Family::new("container_memory_working_set_bytes", Kind::Gauge, "Current working set in bytes.");
    let mut rss = Family::new("container_memory_rss", Kind::Gauge, "Size of RSS in bytes.");
    let mut faults = Family::new("container_memory_failures_total", Kind::Counter, "Memory faults.");
    let mut swap = Family::new("container_memory_swap", Kind::Gauge, "Container swap usage in bytes.");
    let mut disk = Family::new("container_fs_usage_bytes", Kind::Gauge, "Bytes that are consumed on this filesystem.");
    let mut inodes = Family::new("container_fs_inodes_used", Kind::Gauge, "Inodes that are used on this filesystem.");
    let mut start = Family::new("container_start_time_seconds", Kind::Gauge, "Start time of the container since 1970.");
    let mut processes = Family::new("container_processes", Kind::Gauge, "Number of processes.");
    type Count = fn(&NetworkInterfaceUsage) -> Option<u64>;
    let mut network = [
        ("container_network_receive_bytes_total", (|usage| value(usage.rx_bytes)) as Count),
        ("container_network_receive_errors_total", |usage| value(usage.rx_errors)),
        ("container_network_transmit_bytes_total", |usage| value(usage.tx_bytes)),
        ("container_network_transmit_errors_total", |usage| value(usage.tx_errors)),
    ]
    .map(|(name, count)| (Family::new(name, Kind::Counter, "Cumulative count of the interface."), count));
    for pod in stats {
        let (Some(meta), Some(linux)) = (meta(pod), &pod.linux) else { continue };
        let id = pod.attributes.as_ref().map(|attributes| attributes.id.as_str()).unwrap_or_default();
        // An empty container stands for the Pod as a whole, as in cAdvisor.
        let whole = [
            ("container", ""),
            ("id", id),
            ("image", ""),
            ("name", ""),
            ("namespace", &meta.namespace),
            ("pod", &meta.name),
        ];
        put(&mut cpu, &whole, seconds(linux.cpu.as_ref()), now_ms);
        put(&mut working, &whole, working_set(linux.memory.as_ref()), now_ms);
        let count = linux.process.as_ref().and_then(|process| value(process.process_count));
        put(&mut processes, &whole, count.map(|count| count as f64), now_ms);
        for interface in linux.network.iter().flat_map(|network| &network.interfaces) {
            let interface_label = ("interface", interface.name.as_str());
            let labels = [whole[0], whole[1], whole[2], interface_label, whole[3], whole[4], whole[5]];
            for (metric, count) in &mut network {
                put(metric, &labels, count(interface).map(|count| count as f64), now_ms);
            }
        }
        for container in &linux.containers {
            let Some(name) = name(container) else { continue };
            let id = container.attributes.as_ref().map(|attributes| attributes.id.as_str()).unwrap_or_default();
            // Rules of dashboards tell containers from groups by an image that is not empty.
            let image = images.get(id).map_or("", String::as_str);
            let labels = [("container", name), ("id", id), ("image", image), ("name", id), whole[4], whole[5]];
            let memory = container.memory.as_ref();
            put(&mut cpu, &labels, seconds(container.cpu.as_ref()), now_ms);
            put(&mut usage, &labels, bytes(memory, |usage| value(usage.usage_bytes)), now_ms);
            put(&mut working, &labels, working_set(memory), now_ms);
            put(&mut rss, &labels, bytes(memory, |usage| value(usage.rss_bytes)), now_ms);
            for (kind, count) in [
                ("pgfault", bytes(memory, |usage| value(usage.page_faults))),
                ("pgmajfault", bytes(memory, |usage| value(usage.major_page_faults))),
            ] {
                let labels = [&labels[..], &[("failure_type", kind), ("scope", "container")]].concat();
                put(&mut faults, &labels, count, now_ms);
            }
            let swapped = container.swap.as_ref().and_then(|swap| value(swap.swap_usage_bytes));
            put(&mut swap, &labels, swapped.map(|bytes| bytes as f64), now_ms);
            let layer = container.writable_layer.as_ref();
            let on_disk = layer.and_then(|layer| value(layer.used_bytes)).map(|bytes| bytes as f64);
            put(&mut disk, &labels, on_disk, now_ms);
            let count = layer.and_then(|layer| value(layer.inodes_used)).map(|count| count as f64);
            put(&mut inodes, &labels, count, now_ms);
            put(&mut start, &labels, since(started, &meta.uid, name), now_ms);
        }
    }
    let network = network.into_iter().map(|(metric, _)| metric);
    let first = [cpu, usage, working, rss, faults, swap, disk, inodes, start, processes];
    out.add(first.into_iter().chain(network));
}

/// Upstream `pkg/kubelet/prober`: `prober_probe_total` and `prober_probe_duration_seconds`.
fn render_probes(counted: &[Counted]) -> String {
    let mut total = Family::new(
        "prober_probe_total",
        Kind::Counter,
        "Cumulative number of a liveness, readiness or startup probe for a container by result.",
    );
    let mut took =
        Family::new("prober_probe_duration_seconds", Kind::Histogram, "Duration in seconds for a probe response.");
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
                total.sample(&of(result), count as f64);
            }
        }
        let labels = of("");
        took.histogram(&[labels[0], labels[1], labels[2], labels[4]], &one.took);
    }
    let mut out = Exposition::default();
    out.add([total, took]);
    out.into_text()
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
        let mut out = Exposition::default();
        write_kubelet(&mut out, "n", 1, &states);
        let text = out.into_text();
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
        let mut out = Exposition::default();
        let images = BTreeMap::from([("1".to_owned(), "busybox:1".to_owned())]);
        write_cadvisor(&mut out, &[stats()], &images, &started, 7);
        let shown = out.into_text();
        for line in [
            "container_memory_rss{container=\"c\",id=\"1\",image=\"busybox:1\",name=\"1\",namespace=\"ns\",pod=\"p\\\"q\"} 5 7\n",
            "container_network_receive_bytes_total{container=\"\",id=\"\",image=\"\",interface=\"eth0\",name=\"\",namespace=\"ns\",pod=\"p\\\"q\"} 7 7\n",
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
            "prober_probe_duration_seconds_bucket{container=\"c\",namespace=\"ns\",pod=\"p\",probe_type=\"Liveness\",le=\"0.025\"} 1\n",
            "prober_probe_duration_seconds_bucket{container=\"c\",namespace=\"ns\",pod=\"p\",probe_type=\"Liveness\",le=\"+Inf\"} 2\n",
            "prober_probe_duration_seconds_count{container=\"c\",namespace=\"ns\",pod=\"p\",probe_type=\"Liveness\"} 2\n",
        ] {
            assert!(shown.contains(line), "{line} in {shown}");
        }
        counts.forget("u");
        assert_eq!(render_probes(&counts.all()), "");
    }
}
