//! Bootstrap tokens: `kube-public/cluster-info`, by which a machine that has a token verifies whose cluster this is, is signed
//! with each of them, and expired ones are removed (`pkg/controller/bootstrap`; k8s.io/cluster-bootstrap `token/jws`).

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use carob_client::{During, Informer, ObjectKey, Reconcile, ReconcileError, Requeue, Selection};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams, Preconditions};
use ring::hmac;

use crate::context::Context;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const INFO_NAMESPACE: &str = "kube-public";
const INFO: &str = "cluster-info";
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";

/// What one looks at: a token, or the signatures of all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum BootstrapKey {
    Token(ObjectKey),
    Info,
}

pub(crate) struct Bootstrap {
    context: Context,
    tokens: Informer<Secret>,
    info: Informer<ConfigMap>,
    /// A kubeconfig without users: where the API is, and what to verify it with.
    kubeconfig: String,
}

impl Bootstrap {
    pub(crate) fn new(context: Context, kubeconfig: String) -> Self {
        let tokens = Selection { fields: Some(format!("type={TYPE}")), ..Selection::default() };
        let info = Selection { fields: Some(format!("metadata.name={INFO}")), ..Selection::default() };
        let (tokens, info) = (context.informers.of_selected(tokens), context.informers.of_selected(info));
        Self { context, tokens, info, kubeconfig }
    }

    pub(crate) fn tokens(&self) -> &Informer<Secret> {
        &self.tokens
    }

    pub(crate) fn info(&self) -> &Informer<ConfigMap> {
        &self.info
    }

    async fn remove_expired(&self, key: &ObjectKey) -> Result<Requeue, ReconcileError> {
        let Some(secret) = self.tokens.get_key(key) else { return Ok(Requeue::No) };
        let Some(end) = text(&secret, "expiration").and_then(|text| text.parse::<Timestamp>().ok()) else {
            return Ok(Requeue::No);
        };
        let left = Duration::try_from(end.duration_since(self.context.now())).unwrap_or(Duration::ZERO);
        if !left.is_zero() {
            return Ok(Requeue::After(left));
        }
        let preconditions = Preconditions { uid: secret.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let api: Api<Secret> = self.context.api(&key.namespace);
        api.delete(&key.name, &params).await.unless_gone(|| format!("delete expired token {key}"))?;
        Ok(Requeue::No)
    }

    async fn sign(&self) -> Result<(), ReconcileError> {
        let api: Api<ConfigMap> = self.context.api(INFO_NAMESPACE);
        let tokens = self.tokens.list_in(NAMESPACE);
        let signing: Vec<(String, String)> =
            tokens.iter().filter_map(|secret| signing_token(secret, self.context.now())).collect();
        let Some(held) = self.info.get(Some(INFO_NAMESPACE), INFO) else {
            // Nobody is told of the cluster before someone has a token for it.
            if signing.is_empty() {
                return Ok(());
            }
            let metadata = ObjectMeta { name: Some(INFO.to_owned()), ..ObjectMeta::default() };
            let data = signed(BTreeMap::from([(KUBECONFIG.to_owned(), self.kubeconfig.clone())]), &signing);
            let made = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            let created = api.create(&PostParams::default(), &made).await;
            return created.during(|| format!("create config map {INFO_NAMESPACE}/{INFO}")).map(drop);
        };
        let data = held.data.clone().unwrap_or_default();
        let wanted = signed(data.clone(), &signing);
        if wanted == data {
            return Ok(());
        }
        let changed = ConfigMap { data: Some(wanted), ..(*held).clone() };
        let written = api.replace(INFO, &PostParams::default(), &changed).await;
        written.unless_gone(|| format!("sign config map {INFO_NAMESPACE}/{INFO}")).map(drop)
    }
}

/// A kubeconfig that says where the API is and what to verify it with, and nobody's credentials.
pub(crate) fn kubeconfig(server_url: &str, root_ca_pem: &str) -> String {
    let authority = STANDARD.encode(root_ca_pem);
    format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {authority}\n    server: {server_url}\n  name: \"\"\n\
         contexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {{}}\nusers: null\n"
    )
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;
    String::from_utf8(bytes.0.clone()).ok()
}

/// Id and secret of a token that may sign.
fn signing_token(secret: &Secret, now: Timestamp) -> Option<(String, String)> {
    let (id, value) = (text(secret, "token-id")?, text(secret, "token-secret")?);
    let named = secret.metadata.name.as_deref() == Some(&*format!("bootstrap-token-{id}"));
    let expired = match text(secret, "expiration") {
        // An expiry that cannot be read has passed.
        Some(end) => end.parse::<Timestamp>().map_or(true, |end| end <= now),
        None => false,
    };
    let signs = text(secret, "usage-bootstrap-signing").as_deref() == Some("true");
    (named && signs && !expired && !id.is_empty() && !value.is_empty()).then_some((id, value))
}

/// `data` with a signature of its kubeconfig by each token, and no others. Pure.
fn signed(mut data: BTreeMap<String, String>, tokens: &[(String, String)]) -> BTreeMap<String, String> {
    data.retain(|key, _| !key.starts_with(SIGNATURE_PREFIX));
    let Some(kubeconfig) = data.get(KUBECONFIG).cloned() else { return data };
    data.extend(
        tokens.iter().map(|(id, secret)| (format!("{SIGNATURE_PREFIX}{id}"), signature(&kubeconfig, id, secret))),
    );
    data
}

/// A JSON Web Signature without its content (RFC 7515, appendix F), by HMAC with SHA-256.
fn signature(content: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","kid":"{id}"}}"#));
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes())))
}

impl Reconcile for Bootstrap {
    type Key = BootstrapKey;

    fn name(&self) -> &'static str {
        "bootstrap-tokens"
    }

    async fn reconcile(&self, key: BootstrapKey) -> Result<Requeue, ReconcileError> {
        match key {
            BootstrapKey::Token(key) => self.remove_expired(&key).await,
            BootstrapKey::Info => self.sign().await.map(|()| Requeue::No),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// An example of k8s.io/cluster-bootstrap `token/jws/jws_test.go`: of nothing, by an id and a secret.
    #[test]
    fn a_signature_is_upstreams() {
        assert_eq!(
            signature("", "joshua", "my voice is my passcode"),
            "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..7Ui1ALizW4jXphVUB7xUqC9vLYLL9RZeOFfVLoB7Tgk"
        );
    }

    #[test]
    fn only_good_tokens_sign_and_old_signatures_go() {
        let secret = |name: &str, changes: &[(&str, &str)]| -> Secret {
            let mut data = BTreeMap::from([
                ("token-id", "abcdef"),
                ("token-secret", "0123456789abcdef"),
                ("usage-bootstrap-signing", "true"),
            ]);
            data.extend(changes.iter().copied());
            serde_json::from_value(json!({ "metadata": { "name": name }, "stringData": {} }))
                .map(|secret: Secret| Secret {
                    data: Some(
                        data.into_iter()
                            .map(|(key, value)| (key.to_owned(), k8s_openapi::ByteString(value.as_bytes().to_vec())))
                            .collect(),
                    ),
                    ..secret
                })
                .expect("it is a secret")
        };
        let now = Timestamp::UNIX_EPOCH;
        let token = signing_token(&secret("bootstrap-token-abcdef", &[]), now).expect("it signs");
        assert_eq!(token.0, "abcdef");
        for (name, changes) in [
            ("another-name", &[][..]),
            ("bootstrap-token-abcdef", &[("usage-bootstrap-signing", "false")]),
            ("bootstrap-token-abcdef", &[("expiration", "1960-01-01T00:00:00Z")]),
            ("bootstrap-token-abcdef", &[("expiration", "soon")]),
        ] {
            assert_eq!(signing_token(&secret(name, changes), now), None, "{name} {changes:?}");
        }
        let data = BTreeMap::from([
            ("kubeconfig".to_owned(), "k".to_owned()),
            ("jws-kubeconfig-gone00".to_owned(), "old".to_owned()),
            ("own".to_owned(), "x".to_owned()),
        ]);
        let keys: Vec<String> = signed(data, &[token]).into_keys().collect();
        assert_eq!(keys, ["jws-kubeconfig-abcdef", "kubeconfig", "own"]);
    }
}
