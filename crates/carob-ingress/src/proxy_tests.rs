//! Requests through real sockets, to servers in this process.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use carob_client::ObjectKey;
use http::{HeaderMap, HeaderValue};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rustls_pki_types::{CertificateDer, ServerName};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::certificates::{ALPN_HTTP2, Certificates, Reader};
use crate::endpoints::{Protocol, Targets, Unserved};
use crate::proxy::{Directory, Proxy};
use crate::route::{Backend, Port};

/// One rule for everything.
struct One(Result<Targets, Unserved>);

impl Directory for One {
    fn find(&self, host: &str, path: &str) -> Option<Arc<Backend>> {
        let backend = Backend { service: ObjectKey::new("default", host), port: Port::Number(80) };
        (path != "/nowhere").then(|| Arc::new(backend))
    }

    fn targets(&self, _backend: &Backend) -> Result<Targets, Unserved> {
        self.0.clone()
    }
}

fn to(addresses: &[SocketAddr], protocol: Protocol) -> One {
    One(Ok(Targets { addresses: addresses.to_vec(), protocol }))
}

/// An Ingress that leads there; it ends with the guard.
async fn ingress(directory: One, tls: Option<Arc<rustls::ServerConfig>>) -> (SocketAddr, DropGuard, Arc<Proxy>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let at = listener.local_addr().expect("bound");
    let (end, proxy) = (CancellationToken::new(), Proxy::new(Arc::new(directory)));
    let port = listen::Port { number: at.port(), tls };
    tokio::spawn(listen::serve(listener, port, Arc::clone(&proxy), end.clone()));
    (at, end.drop_guard(), proxy)
}

/// A server that says what it was asked, and counts its connections.
async fn echo() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let at = listener.local_addr().expect("bound");
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepted");
            counted.fetch_add(1, Ordering::Relaxed);
            let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.expect("a body").to_bytes();
                let header =
                    |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("-").to_owned();
                let text = format!(
                    "{} {} host={} for={} proto={} body={}",
                    parts.method,
                    parts.uri,
                    header("host"),
                    header("x-forwarded-for"),
                    header("x-forwarded-proto"),
                    body.len()
                );
                Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(text))))
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    (at, connections)
}

/// A server that answers each connection with these words once its request's header is there, then closes it.
async fn curt(words: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let at = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            header(&mut stream).await;
            stream.write_all(words.as_bytes()).await.expect("written");
        }
    });
    at
}

/// An address where nothing listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("bound")
}

/// Reads up to the end of a header.
async fn header(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => read.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(read).expect("text")
}

/// Sends a request on a new connection, and reads until the other side closes it.
async fn ask(at: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(at).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("read");
    String::from_utf8(answer).expect("text")
}

async fn get(at: SocketAddr, path: &str) -> String {
    ask(at, &format!("GET {path} HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn requests_and_bodies_pass_on_few_connections() {
    let (backend, connections) = echo().await;
    let (at, _end, proxy) = ingress(to(&[backend], Protocol::Http1), None).await;
    let answer = get(at, "/a?b=c").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("GET /a?b=c host=web.example for=127.0.0.1 proto=http body=0"), "{answer}");
    let chunked = "POST http://other.example/ HTTP/1.1\r\nHost: web.example\r\nTransfer-Encoding: chunked\r\n\
                   X-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n3\r\nabc\r\n5\r\ndefgh\r\n0\r\n\r\n";
    let answer = ask(at, chunked).await;
    assert!(answer.ends_with("POST / host=other.example for=127.0.0.1 proto=http body=8"), "{answer}");
    assert_eq!(connections.load(Ordering::Relaxed), 1, "the connection to the endpoint is kept");
    let mut out = carob_kit::metrics::Exposition::default();
    proxy.counts.write_metrics(&mut out);
    assert!(out.into_text().contains("carob_ingress_requests_total{code=\"2xx\"} 2\n"));
}

#[tokio::test]
async fn what_cannot_be_served_is_said_by_its_code() {
    let code = async |directory: One, path: &str| {
        let (at, _end, _) = ingress(directory, None).await;
        let answer = get(at, path).await;
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    let silent = nobody().await;
    assert_eq!(code(to(&[silent], Protocol::Http1), "/nowhere").await, "404");
    assert_eq!(code(to(&[silent], Protocol::Http1), "/").await, "502");
    assert_eq!(code(One(Err(Unserved::NoEndpoints)), "/").await, "503");
    let breaks_off = curt("").await;
    assert_eq!(code(to(&[breaks_off], Protocol::Http1), "/").await, "502");
    let switches = curt("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
    assert_eq!(code(to(&[switches], Protocol::Http1), "/").await, "502", "nobody asked for another protocol");
    let (at, _end, _) = ingress(to(&[silent], Protocol::Http1), None).await;
    for (request, code) in [
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n".to_owned(), "400"),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n".to_owned(), "405"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX-Carob-Ingress-Hops: 8\r\nConnection: close\r\n\r\n".to_owned(), "508"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\nConnection: close\r\n\r\n", "x".repeat(200_000)), "431"),
    ] {
        let answer = ask(at, &request).await;
        assert_eq!(answer.split(' ').nth(1), Some(code), "{}", &request[..40.min(request.len())]);
    }
}

#[tokio::test]
async fn an_endpoint_that_is_gone_costs_no_request() {
    let (backend, _) = echo().await;
    let (at, _end, _) = ingress(to(&[nobody().await, backend], Protocol::Http1), None).await;
    for _ in 0..4 {
        assert!(get(at, "/").await.starts_with("HTTP/1.1 200"), "the other endpoint is tried");
    }
    // This one says that it keeps connections, and closes them.
    let forgetful = curt("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let (at, _end, _) = ingress(to(&[forgetful], Protocol::Http1), None).await;
    for _ in 0..20 {
        assert!(get(at, "/").await.ends_with("ok"));
    }
}

#[tokio::test]
async fn a_connection_is_handed_over_to_another_protocol() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let backend = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let asked = header(&mut stream).await.to_ascii_lowercase();
        assert!(asked.contains("connection: upgrade\r\n") && asked.contains("upgrade: websocket\r\n"), "{asked}");
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello";
        stream.write_all(switch.as_bytes()).await.expect("written");
        let mut said = [0; 4];
        stream.read_exact(&mut said).await.expect("read");
        assert_eq!(&said, b"ping");
        stream.write_all(b"pong").await.expect("written");
    });
    let (at, _end, _) = ingress(to(&[backend], Protocol::Http1), None).await;
    let mut stream = TcpStream::connect(at).await.expect("connected");
    let request = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("written");
    let answer = header(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let mut said = [0; 5];
    stream.read_exact(&mut said).await.expect("read");
    assert_eq!(&said, b"hello");
    stream.write_all(b"ping").await.expect("written");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("read");
    assert_eq!(rest, b"pong");
}

/// TLS with a certificate for `web.example`, and that certificate.
fn tls() -> (Arc<rustls::ServerConfig>, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["web.example".to_owned()]).expect("made");
    let data = [("tls.crt", made.cert.pem()), ("tls.key", made.signing_key.serialize_pem())];
    let data = data.map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes())));
    let secret = Arc::new(Secret { data: Some(data.into()), ..Secret::default() });
    let text = "metadata: {name: a, namespace: default}\nspec: {tls: [{hosts: [web.example], secretName: s}]}\n";
    let ingress = Arc::new(serde_saphyr::from_str(text).expect("an Ingress"));
    let (certificates, mut remarks) = (Certificates::new().expect("made"), Vec::new());
    Reader::default().update(&certificates, &[ingress], |_| Some(Arc::clone(&secret)), &mut remarks);
    assert_eq!(remarks, []);
    (certificates.config().expect("made"), made.cert.der().clone())
}

#[tokio::test]
async fn clients_speak_http_2_over_tls_and_endpoints_http_1() {
    let (config, certificate) = tls();
    let (backend, _) = echo().await;
    let (at, _end, _) = ingress(to(&[backend], Protocol::Http1), Some(config)).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("web.example").expect("a name");
    let stream = connector.connect(name, TcpStream::connect(at).await.expect("connected")).await.expect("TLS");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    let requests = (0..10).map(|index| {
        let body = Full::new(Bytes::from(vec![b'x'; 100_000]));
        let uri = format!("https://web.example/{index}");
        sender.send_request(http::Request::post(uri).body(body).expect("a request"))
    });
    let requests: Vec<_> = requests.collect();
    for (index, request) in requests.into_iter().enumerate() {
        let answer = request.await.expect("answered").into_body().collect().await.expect("a body").to_bytes();
        let expected = format!("POST /{index} host=web.example for=127.0.0.1 proto=https body=100000");
        assert_eq!(String::from_utf8_lossy(&answer), expected);
    }
}

#[tokio::test]
async fn an_endpoint_that_speaks_http_2_sends_its_trailers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let backend = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepted");
        let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
            assert_eq!(request.uri().authority().map(|authority| authority.as_str()), Some("web.example"));
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"hi"))), Ok(Frame::trailers(trailers))];
            Ok::<_, Infallible>(http::Response::new(StreamBody::new(futures_util::stream::iter(frames))))
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.serve_connection(TokioIo::new(stream), service).await.expect("served");
    });
    let (at, _end, _) = ingress(to(&[backend], Protocol::H2c), None).await;
    // HTTP/1.1 has trailers in chunked bodies, for whoever says that it takes them.
    let request = "GET / HTTP/1.1\r\nHost: web.example\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n";
    for _ in 0..2 {
        let answer = ask(at, request).await;
        assert!(answer.contains("\r\n2\r\nhi\r\n"), "{answer}");
    }
}
