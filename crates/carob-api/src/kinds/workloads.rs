//! Workloads and what scales, bounds and reaches them: apps, batch, autoscaling, policy, discovery, networking,
//! coordination.

use super::{
    ActedOnBy, Persistence,
    builder::{PLAIN, Row, SCALE, STATUS_PART, field, field_at, field_unset, resource},
};
use crate::{strategy::kinds as strategies, table::columns};

pub(super) const RESOURCES: &[Row] = &[
    resource!("apps" / "apps" ["v1"] "ControllerRevision" "controllerrevisions")
        .columns(columns::CONTROLLER_REVISION)
        .strategy(strategies::CONTROLLER_REVISION)
        .by(ActedOnBy::Controllers),
    resource!("apps" / "apps" ["v1"] "DaemonSet" "daemonsets")
        .short(&["ds"])
        .in_all()
        .subresources(&[STATUS_PART])
        .columns(columns::DAEMON_SET)
        .strategy(strategies::DAEMON_SET)
        .by(ActedOnBy::Controllers),
    resource!("apps" / "apps" ["v1"] "Deployment" "deployments")
        .short(&["deploy"])
        .in_all()
        .subresources(&[SCALE, STATUS_PART])
        .columns(columns::DEPLOYMENT)
        .strategy(strategies::DEPLOYMENT)
        .by(ActedOnBy::Controllers),
    resource!("apps" / "apps" ["v1"] "ReplicaSet" "replicasets")
        .short(&["rs"])
        .in_all()
        .subresources(&[SCALE, STATUS_PART])
        .selectable(&[field_unset("status.replicas", "0")])
        .columns(columns::REPLICA_SET)
        .strategy(strategies::REPLICA_SET)
        .by(ActedOnBy::Controllers),
    resource!("apps" / "apps" ["v1"] "StatefulSet" "statefulsets")
        .short(&["sts"])
        .in_all()
        .subresources(&[SCALE, STATUS_PART])
        .columns(columns::STATEFUL_SET)
        .strategy(strategies::STATEFUL_SET)
        .by(ActedOnBy::Controllers),
    resource!("autoscaling" / "autoscaling" ["v2", "v1"] "HorizontalPodAutoscaler" "horizontalpodautoscalers")
        .short(&["hpa"])
        .in_all()
        .subresources(&[STATUS_PART])
        .columns(columns::HORIZONTAL_POD_AUTOSCALER)
        .strategy(strategies::HORIZONTAL_POD_AUTOSCALER)
        .by(ActedOnBy::Controllers),
    resource!("batch" / "batch" ["v1"] "CronJob" "cronjobs")
        .short(&["cj"])
        .in_all()
        .subresources(&[STATUS_PART])
        .columns(columns::CRON_JOB)
        .strategy(strategies::CRON_JOB)
        .by(ActedOnBy::Controllers),
    resource!("batch" / "batch" ["v1"] "Job" "jobs")
        .in_all()
        .subresources(&[STATUS_PART])
        .selectable(&[field_at("status.successful", "status.succeeded", "0")])
        .columns(columns::JOB)
        .strategy(strategies::JOB)
        .by(ActedOnBy::Controllers),
    resource!("coordination.k8s.io" / "coordination" ["v1"] "Lease" "leases")
        .persistence(Persistence::DurableChangeOfHolder)
        .columns(columns::LEASE)
        .strategy(strategies::LEASE),
    resource!("coordination.k8s.io" / "coordination" ["v1beta1", "v1alpha2"] "LeaseCandidate" "leasecandidates")
        .columns(columns::LEASE_CANDIDATE)
        .strategy(&PLAIN)
        .by(ActedOnBy::Nothing),
    resource!("discovery.k8s.io" / "discovery" ["v1"] "EndpointSlice" "endpointslices")
        .columns(columns::ENDPOINT_SLICE)
        .strategy(strategies::ENDPOINT_SLICE)
        .by(ActedOnBy::Proxy),
    resource!("networking.k8s.io" / "networking" ["v1"] "Ingress" "ingresses")
        .short(&["ing"])
        .key("ingress")
        .subresources(&[STATUS_PART])
        .columns(columns::INGRESS)
        .strategy(strategies::INGRESS)
        .by(ActedOnBy::Ingress),
    resource!("networking.k8s.io" / "networking" ["v1"] "IngressClass" "ingressclasses")
        .cluster()
        .columns(columns::INGRESS_CLASS)
        .strategy(strategies::INGRESS_CLASS)
        .by(ActedOnBy::Ingress),
    resource!("networking.k8s.io" / "networking" ["v1", "v1beta1"] "IPAddress" "ipaddresses")
        .cluster()
        .short(&["ip"])
        .selectable(&[field("spec.parentRef.name")])
        .columns(columns::IP_ADDRESS)
        .strategy(strategies::IP_ADDRESS),
    resource!("networking.k8s.io" / "networking" ["v1"] "NetworkPolicy" "networkpolicies")
        .short(&["netpol"])
        .columns(columns::NETWORK_POLICY)
        .strategy(strategies::NETWORK_POLICY)
        .by(ActedOnBy::Proxy),
    resource!("networking.k8s.io" / "networking" ["v1", "v1beta1"] "ServiceCIDR" "servicecidrs")
        .cluster()
        .subresources(&[STATUS_PART])
        .columns(columns::SERVICE_CIDR)
        .strategy(strategies::SERVICE_CIDR)
        .by(ActedOnBy::Controllers),
    resource!("policy" / "policy" ["v1"] "PodDisruptionBudget" "poddisruptionbudgets")
        .short(&["pdb"])
        .subresources(&[STATUS_PART])
        .columns(columns::POD_DISRUPTION_BUDGET)
        .strategy(strategies::POD_DISRUPTION_BUDGET)
        .by(ActedOnBy::Controllers),
];
