//! Aggregation: other API servers that answer for groups and versions of their own (kube-aggregator).
//!
//! An APIService with a `service` leads `/apis/<group>/<version>` to that Service, dialled by one of its endpoints; who asks is told
//! in headers that a client certificate vouches for ([`proxy`]). One task ([`follow`]) checks whether those servers answer, says so
//! in their status, keeps what they say of themselves for discovery and OpenAPI ([`documents`]), and registers this
//! server's own groups ([`register`]).

mod check;
mod documents;
mod follow;
mod merge;
mod proxy;
mod register;
mod service;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use carob_store::{Entry, Store};
use serde_json::Value;
use tracing::warn;

use crate::catalogue::Served;
use crate::current::{Follower, View, prefix_of};
use crate::discovery::Documents;
use crate::openapi::Whole;
use crate::webhook::{Identity, WebhookClient};

pub(crate) use self::follow::follow;
pub(crate) use self::merge::merge_v2;
pub(crate) use self::proxy::{answer, openapi_v3};
pub(crate) use self::register::{AUTOMANAGED, local_services};
use self::service::{ApiService, Makers};

const API_SERVICES: (&str, &str, &str) = ("apiregistration.k8s.io", "v1", "apiservices");

/// The servers that APIServices lead to.
pub(crate) struct Aggregator {
    services: Follower<Services>,
    /// Counts changes of what other servers serve.
    generation: AtomicU64,
    merged: Mutex<Option<Arc<Merged>>>,
}

/// Documents about everything, this server's kinds and others' together.
pub(crate) struct Merged {
    served: Arc<Served>,
    generation: u64,
    pub(crate) remote: Vec<RemoteVersion>,
    pub(crate) documents: Documents,
    pub(crate) openapi: Whole,
}

/// A group and version that another server answers for.
#[derive(Debug, Clone)]
pub(crate) struct RemoteVersion {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) group_priority: i32,
    pub(crate) version_priority: i32,
    /// Its entry in aggregated discovery.
    pub(crate) discovery: Value,
    /// What the server's OpenAPI v3 index says: where the document of the group and version is.
    pub(crate) v3_url: Option<String>,
    /// The server's OpenAPI v2 document.
    pub(crate) v2: Option<Arc<documents::Compressed>>,
}

impl RemoteVersion {
    /// `apis/<group>/<version>`.
    pub(crate) fn path(&self) -> String {
        if self.group.is_empty() {
            format!("api/{}", self.version)
        } else {
            format!("apis/{}/{}", self.group, self.version)
        }
    }
}

/// The stored APIServices by name.
struct Services {
    makers: Makers,
    by_name: BTreeMap<String, Arc<ApiService>>,
    /// Whether any of them leads elsewhere.
    has_remote: bool,
}

impl View for Services {
    fn clear(&mut self, _prefix: &str) {
        self.by_name.clear();
    }

    fn put(&mut self, entry: &Entry) {
        let name = name_of(&entry.key).to_owned();
        match ApiService::read(&entry.value, &mut self.makers) {
            Ok(service) => {
                self.by_name.insert(name, Arc::new(service));
            }
            Err(error) => {
                warn!(key = %entry.key, %error, "a stored APIService cannot be read");
                self.by_name.remove(&name);
            }
        }
    }

    fn remove(&mut self, key: &str) {
        self.by_name.remove(name_of(key));
    }

    fn settle(&mut self) {
        self.has_remote = self.by_name.values().any(|service| service.remote.is_some());
        self.makers.forget_unused();
    }
}

fn name_of(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default()
}

impl Aggregator {
    /// `identity` is the client certificate by which other servers know this one.
    pub(crate) fn new(store: &Store, client: &WebhookClient, identity: Option<Identity>) -> Self {
        let makers = Makers::new(client.clone(), identity);
        let services = Services { makers, by_name: BTreeMap::new(), has_remote: false };
        Self {
            services: Follower::new(store, [prefix_of(API_SERVICES)], services),
            generation: AtomicU64::new(0),
            merged: Mutex::new(None),
        }
    }

    /// The APIService that leads a group and version to another server.
    fn remote(&self, group: &str, version: &str) -> Option<Arc<ApiService>> {
        self.services.ask(|services| {
            if !services.has_remote {
                return None;
            }
            let found = services.by_name.get(&format!("{version}.{group}"))?;
            found.remote.is_some().then(|| Arc::clone(found))
        })
    }

    fn service(&self, name: &str) -> Option<Arc<ApiService>> {
        self.services.ask(|services| services.by_name.get(name).cloned())
    }

    fn remotes(&self) -> Vec<Arc<ApiService>> {
        self.services.ask(|services| {
            let remote = services.by_name.values().filter(|service| service.remote.is_some());
            remote.cloned().collect()
        })
    }

    /// What other servers serve has changed.
    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// The documents about everything; `None` while this server answers for all there is.
    pub(crate) fn merged(&self, served: &Arc<Served>) -> Option<Arc<Merged>> {
        if !self.services.ask(|services| services.has_remote) {
            return None;
        }
        let generation = self.generation.load(Ordering::Acquire);
        let mut slot = self.merged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = &*slot
            && found.generation == generation
            && Arc::ptr_eq(&found.served, served)
        {
            return Some(Arc::clone(found));
        }
        let remote = self.remotes().iter().map(|service| service.remote_version()).collect();
        let (documents, openapi) = (Documents::default(), Whole::default());
        let made = Arc::new(Merged { served: Arc::clone(served), generation, remote, documents, openapi });
        *slot = Some(Arc::clone(&made));
        Some(made)
    }
}
