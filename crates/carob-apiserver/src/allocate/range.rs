//! Which of a range's addresses and ports is given away next. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

/// Ranges of no more addresses or ports than this have no lower part that is given away last.
const UNDIVIDED_MAX: u128 = 16;
/// Addresses of one range that can be given away: a range of IPv6 has at most a /64 (`NewIPAllocator`).
const ADDRESSES_MAX: u128 = 1 << 64;

/// How large the lower part of a range is, which is left to what users choose: a share, within bounds (KEP-3070, KEP-3668).
#[derive(Debug, Clone, Copy)]
struct Division {
    share: u128,
    max: u128,
}

impl Division {
    /// `pkg/registry/core/service/ipallocator`, calculateRangeOffset.
    const OF_ADDRESSES: Self = Self { share: 16, max: 256 };
    /// `pkg/registry/core/service/portallocator`, calculateRangeOffset.
    const OF_PORTS: Self = Self { share: 32, max: 128 };

    fn lower_part(self, size: u128) -> u128 {
        if size <= UNDIVIDED_MAX { 0 } else { (size / self.share).clamp(UNDIVIDED_MAX, self.max) }
    }
}

/// The addresses of one range that Services can have: not the network's own, and of IPv4 not the one for broadcasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Range {
    is_ipv6: bool,
    first: u128,
    /// How many there are.
    size: u128,
    lower_part: u128,
}

impl Range {
    /// `None` where no address is left.
    pub(super) fn of(cidr: IpNet) -> Option<Self> {
        let is_ipv4 = cidr.network().is_ipv4();
        let host_bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
        let all = 1u128.checked_shl(host_bits).map_or(ADDRESSES_MAX, |all| all.min(ADDRESSES_MAX));
        let size = all.checked_sub(if is_ipv4 { 2 } else { 1 }).filter(|size| *size > 0)?;
        let lower_part = Division::OF_ADDRESSES.lower_part(all).min(size);
        Some(Self { is_ipv6: !is_ipv4, first: number(cidr.network()) + 1, size, lower_part })
    }

    pub(super) fn is_ipv4(&self) -> bool {
        !self.is_ipv6
    }

    pub(super) fn first(&self) -> IpAddr {
        self.address(0)
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let offset = number(address).checked_sub(self.first);
        address.is_ipv6() == self.is_ipv6 && offset.is_some_and(|offset| offset < self.size)
    }

    /// A free address; the lower part's come last.
    pub(super) fn any(&self, is_taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let found = any(self.size, self.lower_part, |offset| is_taken(self.address(offset)))?;
        Some(self.address(found))
    }

    fn address(&self, offset: u128) -> IpAddr {
        let number = self.first + offset;
        if self.is_ipv6 {
            IpAddr::V6(Ipv6Addr::from(number))
        } else {
            IpAddr::V4(Ipv4Addr::from(u32::try_from(number).expect("the offset lies in the range")))
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// A free port; the lower part's come last.
pub(super) fn any_port(range: &RangeInclusive<u16>, is_taken: impl Fn(u16) -> bool) -> Option<u16> {
    let size = u128::from(*range.end()).checked_sub(u128::from(*range.start()))? + 1;
    let port = |offset: u128| range.start() + u16::try_from(offset).expect("the offset lies in the range");
    any(size, Division::OF_PORTS.lower_part(size), |offset| is_taken(port(offset))).map(port)
}

/// A free offset below `size`, those below `lower_part` last.
fn any(size: u128, lower_part: u128, is_taken: impl Fn(u128) -> bool) -> Option<u128> {
    any_within(lower_part, size, &is_taken).or_else(|| any_within(0, lower_part, &is_taken))
}

/// Searched from a random place, so that a released one is not given away again at once. A step is made for each taken one at
/// most.
fn any_within(from: u128, to: u128, is_taken: impl Fn(u128) -> bool) -> Option<u128> {
    let count = to - from;
    let start = u128::from(carob_kit::random_u64()).checked_rem(count)?;
    (0..count).map(|step| from + (start + step) % count).find(|offset| !is_taken(*offset))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn range(cidr: &str) -> Option<Range> {
        Range::of(cidr.parse().expect("a test's range is valid"))
    }

    #[test]
    fn a_small_range_gives_each_address_away_once() {
        let range = range("10.0.0.0/29").expect("six addresses");
        let mut given = BTreeSet::new();
        while let Some(address) = range.any(|address| given.contains(&address)) {
            assert!(given.insert(address) && range.contains(address));
        }
        let expected: BTreeSet<IpAddr> = (1..=6).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        assert_eq!(given, expected, "neither the network's own nor the one for broadcasts");
        assert_eq!(range.first(), IpAddr::from([10, 0, 0, 1]));
        for other in ["10.0.0.0", "10.0.0.7", "10.0.0.8", "9.255.255.255", "::a00:1"] {
            assert!(!range.contains(other.parse().expect("an address")), "{other}");
        }
    }

    #[test]
    fn ranges_without_usable_addresses_have_none() {
        for (cidr, size) in [
            ("10.0.0.0/32", None),
            ("10.0.0.0/31", None),
            ("10.0.0.0/30", Some(2)),
            ("fd00::/128", None),
            ("fd00::/127", Some(1)),
            ("0.0.0.0/0", Some((1 << 32) - 2)),
            ("fd00::/64", Some((1 << 64) - 1)),
            ("::/0", Some((1 << 64) - 1)),
        ] {
            assert_eq!(range(cidr).map(|range| range.size), size, "{cidr}");
        }
        let large = range("fd00::/64").expect("many addresses");
        assert!(large.contains("fd00::ffff:ffff:ffff:ffff".parse().expect("an address")));
        assert!(large.any(|_| false).is_some_and(|address| large.contains(address)));
    }

    #[test]
    fn the_lower_part_is_given_away_last() {
        // As in upstream's tests of calculateRangeOffset.
        for (cidr, lower) in [("10.0.0.0/28", 0), ("10.0.0.0/27", 16), ("10.0.0.0/23", 32), ("10.0.0.0/16", 256)] {
            assert_eq!(range(cidr).map(|range| range.lower_part), Some(lower), "{cidr}");
        }
        let mut taken = BTreeSet::new();
        for round in 0..32 {
            let port = any_port(&(30000..=30031), |port| taken.contains(&port)).expect("one is free");
            assert_eq!(port >= 30016, round < 16, "{port} in round {round}");
            taken.insert(port);
        }
        assert_eq!(any_port(&(30000..=30031), |port| taken.contains(&port)), None);
    }
}
