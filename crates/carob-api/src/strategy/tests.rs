use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::{
    kinds,
    lifecycle::{self, Creation},
    meta,
    schema::{self, sample::sample},
    strategy::Part,
    table,
};

const NOW: &str = "2026-01-02T03:04:05Z";

fn def(kind: &str) -> &'static crate::ResourceDef {
    kinds::all().find(|def| def.kind() == kind).expect(kind)
}

/// An object as it is right before it is stored, or the 422's message.
fn created(kind: &str, obj: Value) -> Result<Value, String> {
    let def = def(kind);
    let namespace = if def.namespaced { "ns" } else { "" };
    let creation = Creation { uid: "u1", now: NOW.parse().expect("a time"), suffix: "bcdfg" };
    let mut obj = def.hub_schema().expect("a schema").conform(obj).map_err(|e| e.to_string())?.value;
    lifecycle::prepare_create(def, &mut obj, namespace).map_err(|s| s.message)?;
    lifecycle::complete_create(def, &mut obj, &creation);
    lifecycle::validate_create(def, &obj).map_err(|s| s.message)?;
    Ok(obj)
}

fn named(mut obj: Value) -> Value {
    obj["metadata"]["name"] = json!("x");
    obj
}

fn updated(kind: &str, part: Part, old: &Value, change: impl FnOnce(&mut Value)) -> Result<Value, String> {
    let def = def(kind);
    let mut new = old.clone();
    change(&mut new);
    lifecycle::prepare_update(def, part, &mut new, old).map_err(|s| s.message)?;
    lifecycle::validate_update(def, part, &new, old).map_err(|s| s.message)?;
    Ok(new)
}

#[track_caller]
fn check_refused(kind: &str, obj: Value, expect: &str) {
    let message = created(kind, named(obj)).expect_err(expect);
    assert!(message.contains(expect), "{kind}: {message}");
}

#[track_caller]
fn check_default(kind: &str, obj: Value, pointer: &str, expect: &Value) {
    let created = created(kind, named(obj)).unwrap_or_else(|e| panic!("{kind}: {e}"));
    assert_eq!(created.pointer(pointer), Some(expect), "{kind} {pointer}");
}

fn template(policy: &str) -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "x"}]}})
}

#[test]
fn defaults_that_depend_on_other_fields() {
    let selector = json!({"matchLabels": {"a": "b"}});
    for (kind, obj, pointer, expect) in [
        (
            "Service",
            json!({"spec": {"ports": [{"port": 80}]}}),
            "/spec/ports/0",
            json!({"port": 80, "protocol": "TCP", "targetPort": 80}),
        ),
        (
            "Service",
            json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}),
            "/spec/allocateLoadBalancerNodePorts",
            json!(true),
        ),
        (
            "Service",
            json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}}),
            "/spec/externalTrafficPolicy",
            json!("Cluster"),
        ),
        (
            "Service",
            json!({"spec": {"sessionAffinity": "ClientIP", "ports": [{"port": 80}]}}),
            "/spec/sessionAffinityConfig",
            json!({"clientIP": {"timeoutSeconds": 10800}}),
        ),
        (
            "Secret",
            json!({"data": {"b": "Yg=="}, "stringData": {"a": "hi"}}),
            "/data",
            json!({"a": "aGk=", "b": "Yg=="}),
        ),
        ("Secret", json!({}), "/type", json!("Opaque")),
        (
            "StatefulSet",
            json!({"spec": {"selector": selector, "template": template("Always"), "serviceName": "s"}}),
            "/spec/updateStrategy",
            json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}),
        ),
        (
            "StatefulSet",
            json!({"spec": {"selector": selector, "template": template("Always"), "serviceName": "s", "updateStrategy": {"type": "RollingUpdate"}}}),
            "/spec/updateStrategy",
            json!({"type": "RollingUpdate"}),
        ),
        (
            "DaemonSet",
            json!({"spec": {"selector": selector, "template": template("Always")}}),
            "/spec/updateStrategy",
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}),
        ),
        (
            "ReplicationController",
            json!({"spec": {"template": template("Always")}}),
            "/spec/selector",
            json!({"a": "b"}),
        ),
    ] {
        check_default(kind, obj, pointer, &expect);
    }
}

#[test]
fn defaults_of_jobs_and_smaller_kinds() {
    for (kind, obj, pointer, expect) in [
        (
            "Job",
            json!({"spec": {"template": template("Never")}}),
            "/spec/selector",
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u1"}}),
        ),
        ("Job", json!({"spec": {"template": template("Never")}}), "/spec/completions", json!(1)),
        (
            "Job",
            json!({"spec": {"template": template("Never"), "parallelism": 3}}),
            "/spec/podReplacementPolicy",
            json!("TerminatingOrFailed"),
        ),
        (
            "Job",
            json!({"spec": {"template": template("Never"), "completionMode": "Indexed", "completions": 2, "backoffLimitPerIndex": 1}}),
            "/spec/backoffLimit",
            json!(i32::MAX),
        ),
        (
            "NetworkPolicy",
            json!({"spec": {"podSelector": {}, "egress": [{}]}}),
            "/spec/policyTypes",
            json!(["Ingress", "Egress"]),
        ),
        (
            "RoleBinding",
            json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]}),
            "/subjects/0/apiGroup",
            json!("rbac.authorization.k8s.io"),
        ),
        ("Node", json!({"status": {"capacity": {"cpu": "2"}}}), "/status/allocatable", json!({"cpu": "2"})),
        (
            "PersistentVolumeClaim",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
            "/status",
            json!({"phase": "Pending"}),
        ),
        (
            "LimitRange",
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}}]}}),
            "/spec/limits/0/defaultRequest",
            json!({"cpu": "2"}),
        ),
        (
            "HorizontalPodAutoscaler",
            json!({"spec": {"maxReplicas": 2, "scaleTargetRef": {"apiVersion": "a/v1", "kind": "D", "name": "d"}}}),
            "/spec/metrics/0/resource/target/averageUtilization",
            json!(80),
        ),
    ] {
        check_default(kind, obj, pointer, &expect);
    }
}

#[test]
fn mistakes_in_workloads() {
    let selector = json!({"matchLabels": {"a": "b"}});
    for (kind, obj, expect) in [
        ("Deployment", json!({"spec": {"template": template("Always")}}), "spec.selector: Required value"),
        (
            "Deployment",
            json!({"spec": {"selector": {}, "template": template("Always")}}),
            "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
        ),
        (
            "Deployment",
            json!({"spec": {"selector": {"matchLabels": {"a": "c"}}, "template": template("Always")}}),
            "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
        ),
        (
            "Deployment",
            json!({"spec": {"replicas": -1, "selector": selector, "template": template("Always")}}),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "ReplicaSet",
            json!({"spec": {"selector": selector, "template": template("Never")}}),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
        (
            "Deployment",
            json!({"spec": {"selector": selector, "template": template("Always"), "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
        ),
        (
            "Deployment",
            json!({"spec": {"selector": selector, "template": template("Always"), "strategy": {"type": "Recreate", "rollingUpdate": {}}}}),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            "Job",
            json!({"spec": {"template": template("Always")}}),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ),
        (
            "Job",
            json!({"spec": {"completionMode": "Indexed", "parallelism": 1, "template": template("Never")}}),
            "spec.completions: Required value: when completion mode is Indexed",
        ),
        (
            "CronJob",
            json!({"spec": {"schedule": "often", "jobTemplate": {"spec": {"template": template("Never")}}}}),
            "spec.schedule: Invalid value: \"often\": expected exactly 5 fields, found 1",
        ),
    ] {
        check_refused(kind, obj, expect);
    }
}

/// The greatest numbers would be lists of two thousand million Pods or indexes in the controller.
#[test]
fn the_numbers_of_jobs_are_bounded() {
    let job = |more: Value| {
        let mut spec =
            json!({"completionMode": "Indexed", "completions": 10, "parallelism": 1, "template": template("Never")});
        for (field, value) in more.as_object().cloned().unwrap_or_default() {
            spec[field] = value;
        }
        json!({"spec": spec})
    };
    let max = i32::MAX;
    let success = |rule: Value| job(json!({"successPolicy": {"rules": [rule]}}));
    let failure = |rule: Value| job(json!({"podFailurePolicy": {"rules": [rule]}}));
    for (obj, expect) in [
        (
            job(json!({"parallelism": max})),
            "spec.parallelism: Invalid value: 2147483647: must be less than or equal to 100000 when completion mode is Indexed",
        ),
        (
            job(json!({"maxFailedIndexes": 11, "backoffLimitPerIndex": 1})),
            "spec.maxFailedIndexes: Invalid value: 11: must be less than or equal to completions",
        ),
        (
            job(
                json!({"completions": 100_001, "parallelism": 10_001, "backoffLimitPerIndex": 1, "maxFailedIndexes": 1}),
            ),
            "spec.parallelism: Invalid value: 10001: must be less than or equal to 10000 when completions are above 100000 \
             and used with backoff limit per index",
        ),
        (
            job(json!({"completions": 100_001, "backoffLimitPerIndex": 1})),
            "spec.maxFailedIndexes: Required value: must be specified when completions is above 100000",
        ),
        (
            job(json!({"maxFailedIndexes": 1})),
            "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
        ),
        (
            job(json!({"completionMode": "NonIndexed", "backoffLimitPerIndex": 1})),
            "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
        ),
        (
            job(json!({"ttlSecondsAfterFinished": -1})),
            "spec.ttlSecondsAfterFinished: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            success(json!({"succeededIndexes": "0-2147483646"})),
            "succeededIndexes: Invalid value: \"0-2147483646\": error parsing succeededIndexes: too large index: \"2147483646\"",
        ),
        (success(json!({"succeededIndexes": "1-2-3"})), "the fragment \"1-2-3\" violates the requirement"),
        (success(json!({"succeededIndexes": "3,1"})), "non-increasing order, previous: 3, current: 1"),
        (success(json!({"succeededIndexes": "x"})), "cannot convert string to integer for index: \"x\""),
        (
            success(json!({"succeededIndexes": "0-3,5", "succeededCount": 6})),
            "succeededCount: Invalid value: 6: must be less than or equal to 5 (the number of indexes in the specified succeededIndexes field)",
        ),
        (
            success(json!({"succeededCount": max})),
            "succeededCount: Invalid value: 2147483647: must be less than or equal to 10 (the number of specified completions)",
        ),
        (success(json!({})), "spec.successPolicy.rules[0]: Required value: at least one of"),
        (
            failure(json!({"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1]}})),
            "spec.podFailurePolicy.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
        ),
        (
            failure(json!({"action": "Ignore", "onExitCodes": {"operator": "In", "values": [0, 2, 1, 2]}})),
            "values[0]: Invalid value: 0: must not be 0 for the In operator",
        ),
        (failure(json!({"action": "Ignore"})), "specifying one of OnExitCodes and OnPodConditions is required"),
        (job(json!({"managedBy": "me"})), "spec.managedBy: Invalid value: \"me\": must be a domain-prefixed path"),
    ] {
        check_refused("Job", obj, expect);
    }
}

#[test]
fn cron_jobs_are_what_their_controller_can_read() {
    let cron = |more: Value| {
        let mut spec = json!({"schedule": "0 * * * *", "jobTemplate": {"spec": {"template": template("Never")}}});
        for (field, value) in more.as_object().cloned().unwrap_or_default() {
            spec[field] = value;
        }
        json!({"spec": spec})
    };
    for (obj, expect) in [
        (
            cron(json!({"schedule": "60 * * * *"})),
            "spec.schedule: Invalid value: \"60 * * * *\": end of range (60) above maximum (59): 60",
        ),
        (
            cron(json!({"schedule": "@reboot"})),
            "spec.schedule: Invalid value: \"@reboot\": unrecognized descriptor: @reboot",
        ),
        (
            cron(json!({"schedule": "TZ=UTC 0 * * * *"})),
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        ),
        (cron(json!({"timeZone": ""})), "spec.timeZone: Invalid value: \"\": timeZone must be nil or non-empty string"),
        (
            cron(json!({"timeZone": "Nope/Zone"})),
            "spec.timeZone: Invalid value: \"Nope/Zone\": unknown time zone Nope/Zone",
        ),
        (
            cron(json!({"failedJobsHistoryLimit": -1})),
            "spec.failedJobsHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
        ),
    ] {
        check_refused("CronJob", obj, expect);
    }
}

#[test]
fn mistakes_in_ranges_and_addresses_of_services() {
    for (kind, obj, expect) in [
        ("ServiceCIDR", json!({"spec": {}}), "spec.cidrs: Required value: at least one CIDR required"),
        (
            "ServiceCIDR",
            json!({"spec": {"cidrs": ["10.0.0.1/24"]}}),
            "spec.cidrs[0]: Invalid value: \"10.0.0.1/24\": must not have",
        ),
        (
            "ServiceCIDR",
            json!({"spec": {"cidrs": ["10.0.0.0/24", "10.1.0.0/24"]}}),
            "may specify no more than one IP for each IP family",
        ),
        (
            "ServiceCIDR",
            json!({"spec": {"cidrs": ["10.0.0.0/24", "fd00::/64", "fd01::/64"]}}),
            "may only hold up to 2 values",
        ),
        (
            "IPAddress",
            json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": {"resource": "a/b", "name": "x"}}}),
            "spec.parentRef.resource: Invalid value: \"a/b\": may not contain '/'",
        ),
        (
            "IPAddress",
            json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": {"resource": "services"}}}),
            "spec.parentRef.name: Required value",
        ),
    ] {
        check_refused(kind, obj, expect);
    }
}

#[test]
fn mistakes_in_volumes_and_their_classes() {
    for (kind, obj, expect) in [
        (
            "PersistentVolumeClaim",
            json!({"spec": {"accessModes": ["ReadWriteOncePod", "ReadWriteOnce"], "resources": {"requests": {"storage": "0"}}}}),
            "[spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes, \
             spec.resources[storage]: Invalid value: \"0\": must be greater than zero]",
        ),
        (
            "PersistentVolume",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "local": {"path": "/a/../b"}}}),
            "[spec.local.path: Invalid value: \"/a/../b\": must not contain '..', \
             spec.nodeAffinity: Required value: Local volume requires node affinity]",
        ),
        (
            "PersistentVolume",
            json!({"spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": "1Gi", "cpu": "1"},
                "hostPath": {"path": "/"},
                "nfs": {"server": "s", "path": "/p"},
                "persistentVolumeReclaimPolicy": "Recycle",
                "storageClassName": "A",
            }}),
            "spec.capacity: Unsupported value: {\"cpu\":\"1\",\"storage\":\"1Gi\"}: supported values: \"storage\", \
             spec.nfs: Forbidden: may not specify more than 1 volume type, \
             spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/', \
             spec.storageClassName: Invalid value: \"A\"",
        ),
        (
            "PersistentVolume",
            json!({"spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": "1Gi"},
                "csi": {"driver": "a.b", "nodePublishSecretRef": {"name": "n"}},
                "nodeAffinity": {},
            }}),
            "[spec.nodeAffinity.required: Required value: must specify required node constraints, \
             spec.csi.volumeHandle: Required value, spec.csi.nodePublishSecretRef.namespace: Required value]",
        ),
        (
            "StorageClass",
            json!({"provisioner": "a b", "allowedTopologies": [{"matchLabelExpressions": [{"key": "k", "values": ["v", "v"]}, {"key": "k"}]}]}),
            "allowedTopologies[0].matchLabelExpressions[0].values[1]: Duplicate value: \"v\", \
             allowedTopologies[0].matchLabelExpressions[1].values: Required value, \
             allowedTopologies[0].matchLabelExpressions[1].key: Duplicate value: \"k\"",
        ),
        (
            "VolumeAttributesClass",
            json!({"driverName": "a.b"}),
            "parameters: Required value: must contain at least one key/value pair",
        ),
        (
            "VolumeAttachment",
            json!({"spec": {"attacher": "a.b", "nodeName": "n", "source": {}}}),
            "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        ),
    ] {
        check_refused(kind, obj, expect);
    }
}

#[test]
fn mistakes_in_other_kinds() {
    let big = "x".repeat(1_100_000);
    for (kind, obj, expect) in [
        (
            "ConfigMap",
            json!({"data": {"a/b": "c"}}),
            "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of",
        ),
        ("ConfigMap", json!({"data": {"a": big}}), "Too long: may not be more than 1048576 bytes"),
        ("Secret", json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}), "data[tls.key]: Required value"),
        ("Service", json!({"spec": {"ports": []}}), "spec.ports: Required value"),
        ("Service", json!({"spec": {"ports": [{"port": 1}, {"port": 2}]}}), "spec.ports[0].name: Required value"),
        (
            "Service",
            json!({"spec": {"ports": [{"port": 80, "nodePort": 30000}]}}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            "Service",
            json!({"spec": {"type": "External", "ports": [{"port": 80}]}}),
            "spec.type: Unsupported value: \"External\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        (
            "PersistentVolumeClaim",
            json!({"spec": {}}),
            "spec.accessModes: Required value: at least 1 access mode is required",
        ),
        (
            "Role",
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"]}]}),
            "rules[0].verbs: Required value: verbs must contain at least one value",
        ),
        (
            "ClusterRoleBinding",
            json!({"roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "ServiceAccount", "name": "u"}]}),
            "subjects[0].namespace: Required value",
        ),
        (
            "ClusterRoleBinding",
            json!({"roleRef": {"kind": "Role", "name": "r"}}),
            "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
        ),
        (
            "ClusterRole",
            json!({"aggregationRule": {"clusterRoleSelectors": []}}),
            "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required",
        ),
        (
            "RoleBinding",
            json!({"roleRef": {"kind": "Role", "name": "a/b"}, "subjects": [{"kind": "User", "name": "u", "apiGroup": "x"}]}),
            "subjects[0].apiGroup: Unsupported value: \"x\": supported values: \"rbac.authorization.k8s.io\"",
        ),
        (
            "CertificateSigningRequest",
            json!({"spec": {"request": "aGk=", "signerName": "x/y", "usages": ["any", "any"], "expirationSeconds": 1}}),
            "[spec.request: Invalid value: PEM block type must be CERTIFICATE REQUEST, \
             spec.usages[1]: Duplicate value: \"any\", \
             spec.signerName: Invalid value: \"x\": should be a domain with at least two segments separated by dots, \
             spec.expirationSeconds: Invalid value: 1: may not specify a duration less than 600 seconds (10 minutes)]",
        ),
        (
            "PriorityClass",
            json!({"value": 2_000_000_000}),
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
        ),
        (
            "PodDisruptionBudget",
            json!({"spec": {"minAvailable": 1, "maxUnavailable": 1}}),
            "minAvailable and maxUnavailable cannot be both set",
        ),
        (
            "Lease",
            json!({"spec": {"leaseDurationSeconds": 0}}),
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
        ),
        (
            "Event",
            json!({"involvedObject": {"namespace": "other"}}),
            "involvedObject.namespace: Invalid value: \"other\": does not match event.namespace",
        ),
        (
            "Node",
            json!({"spec": {"taints": [{"key": "k", "effect": "Sometimes"}]}}),
            "spec.taints[0].effect: Unsupported value: \"Sometimes\"",
        ),
        (
            "CustomResourceDefinition",
            json!({"spec": {"group": "g", "names": {"plural": "p"}}}),
            "metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group",
        ),
        (
            "HorizontalPodAutoscaler",
            json!({"spec": {"minReplicas": 5, "maxReplicas": 2}}),
            "spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`",
        ),
    ] {
        check_refused(kind, obj, expect);
    }
}

#[test]
fn what_may_not_change() {
    let selector = json!({"matchLabels": {"a": "b"}});
    type Change = fn(&mut Value);
    let cases: [(&str, Value, Change, &str); 11] = [
        (
            "ConfigMap",
            json!({"immutable": true, "data": {"a": "b"}}),
            |o| o["data"]["a"] = json!("c"),
            "data: Forbidden: field is immutable when `immutable` is set",
        ),
        ("Secret", json!({}), |o| o["type"] = json!("other"), "type: Invalid value: \"other\": field is immutable"),
        (
            "Service",
            json!({"spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 1}]}}),
            |o| o["spec"]["clusterIP"] = json!("10.0.0.2"),
            "spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set",
        ),
        (
            "ServiceCIDR",
            json!({"spec": {"cidrs": ["10.0.0.0/24"]}}),
            |o| o["spec"]["cidrs"] = json!(["10.0.1.0/24", "fd00::/64"]),
            "spec.cidrs[0]: Invalid value: \"10.0.1.0/24\": field is immutable",
        ),
        (
            "ServiceCIDR",
            json!({"spec": {"cidrs": ["10.0.0.0/24", "fd00::/64"]}}),
            |o| o["spec"]["cidrs"] = json!(["10.0.0.0/24"]),
            "spec.cidrs: Invalid value: [\"10.0.0.0/24\"]: field is immutable",
        ),
        (
            "StatefulSet",
            json!({"spec": {"selector": selector, "serviceName": "s", "template": template("Always")}}),
            |o| o["spec"]["serviceName"] = json!("t"),
            "updates to statefulset spec for fields other than 'replicas'",
        ),
        (
            "Job",
            json!({"spec": {"template": template("Never")}}),
            |o| o["spec"]["template"]["spec"]["nodeName"] = json!("n"),
            "spec.template: Invalid value: {",
        ),
        (
            "RoleBinding",
            json!({"roleRef": {"kind": "Role", "name": "r"}}),
            |o| o["roleRef"]["name"] = json!("s"),
            "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"Role\",\"name\":\"s\"}: cannot change roleRef",
        ),
        (
            "PriorityClass",
            json!({"value": 1}),
            |o| o["value"] = json!(2),
            "value: Forbidden: may not be changed in an update.",
        ),
        (
            "StorageClass",
            json!({"provisioner": "p"}),
            |o| o["reclaimPolicy"] = json!("Retain"),
            "reclaimPolicy: Invalid value: \"Retain\": field is immutable",
        ),
        (
            "Node",
            json!({"spec": {"podCIDRs": ["10.0.0.0/24"]}}),
            |o| o["spec"]["podCIDR"] = json!("10.1.0.0/24"),
            "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid",
        ),
    ];
    for (kind, obj, change, expect) in cases {
        let old = created(kind, named(obj)).unwrap_or_else(|e| panic!("{kind}: {e}"));
        let message = updated(kind, Part::Main, &old, change).expect_err(expect);
        assert!(message.contains(expect), "{kind}: {message}");
    }
}

#[test]
fn an_approval_changes_conditions_only() {
    let request = STANDARD.encode(include_bytes!("../../corpus/certificate-requests/node.pem"));
    let csr = json!({"spec": {"request": request, "signerName": "example.com/x", "usages": ["client auth"]}});
    let old = created("CertificateSigningRequest", named(csr)).expect("valid");
    let new = updated("CertificateSigningRequest", Part::Approval, &old, |csr| {
        csr["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}], "certificate": "aGk="});
        csr["spec"]["signerName"] = json!("other/x");
    })
    .expect("valid");
    assert_eq!(new["status"], json!({"conditions": [{"type": "Approved", "status": "True"}]}));
    assert_eq!(new["spec"], old["spec"]);
}

#[test]
fn old_and_new_fields_stay_in_step() {
    let ips = |ip: &str| json!([{"ip": ip}]);
    for (kind, given, pointer, expect) in [
        ("Node", json!({"spec": {"podCIDRs": ["a/1", "b/2"]}}), "/spec/podCIDR", json!("a/1")),
        ("Node", json!({"spec": {"podCIDR": "a/1"}}), "/spec/podCIDRs", json!(["a/1"])),
        ("Pod", json!({"status": {"podIPs": ips("1.2.3.4")}}), "/status/podIP", json!("1.2.3.4")),
        ("Pod", json!({"status": {"podIP": "1.2.3.4"}}), "/status/podIPs", ips("1.2.3.4")),
        ("Pod", json!({"status": {"podIP": "1.2.3.4", "podIPs": ips("5.6.7.8")}}), "/status/podIPs", ips("1.2.3.4")),
        (
            "Pod",
            json!({"status": {"podIP": "1.2.3.4", "podIPs": [{"ip": "1.2.3.4"}, {"ip": "::1"}]}}),
            "/status/podIPs/1/ip",
            json!("::1"),
        ),
    ] {
        let mut obj = given;
        def(kind).strategy().default(&mut obj);
        assert_eq!(obj.pointer(pointer), Some(&expect), "{kind} {pointer}");
    }
}

#[test]
fn templates_warn_when_they_change() {
    let mut bad = template("Always");
    bad["spec"]["containers"][0]["env"] = json!([{"name": "A"}, {"name": "A"}]);
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"template": bad}});
    let strategy = def("Deployment").strategy();
    let expect = "spec.template.spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply";
    assert_eq!(strategy.warnings(&deployment, None), [expect]);
    assert_eq!(strategy.warnings(&deployment, Some(&deployment)), Vec::<String>::new());
}

/// Every field set, most of them to nonsense: errors, never a panic, and deleting and showing work on anything stored.
#[test]
fn nonsense_is_refused_or_stored() {
    let now = NOW.parse().expect("a time");
    for def in kinds::all().filter(|def| def.is_stored()) {
        let ty = def.hub_schema().and_then(schema::Schema::table).expect("a schema");
        for depth in 0..4 {
            let given = sample(ty, depth);
            let namespace = if def.namespaced { "x" } else { "" };
            let creation = Creation { uid: "u1", now, suffix: "bcdfg" };
            let mut obj = given.clone();
            meta::remove(&mut obj, &["metadata", "resourceVersion"]);
            lifecycle::prepare_create(def, &mut obj, namespace).unwrap_or_else(|e| panic!("{}: {e}", def.kind()));
            lifecycle::complete_create(def, &mut obj, &creation);
            if let Err(status) = lifecycle::validate_create(def, &obj) {
                assert_eq!(status.code, 422, "{}", def.kind());
            }
            for part in
                [Part::Main, Part::Status, Part::EphemeralContainers, Part::Resize, Part::Approval, Part::Finalize]
            {
                let mut new = given.clone();
                lifecycle::prepare_update(def, part, &mut new, &obj).unwrap_or_else(|e| panic!("{}: {e}", def.kind()));
                if let Err(status) = lifecycle::validate_update(def, part, &new, &obj) {
                    assert_eq!(status.code, 422, "{} {part:?}", def.kind());
                }
            }
            let options = lifecycle::DeleteOptions::default();
            if let lifecycle::Deletion::Mark(marked) = lifecycle::plan_deletion(def, &obj, &options, now) {
                assert!(meta::is_being_deleted(&marked), "{}", def.kind());
            }
            let row = def.columns().row(&obj, now, table::IncludeObject::None);
            let columns = def.columns().definitions();
            assert_eq!(row["cells"].as_array().map(Vec::len), columns.as_array().map(Vec::len), "{}", def.kind());
        }
    }
}
