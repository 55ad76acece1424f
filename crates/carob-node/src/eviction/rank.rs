//! Which Pod goes first, and what it is told (kubelet `pkg/kubelet/eviction/helpers.go`). Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use carob_api::pod::Total;
use carob_api::quantity::{Format, Quantity};
use k8s_openapi::api::core::v1::{Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use super::decide::Shortage;
use super::storage::STORAGE;
use super::thresholds::Pressure;
use crate::pod::{PodId, PodView, Role};

const MEMORY: &str = "memory";

/// Pods of this priority and above are the cluster's own (`scheduling.SystemCriticalPriority`).
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// What a Pod uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Used {
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub processes: u64,
    /// Memory, or disk, by container.
    pub containers: BTreeMap<String, u64>,
}

/// A Pod that may be evicted.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub pod: Arc<Pod>,
    /// Not known of a Pod that cannot be measured: it goes first.
    pub used: Option<Used>,
}

/// Whether a Pod is never evicted for want of resources (kubelet `types.IsCriticalPod`).
pub fn is_critical(pod: &Pod) -> bool {
    PodId::of(pod).is_static() || priority(pod) >= SYSTEM_CRITICAL
}

fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

type Amounts = BTreeMap<String, Quantity>;

/// Of a list, what it says of one resource. What cannot be read asks for nothing: the API has refused it.
fn only(list: Option<&BTreeMap<String, Text>>, resource: &str) -> Amounts {
    let text = list.and_then(|list| list.get(resource));
    let quantity = text.and_then(|text| Quantity::parse(&text.0).ok());
    quantity.map(|quantity| (resource.to_owned(), quantity)).into_iter().collect()
}

fn requested(resources: Option<&ResourceRequirements>, resource: &str) -> Amounts {
    only(resources.and_then(|resources| resources.requests.as_ref()), resource)
}

fn units(amounts: &Amounts, resource: &str) -> u64 {
    amounts.get(resource).and_then(|quantity| u64::try_from(quantity.value()).ok()).unwrap_or(0)
}

/// What a Pod asked for in all.
fn request(pod: &Pod, resource: &str) -> u64 {
    let Some(PodSpec { containers, init_containers, resources, overhead, .. }) = &pod.spec else { return 0 };
    let mut total = Total::default();
    for container in containers {
        total.container(&requested(container.resources.as_ref(), resource));
    }
    for container in init_containers.iter().flatten() {
        let is_sidecar = container.restart_policy.as_deref() == Some("Always");
        total.init_container(&requested(container.resources.as_ref(), resource), is_sidecar);
    }
    let overhead = only(overhead.as_ref(), resource);
    units(&total.requests(Some(&requested(resources.as_ref(), resource)), Some(&overhead)), resource)
}

/// The candidates, the first to go first.
pub fn rank(pressure: Pressure, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.sort_by_cached_key(|candidate| {
        let Some(used) = &candidate.used else { return (false, false, i32::MIN, Reverse(u64::MAX)) };
        let priority = priority(&candidate.pod);
        match pressure {
            Pressure::Pid => (true, false, priority, Reverse(used.processes)),
            Pressure::Memory => by_request(used.memory_bytes, request(&candidate.pod, MEMORY), priority),
            Pressure::Disk => by_request(used.disk_bytes, request(&candidate.pod, STORAGE), priority),
        }
    });
    candidates
}

/// Those that use more than they asked for go before the others; among them the unimportant, then those that take most.
fn by_request(used: u64, requested: u64, priority: i32) -> (bool, bool, i32, Reverse<u64>) {
    (true, used <= requested, priority, Reverse(used.saturating_sub(requested)))
}

/// What an evicted Pod's status says.
pub fn message(shortage: &Shortage, candidate: &Candidate) -> String {
    let resource = shortage.threshold.signal.resource();
    let threshold = shortage.threshold.amount.of(shortage.observation.capacity);
    let pod = &candidate.pod;
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        quantity(resource, threshold),
        quantity(resource, shortage.observation.available)
    );
    let Some(used) = &candidate.used else { return text };
    let mut add = |what: &str, name: &str, used: u64, asked: u64| {
        let (used, asked) = (quantity(resource, used), quantity(resource, asked));
        text += &format!("{what} {name} was using {used}, request is {asked}, has larger consumption of {resource}. ");
    };
    let own = pod.spec.as_ref().map(|spec| requested(spec.resources.as_ref(), resource)).unwrap_or_default();
    if resource == MEMORY && !own.is_empty() {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        add("Pod", name, used.memory_bytes, units(&own, resource));
    }
    let view = PodView::new(pod);
    for (name, used) in &used.containers {
        // Ephemeral containers cannot ask for anything, and are not blamed for it.
        let Some(member) = view.member(name).filter(|member| member.role != Role::Ephemeral) else { continue };
        let asked = units(&requested(member.spec.resources.as_ref(), resource), resource);
        if *used > asked {
            add("Container", name, *used, asked);
        }
    }
    text
}

/// An amount as upstream spells it: bytes in the largest binary unit that leaves no fraction.
pub(super) fn quantity(resource: &str, amount: u64) -> String {
    let format = if matches!(resource, MEMORY | STORAGE) { Format::BinarySi } else { Format::DecimalSi };
    Quantity::from_units(i64::try_from(amount).unwrap_or(i64::MAX), format).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::eviction::decide::Observation;
    use crate::eviction::thresholds::{Signal, parse};

    fn candidate(name: &str, priority: i32, requested: &str, used: Option<u64>) -> Candidate {
        let requests = json!({"memory": requested, "ephemeral-storage": requested});
        let pod = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": requests}}]},
        });
        let used = used.map(|bytes| Used {
            memory_bytes: bytes,
            disk_bytes: bytes,
            processes: bytes,
            containers: BTreeMap::from([("c".to_owned(), bytes)]),
        });
        Candidate { pod: Arc::new(serde_json::from_value(pod).expect("a Pod")), used }
    }

    fn names(pressure: Pressure, candidates: Vec<Candidate>) -> Vec<String> {
        rank(pressure, candidates).into_iter().filter_map(|one| one.pod.metadata.name.clone()).collect()
    }

    #[test]
    fn who_exceeds_its_request_goes_first() {
        let all = || {
            vec![
                candidate("within", 0, "10Mi", Some(9 << 20)),
                candidate("above", 0, "1Mi", Some(2 << 20)),
                candidate("far-above", 0, "1Mi", Some(9 << 20)),
                candidate("important", 100, "0", Some(99 << 20)),
                candidate("unknown", 1000, "0", None),
            ]
        };
        let expected = ["unknown", "far-above", "above", "important", "within"];
        assert_eq!(names(Pressure::Memory, all()), expected);
        assert_eq!(names(Pressure::Disk, all()), expected);
        let by_count = ["unknown", "within", "far-above", "above", "important"];
        assert_eq!(names(Pressure::Pid, all()), by_count);
    }

    #[test]
    fn the_node_never_evicts_its_own() {
        assert!(is_critical(&candidate("0123456789abcdef0123456789abcdef", 0, "0", None).pod));
        assert!(is_critical(&candidate("p", 2_000_001_000, "0", None).pod));
        assert!(!is_critical(&candidate("p", 1_000_000_000, "0", None).pod));
    }

    #[test]
    fn messages_are_upstreams() {
        let threshold = parse("memory.available<10%", "", "", "").expect("parsed")[0];
        assert_eq!(threshold.signal, Signal::MemoryAvailable);
        let observation = Observation { available: 50 << 20, capacity: 1000 << 20 };
        let text = message(&Shortage { threshold, observation }, &candidate("p", 0, "0", Some(3 << 10)));
        let low = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. ";
        let container = "Container c was using 3Ki, request is 0, has larger consumption of memory. ";
        assert_eq!(text, format!("{low}{container}"));

        let mut whole = candidate("p", 0, "4Ki", Some(3 << 10));
        let spec = Arc::make_mut(&mut whole.pod).spec.as_mut().expect("a spec");
        spec.resources = serde_json::from_value(json!({"requests": {"memory": "1Ki"}})).expect("resources");
        let text = message(&Shortage { threshold, observation }, &whole);
        assert_eq!(text, format!("{low}Pod p was using 3Ki, request is 1Ki, has larger consumption of memory. "));
    }
}
