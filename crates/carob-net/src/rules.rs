//! The nftables table: masquerading for all Pods, host ports for some. Pure; compared as text in tests.
//!
//! A packet to a host port is sent to the Pod by a map (protocol and port, for one host address or for all), in
//! prerouting for other machines' packets and in output for this machine's. What leaves the Pod network takes the
//! node's address. Two cases need the gateway as source, so that the answer comes back through this machine: a Pod that
//! reaches itself by its host port, and 127.0.0.1.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use carob_sys::nft::{
    BaseChain, Chain, ChainKind, Command, Data, Element, Family, Field, Hook, Key, Rule, Set, SetData, SetKind,
    Statement, Transaction, Value, Verdict, priority,
};
use ipnet::IpNet;

use crate::names::Names;
use crate::record::Record;
use crate::request::{HostPort, Protocol};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const LOCALHOST_NET: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8);
const LOCALHOST_V6: (IpAddr, u8) = (IpAddr::V6(Ipv6Addr::LOCALHOST), 128);

/// What the table is made from.
#[derive(Debug)]
pub(crate) struct Ruleset<'a> {
    pub(crate) names: &'a Names,
    pub(crate) pod_cidrs: &'a [IpNet],
    pub(crate) cluster_cidrs: &'a [IpNet],
    pub(crate) gateways: &'a [IpAddr],
}

/// The names of sets and maps of a family.
struct SetNames {
    /// Pod CIDRs of this node: whose packets are masqueraded.
    pods: &'static str,
    /// Where they keep their source: the whole cluster's Pods.
    cluster: &'static str,
    /// Host ports on all addresses.
    ports: &'static str,
    /// Host ports on one address.
    ports_at: &'static str,
    /// Pairs of a Pod's address with itself, for Pods with host ports.
    hairpins: &'static str,
}

fn set_names(family: Family) -> SetNames {
    match family {
        Family::V4 => SetNames {
            pods: "pods4",
            cluster: "cluster4",
            ports: "ports4",
            ports_at: "ports_at4",
            hairpins: "hairpins4",
        },
        Family::V6 => SetNames {
            pods: "pods6",
            cluster: "cluster6",
            ports: "ports6",
            ports_at: "ports_at6",
            hairpins: "hairpins6",
        },
    }
}

impl Ruleset<'_> {
    /// The whole table, in place of whatever the table holds.
    pub(crate) fn replace<'r>(&self, records: impl IntoIterator<Item = &'r Record>) -> Transaction {
        let mut change = Transaction::new(&self.names.anchor);
        change.replace_table();
        for family in FAMILIES {
            self.add_sets(&mut change, family);
        }
        for chain in chains() {
            change.push(Command::AddChain(chain));
        }
        for (chain, rule) in self.rules() {
            change.push(Command::AddRule { chain: chain.to_owned(), rule });
        }
        for record in records {
            for (set, elements) in elements(record) {
                change.add_elements(set, elements);
            }
        }
        change
    }

    fn add_sets(&self, change: &mut Transaction, family: Family) {
        let names = set_names(family);
        let address = Field::address(family);
        let set = |name: &str, key: Vec<Field>, data: Option<SetData>, kind| {
            Command::AddSet(Set { name: name.to_owned(), key, data, kind })
        };
        let target = || Some(SetData::Fields(vec![address, Field::Service]));
        change
            .push(set(names.pods, vec![address], None, SetKind::Prefixes))
            .push(set(names.cluster, vec![address], None, SetKind::Prefixes))
            .push(set(names.hairpins, vec![address, address], None, SetKind::Exact))
            .push(set(names.ports, vec![Field::Proto, Field::Service], target(), SetKind::Exact))
            .push(set(names.ports_at, vec![address, Field::Proto, Field::Service], target(), SetKind::Exact));
        let prefixes = |cidrs: &[IpNet]| -> Vec<Element> {
            let of_family = cidrs.iter().filter(|cidr| Family::of(cidr.addr()) == family);
            IpNet::aggregate(&of_family.copied().collect())
                .into_iter()
                .map(|cidr| Element { key: vec![Value::Prefix(cidr.network(), cidr.prefix_len())], data: None })
                .collect()
        };
        change.add_elements(names.pods, prefixes(self.pod_cidrs));
        change.add_elements(names.cluster, prefixes(&[self.pod_cidrs, self.cluster_cidrs].concat()));
    }

    fn rules(&self) -> Vec<(&'static str, Rule)> {
        let mut rules = vec![
            // A Pod sends from its own addresses only. `rp_filter` says the same for IPv4 alone, and less where the machine's
            // switch for all interfaces is the loose one.
            (
                "guard",
                vec![
                    Statement::InputInterface { name: self.names.veth_pattern(), equal: true },
                    Statement::SourceIsElsewhere,
                    Statement::Verdict(Verdict::Drop),
                ],
            ),
            // Pods' interfaces route 127.0.0.0/8; without this rule a Pod could reach what listens there.
            (
                "guard",
                vec![
                    Statement::InputInterface { name: self.names.veth_pattern(), equal: true },
                    Statement::Family(Family::V4),
                    Statement::DestinationIn { address: LOCALHOST_NET.0, prefix_len: LOCALHOST_NET.1 },
                    Statement::Verdict(Verdict::Drop),
                ],
            ),
            ("prerouting", vec![Statement::Verdict(Verdict::Jump("host_ports".to_owned()))]),
            ("output", vec![Statement::Verdict(Verdict::Jump("host_ports".to_owned()))]),
            // ::1 cannot leave the machine, so a host port on it would lead nowhere: refused is better than silence.
            (
                "host_ports",
                vec![
                    Statement::Family(Family::V6),
                    Statement::DestinationIn { address: LOCALHOST_V6.0, prefix_len: LOCALHOST_V6.1 },
                    Statement::Verdict(Verdict::Return),
                ],
            ),
        ];
        for family in FAMILIES {
            rules.extend(host_port_rules(family));
        }
        for gateway in self.gateways {
            rules.extend(self.gateway_source_rules(*gateway));
        }
        for family in FAMILIES {
            rules.push(self.masquerade_rule(family));
        }
        rules
    }

    /// Sources that an answer could not come back to are replaced by the gateway.
    fn gateway_source_rules(&self, gateway: IpAddr) -> Vec<(&'static str, Rule)> {
        let family = Family::of(gateway);
        let to_pods = || Statement::OutputInterface { name: self.names.veth_pattern(), equal: true };
        let hairpin = Statement::InSet {
            keys: vec![Key::SourceAddress(family), Key::DestinationAddress(family)],
            set: set_names(family).hairpins.to_owned(),
            is_member: true,
        };
        let mut rules = vec![("postrouting", vec![Statement::Family(family), hairpin, Statement::SourceNat(gateway)])];
        if family == Family::V4 {
            let from_localhost = Statement::SourceIn { address: LOCALHOST_NET.0, prefix_len: LOCALHOST_NET.1 };
            rules.push((
                "postrouting",
                vec![Statement::Family(family), to_pods(), from_localhost, Statement::SourceNat(gateway)],
            ));
        }
        rules
    }

    fn masquerade_rule(&self, family: Family) -> (&'static str, Rule) {
        let names = set_names(family);
        let rule = vec![
            Statement::Family(family),
            Statement::InSet { keys: vec![Key::SourceAddress(family)], set: names.pods.to_owned(), is_member: true },
            Statement::InSet {
                keys: vec![Key::DestinationAddress(family)],
                set: names.cluster.to_owned(),
                is_member: false,
            },
            Statement::OutputInterface { name: self.names.veth_pattern(), equal: false },
            Statement::Masquerade,
        ];
        ("postrouting", rule)
    }
}

fn chains() -> Vec<Chain> {
    let base = |name: &str, kind, hook, priority| Chain {
        name: name.to_owned(),
        base: Some(BaseChain { kind, hook, priority }),
    };
    vec![
        Chain { name: "host_ports".to_owned(), base: None },
        base("guard", ChainKind::Filter, Hook::Prerouting, priority::RAW),
        base("prerouting", ChainKind::Nat, Hook::Prerouting, priority::DSTNAT),
        base("output", ChainKind::Nat, Hook::Output, priority::DSTNAT),
        base("postrouting", ChainKind::Nat, Hook::Postrouting, priority::SRCNAT),
    ]
}

fn host_port_rules(family: Family) -> [(&'static str, Rule); 2] {
    let names = set_names(family);
    let nat = |keys, map: &str| Statement::DestinationNat { family, keys, map: map.to_owned() };
    let at = vec![Key::DestinationAddress(family), Key::L4Proto, Key::DestinationPort];
    let any = vec![Key::L4Proto, Key::DestinationPort];
    [
        ("host_ports", vec![Statement::Family(family), nat(at, names.ports_at)]),
        ("host_ports", vec![Statement::Family(family), Statement::DestinationIsLocal, nat(any, names.ports)]),
    ]
}

/// The elements that a sandbox adds, by set. A host port on all addresses exists once for each of the Pod's families.
pub(crate) fn elements(record: &Record) -> Vec<(&'static str, Vec<Element>)> {
    let mut by_set = Vec::new();
    for ip in &record.ips {
        let names = set_names(Family::of(*ip));
        let ports: Vec<&HostPort> = record.host_ports.iter().filter(|port| port.applies_to(*ip)).collect();
        if ports.is_empty() {
            continue;
        }
        let (at, any): (Vec<_>, Vec<_>) =
            ports.into_iter().map(|port| element(port, *ip)).partition(|element| element.key.len() == 3);
        by_set.push((names.ports_at, at));
        by_set.push((names.ports, any));
        let pair = Element { key: vec![Value::Address(*ip), Value::Address(*ip)], data: None };
        by_set.push((names.hairpins, vec![pair]));
    }
    by_set
}

fn element(port: &HostPort, pod: IpAddr) -> Element {
    let protocol = Value::Proto(match port.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    });
    let mut key: Vec<Value> = port.listen_ip().map(Value::Address).into_iter().collect();
    key.extend([protocol, Value::Port(port.host_port)]);
    Element { key, data: Some(Data::Values(vec![Value::Address(pod), Value::Port(port.pod_port)])) }
}

/// Adds the host ports of a sandbox to the table that is there.
pub(crate) fn add_host_ports(names: &Names, record: &Record) -> Transaction {
    let mut change = Transaction::new(&names.anchor);
    for (set, elements) in elements(record) {
        change.add_elements(set, elements);
    }
    change
}

/// Takes the host ports of a sandbox away, whether they are there or not.
pub(crate) fn remove_host_ports(names: &Names, record: &Record) -> Transaction {
    let mut change = Transaction::new(&names.anchor);
    for (set, elements) in elements(record) {
        change.forget_elements(set, elements);
    }
    change
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;

    use super::*;

    fn port(host_ip: Option<&str>, host_port: u16, pod_port: u16, protocol: Protocol) -> HostPort {
        HostPort { host_ip: host_ip.map(|ip| ip.parse().unwrap()), host_port, pod_port, protocol }
    }

    fn record(ips: &[&str], host_ports: Vec<HostPort>) -> Record {
        Record::new("s", ips.iter().map(|ip| ip.parse().unwrap()).collect(), Vec::new(), host_ports)
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_single_stack_table() {
        let names = Names::of("golden");
        let (pods, cluster) = (nets(&["10.244.3.0/24"]), nets(&["10.244.0.0/16"]));
        let gateways = ["10.244.3.1".parse().unwrap()];
        let ruleset = Ruleset { names: &names, pod_cidrs: &pods, cluster_cidrs: &cluster, gateways: &gateways };
        let web = record(&["10.244.3.2"], vec![port(None, 8080, 80, Protocol::Tcp)]);
        expect_file!["golden/single_stack.nft"].assert_eq(&ruleset.replace([&web]).to_string());
    }

    #[test]
    fn a_dual_stack_table() {
        let names = Names::of("golden");
        let (pods, cluster) = (nets(&["10.244.3.0/24", "fd00:3::/64"]), nets(&["10.244.0.0/16", "fd00::/16"]));
        let gateways = ["10.244.3.1".parse().unwrap(), "fd00:3::1".parse().unwrap()];
        let ruleset = Ruleset { names: &names, pod_cidrs: &pods, cluster_cidrs: &cluster, gateways: &gateways };
        let pod = record(
            &["10.244.3.2", "fd00:3::2"],
            vec![
                port(None, 53, 53, Protocol::Udp),
                port(Some("192.0.2.7"), 443, 8443, Protocol::Tcp),
                port(Some("::"), 9000, 9000, Protocol::Sctp),
            ],
        );
        expect_file!["golden/dual_stack.nft"].assert_eq(&ruleset.replace([&pod]).to_string());
    }

    #[test]
    fn one_sandbox_adds_and_removes_its_own_elements_only() {
        let names = Names::of("golden");
        let pod = record(&["10.244.3.2"], vec![port(None, 53, 5353, Protocol::Udp)]);
        let table = &names.anchor;
        assert_eq!(
            add_host_ports(&names, &pod).to_string(),
            format!(
                "add element inet {table} ports4 {{ udp . 53 : 10.244.3.2 . 5353 }}\n\
                 add element inet {table} hairpins4 {{ 10.244.3.2 . 10.244.3.2 }}\n"
            )
        );
        assert_eq!(remove_host_ports(&names, &pod).to_string().matches("delete element").count(), 2);
        assert!(add_host_ports(&names, &record(&["10.244.3.2"], Vec::new())).is_empty());
    }
}
