//! Changes to one table, all or none.

use std::fmt;

use super::ruleset::{Chain, Element, Rule, Set, SetKind};
use super::{lower, text, wire};
use crate::netlink::{NetlinkError, Protocol, Request, Socket, Writer, flag};

/// Elements in one message: a nested attribute ends at 64 KiB, and the largest element takes 120 bytes.
const ELEMENTS_PER_MESSAGE_MAX: usize = 512;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Makes the table; one that is there is fine.
    AddTable,
    /// Removes the table with all that is in it. It must be there: put [`Command::AddTable`] before.
    DeleteTable,
    AddChain(Chain),
    FlushChain(String),
    DeleteChain(String),
    AddRule {
        chain: String,
        rule: Rule,
    },
    AddSet(Set),
    /// Removes a set that no rule names any more.
    DeleteSet(String),
    /// Adds elements; those that are there with the same data are fine, with other data are `EEXIST`.
    AddElements {
        set: String,
        elements: Vec<Element>,
    },
    /// Removes elements, which must be there.
    DeleteElements {
        set: String,
        elements: Vec<Element>,
    },
}

/// Changes to one table of family inet. Prints as the input of `nft -f`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    table: String,
    commands: Vec<Command>,
}

impl Transaction {
    pub fn new(table: impl Into<String>) -> Self {
        Self { table: table.into(), commands: Vec::new() }
    }

    pub fn push(&mut self, command: Command) -> &mut Self {
        self.commands.push(command);
        self
    }

    /// Empties the table, or makes it, in the same transaction as what follows.
    pub fn replace_table(&mut self) -> &mut Self {
        self.push(Command::AddTable).push(Command::DeleteTable).push(Command::AddTable)
    }

    /// Adds elements, unless there are none.
    pub fn add_elements(&mut self, set: &str, elements: Vec<Element>) -> &mut Self {
        if !elements.is_empty() {
            self.push(Command::AddElements { set: set.to_owned(), elements });
        }
        self
    }

    /// Takes elements away, whether they are there or not: adding one that is there changes nothing, and then it can be
    /// removed for certain. (Kernels before 6.3 have no removal that tolerates absence.)
    pub fn forget_elements(&mut self, set: &str, elements: Vec<Element>) -> &mut Self {
        if !elements.is_empty() {
            self.push(Command::AddElements { set: set.to_owned(), elements: elements.clone() });
            self.push(Command::DeleteElements { set: set.to_owned(), elements });
        }
        self
    }

    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Carries all commands out in the network namespace of the calling thread, or none.
    pub fn commit(&self) -> Result<(), NetlinkError> {
        let mut requests = Vec::new();
        for (index, command) in self.commands.iter().enumerate() {
            self.encode(index, command, &mut requests);
        }
        let frame = |kind: libc::c_int| {
            // `struct nfgenmsg`: family, version, and the subsystem that the batch is for, in network order.
            let subsystem = u16::try_from(libc::NFNL_SUBSYS_NFTABLES).expect("the number of a subsystem is small");
            let mut writer = Writer::default();
            let [high, low] = subsystem.to_be_bytes();
            writer.raw(&[0, 0, high, low]);
            Request::new("nftables batch", flag(kind), 0, writer)
        };
        let mut socket = Socket::open(Protocol::Netfilter)?;
        socket.transact(&frame(libc::NFNL_MSG_BATCH_BEGIN), &requests, &frame(libc::NFNL_MSG_BATCH_END))
    }

    fn encode(&self, index: usize, command: &Command, out: &mut Vec<Request>) {
        let create = flag(libc::NLM_F_CREATE);
        match command {
            Command::AddTable => out.push(self.request(command, libc::NFT_MSG_NEWTABLE, create, |writer, table| {
                writer.string(wire::TABLE_NAME, table);
            })),
            Command::DeleteTable => out.push(self.request(command, libc::NFT_MSG_DELTABLE, 0, |writer, table| {
                writer.string(wire::TABLE_NAME, table);
            })),
            Command::AddChain(chain) => {
                out.push(self.request(command, libc::NFT_MSG_NEWCHAIN, create, |writer, table| {
                    write_chain(writer, table, chain);
                }));
            }
            Command::FlushChain(chain) => {
                out.push(self.request(command, libc::NFT_MSG_DELRULE, 0, |writer, table| {
                    writer.string(wire::RULE_TABLE, table).string(wire::RULE_CHAIN, chain);
                }));
            }
            Command::DeleteChain(chain) => {
                out.push(self.request(command, libc::NFT_MSG_DELCHAIN, 0, |writer, table| {
                    writer.string(wire::CHAIN_TABLE, table).string(wire::CHAIN_NAME, chain);
                }));
            }
            Command::AddRule { chain, rule } => {
                let flags = create | flag(libc::NLM_F_APPEND);
                out.push(self.request(command, libc::NFT_MSG_NEWRULE, flags, |writer, table| {
                    writer.string(wire::RULE_TABLE, table).string(wire::RULE_CHAIN, chain);
                    writer.nest(wire::RULE_EXPRESSIONS, |list| {
                        for statement in rule {
                            lower::statement(list, statement);
                        }
                    });
                }));
            }
            Command::AddSet(set) => {
                out.push(self.request(command, libc::NFT_MSG_NEWSET, create, |writer, table| {
                    write_set(writer, table, set, index);
                }));
            }
            Command::DeleteSet(set) => {
                out.push(self.request(command, libc::NFT_MSG_DELSET, 0, |writer, table| {
                    writer.string(wire::SET_TABLE, table).string(wire::SET_NAME, set);
                }));
            }
            Command::AddElements { set, elements } => {
                self.encode_elements(command, libc::NFT_MSG_NEWSETELEM, create, set, elements, out);
            }
            Command::DeleteElements { set, elements } => {
                self.encode_elements(command, libc::NFT_MSG_DELSETELEM, 0, set, elements, out);
            }
        }
    }

    fn encode_elements(
        &self,
        command: &Command,
        kind: libc::c_int,
        flags: u16,
        set: &str,
        elements: &[Element],
        out: &mut Vec<Request>,
    ) {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE_MAX) {
            out.push(self.request(command, kind, flags, |writer, table| {
                writer.string(wire::ELEM_LIST_TABLE, table).string(wire::ELEM_LIST_SET, set);
                writer.nest(wire::ELEM_LIST_ELEMENTS, |list| {
                    for element in chunk {
                        lower::element(list, element);
                    }
                });
            }));
        }
    }

    fn request(
        &self,
        command: &Command,
        kind: libc::c_int,
        flags: u16,
        fill: impl FnOnce(&mut Writer, &str),
    ) -> Request {
        let mut writer = Writer::default();
        writer.raw(&[wire::NFPROTO_INET, 0, 0, 0]);
        fill(&mut writer, &self.table);
        Request::new(describe(&self.table, command), wire::message(kind), flags, writer)
    }
}

fn write_chain(writer: &mut Writer, table: &str, chain: &Chain) {
    writer.string(wire::CHAIN_TABLE, table).string(wire::CHAIN_NAME, &chain.name);
    if let Some(base) = chain.base {
        writer.nest(wire::CHAIN_HOOK, |hook| {
            hook.u32_be(wire::HOOK_HOOKNUM, base.hook.number())
                .bytes(wire::HOOK_PRIORITY, &base.priority.to_be_bytes());
        });
        writer.bytes(wire::CHAIN_POLICY, &libc::NF_ACCEPT.to_be_bytes());
        writer.string(wire::CHAIN_TYPE, base.kind.name());
    }
}

fn write_set(writer: &mut Writer, table: &str, set: &Set, index: usize) {
    /// Tells nft(8) that the keys are in network order: type 0, length 4, and `BYTEORDER_BIG_ENDIAN` in host order.
    const NETWORK_ORDER: [u8; 2] = [0, 4];
    let (kind, len) = lower::joined(&set.key);
    writer
        .string(wire::SET_TABLE, table)
        .string(wire::SET_NAME, &set.name)
        .u32_be(wire::SET_FLAGS, set.flags())
        .u32_be(wire::SET_KEY_TYPE, kind)
        .u32_be(wire::SET_KEY_LEN, len)
        .u32_be(wire::SET_ID, u32::try_from(index).expect("a transaction has far fewer than 4 billion commands"));
    if let Some((kind, len)) = set.data_type() {
        writer.u32_be(wire::SET_DATA_TYPE, kind);
        if len > 0 {
            writer.u32_be(wire::SET_DATA_LEN, len);
        }
    }
    match set.kind {
        SetKind::Exact => {}
        SetKind::Prefixes => {
            let mut order = NETWORK_ORDER.to_vec();
            order.extend_from_slice(&2u32.to_ne_bytes());
            writer.bytes(wire::SET_USERDATA, &order);
        }
        SetKind::Remembered { timeout, elements_max } => {
            let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            writer.bytes(wire::SET_TIMEOUT, &milliseconds.to_be_bytes());
            writer.nest(wire::SET_DESCRIPTION, |description| {
                description.u32_be(wire::SET_DESCRIPTION_SIZE, elements_max);
            });
        }
    }
}

/// What an error about the command begins with: lists of elements are counted, not printed.
fn describe(table: &str, command: &Command) -> String {
    match command {
        Command::AddElements { set, elements } if elements.len() > 1 => {
            format!("nftables: add {} elements to {table} {set}", elements.len())
        }
        Command::DeleteElements { set, elements } if elements.len() > 1 => {
            format!("nftables: delete {} elements of {table} {set}", elements.len())
        }
        command => format!("nftables: {}", line(table, command)),
    }
}

fn line(table: &str, command: &Command) -> String {
    let listed = |elements: &[Element]| elements.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match command {
        Command::AddTable => format!("add table inet {table}"),
        Command::DeleteTable => format!("delete table inet {table}"),
        Command::AddChain(chain) => {
            let text = chain.to_string();
            format!("add chain inet {table} {}", text.trim_start_matches("chain "))
        }
        Command::FlushChain(chain) => format!("flush chain inet {table} {chain}"),
        Command::DeleteChain(chain) => format!("delete chain inet {table} {chain}"),
        Command::AddRule { chain, rule } => format!("add rule inet {table} {chain} {}", text::rule(rule)),
        Command::AddSet(set) => {
            let text = set.to_string();
            let (word, rest) = text.split_once(' ').unwrap_or_default();
            format!("add {word} inet {table} {rest}")
        }
        Command::DeleteSet(set) => format!("delete set inet {table} {set}"),
        Command::AddElements { set, elements } => format!("add element inet {table} {set} {{ {} }}", listed(elements)),
        Command::DeleteElements { set, elements } => {
            format!("delete element inet {table} {set} {{ {} }}", listed(elements))
        }
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for command in &self.commands {
            writeln!(f, "{}", line(&self.table, command))?;
        }
        Ok(())
    }
}

/// Whether the table exists in the network namespace of the calling thread.
pub fn table_exists(table: &str) -> Result<bool, NetlinkError> {
    let mut writer = Writer::default();
    writer.raw(&[wire::NFPROTO_INET, 0, 0, 0]).string(wire::TABLE_NAME, table);
    let what = format!("nftables: look up table {table}");
    let request = Request::new(what, wire::message(libc::NFT_MSG_GETTABLE), 0, writer).tolerate(&[libc::ENOENT]);
    let mut found = false;
    let answer = wire::message(libc::NFT_MSG_NEWTABLE);
    Socket::open(Protocol::Netfilter)?.query(&request, |reply| found |= reply.kind == answer)?;
    Ok(found)
}

#[cfg(test)]
#[path = "transaction_tests.rs"]
mod tests;
