//! The Node object, from facts. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use carob_api::pod::{DECLARED_FEATURES, huge_pages_of, is_extended};
use carob_api::quantity::{Format, Quantity as Amount};
use carob_cri::v1::{Image, StatusResponse};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSwapStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::facts::{HugePages, MachineFacts, Strain};
use crate::eviction::Pressures;
use crate::eviction::thresholds::{EvictionConfig, Pressure, Signal};
use crate::status::whole_seconds;

/// Images that a Node lists (kubelet `nodeStatusMaxImages`), and names of each (`MaxNamesPerImageInNodeStatus`).
const IMAGES_MAX: usize = 50;
const IMAGE_NAMES_MAX: usize = 5;

/// Which machine a Node is of: two never share one.
pub const MACHINE_ANNOTATION: &str = "carob.io/machine";

/// What the operator says of the node.
#[derive(Debug, Clone, Default)]
pub struct NodeIdentity {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub kubelet_port: u16,
    pub kubelet_version: String,
    pub pods_max: usize,
    /// When it gives up Pods: they cannot ask for what is to stay free by that.
    pub eviction: EvictionConfig,
    pub labels: BTreeMap<String, String>,
    /// Address ranges for its Pods, where the node decides them itself.
    pub pod_cidrs: Vec<String>,
    /// Tells this machine from others of its name; `None` for one that has no rival.
    pub machine_id: Option<String>,
    /// A Node that was deleted is not registered again before the next start.
    pub stays_deleted: bool,
}

/// Whose a Node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    Ours,
    /// Nobody's, or of a machine that is silent, which is named: it may be taken.
    Free(Option<String>),
    /// Another machine is the node, and lives.
    Other,
}

pub(crate) fn owner(identity: &NodeIdentity, node: &Node) -> Owner {
    let Some(own) = &identity.machine_id else { return Owner::Ours };
    let held = node.metadata.annotations.as_ref().and_then(|annotations| annotations.get(MACHINE_ANNOTATION));
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    match held {
        Some(held) if held == own => Owner::Ours,
        Some(_) if ready => Owner::Other,
        held => Owner::Free(held.cloned()),
    }
}

/// What is known of the machine and its runtime at a moment.
#[derive(Debug, Clone)]
pub struct Reading {
    pub machine: MachineFacts,
    pub strain: Strain,
    pub huge_pages: HugePages,
    /// The runtime's name and version, as `carob://1.0`.
    pub runtime_version: String,
    /// What the runtime says of itself, or why it says nothing.
    pub runtime: Result<StatusResponse, String>,
    pub images: Vec<Image>,
    /// What the node is short of.
    pub pressures: Pressures,
    /// Whether the machine is about to shut down.
    pub closing: bool,
    /// Devices of plug-ins by resource: how many there are, and how many Pods can have.
    pub devices: BTreeMap<String, (usize, usize)>,
}

/// The object that a node registers with; its status is written apart.
pub fn node(identity: &NodeIdentity, architecture: &str) -> Node {
    let mut labels = identity.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", identity.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    let spec = NodeSpec {
        pod_cidr: identity.pod_cidrs.first().cloned(),
        pod_cidrs: Some(identity.pod_cidrs.clone()).filter(|cidrs| !cidrs.is_empty()),
        ..NodeSpec::default()
    };
    let annotations = identity.machine_id.clone().map(|id| BTreeMap::from([(MACHINE_ANNOTATION.to_owned(), id)]));
    let metadata =
        ObjectMeta { name: Some(identity.name.clone()), labels: Some(labels), annotations, ..ObjectMeta::default() };
    Node { metadata, spec: Some(spec), status: None }
}

/// Whether others have written that nothing is known of a node that has said `shown` of itself.
pub(crate) fn is_overwritten(node: &Node, shown: &NodeStatus) -> bool {
    let unknown = |condition: &&NodeCondition| condition.status == "Unknown";
    let held = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    held.into_iter()
        .filter(unknown)
        .any(|held| shown.conditions.iter().flatten().any(|own| own.type_ == held.type_ && own.status != held.status))
}

/// What Pods may ask for, by resource: what there is but for the hard thresholds of eviction (kubelet
/// `pkg/kubelet/cm/node_container_manager_linux.go`). Huge pages are taken out of memory (`pkg/kubelet/nodestatus/setters.go`).
pub fn allocatable(
    identity: &NodeIdentity,
    machine: &MachineFacts,
    strain: &Strain,
    huge_pages: &HugePages,
) -> BTreeMap<String, String> {
    let left = |signal, whole: u64| whole.saturating_sub(identity.eviction.hard(signal, whole));
    let set_aside = huge_pages.values().fold(0_u64, |sum, bytes| sum.saturating_add(bytes.unsigned_abs()));
    let memory = left(Signal::MemoryAvailable, machine.memory_bytes).saturating_sub(set_aside);
    let disk = left(Signal::NodefsAvailable, strain.disk_total_bytes);
    let mut all = BTreeMap::from([
        ("cpu".to_owned(), machine.cpus.to_string()),
        ("memory".to_owned(), format!("{}Ki", memory / 1024)),
        ("ephemeral-storage".to_owned(), disk.to_string()),
        ("pods".to_owned(), identity.pods_max.to_string()),
    ]);
    all.extend(listed(huge_pages));
    all
}

/// Huge pages as resources. A size without pages is listed: it says that the machine could have some.
fn listed(huge_pages: &HugePages) -> impl Iterator<Item = (String, String)> {
    let amount = |bytes: &i64| Amount::from_units(*bytes, Format::BinarySi).to_string();
    huge_pages.iter().map(move |(size, bytes)| (huge_pages_of(*size), amount(bytes)))
}

/// The whole status at `now`; times of transition carry over from `old`.
pub fn status(identity: &NodeIdentity, reading: &Reading, old: Option<&NodeStatus>, now: Timestamp) -> NodeStatus {
    let machine = &reading.machine;
    let quantities = |map: BTreeMap<String, String>| map.into_iter().map(|(key, text)| (key, Quantity(text))).collect();
    let mut capacity = BTreeMap::from([
        ("cpu".to_owned(), machine.cpus.to_string()),
        ("memory".to_owned(), format!("{}Ki", machine.memory_bytes / 1024)),
        ("ephemeral-storage".to_owned(), format!("{}Ki", reading.strain.disk_total_bytes / 1024)),
        ("pods".to_owned(), identity.pods_max.to_string()),
    ]);
    capacity.extend(listed(&reading.huge_pages));
    let mut allocatable: BTreeMap<String, Quantity> =
        quantities(allocatable(identity, machine, &reading.strain, &reading.huge_pages));
    // Extended resources that others say the node has: all of one is for Pods (kubelet `pkg/kubelet/nodestatus/setters.go`).
    let said = old.and_then(|old| old.capacity.as_ref()).into_iter().flatten();
    allocatable.extend(said.filter(|(name, _)| is_extended(name)).map(|(name, amount)| (name.clone(), amount.clone())));
    for (name, (there, for_pods)) in &reading.devices {
        capacity.insert(name.clone(), there.to_string());
        allocatable.insert(name.clone(), Quantity(for_pods.to_string()));
    }
    let ips = identity.addresses.iter().map(|ip| ("InternalIP", ip.to_string()));
    let addresses = ips.chain([("Hostname", identity.name.clone())]);
    let runtime = reading.runtime.as_ref().ok();
    NodeStatus {
        addresses: Some(addresses.map(|(type_, address)| NodeAddress { type_: type_.to_owned(), address }).collect()),
        allocatable: Some(allocatable),
        capacity: Some(quantities(capacity)),
        conditions: Some(conditions(reading, old, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(identity.kubelet_port) }),
        }),
        declared_features: Some(DECLARED_FEATURES.map(str::to_owned).into()),
        features: runtime
            .and_then(|runtime| runtime.features)
            .map(|features| NodeFeatures { supplemental_groups_policy: Some(features.supplemental_groups_policy) }),
        images: Some(images(&reading.images)),
        node_info: Some(node_info(identity, reading)),
        runtime_handlers: runtime.map(|runtime| {
            let handler = |handler: &carob_cri::v1::RuntimeHandler| NodeRuntimeHandler {
                name: Some(handler.name.clone()),
                features: handler.features.map(|features| NodeRuntimeHandlerFeatures {
                    recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
                    user_namespaces: Some(features.user_namespaces),
                }),
            };
            runtime.runtime_handlers.iter().map(handler).collect()
        }),
        ..NodeStatus::default()
    }
}

fn node_info(identity: &NodeIdentity, reading: &Reading) -> NodeSystemInfo {
    let machine = reading.machine.clone();
    NodeSystemInfo {
        architecture: machine.architecture.to_owned(),
        boot_id: machine.boot_id,
        container_runtime_version: reading.runtime_version.clone(),
        kernel_version: machine.kernel_version,
        kube_proxy_version: String::new(),
        kubelet_version: identity.kubelet_version.clone(),
        machine_id: machine.machine_id,
        operating_system: "linux".to_owned(),
        os_image: machine.os_image,
        // Nothing is said of swap where there is none (pkg/kubelet/nodestatus/setters.go).
        swap: i64::try_from(machine.swap_bytes)
            .ok()
            .filter(|bytes| *bytes > 0)
            .map(|bytes| NodeSwapStatus { capacity: Some(bytes) }),
        system_uuid: machine.system_uuid,
    }
}

fn images(list: &[Image]) -> Vec<ContainerImage> {
    let mut sorted: Vec<&Image> = list.iter().collect();
    sorted.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let shown = sorted.into_iter().take(IMAGES_MAX).map(|image| ContainerImage {
        names: Some(image.repo_digests.iter().chain(&image.repo_tags).take(IMAGE_NAMES_MAX).cloned().collect()),
        size_bytes: i64::try_from(image.size).ok(),
    });
    shown.collect()
}

/// The four conditions of every node (kubelet `pkg/kubelet/nodestatus/setters.go`).
fn conditions(reading: &Reading, old: Option<&NodeStatus>, now: Timestamp) -> Vec<NodeCondition> {
    let short = |pressure| reading.pressures.contains(&pressure);
    let pressure = |type_, under, bad, bad_text: &str, good, good_text: &str| {
        let (status, reason, message) = if under { ("True", bad, bad_text) } else { ("False", good, good_text) };
        (type_, status, reason, message.to_owned())
    };
    let ready = match not_ready(reading) {
        None => ("Ready", "True", "KubeletReady", "kubelet is posting ready status".to_owned()),
        Some(why) => ("Ready", "False", "KubeletNotReady", why),
    };
    let all = [
        pressure(
            "MemoryPressure",
            short(Pressure::Memory),
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        pressure(
            "DiskPressure",
            short(Pressure::Disk),
            "KubeletHasDiskPressure",
            "kubelet has disk pressure",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        pressure(
            "PIDPressure",
            short(Pressure::Pid),
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        ready,
    ];
    all.into_iter().map(|condition| stamp(condition, old, now)).collect()
}

fn stamp(
    (type_, status, reason, message): (&'static str, &'static str, &'static str, String),
    old: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeCondition {
    let before = old.and_then(|old| old.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_));
    let since = before.filter(|before| before.status == status).and_then(|before| before.last_transition_time.clone());
    NodeCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: Some(Time(whole_seconds(now))),
        last_transition_time: since.or_else(|| Some(Time(whole_seconds(now)))),
    }
}

/// What keeps the node from running Pods.
fn not_ready(reading: &Reading) -> Option<String> {
    if reading.closing {
        return Some("node is shutting down".to_owned());
    }
    let runtime = match &reading.runtime {
        Ok(runtime) => runtime,
        Err(why) => return Some(format!("container runtime is down: {why}")),
    };
    let conditions = runtime.status.iter().flat_map(|status| &status.conditions);
    let unmet: Vec<String> = conditions
        .filter(|condition| !condition.status && matches!(condition.r#type.as_str(), "RuntimeReady" | "NetworkReady"))
        .map(|condition| {
            let what =
                if condition.r#type == "NetworkReady" { "container runtime network" } else { "container runtime" };
            format!(
                "{what} not ready: {}=false reason:{} message:{}",
                condition.r#type, condition.reason, condition.message
            )
        })
        .collect();
    (!unmet.is_empty()).then(|| unmet.join(", "))
}

/// Whether two statuses differ in more than their heartbeats.
pub fn differs(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    still(a) != still(b)
}

#[cfg(test)]
mod tests {
    use carob_cri::v1::{RuntimeCondition, RuntimeStatus};

    use super::*;
    use crate::eviction::thresholds::parse;

    fn reading(network: bool) -> Reading {
        let condition = |type_: &str, status| RuntimeCondition {
            r#type: type_.to_owned(),
            status,
            reason: "NoCidr".to_owned(),
            message: "the node has no range".to_owned(),
        };
        let conditions = vec![condition("RuntimeReady", true), condition("NetworkReady", network)];
        let runtime = StatusResponse { status: Some(RuntimeStatus { conditions }), ..StatusResponse::default() };
        let machine = MachineFacts { cpus: 2, memory_bytes: 1 << 30, ..MachineFacts::default() };
        let strain = Strain {
            memory_available_bytes: 1 << 29,
            disk_total_bytes: 1000,
            disk_free_bytes: 500,
            ..Strain::default()
        };
        Reading {
            machine,
            strain,
            runtime_version: "carob://1".to_owned(),
            runtime: Ok(runtime),
            images: Vec::new(),
            pressures: Pressures::new(),
            huge_pages: HugePages::new(),
            closing: false,
            devices: BTreeMap::new(),
        }
    }

    fn show(status: &NodeStatus) -> String {
        let each = status.conditions.iter().flatten();
        let words = each.map(|condition| format!("{}={}", condition.type_, condition.status));
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_node_takes_back_what_was_said_of_its_silence() {
        let identity = NodeIdentity { name: "n".to_owned(), ..NodeIdentity::default() };
        let shown = status(&identity, &reading(true), None, Timestamp::UNIX_EPOCH);
        let mut node = Node { status: Some(shown.clone()), ..Node::default() };
        assert!(!is_overwritten(&node, &shown));
        let conditions = node.status.as_mut().and_then(|status| status.conditions.as_mut()).expect("conditions");
        conditions[3].status = "Unknown".to_owned();
        assert!(is_overwritten(&node, &shown));
        assert!(!is_overwritten(&Node::default(), &shown));
    }

    #[test]
    fn a_node_is_taken_from_a_silent_machine_only() {
        let identity = NodeIdentity { machine_id: Some("own".to_owned()), ..NodeIdentity::default() };
        let node = |machine: Option<&str>, ready: &str| -> Node {
            let annotations = machine.map(|machine| serde_json::json!({ MACHINE_ANNOTATION: machine }));
            serde_json::from_value(serde_json::json!({
                "metadata": { "annotations": annotations },
                "status": { "conditions": [{ "type": "Ready", "status": ready }] },
            }))
            .expect("a Node")
        };
        assert_eq!(owner(&identity, &node(Some("own"), "True")), Owner::Ours);
        assert_eq!(owner(&identity, &node(Some("own"), "Unknown")), Owner::Ours);
        assert_eq!(owner(&identity, &node(Some("other"), "True")), Owner::Other);
        assert_eq!(owner(&identity, &node(Some("other"), "Unknown")), Owner::Free(Some("other".to_owned())));
        assert_eq!(owner(&identity, &node(None, "True")), Owner::Free(None));
        assert_eq!(owner(&NodeIdentity::default(), &node(Some("other"), "True")), Owner::Ours, "it has no rival");
    }

    #[test]
    fn conditions_follow_machine_and_runtime() {
        let identity = NodeIdentity { name: "n".to_owned(), pods_max: 110, ..NodeIdentity::default() };
        let now = Timestamp::UNIX_EPOCH;
        let fine = status(&identity, &reading(true), None, now);
        assert_eq!(show(&fine), "MemoryPressure=False DiskPressure=False PIDPressure=False Ready=True");
        let mut strained = reading(false);
        strained.pressures = Pressures::from([Pressure::Memory, Pressure::Disk]);
        let later = Timestamp::from_second(60).expect("within the calendar");
        let bad = status(&identity, &strained, Some(&fine), later);
        assert_eq!(show(&bad), "MemoryPressure=True DiskPressure=True PIDPressure=False Ready=False");
        let conditions = bad.conditions.as_deref().unwrap_or_default();
        let message = conditions[3].message.as_deref().unwrap_or_default();
        assert_eq!(
            message,
            "container runtime network not ready: NetworkReady=false reason:NoCidr message:the node has no range"
        );
        assert_eq!(conditions[2].last_transition_time, Some(Time(now)), "what has not changed keeps its time");
        assert!(differs(&fine, &bad));
        assert!(!differs(&fine, &status(&identity, &reading(true), Some(&fine), later)));
        assert_eq!(fine.allocatable.expect("resources")["memory"], Quantity("946176Ki".to_owned()));
    }

    #[test]
    fn what_others_say_the_node_has_is_for_pods() {
        let identity = NodeIdentity::default();
        let said = [("example.com/dongle", "4"), ("hugepages-2Mi", "8Mi"), ("cpu", "64")];
        let capacity = said.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())));
        let old = NodeStatus { capacity: Some(capacity.into()), ..NodeStatus::default() };
        let mut reading = reading(true);
        reading.devices.insert("example.com/card".to_owned(), (3, 2));
        let new = status(&identity, &reading, Some(&old), Timestamp::UNIX_EPOCH);
        let (capacity, new) = (new.capacity.expect("resources"), new.allocatable.expect("resources"));
        assert_eq!((capacity["example.com/card"].0.as_str(), new["example.com/card"].0.as_str()), ("3", "2"));
        assert_eq!(new.get("example.com/dongle"), Some(&Quantity("4".to_owned())));
        assert!(!new.contains_key("hugepages-2Mi"));
        assert_ne!(new["cpu"].0, "64");
    }

    #[test]
    fn what_hard_thresholds_keep_free_is_not_for_pods() {
        let machine = MachineFacts { memory_bytes: 1 << 30, ..MachineFacts::default() };
        let strain = Strain { disk_total_bytes: 10 << 30, ..Strain::default() };
        for (hard, memory, disk) in [
            ("", "1048576Ki", 10_u64 << 30),
            ("memory.available<100Mi,nodefs.available<10%,imagefs.available<5Gi", "946176Ki", 9 << 30),
            ("memory.available<8Gi,nodefs.available<1Gi", "0Ki", 9 << 30),
        ] {
            let thresholds = parse(hard, "nodefs.available<50%", "nodefs.available=1m", "").expect("thresholds");
            let eviction = EvictionConfig { thresholds, ..EvictionConfig::default() };
            let identity = NodeIdentity { eviction, ..NodeIdentity::default() };
            let left = allocatable(&identity, &machine, &strain, &HugePages::new());
            assert_eq!((left["memory"].as_str(), left["ephemeral-storage"].as_str()), (memory, &*disk.to_string()));
        }
    }

    #[test]
    fn huge_pages_are_resources_and_taken_out_of_memory() {
        let mut reading = reading(true);
        reading.huge_pages = HugePages::from([(2 << 20, 16 << 20), (1 << 30, 0)]);
        let status = |reading: &Reading| {
            let status = status(&NodeIdentity::default(), reading, None, Timestamp::UNIX_EPOCH);
            [status.capacity.expect("resources"), status.allocatable.expect("resources")]
        };
        let [capacity, allocatable] = status(&reading);
        for held in [&capacity, &allocatable] {
            assert_eq!((held["hugepages-2Mi"].0.as_str(), held["hugepages-1Gi"].0.as_str()), ("16Mi", "0"));
        }
        reading.huge_pages.clear();
        let [same, more] = status(&reading);
        assert_eq!(capacity["memory"], same["memory"]);
        let kib = |text: &str| text.trim_end_matches("Ki").parse::<u64>().expect("a number");
        assert_eq!(kib(&more["memory"].0) - kib(&allocatable["memory"].0), 16 << 10);
    }
}
