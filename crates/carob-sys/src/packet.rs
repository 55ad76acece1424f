//! Packets with file descriptors over Unix sockets that keep message boundaries (unix(7), `SOCK_SEQPACKET`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// The longest packet that is sent or taken, in bytes. Far below the default `SO_SNDBUF`, so one always fits whole.
pub const PACKET_BYTES_MAX: usize = 64 * 1024;

/// The most descriptors in one packet. The kernel's own limit is 253 (`SCM_MAX_FD`).
pub const PACKET_FDS_MAX: usize = 8;

/// Connections that may wait for [`accept`].
const BACKLOG: i32 = 8;

/// Two connected sockets, close-on-exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Listens on a new socket file, which must not exist yet. The listener does not block.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let (directory, address) = short_address(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    drop(directory);
    Ok(socket)
}

/// The next connection of a [`listen`]er, non-blocking, if one waits.
pub fn accept(listener: impl AsFd) -> io::Result<Option<OwnedFd>> {
    match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(connection) => Ok(Some(connection)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Connects to a [`listen`]er.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    connect_as(path, SocketType::SEQPACKET)
}

/// Connects to a stream socket whose path may be longer than the 107 bytes that an address holds.
pub fn connect_stream(path: &Path) -> io::Result<OwnedFd> {
    connect_as(path, SocketType::STREAM)
}

fn connect_as(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let (directory, address) = short_address(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &address)?;
    drop(directory);
    Ok(socket)
}

/// An address by way of the directory's descriptor, since `sun_path` ends at 108 bytes (unix(7)). It holds as long as
/// the descriptor is open.
fn short_address(path: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no socket", path.display()));
    let (parent, name) = (path.parent().ok_or_else(invalid)?, path.file_name().ok_or_else(invalid)?);
    let directory = rustix::fs::openat(CWD, parent, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let address = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), name.to_string_lossy());
    let address = SocketAddrUnix::new(address)?;
    Ok((directory, address))
}

/// The process that listens or connected at the other end, as it was then (`SO_PEERCRED`, unix(7)).
pub fn peer_pid(socket: impl AsFd) -> io::Result<rustix::process::Pid> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.pid)
}

/// Sends one packet whole. `WouldBlock` on a non-blocking socket whose peer does not read.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.len() > PACKET_BYTES_MAX || fds.len() > PACKET_FDS_MAX {
        let text = format!("a packet of {} bytes and {} descriptors is over the limit", bytes.len(), fds.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("the control buffer holds fewer descriptors than its size says"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one packet into `buffer` (at least [`PACKET_BYTES_MAX`] long). `None` when the peer has closed.
///
/// A packet that had to be cut is an error: what is left of it means nothing.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet over the limit was cut"));
    }
    Ok((message.bytes > 0).then_some((message.bytes, fds)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_packet_carries_bytes_and_descriptors() {
        let directory = tempfile::tempdir().expect("a directory");
        let deep = directory.path().join("d".repeat(120));
        fs_err::create_dir(&deep).expect("a deep directory");
        let path = deep.join("socket");
        let listener = listen(&path).expect("a path longer than sun_path works");
        let client = connect(&path).expect("the listener is there");
        let server = accept(&listener).expect("accept works").expect("the client waits");
        assert_eq!(peer_pid(&client).expect("credentials"), rustix::process::getpid());

        let (read, mut write) = std::io::pipe().expect("a pipe");
        send(&client, b"hello", &[read.as_fd()]).expect("a small packet is sent whole");
        drop(read);
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        let (len, fds) = receive(&server, &mut buffer).expect("receive").expect("a packet");
        assert_eq!((&buffer[..len], fds.len()), (&b"hello"[..], 1));
        write.write_all(b"x").expect("the descriptor that was sent keeps the pipe open");

        drop(client);
        assert!(receive(&server, &mut buffer).expect("receive").is_none(), "closed");
    }

    #[test]
    fn a_packet_over_the_limit_is_refused() {
        let (one, _two) = pair().expect("a pair");
        let error = send(&one, &vec![0; PACKET_BYTES_MAX + 1], &[]).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
