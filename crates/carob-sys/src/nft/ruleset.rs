//! The vocabulary of a ruleset.

use std::net::IpAddr;
use std::time::Duration;

/// Address family of a packet or an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Priorities of base chains by nft's names (nft(8), "Standard priority names").
pub mod priority {
    pub const RAW: i32 = -300;
    pub const DSTNAT: i32 = -100;
    pub const FILTER: i32 = 0;
    pub const SRCNAT: i32 = 100;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
}

/// Where in the packet's way a base chain stands (`enum nf_inet_hooks`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    /// `None` for a chain that is only jumped to.
    pub base: Option<BaseChain>,
}

/// One part of the key of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Ipv4,
    Ipv6,
    /// Layer 4 protocol number.
    Proto,
    /// Port.
    Service,
    /// A number in host order: what [`Key::Random`] yields.
    Number,
}

impl Field {
    pub fn address(family: Family) -> Self {
        match family {
            Family::V4 => Self::Ipv4,
            Family::V6 => Self::Ipv6,
        }
    }
}

/// The key of a set or map.
pub type SetKey = Vec<Field>;

/// What a map holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetData {
    Fields(Vec<Field>),
    Verdict,
}

/// A set, or with `data` a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    pub key: SetKey,
    pub data: Option<SetData>,
    pub kind: SetKind,
}

/// How a set's elements are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKind {
    /// Each element is one key.
    Exact,
    /// Elements are prefixes of a single address field.
    Prefixes,
    /// Rules add the elements ([`Statement::Remember`]), and each is gone `timeout` after it was last added. A full set
    /// takes no more, and the rule that would have added one does not match.
    Remembered { timeout: Duration, elements_max: u32 },
}

/// A concrete value of a [`Field`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    Address(IpAddr),
    /// Layer 4 protocol number (`libc::IPPROTO_TCP`, …).
    Proto(u8),
    Port(u16),
    Number(u32),
    /// Only in interval sets.
    Prefix(IpAddr, u8),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    Values(Vec<Value>),
    Verdict(Verdict),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    pub key: Vec<Value>,
    pub data: Option<Data>,
}

/// Something about a packet that is loaded to be compared or looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    SourceAddress(Family),
    DestinationAddress(Family),
    L4Proto,
    DestinationPort,
    /// A random number of `modulus` that follow each other from `offset` on (nft(8) `numgen random mod`).
    Random {
        modulus: u32,
        offset: u32,
    },
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// The packet is of this family. Has to come before keys that are addresses.
    Family(Family),
    InputInterface {
        name: String,
        equal: bool,
    },
    OutputInterface {
        name: String,
        equal: bool,
    },
    /// The destination is an address of this machine (nft(8) `fib daddr type local`).
    DestinationIsLocal,
    /// The source is an address of this machine.
    SourceIsLocal,
    /// No route leads to the source by the interface that the packet came by (nft(8) `fib saddr . iif oif missing`).
    SourceIsElsewhere,
    /// The packet is of this layer 4 protocol.
    Protocol(u8),
    /// The destination's port is one of these, the last included.
    DestinationPortIn {
        first: u16,
        last: u16,
    },
    /// The packet is an answer (nft(8) `ct direction reply`).
    IsReply,
    /// No packet of the connection has been answered yet (nft(8) `ct state new`).
    NewConnection,
    /// The packet tells of an error of a connection, or its connection was announced by another (nft(8) `ct state related`).
    RelatedConnection,
    /// The packet has a bit of these in its mark.
    Marked(u32),
    /// Sets these bits of the packet's mark.
    SetMark(u32),
    /// Clears these bits of the packet's mark.
    ClearMark(u32),
    /// The destination is in this prefix.
    DestinationIn {
        address: IpAddr,
        prefix_len: u8,
    },
    /// The source is in this prefix.
    SourceIn {
        address: IpAddr,
        prefix_len: u8,
    },
    /// The source, or with `destination` the destination, is not in this prefix.
    NotIn {
        destination: bool,
        address: IpAddr,
        prefix_len: u8,
    },
    /// The connection's destination was rewritten (nft(8) `ct status dnat`).
    WasDestinationNat,
    /// The keys, joined, are in the set or are not.
    InSet {
        keys: Vec<Key>,
        set: String,
        is_member: bool,
    },
    /// Rewrites the destination to the address and port that the map holds; no element, no match.
    DestinationNat {
        family: Family,
        keys: Vec<Key>,
        map: String,
    },
    /// Rewrites the destination to this address and port.
    DestinationNatTo(IpAddr, u16),
    /// Adds the keys, joined, to the set, or lets the element that there is live on (nft(8) `update @set`).
    Remember {
        keys: Vec<Key>,
        set: String,
    },
    /// Follows the verdict that the map holds; no element, no match.
    VerdictMap {
        keys: Vec<Key>,
        map: String,
    },
    /// Rewrites the source to this address.
    SourceNat(IpAddr),
    /// Rewrites the source to the outgoing interface's address, with a random port.
    Masquerade,
    /// Answers with ICMP port unreachable.
    RejectPortUnreachable,
    /// Ends the connection with a TCP reset; only behind [`Statement::Protocol`] of TCP.
    RejectTcpReset,
    Verdict(Verdict),
}

pub type Rule = Vec<Statement>;
