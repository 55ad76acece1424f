//! A real issuer on loopback: TLS, its configuration, its keys; and tokens that it signs.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use carob_kit::{Clock, ManualClock};
use carob_store::{Options, Store};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};

use super::*;
use crate::NetworkDialer;

const NOW_S: i64 = 1_000_000;

/// A key of an issuer.
pub(super) struct Signer {
    id: String,
    key: EcdsaKeyPair,
}

impl Signer {
    pub(super) fn new(id: &str) -> Self {
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("ring makes keys");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref(), &random);
        Self { id: id.to_owned(), key: key.expect("its own key is good") }
    }

    pub(super) fn sign(&self, claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(&json!({ "alg": "ES256", "kid": self.id })), encode(claims));
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).expect("it signs");
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    pub(super) fn jwks(&self) -> Value {
        let point = self.key.public_key().as_ref();
        let coordinate = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id,
            "x": coordinate(1..33), "y": coordinate(33..65),
        }] })
    }
}

/// Documents by path, over TLS on loopback, and how often someone asked.
struct Server {
    address: SocketAddr,
    ca_pem: String,
    documents: Arc<Mutex<BTreeMap<String, Value>>>,
    asked: Arc<AtomicUsize>,
}

impl Server {
    fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("ring makes keys");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("they are")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("the key is the certificate's");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let documents: Arc<Mutex<BTreeMap<String, Value>>> = Arc::default();
        let asked: Arc<AtomicUsize> = Arc::default();
        let (tls, served, count) = (Arc::new(tls), Arc::clone(&documents), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                count.fetch_add(1, Ordering::SeqCst);
                let mut connection = rustls::ServerConnection::new(Arc::clone(&tls)).expect("a configuration");
                let mut stream = rustls::Stream::new(&mut connection, &mut stream);
                let mut request = [0; 2048];
                let Ok(len) = stream.read(&mut request) else { continue };
                let request = String::from_utf8_lossy(&request[..len]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                let found = served.lock().expect("tests do not panic here").get(path).map(Value::to_string);
                let (code, body) = found.map_or(("404 Not Found", String::new()), |body| ("200 OK", body));
                let head = format!("HTTP/1.1 {code}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                // A client that has gone is no matter here.
                drop(stream.write_all((head + &body).as_bytes()).and_then(|()| stream.flush()));
            }
        });
        Self { address, ca_pem: made.cert.pem(), documents, asked }
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    fn put(&self, path: &str, document: Value) {
        self.documents.lock().expect("tests do not panic here").insert(path.to_owned(), document);
    }

    fn publish(&self, signer: &Signer) {
        let url = self.url();
        self.put(
            "/.well-known/openid-configuration",
            json!({ "issuer": url, "jwks_uri": format!("{url}/keys?of=all") }),
        );
        self.put("/keys?of=all", signer.jwks());
    }
}

fn configuration(jwt: &Value) -> Value {
    json!({ "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [jwt] })
}

fn jwt(url: &str, ca_pem: &str) -> Value {
    json!({
        "issuer": { "url": url, "audiences": ["carob"], "certificateAuthority": ca_pem },
        "claimMappings": {
            "username": { "claim": "sub", "prefix": "jwt:" },
            "groups": { "claim": "groups", "prefix": "jwt:" },
        },
    })
}

struct Rig {
    server: Server,
    signer: Signer,
    issuers: JwtIssuers,
    clock: Arc<ManualClock>,
}

fn rig(change: impl FnOnce(&mut Value)) -> Rig {
    let (server, signer) = (Server::start(), Signer::new("one"));
    server.publish(&signer);
    let mut config = jwt(&server.url(), &server.ca_pem);
    change(&mut config);
    let config = AuthenticationConfig::parse(configuration(&config), &["https://own".to_owned()]).expect("it is sound");
    let clock = Arc::new(ManualClock::new(jiff::Timestamp::from_second(NOW_S).expect("a time")));
    let http = WebhookClient::new(Store::in_memory(Options::default()), Arc::new(NetworkDialer::without_tls()));
    let dyn_clock: Arc<dyn Clock> = Arc::clone(&clock) as _;
    Rig { server, signer, issuers: JwtIssuers::new(config, vec!["api".to_owned()], &http, &dyn_clock), clock }
}

impl Rig {
    fn claims(&self) -> Value {
        json!({ "iss": self.server.url(), "aud": ["x", "carob"], "sub": "jane", "exp": NOW_S + 60, "groups": ["a", "b"] })
    }

    async fn authenticate(&self, token: &str) -> Result<crate::identity::Identity, String> {
        self.issuers.authenticate(token, &[]).await.map(|found| found.user).map_err(|error| error.to_string())
    }

    async fn with(&self, field: &str, value: Value) -> Result<crate::identity::Identity, String> {
        let mut claims = self.claims();
        claims[field] = value;
        self.authenticate(&self.signer.sign(&claims)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_an_issuer_is_a_user() {
    let rig = rig(|_| {});
    let mut claims = rig.claims();
    claims["jti"] = json!("t1");
    let token = rig.signer.sign(&claims);
    let user = rig.authenticate(&token).await.expect("the token is good");
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("jwt:jane", ""));
    assert_eq!(user.groups, ["jwt:a", "jwt:b", "system:authenticated"]);
    assert_eq!(user.extra["authentication.kubernetes.io/credential-id"], ["JTI=t1"]);
    let fetches = rig.server.asked.load(Ordering::SeqCst);
    rig.authenticate(&token).await.expect("still good");
    assert_eq!(rig.server.asked.load(Ordering::SeqCst), fetches, "keys are kept");
    let review =
        rig.issuers.authenticate(&token, &["api".to_owned(), "b".to_owned()]).await.expect("it is for the API");
    assert_eq!(review.audiences, ["api"]);
    assert_eq!(rig.issuers.authenticate(&token, &["b".to_owned()]).await.map(|_| ()), Err(TokenError::NotMine));
    assert_eq!(rig.with("groups", json!("one")).await.expect("good").groups, ["jwt:one", "system:authenticated"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_good_is_refused() {
    let rig = rig(|_| {});
    let url = rig.server.url();
    for (field, value, text) in [
        ("exp", json!(NOW_S - 1), "oidc: verify token: oidc: token is expired"),
        ("exp", Value::Null, "oidc: verify token: oidc: token has no expiry"),
        ("exp", json!("soon"), "oidc: verify token: \"exp\" is no time"),
        ("nbf", json!(NOW_S + 61), "oidc: verify token: oidc: current time is before the nbf (not before) time"),
        ("aud", json!("y"), "oidc: verify token: oidc: expected audience in [\"carob\"] got [\"y\"]"),
        ("aud", json!(["carob", 1]), "oidc: verify token: \"aud\" is no list of strings"),
        ("sub", json!(["jane"]), "oidc: parse username claims \"sub\": it is no string"),
        ("groups", json!([1]), "oidc: parse groups claim \"groups\": it is no list of strings"),
        ("iss", json!(format!("{url}/")), "not a token of this kind"),
    ] {
        assert_eq!(rig.with(field, value.clone()).await.unwrap_err(), text, "{field} = {value}");
    }
    let mut elsewhere = rig.claims();
    carob_api::meta::map_mut(&mut elsewhere, &[]).remove("groups");
    elsewhere["_claim_names"] = json!({ "groups": "src" });
    let error = rig.authenticate(&rig.signer.sign(&elsewhere)).await.unwrap_err();
    assert!(error.contains("another server"), "{error}");
    let forged = Signer::new("one").sign(&rig.claims());
    let error = rig.authenticate(&forged).await.unwrap_err();
    assert!(error.contains("no key of the issuer fits"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_fetched_again_when_the_issuer_has_new_ones() {
    let rig = rig(|_| {});
    rig.with("sub", json!("a")).await.expect("the key is known");
    let new = Signer::new("two");
    rig.server.publish(&new);
    let token = new.sign(&rig.claims());
    rig.authenticate(&token).await.expect_err("they were fetched just now");
    let fetches = rig.server.asked.load(Ordering::SeqCst);
    rig.authenticate(&token).await.expect_err("nor is the issuer asked for each token");
    assert_eq!(rig.server.asked.load(Ordering::SeqCst), fetches);
    rig.clock.advance(Duration::from_secs(3));
    rig.authenticate(&token).await.expect("its key is there now");
    let old = rig.signer.sign(&rig.claims());
    rig.clock.advance(Duration::from_secs(3));
    rig.authenticate(&old).await.expect_err("its key is not published any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_lies_or_is_not_there_is_told() {
    let rig = rig(|_| {});
    let refused = async |text: &str| {
        rig.clock.advance(Duration::from_secs(3));
        let error = rig.with("sub", json!("a")).await.unwrap_err();
        assert!(error.contains("is not initialized") && error.contains(text), "{error}");
    };
    rig.server.put("/.well-known/openid-configuration", json!({ "issuer": "https://other", "jwks_uri": "x" }));
    refused("issuer did not match").await;
    let url = rig.server.url();
    rig.server.put("/.well-known/openid-configuration", json!({ "issuer": url }));
    refused("names no jwks_uri").await;
    rig.server.put("/.well-known/openid-configuration", json!({ "issuer": url, "jwks_uri": "http://127.0.0.1/keys" }));
    refused("not of https").await;
    rig.server.put("/.well-known/openid-configuration", json!({ "issuer": url, "jwks_uri": format!("{url}/none") }));
    refused("the server could not find the requested resource").await;
    rig.server.put("/none", json!([]));
    refused("is no JSON Web Key Set").await;
    rig.server.put("/none", json!({ "keys": [], "filler": "x".repeat(1024 * 1024) }));
    refused("longer than").await;
    rig.server.publish(&rig.signer);
    rig.clock.advance(Duration::from_secs(3));
    rig.with("sub", json!("a")).await.expect("it has mended");
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_make_and_check_the_user() {
    let rig = rig(|jwt| {
        jwt["claimMappings"] = json!({
            "username": { "expression": "claims.email + ':x'" },
            "groups": { "expression": "claims.roles.split(',') + claims.?more.orValue([])" },
            "uid": { "expression": "string(claims.number)" },
            "extra": [{ "key": "example.org/tenant", "valueExpression": "claims.?tenant.orValue('')" }],
        });
        jwt["claimValidationRules"] = json!([
            { "expression": "claims.email_verified == true", "message": "verify it first" },
            { "claim": "hd", "requiredValue": "example.org" },
        ]);
        jwt["userValidationRules"] =
            json!([{ "expression": "!user.username.startsWith('system:')", "message": "reserved" }]);
    });
    let claims = |change: &dyn Fn(&mut Value)| {
        let mut claims = rig.claims();
        for (field, value) in [
            ("email", json!("jane@example.org")),
            ("email_verified", json!(true)),
            ("roles", json!("dev,ops")),
            ("number", json!(7)),
            ("hd", json!("example.org")),
            ("tenant", json!("t")),
        ] {
            claims[field] = value;
        }
        change(&mut claims);
        rig.signer.sign(&claims)
    };
    let user = rig.authenticate(&claims(&|_| {})).await.expect("all of it is good");
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane@example.org:x", "7"));
    assert_eq!(user.groups, ["dev", "ops", "system:authenticated"]);
    assert_eq!(user.extra, BTreeMap::from([("example.org/tenant".to_owned(), vec!["t".to_owned()])]));
    for (field, value, text) in [
        (
            "email_verified",
            json!(false),
            "validation expression 'claims.email_verified == true' failed: verify it first",
        ),
        ("hd", json!("evil.org"), "required claim hd value does not match. Got = evil.org, want = example.org"),
        (
            "email",
            json!("system:admin"),
            "validation expression '!user.username.startsWith('system:')' failed: reserved",
        ),
        ("email", json!(1), "error evaluating username claim expression"),
        ("more", json!([1]), "expression must return a string or a list of strings"),
    ] {
        let error = rig.authenticate(&claims(&|claims| claims[field] = value.clone())).await.unwrap_err();
        assert!(error.contains(text), "{field}: {error}");
    }
}

#[test]
fn a_configuration_is_checked_as_upstream_checks_it() {
    let check = |change: &dyn Fn(&mut Value), text: &str| {
        let mut one = jwt("https://a", "");
        change(&mut one);
        let error =
            AuthenticationConfig::parse(configuration(&one), &["https://own".to_owned()]).expect_err(text).to_string();
        assert!(error.contains(text), "{error}");
    };
    check(
        &|jwt| jwt["issuer"]["url"] = json!("http://a"),
        "jwt[0].issuer.url: Invalid value: \"http://a\": URL scheme must be https",
    );
    check(&|jwt| jwt["issuer"]["url"] = json!("https://own"), "URL must not overlap with disallowed issuers");
    check(&|jwt| jwt["issuer"]["url"] = json!("https://u:p@a/"), "URL must not contain a username or password");
    check(&|jwt| jwt["issuer"]["url"] = json!("https://a/?x=1#f"), "URL must not contain a fragment");
    check(&|jwt| jwt["issuer"]["discoveryURL"] = json!("https://a/"), "discoveryURL must be different from URL");
    check(&|jwt| jwt["issuer"]["audiences"] = json!([]), "jwt[0].issuer.audiences: Required value");
    check(
        &|jwt| jwt["issuer"]["audiences"] = json!(["a", "b"]),
        "audienceMatchPolicy must be MatchAny for multiple audiences",
    );
    check(&|jwt| jwt["issuer"]["certificateAuthority"] = json!("x"), "certificateAuthority: Invalid value");
    check(&|jwt| jwt["issuer"]["egressSelectorType"] = json!("cluster"), "egressSelectorType");
    check(
        &|jwt| jwt["claimMappings"]["username"] = json!({}),
        "jwt[0].claimMappings.username: Required value: claim or expression is required",
    );
    check(&|jwt| jwt["claimMappings"]["username"] = json!({ "claim": "sub" }), "username.prefix: Required value");
    check(
        &|jwt| jwt["claimMappings"]["username"] = json!({ "expression": "claims.email" }),
        "claims.email_verified must be used",
    );
    check(&|jwt| jwt["claimMappings"]["uid"] = json!({ "expression": "claims." }), "compilation failed");
    check(
        &|jwt| jwt["claimMappings"]["extra"] = json!([{ "key": "a.k8s.io/x", "valueExpression": "'a'" }]),
        "are reserved for Kubernetes use",
    );
    check(&|jwt| jwt["claimValidationRules"] = json!([{ "expression": "'a'" }]), "must evaluate to bool");
    check(&|jwt| jwt["userValidationRules"] = json!([{ "expression": "user.mail == ''" }]), "undefined field 'mail'");
    check(&|jwt| jwt["issuer"]["urls"] = json!([]), "it is no AuthenticationConfiguration");
}
