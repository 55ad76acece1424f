//! Certificates of Pods and the authorities to trust: served without being asked for, and written by whom a signer is entrusted to.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use carob_apiserver::UserInfo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::{Value, json};

use crate::support::{Rig, pod};

const BUNDLES: &str = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1beta1/namespaces/default/podcertificaterequests";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// Someone who may write all objects of the group, and do `verb` for the signer `example.com/x`.
async fn signer(rig: &Rig, name: &str, verb: &str) -> Rig {
    let rules = json!([
        { "verbs": ["*"], "apiGroups": ["certificates.k8s.io"],
          "resources": ["clustertrustbundles", "podcertificaterequests", "podcertificaterequests/status"] },
        { "verbs": [verb], "apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": ["example.com/x"] },
    ]);
    let role = json!({ "metadata": { "name": name }, "rules": rules });
    rig.post(&format!("{RBAC}/clusterroles"), &role).await.expect(201);
    let binding = json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
        "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name }],
    });
    rig.post(&format!("{RBAC}/clusterrolebindings"), &binding).await.expect(201);
    rig.as_user(UserInfo::new(name, []).into())
}

fn authority() -> String {
    let mut params = CertificateParams::new(Vec::new()).expect("no names to parse");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").pem()
}

#[tokio::test]
async fn a_bundle_of_a_signer_is_attested() {
    let rig = Rig::new().await;
    let attester = signer(&rig, "ann", "attest").await;
    let bundle = |name: &str, signer: &str| json!({ "metadata": { "name": name }, "spec": { "signerName": signer, "trustBundle": authority() } });
    attester.post(BUNDLES, &bundle("plain", "")).await.expect(201);
    attester.post(BUNDLES, &bundle("example.com:x:v1", "example.com/x")).await.expect(201);
    let refused = attester.post(BUNDLES, &bundle("example.com:y:v1", "example.com/y")).await;
    let why = "user not permitted to attest for signerName \"example.com/y\"";
    assert!(refused.code == 403 && refused.message().ends_with(why), "{}", refused.body);
    rig.post(BUNDLES, &bundle("v1", "example.com/x")).await.expect(422);
    let listed = rig.get(&format!("{BUNDLES}?fieldSelector=spec.signerName%3Dexample.com/x")).await.expect(200);
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(1), "{listed}");
}

#[tokio::test]
async fn a_node_asks_for_its_pods_and_the_signer_answers() {
    let rig = Rig::new().await;
    let node = rig.as_user(UserInfo::node("n1"));
    let node_uid = node.post("/api/v1/nodes", &json!({ "metadata": { "name": "n1" } })).await.expect(201);
    let mut object = pod("p");
    object["spec"]["nodeName"] = json!("n1");
    let made = rig.post("/api/v1/namespaces/default/pods", &object).await.expect(201);
    let account = rig.get("/api/v1/namespaces/default/serviceaccounts/default").await.expect(200);
    let uid = |object: &Value| object["metadata"]["uid"].clone();
    let key = KeyPair::generate().expect("ring makes keys");
    let request = CertificateParams::new(Vec::new()).expect("no names").serialize_request(&key).expect("a request");
    let asked = |pod_uid: Value| {
        json!({ "metadata": { "generateName": "req-" }, "spec": {
            "signerName": "example.com/x", "podName": "p", "podUID": pod_uid, "serviceAccountName": "default",
            "serviceAccountUID": uid(&account), "nodeName": "n1", "nodeUID": uid(&node_uid),
            "stubPKCS10Request": STANDARD.encode(request.der()),
        } })
    };
    let refused = node.post(REQUESTS, &asked(json!("another"))).await;
    assert!(refused.code == 403 && refused.message().contains("contains pod UID"), "{}", refused.body);
    let held = node.post(REQUESTS, &asked(uid(&made))).await.expect(201);
    assert_eq!(held["spec"]["maxExpirationSeconds"], 86_400);
    let path = format!("{REQUESTS}/{}", held["metadata"]["name"].as_str().expect("a name"));
    node.get(&path).await.expect(200);
    rig.as_user(UserInfo::node("n2")).get(&path).await.expect(403);
    node.delete(&path).await.expect(403);

    let issued = |from: jiff::Timestamp| {
        let time = |after: u64| from + Duration::from_secs(after);
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        let encoded =
            |at: jiff::Timestamp| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(at.as_second().unsigned_abs());
        (params.not_before, params.not_after) = (encoded(from), encoded(time(3600)));
        let chain = params.self_signed(&key).expect("a certificate").pem();
        let condition = json!({ "type": "Issued", "status": "True", "reason": "Signed", "lastTransitionTime": from });
        json!({ "status": {
            "conditions": [condition], "certificateChain": chain, "notBefore": from, "beginRefreshAt": time(1800),
            "notAfter": time(3600),
        } })
    };
    let now = jiff::Timestamp::from_second(carob_kit::Clock::now(&carob_kit::SystemClock::new()).as_second())
        .expect("a time");
    let status = format!("{path}/status");
    let merge = "merge-patch+json";
    node.patch(&status, merge, &issued(now)).await.expect(403);
    let other = signer(&rig, "bob", "approve").await;
    let refused = other.patch(&status, merge, &issued(now)).await;
    let why = "spec.signerName: Forbidden: User \"bob\" is not permitted to \"sign\" for signer \"example.com/x\"";
    assert!(refused.code == 422 && refused.message().ends_with(why), "{}", refused.body);
    let own = signer(&rig, "sue", "sign").await;
    for late in [now - Duration::from_secs(301), now + Duration::from_secs(330)] {
        let refused = own.patch(&status, merge, &issued(late)).await;
        let why = "must be set to within 5 minutes of kube-apiserver's current time";
        assert!(refused.code == 422 && refused.message().ends_with(why), "{}", refused.body);
    }
    own.patch(&status, merge, &issued(now)).await.expect(200);
    own.patch(&status, merge, &json!({ "status": { "certificateChain": "" } })).await.expect(422);
    let table =
        rig.send("GET", REQUESTS, &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")], "").await.expect(200);
    assert_eq!(table["rows"][0]["cells"][5], "Issued", "{table}");
}
