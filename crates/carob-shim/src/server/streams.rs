//! A container's input and output between its pipes, its log and the clients that have attached.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::crilog::{LineCutter, LogFile, LogStream};

/// Bytes that are moved at a time.
const CHUNK_BYTES: usize = 16 * 1024;

/// The most that is read from a container's pipe after its first process has ended: twice what a pipe holds by default.
/// Who still writes then is not part of the container any more.
const DRAIN_BYTES_MAX: usize = 128 * 1024;

/// How long a client may leave its bytes unread before it is cut off, in milliseconds. Until then the container waits
/// for it, so that nothing that a client asked for is lost.
const STALL_MS_MAX: u64 = 10_000;

/// Which of the attachments to a process a stream is of.
pub(super) type Session = u32;

/// What a container writes: from a pipe or a terminal, to its log and to clients.
#[derive(Debug)]
pub(super) struct Output {
    source: Option<OwnedFd>,
    cutter: LineCutter,
    clients: Vec<Client>,
}

/// A client's end of an output.
#[derive(Debug)]
struct Client {
    session: Session,
    target: OwnedFd,
    /// Gets what waits for it, and no more.
    leaves: bool,
    waiting: Vec<u8>,
    stalled_at_ms: u64,
}

impl Output {
    /// `source` must not block.
    pub(super) fn new(source: OwnedFd, stream: LogStream) -> Self {
        Self { source: Some(source), cutter: LineCutter::new(stream), clients: Vec::new() }
    }

    /// Adds a client, whose descriptor is made non-blocking.
    pub(super) fn join(&mut self, session: Session, target: OwnedFd) -> io::Result<()> {
        set_nonblocking(&target)?;
        if self.source.is_some() {
            self.clients.push(Client { session, target, leaves: false, waiting: Vec::new(), stalled_at_ms: 0 });
        }
        Ok(())
    }

    /// Lets the client of a session go, once it has what waits for it.
    pub(super) fn leave(&mut self, session: Session) {
        for client in self.clients.iter_mut().filter(|client| client.session == session) {
            client.leaves = true;
        }
        self.clients.retain(|client| !client.leaves || !client.waiting.is_empty());
    }

    /// The descriptor to read from, unless a client is behind.
    pub(super) fn readable(&self) -> Option<BorrowedFd<'_>> {
        if self.clients.iter().any(|client| !client.waiting.is_empty()) {
            return None;
        }
        self.source.as_ref().map(AsFd::as_fd)
    }

    /// The clients that are behind.
    pub(super) fn writable(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.clients.iter().filter(|client| !client.waiting.is_empty()).map(|client| client.target.as_fd())
    }

    /// Moves one chunk.
    pub(super) fn pump(&mut self, log: &mut Option<LogFile>, now_ns: i64, now_ms: u64) {
        self.read_chunk(log, now_ns, now_ms);
    }

    /// The bytes read; 0 when there is nothing to read now or ever.
    fn read_chunk(&mut self, log: &mut Option<LogFile>, now_ns: i64, now_ms: u64) -> usize {
        let Some(source) = &self.source else { return 0 };
        let mut chunk = [0; CHUNK_BYTES];
        match rustix::io::read(source, &mut chunk) {
            Ok(read @ 1..) => {
                if let Some(log) = log {
                    self.cutter.push(&chunk[..read], now_ns, log);
                }
                for client in self.clients.iter_mut().filter(|client| !client.leaves) {
                    client.waiting.extend_from_slice(&chunk[..read]);
                }
                self.flush(now_ms);
                read
            }
            Err(Errno::AGAIN | Errno::INTR) => 0,
            // A terminal answers EIO when nobody has its other side open.
            Ok(_) | Err(_) => {
                self.close(log, now_ns);
                0
            }
        }
    }

    /// Gives the clients what waits for them; those that are gone or stalled are let go.
    pub(super) fn flush(&mut self, now_ms: u64) {
        let open = self.source.is_some();
        let stays = |client: &Client| (open && !client.leaves) || !client.waiting.is_empty();
        self.clients.retain_mut(|client| client.flush(now_ms) && stays(client));
    }

    /// Takes what the container has left in its pipe, then closes it.
    pub(super) fn drain(&mut self, log: &mut Option<LogFile>, now_ns: i64, now_ms: u64) {
        let mut taken = 0;
        while taken < DRAIN_BYTES_MAX {
            match self.read_chunk(log, now_ns, now_ms) {
                0 => break,
                read => taken += read,
            }
        }
        self.close(log, now_ns);
    }

    fn close(&mut self, log: &mut Option<LogFile>, now_ns: i64) {
        self.source = None;
        if let Some(log) = log {
            self.cutter.finish(now_ns, log);
        }
        self.clients.retain(|client| !client.waiting.is_empty());
    }

    /// Whether a client still waits for its last bytes.
    pub(super) fn has_clients(&self) -> bool {
        !self.clients.is_empty()
    }

    /// Milliseconds until the first stalled client is to be cut off.
    pub(super) fn patience_ms(&self, now_ms: u64) -> Option<u64> {
        let waiting = self.clients.iter().filter(|client| !client.waiting.is_empty());
        waiting.map(|client| (client.stalled_at_ms + STALL_MS_MAX).saturating_sub(now_ms)).min()
    }
}

impl Client {
    /// Writes what it can. False when the client is to be let go.
    fn flush(&mut self, now_ms: u64) -> bool {
        if self.waiting.is_empty() {
            self.stalled_at_ms = now_ms;
            return true;
        }
        match write_some(&self.target, &mut self.waiting) {
            Ok(0) => now_ms.saturating_sub(self.stalled_at_ms) < STALL_MS_MAX,
            Ok(_) => {
                self.stalled_at_ms = now_ms;
                true
            }
            Err(_) => false,
        }
    }
}

/// What a container reads: from clients, to its pipe or terminal.
#[derive(Debug)]
pub(super) struct Input {
    target: Option<OwnedFd>,
    /// Closes with the first client.
    once: bool,
    clients: Vec<(Session, OwnedFd)>,
    waiting: Vec<u8>,
}

impl Input {
    /// `target` must not block.
    pub(super) fn new(target: OwnedFd, once: bool) -> Self {
        Self { target: Some(target), once, clients: Vec::new(), waiting: Vec::new() }
    }

    pub(super) fn closes_with_its_client(&self) -> bool {
        self.once
    }

    pub(super) fn join(&mut self, session: Session, source: OwnedFd) -> io::Result<()> {
        set_nonblocking(&source)?;
        if self.target.is_some() {
            self.clients.push((session, source));
        }
        Ok(())
    }

    /// The clients to read from, unless the container is behind.
    pub(super) fn readable(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.clients.iter().filter(|_| self.waiting.is_empty()).map(|(_, client)| client.as_fd())
    }

    /// The container's end, when it is behind.
    pub(super) fn writable(&self) -> Option<BorrowedFd<'_>> {
        self.target.as_ref().filter(|_| !self.waiting.is_empty()).map(AsFd::as_fd)
    }

    /// Moves one chunk from each client. Returns the sessions whose clients have no more to say.
    pub(super) fn pump(&mut self) -> Vec<Session> {
        let mut chunk = [0; CHUNK_BYTES];
        let mut ended = Vec::new();
        let waiting = &mut self.waiting;
        self.clients.retain(|(session, client)| match rustix::io::read(client, &mut chunk) {
            Ok(read @ 1..) => {
                waiting.extend_from_slice(&chunk[..read]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Ok(_) | Err(_) => {
                ended.push(*session);
                false
            }
        });
        if self.once && !ended.is_empty() && self.clients.is_empty() && self.waiting.is_empty() {
            self.close();
        }
        self.flush();
        ended
    }

    /// Gives the container what waits for it.
    pub(super) fn flush(&mut self) {
        let Some(target) = &self.target else { return };
        if !self.waiting.is_empty() && write_some(target, &mut self.waiting).is_err() {
            self.close();
        } else if self.waiting.is_empty() {
            self.waiting = Vec::new();
        }
    }

    pub(super) fn close(&mut self) {
        self.target = None;
        self.clients.clear();
        self.waiting = Vec::new();
    }
}

/// Writes the head of `bytes` and takes it off. 0 when nothing can be written now.
fn write_some(target: &OwnedFd, bytes: &mut Vec<u8>) -> io::Result<usize> {
    match rustix::io::write(target, bytes) {
        Ok(written) => {
            bytes.drain(..written);
            Ok(written)
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn nonblocking_pipe() -> (OwnedFd, std::io::PipeWriter) {
        let (read, write) = std::io::pipe().expect("a pipe");
        set_nonblocking(&read).expect("a flag");
        (read.into(), write)
    }

    #[test]
    fn a_client_that_does_not_read_holds_the_container_back_and_is_cut_off() {
        let (source, mut container) = nonblocking_pipe();
        let mut output = Output::new(source, LogStream::Stdout);
        let (client_end, client) = std::io::pipe().expect("a pipe");
        output.join(1, client.into()).expect("joined");
        let mut written = 0;
        while output.readable().is_some() {
            container.write_all(&[b'x'; 4096]).expect("the pipe has room");
            output.pump(&mut None, 0, 1);
            written += 4096;
        }
        assert!(written > 64 * 1024, "the client's pipe was filled first: {written}");
        assert_eq!(output.patience_ms(1), Some(STALL_MS_MAX));
        output.flush(1 + STALL_MS_MAX);
        assert!(output.readable().is_some(), "the client is gone, the container goes on");
        drop(client_end);
    }

    #[test]
    fn a_slow_client_loses_nothing() {
        let (source, mut container) = nonblocking_pipe();
        let mut output = Output::new(source, LogStream::Stdout);
        let (mut client_end, client) = std::io::pipe().expect("a pipe");
        output.join(1, client.into()).expect("joined");
        let mut written = 0;
        while output.readable().is_some() {
            container.write_all(&[b'x'; 4096]).expect("the pipe has room");
            output.pump(&mut None, 0, 1);
            written += 4096;
        }
        drop(container);
        let mut read = 0;
        let mut chunk = [0; 8192];
        while output.has_clients() {
            read += client_end.read(&mut chunk).expect("bytes wait");
            output.flush(2);
            output.drain(&mut None, 0, 2);
        }
        read += client_end.read_to_end(&mut Vec::new()).expect("the rest");
        assert_eq!(read, written);
    }

    #[test]
    fn input_closes_with_the_first_client_only_when_told_so() {
        for once in [true, false] {
            let (mut container, target) = std::io::pipe().expect("a pipe");
            let target = OwnedFd::from(target);
            set_nonblocking(&target).expect("a flag");
            let mut input = Input::new(target, once);
            let (source, mut client) = std::io::pipe().expect("a pipe");
            input.join(1, source.into()).expect("joined");
            client.write_all(b"hi").expect("written");
            assert_eq!(input.pump(), [] as [Session; 0]);
            let mut bytes = [0; 2];
            container.read_exact(&mut bytes).expect("forwarded");
            assert_eq!(&bytes, b"hi");
            drop(client);
            assert_eq!(input.pump(), [1]);
            assert_eq!(input.target.is_none(), once);
        }
    }

    #[test]
    fn a_client_that_leaves_gets_what_waits_for_it_and_no_more() {
        let (source, mut container) = nonblocking_pipe();
        let mut output = Output::new(source, LogStream::Stdout);
        let [(mut left, one), (mut stayed, two)] = [(); 2].map(|()| std::io::pipe().expect("a pipe"));
        output.join(1, one.into()).expect("joined");
        output.join(2, two.into()).expect("joined");
        container.write_all(b"early ").expect("the pipe has room");
        output.pump(&mut None, 0, 1);
        output.leave(1);
        container.write_all(b"late").expect("the pipe has room");
        output.pump(&mut None, 0, 1);
        output.drain(&mut None, 0, 1);
        let mut texts = [String::new(), String::new()];
        left.read_to_string(&mut texts[0]).expect("the end");
        stayed.read_to_string(&mut texts[1]).expect("the end");
        assert_eq!(texts, ["early ", "early late"]);
    }
}
