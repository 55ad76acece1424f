//! The kernel's table of connections (linux/netfilter/nfnetlink_conntrack.h): which there are, and forgetting some.

use std::net::{IpAddr, SocketAddr};

use super::{Attributes, NetlinkError, Protocol, Request, Socket, Writer, flag};

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const CONNECTION_ID: u16 = 12;
const CONNECTION_ZONE: u16 = 18;
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_TRANSPORT: u16 = 2;
/// Source and destination: `CTA_IP_V4_SRC` and `CTA_IP_V4_DST`, then those of IPv6.
const ADDRESSES: [(u16, u16); 2] = [(1, 2), (3, 4)];
const TRANSPORT_NUMBER: u16 = 1;
const TRANSPORT_SOURCE: u16 = 2;
const TRANSPORT_DESTINATION: u16 = 3;

/// `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE` and `IPCTNL_MSG_CT_GET_STATS`.
const GET: libc::c_int = 1;
const DELETE: libc::c_int = 2;
const GET_STATS: libc::c_int = 5;
/// `CTA_STATS_GLOBAL_ENTRIES`.
const STATS_ENTRIES: u16 = 1;
/// Bytes of `struct nfgenmsg`, which comes before the attributes.
const HEADER_LEN: usize = 4;

/// What one direction of a connection looks like on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Direction {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// One connection with ports, as the kernel tracks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Layer 4 protocol number.
    pub protocol: u8,
    /// As it was sent, before any address was rewritten.
    pub original: Direction,
    /// As answers are expected: the source is the destination that the kernel chose.
    pub reply: Direction,
    /// Attributes that name it to the kernel, as the kernel gave them.
    identity: Vec<(u16, Vec<u8>)>,
}

const fn message(kind: libc::c_int) -> u16 {
    (flag(libc::NFNL_SUBSYS_CTNETLINK) << 8) | flag(kind)
}

/// `struct nfgenmsg`.
fn header(family: libc::c_int) -> Writer {
    let mut writer = Writer::default();
    writer.raw(&[u8::try_from(family).expect("the families' numbers are small"), 0, 0, 0]);
    writer
}

/// The connections of the calling thread's network namespace for which `wanted` says so.
pub fn connections(mut wanted: impl FnMut(&Connection) -> bool) -> Result<Vec<Connection>, NetlinkError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let mut found = Vec::new();
    // Each dump is a walk through the whole machine's table, so both families come in one, and none where there is nothing.
    if count(&mut socket)? == Some(0) {
        return Ok(found);
    }
    let request =
        Request::new("list the tracked connections", message(GET), flag(libc::NLM_F_DUMP), header(libc::AF_UNSPEC));
    socket.query(&request, |reply| {
        let connection = reply.body.get(HEADER_LEN..).and_then(connection);
        found.extend(connection.filter(|connection| wanted(connection)));
    })?;
    Ok(found)
}

/// How many connections the calling thread's network namespace has; `None` where the kernel does not say.
fn count(socket: &mut Socket) -> Result<Option<u32>, NetlinkError> {
    let request = Request::new("count the tracked connections", message(GET_STATS), 0, header(libc::AF_UNSPEC));
    let mut count = None;
    socket.query(&request, |reply| {
        let attributes = reply.body.get(HEADER_LEN..).map(Attributes::new);
        let entries = attributes.and_then(|attributes| attributes.clone().first(STATS_ENTRIES));
        count = entries.and_then(|entries| entries.value.try_into().ok()).map(u32::from_be_bytes);
    })?;
    Ok(count)
}

/// Forgets the connections: their next packet is a first one again. Those that have gone meanwhile are fine.
pub fn forget(connections: &[Connection]) -> Result<(), NetlinkError> {
    let requests: Vec<Request> = connections
        .iter()
        .map(|connection| {
            let is_ipv6 = connection.original.source.is_ipv6();
            let mut writer = header(if is_ipv6 { libc::AF_INET6 } else { libc::AF_INET });
            for (kind, value) in &connection.identity {
                if *kind == TUPLE_ORIGINAL {
                    writer.nest(*kind, |writer| {
                        writer.raw(value);
                    });
                } else {
                    writer.bytes(*kind, value);
                }
            }
            Request::new("forget a tracked connection", message(DELETE), 0, writer).tolerate(&[libc::ENOENT])
        })
        .collect();
    Socket::open(Protocol::Netfilter)?.execute(&requests)
}

fn connection(body: &[u8]) -> Option<Connection> {
    let attributes = Attributes::new(body);
    let original = attributes.clone().first(TUPLE_ORIGINAL)?;
    let (protocol, forth) = direction(original.value)?;
    let (_, back) = direction(attributes.clone().first(TUPLE_REPLY)?.value)?;
    let mut identity = vec![(TUPLE_ORIGINAL, original.value.to_vec())];
    for kind in [CONNECTION_ID, CONNECTION_ZONE] {
        identity.extend(attributes.clone().first(kind).map(|attribute| (kind, attribute.value.to_vec())));
    }
    Some(Connection { protocol, original: forth, reply: back, identity })
}

fn direction(tuple: &[u8]) -> Option<(u8, Direction)> {
    let addresses = Attributes::new(Attributes::new(tuple).first(TUPLE_ADDRESSES)?.value);
    let transport = Attributes::new(Attributes::new(tuple).first(TUPLE_TRANSPORT)?.value);
    let protocol = *transport.clone().first(TRANSPORT_NUMBER)?.value.first()?;
    let port = |kind| {
        let bytes = transport.clone().first(kind)?.value.try_into().ok()?;
        Some(u16::from_be_bytes(bytes))
    };
    let (source, destination) = ADDRESSES.into_iter().find_map(|(source, destination)| {
        let address = |kind| address(addresses.clone().first(kind)?.value);
        Some((address(source)?, address(destination)?))
    })?;
    let direction = Direction {
        source: SocketAddr::new(source, port(TRANSPORT_SOURCE)?),
        destination: SocketAddr::new(destination, port(TRANSPORT_DESTINATION)?),
    };
    Some((protocol, direction))
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(IpAddr::from(octets));
    }
    <[u8; 16]>::try_from(octets).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;
    use crate::netlink::{in_netns, new_netns, route};
    use crate::nft::{BaseChain, Chain, ChainKind, Command, Hook, Statement, Transaction, Verdict, priority};

    /// Connections are tracked only where a rule asks for it.
    fn track() {
        let base = BaseChain { kind: ChainKind::Filter, hook: Hook::Output, priority: priority::FILTER };
        let mut change = Transaction::new("t");
        change.push(Command::AddTable).push(Command::AddChain(Chain { name: "c".to_owned(), base: Some(base) }));
        let rule = vec![Statement::NewConnection, Statement::Verdict(Verdict::Accept)];
        change.push(Command::AddRule { chain: "c".to_owned(), rule }).commit().unwrap();
    }

    #[test]
    fn a_connection_is_listed_and_forgotten() {
        let netns = new_netns().unwrap();
        in_netns(netns.as_fd(), || {
            Socket::open(Protocol::Route).unwrap().execute(&[route::set_up(1)]).unwrap();
            assert_eq!(count(&mut Socket::open(Protocol::Netfilter).unwrap()).unwrap(), Some(0));
            assert_eq!(connections(|_| true).unwrap(), []);
            track();
            for localhost in ["127.0.0.1:0", "[::1]:0"] {
                let (one, two) = (UdpSocket::bind(localhost).unwrap(), UdpSocket::bind(localhost).unwrap());
                one.send_to(b"x", two.local_addr().unwrap()).unwrap();
                let (source, destination) = (one.local_addr().unwrap(), two.local_addr().unwrap());
                let is_it = |connection: &Connection| connection.original == Direction { source, destination };
                let found = connections(is_it).unwrap();
                assert_eq!(found.len(), 1, "{localhost}");
                assert_eq!((found[0].protocol, found[0].reply.source), (17, destination));
                forget(&found).unwrap();
                forget(&found).unwrap();
                assert!(connections(is_it).unwrap().is_empty(), "{localhost}");
            }
        })
        .unwrap();
    }

    #[test]
    fn garbage_is_no_connection() {
        for garbage in [&[][..], &[4, 0, 1, 0], &[0xff; 40], &[8, 0, 1, 0x80, 4, 0, 1, 0]] {
            assert_eq!(connection(garbage), None);
        }
    }
}
