//! Manifests from a URL, fetched every so often since HTTP tells of no change (kubelet `pkg/kubelet/config/http.go`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use carob_kit::names::{DialError, Names};
use carob_kit::{Clock, SYSTEM_CA_BUNDLES, chain};
use http::header::{CONNECTION, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::parse::Reader;
use super::{Collector, Origin, TEXT_LEN_MAX};

/// How often the URL is fetched (kubelet `httpCheckFrequency`).
const FETCH_EVERY: Duration = Duration::from_secs(20);
/// How long one fetch may take, redirects included (kubelet `NewSourceURL`).
const FETCH_TIME_MAX: Duration = Duration::from_secs(10);
/// Redirects that are followed (Go `net/http`).
const REDIRECTS_MAX: usize = 10;

/// What is fetched.
#[derive(Debug, Clone)]
pub struct ManifestUrl {
    pub url: Uri,
    /// Sent with each request to the URL's own host.
    pub headers: HeaderMap,
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0} has no host")]
    NoHost(Uri),
    #[error("{0} is neither http nor https")]
    Scheme(Uri),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("TLS with {0}")]
    Tls(String, #[source] io::Error),
    #[error("read the system's certificate authorities")]
    Authorities(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("there are no certificate authorities: none of {} exists", SYSTEM_CA_BUNDLES.join(", "))]
    NoAuthorities,
    #[error("make the request")]
    Request(#[from] http::Error),
    #[error("ask {0}")]
    Exchange(Uri, #[source] hyper::Error),
    #[error("read the answer of {0}")]
    Body(Uri, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer has more than {TEXT_LEN_MAX} bytes")]
    TooLong,
    #[error("{0}: {1}")]
    Status(Uri, StatusCode),
    #[error("{0} redirects to a place that cannot be followed")]
    Redirect(Uri),
    #[error("there were more than {REDIRECTS_MAX} redirects")]
    TooManyRedirects,
    #[error("there was no answer within {} s", FETCH_TIME_MAX.as_secs())]
    TimedOut,
    #[error("zero-length data received from {0}")]
    Empty(Uri),
}

/// Fetches what a URL says, and tells a collector.
pub struct Fetcher {
    pub manifest: ManifestUrl,
    pub node_name: String,
    pub collector: Arc<Collector>,
    pub clock: Arc<dyn Clock>,
}

impl Fetcher {
    /// Fetches until the shutdown. While it cannot be fetched, what was fetched last stays.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut fetched = Bytes::new();
        // Whether the URL has said what is to run.
        let mut known = false;
        let mut complaint = String::new();
        loop {
            // Both arms are cancel safe: a fetch leaves nothing behind.
            let text = tokio::select! {
                text = tokio::time::timeout(FETCH_TIME_MAX, self.fetch()) => text.unwrap_or(Err(FetchError::TimedOut)),
                () = shutdown.cancelled() => return,
            };
            match text {
                Ok(text) => {
                    complaint.clear();
                    if fetched != text {
                        known |= self.take(&text, !known);
                        fetched = text;
                    }
                }
                Err(error) => {
                    if matches!(error, FetchError::Empty(_)) && (!known || !fetched.is_empty()) {
                        // The URL answers, and names no Pod.
                        self.collector.update(vec![(self.origin(), None)], !known);
                        known = true;
                        fetched = Bytes::new();
                    }
                    // Once for each reason, not every twenty seconds.
                    let said = format!("{}: {}", self.manifest.url, chain(&error));
                    if said != complaint {
                        self.collector.complain(said.clone());
                        complaint = said;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(FETCH_EVERY) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn origin(&self) -> Origin {
        Origin::Url(self.manifest.url.to_string())
    }

    /// Answers whether the text says what is to run.
    fn take(&self, text: &[u8], first: bool) -> bool {
        let origin = self.origin();
        let reader = Reader { node_name: &self.node_name, origin: &origin, now: self.clock.now() };
        let parsed = reader.read(text);
        let usable = parsed.is_usable(!first);
        for said in parsed.problems.into_iter().chain(parsed.remarks) {
            self.collector.complain(said);
        }
        if usable {
            self.collector.update(vec![(origin, Some(parsed.pods.into_iter().map(Arc::new).collect()))], first);
        }
        usable
    }

    async fn fetch(&self) -> Result<Bytes, FetchError> {
        let mut at = self.manifest.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let own_host = at.authority() == self.manifest.url.authority();
            let headers = if own_host { self.manifest.headers.clone() } else { HeaderMap::new() };
            match get(&at, headers).await? {
                Answer::Text(text) if text.is_empty() => return Err(FetchError::Empty(at)),
                Answer::Text(text) => return Ok(text),
                Answer::Redirect(to) => at = to,
            }
        }
        Err(FetchError::TooManyRedirects)
    }
}

enum Answer {
    Text(Bytes),
    Redirect(Uri),
}

async fn get(url: &Uri, headers: HeaderMap) -> Result<Answer, FetchError> {
    let host = url.host().ok_or_else(|| FetchError::NoHost(url.clone()))?.trim_matches(['[', ']']).to_owned();
    let is_tls = match url.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(FetchError::Scheme(url.clone())),
    };
    // New for each fetch: the machine's resolvers may have changed since. The time of all is limited by the caller.
    let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let stream = Names::default().connect(&host, port, FETCH_TIME_MAX).await?;
    if !is_tls {
        return exchange(stream, url, headers).await;
    }
    let failed = |source| FetchError::Tls(host.clone(), source);
    let name = ServerName::try_from(host.clone()).map_err(|error| failed(io::Error::other(error)))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(trusting_the_system()?));
    exchange(connector.connect(name, stream).await.map_err(failed)?, url, headers).await
}

async fn exchange<S>(stream: S, url: &Uri, headers: HeaderMap) -> Result<Answer, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error| FetchError::Exchange(url.clone(), error);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let request = request(url, headers)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status();
        if status.is_redirection() {
            return redirect(url, response.headers()).map(Answer::Redirect);
        }
        if status != StatusCode::OK {
            return Err(FetchError::Status(url.clone(), status));
        }
        match Limited::new(response.into_body(), TEXT_LEN_MAX).collect().await {
            Ok(body) => Ok(Answer::Text(body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => Err(FetchError::TooLong),
            Err(error) => Err(FetchError::Body(url.clone(), error)),
        }
    };
    tokio::pin!(answer);
    // The connection carries the answer, and has nothing to say once that is there.
    tokio::select! {
        answer = &mut answer => answer,
        Err(error) = connection => Err(failed(error)),
    }
}

fn request(url: &Uri, headers: HeaderMap) -> Result<Request<Empty<Bytes>>, FetchError> {
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::get(path).body(Empty::new())?;
    *request.headers_mut() = headers;
    let own = request.headers_mut();
    if let Some(authority) = url.authority().filter(|_| !own.contains_key(HOST)) {
        own.insert(HOST, authority.as_str().parse().map_err(http::Error::from)?);
    }
    own.entry(USER_AGENT).or_insert(http::HeaderValue::from_static(concat!("carob/", env!("CARGO_PKG_VERSION"))));
    own.insert(CONNECTION, http::HeaderValue::from_static("close"));
    Ok(request)
}

/// Where a redirect leads; never from TLS to plain text.
fn redirect(from: &Uri, headers: &HeaderMap) -> Result<Uri, FetchError> {
    let refused = || FetchError::Redirect(from.clone());
    let to = headers.get(LOCATION).and_then(|to| to.to_str().ok()).ok_or_else(refused)?;
    let mut parts = to.parse::<Uri>().map_err(|_| refused())?.into_parts();
    if parts.authority.is_none() && to.starts_with('/') && !to.starts_with("//") {
        parts.authority = from.authority().cloned();
        parts.scheme = from.scheme().cloned();
    }
    let to = Uri::from_parts(parts).map_err(|_| refused())?;
    let downgrade = from.scheme_str() == Some("https") && to.scheme_str() != Some("https");
    if downgrade || to.host().is_none() { Err(refused()) } else { Ok(to) }
}

/// Read for each fetch: an authority may have been added.
fn trusting_the_system() -> Result<ClientConfig, FetchError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| FetchError::Authorities(error);
    let mut roots = RootCertStore::empty();
    for path in SYSTEM_CA_BUNDLES {
        let pem = match fs_err::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            pem => pem.map_err(|error| failed(error.into()))?,
        };
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        // One that cannot be used is passed over, as everywhere.
        roots.add_parsable_certificates(found.map_err(|error| failed(error.into()))?);
        break;
    }
    if roots.is_empty() {
        return Err(FetchError::NoAuthorities);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| failed(error.into()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use carob_kit::SystemClock;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::events::{Events, Subject};

    #[derive(Default)]
    struct Said(Mutex<Vec<String>>);

    impl Events for Said {
        fn normal(&self, _subject: &Subject, _reason: &str, _message: String) {}

        fn warning(&self, _subject: &Subject, _reason: &str, message: String) {
            self.0.lock().expect("no holder panics").push(message);
        }
    }

    /// Answers each connection with the next of `answers`; yields what was asked.
    async fn server(answers: Vec<String>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let task = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut buffer = vec![0; 4096];
                let len = stream.read(&mut buffer).await.expect("a request");
                asked.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
                stream.write_all(answer.as_bytes()).await.expect("answered");
            }
            asked
        });
        (port, task)
    }

    fn answer(status: &str, extra: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{extra}\r\n{body}", body.len())
    }

    fn fetcher(url: &str) -> (Fetcher, Arc<Said>) {
        let said = Arc::new(Said::default());
        let events: Arc<dyn Events> = said.clone();
        let headers = HeaderMap::from_iter([(http::HeaderName::from_static("x-a"), "b".parse().expect("a value"))]);
        let manifest = ManifestUrl { url: url.parse().expect("a URL"), headers };
        let collector = Arc::new(Collector::new("n".to_owned(), events, 1));
        let clock = Arc::new(SystemClock::default());
        (Fetcher { manifest, node_name: "n".to_owned(), collector, clock }, said)
    }

    #[tokio::test]
    async fn a_list_is_fetched_with_its_headers() {
        let body = r#"{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"x"}]}}]}"#;
        let (port, server) =
            server(vec![answer("302 Found", "Location: /next\r\n", ""), answer("200 OK", "", body)]).await;
        let (fetcher, said) = fetcher(&format!("http://localhost:{port}/pods?x=1"));
        let mut manifests = fetcher.collector.manifests();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(fetcher.run(shutdown.clone()));
        let found = manifests.wait_for(|all| all.complete).await.expect("fetched").clone();
        assert_eq!(found.pods.keys().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["a-n"]);
        let source = &found.pods.values().next().expect("one").metadata.annotations.as_ref().expect("annotations")["kubernetes.io/config.source"];
        assert_eq!(source, "http");
        let asked = server.await.expect("the server ends");
        assert!(asked[0].starts_with("GET /pods?x=1 HTTP/1.1\r\n") && asked[0].contains("x-a: b\r\n"), "{asked:?}");
        assert!(asked[1].starts_with("GET /next "), "{asked:?}");
        shutdown.cancel();
        task.await.expect("no panic");
        assert_eq!(said.0.lock().expect("no holder panics").len(), 0);
    }

    #[tokio::test]
    async fn what_cannot_be_fetched_is_told() {
        let big = "x".repeat(TEXT_LEN_MAX + 1);
        for (answers, expected) in [
            (vec![answer("404 Not Found", "", "")], "404 Not Found"),
            (vec![answer("302 Found", "Location: /loop\r\n", ""); 11], "there were more than 10 redirects"),
            (vec![answer("302 Found", "Location: ftp://x/\r\n", "")], "is neither http nor https"),
            (vec![answer("200 OK", "", &big)], "the answer has more than 10485760 bytes"),
            (vec![answer("200 OK", "", "")], "zero-length data received"),
            (vec!["garbage\r\n\r\n".to_owned()], "ask http://127.0.0.1"),
        ] {
            let (port, server) = server(answers).await;
            let (fetcher, _) = fetcher(&format!("http://127.0.0.1:{port}/"));
            let error = fetcher.fetch().await.expect_err("refused");
            let error = chain(&error).to_string();
            assert!(error.contains(expected), "{error}");
            server.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let (fetcher, said) = fetcher(&format!("http://127.0.0.1:{port}/"));
        let manifests = fetcher.collector.manifests();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(fetcher.run(shutdown.clone()));
        tokio::time::sleep(FETCH_TIME_MAX * 8).await;
        shutdown.cancel();
        task.await.expect("no panic");
        let said = said.0.lock().expect("no holder panics").clone();
        assert_eq!(said, [format!("http://127.0.0.1:{port}/: there was no answer within 10 s")], "told once");
        assert!(!manifests.borrow().complete, "nothing is known yet of what is to run");
    }

    #[test]
    fn redirects_never_leave_tls() {
        let to = |from: &str, to: &str| {
            let headers = HeaderMap::from_iter([(LOCATION, to.parse().expect("a value"))]);
            redirect(&from.parse().expect("a URL"), &headers).ok().map(|uri| uri.to_string())
        };
        assert_eq!(to("https://a/x", "/y?z"), Some("https://a/y?z".to_owned()));
        assert_eq!(to("http://a/x", "https://b/"), Some("https://b/".to_owned()));
        assert_eq!(to("https://a/x", "http://a/"), None);
        assert_eq!(to("http://a/x", "//"), None);
    }
}
