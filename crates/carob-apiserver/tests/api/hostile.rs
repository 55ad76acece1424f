//! Malformed and hostile requests: each gets upstream's code and a message that says what is wrong, and the server answers
//! others as before.

use crate::support::{Rig, config_map, pod};
use serde_json::json;

const CMS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const JSON: &str = "application/json";

/// Method, path, Content-Type, body, code, part of the message.
type Case = (&'static str, String, &'static str, Vec<u8>, u16, &'static str);

fn case(
    method: &'static str,
    path: &str,
    kind: &'static str,
    body: impl Into<Vec<u8>>,
    code: u16,
    says: &'static str,
) -> Case {
    (method, path.to_owned(), kind, body.into(), code, says)
}

fn nested(levels: usize) -> Vec<u8> {
    let open = r#"{"a":"#.repeat(levels);
    format!(r#"{{"metadata":{{"name":"deep"}},"data":{open}1{}}}"#, "}".repeat(levels)).into_bytes()
}

fn bodies() -> Vec<Case> {
    let strict = format!("{CMS}?fieldValidation=Strict");
    vec![
        case("POST", CMS, JSON, "", 400, "must be of type ConfigMap"),
        case("POST", CMS, JSON, "{", 400, "unexpected end of JSON input"),
        case("POST", CMS, JSON, "nonsense", 400, "invalid character"),
        case("POST", CMS, JSON, "[]", 400, "cannot unmarshal array"),
        case("POST", CMS, JSON, "\"text\"", 400, "must be of type ConfigMap"),
        case("POST", CMS, JSON, r#"{"metadata":{"name":"x"}} trailing"#, 400, "after top-level value"),
        case("POST", CMS, JSON, b"{\"metadata\":{\"name\":\"\xff\xfe\"}}", 400, "ConfigMap"),
        case(
            "POST",
            CMS,
            JSON,
            r#"{"kind":"Pod","apiVersion":"v1"}"#,
            400,
            "Pod in version \"v1\" cannot be handled as a ConfigMap",
        ),
        case("POST", CMS, JSON, r#"{"kind":"Nope","apiVersion":"v1"}"#, 400, "no kind \"Nope\" is registered"),
        case(
            "POST",
            CMS,
            JSON,
            r#"{"kind":"ConfigMap","apiVersion":"v2"}"#,
            400,
            "the API version in the data (v2) does not match the expected API version (v1)",
        ),
        case(
            "POST",
            CMS,
            JSON,
            r#"{"metadata":"x"}"#,
            400,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap",
        ),
        case("POST", CMS, JSON, r#"{"metadata":{"name":7}}"#, 400, "cannot unmarshal number"),
        case("POST", CMS, JSON, r#"{"metadata":{"labels":["a"]}}"#, 400, "cannot unmarshal array"),
        case("POST", CMS, JSON, r#"{"metadata":{"name":"x"},"data":{"a":1}}"#, 400, "cannot unmarshal number"),
        case("POST", CMS, JSON, r#"{"metadata":{"name":"x"},"binaryData":{"a":"%%"}}"#, 400, "base64"),
        case("POST", CMS, JSON, r#"{"metadata":{"name":"x","creationTimestamp":"yesterday"}}"#, 400, "yesterday"),
        case("POST", CMS, JSON, nested(5000), 400, "cannot be handled as a ConfigMap"),
        case("POST", CMS, JSON, nested(100), 400, "cannot unmarshal object"),
        case(
            "POST",
            &strict,
            JSON,
            r#"{"metadata":{"name":"x"},"spec":{}}"#,
            400,
            "strict decoding error: unknown field \"spec\"",
        ),
        case(
            "POST",
            &strict,
            JSON,
            r#"{"metadata":{"name":"x"},"data":{"a":"1","a":"2"}}"#,
            400,
            "duplicate field \"data.a\"",
        ),
        case("POST", CMS, "text/plain", "{}", 415, "accepted media types include"),
        case("POST", CMS, "application/xml", "<a/>", 415, "accepted media types include"),
        case("POST", CMS, "application/yaml", "a: [", 400, "yaml"),
        case("POST", CMS, "application/yaml", "&a [*a, *a]", 400, "ConfigMap"),
        case("POST", CMS, JSON, vec![b'x'; 3 * 1024 * 1024 + 1], 413, "limit is 3145728"),
        case(
            "POST",
            CMS,
            JSON,
            format!(r#"{{"metadata":{{"name":"big"}},"data":{{"k":"{}"}}}}"#, "x".repeat(2 * 1024 * 1024)),
            422,
            "Too long",
        ),
        case("POST", CMS, "application/vnd.kubernetes.protobuf", "k8s", 400, "must be of type ConfigMap"),
        case(
            "POST",
            CMS,
            "application/vnd.kubernetes.protobuf",
            b"k8s\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            400,
            "must be of type ConfigMap",
        ),
    ]
}

fn metadata() -> Vec<Case> {
    let create = |object: &serde_json::Value, code, says| case("POST", CMS, JSON, object.to_string(), code, says);
    let named = |name: &str, says| create(&config_map(name), 422, says);
    let with = |field: serde_json::Value, code, says| {
        let mut object = config_map("x");
        object["metadata"] = field;
        create(&object, code, says)
    };
    let elsewhere = "the namespace of the provided object does not match the namespace sent on the request";
    let mut cases = vec![
        named("", "metadata.name: Required value"),
        named("Upper", "metadata.name: Invalid value: \"Upper\""),
        named("../../etc/passwd", "metadata.name: Invalid value"),
        named("a/b", "metadata.name: Invalid value: \"a/b\""),
        named(&"x".repeat(300), "metadata.name: Invalid value"),
        with(json!({ "name": "x", "namespace": "other" }), 400, elsewhere),
        with(
            json!({ "name": "x", "resourceVersion": "1" }),
            400,
            "resourceVersion should not be set on objects to be created",
        ),
        with(json!({ "name": "x", "labels": { "a b": "c" } }), 422, "metadata.labels: Invalid value: \"a b\""),
        with(json!({ "name": "x", "labels": { "a": "-" } }), 422, "metadata.labels: Invalid value: \"-\""),
        with(json!({ "name": "x", "finalizers": ["bad finalizer"] }), 422, "metadata.finalizers"),
        with(json!({ "name": "x", "ownerReferences": [{}] }), 422, "metadata.ownerReferences.uid"),
        with(
            json!({ "name": "x", "annotations": { "a": "v".repeat(300 * 1024) } }),
            422,
            "metadata.annotations: Too long",
        ),
    ];
    let nowhere = "/api/v1/namespaces/nowhere/configmaps";
    cases.push(case("POST", nowhere, JSON, config_map("x").to_string(), 404, "namespaces \"nowhere\" not found"));
    cases
}

fn pods() -> Vec<Case> {
    let create = |spec: serde_json::Value, code, says| {
        case("POST", PODS, JSON, json!({ "metadata": { "name": "x" }, "spec": spec }).to_string(), code, says)
    };
    let container = |more: serde_json::Value| {
        let mut container = json!({ "name": "c", "image": "i" });
        container.as_object_mut().expect("a map").extend(more.as_object().cloned().unwrap_or_default());
        json!({ "containers": [container] })
    };
    let port = |port: serde_json::Value| container(json!({ "ports": [{ "containerPort": port }] }));
    let spec = |field: &str, value: &str| {
        let mut spec = container(json!({}));
        spec[field] = json!(value);
        spec
    };
    let lots = json!({ "resources": { "limits": { "cpu": "lots" } } });
    vec![
        create(json!({}), 422, "spec.containers: Required value"),
        create(json!({ "containers": [{}] }), 422, "spec.containers[0].name: Required value"),
        create(json!({ "containers": "all" }), 400, "cannot unmarshal string"),
        create(port(json!("http")), 400, "cannot unmarshal string"),
        create(port(json!(70000)), 422, "spec.containers[0].ports[0].containerPort"),
        create(spec("serviceAccountName", "nobody"), 403, "serviceaccount \"nobody\" not found"),
        create(spec("priorityClassName", "none"), 403, "no PriorityClass with name none was found"),
        create(spec("runtimeClassName", "none"), 403, "RuntimeClass \"none\" not found"),
        create(container(lots), 400, "quantities must match the regular expression"),
    ]
}

fn paths() -> Vec<Case> {
    let get = |path: &str, code, says| case("GET", path, "", "", code, says);
    vec![
        get("/api/v1/namespaces/default/pods/..", 400, "Name parameter invalid: \"..\": may not be '..'"),
        get("/api/v1/namespaces/default/pods/%2e%2e", 400, "may not be '..'"),
        get("/api/v1/namespaces/../pods/x", 400, "Namespace parameter invalid: \"..\""),
        get("/api/v1/namespaces/default/pods/a%2Fb", 404, "could not find the requested resource"),
        get("/api/v1/namespaces/default/pods/a%25b", 400, "may not contain '%'"),
        get("/api/v1/namespaces/default/pods/%zz", 400, "broken percent-escape"),
        get("/api/v1/namespaces/default/pods/%ff", 400, "not UTF-8"),
        get("/api/v1//pods", 404, "could not find the requested resource"),
        get("/api/v1/nothings", 404, "could not find the requested resource"),
        get("/apis/nowhere/v1/things", 404, "could not find the requested resource"),
        get("/apis/apps/v9/deployments", 404, "could not find the requested resource"),
        get("/api/v1/namespaces/default/nodes", 404, "could not find the requested resource"),
        get("/api/v1/pods/x", 404, "could not find the requested resource"),
        get("/api/v1/namespaces/default/pods/x/status/more", 404, "could not find the requested resource"),
        get("/api/v1/namespaces/default/pods/x/nothing", 404, "could not find the requested resource"),
        get("/api/v1/watch", 400, "unable to determine kind and namespace"),
        get("/api/v1/namespaces/default/configmaps/absent", 404, "configmaps \"absent\" not found"),
        get("/nothing", 404, "could not find the requested resource"),
        case("PUT", CMS, JSON, "{}", 405, "update is not supported"),
        case("POST", "/api/v1/configmaps", JSON, "{}", 405, "create is not supported"),
        case("DELETE", "/api/v1/configmaps", "", "", 405, "deletecollection is not supported"),
        case("POST", "/version", JSON, "{}", 405, "POST is not supported"),
        case("TRACE", CMS, "", "", 405, "trace is not supported"),
    ]
}

fn queries() -> Vec<Case> {
    let list = |query: &str, code, says| case("GET", &format!("{CMS}?{query}"), "", "", code, says);
    let post =
        |query: &str, says| case("POST", &format!("{CMS}?{query}"), JSON, config_map("q").to_string(), 422, says);
    vec![
        list("labelSelector=a%3D%3D%3Db", 400, "unable to parse requirement"),
        list("labelSelector=a%20in%20(", 400, "unable to parse requirement"),
        list("labelSelector=-bad", 400, "unable to parse requirement"),
        list("fieldSelector=spec.nodeName%3Dx", 400, "is not a known field selector"),
        list("fieldSelector=nonsense", 400, "invalid selector"),
        list("limit=many", 400, "strconv.ParseInt: parsing \"many\": invalid syntax"),
        list("continue=%25%25", 400, "continue key is not valid"),
        list("continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiIuLi94In0", 400, "continue key is not valid"),
        list("resourceVersion=latest", 400, "resourceVersion: Invalid value: \"latest\""),
        list(
            "resourceVersion=1&resourceVersionMatch=Sometimes",
            422,
            "resourceVersionMatch: Unsupported value: \"Sometimes\"",
        ),
        list("resourceVersionMatch=Exact", 422, "resourceVersionMatch is forbidden unless resourceVersion is provided"),
        list("sendInitialEvents=true", 422, "sendInitialEvents is forbidden for list"),
        list(
            "watch=1&sendInitialEvents=true",
            422,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        list("watch=1&timeoutSeconds=x", 400, "strconv.ParseInt"),
        case(
            "GET",
            &format!("{PODS}?fieldSelector=spec.nonsense%3Dx"),
            "",
            "",
            400,
            "field label not supported: spec.nonsense",
        ),
        post("dryRun=Some", "dryRun: Unsupported value"),
        post("fieldValidation=Maybe", "fieldValidation: Unsupported value: \"Maybe\""),
        post("fieldManager=a%00b", "fieldManager: Invalid value"),
        case(
            "DELETE",
            &format!("{CMS}/x?propagationPolicy=Sideways"),
            "",
            "",
            422,
            "propagationPolicy: Unsupported value: \"Sideways\"",
        ),
        case("DELETE", &format!("{CMS}/x?gracePeriodSeconds=soon"), "", "", 400, "strconv.ParseInt"),
    ]
}

fn patches() -> Vec<Case> {
    let target = format!("{CMS}/victim");
    let patch = |kind, body: &str, code, says| case("PATCH", &target, kind, body, code, says);
    vec![
        patch(JSON, "{}", 415, "application/json-patch+json"),
        patch("application/json-patch+json", "{}", 400, "patch"),
        patch("application/json-patch+json", "[", 400, "error decoding patch"),
        patch("application/json-patch+json", r#"[{"op":"fly","path":"/data"}]"#, 422, "Unexpected kind: fly"),
        patch("application/json-patch+json", r#"[{"op":"remove","path":"/data/absent"}]"#, 422, "absent"),
        patch("application/json-patch+json", r#"[{"op":"test","path":"/data/k","value":"w"}]"#, 422, "test"),
        patch(
            "application/merge-patch+json",
            r#"{"metadata":{"name":"other"}}"#,
            400,
            "does not match the name on the URL",
        ),
        patch("application/merge-patch+json", r#"{"kind":"Pod"}"#, 400, "may not change apiVersion and kind"),
        patch("application/merge-patch+json", r#"{"data":[1]}"#, 422, "cannot unmarshal array"),
        patch("application/json-patch+json", r#"[{"op":1}]"#, 400, "struct field jsonPatchOp.op of type string"),
        patch(
            "application/merge-patch+json",
            r#"{"metadata":{"resourceVersion":"1"}}"#,
            409,
            "the object has been modified",
        ),
        patch(
            "application/merge-patch+json",
            r#"{"metadata":{"uid":"other"}}"#,
            422,
            "metadata.uid: Invalid value: \"other\"",
        ),
        patch("application/apply-patch+yaml", "{}", 422, "fieldManager: Required value: is required for apply patch"),
    ]
}

#[tokio::test]
async fn every_mistake_is_answered_as_upstream_answers_it() {
    let rig = Rig::new().await;
    rig.post(CMS, &config_map("victim")).await.expect(201);
    let cases: Vec<Case> =
        [bodies(), metadata(), pods(), paths(), queries(), patches()].into_iter().flatten().collect();
    assert!(cases.len() >= 60, "{}", cases.len());
    let mut wrong = Vec::new();
    for (method, path, kind, body, code, says) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let headers: &[(&str, &str)] = if kind.is_empty() { &[] } else { &[("content-type", kind)] };
        let answer = rig.send(method, &path, headers, body).await;
        // A patch that does not apply says why in its causes.
        let text = format!(
            "{}{}",
            answer.message(),
            answer.body["details"]["causes"][0]["message"].as_str().unwrap_or_default()
        );
        if answer.code != code || !text.contains(says) {
            wrong.push(format!("{method} {path} {kind} {shown}\n  wanted {code} {says}\n  got {} {text}", answer.code));
        }
        rig.get("/api/v1/namespaces/default/configmaps/victim").await.expect(200);
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

const REVISIONS: &str = "/apis/apps/v1/namespaces/default/controllerrevisions";

fn revision(levels: usize) -> String {
    let data = format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
    format!(
        r#"{{"kind":"ControllerRevision","apiVersion":"apps/v1","metadata":{{"name":"deep","namespace":"default"}},"revision":1,"data":{data}}}"#
    )
}

#[tokio::test]
async fn what_is_too_deep_is_neither_made_nor_patched_together() {
    let rig = Rig::new().await;
    let json = &[("content-type", JSON)][..];
    rig.send("POST", REVISIONS, json, revision(200)).await.expect(400);
    rig.send("POST", REVISIONS, json, revision(120)).await.expect(400);
    rig.send("POST", REVISIONS, json, revision(119)).await.expect(201);
    let doubling = json!([
        { "op": "copy", "from": "/data", "path": format!("/data{}", "/a".repeat(100)) },
        { "op": "copy", "from": "/data", "path": format!("/data{}", "/a".repeat(200)) },
    ]);
    let answer = rig.patch(&format!("{REVISIONS}/deep"), "json-patch+json", &doubling).await;
    assert_eq!(answer.body["details"]["causes"][0]["message"], "exceeded max depth of 120");
    answer.expect(422);
    let deeper = format!(r#"{{"data":{{"a":{}1{}}}}}"#, "[".repeat(125), "]".repeat(125));
    let merge = &[("content-type", "application/merge-patch+json")][..];
    rig.send("PATCH", &format!("{REVISIONS}/deep"), merge, deeper).await.expect(422);
    let yaml = format!("data: {}1{}\n", "[".repeat(500), "]".repeat(500));
    rig.send("POST", REVISIONS, &[("content-type", "application/yaml")], yaml).await.expect(400);
    rig.delete(&format!("{REVISIONS}/deep")).await.expect(200);
}

#[tokio::test]
async fn what_was_stored_too_deep_can_be_read_listed_replaced_and_deleted() {
    let rig = Rig::new().await;
    let def = carob_api::kinds::by_kind("apps", "v1", "ControllerRevision").expect("a kind of the table");
    let key = def.storage_key("default", "deep");
    for levels in [130, 20_000] {
        let txn = carob_store::Txn::put(key.as_str(), carob_store::Expect::Absent, revision(levels));
        rig.store.txn(txn).await.expect("stored as a server without the limit would");
        let one = format!("{REVISIONS}/deep");
        let raw = rig.get(&one).await;
        assert_eq!(raw.code, 200);
        assert!(raw.body.is_string(), "as it is stored, deeper than this test's parser reads");
        let table = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
        for path in [one.as_str(), REVISIONS, &format!("{REVISIONS}?labelSelector=a!%3Db")] {
            rig.send("GET", path, &[table], "").await.expect(200);
        }
        let labelled = rig.patch(&one, "merge-patch+json", &json!({ "metadata": { "labels": { "a": "b" } } })).await;
        assert_eq!(labelled.expect(200)["metadata"]["labels"]["a"], "b");
        rig.delete(&one).await.expect(200);
        rig.get(&one).await.expect(404);
    }
}

#[tokio::test]
async fn a_watch_may_ask_for_any_time() {
    let rig = Rig::new().await;
    for seconds in ["9223372036854775807", "99999999999", "-1", "0"] {
        let mut events = rig.watch(&format!("{CMS}?watch=1&timeoutSeconds={seconds}")).await;
        rig.post(CMS, &config_map("seen")).await.expect(201);
        assert_eq!(events.brief().await.1, "seen");
        rig.delete(&format!("{CMS}/seen")).await.expect(200);
    }
}

/// Of large requests only a few are computed at once, away from the threads that serve the others.
#[tokio::test]
async fn large_patches_are_answered_beside_small_requests() {
    let rig = Rig::new().await;
    let entries = |from: usize| -> serde_json::Map<String, serde_json::Value> {
        (from..from + 20_000).map(|n| (format!("k{n}"), json!("v"))).collect()
    };
    rig.post(CMS, &json!({ "metadata": { "name": "big" }, "data": entries(0) })).await.expect(201);
    let big = format!("{CMS}/big");
    let patch = json!({ "data": entries(10_000) });
    let patches = (0..6).map(|_| rig.patch(&big, "strategic-merge-patch+json", &patch));
    for answer in futures_util::future::join_all(patches).await {
        answer.expect(200);
    }
    assert_eq!(rig.get(&big).await.expect(200)["data"].as_object().map(serde_json::Map::len), Some(30_000));
}

#[tokio::test]
async fn a_request_that_ends_too_early_is_the_clients_mistake() {
    use bytes::Bytes;
    use http_body_util::{BodyExt, StreamBody};
    let rig = Rig::new().await;
    let pieces: Vec<Result<http_body::Frame<Bytes>, std::io::Error>> = vec![
        Ok(http_body::Frame::data(Bytes::from_static(b"{\"metadata\":"))),
        Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the client went away")),
    ];
    let body = StreamBody::new(futures_util::stream::iter(pieces));
    let request = http::Request::post(CMS).header("content-type", JSON).body(body).expect("valid");
    let response = rig.api.handle(request, carob_apiserver::UserInfo::master("admin")).await;
    assert_eq!(response.status(), 400);
    let bytes = response.into_body().collect().await.expect("a whole answer").to_bytes();
    assert!(String::from_utf8_lossy(&bytes).contains("the client went away"));
}

#[tokio::test]
async fn unknown_fields_are_dropped_with_a_warning_unless_told_otherwise() {
    let rig = Rig::new().await;
    let mut body = pod("p");
    body["spec"]["nonsense"] = json!(1);
    let answer = rig.post(PODS, &body).await;
    assert_eq!(answer.warnings(), [r#"299 - "unknown field \"spec.nonsense\"""#]);
    assert_eq!(answer.expect(201)["spec"].get("nonsense"), None);
    body["metadata"]["name"] = json!("q");
    let answer = rig.post(&format!("{PODS}?fieldValidation=Ignore"), &body).await;
    assert_eq!(answer.warnings(), [""; 0]);
    answer.expect(201);
}
