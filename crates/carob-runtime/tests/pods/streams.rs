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
    session.stdin.take().expect("the container reads").write_all(b"word\n").await.expect("forwarded");
    let mut out = String::new();
    session.stdout.take().expect("asked for").read_to_string(&mut out).await.expect("readable to its end");
    assert!(out.contains("tty\r\n") && out.contains("got word\r\n"), "{out:?}");
    assert_eq!(host.wait(&container).await.exit_code, 0);
    assert!(host.log(&container, "stdout").await.contains("got word"));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_is_reached_inside_the_network_of_the_pod() {
    let host = Host::new().await;
    let sandbox = host.run_sandbox("web").await;
    let container = host.run(&sandbox, script("c", "nc -l -p 8080 -e /bin/cat")).await;
    // The network namespace is new: its loopback is for the Pod network to bring up, which is not part of this test.
    let error = host.runtime.port_forward(&sandbox, 8080).await.err();
    assert!(error.is_some_and(|error| error.code == Code::Unavailable), "there is no loopback yet");
    let error = host.runtime.port_forward("nobody", 1).await.err().expect("no such sandbox");
    assert_eq!(error.code, Code::NotFound);
    host.stop(&container, 0).await;
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
