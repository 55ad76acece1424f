//! Pod Security Standards, chosen by the labels of namespaces.

use std::sync::Arc;

use carob_apiserver::UserInfo;
use carob_apiserver::admission::PodSecurityConfig;
use serde_json::{Value, json};

use crate::support::{Rig, pod};

const PODS: &str = "/api/v1/namespaces/team/pods";

async fn namespace(rig: &Rig, labels: &Value) {
    let object = json!({ "metadata": { "name": "team", "labels": labelled(labels) } });
    rig.post("/api/v1/namespaces", &object).await.expect(201);
    let account = json!({ "metadata": { "name": "default" } });
    rig.post("/api/v1/namespaces/team/serviceaccounts", &account).await.expect(201);
}

fn labelled(labels: &Value) -> Value {
    let all = labels.as_object().into_iter().flatten();
    all.map(|(key, value)| (format!("pod-security.kubernetes.io/{key}"), value.clone())).collect()
}

fn privileged(name: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true });
    pod
}

#[tokio::test]
async fn what_is_enforced_is_refused_and_what_is_warned_of_passes() {
    let rig = Rig::new().await;
    namespace(&rig, &json!({ "enforce": "baseline", "warn": "restricted", "warn-version": "v1.24" })).await;
    let refused = rig.post(PODS, &privileged("bad")).await;
    assert_eq!(
        refused.message(),
        "pods \"bad\" is forbidden: violates PodSecurity \"baseline:latest\": \
         privileged (container \"c\" must not set securityContext.privileged=true)"
    );
    assert!(refused.warnings().is_empty(), "who is refused knows already");
    refused.expect(403);
    let plain = rig.post(PODS, &pod("plain")).await;
    let warnings = plain.warnings();
    assert!(
        warnings[0].contains("would violate PodSecurity \\\"restricted:v1.24\\\": allowPrivilegeEscalation"),
        "{warnings:?}"
    );
    plain.expect(201);
    // A template that makes such Pods is stored with a warning.
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" },
        "spec": {
            "selector": { "matchLabels": { "a": "b" } },
            "template": { "metadata": { "labels": { "a": "b" } }, "spec": privileged("x")["spec"].clone() },
        },
    });
    let stored = rig.post("/apis/apps/v1/namespaces/team/deployments", &deployment).await;
    assert!(stored.warnings()[0].contains("privileged (container"), "{:?}", stored.warnings());
    stored.expect(201);
    // Labels and a status change nothing that matters; an ephemeral container does.
    let path = format!("{PODS}/plain");
    rig.patch(&path, "merge-patch+json", &json!({ "metadata": { "labels": { "x": "y" } } })).await.expect(200);
    let ephemeral = json!({ "spec": { "ephemeralContainers": [
        { "name": "e", "image": "busybox", "securityContext": { "privileged": true } },
    ] } });
    let path = format!("{PODS}/plain/ephemeralcontainers");
    rig.patch(&path, "strategic-merge-patch+json", &ephemeral).await.expect(403);
}

#[tokio::test]
async fn labels_that_cannot_be_read_are_refused_and_a_stricter_level_tells_of_pods_that_are_there() {
    let rig = Rig::new().await;
    let bad = json!({ "metadata": { "name": "team", "labels": labelled(&json!({ "enforce": "strict" })) } });
    let refused = rig.post("/api/v1/namespaces", &bad).await;
    assert!(refused.message().contains("must be one of privileged, baseline, restricted"), "{}", refused.message());
    refused.expect(422);
    namespace(&rig, &json!({})).await;
    for name in ["b", "a", "fine"] {
        let object = if name == "fine" { pod(name) } else { privileged(name) };
        rig.post(PODS, &object).await.expect(201);
    }
    let labels = json!({ "metadata": { "labels": labelled(&json!({ "enforce": "baseline" })) } });
    let changed = rig.patch("/api/v1/namespaces/team", "merge-patch+json", &labels).await;
    assert_eq!(
        changed.warnings(),
        [
            r#"299 - "existing pods in namespace \"team\" violate the new PodSecurity enforce level \"baseline:latest\"""#,
            r#"299 - "a (and 1 other pod): privileged""#,
        ]
    );
    changed.expect(200);
}

#[tokio::test]
async fn a_configuration_sets_defaults_and_exempts() {
    let config = PodSecurityConfig::parse(json!({
        "kind": "PodSecurityConfiguration", "apiVersion": "pod-security.admission.config.k8s.io/v1",
        "defaults": { "enforce": "baseline" },
        "exemptions": { "namespaces": ["default"], "usernames": ["operator"] },
    }));
    let config = config.expect("sound");
    let rig = Rig::with(|made| made.pod_security = config).await;
    namespace(&rig, &json!({})).await;
    rig.post(PODS, &privileged("a")).await.expect(403);
    rig.post("/api/v1/namespaces/default/pods", &privileged("a")).await.expect(201);
    let operator = UserInfo::new("operator", ["system:masters".to_owned()]);
    rig.as_user(Arc::new(operator)).post(PODS, &privileged("a")).await.expect(201);
}

#[tokio::test]
async fn an_ingress_gets_the_default_class_and_a_pod_its_nodes_zone() {
    let rig = Rig::new().await;
    let class = json!({
        "metadata": { "name": "main", "annotations": { "ingressclass.kubernetes.io/is-default-class": "true" } },
        "spec": { "controller": "example.com/c" },
    });
    rig.post("/apis/networking.k8s.io/v1/ingressclasses", &class).await.expect(201);
    let backend = json!({ "service": { "name": "s", "port": { "number": 80 } } });
    let ingress = json!({ "metadata": { "name": "i" }, "spec": { "defaultBackend": backend } });
    let made = rig.post("/apis/networking.k8s.io/v1/namespaces/default/ingresses", &ingress).await.expect(201);
    assert_eq!(made["spec"]["ingressClassName"], "main");
    let node = json!({ "metadata": { "name": "n", "labels": { "topology.kubernetes.io/zone": "z1", "disk": "ssd" } } });
    rig.post("/api/v1/nodes", &node).await.expect(201);
    rig.post("/api/v1/namespaces/default/pods", &pod("p")).await.expect(201);
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "p" }, "target": { "kind": "Node", "name": "n" },
    });
    rig.post("/api/v1/namespaces/default/pods/p/binding", &binding).await.expect(201);
    let bound = rig.get("/api/v1/namespaces/default/pods/p").await.expect(200);
    assert_eq!(bound["metadata"]["labels"], json!({ "topology.kubernetes.io/zone": "z1" }));
}
