//! Whether a Pod that was bound to this node may run on it at all (kubelet `pkg/kubelet/lifecycle`, `pkg/kubelet/sysctl`). Pure.
//!
//! The scheduler has decided already; this is for Pods that came past it, and for races between two of them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use carob_api::pod::{self as rules, HostPort, Taint, Toleration};
use k8s_openapi::api::core::v1::{AppArmorProfile, Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};

use crate::allocation::Pending;
use crate::config::resources::{self, Qos, ResourceError, amount, amounts, huge_pages};
use crate::eviction::rank::is_critical;
use crate::eviction::thresholds::Pressure;
use crate::eviction::{EVICTED, Pressures};
use crate::pod::{Member, PodView};

/// Kernel settings that belong to a Pod's namespaces and cannot harm others (kubelet `pkg/kubelet/sysctl/safe_sysctls.go`).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Why a Pod is refused: it fails at once with this reason and message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub reason: Cow<'static, str>,
    pub message: String,
}

/// The reason of a Pod whose selector the node's labels do not match.
pub const NODE_AFFINITY: &str = "NodeAffinity";

/// What the node can give.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Room {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    /// Bytes by resource.
    pub huge_pages: BTreeMap<String, i64>,
    pub pods: usize,
    pub labels: BTreeMap<String, String>,
    /// Why no Pod can be confined by AppArmor; `None` where nothing is to be confined.
    pub no_apparmor: Option<&'static str>,
}

impl Room {
    /// The same with what the node's object says now: others may change its labels and what it can give.
    pub fn with_node(&self, node: &Node) -> Result<Self, ResourceError> {
        let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        let given = amounts(allocatable)?;
        let pods = amount(allocatable, "pods")?.map(|quantity| quantity.value());
        Ok(Self {
            cpu_milli: given.cpu_milli.unwrap_or(self.cpu_milli),
            memory_bytes: given.memory_bytes.unwrap_or(self.memory_bytes),
            huge_pages: if allocatable.is_some() { huge_pages(allocatable)? } else { self.huge_pages.clone() },
            pods: pods.map_or(self.pods, |pods| usize::try_from(pods).unwrap_or(0)),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            no_apparmor: self.no_apparmor,
        })
    }
}

/// Checks `pod` against what the `others` on the node leave.
pub fn admit(pod: &Pod, others: &[&Pod], room: &Room) -> Result<(), Rejection> {
    check_os(pod)?;
    check_sysctls(pod)?;
    check_apparmor(pod, room)?;
    check_selector(pod, room)?;
    check_room(pod, others, room)?;
    check_ports(pod, others)
}

/// Whether a node that is short of something takes the Pod in (kubelet `pkg/kubelet/eviction`, Admit).
pub fn admit_under(pod: &Pod, pressures: &Pressures) -> Result<(), Rejection> {
    const TAINT: Taint<'_> = Taint { key: "node.kubernetes.io/memory-pressure", value: "", effect: "NoSchedule" };
    if pressures.is_empty() || is_critical(pod) {
        return Ok(());
    }
    let only_memory = pressures.iter().all(|pressure| *pressure == Pressure::Memory);
    let tolerates = || {
        let mut all = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
        all.any(|one| {
            let text = |field: &Option<String>| field.as_deref().unwrap_or_default().to_owned();
            let (key, operator) = (text(&one.key), text(&one.operator));
            let (value, effect) = (text(&one.value), text(&one.effect));
            Toleration { key: &key, operator: &operator, value: &value, effect: &effect }.bears(TAINT)
        })
    };
    let is_best_effort = resources::qos(pod).is_ok_and(|class| class == Qos::BestEffort);
    if only_memory && (!is_best_effort || tolerates()) {
        return Ok(());
    }
    let conditions: Vec<&str> = pressures.iter().map(|pressure| pressure.condition()).collect();
    Err(Rejection { reason: EVICTED.into(), message: format!("The node had condition: [{}]. ", conditions.join(" ")) })
}

/// Whether a Pod that runs here may have what it asks for now, beside what the `others` have.
pub fn admit_resize(pod: &Pod, others: &[&Pod], room: &Room) -> Result<(), Pending> {
    let infeasible = |what: String| Pending { reason: "Infeasible", message: what };
    let (cpu, memory) = requests(pod).map_err(|error| infeasible(carob_kit::chain(&error).to_string()))?;
    for (resource, wanted, capacity) in [("cpu", cpu, room.cpu_milli), ("memory", memory, room.memory_bytes)] {
        if wanted > capacity {
            return Err(infeasible(format!(
                "Node didn't have enough capacity: {resource}, requested: {wanted}, capacity: {capacity}"
            )));
        }
    }
    check_room(pod, others, room).map_err(|short| {
        let message = short.message.trim_start_matches(REJECTED).to_owned();
        Pending { reason: "Deferred", message }
    })
}

/// What the message of every refused Pod begins with.
const REJECTED: &str = "Pod was rejected: ";

fn rejected(reason: impl Into<Cow<'static, str>>, what: impl std::fmt::Display) -> Rejection {
    Rejection { reason: reason.into(), message: format!("{REJECTED}{what}") }
}

/// A Pod is refused for what its spec did not let expect.
pub(crate) fn unexpected(what: impl std::fmt::Display) -> Rejection {
    rejected("UnexpectedAdmissionError", what)
}

/// Upstream `pkg/kubelet/lifecycle/predicate.go`.
fn check_os(pod: &Pod) -> Result<(), Rejection> {
    let labelled = pod.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
    if labelled.is_some_and(|os| os != "linux") {
        let what = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Err(rejected("PodOSSelectorNodeLabelDoesNotMatch", what));
    }
    let wanted = pod.spec.as_ref().and_then(|spec| spec.os.as_ref());
    if wanted.is_some_and(|os| os.name != "linux") {
        let what = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(rejected("PodOSNotSupported", what));
    }
    Ok(())
}

fn check_sysctls(pod: &Pod) -> Result<(), Rejection> {
    let view = PodView::new(pod);
    let sysctls =
        view.spec().and_then(|spec| spec.security_context.as_ref()).and_then(|context| context.sysctls.as_ref());
    for sysctl in sysctls.into_iter().flatten() {
        let name = sysctl.name.replace('/', ".");
        if !SAFE_SYSCTLS.contains(&name.as_str()) {
            return Err(rejected("SysctlForbidden", format!("forbidden sysctl: {name:?} not allowlisted")));
        }
        if view.host_network() && name.starts_with("net.") {
            return Err(rejected(
                "SysctlForbidden",
                format!("forbidden sysctl: {name:?} not allowed with host net enabled"),
            ));
        }
    }
    Ok(())
}

/// A Pod that asks for confinement does not run without (kubelet `pkg/security/apparmor`).
fn check_apparmor(pod: &Pod, room: &Room) -> Result<(), Rejection> {
    let confines = |profile: Option<&AppArmorProfile>| profile.is_some_and(|profile| profile.type_ != "Unconfined");
    let view = PodView::new(pod);
    let of_pod = view.spec().and_then(|spec| spec.security_context.as_ref());
    let of_pod = confines(of_pod.and_then(|context| context.app_armor_profile.as_ref()));
    let of_member = |member: &Member<'_>| {
        confines(member.spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref()))
    };
    match room.no_apparmor {
        Some(why) if of_pod || view.members().iter().any(of_member) => {
            Err(rejected("AppArmor", format!("Cannot enforce AppArmor: {why}")))
        }
        Some(_) | None => Ok(()),
    }
}

fn check_selector(pod: &Pod, room: &Room) -> Result<(), Rejection> {
    let selector = pod.spec.as_ref().and_then(|spec| spec.node_selector.as_ref());
    let fits = selector.into_iter().flatten().all(|(key, value)| room.labels.get(key) == Some(value));
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    // The Pod is bound to this node, so its name is the node's.
    let name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    if fits && required.is_none_or(|required| fits_any(&required.node_selector_terms, name, &room.labels)) {
        Ok(())
    } else {
        Err(rejected(NODE_AFFINITY, "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"))
    }
}

/// Whether a node of that name and with these labels is one that a term selects.
pub(crate) fn fits_any(terms: &[NodeSelectorTerm], name: &str, labels: &BTreeMap<String, String>) -> bool {
    let label = |key: &str| labels.get(key).map(String::as_str);
    terms.iter().any(|term| {
        let (expressions, fields) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
        rules::term_fits(expressions.map(requirement), fields.map(requirement), name, label)
    })
}

fn requirement(requirement: &NodeSelectorRequirement) -> rules::Requirement<'_> {
    let values = requirement.values.as_deref().unwrap_or_default();
    rules::Requirement { key: &requirement.key, operator: &requirement.operator, values }
}

/// CPU and memory that a Pod asks for in all.
fn requests(pod: &Pod) -> Result<(i64, i64), ResourceError> {
    let asked = resources::requests(pod)?;
    Ok((asked.cpu_milli.unwrap_or(0), asked.memory_bytes.unwrap_or(0)))
}

fn check_room(pod: &Pod, others: &[&Pod], room: &Room) -> Result<(), Rejection> {
    let alive: Vec<&&Pod> = others.iter().filter(|other| !PodView::new(other).is_terminal()).collect();
    if alive.len() + 1 > room.pods {
        return Err(short("pods", 1, alive.len() as i64, room.pods as i64));
    }
    let parse = |pod: &Pod| requests(pod).map_err(|error| unexpected(carob_kit::chain(&error)));
    let (cpu, memory) = parse(pod)?;
    let (mut used_cpu, mut used_memory) = (0i64, 0i64);
    for other in &alive {
        let (other_cpu, other_memory) = parse(other)?;
        used_cpu = used_cpu.saturating_add(other_cpu);
        used_memory = used_memory.saturating_add(other_memory);
    }
    if cpu > 0 && used_cpu.saturating_add(cpu) > room.cpu_milli {
        return Err(short("cpu", cpu, used_cpu, room.cpu_milli));
    }
    if memory > 0 && used_memory.saturating_add(memory) > room.memory_bytes {
        return Err(short("memory", memory, used_memory, room.memory_bytes));
    }
    let pages = |pod: &Pod| resources::huge_pages_of_pod(pod).map_err(|error| unexpected(carob_kit::chain(&error)));
    for (resource, wanted) in pages(pod)?.into_iter().filter(|(_, wanted)| *wanted > 0) {
        let mut used = 0i64;
        for other in &alive {
            used = used.saturating_add(pages(other)?.get(&resource).copied().unwrap_or(0));
        }
        let capacity = room.huge_pages.get(&resource).copied().unwrap_or(0);
        if used.saturating_add(wanted) > capacity {
            return Err(short(&resource, wanted, used, capacity));
        }
    }
    Ok(())
}

fn short(resource: &str, wanted: i64, used: i64, capacity: i64) -> Rejection {
    let message = format!(
        "Node didn't have enough resource: {resource}, requested: {wanted}, used: {used}, capacity: {capacity}"
    );
    rejected(format!("OutOf{resource}"), message)
}

fn check_ports(pod: &Pod, others: &[&Pod]) -> Result<(), Rejection> {
    let mine = host_ports(pod);
    for other in others.iter().filter(|other| !PodView::new(other).is_terminal()) {
        if host_ports(other).iter().any(|port| mine.iter().any(|my_port| my_port.conflicts(port))) {
            let what = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
            return Err(rejected("NodePorts", what));
        }
    }
    Ok(())
}

fn host_ports(pod: &Pod) -> Vec<HostPort<'_>> {
    let host_network = PodView::new(pod).host_network();
    let Some(spec) = &pod.spec else { return Vec::new() };
    // Init containers that end give their ports back; sidecars keep them.
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = sidecars.chain(&spec.containers).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.or(host_network.then_some(port.container_port)).filter(|port| *port > 0)?;
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            Some(HostPort { ip: port.host_ip.as_deref().unwrap_or_default(), protocol, port: number })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("a Pod")
    }

    fn asking(cpu: &str) -> serde_json::Value {
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})
    }

    fn asking_pages(resource: &str, amount: &str) -> serde_json::Value {
        json!({"containers": [{"name": "c", "resources": {"requests": {resource: amount}}}]})
    }

    /// Containers that ask for so much memory.
    fn huge(memory: &[&str]) -> serde_json::Value {
        let ask = |(index, memory): (usize, &&str)| json!({"name": format!("c{index}"), "resources": {"requests": {"memory": *memory}}});
        json!({"containers": memory.iter().enumerate().map(ask).collect::<Vec<_>>()})
    }

    fn porting(ip: &str) -> serde_json::Value {
        json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080, "hostIP": ip}]}]})
    }

    fn affine(operator: &str, disk: &str) -> serde_json::Value {
        let terms = json!([{"matchExpressions": [{"key": "disk", "operator": operator, "values": [disk]}]}]);
        let required = json!({"nodeSelectorTerms": terms});
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}})
    }

    #[test]
    fn reasons_to_refuse() {
        let labels = [("disk".to_owned(), "ssd".to_owned())].into();
        let huge_pages = [("hugepages-2Mi".to_owned(), 4 << 20)].into();
        let room = Room {
            cpu_milli: 1000,
            memory_bytes: 1 << 30,
            pods: 2,
            labels,
            no_apparmor: Some("it is off"),
            huge_pages,
        };
        let confined = |kind: &str| json!({"securityContext": {"appArmorProfile": {"type": kind}}});
        let sysctl = |name: &str| json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        for (mine, other, expect) in [
            (json!({}), json!({}), None),
            (sysctl("kernel.shm_rmid_forced"), json!({}), None),
            (sysctl("kernel/msgmax"), json!({}), Some("SysctlForbidden")),
            (confined("Unconfined"), json!({}), None),
            (confined("RuntimeDefault"), json!({}), Some("AppArmor")),
            (json!({"nodeSelector": {"disk": "ssd"}}), json!({}), None),
            (json!({"nodeSelector": {"disk": "hdd"}}), json!({}), Some("NodeAffinity")),
            (affine("In", "ssd"), json!({}), None),
            (affine("NotIn", "ssd"), json!({}), Some("NodeAffinity")),
            (asking("600m"), asking("400m"), None),
            (json!({"resources": {"requests": {"cpu": "600m"}}}), asking("500m"), Some("OutOfcpu")),
            (asking("600m"), asking("500m"), Some("OutOfcpu")),
            (asking_pages("hugepages-2Mi", "2Mi"), asking_pages("hugepages-2Mi", "2Mi"), None),
            (asking_pages("hugepages-2Mi", "4Mi"), asking_pages("hugepages-2Mi", "2Mi"), Some("OutOfhugepages-2Mi")),
            (asking_pages("hugepages-1Gi", "1Gi"), json!({}), Some("OutOfhugepages-1Gi")),
            (json!({"os": {"name": "linux"}}), json!({}), None),
            (json!({"os": {"name": "windows"}}), json!({}), Some("PodOSNotSupported")),
            (huge(&["8Ei", "8Ei"]), json!({}), Some("OutOfmemory")),
            (huge(&["1"]), huge(&["8Ei", "8Ei"]), Some("OutOfmemory")),
            (huge(&["9223372036854775807"]), huge(&["1"]), Some("OutOfmemory")),
            (porting(""), porting(""), Some("NodePorts")),
            (porting("127.0.0.1"), porting("127.0.0.2"), None),
            (porting("127.0.0.1"), porting("0.0.0.0"), Some("NodePorts")),
        ] {
            let (mine, other) = (pod(mine), pod(other));
            let verdict = admit(&mine, &[&other], &room).err().map(|rejection| rejection.reason);
            let verdict = verdict.as_deref();
            assert_eq!(verdict, expect, "{:?}", mine.spec);
        }
        let plain = pod(json!({}));
        let full = admit(&plain, &[&plain, &plain], &room).expect_err("two are there already");
        assert_eq!(full.reason, "OutOfpods");
        assert_eq!(
            full.message,
            "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2"
        );
    }

    #[test]
    fn the_room_follows_the_nodes_object() {
        let machine = Room { cpu_milli: 1000, memory_bytes: 1 << 30, pods: 2, ..Room::default() };
        let node = |object| serde_json::from_value::<Node>(object).expect("a Node");
        let bare = machine.with_node(&node(json!({"metadata": {"labels": {"disk": "ssd"}}}))).expect("no amounts");
        assert_eq!((bare.cpu_milli, bare.memory_bytes, bare.pods), (1000, 1 << 30, 2));
        assert_eq!(bare.labels["disk"], "ssd");
        let allocatable = json!({"cpu": "500m", "memory": "1Ki", "pods": "7"});
        let given = machine.with_node(&node(json!({"status": {"allocatable": allocatable}}))).expect("amounts");
        assert_eq!((given.cpu_milli, given.memory_bytes, given.pods), (500, 1024, 7));
        let wrong = node(json!({"status": {"allocatable": {"cpu": "many"}}}));
        assert!(machine.with_node(&wrong).is_err());
    }

    #[test]
    fn a_resize_waits_for_room_or_never_fits() {
        let room = Room { cpu_milli: 1000, memory_bytes: 1 << 30, pods: 2, ..Room::default() };
        for (mine, other, expect) in [
            ("600m", "400m", Ok(())),
            (
                "600m",
                "500m",
                Err(("Deferred", "Node didn't have enough resource: cpu, requested: 600, used: 500, capacity: 1000")),
            ),
            ("2", "0", Err(("Infeasible", "Node didn't have enough capacity: cpu, requested: 2000, capacity: 1000"))),
        ] {
            let verdict = admit_resize(&pod(asking(mine)), &[&pod(asking(other))], &room);
            let expect = expect.map_err(|(reason, message)| Pending { reason, message: message.to_owned() });
            assert_eq!(verdict, expect);
        }
    }

    #[test]
    fn a_node_that_is_short_takes_in_less() {
        let pod = |spec: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": spec})).expect("a Pod")
        };
        let cheap = pod(serde_json::json!({"containers": [{"name": "c"}]}));
        let asking = serde_json::json!({"requests": {"memory": "1Mi"}});
        let burstable = pod(serde_json::json!({"containers": [{"name": "c", "resources": asking}]}));
        let bearing = pod(serde_json::json!({"containers": [{"name": "c"}], "tolerations": [
            {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}]}));
        let critical = pod(serde_json::json!({"priority": 2_000_000_000, "containers": [{"name": "c"}]}));
        let memory = Pressures::from([Pressure::Memory]);
        let both = Pressures::from([Pressure::Memory, Pressure::Disk]);
        assert!(admit_under(&cheap, &Pressures::new()).is_ok());
        let refused = admit_under(&cheap, &memory).expect_err("refused");
        assert_eq!(
            (&*refused.reason, refused.message.as_str()),
            (EVICTED, "The node had condition: [MemoryPressure]. ")
        );
        assert!(admit_under(&burstable, &memory).is_ok() && admit_under(&bearing, &memory).is_ok());
        for pod in [&cheap, &burstable, &bearing] {
            assert!(admit_under(pod, &both).is_err());
        }
        assert!(admit_under(&critical, &both).is_ok());
    }
}
