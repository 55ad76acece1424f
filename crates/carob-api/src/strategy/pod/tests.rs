use serde_json::{Value, json};

use super::*;
use crate::{
    kinds,
    lifecycle::{self, Creation},
    strategy::Part,
};

const NOW: &str = "2026-01-02T03:04:05Z";

fn creation() -> Creation<'static> {
    Creation { uid: "u1", now: NOW.parse().expect("a time"), suffix: "abcde" }
}

fn pods() -> &'static crate::ResourceDef {
    kinds::by_resource("", "v1", "pods").expect("pods are built in")
}

fn decoded(value: Value) -> Value {
    pods().hub_schema().expect("a schema").conform(value).expect("well-typed").value
}

/// A Pod as it is right before it is stored.
fn created(value: Value) -> Result<Value, crate::Status> {
    let mut pod = decoded(value);
    lifecycle::prepare_create(pods(), &mut pod, "default")?;
    lifecycle::complete_create(pods(), &mut pod, &creation());
    lifecycle::validate_create(pods(), &pod)?;
    Ok(pod)
}

fn pod_with(spec: Value) -> Value {
    let mut base = json!({"containers": [{"name": "a", "image": "nginx"}]});
    for (key, value) in spec.as_object().cloned().unwrap_or_default() {
        base[key] = value;
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": base})
}

#[test]
fn search_paths_may_have_underscores_and_be_a_dot() {
    let searches = |paths: Value| json!({"dnsConfig": {"searches": paths}});
    let good = pod_with(searches(json!([".", "_sip._tcp.abc_d.example.com", "example.com."])));
    created(good).expect("valid");
    check_refused(&searches(json!(["a..b"])), "spec.dnsConfig.searches[0]: Invalid value: \"a..b\"");
}

#[test]
fn a_plain_pod_gets_upstreams_defaults() {
    let pod = created(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-"}, "spec": {
        "serviceAccount": "bot",
        "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "x"}}],
        "containers": [{"name": "a", "image": "nginx:1", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1000m"}}, "livenessProbe": {"exec": {"command": ["true"]}}}],
    }, "status": {"phase": "Running"}}))
    .expect("valid");
    let expect = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-abcde", "generateName": "web-", "namespace": "default", "uid": "u1", "creationTimestamp": NOW, "generation": 1},
        "spec": {
            "containers": [{"name": "a", "image": "nginx:1", "imagePullPolicy": "IfNotPresent",
                "ports": [{"containerPort": 80, "protocol": "TCP"}], "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                "livenessProbe": {"exec": {"command": ["true"]}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "restartPolicy": "Always", "schedulerName": "default-scheduler",
            "securityContext": {}, "serviceAccount": "bot", "serviceAccountName": "bot", "terminationGracePeriodSeconds": 30,
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "c", "configMap": {"name": "x", "defaultMode": 420}}],
        },
        "status": {"phase": "Pending", "qosClass": "Burstable"},
    });
    assert_eq!(pod, expect);
}

#[test]
fn label_keys_become_requirements() {
    let selector = json!({"matchLabels": {"app": "web"}});
    let mut pod = pod_with(json!({
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "zone", "labelSelector": selector, "matchLabelKeys": ["hash", "missing"], "mismatchLabelKeys": ["tenant"]}]}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector, "matchLabelKeys": ["hash"]}],
    }));
    pod["metadata"]["labels"] = json!({"app": "web", "hash": "h", "tenant": "t"});
    let pod = created(pod).expect("valid");
    let term = &pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
    let same = json!({"key": "hash", "operator": "In", "values": ["h"]});
    let other = json!({"key": "tenant", "operator": "NotIn", "values": ["t"]});
    assert_eq!(term["labelSelector"]["matchExpressions"], json!([same, other]));
    assert_eq!(pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchExpressions"], json!([same]));
}

#[test]
fn host_network_takes_the_hosts_ports() {
    let pod = created(pod_with(
        json!({"hostNetwork": true, "containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}]}]}),
    ));
    assert_eq!(pod.expect("valid")["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
}

/// A spec of one container with these fields.
fn container(extra: Value) -> Value {
    let mut container = json!({"name": "a", "image": "x"});
    for (key, value) in extra.as_object().cloned().unwrap_or_default() {
        container[key] = value;
    }
    json!({"containers": [container]})
}

#[track_caller]
fn check_refused(spec: &Value, expect: &str) {
    let status = created(pod_with(spec.clone())).expect_err(expect);
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"), "{spec}");
    let start = "Pod \"web\" is invalid: ";
    assert!(status.message.starts_with(start) && status.message.contains(expect), "{spec}: {}", status.message);
    let causes = &status.details.as_ref().expect("details").causes;
    assert!(causes.iter().any(|cause| expect.starts_with(&cause.field)), "{spec}: {causes:?}");
}

#[test]
fn mistakes_are_named_as_upstream_names_them() {
    for (spec, expect) in [
        (json!({"containers": []}), "spec.containers: Required value"),
        (json!({"containers": [{"image": "x"}]}), "spec.containers[0].name: Required value"),
        (json!({"containers": [{"name": "a"}]}), "spec.containers[0].image: Required value"),
        (
            json!({"containers": [{"name": "A", "image": "x"}]}),
            "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of",
        ),
        (
            json!({"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": "y"}]}),
            "spec.containers[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"initContainers": [{"name": "a", "image": "x"}]}),
            "spec.initContainers[0].name: Duplicate value: \"a\"",
        ),
        (
            json!({"restartPolicy": "Sometimes"}),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
        (
            container(json!({"imagePullPolicy": "Often"})),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (
            container(json!({"ports": [{"containerPort": 70000}]})),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            container(json!({"ports": [{"containerPort": 1, "hostPort": 5}, {"containerPort": 2, "hostPort": 5}]})),
            "spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//5\"",
        ),
        (
            container(json!({"volumeMounts": [{"name": "v", "mountPath": "/x"}]})),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (container(json!({"env": [{"name": "A=B"}]})), "spec.containers[0].env[0].name: Invalid value: \"A=B\""),
        (
            container(json!({"env": [{"name": "A", "valueFrom": {}}]})),
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`",
        ),
    ] {
        check_refused(&spec, expect);
    }
}

#[test]
fn mistakes_beyond_names_and_ports() {
    for (spec, expect) in [
        (
            container(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            container(json!({"resources": {"requests": {"cpus": "2"}}})),
            "spec.containers[0].resources.requests[cpus]: Invalid value: \"cpus\": must be a standard resource type or fully qualified",
        ),
        (
            container(json!({"livenessProbe": {"periodSeconds": 1}})),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            container(json!({"livenessProbe": {"exec": {"command": ["x"]}, "successThreshold": 2}})),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            json!({"initContainers": [{"name": "i", "image": "x", "readinessProbe": {"exec": {"command": ["x"]}}}]}),
            "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ),
        (
            json!({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]}),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (json!({"volumes": [{"name": "v", "secret": {}}]}), "spec.volumes[0].secret.secretName: Required value"),
        (
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/a/../b"}}]}),
            "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
        ),
        (
            json!({"activeDeadlineSeconds": 0}),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ),
        (
            json!({"dnsPolicy": "None"}),
            "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
        ),
        (
            json!({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}),
            "spec.tolerations[0].operator: Invalid value: \"b\": value must be empty when `operator` is 'Exists'",
        ),
        (
            json!({"ephemeralContainers": [{"name": "e", "image": "x"}]}),
            "spec.ephemeralContainers: Forbidden: cannot be set on create",
        ),
        (
            json!({"schedulingGates": [{"name": "g"}], "nodeName": "n"}),
            "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
        ),
        (
            json!({"schedulingGroup": {"podGroupName": "A_b"}}),
            "spec.schedulingGroup.podGroupName: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain must consist of",
        ),
        (
            json!({"schedulingGroup": {}}),
            "spec.schedulingGroup.podGroupName: Invalid value: null: must specify one of: `podGroupName`",
        ),
        (
            json!({"hostnameOverride": "Not-RFC1123"}),
            "spec.hostnameOverride: Invalid value: \"Not-RFC1123\": a lowercase RFC 1123 subdomain must consist of",
        ),
        (json!({"hostnameOverride": "n".repeat(65)}), "spec.hostnameOverride: Too long: may not be more than 64 bytes"),
        (
            json!({"hostnameOverride": "web", "setHostnameAsFQDN": true}),
            "spec.hostnameOverride: Forbidden: may not be specified when setHostnameAsFQDN is true",
        ),
        (
            json!({"hostnameOverride": "web", "hostNetwork": true}),
            "spec.hostnameOverride: Forbidden: may not be specified when hostNetwork is true",
        ),
        (
            json!({"resourceClaims": [{"name": "x"}]}),
            "spec.resourceClaims: Forbidden: dynamic resource allocation is not supported",
        ),
        (
            json!({"securityContext": {"runAsUser": -1}}),
            "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ),
    ] {
        check_refused(&spec, expect);
    }
}

/// Prepares and validates an update of `part`; answers the object or the status' message.
fn updated(part: Part, old: &Value, change: impl FnOnce(&mut Value)) -> Result<Value, String> {
    let mut new = old.clone();
    change(&mut new);
    let mut new = decoded(new);
    lifecycle::prepare_update(pods(), part, &mut new, old).map_err(|s| s.message)?;
    lifecycle::validate_update(pods(), part, &new, old).map_err(|s| s.message)?;
    Ok(new)
}

#[test]
fn updates_change_little() {
    let old =
        created(pod_with(json!({"tolerations": [{"key": "a", "operator": "Exists"}], "activeDeadlineSeconds": 9})))
            .expect("valid");
    type Change = fn(&mut Value);
    let allowed: [(&str, Change); 4] = [
        ("image", |pod| pod["spec"]["containers"][0]["image"] = json!("other")),
        ("deadline", |pod| pod["spec"]["activeDeadlineSeconds"] = json!(5)),
        ("toleration", |pod| {
            pod["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}])
        }),
        ("labels", |pod| pod["metadata"]["labels"] = json!({"x": "y"})),
    ];
    for (what, change) in allowed {
        let new = updated(Part::Main, &old, change).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(new["metadata"]["generation"], if what == "labels" { 1 } else { 2 }, "{what}");
        assert_eq!(new["status"], old["status"], "{what}");
    }
    let refused: [(&str, Change); 6] = [
        (
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`",
            |pod| pod["spec"]["nodeName"] = json!("n"),
        ),
        ("+containers", |pod| pod["spec"]["containers"][0]["args"] = json!(["x"])),
        ("spec.containers: Forbidden: pod updates may not add or remove containers", |pod| {
            pod["spec"]["containers"] = json!([{"name": "a", "image": "x"}, {"name": "b", "image": "x"}])
        }),
        ("spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds", |pod| {
            pod["spec"]["tolerations"] = json!([])
        }),
        ("spec.activeDeadlineSeconds: Invalid value: 99: must be less than or equal to previous value", |pod| {
            pod["spec"]["activeDeadlineSeconds"] = json!(99)
        }),
        ("metadata.uid: Invalid value: \"other\": field is immutable", |pod| pod["metadata"]["uid"] = json!("other")),
    ];
    for (expect, change) in refused {
        let message = updated(Part::Main, &old, change).expect_err(expect);
        assert!(message.contains(expect), "{message}");
    }
}

#[test]
fn each_subresource_changes_its_part_only() {
    let old = created(pod_with(
        json!({"containers": [{"name": "a", "image": "x", "resources": {"requests": {"cpu": "1"}}}]}),
    ))
    .expect("valid");
    let status = updated(Part::Status, &old, |pod| {
        pod["status"] = json!({"phase": "Running"});
        pod["spec"]["containers"][0]["image"] = json!("other");
        pod["metadata"]["ownerReferences"] = json!([{"uid": "x"}]);
    })
    .expect("valid");
    assert_eq!(status["status"], json!({"phase": "Running", "qosClass": "Burstable"}));
    assert_eq!((&status["spec"], &status["metadata"]), (&old["spec"], &old["metadata"]));

    let ephemeral = updated(Part::EphemeralContainers, &old, |pod| {
        pod["spec"]["ephemeralContainers"] = json!([{"name": "e", "image": "y", "targetContainerName": "a"}]);
        pod["spec"]["nodeName"] = json!("n");
    })
    .expect("valid");
    assert_eq!((ephemeral["metadata"]["generation"].clone(), ephemeral["spec"].get("nodeName")), (json!(2), None));
    assert_eq!(ephemeral["spec"]["ephemeralContainers"][0]["name"], "e");
    let removed = updated(Part::EphemeralContainers, &ephemeral, |pod| {
        pod["spec"]["ephemeralContainers"] = json!([]);
    });
    assert!(removed.expect_err("removal").contains("existing ephemeral containers \"e\" may not be removed"));

    let resized = updated(Part::Resize, &old, |pod| {
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("2");
        pod["spec"]["containers"][0]["image"] = json!("other");
    })
    .expect("valid");
    assert_eq!(resized["spec"]["containers"][0]["resources"]["requests"]["cpu"], "2");
    assert_eq!(
        (&resized["spec"]["containers"][0]["image"], &resized["metadata"]["generation"]),
        (&json!("x"), &json!(2))
    );
    let other_class = updated(Part::Resize, &old, |pod| pod["spec"]["containers"][0]["resources"] = json!({}));
    assert!(other_class.expect_err("class").contains("Pod QOS Class may not change as a result of resizing"));
}

#[test]
fn a_pod_as_a_whole_is_resized() {
    let whole = json!({"requests": {"cpu": "1", "memory": "1Mi"}, "limits": {"cpu": "2"}});
    let old = created(pod_with(json!({"resources": whole}))).expect("valid");
    let resized = updated(Part::Resize, &old, |pod| {
        pod["spec"]["resources"] =
            json!({"requests": {"cpu": "2", "memory": "1Mi"}, "limits": {"cpu": "3", "memory": "2Mi"}});
    })
    .expect("valid");
    assert_eq!(resized["spec"]["resources"]["limits"], json!({"cpu": "3", "memory": "2Mi"}));
    assert_eq!(resized["metadata"]["generation"], 2);
    for (resources, message) in [
        (json!(null), "pod-level resources cannot be removed"),
        (json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}), "pod-level resource requests cannot be removed"),
        (json!({"requests": {"cpu": "1", "memory": "1Mi"}}), "pod-level resource limits cannot be removed"),
        (
            json!({"requests": {"cpu": "1", "memory": "1Mi", "hugepages-2Mi": "2Mi"},
                "limits": {"cpu": "2", "hugepages-2Mi": "2Mi"}}),
            "only cpu and memory resources are mutable at pod-level",
        ),
    ] {
        let refused = updated(Part::Resize, &old, |pod| pod["spec"]["resources"] = resources.clone());
        let refused = refused.expect_err(message);
        assert!(refused.contains(message), "{refused}");
    }
    let other_way = updated(Part::Main, &old, |pod| pod["spec"]["resources"]["limits"]["cpu"] = json!("3"));
    assert!(other_way.is_err(), "only by the subresource");
}

#[test]
fn an_ended_container_cannot_run_again() {
    let mut old = created(pod_with(json!({"restartPolicy": "Never"}))).expect("valid");
    old["status"]["containerStatuses"] = json!([{"name": "a", "state": {"terminated": {"exitCode": 0, "containerID": "x"}}, "image": "x", "imageID": "y", "ready": false, "restartCount": 0}]);
    let message = updated(Part::Status, &old, |pod| {
        pod["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
    });
    assert!(
        message
            .expect_err("transition")
            .contains("status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state")
    );
}

#[test]
fn grace_of_a_deletion() {
    let running =
        json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}});
    let done = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Failed"}});
    let pending = json!({"spec": {"terminationGracePeriodSeconds": 30}});
    for (pod, requested, expect) in [
        (&running, None, 30),
        (&running, Some(5), 5),
        (&running, Some(-3), 1),
        (&running, Some(0), 0),
        (&done, None, 0),
        (&pending, Some(9), 0),
    ] {
        assert_eq!(Pod.deletion_grace_seconds(pod, requested), Some(expect), "{pod} {requested:?}");
    }
}
