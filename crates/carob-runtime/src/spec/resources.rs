//! CRI's limits as those of a control group: pure.

use carob_cri::v1;
use carob_sys::cgroup::Resources;

/// What CRI leaves at zero is not set. `hugetlb` says whether this machine limits huge pages: where it does not, a limit
/// on them holds by itself, since there are none to use.
pub(crate) fn resources_for(wanted: &v1::LinuxContainerResources, hugetlb: bool) -> Resources {
    let set = |value: i64| (value != 0).then_some(value);
    let unsigned = |value: i64| u64::try_from(value).ok().filter(|value| *value != 0);
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    let pages = wanted.hugepage_limits.iter().filter(|_| hugetlb);
    Resources {
        cpu_shares: unsigned(wanted.cpu_shares),
        cpu_quota_us: set(wanted.cpu_quota),
        cpu_period_us: unsigned(wanted.cpu_period),
        cpuset_cpus: text(&wanted.cpuset_cpus),
        cpuset_mems: text(&wanted.cpuset_mems),
        memory_bytes_max: set(wanted.memory_limit_in_bytes),
        memory_and_swap_bytes_max: set(wanted.memory_swap_limit_in_bytes),
        pids_max: None,
        hugetlb_bytes_max: pages.map(|limit| (limit.page_size.clone(), limit.limit)).collect(),
        unified: wanted.unified.clone(),
    }
}

/// The settings in force after an update: what the update leaves at zero stays as it was.
pub(crate) fn merged(
    current: &v1::LinuxContainerResources,
    update: &v1::LinuxContainerResources,
) -> v1::LinuxContainerResources {
    let number = |new: i64, old: i64| if new != 0 { new } else { old };
    let text = |new: &String, old: &String| if new.is_empty() { old.clone() } else { new.clone() };
    let mut unified = current.unified.clone();
    unified.extend(update.unified.clone());
    v1::LinuxContainerResources {
        cpu_period: number(update.cpu_period, current.cpu_period),
        cpu_quota: number(update.cpu_quota, current.cpu_quota),
        cpu_shares: number(update.cpu_shares, current.cpu_shares),
        memory_limit_in_bytes: number(update.memory_limit_in_bytes, current.memory_limit_in_bytes),
        oom_score_adj: number(update.oom_score_adj, current.oom_score_adj),
        cpuset_cpus: text(&update.cpuset_cpus, &current.cpuset_cpus),
        cpuset_mems: text(&update.cpuset_mems, &current.cpuset_mems),
        hugepage_limits: if update.hugepage_limits.is_empty() {
            current.hugepage_limits.clone()
        } else {
            update.hugepage_limits.clone()
        },
        unified,
        memory_swap_limit_in_bytes: number(update.memory_swap_limit_in_bytes, current.memory_swap_limit_in_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_means_not_set() {
        assert_eq!(resources_for(&v1::LinuxContainerResources::default(), true), Resources::default());
        let wanted = v1::LinuxContainerResources {
            cpu_shares: 102,
            cpu_quota: -1,
            memory_limit_in_bytes: 1 << 20,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
            ..v1::LinuxContainerResources::default()
        };
        let expected = Resources {
            cpu_shares: Some(102),
            cpu_quota_us: Some(-1),
            memory_bytes_max: Some(1 << 20),
            cpuset_cpus: Some("0-1".into()),
            hugetlb_bytes_max: [("2MB".to_owned(), 0)].into(),
            ..Resources::default()
        };
        assert_eq!(resources_for(&wanted, true), expected);
        assert!(resources_for(&wanted, false).hugetlb_bytes_max.is_empty());
    }

    #[test]
    fn an_update_keeps_what_it_does_not_name() {
        let current = v1::LinuxContainerResources {
            cpu_shares: 102,
            memory_limit_in_bytes: 100,
            ..v1::LinuxContainerResources::default()
        };
        let update =
            v1::LinuxContainerResources { memory_limit_in_bytes: 200, ..v1::LinuxContainerResources::default() };
        let after = merged(&current, &update);
        assert_eq!((after.cpu_shares, after.memory_limit_in_bytes), (102, 200));
    }
}
