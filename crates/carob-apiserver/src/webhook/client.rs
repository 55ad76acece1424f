//! One pooled HTTP/1.1 client per hook (upstream does not use HTTP/2 either: one connection would tie all calls to one
//! endpoint; apiserver `pkg/util/webhook/client.go`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use carob_api::meta;
use carob_store::Store;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::uri::{Authority, InvalidUri, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls_pki_types::CertificateDer;
use serde_json::Value;

use super::connect::{ConnectError, Connector, Server, Shared};
use super::tls::{Identity, TlsError, Trust, client_config, roots_of, system_roots};
use crate::dialer::NodeDialer;
use crate::refusal::refusal;

/// Bytes of a reply that are read; a longer one fails the call. An AdmissionReview can hold a patch of an object of the
/// store's size limit in base64.
const REPLY_LEN_MAX: usize = 8 * 1024 * 1024;
/// Connections to one webhook that are kept while idle, and how long.
const IDLE_CONNECTIONS_MAX: usize = 16;
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Where a Service's port is not named (apiserver `pkg/util/webhook/client.go`).
const PORT_DEFAULT: u16 = 443;

/// A `clientConfig` cannot be called.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error("webhook configuration must have either service or URL")]
    NoServer,
    #[error("the URL cannot be parsed")]
    Url(#[source] InvalidUri),
    #[error("the URL has no host, or is not of https")]
    NotHttps,
    #[error("the path {path:?} cannot be sent")]
    Path {
        path: String,
        #[source]
        source: InvalidUri,
    },
    #[error("caBundle is not base64")]
    Bundle(#[source] base64::DecodeError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Url(#[from] HookError),
    #[error(transparent)]
    Call(#[from] CallError),
}

/// A call that brought no answer to read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{} \"{url}\": context deadline exceeded", verb(.method))]
    Timeout { method: Method, url: String },
    #[error("{} \"{url}\": {text}", verb(.method))]
    Connect { method: Method, url: String, text: String },
    #[error("{} \"{url}\"", verb(.method))]
    Http {
        method: Method,
        url: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the reply is longer than {max} bytes")]
    TooLong { max: usize },
    /// Worded as client-go words a refusal.
    #[error("{message}")]
    Refused { message: String },
    #[error("the reply is not JSON")]
    NotJson(#[source] serde_json::Error),
}

/// As Go's client words a method.
fn verb(method: &Method) -> &'static str {
    if *method == Method::GET { "Get" } else { "Post" }
}

/// Makes hooks. Clones share names that were looked up and the system's authorities.
#[derive(Clone)]
pub(crate) struct WebhookClient {
    shared: Arc<Shared>,
}

/// A webhook that can be called.
pub(crate) struct Hook {
    authority: Authority,
    path: String,
    http: legacy::Client<Connector, Full<Bytes>>,
}

impl WebhookClient {
    pub(crate) fn new(store: Store, dialer: Arc<dyn NodeDialer>) -> Self {
        Self { shared: Arc::new(Shared::new(store, dialer)) }
    }

    /// Makes a hook of a `clientConfig` with `url` or `service`, and `caBundle`.
    pub(crate) fn hook(&self, config: &Value) -> Result<Hook, HookError> {
        let roots = match meta::str_at(config, &["caBundle"]).filter(|bundle| !bundle.is_empty()) {
            Some(bundle) => Some(roots_of(&STANDARD.decode(bundle).map_err(HookError::Bundle)?)?),
            None => None,
        };
        let (authority, path, server) = match (meta::str_at(config, &["url"]), meta::at(config, &["service"])) {
            (Some(url), _) => of_url(url)?,
            (None, Some(service)) => of_service(service)?,
            (None, None) => return Err(HookError::NoServer),
        };
        check_path(&path)?;
        let tls = match roots {
            Some(roots) => client_config(Trust::Roots(roots), None)?,
            None => self.shared.system_tls()?,
        };
        let connector = Connector::new(Arc::clone(&self.shared), server, tls);
        Ok(Hook { authority, path, http: pooled(connector) })
    }

    /// Fetches the JSON of `len_max` bytes at most that is at `url`, which is of https. It has to be there within `timeout`; redirects
    /// are not followed. Without `roots` the system's authorities are trusted.
    pub(crate) async fn get(
        &self,
        url: &str,
        roots: Option<&[CertificateDer<'static>]>,
        timeout: Duration,
        len_max: usize,
    ) -> Result<Value, FetchError> {
        let (authority, _, server) = of_url(url)?;
        let connector = self.connector(server, roots.map(|roots| Trust::Roots(roots.to_vec())), None);
        let http: legacy::Client<Connector, Full<Bytes>> = pooled(connector.map_err(HookError::from)?);
        let request = Request::builder()
            .uri(url)
            .header(HOST, authority.as_str())
            .header(ACCEPT, HeaderValue::from_static("application/json"))
            .header(USER_AGENT, HeaderValue::from_static("kube-apiserver"))
            .body(Full::default());
        let exchange = exchange(&http, url, Method::GET, request, len_max);
        match tokio::time::timeout(timeout, exchange).await {
            Ok(reply) => Ok(reply?),
            Err(_) => Err(CallError::Timeout { method: Method::GET, url: url.to_owned() }.into()),
        }
    }

    /// Makes connections to a Service's server, to whom they show `identity`. The system's authorities are trusted where `trust`
    /// names nobody.
    pub(crate) fn connector(
        &self,
        server: Server,
        trust: Option<Trust>,
        identity: Option<Identity>,
    ) -> Result<Connector, TlsError> {
        let trust = match trust {
            Some(trust) => trust,
            None => Trust::Roots(system_roots()?),
        };
        Ok(Connector::new(Arc::clone(&self.shared), server, client_config(trust, identity)?))
    }
}

/// A client that keeps connections for as long as they are of use.
pub(crate) fn pooled<B>(connector: Connector) -> legacy::Client<Connector, B>
where
    B: http_body::Body + Send,
    B::Data: Send,
{
    legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .build(connector)
}

fn of_url(url: &str) -> Result<(Authority, String, Server), HookError> {
    let uri: Uri = url.parse().map_err(HookError::Url)?;
    let authority = uri.authority().filter(|_| uri.scheme() == Some(&Scheme::HTTPS)).ok_or(HookError::NotHttps)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let server = Server::Host { host, port: authority.port_u16().unwrap_or(PORT_DEFAULT) };
    Ok((authority.clone(), uri.path().to_owned(), server))
}

fn of_service(service: &Value) -> Result<(Authority, String, Server), HookError> {
    let text = |field: &str| meta::str_at(service, &[field]).unwrap_or_default().to_owned();
    let (namespace, name) = (text("namespace"), text("name"));
    let port = meta::i64_at(service, &["port"]).and_then(|port| u16::try_from(port).ok());
    let port = port.filter(|port| *port > 0).unwrap_or(PORT_DEFAULT);
    let authority = format!("{name}.{namespace}.svc:{port}").parse().map_err(HookError::Url)?;
    let path = text("path");
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    Ok((authority, path, Server::Service { namespace, name, port }))
}

fn check_path(path: &str) -> Result<(), HookError> {
    let parsed: Result<PathAndQuery, _> = path.parse();
    parsed.map(|_| ()).map_err(|source| HookError::Path { path: path.to_owned(), source })
}

impl Hook {
    /// Sends `body` and answers with the reply, which has to come within `timeout`. The webhook is told the time-out in whole
    /// seconds.
    pub(crate) async fn post(&self, body: Bytes, timeout: Duration) -> Result<Value, CallError> {
        self.post_for(body, timeout, REPLY_LEN_MAX).await
    }

    /// As [`Hook::post`] for a webhook that may answer with `reply_len_max` bytes.
    pub(crate) async fn post_for(
        &self,
        body: Bytes,
        timeout: Duration,
        reply_len_max: usize,
    ) -> Result<Value, CallError> {
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        self.within(format!("{}?timeout={seconds}s", self.url()), body, timeout, reply_len_max).await
    }

    fn url(&self) -> String {
        format!("https://{}{}", self.authority, self.path)
    }

    async fn within(&self, url: String, body: Bytes, timeout: Duration, max: usize) -> Result<Value, CallError> {
        match tokio::time::timeout(timeout, self.exchange(&url, body, max)).await {
            Ok(reply) => reply,
            Err(_) => Err(CallError::Timeout { method: Method::POST, url }),
        }
    }

    async fn exchange(&self, url: &str, body: Bytes, max: usize) -> Result<Value, CallError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(url)
            .header(HOST, self.authority.as_str())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(ACCEPT, HeaderValue::from_static("application/json, */*"))
            .header(USER_AGENT, HeaderValue::from_static("kube-apiserver-admission"))
            .body(Full::new(body));
        exchange(&self.http, url, Method::POST, request, max).await
    }
}

/// Sends a request and reads the JSON of the reply, of `max` bytes at most.
async fn exchange(
    http: &legacy::Client<Connector, Full<Bytes>>,
    url: &str,
    method: Method,
    request: Result<Request<Full<Bytes>>, http::Error>,
    max: usize,
) -> Result<Value, CallError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| CallError::Http {
        method: method.clone(),
        url: url.to_owned(),
        source,
    };
    let request = request.map_err(|error| failed(error.into()))?;
    let response = http.request(request).await.map_err(|error| match connect_error(&error) {
        Some(text) => CallError::Connect { method: method.clone(), url: url.to_owned(), text },
        None => failed(error.into()),
    })?;
    let code = response.status();
    let body = Limited::new(response.into_body(), max)
        .collect()
        .await
        .map_err(|error| if error.is::<LengthLimitError>() { CallError::TooLong { max } } else { failed(error) })?;
    let body = body.to_bytes();
    if !code.is_success() {
        return Err(CallError::Refused { message: refused(code, &body) });
    }
    serde_json::from_slice(&body).map_err(CallError::NotJson)
}

/// The text of a connection that could not be made.
pub(crate) fn connect_error(error: &legacy::Error) -> Option<String> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref::<ConnectError>() {
            return Some(found.text());
        }
        source = error.source();
    }
    None
}

/// A Status says why itself; of other bodies client-go quotes what it needs.
fn refused(code: StatusCode, body: &[u8]) -> String {
    let status: Option<Value> = serde_json::from_slice(body).ok();
    let said = status.as_ref().filter(|status| meta::kind(status) == "Status");
    match said.and_then(|status| meta::str_at(status, &["message"])).filter(|message| !message.is_empty()) {
        Some(message) => message.to_owned(),
        None => refusal(code, &String::from_utf8_lossy(body)).1,
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("authority", &self.authority).field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use carob_store::Options;
    use serde_json::json;

    use super::*;
    use crate::NetworkDialer;

    fn client() -> WebhookClient {
        WebhookClient::new(Store::in_memory(Options::default()), Arc::new(NetworkDialer::without_tls()))
    }

    #[tokio::test]
    async fn hooks_have_the_url_of_their_configuration() {
        let client = client();
        let ca = rcgen::generate_simple_self_signed(["a".to_owned()]).expect("ring makes keys").cert.pem();
        let bundle = STANDARD.encode(ca);
        let service = json!({ "service": { "name": "s", "namespace": "n", "path": "/p" }, "caBundle": bundle });
        let hook = client.hook(&service).expect("it can be called");
        assert_eq!(hook.url(), "https://s.n.svc:443/p");
        let url = json!({ "url": "https://[::1]:8443/x", "caBundle": bundle });
        let hook = client.hook(&url).expect("it can be called");
        assert_eq!(hook.url(), "https://[::1]:8443/x");
    }

    #[tokio::test]
    async fn what_cannot_be_called_is_refused_at_once() {
        let client = client();
        for (config, text) in [
            (json!({}), "webhook configuration must have either service or URL"),
            (json!({ "url": "http://a/" }), "the URL has no host, or is not of https"),
            (json!({ "url": "https://a/", "caBundle": "AAAA" }), "unable to parse bytes as PEM block"),
        ] {
            assert_eq!(client.hook(&config).expect_err("it is refused").to_string(), text, "{config}");
        }
    }

    #[tokio::test]
    async fn a_service_without_endpoints_is_told_as_such() {
        let ca = rcgen::generate_simple_self_signed(["a".to_owned()]).expect("ring makes keys").cert.pem();
        let service = json!({ "service": { "name": "s", "namespace": "n" }, "caBundle": STANDARD.encode(ca) });
        let hook = client().hook(&service).expect("it can be called");
        let error = hook.post(Bytes::new(), Duration::from_secs(1)).await.expect_err("nobody answers");
        assert_eq!(error.to_string(), r#"Post "https://s.n.svc:443/?timeout=1s": service "s" not found"#);
    }
}
