//! Service account tokens: issued by TokenRequest, bound to a Pod, Secret or Node, and no longer good once what they are
//! bound to is gone (pkg/serviceaccount/claims.go).

use std::collections::BTreeMap;
use std::sync::Arc;

use carob_kit::Clock;
use serde_json::{Value, json};

use super::{Authenticated, KeyError, ServiceAccountKeys, TokenAuthenticator, TokenError};
use crate::identity::{GROUP_SERVICE_ACCOUNTS, SERVICE_ACCOUNT_USER_PREFIX, UserInfo};

/// Clocks of issuer and verifier may differ by this much (go-jose `jwt.DefaultLeeway`).
const LEEWAY_S: i64 = 60;
/// A token outlives the deletion of what it is bound to by this much, so that a Pod can end in order
/// (pkg/serviceaccount/claims.go).
const DELETION_GRACE_S: i64 = 60;

/// The issuer of tokens that lie in Secrets and have no end (pkg/serviceaccount/legacy.go).
const SECRET_ISSUER: &str = "kubernetes/serviceaccount";
/// What the names of their other claims begin with.
const SECRET_CLAIM: &str = "kubernetes.io/serviceaccount/";

/// What token verification asks of a stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectFacts {
    pub uid: String,
    /// Seconds since the epoch.
    pub deletion_timestamp_s: Option<i64>,
}

/// A look at the store from outside the registry: token verification and node authorization need one.
pub trait ObjectLookup: Send + Sync {
    /// `resource` is a core resource's plural; `namespace` is empty for Nodes.
    fn facts(&self, resource: &str, namespace: &str, name: &str) -> Option<ObjectFacts>;

    /// The token that lies in a Secret.
    fn token_in_secret(&self, namespace: &str, name: &str) -> Option<Vec<u8>>;
}

/// The object whose life a token shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundObject {
    pub name: String,
    pub uid: String,
}

/// What a TokenRequest asks for, once checked.
#[derive(Debug, Clone, Default)]
pub struct TokenSpec {
    pub namespace: String,
    pub service_account: String,
    pub service_account_uid: String,
    /// Empty means the API server's own.
    pub audiences: Vec<String>,
    pub expiration_s: i64,
    pub pod: Option<BoundObject>,
    pub secret: Option<BoundObject>,
    /// The node of the bound Pod, or the bound Node.
    pub node: Option<BoundObject>,
}

/// A token and when it ends.
#[derive(Debug, Clone)]
pub struct TokenGrant {
    pub token: String,
    pub expires: jiff::Timestamp,
    pub audiences: Vec<String>,
}

/// How tokens of service accounts are marked.
#[derive(Debug, Clone)]
pub struct Issuance {
    /// The first one issues; tokens of the others, which issued before it, count too. Never empty.
    pub issuers: Vec<String>,
    /// Where others find the keys, if not below the issuer's URL.
    pub jwks_uri: Option<String>,
    /// What stands for this API server as `aud`; the first is what a request without audiences gets. Never empty.
    pub audiences: Vec<String>,
}

impl Issuance {
    /// An issuer that stands for the API server too.
    pub fn of(issuer: &str) -> Self {
        Self { issuers: vec![issuer.to_owned()], jwks_uri: None, audiences: vec![issuer.to_owned()] }
    }

    fn issuer(&self) -> &str {
        self.issuers.first().map_or("", String::as_str)
    }

    fn jwks_uri(&self) -> String {
        let own = || format!("{}/openid/v1/jwks", self.issuer().trim_end_matches('/'));
        self.jwks_uri.clone().unwrap_or_else(own)
    }
}

/// Issues and verifies service account tokens.
pub struct ServiceAccountTokens {
    keys: Arc<ServiceAccountKeys>,
    issuance: Issuance,
    clock: Arc<dyn Clock>,
    objects: Arc<dyn ObjectLookup>,
}

impl ServiceAccountTokens {
    pub fn new(
        keys: Arc<ServiceAccountKeys>,
        issuance: Issuance,
        clock: Arc<dyn Clock>,
        objects: Arc<dyn ObjectLookup>,
    ) -> Self {
        Self { keys, issuance, clock, objects }
    }

    pub fn issue(&self, spec: &TokenSpec) -> Result<TokenGrant, KeyError> {
        let now_s = self.clock.now().as_second();
        let expires_s = now_s.saturating_add(spec.expiration_s);
        let audiences = if spec.audiences.is_empty() { &self.issuance.audiences } else { &spec.audiences };
        let mut bound = json!({
            "namespace": spec.namespace,
            "serviceaccount": { "name": spec.service_account, "uid": spec.service_account_uid },
        });
        for (kind, object) in [("pod", &spec.pod), ("secret", &spec.secret), ("node", &spec.node)] {
            if let Some(BoundObject { name, uid }) = object {
                bound[kind] = json!({ "name": name, "uid": uid });
            }
        }
        let token = self.keys.sign(&json!({
            "aud": audiences, "exp": expires_s, "iat": now_s, "nbf": now_s, "iss": self.issuance.issuer(), "jti": carob_kit::uid(),
            "sub": format!("{SERVICE_ACCOUNT_USER_PREFIX}{}:{}", spec.namespace, spec.service_account),
            "kubernetes.io": bound,
        }))?;
        let expires = jiff::Timestamp::from_second(expires_s).unwrap_or(jiff::Timestamp::MAX);
        Ok(TokenGrant { token, expires, audiences: audiences.clone() })
    }

    /// `/.well-known/openid-configuration` (OpenID Connect Discovery 1.0).
    pub(crate) fn openid_configuration(&self) -> Value {
        json!({
            "issuer": self.issuance.issuer(),
            "jwks_uri": self.issuance.jwks_uri(),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    pub(crate) fn jwks(&self) -> Value {
        self.keys.jwks()
    }

    fn check_times(&self, claims: &Value) -> Result<(), String> {
        let now_s = self.clock.now().as_second();
        let time = |name: &str| match &claims[name] {
            Value::Null => Ok(None),
            value => value.as_i64().map(Some).ok_or_else(|| format!("the service account token's {name:?} is no time")),
        };
        let expires_s = time("exp")?.ok_or("service account token has no expiry")?;
        if now_s > expires_s.saturating_add(LEEWAY_S) {
            return Err("service account token has expired".to_owned());
        }
        if time("nbf")?.is_some_and(|nbf_s| now_s < nbf_s.saturating_sub(LEEWAY_S)) {
            return Err("service account token is not valid yet".to_owned());
        }
        Ok(())
    }

    /// The wanted audiences that the token names.
    fn common_audiences(&self, claims: &Value, wanted: &[String]) -> Result<Vec<String>, String> {
        let named: Vec<&str> = match &claims["aud"] {
            Value::String(one) => vec![one],
            Value::Array(many) => many
                .iter()
                .map(|one| one.as_str().ok_or_else(|| "token audiences are not all text".to_owned()))
                .collect::<Result<_, _>>()?,
            _ => Vec::new(),
        };
        let wanted = if wanted.is_empty() { &self.issuance.audiences } else { wanted };
        let common: Vec<String> = wanted.iter().filter(|one| named.contains(&one.as_str())).cloned().collect();
        if common.is_empty() {
            return Err(format!("token audiences {named:?} is invalid for the target audiences {wanted:?}"));
        }
        Ok(common)
    }

    fn check_object(&self, resource: &str, namespace: &str, object: &Value) -> Result<(), String> {
        let (name, uid) = (text(object, "name"), text(object, "uid"));
        let facts = self.objects.facts(resource, namespace, name);
        let facts = facts.ok_or_else(|| format!("the {resource} {name:?} that the token is bound to is gone"))?;
        if facts.uid != uid {
            return Err(format!("the {resource} {name:?} that the token is bound to was replaced by another"));
        }
        let now_s = self.clock.now().as_second();
        if facts.deletion_timestamp_s.is_some_and(|deleted_s| deleted_s.saturating_add(DELETION_GRACE_S) < now_s) {
            return Err(format!("the {resource} {name:?} that the token is bound to has been deleted"));
        }
        Ok(())
    }

    fn check_claims(&self, claims: &Value, audiences: &[String]) -> Result<Authenticated, String> {
        self.check_times(claims)?;
        let audiences = self.common_audiences(claims, audiences)?;
        let bound = &claims["kubernetes.io"];
        let namespace = text(bound, "namespace");
        let account = &bound["serviceaccount"];
        let name = text(account, "name");
        let subject = format!("{SERVICE_ACCOUNT_USER_PREFIX}{namespace}:{name}");
        if text(claims, "sub") != subject || namespace.is_empty() || name.is_empty() {
            return Err("the token's subject is not the service account that it describes".to_owned());
        }
        self.check_object("serviceaccounts", namespace, account)?;
        for (kind, resource, namespace) in
            [("pod", "pods", namespace), ("secret", "secrets", namespace), ("node", "nodes", "")]
        {
            // A Pod's node is information; it binds only a token that is bound to nothing else.
            let informative = kind == "node" && !bound["pod"].is_null();
            if !bound[kind].is_null() && !informative {
                self.check_object(resource, namespace, &bound[kind])?;
            }
        }
        Ok(Authenticated { user: Arc::new(user_of(claims, subject, namespace)), audiences })
    }
}

impl ServiceAccountTokens {
    /// A token that lies in a Secret is good as long as it does, for the API server alone.
    fn check_secret_claims(&self, token: &str, claims: &Value, wanted: &[String]) -> Result<Authenticated, String> {
        let claim = |name: &str| text(claims, &format!("{SECRET_CLAIM}{name}"));
        let (namespace, name, uid) = (claim("namespace"), claim("service-account.name"), claim("service-account.uid"));
        let subject = format!("{SERVICE_ACCOUNT_USER_PREFIX}{namespace}:{name}");
        if text(claims, "sub") != subject || namespace.is_empty() || name.is_empty() {
            return Err("the token's subject is not the service account that it describes".to_owned());
        }
        self.check_object("serviceaccounts", namespace, &json!({ "name": name, "uid": uid }))?;
        let secret = claim("secret.name");
        if self.objects.token_in_secret(namespace, secret).is_none_or(|held| held != token.as_bytes()) {
            return Err(format!("the secrets {secret:?} does not hold the token any more"));
        }
        let wanted = if wanted.is_empty() { &self.issuance.audiences } else { wanted };
        let audiences: Vec<String> =
            wanted.iter().filter(|one| self.issuance.audiences.contains(one)).cloned().collect();
        if audiences.is_empty() {
            return Err(format!(
                "token audiences {:?} is invalid for the target audiences {wanted:?}",
                self.issuance.audiences
            ));
        }
        let groups = [GROUP_SERVICE_ACCOUNTS.to_owned(), format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}")];
        let mut user = UserInfo::new(subject, groups);
        uid.clone_into(&mut user.uid);
        Ok(Authenticated { user: Arc::new(user), audiences })
    }
}

impl TokenAuthenticator for ServiceAccountTokens {
    fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Authenticated, TokenError> {
        let claims = self.keys.verify(token).ok_or(TokenError::NotMine)?;
        let checked = match text(&claims, "iss") {
            SECRET_ISSUER => self.check_secret_claims(token, &claims, audiences),
            issuer if self.issuance.issuers.iter().any(|own| own == issuer) => self.check_claims(&claims, audiences),
            _ => return Err(TokenError::NotMine),
        };
        checked.map_err(TokenError::Invalid)
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn user_of(claims: &Value, subject: String, namespace: &str) -> UserInfo {
    let bound = &claims["kubernetes.io"];
    let groups = [GROUP_SERVICE_ACCOUNTS.to_owned(), format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}")];
    let mut user = UserInfo::new(subject, groups);
    text(&bound["serviceaccount"], "uid").clone_into(&mut user.uid);
    let mut extra = BTreeMap::new();
    let mut put = |key: &str, value: String| {
        if !value.is_empty() {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        }
    };
    for kind in ["pod", "node"] {
        put(&format!("{kind}-name"), text(&bound[kind], "name").to_owned());
        put(&format!("{kind}-uid"), text(&bound[kind], "uid").to_owned());
    }
    put("credential-id", format!("JTI={}", text(claims, "jti")));
    user.extra = extra;
    user
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use carob_kit::ManualClock;

    use super::*;

    /// Objects by "resource/namespace/name".
    #[derive(Default)]
    struct Objects(Mutex<BTreeMap<String, ObjectFacts>>, Mutex<Option<String>>);

    impl Objects {
        fn put(&self, key: &str, uid: &str, deletion_timestamp_s: Option<i64>) {
            let facts = ObjectFacts { uid: uid.to_owned(), deletion_timestamp_s };
            self.0.lock().expect("tests do not panic here").insert(key.to_owned(), facts);
        }
    }

    impl ObjectLookup for Objects {
        fn facts(&self, resource: &str, namespace: &str, name: &str) -> Option<ObjectFacts> {
            self.0.lock().expect("tests do not panic here").get(&format!("{resource}/{namespace}/{name}")).cloned()
        }

        fn token_in_secret(&self, namespace: &str, name: &str) -> Option<Vec<u8>> {
            assert_eq!((namespace, name), ("ns", "s"));
            self.1.lock().expect("tests do not panic here").clone().map(String::into_bytes)
        }
    }

    struct Rig {
        tokens: ServiceAccountTokens,
        objects: Arc<Objects>,
        clock: Arc<ManualClock>,
    }

    fn rig() -> Rig {
        let der = ServiceAccountKeys::generate_pkcs8().expect("ring makes keys");
        let keys = Arc::new(ServiceAccountKeys::from_pkcs8(&der, &[]).expect("its own key is good"));
        let objects = Arc::new(Objects::default());
        objects.put("serviceaccounts/ns/sa", "u1", None);
        objects.put("pods/ns/p", "u2", None);
        let clock = Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH));
        let tokens = ServiceAccountTokens::new(
            keys,
            Issuance { audiences: vec!["api".to_owned()], ..Issuance::of("https://issuer") },
            Arc::clone(&clock) as _,
            Arc::clone(&objects) as _,
        );
        Rig { tokens, objects, clock }
    }

    fn spec() -> TokenSpec {
        TokenSpec {
            namespace: "ns".to_owned(),
            service_account: "sa".to_owned(),
            service_account_uid: "u1".to_owned(),
            expiration_s: 600,
            pod: Some(BoundObject { name: "p".to_owned(), uid: "u2".to_owned() }),
            ..TokenSpec::default()
        }
    }

    #[test]
    fn a_bound_token_names_its_account_and_pod() {
        let rig = rig();
        let grant = rig.tokens.issue(&spec()).expect("a token is issued");
        let found = rig.tokens.authenticate(&grant.token, &[]).expect("the token is good");
        assert_eq!(found.user.name, "system:serviceaccount:ns:sa");
        assert_eq!(found.user.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]);
        assert_eq!(found.user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_eq!(found.audiences, ["api"]);
    }

    #[test]
    fn tokens_of_a_former_issuer_count_and_keys_are_where_they_are_said_to_be() {
        let mut rig = rig();
        let former = rig.tokens.issue(&spec()).expect("a token is issued").token;
        rig.tokens.issuance.issuers.insert(0, "https://new/".to_owned());
        assert!(rig.tokens.authenticate(&former, &[]).is_ok());
        let keys = |rig: &Rig| rig.tokens.openid_configuration()["jwks_uri"].clone();
        assert_eq!(keys(&rig), "https://new/openid/v1/jwks");
        rig.tokens.issuance.jwks_uri = Some("https://keys".to_owned());
        assert_eq!(keys(&rig), "https://keys");
        rig.tokens.issuance.issuers = vec!["https://new/".to_owned()];
        assert_eq!(rig.tokens.authenticate(&former, &[]).map(|_| ()), Err(TokenError::NotMine));
    }

    #[test]
    fn a_token_ends_with_its_time_its_pod_its_account_and_elsewhere() {
        let check = |change: &dyn Fn(&Rig), audiences: &[&str], expected: &str| {
            let rig = rig();
            let grant = rig.tokens.issue(&spec()).expect("a token is issued");
            change(&rig);
            let audiences: Vec<String> = audiences.iter().map(|one| (*one).to_owned()).collect();
            let error = rig.tokens.authenticate(&grant.token, &audiences).map(|found| found.user).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        check(&|rig| rig.clock.advance(Duration::from_secs(661)), &[], "service account token has expired");
        check(
            &|rig| rig.objects.put("pods/ns/p", "u9", None),
            &[],
            "the pods \"p\" that the token is bound to was replaced by another",
        );
        check(
            &|rig| {
                rig.objects.put("pods/ns/p", "u2", Some(0));
                rig.clock.advance(Duration::from_secs(61));
            },
            &[],
            "the pods \"p\" that the token is bound to has been deleted",
        );
        check(
            &|rig| rig.objects.put("serviceaccounts/ns/sa", "u7", None),
            &[],
            "the serviceaccounts \"sa\" that the token is bound to was replaced by another",
        );
        check(&|_| {}, &["vault"], "token audiences [\"api\"] is invalid for the target audiences [\"vault\"]");
    }

    /// Signed by us, as no issuer would write them: each is refused for what cannot be read.
    #[test]
    fn a_claim_that_cannot_be_read_is_not_passed_over() {
        let claims = |change: &dyn Fn(&mut Value)| {
            let mut claims = json!({
                "iss": "https://issuer", "sub": "system:serviceaccount:ns:sa", "aud": ["api"], "exp": 600,
                "kubernetes.io": { "namespace": "ns", "serviceaccount": { "name": "sa", "uid": "u1" } },
            });
            change(&mut claims);
            let rig = rig();
            let token = rig.tokens.keys.sign(&claims).expect("it can be signed");
            rig.tokens.authenticate(&token, &[]).is_ok()
        };
        assert!(claims(&|_| {}));
        let bad: [(&str, &[&str], Value); 10] = [
            ("exp as text", &["exp"], json!("600")),
            ("no exp", &["exp"], json!(null)),
            ("nbf as text", &["nbf"], json!("0")),
            ("aud with a number", &["aud"], json!(["api", 1])),
            ("aud as an object", &["aud"], json!({ "api": true })),
            ("another sub", &["sub"], json!("system:serviceaccount:ns:other")),
            ("sub as a list", &["sub"], json!(["system:serviceaccount:ns:sa"])),
            ("an empty namespace", &["kubernetes.io", "namespace"], json!("")),
            ("a pod as text", &["kubernetes.io", "pod"], json!("p")),
            ("another uid", &["kubernetes.io", "serviceaccount", "uid"], json!("u9")),
        ];
        for (what, path, value) in bad {
            assert!(!claims(&|claims| carob_api::meta::set(claims, path, value.clone())), "{what}");
        }
    }

    #[test]
    fn a_token_of_a_secret_is_good_as_long_as_it_lies_there() {
        let rig = rig();
        let claims = json!({
            "iss": SECRET_ISSUER, "sub": "system:serviceaccount:ns:sa", "kubernetes.io/serviceaccount/namespace": "ns",
            "kubernetes.io/serviceaccount/secret.name": "s", "kubernetes.io/serviceaccount/service-account.name": "sa",
            "kubernetes.io/serviceaccount/service-account.uid": "u1",
        });
        let token = rig.tokens.keys.sign(&claims).expect("it can be signed");
        let check = |audiences: &[&str]| {
            let audiences: Vec<String> = audiences.iter().map(|one| (*one).to_owned()).collect();
            let found = rig.tokens.authenticate(&token, &audiences);
            found.map(|found| (found.user.name.clone(), found.audiences)).map_err(|error| error.to_string())
        };
        let gone = "the secrets \"s\" does not hold the token any more";
        assert_eq!(check(&[]), Err(gone.to_owned()));
        *rig.objects.1.lock().expect("tests do not panic here") = Some(token.clone());
        assert_eq!(check(&["api", "x"]), Ok(("system:serviceaccount:ns:sa".to_owned(), vec!["api".to_owned()])));
        assert!(check(&["vault"]).is_err(), "it is for the API server alone");
        rig.objects.put("serviceaccounts/ns/sa", "u7", None);
        assert!(check(&[]).is_err(), "its account was replaced");
    }
}
