use serde_json::json;

use super::*;
use crate::kinds::{self, Columns};

const NOW: &str = "2026-01-02T03:04:05Z";

fn cells(group: &str, plural: &str, mut obj: Value, wide: bool) -> Vec<Value> {
    let def = kinds::all().find(|def| def.group() == group && def.plural() == plural).expect(plural);
    meta::set(&mut obj, &["metadata", "name"], "x");
    meta::set(&mut obj, &["metadata", "creationTimestamp"], "2026-01-02T03:02:00Z");
    let Columns::BuiltIn(columns) = def.columns() else { panic!("built in") };
    let columns: Vec<ColumnDef> = columns.iter().filter(|column| wide || !column.wide).copied().collect();
    let row = row(&columns, &obj, NOW.parse().expect("a time"), IncludeObject::None);
    row["cells"].as_array().cloned().expect("cells")
}

/// Ready, Status and Restarts of a Pod.
#[track_caller]
fn check_pod(pod: Value, expect: [&str; 3]) {
    let shown = cells("", "pods", pod.clone(), false);
    let shown: Vec<&str> = shown[1..4].iter().map(|cell| cell.as_str().expect("text")).collect();
    assert_eq!(shown, expect, "{pod}");
}

#[test]
fn a_pod_starts() {
    let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    check_pod(json!({"spec": spec, "status": {"phase": "Pending"}}), ["0/2", "Pending", "0"]);
    let gated = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]);
    check_pod(
        json!({"spec": spec, "status": {"phase": "Pending", "conditions": gated}}),
        ["0/2", "SchedulingGated", "0"],
    );
    let waiting = |reason: &str| json!([{"name": "a", "restartCount": 0, "state": {"waiting": {"reason": reason}}}]);
    for reason in ["ContainerCreating", "ImagePullBackOff", "CrashLoopBackOff"] {
        check_pod(
            json!({"spec": spec, "status": {"phase": "Pending", "containerStatuses": waiting(reason)}}),
            ["0/2", reason, "0"],
        );
    }
    let ready =
        |name: &str, ready: bool| json!({"name": name, "ready": ready, "restartCount": 0, "state": {"running": {}}});
    check_pod(
        json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": [ready("a", true), ready("b", false)]}}),
        ["1/2", "Running", "0"],
    );
}

#[test]
fn a_pod_ends() {
    let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let ended = |state: Value| json!({"name": "a", "restartCount": 0, "state": {"terminated": state}});
    let running = json!({"name": "b", "ready": true, "restartCount": 0, "state": {"running": {}}});
    for (state, expect) in [
        (json!({"exitCode": 0, "reason": "Completed"}), "Completed"),
        (json!({"exitCode": 1, "reason": "Error"}), "Error"),
        (json!({"exitCode": 137, "reason": "OOMKilled"}), "OOMKilled"),
        (json!({"exitCode": 3}), "ExitCode:3"),
        (json!({"exitCode": 0, "signal": 9}), "Signal:9"),
    ] {
        check_pod(
            json!({"spec": spec, "status": {"phase": "Failed", "containerStatuses": [ended(state)]}}),
            ["0/2", expect, "0"],
        );
    }
    let completed = ended(json!({"exitCode": 0, "reason": "Completed"}));
    for (status, expect) in [("True", "Running"), ("False", "NotReady")] {
        let conditions = json!([{"type": "Ready", "status": status}]);
        check_pod(
            json!({"spec": spec, "status": {"phase": "Running", "conditions": conditions, "containerStatuses": [completed, running]}}),
            ["1/2", expect, "0"],
        );
    }
    check_pod(json!({"spec": spec, "status": {"phase": "Failed", "reason": "Evicted"}}), ["0/2", "Evicted", "0"]);
    let deleted = json!({"deletionTimestamp": NOW});
    check_pod(json!({"metadata": deleted, "spec": spec, "status": {"phase": "Running"}}), ["0/2", "Terminating", "0"]);
    check_pod(
        json!({"metadata": deleted, "spec": spec, "status": {"phase": "Running", "reason": "NodeLost"}}),
        ["0/2", "Unknown", "0"],
    );
    check_pod(json!({"metadata": deleted, "spec": spec, "status": {"phase": "Succeeded"}}), ["0/2", "Succeeded", "0"]);
}

#[test]
fn a_pod_initializes() {
    let spec = json!({"initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]});
    let pod = |init: Value| json!({"spec": spec, "status": {"phase": "Pending", "initContainerStatuses": init}});
    let waiting = json!({"name": "i", "state": {"waiting": {"reason": "PodInitializing"}}});
    let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
    check_pod(pod(json!([waiting])), ["0/2", "Init:0/2", "0"]);
    check_pod(pod(json!([done, {"name": "s", "state": {"running": {}}}])), ["0/2", "Init:1/2", "0"]);
    check_pod(
        pod(json!([{"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}])),
        ["0/2", "Init:CrashLoopBackOff", "2"],
    );
    check_pod(
        pod(json!([{"name": "i", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}])),
        ["0/2", "Init:Error", "0"],
    );
    let sidecar = json!({"name": "s", "started": true, "ready": true, "state": {"running": {}}});
    let mut running = pod(json!([done, sidecar]));
    running["status"]["phase"] = json!("Running");
    running["status"]["containerStatuses"] = json!([{"name": "a", "ready": true, "restartCount": 3, "state": {"running": {}},
        "lastState": {"terminated": {"finishedAt": "2026-01-02T02:59:05Z"}}}]);
    check_pod(running, ["2/2", "Running", "3 (5m ago)"]);
}

#[test]
fn rows_of_other_kinds() {
    for (group, plural, obj, expect) in [
        ("", "configmaps", json!({"data": {"a": "", "b": ""}, "binaryData": {"c": ""}}), json!(["x", 3, "2m5s"])),
        ("", "secrets", json!({"type": "Opaque", "data": {"a": ""}}), json!(["x", "Opaque", 1, "2m5s"])),
        ("", "namespaces", json!({"status": {"phase": "Active"}}), json!(["x", "Active", "2m5s"])),
        (
            "",
            "nodes",
            json!({"metadata": {"labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
                "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1.36.2"}}}),
            json!(["x", "Ready,SchedulingDisabled", "control-plane,worker", "2m5s", "v1.36.2"]),
        ),
        (
            "",
            "services",
            json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
            json!(["x", "NodePort", "10.0.0.1", "<none>", "80:30080/TCP,53/UDP", "2m5s"]),
        ),
        (
            "",
            "services",
            json!({"spec": {"type": "LoadBalancer"}}),
            json!(["x", "LoadBalancer", "<none>", "<pending>", "<none>", "2m5s"]),
        ),
        (
            "",
            "endpoints",
            json!({"subsets": [{"addresses": [{"ip": "a"}, {"ip": "b"}], "ports": [{"port": 1}, {"port": 2}]}]}),
            json!(["x", "a:1,b:1,a:2 + 1 more...", "2m5s"]),
        ),
        (
            "",
            "events",
            json!({"type": "Normal", "reason": "Started", "message": " hi ", "lastTimestamp": "2026-01-02T03:04:00Z", "involvedObject": {"kind": "Pod", "name": "p"}}),
            json!(["5s", "Normal", "Started", "pod/p", "hi"]),
        ),
        (
            "apps",
            "deployments",
            json!({"spec": {"replicas": 3}, "status": {"readyReplicas": 2, "updatedReplicas": 3}}),
            json!(["x", "2/3", 3, 0, "2m5s"]),
        ),
        (
            "apps",
            "replicasets",
            json!({"spec": {"replicas": 3}, "status": {"replicas": 3}}),
            json!(["x", 3, 3, 0, "2m5s"]),
        ),
        (
            "batch",
            "jobs",
            json!({"spec": {"completions": 2}, "status": {"succeeded": 1, "startTime": "2026-01-02T03:03:05Z"}}),
            json!(["x", "Running", "1/2", "60s", "2m5s"]),
        ),
        (
            "batch",
            "cronjobs",
            json!({"spec": {"schedule": "* * * * *"}, "status": {"active": [{}]}}),
            json!(["x", "* * * * *", "<none>", false, 1, "<none>", "2m5s"]),
        ),
        (
            "policy",
            "poddisruptionbudgets",
            json!({"spec": {"minAvailable": "50%"}}),
            json!(["x", "50%", "N/A", 0, "2m5s"]),
        ),
        ("coordination.k8s.io", "leases", json!({"spec": {"holderIdentity": "h"}}), json!(["x", "h", "2m5s"])),
        (
            "rbac.authorization.k8s.io",
            "rolebindings",
            json!({"roleRef": {"kind": "Role", "name": "r"}}),
            json!(["x", "Role/r", "2m5s"]),
        ),
        ("rbac.authorization.k8s.io", "clusterroles", json!({}), json!(["x", "2026-01-02T03:02:00Z"])),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["a"]}]}),
            json!(["x", "IPv4", "80", "a", "2m5s"]),
        ),
        (
            "scheduling.k8s.io",
            "priorityclasses",
            json!({"value": 7, "preemptionPolicy": "Never"}),
            json!(["x", 7, false, "2m5s", "Never"]),
        ),
    ] {
        assert_eq!(Value::from(cells(group, plural, obj, false)), expect, "{plural}");
    }
    let wide = cells(
        "apps",
        "deployments",
        json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
        true,
    );
    assert_eq!(wide[5..], [json!("c"), json!("i"), json!("a=b")]);
}

#[test]
fn every_kind_makes_rows_of_anything() {
    let junk =
        json!({"metadata": 3, "spec": ["x"], "status": {"conditions": "x", "containerStatuses": [1, {"state": 7}]}});
    for def in kinds::all() {
        for obj in [json!({}), json!({"kind": def.kind()}), junk.clone()] {
            let row = def.columns().row(&obj, NOW.parse().expect("a time"), IncludeObject::None);
            let columns = def.columns().definitions();
            assert_eq!(row["cells"].as_array().map(Vec::len), columns.as_array().map(Vec::len), "{}", def.kind());
        }
    }
}

#[test]
fn a_table_has_definitions_and_objects() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": {"phase": "Succeeded"}});
    let now = NOW.parse().expect("a time");
    let table = table(columns::POD, &[&pod], json!({"resourceVersion": "7"}), now, IncludeObject::Metadata);
    assert_eq!(
        (&table["kind"], &table["apiVersion"], &table["metadata"]),
        (&json!("Table"), &json!("meta.k8s.io/v1"), &json!({"resourceVersion": "7"}))
    );
    assert_eq!(
        table["columnDefinitions"][0],
        json!({"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0})
    );
    assert_eq!(table["columnDefinitions"][5]["priority"], 1);
    let row = &table["rows"][0];
    assert_eq!(
        row["object"],
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "p"}})
    );
    assert_eq!(row["conditions"][0]["reason"], "Succeeded");
    assert_eq!(super::row(columns::POD, &pod, now, IncludeObject::Object)["object"], pod);
    assert_eq!(
        [IncludeObject::parse(""), IncludeObject::parse("None"), IncludeObject::parse("x")],
        [Some(IncludeObject::Metadata), Some(IncludeObject::None), None]
    );
}
