//! GET requests of probes and hooks (kubelet `pkg/probe/http`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Answer;

/// What probes call themselves (`pkg/probe/http/request.go`).
pub const PROBE_AGENT: &str = "kube-probe/1.36";
/// What hooks call themselves (`pkg/kubelet/lifecycle`).
pub const HOOK_AGENT: &str = "kube-lifecycle/1.36";
/// Bytes of an answer that are read (`maxRespBodyLength`).
const BODY_LEN_MAX: usize = 10 * 1024;
/// Redirects within one host that are followed (Go `net/http`).
const REDIRECTS_MAX: usize = 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub agent: &'static str,
}

impl Request {
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", host_port(&self.host, self.port), self.path)
    }
}

pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Anything from 200 to 399 is a success; so is a redirect to another host, which is not followed, but with a warning (kubelet
/// `pkg/probe/http`, DoHTTPProbe).
pub async fn get(request: &Request, timeout: Duration) -> Answer {
    match tokio::time::timeout(timeout, follow(request)).await {
        Ok(Ok(Reply { status: 200..300, .. })) => Answer::Success,
        Ok(Ok(Reply { status: 300..400, body, .. })) => {
            Answer::Warning(format!("Probe terminated redirects, Response body: {body}"))
        }
        Ok(Ok(Reply { status, .. })) => Answer::Failure(format!("HTTP probe failed with statuscode: {status}")),
        Ok(Err(why)) => Answer::Failure(format!("Get {:?}: {why}", request.url())),
        Err(_) => Answer::Failure(format!(
            "Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            request.url()
        )),
    }
}

/// What came back.
struct Reply {
    status: u16,
    location: Option<String>,
    /// As much of it as is read.
    body: String,
}

async fn follow(request: &Request) -> Result<Reply, String> {
    let mut request = request.clone();
    for _ in 0..REDIRECTS_MAX {
        let reply = once(&request).await?;
        let location = reply.location.as_deref().filter(|_| (300..400).contains(&reply.status));
        match location.and_then(|to| redirect(&request, to)) {
            Some(next) => request = next,
            None => return Ok(reply),
        }
    }
    Err(format!("stopped after {REDIRECTS_MAX} redirects"))
}

/// Where a redirect leads, if it stays on the host.
fn redirect(from: &Request, to: &str) -> Option<Request> {
    let mut next = from.clone();
    if to.starts_with('/') && !to.starts_with("//") {
        to.clone_into(&mut next.path);
        return Some(next);
    }
    let uri: http::Uri = to.parse().ok()?;
    if uri.host()?.trim_matches(['[', ']']) != from.host.trim_matches(['[', ']']) {
        return None;
    }
    next.tls = uri.scheme_str() == Some("https");
    next.port = uri.port_u16().unwrap_or(if next.tls { 443 } else { 80 });
    next.path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    Some(next)
}

async fn once(request: &Request) -> Result<Reply, String> {
    let stream = connect(&request.host, request.port).await?;
    if request.tls {
        let name = ServerName::try_from(request.host.trim_matches(['[', ']']).to_owned()).map_err(|e| e.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(trusting());
        let stream = connector.connect(name, stream).await.map_err(|error| format!("tls: {error}"))?;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    }
}

async fn exchange<S>(stream: S, request: &Request) -> Result<Reply, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let text = |error: hyper::Error| carob_kit::chain(&error).to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let connection = tokio::spawn(connection);
    let answer = async {
        let response = sender.send_request(build(request)?).await.map_err(text)?;
        let status = response.status().as_u16();
        let location = response.headers().get(http::header::LOCATION);
        let location = location.and_then(|value| value.to_str().ok()).map(str::to_owned);
        // The answer is read so that the server sees it taken; that it may be too long does not matter.
        let mut incoming = response.into_body();
        let mut body = Vec::new();
        while body.len() < BODY_LEN_MAX {
            let Some(frame) = incoming.frame().await else { break };
            if let Ok(data) = frame.map_err(text)?.into_data() {
                body.extend_from_slice(&data[..data.len().min(BODY_LEN_MAX - body.len())]);
            }
        }
        tracing::trace!(status, bytes = body.len(), "probe answered");
        Ok(Reply { status, location, body: String::from_utf8_lossy(&body).into_owned() })
    }
    .await;
    connection.abort();
    answer
}

fn build(request: &Request) -> Result<http::Request<Empty<Bytes>>, String> {
    let has = |name: &str| request.headers.iter().any(|(header, _)| header.eq_ignore_ascii_case(name));
    let mut builder = http::Request::get(&request.path).header(http::header::CONNECTION, "close");
    if !has("host") {
        builder = builder.header(http::header::HOST, host_port(&request.host, request.port));
    }
    if !has("user-agent") {
        builder = builder.header(http::header::USER_AGENT, request.agent);
    }
    if !has("accept") {
        builder = builder.header(http::header::ACCEPT, "*/*");
    }
    for (name, value) in &request.headers {
        builder = builder.header(name, value);
    }
    builder.body(Empty::new()).map_err(|error| error.to_string())
}

/// Connects, or says why not in the words of Go's dialer, which people search for.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let addresses = super::resolve(host, port).map_err(|why| format!("dial tcp: {why}"))?;
    let mut last = String::new();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("dial tcp {address}: connect: {}", plain(&error)),
        }
    }
    Err(last)
}

fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        _ => error.to_string(),
    }
}

/// TLS without a check of who answers: a probe asks whether there is an answer (upstream's probes do the same).
fn trusting() -> Arc<ClientConfig> {
    static CONFIG: std::sync::OnceLock<Arc<ClientConfig>> = std::sync::OnceLock::new();
    let make = || carob_kit::tls::unverified().expect("the provider has the default protocol versions");
    Arc::clone(CONFIG.get_or_init(|| Arc::new(make())))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

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

    fn request(port: u16) -> Request {
        Request {
            tls: false,
            host: "127.0.0.1".to_owned(),
            port,
            path: "/healthz?x=1".to_owned(),
            headers: vec![("X-A".to_owned(), "b".to_owned())],
            agent: PROBE_AGENT,
        }
    }

    fn answer(status: &str, extra: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n{extra}\r\n")
    }

    #[tokio::test]
    async fn statuses_decide() {
        for (status, expect) in [
            ("200 OK", Answer::Success),
            ("399 Odd", Answer::Warning("Probe terminated redirects, Response body: ".to_owned())),
            ("404 Not Found", Answer::Failure("HTTP probe failed with statuscode: 404".to_owned())),
            ("500 Bad", Answer::Failure("HTTP probe failed with statuscode: 500".to_owned())),
        ] {
            let (port, server) = server(vec![answer(status, "")]).await;
            assert_eq!(get(&request(port), Duration::from_secs(5)).await, expect);
            let asked = server.await.expect("the server ends").remove(0).to_lowercase();
            assert!(asked.starts_with("get /healthz?x=1 http/1.1\r\n"), "{asked}");
            assert!(asked.contains("user-agent: kube-probe/1.36\r\n") && asked.contains("x-a: b\r\n"), "{asked}");
        }
    }

    #[tokio::test]
    async fn redirects_stay_on_the_host() {
        let (port, server) = server(vec![answer("302 Found", "Location: /next\r\n"), answer("500 Bad", "")]).await;
        let got = get(&request(port), Duration::from_secs(5)).await;
        assert_eq!(got, Answer::Failure("HTTP probe failed with statuscode: 500".to_owned()));
        assert!(server.await.expect("the server ends")[1].starts_with("GET /next "));
        let elsewhere = "HTTP/1.1 302 Found\r\nContent-Length: 5\r\nLocation: http://other.example/\r\n\r\nFound";
        let (port, _server) = self::server(vec![elsewhere.to_owned()]).await;
        let warned = Answer::Warning("Probe terminated redirects, Response body: Found".to_owned());
        assert_eq!(get(&request(port), Duration::from_secs(5)).await, warned);
    }

    #[tokio::test]
    async fn nobody_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let expect = format!(
            "Get \"http://127.0.0.1:{port}/healthz?x=1\": dial tcp 127.0.0.1:{port}: connect: connection refused"
        );
        assert_eq!(get(&request(port), Duration::from_secs(5)).await, Answer::Failure(expect));
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = silent.local_addr().expect("an address").port();
        let got = get(&request(port), Duration::from_millis(50)).await;
        assert!(matches!(got, Answer::Failure(why) if why.contains("context deadline exceeded")));
    }
}
