//! nftables by netlink: one table's chains, rules, sets and maps as values, changed in one atomic transaction.
//!
//! Start at [`Transaction`]. Every table is of family inet. The values also print in nft(8)'s syntax, which is how
//! rulesets are tested. Only what Pod networks and Services need is here; each expression is lowered to the kernel's
//! register machine in `lower`.

mod lower;
mod ruleset;
mod text;
mod transaction;
mod wire;

pub use ruleset::{
    BaseChain, Chain, ChainKind, Data, Element, Family, Field, Hook, Key, Rule, Set, SetData, SetKey, SetKind,
    Statement, Value, Verdict, priority,
};
pub use transaction::{Command, Transaction, table_exists};
