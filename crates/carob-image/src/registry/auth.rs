//! Authentication as registries ask for it: Basic, or a token from the service that the challenge names (distribution
//! project, "Token Authentication Specification").

use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use http::uri::Scheme;
use http::{Method, Request, StatusCode, Uri};
use serde::Deserialize;

use super::http_client::{self, Body, HttpClient};
use super::{Download, RegistryError};
use crate::Credentials;

/// The longest answer of a token service.
const TOKEN_LEN_MAX: u64 = 1 << 20;
/// How this client names itself to token services.
const CLIENT_ID: &str = "carob";

/// What one session shows its host.
#[derive(Debug)]
pub(super) struct Authorization {
    credentials: Option<Credentials>,
    header: Mutex<Option<HeaderValue>>,
}

/// What a host asks for.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Authorization {
    pub(super) fn new(credentials: Option<Credentials>) -> Self {
        let header = match &credentials {
            Some(Credentials::RegistryToken(token)) => bearer(token),
            Some(Credentials::Basic { .. } | Credentials::IdentityToken(_)) | None => None,
        };
        Self { credentials, header: Mutex::new(header) }
    }

    pub(super) fn header(&self) -> Option<HeaderValue> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<HeaderValue>> {
        // No holder panics half way.
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the header that the host's refusal asks for.
    pub(super) async fn answer(
        &self,
        client: &HttpClient,
        uri: &Uri,
        refusal: &HeaderMap,
        scope: &str,
    ) -> Result<(), RegistryError> {
        let challenges: Vec<&str> =
            refusal.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()).collect();
        let unsupported = || RegistryError::Challenge { url: uri.to_string(), challenge: challenges.join(", ") };
        let challenge = challenges.iter().find_map(|text| parse(text)).ok_or_else(unsupported)?;
        let header = match challenge {
            Challenge::Basic => basic(self.credentials.as_ref()).ok_or_else(|| RegistryError::Status {
                url: uri.to_string(),
                status: StatusCode::UNAUTHORIZED,
                detail: "it wants a user name and a password".to_owned(),
                retry_after: None,
            })?,
            Challenge::Bearer { realm, service, scope: asked } => {
                let scope = asked.as_deref().unwrap_or(scope);
                let token = self.fetch_token(client, uri, &realm, service.as_deref(), scope).await?;
                bearer(&token).ok_or(RegistryError::NoToken { realm })?
            }
        };
        *self.lock() = Some(header);
        Ok(())
    }

    async fn fetch_token(
        &self,
        client: &HttpClient,
        uri: &Uri,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<String, RegistryError> {
        let target: Uri = realm.parse().map_err(|_| RegistryError::Url { url: realm.to_owned() })?;
        let is_downgrade = uri.scheme() == Some(&Scheme::HTTPS) && target.scheme() != Some(&Scheme::HTTPS);
        if is_downgrade && self.credentials.is_some() {
            return Err(RegistryError::InsecureRealm { url: uri.to_string(), realm: realm.to_owned() });
        }
        let request = token_request(realm, service, scope, self.credentials.as_ref())
            .map_err(|source| RegistryError::Request { url: realm.to_owned(), source })?;
        let response = client.send(request).await?;
        if response.status() != StatusCode::OK {
            return Err(http_client::refusal(realm.to_owned(), response).await);
        }
        let mut download = Download { url: realm.to_owned(), body: response.into_body() };
        let mut bytes = Vec::new();
        while let Some(chunk) = download.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > TOKEN_LEN_MAX {
                return Err(RegistryError::TooLong { url: realm.to_owned(), max: TOKEN_LEN_MAX });
            }
        }
        let answer: TokenAnswer = serde_json::from_slice(&bytes)
            .map_err(|source| RegistryError::Token { realm: realm.to_owned(), source })?;
        let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
        token.ok_or_else(|| RegistryError::NoToken { realm: realm.to_owned() })
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// GET with Basic or anonymously; an identity token is exchanged by POST (OAuth2 refresh).
fn token_request(
    realm: &str,
    service: Option<&str>,
    scope: &str,
    credentials: Option<&Credentials>,
) -> Result<Request<Body>, http::Error> {
    let mut fields: Vec<(&str, &str)> = service.map(|service| ("service", service)).into_iter().collect();
    fields.push(("scope", scope));
    if let Some(Credentials::IdentityToken(token)) = credentials {
        fields.extend([("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", CLIENT_ID)]);
        let form = Bytes::from(form(&fields));
        return Request::builder()
            .method(Method::POST)
            .uri(realm)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Body::from(form));
    }
    let separator = if realm.contains('?') { '&' } else { '?' };
    let mut request = Request::builder().uri(format!("{realm}{separator}{}", form(&fields)));
    if let Some(header) = basic(credentials) {
        request = request.header(AUTHORIZATION, header);
    }
    request.body(Body::default())
}

fn form(fields: &[(&str, &str)]) -> String {
    fields.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect::<Vec<_>>().join("&")
}

/// Percent-encoding of all but unreserved characters (RFC 3986, 2.3).
fn encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn basic(credentials: Option<&Credentials>) -> Option<HeaderValue> {
    let Some(Credentials::Basic { username, password }) = credentials else { return None };
    secret(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

fn bearer(token: &str) -> Option<HeaderValue> {
    secret(format!("Bearer {token}"))
}

fn secret(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// `Bearer realm="…",service="…",scope="…"` (RFC 9110, 11.6.1; quoted values may hold commas).
fn parse(text: &str) -> Option<Challenge> {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    while let Some((key, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let (value, tail) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match key.trim().trim_start_matches(',').trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            "scope" => scope = Some(value.to_owned()),
            _ => {}
        }
        rest = tail;
    }
    Some(Challenge::Bearer { realm: realm?, service, scope })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer_of(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let (service, scope) = (service.map(str::to_owned), scope.map(str::to_owned));
        Challenge::Bearer { realm: realm.to_owned(), service, scope }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        for (text, expect) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#,
                Some(bearer_of(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/busybox:pull"),
                )),
            ),
            (r#"bearer realm="https://a/t", error="x,y=z""#, Some(bearer_of("https://a/t", None, None))),
            ("Bearer realm=https://a/t,service=s", Some(bearer_of("https://a/t", Some("s"), None))),
            (r#"Basic realm="Registry""#, Some(Challenge::Basic)),
            ("Negotiate", None),
            ("Bearer", None),
            (r#"Bearer realm="unterminated"#, None),
            ("", None),
        ] {
            assert_eq!(parse(text), expect, "{text}");
        }
    }

    #[test]
    fn token_requests_carry_what_the_credentials_allow() {
        let scope = "repository:a/b:pull";
        let anonymous = token_request("https://a/t?x=1", Some("s e"), scope, None).unwrap();
        assert_eq!(anonymous.uri(), "https://a/t?x=1&service=s%20e&scope=repository%3Aa%2Fb%3Apull");
        let user = Credentials::Basic { username: "u".to_owned(), password: "p".to_owned() };
        let named = token_request("https://a/t", None, scope, Some(&user)).unwrap();
        assert_eq!(named.headers()[AUTHORIZATION], "Basic dTpw");
        assert!(!format!("{:?}", named.headers()).contains("dTpw"), "secrets do not print");
        let identity = Credentials::IdentityToken("i".to_owned());
        assert_eq!(token_request("https://a/t", None, scope, Some(&identity)).unwrap().method(), Method::POST);
    }
}
