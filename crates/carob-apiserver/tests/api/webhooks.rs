//! Admission webhooks, asked over TLS on loopback.

use std::sync::atomic::Ordering;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::hook_server::Server;
use crate::support::{Answer, Rig, config_map, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

impl Server {
    fn webhook(&self, path: &str) -> Value {
        json!({
            "name": "hook.test.io", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": { "url": format!("https://localhost:{}{path}", self.port), "caBundle": self.bundle },
            "rules": [{ "operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps", "pods"] }],
            "timeoutSeconds": 2,
        })
    }
}

fn reviewed(review: &Value, response: Value) -> Vec<u8> {
    let mut response = response;
    response["uid"] = review["request"]["uid"].clone();
    json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response }).to_string().into()
}

fn patch(operations: &Value) -> Value {
    json!({ "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string()) })
}

async fn install(rig: &Rig, kind: &str, webhooks: Value) -> Answer {
    let plural = format!("{}s", kind.to_lowercase());
    let object = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": { "name": "test" }, "webhooks": webhooks,
    });
    rig.post(&format!("/apis/admissionregistration.k8s.io/v1/{plural}"), &object).await
}

const VALIDATING: &str = "ValidatingWebhookConfiguration";
const MUTATING: &str = "MutatingWebhookConfiguration";

#[tokio::test]
async fn a_validating_webhook_refuses_with_its_own_words_and_sees_the_request() {
    let server = Server::start(|_, review| {
        let bad = review["request"]["object"]["data"]["k"] == "bad";
        let status =
            json!({ "message": "the configmap contains unwanted key and value", "reason": "Nope", "code": 403 });
        let response = json!({
            "allowed": !bad, "status": status, "warnings": ["look out"], "auditAnnotations": { "a": "b" },
        });
        Some(reviewed(review, response))
    })
    .await;
    let rig = Rig::new().await;
    install(&rig, VALIDATING, json!([server.webhook("/check")])).await.expect(201);
    let good = rig.post(MAPS, &config_map("good")).await;
    assert_eq!(good.warnings(), [r#"299 - "look out""#]);
    good.expect(201);
    let request = server.requests().remove(0);
    assert_eq!(request["operation"], "CREATE");
    assert_eq!(request["kind"], json!({ "group": "", "version": "v1", "kind": "ConfigMap" }));
    assert_eq!(request["resource"], json!({ "group": "", "version": "v1", "resource": "configmaps" }));
    assert_eq!((&request["name"], &request["namespace"]), (&json!("good"), &json!("default")));
    assert_eq!((&request["oldObject"], &request["dryRun"]), (&Value::Null, &json!(false)));
    assert_eq!(request["userInfo"]["username"], "admin");
    assert_eq!(request["options"]["kind"], "CreateOptions");
    let mut bad = config_map("bad");
    bad["data"]["k"] = "bad".into();
    let refused = rig.post(MAPS, &bad).await;
    assert_eq!(
        refused.message(),
        "admission webhook \"hook.test.io\" denied the request: the configmap contains unwanted key and value"
    );
    refused.expect(403);
    // An update is refused alike, and a deletion shows the old object.
    rig.patch(&format!("{MAPS}/good"), "merge-patch+json", &json!({ "data": { "k": "bad" } })).await.expect(403);
    server.requests();
    rig.delete(&format!("{MAPS}/good")).await.expect(200);
    let request = server.requests().remove(0);
    assert_eq!((&request["operation"], &request["object"]), (&json!("DELETE"), &Value::Null));
    assert_eq!(request["oldObject"]["metadata"]["name"], "good");
}

#[tokio::test]
async fn a_mutating_webhook_changes_objects_and_defaults_follow() {
    let server = Server::start(|_, review| {
        let response = match review["request"]["kind"]["kind"].as_str() {
            Some("Pod") => patch(&json!([
                { "op": "add", "path": "/spec/initContainers", "value": [{ "name": "added", "image": "busybox" }] },
                { "op": "add", "path": "/metadata/uid", "value": "mine" },
                { "op": "add", "path": "/metadata/managedFields", "value": [] },
            ])),
            _ => patch(&json!([{ "op": "add", "path": "/data/added", "value": "yes" }])),
        };
        Some(reviewed(review, response))
    })
    .await;
    let rig = Rig::new().await;
    install(&rig, MUTATING, json!([server.webhook("/")])).await.expect(201);
    let map = rig.post(MAPS, &config_map("a")).await.expect(201);
    assert_eq!(map["data"], json!({ "k": "v", "added": "yes" }));
    let made = rig.post("/api/v1/namespaces/default/pods", &pod("p")).await.expect(201);
    let added = &made["spec"]["initContainers"][0];
    assert_eq!((&added["name"], &added["terminationMessagePolicy"]), (&json!("added"), &json!("File")));
    assert_ne!(made["metadata"]["uid"], "mine");
    assert_eq!(made["metadata"]["managedFields"][0]["manager"], "rig");
    // A deletion has nothing to change.
    let refused = rig.delete(&format!("{MAPS}/a")).await;
    assert!(refused.message().contains("attempted to modify the object, which is not supported for this operation"));
    refused.expect(500);
}

#[tokio::test]
async fn failures_follow_the_policy_and_name_the_call() {
    let server = Server::start(|path, review| match path {
        "/hang" => None,
        "/lie" => Some(
            json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": { "uid": "x", "allowed": true } })
                .to_string()
                .into(),
        ),
        "/huge" => Some(vec![b' '; 9 * 1024 * 1024]),
        _ => Some(reviewed(review, json!({ "allowed": true }))),
    })
    .await;
    for (path, text) in [
        ("/hang", format!("Post \"https://localhost:{}/hang?timeout=1s\": context deadline exceeded", server.port)),
        ("/lie", "received invalid webhook response: expected response.uid=".to_owned()),
        ("/huge", "the reply is longer than 8388608 bytes".to_owned()),
    ] {
        let rig = Rig::new().await;
        let mut webhook = server.webhook(path);
        webhook["timeoutSeconds"] = 1.into();
        install(&rig, VALIDATING, json!([webhook])).await.expect(201);
        let failed = rig.post(MAPS, &config_map("a")).await;
        let begin = "Internal error occurred: failed calling webhook \"hook.test.io\": ";
        assert!(failed.message().starts_with(begin) && failed.message().contains(&text), "{}", failed.message());
        failed.expect(500);
        let open = json!({ "webhooks": [{ "name": "hook.test.io", "failurePolicy": "Ignore" }] });
        let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/test";
        rig.patch(path, "strategic-merge-patch+json", &open).await.expect(200);
        rig.post(MAPS, &config_map("a")).await.expect(201);
        // A configuration is never subject to a webhook, so a broken one can be taken away.
        rig.delete(path).await.expect(200);
    }
}

#[tokio::test]
async fn an_untrusted_certificate_is_refused_as_go_words_it() {
    let server = Server::start(|_, review| Some(reviewed(review, json!({ "allowed": true })))).await;
    let other = Server::start(|_, review| Some(reviewed(review, json!({ "allowed": true })))).await;
    let mut webhook = server.webhook("/");
    webhook["clientConfig"]["caBundle"] = other.bundle.as_str().into();
    let rig = Rig::new().await;
    install(&rig, VALIDATING, json!([webhook])).await.expect(201);
    let failed = rig.post(MAPS, &config_map("a")).await;
    let text = "tls: failed to verify certificate: x509: certificate signed by unknown authority";
    assert!(failed.message().ends_with(text), "{}", failed.message());
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_service_is_dialled_by_its_ready_endpoint() {
    let server = Server::start(|_, review| Some(reviewed(review, json!({ "allowed": true })))).await;
    let rig = Rig::new().await;
    let mut webhook = server.webhook("/");
    webhook["clientConfig"] =
        json!({ "service": { "name": "hook", "namespace": "default", "path": "/p" }, "caBundle": server.bundle });
    install(&rig, VALIDATING, json!([webhook])).await.expect(201);
    let failed = rig.post(MAPS, &config_map("a")).await;
    assert!(failed.message().ends_with("service \"hook\" not found"), "{}", failed.message());
    let service = json!({ "metadata": { "name": "hook" }, "spec": { "ports": [{ "name": "web", "port": 443, "targetPort": server.port }] } });
    rig.post("/api/v1/namespaces/default/services", &service).await.expect(201);
    let failed = rig.post(MAPS, &config_map("a")).await;
    assert!(failed.message().ends_with("no endpoints available for service \"hook\""), "{}", failed.message());
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "hook-1", "labels": { "kubernetes.io/service-name": "hook" } },
        "ports": [{ "name": "web", "port": server.port }],
        "endpoints": [{ "addresses": ["127.0.0.1"], "conditions": { "ready": true } }],
    });
    // The API refuses loopback addresses in slices; here they stand for a Pod's.
    let key = "/registry/endpointslices/default/hook-1";
    let txn = carob_store::Txn::put(key, carob_store::Expect::Absent, slice.to_string());
    rig.store.txn(txn).await.expect("the store takes it");
    rig.post(MAPS, &config_map("a")).await.expect(201);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn selectors_conditions_and_dry_run_decide_whether_it_is_asked() {
    let server = Server::start(|_, review| Some(reviewed(review, json!({ "allowed": false })))).await;
    let rig = Rig::new().await;
    let mut webhook = server.webhook("/");
    webhook["objectSelector"] = json!({ "matchLabels": { "asked": "yes" } });
    webhook["matchConditions"] = json!([
        { "name": "not-skipped", "expression": "object.metadata.name != 'skip-me'" },
        {
            "name": "may-write",
            "expression": "authorizer.group('').resource('configmaps').namespace('default').check('create').allowed() \
                           && authorizer.requestResource.check('get').allowed()",
        },
    ]);
    install(&rig, VALIDATING, json!([webhook])).await.expect(201);
    rig.post(MAPS, &config_map("unlabelled")).await.expect(201);
    let labelled = |name: &str| {
        let mut map = config_map(name);
        map["metadata"]["labels"] = json!({ "asked": "yes" });
        map
    };
    rig.post(MAPS, &labelled("skip-me")).await.expect(201);
    assert!(server.requests().is_empty());
    rig.post(&format!("{MAPS}?dryRun=All"), &labelled("refused")).await.expect(400);
    assert_eq!(server.requests()[0]["dryRun"], true);
    let mut bad = server.webhook("/");
    bad["matchConditions"] = json!([{ "name": "bad", "expression": "... [bad-expression]" }]);
    let refused = install(&rig, MUTATING, json!([bad])).await;
    assert!(refused.message().contains("compilation failed"), "{}", refused.message());
    refused.expect(422);
}

#[tokio::test]
async fn a_webhook_sees_what_later_ones_changed_if_it_wants_to() {
    let server = Server::start(|path, review| {
        let data = &review["request"]["object"]["data"];
        let response = match path {
            "/first" if data.get("second").is_some() => {
                patch(&json!([{ "op": "add", "path": "/data/seen", "value": "x" }]))
            }
            "/second" => patch(&json!([{ "op": "add", "path": "/data/second", "value": "x" }])),
            _ => json!({ "allowed": true }),
        };
        Some(reviewed(review, response))
    })
    .await;
    let rig = Rig::new().await;
    let (mut first, mut second) = (server.webhook("/first"), server.webhook("/second"));
    first["name"] = "first.test.io".into();
    first["reinvocationPolicy"] = "IfNeeded".into();
    second["name"] = "second.test.io".into();
    install(&rig, MUTATING, json!([first, second])).await.expect(201);
    let map = rig.post(MAPS, &config_map("a")).await.expect(201);
    assert_eq!(map["data"], json!({ "k": "v", "second": "x", "seen": "x" }));
    assert_eq!(server.requests().len(), 3, "the second is not asked again");
}

#[tokio::test]
async fn calls_share_a_connection() {
    let server = Server::start(|_, review| Some(reviewed(review, json!({ "allowed": true })))).await;
    let rig = Rig::new().await;
    install(&rig, VALIDATING, json!([server.webhook("/")])).await.expect(201);
    for index in 0..5 {
        rig.post(MAPS, &config_map(&format!("m{index}"))).await.expect(201);
    }
    assert_eq!(server.requests().len(), 5);
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
}
