//! What admission looks up in the store.

use std::sync::Arc;

use carob_api::{ResourceDef, kinds};
use carob_store::{Entry, ListOptions, Store};
use serde_json::Value;
use tracing::warn;

/// Reads objects of the built-in kinds.
#[derive(Clone)]
pub(crate) struct Reader {
    store: Store,
}

impl Reader {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    /// A stored object of a kind's v1; absent too when its kind is unknown or its bytes are no JSON, which is logged.
    pub(crate) fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.get_of((group, "v1"), resource, namespace, name)
    }

    /// As [`Reader::get`], of a kind that is known by its group and version.
    pub(crate) fn get_of(
        &self,
        (group, version): (&str, &str),
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Value> {
        let key = kinds::by_resource(group, version, resource)?.storage_key(namespace, name);
        let entry = self.store.get(&key)?;
        parse(&key, &entry.value)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// All objects of a kind in one namespace.
    pub(crate) fn within(&self, group: &str, resource: &str, namespace: &str) -> Vec<Value> {
        let entries = self.entries_within(group, resource, namespace);
        entries.iter().filter_map(|entry| parse(&entry.key, &entry.value)).collect()
    }

    /// As [`Reader::within`], as they are stored.
    pub(crate) fn entries_within(&self, group: &str, resource: &str, namespace: &str) -> Vec<Arc<Entry>> {
        let Some(def) = kinds::by_resource(group, "v1", resource) else { return Vec::new() };
        let page = self.store.list(&def.storage_prefix(Some(namespace)), ListOptions::default());
        page.map(|page| page.entries).unwrap_or_default()
    }

    /// The objects of any kind in a namespace, or of a cluster-scoped one, as they are stored.
    pub(crate) fn entries_of(&self, def: &ResourceDef, namespace: &str) -> Vec<Arc<Entry>> {
        let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
        let page = self.store.list(&def.storage_prefix(namespace), ListOptions::default());
        page.map(|page| page.entries).unwrap_or_default()
    }

    /// All objects of a cluster-scoped kind.
    pub(crate) fn all(&self, group: &str, resource: &str) -> Vec<Value> {
        let Some(def) = kinds::by_resource(group, "v1", resource) else { return Vec::new() };
        let page = self.store.list(&def.storage_prefix(None), ListOptions::default());
        let entries = page.map(|page| page.entries).unwrap_or_default();
        entries.iter().filter_map(|entry| parse(&entry.key, &entry.value)).collect()
    }
}

pub(crate) fn parse(key: &str, bytes: &[u8]) -> Option<Value> {
    serde_json::from_slice(bytes).inspect_err(|error| warn!(key, %error, "a stored object cannot be read")).ok()
}
