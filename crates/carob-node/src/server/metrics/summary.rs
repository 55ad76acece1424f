//! `/stats/summary` (kubelet `pkg/kubelet/apis/stats/v1alpha1`).

use std::collections::BTreeMap;
use std::sync::Arc;

use carob_cri::v1::{
    ContainerStats, CpuUsage, FilesystemUsage, ImageFsInfoRequest, MemoryUsage, NetworkInterfaceUsage, PodSandboxStats,
    SwapUsage,
};
use fs_err as fs;
use http::Response;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{MachineUsage, Rates, started, stats, value};
use crate::eviction::{DiskUse, measure};
use crate::machine::facts::{self, Strain};
use crate::pod::PodId;
use crate::server::Shared;
use crate::server::routes::{RequestError, json as answer};
use crate::volumes::Figures;
use carob_streams::upgrade::Body;

pub(in crate::server) async fn summary(shared: &Arc<Shared>) -> Result<Response<Body>, RequestError> {
    let (stats, machine) = stats(shared).await?;
    let pods: BTreeMap<String, Arc<Pod>> =
        shared.source.pods().into_iter().map(|pod| (PodId::of(&pod).uid, pod)).collect();
    let mut disk: BTreeMap<String, DiskUse> = BTreeMap::new();
    for (uid, pod) in &pods {
        match measure(&shared.tools, pod).await {
            Ok(used) => {
                disk.insert(uid.clone(), used);
            }
            // What is on a file system that does not answer is left out.
            Err(error) => tracing::debug!(pod = %PodId::of(pod), %error, "cannot measure what a pod takes of the disk"),
        }
    }
    let figures = shared.tools.volumes.figures().await;
    let from = Gathered { shared, pods, disk, figures, started: started(shared) };
    let shown: Vec<Value> = stats.iter().filter_map(|stats| from.pod(stats)).collect();
    let ids: Vec<String> = stats.iter().flat_map(ids).collect();
    shared.rates.keep(|of| of == NODE || ids.iter().any(|id| id == of));
    answer(&json!({"node": node(shared, &machine).await?, "pods": shown}))
}

/// Under what the node's own counter is remembered.
const NODE: &str = "node";

/// The ids of a Pod's sandbox and containers.
fn ids(stats: &PodSandboxStats) -> Vec<String> {
    let own = stats.attributes.as_ref().map(|attributes| attributes.id.clone());
    let containers = stats.linux.iter().flat_map(|linux| &linux.containers);
    let of_containers = containers.filter_map(|one| one.attributes.as_ref().map(|attributes| attributes.id.clone()));
    own.into_iter().chain(of_containers).collect()
}

async fn node(shared: &Arc<Shared>, machine: &MachineUsage) -> Result<Value, RequestError> {
    let internal = |error: std::io::Error| RequestError::Internal(error.to_string());
    let now = shared.tools.clock.now();
    let now_ns = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
    let strain = facts::strain(shared.tools.dirs.pods()).map_err(internal)?;
    let used = machine.memory_total_bytes.saturating_sub(machine.memory_available_bytes);
    let images = shared.tools.cri.image_fs_info(ImageFsInfoRequest {}).await;
    let images = images.map_err(|error| RequestError::Internal(error.message))?;
    let network = fs::read_to_string("/proc/net/dev").map_err(internal)?;
    let interfaces = interfaces(&network);
    let boot = fs::read_to_string("/proc/stat").map_err(internal)?;
    let mut node = json!({
        "nodeName": shared.node_name,
        "startTime": boot_time(&boot).map(|time| time.to_string()),
        "cpu": {
            "time": now.to_string(),
            "usageNanoCores": shared.rates.note(NODE, now_ns, machine.cpu_ns),
            "usageCoreNanoSeconds": machine.cpu_ns,
        },
        "memory": {
            "time": now.to_string(),
            "availableBytes": machine.memory_available_bytes,
            "usageBytes": used,
            "workingSetBytes": used,
        },
        "fs": file_system(now, &strain, strain.disk_total_bytes.saturating_sub(strain.disk_free_bytes), None),
        "rlimit": {"time": now.to_string(), "maxpid": strain.pids_max, "curproc": strain.pids_used},
    });
    if let Some(images) = images.image_filesystems.first() {
        let (bytes, inodes) = (value(images.used_bytes).unwrap_or(0), value(images.inodes_used));
        node["runtime"] = json!({"imageFs": file_system(now, &strain, bytes, inodes)});
    }
    if !interfaces.is_empty() {
        node["network"] = json!({"time": now.to_string(), "interfaces": interfaces});
    }
    Ok(node)
}

fn file_system(now: Timestamp, strain: &Strain, used_bytes: u64, inodes_used: Option<u64>) -> Value {
    let inodes_used = inodes_used.unwrap_or_else(|| strain.inodes_total.saturating_sub(strain.inodes_free));
    json!({
        "time": now.to_string(),
        "availableBytes": strain.disk_free_bytes,
        "capacityBytes": strain.disk_total_bytes,
        "usedBytes": used_bytes,
        "inodesFree": strain.inodes_free,
        "inodes": strain.inodes_total,
        "inodesUsed": inodes_used,
    })
}

/// The machine's interfaces but for loopback and those of Pods (proc_net_dev(5)).
fn interfaces(table: &str) -> Vec<Value> {
    let parse = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let name = name.trim();
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let at = |index: usize| numbers.get(index).copied();
        let of_machine = name != "lo" && !name.starts_with("veth") && !name.starts_with("carob");
        of_machine
            .then(|| json!({"name": name, "rxBytes": at(0), "rxErrors": at(2), "txBytes": at(8), "txErrors": at(10)}))
    };
    table.lines().skip(2).filter_map(parse).collect()
}

/// The line `btime` of proc_stat(5): seconds since 1970.
fn boot_time(stat: &str) -> Option<Timestamp> {
    let text = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Timestamp::from_second(text.trim().parse().ok()?).ok()
}

/// A volume behind a claim.
fn claimed(figures: &Figures, namespace: &str, now: Timestamp) -> Value {
    json!({
        "name": figures.volume,
        "pvcRef": {"name": figures.claim, "namespace": namespace},
        "time": now.to_string(),
        "capacityBytes": figures.capacity_bytes,
        "availableBytes": figures.available_bytes,
        "usedBytes": figures.used_bytes,
        "inodes": figures.inodes,
        "inodesFree": figures.inodes_free,
        "inodesUsed": figures.inodes.saturating_sub(figures.inodes_free),
    })
}

/// What Pods' entries are made from.
struct Gathered<'a> {
    shared: &'a Arc<Shared>,
    pods: BTreeMap<String, Arc<Pod>>,
    disk: BTreeMap<String, DiskUse>,
    /// How full the volumes behind claims are.
    figures: Vec<Figures>,
    started: BTreeMap<(String, String), Timestamp>,
}

impl Gathered<'_> {
    fn pod(&self, stats: &PodSandboxStats) -> Option<Value> {
        let attributes = stats.attributes.as_ref()?;
        let (meta, linux) = (attributes.metadata.as_ref()?, stats.linux.as_ref()?);
        let now = self.shared.tools.clock.now();
        let rates = &self.shared.rates;
        let pod = self.pods.get(&meta.uid);
        let start = pod.and_then(|pod| pod.status.as_ref()?.start_time.as_ref()).map(|time| time.0.to_string());
        let containers: Vec<Value> = linux.containers.iter().filter_map(|one| self.container(&meta.uid, one)).collect();
        let mut shown = json!({
            "podRef": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
            "startTime": start,
            "containers": containers,
            "cpu": linux.cpu.as_ref().map(|usage| cpu(rates, &attributes.id, usage)),
            "memory": linux.memory.as_ref().map(memory),
        });
        if let Some(network) = &linux.network {
            let mut all = json!({"time": time(network.timestamp)});
            if let Some(main) = &network.default_interface {
                all = interface(main);
                all["time"] = json!(time(network.timestamp));
            }
            all["interfaces"] = network.interfaces.iter().map(interface).collect();
            shown["network"] = all;
        }
        if let Some(process) = &linux.process {
            shown["process_stats"] = json!({"process_count": value(process.process_count)});
        }
        if let Some(disk) = self.disk.get(&meta.uid) {
            let volume =
                |(name, bytes): (&String, &u64)| json!({"name": name, "time": now.to_string(), "usedBytes": bytes});
            let of_pod = self.figures.iter().filter(|figures| figures.uid == meta.uid);
            let claims = of_pod.map(|figures| claimed(figures, &meta.namespace, now));
            shown["volume"] = disk.volumes.iter().map(volume).chain(claims).collect();
            shown["ephemeral-storage"] = json!({"time": now.to_string(), "usedBytes": disk.total()});
        }
        Some(shown)
    }

    fn container(&self, uid: &str, stats: &ContainerStats) -> Option<Value> {
        let attributes = stats.attributes.as_ref()?;
        let name = &attributes.metadata.as_ref()?.name;
        let layer = stats.writable_layer.as_ref();
        let written = layer.and_then(|layer| value(layer.used_bytes)).unwrap_or(0);
        // The measure of a container is its layer with its logs.
        let with_logs = self.disk.get(uid).and_then(|disk| disk.containers.get(name)).copied();
        let now = self.shared.tools.clock.now().to_string();
        Some(json!({
            "name": name,
            "startTime": self.started.get(&(uid.to_owned(), name.clone())).map(Timestamp::to_string),
            "cpu": stats.cpu.as_ref().map(|usage| cpu(&self.shared.rates, &attributes.id, usage)),
            "memory": stats.memory.as_ref().map(memory),
            "swap": stats.swap.as_ref().map(swap),
            "rootfs": layer.map(root),
            "logs": with_logs.map(|bytes| json!({"time": now, "usedBytes": bytes.saturating_sub(written)})),
        }))
    }
}

fn root(layer: &FilesystemUsage) -> Value {
    let (bytes, inodes) = (value(layer.used_bytes), value(layer.inodes_used));
    json!({"time": time(layer.timestamp), "usedBytes": bytes, "inodesUsed": inodes})
}

fn swap(usage: &SwapUsage) -> Value {
    json!({
        "time": time(usage.timestamp),
        "swapAvailableBytes": value(usage.swap_available_bytes),
        "swapUsageBytes": value(usage.swap_usage_bytes),
    })
}

fn interface(usage: &NetworkInterfaceUsage) -> Value {
    json!({
        "name": usage.name,
        "rxBytes": value(usage.rx_bytes),
        "rxErrors": value(usage.rx_errors),
        "txBytes": value(usage.tx_bytes),
        "txErrors": value(usage.tx_errors),
    })
}

fn cpu(rates: &Rates, id: &str, usage: &CpuUsage) -> Value {
    let total = value(usage.usage_core_nano_seconds);
    let own = value(usage.usage_nano_cores);
    let rate = own.or_else(|| rates.note(id, usage.timestamp, total?));
    json!({"time": time(usage.timestamp), "usageNanoCores": rate, "usageCoreNanoSeconds": total})
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

fn time(nanos: i64) -> Option<String> {
    Timestamp::from_nanosecond(i128::from(nanos)).ok().map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_tells_of_its_boot_and_its_interfaces() {
        assert_eq!(
            boot_time("cpu 1\nbtime 60\n").map(|time| time.to_string()),
            Some("1970-01-01T00:01:00Z".to_owned())
        );
        assert_eq!(boot_time("cpu 1\n"), None);
        let table =
            "a\nb\n  lo: 1 0 0 0 0 0 0 0 1 0 0\n eth0: 10 1 2 0 0 0 0 0 20 1 3\nvethab: 1 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(
            interfaces(table),
            [json!({"name": "eth0", "rxBytes": 10, "rxErrors": 2, "txBytes": 20, "txErrors": 3})]
        );
    }
}
