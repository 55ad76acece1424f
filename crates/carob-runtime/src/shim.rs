//! The runtime's side of the conversation with a shim.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use carob_shim::params;
use carob_shim::protocol::{self, Reply, Request};
use carob_shim::{ExitRecord, SOCKET_FILE};
use carob_sys::cgroup::Layout;
use carob_sys::packet::{self, PACKET_BYTES_MAX};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use crate::programs::Programs;

/// Events of one shim that may wait to be handled. A shim that is further ahead is not read until there is room.
const EVENTS_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    #[error("start the shim")]
    Start(#[source] io::Error),
    #[error("connect to the shim")]
    Connect(#[source] io::Error),
    #[error("send to the shim")]
    Send(#[source] io::Error),
    #[error("the shim is gone")]
    Gone,
    #[error("{0}")]
    Refused(String),
    #[error("the shim answers out of turn")]
    Answer,
}

/// An answer with the descriptors that came along.
type Answer = (Reply, Vec<OwnedFd>);

/// A shim that is connected. Clones talk over one connection.
#[derive(Debug, Clone)]
pub(crate) struct Shim {
    socket: Arc<UnixStream>,
    waiting: Arc<Mutex<Waiting>>,
    sequence: Arc<AtomicU32>,
    pid: i32,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    answers: HashMap<u32, oneshot::Sender<Answer>>,
}

/// What a shim says unasked. The channel ends when the shim does.
pub(crate) type ShimEvents = mpsc::Receiver<ExitRecord>;

/// How a shim is started.
#[derive(Debug)]
pub(crate) struct ShimStart<'a> {
    /// Where this machine's groups are.
    pub(crate) layout: &'a Layout,
    pub(crate) directory: &'a Path,
    /// The Pod's.
    pub(crate) cgroup: &'a Path,
    /// The shim's, away from this process's own, which may be killed as a whole when a service is stopped.
    pub(crate) own_cgroup: &'a Path,
    /// Directories that the shim removes when it ends with this process; empty for a shim that stays.
    pub(crate) remove_with_parent: Vec<&'a Path>,
}

/// Starts a shim and leaves it waiting for a connection. Blocks for about a millisecond.
pub(crate) fn start(programs: &Programs, start: &ShimStart<'_>) -> Result<(Pid, OwnedFd), ShimError> {
    let (ours, theirs) = packet::pair().map_err(ShimError::Start)?;
    params::send_layout(&ours, start.layout).map_err(ShimError::Start)?;
    let log = fs_err::File::create(start.directory.join("shim.log")).map_err(ShimError::Start)?;
    let mut command = Command::new(format!("/proc/self/fd/{}", programs.shim().as_raw_fd()));
    command.arg("shim").arg(start.directory).arg(start.cgroup).arg(start.own_cgroup).args(&start.remove_with_parent);
    // Nothing that would keep std from posix_spawn(3), which does not copy this process's page tables.
    command.env_clear().stdin(Stdio::from(theirs)).stderr(log.into_file());
    let output = command.output().map_err(ShimError::Start)?;
    let pid = std::str::from_utf8(&output.stdout).ok().and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
    match pid {
        Some(pid) if output.status.success() => Ok((pid, ours)),
        Some(_) | None => {
            Err(ShimError::Start(io::Error::other(format!("its log tells why it ended ({})", output.status))))
        }
    }
}

/// Connects to the shim of a sandbox that an earlier process has started.
pub(crate) fn reconnect(directory: &Path) -> Result<(Pid, OwnedFd), ShimError> {
    let socket = packet::connect(&directory.join(SOCKET_FILE)).map_err(ShimError::Connect)?;
    let pid = packet::peer_pid(&socket).map_err(ShimError::Connect)?;
    Ok((pid, socket))
}

impl Shim {
    /// Takes up the conversation on a socket. Must be called within the async runtime.
    pub(crate) fn new(pid: Pid, socket: OwnedFd) -> Result<(Self, ShimEvents), ShimError> {
        let flags = rustix::fs::fcntl_getfl(&socket).map_err(|error| ShimError::Connect(error.into()))?;
        rustix::fs::fcntl_setfl(&socket, flags | rustix::fs::OFlags::NONBLOCK)
            .map_err(|error| ShimError::Connect(error.into()))?;
        let process = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|error| ShimError::Connect(error.into()))?;
        // A socket that keeps boundaries; the type only lends it to the async runtime, it never reads or writes by itself.
        let socket = std::os::unix::net::UnixStream::from(socket);
        let socket = Arc::new(UnixStream::from_std(socket).map_err(ShimError::Connect)?);
        let shim = Self {
            socket,
            waiting: Arc::default(),
            sequence: Arc::new(AtomicU32::new(1)),
            pid: pid.as_raw_nonzero().get(),
        };
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(read_all(Arc::clone(&shim.socket), Arc::clone(&shim.waiting), events, process));
        Ok((shim, receiver))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Asks, and waits for the answer. Not answered when the shim dies first: `Gone`.
    pub(crate) async fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Answer, ShimError> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed).max(1);
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().expect("no holder panics");
            if waiting.closed {
                return Err(ShimError::Gone);
            }
            waiting.answers.insert(sequence, sender);
        }
        let bytes = request.encode(sequence);
        let sent = self.socket.async_io(Interest::WRITABLE, || packet::send(&self.socket, &bytes, fds)).await;
        if let Err(error) = sent {
            self.waiting.lock().expect("no holder panics").answers.remove(&sequence);
            return Err(match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ShimError::Gone,
                _ => ShimError::Send(error),
            });
        }
        match receiver.await {
            Ok((Reply::Failed { message }, _)) => Err(ShimError::Refused(message)),
            Ok(answer) => Ok(answer),
            Err(_) => Err(ShimError::Gone),
        }
    }

    /// For requests whose answer says only that it was done.
    pub(crate) async fn tell(&self, request: &Request) -> Result<(), ShimError> {
        match self.ask(request, &[]).await? {
            (Reply::Done, _) => Ok(()),
            _ => Err(ShimError::Answer),
        }
    }

    pub(crate) async fn list(&self) -> Result<Vec<protocol::ProcessRecord>, ShimError> {
        match self.ask(&Request::List, &[]).await? {
            (Reply::Processes(processes), _) => Ok(processes),
            _ => Err(ShimError::Answer),
        }
    }

    /// Starts a process. Answers with its number, what the one-shot program said of it, and its terminal.
    pub(crate) async fn spawn(
        &self,
        spawn: protocol::Spawn,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(i32, String, Option<OwnedFd>), ShimError> {
        match self.ask(&Request::Spawn(spawn), fds).await? {
            (Reply::Spawned { pid, detail }, mut fds) => Ok((pid, detail, fds.pop())),
            _ => Err(ShimError::Answer),
        }
    }
}

/// Reads until the shim is gone, then reaps it in case it is our child.
async fn read_all(
    socket: Arc<UnixStream>,
    waiting: Arc<Mutex<Waiting>>,
    events: mpsc::Sender<ExitRecord>,
    process: OwnedFd,
) {
    if let Err(error) = read_messages(&socket, &waiting, &events).await {
        tracing::warn!(%error, "read from a shim");
    }
    {
        let mut waiting = waiting.lock().expect("no holder panics");
        waiting.closed = true;
        waiting.answers.clear();
    }
    drop(events);
    if let Err(error) = wait_for_exit(&process).await {
        tracing::warn!(%error, "reap a shim");
    }
}

async fn read_messages(
    socket: &UnixStream,
    waiting: &Mutex<Waiting>,
    events: &mpsc::Sender<ExitRecord>,
) -> io::Result<()> {
    loop {
        let received = socket
            .async_io(Interest::READABLE, || {
                // On the heap while a message is read only: a shim is silent nearly all the time.
                let mut buffer = vec![0; PACKET_BYTES_MAX];
                let received = packet::receive(socket, &mut buffer)?;
                Ok(received.map(|(length, fds)| (Reply::decode(&buffer[..length]), fds)))
            })
            .await;
        let (decoded, fds) = match received {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        };
        match decoded.map_err(io::Error::other)? {
            (_, Reply::Exited(record)) => {
                if events.send(record).await.is_err() {
                    return Ok(());
                }
            }
            (sequence, reply) => {
                let waiter = waiting.lock().expect("no holder panics").answers.remove(&sequence);
                // Whoever asked may have given up meanwhile; what came with the answer is closed then.
                if let Some(waiter) = waiter
                    && waiter.send((reply, fds)).is_err()
                {
                    tracing::debug!(sequence, "nobody waits for this answer any more");
                }
            }
        }
    }
}

/// Waits until a process has ended, and takes its exit where it is a child (waitid(2), `P_PIDFD`).
pub(crate) async fn wait_for_exit(process: &OwnedFd) -> io::Result<()> {
    // A pidfd is readable once its process has ended (pidfd_open(2)); nothing is ever read from it.
    pipe::Receiver::from_owned_fd_unchecked(process.try_clone()?)?.readable().await?;
    match waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(_) | Err(rustix::io::Errno::CHILD) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
