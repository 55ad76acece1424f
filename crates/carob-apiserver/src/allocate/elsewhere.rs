//! Where other servers give away from the same ranges: the pools follow what stored Services hold, and what is chosen is claimed in
//! the store until it is held.
//!
//! A claim is a key that is put only where it is absent. Whoever has made one sees every Service that was stored before it, looks
//! once more whether any holds what was chosen, and stores its own before the claim goes. So of two servers that choose the same
//! at the same time one finds the other's claim, or its Service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carob_kit::chain;
use carob_store::{Durability, Entry, Expect, Op, Revision, Store, Txn, TxnError};
use futures_util::future::join_all;
use serde_json::Value;
use tracing::warn;

use super::service;
use crate::current::{Follower, View, prefix_of};

/// Where claims are, by what is claimed.
const CLAIMS: &str = "/registry/carob-claims/";
/// How long the claim of a server that has died stands: longer than any request may take (--request-timeout, and etcd's own).
const CLAIM_TTL: Duration = Duration::from_secs(120);

/// Addresses and node ports.
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

    fn shares(&self, other: &Self) -> bool {
        !self.addresses.is_disjoint(&other.addresses) || !self.ports.is_disjoint(&other.ports)
    }
}

/// One claim in the store.
#[derive(Debug)]
pub(super) struct Claim {
    key: Arc<str>,
    revision: Revision,
}

/// What the pools have to know of stored Services.
pub(super) struct Elsewhere {
    store: Store,
    stored: Follower<Stored>,
    /// What was stored when the pools were brought up to date last.
    known: Mutex<Held>,
}

impl Elsewhere {
    pub(super) fn new(store: &Store) -> Self {
        let prefix = prefix_of(("", "v1", "services"));
        let stored = Follower::new(store, [prefix], Stored::default());
        Self { store: store.clone(), stored, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Held> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over what has been taken and what has become free since the last call.
    pub(super) fn follow(&self, apply: impl FnOnce(Held, Held)) {
        let mut known = self.known();
        let now = self.stored.ask(Stored::held);
        apply(now.without(&known), known.without(&now));
        *known = now;
    }

    /// Says that the pools count what a Service holds, or may hold, so that it is free again once no stored one does.
    pub(super) fn note(&self, held: Held) {
        let mut known = self.known();
        known.addresses.extend(held.addresses);
        known.ports.extend(held.ports);
    }

    /// Claims all of `wanted`, or nothing; `None` where another server has chosen some of it.
    pub(super) async fn claim(&self, wanted: &Held) -> Result<Option<Vec<Claim>>, TxnError> {
        let addresses = wanted.addresses.iter().map(|address| format!("{CLAIMS}addresses/{address}"));
        let keys = addresses.chain(wanted.ports.iter().map(|port| format!("{CLAIMS}nodeports/{port}")));
        let outcomes = join_all(keys.map(|key| async {
            let op = Op::Put { value: "{}".into(), ttl: Some(CLAIM_TTL), durability: Durability::Lazy };
            let key: Arc<str> = key.into();
            let done = self.store.txn(Txn { key: Arc::clone(&key), expect: Expect::Absent, op }).await?;
            Ok(Claim { key, revision: done.revision })
        }));
        let (mut made, mut failure, mut conflict) = (Vec::new(), None, false);
        for outcome in outcomes.await {
            match outcome {
                Ok(claim) => made.push(claim),
                Err(TxnError::Conflict { .. }) => conflict = true,
                Err(error) => failure = Some(error),
            }
        }
        // What was stored before the claims were made can be read now.
        if failure.is_none() && !conflict && !self.stored.ask(Stored::held).shares(wanted) {
            return Ok(Some(made));
        }
        release(&self.store, made).await;
        failure.map_or(Ok(None), Err)
    }

    pub(super) async fn release(&self, claims: Vec<Claim>) {
        release(&self.store, claims).await;
    }

    /// Lets claims go whose holder cannot wait for it.
    pub(super) fn release_later(&self, claims: Vec<Claim>) {
        if let (false, Ok(runtime)) = (claims.is_empty(), tokio::runtime::Handle::try_current()) {
            let store = self.store.clone();
            runtime.spawn(async move { release(&store, claims).await });
        }
    }
}

/// What cannot be deleted ends by itself.
async fn release(store: &Store, claims: Vec<Claim>) {
    join_all(claims.into_iter().map(|claim| async move {
        match store.txn(Txn::delete(Arc::clone(&claim.key), Expect::Revision(claim.revision))).await {
            Ok(_) | Err(TxnError::Conflict { .. }) => {}
            Err(error) => warn!(claim = &*claim.key, error = %chain(&error), "a claim stays until it ends"),
        }
    }))
    .await;
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
    use carob_store::Options;
    use serde_json::json;

    use super::*;

    const KEY: &str = "/registry/services/specs/default/a";

    async fn store_service(store: &Store) -> Held {
        let service =
            json!({ "spec": { "type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{ "nodePort": 30001 }] } });
        store.txn(Txn::put(KEY, Expect::Any, service.to_string())).await.expect("stored");
        Held { addresses: ["10.96.0.7".parse().expect("an address")].into(), ports: [30001].into() }
    }

    fn changes(elsewhere: &Elsewhere) -> (Held, Held) {
        let mut seen = None;
        elsewhere.follow(|taken, freed| seen = Some((taken, freed)));
        seen.expect("it is told")
    }

    #[tokio::test]
    async fn what_others_store_is_taken_and_what_they_delete_is_free() {
        let store = Store::in_memory(Options::default());
        let elsewhere = Elsewhere::new(&store);
        let held = store_service(&store).await;
        assert_eq!(changes(&elsewhere), (held.clone(), Held::default()));
        assert_eq!(changes(&elsewhere), (Held::default(), Held::default()));
        store.txn(Txn::delete(KEY, Expect::Any)).await.expect("deleted");
        assert_eq!(changes(&elsewhere), (Held::default(), held.clone()));
        // What this server stored itself, and another deleted before anyone looked, is free too.
        elsewhere.note(held.clone());
        assert_eq!(changes(&elsewhere), (Held::default(), held));
    }

    #[tokio::test]
    async fn of_two_who_choose_the_same_one_gets_it() {
        let store = Store::in_memory(Options::default());
        let (one, other) = (Elsewhere::new(&store), Elsewhere::new(&store));
        let wanted = Held { addresses: BTreeSet::new(), ports: [30001, 30002].into() };
        let overlapping = Held { addresses: ["10.96.0.7".parse().expect("an address")].into(), ports: [30002].into() };
        let claims = one.claim(&wanted).await.expect("the store answers").expect("nobody has it");
        assert!(other.claim(&overlapping).await.expect("the store answers").is_none(), "one of two is claimed");
        one.release(claims).await;
        let claims =
            other.claim(&overlapping).await.expect("the store answers").expect("what it had claimed is free again");
        other.release(claims).await;
        assert_eq!(store.count(CLAIMS), 0);
        // The other's claim has gone, its Service is there.
        let held = store_service(&store).await;
        assert!(one.claim(&held).await.expect("the store answers").is_none());
        assert_eq!(store.count(CLAIMS), 0);
    }
}
