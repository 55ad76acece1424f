//! Services' addresses: the IPAddress of each, ranges that users add, and what is repaired.

use carob_store::{Expect, Txn};
use serde_json::{Value, json};

use crate::support::Rig;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
const MERGE: &str = "merge-patch+json";

fn service(name: &str, spec: Value) -> Value {
    let mut object = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "ports": [{ "port": 80 }] } });
    object["spec"]
        .as_object_mut()
        .into_iter()
        .for_each(|own| own.extend(spec.as_object().cloned().unwrap_or_default()));
    object
}

fn cluster_ip(service: &Value) -> &str {
    service["spec"]["clusterIP"].as_str().expect("an address")
}

fn address(name: &str, labels: Value, parent: &str) -> Value {
    json!({ "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": { "name": name, "labels": labels },
        "spec": { "parentRef": { "resource": "services", "namespace": "default", "name": parent } } })
}

/// Waits for the first event of a watch that is what is looked for.
async fn wait_for(rig: &Rig, path: &str, is_it: impl Fn(&str, &Value) -> bool) -> Value {
    let mut events = rig.watch(&format!("{path}?watch=true")).await;
    loop {
        let event = events.next().await.expect("the watch goes on");
        if is_it(event["type"].as_str().unwrap_or_default(), &event["object"]) {
            return event["object"].clone();
        }
    }
}

#[tokio::test]
async fn an_ip_address_is_there_as_long_as_its_service_is() {
    let rig = Rig::new().await;
    let dry = rig.post(&format!("{SERVICES}?dryRun=All"), &service("dry", json!({}))).await.expect(201);
    rig.get(&format!("{ADDRESSES}/{}", cluster_ip(&dry))).await.expect(404);
    let made = rig.post(SERVICES, &service("web", json!({}))).await.expect(201);
    let path = format!("{ADDRESSES}/{}", cluster_ip(&made));
    let object = rig.get(&path).await.expect(200);
    assert_eq!(
        object["metadata"]["labels"],
        json!({ "ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io" })
    );
    assert_eq!(object["spec"]["parentRef"], json!({ "resource": "services", "namespace": "default", "name": "web" }));
    // A Service that is refused leaves nothing.
    let before = rig.get(ADDRESSES).await.expect(200)["items"].as_array().map(Vec::len);
    rig.post(SERVICES, &service("web", json!({}))).await.expect(409);
    rig.post(SERVICES, &service("bad", json!({ "ports": [{ "port": 0 }] }))).await.expect(422);
    // It is taken back by a task of its own.
    let count = async || rig.get(ADDRESSES).await.expect(200)["items"].as_array().map(Vec::len);
    while count().await != before {
        tokio::task::yield_now().await;
    }
    let external =
        json!({ "spec": { "type": "ExternalName", "externalName": "a.example", "clusterIP": "", "clusterIPs": null } });
    rig.patch(&format!("{SERVICES}/web"), MERGE, &external).await.expect(200);
    rig.get(&path).await.expect(404);
    let back =
        rig.patch(&format!("{SERVICES}/web"), MERGE, &json!({ "spec": { "type": "ClusterIP" } })).await.expect(200);
    let path = format!("{ADDRESSES}/{}", cluster_ip(&back));
    rig.get(&path).await.expect(200);
    rig.delete(&format!("{SERVICES}/web")).await.expect(200);
    rig.get(&path).await.expect(404);
}

#[tokio::test]
async fn users_add_ranges() {
    let rig = Rig::new().await;
    let wanted = service("far", json!({ "clusterIP": "203.0.113.10" }));
    let refused = rig.post(SERVICES, &wanted).await;
    assert!(
        refused.message().contains("the provided network does not match the current range"),
        "{}",
        refused.message()
    );
    let cidr = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "more" },
        "spec": { "cidrs": ["203.0.113.0/24"] }, "status": { "conditions": [{ "type": "Ready", "status": "False",
        "reason": "", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }] } });
    rig.post(CIDRS, &cidr).await.expect(201);
    rig.post(SERVICES, &wanted).await.expect(201);
    rig.get(&format!("{ADDRESSES}/203.0.113.10")).await.expect(200);
    // An address that has an object is nobody else's.
    rig.post(ADDRESSES, &address("203.0.113.11", json!({}), "users")).await.expect(201);
    let taken = rig.post(SERVICES, &service("taken", json!({ "clusterIP": "203.0.113.11" }))).await;
    assert!(taken.message().contains("provided IP is already allocated"), "{}", taken.message());
    let status = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False", "reason": "Terminating",
        "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z" }] } });
    rig.patch(&format!("{CIDRS}/more/status"), MERGE, &status).await.expect(200);
    rig.post(SERVICES, &service("late", json!({ "clusterIP": "203.0.113.12" }))).await.expect(422);
    rig.patch(&format!("{CIDRS}/more"), MERGE, &json!({ "spec": { "cidrs": ["203.0.112.0/24"] } })).await.expect(422);
    let kept = rig.get(&format!("{CIDRS}/kubernetes")).await.expect(200);
    assert_eq!(kept["status"]["conditions"][0]["status"], "True");
}

#[tokio::test]
async fn services_and_ip_addresses_are_made_to_belong_together() {
    let rig = Rig::new().await;
    let kept = rig.post(SERVICES, &service("kept", json!({}))).await.expect(201);
    let old = rig.post(SERVICES, &service("old", json!({}))).await.expect(201);
    let (kept, old) = (cluster_ip(&kept), cluster_ip(&old));
    // As a store is that was written before there were IPAddresses.
    rig.store.txn(Txn::delete(format!("/registry/ipaddresses/{old}"), Expect::Any)).await.expect("it is there");
    // What a server left that ended before it stored the Service.
    let labels = json!({ "ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io" });
    let mut leaked = rig.post(ADDRESSES, &address("10.96.7.7", labels, "gone")).await.expect(201);
    leaked["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    if let Some(metadata) = leaked["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    let bytes = format!(
        "{{\"kind\":\"IPAddress\",\"apiVersion\":\"networking.k8s.io/v1\",\"metadata\":{},\"spec\":{}}}",
        leaked["metadata"], leaked["spec"]
    );
    rig.store.txn(Txn::put("/registry/ipaddresses/10.96.7.7", Expect::Any, bytes)).await.expect("stored");
    rig.post(ADDRESSES, &address("10.96.7.8", json!({}), "gone")).await.expect(201);
    let api = rig.api.clone();
    let keeper = tokio::spawn(async move { api.keep_system(std::future::pending()).await });
    wait_for(&rig, ADDRESSES, |kind, object| kind == "ADDED" && object["metadata"]["name"] == old).await;
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = wait_for(&rig, events, |_, event| event["regarding"]["name"] == "10.96.7.7").await;
    assert_eq!(event["reason"], "IPAddressNotAllocated");
    assert_eq!(event["note"], "IPAddress: 10.96.7.7 for Service default/gone appears to have leaked: cleaning up");
    rig.get(&format!("{ADDRESSES}/10.96.7.7")).await.expect(404);
    rig.get(&format!("{ADDRESSES}/10.96.7.8")).await.expect(200);
    // What a user takes away comes back.
    let before = rig.get(&format!("{ADDRESSES}/{kept}")).await.expect(200);
    rig.delete(&format!("{ADDRESSES}/{kept}")).await.expect(200);
    let event = wait_for(&rig, events, |_, event| event["regarding"]["name"] == "kept").await;
    assert_eq!(event["reason"], "ClusterIPNotAllocated");
    assert_eq!(event["note"], format!("Cluster IP [IPv4]: {kept} is not allocated; repairing"));
    let again = rig.get(&format!("{ADDRESSES}/{kept}")).await.expect(200);
    assert_ne!(again["metadata"]["uid"], before["metadata"]["uid"]);
    keeper.abort();
}
