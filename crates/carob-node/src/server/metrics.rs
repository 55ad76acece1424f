//! `/stats/summary` and `/metrics/resource`: what containers, Pods and the machine use.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use carob_cri::v1::{ContainerStats, CpuUsage, ListPodSandboxStatsRequest, MemoryUsage, PodSandboxStats, UInt64Value};
use fs_err as fs;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Shared;
use super::routes::{RequestError, json as answer, text};
use crate::stream::upgrade::Body;

/// Nanoseconds of one tick of /proc/stat: USER_HZ is 100 on every architecture that Linux still runs on.
const TICK_NS: u64 = 10_000_000;

/// What the machine has used.
#[derive(Debug, Default, PartialEq, Eq)]
struct MachineUsage {
    cpu_ns: u64,
    memory_total_bytes: u64,
    memory_available_bytes: u64,
}

fn machine() -> std::io::Result<MachineUsage> {
    let stat = fs::read_to_string("/proc/stat")?;
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let kib = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.trim_start_matches(':').split_whitespace().next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)
    };
    Ok(MachineUsage {
        cpu_ns: busy_ticks(&stat) * TICK_NS,
        memory_total_bytes: kib("MemTotal") * 1024,
        memory_available_bytes: kib("MemAvailable") * 1024,
    })
}

/// Ticks that all processors together were not idle (proc_stat(5): user nice system idle iowait irq softirq steal).
fn busy_ticks(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|text| text.parse().ok()).collect();
    fields.iter().enumerate().filter(|(index, _)| !matches!(index, 3 | 4)).map(|(_, ticks)| ticks).sum()
}

async fn stats(shared: &Shared) -> Result<(Vec<PodSandboxStats>, MachineUsage), RequestError> {
    let list = shared.tools.cri.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await;
    let list = list.map_err(|error| RequestError::Internal(error.message))?.stats;
    let machine = machine().map_err(|error| RequestError::Internal(error.to_string()))?;
    Ok((list, machine))
}

pub(super) async fn summary(shared: &Arc<Shared>) -> Result<Response<Body>, RequestError> {
    let (stats, machine) = stats(shared).await?;
    let now = shared.tools.clock.now();
    let used = machine.memory_total_bytes.saturating_sub(machine.memory_available_bytes);
    let starts: BTreeMap<String, String> = shared
        .source
        .pods()
        .iter()
        .filter_map(|pod| {
            let start = pod.status.as_ref()?.start_time.as_ref()?.0;
            Some((pod.metadata.uid.clone()?, start.to_string()))
        })
        .collect();
    let pods: Vec<Value> = stats.iter().filter_map(|stats| pod_summary(stats, &starts)).collect();
    answer(&json!({
        "node": {
            "nodeName": shared.node_name,
            "cpu": {"time": now.to_string(), "usageCoreNanoSeconds": machine.cpu_ns},
            "memory": {
                "time": now.to_string(),
                "availableBytes": machine.memory_available_bytes,
                "usageBytes": used,
                "workingSetBytes": used,
            },
        },
        "pods": pods,
    }))
}

fn pod_summary(stats: &PodSandboxStats, starts: &BTreeMap<String, String>) -> Option<Value> {
    let meta = stats.attributes.as_ref()?.metadata.as_ref()?;
    let linux = stats.linux.as_ref()?;
    let containers: Vec<Value> = linux.containers.iter().filter_map(container_summary).collect();
    let mut pod = json!({
        "podRef": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
        "startTime": starts.get(&meta.uid),
        "containers": containers,
        "cpu": linux.cpu.as_ref().map(cpu),
        "memory": linux.memory.as_ref().map(memory),
    });
    if let Some(network) = linux.network.as_ref().and_then(|network| network.default_interface.as_ref()) {
        pod["network"] = json!({
            "time": linux.network.as_ref().map(|network| time(network.timestamp)),
            "name": network.name,
            "rxBytes": value(network.rx_bytes),
            "rxErrors": value(network.rx_errors),
            "txBytes": value(network.tx_bytes),
            "txErrors": value(network.tx_errors),
        });
    }
    if let Some(process) = &linux.process {
        pod["process_stats"] = json!({"process_count": value(process.process_count)});
    }
    Some(pod)
}

fn container_summary(stats: &ContainerStats) -> Option<Value> {
    let meta = stats.attributes.as_ref()?.metadata.as_ref()?;
    let layer = stats.writable_layer.as_ref();
    Some(json!({
        "name": meta.name,
        "cpu": stats.cpu.as_ref().map(cpu),
        "memory": stats.memory.as_ref().map(memory),
        "rootfs": layer.map(|layer| json!({
            "time": time(layer.timestamp),
            "usedBytes": value(layer.used_bytes),
            "inodesUsed": value(layer.inodes_used),
        })),
    }))
}

fn cpu(usage: &CpuUsage) -> Value {
    json!({
        "time": time(usage.timestamp),
        "usageNanoCores": value(usage.usage_nano_cores),
        "usageCoreNanoSeconds": value(usage.usage_core_nano_seconds),
    })
}

fn memory(usage: &MemoryUsage) -> Value {
    json!({
        "time": time(usage.timestamp),
        "availableBytes": value(usage.available_bytes),
        "usageBytes": value(usage.usage_bytes),
        "workingSetBytes": value(usage.working_set_bytes),
        "rssBytes": value(usage.rss_bytes),
        "pageFaults": value(usage.page_faults),
        "majorPageFaults": value(usage.major_page_faults),
    })
}

fn value(wrapped: Option<UInt64Value>) -> Option<u64> {
    wrapped.map(|wrapped| wrapped.value)
}

fn time(nanos: i64) -> Option<String> {
    Timestamp::from_nanosecond(i128::from(nanos)).ok().map(|time| time.to_string())
}

pub(super) async fn resource(shared: &Arc<Shared>) -> Result<Response<Body>, RequestError> {
    let (stats, machine) = stats(shared).await?;
    let now_ms = shared.tools.clock.now().as_millisecond();
    Ok(text(StatusCode::OK, render(&stats, &machine, now_ms)))
}

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

    fn add(&mut self, labels: &[(&str, &str)], value: f64, at_ms: i64) {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        self.lines.push(format!("{}{labels} {value} {at_ms}", self.name));
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn render(stats: &[PodSandboxStats], machine: &MachineUsage, now_ms: i64) -> String {
    let counter = "counter";
    let gauge = "gauge";
    let mut container_cpu =
        Metric::new("container_cpu_usage_seconds_total", counter, "Processor time of the container");
    let mut container_memory = Metric::new("container_memory_working_set_bytes", gauge, "Working set of the container");
    let mut node_cpu = Metric::new("node_cpu_usage_seconds_total", counter, "Processor time of the node");
    let mut node_memory = Metric::new("node_memory_working_set_bytes", gauge, "Working set of the node");
    let mut pod_cpu = Metric::new("pod_cpu_usage_seconds_total", counter, "Processor time of the pod");
    let mut pod_memory = Metric::new("pod_memory_working_set_bytes", gauge, "Working set of the pod");
    let seconds = |usage: Option<&CpuUsage>| {
        usage.and_then(|usage| value(usage.usage_core_nano_seconds)).map(|ns| ns as f64 / 1e9)
    };
    let working_set =
        |usage: Option<&MemoryUsage>| usage.and_then(|usage| value(usage.working_set_bytes)).map(|bytes| bytes as f64);
    let put = |metric: &mut Metric, labels: &[(&str, &str)], value: Option<f64>| {
        if let Some(value) = value {
            metric.add(labels, value, now_ms);
        }
    };
    for pod in stats {
        let Some(meta) = pod.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref()) else { continue };
        let Some(linux) = &pod.linux else { continue };
        let of_pod = [("namespace", meta.namespace.as_str()), ("pod", meta.name.as_str())];
        put(&mut pod_cpu, &of_pod, seconds(linux.cpu.as_ref()));
        put(&mut pod_memory, &of_pod, working_set(linux.memory.as_ref()));
        for container in &linux.containers {
            let name = container.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref());
            let Some(name) = name.map(|meta| meta.name.as_str()) else { continue };
            let labels = [("container", name), of_pod[0], of_pod[1]];
            put(&mut container_cpu, &labels, seconds(container.cpu.as_ref()));
            put(&mut container_memory, &labels, working_set(container.memory.as_ref()));
        }
    }
    put(&mut node_cpu, &[], Some(machine.cpu_ns as f64 / 1e9));
    let used = machine.memory_total_bytes.saturating_sub(machine.memory_available_bytes);
    put(&mut node_memory, &[], Some(used as f64));
    let mut out = String::new();
    for metric in [container_cpu, container_memory, node_cpu, node_memory, pod_cpu, pod_memory] {
        let Metric { name, kind, help, lines } = metric;
        if !lines.is_empty() {
            let written = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{}\n", lines.join("\n"));
            debug_assert!(written.is_ok(), "a String takes every write");
        }
    }
    out.push_str(
        "# HELP resource_scrape_error 1 if the numbers could not be had\n# TYPE resource_scrape_error gauge\n",
    );
    out.push_str("resource_scrape_error 0\n");
    out
}

#[cfg(test)]
mod tests {
    use carob_cri::v1::{LinuxPodSandboxStats, PodSandboxAttributes, PodSandboxMetadata};

    use super::*;

    #[test]
    fn idle_and_waiting_do_not_count_as_use() {
        assert_eq!(busy_ticks("cpu  10 1 5 1000 50 2 3 4 7 8\ncpu0 1 1 1 1\n"), 25);
        assert_eq!(busy_ticks(""), 0);
    }

    #[test]
    fn metrics_carry_names_and_times() {
        let number = |value| Some(UInt64Value { value });
        let stats = PodSandboxStats {
            attributes: Some(PodSandboxAttributes {
                metadata: Some(PodSandboxMetadata {
                    name: "p\"q".to_owned(),
                    namespace: "ns".to_owned(),
                    ..PodSandboxMetadata::default()
                }),
                ..PodSandboxAttributes::default()
            }),
            linux: Some(LinuxPodSandboxStats {
                cpu: Some(CpuUsage { usage_core_nano_seconds: number(1_500_000_000), ..CpuUsage::default() }),
                ..LinuxPodSandboxStats::default()
            }),
        };
        let machine = MachineUsage { cpu_ns: 0, memory_total_bytes: 10, memory_available_bytes: 4 };
        let shown = render(&[stats], &machine, 7);
        assert!(shown.contains("pod_cpu_usage_seconds_total{namespace=\"ns\",pod=\"p\\\"q\"} 1.5 7\n"), "{shown}");
        assert!(shown.contains("node_memory_working_set_bytes 6 7\n"), "{shown}");
        assert!(!shown.contains("pod_memory"), "what is not known is left out: {shown}");
    }
}
