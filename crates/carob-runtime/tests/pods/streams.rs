//! Commands, attached clients, forwarded ports, logs.

use crate::support::{Host, script};
use carob_cri::{Code, ExecStart, RuntimeService, Streaming, TerminalSize, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn start(container: &str, command: &[&str]) -> ExecStart {
    ExecStart {
        container_id: container.to_owned(),
        cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_reads_and_writes_its_callers_streams() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let container = host.run(&sandbox, script("c", "sleep 1000")).await;
    let mut session =
        host.runtime.exec(start(&container, &["/bin/sh", "-c", "cat; echo err >&2; exit 5"])).await.expect("it runs");
    let mut stdin = session.stdin.take().expect("asked for");
    stdin.write_all(b"hello").await.expect("the command reads");
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    session.stdout.take().expect("asked for").read_to_string(&mut out).await.expect("readable");
    session.stderr.take().expect("asked for").read_to_string(&mut err).await.expect("readable");
    assert_eq!((out.as_str(), err.as_str()), ("hello", "err\n"));
    assert_eq!(session.exit.await.expect("it ended"), 5);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_has_a_terminal_of_the_size_it_is_told() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let container = host.run(&sandbox, script("c", "sleep 1000")).await;
    let start = ExecStart {
        tty: true,
        stderr: false,
        ..start(&container, &["/bin/sh", "-c", "read line; stty size; [ -t 0 ] && echo tty $TERM $line"])
    };
    let mut session = host.runtime.exec(start).await.expect("it runs");
    session
        .resize
        .as_ref()
        .expect("a terminal")
        .send(TerminalSize { columns: 132, rows: 43 })
        .expect("the session is open");
    let mut stdin = session.stdin.take().expect("asked for");
    // The size is set before the line is read, since both go the same way in order: one task, then the terminal.
    tokio::task::yield_now().await;
    stdin.write_all(b"word\n").await.expect("the terminal takes it");
    let mut out = String::new();
    session.stdout.take().expect("asked for").read_to_string(&mut out).await.expect("readable to its end");
    assert!(out.contains("tty xterm word"), "{out:?}");
    assert_eq!(session.exit.await.expect("it ended"), 0);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_cannot_run_say_why() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let container = host.run(&sandbox, script("c", "sleep 1000")).await;
    let error = host.runtime.exec(start(&container, &["nonsense"])).await.expect_err("no such program");
    assert!(error.message.contains("executable file not found in $PATH"), "{error}");
    let error = host.runtime.exec(start("nobody", &["true"])).await.expect_err("no such container");
    assert_eq!(error.code, Code::NotFound);
    let error = host.runtime.exec(start(&container, &[])).await.expect_err("no command");
    assert_eq!(error.code, Code::InvalidArgument);
    let slow = v1::ExecSyncRequest {
        container_id: container.clone(),
        cmd: vec!["sleep".to_owned(), "1000".to_owned()],
        timeout: 1,
    };
    let error = host.runtime.exec_sync(slow).await.expect_err("it takes too long");
    assert_eq!(error.code, Code::DeadlineExceeded);
    host.stop(&container, 0).await;
    let error = host.runtime.exec(start(&container, &["true"])).await.expect_err("it has ended");
    assert_eq!(error.code, Code::FailedPrecondition);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_joins_a_container_and_its_log_goes_on() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let config = v1::ContainerConfig {
        stdin: true,
        stdin_once: true,
        ..script("c", "echo up; while read line; do echo got $line; done; echo end; exit 9")
    };
    let container = host.create(&sandbox, config).await;
    let mut session = host.runtime.attach(start(&container, &[])).await.expect("attached before it starts");
    host.start(&container).await;
    let mut stdin = session.stdin.take().expect("the container reads");
    stdin.write_all(b"one\ntwo\n").await.expect("forwarded");
    let mut stdout = session.stdout.take().expect("asked for");
    let mut seen = vec![0; "up\ngot one\ngot two\n".len()];
    stdout.read_exact(&mut seen).await.expect("the container answers");
    assert_eq!(String::from_utf8_lossy(&seen), "up\ngot one\ngot two\n");
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.expect("readable to its end");
    assert_eq!(rest, "end\n", "the input closed with its first client");
    assert_eq!(session.exit.await.expect("it ended"), 9);
    assert_eq!(host.log(&container, "stdout").await, "up\ngot one\ngot two\nend\n");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_with_a_terminal_is_logged_and_attached() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let config = v1::ContainerConfig {
        tty: true,
        stdin: true,
        ..script("c", "[ -t 1 ] && echo tty; read line; echo got $line")
    };
    let container = host.create(&sandbox, config).await;
    let attach = ExecStart { tty: true, stderr: false, ..start(&container, &[]) };
    let mut session = host.runtime.attach(attach).await.expect("attached");
    host.start(&container).await;
    // Who closes the input of a terminal has left it.
    let mut stdin = session.stdin.take().expect("the container reads");
    stdin.write_all(b"word\n").await.expect("forwarded");
    let mut out = String::new();
    session.stdout.take().expect("asked for").read_to_string(&mut out).await.expect("readable to its end");
    drop(stdin);
    assert!(out.contains("tty\r\n") && out.contains("got word\r\n"), "{out:?}");
    assert_eq!(host.wait(&container).await.exit_code, 0);
    assert!(host.log(&container, "stdout").await.contains("got word"));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_of_no_pod_is_not_found() {
    let host = Host::new().await;
    let error = host.runtime.port_forward("nobody", 1).await.err().expect("no such sandbox");
    assert_eq!(error.code, Code::NotFound);
    host.close().await;
}

/// Set in the process that has a network of its own.
const IN_NETWORK: &str = "CAROB_RUNTIME_TEST_NETWORK";

/// The Pod network changes the machine's, so the test is run again in a network namespace that ends with it.
#[test]
fn a_pod_is_reached_at_its_address_and_through_its_loopback() {
    let test = std::env::current_exe().expect("this test");
    let status = std::process::Command::new("unshare")
        .args(["--net", "--"])
        .arg(test)
        .args(["--exact", "streams::in_a_network_of_its_own", "--nocapture"])
        .env(IN_NETWORK, "1")
        .status()
        .expect("util-linux is installed");
    assert!(status.success(), "{status}");
}

/// Not a test by itself: the other process of the one above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_network_of_its_own() {
    if std::env::var_os(IN_NETWORK).is_none() {
        return;
    }
    let host = Host::with_network().await;
    let sandbox = host.run_sandbox("web").await;
    let serve = "nc -l -l -p 8080 -e /bin/cat";
    let container = host.run(&sandbox, script("c", serve)).await;
    let listening = "while ! grep -q ':1F90 ' /proc/net/tcp /proc/net/tcp6; do :; done";
    assert_eq!(host.exec(&container, &["/bin/sh", "-c", listening]).await.exit_code, 0);

    let mut stream = host.runtime.port_forward(&sandbox, 8080).await.expect("it listens on every address");
    let status = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: false };
    let status = host.runtime.pod_sandbox_status(status).await.expect("known").status.expect("a status");
    let ip = status.network.expect("a network").ip;
    let mut direct = tokio::net::TcpStream::connect(format!("{ip}:8080")).await.expect("over the bridge");
    for stream in [&mut *stream as &mut dyn carob_cri::Duplex, &mut direct] {
        stream.write_all(b"ping").await.expect("sent");
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).await.expect("echoed");
        assert_eq!(&echo, b"ping");
    }
    let stats = v1::PodSandboxStatsRequest { pod_sandbox_id: sandbox.clone() };
    let stats = host.runtime.pod_sandbox_stats(stats).await.expect("statistics").stats.and_then(|stats| stats.linux);
    let network = stats.and_then(|linux| linux.network).and_then(|network| network.default_interface);
    assert!(network.and_then(|eth0| eth0.rx_bytes).is_some_and(|bytes| bytes.value > 0));
    let error = host.runtime.port_forward(&sandbox, 9).await.err().expect("nobody listens there");
    assert_eq!(error.code, Code::Unavailable);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_renamed_goes_on_in_a_new_file() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let config = v1::ContainerConfig { stdin: true, ..script("c", "while read line; do echo $line; done") };
    let container = host.run(&sandbox, config).await;
    let mut session = host.runtime.attach(start(&container, &[])).await.expect("attached");
    let (mut stdin, mut stdout) = (session.stdin.take().expect("input"), session.stdout.take().expect("output"));
    let mut echo = [0; 4];
    stdin.write_all(b"old\n").await.expect("forwarded");
    stdout.read_exact(&mut echo).await.expect("echoed, so logged before");
    let path = host.status(&container).await.log_path;
    fs_err::rename(&path, format!("{path}.1")).expect("renamed");
    let request = v1::ReopenContainerLogRequest { container_id: container.clone() };
    host.runtime.reopen_container_log(request).await.expect("reopened");
    stdin.write_all(b"new\n").await.expect("forwarded");
    stdout.read_exact(&mut echo).await.expect("echoed");
    assert_eq!(host.log(&container, "stdout").await, "new\n");
    host.close().await;
}
