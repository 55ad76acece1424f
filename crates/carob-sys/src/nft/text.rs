//! Rulesets in the syntax of nft(8).

use std::fmt;

use super::ruleset::{
    Chain, ChainKind, Data, Element, Family, Field, Hook, Key, Rule, Set, SetData, SetKind, Statement, Value, Verdict,
};

impl Field {
    fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
            Self::Proto => "inet_proto",
            Self::Service => "inet_service",
            Self::Number => "integer",
        }
    }
}

impl Hook {
    fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

impl ChainKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(" . ")
}

/// The set's declaration, elements left out.
impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.data.is_some() { "map" } else { "set" };
        write!(f, "{word} {} {{ type {}", self.name, joined(self.key.iter().map(|field| field.name())))?;
        match &self.data {
            None => {}
            Some(SetData::Fields(fields)) => write!(f, " : {}", joined(fields.iter().map(|field| field.name())))?,
            Some(SetData::Verdict) => f.write_str(" : verdict")?,
        }
        match self.kind {
            SetKind::Exact => f.write_str("; }"),
            SetKind::Prefixes => f.write_str("; flags interval; }"),
            SetKind::Remembered { timeout, elements_max } => {
                let seconds = timeout.as_secs();
                write!(f, "; size {elements_max}; flags dynamic,timeout; timeout {seconds}s; }}")
            }
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {}", self.name)?;
        let Some(base) = self.base else { return Ok(()) };
        let (kind, hook) = (base.kind.name(), base.hook.name());
        write!(f, " {{ type {kind} hook {hook} priority {}; policy accept; }}", base.priority)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Address(address) => address.fmt(f),
            Self::Proto(proto) => match libc::c_int::from(proto) {
                libc::IPPROTO_TCP => f.write_str("tcp"),
                libc::IPPROTO_UDP => f.write_str("udp"),
                libc::IPPROTO_SCTP => f.write_str("sctp"),
                other => other.fmt(f),
            },
            Self::Port(port) => port.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Prefix(address, len) => write!(f, "{address}/{len}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&joined(&self.key))?;
        match &self.data {
            None => Ok(()),
            Some(Data::Values(values)) => write!(f, " : {}", joined(values)),
            Some(Data::Verdict(verdict)) => write!(f, " : {verdict}"),
        }
    }
}

impl Family {
    fn keyword(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SourceAddress(family) => write!(f, "{} saddr", family.keyword()),
            Self::DestinationAddress(family) => write!(f, "{} daddr", family.keyword()),
            Self::L4Proto => f.write_str("meta l4proto"),
            Self::DestinationPort => f.write_str("th dport"),
            Self::Random { modulus, offset: 0 } => write!(f, "numgen random mod {modulus}"),
            Self::Random { modulus, offset } => write!(f, "numgen random mod {modulus} offset {offset}"),
        }
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unless = |equal: bool| if equal { "" } else { "!= " };
        match self {
            Self::Family(Family::V4) => f.write_str("meta nfproto ipv4"),
            Self::Family(Family::V6) => f.write_str("meta nfproto ipv6"),
            Self::InputInterface { name, equal } => write!(f, "iifname {}{name:?}", unless(*equal)),
            Self::OutputInterface { name, equal } => write!(f, "oifname {}{name:?}", unless(*equal)),
            Self::DestinationIsLocal => f.write_str("fib daddr type local"),
            Self::Protocol(protocol) => write!(f, "meta l4proto {}", Value::Proto(*protocol)),
            Self::DestinationPortIn { first, last } if first == last => write!(f, "th dport {first}"),
            Self::DestinationPortIn { first, last } => write!(f, "th dport {first}-{last}"),
            Self::IsReply => f.write_str("ct direction reply"),
            Self::NotIn { destination, address, prefix_len } => {
                let which = if *destination { "daddr" } else { "saddr" };
                write!(f, "{} {which} != {address}/{prefix_len}", Family::of(*address).keyword())
            }
            Self::SourceIsLocal => f.write_str("fib saddr type local"),
            Self::SourceIsElsewhere => f.write_str("fib saddr . iif oif missing"),
            Self::NewConnection => f.write_str("ct state new"),
            Self::RelatedConnection => f.write_str("ct state related"),
            Self::Marked(bits) => write!(f, "meta mark & {bits:#x} != 0"),
            Self::SetMark(bits) => write!(f, "meta mark set meta mark | {bits:#x}"),
            Self::ClearMark(bits) => write!(f, "meta mark set meta mark & {:#x}", !bits),
            Self::DestinationIn { address, prefix_len } => {
                write!(f, "{} daddr {address}/{prefix_len}", Family::of(*address).keyword())
            }
            Self::SourceIn { address, prefix_len } => {
                write!(f, "{} saddr {address}/{prefix_len}", Family::of(*address).keyword())
            }
            Self::WasDestinationNat => f.write_str("ct status dnat"),
            Self::InSet { keys, set, is_member } => write!(f, "{} {}@{set}", joined(keys), unless(*is_member)),
            Self::DestinationNat { family, keys, map } => {
                write!(f, "dnat {} to {} map @{map}", family.keyword(), joined(keys))
            }
            Self::DestinationNatTo(address, port) => {
                let family = Family::of(*address).keyword();
                write!(f, "dnat {family} to {}", std::net::SocketAddr::new(*address, *port))
            }
            Self::Remember { keys, set } => write!(f, "update @{set} {{ {} }}", joined(keys)),
            Self::VerdictMap { keys, map } => write!(f, "{} vmap @{map}", joined(keys)),
            Self::SourceNat(address) => write!(f, "snat {} to {address}", Family::of(*address).keyword()),
            Self::Masquerade => f.write_str("masquerade fully-random"),
            Self::RejectPortUnreachable => f.write_str("reject with icmpx port-unreachable"),
            Self::RejectTcpReset => f.write_str("reject with tcp reset"),
            Self::Verdict(verdict) => verdict.fmt(f),
        }
    }
}

/// A rule in nft's syntax.
pub(super) fn rule(rule: &Rule) -> String {
    rule.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
