//! Remembers the newest resourceVersion that was written on behalf of a key, so that the next look at it can wait until an
//! informer shows that write.
//!
//! One of these goes with one informer: an informer learns of versions by events of its own kind alone.

use std::collections::HashMap;
use std::sync::Mutex;

use carob_client::{Informer, ObjectKey};
use kube::Resource;

#[derive(Default)]
pub(crate) struct Versions(Mutex<HashMap<ObjectKey, u64>>);

impl Versions {
    pub(crate) fn note(&self, key: &ObjectKey, version: u64) {
        let mut noted = self.0.lock().expect("no holder of the versions panics");
        let held = noted.entry(key.clone()).or_default();
        *held = version.max(*held);
    }

    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.0.lock().expect("no holder of the versions panics").remove(key);
    }

    /// Waits until `informer` shows what was written for the key.
    pub(crate) async fn settled<K: Resource + Send + Sync + 'static>(&self, key: &ObjectKey, informer: &Informer<K>) {
        let version = self.0.lock().expect("no holder of the versions panics").get(key).copied();
        if let Some(version) = version {
            informer.reached(version).await;
        }
    }
}
