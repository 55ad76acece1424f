//! Users of another issuer: a second server takes the tokens that the first one issues for it.

use anyhow::{Context, Result};
use carob_testkit::Cluster;
use serde_json::{Value, json};

const ISSUER: &str = "https://127.0.0.1:6443";
const SERVER: &str = "--server=https://127.0.0.1:7443";

/// The second server's configuration.
fn configuration(issuer_ca: &str) -> Value {
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "anonymous": { "enabled": true, "conditions": [{ "path": "/livez" }, { "path": "/readyz" }] },
        "jwt": [{
            "issuer": { "url": ISSUER, "audiences": ["second"], "certificateAuthority": issuer_ca },
            "claimMappings": {
                "username": { "expression": "'first:' + claims['kubernetes.io'].serviceaccount.name" },
                "groups": { "expression": "['first:' + claims['kubernetes.io'].namespace]" },
            },
            "userValidationRules": [{ "expression": "user.username != 'first:default'", "message": "not this one" }],
        }],
    })
}

/// A token of a ServiceAccount, for someone.
fn token(cluster: &Cluster, account: &str, audience: &str) -> Result<String> {
    let request = cluster.host.dir().join("request.json");
    let kind = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "audiences": [audience] } });
    fs_err::write(&request, kind.to_string())?;
    let path = format!("/api/v1/namespaces/default/serviceaccounts/{account}/token");
    let answer = cluster.kubectl(&["create", "--raw", &path, "-f", request.to_str().context("a UTF-8 path")?])?;
    let answer: Value = serde_json::from_str(&answer)?;
    Ok(answer["status"]["token"].as_str().context("a token is granted")?.to_owned())
}

#[test]
fn a_server_takes_tokens_of_another_issuer() -> Result<()> {
    let keys = format!("--service-account-jwks-uri={ISSUER}/openid/v1/jwks");
    let cluster = Cluster::start_with(&["--disable-agent", "--service-account-issuer", ISSUER, &keys])?;
    let discovery = "--clusterrole=system:service-account-issuer-discovery";
    cluster.kubectl(&["create", "clusterrolebinding", "issuer", discovery, "--group=system:unauthenticated"])?;
    cluster.kubectl(&["create", "serviceaccount", "robot"])?;

    let dir = cluster.host.dir().join("second");
    fs_err::create_dir_all(&dir)?;
    let path = |name: &str| dir.join(name).into_os_string().into_string().ok().context("a UTF-8 path");
    let (data, run, config) = (path("data")?, path("run")?, path("authn.json")?);
    let issuer_ca = fs_err::read_to_string(cluster.data_dir().join("pki/ca.crt"))?;
    fs_err::write(&config, configuration(&issuer_ca).to_string())?;
    let server = cluster.start_carob(&[
        "server",
        "--data-dir",
        &data,
        "--run-dir",
        &run,
        "--https-listen-port=7443",
        "--disable-agent",
        "--disable=ingress",
        "--authentication-config",
        &config,
    ])?;

    let (kubeconfig, ca) =
        (format!("--kubeconfig={data}/admin.kubeconfig"), format!("--certificate-authority={data}/pki/ca.crt"));
    cluster.kubectl(&[
        &kubeconfig,
        "create",
        "clusterrolebinding",
        "first",
        "--clusterrole=view",
        "--group=first:default",
    ])?;
    let words = |token: &str, words: &[&'static str]| -> Vec<String> {
        let common = ["--kubeconfig=/dev/null".to_owned(), SERVER.to_owned(), ca.clone(), format!("--token={token}")];
        common.into_iter().chain(words.iter().map(|word| (*word).to_owned())).collect()
    };
    let refused = |token: &str, command: &[&'static str]| {
        let words = words(token, command);
        cluster.kubectl_fails(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let robot = token(&cluster, "robot", "second")?;
    let list = words(&robot, &["get", "configmaps", "--all-namespaces"]);
    cluster.kubectl(&list.iter().map(String::as_str).collect::<Vec<_>>())?;
    let may_not = refused(&robot, &["create", "namespace", "x"])?;
    assert!(may_not.contains("User \"first:robot\" cannot create resource \"namespaces\""), "{may_not}");
    for (token, why) in [
        (token(&cluster, "robot", "third")?, "it is for another server"),
        (token(&cluster, "default", "second")?, "the rule is against it"),
        (format!("{robot}x"), "its signature is not the issuer's"),
    ] {
        let said = refused(&token, &["get", "configmaps"])?;
        assert!(said.contains("Unauthorized") || said.contains("must be logged in"), "{why}: {said}");
    }
    // Nobody reads passwords, so it comes without credentials.
    let password = ["--username=a", "--password=b"];
    let nobody = ["--kubeconfig=/dev/null", SERVER, &ca, password[0], password[1], "get", "--raw", "/version"];
    let said = cluster.kubectl_fails(&nobody)?;
    assert!(said.contains("Unauthorized") || said.contains("must be logged in"), "{said}");
    server.terminate()
}
