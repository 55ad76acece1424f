//! Conversion of custom objects by a webhook, asked over TLS on loopback.

use carob_store::{Expect, Txn};
use serde_json::{Value, json};

use crate::custom::{DEFINITIONS, define};
use crate::hook_server::Server;
use crate::support::Rig;

const V1: &str = "/apis/stable.example.com/v1/namespaces/default/endpoints";
const V2: &str = "/apis/stable.example.com/v2/namespaces/default/endpoints";
const DEFINITION: &str = "endpoints.stable.example.com";

fn definition(server: &Server, path: &str, storage: &str) -> Value {
    let version = |name: &str, fields: &[&str]| {
        let properties: serde_json::Map<String, Value> =
            fields.iter().map(|field| ((*field).to_owned(), json!({ "type": "string" }))).collect();
        let selectable: Vec<Value> = fields.iter().map(|field| json!({ "jsonPath": format!(".{field}") })).collect();
        json!({
            "name": name, "served": true, "storage": name == storage, "selectableFields": selectable,
            "schema": { "openAPIV3Schema": { "type": "object", "properties": properties } },
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": { "name": DEFINITION },
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": { "plural": "endpoints", "kind": "Endpoint" },
            "versions": [version("v1", &["hostPort"]), version("v2", &["host", "port"])],
            "conversion": { "strategy": "Webhook", "webhook": {
                "clientConfig": { "url": format!("https://localhost:{}{path}", server.port), "caBundle": server.bundle },
                "conversionReviewVersions": ["v1", "v1beta1"],
            } },
        },
    })
}

/// Does what the converter of upstream's conformance test does.
fn convert(object: &Value, desired: &str) -> Value {
    let mut object = object.clone();
    let map = object.as_object_mut().expect("an object");
    let text = |value: Option<Value>| value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
    if desired.ends_with("v2") {
        let both = text(map.remove("hostPort"));
        let (host, port) = both.split_once(':').unwrap_or_default();
        map.insert("host".to_owned(), host.into());
        map.insert("port".to_owned(), port.into());
    } else {
        let both = format!("{}:{}", text(map.remove("host")), text(map.remove("port")));
        map.insert("hostPort".to_owned(), both.into());
    }
    map.insert("apiVersion".to_owned(), desired.into());
    object
}

fn converted(review: &Value) -> Value {
    let request = &review["request"];
    let desired = request["desiredAPIVersion"].as_str().expect("upstream names it");
    let objects: Vec<Value> =
        request["objects"].as_array().into_iter().flatten().map(|object| convert(object, desired)).collect();
    json!({
        "kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
        "response": { "uid": request["uid"], "result": { "status": "Success" }, "convertedObjects": objects },
    })
}

/// Answers soundly, and unsoundly where the path says how.
async fn server() -> Server {
    Server::start(|path, review| {
        let mut reply = converted(review);
        let response = &mut reply["response"];
        match path {
            "/refuse" => response["result"] = json!({ "status": "Failed", "message": "not today" }),
            "/lose" => response["convertedObjects"] = json!([]),
            "/rename" => response["convertedObjects"][0]["metadata"]["name"] = "other".into(),
            "/label" => response["convertedObjects"][0]["metadata"]["labels"] = json!({ "by": "hook" }),
            "/text" => return Some(b"hello".to_vec()),
            _ => {}
        }
        Some(reply.to_string().into())
    })
    .await
}

fn endpoint(name: &str) -> Value {
    json!({
        "apiVersion": "stable.example.com/v1", "kind": "Endpoint", "metadata": { "name": name },
        "hostPort": "localhost:8080",
    })
}

async fn rig(server: &Server, path: &str, storage: &str) -> Rig {
    let rig = Rig::new().await;
    define(&rig, &definition(server, path, storage), "Established").await;
    rig
}

fn stored(rig: &Rig, name: &str) -> Value {
    let key = format!("/registry/stable.example.com/endpoints/default/{name}");
    serde_json::from_slice(&rig.store.get(&key).expect("it is stored").value).expect("JSON")
}

#[tokio::test]
async fn every_verb_speaks_the_version_of_its_path() {
    let server = server().await;
    let rig = rig(&server, "/", "v2").await;
    let mut watched = rig.watch(&format!("{V1}?watch=1")).await;
    let created = rig.post(V1, &endpoint("a")).await.expect(201);
    assert_eq!((&created["hostPort"], created.get("host")), (&json!("localhost:8080"), None));
    assert_eq!((&stored(&rig, "a")["host"], stored(&rig, "a").get("hostPort")), (&json!("localhost"), None));
    let in_v2 = rig.get(&format!("{V2}/a")).await.expect(200);
    assert_eq!((&in_v2["host"], &in_v2["port"]), (&json!("localhost"), &json!("8080")));
    assert_eq!(in_v2["metadata"]["resourceVersion"], created["metadata"]["resourceVersion"]);

    let patch = json!({ "hostPort": "example:1" });
    rig.patch(&format!("{V1}/a"), "merge-patch+json", &patch).await.expect(200);
    assert_eq!(rig.get(&format!("{V2}/a")).await.expect(200)["host"], "example");
    let applied = json!({
        "apiVersion": "stable.example.com/v1", "kind": "Endpoint", "metadata": { "name": "a" }, "hostPort": "applied:2",
    });
    let path = format!("{V1}/a?fieldManager=me&force=true");
    assert_eq!(rig.patch(&path, "apply-patch+yaml", &applied).await.expect(200)["hostPort"], "applied:2");
    let mut replaced = rig.get(&format!("{V2}/a")).await.expect(200);
    assert_eq!(replaced["port"], "2");
    replaced["port"] = "3".into();
    rig.put(&format!("{V2}/a"), &replaced).await.expect(200);

    rig.delete(&format!("{V1}/a")).await.expect(200);
    for (ty, host_port) in [
        ("ADDED", "localhost:8080"),
        ("MODIFIED", "example:1"),
        ("MODIFIED", "applied:2"),
        ("MODIFIED", "applied:3"),
        ("DELETED", "applied:3"),
    ] {
        let event = watched.next().await.expect("the watch goes on");
        assert_eq!((&event["type"], &event["object"]["hostPort"]), (&json!(ty), &json!(host_port)));
        assert_eq!(event["object"]["apiVersion"], "stable.example.com/v1");
    }
}

#[tokio::test]
async fn a_list_of_objects_in_several_versions_is_converted_by_one_review() {
    let server = server().await;
    let rig = rig(&server, "/", "v1").await;
    rig.post(V1, &endpoint("a")).await.expect(201);
    rig.post(V1, &endpoint("b")).await.expect(201);
    assert!(server.requests().is_empty(), "what is stored as it is asked for needs no webhook");
    let versions = definition(&server, "/", "v2")["spec"]["versions"].clone();
    let changed = json!({ "spec": { "versions": versions } });
    let path = format!("{DEFINITIONS}/{DEFINITION}");
    let changed = rig.patch(&path, "merge-patch+json", &changed).await.expect(200);
    assert_eq!(changed["status"]["storedVersions"], json!(["v1", "v2"]));
    let mut third = convert(&endpoint("c"), "stable.example.com/v2");
    third["port"] = "9".into();
    // The catalogue follows the definition's event.
    while stored_version(&rig, &third).await != "stable.example.com/v2" {}
    server.requests();
    let list = rig.get(V2).await.expect(200);
    let ports: Vec<&Value> = list["items"].as_array().expect("a list").iter().map(|item| &item["port"]).collect();
    assert_eq!(ports, [&json!("8080"), &json!("8080"), &json!("9")]);
    assert!(list["items"].as_array().expect("a list").iter().all(|item| item.get("hostPort").is_none()));
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0]["desiredAPIVersion"], "stable.example.com/v2");
    assert_eq!(requests[0]["objects"].as_array().map(Vec::len), Some(2));

    // Fields are selected as the version has them.
    let selected = rig.get(&format!("{V2}?fieldSelector=port%3D8080")).await.expect(200);
    assert_eq!(selected["items"].as_array().map(Vec::len), Some(2));
    let page = rig.get(&format!("{V2}?limit=1")).await.expect(200);
    assert_eq!((&page["items"][0]["port"], &page["metadata"]["remainingItemCount"]), (&json!("8080"), &json!(2)));

    // A write that changes nothing brings an object into the version that is stored now.
    assert_eq!(stored(&rig, "a")["apiVersion"], "stable.example.com/v1");
    let same = rig.get(&format!("{V1}/a")).await.expect(200);
    rig.put(&format!("{V1}/a"), &same).await.expect(200);
    assert_eq!(stored(&rig, "a")["apiVersion"], "stable.example.com/v2");
    assert_eq!(stored(&rig, "a")["host"], "localhost");
}

/// Makes the object, and once more if it was stored in the version of before.
async fn stored_version(rig: &Rig, object: &Value) -> String {
    rig.delete(&format!("{V2}/c")).await;
    rig.post(V2, object).await.expect(201);
    stored(rig, "c")["apiVersion"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_webhook_that_lies_costs_its_own_request_only() {
    let server = server().await;
    let begin = "conversion webhook for stable.example.com/v1, Kind=Endpoint ";
    for (path, text) in [
        ("/refuse", "failed: not today"),
        ("/lose", "returned 0 objects, expected 1"),
        ("/rename", "returned invalid converted object at index 0: must have the same name: a != other"),
        ("/text", "failed: the reply is not JSON"),
    ] {
        let rig = rig(&server, path, "v1").await;
        rig.post(V1, &endpoint("a")).await.expect(201);
        let failed = rig.get(&format!("{V2}/a")).await;
        assert!(failed.message().starts_with(&format!("{begin}{text}")), "{path}: {}", failed.message());
        failed.expect(500);
        rig.get(V2).await.expect(500);
        // The stored version is served all the same, and nothing is lost.
        assert_eq!(rig.get(&format!("{V1}/a")).await.expect(200)["hostPort"], "localhost:8080");
        let watch = rig.watch(&format!("{V2}?watch=1&resourceVersion={}", rig.store.current())).await;
        let mut watch = watch;
        rig.patch(&format!("{V1}/a"), "merge-patch+json", &json!({ "hostPort": "b:1" })).await.expect(200);
        let event = watch.next().await.expect("an event");
        assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(500)));
        assert_eq!(watch.next().await, None);
    }
    let rig = rig(&server, "/label", "v1").await;
    rig.post(V1, &endpoint("a")).await.expect(201);
    assert_eq!(rig.get(&format!("{V2}/a")).await.expect(200)["metadata"]["labels"], json!({ "by": "hook" }));
    let selected = rig.get(&format!("{V2}?labelSelector=by%3Dhook")).await.expect(200);
    assert_eq!(selected["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn what_cannot_be_read_by_its_webhook_can_still_be_deleted_with_its_definition() {
    let server = server().await;
    let rig = rig(&server, "/refuse", "v1").await;
    rig.post(V1, &endpoint("a")).await.expect(201);
    let other = json!({
        "kind": "Endpoint", "apiVersion": "stable.example.com/v2", "metadata": { "name": "b", "namespace": "default", "uid": "u" },
    });
    let key = "/registry/stable.example.com/endpoints/default/b";
    let put = Txn::put(key, Expect::Absent, other.to_string());
    let mut watch = rig.watch(&format!("{DEFINITIONS}?watch=1&fieldSelector=metadata.name%3D{DEFINITION}")).await;
    rig.store.txn(put).await.expect("the store takes it");
    rig.get(V1).await.expect(500);
    rig.delete(&format!("{DEFINITIONS}/{DEFINITION}")).await.expect(200);
    while watch.next().await.expect("the watch goes on")["type"] != "DELETED" {}
    assert_eq!(rig.store.count("/registry/stable.example.com/"), 0);
}

#[tokio::test]
async fn policies_and_webhooks_about_another_version_see_what_is_written_in_that_version() {
    let (converter, hook) = (server().await, bad_host_hook().await);
    let rig = rig(&converter, "/", "v2").await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let rules = |version: &str| json!([{ "apiGroups": ["stable.example.com"], "apiVersions": [version], "operations": ["CREATE"], "resources": ["endpoints"] }]);
    for (name, policy) in [("wide", "Equivalent"), ("narrow", "Exact")] {
        let port = if name == "wide" { "666" } else { "7" };
        let spec = json!({
            "matchConstraints": { "matchPolicy": policy, "resourceRules": rules("v2") },
            "validations": [{ "expression": format!("object.port != '{port}'"), "message": "no such port" }],
        });
        let policy = json!({ "metadata": { "name": name }, "spec": spec });
        rig.post(&format!("{group}/validatingadmissionpolicies"), &policy).await.expect(201);
        let binding =
            json!({ "metadata": { "name": name }, "spec": { "policyName": name, "validationActions": ["Deny"] } });
        rig.post(&format!("{group}/validatingadmissionpolicybindings"), &binding).await.expect(201);
    }
    let at = |name: &str, host_port: &str| {
        let mut object = endpoint(name);
        object["hostPort"] = host_port.into();
        object
    };
    let denied = rig.post(V1, &at("a", "h:666")).await;
    assert!(denied.code == 422 && denied.message().contains("no such port"), "{}", denied.body);
    rig.post(V1, &at("b", "h:7")).await.expect(201);

    let webhooks = json!({ "metadata": { "name": "hook" }, "webhooks": [{
        "name": "hook.example.com", "rules": rules("v1"), "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": { "url": format!("https://localhost:{}/", hook.port), "caBundle": hook.bundle },
    }] });
    rig.post(&format!("{group}/validatingwebhookconfigurations"), &webhooks).await.expect(201);
    let in_v2 = |host: &str| json!({ "apiVersion": "stable.example.com/v2", "kind": "Endpoint", "metadata": { "name": host }, "host": host, "port": "1" });
    let denied = rig.post(V2, &in_v2("bad")).await;
    assert!(denied.message().contains("denied the request: a bad host"), "{}", denied.body);
    rig.post(V2, &in_v2("good")).await.expect(201);

    let spec = json!({
        "matchConstraints": { "resourceRules": rules("v2") }, "reinvocationPolicy": "Never",
        "mutations": [{ "patchType": "JSONPatch", "jsonPatch": {
            "expression": "[JSONPatch{op: 'replace', path: '/host', value: 'changed'}]" } }],
    });
    let policy = json!({ "metadata": { "name": "change" }, "spec": spec });
    rig.post(&format!("{group}/mutatingadmissionpolicies"), &policy).await.expect(201);
    let binding = json!({ "metadata": { "name": "change" }, "spec": { "policyName": "change" } });
    rig.post(&format!("{group}/mutatingadmissionpolicybindings"), &binding).await.expect(201);
    assert_eq!(rig.post(V1, &at("c", "h:1")).await.expect(201)["hostPort"], "changed:1");
}

/// A validating webhook that knows objects of v1 only.
async fn bad_host_hook() -> Server {
    Server::start(|_, review| {
        let request = &review["request"];
        let host_port = request["object"]["hostPort"].as_str().unwrap_or("bad: not of v1");
        let response = json!({
            "uid": request["uid"], "allowed": !host_port.starts_with("bad:"), "status": { "message": "a bad host" },
        });
        let reply = json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response });
        Some(reply.to_string().into())
    })
    .await
}
