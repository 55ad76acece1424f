//! RBAC: what every cluster has, what roles and bindings grant, and that nobody grants what they do not have.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use carob_apiserver::{Identity, UserInfo};
use serde_json::{Value, json};

use super::support::{Rig, config_map};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn user(name: &str) -> Identity {
    Arc::new(UserInfo::new(name, []))
}

fn role(name: &str, verbs: &[&str], resource: &str) -> Value {
    json!({ "metadata": { "name": name }, "rules": [{ "verbs": verbs, "apiGroups": [""], "resources": [resource] }] })
}

fn binding(name: &str, kind: &str, role: &str, user: &str) -> Value {
    json!({
        "metadata": { "name": name }, "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }],
    })
}

#[tokio::test]
async fn every_cluster_has_upstreams_roles_and_gets_them_back() {
    let rig = Rig::new().await;
    let admin = rig.get(&format!("{RBAC}/clusterroles/cluster-admin")).await.expect(200);
    assert_eq!(admin["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"], "true");
    assert_eq!(admin["metadata"]["labels"]["kubernetes.io/bootstrapping"], "rbac-defaults");
    rig.delete(&format!("{RBAC}/clusterroles/system:basic-user")).await.expect(200);
    let discovery = format!("{RBAC}/clusterroles/system:discovery");
    rig.patch(&discovery, "merge-patch+json", &json!({ "rules": [{ "verbs": ["get"], "nonResourceURLs": ["/own"] }] }))
        .await
        .expect(200);
    let bound = format!("{RBAC}/clusterrolebindings/system:discovery");
    rig.patch(&bound, "merge-patch+json", &json!({ "subjects": null })).await.expect(200);
    let eve = rig.as_user(user("eve"));
    eve.get("/api").await.expect(403);
    rig.api.bootstrap().await.expect("it can be put right");
    eve.get("/api").await.expect(200);
    eve.post(
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        &json!({ "spec": { "nonResourceAttributes": { "verb": "get", "path": "/own" } } }),
    )
    .await
    .expect(201);
    let rules = rig.get(&discovery).await.expect(200)["rules"].clone();
    assert_eq!(rules[0]["nonResourceURLs"], json!(["/own"]), "what a user added stays");
    let anonymous = rig.as_user(UserInfo::anonymous());
    anonymous.get("/livez").await.expect(200);
    anonymous.get("/version").await.expect(200);
    assert_eq!(
        anonymous.get("/metrics").await.message(),
        "forbidden: User \"system:anonymous\" cannot get path \"/metrics\""
    );
}

#[tokio::test]
async fn a_binding_grants_at_once_and_reviews_agree() {
    let rig = Rig::new().await;
    let jane = rig.as_user(user("jane"));
    jane.post(MAPS, &config_map("a")).await.expect(403);
    let roles = format!("{RBAC}/namespaces/default/roles");
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    rig.post(&roles, &role("writer", &["create", "get"], "configmaps")).await.expect(201);
    rig.post(&bindings, &binding("jane", "Role", "writer", "jane")).await.expect(201);
    jane.post(MAPS, &config_map("a")).await.expect(201);
    jane.delete(&format!("{MAPS}/a")).await.expect(403);
    jane.post("/api/v1/namespaces/kube-system/configmaps", &config_map("a")).await.expect(403);
    let review = json!({ "spec": { "user": "jane", "resourceAttributes": { "verb": "create", "resource": "configmaps", "namespace": "default" } } });
    let reviewed = rig.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await.expect(201);
    assert_eq!(
        reviewed["status"],
        json!({ "allowed": true, "reason": "RBAC: allowed by RoleBinding \"jane/default\" of Role \"writer\" to User \"jane\"" })
    );
    let rules = jane
        .post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &json!({ "spec": { "namespace": "default" } }))
        .await
        .expect(201);
    let own = json!({ "verbs": ["create", "get"], "apiGroups": [""], "resources": ["configmaps"] });
    assert!(rules["status"]["resourceRules"].as_array().is_some_and(|rules| rules.contains(&own)), "{rules}");
    rig.delete(&format!("{roles}/writer")).await.expect(200);
    let refused = jane.post(MAPS, &config_map("b")).await;
    assert_eq!(
        refused.message(),
        "configmaps is forbidden: User \"jane\" cannot create resource \"configmaps\" in API group \"\" in the namespace \
         \"default\": RBAC: role.rbac.authorization.k8s.io \"writer\" not found"
    );
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_have() {
    let rig = Rig::new().await;
    let roles = format!("{RBAC}/namespaces/default/roles");
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    // May write roles and bindings, and read configmaps; nothing else.
    let mut own = role("own", &["get"], "configmaps");
    own["rules"].as_array_mut().expect("it is a list").push(
        json!({ "verbs": ["create", "update", "patch"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"] }),
    );
    rig.post(&roles, &own).await.expect(201);
    rig.post(&bindings, &binding("eve", "Role", "own", "eve")).await.expect(201);
    let eve = rig.as_user(user("eve"));
    eve.post(&roles, &role("less", &["get"], "configmaps")).await.expect(201);
    let more = eve.post(&roles, &role("more", &["get"], "secrets")).await;
    assert_eq!(
        (more.code, more.message()),
        (
            403,
            "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"eve\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}"
        )
    );
    let patch = json!({ "rules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }] });
    eve.patch(&format!("{roles}/less"), "merge-patch+json", &patch).await.expect(403);
    eve.patch(&format!("{roles}/own"), "merge-patch+json", &patch).await.expect(403);
    eve.post(&bindings, &binding("up", "ClusterRole", "cluster-admin", "eve")).await.expect(403);
    eve.post(&bindings, &binding("none", "Role", "absent", "eve")).await.expect(404);
    eve.post(&bindings, &binding("same", "Role", "own", "joe")).await.expect(201);
    // Whoever may bind a role, may hand on what they do not have.
    let mut bind = role("bind", &["bind"], "");
    bind["rules"][0] = json!({ "verbs": ["bind"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["view"] });
    rig.post(&roles, &bind).await.expect(201);
    rig.post(&bindings, &binding("bind", "Role", "bind", "eve")).await.expect(201);
    eve.post(&bindings, &binding("viewer", "ClusterRole", "view", "joe")).await.expect(201);
    eve.post(&bindings, &binding("editor", "ClusterRole", "cluster-admin", "joe")).await.expect(403);
}

#[tokio::test]
async fn a_certificate_request_says_who_sent_it() {
    let rig = Rig::new().await;
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let pem = certificate_request("system:masters");
    let request = |signer: &str, pem: &str| {
        json!({
            "metadata": { "name": "r" },
            "spec": {
                "request": STANDARD.encode(pem), "signerName": signer, "usages": ["client auth"], "username": "nobody",
                "uid": "0", "groups": ["none"], "extra": { "a": ["b"] },
            },
        })
    };
    let made = rig.post(requests, &request("example.com/own", &pem)).await.expect(201);
    assert_eq!(made["spec"]["username"], "admin");
    assert_eq!(made["spec"]["groups"], json!(["system:masters", "system:authenticated"]));
    assert!(made["spec"].get("extra").is_none() && made["spec"].get("uid").is_none(), "{made}");
    rig.post(requests, &request("example.com/own", "not PEM")).await.expect(422);
    rig.post(requests, &request("kubernetes.io/kube-apiserver-client", &pem)).await.expect(403);
}

/// A signed request for a certificate of a member of `organisation`, in PEM.
fn certificate_request(organisation: &str) -> String {
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names to parse");
    params.distinguished_name.push(rcgen::DnType::OrganizationName, organisation);
    let key = rcgen::KeyPair::generate().expect("ring makes keys");
    params.serialize_request(&key).and_then(|request| request.pem()).expect("a request can be made")
}
