//! The core group, and events.k8s.io beside its Events.

use super::{
    ActedOnBy, Persistence, SubresourceDef, SubresourceRole,
    builder::{
        EPHEMERAL_CONTAINERS, FINALIZE, RESIZE, Row, RowField, SCALE, STATUS_PART, action, connect, field, field_at,
        field_unset, resource,
    },
};
use crate::{strategy::kinds as strategies, table::columns};

const PROXY_VERBS: &[&str] = &["create", "delete", "get", "patch", "update"];
const STREAM_VERBS: &[&str] = &["create", "get"];

const POD_SUBRESOURCES: &[SubresourceDef] = &[
    connect("attach", "PodAttachOptions", STREAM_VERBS),
    action("binding", "v1", "Binding", SubresourceRole::Binding),
    EPHEMERAL_CONTAINERS,
    action("eviction", "policy/v1", "Eviction", SubresourceRole::Eviction),
    connect("exec", "PodExecOptions", STREAM_VERBS),
    SubresourceDef { name: "log", body: None, verbs: &["get"], role: SubresourceRole::Log },
    connect("portforward", "PodPortForwardOptions", STREAM_VERBS),
    connect("proxy", "PodProxyOptions", PROXY_VERBS),
    RESIZE,
    STATUS_PART,
    SubresourceDef { name: "why", body: None, verbs: &["get"], role: SubresourceRole::Why },
];

/// pkg/apis/core/v1/conversion.go.
const POD_FIELDS: &[RowField] = &[
    field("spec.nodeName"),
    field("spec.restartPolicy"),
    field("spec.schedulerName"),
    field("spec.serviceAccountName"),
    field_unset("spec.hostNetwork", "false"),
    field("status.phase"),
    field("status.podIP"),
    field("status.nominatedNodeName"),
];

const EVENT_FIELDS: &[RowField] = &[
    field("involvedObject.kind"),
    field("involvedObject.namespace"),
    field("involvedObject.name"),
    field("involvedObject.uid"),
    field("involvedObject.apiVersion"),
    field("involvedObject.resourceVersion"),
    field("involvedObject.fieldPath"),
    field("reason"),
    field("reportingComponent"),
    // pkg/registry/core/event/strategy.go, ToSelectableFields.
    RowField { stand_in: "reportingComponent", ..field_at("source", "source.component", "") },
    field("type"),
];

pub(super) const RESOURCES: &[Row] = &[
    resource!("" / "core" ["v1"] "Binding" "bindings").answered(),
    resource!("" / "core" ["v1"] "ComponentStatus" "componentstatuses")
        .cluster()
        .short(&["cs"])
        .answered()
        .verbs(&["get", "list"])
        .columns(columns::COMPONENT_STATUS)
        .deprecated("v1.19+"),
    resource!("" / "core" ["v1"] "ConfigMap" "configmaps")
        .short(&["cm"])
        .columns(columns::CONFIG_MAP)
        .strategy(strategies::CONFIG_MAP)
        .by(ActedOnBy::Node),
    resource!("" / "core" ["v1"] "Endpoints" "endpoints")
        .short(&["ep"])
        .key("services/endpoints")
        .columns(columns::ENDPOINTS)
        .strategy(strategies::ENDPOINTS)
        .deprecated("v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        .by(ActedOnBy::Controllers),
    resource!("" / "core" ["v1"] "Event" "events")
        .persistence(Persistence::Hour)
        .short(&["ev"])
        .selectable(EVENT_FIELDS)
        .columns(columns::EVENT)
        .strategy(strategies::EVENT),
    resource!("" / "core" ["v1"] "LimitRange" "limitranges")
        .short(&["limits"])
        .columns(columns::LIMIT_RANGE)
        .strategy(strategies::LIMIT_RANGE)
        .by(ActedOnBy::ApiServer),
    resource!("" / "core" ["v1"] "Namespace" "namespaces")
        .cluster()
        .short(&["ns"])
        .verbs(&["create", "delete", "get", "list", "patch", "update", "watch"])
        .subresources(&[FINALIZE, STATUS_PART])
        .selectable(&[field("status.phase"), field_at("name", "metadata.name", "")])
        .columns(columns::NAMESPACE)
        .strategy(strategies::NAMESPACE)
        .by(ActedOnBy::Controllers),
    resource!("" / "core" ["v1"] "Node" "nodes")
        .cluster()
        .short(&["no"])
        .key("minions")
        .subresources(&[connect("proxy", "NodeProxyOptions", PROXY_VERBS), STATUS_PART])
        .selectable(&[field_unset("spec.unschedulable", "false")])
        .columns(columns::NODE)
        .strategy(strategies::NODE)
        .by(ActedOnBy::Scheduler),
    resource!("" / "core" ["v1"] "PersistentVolumeClaim" "persistentvolumeclaims")
        .returned_when_deleted()
        .short(&["pvc"])
        .subresources(&[STATUS_PART])
        .columns(columns::PERSISTENT_VOLUME_CLAIM)
        .strategy(strategies::PERSISTENT_VOLUME_CLAIM)
        .by(ActedOnBy::Controllers),
    resource!("" / "core" ["v1"] "PersistentVolume" "persistentvolumes")
        .returned_when_deleted()
        .cluster()
        .short(&["pv"])
        .subresources(&[STATUS_PART])
        .columns(columns::PERSISTENT_VOLUME)
        .strategy(strategies::PERSISTENT_VOLUME)
        .by(ActedOnBy::Controllers),
    resource!("" / "core" ["v1"] "Pod" "pods")
        .returned_when_deleted()
        .short(&["po"])
        .in_all()
        .subresources(POD_SUBRESOURCES)
        .selectable(POD_FIELDS)
        .columns(columns::POD)
        .strategy(strategies::POD)
        .by(ActedOnBy::Node),
    resource!("" / "core" ["v1"] "PodTemplate" "podtemplates")
        .returned_when_deleted()
        .columns(columns::POD_TEMPLATE)
        .strategy(strategies::POD_TEMPLATE),
    resource!("" / "core" ["v1"] "ReplicationController" "replicationcontrollers")
        .short(&["rc"])
        .in_all()
        .key("controllers")
        .subresources(&[SCALE, STATUS_PART])
        .selectable(&[field_unset("status.replicas", "0")])
        .columns(columns::REPLICATION_CONTROLLER)
        .strategy(strategies::REPLICATION_CONTROLLER)
        .by(ActedOnBy::Controllers),
    resource!("" / "core" ["v1"] "ResourceQuota" "resourcequotas")
        .returned_when_deleted()
        .short(&["quota"])
        .subresources(&[STATUS_PART])
        .columns(columns::RESOURCE_QUOTA)
        .strategy(strategies::RESOURCE_QUOTA)
        .by(ActedOnBy::ApiServer),
    resource!("" / "core" ["v1"] "Secret" "secrets")
        .selectable(&[field("type")])
        .columns(columns::SECRET)
        .strategy(strategies::SECRET)
        .by(ActedOnBy::Node),
    resource!("" / "core" ["v1"] "ServiceAccount" "serviceaccounts")
        .returned_when_deleted()
        .short(&["sa"])
        .subresources(&[action("token", "authentication.k8s.io/v1", "TokenRequest", SubresourceRole::Token)])
        .columns(columns::SERVICE_ACCOUNT)
        .strategy(strategies::SERVICE_ACCOUNT)
        .by(ActedOnBy::Controllers),
    resource!("" / "core" ["v1"] "Service" "services")
        .returned_when_deleted()
        .short(&["svc"])
        .in_all()
        .key("services/specs")
        .subresources(&[connect("proxy", "ServiceProxyOptions", PROXY_VERBS), STATUS_PART])
        .selectable(&[field("spec.clusterIP"), field("spec.type")])
        .columns(columns::SERVICE)
        .strategy(strategies::SERVICE)
        .by(ActedOnBy::Proxy),
    resource!("events.k8s.io" / "events" ["v1"] "Event" "events")
        .persistence(Persistence::Hour)
        .short(&["ev"])
        .stored_as("v1", "core.v1")
        .selectable(&[
            field_at("reason", "reason", ""),
            field_at("regarding.kind", "involvedObject.kind", ""),
            field_at("regarding.namespace", "involvedObject.namespace", ""),
            field_at("regarding.name", "involvedObject.name", ""),
            field_at("regarding.uid", "involvedObject.uid", ""),
            field_at("regarding.apiVersion", "involvedObject.apiVersion", ""),
            field_at("regarding.resourceVersion", "involvedObject.resourceVersion", ""),
            field_at("regarding.fieldPath", "involvedObject.fieldPath", ""),
            field_at("reportingController", "reportingComponent", ""),
            field("type"),
        ])
        .columns(columns::EVENT)
        .strategy(strategies::EVENT_OF_ITS_OWN_GROUP),
];
