//! What containers, Pods and the machine use: `/stats/summary` as JSON ([`summary`]), `/metrics`, `/metrics/resource`,
//! `/metrics/cadvisor` and `/metrics/probes` for Prometheus ([`exposition`]).

mod exposition;
mod rates;
mod summary;

use std::collections::BTreeMap;

use carob_cri::v1::{ListPodSandboxStatsRequest, PodSandboxStats, UInt64Value};
use fs_err as fs;
use jiff::Timestamp;

use super::Shared;
use super::routes::RequestError;
use crate::pod::{PodId, PodView};

pub(super) use exposition::{cadvisor, kubelet, probes, resource};
pub(super) use rates::Rates;
pub(super) use summary::summary;

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

fn value(wrapped: Option<UInt64Value>) -> Option<u64> {
    wrapped.map(|wrapped| wrapped.value)
}

/// When the running containers began, by Pod uid and name.
fn started(shared: &Shared) -> BTreeMap<(String, String), Timestamp> {
    let mut all = BTreeMap::new();
    for pod in shared.source.pods() {
        let (view, uid) = (PodView::new(&pod), PodId::of(&pod).uid);
        for member in view.members() {
            let state = view.last_status(member.name()).and_then(|shown| shown.state.as_ref()?.running.as_ref());
            if let Some(since) = state.and_then(|running| running.started_at.as_ref()) {
                all.insert((uid.clone(), member.name().to_owned()), since.0);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_do_not_count_as_use() {
        assert_eq!(busy_ticks("cpu  10 1 5 1000 50 2 3 4 7 8\ncpu0 1 1 1 1\n"), 25);
        assert_eq!(busy_ticks(""), 0);
    }
}
