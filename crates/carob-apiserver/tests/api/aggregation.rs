//! APIServices, and a server that they lead to, over TLS on loopback.

use std::sync::Arc;
use std::time::Duration;

use carob_apiserver::UserInfo;
use carob_store::{Expect, Txn};
use serde_json::{Value, json};

use crate::custom::DEFINITIONS;
use crate::support::Rig;
use crate::upstream_api::Upstream;

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const NAME: &str = "v1alpha1.wardle.example.com";
const FLUNDERS: &str = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";

fn api_service(bundle: &str) -> Value {
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": { "name": NAME },
        "spec": {
            "group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200,
            "service": { "namespace": "default", "name": "api" }, "caBundle": bundle,
        },
    })
}

/// A Service in front of a port of loopback. The API refuses loopback addresses in slices; here they stand for a Pod's.
async fn service(rig: &Rig, port: u16) {
    let object = json!({ "metadata": { "name": "api" }, "spec": { "ports": [{ "port": 443, "targetPort": port }] } });
    rig.post("/api/v1/namespaces/default/services", &object).await.expect(201);
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "api-1", "namespace": "default", "labels": { "kubernetes.io/service-name": "api" } },
        "ports": [{ "name": "", "port": port }],
        "endpoints": [{ "addresses": ["127.0.0.1"], "conditions": { "ready": true } }],
    });
    let txn = Txn::put("/registry/endpointslices/default/api-1", Expect::Absent, slice.to_string());
    rig.store.txn(txn).await.expect("the store takes it");
}

/// Waits, by a watch, until the APIService says so.
async fn until(rig: &Rig, reason: &str) -> Value {
    let mut events = rig.watch(&format!("{SERVICES}?watch=1&fieldSelector=metadata.name%3D{NAME}")).await;
    loop {
        let event = events.next().await.expect("the watch goes on");
        let condition = &event["object"]["status"]["conditions"][0];
        if condition["reason"] == reason {
            return condition.clone();
        }
    }
}

#[tokio::test]
async fn what_this_server_answers_itself_is_registered() {
    let rig = Rig::new().await;
    let local = rig.get(&format!("{SERVICES}/v1.")).await.expect(200);
    assert_eq!(local["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    assert_eq!(local["spec"], json!({ "version": "v1", "groupPriorityMinimum": 18000, "versionPriority": 1 }));
    assert_eq!(local["status"]["conditions"][0]["reason"], "Local");
    let apps = rig.get(&format!("{SERVICES}/v1.apps")).await.expect(200);
    assert_eq!(apps["spec"]["groupPriorityMinimum"], 17800);
    // What a definition serves comes and goes with it.
    let mut events = rig.watch(&format!("{SERVICES}?watch=1&fieldSelector=metadata.name%3Dv1.example.com")).await;
    let definition = json!({
        "metadata": { "name": "gadgets.example.com" },
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": { "plural": "gadgets", "kind": "Gadget" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": { "type": "object" } } }],
        },
    });
    rig.post(DEFINITIONS, &definition).await.expect(201);
    let added = events.next().await.expect("it comes");
    assert_eq!(added["object"]["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
    // Deleted by hand it comes back.
    rig.delete(&format!("{SERVICES}/v1.example.com")).await.expect(200);
    assert_eq!(events.brief().await.0, "DELETED");
    assert_eq!(events.brief().await.0, "ADDED");
    rig.delete(&format!("{DEFINITIONS}/gadgets.example.com")).await.expect(200);
    assert_eq!(events.brief().await.0, "DELETED");
}

#[tokio::test]
async fn requests_go_to_the_server_with_the_name_of_who_asks() {
    let upstream = Upstream::start().await;
    let rig = Rig::new().await;
    rig.post(SERVICES, &api_service(&upstream.bundle)).await.expect(201);
    let missing = until(&rig, "ServiceNotFound").await;
    assert_eq!(missing["message"], r#"service/api in "default" is not present"#);
    assert_eq!(rig.get(FLUNDERS).await.code, 503);
    service(&rig, upstream.port).await;
    let passed = until(&rig, "Passed").await;
    assert_eq!(passed["message"], "all checks passed");

    let mut user = UserInfo::new("jane", ["system:masters".to_owned()]);
    user.extra.insert("team".to_owned(), vec!["blue".to_owned()]);
    let jane = rig.as_user(Arc::new(user));
    upstream.requests();
    let headers = [("content-type", "application/json"), ("x-remote-user", "forged"), ("x-remote-group", "forged")];
    let answer = jane.send("POST", &format!("{FLUNDERS}?dryRun=All"), &headers, r#"{"kind":"Flunder"}"#).await;
    let seen = answer.expect(201);
    assert_eq!(seen["method"], "POST");
    assert_eq!(seen["path"], format!("{FLUNDERS}?dryRun=All"));
    assert_eq!(seen["body"], r#"{"kind":"Flunder"}"#);
    assert_eq!(seen["headers"]["x-remote-user"], json!(["jane"]));
    assert_eq!(seen["headers"]["x-remote-group"], json!(["system:masters", "system:authenticated"]));
    assert_eq!(seen["headers"]["x-remote-extra-team"], json!(["blue"]));
    assert_eq!(seen["headers"]["host"], json!(["api.default.svc:443"]));
    // Who may not ask this server, does not ask the other.
    rig.as_user(Arc::new(UserInfo::new("nobody", []))).get(FLUNDERS).await.expect(403);
}

#[tokio::test]
async fn discovery_and_openapi_tell_of_other_servers() {
    let upstream = Upstream::start().await;
    let rig = Rig::new().await;
    service(&rig, upstream.port).await;
    rig.post(SERVICES, &api_service(&upstream.bundle)).await.expect(201);
    until(&rig, "Passed").await;
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let list = rig.send("GET", "/apis", &[("accept", accept)], "").await.expect(200);
    let items = list["items"].as_array().expect("a list");
    let found = items.iter().find(|group| group["metadata"]["name"] == "wardle.example.com").expect("it is there");
    assert_eq!(found["versions"][0]["freshness"], "Current");
    assert_eq!(found["versions"][0]["resources"][0]["resource"], "flunders");
    let legacy = rig.get("/apis").await.expect(200);
    let names: Vec<&Value> = legacy["groups"].as_array().expect("a list").iter().map(|group| &group["name"]).collect();
    assert!(names.contains(&&json!("wardle.example.com")) && names.contains(&&json!("apps")));
    let group = rig.get("/apis/wardle.example.com").await.expect(200);
    assert_eq!(group["preferredVersion"]["groupVersion"], "wardle.example.com/v1alpha1");
    let resources = rig.get("/apis/wardle.example.com/v1alpha1").await.expect(200);
    assert_eq!(resources["kind"], "APIResourceList");
    let index = rig.get("/openapi/v3").await.expect(200);
    let entry = &index["paths"]["apis/wardle.example.com/v1alpha1"]["serverRelativeURL"];
    assert_eq!(entry, "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=1");
    let document = rig.get("/openapi/v3/apis/wardle.example.com/v1alpha1?hash=1").await.expect(200);
    assert_eq!(document["openapi"], "3.0.0");
    let v2 = rig.get("/openapi/v2").await.expect(200);
    assert!(v2["paths"].get(FLUNDERS.replace("default", "{namespace}")).is_some());
    assert!(v2["definitions"].get("com.example.Flunder").is_some());
}

#[tokio::test]
async fn a_server_that_does_not_answer_costs_its_own_paths_only() {
    let upstream = Upstream::start().await;
    let other = Upstream::start().await;
    let rig = Rig::new().await;
    service(&rig, upstream.port).await;
    // It has a certificate of someone else.
    rig.post(SERVICES, &api_service(&other.bundle)).await.expect(201);
    let failed = until(&rig, "FailedDiscoveryCheck").await;
    let text = failed["message"].as_str().expect("a text");
    assert!(
        text.contains("failing or missing response from https://api.default.svc:443/apis/wardle.example.com/v1alpha1"),
        "{text}"
    );
    assert!(text.ends_with("x509: certificate signed by unknown authority"), "{text}");
    let refused = rig.get(FLUNDERS).await;
    assert_eq!((refused.code, &refused.body), (503, &json!("service unavailable\n")));
    let quick = tokio::time::timeout(Duration::from_secs(2), rig.get("/apis")).await;
    quick.expect("nobody waits for it").expect(200);
    // Without verification it is taken as it is.
    let patch = json!({ "spec": { "caBundle": null, "insecureSkipTLSVerify": true } });
    rig.patch(&format!("{SERVICES}/{NAME}"), "merge-patch+json", &patch).await.expect(200);
    until(&rig, "Passed").await;
    rig.get(FLUNDERS).await.expect(200);
    rig.delete(&format!("{SERVICES}/{NAME}")).await.expect(200);
    rig.get(FLUNDERS).await.expect(404);
}
