//! Discovery, OpenAPI, health, Tables and other forms of the same objects.

use crate::support::{Rig, config_map, pod};
use serde_json::{Value, json};

const CMS: &str = "/api/v1/namespaces/default/configmaps";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

async fn accept(rig: &Rig, path: &str, accept: &str) -> crate::support::Answer {
    rig.send("GET", path, &[("accept", accept)], "").await
}

fn find<'a>(list: &'a Value, key: &str, value: &str) -> &'a Value {
    let found = list.as_array().expect("a list").iter().find(|item| item[key] == value);
    found.unwrap_or_else(|| panic!("no {key}={value} in {list}"))
}

#[tokio::test]
async fn discovery_tells_of_every_resource_in_both_forms() {
    let rig = Rig::new().await;
    assert_eq!(rig.get("/api").await.expect(200)["versions"], json!(["v1"]));
    let core = rig.get("/api/v1").await.expect(200);
    let pods = find(&core["resources"], "name", "pods");
    assert_eq!((pods["singularName"].as_str(), pods["namespaced"].as_bool()), (Some("pod"), Some(true)));
    assert_eq!(pods["shortNames"], json!(["po"]));
    let eviction = find(&core["resources"], "name", "pods/eviction");
    assert_eq!((eviction["group"].as_str(), eviction["kind"].as_str()), (Some("policy"), Some("Eviction")));
    let groups = rig.get("/apis").await.expect(200);
    assert_eq!(find(&groups["groups"], "name", "apps")["preferredVersion"]["groupVersion"], "apps/v1");
    assert_eq!(rig.get("/apis/apps").await.expect(200)["kind"], "APIGroup");
    rig.get("/apis/none").await.expect(404);

    let aggregated = accept(&rig, "/apis", AGGREGATED).await;
    assert_eq!(aggregated.headers["content-type"], AGGREGATED);
    let etag = aggregated.headers["etag"].to_str().expect("ascii").to_owned();
    let list = aggregated.expect(200);
    let versions = &list["items"]
        .as_array()
        .expect("groups")
        .iter()
        .find(|g| g["metadata"]["name"] == "apps")
        .expect("apps")["versions"];
    let deployments = find(&versions[0]["resources"], "resource", "deployments");
    assert_eq!(deployments["scope"], "Namespaced");
    assert_eq!(find(&deployments["subresources"], "subresource", "scale")["responseKind"]["kind"], "Scale");
    let fresh = rig.send("GET", "/apis", &[("accept", AGGREGATED), ("if-none-match", &etag)], "").await;
    assert_eq!((fresh.code, fresh.body), (304, json!("")));
}

#[tokio::test]
async fn openapi_describes_what_kubectl_looks_up() {
    let rig = Rig::new().await;
    let index = rig.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["api/v1"]["serverRelativeURL"].as_str().expect("a url").to_owned();
    let core = rig.get(&url).await.expect(200);
    let pod = &core["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
    assert_eq!(pod["x-kubernetes-group-version-kind"], json!([{ "group": "", "version": "v1", "kind": "Pod" }]));
    let spec = &core["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"];
    assert_eq!(spec["required"], json!(["containers"]));
    assert_eq!(spec["properties"]["containers"]["x-kubernetes-patch-merge-key"], "name");
    let ports = &core["components"]["schemas"]["io.k8s.api.core.v1.Container"]["properties"]["ports"];
    assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
    // Checked by the table, by a strategy, of each item of a list.
    assert_eq!(spec["properties"]["restartPolicy"]["enum"], json!(["Always", "Never", "OnFailure"]));
    let schemas = &core["components"]["schemas"];
    let mount = &schemas["io.k8s.api.core.v1.VolumeMount"]["properties"]["mountPropagation"];
    assert_eq!(mount["enum"], json!(["Bidirectional", "HostToContainer", "None"]));
    let modes = &schemas["io.k8s.api.core.v1.PersistentVolumeClaimSpec"]["properties"]["accessModes"];
    let all_modes = json!(["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]);
    assert_eq!((&modes["items"]["enum"], modes.get("enum")), (&all_modes, None));
    let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
    assert!(patch["parameters"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == "fieldValidation")));
    let moved = rig.get("/openapi/v3/api/v1?hash=OLD").await;
    assert_eq!((moved.code, moved.headers["location"].to_str().ok()), (301, Some(url.as_str())));
    rig.get("/openapi/v3/apis/none/v1").await.expect(404);

    let v2 = rig.get("/openapi/v2").await.expect(200);
    assert_eq!(v2["swagger"], "2.0");
    assert!(v2["definitions"]["io.k8s.api.apps.v1.Deployment"].is_object());
    let dangling = dangling_references(&v2);
    assert!(dangling.is_empty(), "{dangling:?}");
    let protobuf = accept(&rig, "/openapi/v2", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf").await;
    assert_eq!(protobuf.code, 200, "kubectl before v1.27 validates with it");
    assert_eq!(protobuf.headers["content-type"], "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
    assert_eq!(accept(&rig, "/openapi/v2", "text/html").await.code, 406);
}

fn dangling_references(document: &Value) -> Vec<String> {
    fn walk(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|inner| walk(inner, found));
            }
            Value::Array(items) => items.iter().for_each(|inner| walk(inner, found)),
            _ => {}
        }
    }
    let mut references = Vec::new();
    walk(document, &mut references);
    references.retain(|reference| document.pointer(reference.trim_start_matches('#')).is_none());
    references
}

#[tokio::test]
async fn component_statuses_tell_what_the_server_has() {
    let rig = Rig::new().await;
    let path = "/api/v1/componentstatuses";
    let list = rig.get(path).await.expect(200);
    assert_eq!(
        (&list["kind"], &list["items"][0]["metadata"]["name"]),
        (&json!("ComponentStatusList"), &json!("etcd-0"))
    );
    let one = rig.get(&format!("{path}/etcd-0")).await.expect(200);
    assert_eq!(one["conditions"], json!([{"type": "Healthy", "status": "True", "message": "ok"}]));
    rig.get(&format!("{path}/etcd-1")).await.expect(404);
    let none = rig.get(&format!("{path}?labelSelector=a%3Db")).await.expect(200);
    assert_eq!(none["items"], json!([]));
    let mine = rig.get(&format!("{path}?fieldSelector=metadata.name%3Detcd-0")).await.expect(200);
    assert_eq!(mine["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn health_is_told_as_a_whole_and_check_by_check() {
    let rig = Rig::new().await;
    assert_eq!(rig.get("/livez").await.expect(200), "ok");
    assert_eq!(rig.get("/readyz/ping").await.expect(200), "ok");
    let told = rig.get("/livez?verbose").await;
    let told = told.expect(200).as_str().unwrap_or_default().to_owned();
    assert!(
        told.starts_with("[+]ping ok\n[+]etcd ok\n[+]log ok\n") && told.ends_with(" ok\nlivez check passed\n"),
        "{told}"
    );
    // By the names that upstream's users look for.
    for name in ["livez/poststarthook/crd-informer-synced", "healthz/autoregister-completion", "readyz/informer-sync"] {
        assert_eq!(rig.get(&format!("/{name}")).await.expect(200), "ok", "{name}");
    }
    rig.get("/livez/unknown").await.expect(404);
    let figures = rig.get("/metrics/slis").await.expect(200);
    let figures = figures.as_str().unwrap_or_default();
    assert!(figures.contains("kubernetes_healthcheck{name=\"etcd\",type=\"livez\"} 1\n"), "{figures}");
    rig.api.begin_shutdown();
    let ending = rig.get("/readyz").await;
    assert!(
        ending.code == 500
            && ending.message().contains("[-]shutdown failed: process is shutting down\nreadyz check failed"),
        "{}",
        ending.body
    );
    rig.get("/livez").await.expect(200);
    let version = rig.get("/version").await.expect(200);
    assert_eq!((version["major"].as_str(), version["minor"].as_str()), (Some("1"), Some("36")));
    let metrics = rig.get("/metrics").await.expect(200);
    assert!(metrics.as_str().is_some_and(|text| text.contains("apiserver_request_total{verb=\"GET\"")), "{metrics}");
}

#[tokio::test]
async fn tables_and_metadata_are_made_on_demand() {
    let rig = Rig::new().await;
    rig.post("/api/v1/namespaces/default/pods", &pod("p")).await.expect(201);
    let pods = "/api/v1/namespaces/default/pods";
    let table = accept(&rig, pods, "application/json;as=Table;v=v1;g=meta.k8s.io").await.expect(200);
    assert_eq!((table["kind"].as_str(), table["apiVersion"].as_str()), (Some("Table"), Some("meta.k8s.io/v1")));
    let columns: Vec<&str> =
        table["columnDefinitions"].as_array().expect("columns").iter().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(&columns[..5], ["Name", "Ready", "Status", "Restarts", "Age"]);
    assert_eq!(
        &table["rows"][0]["cells"].as_array().expect("cells")[..3],
        [json!("p"), json!("0/1"), json!("Pending")]
    );
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let whole = accept(&rig, &format!("{pods}/p?includeObject=Object"), "application/json;as=Table;v=v1;g=meta.k8s.io")
        .await
        .expect(200);
    assert_eq!(whole["rows"][0]["object"]["kind"], "Pod");
    let partial =
        accept(&rig, pods, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await.expect(200);
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"][0].get("spec"), None);
    assert_eq!(accept(&rig, "/version", "application/json").await.code, 200);
    assert_eq!(accept(&rig, pods, "text/html").await.code, 406);

    let request = http::Request::builder()
        .uri(format!("{pods}?watch=1"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(http_body_util::Full::default())
        .expect("valid");
    let mut body = rig.raw(request).await.into_body();
    let frame = http_body_util::BodyExt::frame(&mut body).await.expect("a frame").expect("no error");
    let event: Value = serde_json::from_slice(&frame.into_data().expect("data")).expect("JSON");
    assert_eq!((event["type"].as_str(), event["object"]["kind"].as_str()), (Some("ADDED"), Some("Table")));
    assert_eq!(event["object"]["rows"][0]["cells"][0], "p");
}

#[tokio::test]
async fn yaml_goes_both_ways() {
    let rig = Rig::new().await;
    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: manifest\ndata:\n  port: \"80\"\n";
    let created = rig.send("POST", CMS, &[("content-type", "application/yaml")], manifest).await.expect(201);
    assert_eq!(created["data"]["port"], "80");
    let yaml = accept(&rig, &format!("{CMS}/manifest"), "application/yaml").await;
    assert_eq!(yaml.headers["content-type"], "application/yaml");
    assert!(
        yaml.body.as_str().is_some_and(|text| text.contains("kind: ConfigMap") && text.contains("name: manifest")),
        "{}",
        yaml.body
    );
}

#[tokio::test]
async fn a_field_that_yaml_has_twice_is_a_fault_of_strict_requests_only() {
    let rig = Rig::new().await;
    let manifest = "\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: twice\ndata:\n  k: first\n  k: last\n";
    let yaml = [("content-type", "application/yaml")];
    let refused = rig.send("POST", &format!("{CMS}?fieldValidation=Strict"), &yaml, manifest).await.expect(400);
    let message = refused["message"].as_str().expect("a message");
    assert!(message.contains("line 8: key \"k\" already set in map"), "{message}");
    let warned = rig.send("POST", &format!("{CMS}?fieldValidation=Warn"), &yaml, manifest).await;
    assert!(warned.headers["warning"].to_str().expect("text").contains("already set in map"), "{:?}", warned.headers);
    assert_eq!(warned.expect(201)["data"]["k"], "last");
    let applied = format!("{CMS}/twice?fieldManager=m&force=true&fieldValidation=Ignore");
    let yaml = [("content-type", "application/apply-patch+yaml")];
    assert_eq!(rig.send("PATCH", &applied, &yaml, manifest).await.expect(200)["data"]["k"], "last");
    let applied = applied.replace("Ignore", "Strict");
    rig.send("PATCH", &applied, &yaml, manifest).await.expect(400);
}

#[tokio::test]
async fn large_answers_are_compressed_for_those_who_take_it() {
    use std::io::Read;
    let rig = Rig::new().await;
    for name in ["a", "b"] {
        let mut object = config_map(name);
        object["data"]["big"] = json!("x".repeat(100 * 1024));
        rig.post(CMS, &object).await.expect(201);
    }
    let plain = rig.get(CMS).await.expect(200);
    let request = http::Request::builder()
        .uri(CMS)
        .header("accept-encoding", "gzip")
        .body(http_body_util::Full::default())
        .expect("valid");
    let response = rig.raw(request).await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.expect("whole").to_bytes();
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(bytes.as_ref()).read_to_end(&mut text).expect("gzip");
    assert_eq!(serde_json::from_slice::<Value>(&text).expect("JSON"), plain);
    let small = rig.send("GET", &format!("{CMS}/none"), &[("accept-encoding", "gzip")], "").await;
    assert_eq!(small.headers.get("content-encoding"), None);
}

#[tokio::test]
async fn the_issuers_keys_are_published() {
    let rig = Rig::new().await;
    let configuration = rig.get("/.well-known/openid-configuration").await.expect(200);
    assert_eq!(configuration["id_token_signing_alg_values_supported"], json!(["ES256"]));
    let keys = rig.get("/openid/v1/jwks").await;
    assert_eq!(keys.headers["content-type"], "application/jwk-set+json");
    assert_eq!(keys.expect(200)["keys"][0]["crv"], "P-256");
}

#[tokio::test]
async fn a_client_says_how_long_it_waits() {
    let rig = Rig::new().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    for timeout in ["34s", "3m", "0", "0s", "1m30.5s", ""] {
        rig.get(&format!("{maps}?timeout={timeout}")).await.expect(200);
    }
    let refused = rig.get(&format!("{maps}?timeout=invalid")).await;
    assert_eq!(refused.message(), "invalid timeout specified in the request URL - time: invalid duration \"invalid\"");
    refused.expect(400);
}

#[tokio::test]
async fn a_resource_shows_a_hash_of_the_version_that_it_is_stored_in() {
    let rig = Rig::new().await;
    let apps = rig.get("/apis/apps/v1").await.expect(200);
    let resources = apps["resources"].as_array().expect("a list").iter();
    let deployments = resources.filter(|resource| resource["name"] == "deployments");
    // As kube-apiserver shows it.
    assert_eq!(deployments.map(|resource| &resource["storageVersionHash"]).collect::<Vec<_>>(), ["8aSe+NMegvE="]);
}
