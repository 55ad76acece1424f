//! The chains, sets and elements of one port of a Service. Pure.
//!
//! Without session affinity a port's chain is one rule: a random number of the port's block, looked up in a map of
//! endpoints. A changed endpoint is one element of that map. With affinity each endpoint has a chain and a set of the
//! clients that stay with it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use carob_sys::nft::{Data, Family, Field, Key, Rule, Set, SetKind, Statement, Value, Verdict};

use crate::model::{Access, At, PortModel};
use crate::table::{MASQUERADE_MARK, Maps, REJECT, set_names};

/// Endpoints of one port and policy; more are left out. A number is a block's and an index's, so there are
/// [`BLOCKS_MAX`] blocks.
pub(crate) const BACKENDS_MAX: usize = 1 << 14;
pub(crate) const BLOCKS_MAX: u32 = 1 << 18;
/// Clients that one endpoint remembers; further ones are led anywhere each time.
const AFFINITY_CLIENTS_MAX: u32 = 65_536;

/// The numbers of a port's endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) cluster: u32,
    pub(crate) local: u32,
}

/// Where an element is, and what it leads to.
pub(crate) type Elements = BTreeMap<(Cow<'static, str>, Vec<Value>), Option<Data>>;

/// Everything in the table that depends on some Services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) chains: BTreeMap<String, Vec<Rule>>,
    pub(crate) sets: BTreeMap<String, Set>,
    pub(crate) elements: Elements,
}

/// A port's chains by name.
struct Names<'a>(&'a PortModel);

impl Names<'_> {
    fn of(&self, part: &str) -> String {
        format!("{}/{part}", self.0.name)
    }

    fn endpoint(&self, endpoint: SocketAddr) -> String {
        format!("{}/{endpoint}", self.0.name)
    }

    /// The time-out is part of the name: a set cannot change its own.
    fn clients(&self, endpoint: SocketAddr, seconds: u32) -> String {
        format!("{}/{endpoint}/{seconds}s", self.0.name)
    }
}

fn goto(chain: String) -> Verdict {
    Verdict::Goto(chain)
}

impl Rendered {
    pub(crate) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.sets.is_empty() && self.elements.is_empty()
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.chains.extend(other.chains);
        self.sets.extend(other.sets);
        self.elements.extend(other.elements);
    }

    pub(crate) fn add_element(&mut self, set: impl Into<Cow<'static, str>>, key: Vec<Value>, data: Option<Data>) {
        self.elements.insert((set.into(), key), data);
    }

    pub(crate) fn add(&mut self, port: &PortModel, blocks: Blocks) {
        let names = Names(port);
        self.policy(port, "cluster", &port.cluster, blocks.cluster);
        self.policy(port, "local", &port.local, blocks.local);
        if let Some(seconds) = port.affinity_seconds {
            for endpoint in port.reachable() {
                self.affinity(port, endpoint, seconds);
            }
        }
        let is_external = port.frontends.iter().any(|frontend| frontend.access != Access::Internal);
        if port.has_endpoints && is_external {
            self.chains.insert(names.of("external"), external_rules(port));
        }
        if port.frontends.iter().any(|frontend| frontend.access == Access::Guarded) {
            self.chains.insert(names.of("guard"), guard_rules(port));
        }
        self.frontends(port);
    }

    /// A Pod that may be led to itself.
    pub(crate) fn hairpin(&mut self, address: std::net::IpAddr) {
        let key = vec![Value::Address(address), Value::Address(address)];
        self.add_element(set_names(Family::of(address)).hairpins, key, None);
    }

    /// The chain that chooses among the endpoints of one policy.
    fn policy(&mut self, port: &PortModel, name: &str, endpoints: &[SocketAddr], block: u32) {
        let Ok(modulus @ 1..) = u32::try_from(endpoints.len()) else { return };
        let names = Names(port);
        let offset = block * u32::try_from(BACKENDS_MAX).unwrap_or(u32::MAX);
        let random = vec![Key::Random { modulus, offset }];
        let numbered = (offset..).zip(endpoints);
        let maps = Maps::of(port.family, block);
        let mut rules = Vec::new();
        match port.affinity_seconds {
            None => {
                let (keys, map) = (random, maps.backends());
                rules.push(vec![Statement::DestinationNat { family: port.family, keys, map: map.clone() }]);
                for (number, endpoint) in numbered {
                    let to = Data::Values(vec![Value::Address(endpoint.ip()), Value::Port(endpoint.port())]);
                    self.add_element(map.clone(), vec![Value::Number(number)], Some(to));
                }
            }
            Some(seconds) => {
                let mut sorted = endpoints.to_vec();
                sorted.sort_unstable();
                for endpoint in sorted {
                    let client = Statement::InSet {
                        keys: vec![Key::SourceAddress(port.family)],
                        set: names.clients(endpoint, seconds),
                        is_member: true,
                    };
                    rules.push(vec![client, Statement::Verdict(goto(names.endpoint(endpoint)))]);
                }
                let map = maps.choices();
                rules.push(vec![Statement::VerdictMap { keys: random, map: map.clone() }]);
                for (number, endpoint) in numbered {
                    let to = Data::Verdict(goto(names.endpoint(*endpoint)));
                    self.add_element(map.clone(), vec![Value::Number(number)], Some(to));
                }
            }
        }
        self.chains.insert(names.of(name), rules);
    }

    /// The chain and the clients of an endpoint. The client is noted by a rule of its own: where the set is full, the
    /// connection is made all the same.
    fn affinity(&mut self, port: &PortModel, endpoint: SocketAddr, seconds: u32) {
        let names = Names(port);
        let set = names.clients(endpoint, seconds);
        let keys = vec![Key::SourceAddress(port.family)];
        let rules = vec![
            vec![Statement::Remember { keys, set: set.clone() }],
            vec![Statement::DestinationNatTo(endpoint.ip(), endpoint.port())],
        ];
        self.chains.insert(names.endpoint(endpoint), rules);
        let timeout = Duration::from_secs(u64::from(seconds));
        let kind = SetKind::Remembered { timeout, elements_max: AFFINITY_CLIENTS_MAX };
        self.sets.insert(set.clone(), Set { name: set, key: vec![Field::address(port.family)], data: None, kind });
    }

    fn frontends(&mut self, port: &PortModel) {
        let sets = set_names(port.family);
        let names = Names(port);
        let refusal = || if port.has_endpoints { Verdict::Drop } else { goto(REJECT.to_owned()) };
        let has = |local: bool| if local { !port.local.is_empty() } else { port.has_endpoints };
        for frontend in &port.frontends {
            let mut key = vec![Value::Proto(port.protocol), Value::Port(frontend.port)];
            let (served, refused) = match frontend.at {
                At::Address(address) => {
                    key.insert(0, Value::Address(address));
                    (sets.services, sets.refused)
                }
                At::Node => (sets.node_ports, sets.refused_ports),
            };
            let (chain, is_served, is_refused) = match frontend.access {
                Access::Internal => {
                    let chain = if port.internal_local { "local" } else { "cluster" };
                    let served = has(port.internal_local);
                    (chain, served, !served)
                }
                // Pods of the cluster and this machine are served also where no endpoint is local.
                Access::External | Access::Guarded => ("external", port.has_endpoints, !has(port.external_local)),
            };
            if is_served {
                self.add_element(served, key.clone(), Some(Data::Verdict(goto(names.of(chain)))));
            }
            if frontend.access == Access::Guarded {
                let guard = Some(Data::Verdict(goto(names.of("guard"))));
                self.add_element(sets.guarded, key.clone(), guard);
            }
            if is_refused {
                self.add_element(refused, key, Some(Data::Verdict(refusal())));
            }
        }
    }
}

/// Traffic from outside by the external traffic policy. With Local the client's address is kept, and Pods of the cluster
/// and this machine itself are led on as if they came back in from a load balancer.
fn external_rules(port: &PortModel) -> Vec<Rule> {
    let names = Names(port);
    let to = |part: &str| Statement::Verdict(goto(names.of(part)));
    let mark = || Statement::SetMark(MASQUERADE_MARK);
    if !port.external_local {
        return vec![vec![mark(), to("cluster")]];
    }
    let mut rules = Vec::new();
    if !port.cluster.is_empty() {
        let from_pod = Statement::InSet {
            keys: vec![Key::SourceAddress(port.family)],
            set: set_names(port.family).pods.to_owned(),
            is_member: true,
        };
        rules.push(vec![from_pod, to("cluster")]);
        rules.push(vec![Statement::SourceIsLocal, mark(), to("cluster")]);
    }
    if !port.local.is_empty() {
        rules.push(vec![to("local")]);
    }
    rules
}

/// Drops who is not in the ranges. From this machine the source is the load balancer's address where that is this
/// machine's too.
fn guard_rules(port: &PortModel) -> Vec<Rule> {
    let allow =
        |address, prefix_len| vec![Statement::SourceIn { address, prefix_len }, Statement::Verdict(Verdict::Return)];
    let mut rules: Vec<Rule> = port.sources.iter().map(|range| allow(range.network(), range.prefix_len())).collect();
    if port.allows_node {
        for frontend in port.frontends.iter().filter(|frontend| frontend.access == Access::Guarded) {
            if let At::Address(address) = frontend.at {
                rules.push(allow(address, if address.is_ipv4() { 32 } else { 128 }));
            }
        }
    }
    rules.push(vec![Statement::Verdict(Verdict::Drop)]);
    rules
}
