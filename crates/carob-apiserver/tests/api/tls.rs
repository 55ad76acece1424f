//! Over real sockets: who a peer is, connections and streams, and kubectl.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use carob_apiserver::authn::StaticToken;
use carob_apiserver::{DialError, NodeAddress, NodeDialer, NodeStream, UserInfo};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::pki::Authority;
use crate::support::{Rig, pod};

/// A server on loopback.
struct Server {
    rig: Rig,
    authority: Authority,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    done: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(change: impl FnOnce(&mut carob_apiserver::Config)) -> Self {
        let rig = Rig::with(change).await;
        let authority = Authority::new().expect("an authority can be made");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has ports");
        let address = listener.local_addr().expect("it is bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let (api, tls) = (rig.api.clone(), authority.server().expect("TLS can be set up"));
        let done = tokio::spawn(async move {
            api.serve(listener, tls, async { drop(stopped.await) }).await;
        });
        Self { rig, authority, address, stop, done }
    }

    async fn connect(&self, config: ClientConfig) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.expect("the server listens");
        let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("the handshake goes through")
    }

    /// The head of the answer to one HTTP/1.1 request.
    async fn ask(&self, config: ClientConfig, request: &str) -> String {
        let mut stream = self.connect(config).await;
        stream.write_all(request.as_bytes()).await.expect("the request is taken");
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.expect("the answer comes whole");
        String::from_utf8_lossy(&text).into_owned()
    }

    fn admin(&self) -> ClientConfig {
        self.authority.client(Some(&self.authority), "admin", "system:masters").expect("a certificate can be made")
    }

    fn stranger(&self) -> ClientConfig {
        self.authority.client(None, "", "").expect("a client can be made")
    }
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n")
}

#[tokio::test]
async fn certificates_and_tokens_say_who_asks() {
    let token = StaticToken { token: "s3cret".to_owned(), user: UserInfo::component("system:kube-proxy") };
    let server = Server::start(|config| config.static_tokens = vec![token]).await;
    let code = |answer: String| answer.split(' ').nth(1).unwrap_or_default().to_owned();
    assert_eq!(code(server.ask(server.admin(), &get("/api/v1/pods", "")).await), "200");
    assert_eq!(code(server.ask(server.stranger(), &get("/livez", "")).await), "200");
    let anonymous = server.ask(server.stranger(), &get("/api/v1/pods", "")).await;
    assert!(anonymous.contains("User \\\"system:anonymous\\\" cannot list resource"), "{anonymous}");
    assert_eq!(code(anonymous), "403");
    let forged = Authority::new().expect("another authority");
    let forged = server.authority.client(Some(&forged), "admin", "system:masters").expect("a certificate can be made");
    assert_eq!(code(server.ask(forged, &get("/api/v1/pods", "")).await), "401", "of an authority that is not ours");
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    assert_eq!(
        code(server.ask(server.stranger(), &get("/api/v1/services?watch=1&timeoutSeconds=1", &bearer("s3cret"))).await),
        "200"
    );
    let refused = server.ask(server.stranger(), &get("/api/v1/secrets", &bearer("s3cret"))).await;
    assert!(refused.contains("User \\\"system:kube-proxy\\\" cannot list resource \\\"secrets\\\""), "{refused}");
    let wrong = server.ask(server.stranger(), &get("/livez", &bearer("wrong"))).await;
    assert!(wrong.contains("\"message\":\"Unauthorized\"") && wrong.contains("\"reason\":\"Unauthorized\""), "{wrong}");
    assert_eq!(code(wrong), "401");
    let pretended = "X-Remote-User: admin\r\nX-Remote-Group: system:masters\r\n";
    assert_eq!(
        code(server.ask(server.stranger(), &get("/api/v1/pods", pretended)).await),
        "403",
        "headers say nothing"
    );
    let whoami = "POST /apis/authentication.k8s.io/v1/selfsubjectreviews HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                  Content-Type: application/json\r\nContent-Length: 2\r\n";
    let bob = server.ask(server.admin(), &format!("{whoami}Impersonate-User: bob\r\n\r\n{{}}")).await;
    assert!(bob.contains("\"username\":\"bob\"") && !bob.contains("system:masters"), "{bob}");
    for header in ["Impersonate-User: jürgen", "Impersonate-User:", "Impersonate-Uid: 7", "Impersonate-Group: dev"] {
        let refused = server.ask(server.admin(), &format!("{whoami}{header}\r\n\r\n{{}}")).await;
        assert_eq!(code(refused), "400", "{header}");
    }
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let server = Server::start(|_| {}).await;
    let huge = format!("X-Big: {}\r\n", "x".repeat(128 * 1024));
    let answer = server.ask(server.admin(), &get("/livez", &huge)).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn a_shutdown_ends_watches_and_lets_requests_finish() {
    let server = Server::start(|_| {}).await;
    let mut watching = server.connect(server.admin()).await;
    watching.write_all(get("/api/v1/pods?watch=1", "").as_bytes()).await.expect("taken");
    let mut head = [0; 12];
    watching.read_exact(&mut head).await.expect("the watch is open");
    assert_eq!(&head, b"HTTP/1.1 200");
    server.stop.send(()).expect("the server runs");
    watching.read_to_end(&mut Vec::new()).await.expect("the watch ends in order");
    server.done.await.expect("the server ends in order");
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody listens any more");
}

/// What a body has up to its line number `count`.
async fn lines(mut body: Incoming, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Behind the last line is an empty part.
    while bytes.split(|byte| *byte == b'\n').count() <= count {
        let frame = body.frame().await.expect("the watch goes on").expect("it is whole");
        bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    bytes
}

#[tokio::test]
async fn watches_that_share_a_connection_each_see_every_event_in_order() {
    const WATCHES: usize = 50;
    const EVENTS: usize = 20;
    let server = Server::start(|_| {}).await;
    let mut config = server.admin();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TokioIo::new(server.connect(config).await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.expect("HTTP/2 is spoken");
    tokio::spawn(connection);
    let configmaps = "/api/v1/namespaces/default/configmaps";
    let mut watches = Vec::new();
    for _ in 0..WATCHES {
        let request =
            Request::get(format!("https://x{configmaps}?watch=1&resourceVersion=0")).body(Empty::<Bytes>::new());
        let answer = sender.send_request(request.expect("a request can be made")).await.expect("it is answered");
        watches.push(tokio::spawn(lines(answer.into_body(), EVENTS)));
    }
    // The larger objects are more than one record of TLS holds, the smaller ones share one.
    let name = |n: usize| format!("n{n:02}");
    for n in 0..EVENTS {
        let data = json!({ "key": "v".repeat(if n % 5 == 4 { 40_000 } else { n * 100 }) });
        let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name(n) }, "data": data });
        server.rig.post(configmaps, &object).await.expect(201);
    }
    for watch in watches {
        let bytes = watch.await.expect("no panic");
        let names = bytes.split_inclusive(|byte| *byte == b'\n').map(|line| {
            let event: Value = serde_json::from_slice(line).expect("a line is an event");
            event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned()
        });
        assert!(names.eq((0..EVENTS).map(name)));
    }
    server.stop.send(()).expect("the server runs");
    server.done.await.expect("the server ends in order");
}

/// A kubelet that answers every upgrade with the request's first line, then with what it is sent.
struct EchoNode;

#[async_trait]
impl NodeDialer for EchoNode {
    async fn dial_node(&self, address: &NodeAddress) -> Result<Box<dyn NodeStream>, DialError> {
        assert_eq!((address.ip.to_string().as_str(), address.port), ("192.0.2.7", 10250));
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(theirs.read_u8().await.expect("the head comes"));
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            for kept in ["authorization", "impersonate-", "x-remote-", "base64url.bearer", "x-hop"] {
                assert!(!head.to_lowercase().contains(kept), "{kept} stays with the API server");
            }
            let line = head.lines().next().unwrap_or_default().to_owned();
            if head.to_lowercase().contains("upgrade: websocket") {
                let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";
                theirs.write_all(format!("{answer}{line}\n").as_bytes()).await.expect("taken");
                let (mut from, mut to) = tokio::io::split(theirs);
                tokio::io::copy(&mut from, &mut to).await.expect("copied");
            } else {
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{line}",
                    line.len()
                );
                theirs.write_all(answer.as_bytes()).await.expect("taken");
            }
        });
        Ok(Box::new(ours))
    }

    async fn dial_pod(&self, address: SocketAddr) -> Result<Box<dyn NodeStream>, DialError> {
        Err(DialError::Timeout { address })
    }
}

async fn running_pod(rig: &Rig) {
    let node = json!({ "metadata": { "name": "n1" }, "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.7" }] } });
    rig.post("/api/v1/nodes", &node).await.expect(201);
    rig.patch("/api/v1/nodes/n1/status", "merge-patch+json", &json!({ "status": node["status"] })).await.expect(200);
    let mut object = pod("p");
    object["spec"]["nodeName"] = json!("n1");
    rig.post("/api/v1/namespaces/default/pods", &object).await.expect(201);
}

#[tokio::test]
async fn exec_joins_the_client_and_the_node() {
    let server = Server::start(|config| config.dialer = Arc::new(EchoNode)).await;
    running_pod(&server.rig).await;
    let pods = "/api/v1/namespaces/default/pods";
    let log = server.rig.get(&format!("{pods}/p/log?follow=true&tailLines=3")).await.expect(200);
    assert_eq!(log, "GET /containerLogs/default/p/c?follow=true&tailLines=3 HTTP/1.1");

    let mut stream = server.connect(server.admin()).await;
    let request = format!(
        "GET {pods}/p/exec?command=echo&command=a%20b&stdin=true&stdout=true&tty=true HTTP/1.1\r\nHost: x\r\n\
         Authorization: Bearer leaked\r\nImpersonate-User: bob\r\nImpersonate-Group: system:masters\r\n\
         X-Remote-User: eve\r\nX-Hop: 1\r\nConnection: Upgrade, X-Hop\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.bGVha2Vk\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("taken");
    let mut head = Vec::new();
    while !head.ends_with(b"HTTP/1.1\n") {
        head.push(stream.read_u8().await.expect("the stream is open"));
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    assert!(
        head.starts_with("HTTP/1.1 101") && head.to_lowercase().contains("sec-websocket-protocol: v5.channel.k8s.io"),
        "{head}"
    );
    assert!(
        head.ends_with("GET /exec/default/p/c?input=1&output=1&tty=1&command=echo&command=a%20b HTTP/1.1\n"),
        "{head}"
    );
    stream.write_all(b"ping").await.expect("taken");
    let mut pong = [0; 4];
    stream.read_exact(&mut pong).await.expect("echoed");
    assert_eq!(&pong, b"ping");
}

#[tokio::test]
async fn a_log_can_be_read_over_a_websocket() {
    let server = Server::start(|config| config.dialer = Arc::new(EchoNode)).await;
    running_pod(&server.rig).await;
    let request = "GET /api/v1/namespaces/default/pods/p/log HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: binary.k8s.io\r\n\r\n";
    let answer = server.ask(server.admin(), request).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(answer.to_lowercase().contains("sec-websocket-protocol: binary.k8s.io"), "{answer}");
    assert!(answer.contains("GET /containerLogs/default/p/c HTTP/1.1"), "{answer}");
}

/// Runs a script of kubectl commands against a server and returns what they print.
async fn kubectl(server: &Server, script: &'static str) -> String {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let config = dir.path().join("kubeconfig");
    let text = server.authority.kubeconfig(server.address.port()).expect("a kubeconfig can be made");
    fs_err::write(&config, text).expect("it can be written");
    let run = move || {
        let output = Command::new("bash")
            .args(["-ec", script])
            .env("KUBECONFIG", &config)
            .env("HOME", dir.path())
            .output()
            .expect("bash runs");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    tokio::task::spawn_blocking(run).await.expect("the script ends")
}

#[tokio::test]
async fn kubectl_creates_reads_changes_explains_and_deletes() {
    let server = Server::start(|_| {}).await;
    let script = r#"
kubectl create configmap a --from-literal=x=1
kubectl get configmap a -o jsonpath='{.data.x}{"\n"}'
kubectl label configmap a tier=front
kubectl get configmaps -l tier=front -o name
kubectl apply -f - <<MANIFEST
apiVersion: v1
kind: ConfigMap
metadata: {name: b}
data: {k: v}
MANIFEST
kubectl apply -f - <<MANIFEST
apiVersion: v1
kind: ConfigMap
metadata: {name: b}
data: {k: w}
MANIFEST
kubectl apply --server-side -f - <<MANIFEST
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {k: v}
MANIFEST
kubectl get configmap b -o jsonpath='{.data.k}{"\n"}'
kubectl explain pod.spec.containers.image | head -4
kubectl api-resources --api-group=apps -o name
kubectl auth can-i create pods
kubectl describe configmap a | head -1
kubectl delete configmap a b c
kubectl get configmaps
"#;
    let expected = r#"configmap/a created
1
configmap/a labeled
configmap/a
configmap/b created
configmap/b configured
configmap/c serverside-applied
w
KIND:       Pod
VERSION:    v1

FIELD: image <string>
controllerrevisions.apps
daemonsets.apps
deployments.apps
replicasets.apps
statefulsets.apps
yes
Name:         a
configmap "a" deleted
configmap "b" deleted
configmap "c" deleted
No resources found in default namespace.
"#;
    // Later kubectl says where it deleted.
    let said = kubectl(&server, script).await.replace("\" deleted from default namespace", "\" deleted");
    assert_eq!(said, expected);
}

#[tokio::test]
async fn kubectl_says_what_is_wrong_with_a_manifest() {
    let server = Server::start(|_| {}).await;
    let script = r"
set +e
kubectl create -f - <<MANIFEST
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {containers: [{name: c, image: i, imagee: j}]}
MANIFEST
kubectl create -f - <<MANIFEST
apiVersion: v1
kind: Pod
metadata: {name: P}
spec: {containers: [{name: c, image: i}]}
MANIFEST
kubectl get pod absent
";
    let expected = r#"Error from server (BadRequest): error when creating "STDIN": Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.containers[0].imagee"
The Pod "P" is invalid: metadata.name: Invalid value: "P": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
Error from server (NotFound): pods "absent" not found
"#;
    assert_eq!(kubectl(&server, script).await, expected);
}
