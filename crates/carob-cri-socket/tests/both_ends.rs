//! The client against the server, on a runtime in memory: what crosses the socket is what a call in process would have said.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carob_cri::fake::FakeRuntime;
use carob_cri::{Code, Cri, ExecSession, ExecStart, ImageService as _, RuntimeService as _, Streaming as _, v1};
use carob_cri_socket::{PodGroups, RemoteRuntime, ServeError, serve};
use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

/// What was done to control groups.
#[derive(Default)]
struct Groups(Mutex<Vec<String>>);

impl Groups {
    fn note(&self, what: String) {
        self.0.lock().expect("no panic").push(what);
    }
}

impl PodGroups for Groups {
    fn make(
        &self,
        group: &Path,
        limits: Option<&v1::LinuxContainerResources>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let shares = limits.map(|limits| limits.cpu_shares);
        self.note(format!("make {} {shares:?}", group.display()));
        Ok(())
    }

    fn remove(&self, group: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.note(format!("remove {}", group.display()));
        Ok(())
    }
}

struct Served {
    groups: Arc<Groups>,
    _dir: tempfile::TempDir,
    path: PathBuf,
    fake: Arc<FakeRuntime>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), ServeError>>,
    remote: RemoteRuntime,
}

async fn served() -> Served {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("run/cri.sock");
    let fake = Arc::new(FakeRuntime::new(|| 1));
    let cri: Arc<dyn Cri> = fake.clone();
    let shutdown = CancellationToken::new();
    let (listens, listening) = tokio::sync::oneshot::channel();
    let (at, stop) = (path.clone(), shutdown.clone());
    let task = tokio::spawn(async move { serve(&at, cri, || listens.send(()).expect("the test waits"), stop).await });
    listening.await.expect("it listens");
    let groups = Arc::new(Groups::default());
    let remote = RemoteRuntime::new(&format!("unix://{}", path.display()), groups.clone()).expect("an endpoint");
    Served { groups, _dir: dir, path, fake, shutdown, task, remote }
}

/// A sandbox with one container that runs. Answers with both ids.
async fn pod(remote: &RemoteRuntime) -> (String, String) {
    let metadata = v1::PodSandboxMetadata { name: "p".to_owned(), uid: "u".to_owned(), ..Default::default() };
    let resources = v1::LinuxContainerResources { cpu_shares: 7, ..Default::default() };
    let linux = v1::LinuxPodSandboxConfig {
        cgroup_parent: "/pods/u".to_owned(),
        resources: Some(resources),
        ..Default::default()
    };
    let config = v1::PodSandboxConfig { metadata: Some(metadata), linux: Some(linux), ..Default::default() };
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let sandbox = remote.run_pod_sandbox(request).await.expect("a sandbox").pod_sandbox_id;
    let metadata = v1::ContainerMetadata { name: "c".to_owned(), attempt: 0 };
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(v1::ContainerConfig { metadata: Some(metadata), ..Default::default() }),
        sandbox_config: Some(config),
    };
    let container = remote.create_container(request).await.expect("a container").container_id;
    let request = v1::StartContainerRequest { container_id: container.clone() };
    remote.start_container(request).await.expect("it starts");
    (sandbox, container)
}

async fn text(reader: &mut carob_cri::ByteReader) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).await.expect("read");
    text
}

#[tokio::test]
async fn calls_and_errors_cross_the_socket() {
    let served = served().await;
    let remote = &served.remote;
    let (sandbox, container) = pod(remote).await;
    let listed = remote.list_containers(v1::ListContainersRequest::default()).await.expect("a list").containers;
    assert_eq!(listed.iter().map(|found| &found.id).collect::<Vec<_>>(), [&container]);
    let version = remote.version(v1::VersionRequest::default()).await.expect("a version");
    assert_eq!(version, served.fake.version(v1::VersionRequest::default()).await.expect("a version"));
    let image = v1::ImageSpec { image: "i:1".to_owned(), ..Default::default() };
    let request = v1::PullImageRequest { image: Some(image.clone()), ..Default::default() };
    assert_eq!(remote.pull_image(request).await.expect("pulled").image_ref, "sha256:i:1");
    let status = remote.image_status(v1::ImageStatusRequest { image: Some(image), verbose: false }).await;
    assert!(status.expect("a status").image.is_some());
    let none = v1::ContainerStatusRequest { container_id: "none".to_owned(), verbose: false };
    let (over, direct) = (remote.container_status(none.clone()).await, served.fake.container_status(none).await);
    assert_eq!(over.expect_err("none"), direct.expect_err("none"));
    let unknown = remote.list_metric_descriptors(v1::ListMetricDescriptorsRequest::default()).await;
    assert_eq!(unknown.expect_err("no such rpc").code, Code::Unimplemented);
    let stop = v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    remote.stop_pod_sandbox(stop).await.expect("stopped");
    assert!(served.fake.running().is_empty());
    let resize = v1::UpdatePodSandboxResourcesRequest { pod_sandbox_id: sandbox.clone(), ..Default::default() };
    remote.update_pod_sandbox_resources(resize).await.expect("the group is ours, whatever the runtime has");
    remote.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox }).await.expect("removed");
    let done = served.groups.0.lock().expect("no panic").clone();
    assert_eq!(done, ["make /pods/u Some(7)", "make /pods/u None", "remove /pods/u"]);
    served.shutdown.cancel();
    served.task.await.expect("no panic").expect("a clean end");
    let gone = remote.version(v1::VersionRequest::default()).await.expect_err("nobody listens");
    assert_eq!(gone.code, Code::Unavailable);
}

#[tokio::test]
async fn events_come_as_they_happen() {
    let served = served().await;
    let (_, container) = pod(&served.remote).await;
    let mut events = served.remote.get_container_events(v1::GetEventsRequest {}).await.expect("events");
    served.fake.exit("c", 3);
    let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await.expect("in time");
    let event = event.expect("an event").expect("no error");
    assert_eq!(event.container_id, container);
    assert_eq!(event.container_event_type(), v1::ContainerEventType::ContainerStoppedEvent);
}

#[tokio::test]
async fn a_command_has_its_streams_and_its_exit_code() {
    let served = served().await;
    let (_, container) = pod(&served.remote).await;
    served.fake.on_exec("false", 7, "no\n");
    served.fake.on_exec("cat", 2, "");
    let start = |word: &str, stdin: bool, tty: bool| ExecStart {
        container_id: container.clone(),
        cmd: vec![word.to_owned()],
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    let session = served.remote.exec(start("false", false, false)).await.expect("a session");
    let ExecSession { stdout, exit, .. } = session;
    assert_eq!(text(&mut stdout.expect("an output")).await, "no\n");
    assert_eq!(exit.await, Ok(7));
    let session = served.remote.exec(start("cat", true, true)).await.expect("a session");
    let ExecSession { stdin, stdout, stderr, resize, exit } = session;
    assert!(stderr.is_none());
    let size = carob_cri::TerminalSize { columns: 80, rows: 24 };
    resize.expect("a terminal").send(size).expect("the session takes sizes");
    let mut stdin = stdin.expect("an input");
    let long = "typed\n".repeat(50_000);
    let sent = long.clone();
    let typing = tokio::spawn(async move {
        stdin.write_all(sent.as_bytes()).await.expect("written");
        stdin.shutdown().await.expect("closed");
    });
    assert_eq!(text(&mut stdout.expect("an output")).await.len(), long.len());
    typing.await.expect("no panic");
    assert_eq!(exit.await, Ok(2));
    let missing = ExecStart { container_id: "none".to_owned(), ..start("cat", true, false) };
    let session = served.remote.exec(missing).await.expect("the URL is given");
    let refused = session.exit.await.expect_err("no such container");
    assert!(refused.message.contains("container not found"), "{refused}");
}

#[tokio::test]
async fn a_port_is_forwarded_and_a_closed_one_is_an_error() {
    let served = served().await;
    let (sandbox, _) = pod(&served.remote).await;
    served.fake.echo_on(80);
    let mut connection = served.remote.port_forward(&sandbox, 80).await.expect("a connection");
    connection.write_all(b"hello").await.expect("written");
    let mut back = [0; 5];
    connection.read_exact(&mut back).await.expect("read");
    assert_eq!(&back, b"hello");
    connection.shutdown().await.expect("closed");
    let mut rest = Vec::new();
    connection.read_to_end(&mut rest).await.expect("a clean end");
    assert!(rest.is_empty());
    let mut closed = served.remote.port_forward(&sandbox, 81).await.expect("the URL is given");
    let error = closed.read_to_end(&mut rest).await.expect_err("nobody listens");
    assert!(error.to_string().contains("connection refused"), "{error}");
}

#[tokio::test]
async fn a_url_is_good_once_and_for_what_it_was_given() {
    let served = served().await;
    let (_, container_id) = pod(&served.remote).await;
    let request = v1::ExecRequest { container_id, cmd: vec!["id".to_owned()], stdout: true, ..Default::default() };
    let url = served.remote.exec_url(request.clone()).await.expect("a URL").url;
    let path = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
    let ask = async |target: String| {
        let mut stream = tokio::net::TcpStream::connect(path.0).await.expect("connected");
        let head = format!("POST {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        answer.lines().next().unwrap_or_default().to_owned()
    };
    let (_, token) = path.1.split_once('/').expect("a token");
    assert!(ask(format!("/attach/{token}")).await.contains("404"), "it is an exec's");
    assert!(ask(format!("/{}", path.1)).await.contains("400"), "no upgrade");
    assert!(ask(format!("/{}", path.1)).await.contains("404"), "it was used");
    for request in [
        v1::ExecRequest { cmd: Vec::new(), ..request.clone() },
        v1::ExecRequest { stdout: false, ..request.clone() },
        v1::ExecRequest { tty: true, stderr: true, ..request.clone() },
        v1::ExecRequest { container_id: String::new(), ..request },
    ] {
        let refused = served.remote.exec_url(request).await.expect_err("refused");
        assert_eq!(refused.code, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_socket_in_use_is_left_alone_and_one_that_is_left_over_is_replaced() {
    let served = served().await;
    let cri: Arc<dyn Cri> = served.fake.clone();
    let second = serve(&served.path, cri.clone(), || {}, CancellationToken::new()).await;
    assert!(matches!(second, Err(ServeError::InUse(_))), "{second:?}");
    served.task.abort();
    served.task.await.expect_err("aborted");
    let stop = CancellationToken::new();
    let ready = stop.clone();
    serve(&served.path, cri.clone(), move || ready.cancel(), stop).await.expect("it serves again");
    let file = served.path.with_extension("txt");
    fs_err::write(&file, "mine").expect("written");
    let kept = serve(&file, cri, || {}, CancellationToken::new()).await;
    assert!(matches!(kept, Err(ServeError::NoSocket(_))), "{kept:?}");
    assert_eq!(fs_err::read_to_string(&file).expect("read"), "mine");
}
