//! From statements to the kernel's register machine: load into registers, compare, look up, act.

use std::net::IpAddr;

use super::ruleset::{Data, Element, Family, Field, Hook, Key, Set, SetData, SetKind, Statement, Value, Verdict};
use super::wire;
use crate::netlink::Writer;

/// An interface name in a register: padded with NULs (`IFNAMSIZ`).
const INTERFACE_NAME_LEN: usize = 16;
/// `RTN_LOCAL` (linux/rtnetlink.h), as `fib` puts it into a register.
const ADDRESS_TYPE_LOCAL: u32 = 2;
/// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h).
const CONNECTION_DNAT: u32 = 1 << 5;
/// `IP_CT_DIR_REPLY`.
const DIRECTION_REPLY: u8 = 1;
/// `NF_CT_STATE_BIT` of `IP_CT_RELATED` and `IP_CT_NEW` (linux/netfilter/nf_conntrack_common.h).
const STATE_RELATED: u32 = 1 << 2;
const STATE_NEW: u32 = 1 << 3;

impl Hook {
    /// `enum nf_inet_hooks`.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

impl Field {
    /// Bytes before padding.
    pub(super) fn len(self) -> u32 {
        match self {
            Self::Ipv4 | Self::Number => 4,
            Self::Ipv6 => 16,
            Self::Proto => 1,
            Self::Service => 2,
        }
    }

    /// nft(8)'s own number of the type, for the listing only: the kernel stores it unread.
    fn type_number(self) -> u32 {
        match self {
            Self::Number => 4,
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Proto => 12,
            Self::Service => 13,
        }
    }
}

/// The type number and the length of fields joined: six bits of type a field, each padded to a register.
pub(super) fn joined(fields: &[Field]) -> (u32, u32) {
    if let [field] = fields {
        return (field.type_number(), field.len());
    }
    fields
        .iter()
        .fold((0, 0), |(kind, len), field| ((kind << 6) | field.type_number(), len + field.len().next_multiple_of(4)))
}

impl Set {
    pub(super) fn flags(&self) -> u32 {
        let map = if self.data.is_some() { wire::SET_F_MAP } else { 0 };
        let kind = match self.kind {
            SetKind::Exact => 0,
            SetKind::Prefixes if self.key.len() > 1 => wire::SET_F_INTERVAL | wire::SET_F_CONCAT,
            SetKind::Prefixes => wire::SET_F_INTERVAL,
            SetKind::Remembered { .. } => wire::SET_F_TIMEOUT | wire::SET_F_EVAL,
        };
        map | kind
    }

    /// Type and length of what a map holds.
    pub(super) fn data_type(&self) -> Option<(u32, u32)> {
        self.data.as_ref().map(|data| match data {
            SetData::Fields(fields) => joined(fields),
            SetData::Verdict => (wire::DATA_TYPE_VERDICT, 0),
        })
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Value {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Address(address) | Self::Prefix(address, _) => octets(address),
            Self::Proto(proto) => vec![proto],
            Self::Port(port) => port.to_be_bytes().to_vec(),
            Self::Number(number) => number.to_ne_bytes().to_vec(),
        }
    }
}

/// Values as they lie in registers: a single one unpadded, several padded each.
fn register_bytes(values: &[Value]) -> Vec<u8> {
    if let [value] = values {
        return value.bytes();
    }
    let mut bytes = Vec::new();
    for value in values {
        bytes.extend(value.bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Writes an element; a prefix becomes two, its first address and the one past its last.
pub(super) fn element(writer: &mut Writer, element: &Element) {
    if let [Value::Prefix(address, len)] = element.key[..] {
        let (first, past) = interval(address, len);
        writer.nest(wire::LIST_ELEM, |writer| {
            writer.nest(wire::ELEM_KEY, |key| {
                key.bytes(wire::DATA_VALUE, &first);
            });
        });
        if let Some(past) = past {
            writer.nest(wire::LIST_ELEM, |writer| {
                writer.nest(wire::ELEM_KEY, |key| {
                    key.bytes(wire::DATA_VALUE, &past);
                });
                writer.u32_be(wire::ELEM_FLAGS, wire::ELEM_INTERVAL_END);
            });
        }
        return;
    }
    writer.nest(wire::LIST_ELEM, |writer| {
        writer.nest(wire::ELEM_KEY, |key| {
            key.bytes(wire::DATA_VALUE, &register_bytes(&element.key));
        });
        if let Some(data) = &element.data {
            writer.nest(wire::ELEM_DATA, |writer| match data {
                Data::Values(values) => {
                    writer.bytes(wire::DATA_VALUE, &register_bytes(values));
                }
                Data::Verdict(verdict) => write_verdict(writer, verdict),
            });
        }
    });
}

/// The first address of a prefix and the one past its last, which a prefix at the end of the space has not.
fn interval(address: IpAddr, len: u8) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut first = octets(address);
    for (index, mask) in mask(first.len(), len).into_iter().enumerate() {
        first[index] &= mask;
    }
    let mut past = first.clone();
    let Some(bit) = usize::from(len).checked_sub(1) else { return (first, None) };
    let mut carry = 1u16 << (7 - bit % 8);
    for octet in past[..=bit / 8].iter_mut().rev() {
        let sum = u16::from(*octet) + carry;
        carry = sum >> 8;
        *octet = sum.to_le_bytes()[0];
    }
    (first, (carry == 0).then_some(past))
}

fn mask(len: usize, prefix_len: u8) -> Vec<u8> {
    (0..len)
        .map(|index| {
            let bits = usize::from(prefix_len).saturating_sub(index * 8).min(8);
            // At most 0xff00 before the low byte is taken.
            (0xff00u16 >> bits).to_le_bytes()[0]
        })
        .collect()
}

fn write_verdict(writer: &mut Writer, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (wire::VERDICT_ACCEPT, None),
        Verdict::Drop => (wire::VERDICT_DROP, None),
        Verdict::Return => (wire::VERDICT_RETURN, None),
        Verdict::Jump(chain) => (wire::VERDICT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (wire::VERDICT_GOTO, Some(chain)),
    };
    writer.nest(wire::DATA_VERDICT, |writer| {
        writer.bytes(wire::VERDICT_CODE, &code.to_be_bytes());
        if let Some(chain) = chain {
            writer.string(wire::VERDICT_CHAIN, chain);
        }
    });
}

/// Writes the expressions of one statement.
pub(super) fn statement(writer: &mut Writer, statement: &Statement) {
    match statement {
        Statement::Family(family) => {
            meta(writer, wire::META_NFPROTO, wire::REG32_00);
            compare(writer, wire::CMP_EQ, &[protocol_number(*family)]);
        }
        Statement::InputInterface { name, equal } => interface(writer, wire::META_IIFNAME, name, *equal),
        Statement::OutputInterface { name, equal } => interface(writer, wire::META_OIFNAME, name, *equal),
        Statement::DestinationIsLocal => is_local(writer, wire::FIB_F_DADDR),
        Statement::Protocol(protocol) => {
            meta(writer, wire::META_L4PROTO, wire::REG32_00);
            compare(writer, wire::CMP_EQ, &[*protocol]);
        }
        Statement::DestinationPortIn { first, last } => {
            load(writer, &[Key::DestinationPort]);
            if first == last {
                compare(writer, wire::CMP_EQ, &first.to_be_bytes());
            } else {
                compare(writer, wire::CMP_GTE, &first.to_be_bytes());
                compare(writer, wire::CMP_LTE, &last.to_be_bytes());
            }
        }
        Statement::IsReply => {
            connection(writer, wire::CT_DIRECTION);
            compare(writer, wire::CMP_EQ, &[DIRECTION_REPLY]);
        }
        Statement::SourceIsLocal => is_local(writer, wire::FIB_F_SADDR),
        Statement::SourceIsElsewhere => {
            look_up_route(writer, wire::FIB_RESULT_OIF, wire::FIB_F_SADDR | wire::FIB_F_IIF);
            compare(writer, wire::CMP_EQ, &0u32.to_ne_bytes());
        }
        Statement::NewConnection => connection_has(writer, wire::CT_STATE, STATE_NEW),
        Statement::RelatedConnection => connection_has(writer, wire::CT_STATE, STATE_RELATED),
        Statement::Marked(bits) => {
            meta(writer, wire::META_MARK, wire::REG32_00);
            has_bit(writer, *bits);
        }
        Statement::SetMark(bits) => change_mark(writer, *bits, *bits),
        Statement::ClearMark(bits) => change_mark(writer, *bits, 0),
        Statement::DestinationIn { address, prefix_len } => {
            prefix(writer, Key::DestinationAddress(Family::of(*address)), *address, *prefix_len, wire::CMP_EQ);
        }
        Statement::SourceIn { address, prefix_len } => {
            prefix(writer, Key::SourceAddress(Family::of(*address)), *address, *prefix_len, wire::CMP_EQ);
        }
        Statement::NotIn { destination, address, prefix_len } => {
            let family = Family::of(*address);
            let key = if *destination { Key::DestinationAddress(family) } else { Key::SourceAddress(family) };
            prefix(writer, key, *address, *prefix_len, wire::CMP_NEQ);
        }
        Statement::WasDestinationNat => connection_has(writer, wire::CT_STATUS, CONNECTION_DNAT),
        Statement::InSet { keys, set, is_member } => {
            load(writer, keys);
            lookup(writer, set, None, if *is_member { 0 } else { wire::LOOKUP_F_INV });
        }
        Statement::DestinationNat { family, keys, map } => destination_nat(writer, *family, keys, map),
        Statement::DestinationNatTo(address, port) => {
            let after_address = immediate(writer, wire::REG32_00, &octets(*address));
            immediate(writer, after_address, &port.to_be_bytes());
            nat(writer, wire::NAT_DNAT, Family::of(*address), Some(after_address));
        }
        Statement::Remember { keys, set } => {
            load(writer, keys);
            expression(writer, "dynset", |data| {
                data.string(wire::DYNSET_SET, set)
                    .u32_be(wire::DYNSET_OP, wire::DYNSET_UPDATE)
                    .u32_be(wire::DYNSET_SREG_KEY, wire::REG32_00);
            });
        }
        Statement::VerdictMap { keys, map } => {
            load(writer, keys);
            lookup(writer, map, Some(wire::REG_VERDICT), 0);
        }
        Statement::SourceNat(address) => {
            immediate(writer, wire::REG32_00, &octets(*address));
            nat(writer, wire::NAT_SNAT, Family::of(*address), None);
        }
        Statement::Masquerade => expression(writer, "masq", |data| {
            data.u32_be(wire::MASQ_FLAGS, wire::MASQ_FULLY_RANDOM);
        }),
        Statement::RejectPortUnreachable => expression(writer, "reject", |data| {
            data.u32_be(wire::REJECT_TYPE, wire::REJECT_ICMPX)
                .bytes(wire::REJECT_ICMP_CODE, &[wire::REJECT_PORT_UNREACH]);
        }),
        Statement::RejectTcpReset => expression(writer, "reject", |data| {
            data.u32_be(wire::REJECT_TYPE, wire::REJECT_TCP_RST);
        }),
        Statement::Verdict(verdict) => expression(writer, "immediate", |data| {
            data.u32_be(wire::IMMEDIATE_DREG, wire::REG_VERDICT);
            data.nest(wire::IMMEDIATE_DATA, |data| write_verdict(data, verdict));
        }),
    }
}

/// The address that the flag names, source or destination, is one of this machine.
fn is_local(writer: &mut Writer, which: u32) {
    look_up_route(writer, wire::FIB_RESULT_ADDRTYPE, which);
    compare(writer, wire::CMP_EQ, &ADDRESS_TYPE_LOCAL.to_ne_bytes());
}

/// Loads what the routes say of an address into the first register.
fn look_up_route(writer: &mut Writer, result: u32, flags: u32) {
    expression(writer, "fib", |data| {
        data.u32_be(wire::FIB_DREG, wire::REG32_00).u32_be(wire::FIB_RESULT, result).u32_be(wire::FIB_FLAGS, flags);
    });
}

/// Loads a property of the connection into the first register.
fn connection(writer: &mut Writer, key: u32) {
    expression(writer, "ct", |data| {
        data.u32_be(wire::CT_DREG, wire::REG32_00).u32_be(wire::CT_KEY, key);
    });
}

fn connection_has(writer: &mut Writer, key: u32, bits: u32) {
    connection(writer, key);
    has_bit(writer, bits);
}

/// What was loaded into the first register has one of the bits.
fn has_bit(writer: &mut Writer, bits: u32) {
    bitwise(writer, &bits.to_ne_bytes(), &[0; 4]);
    compare(writer, wire::CMP_NEQ, &[0; 4]);
}

/// Sets those of the mark's `bits` that are in `to` and clears the others.
fn change_mark(writer: &mut Writer, bits: u32, to: u32) {
    meta(writer, wire::META_MARK, wire::REG32_00);
    bitwise(writer, &(!bits).to_ne_bytes(), &to.to_ne_bytes());
    expression(writer, "meta", |data| {
        data.u32_be(wire::META_KEY, wire::META_MARK).u32_be(wire::META_SREG, wire::REG32_00);
    });
}

/// Puts the bytes into registers and answers the register behind them.
fn immediate(writer: &mut Writer, register: u32, bytes: &[u8]) -> u32 {
    expression(writer, "immediate", |data| {
        data.u32_be(wire::IMMEDIATE_DREG, register);
        data.nest(wire::IMMEDIATE_DATA, |data| {
            data.bytes(wire::DATA_VALUE, bytes);
        });
    });
    register + u32::try_from(bytes.len()).expect("registers hold 64 bytes").div_ceil(4)
}

/// Rewrites an address to the one in the first register, and the port to the one in `port`.
fn nat(writer: &mut Writer, kind: u32, family: Family, port: Option<u32>) {
    expression(writer, "nat", |data| {
        data.u32_be(wire::NAT_TYPE, kind)
            .u32_be(wire::NAT_FAMILY, u32::from(protocol_number(family)))
            .u32_be(wire::NAT_REG_ADDR_MIN, wire::REG32_00);
        if let Some(port) = port {
            data.u32_be(wire::NAT_REG_PROTO_MIN, port);
        }
    });
}

fn protocol_number(family: Family) -> u8 {
    match family {
        Family::V4 => wire::NFPROTO_IPV4,
        Family::V6 => wire::NFPROTO_IPV6,
    }
}

fn destination_nat(writer: &mut Writer, family: Family, keys: &[Key], map: &str) {
    load(writer, keys);
    lookup(writer, map, Some(wire::REG32_00), 0);
    nat(writer, wire::NAT_DNAT, family, Some(wire::REG32_00 + Field::address(family).len() / 4));
}

fn expression(writer: &mut Writer, name: &str, fill: impl FnOnce(&mut Writer)) {
    writer.nest(wire::LIST_ELEM, |writer| {
        writer.string(wire::EXPR_NAME, name).nest(wire::EXPR_DATA, fill);
    });
}

fn meta(writer: &mut Writer, key: u32, register: u32) {
    expression(writer, "meta", |data| {
        data.u32_be(wire::META_DREG, register).u32_be(wire::META_KEY, key);
    });
}

/// Compares what was loaded into the first register.
fn compare(writer: &mut Writer, operation: u32, value: &[u8]) {
    expression(writer, "cmp", |data| {
        data.u32_be(wire::CMP_SREG, wire::REG32_00).u32_be(wire::CMP_OP, operation);
        data.nest(wire::CMP_DATA, |data| {
            data.bytes(wire::DATA_VALUE, value);
        });
    });
}

/// Masks what was loaded into the first register, then flips the bits of `flip`.
fn bitwise(writer: &mut Writer, mask: &[u8], flip: &[u8]) {
    let len = u32::try_from(mask.len()).expect("a mask is at most 16 bytes");
    expression(writer, "bitwise", |data| {
        data.u32_be(wire::BITWISE_SREG, wire::REG32_00)
            .u32_be(wire::BITWISE_DREG, wire::REG32_00)
            .u32_be(wire::BITWISE_LEN, len);
        data.nest(wire::BITWISE_MASK, |data| {
            data.bytes(wire::DATA_VALUE, mask);
        });
        data.nest(wire::BITWISE_XOR, |data| {
            data.bytes(wire::DATA_VALUE, flip);
        });
    });
}

fn interface(writer: &mut Writer, key: u32, name: &str, equal: bool) {
    let compared = match name.strip_suffix('*') {
        Some(beginning) => beginning.as_bytes().to_vec(),
        None => {
            let mut padded = name.as_bytes().to_vec();
            padded.resize(INTERFACE_NAME_LEN, 0);
            padded
        }
    };
    meta(writer, key, wire::REG32_00);
    compare(writer, if equal { wire::CMP_EQ } else { wire::CMP_NEQ }, &compared);
}

fn prefix(writer: &mut Writer, key: Key, address: IpAddr, prefix_len: u8, operation: u32) {
    load(writer, &[key]);
    let (first, _) = interval(address, prefix_len);
    bitwise(writer, &mask(first.len(), prefix_len), &vec![0; first.len()]);
    compare(writer, operation, &first);
}

fn lookup(writer: &mut Writer, set: &str, destination: Option<u32>, flags: u32) {
    expression(writer, "lookup", |data| {
        data.string(wire::LOOKUP_SET, set).u32_be(wire::LOOKUP_SREG, wire::REG32_00);
        if let Some(register) = destination {
            data.u32_be(wire::LOOKUP_DREG, register);
        }
        if flags != 0 {
            data.u32_be(wire::LOOKUP_FLAGS, flags);
        }
    });
}

/// Loads the keys into registers one after the other, as a joined key lies in a set.
fn load(writer: &mut Writer, keys: &[Key]) {
    let mut register = wire::REG32_00;
    for key in keys {
        register += load_one(writer, *key, register).div_ceil(4);
    }
}

/// Loads one key and returns its length in bytes.
fn load_one(writer: &mut Writer, key: Key, register: u32) -> u32 {
    // Offsets in the headers of RFC 791, RFC 8200 and of all transports with ports.
    let (base, offset, len) = match key {
        Key::SourceAddress(Family::V4) => (wire::PAYLOAD_NETWORK_HEADER, 12, 4),
        Key::SourceAddress(Family::V6) => (wire::PAYLOAD_NETWORK_HEADER, 8, 16),
        Key::DestinationAddress(Family::V4) => (wire::PAYLOAD_NETWORK_HEADER, 16, 4),
        Key::DestinationAddress(Family::V6) => (wire::PAYLOAD_NETWORK_HEADER, 24, 16),
        Key::DestinationPort => (wire::PAYLOAD_TRANSPORT_HEADER, 2, 2),
        Key::L4Proto => {
            meta(writer, wire::META_L4PROTO, register);
            return 1;
        }
        Key::Random { modulus, offset } => {
            expression(writer, "numgen", |data| {
                data.u32_be(wire::NUMGEN_DREG, register)
                    .u32_be(wire::NUMGEN_MODULUS, modulus)
                    .u32_be(wire::NUMGEN_TYPE, wire::NUMGEN_RANDOM)
                    .u32_be(wire::NUMGEN_OFFSET, offset);
            });
            return 4;
        }
    };
    expression(writer, "payload", |data| {
        data.u32_be(wire::PAYLOAD_DREG, register)
            .u32_be(wire::PAYLOAD_BASE, base)
            .u32_be(wire::PAYLOAD_OFFSET, offset)
            .u32_be(wire::PAYLOAD_LEN, len);
    });
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_its_first_address_and_the_one_past_its_last() {
        for (prefix, len, first, past) in [
            ("10.244.0.7", 24, "10.244.0.0", Some("10.244.1.0")),
            ("10.244.255.0", 24, "10.244.255.0", Some("10.245.0.0")),
            ("10.0.0.5", 32, "10.0.0.5", Some("10.0.0.6")),
            ("10.0.0.255", 32, "10.0.0.255", Some("10.0.1.0")),
            ("255.255.0.0", 16, "255.255.0.0", None),
            ("0.0.0.0", 0, "0.0.0.0", None),
            ("10.96.0.0", 12, "10.96.0.0", Some("10.112.0.0")),
            ("fd00:10:244::1", 64, "fd00:10:244::", Some("fd00:10:244:1::")),
        ] {
            let bytes = |text: &str| octets(text.parse().unwrap());
            let expect = (bytes(first), past.map(bytes));
            assert_eq!(interval(prefix.parse().unwrap(), len), expect, "{prefix}/{len}");
        }
    }

    #[test]
    fn masks_have_as_many_bits_as_the_prefix() {
        assert_eq!(mask(4, 0), [0, 0, 0, 0]);
        assert_eq!(mask(4, 12), [0xff, 0xf0, 0, 0]);
        assert_eq!(mask(4, 32), [0xff; 4]);
    }

    #[test]
    fn joined_types_and_lengths_are_those_of_nft() {
        assert_eq!(joined(&[Field::Proto, Field::Service]), (0x30d, 8));
        assert_eq!(joined(&[Field::Ipv4]), (7, 4));
        assert_eq!(joined(&[Field::Ipv6, Field::Proto, Field::Service]), (8 << 12 | 0x30d, 24));
    }
}
