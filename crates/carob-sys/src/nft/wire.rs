//! Numbers of the nfnetlink and nf_tables protocols, named as in linux/netfilter/nf_tables.h and nfnetlink.h.

use crate::netlink::flag;

pub(super) const TABLE_NAME: u16 = 1;

pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_HOOKNUM: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;

pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_EXPRESSIONS: u16 = 4;

pub(super) const LIST_ELEM: u16 = 1;
pub(super) const EXPR_NAME: u16 = 1;
pub(super) const EXPR_DATA: u16 = 2;

pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LEN: u16 = 5;
pub(super) const SET_DATA_TYPE: u16 = 6;
pub(super) const SET_DATA_LEN: u16 = 7;
pub(super) const SET_DESCRIPTION: u16 = 9;
pub(super) const SET_ID: u16 = 10;
pub(super) const SET_TIMEOUT: u16 = 11;
pub(super) const SET_USERDATA: u16 = 13;
pub(super) const SET_F_INTERVAL: u32 = 0x4;
pub(super) const SET_F_MAP: u32 = 0x8;
pub(super) const SET_F_TIMEOUT: u32 = 0x10;
/// Rules change the set.
pub(super) const SET_F_EVAL: u32 = 0x20;
pub(super) const SET_DESCRIPTION_SIZE: u16 = 1;
pub(super) const SET_F_CONCAT: u32 = 0x80;

pub(super) const ELEM_LIST_TABLE: u16 = 1;
pub(super) const ELEM_LIST_SET: u16 = 2;
pub(super) const ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const ELEM_KEY: u16 = 1;
pub(super) const ELEM_DATA: u16 = 2;
pub(super) const ELEM_FLAGS: u16 = 3;
pub(super) const ELEM_INTERVAL_END: u32 = 0x1;

pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;
/// The set data type that stands for verdicts.
pub(super) const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

pub(super) const REG_VERDICT: u32 = 0;
/// The first of sixteen registers of four bytes.
pub(super) const REG32_00: u32 = 8;

pub(super) const META_DREG: u16 = 1;
pub(super) const META_KEY: u16 = 2;
pub(super) const META_SREG: u16 = 3;
pub(super) const META_MARK: u32 = 3;
pub(super) const META_IIFNAME: u32 = 6;
pub(super) const META_OIFNAME: u32 = 7;
pub(super) const META_NFPROTO: u32 = 15;
pub(super) const META_L4PROTO: u32 = 16;

pub(super) const PAYLOAD_DREG: u16 = 1;
pub(super) const PAYLOAD_BASE: u16 = 2;
pub(super) const PAYLOAD_OFFSET: u16 = 3;
pub(super) const PAYLOAD_LEN: u16 = 4;
pub(super) const PAYLOAD_NETWORK_HEADER: u32 = 1;
pub(super) const PAYLOAD_TRANSPORT_HEADER: u32 = 2;

pub(super) const CT_DREG: u16 = 1;
pub(super) const CT_KEY: u16 = 2;
pub(super) const CT_STATE: u32 = 0;
pub(super) const CT_DIRECTION: u32 = 1;
pub(super) const CT_STATUS: u32 = 2;

pub(super) const DYNSET_SET: u16 = 1;
pub(super) const DYNSET_OP: u16 = 3;
pub(super) const DYNSET_SREG_KEY: u16 = 4;
/// `NFT_DYNSET_OP_UPDATE`: adds the element or renews its timeout.
pub(super) const DYNSET_UPDATE: u32 = 1;

pub(super) const FIB_DREG: u16 = 1;
pub(super) const FIB_RESULT: u16 = 2;
pub(super) const FIB_FLAGS: u16 = 3;
/// `NFT_FIB_RESULT_OIF`: the interface that the route leads out by, or zero.
pub(super) const FIB_RESULT_OIF: u32 = 1;
pub(super) const FIB_RESULT_ADDRTYPE: u32 = 3;
pub(super) const FIB_F_SADDR: u32 = 1;
pub(super) const FIB_F_DADDR: u32 = 2;
/// Only routes by the interface that the packet came by count.
pub(super) const FIB_F_IIF: u32 = 8;

pub(super) const NUMGEN_DREG: u16 = 1;
pub(super) const NUMGEN_MODULUS: u16 = 2;
pub(super) const NUMGEN_TYPE: u16 = 3;
pub(super) const NUMGEN_OFFSET: u16 = 4;
/// `NFT_NG_RANDOM`.
pub(super) const NUMGEN_RANDOM: u32 = 1;

pub(super) const BITWISE_SREG: u16 = 1;
pub(super) const BITWISE_DREG: u16 = 2;
pub(super) const BITWISE_LEN: u16 = 3;
pub(super) const BITWISE_MASK: u16 = 4;
pub(super) const BITWISE_XOR: u16 = 5;

pub(super) const CMP_SREG: u16 = 1;
pub(super) const CMP_OP: u16 = 2;
pub(super) const CMP_DATA: u16 = 3;
pub(super) const CMP_EQ: u32 = 0;
pub(super) const CMP_NEQ: u32 = 1;
pub(super) const CMP_LTE: u32 = 3;
pub(super) const CMP_GTE: u32 = 5;

pub(super) const LOOKUP_SET: u16 = 1;
pub(super) const LOOKUP_SREG: u16 = 2;
pub(super) const LOOKUP_DREG: u16 = 3;
pub(super) const LOOKUP_FLAGS: u16 = 5;
/// `NFT_LOOKUP_F_INV`.
pub(super) const LOOKUP_F_INV: u32 = 1;

pub(super) const IMMEDIATE_DREG: u16 = 1;
pub(super) const IMMEDIATE_DATA: u16 = 2;

pub(super) const NAT_TYPE: u16 = 1;
pub(super) const NAT_FAMILY: u16 = 2;
pub(super) const NAT_REG_ADDR_MIN: u16 = 3;
pub(super) const NAT_REG_PROTO_MIN: u16 = 5;
/// `NFT_NAT_SNAT` and `NFT_NAT_DNAT`.
pub(super) const NAT_SNAT: u32 = 0;
pub(super) const NAT_DNAT: u32 = 1;

pub(super) const MASQ_FLAGS: u16 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` (linux/netfilter/nf_nat.h).
pub(super) const MASQ_FULLY_RANDOM: u32 = 0x10;

pub(super) const REJECT_TYPE: u16 = 1;
pub(super) const REJECT_ICMP_CODE: u16 = 2;
/// `NFT_REJECT_TCP_RST`.
pub(super) const REJECT_TCP_RST: u32 = 1;
/// `NFT_REJECT_ICMPX_UNREACH` and `NFT_REJECT_ICMPX_PORT_UNREACH`.
pub(super) const REJECT_ICMPX: u32 = 2;
pub(super) const REJECT_PORT_UNREACH: u8 = 1;

/// Verdicts (linux/netfilter.h and nf_tables.h).
pub(super) const VERDICT_DROP: i32 = 0;
pub(super) const VERDICT_ACCEPT: i32 = 1;
pub(super) const VERDICT_JUMP: i32 = -3;
pub(super) const VERDICT_GOTO: i32 = -4;
pub(super) const VERDICT_RETURN: i32 = -5;

/// `NFPROTO_INET` (linux/netfilter.h).
pub(super) const NFPROTO_INET: u8 = 1;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;

/// The type of an nf_tables message on the wire: subsystem in the high byte.
pub(super) const fn message(kind: libc::c_int) -> u16 {
    (flag(libc::NFNL_SUBSYS_NFTABLES) << 8) | flag(kind)
}
