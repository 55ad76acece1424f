use std::fmt;
use std::pin::Pin;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::CriError;

pub type ByteReader = Pin<Box<dyn AsyncRead + Send>>;
pub type ByteWriter = Pin<Box<dyn AsyncWrite + Send>>;

/// Both directions of one connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub type ByteStream = Box<dyn Duplex>;

/// The size of a terminal in characters. Zero in either direction means that it is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// What to run in a container, and which of its streams the caller wants. With `tty`, `stderr` is false: a terminal has
/// one output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecStart {
    pub container_id: String,
    pub cmd: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// The streams of a process in a container, as far as they were asked for.
///
/// The output ends when the process has closed it. Dropping `stdin` closes the process's input. Dropping the session
/// leaves the process alone, as upstream's runtimes do when a client goes away.
pub struct ExecSession {
    pub stdin: Option<ByteWriter>,
    pub stdout: Option<ByteReader>,
    pub stderr: Option<ByteReader>,
    /// The terminal's size, where there is a terminal: only the latest value matters.
    pub resize: Option<watch::Sender<TerminalSize>>,
    /// The exit code (128 + n for signal n), once the process has ended. Of an attached container: when it ended.
    pub exit: BoxFuture<'static, Result<i32, CriError>>,
}

impl fmt::Debug for ExecSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecSession")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("resize", &self.resize.is_some())
            .finish_non_exhaustive()
    }
}

/// The streaming rpcs without the detour over a URL: CRI's `Exec`, `Attach` and `PortForward` for callers in the same process.
#[async_trait]
pub trait Streaming: Send + Sync {
    /// Starts a process in a running container. Fails with `NotFound` where there is no such container and with
    /// `FailedPrecondition` where it is not running.
    async fn exec(&self, start: ExecStart) -> Result<ExecSession, CriError>;

    /// Joins the streams of a container's first process. `start.cmd` is not read; `start.tty` must be the container's.
    async fn attach(&self, start: ExecStart) -> Result<ExecSession, CriError>;

    /// Connects to `port` on the loopback address inside the sandbox's network namespace.
    async fn port_forward(&self, pod_sandbox_id: &str, port: u16) -> Result<ByteStream, CriError>;
}
