//! Authorities that a cluster trusts and certificates of Pods, in the files of containers: followed, signed, renewed, refused.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use carob_testkit::{Cluster, until_none};
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

const SIGNER: &str = "example.com/own";

/// The authority that the tests sign with.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    /// Gives a request a certificate for two hours, from this second on.
    fn sign(&self, cluster: &Cluster, request: &Value) -> Result<String> {
        let stub = STANDARD.decode(request["spec"]["stubPKCS10Request"].as_str().context("a request")?)?;
        let mut params = CertificateSigningRequestParams::from_der(&stub.into())?;
        let now: u64 = cluster.host.run("date", ["+%s"])?.trim().parse()?;
        let time = |after: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now + after);
        (params.params.not_before, params.params.not_after) = (time(0), time(7200));
        params.params.distinguished_name.push(DnType::CommonName, "a pod");
        let leaf = params.signed_by(&self.issuer)?.pem();
        let at = |after: u64| -> Result<String> {
            let date = cluster.host.run("date", ["-u", "-d", &format!("@{}", now + after), "+%Y-%m-%dT%H:%M:%SZ"])?;
            Ok(date.trim().to_owned())
        };
        let condition = json!({"type": "Issued", "status": "True", "reason": "Signed", "lastTransitionTime": at(0)?});
        let status = json!({"status": {"conditions": [condition], "certificateChain": format!("{leaf}{}", self.pem),
            "notBefore": at(0)?, "beginRefreshAt": at(3600)?, "notAfter": at(7200)?}});
        answer(cluster, request, &status)?;
        Ok(leaf)
    }
}

fn answer(cluster: &Cluster, request: &Value, status: &Value) -> Result<()> {
    let name = request["metadata"]["name"].as_str().context("a name")?;
    let (kind, patch) = ("podcertificaterequest", status.to_string());
    cluster.kubectl(&["patch", kind, name, "--subresource=status", "--type=merge", "-p", &patch]).map(drop)
}

/// The one request that nobody has answered, as soon as it is there.
fn pending(cluster: &Cluster) -> Result<Value> {
    let mut found = Vec::new();
    until_none("requests for certificates that are missing", || {
        let all = cluster.get(&["podcertificaterequests"])?;
        let all = all["items"].as_array().context("a list")?.clone();
        found = all.into_iter().filter(|request| request["status"]["conditions"].as_array().is_none()).collect();
        Ok(if found.is_empty() { vec!["one"] } else { Vec::new() })
    })?;
    ensure!(found.len() == 1, "{found:?}");
    found.pop().context("there is one")
}

fn apply(cluster: &Cluster, object: &Value) -> Result<()> {
    let path = cluster.host.dir().join("object.json");
    fs_err::write(&path, object.to_string())?;
    cluster.kubectl(&["apply", "-f", path.to_str().context("a UTF-8 path")?]).map(drop)
}

fn bundle(name: &str, signer: &str, labels: &Value, anchors: &[&Authority]) -> Value {
    let text: String = anchors.iter().map(|authority| authority.pem.as_str()).collect();
    json!({"apiVersion": "certificates.k8s.io/v1beta1", "kind": "ClusterTrustBundle",
        "metadata": {"name": name, "labels": labels}, "spec": {"signerName": signer, "trustBundle": text}})
}

fn pod(name: &str, sources: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "busybox", "command": ["sleep", "infinity"],
            "volumeMounts": [{"name": "v", "mountPath": "/trust"}]}],
        "volumes": [{"name": "v", "projected": {"sources": sources}}]}})
}

fn read(cluster: &Cluster, pod: &str, file: &str) -> Result<String> {
    cluster.kubectl(&["exec", pod, "--", "cat", &format!("/trust/{file}")])
}

/// The blocks of a text of certificates, sorted.
fn blocks(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut blocks: Vec<String> =
        lines.split_inclusive(|line| line.starts_with("-----END ")).map(|block| block.concat()).collect();
    blocks.sort();
    blocks
}

/// Waits until a file of a Pod holds these certificates and no others.
fn shows(cluster: &Cluster, pod: &str, file: &str, expected: &[&str]) -> Result<()> {
    let expected = blocks(&expected.concat());
    until_none(&format!("differences of {file} in {pod}"), || {
        let shown = blocks(&read(cluster, pod, file)?);
        Ok(if shown == expected { Vec::new() } else { shown })
    })
}

#[test]
fn bundles_are_shown_by_name_and_by_signer_and_followed() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let (one, two, three) = (Authority::new("one")?, Authority::new("two")?, Authority::new("three")?);
    let none = json!({});
    apply(&cluster, &bundle("plain", "", &none, &[&one]))?;
    apply(&cluster, &bundle("example.com:own:1", SIGNER, &json!({"use": "yes"}), &[&one, &two]))?;
    apply(&cluster, &bundle("example.com:own:2", SIGNER, &json!({"use": "no"}), &[&three]))?;
    let of = |source: Value| json!({"clusterTrustBundle": source});
    let signer =
        |selector: Value, path: &str| of(json!({"signerName": SIGNER, "labelSelector": selector, "path": path}));
    let sources = json!([
        of(json!({"name": "plain", "path": "named"})),
        signer(json!({"matchLabels": {"use": "yes"}}), "used"),
        signer(json!({}), "all"),
        of(json!({"name": "later", "optional": true, "path": "later"})),
    ]);
    apply(&cluster, &pod("trusting", &sources))?;
    cluster.wait("condition=Ready", "pod/trusting")?;
    shows(&cluster, "trusting", "named", &[&one.pem])?;
    shows(&cluster, "trusting", "used", &[&one.pem, &two.pem])?;
    shows(&cluster, "trusting", "all", &[&one.pem, &two.pem, &three.pem])?;
    assert_eq!(read(&cluster, "trusting", "later")?, "");

    apply(&cluster, &bundle("plain", "", &none, &[&two]))?;
    apply(&cluster, &bundle("later", "", &none, &[&three]))?;
    apply(&cluster, &bundle("example.com:own:2", SIGNER, &json!({"use": "yes"}), &[&three]))?;
    shows(&cluster, "trusting", "named", &[&two.pem])?;
    shows(&cluster, "trusting", "later", &[&three.pem])?;
    shows(&cluster, "trusting", "used", &[&one.pem, &two.pem, &three.pem])?;
    cluster.kubectl(&["delete", "clustertrustbundle", "example.com:own:1"])?;
    shows(&cluster, "trusting", "all", &[&three.pem])?;

    apply(&cluster, &pod("waiting", &json!([of(json!({"name": "missing", "path": "ca"}))])))?;
    told(&cluster, "waiting", "FailedMount", "clustertrustbundle \"missing\" not found")?;
    apply(&cluster, &bundle("missing", "", &none, &[&one]))?;
    cluster.wait("condition=Ready", "pod/waiting")?;
    Ok(())
}

/// Waits for an event of a Pod.
fn told(cluster: &Cluster, pod: &str, reason: &str, message: &str) -> Result<()> {
    let selector = format!("--field-selector=involvedObject.name={pod},reason={reason}");
    until_none(&format!("events {reason} of {pod} that are missing"), || {
        let events = cluster.get(&["events", &selector])?;
        let events = events["items"].as_array().context("a list")?.clone();
        let said: Vec<String> =
            events.iter().filter_map(|event| event["message"].as_str().map(str::to_owned)).collect();
        let is_told = said.iter().any(|said| said.contains(message));
        Ok(if is_told { Vec::new() } else { vec![format!("{message:?} is not among {said:?}")] })
    })
}

fn certificate(key_type: &str) -> Value {
    json!([{"podCertificate": {"signerName": SIGNER, "keyType": key_type, "maxExpirationSeconds": 7200,
        "credentialBundlePath": "both.pem", "keyPath": "key.pem", "certificateChainPath": "chain.pem",
        "userAnnotations": {"example.com/for": "tests"}}}])
}

#[test]
fn a_pod_gets_a_certificate_keeps_it_over_a_restart_and_gets_another() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let authority = Authority::new("signer")?;
    let mut object = pod("named", &certificate("ECDSAP256"));
    object["spec"]["securityContext"] = json!({"runAsUser": 1000, "fsGroup": 2000});
    apply(&cluster, &object)?;
    let request = pending(&cluster)?;
    assert_eq!(request["spec"]["podName"], "named");
    assert_eq!(request["spec"]["unverifiedUserAnnotations"], json!({"example.com/for": "tests"}));
    told(&cluster, "named", "FailedMount", "waits for signer \"example.com/own\"")?;
    let leaf = authority.sign(&cluster, &request)?;
    cluster.wait("condition=Ready", "pod/named")?;
    shows(&cluster, "named", "chain.pem", &[&leaf, &authority.pem])?;
    let key = read(&cluster, "named", "key.pem")?;
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{key}");
    assert_eq!(read(&cluster, "named", "both.pem")?, key.clone() + &read(&cluster, "named", "chain.pem")?);
    // The key is the certificate's, and its user's alone.
    let of_request = STANDARD.decode(request["spec"]["stubPKCS10Request"].as_str().context("a request")?)?;
    let of_request = CertificateSigningRequestParams::from_der(&of_request.into())?;
    assert_eq!(rcgen::PublicKeyData::der_bytes(&of_request.public_key), KeyPair::from_pem(&key)?.public_key_raw());
    let mode = cluster.kubectl(&["exec", "named", "--", "stat", "-L", "-c", "%a %u %g", "/trust/key.pem"])?;
    assert_eq!(mode.trim(), "640 1000 2000");

    // A restart of the node asks for nothing: all is there yet.
    cluster.kill_server()?;
    cluster.start_server()?;
    apply(&cluster, &pod("denied", &certificate("ED25519")))?;
    let other = pending(&cluster)?;
    assert_eq!(other["spec"]["podName"], "denied", "the Pod that has one asks for none");
    assert_eq!(read(&cluster, "named", "key.pem")?, key);
    let condition = json!({"type": "Denied", "status": "True", "reason": "NotToday", "message": "ask again",
        "lastTransitionTime": request["metadata"]["creationTimestamp"]});
    answer(&cluster, &other, &json!({"status": {"conditions": [condition]}}))?;
    told(&cluster, "denied", "Denied", "was denied, reason=\"NotToday\", message=\"ask again\"")?;
    told(&cluster, "denied", "FailedMount", "was permanently denied: reason=\"NotToday\" message=\"ask again\"")?;
    cluster.kubectl(&["delete", "pod", "denied"])?;

    // As after a loss of power: the memory that keeps it is gone, and a new one comes under the running container.
    let uid = cluster.get(&["pod", "named"])?["metadata"]["uid"].as_str().context("a uid")?.to_owned();
    let noted = cluster.data_dir().join("pods").join(uid).join("volumes/kubernetes.io~pod-certificate-keys/v/0");
    cluster.kill_server()?;
    cluster.host.run("rm", [&noted])?;
    cluster.start_server()?;
    let again = pending(&cluster)?;
    assert_eq!(read(&cluster, "named", "key.pem")?, key, "the old one is there until there is another");
    let second = authority.sign(&cluster, &again)?;
    shows(&cluster, "named", "chain.pem", &[&second, &authority.pem])?;
    assert_ne!(read(&cluster, "named", "key.pem")?, key);
    let status = cluster.get(&["pod", "named"])?["status"]["containerStatuses"][0]["restartCount"].clone();
    assert_eq!(status, 0);
    cluster.kubectl(&["delete", "pod", "named"])?;
    until_none("mounts of Pods", || {
        let mounts = cluster.host.mounts()?;
        Ok(mounts.into_iter().filter(|mount| mount.contains("pod-certificate-keys")).collect())
    })
}

#[test]
fn keys_that_the_node_cannot_make_are_refused_with_their_path() -> Result<()> {
    let cluster = Cluster::start()?;
    let path = cluster.host.dir().join("pod.json");
    fs_err::write(&path, pod("rsa", &certificate("RSA3072")).to_string())?;
    let said = cluster.kubectl_fails(&["create", "-f", path.to_str().context("a UTF-8 path")?])?;
    let expected = "spec.volumes[0].projected.sources[0].podCertificate.keyType: Forbidden: the node cannot make keys of this type";
    assert!(said.contains(expected), "{said}");
    Ok(())
}
