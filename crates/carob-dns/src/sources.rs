//! Who may ask: Pods of the cluster and this machine itself. A resolver that answers everyone is used to flood others.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use carob_sys::netlink::route::{self, LinkAddress};
use carob_sys::netlink::{NetlinkError, Protocol, Socket};
use ipnet::IpNet;
use tokio::time::Instant;

/// How often at most the machine's addresses are read again for the sake of a source that is not known.
const READ_EVERY: Duration = Duration::from_secs(1);

pub(crate) struct Sources {
    cluster: Vec<IpNet>,
    own: Mutex<Own>,
}

#[derive(Default)]
struct Own {
    addresses: HashSet<IpAddr>,
    read: Option<Instant>,
}

impl Sources {
    pub(crate) fn new(cluster: Vec<IpNet>) -> Self {
        Self { cluster, own: Mutex::default() }
    }

    /// Whether the address may ask.
    pub(crate) fn allow(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_loopback() || self.cluster.iter().any(|range| range.contains(&address)) || self.is_own(address)
    }

    fn is_own(&self, address: IpAddr) -> bool {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.addresses.contains(&address) {
            return true;
        }
        if own.read.is_some_and(|read| read.elapsed() < READ_EVERY) {
            return false;
        }
        own.read = Some(Instant::now());
        match own_addresses() {
            Ok(addresses) => own.addresses = addresses,
            Err(error) => tracing::warn!(error = %carob_kit::chain(&error), "this machine's addresses are not known"),
        }
        own.addresses.contains(&address)
    }
}

/// A few microseconds: the kernel answers within the call.
fn own_addresses() -> Result<HashSet<IpAddr>, NetlinkError> {
    let addresses = route::addresses(&mut Socket::open(Protocol::Route)?)?;
    Ok(addresses.into_iter().map(|LinkAddress { address, .. }| address).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pods_and_the_machine_may_ask_and_others_may_not() {
        let sources = Sources::new(vec!["10.244.0.0/16".parse().unwrap()]);
        for (address, allowed) in [
            ("10.244.3.2", true),
            ("::ffff:10.244.3.2", true),
            ("127.0.0.1", true),
            ("203.0.113.9", false),
            ("2001:db8::9", false),
        ] {
            assert_eq!(sources.allow(address.parse().unwrap()), allowed, "{address}");
        }
    }
}
