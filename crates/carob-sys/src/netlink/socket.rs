//! The socket: one send for a batch, then everything that the kernel answered.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::decode::{Attributes, Reply, replies};
use super::encode::{HEADER_LEN, Request, flag};

/// Which part of the kernel a socket talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `NETLINK_ROUTE`: links, addresses, routes.
    Route,
    /// `NETLINK_NETFILTER`: nftables.
    Netfilter,
}

/// One datagram of a dump is at most 32 KiB (netlink(7); the kernel's `netlink_dump` allocates no more).
const DATAGRAM_LEN_MAX: usize = 64 << 10;
/// What one batch may take, bytes. 10 000 Services of ten endpoints take some 10 MiB, with session affinity, where each endpoint
/// has a chain and a set, 100 MiB. The kernel copies a batch into memory that need not be contiguous (`net/netlink/af_netlink.c`,
/// netlink_alloc_large_skb). Beyond it the send fails with `EMSGSIZE`.
const BATCH_LEN_MAX: usize = 256 << 20;
/// Requests in one send. Each is answered at once, and all answers have to fit into the socket's receive buffer, of which an
/// answer takes about 1 KiB (kernel `net/netlink/af_netlink.c`, ENOBUFS): 208 KiB by default, less where it is set so.
const REQUESTS_PER_SEND: usize = 64;
/// Times that a list is asked for again which changed while the kernel gave it.
const DUMP_TRIES: usize = 4;
/// `NLM_F_DUMP_INTR` (linux/netlink.h): what is listed changed meanwhile, so an entry may be missing or there twice.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLMSGERR_ATTR_MSG` (linux/netlink.h): the kernel's own words about a refusal.
const ERROR_MESSAGE: u16 = 1;
/// `NLM_F_ACK_TLVS` and `NLM_F_CAPPED` (linux/netlink.h).
const HAS_EXTENDED_ACK: u16 = 0x200;
const IS_CAPPED: u16 = 0x100;

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    #[error("{what}: send {len} bytes to the kernel")]
    Send {
        what: String,
        len: usize,
        #[source]
        source: io::Error,
    },
    #[error("{what}: read the kernel's answer")]
    Receive {
        what: String,
        #[source]
        source: io::Error,
    },
    /// The kernel said no; `detail` is its own explanation when it gave one.
    #[error("{what}{}{detail}", if detail.is_empty() { "" } else { ": " })]
    Refused {
        what: String,
        detail: String,
        #[source]
        source: io::Error,
    },
    #[error("{what}: the kernel did not answer")]
    NoAnswer { what: String },
}

impl NetlinkError {
    /// The error number of a refusal.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Open(_) | Self::Send { .. } | Self::Receive { .. } | Self::NoAnswer { .. } => None,
        }
    }
}

/// A netlink socket of the network namespace that the calling thread was in when it was opened.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub fn open(protocol: Protocol) -> Result<Self, NetlinkError> {
        let number = match protocol {
            // NETLINK_ROUTE is 0, which is what "no protocol" is too.
            Protocol::Route => None,
            Protocol::Netfilter => Some(rustix::net::netlink::NETFILTER),
        };
        let open = || -> io::Result<OwnedFd> {
            let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, number)?;
            set_netlink_option(&fd, libc::NETLINK_EXT_ACK)?;
            set_netlink_option(&fd, libc::NETLINK_CAP_ACK)?;
            Ok(fd)
        };
        open().map(|fd| Self { fd, sequence: 1 }).map_err(NetlinkError::Open)
    }

    /// Carries the requests out in order, many in one system call. A refused one does not stop those after it; the first
    /// refusal is the result.
    pub fn execute(&mut self, requests: &[Request]) -> Result<(), NetlinkError> {
        let mut outcome = Ok(());
        for some in requests.chunks(REQUESTS_PER_SEND) {
            let done = self.execute_at_once(some);
            outcome = outcome.and(done);
        }
        outcome
    }

    fn execute_at_once(&mut self, requests: &[Request]) -> Result<(), NetlinkError> {
        let first = self.sequence;
        let mut bytes = Vec::new();
        for request in requests {
            request.write(self.next_sequence(), flag(libc::NLM_F_ACK), &mut bytes);
        }
        let Some(last) = requests.last() else { return Ok(()) };
        self.send(&bytes, last.what())?;
        let mut answers = vec![None; requests.len()];
        self.receive(last.what(), |reply| {
            let index = usize::try_from(reply.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
            if reply.kind == flag(libc::NLMSG_ERROR)
                && let Some(answer) = answers.get_mut(index)
            {
                *answer = Some(acknowledgement(&reply));
            }
        })?;
        for (request, answer) in requests.iter().zip(answers) {
            let (errno, detail) = answer.ok_or_else(|| NetlinkError::NoAnswer { what: request.what().to_owned() })?;
            check(request, errno, detail)?;
        }
        Ok(())
    }

    /// Sends messages as one nfnetlink batch: all take effect or none. `begin` and `end` frame them and `requests` lie
    /// between, of which the last asks for an acknowledgement.
    pub(crate) fn transact(
        &mut self,
        begin: &Request,
        requests: &[Request],
        end: &Request,
    ) -> Result<(), NetlinkError> {
        let Some((last, others)) = requests.split_last() else { return Ok(()) };
        let begin_sequence = self.sequence;
        let mut bytes = Vec::new();
        begin.write(self.next_sequence(), 0, &mut bytes);
        for request in others {
            request.write(self.next_sequence(), 0, &mut bytes);
        }
        last.write(self.next_sequence(), flag(libc::NLM_F_ACK), &mut bytes);
        end.write(self.next_sequence(), 0, &mut bytes);
        self.send(&bytes, last.what())?;
        let mut first_refusal = None;
        let mut acknowledged = false;
        self.receive(last.what(), |reply| {
            if reply.kind != flag(libc::NLMSG_ERROR) {
                return;
            }
            let (errno, detail) = acknowledgement(&reply);
            let index = usize::try_from(reply.sequence.wrapping_sub(begin_sequence)).unwrap_or(usize::MAX);
            acknowledged |= index == requests.len();
            if errno != 0 && first_refusal.is_none() {
                // Sequence 0 of the batch is `begin`: the kernel answers there when committing failed as a whole.
                let request = index.checked_sub(1).and_then(|index| requests.get(index)).unwrap_or(last);
                first_refusal = check(request, errno, detail).err();
            }
        })?;
        match first_refusal {
            Some(refusal) => Err(refusal),
            None if acknowledged => Ok(()),
            None => Err(NetlinkError::NoAnswer { what: last.what().to_owned() }),
        }
    }

    /// All that the kernel lists, or finds. A list that changed while it was given is asked for again; one that never stays
    /// the same is taken as it came last.
    pub fn list<T>(
        &mut self,
        request: &Request,
        decode: impl Fn(&Reply<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut found = Vec::new();
        for _ in 0..DUMP_TRIES {
            found.clear();
            let mut interrupted = false;
            self.query(request, |reply| {
                interrupted |= reply.flags & DUMP_INTERRUPTED != 0;
                found.extend(decode(&reply));
            })?;
            if !interrupted {
                break;
            }
        }
        Ok(found)
    }

    /// Sends one request and hands every message of the answer to `each`: for dumps and lookups.
    pub fn query(&mut self, request: &Request, mut each: impl FnMut(Reply<'_>)) -> Result<(), NetlinkError> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        request.write(sequence, 0, &mut bytes);
        self.send(&bytes, request.what())?;
        let mut refusal = None;
        self.receive(request.what(), |reply| {
            if reply.sequence != sequence {
                return;
            }
            if reply.kind == flag(libc::NLMSG_ERROR) {
                let (errno, detail) = acknowledgement(&reply);
                refusal = check(request, errno, detail).err();
            } else if reply.kind != flag(libc::NLMSG_DONE) {
                each(reply);
            }
        })?;
        refusal.map_or(Ok(()), Err)
    }

    fn next_sequence(&mut self) -> u32 {
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        sequence
    }

    fn send(&self, bytes: &[u8], what: &str) -> Result<(), NetlinkError> {
        let send = || -> io::Result<usize> {
            if bytes.len() > DATAGRAM_LEN_MAX {
                // The kernel doubles what it is told (socket(7), `SO_SNDBUF`).
                let len = bytes.len().min(BATCH_LEN_MAX);
                rustix::net::sockopt::set_socket_send_buffer_size_force(&self.fd, len)?;
            }
            Ok(rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, bytes, SendFlags::empty()))?)
        };
        send().map_err(|source| NetlinkError::Send { what: what.to_owned(), len: bytes.len(), source })?;
        Ok(())
    }

    /// Hands over all that the kernel has queued; it queues everything before the send returns, and the rest of a dump
    /// as the first part is read.
    fn receive(&self, what: &str, mut each: impl FnMut(Reply<'_>)) -> Result<(), NetlinkError> {
        let mut buffer = vec![0; DATAGRAM_LEN_MAX];
        loop {
            match rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, len)) => replies(&buffer[..len.min(DATAGRAM_LEN_MAX)]).for_each(&mut each),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(NetlinkError::Receive { what: what.to_owned(), source: errno.into() }),
            }
        }
    }
}

fn check(request: &Request, errno: i32, detail: String) -> Result<(), NetlinkError> {
    if errno == 0 || request.tolerated.contains(&errno) {
        return Ok(());
    }
    let source = io::Error::from_raw_os_error(errno);
    Err(NetlinkError::Refused { what: request.what().to_owned(), detail, source })
}

/// Error number (0 for success) and the kernel's words, from a `struct nlmsgerr`.
fn acknowledgement(reply: &Reply<'_>) -> (i32, String) {
    let Some(code) = reply.body.get(..4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes) else {
        return (libc::EPROTO, String::new());
    };
    let mut detail = String::new();
    if reply.flags & HAS_EXTENDED_ACK != 0 {
        // Capped, the error quotes only the header of the request; else the whole of it.
        let quoted = reply.body.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let quoted_len =
            if reply.flags & IS_CAPPED != 0 { HEADER_LEN } else { usize::try_from(quoted).unwrap_or(usize::MAX) };
        let rest = quoted_len.checked_add(4).and_then(|start| reply.body.get(start..)).unwrap_or_default();
        for attribute in Attributes::new(rest) {
            if attribute.kind == ERROR_MESSAGE {
                attribute.text().unwrap_or_default().clone_into(&mut detail);
            }
        }
    }
    (code.saturating_neg(), detail)
}

fn set_netlink_option(fd: &impl AsFd, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of_val(&on)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the whole call, and the kernel reads `len` bytes of `on`, which outlives it.
    let rc =
        unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), len) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
