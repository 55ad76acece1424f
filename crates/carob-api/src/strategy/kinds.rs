//! The strategies that the table of kinds names.

use super::{
    Rules, Strategy, access, aggregation, autoscaling, certificates, cluster, config, csi, definition, devices,
    endpoints, event, flowcontrol, ingress, job, limits, network, network_policy, pod, pod_certificates, policy, quota,
    runtime_class, scheduling, service, storage, trust_bundles, webhook, workload,
};

pub(crate) const ADMISSION_POLICY: &dyn Strategy = &webhook::AdmissionPolicy { rules: Rules::COUNTED };
pub(crate) const ADMISSION_POLICY_WITH_STATUS: &dyn Strategy =
    &webhook::AdmissionPolicy { rules: Rules::WORKLOAD_ALONE };
pub(crate) const API_SERVICE: &dyn Strategy = &aggregation::ApiService;
pub(crate) const CERTIFICATE_SIGNING_REQUEST: &dyn Strategy = &certificates::CertificateSigningRequest;
pub(crate) const CLUSTER_ROLE: &dyn Strategy = &access::Role { namespaced: false };
pub(crate) const CLUSTER_ROLE_BINDING: &dyn Strategy = &access::RoleBinding { namespaced: false };
pub(crate) const CLUSTER_TRUST_BUNDLE: &dyn Strategy = &trust_bundles::ClusterTrustBundle;
pub(crate) const CONFIG_MAP: &dyn Strategy = &config::ConfigMap;
pub(crate) const CONTROLLER_REVISION: &dyn Strategy = &workload::ControllerRevision;
pub(crate) const CRON_JOB: &dyn Strategy = &job::CronJob;
pub(crate) const CSI_DRIVER: &dyn Strategy = &csi::Driver;
pub(crate) const CSI_NODE: &dyn Strategy = &csi::Node;
pub(crate) const CSI_STORAGE_CAPACITY: &dyn Strategy = &csi::StorageCapacity;
pub(crate) const CUSTOM_RESOURCE_DEFINITION: &dyn Strategy = &definition::CustomResourceDefinition;
pub(crate) const DAEMON_SET: &dyn Strategy = &workload::Replicated { kind: workload::Kind::DaemonSet };
pub(crate) const DEPLOYMENT: &dyn Strategy = &workload::Replicated { kind: workload::Kind::Deployment };
pub(crate) const DEVICE_CLASS: &dyn Strategy = &devices::DeviceClass;
pub(crate) const ENDPOINTS: &dyn Strategy = &endpoints::Endpoints;
pub(crate) const ENDPOINT_SLICE: &dyn Strategy = &endpoints::EndpointSlice;
pub(crate) const EVENT: &dyn Strategy = &event::Event::Core;
pub(crate) const EVENT_OF_ITS_OWN_GROUP: &dyn Strategy = &event::Event::Own;
pub(crate) const FLOW_SCHEMA: &dyn Strategy = &flowcontrol::FlowSchema;
pub(crate) const HORIZONTAL_POD_AUTOSCALER: &dyn Strategy = &autoscaling::HorizontalPodAutoscaler;
pub(crate) const INGRESS: &dyn Strategy = &ingress::Ingress;
pub(crate) const INGRESS_CLASS: &dyn Strategy = &ingress::IngressClass;
pub(crate) const IP_ADDRESS: &dyn Strategy = &network::IpAddress;
pub(crate) const JOB: &dyn Strategy = &job::Job;
pub(crate) const LABEL_POD_GROUP: &dyn Strategy = &scheduling::LabelPodGroup;
pub(crate) const LEASE: &dyn Strategy = &policy::Lease;
pub(crate) const LIMIT_RANGE: &dyn Strategy = &limits::LimitRange;
pub(crate) const NAMESPACE: &dyn Strategy = &cluster::Namespace;
pub(crate) const NETWORK_POLICY: &dyn Strategy = &network_policy::NetworkPolicy;
pub(crate) const NODE: &dyn Strategy = &cluster::Node;
pub(crate) const PERSISTENT_VOLUME: &dyn Strategy = &storage::Persistent { capacity: &["capacity"] };
pub(crate) const PERSISTENT_VOLUME_CLAIM: &dyn Strategy = &storage::Persistent { capacity: &["resources", "requests"] };
pub(crate) const POD: &dyn Strategy = &pod::Pod;
pub(crate) const POD_CERTIFICATE_REQUEST: &dyn Strategy = &pod_certificates::PodCertificateRequest;
pub(crate) const POD_DISRUPTION_BUDGET: &dyn Strategy = &policy::PodDisruptionBudget;
pub(crate) const POD_GROUP: &dyn Strategy = &scheduling::PodGroup;
pub(crate) const POD_TEMPLATE: &dyn Strategy = &workload::PodTemplate;
pub(crate) const PRIORITY_CLASS: &dyn Strategy = &policy::PriorityClass;
pub(crate) const PRIORITY_LEVEL_CONFIGURATION: &dyn Strategy = &flowcontrol::PriorityLevelConfiguration;
pub(crate) const REPLICATION_CONTROLLER: &dyn Strategy = &workload::ReplicationController;
pub(crate) const REPLICA_SET: &dyn Strategy = &workload::Replicated { kind: workload::Kind::ReplicaSet };
pub(crate) const RESOURCE_CLAIM: &dyn Strategy = &devices::ResourceClaim;
pub(crate) const RESOURCE_CLAIM_TEMPLATE: &dyn Strategy = &devices::ResourceClaimTemplate;
pub(crate) const RESOURCE_QUOTA: &dyn Strategy = &quota::ResourceQuota;
pub(crate) const RESOURCE_SLICE: &dyn Strategy = &devices::ResourceSlice;
pub(crate) const ROLE: &dyn Strategy = &access::Role { namespaced: true };
pub(crate) const ROLE_BINDING: &dyn Strategy = &access::RoleBinding { namespaced: true };
pub(crate) const RUNTIME_CLASS: &dyn Strategy = &runtime_class::RuntimeClass;
pub(crate) const SECRET: &dyn Strategy = &config::Secret;
pub(crate) const SERVICE: &dyn Strategy = &service::Service;
pub(crate) const SERVICE_ACCOUNT: &dyn Strategy = &access::ServiceAccount;
pub(crate) const SERVICE_CIDR: &dyn Strategy = &network::ServiceCidr;
pub(crate) const STATEFUL_SET: &dyn Strategy = &workload::Replicated { kind: workload::Kind::StatefulSet };
pub(crate) const STORAGE_CLASS: &dyn Strategy = &storage::StorageClass;
pub(crate) const VOLUME_ATTACHMENT: &dyn Strategy = &storage::VolumeAttachment;
pub(crate) const VOLUME_ATTRIBUTES_CLASS: &dyn Strategy = &storage::VolumeAttributesClass;
pub(crate) const WEBHOOK_CONFIGURATION: &dyn Strategy = &webhook::WebhookConfiguration;
pub(crate) const WORKLOAD: &dyn Strategy = &scheduling::Workload;
