//! From a connection and its headers to a [`UserInfo`]: client certificates, then bearer tokens, then nobody.
//!
//! Tokens are static ones, those of service accounts and joining nodes, and those of other issuers.
//!
//! Anonymous requests reach only what a load balancer or a version check needs; everything else answers 401.

mod bootstrap_token;
mod certificate;
mod jwt;
mod keys;
mod service_account;
mod static_tokens;

use std::sync::Arc;

use carob_kit::Clock;
use http::header::{AUTHORIZATION, HeaderName, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderMap, HeaderValue};

use crate::authz::IMPERSONATION_PREFIX;
use crate::identity::{Identity, UserInfo};
use crate::webhook::WebhookClient;

use self::jwt::{Anonymous, JwtIssuers};
pub(crate) use bootstrap_token::BootstrapTokens;
pub(crate) use certificate::user_of_certificate;
pub use jwt::{AuthenticationConfig, AuthenticationConfigError};
pub use keys::{KeyError, ServiceAccountKeys};
pub use service_account::{
    BoundObject, Issuance, ObjectFacts, ObjectLookup, ServiceAccountTokens, TokenGrant, TokenSpec,
};
pub use static_tokens::{StaticToken, StaticTokens};

/// What the transport knows of the peer.
#[derive(Debug, Clone, Default)]
pub enum Peer {
    /// No client certificate was shown.
    #[default]
    Unknown,
    /// A client certificate that our CA vouches for.
    Certified(Identity),
    /// A client certificate that does not verify; the reason goes to the log, never to the peer.
    Refused(Arc<str>),
}

/// A token that was recognised, with the audiences it is good for.
#[derive(Debug, Clone)]
pub struct Authenticated {
    pub user: Identity,
    pub audiences: Vec<String>,
}

/// Why a bearer token was not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// Not this authenticator's kind of token: the next one is asked.
    #[error("not a token of this kind")]
    NotMine,
    /// This authenticator's kind, and not good.
    #[error("{0}")]
    Invalid(String),
}

/// One way to turn a bearer token into a user.
pub trait TokenAuthenticator: Send + Sync {
    /// `audiences` are those of which the token must name at least one; empty means the API server's own.
    fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Authenticated, TokenError>;
}

impl<T: TokenAuthenticator> TokenAuthenticator for Arc<T> {
    fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Authenticated, TokenError> {
        T::authenticate(self, token, audiences)
    }
}

/// The request carries credentials and none of them is good.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no valid credentials: {reason}")]
pub(crate) struct Unauthenticated {
    pub(crate) reason: String,
}

/// The chain that every request from a socket passes.
pub(crate) struct Authentication {
    tokens: Vec<Box<dyn TokenAuthenticator>>,
    anonymous: Anonymous,
    /// Asked last, since they may have to be asked over the network.
    issuers: JwtIssuers,
}

impl Authentication {
    /// `audiences` are those that stand for this API server.
    pub(crate) fn new(
        tokens: Vec<Box<dyn TokenAuthenticator>>,
        config: AuthenticationConfig,
        audiences: Vec<String>,
        http: &WebhookClient,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        let anonymous = config.anonymous.clone();
        Self { tokens, anonymous, issuers: JwtIssuers::new(config, audiences, http, clock) }
    }

    /// The user behind a request for `path`; [`UserInfo::anonymous`] when it carries no credentials at all.
    pub(crate) async fn identify(
        &self,
        peer: &Peer,
        headers: &HeaderMap,
        path: &str,
    ) -> Result<Identity, Unauthenticated> {
        if let Peer::Certified(user) = peer {
            return Ok(Arc::clone(user));
        }
        if let Some(token) = bearer_token(headers)? {
            return self.token(&token, &[]).await.map(|found| found.user).map_err(|reason| Unauthenticated { reason });
        }
        match peer {
            Peer::Refused(reason) => Err(Unauthenticated { reason: reason.to_string() }),
            _ if !self.anonymous.allows(path) => Err(Unauthenticated { reason: "it has none".to_owned() }),
            Peer::Unknown | Peer::Certified(_) => Ok(UserInfo::anonymous()),
        }
    }

    /// Asks each token authenticator in turn; also what a TokenReview does.
    pub(crate) async fn token(&self, token: &str, audiences: &[String]) -> Result<Authenticated, String> {
        for authenticator in &self.tokens {
            match authenticator.authenticate(token, audiences) {
                Ok(found) => return Ok(found),
                Err(TokenError::NotMine) => {}
                Err(TokenError::Invalid(reason)) => return Err(reason),
            }
        }
        match self.issuers.authenticate(token, audiences).await {
            Ok(found) => Ok(found),
            Err(TokenError::NotMine) => Err("invalid bearer token".to_owned()),
            Err(TokenError::Invalid(reason)) => Err(reason),
        }
    }
}

/// What a WebSocket subprotocol that is a token begins with.
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// The token of `Authorization: Bearer ...`, or of a WebSocket subprotocol, where browsers can put no header
/// (apiserver `pkg/authentication/request/websocket`). What carries one that cannot be read is no anonymous request.
fn bearer_token(headers: &HeaderMap) -> Result<Option<String>, Unauthenticated> {
    use base64::Engine;
    let refused = |reason: &str| Unauthenticated { reason: reason.to_owned() };
    let mut given = headers.get_all(AUTHORIZATION).iter();
    if let Some(value) = given.next() {
        if given.next().is_some() {
            return Err(refused("more than one Authorization header"));
        }
        let value = value.to_str().map_err(|_| refused("the Authorization header is not plain ASCII"))?;
        let Some((scheme, token)) = value.trim().split_once(' ') else { return Ok(None) };
        let token = token.trim();
        return Ok((scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned()));
    }
    let mut token = None;
    let mut others = 0;
    for line in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
        let line = line.to_str().map_err(|_| refused("the WebSocket subprotocols are not plain ASCII"))?;
        for protocol in line.split(',').map(str::trim) {
            let Some(encoded) = protocol.strip_prefix(TOKEN_PROTOCOL) else {
                others += 1;
                continue;
            };
            let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded);
            let bytes = bytes.map_err(|_| refused("invalid base64.bearer.authorization token encoding"))?;
            let text = String::from_utf8(bytes).map_err(|_| refused("invalid base64.bearer.authorization token"))?;
            if token.replace(text).is_some() {
                return Err(refused("multiple base64.bearer.authorization tokens specified"));
            }
        }
    }
    let token = token.filter(|token| !token.is_empty());
    if token.is_some() && others == 0 {
        return Err(refused("missing additional subprotocol"));
    }
    Ok(token)
}

/// Takes out of a request what says who sent it, so that it reaches nobody behind this server.
pub(crate) fn forget_credentials(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| is_credential(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
    let protocols: Vec<HeaderValue> = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().cloned().collect();
    let lines = protocols.iter().filter_map(|value| value.to_str().ok());
    if !lines.clone().any(|line| line.contains(TOKEN_PROTOCOL)) {
        return;
    }
    let kept: Vec<&str> =
        lines.flat_map(|line| line.split(',')).map(str::trim).filter(|one| !one.starts_with(TOKEN_PROTOCOL)).collect();
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if let Ok(value) = HeaderValue::from_str(&kept.join(", "))
        && !kept.is_empty()
    {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, value);
    }
}

/// Headers that say who asks: a token, whom to act as, or whom an authenticating proxy vouches for.
fn is_credential(name: &str) -> bool {
    name == "authorization" || name.starts_with(IMPERSONATION_PREFIX) || name.starts_with("x-remote-")
}

/// Compares two secrets in a time that tells nothing of where they differ.
fn secrets_equal(left: &[u8], right: &[u8]) -> bool {
    use ring::digest::{SHA256, digest};
    // Hashing first makes lengths equal, and what a timing would tell is about digests.
    digest(&SHA256, left).as_ref() == digest(&SHA256, right).as_ref()
}

#[cfg(test)]
mod tests {
    use carob_kit::ManualClock;
    use carob_store::{Options, Store};
    use futures_util::FutureExt;
    use serde_json::json;

    use super::*;
    use crate::NetworkDialer;

    fn chain_of(config: AuthenticationConfig) -> Authentication {
        let token = StaticToken { token: "s3cret".to_owned(), user: UserInfo::component("alice") };
        let tokens: Vec<Box<dyn TokenAuthenticator>> = vec![Box::new(StaticTokens::new(vec![token]))];
        let http = WebhookClient::new(Store::in_memory(Options::default()), Arc::new(NetworkDialer::without_tls()));
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH));
        Authentication::new(tokens, config, vec!["api".to_owned()], &http, &clock)
    }

    fn identify(chain: &Authentication, peer: &Peer, headers: &HeaderMap) -> Result<Identity, Unauthenticated> {
        chain.identify(peer, headers, "/api").now_or_never().expect("it asks nobody over the network")
    }

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.parse().expect("a test's header is valid"));
        headers
    }

    #[tokio::test]
    async fn credentials_are_tried_in_upstreams_order() {
        let chain = chain_of(AuthenticationConfig::default());
        let refused = Peer::Refused("expired".into());
        let certified = Peer::Certified(UserInfo::component("bob"));
        let name = |peer: &Peer, headers: &HeaderMap| identify(&chain, peer, headers).map(|user| user.name.clone());
        assert_eq!(name(&Peer::Unknown, &HeaderMap::new()).as_deref(), Ok("system:anonymous"));
        assert_eq!(name(&certified, &headers("Bearer nonsense")).as_deref(), Ok("bob"));
        assert_eq!(name(&refused, &headers("bearer s3cret")).as_deref(), Ok("alice"));
        assert_eq!(name(&refused, &HeaderMap::new()).unwrap_err().reason, "expired");
        assert_eq!(name(&Peer::Unknown, &headers("Bearer wrong")).unwrap_err().reason, "invalid bearer token");
        assert_eq!(name(&Peer::Unknown, &headers("Basic czNjcmV0")).as_deref(), Ok("system:anonymous"));
    }

    #[tokio::test]
    async fn who_may_come_without_credentials_is_configured() {
        let chain = |anonymous: serde_json::Value| {
            let config = json!({
                "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "anonymous": anonymous,
            });
            chain_of(AuthenticationConfig::parse(config, &["https://own".to_owned()]).expect("it is sound"))
        };
        let allows = |chain: &Authentication, path: &str| {
            let found = chain.identify(&Peer::Unknown, &HeaderMap::new(), path).now_or_never();
            found.expect("it asks nobody").is_ok()
        };
        assert!(allows(&chain(json!({ "enabled": true })), "/api"));
        assert!(!allows(&chain(json!({ "enabled": false })), "/livez"));
        let probes = chain(json!({ "enabled": true, "conditions": [{ "path": "/livez" }] }));
        assert!(allows(&probes, "/livez") && !allows(&probes, "/livez/ping") && !allows(&probes, "/api"));
        assert!(identify(&probes, &Peer::Unknown, &headers("Bearer s3cret")).is_ok());
    }

    fn protocols(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(SEC_WEBSOCKET_PROTOCOL, line.parse().expect("a test's header is valid"));
        }
        headers
    }

    #[tokio::test]
    async fn a_websocket_may_carry_its_token_as_a_subprotocol() {
        let headers = protocols(&["v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.czNjcmV0"]);
        let user =
            identify(&chain_of(AuthenticationConfig::default()), &Peer::Unknown, &headers).expect("the token is good");
        assert_eq!(user.name, "alice");
    }

    #[tokio::test]
    async fn credentials_that_cannot_be_read_are_not_anonymous() {
        let good = "base64url.bearer.authorization.k8s.io.czNjcmV0";
        let mut twice = headers("Bearer s3cret");
        twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer other"));
        let mut bytes = HeaderMap::new();
        bytes.insert(AUTHORIZATION, HeaderValue::from_bytes(b"Bearer s3cr\xe9t").expect("it can be sent"));
        let cases = [
            twice,
            bytes,
            headers("Bearer s3cret more"),
            protocols(&[good]),
            protocols(&["v5.channel.k8s.io", good, good]),
            protocols(&["v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.???"]),
            protocols(&["v5.channel.k8s.io, base64url.bearer.authorization.k8s.io._w"]),
        ];
        for headers in cases {
            assert!(
                identify(&chain_of(AuthenticationConfig::default()), &Peer::Unknown, &headers).is_err(),
                "{headers:?}"
            );
        }
    }

    #[test]
    fn credentials_are_not_handed_on() {
        let mut headers = headers("Bearer s3cret");
        for name in ["impersonate-user", "impersonate-extra-scopes", "x-remote-user", "x-remote-extra-a", "accept"] {
            headers.insert(name, HeaderValue::from_static("x"));
        }
        headers.append(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static("a, base64url.bearer.authorization.k8s.io.czNjcmV0,b"),
        );
        forget_credentials(&mut headers);
        let left: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("ASCII"))).collect();
        assert_eq!(left, [("accept", "x"), ("sec-websocket-protocol", "a, b")]);
    }
}
