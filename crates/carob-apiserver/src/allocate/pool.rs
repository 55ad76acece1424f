//! Sets of addresses and ports of which each is given away once.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard};

use ipnet::IpNet;

/// Addresses that one range gives away at most (pkg/registry/core/service/ipallocator: bitmaps of 64 Ki).
const ADDRESSES_MAX: u32 = 1 << 16;
/// The lower part of a range is left to addresses that users choose: between 16 and 256 of them, a sixteenth of the range
/// (KEP-3070).
const STATIC_BAND_MIN: u32 = 16;
const STATIC_BAND_MAX: u32 = 256;

/// Why a chosen address or port cannot be had; worded as upstream's allocators.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PoolError {
    #[error("provided IP is already allocated")]
    AddressTaken,
    #[error("the provided IP ({address}) is not in the valid range. The range of valid IPs is {cidr}")]
    AddressOutside { address: IpAddr, cidr: IpNet },
    #[error("range is full")]
    Full,
    #[error("provided port is already allocated")]
    PortTaken,
    #[error("provided port is not in the valid range. The range of valid ports is {}-{}", range.start(), range.end())]
    PortOutside { range: RangeInclusive<u16> },
}

/// Offsets of which each is taken once.
#[derive(Debug)]
struct Offsets {
    /// How many offsets there are.
    size: u32,
    /// Offsets below this are given away last.
    band: u32,
    taken: Mutex<BTreeSet<u32>>,
}

impl Offsets {
    fn new(size: u32) -> Self {
        let band =
            if size < STATIC_BAND_MIN { 0 } else { (size / 16).clamp(STATIC_BAND_MIN, STATIC_BAND_MAX).min(size) };
        Self { size, band, taken: Mutex::new(BTreeSet::new()) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.taken.lock().expect("no holder of a pool panics")
    }

    fn take(&self, offset: u32) -> bool {
        self.lock().insert(offset)
    }

    /// A free offset, searched from a random place, so that a released one is not given away again at once.
    fn any(&self) -> Option<u32> {
        let mut taken = self.lock();
        let dynamic = self.size - self.band;
        let start =
            if dynamic == 0 { 0 } else { u32::try_from(carob_kit::random_u64() % u64::from(dynamic)).unwrap_or(0) };
        let candidates = (0..dynamic).map(|step| self.band + (start + step) % dynamic).chain(0..self.band);
        let free = candidates.into_iter().find(|offset| !taken.contains(offset))?;
        taken.insert(free);
        Some(free)
    }

    fn give_back(&self, offset: u32) {
        self.lock().remove(&offset);
    }
}

/// The usable addresses of one range.
#[derive(Debug)]
pub(super) struct Addresses {
    cidr: IpNet,
    offsets: Offsets,
}

impl Addresses {
    /// `None` when the range has no usable address. Offset 0 is the address after the network's own; it is never given away
    /// by chance, since it is the API Service's.
    pub(super) fn new(cidr: IpNet) -> Option<Self> {
        let host_bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
        let all = 1u32.checked_shl(host_bits).map_or(ADDRESSES_MAX, |all| all.min(ADDRESSES_MAX));
        // The network's own address is never used, nor is the broadcast address of an IPv4 range.
        let unusable = if cidr.addr().is_ipv4() { 2 } else { 1 };
        let size = all.checked_sub(unusable).filter(|size| *size > 0)?;
        let offsets = Offsets::new(size);
        offsets.take(0);
        Some(Self { cidr: cidr.trunc(), offsets })
    }

    pub(super) fn is_ipv4(&self) -> bool {
        self.cidr.addr().is_ipv4()
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address)
    }

    pub(super) fn first(&self) -> IpAddr {
        self.address(0)
    }

    pub(super) fn any(&self) -> Result<IpAddr, PoolError> {
        self.offsets.any().map(|offset| self.address(offset)).ok_or(PoolError::Full)
    }

    pub(super) fn chosen(&self, address: IpAddr) -> Result<(), PoolError> {
        let outside = PoolError::AddressOutside { address, cidr: self.cidr };
        let offset = self.offset(address).ok_or(outside)?;
        if self.offsets.take(offset) { Ok(()) } else { Err(PoolError::AddressTaken) }
    }

    pub(super) fn take(&self, address: IpAddr) {
        if let Some(offset) = self.offset(address) {
            self.offsets.take(offset);
        }
    }

    pub(super) fn give_back(&self, address: IpAddr) {
        if let Some(offset) = self.offset(address).filter(|offset| *offset > 0) {
            self.offsets.give_back(offset);
        }
    }

    fn address(&self, offset: u32) -> IpAddr {
        let step = u128::from(offset) + 1;
        match self.cidr.network() {
            IpAddr::V4(base) => {
                let number = u128::from(u32::from(base)) + step;
                IpAddr::V4(Ipv4Addr::from(u32::try_from(number).expect("the offset lies in the range")))
            }
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from(u128::from(base) + step)),
        }
    }

    fn offset(&self, address: IpAddr) -> Option<u32> {
        let number = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        };
        if !self.cidr.contains(&address) {
            return None;
        }
        let step = number(address).checked_sub(number(self.cidr.network()))?.checked_sub(1)?;
        u32::try_from(step).ok().filter(|offset| *offset < self.offsets.size)
    }
}

/// Node ports.
#[derive(Debug)]
pub(super) struct Ports {
    range: RangeInclusive<u16>,
    offsets: Offsets,
}

impl Ports {
    pub(super) fn new(range: RangeInclusive<u16>) -> Self {
        let size = u32::from(*range.end()).saturating_sub(u32::from(*range.start())) + 1;
        Self { offsets: Offsets::new(size), range }
    }

    pub(super) fn any(&self) -> Result<u16, PoolError> {
        let offset = self.offsets.any().ok_or(PoolError::Full)?;
        Ok(self.range.start() + u16::try_from(offset).expect("the offset lies in the range"))
    }

    pub(super) fn chosen(&self, port: u16) -> Result<(), PoolError> {
        let offset = self.offset(port).ok_or(PoolError::PortOutside { range: self.range.clone() })?;
        if self.offsets.take(offset) { Ok(()) } else { Err(PoolError::PortTaken) }
    }

    pub(super) fn take(&self, port: u16) {
        if let Some(offset) = self.offset(port) {
            self.offsets.take(offset);
        }
    }

    pub(super) fn give_back(&self, port: u16) {
        if let Some(offset) = self.offset(port) {
            self.offsets.give_back(offset);
        }
    }

    fn offset(&self, port: u16) -> Option<u32> {
        self.range.contains(&port).then(|| u32::from(port - self.range.start()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidr: &str) -> Option<Addresses> {
        Addresses::new(cidr.parse().expect("a test's range is valid"))
    }

    #[test]
    fn a_small_range_gives_each_address_away_once() {
        let pool = pool("10.0.0.0/29").expect("six addresses");
        let mut given: Vec<IpAddr> = std::iter::from_fn(|| pool.any().ok()).collect();
        given.sort();
        let expected: Vec<IpAddr> = (2..=6).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        assert_eq!(given, expected, "the first is the API's, the last the broadcast address");
        assert_eq!(pool.any(), Err(PoolError::Full));
        pool.give_back(given[0]);
        assert_eq!(pool.any(), Ok(given[0]));
        pool.give_back(pool.first());
        assert_eq!(pool.any(), Err(PoolError::Full), "the API's address is never free");
    }

    #[test]
    fn chosen_addresses_are_checked() {
        let pool = pool("fd00::/112").expect("many addresses");
        assert_eq!(pool.chosen("fd00::7".parse().expect("valid")), Ok(()));
        assert_eq!(pool.chosen("fd00::7".parse().expect("valid")), Err(PoolError::AddressTaken));
        let outside = pool.chosen("fd01::1".parse().expect("valid")).unwrap_err();
        assert_eq!(
            outside.to_string(),
            "the provided IP (fd01::1) is not in the valid range. The range of valid IPs is fd00::/112"
        );
    }

    #[test]
    fn ranges_without_usable_addresses_are_refused() {
        assert!(pool("10.0.0.0/32").is_none() && pool("10.0.0.0/31").is_none());
        assert!(pool("10.0.0.0/30").is_some());
    }

    #[test]
    fn the_low_band_is_given_away_last() {
        let ports = Ports::new(30000..=30031);
        let first: Vec<u16> = (0..16).map(|_| ports.any().expect("free")).collect();
        assert!(first.iter().all(|port| *port >= 30016), "{first:?}");
        assert!(ports.any().expect("free") < 30016);
        assert_eq!(
            ports.chosen(29999).unwrap_err().to_string(),
            "provided port is not in the valid range. The range of valid ports is 30000-30031"
        );
    }
}
