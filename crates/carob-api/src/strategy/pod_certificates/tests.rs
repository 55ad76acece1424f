use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};
use serde_json::json;

use super::*;

/// Made by OpenSSL, for keys that ring does not make. The proofs are of the Pod's uid `uid`.
const RSA_2048: &[u8] = include_bytes!("../../../corpus/certificates/rsa2048.csr");
const RSA_3072: &[u8] = include_bytes!("../../../corpus/certificates/rsa3072.csr");
const P224: &[u8] = include_bytes!("../../../corpus/certificates/p224.csr");
const P521: &[u8] = include_bytes!("../../../corpus/certificates/p521.csr");
const RSA_KEY: &[u8] = include_bytes!("../../../corpus/certificates/rsa3072.pub");
const RSA_PROOF: &[u8] = include_bytes!("../../../corpus/certificates/rsa3072.sig");
const P256_KEY: &[u8] = include_bytes!("../../../corpus/certificates/p256.pub");
const P256_PROOF: &[u8] = include_bytes!("../../../corpus/certificates/p256.sig");

fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).expect("ring makes keys")
}

fn request_of(key: &KeyPair) -> Vec<u8> {
    let params = CertificateParams::new(Vec::new()).expect("no names to parse");
    params.serialize_request(key).expect("a request").der().to_vec()
}

fn object(request: &[u8]) -> Value {
    json!({ "metadata": { "name": "r", "namespace": "ns" }, "spec": {
        "signerName": "example.com/x", "podName": "p", "podUID": "uid", "serviceAccountName": "default",
        "serviceAccountUID": "u2", "nodeName": "n", "nodeUID": "u3", "maxExpirationSeconds": 86400,
        "stubPKCS10Request": STANDARD.encode(request),
    } })
}

fn errors(obj: &Value) -> Vec<String> {
    PodCertificateRequest.validate_create(obj).iter().map(ToString::to_string).collect()
}

#[track_caller]
fn check_spec(field: &str, value: Value, expected: &str) {
    let mut obj = object(&request_of(&key(&rcgen::PKCS_ED25519)));
    obj["spec"][field] = value;
    let errors = errors(&obj);
    assert!(errors.iter().any(|error| error.contains(expected)), "{field}: {errors:?}");
}

#[test]
fn a_request_names_its_pod_and_the_signer() {
    check_spec("signerName", json!(""), "spec.signerName: Required value");
    check_spec("signerName", json!("x"), "must be a fully qualified domain and path of the form");
    check_spec("podName", json!("P"), "spec.podName: Invalid value: \"P\": a lowercase RFC 1123 subdomain");
    check_spec("podUID", json!(""), "spec.podUID: Invalid value: \"\": must not be empty");
    check_spec(
        "serviceAccountUID",
        json!("u".repeat(129)),
        "spec.serviceAccountUID: Too long: may not be more than 128",
    );
    check_spec("nodeName", json!("a/b"), "spec.nodeName: Invalid value: \"a/b\"");
    check_spec("maxExpirationSeconds", json!(null), "spec.maxExpirationSeconds: Required value: must be set");
    check_spec("maxExpirationSeconds", json!(3599), "must be in the range [3600, 7862400]");
    check_spec("maxExpirationSeconds", json!(7_862_401), "must be in the range [3600, 7862400]");
    let annotations = |key: &str, value: &str| json!({ key: value });
    let prefixed = "must be a domain-prefixed key (such as \"acme.io/foo\")";
    check_spec("unverifiedUserAnnotations", annotations("a", "b"), prefixed);
    check_spec("unverifiedUserAnnotations", annotations("a/b/c", "d"), "a valid label key must consist of");
    check_spec(
        "unverifiedUserAnnotations",
        annotations("a/b", &"x".repeat(262_144)),
        "Too long: may not be more than 262144",
    );
    let mut own = object(&request_of(&key(&rcgen::PKCS_ED25519)));
    own["spec"]["signerName"] = json!("kubernetes.io/kube-apiserver-client-pod");
    assert_eq!(errors(&own), [""; 0]);
    own["spec"]["maxExpirationSeconds"] = json!(86_401);
    assert_eq!(errors(&own).len(), 1, "Kubernetes' own signers give a day at the most");
}

#[test]
fn who_asks_has_the_key() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        assert_eq!(errors(&object(&request_of(&key(algorithm)))), [""; 0], "{algorithm:?}");
    }
    assert_eq!(errors(&object(RSA_3072)), [""; 0]);
    let mut forged = request_of(&key(&rcgen::PKCS_ED25519));
    *forged.last_mut().expect("it is not empty") ^= 1;
    let refused: [(&[u8], &str); 6] = [
        (b"x", "must be a valid PKCS#10 CSR"),
        (&forged, "invalid signature"),
        (RSA_2048, "\"2048-bit modulus\": RSA keys must have modulus size 3072 or 4096"),
        (P224, "elliptic public keys must use curve P256, P384, or P521"),
        (P521, "invalid signature: signatures of keys on curve P521 cannot be verified here"),
        (&[0x30; KEY_LEN_MAX + 1], "Too long: may not be more than 10240 bytes"),
    ];
    for (request, why) in refused {
        let errors = errors(&object(request));
        assert!(errors.len() == 1 && errors[0].starts_with("spec.stubPKCS10Request: "), "{errors:?}");
        assert!(errors[0].contains(why), "{errors:?}");
    }
}

#[test]
fn a_key_may_come_with_a_proof_in_the_place_of_a_request() {
    let with = |key: &[u8], proof: &[u8]| {
        let mut obj = object(b"");
        obj["spec"]["pkixPublicKey"] = json!(STANDARD.encode(key));
        obj["spec"]["proofOfPossession"] = json!(STANDARD.encode(proof));
        obj
    };
    assert_eq!(errors(&with(RSA_KEY, RSA_PROOF)), [""; 0]);
    assert_eq!(errors(&with(P256_KEY, P256_PROOF)), [""; 0]);
    let unproven = "spec.proofOfPossession: Invalid value: could not verify proof-of-possession signature";
    assert_eq!(errors(&with(RSA_KEY, P256_PROOF)), [unproven]);
    let mut other = with(P256_KEY, P256_PROOF);
    other["spec"]["podUID"] = json!("another");
    assert_eq!(errors(&other), [unproven]);
    assert!(errors(&with(b"x", b"y"))[0].contains("must be a valid PKIX-serialized public key"));
    let one =
        "spec: Invalid value: exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set";
    assert_eq!(errors(&with(P256_KEY, b"")), [one]);
    let mut both = with(P256_KEY, P256_PROOF);
    both["spec"]["stubPKCS10Request"] = json!(STANDARD.encode(RSA_3072));
    assert_eq!(errors(&both), [one]);
    assert_eq!(errors(&object(b"")), [one]);
}

#[test]
fn a_spec_stays() {
    let old = object(RSA_3072);
    let mut new = old.clone();
    new["metadata"]["labels"] = json!({ "a": "b" });
    assert_eq!(PodCertificateRequest.validate_update(Part::Main, &new, &old), []);
    new["spec"]["podName"] = json!("q");
    assert_eq!(PodCertificateRequest.validate_update(Part::Main, &new, &old).len(), 1);
}

/// From a certificate's beginning to its end.
fn leaf(key: &KeyPair, names: &[&str], seconds: i64) -> String {
    let mut params =
        CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("names");
    params.not_before = rcgen::date_time_ymd(2026, 1, 2);
    let hours = std::time::Duration::from_secs(seconds.unsigned_abs());
    params.not_after = params.not_before + hours;
    params.self_signed(key).expect("a certificate").pem()
}

fn condition(kind: &str) -> Value {
    json!({ "type": kind, "status": "True", "reason": "R", "lastTransitionTime": "2026-01-02T00:00:00Z" })
}

fn issue(old: &Value, chain: &str) -> Value {
    let mut new = old.clone();
    new["status"] = json!({
        "conditions": [condition(ISSUED)], "certificateChain": chain, "notBefore": "2026-01-02T00:00:00Z",
        "beginRefreshAt": "2026-01-02T12:00:00Z", "notAfter": "2026-01-03T00:00:00Z",
    });
    new
}

fn status_errors(new: &Value, old: &Value) -> Vec<String> {
    PodCertificateRequest.validate_update(Part::Status, new, old).iter().map(ToString::to_string).collect()
}

#[test]
fn a_certificate_is_issued_to_the_key_and_for_the_time_that_the_status_says() {
    let key = key(&rcgen::PKCS_ECDSA_P256_SHA256);
    let old = object(&request_of(&key));
    let good = leaf(&key, &["pod.example"], 86_400);
    let other = leaf(&self::key(&rcgen::PKCS_ECDSA_P256_SHA256), &[], 86_400);
    let new = issue(&old, &format!("{good}about the next\n{other}"));
    assert_eq!(status_errors(&new, &old), [""; 0]);
    assert_eq!(issued_from(&new, &old), Some("2026-01-02T00:00:00Z".parse().expect("a time")));
    assert_eq!(issued_from(&new, &new), None);

    let chains = [
        (String::new(), "issued certificate chain must contain at least one certificate"),
        (pem::encode("KEY", b"x"), "must consist entirely of CERTIFICATE PEM blocks"),
        (pem::encode(pem::CERTIFICATE, b"x"), "leaf certificate does not parse as valid X.509"),
        (format!("{other}{good}"), "leaf certificate was not issued to the requested public key"),
        (format!("{good}{}", pem::encode("KEY", b"x")), "must consist entirely of CERTFICATE PEM blocks"),
        (format!("{good}{}", pem::encode(pem::CERTIFICATE, b"x")), "intermediate certificate does not parse"),
        ("x".repeat(CHAIN_LEN_MAX + 1), "Too long: may not be more than 102400 bytes"),
        (leaf(&key, &["a..b"], 86_400), "leaf certificate's DNSName should not contain '..'"),
        (leaf(&key, &["b."], 86_400), "leaf certificate's DNSName should not start or end with '.'"),
    ];
    for (chain, why) in chains {
        let errors = status_errors(&issue(&old, &chain), &old);
        assert!(errors.len() == 1 && errors[0].starts_with("status.certificateChain: "), "{errors:?}");
        assert!(errors[0].contains(why), "{why}: {errors:?}");
    }

    let times = [
        ("notBefore", json!("2026-01-02T00:00:01Z"), "must be set to the NotBefore time encoded in the leaf"),
        ("notAfter", json!("2026-01-03T00:00:01Z"), "must be set to the NotAfter time encoded in the leaf"),
        ("beginRefreshAt", json!("2026-01-02T00:09:59Z"), "must be at least 10 minutes after status.notBefore"),
        ("beginRefreshAt", json!("2026-01-02T23:50:01Z"), "must be at least 10 minutes before status.notAfter"),
        ("beginRefreshAt", Value::Null, "in the range [notbefore+10min, notafter-10min]"),
        ("notBefore", Value::Null, "must be present and consistent with the issued certificate"),
    ];
    for (field, value, why) in times {
        let mut new = issue(&old, &good);
        new["status"][field] = value;
        let errors = status_errors(&new, &old);
        assert!(errors.len() == 1 && errors[0].starts_with(&format!("status.{field}: ")), "{errors:?}");
        assert!(errors[0].contains(why), "{why}: {errors:?}");
    }
    for (seconds, end, why) in [
        (3599, "2026-01-02T00:59:59Z", "leaf certificate lifetime must be >= 1 hour"),
        (86_401, "2026-01-03T00:00:01Z", "leaf certificate lifetime must be <= spec.maxExpirationSeconds (86400)"),
    ] {
        let mut new = issue(&old, &leaf(&key, &[], seconds));
        new["status"]["notAfter"] = json!(end);
        let errors = status_errors(&new, &old);
        assert!(errors.len() == 1 && errors[0].contains(why), "{errors:?}");
    }
}

#[test]
fn a_request_ends_once() {
    let key = key(&rcgen::PKCS_ED25519);
    let old = object(&request_of(&key));
    let with = |status: Value| {
        let mut new = old.clone();
        new["status"] = status;
        new
    };
    for kind in ["Denied", "Failed"] {
        let ended = with(json!({ "conditions": [condition(kind)] }));
        assert_eq!(status_errors(&ended, &old), [""; 0]);
        assert_eq!(status_errors(&ended, &ended), [""; 0]);
        let fixed = "status: Invalid value: immutable after PodCertificateRequest is issued, denied, or failed";
        assert_eq!(status_errors(&issue(&old, &leaf(&key, &[], 86_400)), &ended), [fixed]);
        let more = with(json!({ "conditions": [condition(kind)], "certificateChain": "x" }));
        assert!(status_errors(&more, &old)[0].contains("non-condition status fields must be empty"));
    }
    let open = status_errors(&with(json!({ "certificateChain": "x" })), &old);
    assert!(
        open[0].contains("status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\""),
        "{open:?}"
    );
    let cases = [
        (
            json!([condition(ISSUED), condition("Denied")]),
            "status.conditions.[1].type: Invalid value: \"Denied\": There may be at most one",
        ),
        (json!([condition("Ready")]), "status.conditions.[0].type: Unsupported value: \"Ready\""),
        (
            json!([{ "type": "Denied", "status": "False", "reason": "R", "lastTransitionTime": "2026-01-02T00:00:00Z" }]),
            "status.conditions.[0].status: Unsupported value: \"False\"",
        ),
        (
            json!([{ "type": "Denied", "status": "True", "reason": "R" }]),
            "status.conditions[0].lastTransitionTime: Required value",
        ),
        (
            json!([{ "type": "Denied", "status": "True", "reason": "a b", "lastTransitionTime": "2026-01-02T00:00:00Z" }]),
            "status.conditions[0].reason: Invalid value: \"a b\": a condition reason must start with",
        ),
    ];
    for (conditions, why) in cases {
        let errors = status_errors(&with(json!({ "conditions": conditions })), &old);
        assert!(errors.iter().any(|error| error.contains(why)), "{why}: {errors:?}");
    }
}
