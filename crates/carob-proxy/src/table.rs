//! The part of the nftables table that does not depend on any Service. Pure.
//!
//! The first packet of a connection looks its destination up in one map, whatever number of Services there is, and is
//! sent to that port's own chain (see [`crate::service`]). Filter chains refuse what no endpoint can take.

use std::net::{IpAddr, Ipv6Addr};

use carob_sys::nft::{
    BaseChain, Chain, ChainKind, Command, Element, Family, Field, Hook, Key, Rule, Set, SetData, SetKind, Statement,
    Transaction, Value, Verdict, priority,
};
use ipnet::IpNet;

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// The mark of a packet whose source is to be replaced by this machine's: the bit that kube-proxy has always used
/// (`--iptables-masquerade-bit`).
pub(crate) const MASQUERADE_MARK: u32 = 1 << 14;
/// Layer 4 protocol number.
const TCP: u8 = 6;
/// Where packets to ports without endpoints end.
pub(crate) const REJECT: &str = "reject";
/// Before destinations are rewritten (`pkg/proxy/nftables` has the same distance).
const BEFORE_DSTNAT: i32 = priority::DSTNAT - 10;
/// Packets to it cannot leave the machine, whatever their destination is rewritten to.
const LOCALHOST_V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// What the table is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableConfig {
    /// The table's name.
    pub table: String,
    /// Addresses of the cluster's Pods, at most one CIDR a family.
    pub cluster_cidrs: Vec<IpNet>,
    /// Addresses of the cluster's Services, as the configuration has them.
    pub service_cidrs: Vec<IpNet>,
    /// Interfaces of Pods of any instance on this machine, and of this one's: names that end in `*`. Packets of other
    /// instances' Pods are left to those.
    pub pod_interfaces: Option<PodInterfaces>,
}

/// How interfaces of Pods are recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInterfaces {
    pub of_any_instance: String,
    pub of_this_instance: String,
}

/// Sets and maps of a family.
pub(crate) struct SetNames {
    /// Pods of the whole cluster.
    pub(crate) pods: &'static str,
    /// Service addresses.
    pub(crate) service_cidrs: &'static str,
    /// Address, protocol and port of a Service to its chain.
    pub(crate) services: &'static str,
    /// Protocol and NodePort to the chain.
    pub(crate) node_ports: &'static str,
    /// What has no usable endpoint: address, protocol and port, or protocol and NodePort.
    pub(crate) refused: &'static str,
    pub(crate) refused_ports: &'static str,
    /// What not every client may use.
    pub(crate) guarded: &'static str,
    /// What the names of the maps of endpoints by number begin with; each port has a block of numbers.
    pub(crate) backends: &'static str,
    /// Pairs of a Pod's address with itself.
    pub(crate) hairpins: &'static str,
}

/// What the names of the maps begin with that have chains of endpoints by number, for ports whose clients stay with their endpoint.
const CHOICES: &str = "choices";
/// Blocks that have their endpoints in one map. For each rule that uses a map, the kernel walks over all its elements when the rule
/// is added, and over all such rules when an element is (`nf_tables_bind_set`, `nft_add_set_elem`): with one map for all, ten
/// thousand Services took it a hundred seconds. It looks for a map among all of the table, so there is not one per port.
const BLOCKS_PER_MAP: u32 = 64;

pub(crate) fn set_names(family: Family) -> SetNames {
    match family {
        Family::V4 => SetNames {
            pods: "pods4",
            service_cidrs: "service_cidrs4",
            services: "services4",
            node_ports: "node_ports4",
            refused: "refused4",
            refused_ports: "refused_ports4",
            guarded: "guarded4",
            backends: "backends4",
            hairpins: "hairpins4",
        },
        Family::V6 => SetNames {
            pods: "pods6",
            service_cidrs: "service_cidrs6",
            services: "services6",
            node_ports: "node_ports6",
            refused: "refused6",
            refused_ports: "refused_ports6",
            guarded: "guarded6",
            backends: "backends6",
            hairpins: "hairpins6",
        },
    }
}

/// Writes the empty table in place of whatever it holds.
pub(crate) fn replace(config: &TableConfig) -> Transaction {
    let mut change = Transaction::new(&config.table);
    change.replace_table();
    for family in FAMILIES {
        add_sets(&mut change, config, family);
    }
    for chain in chains() {
        change.push(Command::AddChain(chain));
    }
    for (chain, rule) in rules(config) {
        change.push(Command::AddRule { chain: chain.to_owned(), rule });
    }
    change
}

fn set(name: &str, key: Vec<Field>, data: Option<SetData>, kind: SetKind) -> Set {
    Set { name: name.to_owned(), key, data, kind }
}

fn add_sets(change: &mut Transaction, config: &TableConfig, family: Family) {
    let names = set_names(family);
    let address = Field::address(family);
    let destination = || vec![address, Field::Proto, Field::Service];
    let port = || vec![Field::Proto, Field::Service];
    for name in [names.pods, names.service_cidrs] {
        change.push(Command::AddSet(set(name, vec![address], None, SetKind::Prefixes)));
    }
    for name in [names.services, names.refused, names.guarded] {
        change.push(Command::AddSet(set(name, destination(), Some(SetData::Verdict), SetKind::Exact)));
    }
    for name in [names.node_ports, names.refused_ports] {
        change.push(Command::AddSet(set(name, port(), Some(SetData::Verdict), SetKind::Exact)));
    }
    change.push(Command::AddSet(set(names.hairpins, vec![address, address], None, SetKind::Exact)));
    change.add_elements(names.pods, prefixes(&config.cluster_cidrs, family));
    change.add_elements(names.service_cidrs, prefixes(&config.service_cidrs, family));
}

/// The maps that the endpoints of some blocks are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Maps {
    is_ipv6: bool,
    number: u32,
}

impl Maps {
    pub(crate) fn of(family: Family, block: u32) -> Self {
        Self { is_ipv6: family == Family::V6, number: block / BLOCKS_PER_MAP }
    }

    fn family(self) -> Family {
        if self.is_ipv6 { Family::V6 } else { Family::V4 }
    }

    /// Endpoints by number.
    pub(crate) fn backends(self) -> String {
        format!("{}/{}", set_names(self.family()).backends, self.number)
    }

    /// Chains of endpoints by number.
    pub(crate) fn choices(self) -> String {
        let family = if self.is_ipv6 { 6 } else { 4 };
        format!("{CHOICES}{family}/{}", self.number)
    }

    pub(crate) fn add(self, change: &mut Transaction) {
        let backend = SetData::Fields(vec![Field::address(self.family()), Field::Service]);
        change.push(Command::AddSet(set(&self.backends(), vec![Field::Number], Some(backend), SetKind::Exact)));
        let chain = Some(SetData::Verdict);
        change.push(Command::AddSet(set(&self.choices(), vec![Field::Number], chain, SetKind::Exact)));
    }
}

/// Makes other ranges those of Services.
pub(crate) fn change_service_cidrs(change: &mut Transaction, before: &[IpNet], after: &[IpNet]) {
    for family in FAMILIES {
        let set = set_names(family).service_cidrs;
        let (before, after) = (prefixes(before, family), prefixes(after, family));
        let gone: Vec<Element> = before.iter().filter(|element| !after.contains(element)).cloned().collect();
        if !gone.is_empty() {
            change.push(Command::DeleteElements { set: set.to_owned(), elements: gone });
        }
        change.add_elements(set, after.into_iter().filter(|element| !before.contains(element)).collect());
    }
}

fn prefixes(cidrs: &[IpNet], family: Family) -> Vec<Element> {
    let of_family = cidrs.iter().filter(|cidr| Family::of(cidr.addr()) == family);
    IpNet::aggregate(&of_family.copied().collect())
        .into_iter()
        .map(|cidr| Element { key: vec![Value::Prefix(cidr.network(), cidr.prefix_len())], data: None })
        .collect()
}

fn chains() -> Vec<Chain> {
    let base = |name: &str, kind, hook, priority| Chain {
        name: name.to_owned(),
        base: Some(BaseChain { kind, hook, priority }),
    };
    let inner = |name: &str| Chain { name: name.to_owned(), base: None };
    vec![
        inner(REJECT),
        inner("services"),
        inner("guards"),
        inner("refusals"),
        base("prerouting", ChainKind::Nat, Hook::Prerouting, priority::DSTNAT),
        base("output", ChainKind::Nat, Hook::Output, priority::DSTNAT),
        base("postrouting", ChainKind::Nat, Hook::Postrouting, priority::SRCNAT),
        base("guard_prerouting", ChainKind::Filter, Hook::Prerouting, BEFORE_DSTNAT),
        base("guard_output", ChainKind::Filter, Hook::Output, BEFORE_DSTNAT),
        base("refuse_input", ChainKind::Filter, Hook::Input, priority::FILTER),
        base("refuse_forward", ChainKind::Filter, Hook::Forward, priority::FILTER),
        base("refuse_output", ChainKind::Filter, Hook::Output, priority::FILTER),
    ]
}

/// Leaves out packets of Pods of other instances on this machine.
fn foreign_pods(config: &TableConfig) -> Option<Rule> {
    let interfaces = config.pod_interfaces.as_ref()?;
    Some(vec![
        Statement::InputInterface { name: interfaces.of_any_instance.clone(), equal: true },
        Statement::InputInterface { name: interfaces.of_this_instance.clone(), equal: false },
        Statement::Verdict(Verdict::Return),
    ])
}

fn rules(config: &TableConfig) -> Vec<(&'static str, Rule)> {
    let jump = |chain: &str| Statement::Verdict(Verdict::Jump(chain.to_owned()));
    let mut rules: Vec<(&'static str, Rule)> = vec![
        // A reset is heard at once. Of an ICMP message, Linux takes no notice while the call that connects still runs.
        (REJECT, vec![Statement::Protocol(TCP), Statement::RejectTcpReset]),
        (REJECT, vec![Statement::RejectPortUnreachable]),
    ];
    for chain in ["prerouting", "guard_prerouting", "refuse_input", "refuse_forward"] {
        rules.extend(foreign_pods(config).map(|rule| (chain, rule)));
    }
    rules.push(("prerouting", vec![jump("services")]));
    rules.push(("output", vec![jump("services")]));
    for chain in ["guard_prerouting", "guard_output"] {
        rules.push((chain, vec![Statement::NewConnection, jump("guards")]));
    }
    for chain in ["refuse_input", "refuse_forward", "refuse_output"] {
        rules.push((chain, vec![Statement::NewConnection, jump("refusals")]));
    }
    for family in FAMILIES {
        rules.extend(service_rules(family));
    }
    // Behind all addresses: a NodePort is on every address that is this machine's.
    let localhost = Statement::DestinationIn { address: LOCALHOST_V6, prefix_len: 128 };
    rules.push(("services", vec![Statement::Family(Family::V6), localhost, Statement::Verdict(Verdict::Return)]));
    for family in FAMILIES {
        rules.extend(node_port_rules(family));
    }
    for family in FAMILIES {
        rules.push(unallocated_rule(family));
        rules.push(hairpin_rule(family));
    }
    let marked = vec![Statement::Marked(MASQUERADE_MARK), Statement::ClearMark(MASQUERADE_MARK), Statement::Masquerade];
    rules.push(("postrouting", marked));
    rules
}

fn lookup(family: Family, keys: Vec<Key>, map: &str) -> Rule {
    vec![Statement::Family(family), Statement::VerdictMap { keys, map: map.to_owned() }]
}

fn is_in(key: Key, set: &str, is_member: bool) -> Statement {
    Statement::InSet { keys: vec![key], set: set.to_owned(), is_member }
}

fn service_rules(family: Family) -> [(&'static str, Rule); 4] {
    let names = set_names(family);
    let destination = || vec![Key::DestinationAddress(family), Key::L4Proto, Key::DestinationPort];
    // An answer to a client that is no Pod has to come back through this machine.
    let from_outside = vec![
        Statement::Family(family),
        is_in(Key::DestinationAddress(family), names.service_cidrs, true),
        is_in(Key::SourceAddress(family), names.pods, false),
        Statement::SetMark(MASQUERADE_MARK),
    ];
    [
        ("services", from_outside),
        ("services", lookup(family, destination(), names.services)),
        ("guards", lookup(family, destination(), names.guarded)),
        ("refusals", lookup(family, destination(), names.refused)),
    ]
}

fn node_port_rules(family: Family) -> [(&'static str, Rule); 2] {
    let names = set_names(family);
    let port = |map: &str| {
        let keys = vec![Key::L4Proto, Key::DestinationPort];
        let map = map.to_owned();
        vec![Statement::Family(family), Statement::DestinationIsLocal, Statement::VerdictMap { keys, map }]
    };
    [("services", port(names.node_ports)), ("refusals", port(names.refused_ports))]
}

/// What has the address of a Service here still goes to no endpoint, and nothing else has such an address: without this
/// rule the packet would leave by the default route.
fn unallocated_rule(family: Family) -> (&'static str, Rule) {
    let rule = vec![
        Statement::Family(family),
        is_in(Key::DestinationAddress(family), set_names(family).service_cidrs, true),
        Statement::Verdict(Verdict::Goto(REJECT.to_owned())),
    ];
    ("refusals", rule)
}

/// A Pod that reaches itself has to see another source, or it would answer itself past this machine.
fn hairpin_rule(family: Family) -> (&'static str, Rule) {
    let pair = Statement::InSet {
        keys: vec![Key::SourceAddress(family), Key::DestinationAddress(family)],
        set: set_names(family).hairpins.to_owned(),
        is_member: true,
    };
    ("postrouting", vec![Statement::Family(family), pair, Statement::WasDestinationNat, Statement::Masquerade])
}
