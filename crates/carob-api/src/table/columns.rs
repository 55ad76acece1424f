//! The columns of each kind, as data.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    Cell::{At, Count, Made},
    ColumnDef, ColumnType, cells, pod, workload,
};

const fn column(name: &'static str, ty: ColumnType, cell: super::Cell) -> ColumnDef {
    ColumnDef { name, ty, wide: false, cell }
}

const fn string(name: &'static str, cell: super::Cell) -> ColumnDef {
    column(name, ColumnType::String, cell)
}

const fn integer(name: &'static str, path: &'static str) -> ColumnDef {
    column(name, ColumnType::Integer, At(path, "0"))
}

const fn wide(column: ColumnDef) -> ColumnDef {
    ColumnDef { wide: true, ..column }
}

const NAME: ColumnDef = string("Name", At("metadata.name", ""));
const AGE: ColumnDef = string("Age", Made(cells::age));
const TEMPLATE: &str = "spec.template.spec";

fn containers(obj: &Value, _: Timestamp) -> Value {
    cells::of_containers(obj, TEMPLATE, "name")
}

fn images(obj: &Value, _: Timestamp) -> Value {
    cells::of_containers(obj, TEMPLATE, "image")
}

fn selector(obj: &Value, _: Timestamp) -> Value {
    cells::selector(obj, "spec.selector")
}

const CONTAINERS: ColumnDef = wide(string("Containers", Made(containers)));
const IMAGES: ColumnDef = wide(string("Images", Made(images)));
const SELECTOR: ColumnDef = wide(string("Selector", Made(selector)));

/// What a kind without columns of its own shows (apiserver pkg/registry/rest/table.go).
pub const NAME_AND_CREATED: &[ColumnDef] =
    &[NAME, column("Created At", ColumnType::Date, At("metadata.creationTimestamp", ""))];

pub const POD: &[ColumnDef] = &[
    NAME,
    string("Ready", Made(pod::ready)),
    string("Status", Made(pod::status)),
    string("Restarts", Made(pod::restarts)),
    AGE,
    wide(string("IP", Made(pod::ip))),
    wide(string("Node", At("spec.nodeName", "<none>"))),
    wide(string("Nominated Node", At("status.nominatedNodeName", "<none>"))),
    wide(string("Readiness Gates", Made(pod::readiness_gates))),
];

pub const POD_TEMPLATE: &[ColumnDef] = &[
    NAME,
    string("Containers", Made(|obj, _| cells::of_containers(obj, "template.spec", "name"))),
    string("Images", Made(|obj, _| cells::of_containers(obj, "template.spec", "image"))),
    string(
        "Pod Labels",
        Made(|obj, _| {
            cells::or_none(cells::join_labels(cells::at(obj, "template.metadata.labels").and_then(Value::as_object)))
        }),
    ),
];

pub const COMPONENT_STATUS: &[ColumnDef] = &[
    NAME,
    string("Status", Made(cells::component_health)),
    string("Message", Made(cells::component_message)),
    string("Error", Made(cells::component_error)),
];

pub const CONFIG_MAP: &[ColumnDef] = &[NAME, string("Data", Made(workload::config_map_size)), AGE];

pub const ENDPOINTS: &[ColumnDef] = &[NAME, string("Endpoints", Made(workload::endpoints)), AGE];

pub const EVENT: &[ColumnDef] = &[
    string("Last Seen", Made(workload::event_last_seen)),
    string("Type", At("type", "")),
    string("Reason", At("reason", "")),
    string("Object", Made(workload::event_object)),
    wide(string("Subobject", At("involvedObject.fieldPath", ""))),
    wide(string("Source", Made(workload::event_source))),
    string("Message", Made(workload::event_message)),
    wide(string("First Seen", Made(workload::event_first_seen))),
    wide(column("Count", ColumnType::Integer, Made(workload::event_count))),
    wide(NAME),
];

pub const LIMIT_RANGE: &[ColumnDef] = NAME_AND_CREATED;

pub const NAMESPACE: &[ColumnDef] = &[NAME, string("Status", At("status.phase", "")), AGE];

pub const NODE: &[ColumnDef] = &[
    NAME,
    string("Status", Made(workload::node_status)),
    string("Roles", Made(workload::node_roles)),
    AGE,
    string("Version", At("status.nodeInfo.kubeletVersion", "")),
    wide(string("Internal-IP", Made(workload::node_internal_ip))),
    wide(string("External-IP", Made(workload::node_external_ip))),
    wide(string("OS-Image", At("status.nodeInfo.osImage", "<unknown>"))),
    wide(string("Kernel-Version", At("status.nodeInfo.kernelVersion", "<unknown>"))),
    wide(string("Container-Runtime", At("status.nodeInfo.containerRuntimeVersion", "<unknown>"))),
];

pub const PERSISTENT_VOLUME_CLAIM: &[ColumnDef] = &[
    NAME,
    string("Status", At("status.phase", "")),
    string("Volume", At("spec.volumeName", "")),
    string("Capacity", At("status.capacity.storage", "")),
    string("Access Modes", Made(|obj, _| workload::access_modes(obj, "status.accessModes"))),
    string("StorageClass", At("spec.storageClassName", "")),
    string("VolumeAttributesClass", At("spec.volumeAttributesClassName", "<unset>")),
    AGE,
    wide(string("VolumeMode", At("spec.volumeMode", "<unset>"))),
];

pub const PERSISTENT_VOLUME: &[ColumnDef] = &[
    NAME,
    string("Capacity", At("spec.capacity.storage", "")),
    string("Access Modes", Made(|obj, _| workload::access_modes(obj, "spec.accessModes"))),
    string("Reclaim Policy", At("spec.persistentVolumeReclaimPolicy", "")),
    string("Status", At("status.phase", "")),
    string("Claim", Made(workload::volume_claim)),
    string("StorageClass", At("spec.storageClassName", "")),
    string("VolumeAttributesClass", At("spec.volumeAttributesClassName", "<unset>")),
    string("Reason", At("status.reason", "")),
    AGE,
    wide(string("VolumeMode", At("spec.volumeMode", "<unset>"))),
];

pub const REPLICATION_CONTROLLER: &[ColumnDef] = &[
    NAME,
    integer("Desired", "spec.replicas"),
    integer("Current", "status.replicas"),
    integer("Ready", "status.readyReplicas"),
    AGE,
    CONTAINERS,
    IMAGES,
    wide(string("Selector", Made(workload::service_selector))),
];

pub const RESOURCE_QUOTA: &[ColumnDef] =
    &[NAME, string("Request", Made(workload::quota_requests)), string("Limit", Made(workload::quota_limits)), AGE];

pub const SECRET: &[ColumnDef] =
    &[NAME, string("Type", At("type", "")), column("Data", ColumnType::Integer, Count("data")), AGE];

pub const SERVICE_ACCOUNT: &[ColumnDef] = &[NAME, column("Secrets", ColumnType::Integer, Count("secrets")), AGE];

pub const SERVICE: &[ColumnDef] = &[
    NAME,
    string("Type", At("spec.type", "")),
    string("Cluster-IP", At("spec.clusterIP", "<none>")),
    string("External-IP", Made(workload::service_external_ip)),
    string("Port(s)", Made(workload::service_ports)),
    AGE,
    wide(string("Selector", Made(workload::service_selector))),
];

pub const CONTROLLER_REVISION: &[ColumnDef] =
    &[NAME, string("Controller", Made(workload::controller)), integer("Revision", "revision"), AGE];

pub const DAEMON_SET: &[ColumnDef] = &[
    NAME,
    integer("Desired", "status.desiredNumberScheduled"),
    integer("Current", "status.currentNumberScheduled"),
    integer("Ready", "status.numberReady"),
    integer("Up-to-date", "status.updatedNumberScheduled"),
    integer("Available", "status.numberAvailable"),
    string("Node Selector", Made(workload::node_selector)),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub const DEPLOYMENT: &[ColumnDef] = &[
    NAME,
    string("Ready", Made(workload::ready_of_replicas)),
    integer("Up-to-date", "status.updatedReplicas"),
    integer("Available", "status.availableReplicas"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub const REPLICA_SET: &[ColumnDef] = &[
    NAME,
    integer("Desired", "spec.replicas"),
    integer("Current", "status.replicas"),
    integer("Ready", "status.readyReplicas"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub const STATEFUL_SET: &[ColumnDef] =
    &[NAME, string("Ready", Made(workload::ready_of_replicas)), AGE, CONTAINERS, IMAGES];

pub const HORIZONTAL_POD_AUTOSCALER: &[ColumnDef] = &[
    NAME,
    string("Reference", Made(workload::hpa_reference)),
    string("Targets", Made(workload::hpa_targets)),
    string("MinPods", At("spec.minReplicas", "<unset>")),
    integer("MaxPods", "spec.maxReplicas"),
    integer("Replicas", "status.currentReplicas"),
    AGE,
];

pub const CRON_JOB: &[ColumnDef] = &[
    NAME,
    string("Schedule", At("spec.schedule", "")),
    string("Timezone", At("spec.timeZone", "<none>")),
    column("Suspend", ColumnType::Boolean, At("spec.suspend", "false")),
    column("Active", ColumnType::Integer, Count("status.active")),
    string("Last Schedule", Made(workload::last_schedule)),
    AGE,
    wide(string("Containers", Made(|obj, _| cells::of_containers(obj, "spec.jobTemplate.spec.template.spec", "name")))),
    wide(string("Images", Made(|obj, _| cells::of_containers(obj, "spec.jobTemplate.spec.template.spec", "image")))),
    wide(string("Selector", Made(|obj, _| cells::selector(obj, "spec.jobTemplate.spec.selector")))),
];

pub const JOB: &[ColumnDef] = &[
    NAME,
    string("Status", Made(workload::job_status)),
    string("Completions", Made(workload::job_completions)),
    string("Duration", Made(workload::job_duration)),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub const LEASE: &[ColumnDef] = &[NAME, string("Holder", At("spec.holderIdentity", "")), AGE];

pub const LEASE_CANDIDATE: &[ColumnDef] = &[
    NAME,
    string("LeaseName", At("spec.leaseName", "")),
    string("BinaryVersion", At("spec.binaryVersion", "")),
    string("EmulationVersion", At("spec.emulationVersion", "")),
    string("Strategy", At("spec.strategy", "")),
    AGE,
];

pub const ENDPOINT_SLICE: &[ColumnDef] = &[
    NAME,
    string("AddressType", At("addressType", "")),
    string("Ports", Made(workload::slice_ports)),
    string("Endpoints", Made(workload::slice_endpoints)),
    AGE,
];

pub const INGRESS: &[ColumnDef] = &[
    NAME,
    string("Class", At("spec.ingressClassName", "<none>")),
    string("Hosts", Made(workload::ingress_hosts)),
    string("Address", Made(workload::ingress_address)),
    string("Ports", Made(workload::ingress_ports)),
    AGE,
];

pub const INGRESS_CLASS: &[ColumnDef] = &[
    NAME,
    string("Controller", At("spec.controller", "")),
    string("Parameters", Made(workload::ingress_class_parameters)),
    AGE,
];

pub const IP_ADDRESS: &[ColumnDef] = &[NAME, string("ParentRef", Made(workload::parent_ref))];

pub const NETWORK_POLICY: &[ColumnDef] =
    &[NAME, string("Pod-Selector", Made(|obj, _| cells::selector(obj, "spec.podSelector"))), AGE];

pub const SERVICE_CIDR: &[ColumnDef] =
    &[NAME, string("CIDRs", Made(|obj, _| workload::join_strings(obj, "spec.cidrs"))), AGE];

pub const POD_DISRUPTION_BUDGET: &[ColumnDef] = &[
    NAME,
    string("Min Available", At("spec.minAvailable", "N/A")),
    string("Max Unavailable", At("spec.maxUnavailable", "N/A")),
    integer("Allowed Disruptions", "status.disruptionsAllowed"),
    AGE,
];

pub const FLOW_SCHEMA: &[ColumnDef] = &[
    NAME,
    string("PriorityLevel", At("spec.priorityLevelConfiguration.name", "")),
    integer("MatchingPrecedence", "spec.matchingPrecedence"),
    string("DistinguisherMethod", At("spec.distinguisherMethod.type", "<none>")),
    AGE,
    string(
        "MissingPL",
        Made(|obj, _| cells::condition(obj, "Dangling").map_or("?", |c| cells::text(c, "status")).into()),
    ),
];

pub const PRIORITY_LEVEL_CONFIGURATION: &[ColumnDef] = &[
    NAME,
    string("Type", At("spec.type", "")),
    string("NominalConcurrencyShares", At("spec.limited.nominalConcurrencyShares", "<none>")),
    string("Queues", At("spec.limited.limitResponse.queuing.queues", "<none>")),
    string("HandSize", At("spec.limited.limitResponse.queuing.handSize", "<none>")),
    string("QueueLengthLimit", At("spec.limited.limitResponse.queuing.queueLengthLimit", "<none>")),
    AGE,
];

pub const RUNTIME_CLASS: &[ColumnDef] = &[NAME, string("Handler", At("handler", "")), AGE];

pub const RESOURCE_CLAIM: &[ColumnDef] = &[NAME, string("State", Made(workload::resource_claim_state)), AGE];

pub const RESOURCE_SLICE: &[ColumnDef] = &[
    NAME,
    string("Node", At("spec.nodeName", "<unset>")),
    string("Driver", At("spec.driver", "")),
    string("Pool", At("spec.pool.name", "")),
    AGE,
];

pub const PRIORITY_CLASS: &[ColumnDef] = &[
    NAME,
    integer("Value", "value"),
    column("Global-Default", ColumnType::Boolean, At("globalDefault", "false")),
    AGE,
    string("PreemptionPolicy", At("preemptionPolicy", "")),
];

/// Upstream has no columns for these two: its names and ages alone would not say whether a gang has its nodes.
pub const POD_GROUP: &[ColumnDef] = &[
    NAME,
    string("Policy", Made(workload::group_policy)),
    string("Scheduled", Made(workload::group_scheduled)),
    AGE,
    wide(string("Message", Made(workload::group_message))),
];

pub const WORKLOAD: &[ColumnDef] =
    &[NAME, column("Templates", ColumnType::Integer, Count("spec.podGroupTemplates")), AGE];

/// The printer columns of the coscheduling plugin's custom resource.
pub const LABEL_POD_GROUP: &[ColumnDef] = &[
    NAME,
    string("Phase", At("status.phase", "")),
    integer("MinMember", "spec.minMember"),
    integer("Running", "status.running"),
    integer("Succeeded", "status.succeeded"),
    integer("Failed", "status.failed"),
    AGE,
];

pub const CSI_DRIVER: &[ColumnDef] = &[
    NAME,
    column("AttachRequired", ColumnType::Boolean, At("spec.attachRequired", "true")),
    column("PodInfoOnMount", ColumnType::Boolean, At("spec.podInfoOnMount", "false")),
    column("StorageCapacity", ColumnType::Boolean, At("spec.storageCapacity", "false")),
    string("TokenRequests", Made(workload::token_requests)),
    column("RequiresRepublish", ColumnType::Boolean, At("spec.requiresRepublish", "false")),
    string("Modes", Made(|obj, _| workload::join_strings(obj, "spec.volumeLifecycleModes"))),
    AGE,
];

pub const CSI_NODE: &[ColumnDef] = &[NAME, column("Drivers", ColumnType::Integer, Count("spec.drivers")), AGE];

pub const CSI_STORAGE_CAPACITY: &[ColumnDef] =
    &[NAME, string("StorageClassName", At("storageClassName", "")), string("Capacity", At("capacity", "<unset>"))];

pub const STORAGE_CLASS: &[ColumnDef] = &[
    NAME,
    string("Provisioner", At("provisioner", "")),
    string("ReclaimPolicy", At("reclaimPolicy", "")),
    string("VolumeBindingMode", At("volumeBindingMode", "")),
    column("AllowVolumeExpansion", ColumnType::Boolean, At("allowVolumeExpansion", "false")),
    AGE,
];

pub const VOLUME_ATTACHMENT: &[ColumnDef] = &[
    NAME,
    string("Attacher", At("spec.attacher", "")),
    string("PV", At("spec.source.persistentVolumeName", "")),
    string("Node", At("spec.nodeName", "")),
    column("Attached", ColumnType::Boolean, At("status.attached", "false")),
    AGE,
];

pub const VOLUME_ATTRIBUTES_CLASS: &[ColumnDef] = &[NAME, string("DriverName", At("driverName", "")), AGE];

pub const CERTIFICATE_SIGNING_REQUEST: &[ColumnDef] = &[
    NAME,
    AGE,
    string("SignerName", At("spec.signerName", "<none>")),
    string("Requestor", At("spec.username", "")),
    string("RequestedDuration", Made(workload::csr_duration)),
    string("Condition", Made(workload::csr_condition)),
];

pub const CLUSTER_TRUST_BUNDLE: &[ColumnDef] = &[NAME, string("SignerName", At("spec.signerName", "<none>"))];

pub const POD_CERTIFICATE_REQUEST: &[ColumnDef] = &[
    NAME,
    string("PodName", At("spec.podName", "")),
    string("ServiceAccountName", At("spec.serviceAccountName", "")),
    string("NodeName", At("spec.nodeName", "")),
    string("SignerName", At("spec.signerName", "")),
    string("State", Made(workload::pod_certificate_state)),
    wide(string("UnverifiedUserAnnotations", Made(workload::user_annotations))),
];

pub const ROLE: &[ColumnDef] = NAME_AND_CREATED;

pub const ROLE_BINDING: &[ColumnDef] = &[
    NAME,
    string("Role", Made(workload::role_of_binding)),
    AGE,
    wide(string("Users", Made(workload::users))),
    wide(string("Groups", Made(workload::groups))),
    wide(string("ServiceAccounts", Made(workload::service_accounts))),
];

pub const MUTATING_ADMISSION_POLICY: &[ColumnDef] = &[
    NAME,
    column("Mutations", ColumnType::Integer, Count("spec.mutations")),
    string("ParamKind", Made(workload::param_kind)),
    AGE,
];

pub const VALIDATING_ADMISSION_POLICY: &[ColumnDef] = &[
    NAME,
    column("Validations", ColumnType::Integer, Count("spec.validations")),
    string("ParamKind", Made(workload::param_kind)),
    AGE,
];

pub const ADMISSION_POLICY_BINDING: &[ColumnDef] =
    &[NAME, string("PolicyName", At("spec.policyName", "")), string("ParamRef", Made(workload::param_ref)), AGE];

pub const WEBHOOK_CONFIGURATION: &[ColumnDef] =
    &[NAME, column("Webhooks", ColumnType::Integer, Count("webhooks")), AGE];

pub const CUSTOM_RESOURCE_DEFINITION: &[ColumnDef] = NAME_AND_CREATED;

pub const API_SERVICE: &[ColumnDef] = &[
    NAME,
    string("Service", Made(workload::api_service_target)),
    string("Available", Made(workload::api_service_available)),
    AGE,
];
