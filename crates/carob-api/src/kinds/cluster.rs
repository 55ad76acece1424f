//! What a cluster is made of beside its workloads: storage, scheduling, node classes, dynamic resources, flow control.

use super::{
    ActedOnBy,
    builder::{Row, STATUS, STATUS_ALONE, STATUS_PART, WORKLOAD, field, resource},
};
use crate::{strategy::kinds as strategies, table::columns};

pub(super) const RESOURCES: &[Row] = &[
    resource!("flowcontrol.apiserver.k8s.io" / "flowcontrol" ["v1"] "FlowSchema" "flowschemas")
        .cluster()
        .subresources(&[STATUS_PART])
        .columns(columns::FLOW_SCHEMA)
        .strategy(strategies::FLOW_SCHEMA)
        .by(ActedOnBy::ApiServer),
    resource!("flowcontrol.apiserver.k8s.io" / "flowcontrol" ["v1"] "PriorityLevelConfiguration" "prioritylevelconfigurations")
        .cluster()
        .subresources(&[STATUS_PART])
        .columns(columns::PRIORITY_LEVEL_CONFIGURATION)
        .strategy(strategies::PRIORITY_LEVEL_CONFIGURATION)
        .by(ActedOnBy::ApiServer),
    resource!("internal.apiserver.k8s.io" / "apiserverinternal" ["v1alpha1"] "StorageVersion" "storageversions")
        .cluster()
        .key("internal.apiserver.k8s.io/storageversions")
        .subresources(&[STATUS_PART])
        .strategy(&STATUS)
        .by(ActedOnBy::Nothing),
    resource!("node.k8s.io" / "node" ["v1"] "RuntimeClass" "runtimeclasses")
        .cluster()
        .columns(columns::RUNTIME_CLASS)
        .strategy(strategies::RUNTIME_CLASS)
        .by(ActedOnBy::Node),
    resource!("resource.k8s.io" / "resource" ["v1", "v1beta2"] "DeviceClass" "deviceclasses")
        .cluster()
        .strategy(strategies::DEVICE_CLASS)
        .by(ActedOnBy::Nothing),
    resource!("resource.k8s.io" / "resource" ["v1beta2", "v1alpha3"] "DeviceTaintRule" "devicetaintrules")
        .cluster()
        .subresources(&[STATUS_PART])
        .strategy(&WORKLOAD)
        .by(ActedOnBy::Nothing),
    resource!("resource.k8s.io" / "resource" ["v1", "v1beta2"] "ResourceClaim" "resourceclaims")
        .returned_when_deleted()
        .subresources(&[STATUS_PART])
        .columns(columns::RESOURCE_CLAIM)
        .strategy(strategies::RESOURCE_CLAIM)
        .by(ActedOnBy::Nothing),
    resource!("resource.k8s.io" / "resource" ["v1", "v1beta2"] "ResourceClaimTemplate" "resourceclaimtemplates")
        .strategy(strategies::RESOURCE_CLAIM_TEMPLATE)
        .by(ActedOnBy::Nothing),
    resource!("resource.k8s.io" / "resource" ["v1alpha3"] "ResourcePoolStatusRequest" "resourcepoolstatusrequests")
        .cluster()
        .subresources(&[STATUS_PART])
        .strategy(&STATUS)
        .by(ActedOnBy::Nothing),
    resource!("resource.k8s.io" / "resource" ["v1", "v1beta2"] "ResourceSlice" "resourceslices")
        .cluster()
        .selectable(&[field("spec.driver"), field("spec.nodeName")])
        .columns(columns::RESOURCE_SLICE)
        .strategy(strategies::RESOURCE_SLICE)
        .by(ActedOnBy::Nothing),
    resource!("scheduling.k8s.io" / "scheduling" ["v1"] "PriorityClass" "priorityclasses")
        .cluster()
        .short(&["pc"])
        .columns(columns::PRIORITY_CLASS)
        .strategy(strategies::PRIORITY_CLASS)
        .by(ActedOnBy::Scheduler),
    resource!("scheduling.k8s.io" / "scheduling" ["v1alpha2"] "PodGroup" "podgroups")
        .always_served()
        .subresources(&[STATUS_PART])
        .columns(columns::POD_GROUP)
        .strategy(strategies::POD_GROUP)
        .by(ActedOnBy::Scheduler),
    resource!("scheduling.k8s.io" / "scheduling" ["v1alpha2"] "Workload" "workloads")
        .always_served()
        .columns(columns::WORKLOAD)
        .strategy(strategies::WORKLOAD),
    // metrics-server's; upstream it is an aggregated API.
    resource!("metrics.k8s.io" / "metrics" ["v1beta1"] "NodeMetrics" "nodes")
        .always_served()
        .cluster()
        .answered()
        .verbs(&["get", "list"]),
    resource!("metrics.k8s.io" / "metrics" ["v1beta1"] "PodMetrics" "pods")
        .always_served()
        .answered()
        .verbs(&["get", "list"]),
    // The coscheduling plugin's; upstream it is a custom resource.
    resource!("scheduling.x-k8s.io" / "coscheduling" ["v1alpha1"] "PodGroup" "podgroups")
        .always_served()
        .key("scheduling.x-k8s.io/podgroups")
        .short(&["pg", "pgs"])
        .subresources(&[STATUS_PART])
        .columns(columns::LABEL_POD_GROUP)
        .strategy(strategies::LABEL_POD_GROUP)
        .by(ActedOnBy::Scheduler),
    resource!("storage.k8s.io" / "storage" ["v1"] "CSIDriver" "csidrivers")
        .returned_when_deleted()
        .cluster()
        .columns(columns::CSI_DRIVER)
        .strategy(strategies::CSI_DRIVER)
        .by(ActedOnBy::Node),
    resource!("storage.k8s.io" / "storage" ["v1"] "CSINode" "csinodes")
        .returned_when_deleted()
        .cluster()
        .columns(columns::CSI_NODE)
        .strategy(strategies::CSI_NODE)
        .by(ActedOnBy::Node),
    resource!("storage.k8s.io" / "storage" ["v1"] "CSIStorageCapacity" "csistoragecapacities")
        .returned_when_deleted()
        .columns(columns::CSI_STORAGE_CAPACITY)
        .strategy(strategies::CSI_STORAGE_CAPACITY)
        .by(ActedOnBy::Nothing),
    resource!("storage.k8s.io" / "storage" ["v1"] "StorageClass" "storageclasses")
        .returned_when_deleted()
        .cluster()
        .short(&["sc"])
        .columns(columns::STORAGE_CLASS)
        .strategy(strategies::STORAGE_CLASS)
        .by(ActedOnBy::Controllers),
    resource!("storage.k8s.io" / "storage" ["v1"] "VolumeAttachment" "volumeattachments")
        .returned_when_deleted()
        .cluster()
        .subresources(&[STATUS_PART])
        .columns(columns::VOLUME_ATTACHMENT)
        .strategy(strategies::VOLUME_ATTACHMENT)
        .by(ActedOnBy::Controllers),
    resource!("storage.k8s.io" / "storage" ["v1", "v1beta1"] "VolumeAttributesClass" "volumeattributesclasses")
        .returned_when_deleted()
        .cluster()
        .short(&["vac"])
        .columns(columns::VOLUME_ATTRIBUTES_CLASS)
        .strategy(strategies::VOLUME_ATTRIBUTES_CLASS)
        .by(ActedOnBy::Nothing),
    resource!("storagemigration.k8s.io" / "storagemigration" ["v1beta1"] "StorageVersionMigration" "storageversionmigrations")
        .cluster()
        .subresources(&[STATUS_PART])
        .strategy(&STATUS_ALONE)
        .by(ActedOnBy::Nothing),
];
