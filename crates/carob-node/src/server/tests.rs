//! Clients of the kubelet API against the runtime in memory, over a connection without TLS.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use carob_cri::Cri;
use carob_cri::fake::FakeRuntime;
use carob_kit::ManualClock;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::auth::ReviewError;
use super::*;
use crate::api::{PodApi, WriteError};
use crate::events::{Events, Subject};
use crate::files::Files;
use crate::image::Images;
use crate::objects::Objects;
use crate::objects::testing::Shelf;
use crate::paths::PodDirs;
use crate::pod::PodId;
use crate::user_ranges::UserRanges;
use crate::volumes::{Volumes, VolumesParts};
use crate::worker::Settings;
use carob_streams::spdy::frame::{Decoder, Encoder, Frame};
use carob_streams::spdy::headers::Headers;

struct Silent;

#[async_trait::async_trait]
impl PodApi for Silent {
    async fn patch_status(&self, _id: &PodId, _body: &Value) -> Result<(), WriteError> {
        Ok(())
    }

    async fn confirm_deletion(&self, _id: &PodId) -> Result<(), WriteError> {
        Ok(())
    }

    async fn create(&self, _id: &PodId, _mirror: &Pod) -> Result<(), WriteError> {
        Ok(())
    }
}

impl Events for Silent {
    fn normal(&self, _subject: &Subject, _reason: &str, _message: String) {}

    fn warning(&self, _subject: &Subject, _reason: &str, _message: String) {}
}

struct OnePod(Arc<Pod>);

impl PodSource for OnePod {
    fn pods(&self) -> Vec<Arc<Pod>> {
        vec![Arc::clone(&self.0)]
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        ((namespace, name) == ("ns", "p")).then(|| Arc::clone(&self.0))
    }
}

/// Knows no token and allows nothing.
struct NobodyElse;

#[async_trait::async_trait]
impl Reviews for NobodyElse {
    async fn bearer(&self, _token: &str) -> Result<Option<UserInfo>, ReviewError> {
        Ok(None)
    }

    async fn allows(&self, _user: &UserInfo, _verb: &str, _subresource: &str) -> Result<bool, ReviewError> {
        Ok(false)
    }
}

struct Bench {
    shared: Arc<Shared>,
    runtime: Arc<FakeRuntime>,
    dir: tempfile::TempDir,
}

impl Bench {
    /// One Pod `ns/p` whose container `c` runs.
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let runtime = Arc::new(FakeRuntime::new(|| 1));
        let cri: Arc<dyn Cri> = runtime.clone();
        let clock: Arc<dyn carob_kit::Clock> = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH));
        let objects: Arc<dyn Objects> = Arc::new(Shelf::default());
        let events: Arc<dyn Events> = Arc::new(Silent);
        let dirs = PodDirs::new(dir.path().join("pods"), dir.path().join("logs"), None);
        let csi = crate::csi::Csi::without_drivers(dir.path(), Arc::clone(&objects), Arc::clone(&clock));
        let tools = Arc::new(Tools {
            devices: crate::devices::Devices::without_plugins(Arc::clone(&clock)),
            files: Files::in_runtime(),
            volumes: Volumes::new(VolumesParts {
                files: Files::in_runtime(),
                dirs: dirs.clone(),
                objects: Arc::clone(&objects),
                events: Arc::clone(&events),
                clock: Arc::clone(&clock),
                csi,
                node_name: "n".to_owned(),
            }),
            images: Images::new(Arc::clone(&cri), Arc::clone(&objects), Arc::clone(&events), Arc::clone(&clock)),
            objects,
            events,
            pods: Arc::new(Silent),
            clock,
            cri: Arc::clone(&cri),
            user_ranges: Arc::new(UserRanges::new(dirs.clone())),
            dirs,
            settings: Settings::default(),
            probe_counts: Default::default(),
            figures: Default::default(),
            network_rules: None,
        });
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [{"name": "c"}]}});
        let source = OnePod(Arc::new(serde_json::from_value(pod).expect("a Pod")));
        start_container(&*cri).await;
        let access = Access { users: vec!["api".to_owned()], groups: Vec::new() };
        let server = KubeletServer::new(Arc::new(source), tools, "n".to_owned(), access, Box::new(NobodyElse));
        Self { shared: server.shared, runtime, dir }
    }

    /// A connection to the server, and the request sent over it.
    async fn send(&self, request: Request<Empty<Bytes>>) -> http::Response<hyper::body::Incoming> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                let holder = UserInfo { username: Some("api".to_owned()), ..UserInfo::default() };
                async move { Ok::<_, std::convert::Infallible>(routes::handle(&shared, request, Some(&holder)).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(near), service)
                .with_upgrades()
                .await;
            assert!(served.is_ok(), "{served:?}");
        });
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(far)).await.expect("a connection");
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.expect("an answer")
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).header("host", "n").body(Empty::new()).expect("a request");
        let response = self.send(request).await;
        let code = response.status();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (code, String::from_utf8_lossy(&body).into_owned())
    }

    async fn upgrade(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (http::HeaderMap, TokioIo<hyper::upgrade::Upgraded>) {
        let mut request = Request::post(path).header("host", "n").header("connection", "Upgrade");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send(request.body(Empty::new()).expect("a request")).await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let headers = response.headers().clone();
        (headers, TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded")))
    }

    async fn websocket(&self, path: &str, protocol: &str) -> WebSocketStream<TokioIo<hyper::upgrade::Upgraded>> {
        let (headers, io) = self
            .upgrade(
                path,
                &[
                    ("upgrade", "websocket"),
                    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
                    ("sec-websocket-version", "13"),
                    ("sec-websocket-protocol", protocol),
                ],
            )
            .await;
        // The key and its answer are RFC 6455's own example (section 1.3).
        assert_eq!(headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(headers["sec-websocket-protocol"], protocol);
        WebSocketStream::from_raw_socket(io, Role::Client, None).await
    }
}

async fn start_container(cri: &dyn Cri) {
    use carob_cri::v1::*;
    let labels: std::collections::BTreeMap<String, String> = [
        (crate::config::labels::POD_UID.to_owned(), "u".to_owned()),
        (crate::config::labels::CONTAINER_NAME.to_owned(), "c".to_owned()),
    ]
    .into();
    let metadata = PodSandboxMetadata { name: "p".to_owned(), uid: "u".to_owned(), ..Default::default() };
    let config = PodSandboxConfig { metadata: Some(metadata), labels: labels.clone(), ..Default::default() };
    let request = RunPodSandboxRequest { config: Some(config), ..Default::default() };
    let sandbox = cri.run_pod_sandbox(request).await.expect("a sandbox").pod_sandbox_id;
    let metadata = Some(ContainerMetadata { name: "c".to_owned(), attempt: 0 });
    let config = Some(ContainerConfig { metadata, labels, ..Default::default() });
    let request = CreateContainerRequest { pod_sandbox_id: sandbox, config, sandbox_config: None };
    let container_id = cri.create_container(request).await.expect("a container").container_id;
    cri.start_container(StartContainerRequest { container_id }).await.expect("started");
}

#[tokio::test]
async fn plain_requests() {
    let bench = Bench::new().await;
    let log = bench.dir.path().join("logs/ns_p_u/c/0.log");
    fs_err::create_dir_all(log.parent().expect("a parent")).expect("made");
    fs_err::write(&log, "2026-01-01T00:00:00Z stdout F hello\n").expect("written");
    for (path, code, body) in [
        ("/healthz", StatusCode::OK, "ok"),
        ("/containerLogs/ns/p/c", StatusCode::OK, "hello\n"),
        ("/containerLogs/ns/p/c?timestamps=true", StatusCode::OK, "2026-01-01T00:00:00Z hello\n"),
        (
            "/containerLogs/ns/p/c?tailLines=x",
            StatusCode::BAD_REQUEST,
            "invalid value \"x\" for the parameter tailLines",
        ),
        (
            "/containerLogs/ns/p/c?previous=true",
            StatusCode::BAD_REQUEST,
            "previous terminated container \"c\" in pod \"p\" not found",
        ),
        ("/containerLogs/ns/p/x", StatusCode::NOT_FOUND, "container \"x\" not found in pod \"p\""),
        ("/containerLogs/ns/none/c", StatusCode::NOT_FOUND, "pod \"none\" does not exist"),
        (
            "/exec/ns/p/c?command=sh&output=1",
            StatusCode::BAD_REQUEST,
            "unable to upgrade: missing upgrade headers in request",
        ),
        ("/exec/ns/p/c?output=1", StatusCode::BAD_REQUEST, "you must specify a command"),
        ("/exec/ns/p/c?command=sh", StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr"),
        ("/exec/ns/p/x?command=sh&output=1", StatusCode::NOT_FOUND, "container not found (\"x\")"),
        ("/portForward/ns/none", StatusCode::NOT_FOUND, "pod does not exist"),
        ("/etc/passwd", StatusCode::NOT_FOUND, "404 page not found"),
        ("/containerLogs/ns/p/c/../../../../etc", StatusCode::NOT_FOUND, "404 page not found"),
    ] {
        assert_eq!(bench.get(path).await, (code, body.to_owned()), "{path}");
    }
    let (_, pods) = bench.get("/pods").await;
    let pods: Value = serde_json::from_str(&pods).expect("JSON");
    assert_eq!((&pods["kind"], &pods["items"][0]["metadata"]["name"]), (&json!("PodList"), &json!("p")));
}

#[tokio::test]
async fn whoever_is_not_admitted_gets_nothing() {
    let admits =
        |access: &Access, certificate: &[u8]| auth::holder(certificate).is_some_and(|holder| access.admits(&holder));
    let access = Access { users: vec!["kube-apiserver-kubelet-client".to_owned()], groups: Vec::new() };
    assert!(!admits(&access, b"not a certificate"));
    assert!(!admits(&access, &[]));
    // rcgen keeps one attribute of each kind, so another common name goes under its number.
    let certificate = |names: &[(rcgen::DnType, &str)]| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, text) in names {
            params.distinguished_name.push(kind.clone(), *text);
        }
        let key = rcgen::KeyPair::generate().expect("ring makes keys");
        params.self_signed(&key).expect("a certificate can be signed").der().to_vec()
    };
    let own = (rcgen::DnType::CommonName, "kube-apiserver-kubelet-client");
    let second = (rcgen::DnType::CustomDnType(vec![2, 5, 4, 3]), "eve");
    let masters = (rcgen::DnType::OrganizationName, "system:masters");
    let access = Access { groups: vec!["system:masters".to_owned()], ..access };
    assert!(admits(&access, &certificate(std::slice::from_ref(&own))));
    assert!(!admits(&access, &certificate(&[own, second])), "which of two names counts would depend on the reader");
    assert!(!admits(&access, &certificate(std::slice::from_ref(&masters))), "nobody is no member of a group");
    assert!(admits(&access, &certificate(&[(rcgen::DnType::CommonName, "admin"), masters])));
}

#[tokio::test]
async fn exec_over_a_websocket() {
    let bench = Bench::new().await;
    bench.runtime.on_exec("ls", 2, "no such file\n");
    let mut socket = bench.websocket("/exec/ns/p/c?command=ls&command=-l&output=1&error=1", "v5.channel.k8s.io").await;
    let mut heard = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        heard.push(message);
    }
    assert_eq!(heard[0], Message::binary(&b"\x01"[..]));
    assert_eq!(heard[1], Message::binary(&b"\x01no such file\n"[..]));
    let Message::Binary(status) = &heard[2] else { panic!("{heard:?}") };
    let status: Value = serde_json::from_slice(&status[1..]).expect("a status");
    assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "2"}));
    assert!(matches!(heard[3], Message::Close(Some(_))));
    assert_eq!(bench.runtime.calls().last().map(String::as_str), Some("exec ls -l"));
}

#[tokio::test]
async fn input_over_a_websocket_ends_with_its_close_signal() {
    let bench = Bench::new().await;
    let mut socket = bench.websocket("/exec/ns/p/c?command=cat&input=1&output=1", "v5.channel.k8s.io").await;
    let binary = |bytes: &'static [u8]| Message::Binary(Bytes::from_static(bytes));
    socket.send(binary(b"\x00hello")).await.expect("sent");
    socket.send(binary(b"\xff\x00")).await.expect("sent");
    let mut text = Vec::new();
    let mut status = None;
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(bytes) if bytes[0] == 1 => text.extend_from_slice(&bytes[1..]),
            Message::Binary(bytes) if bytes[0] == 3 => status = Some(bytes),
            _ => {}
        }
    }
    assert_eq!(text, b"hello");
    assert!(status.is_some_and(|status| status.ends_with(b"\"status\":\"Success\"}")));
}

/// A SPDY client, frame by frame.
struct Spdy<S> {
    io: S,
    encoder: Encoder,
    decoder: Decoder,
    input: BytesMut,
    /// What came of each stream, and whether it has ended.
    heard: std::collections::HashMap<u32, (Vec<u8>, bool)>,
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Spdy<S> {
    fn new(io: S) -> Self {
        Self {
            io,
            encoder: Encoder::default(),
            decoder: Decoder::default(),
            input: BytesMut::new(),
            heard: Default::default(),
        }
    }

    async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.send(Frame::SynStream { id, fin: false, headers: Headers(headers.collect()) }).await;
    }

    async fn send(&mut self, frame: Frame) {
        let mut out = BytesMut::new();
        self.encoder.encode(&frame, &mut out).expect("encoded");
        self.io.write_all(&out).await.expect("written");
    }

    /// The bytes of a stream until it ends.
    async fn read_stream(&mut self, wanted: u32) -> String {
        loop {
            while let Some(frame) = self.decoder.decode(&mut self.input).expect("decoded") {
                if let Frame::Data { id, fin, data } = frame {
                    let (text, ended) = self.heard.entry(id).or_default();
                    text.extend_from_slice(&data);
                    *ended |= fin;
                }
            }
            if let Some((text, true)) = self.heard.get(&wanted) {
                return String::from_utf8(text.clone()).expect("text");
            }
            let read = tokio::time::timeout(Duration::from_secs(10), self.io.read_buf(&mut self.input)).await;
            assert!(read.expect("in time").expect("read") > 0, "the connection ended: {:?}", self.heard);
        }
    }
}

#[tokio::test]
async fn exec_over_spdy() {
    let bench = Bench::new().await;
    bench.runtime.on_exec("ls", 0, "file\n");
    let (headers, io) = bench
        .upgrade(
            "/exec/ns/p/c?command=ls&output=1",
            &[("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v4.channel.k8s.io")],
        )
        .await;
    assert_eq!(headers["x-stream-protocol-version"], "v4.channel.k8s.io");
    let mut client = Spdy::new(io);
    client.open(1, &[("streamtype", "error")]).await;
    client.open(3, &[("streamtype", "stdout")]).await;
    assert_eq!(client.read_stream(3).await, "file\n");
    let status: Value = serde_json::from_str(&client.read_stream(1).await).expect("a status");
    assert_eq!(status["status"], "Success");
}

async fn forward<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(bench: &Bench, io: S) {
    bench.runtime.echo_on(80);
    let mut client = Spdy::new(io);
    client.open(1, &[("streamtype", "error"), ("port", "80"), ("requestid", "0")]).await;
    client.open(3, &[("streamtype", "data"), ("port", "80"), ("requestid", "0")]).await;
    client.send(Frame::Data { id: 3, fin: true, data: Bytes::from_static(b"hello") }).await;
    assert_eq!(client.read_stream(3).await, "hello");
    assert_eq!(client.read_stream(1).await, "", "nothing went wrong");
    client.open(5, &[("streamtype", "error"), ("port", "81"), ("requestid", "1")]).await;
    client.open(7, &[("streamtype", "data"), ("port", "81"), ("requestid", "1")]).await;
    assert_eq!(
        client.read_stream(5).await,
        "error forwarding port 81 to pod p, uid u: connect to 127.0.0.1:81: connection refused"
    );
}

#[tokio::test]
async fn ports_forwarded_over_spdy() {
    let bench = Bench::new().await;
    let headers = [("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "portforward.k8s.io")];
    let (_, io) = bench.upgrade("/portForward/ns/p", &headers).await;
    forward(&bench, io).await;
}

#[tokio::test]
async fn ports_forwarded_over_spdy_in_a_websocket() {
    let bench = Bench::new().await;
    let mut socket = bench.websocket("/portForward/ns/p", "SPDY/3.1+portforward.k8s.io").await;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let tunnel = async {
        let (mut reader, mut writer) = tokio::io::split(far);
        let mut buffer = BytesMut::new();
        loop {
            tokio::select! {
                read = reader.read_buf(&mut buffer) => {
                    if read.expect("read") == 0 {
                        return;
                    }
                    socket.send(Message::Binary(buffer.split().freeze())).await.expect("sent");
                }
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => writer.write_all(&bytes).await.expect("written"),
                    _ => return,
                },
            }
        }
    };
    tokio::select! {
        () = tunnel => panic!("the tunnel closed"),
        () = forward(&bench, near) => {}
    }
}

#[tokio::test]
async fn ports_forwarded_over_channels() {
    let bench = Bench::new().await;
    bench.runtime.echo_on(80);
    let mut socket = bench.websocket("/portForward/ns/p?ports=80&ports=81", "v4.channel.k8s.io").await;
    socket.send(Message::binary(&b"\x00hello"[..])).await.expect("sent");
    let mut heard: std::collections::BTreeMap<u8, Vec<u8>> = Default::default();
    let done = |heard: &std::collections::BTreeMap<u8, Vec<u8>>| {
        heard.get(&0).is_some_and(|bytes| bytes.len() == 7) && heard.get(&3).is_some_and(|bytes| bytes.len() > 2)
    };
    while !done(&heard) {
        let Some(Ok(Message::Binary(bytes))) = socket.next().await else { panic!("{heard:?}") };
        heard.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]);
    }
    assert_eq!(heard[&0], b"\x50\x00hello");
    assert_eq!(heard[&1], b"\x50\x00");
    assert_eq!(
        &heard[&3][2..],
        b"error forwarding port 81 to pod p, uid u: connect to 127.0.0.1:81: connection refused"
    );
}

#[tokio::test]
async fn protocols_that_nobody_speaks_are_refused() {
    let bench = Bench::new().await;
    for (path, upgrade, header, code) in [
        ("/portForward/ns/p", "websocket", ("sec-websocket-protocol", "v9.channel.k8s.io"), StatusCode::FORBIDDEN),
        ("/exec/ns/p/c?command=a&output=1", "SPDY/3.1", ("x-stream-protocol-version", "v9"), StatusCode::FORBIDDEN),
        ("/exec/ns/p/c?command=a&output=1", "h2c", ("x", "y"), StatusCode::BAD_REQUEST),
        ("/exec/ns/p/c?command=a&output=1", "websocket", ("x", "y"), StatusCode::BAD_REQUEST),
    ] {
        let request = Request::get(path).header("host", "n").header("connection", "Upgrade").header("upgrade", upgrade);
        let request = request.header(header.0, header.1).body(Empty::new()).expect("a request");
        assert_eq!(bench.send(request).await.status(), code, "{path} {upgrade} {header:?}");
    }
}
