//! Every check, at the versions where it changes.

use serde_json::{Value, json};

use super::*;

fn check(level: Level, version: &str, pod: &Value) -> String {
    let standard = Standard { level, version: Version::parse(version).expect("a version") };
    details(&evaluate(standard, Pod { metadata: &pod["metadata"], spec: &pod["spec"] }))
}

fn pod(spec: &Value) -> Value {
    let mut pod = json!({ "metadata": {}, "spec": { "containers": [{ "name": "a" }] } });
    for (key, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn container(context: &Value) -> Value {
    pod(&json!({ "containers": [{ "name": "a", "securityContext": context }] }))
}

/// A Pod that is restricted in every version.
fn restricted_pod() -> Value {
    json!({ "metadata": {}, "spec": {
        "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{ "name": "a", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] },
        } }],
        "volumes": [{ "name": "v", "emptyDir": {} }, { "name": "p", "projected": {} }],
    } })
}

#[test]
fn a_plain_pod_is_baseline_and_not_restricted() {
    let plain = pod(&json!({}));
    assert_eq!(check(Level::Privileged, "latest", &plain), "");
    assert_eq!(check(Level::Baseline, "latest", &plain), "");
    assert_eq!(
        check(Level::Restricted, "latest", &plain),
        r#"allowPrivilegeEscalation != false (container "a" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container "a" must set securityContext.capabilities.drop=["ALL"]), runAsNonRoot != true (pod or container "a" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container "a" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#
    );
    for version in ["v1.0", "v1.8", "v1.22", "v1.25", "v1.35", "v1.999", "latest"] {
        assert_eq!(check(Level::Restricted, version, &restricted_pod()), "", "{version}");
    }
}

#[test]
fn baseline_checks_name_what_is_wrong() {
    for (pod, text) in [
        (pod(&json!({ "hostNetwork": true, "hostIPC": true })), "host namespaces (hostNetwork=true, hostIPC=true)"),
        (
            pod(&json!({ "volumes": [{ "name": "x", "hostPath": { "path": "/" } }, { "name": "y", "hostPath": {} }] })),
            r#"hostPath volumes (volumes "x", "y")"#,
        ),
        (
            pod(
                &json!({ "containers": [{ "name": "a", "ports": [{ "hostPort": 80 }, { "hostPort": 443 }, { "containerPort": 1 }] }] }),
            ),
            r#"hostPort (container "a" uses hostPorts 443, 80)"#,
        ),
        (
            container(&json!({ "privileged": true })),
            r#"privileged (container "a" must not set securityContext.privileged=true)"#,
        ),
        (
            container(&json!({ "capabilities": { "add": ["NET_RAW", "CHOWN", "BPF"] } })),
            r#"non-default capabilities (container "a" must not include "BPF", "NET_RAW" in securityContext.capabilities.add)"#,
        ),
        (
            container(&json!({ "procMount": "Unmasked" })),
            r#"procMount (container "a" must not set securityContext.procMount to "Unmasked")"#,
        ),
        (
            container(&json!({ "seLinuxOptions": { "type": "spc_t", "user": "u", "role": "r" } })),
            r#"seLinuxOptions (container "a" set forbidden securityContext.seLinuxOptions: type "spc_t"; user may not be set; role may not be set)"#,
        ),
        (
            pod(
                &json!({ "securityContext": { "sysctls": [{ "name": "kernel.msgmax" }, { "name": "net.ipv4.tcp_rmem" }] } }),
            ),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            container(&json!({ "windowsOptions": { "hostProcess": true } })),
            r#"hostProcess (container "a" must not set securityContext.windowsOptions.hostProcess=true)"#,
        ),
        (
            pod(&json!({ "securityContext": { "appArmorProfile": { "type": "Unconfined" } } })),
            r#"forbidden AppArmor profile (pod must not set AppArmor profile type to "Unconfined")"#,
        ),
        (
            pod(&json!({ "securityContext": { "seccompProfile": { "type": "Unconfined" } } })),
            r#"seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined")"#,
        ),
        (
            pod(
                &json!({ "containers": [{ "name": "a", "livenessProbe": { "httpGet": { "host": "169.254.169.254" } } }] }),
            ),
            r#"probe or lifecycle host (container "a" uses probe or lifecycle host "169.254.169.254")"#,
        ),
    ] {
        assert_eq!(check(Level::Baseline, "latest", &pod), text);
        assert!(!check(Level::Restricted, "latest", &pod).is_empty());
    }
}

#[test]
fn all_kinds_of_containers_are_looked_at() {
    let bad = json!([{ "name": "x", "securityContext": { "privileged": true } }]);
    for list in ["initContainers", "ephemeralContainers"] {
        let mut spec = json!({});
        spec[list] = bad.clone();
        assert!(check(Level::Baseline, "latest", &pod(&spec)).contains("container \"x\""), "{list}");
    }
}

#[test]
fn annotations_count_where_fields_were_not_there_yet() {
    let mut old = pod(&json!({}));
    old["metadata"]["annotations"] = json!({
        "seccomp.security.alpha.kubernetes.io/pod": "unconfined",
        "container.apparmor.security.beta.kubernetes.io/a": "unconfined",
    });
    assert_eq!(
        check(Level::Baseline, "v1.18", &old),
        "forbidden AppArmor profile (annotation must not set AppArmor profile type to \
         \"container.apparmor.security.beta.kubernetes.io/a=\"unconfined\"\"), \
         seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")"
    );
    assert!(!check(Level::Baseline, "v1.19", &old).contains("seccomp"));
}

#[test]
fn versions_decide_which_checks_there_are() {
    let reserved = pod(&json!({ "securityContext": { "sysctls": [{ "name": "net.ipv4.ip_local_reserved_ports" }] } }));
    assert_eq!(check(Level::Baseline, "v1.26", &reserved), "forbidden sysctls (net.ipv4.ip_local_reserved_ports)");
    assert_eq!(check(Level::Baseline, "v1.27", &reserved), "");
    let engine = container(&json!({ "seLinuxOptions": { "type": "container_engine_t" } }));
    assert!(!check(Level::Baseline, "v1.30", &engine).is_empty());
    assert_eq!(check(Level::Baseline, "v1.31", &engine), "");
    let mut windows = pod(&json!({ "os": { "name": "windows" }, "securityContext": { "runAsNonRoot": true } }));
    assert!(check(Level::Restricted, "v1.24", &windows).contains("allowPrivilegeEscalation"));
    assert_eq!(check(Level::Restricted, "v1.25", &windows), "");
    windows["spec"]["securityContext"]["runAsUser"] = 0.into();
    assert_eq!(check(Level::Restricted, "v1.25", &windows), "runAsUser=0 (pod must not set runAsUser=0)");
    let unmasked = pod(&json!({
        "hostUsers": false, "containers": [{ "name": "a", "securityContext": { "procMount": "Unmasked" } }],
    }));
    assert!(check(Level::Baseline, "v1.34", &unmasked).contains("procMount"));
    assert_eq!(check(Level::Baseline, "v1.35", &unmasked), "");
    let restricted = check(Level::Restricted, "v1.35", &unmasked);
    assert_eq!(restricted.matches("procMount (").count(), 1);
    assert!(!restricted.contains("runAsNonRoot"), "root of a user namespace is nobody outside");
}

#[test]
fn restricted_checks_take_the_place_of_weaker_ones() {
    let mut bad = restricted_pod();
    bad["spec"]["volumes"] = json!([{ "name": "h", "hostPath": {} }, { "name": "n", "nfs": {} }]);
    assert_eq!(
        check(Level::Restricted, "latest", &bad),
        r#"restricted volume types (volumes "h", "n" use restricted volume types "hostPath", "nfs")"#
    );
    bad = restricted_pod();
    bad["spec"]["containers"][0]["securityContext"]["capabilities"]["add"] = json!(["CHOWN"]);
    assert_eq!(
        check(Level::Restricted, "latest", &bad),
        r#"unrestricted capabilities (container "a" must not include "CHOWN" in securityContext.capabilities.add)"#
    );
    assert_eq!(check(Level::Restricted, "v1.21", &bad), "", "the baseline check lets it pass");
}
