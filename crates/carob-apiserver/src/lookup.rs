//! Looks at stored objects from outside the registry: what the verification of tokens asks.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use carob_api::{kinds, meta};
use carob_store::Store;
use serde::Deserialize;
use serde_json::Value;

use crate::authn::{ObjectFacts, ObjectLookup};

pub(crate) struct Lookup {
    store: Store,
}

/// The few bytes of an object that are asked for.
#[derive(Deserialize)]
struct Partial {
    metadata: PartialMeta,
}

#[derive(Deserialize)]
struct PartialMeta {
    #[serde(default)]
    uid: String,
    #[serde(rename = "deletionTimestamp", default)]
    deletion_timestamp: Option<jiff::Timestamp>,
}

impl Lookup {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }
}

/// The key of an object of the core group.
fn key(resource: &str, namespace: &str, name: &str) -> Option<String> {
    kinds::by_resource("", "v1", resource).map(|def| def.storage_key(namespace, name))
}

impl ObjectLookup for Lookup {
    fn facts(&self, resource: &str, namespace: &str, name: &str) -> Option<ObjectFacts> {
        let entry = self.store.get(&key(resource, namespace, name)?)?;
        let partial: Partial = serde_json::from_slice(&entry.value).ok()?;
        let deletion_timestamp_s = partial.metadata.deletion_timestamp.map(jiff::Timestamp::as_second);
        Some(ObjectFacts { uid: partial.metadata.uid, deletion_timestamp_s })
    }

    fn token_in_secret(&self, namespace: &str, name: &str) -> Option<Vec<u8>> {
        let entry = self.store.get(&key("secrets", namespace, name)?)?;
        let secret: Value = serde_json::from_slice(&entry.value).ok()?;
        STANDARD.decode(meta::str_at(&secret, &["data", "token"])?).ok()
    }
}
