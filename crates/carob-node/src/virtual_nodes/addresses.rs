//! The addresses of Pods on virtual nodes: a range a node, an address a Pod. Nothing listens on them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Addresses of a range that no Pod gets: the network's, the node's own, the broadcast address.
const NOT_FOR_PODS: usize = 3;
/// Pods that may keep their address while others take their place on the node, as they do between exit and removal.
const SPARE: usize = 13;

/// The prefix of ranges that hold `pods_max` Pods.
pub(super) fn prefix_for(pods_max: usize) -> u8 {
    let bits = (pods_max + NOT_FOR_PODS + SPARE).next_power_of_two().trailing_zeros();
    32 - u8::try_from(bits).unwrap_or(32)
}

/// The next range of `pod_cidr` with `prefix` that overlaps none of `taken`, one after the other.
pub(super) fn free_ranges(pod_cidr: Ipv4Net, prefix: u8, taken: &[Ipv4Net]) -> impl Iterator<Item = Ipv4Net> {
    let ranges = pod_cidr.subnets(prefix).ok().into_iter().flatten();
    ranges.filter(|range| !taken.iter().any(|other| other.contains(range) || range.contains(other)))
}

/// The address of the node itself.
pub(super) fn of_node(range: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(range.network()).saturating_add(1))
}

/// What of one node's range is in use.
#[derive(Debug)]
pub(super) struct Addresses {
    range: Ipv4Net,
    used: BTreeSet<u32>,
    /// Where the search goes on, so that an address rests before it is given again.
    next: u32,
}

impl Addresses {
    pub(super) fn new(range: Ipv4Net) -> Self {
        let first = u32::from(range.network()).saturating_add(2);
        Self { range, used: BTreeSet::new(), next: first }
    }

    /// A free address; `None` when all are in use.
    pub(super) fn take(&mut self) -> Option<Ipv4Addr> {
        let (first, last) = (u32::from(self.range.network()) + 2, u32::from(self.range.broadcast()).checked_sub(1)?);
        let free = |address: &u32| !self.used.contains(address);
        let found = (self.next..=last).chain(first..self.next).find(free)?;
        self.next = if found == last { first } else { found + 1 };
        self.used.insert(found);
        Some(Ipv4Addr::from(found))
    }

    /// Notes an address that a Pod has already.
    pub(super) fn keep(&mut self, address: Ipv4Addr) {
        if self.range.contains(&address) {
            self.used.insert(u32::from(address));
        }
    }

    pub(super) fn give_back(&mut self, address: Ipv4Addr) {
        self.used.remove(&u32::from(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().expect("a range")
    }

    #[test]
    fn ranges_are_as_large_as_the_node() {
        for (pods, prefix) in [(0, 28), (1, 27), (16, 27), (110, 25), (112, 25), (113, 24), (250, 23)] {
            assert_eq!(prefix_for(pods), prefix, "{pods} Pods");
        }
    }

    #[test]
    fn ranges_that_are_taken_are_left_out() {
        let taken = [net("240.0.0.0/24"), net("240.0.1.128/25")];
        let found: Vec<String> = free_ranges(net("240.0.0.0/23"), 25, &taken).map(|range| range.to_string()).collect();
        assert_eq!(found, ["240.0.1.0/25"]);
        assert_eq!(free_ranges(net("240.0.0.0/30"), 25, &[]).count(), 0);
    }

    #[test]
    fn addresses_are_given_once_and_rest_before_they_return() {
        let mut addresses = Addresses::new(net("240.0.0.0/29"));
        assert_eq!(of_node(net("240.0.0.0/29")).to_string(), "240.0.0.1");
        addresses.keep("240.0.0.3".parse().expect("an address"));
        addresses.keep("10.0.0.3".parse().expect("an address"));
        let mut take = || addresses.take().map(|address| address.octets()[3]);
        assert_eq!([take(), take(), take()], [Some(2), Some(4), Some(5)]);
        addresses.give_back("240.0.0.2".parse().expect("an address"));
        let mut take = || addresses.take().map(|address| address.octets()[3]);
        assert_eq!([take(), take(), take()], [Some(6), Some(2), None]);
    }
}
