//! Chains and sets of policies. Pure.
//!
//! A Pod that a policy isolates has a chain for the direction, which asks the chains of its policies and then drops. A
//! policy's chain accepts what it allows; `accept` ends the direction's base chain, so each direction has its own.

use std::collections::BTreeSet;

use carob_sys::nft::{
    BaseChain, Chain, ChainKind, Command, Data, Family, Field, Hook, Key, Rule, Set, SetData, SetKind, Statement,
    Transaction, Value, Verdict, priority,
};

use super::model::{Allowance, Direction, Peer, PodFacts, Policy, Port};
use crate::service::Rendered;
use crate::table::FAMILIES;

impl Direction {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The map of isolated Pods to their chains.
    fn isolated(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Ingress, Family::V4) => "ingress4",
            (Self::Ingress, Family::V6) => "ingress6",
            (Self::Egress, Family::V4) => "egress4",
            (Self::Egress, Family::V6) => "egress6",
        }
    }

    /// The address of the Pod that the policy is about.
    fn own(self, family: Family) -> Key {
        match self {
            Self::Ingress => Key::DestinationAddress(family),
            Self::Egress => Key::SourceAddress(family),
        }
    }

    fn peer(self, family: Family) -> Key {
        match self {
            Self::Ingress => Key::SourceAddress(family),
            Self::Egress => Key::DestinationAddress(family),
        }
    }

    fn priority(self) -> i32 {
        match self {
            Self::Egress => priority::FILTER,
            Self::Ingress => priority::FILTER + 1,
        }
    }
}

/// Pairs of an isolated Pod's address with itself: no policy keeps a Pod from itself.
fn selfs(family: Family) -> &'static str {
    match family {
        Family::V4 => "selfs4",
        Family::V6 => "selfs6",
    }
}

/// Writes the empty table in place of whatever it holds.
pub(super) fn replace(table: &str) -> Transaction {
    let mut change = Transaction::new(table);
    change.replace_table();
    for family in FAMILIES {
        let address = Field::address(family);
        for direction in super::model::DIRECTIONS {
            let name = direction.isolated(family).to_owned();
            let data = Some(SetData::Verdict);
            change.push(Command::AddSet(Set { name, key: vec![address], data, kind: SetKind::Exact }));
        }
        let (name, key) = (selfs(family).to_owned(), vec![address, address]);
        change.push(Command::AddSet(Set { name, key, data: None, kind: SetKind::Exact }));
    }
    for direction in super::model::DIRECTIONS {
        let base = BaseChain { kind: ChainKind::Filter, hook: Hook::Forward, priority: direction.priority() };
        change.push(Command::AddChain(Chain { name: direction.name().to_owned(), base: Some(base) }));
        for rule in base_rules(direction) {
            change.push(Command::AddRule { chain: direction.name().to_owned(), rule });
        }
    }
    change
}

fn base_rules(direction: Direction) -> Vec<Rule> {
    let accept = || Statement::Verdict(Verdict::Accept);
    let mut rules = vec![vec![Statement::IsReply, accept()], vec![Statement::RelatedConnection, accept()]];
    for family in FAMILIES {
        let pair = Statement::InSet {
            keys: vec![Key::SourceAddress(family), Key::DestinationAddress(family)],
            set: selfs(family).to_owned(),
            is_member: true,
        };
        rules.push(vec![Statement::Family(family), pair, accept()]);
        let keys = vec![direction.own(family)];
        let map = direction.isolated(family).to_owned();
        rules.push(vec![Statement::Family(family), Statement::VerdictMap { keys, map }]);
    }
    rules
}

fn policy_chain(policy: &Policy, direction: Direction) -> String {
    format!("policy/{}/{}", policy.key, direction.name())
}

/// The chains of a Pod of this machine, asking these policies, which all select it.
pub(super) fn pod(pod: &PodFacts, policies: &[&Policy]) -> Rendered {
    let mut rendered = Rendered::default();
    for direction in super::model::DIRECTIONS {
        let isolating: Vec<&&Policy> =
            policies.iter().filter(|policy| policy.allowances(direction).is_some()).collect();
        if isolating.is_empty() {
            continue;
        }
        let chain = format!("pod/{}/{}", pod.key, direction.name());
        let ask = |policy: &&&Policy| vec![Statement::Verdict(Verdict::Jump(policy_chain(policy, direction)))];
        let mut rules: Vec<Rule> = isolating.iter().map(ask).collect();
        rules.push(vec![Statement::Verdict(Verdict::Drop)]);
        for address in &pod.addresses {
            let family = Family::of(*address);
            let verdict = Data::Verdict(Verdict::Goto(chain.clone()));
            rendered.add_element(direction.isolated(family), vec![Value::Address(*address)], Some(verdict));
            rendered.add_element(selfs(family), vec![Value::Address(*address), Value::Address(*address)], None);
        }
        rendered.chains.insert(chain, rules);
    }
    rendered
}

/// The chains and sets of a policy; `pods` are all of the cluster's.
pub(super) fn policy<'p>(policy: &Policy, pods: impl Iterator<Item = &'p PodFacts> + Clone) -> Rendered {
    let mut rendered = Rendered::default();
    for direction in super::model::DIRECTIONS {
        let Some(allowances) = policy.allowances(direction) else { continue };
        let chain = policy_chain(policy, direction);
        let mut rules = Vec::new();
        for (index, allowance) in allowances.iter().enumerate() {
            let part = Part { policy, direction, allowance, name: format!("{chain}/{index}") };
            rules.extend(part.rules(&mut rendered, pods.clone()));
        }
        rendered.chains.insert(chain, rules);
    }
    rendered
}

/// One allowance of a policy.
struct Part<'a> {
    policy: &'a Policy,
    direction: Direction,
    allowance: &'a Allowance,
    /// What its sets' names begin with.
    name: String,
}

impl Part<'_> {
    /// One rule for each pair of a peer's and a port's condition.
    fn rules<'p>(&self, rendered: &mut Rendered, pods: impl Iterator<Item = &'p PodFacts> + Clone) -> Vec<Rule> {
        let peers = self.peers(rendered, pods.clone());
        let mut rules = Vec::new();
        for (family, peer) in peers {
            for port in self.ports(family, rendered, pods.clone()) {
                let mut rule = family.map(Statement::Family).into_iter().collect::<Vec<_>>();
                rule.extend(peer.iter().cloned());
                rule.extend(port);
                rule.push(Statement::Verdict(Verdict::Accept));
                rules.push(rule);
            }
        }
        rules
    }

    /// Who is meant: a family, where the condition is about addresses, and statements.
    fn peers<'p>(
        &self,
        rendered: &mut Rendered,
        pods: impl Iterator<Item = &'p PodFacts> + Clone,
    ) -> Vec<(Option<Family>, Vec<Statement>)> {
        let Some(peers) = &self.allowance.peers else {
            // A named port is looked up together with an address.
            if self.allowance.has_named_ports() {
                return FAMILIES.map(|family| (Some(family), Vec::new())).into();
            }
            return vec![(None, Vec::new())];
        };
        let mut conditions = Vec::new();
        if self.allowance.is_of_pods() {
            let is_peer = |pod: &&PodFacts| peers.iter().any(|peer| peer.is(pod, &self.policy.key.namespace));
            let addresses: BTreeSet<_> = pods.filter(is_peer).flat_map(|pod| pod.addresses.iter().copied()).collect();
            for family in FAMILIES {
                let set = self.set(rendered, "peers", family, vec![Field::address(family)]);
                for address in addresses.iter().filter(|address| Family::of(**address) == family) {
                    rendered.add_element(set.clone(), vec![Value::Address(*address)], None);
                }
                let keys = vec![self.direction.peer(family)];
                conditions.push((Some(family), vec![Statement::InSet { keys, set, is_member: true }]));
            }
        }
        for peer in peers {
            let Peer::Block { range, except } = peer else { continue };
            let (address, prefix_len) = (range.network(), range.prefix_len());
            let is_egress = self.direction == Direction::Egress;
            let within = match self.direction {
                Direction::Ingress => Statement::SourceIn { address, prefix_len },
                Direction::Egress => Statement::DestinationIn { address, prefix_len },
            };
            let mut condition = if prefix_len == 0 { Vec::new() } else { vec![within] };
            condition.extend(except.iter().map(|except| Statement::NotIn {
                destination: is_egress,
                address: except.network(),
                prefix_len: except.prefix_len(),
            }));
            conditions.push((Some(Family::of(address)), condition));
        }
        conditions
    }

    fn ports<'p>(
        &self,
        family: Option<Family>,
        rendered: &mut Rendered,
        pods: impl Iterator<Item = &'p PodFacts> + Clone,
    ) -> Vec<Vec<Statement>> {
        let Some(ports) = &self.allowance.ports else { return vec![Vec::new()] };
        let mut conditions = Vec::new();
        for port in ports {
            match port {
                Port::All { protocol } => conditions.push(vec![Statement::Protocol(*protocol)]),
                Port::Numbers { protocol, first, last } => {
                    let (first, last) = (*first, *last);
                    conditions.push(vec![Statement::Protocol(*protocol), Statement::DestinationPortIn { first, last }]);
                }
                Port::Named { .. } => {}
            }
        }
        if let Some(family) = family.filter(|_| self.allowance.has_named_ports()) {
            conditions.push(vec![self.named(family, rendered, pods)]);
        }
        conditions
    }

    /// Named ports are other numbers in each Pod, so they are looked up by the destination's address.
    fn named<'p>(
        &self,
        family: Family,
        rendered: &mut Rendered,
        pods: impl Iterator<Item = &'p PodFacts>,
    ) -> Statement {
        let fields = vec![Field::address(family), Field::Proto, Field::Service];
        let set = self.set(rendered, "named", family, fields);
        let wanted: Vec<(&str, u8)> = (self.allowance.ports.iter().flatten())
            .filter_map(|port| match port {
                Port::Named { protocol, name } => Some((name.as_str(), *protocol)),
                Port::All { .. } | Port::Numbers { .. } => None,
            })
            .collect();
        for pod in pods.filter(|pod| self.direction == Direction::Egress || self.policy.selects(pod)) {
            for port in pod.ports.iter().filter(|port| wanted.contains(&(port.name.as_str(), port.protocol))) {
                for address in pod.addresses.iter().filter(|address| Family::of(**address) == family) {
                    let key = vec![Value::Address(*address), Value::Proto(port.protocol), Value::Port(port.number)];
                    rendered.add_element(set.clone(), key, None);
                }
            }
        }
        let keys = vec![Key::DestinationAddress(family), Key::L4Proto, Key::DestinationPort];
        Statement::InSet { keys, set, is_member: true }
    }

    fn set(&self, rendered: &mut Rendered, what: &str, family: Family, key: Vec<Field>) -> String {
        let number = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        let name = format!("{}/{what}{number}", self.name);
        rendered.sets.insert(name.clone(), Set { name: name.clone(), key, data: None, kind: SetKind::Exact });
        name
    }
}
