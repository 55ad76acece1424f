//! Limits as values, and the files that say them: pure.

use std::collections::BTreeMap;

/// What a group may use. `None` leaves a file as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative weight, 2 to 262144 (kernel `Documentation/scheduler/sched-design-CFS.rst`).
    pub cpu_shares: Option<u64>,
    /// CPU time in a period, in microseconds; negative for no limit.
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// In bytes; negative for no limit.
    pub memory_bytes_max: Option<i64>,
    /// Memory and swap together, in bytes; negative for no limit.
    pub memory_and_swap_bytes_max: Option<i64>,
    /// Processes and threads; negative for no limit.
    pub pids_max: Option<i64>,
    /// Bytes by page size as the kernel spells it (`2MB`).
    pub hugetlb_bytes_max: BTreeMap<String, u64>,
    /// Files of cgroup v2 by name. They mean nothing on v1.
    pub unified: BTreeMap<String, String>,
}

/// One file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) controller: &'static str,
    pub(super) file: String,
    pub(super) value: String,
}

fn setting(controller: &'static str, file: &str, value: impl ToString) -> Setting {
    Setting { controller, file: file.to_owned(), value: value.to_string() }
}

/// The files of cgroup v1 (kernel `Documentation/admin-guide/cgroup-v1`).
///
/// Swap may never be below memory, so which of the two comes first depends on which way the limit moves:
/// `memory_now` is the limit in force.
pub(super) fn settings_v1(wanted: &Resources, memory_now: Option<i64>) -> Vec<Setting> {
    let mut settings = Vec::new();
    settings.extend(wanted.cpu_shares.map(|value| setting("cpu", "cpu.shares", value)));
    settings.extend(wanted.cpu_period_us.map(|value| setting("cpu", "cpu.cfs_period_us", value)));
    settings.extend(wanted.cpu_quota_us.map(|value| setting("cpu", "cpu.cfs_quota_us", value)));
    settings.extend(wanted.cpuset_cpus.as_ref().map(|value| setting("cpuset", "cpuset.cpus", value)));
    settings.extend(wanted.cpuset_mems.as_ref().map(|value| setting("cpuset", "cpuset.mems", value)));
    let memory = wanted.memory_bytes_max.map(|value| setting("memory", "memory.limit_in_bytes", value));
    let swap = wanted.memory_and_swap_bytes_max.map(|value| setting("memory", "memory.memsw.limit_in_bytes", value));
    let grows = wanted.memory_bytes_max.is_some_and(|new| new < 0 || memory_now.is_some_and(|now| new > now));
    if grows && swap.is_some() {
        settings.extend(swap.into_iter().chain(memory));
    } else {
        settings.extend(memory.into_iter().chain(swap));
    }
    settings.extend(wanted.pids_max.map(|value| setting("pids", "pids.max", max_or(value))));
    for (size, bytes) in &wanted.hugetlb_bytes_max {
        settings.push(setting("hugetlb", &format!("hugetlb.{size}.limit_in_bytes"), bytes));
        settings.push(setting("hugetlb", &format!("hugetlb.{size}.rsvd.limit_in_bytes"), bytes));
    }
    settings
}

/// The files of cgroup v2 (kernel `Documentation/admin-guide/cgroup-v2.rst`).
pub(super) fn settings_v2(wanted: &Resources) -> Vec<Setting> {
    let mut settings = Vec::new();
    settings.extend(wanted.cpu_shares.map(|value| setting("cpu", "cpu.weight", cpu_weight(value))));
    settings.extend(cpu_max(wanted).map(|value| setting("cpu", "cpu.max", value)));
    settings.extend(wanted.cpuset_cpus.as_ref().map(|value| setting("cpuset", "cpuset.cpus", value)));
    settings.extend(wanted.cpuset_mems.as_ref().map(|value| setting("cpuset", "cpuset.mems", value)));
    settings.extend(wanted.memory_bytes_max.map(|value| setting("memory", "memory.max", max_or(value))));
    settings.extend(swap_max(wanted).map(|value| setting("memory", "memory.swap.max", value)));
    settings.extend(wanted.pids_max.map(|value| setting("pids", "pids.max", max_or(value))));
    for (size, bytes) in &wanted.hugetlb_bytes_max {
        settings.push(setting("hugetlb", &format!("hugetlb.{size}.max"), bytes));
        settings.push(setting("hugetlb", &format!("hugetlb.{size}.rsvd.max"), bytes));
    }
    for (file, value) in &wanted.unified {
        settings.push(setting("unified", file, value));
    }
    settings
}

fn max_or(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn cpu_max(wanted: &Resources) -> Option<String> {
    /// The kernel's default period, in microseconds.
    const PERIOD_US: u64 = 100_000;
    match (wanted.cpu_quota_us, wanted.cpu_period_us) {
        (None, None) => None,
        (None, Some(period)) => Some(format!("max {period}")),
        (Some(quota), period) => Some(format!("{} {}", max_or(quota), period.unwrap_or(PERIOD_US))),
    }
}

/// v2 limits swap alone, CRI and v1 the sum of memory and swap.
fn swap_max(wanted: &Resources) -> Option<String> {
    let sum = wanted.memory_and_swap_bytes_max?;
    match wanted.memory_bytes_max {
        Some(memory) if memory >= 0 && sum >= 0 => Some((sum - memory).max(0).to_string()),
        _ => Some(max_or(sum)),
    }
}

/// The weight of v2, 1 to 10000, for the shares of v1: the curve through (2, 1), (1024, 100) and (262144, 10000) that
/// runc uses (opencontainers/cgroups `utils.go`, `ConvertCPUSharesToCgroupV2Value`).
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "both scales are far below 2^53")]
fn cpu_weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(settings: Vec<Setting>) -> Vec<String> {
        settings
            .into_iter()
            .map(|setting| format!("{} {}={}", setting.controller, setting.file, setting.value))
            .collect()
    }

    fn limits() -> Resources {
        Resources {
            cpu_shares: Some(512),
            cpu_quota_us: Some(50_000),
            cpu_period_us: Some(100_000),
            memory_bytes_max: Some(1 << 20),
            memory_and_swap_bytes_max: Some(1 << 20),
            pids_max: Some(-1),
            hugetlb_bytes_max: [("2MB".to_owned(), 0)].into(),
            unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
            ..Resources::default()
        }
    }

    #[test]
    fn v1_names_its_files() {
        let expected = [
            "cpu cpu.shares=512",
            "cpu cpu.cfs_period_us=100000",
            "cpu cpu.cfs_quota_us=50000",
            "memory memory.limit_in_bytes=1048576",
            "memory memory.memsw.limit_in_bytes=1048576",
            "pids pids.max=max",
            "hugetlb hugetlb.2MB.limit_in_bytes=0",
            "hugetlb hugetlb.2MB.rsvd.limit_in_bytes=0",
        ];
        assert_eq!(lines(settings_v1(&limits(), None)), expected);
    }

    #[test]
    fn a_growing_limit_moves_swap_out_of_the_way_first() {
        let order = |now| {
            let all = settings_v1(&limits(), now);
            all.into_iter().filter(|s| s.controller == "memory").map(|s| s.file).collect::<Vec<_>>()
        };
        assert_eq!(order(Some(4096))[0], "memory.memsw.limit_in_bytes");
        assert_eq!(order(Some(1 << 30))[0], "memory.limit_in_bytes");
    }

    #[test]
    fn v2_names_its_files() {
        let expected = [
            "cpu cpu.weight=59",
            "cpu cpu.max=50000 100000",
            "memory memory.max=1048576",
            "memory memory.swap.max=0",
            "pids pids.max=max",
            "hugetlb hugetlb.2MB.max=0",
            "hugetlb hugetlb.2MB.rsvd.max=0",
            "unified memory.oom.group=1",
        ];
        assert_eq!(lines(settings_v2(&limits())), expected);
        assert_eq!(lines(settings_v2(&Resources::default())), Vec::<String>::new());
        let unlimited = Resources { cpu_quota_us: Some(-1), memory_bytes_max: Some(-1), ..Resources::default() };
        assert_eq!(lines(settings_v2(&unlimited)), ["cpu cpu.max=max 100000", "memory memory.max=max"]);
    }

    #[test]
    fn weights_follow_the_curve_of_runc() {
        let pairs = [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (1 << 20, 10_000)];
        for (shares, weight) in pairs {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
    }
}
