//! Subresources and reviews: what is done to objects, or asked about users, beyond reading and writing.

use crate::support::{Rig, pod};
use carob_apiserver::UserInfo;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const ACCESS: &str = "/apis/authorization.k8s.io/v1";

fn binding(node: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "p" }, "target": { "kind": "Node", "name": node } })
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let rig = Rig::new().await;
    rig.post(PODS, &pod("p")).await.expect(201);
    let wrong = rig.post(&format!("{PODS}/p/binding"), &json!({ "target": { "kind": "Mars" } })).await;
    assert_eq!(wrong.code, 422, "{}", wrong.body);
    let done = rig.post(&format!("{PODS}/p/binding"), &binding("n1")).await.expect(201);
    assert_eq!((done["kind"].as_str(), done["status"].as_str()), (Some("Status"), Some("Success")));
    let bound = rig.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let conditions = bound["status"]["conditions"].as_array().expect("conditions");
    assert!(conditions.iter().any(|c| c["type"] == "PodScheduled" && c["status"] == "True"));
    let again = rig.post(&format!("{PODS}/p/binding"), &binding("n2")).await;
    assert!(again.message().contains("pod p is already assigned to node \"n1\""), "{}", again.message());
    assert_eq!(again.code, 409);
}

#[tokio::test]
async fn evictions_respect_the_budget() {
    const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let rig = Rig::new().await;
    let mut object = pod("p");
    object["metadata"]["labels"] = json!({ "app": "x" });
    rig.post(PODS, &object).await.expect(201);
    let running = json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] } });
    rig.patch(&format!("{PODS}/p/status"), "merge-patch+json", &running).await.expect(200);
    let budget = json!({ "metadata": { "name": "b" }, "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "x" } } } });
    rig.post(BUDGETS, &budget).await.expect(201);
    let status = |allowed: u32| {
        json!({ "status": {
            "observedGeneration": 1, "disruptionsAllowed": allowed, "desiredHealthy": 1, "currentHealthy": 1, "expectedPods": 1,
        } })
    };
    rig.patch(&format!("{BUDGETS}/b/status"), "merge-patch+json", &status(0)).await.expect(200);
    let evict = async || rig.post(&format!("{PODS}/p/eviction"), &json!({ "metadata": { "name": "p" } })).await;
    let refused = evict().await;
    assert_eq!(refused.message(), "Cannot evict pod as it would violate the pod's disruption budget.");
    assert_eq!(
        refused.body["details"]["causes"][0]["message"],
        "The disruption budget b needs 1 healthy pods and has 1 currently"
    );
    assert_eq!(refused.code, 429);
    rig.patch(&format!("{BUDGETS}/b/status"), "merge-patch+json", &status(1)).await.expect(200);
    evict().await.expect(201);
    rig.get(&format!("{PODS}/p")).await.expect(404);
    let budget = rig.get(&format!("{BUDGETS}/b")).await.expect(200);
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert!(budget["status"]["disruptedPods"]["p"].is_string());
}

#[tokio::test]
async fn a_scale_reads_and_writes_replicas() {
    const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
    let rig = Rig::new().await;
    let deployment = json!({
        "metadata": { "name": "d" },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": { "b": "2", "a": "1" } },
            "template": { "metadata": { "labels": { "a": "1", "b": "2" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } },
        },
    });
    rig.post(DEPLOYMENTS, &deployment).await.expect(201);
    let scale = rig.get(&format!("{DEPLOYMENTS}/d/scale")).await.expect(200);
    assert_eq!((scale["kind"].as_str(), scale["apiVersion"].as_str()), (Some("Scale"), Some("autoscaling/v1")));
    assert_eq!(scale["spec"]["replicas"], 2);
    assert_eq!(scale["status"]["selector"], "a=1,b=2");
    let mut wanted = scale.clone();
    wanted["spec"]["replicas"] = json!(5);
    let scaled = rig.put(&format!("{DEPLOYMENTS}/d/scale"), &wanted).await.expect(200);
    assert_eq!(scaled["spec"]["replicas"], 5);
    rig.put(&format!("{DEPLOYMENTS}/d/scale"), &wanted).await.expect(409);
    rig.patch(&format!("{DEPLOYMENTS}/d/scale"), "merge-patch+json", &json!({ "spec": { "replicas": 7 } }))
        .await
        .expect(200);
    let deployment = rig.get(&format!("{DEPLOYMENTS}/d")).await.expect(200);
    assert_eq!(
        (deployment["spec"]["replicas"].as_u64(), deployment["metadata"]["generation"].as_u64()),
        (Some(7), Some(3))
    );
    let negative =
        rig.patch(&format!("{DEPLOYMENTS}/d/scale"), "merge-patch+json", &json!({ "spec": { "replicas": -1 } })).await;
    assert!(
        negative.message().contains("spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        "{}",
        negative.message()
    );
}

#[tokio::test]
async fn a_token_is_bound_to_its_pod_and_may_only_discover() {
    let rig = Rig::new().await;
    rig.post(PODS, &pod("p")).await.expect(201);
    let request = |spec: Value| json!({ "spec": spec });
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let short = rig.post(path, &request(json!({ "expirationSeconds": 5 }))).await;
    assert!(short.message().contains("may not specify a duration less than 10 minutes"), "{}", short.message());
    let reference = json!({ "kind": "Pod", "apiVersion": "v1", "name": "p" });
    let granted =
        rig.post(path, &request(json!({ "expirationSeconds": 600, "boundObjectRef": reference }))).await.expect(201);
    let token = granted["status"]["token"].as_str().expect("a token").to_owned();
    assert!(granted["status"]["expirationTimestamp"].is_string());

    let review = |token: &str| json!({ "spec": { "token": token } });
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let found = rig.post(reviews, &review(&token)).await.expect(201);
    assert_eq!(found["status"]["authenticated"], true);
    assert_eq!(found["status"]["user"]["username"], "system:serviceaccount:default:default");
    let unknown = rig.post(reviews, &review("nonsense")).await.expect(201);
    assert_eq!(unknown["status"].get("authenticated"), None);

    rig.delete(&format!("{PODS}/p")).await.expect(200);
    let gone = rig.post(reviews, &review(&token)).await.expect(201);
    assert!(gone["status"]["error"].as_str().is_some_and(|error| error.contains("gone")), "{gone}");
}

#[tokio::test]
async fn users_may_ask_about_themselves() {
    let rig = Rig::new().await;
    let account = UserInfo::new(
        "system:serviceaccount:default:default",
        ["system:serviceaccounts".to_owned(), "system:serviceaccounts:default".to_owned()],
    );
    let account = rig.as_user(std::sync::Arc::new(account));
    let refused = account.get(PODS).await;
    assert_eq!(
        refused.message(),
        "pods is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(refused.code, 403);
    account.get("/api/v1").await.expect(200);
    account.get("/openapi/v3").await.expect(200);
    account.get("/metrics").await.expect(403);

    let ask = |verb: &str| json!({ "spec": { "resourceAttributes": { "verb": verb, "resource": "pods", "namespace": "default" } } });
    let path = format!("{ACCESS}/selfsubjectaccessreviews");
    assert_eq!(account.post(&path, &ask("list")).await.expect(201)["status"], json!({ "allowed": false }));
    assert_eq!(rig.post(&path, &ask("list")).await.expect(201)["status"], json!({ "allowed": true }));
    rig.post(&path, &json!({ "spec": {} })).await.expect(422);
    let me = account.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &json!({})).await.expect(201);
    assert_eq!(me["status"]["userInfo"]["username"], "system:serviceaccount:default:default");
    let rules = account
        .post(&format!("{ACCESS}/selfsubjectrulesreviews"), &json!({ "spec": { "namespace": "default" } }))
        .await;
    assert!(rules.expect(201)["status"]["nonResourceRules"].as_array().is_some_and(|rules| !rules.is_empty()));
    let other = json!({ "spec": { "user": "system:kube-scheduler", "resourceAttributes": { "verb": "create", "resource": "pods", "subresource": "binding", "namespace": "default" } } });
    assert_eq!(
        rig.post(&format!("{ACCESS}/subjectaccessreviews"), &other).await.expect(201)["status"]["allowed"],
        true
    );
    account.post(&format!("{ACCESS}/subjectaccessreviews"), &other).await.expect(403);
}

#[tokio::test]
async fn a_node_is_held_to_its_own_objects() {
    let rig = Rig::new().await;
    let node = rig.as_user(UserInfo::node("n1"));
    let secret = |name: &str| json!({ "metadata": { "name": name }, "stringData": { "k": "v" } });
    for name in ["used", "unused"] {
        rig.post("/api/v1/namespaces/default/secrets", &secret(name)).await.expect(201);
    }
    let mut object = pod("p");
    object["spec"]["nodeName"] = json!("n1");
    object["spec"]["volumes"] = json!([{ "name": "s", "secret": { "secretName": "used" } }]);
    let uid = rig.post(PODS, &object).await.expect(201)["metadata"]["uid"].clone();
    node.get("/api/v1/namespaces/default/secrets/used").await.expect(200);
    let refused = node.get("/api/v1/namespaces/default/secrets/unused").await;
    assert!(
        refused.message().contains("no relationship found between node 'n1' and this object"),
        "{}",
        refused.message()
    );
    let token = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let bound = |uid: &Value, audience: &str| {
        json!({ "spec": {
            "audiences": [audience],
            "boundObjectRef": { "kind": "Pod", "apiVersion": "v1", "name": "p", "uid": uid },
        } })
    };
    let volume = |audience: &str| json!({ "name": "t", "projected": { "sources": [{ "serviceAccountToken": { "path": "t", "audience": audience } }] } });
    let mut vault = pod("vault");
    vault["spec"]["nodeName"] = json!("n1");
    vault["spec"]["volumes"] = json!([volume("vault")]);
    let vault_uid = rig.post(PODS, &vault).await.expect(201)["metadata"]["uid"].clone();
    let mut of_vault = bound(&vault_uid, "vault");
    of_vault["spec"]["boundObjectRef"]["name"] = json!("vault");
    node.post(token, &of_vault).await.expect(201);
    let refused = [
        (bound(&json!(""), ""), "node requested token with a pod binding without a uid"),
        (bound(&json!("other"), ""), "does not match the UID in record"),
        (bound(&uid, "vault"), "audience \"vault\" not found in pod spec volume"),
    ];
    for (request, why) in refused {
        let answer = node.post(token, &request).await;
        assert!(answer.code == 403 && answer.message().contains(why), "{why}: {}", answer.body);
    }
    let unbound = node.post(token, &json!({ "spec": {} })).await;
    assert!(unbound.message().contains("node requested token not bound to a pod"), "{}", unbound.message());
    // Network policies name Pods of any node, so a node reads all of them (`carob:node-network`), but Secrets of its own alone.
    node.get("/api/v1/pods").await.expect(200);
    node.get("/api/v1/secrets").await.expect(403);
    node.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.expect(200);
    node.post("/api/v1/nodes", &json!({ "metadata": { "name": "n1" } })).await.expect(201);
    let foreign = node.post("/api/v1/nodes", &json!({ "metadata": { "name": "n2" } })).await;
    assert!(foreign.message().contains("is not allowed to modify node"), "{}", foreign.message());
    let plain = node.post(PODS, &pod("q")).await;
    assert!(plain.message().contains("can only create mirror pods"), "{}", plain.message());
}

#[tokio::test]
async fn streams_are_checked_before_anybody_is_dialled() {
    let rig = Rig::new().await;
    let mut two = pod("two");
    two["spec"]["containers"] = json!([{ "name": "a", "image": "i" }, { "name": "b", "image": "i" }]);
    rig.post(PODS, &two).await.expect(201);
    let cases = [
        ("two/log", 400, "a container name must be specified for pod two, choose one of: [a b]"),
        ("two/log?container=z", 400, "container z is not valid for pod two"),
        ("two/log?container=a&tailLines=-1", 422, "tailLines: Invalid value: -1"),
        ("two/log?container=a", 200, ""),
        ("two/exec?container=a&command=id&stdout=1", 400, "pod two does not have a host assigned"),
        ("two/exec?container=a&stdout=1", 400, "you must specify at least 1 command for the container"),
        ("absent/log", 404, "pods \"absent\" not found"),
    ];
    for (path, code, message) in cases {
        let answer = rig.get(&format!("{PODS}/{path}")).await;
        assert_eq!((answer.code, answer.message().contains(message)), (code, true), "{path}: {}", answer.body);
    }
}

struct Knowing;

#[async_trait::async_trait]
impl carob_apiserver::Explainer for Knowing {
    async fn explain(&self, namespace: &str, name: &str) -> Result<Option<Value>, carob_apiserver::BoxError> {
        match name {
            "broken" => Err("the socket is gone".into()),
            _ => Ok(Some(json!({ "message": format!("no room for {namespace}/{name}"), "nodes": 1 }))),
        }
    }
}

#[tokio::test]
async fn a_pod_says_why_it_has_no_node() {
    let rig = Rig::with(|config| config.explainer = Some(std::sync::Arc::new(Knowing))).await;
    let missing = rig.get(&format!("{PODS}/p/why")).await;
    assert_eq!((missing.code, missing.message()), (404, "pods \"p\" not found"));
    for name in ["p", "broken"] {
        rig.post(PODS, &pod(name)).await.expect(201);
    }
    let why = rig.get(&format!("{PODS}/p/why")).await.expect(200);
    assert_eq!((&why["message"], &why["scheduling"]["nodes"]), (&json!("no room for default/p"), &json!(1)));
    let why = rig.get(&format!("{PODS}/broken/why")).await.expect(200);
    assert!(why["message"].as_str().is_some_and(|text| text.contains("cannot be asked")), "{why}");
    assert_eq!(rig.post(&format!("{PODS}/p/why"), &json!({})).await.code, 405);
    rig.post(&format!("{PODS}/p/binding"), &binding("n1")).await.expect(201);
    let why = rig.get(&format!("{PODS}/p/why")).await.expect(200);
    assert_eq!((&why["message"], why.get("scheduling")), (&json!("the Pod was given the node n1"), None));
    let nobody = rig.as_user(UserInfo::component("x"));
    assert_eq!(nobody.get(&format!("{PODS}/p/why")).await.code, 403);
}
