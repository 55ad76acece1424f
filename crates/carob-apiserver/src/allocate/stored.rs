//! What the stored objects leave to be given away: which addresses and ports are taken, and which ranges there are.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use carob_store::{Entry, Store};
use ipnet::IpNet;
use serde_json::Value;
use tracing::warn;

use super::ip_address::{self, IP_ADDRESSES};
use super::range::Range;
use super::service;
use super::service_cidr::{SERVICE_CIDRS, ServiceCidr};
use crate::current::{Follower, View, prefix_of};
use crate::system::DEFAULT_SERVICE_CIDR;

const SERVICES: (&str, &str, &str) = ("", "v1", "services");

/// Services, IPAddresses and ServiceCIDRs, counted as they change.
#[derive(Debug)]
pub(super) struct Stored {
    prefixes: Prefixes,
    /// What each Service holds, by its key.
    services: HashMap<String, Holding>,
    /// How many Services hold an address: one, unless the store was written past the API.
    addresses: BTreeMap<IpAddr, u32>,
    ports: BTreeMap<u16, u32>,
    /// Addresses that have an object, by its key.
    objects: BTreeMap<IpAddr, String>,
    cidrs: BTreeMap<String, ServiceCidr>,
    /// The ranges of the configuration, which count until the ServiceCIDR of their name is there.
    configured: Vec<Range>,
    default_key: String,
    /// What addresses are given away of.
    ranges: Vec<Range>,
}

#[derive(Debug)]
struct Prefixes {
    services: String,
    objects: String,
}

#[derive(Debug)]
struct Holding {
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

impl Stored {
    pub(super) fn follow(store: &Store, configured: &[IpNet]) -> Follower<Self> {
        let (services, objects, cidrs) = (prefix_of(SERVICES), prefix_of(IP_ADDRESSES), prefix_of(SERVICE_CIDRS));
        let prefixes = [&services, &objects, &cidrs].map(String::clone);
        let view = Self {
            default_key: format!("{cidrs}{DEFAULT_SERVICE_CIDR}"),
            prefixes: Prefixes { services, objects },
            services: HashMap::new(),
            addresses: BTreeMap::new(),
            ports: BTreeMap::new(),
            objects: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            configured: configured.iter().filter_map(|cidr| Range::of(*cidr)).collect(),
            ranges: Vec::new(),
        };
        Follower::new(store, prefixes, view)
    }

    pub(super) fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        self.is_served(address) || self.objects.contains_key(&address)
    }

    /// Whether a Service holds the address.
    pub(super) fn is_served(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    pub(super) fn has_port(&self, port: u16) -> bool {
        self.ports.contains_key(&port)
    }

    fn put_service(&mut self, entry: &Entry) {
        let holding = match serde_json::from_slice::<Value>(&entry.value) {
            Ok(service) => {
                Holding { addresses: service::addresses_of(&service).collect(), ports: service::ports_of(&service) }
            }
            Err(error) => {
                let key = &*entry.key;
                return warn!(key, %error, "a stored Service cannot be read; its addresses may be given away");
            }
        };
        for address in &holding.addresses {
            *self.addresses.entry(*address).or_default() += 1;
        }
        for port in &holding.ports {
            *self.ports.entry(*port).or_default() += 1;
        }
        if let Some(before) = self.services.insert(entry.key.to_string(), holding) {
            self.let_go(&before);
        }
    }

    fn let_go(&mut self, holding: &Holding) {
        for address in &holding.addresses {
            count_down(&mut self.addresses, address);
        }
        for port in &holding.ports {
            count_down(&mut self.ports, port);
        }
    }
}

fn count_down<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl View for Stored {
    fn clear(&mut self, prefix: &str) {
        if prefix == self.prefixes.services {
            (self.services, self.addresses, self.ports) = Default::default();
        } else if prefix == self.prefixes.objects {
            self.objects.clear();
        } else {
            self.cidrs.clear();
        }
    }

    fn put(&mut self, entry: &Entry) {
        if entry.key.starts_with(&self.prefixes.services) {
            self.put_service(entry);
        } else if entry.key.starts_with(&self.prefixes.objects) {
            // Whoever it is kept by: no Service gets an address that has an object.
            self.objects.extend(ip_address::address_of(&entry.key).map(|address| (address, entry.key.to_string())));
        } else {
            match ServiceCidr::read(entry) {
                Ok(cidr) => drop(self.cidrs.insert(entry.key.to_string(), cidr)),
                Err(error) => warn!(key = &*entry.key, %error, "a stored ServiceCIDR cannot be read"),
            }
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some(holding) = self.services.remove(key) {
            self.let_go(&holding);
        } else if let Some(address) = ip_address::address_of(key).filter(|_| key.starts_with(&self.prefixes.objects)) {
            self.objects.remove(&address);
        } else {
            self.cidrs.remove(key);
        }
    }

    fn settle(&mut self) {
        let in_use = self.cidrs.values().filter(|cidr| cidr.is_in_use).flat_map(|cidr| &cidr.cidrs);
        let mut ranges: Vec<Range> = in_use.filter_map(|cidr| Range::of(*cidr)).collect();
        if !self.cidrs.contains_key(&self.default_key) {
            ranges.extend(&self.configured);
        }
        ranges.sort_unstable();
        ranges.dedup();
        self.ranges = ranges;
    }
}

#[cfg(test)]
mod tests {
    use carob_store::{Expect, Options, Txn};
    use serde_json::json;

    use super::*;

    const CONFIGURED: &str = "10.96.0.0/16";

    struct Rig {
        store: Store,
        stored: Follower<Stored>,
    }

    impl Rig {
        fn new() -> Self {
            let store = Store::in_memory(Options::default());
            let stored = Stored::follow(&store, &[CONFIGURED.parse().expect("a range")]);
            Self { store, stored }
        }

        async fn put(&self, key: &str, value: Value) {
            self.store.txn(Txn::put(key, Expect::Any, value.to_string())).await.expect("stored");
        }

        async fn delete(&self, key: &str) {
            self.store.txn(Txn::delete(key, Expect::Any)).await.expect("it is there");
        }

        /// The first address of each range.
        fn ranges(&self) -> Vec<String> {
            self.stored.ask(|stored| stored.ranges().iter().map(|range| range.first().to_string()).collect())
        }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[tokio::test]
    async fn what_services_hold_is_taken_until_the_last_one_is_gone() {
        let rig = Rig::new();
        let spec = json!({ "type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{ "nodePort": 30001 }] });
        let (one, other) = ("/registry/services/specs/default/a", "/registry/services/specs/default/b");
        rig.put(one, json!({ "spec": spec })).await;
        rig.put(one, json!({ "spec": spec, "again": true })).await;
        rig.put(other, json!({ "spec": spec })).await;
        let taken = || {
            rig.stored.ask(|stored| {
                (
                    stored.is_served(address("10.96.0.7")),
                    stored.has_address(address("10.96.0.7")),
                    stored.has_port(30001),
                )
            })
        };
        rig.delete(one).await;
        assert_eq!(taken(), (true, true, true), "the other one holds both");
        rig.put(other, json!({ "spec": { "type": "ExternalName", "clusterIP": "10.96.0.7" } })).await;
        assert_eq!(taken(), (false, false, false));
        let object = "/registry/ipaddresses/10.96.0.7";
        rig.put(object, json!({})).await;
        assert_eq!(taken(), (false, true, false));
        rig.delete(object).await;
        assert_eq!(taken(), (false, false, false));
    }

    #[tokio::test]
    async fn ranges_are_those_of_service_cidrs() {
        let rig = Rig::new();
        assert_eq!(rig.ranges(), ["10.96.0.1"], "until there is a ServiceCIDR");
        let more = "/registry/servicecidrs/more";
        rig.put(more, json!({ "spec": { "cidrs": ["10.97.0.0/24", "fd00::/112"] } })).await;
        assert_eq!(rig.ranges(), ["10.96.0.1", "10.97.0.1", "fd00::1"]);
        rig.put("/registry/servicecidrs/kubernetes", json!({ "spec": { "cidrs": ["10.98.0.0/24"] } })).await;
        assert_eq!(rig.ranges(), ["10.97.0.1", "10.98.0.1", "fd00::1"], "the object of the configured ranges decides");
        rig.put("/registry/servicecidrs/same", json!({ "spec": { "cidrs": ["10.98.0.0/24"] } })).await;
        let going = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" }, "spec": { "cidrs": ["10.97.0.0/24"] } });
        rig.put(more, going).await;
        assert_eq!(rig.ranges(), ["10.98.0.1"]);
    }
}
