//! IPAddress objects: the address of a Service is its own because the object of that name is.
//!
//! It is written before the Service, only where it is absent: so of several servers on one store one gets an address. It
//! goes once no Service has the address any more. What was written for a Service that then was not stored, because the
//! server ended in between, is taken away by [`crate::system`]'s repair.

use std::net::IpAddr;
use std::sync::Arc;

use carob_api::apply::{self, Writer};
use carob_api::{ResourceDef, kinds, lifecycle, meta};
use carob_store::{Durability, Entry, Expect, Op, Revision, Store, Txn, TxnError};
use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::warn;

use crate::stored::encode_as;

pub(crate) const IP_ADDRESSES: (&str, &str, &str) = ("networking.k8s.io", "v1", "ipaddresses");
/// Who keeps an IPAddress, and which family it is of (`networking/v1`, well_known_labels.go).
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
/// `pkg/registry/core/service/ipallocator`, ControllerName.
const ALLOCATOR: &str = "ipallocator.k8s.io";

/// Whom an address belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Parent {
    pub(crate) group: String,
    pub(crate) resource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Parent {
    pub(crate) fn service(namespace: &str, name: &str) -> Self {
        Self {
            group: String::new(),
            resource: "services".to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    pub(crate) fn is_service(&self) -> bool {
        self.group.is_empty() && self.resource == "services"
    }
}

/// What an IPAddress says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IpAddress {
    pub(crate) parent: Parent,
    /// Whether it is the allocator's: others are left alone.
    pub(crate) is_managed: bool,
    pub(crate) names_family: bool,
    pub(crate) created: Option<Timestamp>,
}

impl IpAddress {
    pub(crate) fn read(entry: &Entry) -> Result<Self, serde_json::Error> {
        let object: Value = serde_json::from_slice(&entry.value)?;
        let text = |field: &str| meta::str_at(&object, &["spec", "parentRef", field]).unwrap_or_default().to_owned();
        let family = address_of(&entry.key).map(family_of);
        Ok(Self {
            parent: Parent {
                group: text("group"),
                resource: text("resource"),
                namespace: text("namespace"),
                name: text("name"),
            },
            is_managed: meta::label(&object, MANAGED_BY) == Some(ALLOCATOR),
            names_family: meta::label(&object, FAMILY) == family,
            created: meta::str_at(&object, &["metadata", "creationTimestamp"]).and_then(|time| time.parse().ok()),
        })
    }
}

pub(crate) fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn def() -> &'static Arc<ResourceDef> {
    let (group, version, plural) = IP_ADDRESSES;
    kinds::by_resource(group, version, plural).expect("the table of kinds has IPAddress")
}

pub(crate) fn key_of(address: IpAddr) -> String {
    def().storage_key("", &address.to_string())
}

/// The address that a key of the store is about.
pub(crate) fn address_of(key: &str) -> Option<IpAddr> {
    key.rsplit('/').next()?.parse().ok()
}

/// As the API would have stored it from `system:apiserver`'s hand.
fn object(address: IpAddr, parent: &Parent, now: Timestamp) -> Value {
    let def = def();
    let mut object = json!({
        "apiVersion": def.hub_api_version(), "kind": def.kind(),
        "metadata": {
            "name": address.to_string(),
            "labels": { MANAGED_BY: ALLOCATOR, FAMILY: family_of(address) },
        },
        "spec": { "parentRef": {
            "resource": parent.resource, "namespace": parent.namespace, "name": parent.name,
        } },
    });
    let writer = Writer { manager: "kube-apiserver", api_version: def.hub_api_version(), subresource: "", now };
    if let Some(schema) = def.hub_schema()
        && let Err(error) = apply::track_update(schema, None, &mut object, &writer)
    {
        warn!(%address, error = error.message, "the fields of an IPAddress are not recorded as its writer's");
    }
    let (uid, suffix) = (carob_kit::uid(), String::new());
    lifecycle::complete_create(def, &mut object, &lifecycle::Creation { uid: &uid, now, suffix: &suffix });
    object
}

/// Writes the IPAddress of a Service, where there is none of that name.
///
/// It need not be synced: the Service is written behind it, into the same log, and that is.
pub(crate) async fn create(
    store: &Store,
    address: IpAddr,
    parent: &Parent,
    now: Timestamp,
) -> Result<Revision, TxnError> {
    let value = encode_as(&object(address, parent, now), def().stored_api_version());
    let op = Op::Put { value, ttl: None, durability: Durability::Lazy };
    store.txn(Txn { key: key_of(address).into(), expect: Expect::Absent, op }).await.map(|done| done.revision)
}

/// Deletes the IPAddress, if it is as it was at `revision`. Answers whether it did.
pub(crate) async fn delete(store: &Store, address: IpAddr, revision: Revision) -> Result<bool, TxnError> {
    match store.txn(Txn::delete(key_of(address), Expect::Revision(revision))).await {
        Ok(_) => Ok(true),
        Err(TxnError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use carob_store::Options;

    use super::*;

    #[tokio::test]
    async fn one_object_an_address() {
        let store = Store::in_memory(Options::default());
        let (address, parent) = ("fd00::7".parse().expect("an address"), Parent::service("shop", "web"));
        let now = Timestamp::from_second(1_800_000_000).expect("in range");
        let revision = create(&store, address, &parent, now).await.expect("nobody has it");
        let taken = create(&store, address, &Parent::service("shop", "other"), now).await;
        assert!(matches!(taken, Err(TxnError::Conflict { .. })));
        let entry = store.get("/registry/ipaddresses/fd00::7").expect("it is stored");
        let expected = IpAddress { parent, is_managed: true, names_family: true, created: Some(now) };
        assert_eq!(IpAddress::read(&entry).expect("JSON"), expected);
        let stored: Value = serde_json::from_slice(&entry.value).expect("JSON");
        let faults = lifecycle::validate_create(def(), &stored);
        assert!(faults.is_ok(), "{faults:?}");
        assert_eq!(stored["metadata"]["managedFields"][0]["manager"], "kube-apiserver");
        assert!(!delete(&store, address, Revision(revision.0 + 1)).await.expect("the store answers"));
        assert!(delete(&store, address, revision).await.expect("the store answers"));
        assert!(store.get("/registry/ipaddresses/fd00::7").is_none());
    }
}
