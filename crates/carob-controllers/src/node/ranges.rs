//! The cluster's Pod addresses, cut into ranges for Nodes, and which of them are taken. Pure.

use ipnet::IpNet;

/// Size of a Node's range (--node-cidr-mask-size-ipv4 and -ipv6).
const NODE_PREFIX_V4: u8 = 24;
const NODE_PREFIX_V6: u8 = 64;
/// Ranges that one cluster is cut into at most (cidrset, clusterSubnetMaxDiff); what is beyond them is not given away.
const RANGES_MAX: usize = 1 << 16;

/// One cluster range, cut.
pub(super) struct Ranges {
    cluster: IpNet,
    prefix: u8,
    /// By how many ranges of Nodes each is overlapped: one that was set by hand may have any size.
    taken: Vec<u32>,
    /// How many are not.
    free: usize,
    /// None before it is free.
    first_free: usize,
}

impl Ranges {
    pub(super) fn new(cluster: IpNet) -> Self {
        let longest = match cluster {
            IpNet::V4(_) => NODE_PREFIX_V4,
            IpNet::V6(_) => NODE_PREFIX_V6,
        };
        let prefix = longest.max(cluster.prefix_len());
        let bits = u32::from(prefix - cluster.prefix_len());
        let count = 1usize.checked_shl(bits).map_or(RANGES_MAX, |count| count.min(RANGES_MAX));
        Self { cluster: cluster.trunc(), prefix, taken: vec![0; count], free: count, first_free: 0 }
    }

    /// The first range that overlaps no other, which is taken from now on.
    pub(super) fn take(&mut self) -> Option<IpNet> {
        if self.free == 0 {
            return None;
        }
        let index = self.first_free + self.taken[self.first_free..].iter().position(|count| *count == 0)?;
        self.first_free = index;
        let range = self.range(index)?;
        self.occupy(range);
        Some(range)
    }

    pub(super) fn occupy(&mut self, range: IpNet) {
        for index in self.overlapped(range) {
            self.taken[index] = self.taken[index].saturating_add(1);
            self.free -= usize::from(self.taken[index] == 1);
        }
    }

    /// Answers whether anything is free now that was not.
    pub(super) fn release(&mut self, range: IpNet) -> bool {
        let before = self.free;
        for index in self.overlapped(range) {
            if self.taken[index] > 0 {
                self.taken[index] -= 1;
                self.free += usize::from(self.taken[index] == 0);
                self.first_free = self.first_free.min(index);
            }
        }
        self.free > before
    }

    fn range(&self, index: usize) -> Option<IpNet> {
        let shift = |width: u8| u32::from(width - self.prefix);
        match self.cluster {
            IpNet::V4(cluster) => {
                let offset = u32::try_from(index).ok()?.checked_shl(shift(32)).unwrap_or(0);
                let address = u32::from(cluster.addr()).checked_add(offset)?;
                Some(IpNet::V4(ipnet::Ipv4Net::new(address.into(), self.prefix).ok()?))
            }
            IpNet::V6(cluster) => {
                let offset = (index as u128).checked_shl(shift(128)).unwrap_or(0);
                let address = u128::from(cluster.addr()).checked_add(offset)?;
                Some(IpNet::V6(ipnet::Ipv6Net::new(address.into(), self.prefix).ok()?))
            }
        }
    }

    /// The indexes of what a range overlaps.
    fn overlapped(&self, range: IpNet) -> std::ops::Range<usize> {
        let (first, last) = match (self.cluster, range) {
            (IpNet::V4(cluster), IpNet::V4(range)) => {
                let base = u32::from(cluster.addr());
                if u32::from(range.broadcast()) < base || u32::from(range.network()) > u32::from(cluster.broadcast()) {
                    return 0..0;
                }
                let shift = u32::from(32 - self.prefix);
                let index = |address: u32| u128::from(address.saturating_sub(base).checked_shr(shift).unwrap_or(0));
                (index(u32::from(range.network())), index(u32::from(range.broadcast())))
            }
            (IpNet::V6(cluster), IpNet::V6(range)) => {
                let base = u128::from(cluster.addr());
                if u128::from(range.broadcast()) < base || u128::from(range.network()) > u128::from(cluster.broadcast())
                {
                    return 0..0;
                }
                let shift = u32::from(128 - self.prefix);
                let index = |address: u128| address.saturating_sub(base).checked_shr(shift).unwrap_or(0);
                (index(u128::from(range.network())), index(u128::from(range.broadcast())))
            }
            (IpNet::V4(_), IpNet::V6(_)) | (IpNet::V6(_), IpNet::V4(_)) => return 0..0,
        };
        let bound = |index: u128| usize::try_from(index).unwrap_or(usize::MAX).min(self.taken.len());
        bound(first)..bound(last.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    fn check(cluster: &str, taken: &[&str], expected: Option<&str>) {
        let mut ranges = Ranges::new(net(cluster));
        for range in taken {
            ranges.occupy(net(range));
        }
        assert_eq!(ranges.take(), expected.map(net), "{cluster} without {taken:?}");
    }

    #[test]
    fn the_first_range_that_overlaps_no_other_is_taken() {
        check("10.244.0.0/16", &[], Some("10.244.0.0/24"));
        check("10.244.0.0/16", &["10.244.0.0/24", "10.244.2.0/24"], Some("10.244.1.0/24"));
        check("10.244.0.0/16", &["10.244.0.0/23"], Some("10.244.2.0/24"));
        check("10.244.0.0/16", &["10.244.0.128/25"], Some("10.244.1.0/24"));
        check("10.244.0.0/16", &["10.0.0.0/8"], None);
        check("10.244.0.0/16", &["0.0.0.0/0"], None);
        check("10.244.0.0/16", &["10.243.255.0/24", "10.245.0.0/24", "fd00::/8"], Some("10.244.0.0/24"));
        check("10.244.0.0/24", &[], Some("10.244.0.0/24"));
        check("10.244.0.0/24", &["10.244.0.0/24"], None);
        check("10.244.0.0/26", &[], Some("10.244.0.0/26"));
        check("0.0.0.0/0", &[], Some("0.0.0.0/24"));
        check("255.255.255.255/32", &[], Some("255.255.255.255/32"));
        check("fd00::/48", &["fd00::/64"], Some("fd00:0:0:1::/64"));
        check("fd00::/8", &["fd00::/16"], None);
        check("::/0", &["::/64"], Some("0:0:0:1::/64"));
    }

    #[test]
    fn a_cluster_that_is_used_up_says_so_until_something_is_given_back() {
        let mut ranges = Ranges::new(net("10.0.0.0/16"));
        let all: Vec<IpNet> = std::iter::from_fn(|| ranges.take()).collect();
        assert_eq!((all.len(), ranges.take()), (256, None));
        assert!(!ranges.release(net("192.168.0.0/24")), "that was never ours");
        assert!(ranges.release(net("10.0.7.0/24")));
        assert_eq!((ranges.take(), ranges.take()), (Some(net("10.0.7.0/24")), None));
        ranges.occupy(net("10.0.0.0/23"));
        assert!(!ranges.release(net("10.0.1.0/24")), "another overlaps it still");
        assert!(ranges.release(net("10.0.0.0/23")));
        assert_eq!(ranges.take(), Some(net("10.0.1.0/24")));
    }

    #[test]
    fn a_huge_cluster_is_cut_into_a_bounded_number_of_ranges() {
        let mut ranges = Ranges::new(net("fd00::/16"));
        assert_eq!(std::iter::from_fn(|| ranges.take()).count(), RANGES_MAX);
    }
}
