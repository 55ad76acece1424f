//! What stored Services hold where other servers write them too: the pools follow the store before anything is given away.
//!
//! Two servers that choose the same address within the time that a write takes to reach the other both keep it; addresses are
//! chosen at random from the whole range, so that is as likely as the range is small.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use carob_store::{Entry, Store};
use serde_json::Value;
use tracing::warn;

use super::service;
use crate::current::{Follower, View, prefix_of};

/// What the pools have to know of stored Services.
pub(super) struct Elsewhere {
    stored: Follower<Stored>,
    /// What was stored when the pools were brought up to date last.
    known: Mutex<Held>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) ports: BTreeSet<u16>,
}

impl Held {
    fn without(&self, other: &Self) -> Self {
        Self {
            addresses: self.addresses.difference(&other.addresses).copied().collect(),
            ports: self.ports.difference(&other.ports).copied().collect(),
        }
    }
}

impl Elsewhere {
    pub(super) fn new(store: &Store) -> Self {
        let prefix = prefix_of(("", "v1", "services"));
        Self { stored: Follower::new(store, [prefix], Stored::default()), known: Mutex::default() }
    }

    /// Hands over what has been taken and what has become free since the last call.
    pub(super) fn follow(&self, apply: impl FnOnce(Held, Held)) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.stored.ask(Stored::held);
        apply(now.without(&known), known.without(&now));
        *known = now;
    }
}

/// What stored Services hold, by the key of each.
#[derive(Debug, Default)]
struct Stored {
    services: BTreeMap<String, (Vec<IpAddr>, Vec<u16>)>,
}

impl Stored {
    fn held(&self) -> Held {
        let addresses = self.services.values().flat_map(|(addresses, _)| addresses).copied();
        let ports = self.services.values().flat_map(|(_, ports)| ports).copied();
        Held { addresses: addresses.collect(), ports: ports.collect() }
    }
}

impl View for Stored {
    fn clear(&mut self, prefix: &str) {
        self.services.retain(|key, _| !key.starts_with(prefix));
    }

    fn put(&mut self, entry: &Entry) {
        let held = match serde_json::from_slice::<Value>(&entry.value) {
            Ok(service) => (service::addresses_of(&service).collect(), service::ports_of(&service)),
            Err(error) => {
                let key = &*entry.key;
                return warn!(key, %error, "a stored Service cannot be read; its addresses may be given away");
            }
        };
        self.services.insert(entry.key.to_string(), held);
    }

    fn remove(&mut self, key: &str) {
        self.services.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use carob_store::{Expect, Options, Txn};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn what_others_store_is_taken_and_what_they_delete_is_free() {
        let store = Store::in_memory(Options::default());
        let elsewhere = Elsewhere::new(&store);
        let key = "/registry/services/specs/default/a";
        let service =
            json!({ "spec": { "type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{ "nodePort": 30001 }] } });
        store.txn(Txn::put(key, Expect::Any, service.to_string())).await.expect("stored");
        let held = Held { addresses: ["10.96.0.7".parse().expect("an address")].into(), ports: [30001].into() };
        let changes = || {
            let mut seen = None;
            elsewhere.follow(|taken, freed| seen = Some((taken, freed)));
            seen.expect("it is told")
        };
        assert_eq!(changes(), (held.clone(), Held::default()));
        assert_eq!(changes(), (Held::default(), Held::default()));
        store.txn(Txn::delete(key, Expect::Any)).await.expect("deleted");
        assert_eq!(changes(), (Held::default(), held));
    }
}
