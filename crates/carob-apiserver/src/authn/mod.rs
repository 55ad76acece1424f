//! From a connection and its headers to a [`UserInfo`]: client certificates, then bearer tokens, then nobody.
//!
//! Anonymous requests reach only what a load balancer or a version check needs; everything else answers 401.

mod certificate;
mod keys;
mod service_account;
mod static_tokens;

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::identity::{Identity, UserInfo};

pub(crate) use certificate::user_of_certificate;
pub use keys::{KeyError, ServiceAccountKeys};
pub use service_account::{BoundObject, ObjectFacts, ObjectLookup, ServiceAccountTokens, TokenGrant, TokenSpec};
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
#[derive(Clone)]
pub(crate) struct Authentication {
    tokens: Arc<[Box<dyn TokenAuthenticator>]>,
}

impl Authentication {
    pub(crate) fn new(tokens: Vec<Box<dyn TokenAuthenticator>>) -> Self {
        Self { tokens: tokens.into() }
    }

    /// The user behind a request; [`UserInfo::anonymous`] when it carries no credentials at all.
    pub(crate) fn identify(&self, peer: &Peer, headers: &HeaderMap) -> Result<Identity, Unauthenticated> {
        if let Peer::Certified(user) = peer {
            return Ok(Arc::clone(user));
        }
        if let Some(token) = bearer_token(headers) {
            return self.token(&token, &[]).map(|found| found.user).map_err(|reason| Unauthenticated { reason });
        }
        match peer {
            Peer::Refused(reason) => Err(Unauthenticated { reason: reason.to_string() }),
            Peer::Unknown | Peer::Certified(_) => Ok(UserInfo::anonymous()),
        }
    }

    /// Asks each token authenticator in turn; also what a TokenReview does.
    pub(crate) fn token(&self, token: &str, audiences: &[String]) -> Result<Authenticated, String> {
        for authenticator in self.tokens.iter() {
            match authenticator.authenticate(token, audiences) {
                Ok(found) => return Ok(found),
                Err(TokenError::NotMine) => {}
                Err(TokenError::Invalid(reason)) => return Err(reason),
            }
        }
        Err("invalid bearer token".to_owned())
    }
}

/// The token of `Authorization: Bearer ...`, or of a WebSocket subprotocol, where browsers can put no header
/// (apiserver `pkg/authentication/request/websocket`).
fn bearer_token(headers: &HeaderMap) -> Option<String> {
    use base64::Engine;
    if let Some(value) = headers.get(AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned());
    }
    let protocols =
        headers.get_all(http::header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let encoded = protocols
        .flat_map(|line| line.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(bytes).ok().filter(|token| !token.is_empty())
}

/// Compares two secrets in a time that tells nothing of where they differ.
fn secrets_equal(left: &[u8], right: &[u8]) -> bool {
    use ring::digest::{SHA256, digest};
    // Hashing first makes lengths equal, and what a timing would tell is about digests.
    digest(&SHA256, left).as_ref() == digest(&SHA256, right).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> Authentication {
        let token = StaticToken { token: "s3cret".to_owned(), user: UserInfo::component("alice") };
        Authentication::new(vec![Box::new(StaticTokens::new(vec![token]))])
    }

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.parse().expect("a test's header is valid"));
        headers
    }

    #[test]
    fn credentials_are_tried_in_upstreams_order() {
        let chain = chain();
        let refused = Peer::Refused("expired".into());
        let certified = Peer::Certified(UserInfo::component("bob"));
        let name = |peer: &Peer, headers: &HeaderMap| chain.identify(peer, headers).map(|user| user.name.clone());
        assert_eq!(name(&Peer::Unknown, &HeaderMap::new()).as_deref(), Ok("system:anonymous"));
        assert_eq!(name(&certified, &headers("Bearer nonsense")).as_deref(), Ok("bob"));
        assert_eq!(name(&refused, &headers("bearer s3cret")).as_deref(), Ok("alice"));
        assert_eq!(name(&refused, &HeaderMap::new()).unwrap_err().reason, "expired");
        assert_eq!(name(&Peer::Unknown, &headers("Bearer wrong")).unwrap_err().reason, "invalid bearer token");
        assert_eq!(name(&Peer::Unknown, &headers("Basic czNjcmV0")).as_deref(), Ok("system:anonymous"));
    }

    #[test]
    fn a_websocket_may_carry_its_token_as_a_subprotocol() {
        let mut headers = HeaderMap::new();
        let value = "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.czNjcmV0";
        headers.insert(http::header::SEC_WEBSOCKET_PROTOCOL, value.parse().expect("valid"));
        let user = chain().identify(&Peer::Unknown, &headers).expect("the token is good");
        assert_eq!(user.name, "alice");
    }
}
