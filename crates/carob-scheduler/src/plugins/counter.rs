//! Amounts summed per topology domain, kept up to date by changes of one node at a time.

use std::collections::HashMap;
use std::num::NonZeroU32;

use crate::model::Str;
use crate::snapshot::{NodeSlot, NodeState, Snapshot};

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

/// Which domain of one topology key each node is in.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) key: Str,
    values: HashMap<Str, Domain>,
    of: Vec<Option<Domain>>,
}

impl Topology {
    fn of_all(key: &Str, snapshot: &Snapshot) -> Self {
        let mut topology = Self { key: key.clone(), values: HashMap::new(), of: vec![None; snapshot.slots()] };
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
        self.of[slot.index()] = node.and_then(|node| node.info.labels.get(&self.key)).map(|value| {
            let next = Domain::at(self.values.len());
            *self.values.entry(value.clone()).or_insert(next)
        });
    }
}

/// The topologies that one class counts by.
#[derive(Debug, Default)]
pub(crate) struct Topologies(Vec<Topology>);

impl Topologies {
    /// The index of the topology with this key, made if it is new.
    pub(crate) fn index(&mut self, key: &Str, snapshot: &Snapshot) -> usize {
        if let Some(index) = self.0.iter().position(|topology| topology.key == *key) {
            return index;
        }
        self.0.push(Topology::of_all(key, snapshot));
        self.0.len() - 1
    }

    pub(crate) fn get(&self, index: usize) -> &Topology {
        &self.0[index]
    }

    pub(crate) fn domain(&self, index: usize, slot: NodeSlot) -> Option<Domain> {
        self.0[index].domain(slot)
    }

    pub(crate) fn refresh(&mut self, slot: NodeSlot, node: Option<&NodeState>) {
        for topology in &mut self.0 {
            topology.refresh(slot, node);
        }
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
    total: i64,
    /// How many nodes have an amount other than zero.
    nonzero: usize,
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
            self.total -= amount;
        }
        if let Some(new) = domain {
            if self.sums.len() <= new.index() {
                self.sums.resize(new.index() + 1, 0);
                self.members.resize(new.index() + 1, 0);
            }
            self.sums[new.index()] += amount;
            self.members[new.index()] += 1;
            self.total += amount;
        }
    }

    pub(crate) fn add(&mut self, slot: NodeSlot, amount: i64) {
        self.reach(slot);
        let held = &mut self.amounts[slot.index()];
        self.nonzero -= usize::from(*held != 0);
        *held += amount;
        self.nonzero += usize::from(*held != 0);
        if let Some(domain) = self.counted[slot.index()] {
            self.sums[domain.index()] += amount;
            self.total += amount;
        }
    }

    /// The amount of one node, whether it counts or not.
    pub(crate) fn amount(&self, slot: NodeSlot) -> i64 {
        self.amounts.get(slot.index()).copied().unwrap_or(0)
    }

    pub(crate) fn sum(&self, domain: Domain) -> i64 {
        self.sums.get(domain.index()).copied().unwrap_or(0)
    }

    pub(crate) fn total(&self) -> i64 {
        self.total
    }

    /// Whether some node of the domain counts.
    pub(crate) fn has_members(&self, domain: Domain) -> bool {
        self.members.get(domain.index()).is_some_and(|members| *members > 0)
    }

    /// Whether every amount is zero.
    pub(crate) fn is_zero(&self) -> bool {
        self.nonzero == 0
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
        assert_eq!((counter.sum(a), counter.sum(b), counter.total()), (3, 1, 4));
        counter.place(one, Some(b));
        assert_eq!((counter.sum(a), counter.sum(b), counter.has_members(a)), (0, 4, false));
        counter.place(one, None);
        assert_eq!((counter.sum(b), counter.amount(one), counter.total()), (1, 3, 1));
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
