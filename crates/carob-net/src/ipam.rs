//! Which address is whose. Pure: time is passed in, and what is in use comes from the records.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

/// How long a released address rests while others are free: longer than the caches of DNS and of connections that
/// still lead to its former owner (kernel: TIME_WAIT is 60 s).
pub(crate) const REUSE_DELAY: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    #[error("Pod CIDR {cidr} is too small: it has no address left for a Pod beside network, gateway and broadcast")]
    TooSmall { cidr: IpNet },
    #[error("Pod CIDRs {first} and {second} are of the same family; a node has at most one of each")]
    SameFamily { first: IpNet, second: IpNet },
    #[error("all {capacity} addresses of Pod CIDR {cidr} are in use")]
    Exhausted { cidr: IpNet, capacity: u128 },
}

/// The addresses of one CIDR, as numbers.
#[derive(Debug, Clone)]
struct Pool {
    cidr: IpNet,
    /// Of addresses for Pods; the one before `first` is the gateway's.
    first: u128,
    last: u128,
    /// Where the search for a free address goes on: behind the one given out last, so that addresses come round late.
    next: u128,
    used: BTreeSet<u128>,
    /// Released addresses, the one that rests longest first. Bounded by `used`'s past size and the delay: entries that
    /// are due are dropped on every release.
    resting: VecDeque<(u128, Duration)>,
}

/// The addresses of a node, one pool for each of its Pod CIDRs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ipam {
    pools: Vec<Pool>,
}

impl Ipam {
    pub(crate) fn new(cidrs: &[IpNet]) -> Result<Self, IpamError> {
        if let [first, second, ..] = cidrs
            && first.addr().is_ipv4() == second.addr().is_ipv4()
        {
            return Err(IpamError::SameFamily { first: *first, second: *second });
        }
        Ok(Self { pools: cidrs.iter().map(|cidr| Pool::new(*cidr)).collect::<Result<_, _>>()? })
    }

    pub(crate) fn cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.pools.iter().map(|pool| pool.cidr)
    }

    /// The first address of each CIDR.
    pub(crate) fn gateways(&self) -> Vec<IpAddr> {
        self.pools.iter().map(|pool| pool.address(pool.first - 1)).collect()
    }

    /// One address of each CIDR, or none of any.
    pub(crate) fn allocate(&mut self, now: Duration) -> Result<Vec<IpAddr>, IpamError> {
        let found: Vec<u128> = self.pools.iter_mut().map(|pool| pool.find(now)).collect::<Result<_, _>>()?;
        Ok(self.pools.iter_mut().zip(found).map(|(pool, number)| pool.take(number)).collect())
    }

    /// Marks an address of a record as in use. One outside all CIDRs belonged to an earlier CIDR and needs no mark.
    pub(crate) fn reserve(&mut self, address: IpAddr) {
        if let Some(pool) = self.pool_of(address) {
            pool.take(number(address));
        }
    }

    pub(crate) fn release(&mut self, address: IpAddr, now: Duration) {
        if let Some(pool) = self.pool_of(address) {
            pool.release(number(address), now);
        }
    }

    fn pool_of(&mut self, address: IpAddr) -> Option<&mut Pool> {
        self.pools.iter_mut().find(|pool| pool.cidr.contains(&address))
    }
}

impl Pool {
    fn new(cidr: IpNet) -> Result<Self, IpamError> {
        let cidr = cidr.trunc();
        // The network's own address and, with IPv4, the last one (broadcast) name no host (RFC 1122, RFC 4291 2.6.1).
        let top = number(cidr.broadcast()) - u128::from(cidr.addr().is_ipv4());
        let first = number(cidr.network()).saturating_add(2);
        if first > top || cidr.max_prefix_len() - cidr.prefix_len() < 2 {
            return Err(IpamError::TooSmall { cidr });
        }
        Ok(Self { cidr, first, last: top, next: first, used: BTreeSet::new(), resting: VecDeque::new() })
    }

    fn capacity(&self) -> u128 {
        self.last - self.first + 1
    }

    /// The next free address that does not rest; if all free ones do, the one that has rested longest.
    fn find(&mut self, now: Duration) -> Result<u128, IpamError> {
        self.wake(now);
        let is_free =
            |number: &u128| !self.used.contains(number) && !self.resting.iter().any(|(resting, _)| resting == number);
        // Of this many candidates one must be free, if any is.
        let tries = (self.used.len() + self.resting.len() + 1) as u128;
        let candidates = (self.next..=self.last).chain(self.first..self.next);
        if let Some(number) =
            candidates.take(usize::try_from(tries.min(self.capacity())).unwrap_or(usize::MAX)).find(is_free)
        {
            return Ok(number);
        }
        match self.resting.front() {
            Some((number, _)) => Ok(*number),
            None => Err(IpamError::Exhausted { cidr: self.cidr, capacity: self.capacity() }),
        }
    }

    fn take(&mut self, number: u128) -> IpAddr {
        self.resting.retain(|(resting, _)| *resting != number);
        self.used.insert(number);
        self.next = if number >= self.last { self.first } else { number + 1 };
        self.address(number)
    }

    fn release(&mut self, number: u128, now: Duration) {
        self.wake(now);
        if self.used.remove(&number) {
            self.resting.push_back((number, now));
        }
    }

    fn wake(&mut self, now: Duration) {
        while self.resting.front().is_some_and(|(_, since)| now.saturating_sub(*since) >= REUSE_DELAY) {
            self.resting.pop_front();
        }
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.cidr {
            // An IPv4 pool holds numbers below 2^32 only.
            IpNet::V4(_) => IpAddr::from(u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes()),
            IpNet::V6(_) => IpAddr::from(number.to_be_bytes()),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::ZERO;

    fn ipam(cidrs: &[&str]) -> Ipam {
        Ipam::new(&cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect::<Vec<_>>()).unwrap()
    }

    fn next(ipam: &mut Ipam, now: Duration) -> String {
        ipam.allocate(now).map_or_else(
            |error| error.to_string(),
            |ips| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        )
    }

    #[test]
    fn each_family_gives_one_address_behind_its_gateway() {
        let mut ipam = ipam(&["10.244.3.0/24", "fd00:3::/64"]);
        let gateways: Vec<IpAddr> = ["10.244.3.1", "fd00:3::1"].map(|ip| ip.parse().unwrap()).to_vec();
        assert_eq!(ipam.gateways(), gateways);
        assert_eq!(next(&mut ipam, START), "10.244.3.2,fd00:3::2");
        assert_eq!(next(&mut ipam, START), "10.244.3.3,fd00:3::3");
    }

    #[test]
    fn a_full_pool_says_so_and_takes_nothing_from_the_others() {
        let mut ipam = ipam(&["10.0.0.0/29", "fd00::/64"]);
        let all: Vec<String> = (0..5).map(|_| next(&mut ipam, START)).collect();
        assert_eq!(all.last().unwrap(), "10.0.0.6,fd00::6", "10.0.0.7 is the broadcast address");
        assert_eq!(next(&mut ipam, START), "all 5 addresses of Pod CIDR 10.0.0.0/29 are in use");
        ipam.release("10.0.0.4".parse().unwrap(), START);
        assert_eq!(next(&mut ipam, START), "10.0.0.4,fd00::7");
    }

    #[test]
    fn a_released_address_rests_until_it_must_be_used() {
        let mut ipam = ipam(&["10.0.0.0/29"]);
        assert_eq!(next(&mut ipam, START), "10.0.0.2");
        ipam.release("10.0.0.2".parse().unwrap(), START);
        let later: Vec<String> = (0..4).map(|_| next(&mut ipam, START)).collect();
        assert_eq!(later, ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        ipam.release("10.0.0.3".parse().unwrap(), Duration::from_secs(1));
        assert_eq!(next(&mut ipam, Duration::from_secs(2)), "10.0.0.2", "it has rested longest");
        assert_eq!(next(&mut ipam, Duration::from_secs(2)), "10.0.0.3");
        ipam.release("10.0.0.5".parse().unwrap(), Duration::from_secs(3));
        assert_eq!(next(&mut ipam, REUSE_DELAY * 2), "10.0.0.5", "rested");
    }

    #[test]
    fn records_of_this_and_of_earlier_cidrs_are_respected() {
        let mut ipam = ipam(&["10.0.0.0/24"]);
        for used in ["10.0.0.2", "10.0.0.9", "192.168.0.1"] {
            ipam.reserve(used.parse().unwrap());
        }
        assert_eq!(next(&mut ipam, START), "10.0.0.10", "the search goes on behind the last one");
        ipam.release("192.168.0.1".parse().unwrap(), START);
    }

    #[test]
    fn cidrs_that_cannot_serve_are_refused() {
        for (cidrs, part) in [
            (&["10.0.0.0/31"][..], "10.0.0.0/31 is too small"),
            (&["10.0.0.0/32"], "too small"),
            (&["fd00::/127"], "too small"),
            (&["10.0.0.0/24", "10.0.1.0/24"], "same family"),
        ] {
            let cidrs: Vec<IpNet> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
            let error = Ipam::new(&cidrs).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(next(&mut ipam(&["10.0.0.0/30"]), START), "10.0.0.2");
    }
}
