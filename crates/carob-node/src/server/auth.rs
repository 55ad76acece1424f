//! Who may use the node's API: the API server and administrators by their certificates, others if the API server says so of
//! their certificate or token (kubelet `pkg/kubelet/server/auth.go`, in its modes Webhook).

use async_trait::async_trait;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use tokio::sync::Semaphore;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Questions to the API server at a time, for all callers; more of them wait.
const REVIEWS_MAX: usize = 16;
/// The longest token that the API server is asked about, bytes. Its own are a tenth of it.
const TOKEN_LEN_MAX: usize = 16 * 1024;

/// Who may use the node's API without a question to the API server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Common names, for instance the API server's `kube-apiserver-kubelet-client`.
    pub users: Vec<String>,
    /// Organisations, for instance `system:masters`.
    pub groups: Vec<String>,
}

impl Access {
    pub(super) fn admits(&self, user: &UserInfo) -> bool {
        let named = user.username.as_ref().is_some_and(|name| self.users.contains(name));
        named || user.groups.iter().flatten().any(|group| self.groups.contains(group))
    }
}

/// The subject of a certificate (DER), which TLS has verified. A subject that can be read in two ways names nobody.
pub(super) fn holder(certificate: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let mut names = subject.iter_common_name().map(|name| name.as_str());
    let (Some(Ok(name)), None) = (names.next(), names.next()) else { return None };
    let groups: Result<Vec<String>, _> =
        subject.iter_organization().map(|group| group.as_str().map(str::to_owned)).collect();
    let mut groups = groups.ok().filter(|_| !name.is_empty())?;
    groups.push("system:authenticated".to_owned());
    Some(UserInfo { username: Some(name.to_owned()), groups: Some(groups), ..UserInfo::default() })
}

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthError {
    #[error("Unauthorized")]
    Unauthorized,
    #[error("Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[{}])", subresources.join(" "))]
    Forbidden { user: String, verb: &'static str, subresources: Vec<&'static str> },
    #[error("Authorization error (user={user}, verb={verb}, resource=nodes, subresource={subresource})")]
    Review { user: String, verb: &'static str, subresource: &'static str, source: ReviewError },
}

/// The API server did not answer a question.
#[derive(Debug, thiserror::Error)]
#[error("ask the API server")]
pub(crate) struct ReviewError(#[from] kube::Error);

/// Whom to ask about callers.
#[async_trait]
pub(crate) trait Reviews: Send + Sync {
    /// Whose token it is; `None` if it is not valid.
    async fn bearer(&self, token: &str) -> Result<Option<UserInfo>, ReviewError>;
    /// Whether a user may do `verb` on the subresource of this node.
    async fn allows(&self, user: &UserInfo, verb: &str, subresource: &str) -> Result<bool, ReviewError>;
}

/// The API server's reviews.
pub(crate) struct ApiReviews {
    client: kube::Client,
    node_name: String,
    places: Semaphore,
}

impl ApiReviews {
    pub(crate) fn new(client: kube::Client, node_name: String) -> Self {
        Self { client, node_name, places: Semaphore::new(REVIEWS_MAX) }
    }
}

#[async_trait]
impl Reviews for ApiReviews {
    async fn bearer(&self, token: &str) -> Result<Option<UserInfo>, ReviewError> {
        let _place = self.places.acquire().await;
        let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = Api::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        let status = answer.status.unwrap_or_default();
        Ok(status.user.filter(|_| status.authenticated == Some(true)))
    }

    async fn allows(&self, user: &UserInfo, verb: &str, subresource: &str) -> Result<bool, ReviewError> {
        let _place = self.places.acquire().await;
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            version: Some("v1".to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some(subresource.to_owned()),
            name: Some(self.node_name.clone()),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            user: user.username.clone(),
            groups: user.groups.clone(),
            uid: user.uid.clone(),
            extra: user.extra.clone(),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answer = Api::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

/// What decides about callers.
pub(crate) struct Gate {
    pub(super) access: Access,
    pub(super) reviews: Box<dyn Reviews>,
}

impl Gate {
    /// Lets a request through, or says why not. `holder` is the subject of the caller's certificate.
    pub(super) async fn pass(
        &self,
        holder: Option<&UserInfo>,
        headers: &HeaderMap,
        method: &Method,
        path: &str,
    ) -> Result<(), AuthError> {
        if holder.is_some_and(|holder| self.access.admits(holder)) {
            return Ok(());
        }
        let user = match (holder, token(headers)) {
            (Some(holder), _) => holder.clone(),
            (None, Some(token)) => self.owner(token).await?,
            (None, None) => return Err(AuthError::Unauthorized),
        };
        let (verb, subresources) = (verb(method), subresources(path));
        let name = || user.username.clone().unwrap_or_default();
        for subresource in subresources.iter().copied() {
            match self.reviews.allows(&user, verb, subresource).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(source) => return Err(AuthError::Review { user: name(), verb, subresource, source }),
            }
        }
        Err(AuthError::Forbidden { user: name(), verb, subresources })
    }

    async fn owner(&self, token: &str) -> Result<UserInfo, AuthError> {
        match self.reviews.bearer(token).await {
            Ok(user) => user.ok_or(AuthError::Unauthorized),
            Err(error) => {
                tracing::warn!(error = %carob_kit::chain(&error), "a token cannot be checked");
                Err(AuthError::Unauthorized)
            }
        }
    }
}

fn token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= TOKEN_LEN_MAX).then_some(token)
}

/// As the API's verb; a method without one is allowed to those who may do everything.
fn verb(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// The subresources of nodes any of which opens a path.
fn subresources(path: &str) -> Vec<&'static str> {
    match path.split('/').nth(1).unwrap_or_default() {
        "pods" | "runningpods" => vec!["pods", "proxy"],
        "healthz" => vec!["healthz", "proxy"],
        "configz" => vec!["configz", "proxy"],
        "stats" => vec!["stats"],
        "metrics" => vec!["metrics"],
        "logs" => vec!["log"],
        "checkpoint" => vec!["checkpoint"],
        "statusz" => vec!["statusz"],
        "flagz" => vec!["configz"],
        _ => vec!["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows one token, whose owner may read metrics, and may be out of reach.
    struct Book {
        reachable: bool,
    }

    fn user(name: &str) -> UserInfo {
        UserInfo { username: Some(name.to_owned()), ..UserInfo::default() }
    }

    #[async_trait]
    impl Reviews for Book {
        async fn bearer(&self, token: &str) -> Result<Option<UserInfo>, ReviewError> {
            Ok((token == "good").then(|| user("scraper")))
        }

        async fn allows(&self, user: &UserInfo, verb: &str, subresource: &str) -> Result<bool, ReviewError> {
            if !self.reachable {
                return Err(ReviewError(kube::Error::LinesCodecMaxLineLengthExceeded));
            }
            Ok(user.username.as_deref() == Some("scraper")
                && verb == "get"
                && matches!(subresource, "metrics" | "pods"))
        }
    }

    async fn ask(gate: &Gate, holder: Option<&str>, bearer: Option<&str>, method: Method, path: &str) -> String {
        let mut headers = HeaderMap::new();
        if let Some(bearer) = bearer {
            headers.insert(AUTHORIZATION, format!("Bearer {bearer}").parse().expect("a header"));
        }
        let holder = holder.map(user);
        let passed = gate.pass(holder.as_ref(), &headers, &method, path).await;
        passed.map_or_else(|error| error.to_string(), |()| "passed".to_owned())
    }

    #[tokio::test]
    async fn who_is_known_or_allowed_passes() {
        let access = Access { users: vec!["api".to_owned()], groups: Vec::new() };
        let gate = Gate { access: access.clone(), reviews: Box::new(Book { reachable: true }) };
        let cases = [
            (Some("api"), None, Method::POST, "/exec/a/b/c", "passed"),
            (None, Some("good"), Method::GET, "/metrics/resource", "passed"),
            (None, Some("good"), Method::GET, "/pods", "passed"),
            (Some("scraper"), Some("bad"), Method::GET, "/metrics", "passed"),
            (None, None, Method::GET, "/metrics", "Unauthorized"),
            (None, Some("bad"), Method::GET, "/metrics", "Unauthorized"),
            (
                None,
                Some("good"),
                Method::HEAD,
                "/metrics",
                "Forbidden (user=scraper, verb=, resource=nodes, subresource(s)=[metrics])",
            ),
            (
                Some("other"),
                None,
                Method::GET,
                "/pods",
                "Forbidden (user=other, verb=get, resource=nodes, subresource(s)=[pods proxy])",
            ),
            (
                None,
                Some("good"),
                Method::POST,
                "/exec/a/b/c",
                "Forbidden (user=scraper, verb=create, resource=nodes, subresource(s)=[proxy])",
            ),
        ];
        for (holder, bearer, method, path, expected) in cases {
            assert_eq!(ask(&gate, holder, bearer, method, path).await, expected, "{path}");
        }
        let cut_off = Gate { access, reviews: Box::new(Book { reachable: false }) };
        assert_eq!(ask(&cut_off, Some("api"), None, Method::GET, "/pods").await, "passed");
        assert_eq!(
            ask(&cut_off, None, Some("good"), Method::GET, "/metrics").await,
            "Authorization error (user=scraper, verb=get, resource=nodes, subresource=metrics)"
        );
    }
}
