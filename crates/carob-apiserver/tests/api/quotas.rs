//! What LimitRanges and ResourceQuotas let in.

use crate::support::{Rig, config_map, pod};
use serde_json::{Value, json};

const CORE: &str = "/api/v1/namespaces/default";

/// A quota whose status says what is used, as the controller would write it.
async fn with_quota(rig: &Rig, spec: Value, used: Value) {
    with_named_quota(rig, "q", spec, used).await;
}

async fn with_named_quota(rig: &Rig, name: &str, spec: Value, used: Value) {
    let quotas = format!("{CORE}/resourcequotas");
    let hard = spec["hard"].clone();
    rig.post(&quotas, &json!({ "metadata": { "name": name }, "spec": spec })).await.expect(201);
    let status = json!({ "status": { "hard": hard, "used": used } });
    rig.patch(&format!("{quotas}/{name}/status"), "merge-patch+json", &status).await.expect(200);
}

async fn used(rig: &Rig) -> Value {
    rig.get(&format!("{CORE}/resourcequotas/q")).await.expect(200)["status"]["used"].clone()
}

#[tokio::test]
async fn a_quota_counts_what_it_lets_in_and_refuses_the_rest() {
    let rig = Rig::new().await;
    with_quota(&rig, json!({ "hard": { "configmaps": "2" } }), json!({ "configmaps": "0" })).await;
    let maps = format!("{CORE}/configmaps");
    rig.post(&format!("{maps}?dryRun=All"), &config_map("a")).await.expect(201);
    assert_eq!(used(&rig).await, json!({ "configmaps": "0" }));
    let (first, second) = (config_map("a"), config_map("b"));
    let (first, second) = tokio::join!(rig.post(&maps, &first), rig.post(&maps, &second));
    assert_eq!((first.code, second.code), (201, 201));
    assert_eq!(used(&rig).await, json!({ "configmaps": "2" }));
    let refused = rig.post(&maps, &config_map("c")).await;
    assert_eq!(
        refused.message(),
        "configmaps \"c\" is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=2, limited: configmaps=2"
    );
    assert_eq!(refused.expect(403)["reason"], "Forbidden");
    rig.post("/api/v1/namespaces/kube-public/configmaps", &config_map("c")).await.expect(201);
}

#[tokio::test]
async fn what_one_quota_refuses_is_counted_on_no_other() {
    let rig = Rig::new().await;
    with_quota(&rig, json!({ "hard": { "configmaps": "2" } }), json!({ "configmaps": "0" })).await;
    with_named_quota(&rig, "r", json!({ "hard": { "configmaps": "0" } }), json!({ "configmaps": "0" })).await;
    let refused = rig.post(&format!("{CORE}/configmaps"), &config_map("a")).await;
    assert_eq!(
        refused.message(),
        "configmaps \"a\" is forbidden: exceeded quota: r, requested: configmaps=1, used: configmaps=0, limited: configmaps=0"
    );
    assert_eq!(used(&rig).await, json!({ "configmaps": "0" }));
}

#[tokio::test]
async fn a_service_that_grows_takes_what_it_adds() {
    let rig = Rig::new().await;
    let hard = json!({ "services": "1", "services.nodeports": "1" });
    with_quota(&rig, json!({ "hard": hard }), json!({ "services": "0", "services.nodeports": "0" })).await;
    let services = format!("{CORE}/services");
    let service = json!({ "metadata": { "name": "s" }, "spec": { "ports": [{ "port": 80 }] } });
    rig.post(&services, &service).await.expect(201);
    let ports = |count: u16| {
        let ports: Vec<Value> = (0..count).map(|n| json!({ "port": 80 + n, "name": format!("p{n}") })).collect();
        json!({ "spec": { "type": "NodePort", "ports": ports } })
    };
    let path = format!("{services}/s");
    let refused = rig.patch(&path, "merge-patch+json", &ports(2)).await;
    assert_eq!(
        refused.message(),
        "services \"s\" is forbidden: exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=0, limited: services.nodeports=1"
    );
    rig.patch(&path, "merge-patch+json", &ports(1)).await.expect(200);
    assert_eq!(used(&rig).await, json!({ "services": "1", "services.nodeports": "1" }));
}

#[tokio::test]
async fn a_quota_with_scopes_is_about_such_pods_alone() {
    let rig = Rig::new().await;
    let spec = json!({ "hard": { "pods": "0" }, "scopes": ["Terminating"] });
    with_quota(&rig, spec, json!({ "pods": "0" })).await;
    let pods = format!("{CORE}/pods");
    rig.post(&pods, &pod("a")).await.expect(201);
    let mut bounded = pod("b");
    bounded["spec"]["activeDeadlineSeconds"] = json!(5);
    let refused = rig.post(&pods, &bounded).await;
    assert_eq!(
        refused.message(),
        "pods \"b\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0"
    );
}

#[tokio::test]
async fn a_limit_range_gives_pods_what_they_lack_and_refuses_what_is_too_much() {
    let rig = Rig::new().await;
    let limit = json!({ "type": "Container", "max": { "cpu": "500m" }, "defaultRequest": { "cpu": "100m" } });
    let range = json!({ "metadata": { "name": "r" }, "spec": { "limits": [limit] } });
    rig.post(&format!("{CORE}/limitranges"), &range).await.expect(201);
    let pods = format!("{CORE}/pods");
    let made = rig.post(&pods, &pod("a")).await.expect(201);
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({ "requests": { "cpu": "100m" }, "limits": { "cpu": "500m" } })
    );
    assert_eq!(made["status"]["qosClass"], "Burstable");
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    let mut greedy = pod("b");
    greedy["spec"]["containers"][0]["resources"] = json!({ "limits": { "cpu": "2" } });
    let refused = rig.post(&pods, &greedy).await;
    assert_eq!(refused.message(), "pods \"b\" is forbidden: maximum cpu usage per Container is 500m, but limit is 2");
}

#[tokio::test]
async fn a_pod_that_comes_under_another_quota_is_counted_on_it() {
    let rig = Rig::new().await;
    let spec = json!({ "hard": { "pods": "1" }, "scopes": ["Terminating"] });
    with_quota(&rig, spec, json!({ "pods": "0" })).await;
    let pods = format!("{CORE}/pods");
    for name in ["a", "b"] {
        rig.post(&pods, &pod(name)).await.expect(201);
    }
    assert_eq!(used(&rig).await, json!({ "pods": "0" }));
    let deadline = json!({ "spec": { "activeDeadlineSeconds": 3600 } });
    rig.patch(&format!("{pods}/a"), "merge-patch+json", &deadline).await.expect(200);
    assert_eq!(used(&rig).await, json!({ "pods": "1" }));
    let refused = rig.patch(&format!("{pods}/b"), "merge-patch+json", &deadline).await;
    assert!(
        refused.message().contains("exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1"),
        "{}",
        refused.body
    );
    // Another deadline is no other quota.
    let sooner = json!({ "spec": { "activeDeadlineSeconds": 60 } });
    rig.patch(&format!("{pods}/a"), "merge-patch+json", &sooner).await.expect(200);
    assert_eq!(used(&rig).await, json!({ "pods": "1" }));
}

#[tokio::test]
async fn quotas_that_count_nothing_are_refused() {
    let rig = Rig::new().await;
    let quota = |spec: Value| json!({ "metadata": { "name": "wrong" }, "spec": spec });
    let quotas = format!("{CORE}/resourcequotas");
    for spec in [json!({ "hard": { "pod": "1" } }), json!({ "hard": { "services": "1" }, "scopes": ["BestEffort"] })] {
        assert_eq!(rig.post(&quotas, &quota(spec)).await.expect(422)["reason"], "Invalid");
    }
}
