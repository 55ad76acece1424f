//! Bootstrap tokens: Secrets with which a new node asks for its certificate (plugin/pkg/auth/authenticator/token/bootstrap).

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use carob_api::kinds;
use carob_kit::Clock;
use carob_store::Store;
use serde::Deserialize;

use super::{Authenticated, TokenAuthenticator, TokenError, secrets_equal};
use crate::identity::UserInfo;

const NAMESPACE: &str = "kube-system";
const NAME_PREFIX: &str = "bootstrap-token-";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const USER_PREFIX: &str = "system:bootstrap:";
/// The group of all of them, and what further groups begin with.
const GROUP: &str = "system:bootstrappers";
/// Characters of a token's two parts, with a dot between them (k8s.io/cluster-bootstrap `token/api`).
const ID_LEN: usize = 6;
const SECRET_LEN: usize = 16;

pub(crate) struct BootstrapTokens {
    store: Store,
    clock: Arc<dyn Clock>,
}

#[derive(Deserialize)]
struct Secret {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
    metadata: Meta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    deletion_timestamp: Option<String>,
}

impl BootstrapTokens {
    pub(crate) fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock }
    }

    fn secret(&self, id: &str) -> Option<Secret> {
        let key = kinds::by_resource("", "v1", "secrets")?.storage_key(NAMESPACE, &format!("{NAME_PREFIX}{id}"));
        serde_json::from_slice(&self.store.get(&key)?.value).ok()
    }

    fn check(&self, id: &str, secret: &str) -> Option<UserInfo> {
        let held = self.secret(id)?;
        if held.kind != TYPE || held.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let text = |key: &str| String::from_utf8(STANDARD.decode(held.data.get(key)?).ok()?).ok();
        if !secrets_equal(text("token-secret")?.as_bytes(), secret.as_bytes()) || text("token-id")? != id {
            return None;
        }
        // An expiry that cannot be read has passed.
        let expires = held.data.contains_key("expiration");
        let expired = expires && text("expiration")?.parse::<jiff::Timestamp>().ok()? <= self.clock.now();
        if expired || text("usage-bootstrap-authentication")? != "true" {
            return None;
        }
        let mut groups = vec![GROUP.to_owned()];
        if held.data.contains_key("auth-extra-groups") {
            for group in text("auth-extra-groups")?.split(',').map(str::trim).filter(|group| !group.is_empty()) {
                if !is_group(group) {
                    return None;
                }
                groups.push(group.to_owned());
            }
        }
        Some(UserInfo::new(format!("{USER_PREFIX}{id}"), groups))
    }
}

/// `system:bootstrappers:` and up to 256 of `[a-z0-9:-]` that end with a letter or digit.
fn is_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix(':')) else { return false };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = rest.as_bytes();
    bytes.len() <= 256
        && bytes.last().copied().is_some_and(plain)
        && bytes.iter().all(|byte| plain(*byte) || matches!(byte, b':' | b'-'))
}

fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (id.len() == ID_LEN && secret.len() == SECRET_LEN && plain(id) && plain(secret)).then_some((id, secret))
}

impl TokenAuthenticator for BootstrapTokens {
    fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Authenticated, TokenError> {
        let (id, secret) = parts(token).ok_or(TokenError::NotMine)?;
        let user = self.check(id, secret).ok_or(TokenError::NotMine)?;
        Ok(Authenticated { user: Arc::new(user), audiences: audiences.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use carob_kit::ManualClock;
    use carob_store::{Expect, Options, Txn};
    use serde_json::json;

    use super::*;

    const TOKEN: &str = "abcdef.0123456789abcdef";

    /// Whom the token stands for when its Secret has these values instead of good ones.
    async fn user(changes: &[(&str, Option<&str>)], token: &str) -> Option<UserInfo> {
        let mut data = BTreeMap::from([
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
        ]);
        for (key, value) in changes {
            match value {
                Some(value) => data.insert(key, value),
                None => data.remove(key),
            };
        }
        let data: BTreeMap<&str, String> = data.into_iter().map(|(key, value)| (key, STANDARD.encode(value))).collect();
        let store = Store::in_memory(Options::default());
        let secret = json!({ "metadata": { "name": "bootstrap-token-abcdef" }, "type": TYPE, "data": data });
        let key = "/registry/secrets/kube-system/bootstrap-token-abcdef";
        store.txn(Txn::put(key, Expect::Any, secret.to_string())).await.expect("the store takes it");
        let clock = Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH));
        let found = BootstrapTokens::new(store, clock).authenticate(token, &[]);
        found.ok().map(|found| found.user.as_ref().clone())
    }

    #[tokio::test]
    async fn a_token_stands_for_its_id_and_groups() {
        let found =
            user(&[("auth-extra-groups", Some("system:bootstrappers:kubeadm:default-node-token"))], TOKEN).await;
        let found = found.expect("the token is good");
        assert_eq!(found.name, "system:bootstrap:abcdef");
        assert_eq!(
            found.groups,
            ["system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token", "system:authenticated"]
        );
        assert!(user(&[("expiration", Some("2000-01-01T00:00:00Z"))], TOKEN).await.is_some());
    }

    #[tokio::test]
    async fn whatever_cannot_be_read_is_no_token() {
        let cases: [&[(&str, Option<&str>)]; 9] = [
            &[("token-secret", Some("other"))],
            &[("token-secret", None)],
            &[("token-id", Some("fedcba"))],
            &[("usage-bootstrap-authentication", None)],
            &[("usage-bootstrap-authentication", Some("yes"))],
            &[("expiration", Some("1969-01-01T00:00:00Z"))],
            &[("expiration", Some("tomorrow"))],
            &[("auth-extra-groups", Some("system:masters"))],
            &[("auth-extra-groups", Some("system:bootstrappers:Big"))],
        ];
        for changes in cases {
            assert_eq!(user(changes, TOKEN).await, None, "{changes:?}");
        }
        for token in
            ["abcdef.0123456789abcdee", "abcdef0123456789abcdef", "ABCDEF.0123456789abcdef", "abcdef.0123", "."]
        {
            assert_eq!(user(&[], token).await, None, "{token}");
        }
    }
}
