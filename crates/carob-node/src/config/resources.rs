//! Requests and limits as control group settings (kubelet `pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`).

use std::collections::BTreeMap;

use carob_api::pod::{self as rules, Asked, ListedAmounts, Total, is_huge_pages, page_bytes};
use carob_api::quantity::{Quantity, QuantityError};
use carob_cri::v1::{HugepageLimit, LinuxContainerResources};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
pub use rules::Qos;

/// The least weight that cgroups know (`MinShares`).
const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;
/// Microseconds of one scheduling period (kernel default, `QuotaPeriod`).
const PERIOD_US: i64 = 100_000;
/// The least quota that the kernel takes (`MinQuotaPeriod`).
const QUOTA_US_MIN: i64 = 1_000;

const OOM_GUARANTEED: i64 = -997;
const OOM_BEST_EFFORT: i64 = 1_000;
/// Pods of this priority and above are the node's own (`scheduling.SystemCriticalPriority`).
const SYSTEM_PRIORITY: i32 = 2_000_000_000;

#[derive(Debug, thiserror::Error)]
#[error("parse the quantity {text:?} of {resource}")]
pub struct ResourceError {
    pub resource: String,
    pub text: String,
    #[source]
    pub source: QuantityError,
}

/// CPU in thousandths of a core and memory in bytes; `None` where nothing is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    pub cpu_milli: Option<i64>,
    pub memory_bytes: Option<i64>,
}

pub fn amounts(map: Option<&BTreeMap<String, Text>>) -> Result<Amounts, ResourceError> {
    Ok(Amounts {
        cpu_milli: amount(map, "cpu")?.map(|quantity| quantity.milli()),
        memory_bytes: amount(map, "memory")?.map(|quantity| quantity.value()),
    })
}

/// The amount of one resource, where the list has it.
pub fn amount(map: Option<&BTreeMap<String, Text>>, resource: &str) -> Result<Option<Quantity>, ResourceError> {
    let Some(text) = map.and_then(|map| map.get(resource)) else { return Ok(None) };
    let parsed = Quantity::parse(&text.0);
    parsed.map(Some).map_err(|source| ResourceError { resource: resource.to_owned(), text: text.0.clone(), source })
}

/// The part of a group's settings that a resize changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpu_shares: i64,
    /// Microseconds of each period; `None` for all of them.
    pub cpu_quota_us: Option<i64>,
    pub memory_bytes: Option<i64>,
}

impl Limits {
    /// Zero and less mean that there is no limit.
    pub fn of(settings: &LinuxContainerResources) -> Self {
        let limit = |value: i64| (value > 0).then_some(value);
        Self {
            cpu_shares: settings.cpu_shares,
            cpu_quota_us: limit(settings.cpu_quota),
            memory_bytes: limit(settings.memory_limit_in_bytes),
        }
    }

    /// What a container of the Pod asks for.
    pub fn wanted(pod: &Pod, container: &Container) -> Result<Self, ResourceError> {
        let (requests, limits) = of_container(pod, container)?;
        Ok(Self::of(&settings(requests, limits)))
    }

    /// The settings that bring a group to this from any other: what is not limited is said to be.
    pub fn settings(self) -> LinuxContainerResources {
        const UNLIMITED: i64 = -1;
        LinuxContainerResources {
            cpu_shares: self.cpu_shares,
            cpu_period: PERIOD_US,
            cpu_quota: self.cpu_quota_us.unwrap_or(UNLIMITED),
            memory_limit_in_bytes: self.memory_bytes.unwrap_or(UNLIMITED),
            ..LinuxContainerResources::default()
        }
    }
}

/// The class that the API computed, else the one that follows from the spec.
pub fn qos(pod: &Pod) -> Result<Qos, ResourceError> {
    let computed = pod.status.as_ref().and_then(|status| status.qos_class.as_deref()).and_then(Qos::parse);
    if let Some(class) = computed {
        return Ok(class);
    }
    let Some(spec) = &pod.spec else { return Ok(Qos::BestEffort) };
    let own = spec.resources.as_ref().map(asked).transpose()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let nothing = || Ok([Asked::default(); 2]);
    let containers: Result<Vec<_>, _> =
        containers.map(|container| container.resources.as_ref().map_or_else(nothing, asked)).collect();
    Ok(rules::qos(own, containers?))
}

fn asked(resources: &ResourceRequirements) -> Result<[Asked; 2], ResourceError> {
    let of = |resource: &str| {
        let (request, limit) = (resources.requests.as_ref(), resources.limits.as_ref());
        Ok(Asked::new(amount(request, resource)?, amount(limit, resource)?))
    };
    Ok([of("cpu")?, of("memory")?])
}

fn both(resources: Option<&ResourceRequirements>) -> Result<(Amounts, Amounts), ResourceError> {
    let requests = amounts(resources.and_then(|resources| resources.requests.as_ref()))?;
    let limits = amounts(resources.and_then(|resources| resources.limits.as_ref()))?;
    Ok((requests, limits))
}

/// Requests and limits of a container. One without a limit has that of its Pod (kubelet `pkg/kubelet/util`, `GetLimits`).
fn of_container(pod: &Pod, container: &Container) -> Result<(Amounts, Amounts), ResourceError> {
    let (requests, own) = both(container.resources.as_ref())?;
    let whole = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let mut limits = both(whole)?.1;
    let set = |amount: Option<i64>| amount.filter(|amount| *amount != 0);
    limits.replace(&Amounts { cpu_milli: set(own.cpu_milli), memory_bytes: set(own.memory_bytes) });
    Ok((requests, limits))
}

/// Bytes that a container requests. A quantity that cannot be read never got past the API, nor past the container's start.
pub fn memory_request(container: &Container) -> i64 {
    both(container.resources.as_ref()).ok().and_then(|(requests, _)| requests.memory_bytes).unwrap_or(0)
}

/// The control group of a Pod, below `root`, the node's.
pub fn cgroup_parent(root: &str, qos: Qos, uid: &str) -> String {
    let root = root.trim_end_matches('/');
    match qos {
        Qos::Guaranteed => format!("{root}/kubepods/pod{uid}"),
        Qos::Burstable => format!("{root}/kubepods/burstable/pod{uid}"),
        Qos::BestEffort => format!("{root}/kubepods/besteffort/pod{uid}"),
    }
}

/// What of the machine a container's settings depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Scales the OOM score.
    pub memory_bytes: u64,
    /// All control groups are of v2.
    pub unified_cgroups: bool,
    /// In bytes.
    pub huge_page_sizes: Vec<i64>,
}

/// The settings of one container.
pub fn container(
    pod: &Pod,
    container: &Container,
    machine: &Machine,
) -> Result<LinuxContainerResources, ResourceError> {
    let resources = container.resources.as_ref();
    let (requests, limits) = of_container(pod, container)?;
    let mut settings = settings(requests, limits);
    let own_limit = both(resources)?.1.memory_bytes;
    settings.oom_score_adj = oom_score(pod, qos(pod)?, requests.memory_bytes.or(own_limit), machine.memory_bytes);
    if machine.unified_cgroups {
        // All of it dies or none (kubelet `singleProcessOOMKill`, false on v2).
        settings.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    // A container that says nothing of a size may use its Pod's.
    let whole = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let mut pages = huge_pages(whole.and_then(|whole| whole.limits.as_ref()))?;
    pages.extend(huge_pages(resources.and_then(|resources| resources.limits.as_ref()))?);
    settings.hugepage_limits = huge_page_limits(&pages, machine);
    Ok(settings)
}

/// What a Pod requests in all.
pub fn requests(pod: &Pod) -> Result<Amounts, ResourceError> {
    let Some(spec) = &pod.spec else { return Ok(Amounts::default()) };
    let own = both(spec.resources.as_ref())?.0;
    Ok(total(spec, |of| Ok(both(of)?.0))?.requests(Some(&own), Some(&amounts(spec.overhead.as_ref())?)))
}

/// What a Pod may take in all. A container without a limit may use what it likes, so its Pod has none either, unless it says
/// one itself (kubelet `pkg/kubelet/cm/helpers_linux.go`, `ResourceConfigForPod`).
fn limits(pod: &Pod) -> Result<Amounts, ResourceError> {
    let Some(spec) = &pod.spec else { return Ok(Amounts::default()) };
    let own = both(spec.resources.as_ref())?.1;
    let mut limits = total(spec, |of| Ok(both(of)?.1))?.of_containers();
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let limit = both(container.resources.as_ref())?.1;
        limits.cpu_milli = limits.cpu_milli.filter(|_| limit.cpu_milli.is_some());
        limits.memory_bytes = limits.memory_bytes.filter(|_| limit.memory_bytes.is_some());
    }
    limits.replace(&own);
    limits.add_to_set(&amounts(spec.overhead.as_ref())?);
    Ok(limits)
}

fn total<A: rules::Amounts>(
    spec: &PodSpec,
    amounts: impl Fn(Option<&ResourceRequirements>) -> Result<A, ResourceError>,
) -> Result<Total<A>, ResourceError> {
    let mut total = Total::default();
    for container in &spec.containers {
        total.container(&amounts(container.resources.as_ref())?);
    }
    for container in spec.init_containers.iter().flatten() {
        let is_sidecar = container.restart_policy.as_deref() == Some("Always");
        total.init_container(&amounts(container.resources.as_ref())?, is_sidecar);
    }
    Ok(total)
}

/// Requests and limits of the whole Pod by resource, as its status shows them: limits that its group has (kubelet
/// `pkg/kubelet/kubelet_pods.go`, `convertToAPIPodLevelResourcesStatus`).
pub fn shown(pod: &Pod) -> Result<ResourceRequirements, ResourceError> {
    type Map = BTreeMap<String, Quantity>;
    let Some(spec) = &pod.spec else { return Ok(ResourceRequirements::default()) };
    let read = |map: Option<&BTreeMap<String, Text>>| -> Result<Map, ResourceError> {
        let mut read = Map::new();
        for name in map.into_iter().flat_map(BTreeMap::keys) {
            read.extend(amount(map, name)?.map(|amount| (name.clone(), amount)));
        }
        Ok(read)
    };
    let overhead = read(spec.overhead.as_ref())?;
    let sums = |which: fn(&ResourceRequirements) -> Option<&BTreeMap<String, Text>>| {
        let of = |resources: Option<&ResourceRequirements>| read(resources.and_then(which));
        Ok::<_, ResourceError>((total(spec, of)?, of(spec.resources.as_ref())?))
    };
    let (requests, own) = sums(|resources| resources.requests.as_ref())?;
    let requests = requests.requests(Some(&own), Some(&overhead));
    let (all_limits, own) = sums(|resources| resources.limits.as_ref())?;
    let mut all_limits = all_limits.limits(Some(&own), Some(&overhead));
    let held = limits(pod)?;
    all_limits.retain(|name, _| match name.as_str() {
        "cpu" => held.cpu_milli.is_some(),
        "memory" => held.memory_bytes.is_some(),
        _ => true,
    });
    let listed = |map: Map| {
        let map: BTreeMap<_, _> = map.into_iter().map(|(name, amount)| (name, Text(amount.to_string()))).collect();
        Some(map).filter(|map| !map.is_empty())
    };
    Ok(ResourceRequirements {
        requests: listed(requests),
        limits: listed(all_limits),
        ..ResourceRequirements::default()
    })
}

/// The settings of a whole Pod on a machine.
pub fn pod_on(pod: &Pod, machine: &Machine) -> Result<LinuxContainerResources, ResourceError> {
    let hugepage_limits = huge_page_limits(&huge_pages_of_pod(pod)?, machine);
    Ok(LinuxContainerResources { hugepage_limits, ..self::pod(pod)? })
}

/// The settings of a whole Pod, but for what depends on the machine: all that a resize may change.
pub fn pod(pod: &Pod) -> Result<LinuxContainerResources, ResourceError> {
    // Nothing but zeros is not asking.
    let positive = |amounts: Amounts| Amounts {
        cpu_milli: amounts.cpu_milli.filter(|milli| *milli > 0),
        memory_bytes: amounts.memory_bytes.filter(|bytes| *bytes > 0),
    };
    Ok(settings(positive(requests(pod)?), positive(limits(pod)?)))
}

/// What the runtime itself takes for the Pod, by its RuntimeClass; `None` where the class says nothing.
pub fn overhead(pod: &Pod) -> Result<Option<LinuxContainerResources>, ResourceError> {
    let fixed = pod.spec.as_ref().and_then(|spec| spec.overhead.as_ref());
    let Some(fixed) = fixed else { return Ok(None) };
    let fixed = amounts(Some(fixed))?;
    Ok(Some(settings(fixed, fixed)))
}

/// The sum of two amounts of which either may not be there.
fn sum(own: Option<i64>, more: Option<i64>) -> Option<i64> {
    match (own, more) {
        (Some(own), Some(more)) => Some(own.saturating_add(more)),
        (own, more) => own.or(more),
    }
}

impl rules::Amounts for Amounts {
    fn add(&mut self, more: &Self) {
        self.cpu_milli = sum(self.cpu_milli, more.cpu_milli);
        self.memory_bytes = sum(self.memory_bytes, more.memory_bytes);
    }

    fn raise(&mut self, to: &Self) {
        self.cpu_milli = self.cpu_milli.max(to.cpu_milli);
        self.memory_bytes = self.memory_bytes.max(to.memory_bytes);
    }
}

impl ListedAmounts for Amounts {
    fn replace(&mut self, own: &Self) {
        self.cpu_milli = own.cpu_milli.or(self.cpu_milli);
        self.memory_bytes = own.memory_bytes.or(self.memory_bytes);
    }

    fn add_to_set(&mut self, more: &Self) {
        self.cpu_milli = self.cpu_milli.map(|own| own.saturating_add(more.cpu_milli.unwrap_or(0)));
        self.memory_bytes = self.memory_bytes.map(|own| own.saturating_add(more.memory_bytes.unwrap_or(0)));
    }
}

fn settings(requests: Amounts, limits: Amounts) -> LinuxContainerResources {
    let weight_of = requests.cpu_milli.or(limits.cpu_milli).unwrap_or(0);
    let quota = limits.cpu_milli.filter(|milli| *milli > 0);
    LinuxContainerResources {
        cpu_shares: (weight_of.saturating_mul(1024) / 1000).clamp(SHARES_MIN, SHARES_MAX),
        cpu_period: PERIOD_US,
        cpu_quota: quota.map_or(0, |milli| (milli.saturating_mul(PERIOD_US) / 1000).max(QUOTA_US_MIN)),
        memory_limit_in_bytes: limits.memory_bytes.unwrap_or(0),
        ..LinuxContainerResources::default()
    }
}

fn oom_score(pod: &Pod, qos: Qos, memory_request: Option<i64>, node_memory: u64) -> i64 {
    if pod.spec.as_ref().and_then(|spec| spec.priority).is_some_and(|priority| priority >= SYSTEM_PRIORITY) {
        return OOM_GUARANTEED;
    }
    match qos {
        Qos::Guaranteed => OOM_GUARANTEED,
        Qos::BestEffort => OOM_BEST_EFFORT,
        Qos::Burstable => {
            let request = i128::from(memory_request.unwrap_or(0));
            let share = 1000 - (1000 * request).checked_div(i128::from(node_memory)).unwrap_or(0);
            // Never as safe as guaranteed Pods, never as exposed as best-effort ones.
            i64::try_from(share).unwrap_or(0).clamp(1000 + OOM_GUARANTEED, OOM_BEST_EFFORT - 1)
        }
    }
}

/// The huge pages of a list, in bytes by resource.
pub fn huge_pages(map: Option<&BTreeMap<String, Text>>) -> Result<BTreeMap<String, i64>, ResourceError> {
    let mut pages = BTreeMap::new();
    for resource in map.into_iter().flat_map(BTreeMap::keys).filter(|resource| is_huge_pages(resource)) {
        pages.extend(amount(map, resource)?.map(|bytes| (resource.clone(), bytes.value())));
    }
    Ok(pages)
}

/// The huge pages that a Pod asks for in all, which are those that it may use: nobody is promised more than there are.
pub fn huge_pages_of_pod(pod: &Pod) -> Result<BTreeMap<String, i64>, ResourceError> {
    let asked = shown(pod)?.requests;
    huge_pages(asked.as_ref())
}

/// Limits for each size of pages that the machine has: who asks for none gets none (kubelet
/// `pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`, `GetHugepageLimitsFromResources`).
fn huge_page_limits(asked: &BTreeMap<String, i64>, machine: &Machine) -> Vec<HugepageLimit> {
    let limit_of = |size: i64| {
        let of_size = asked.iter().filter(|(resource, _)| page_bytes(resource) == Some(size));
        let limit = of_size.fold(0_i64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        HugepageLimit { page_size: kernel_size(size), limit: u64::try_from(limit).unwrap_or(0) }
    };
    machine.huge_page_sizes.iter().map(|size| limit_of(*size)).collect()
}

/// A size of pages as the kernel names it in control groups (`mem_fmt` of its `mm/hugetlb_cgroup.c`).
fn kernel_size(bytes: i64) -> String {
    const KIB: i64 = 1024;
    match bytes {
        bytes if bytes >= KIB * KIB * KIB => format!("{}GB", bytes / (KIB * KIB * KIB)),
        bytes if bytes >= KIB * KIB => format!("{}MB", bytes / (KIB * KIB)),
        bytes => format!("{}KB", bytes / KIB),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod_of(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("a Pod")
    }

    fn with(requests: serde_json::Value, limits: serde_json::Value) -> serde_json::Value {
        json!({"containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]})
    }

    #[test]
    fn classes_and_scores() {
        const GIB: u64 = 1 << 30;
        for (requests, limits, class, score) in [
            (json!({}), json!({}), Qos::BestEffort, 1000),
            (json!({"memory": "256Mi"}), json!({}), Qos::Burstable, 750),
            (json!({"memory": "1Gi"}), json!({}), Qos::Burstable, 3),
            (json!({"cpu": "1m"}), json!({}), Qos::Burstable, 999),
            (json!({"cpu": "1", "memory": "1Mi"}), json!({"cpu": "1", "memory": "1Mi"}), Qos::Guaranteed, -997),
        ] {
            let pod = pod_of(with(requests, limits));
            assert_eq!(qos(&pod).expect("quantities"), class);
            let spec = &pod.spec.as_ref().expect("a spec").containers[0];
            let machine = Machine { memory_bytes: GIB, ..Machine::default() };
            assert_eq!(container(&pod, spec, &machine).expect("quantities").oom_score_adj, score);
        }
    }

    #[test]
    fn a_container_without_a_limit_has_that_of_its_pod() {
        for (own, shares, quota, memory) in [
            (json!({}), 2048, 200_000, 1 << 30),
            (json!({"requests": {"cpu": "1"}, "limits": {"memory": "1Mi"}}), 1024, 200_000, 1 << 20),
            (json!({"limits": {"cpu": "1", "memory": "0"}}), 1024, 100_000, 1 << 30),
        ] {
            let whole = json!({"limits": {"cpu": "2", "memory": "1Gi"}});
            let pod = pod_of(json!({"resources": whole, "containers": [{"name": "c", "resources": own}]}));
            let spec = &pod.spec.as_ref().expect("a spec").containers[0];
            let set = container(&pod, spec, &Machine::default()).expect("quantities");
            assert_eq!((set.cpu_shares, set.cpu_quota, set.memory_limit_in_bytes), (shares, quota, memory));
            assert_eq!(Limits::wanted(&pod, spec).expect("quantities"), Limits::of(&set));
        }
    }

    /// A size that is asked for nowhere has the limit zero; what the Pod has as a whole, a container may use that says nothing.
    #[test]
    fn huge_pages_are_limited_for_each_size_of_the_machine() {
        let asking = |name: &str, size: &str, amount: &str| json!({"name": name, "resources": {"limits": {size: amount}, "requests": {size: amount}}});
        let whole = json!({"requests": {"hugepages-1Gi": "2Gi"}, "limits": {"hugepages-1Gi": "2Gi"}});
        let containers = json!([
            asking("a", "hugepages-2Mi", "4Mi"),
            asking("b", "hugepages-2Mi", "2Mi"),
            asking("c", "hugepages-1Gi", "1Gi")
        ]);
        let pod = pod_of(json!({"resources": whole, "containers": containers}));
        let machine = Machine { huge_page_sizes: vec![64 << 10, 2 << 20, 1 << 30], ..Machine::default() };
        let limits = |settings: LinuxContainerResources| {
            let shown = |limit: &HugepageLimit| format!("{}={}", limit.page_size, limit.limit);
            settings.hugepage_limits.iter().map(shown).collect::<Vec<_>>().join(" ")
        };
        let spec = pod.spec.as_ref().expect("a spec");
        let of: Vec<String> =
            spec.containers.iter().map(|c| limits(container(&pod, c, &machine).expect("quantities"))).collect();
        assert_eq!(
            of,
            ["64KB=0 2MB=4194304 1GB=2147483648", "64KB=0 2MB=2097152 1GB=2147483648", "64KB=0 2MB=0 1GB=1073741824"]
        );
        assert_eq!(limits(pod_on(&pod, &machine).expect("quantities")), "64KB=0 2MB=6291456 1GB=2147483648");
        assert_eq!(limits(pod_on(&pod, &Machine::default()).expect("quantities")), "");
    }

    #[test]
    fn a_pod_shows_what_it_has_in_all() {
        let one = json!({"requests": {"cpu": "0.5", "example.com/x": "1"}, "limits": {"cpu": "1", "memory": "1Gi"}});
        let other = json!({"requests": {"cpu": "250m"}, "limits": {"memory": "1Gi"}});
        let containers = json!([{"name": "a", "resources": one}, {"name": "b", "resources": other}]);
        let whole = json!({"requests": {"memory": "4Gi"}, "limits": {"memory": "4Gi"}});
        let overhead = json!({"cpu": "50m"});
        for (spec, requests, limits) in [
            (json!({"containers": [{"name": "a"}]}), None, None),
            (
                json!({"containers": containers}),
                Some(json!({"cpu": "750m", "example.com/x": "1"})),
                // One container has no limit of CPU, so the Pod has none.
                Some(json!({"memory": "2Gi"})),
            ),
            (
                json!({"containers": containers, "resources": whole, "overhead": overhead}),
                Some(json!({"cpu": "800m", "memory": "4Gi", "example.com/x": "1"})),
                Some(json!({"memory": "4Gi"})),
            ),
        ] {
            let expected: BTreeMap<_, _> = [("requests", requests), ("limits", limits)]
                .into_iter()
                .filter_map(|(key, map)| Some((key, map?)))
                .collect();
            let shown = shown(&pod_of(spec)).expect("quantities");
            assert_eq!(serde_json::to_value(shown).expect("JSON"), json!(expected));
        }
    }

    #[test]
    fn weights_and_quotas() {
        for (requests, limits, shares, quota, memory) in [
            (json!({}), json!({}), 2, 0, 0),
            (json!({"cpu": "500m"}), json!({}), 512, 0, 0),
            (json!({}), json!({"cpu": "2", "memory": "1Mi"}), 2048, 200_000, 1_048_576),
            (json!({"cpu": "1m"}), json!({"cpu": "1m"}), 2, 1_000, 0),
        ] {
            let pod = pod_of(with(requests, limits));
            let spec = &pod.spec.as_ref().expect("a spec").containers[0];
            let set = container(&pod, spec, &Machine::default()).expect("quantities");
            assert_eq!((set.cpu_shares, set.cpu_quota, set.memory_limit_in_bytes), (shares, quota, memory));
        }
    }

    #[test]
    fn a_container_of_v2_dies_as_a_whole() {
        let pod = pod_of(json!({"containers": [{"name": "c"}]}));
        let spec = &pod.spec.as_ref().expect("a spec").containers[0];
        for (unified_cgroups, expected) in [(true, Some("1")), (false, None)] {
            let machine = Machine { memory_bytes: 1, unified_cgroups, ..Machine::default() };
            let set = container(&pod, spec, &machine).expect("quantities");
            assert_eq!(set.unified.get("memory.oom.group").map(String::as_str), expected);
        }
    }

    #[test]
    fn a_pod_is_bounded_only_when_all_of_it_is() {
        let limited = json!({"name": "a", "resources": {"limits": {"cpu": "1", "memory": "10"}}});
        let open = json!({"name": "b"});
        let both = pod(&pod_of(json!({"containers": [limited, open]}))).expect("quantities");
        assert_eq!((both.cpu_quota, both.memory_limit_in_bytes), (0, 0));
        let asking = json!({"name": "a", "resources": {"requests": {"cpu": "1"}}});
        let weight = pod(&pod_of(json!({"containers": [asking, open]}))).expect("quantities").cpu_shares;
        assert_eq!(weight, 1024, "who asks for nothing takes nothing from the others' weight");
        let init = json!({"name": "i", "resources": {"limits": {"cpu": "3", "memory": "5"}}});
        let side =
            json!({"name": "s", "restartPolicy": "Always", "resources": {"limits": {"cpu": "1", "memory": "1"}}});
        let both = json!({"containers": [limited], "initContainers": [side, init]});
        let sum = pod(&pod_of(both.clone())).expect("quantities");
        assert_eq!((sum.cpu_quota, sum.memory_limit_in_bytes), (400_000, 11));
        let mut more = both;
        more["overhead"] = json!({"cpu": "500m", "memory": "4"});
        let more = pod_of(more);
        let sum = pod(&more).expect("quantities");
        assert_eq!((sum.cpu_quota, sum.memory_limit_in_bytes), (450_000, 15));
        let own = overhead(&more).expect("quantities").expect("an overhead");
        assert_eq!((own.cpu_quota, own.memory_limit_in_bytes), (50_000, 4));
    }
}
