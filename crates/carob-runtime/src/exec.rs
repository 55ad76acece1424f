//! Commands in containers, and the streams of containers and sandboxes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use carob_cri::{ByteReader, ByteStream, ByteWriter, CriError, ExecSession, ExecStart, TerminalSize, v1};
use carob_shim::Exit;
use carob_shim::params::ExecParams;
use carob_shim::protocol::{ProcessKind, Request, Spawn, StdinMode};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};

use crate::error::RuntimeError;
use crate::programs::in_memory;
use crate::record::{ContainerPhase, SandboxPhase};
use crate::runtime::{Container, Runtime};
use crate::sandbox::new_id;
use crate::terminal::{Terminal, TerminalResizer};
use crate::user_namespace;

type Result<T> = std::result::Result<T, RuntimeError>;

/// The most of each output that a synchronous command hands back, in bytes; the rest is read and dropped (CRI `ExecSync`).
const OUTPUT_BYTES_MAX: usize = 16 << 20;

const SIGKILL: i32 = 9;

/// What is run in a container, and how.
struct Command {
    arguments: Vec<String>,
    terminal: bool,
    /// Whether what `kubectl cp` runs is done also where the image has no program for it.
    serves_copies: bool,
}

/// A command under way.
struct Started {
    /// The shim's name for it.
    id: String,
    exit: oneshot::Receiver<Exit>,
    terminal: Option<OwnedFd>,
}

impl Runtime {
    pub(crate) async fn exec_session(&self, start: ExecStart) -> Result<ExecSession> {
        let container = self.container(&start.container_id)?;
        let mut session = empty_session();
        let exit;
        if start.tty {
            let command = Command { arguments: start.cmd, terminal: true, serves_copies: false };
            let started = self.start_command(&container, command, [None, None, None]).await?;
            let master = started.terminal.ok_or(RuntimeError::Lost)?;
            let terminal = Terminal::new(master).map_err(|error| RuntimeError::Descriptors("a terminal", error))?;
            session.stdin = start.stdin.then(|| Box::pin(terminal.input) as ByteWriter);
            session.stdout = Some(Box::pin(terminal.output) as ByteReader);
            session.resize = Some(resize_terminal(terminal.size));
            exit = started.exit;
        } else {
            let (stdin, ours_in) = input_pipe(start.stdin)?;
            let (stdout, ours_out) = output_pipe(start.stdout)?;
            let (stderr, ours_err) = output_pipe(start.stderr)?;
            let fds = [Some(stdin), Some(stdout), Some(stderr)];
            let command = Command { arguments: start.cmd, terminal: false, serves_copies: true };
            let started = self.start_command(&container, command, fds).await?;
            session.stdin = ours_in.map(|pipe| Box::pin(pipe) as ByteWriter);
            session.stdout = ours_out.map(|pipe| Box::pin(pipe) as ByteReader);
            session.stderr = ours_err.map(|pipe| Box::pin(pipe) as ByteReader);
            exit = started.exit;
        }
        session.exit = Box::pin(async move {
            let exit = exit.await.map_err(|_| CriError::from(RuntimeError::Lost))?;
            Ok(exit.cause.code())
        });
        Ok(session)
    }

    async fn start_command(
        &self,
        container: &Container,
        Command { arguments, terminal, serves_copies }: Command,
        streams: [Option<OwnedFd>; 3],
    ) -> Result<Started> {
        if arguments.is_empty() {
            return Err(RuntimeError::Missing("command"));
        }
        let (pid, cgroup) = {
            let record = container.record.borrow();
            let ContainerPhase::Running { pid, .. } = record.phase else {
                return Err(RuntimeError::State { id: container.id.clone(), state: "not running" });
            };
            (pid, record.cgroup.clone())
        };
        let sandbox = &container.sandbox;
        let config = self.paths.container_config(&sandbox.id, &container.id);
        let layout = self.layout.clone();
        let user_ids = user_namespace::ids(&sandbox.namespace_options())?;
        let params = ExecParams { layout, cgroup, pid, config, arguments, terminal, user_ids, serves_copies };
        let text = serde_json::to_vec(&params).map_err(RuntimeError::Parameters)?;
        let params = in_memory("exec", &text).map_err(|error| RuntimeError::Descriptors("parameters", error))?;
        let programs = self.programs().await?;
        let id = new_id();
        let (sender, exit) = oneshot::channel();
        sandbox.execs.lock().expect("no holder panics").insert(id.clone(), sender);
        let spawn = Spawn {
            id: id.clone(),
            kind: ProcessKind::Exec,
            terminal,
            stdin: StdinMode::Closed,
            log_path: String::new(),
            action: "exec".to_owned(),
        };
        let mut fds: Vec<BorrowedFd<'_>> = vec![programs.oneshot(), params.as_fd()];
        fds.extend(streams.iter().flatten().map(AsFd::as_fd));
        let spawned = match sandbox.shim() {
            Ok(shim) => {
                let spawned = shim.spawn(spawn, &fds).await;
                spawned.map_err(|source| RuntimeError::Exec { exec: id.clone(), source })
            }
            Err(error) => Err(error),
        };
        match spawned {
            Ok((_, _, terminal)) => Ok(Started { id, exit, terminal }),
            Err(error) => {
                sandbox.execs.lock().expect("no holder panics").remove(&id);
                Err(error)
            }
        }
    }

    /// Runs a command to its end.
    pub(crate) async fn exec_to_end(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse> {
        let container = self.container(&request.container_id)?;
        let (stdin, _) = input_pipe(false)?;
        let (stdout, ours_out) = output_pipe(true)?;
        let (stderr, ours_err) = output_pipe(true)?;
        let fds = [Some(stdin), Some(stdout), Some(stderr)];
        // Probes and hooks are to find what the image has.
        let command = Command { arguments: request.cmd, terminal: false, serves_copies: false };
        let started = self.start_command(&container, command, fds).await?;
        let id = started.id;
        let whole = async {
            let (stdout, stderr) = tokio::join!(read_capped(ours_out), read_capped(ours_err));
            let exit = started.exit.await.map_err(|_| RuntimeError::Lost)?;
            let failed = |error| RuntimeError::Descriptors("output", error);
            Ok(v1::ExecSyncResponse {
                stdout: stdout.map_err(failed)?,
                stderr: stderr.map_err(failed)?,
                exit_code: exit.cause.code(),
            })
        };
        let Some(timeout) = u64::try_from(request.timeout).ok().filter(|seconds| *seconds > 0) else {
            return whole.await;
        };
        match tokio::time::timeout(Duration::from_secs(timeout), whole).await {
            Ok(response) => response,
            Err(_) => {
                let shim = container.sandbox.shim()?;
                // It may have ended by itself in this moment; then there is nothing left to end.
                if let Err(error) = shim.tell(&Request::Signal { id, signal: SIGKILL }).await {
                    tracing::debug!(%error, "end a command that took too long");
                }
                Err(RuntimeError::ExecTimeout(request.timeout))
            }
        }
    }

    /// Joins the streams of a container's first process.
    pub(crate) async fn attach_session(&self, start: ExecStart) -> Result<ExecSession> {
        let container = self.container(&start.container_id)?;
        let (terminal, has_stdin, ended) = {
            let record = container.record.borrow();
            (record.config.tty, record.config.stdin, record.phase.is_exited())
        };
        if ended {
            return Err(RuntimeError::State { id: container.id.clone(), state: "not running" });
        }
        let stdin = start.stdin && has_stdin;
        // A terminal has one output.
        let stderr = start.stderr && !terminal;
        let (theirs_in, ours_in) = input_pipe(stdin)?;
        let (theirs_out, ours_out) = output_pipe(start.stdout)?;
        let (theirs_err, ours_err) = output_pipe(stderr)?;
        let wanted = [(stdin, &theirs_in), (start.stdout, &theirs_out), (stderr, &theirs_err)];
        let fds: Vec<BorrowedFd<'_>> = wanted.iter().filter(|(wanted, _)| *wanted).map(|(_, fd)| fd.as_fd()).collect();
        let shim = container.sandbox.shim()?;
        let request = Request::Attach { id: container.id.clone(), stdin, stdout: start.stdout, stderr };
        shim.ask(&request, &fds).await.map_err(container.sandbox.shim_error())?;
        let mut session = empty_session();
        session.stdin = ours_in.map(|pipe| Box::pin(pipe) as ByteWriter);
        session.stdout = ours_out.map(|pipe| Box::pin(pipe) as ByteReader);
        session.stderr = ours_err.map(|pipe| Box::pin(pipe) as ByteReader);
        session.resize = terminal.then(|| resize_container(&container));
        session.exit = Box::pin(async move {
            container.exited().await;
            match container.record.borrow().phase {
                ContainerPhase::Exited { exit_code, .. } => Ok(exit_code),
                ContainerPhase::Created { .. } | ContainerPhase::Running { .. } => {
                    Err(CriError::from(RuntimeError::Lost))
                }
            }
        });
        Ok(session)
    }

    /// Connects to a port inside a sandbox's network.
    pub(crate) async fn forward(&self, sandbox: &str, port: u16) -> Result<ByteStream> {
        let record = self.sandbox(sandbox)?.record();
        let SandboxPhase::Ready { infra_pid, .. } = record.phase else {
            return Err(RuntimeError::SandboxNotReady(record.id));
        };
        let failed = |source| RuntimeError::PortForward { sandbox: sandbox.to_owned(), port, source };
        let (sender, receiver) = oneshot::channel();
        // A thread of its own, which ends: one that has changed its network cannot go back to the others.
        std::thread::Builder::new()
            .name("port-forward".to_owned())
            .spawn(move || {
                if sender.send(connect_in_network(infra_pid, port)).is_err() {
                    tracing::debug!(port, "nobody waits for this connection any more");
                }
            })
            .map_err(failed)?;
        let stream = receiver.await.map_err(|_| RuntimeError::Lost)?.map_err(failed)?;
        stream.set_nonblocking(true).map_err(failed)?;
        Ok(Box::new(tokio::net::TcpStream::from_std(stream).map_err(failed)?))
    }
}

/// The loopback address of both families, since an application may listen on either.
fn connect_in_network(pid: i32, port: u16) -> io::Result<std::net::TcpStream> {
    let namespace = fs_err::File::open(format!("/proc/{pid}/ns/net"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let addresses: [std::net::SocketAddr; 2] =
        [(std::net::Ipv4Addr::LOCALHOST, port).into(), (std::net::Ipv6Addr::LOCALHOST, port).into()];
    std::net::TcpStream::connect(&addresses[..])
}

fn empty_session() -> ExecSession {
    ExecSession {
        stdin: None,
        stdout: None,
        stderr: None,
        resize: None,
        exit: Box::pin(std::future::ready(Err(CriError::from(RuntimeError::Lost)))),
    }
}

/// The process's input, and our end where the caller wants one; otherwise the process reads nothing.
fn input_pipe(wanted: bool) -> Result<(OwnedFd, Option<pipe::Sender>)> {
    let make = || -> io::Result<(OwnedFd, Option<pipe::Sender>)> {
        if !wanted {
            return Ok((fs_err::File::open("/dev/null")?.into_file().into(), None));
        }
        let (read, write) = io::pipe()?;
        Ok((read.into(), Some(pipe::Sender::from_owned_fd(write.into())?)))
    };
    make().map_err(|error| RuntimeError::Descriptors("input", error))
}

/// The process's output, and our end where the caller wants one; otherwise what it writes is dropped.
fn output_pipe(wanted: bool) -> Result<(OwnedFd, Option<pipe::Receiver>)> {
    let make = || -> io::Result<(OwnedFd, Option<pipe::Receiver>)> {
        if !wanted {
            return Ok((fs_err::OpenOptions::new().write(true).open("/dev/null")?.into_file().into(), None));
        }
        let (read, write) = io::pipe()?;
        Ok((write.into(), Some(pipe::Receiver::from_owned_fd(read.into())?)))
    };
    make().map_err(|error| RuntimeError::Descriptors("output", error))
}

async fn read_capped(pipe: Option<pipe::Receiver>) -> io::Result<Vec<u8>> {
    let Some(mut pipe) = pipe else { return Ok(Vec::new()) };
    let mut bytes = Vec::new();
    let max = u64::try_from(OUTPUT_BYTES_MAX).unwrap_or(u64::MAX);
    (&mut pipe).take(max).read_to_end(&mut bytes).await?;
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(bytes)
}

fn resize_terminal(terminal: TerminalResizer) -> watch::Sender<TerminalSize> {
    let (sender, mut sizes) = watch::channel(TerminalSize::default());
    tokio::spawn(async move {
        while sizes.changed().await.is_ok() {
            let size = *sizes.borrow_and_update();
            if let Err(error) = terminal.resize(size) {
                tracing::debug!(%error, "resize a terminal");
            }
        }
    });
    sender
}

fn resize_container(container: &Arc<Container>) -> watch::Sender<TerminalSize> {
    let (sender, mut sizes) = watch::channel(TerminalSize::default());
    let container = Arc::clone(container);
    tokio::spawn(async move {
        while sizes.changed().await.is_ok() {
            let TerminalSize { columns, rows } = *sizes.borrow_and_update();
            let Some(shim) = container.sandbox.find_shim() else { return };
            if let Err(error) = shim.tell(&Request::Resize { id: container.id.clone(), columns, rows }).await {
                tracing::debug!(%error, "resize a container's terminal");
            }
        }
    });
    sender
}

/// The head of a text, at most so many bytes.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
