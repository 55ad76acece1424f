//! What a node's credentials can do, and what they cannot, as an attacker who has them would try.

use carob_apiserver::UserInfo;
use serde_json::{Value, json};

use super::support::{Rig, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn rig() -> (Rig, Rig, Value) {
    let rig = Rig::new().await;
    let node = rig.as_user(UserInfo::node("n1"));
    let object = node.post("/api/v1/nodes", &json!({ "metadata": { "name": "n1" } })).await.expect(201);
    (rig, node, object["metadata"]["uid"].clone())
}

fn mirror(uid: &Value) -> Value {
    let mut object = pod("m-n1");
    object["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "hash" });
    object["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": uid, "controller": true }]);
    object["spec"]["nodeName"] = json!("n1");
    object
}

#[tokio::test]
async fn a_mirror_pod_opens_no_secret() {
    let (rig, node, uid) = rig().await;
    let secret = json!({ "metadata": { "name": "s" }, "stringData": { "k": "v" } });
    rig.post("/api/v1/namespaces/default/secrets", &secret).await.expect(201);
    let env = json!([{ "name": "A", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }]);
    let changes: [(&[&str], Value); 5] = [
        (&["spec", "imagePullSecrets"], json!([{ "name": "s" }])),
        (&["spec", "volumes"], json!([{ "name": "v", "secret": { "secretName": "s" } }])),
        (&["spec", "volumes"], json!([{ "name": "v", "configMap": { "name": "s" } }])),
        (&["spec", "volumes"], json!([{ "name": "v", "projected": { "sources": [{ "secret": { "name": "s" } }] } }])),
        (&["spec", "containers"], json!([{ "name": "c", "image": "i", "env": env }])),
    ];
    for (path, value) in changes {
        let mut object = mirror(&uid);
        object[path[0]][path[1]] = value;
        let refused = node.post(PODS, &object).await;
        // Two admission plugins refuse it, the ServiceAccount's first where Secrets are named.
        let why = ["can not create pods that reference", "a mirror pod may not reference secrets"];
        let told = why.iter().any(|why| refused.message().contains(why));
        assert!(refused.code == 403 && told, "{path:?}: {}", refused.body);
    }
    let refused = node.post(PODS, &mirror(&json!("another"))).await;
    assert!(refused.message().contains("UID mismatch"), "{}", refused.body);
    node.get("/api/v1/namespaces/default/secrets/s").await.expect(403);
    node.post(PODS, &mirror(&uid)).await.expect(201);
    node.delete(&format!("{PODS}/m-n1")).await.expect(200);
}

#[tokio::test]
async fn a_node_cannot_raise_itself() {
    let (rig, node, _) = rig().await;
    let patch = |body: Value| {
        let node = &node;
        async move { node.patch("/api/v1/nodes/n1", "merge-patch+json", &body).await }
    };
    patch(json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": "z", "own": "x" } } })).await.expect(200);
    for (body, why) in [
        (json!({ "metadata": { "labels": { "node-role.kubernetes.io/control-plane": "" } } }), "modify labels"),
        (json!({ "metadata": { "labels": { "node-restriction.kubernetes.io/x": "" } } }), "modify labels"),
        (json!({ "spec": { "taints": null } }), "modify taints"),
        (
            json!({ "metadata": { "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "y" }] } }),
            "modify ownerReferences",
        ),
    ] {
        let answer = patch(body).await;
        assert!(answer.code == 403 && answer.message().contains(why), "{why}: {}", answer.body);
    }
    rig.post("/api/v1/nodes", &json!({ "metadata": { "name": "n2" } })).await.expect(201);
    node.patch("/api/v1/nodes/n2/status", "merge-patch+json", &json!({ "status": {} })).await.expect(403);
    node.delete("/api/v1/nodes/n1").await.expect(403);
}

#[tokio::test]
async fn a_node_writes_about_its_own_pods_only() {
    let (rig, node, _) = rig().await;
    for (name, on) in [("mine", "n1"), ("other", "n2")] {
        let mut object = pod(name);
        object["spec"]["nodeName"] = json!(on);
        rig.post(PODS, &object).await.expect(201);
    }
    let status = json!({ "status": { "phase": "Running" } });
    node.patch(&format!("{PODS}/mine/status"), "merge-patch+json", &status).await.expect(200);
    let labels = json!({ "metadata": { "labels": { "app": "web" } } });
    node.patch(&format!("{PODS}/mine/status"), "merge-patch+json", &labels).await.expect(403);
    node.patch(&format!("{PODS}/other/status"), "merge-patch+json", &status).await.expect(403);
    node.delete(&format!("{PODS}/other")).await.expect(403);
    node.post(&format!("{PODS}/other/eviction"), &json!({ "metadata": { "name": "other" } })).await.expect(403);
    node.get(&format!("{PODS}/other")).await.expect(403);
    node.post(&format!("{PODS}/mine/eviction"), &json!({ "metadata": { "name": "mine" } })).await.expect(201);
}

#[tokio::test]
async fn a_proxy_leads_to_pods_and_nothing_else() {
    let rig = Rig::new().await;
    rig.post(PODS, &pod("p")).await.expect(201);
    for ip in ["127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "224.0.0.1"] {
        let status = json!({ "status": { "podIP": ip, "podIPs": [{ "ip": ip }] } });
        rig.patch(&format!("{PODS}/p/status"), "merge-patch+json", &status).await.expect(200);
        let answer = rig.get(&format!("{PODS}/p:80/proxy/")).await;
        assert_eq!((answer.code, answer.message()), (400, "address not allowed"), "{ip}");
    }
    let any = rig.send("OPTIONS", &format!("{PODS}/p:80/proxy/"), &[], "").await;
    assert_eq!((any.code, any.message()), (400, "address not allowed"), "any method is passed on");
}

#[tokio::test]
async fn a_running_pod_is_resized_as_far_as_its_node_says_it_can() {
    let (rig, node, _) = rig().await;
    let mut object = pod("p");
    let cpu = |amount: &str| json!({ "requests": { "cpu": amount } });
    object["spec"]["nodeName"] = json!("n1");
    object["spec"]["resources"] = cpu("2");
    object["spec"]["initContainers"] = json!([
        { "name": "first", "image": "i", "resources": cpu("1") },
        { "name": "side", "image": "i", "resources": cpu("1"), "restartPolicy": "Always" },
    ]);
    rig.post(PODS, &object).await.expect(201);
    let resize = |change: Value| {
        let rig = &rig;
        async move { rig.patch(&format!("{PODS}/p/resize"), "strategic-merge-patch+json", &json!({ "spec": change })).await }
    };
    let init = |name: &str, amount: &str| json!({ "initContainers": [{ "name": name, "resources": cpu(amount) }] });
    let both = |amount: &str| json!({ "resources": cpu("3"), "initContainers": [{ "name": "first", "resources": cpu(amount) }] });
    let refused = |features: &str| {
        format!(
            "pods \"p\" is forbidden: pod update requires features {features} which are not available on node \"n1\""
        )
    };
    let (pod_level, init_level) =
        ("InPlacePodLevelResourcesVerticalScaling", "InPlacePodVerticalScalingInitContainers");
    resize(init("side", "1500m")).await.expect(200);
    for (change, features) in [
        (init("first", "1500m"), init_level.to_owned()),
        (json!({ "resources": cpu("3") }), pod_level.to_owned()),
        (both("1500m"), format!("{pod_level}, {init_level}")),
    ] {
        let answer = resize(change).await;
        assert_eq!((answer.code, answer.message()), (403, refused(&features).as_str()));
    }
    resize(init("first", "1000m")).await.expect(200);
    let declare = |features: Value| {
        let node = &node;
        let body = json!({ "status": { "declaredFeatures": features } });
        async move { node.patch("/api/v1/nodes/n1/status", "merge-patch+json", &body).await.expect(200) }
    };
    declare(json!([init_level])).await;
    resize(init("first", "1500m")).await.expect(200);
    let answer = resize(both("1600m")).await;
    assert_eq!((answer.code, answer.message()), (403, refused(pod_level).as_str()));
    declare(json!([pod_level, init_level])).await;
    resize(both("1600m")).await.expect(200);
}
