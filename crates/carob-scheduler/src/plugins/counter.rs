//! Amounts summed per topology domain, kept up to date by changes of one node at a time.

use std::collections::HashMap;
use std::num::NonZeroU32;

use crate::model::Str;
use crate::snapshot::{Change, NodeSlot, NodeState, Snapshot};

/// The label whose domains are single nodes.
pub(crate) const HOSTNAME: &str = "kubernetes.io/hostname";

/// A domain of one topology: a value of its label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Domain(NonZeroU32);

impl Domain {
    pub(crate) fn index(self) -> usize {
        self.0.get() as usize - 1
    }

    fn at(index: usize) -> Self {
        let number = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        Self(number.expect("there are fewer than 2^32 domains"))
    }
}

/// Which domain of one topology key each node is in. The number of a domain that no node is in any more is given to the
/// next new one, so that nodes that come and go do not make tables grow.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) key: Str,
    domains: HashMap<Str, Domain>,
    /// By domain: its value and how many nodes are in it.
    members: Vec<(Str, u32)>,
    free: Vec<Domain>,
    of: Vec<Option<Domain>>,
}

impl Topology {
    fn of_all(key: &Str, snapshot: &Snapshot) -> Self {
        let mut topology = Self {
            key: key.clone(),
            domains: HashMap::new(),
            members: Vec::new(),
            free: Vec::new(),
            of: vec![None; snapshot.slots()],
        };
        for (slot, node) in snapshot.nodes() {
            topology.refresh(slot, Some(node));
        }
        topology
    }

    /// None where the node lacks the label, or came after the last change that was taken in.
    pub(crate) fn domain(&self, slot: NodeSlot) -> Option<Domain> {
        self.of.get(slot.index()).copied().flatten()
    }

    fn refresh(&mut self, slot: NodeSlot, node: Option<&NodeState>) {
        if self.of.len() <= slot.index() {
            self.of.resize(slot.index() + 1, None);
        }
        let value = node.and_then(|node| node.info.labels.get(&self.key));
        let old = self.of[slot.index()];
        if old.map(|domain| &self.members[domain.index()].0) == value {
            return;
        }
        if let Some(old) = old {
            self.leave(old);
        }
        self.of[slot.index()] = value.map(|value| self.enter(value));
    }

    fn enter(&mut self, value: &Str) -> Domain {
        if let Some(domain) = self.domains.get(value) {
            self.members[domain.index()].1 += 1;
            return *domain;
        }
        let domain = self.free.pop().unwrap_or_else(|| Domain::at(self.members.len()));
        let member = (value.clone(), 1);
        if domain.index() == self.members.len() {
            self.members.push(member);
        } else {
            self.members[domain.index()] = member;
        }
        self.domains.insert(value.clone(), domain);
        domain
    }

    fn leave(&mut self, domain: Domain) {
        let (value, members) = &mut self.members[domain.index()];
        *members -= 1;
        if *members == 0 {
            self.domains.remove(value);
            self.free.push(domain);
        }
    }
}

/// The topologies that classes count by, shared by all of them. Whoever counts by domains catches up with the same changes
/// of nodes before it is used, so that a number that changed its meaning is seen as a node that moved.
#[derive(Debug, Default)]
pub(crate) struct Topologies {
    all: Vec<Topology>,
    /// The sequence of the last change that was taken in.
    seen: u64,
}

impl Topologies {
    /// The index of the topology with this key, made if it is new.
    pub(crate) fn index(&mut self, key: &Str, snapshot: &Snapshot) -> usize {
        if let Some(index) = self.all.iter().position(|topology| topology.key == *key) {
            return index;
        }
        self.all.push(Topology::of_all(key, snapshot));
        self.all.len() - 1
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn get(&self, index: usize) -> &Topology {
        &self.all[index]
    }

    pub(crate) fn domain(&self, index: usize, slot: NodeSlot) -> Option<Domain> {
        self.all[index].domain(slot)
    }

    /// Takes in which nodes changed.
    pub(crate) fn catch_up(&mut self, snapshot: &Snapshot) {
        match snapshot.changes_after(self.seen) {
            Some(changes) => {
                for change in changes {
                    if let Change::Node(slot) = change {
                        self.all.iter_mut().for_each(|topology| topology.refresh(*slot, snapshot.node(*slot)));
                    }
                }
            }
            // Whoever counts by domains has fallen behind as far, and starts again too.
            None => self.all.iter_mut().for_each(|topology| *topology = Topology::of_all(&topology.key, snapshot)),
        }
        self.seen = snapshot.sequence();
    }
}

/// Amounts of the few nodes that have any, summed per domain.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    places: HashMap<NodeSlot, (Option<Domain>, i64)>,
    /// By domain.
    sums: Vec<i64>,
    total: i64,
}

impl Tally {
    /// Adds to the amount of a node that is in this domain now.
    pub(crate) fn add(&mut self, slot: NodeSlot, domain: Option<Domain>, amount: i64) {
        self.place(slot, domain);
        let held = self.places.get(&slot).map_or(0, |(_, held)| *held);
        self.count(domain, amount);
        match held + amount {
            0 => drop(self.places.remove(&slot)),
            sum => drop(self.places.insert(slot, (domain, sum))),
        }
    }

    /// Moves a node's amount to the domain that it is in now.
    pub(crate) fn place(&mut self, slot: NodeSlot, domain: Option<Domain>) {
        let Some((old, amount)) = self.places.get(&slot).copied().filter(|(old, _)| *old != domain) else { return };
        self.count(old, -amount);
        self.count(domain, amount);
        self.places.insert(slot, (domain, amount));
    }

    fn count(&mut self, domain: Option<Domain>, amount: i64) {
        let Some(domain) = domain else { return };
        if self.sums.len() <= domain.index() {
            self.sums.resize(domain.index() + 1, 0);
        }
        self.sums[domain.index()] += amount;
        self.total += amount;
    }

    pub(crate) fn sum(&self, domain: Domain) -> i64 {
        self.sums.get(domain.index()).copied().unwrap_or(0)
    }

    /// The sum of the nodes that are in any domain.
    pub(crate) fn total(&self) -> i64 {
        self.total
    }

    /// Whether every amount is zero.
    pub(crate) fn is_zero(&self) -> bool {
        self.places.is_empty()
    }

    /// About how much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.sums.capacity() * size_of::<i64>() + self.places.capacity() * size_of::<(NodeSlot, (u32, i64))>()
    }
}

/// An amount per node, summed over the nodes of each domain that count.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    amounts: Vec<i64>,
    /// The domain that each node's amount is summed in; none for nodes that do not count.
    counted: Vec<Option<Domain>>,
    sums: Vec<i64>,
    members: Vec<u32>,
}

/// The two least sums and the domain of the least, so that the least of all but one domain is known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lowest {
    domain: Option<Domain>,
    least: Option<i64>,
    next: Option<i64>,
    pub(crate) domains: usize,
}

impl Lowest {
    /// The least sum when `domain`'s is `sum`, whatever it was when this was computed.
    pub(crate) fn with(&self, domain: Option<(Domain, i64)>) -> i64 {
        let others = match domain {
            Some((domain, _)) if self.domain == Some(domain) => self.next,
            _ => self.least,
        };
        others.into_iter().chain(domain.map(|(_, sum)| sum)).min().unwrap_or(0)
    }
}

impl Counter {
    /// Moves a node's amount to where it counts now.
    pub(crate) fn place(&mut self, slot: NodeSlot, domain: Option<Domain>) {
        self.reach(slot);
        let old = std::mem::replace(&mut self.counted[slot.index()], domain);
        if old == domain {
            return;
        }
        let amount = self.amounts[slot.index()];
        if let Some(old) = old {
            self.sums[old.index()] -= amount;
            self.members[old.index()] -= 1;
        }
        if let Some(new) = domain {
            if self.sums.len() <= new.index() {
                self.sums.resize(new.index() + 1, 0);
                self.members.resize(new.index() + 1, 0);
            }
            self.sums[new.index()] += amount;
            self.members[new.index()] += 1;
        }
    }

    pub(crate) fn add(&mut self, slot: NodeSlot, amount: i64) {
        self.reach(slot);
        self.amounts[slot.index()] += amount;
        if let Some(domain) = self.counted[slot.index()] {
            self.sums[domain.index()] += amount;
        }
    }

    /// The amount of one node, whether it counts or not.
    pub(crate) fn amount(&self, slot: NodeSlot) -> i64 {
        self.amounts.get(slot.index()).copied().unwrap_or(0)
    }

    pub(crate) fn sum(&self, domain: Domain) -> i64 {
        self.sums.get(domain.index()).copied().unwrap_or(0)
    }

    /// Whether some node of the domain counts.
    pub(crate) fn has_members(&self, domain: Domain) -> bool {
        self.members.get(domain.index()).is_some_and(|members| *members > 0)
    }

    /// About how much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.amounts.capacity() * (size_of::<i64>() + size_of::<Option<Domain>>())
            + self.sums.capacity() * (size_of::<i64>() + size_of::<u32>())
    }

    pub(crate) fn lowest(&self) -> Lowest {
        let mut lowest = Lowest::default();
        for (index, sum) in self.sums.iter().enumerate().filter(|(index, _)| self.members[*index] > 0) {
            lowest.domains += 1;
            if lowest.least.is_none_or(|least| *sum < least) {
                lowest.next = lowest.least;
                lowest.least = Some(*sum);
                lowest.domain = Some(Domain::at(index));
            } else if lowest.next.is_none_or(|next| *sum < next) {
                lowest.next = Some(*sum);
            }
        }
        lowest
    }

    fn reach(&mut self, slot: NodeSlot) {
        if self.amounts.len() <= slot.index() {
            self.amounts.resize(slot.index() + 1, 0);
            self.counted.resize(slot.index() + 1, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_follow_their_node() {
        let (a, b) = (Domain::at(0), Domain::at(1));
        let (one, two) = (NodeSlot::at(0), NodeSlot::at(1));
        let mut counter = Counter::default();
        counter.place(one, Some(a));
        counter.place(two, Some(b));
        counter.add(one, 3);
        counter.add(two, 1);
        assert_eq!((counter.sum(a), counter.sum(b)), (3, 1));
        counter.place(one, Some(b));
        assert_eq!((counter.sum(a), counter.sum(b), counter.has_members(a)), (0, 4, false));
        counter.place(one, None);
        assert_eq!((counter.sum(b), counter.amount(one)), (1, 3));
    }

    #[test]
    fn a_tally_follows_its_nodes_and_forgets_those_without_an_amount() {
        let (a, b) = (Domain::at(0), Domain::at(1));
        let (one, two) = (NodeSlot::at(0), NodeSlot::at(1));
        let mut tally = Tally::default();
        tally.add(one, Some(a), 3);
        tally.add(two, None, 2);
        assert_eq!((tally.sum(a), tally.sum(b), tally.total()), (3, 0, 3));
        tally.place(one, Some(b));
        tally.place(two, Some(b));
        assert_eq!((tally.sum(a), tally.sum(b), tally.total()), (0, 5, 5));
        tally.add(one, Some(b), -3);
        tally.add(two, Some(a), -2);
        assert!(tally.is_zero());
        assert_eq!((tally.sum(a), tally.sum(b), tally.total()), (0, 0, 0));
    }

    #[test]
    fn nodes_that_come_and_go_reuse_the_numbers_of_domains() {
        let mut snapshot = Snapshot::default();
        let mut topologies = Topologies::default();
        let index = topologies.index(&HOSTNAME.into(), &snapshot);
        for round in 0..100 {
            let name = format!("n{round}");
            let mut info = crate::testing::node(&name, 1, 1);
            info.labels = [(HOSTNAME, name.as_str())].into_iter().collect();
            let slot = snapshot.set_node(info);
            topologies.catch_up(&snapshot);
            assert_eq!(topologies.domain(index, slot), Some(Domain::at(0)), "round {round}");
            snapshot.remove_node(&name);
            topologies.catch_up(&snapshot);
            assert_eq!(topologies.domain(index, slot), None);
        }
    }

    #[test]
    fn the_lowest_is_known_without_one_domain() {
        let mut counter = Counter::default();
        for (domain, amount) in [5, 2, 3].into_iter().enumerate() {
            counter.place(NodeSlot::at(domain), Some(Domain::at(domain)));
            counter.add(NodeSlot::at(domain), amount);
        }
        let lowest = counter.lowest();
        assert_eq!(lowest.domains, 3);
        assert_eq!(lowest.with(None), 2);
        assert_eq!(lowest.with(Some((Domain::at(1), 9))), 3);
        assert_eq!(lowest.with(Some((Domain::at(0), 1))), 1);
        assert_eq!(Lowest::default().with(None), 0);
    }
}
