//! CustomResourceDefinitions at work: their kinds enter the catalogue and leave it, their status says which names they got, and
//! when one is deleted its objects go first (apiextensions-apiserver pkg/controller).
//!
//! One task follows the stored definitions. What is established is served before the task begins, so a restart answers its first
//! request with all kinds there.

mod cleanup;
mod names;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use carob_api::ResourceDef;
use carob_api::kinds::{Definition, Names, by_resource};
use carob_api::schema::Source;
use carob_api::{meta, strategy};
use carob_store::{Entry, EventKind, Store, Watch, WatchItem};
use http::StatusCode;
use serde_json::{Value, json};
use tracing::{debug, warn};

use crate::ApiServer;
use crate::catalogue::Catalogue;
use crate::own_requests::{self, Sent};
use crate::state::State;

/// The stored definitions, and the stream of their changes.
pub(crate) struct Definitions {
    known: BTreeMap<String, Known>,
    watch: Watch,
}

/// One definition as it is stored.
struct Known {
    entry: Arc<Entry>,
    definition: Definition,
    approved_by: Option<String>,
    /// Revision since which the spec is as it is.
    spec_revision: u64,
    /// What of the definition the catalogue follows.
    served_as: Option<ServedAs>,
}

/// What decides how a kind is served: while it stays the same, so do the definitions in the catalogue and what was made of them.
#[derive(PartialEq, Eq, Clone)]
struct ServedAs {
    uid: String,
    generation: i64,
    names: Names,
    established: bool,
    terminating: bool,
}

impl Known {
    /// `None`, with a word in the log, for bytes that are no definition.
    fn read(entry: &Arc<Entry>) -> Option<Self> {
        #[derive(serde::Deserialize)]
        struct Annotated {
            metadata: Annotations,
        }
        #[derive(serde::Deserialize)]
        struct Annotations {
            #[serde(default)]
            annotations: BTreeMap<String, String>,
        }
        let definition = match Definition::parse(&entry.value) {
            Ok(definition) => definition,
            Err(error) => {
                warn!(key = %entry.key, error = %carob_kit::chain(&error), "a stored definition cannot be read");
                return None;
            }
        };
        // Few groups need an approval, so few definitions are looked at twice.
        let approved_by = if strategy::definition::is_protected(&definition.spec.group) {
            let annotated: Option<Annotated> = serde_json::from_slice(&entry.value).ok();
            annotated.and_then(|found| found.metadata.annotations.get(strategy::definition::APPROVAL).cloned())
        } else {
            None
        };
        let spec_revision = entry.mod_revision.0;
        Some(Self { entry: Arc::clone(entry), definition, approved_by, spec_revision, served_as: None })
    }

    /// Takes over from the state before what a write left as it was.
    fn follow(&mut self, before: Self) {
        let (now, before_metadata) = (&self.definition.metadata, &before.definition.metadata);
        if now.uid == before_metadata.uid && now.generation == before_metadata.generation {
            self.spec_revision = before.spec_revision;
        }
        self.served_as = before.served_as;
    }

    fn serves(&self) -> ServedAs {
        ServedAs {
            uid: self.definition.metadata.uid.clone(),
            generation: self.definition.metadata.generation,
            names: self.definition.status.accepted_names.clone(),
            established: self.definition.is_established(),
            terminating: self.definition.has_condition("Terminating"),
        }
    }

    /// What is served of the kind; nothing until its names are accepted.
    fn resources(&self, store: &Store) -> Vec<Arc<ResourceDef>> {
        if !self.definition.is_established() {
            return Vec::new();
        }
        self.definition.resources(&source(store, &self.entry.key), self.spec_revision)
    }
}

/// The definition is in the store already, so nothing else holds its bytes.
fn source(store: &Store, key: &Arc<str>) -> Source {
    let (store, key) = (store.clone(), Arc::clone(key));
    Arc::new(move || store.get(&key).map(|entry| Box::new(Bytes::clone(&entry.value)) as Box<dyn AsRef<[u8]>>))
}

impl Definitions {
    /// Reads what is stored and serves what is established.
    pub(crate) fn load(store: &Store, catalogue: &Catalogue) -> Self {
        let prefix = by_resource("apiextensions.k8s.io", "v1", "customresourcedefinitions")
            .map(|def| def.storage_prefix(None))
            .unwrap_or_default();
        let (entries, watch) = store.list_and_watch(&prefix);
        let mut known: Vec<Known> = entries.iter().filter_map(Known::read).collect();
        catalogue.add(known.iter().flat_map(|known| known.resources(store)));
        for known in &mut known {
            known.served_as = Some(known.serves());
        }
        let known = known.into_iter().map(|known| (known.definition.metadata.name.clone(), known)).collect();
        Self { known, watch }
    }

    /// As [`Definitions::load`], when changes were missed: what is served is replaced.
    fn reload(store: &Store, catalogue: &Catalogue) -> Self {
        let fresh = Self::load(store, &Catalogue::new(false));
        for (name, known) in &fresh.known {
            catalogue.replace(name, &known.definition.spec.group, known.resources(store));
        }
        fresh
    }

    /// Follows the definitions until the server is gone.
    pub(crate) async fn follow(mut self, api: Weak<State>, store: Store) {
        let Some(server) = api.upgrade().map(ApiServer::of) else { return };
        let names: Vec<String> = self.known.keys().cloned().collect();
        for name in names {
            self.settle(&server, &name).await;
        }
        drop(server);
        loop {
            let item = self.watch.next().await;
            let Some(server) = api.upgrade().map(ApiServer::of) else { return };
            match item {
                WatchItem::Event(event) => {
                    let key = Arc::clone(&event.entry.key);
                    let name = key.rsplit('/').next().unwrap_or_default().to_owned();
                    match event.kind {
                        EventKind::Put => self.put(&server, &name, &event.entry).await,
                        EventKind::Delete => self.delete(&server, &name).await,
                    }
                }
                WatchItem::Lagged => {
                    let fresh = Self::reload(&store, &server.state().catalogue);
                    let gone: Vec<String> =
                        self.known.keys().filter(|name| !fresh.known.contains_key(*name)).cloned().collect();
                    for name in gone {
                        self.delete(&server, &name).await;
                    }
                    self = fresh;
                    let names: Vec<String> = self.known.keys().cloned().collect();
                    for name in names {
                        self.settle(&server, &name).await;
                    }
                }
                WatchItem::Closed => return,
            }
        }
    }

    async fn put(&mut self, server: &ApiServer, name: &str, entry: &Arc<Entry>) {
        let Some(mut known) = Known::read(entry) else { return };
        if let Some(before) = self.known.remove(name) {
            known.follow(before);
        }
        self.known.insert(name.to_owned(), known);
        self.settle(server, name).await;
    }

    async fn delete(&mut self, server: &ApiServer, name: &str) {
        let Some(known) = self.known.remove(name) else { return };
        server.state().catalogue.replace(name, &known.definition.spec.group, Vec::new());
        server.state().converters.forget(name);
        // Its names are free: who waited for one of them gets it.
        let group = &known.definition.spec.group;
        let waiting = self.known.values().filter(|other| other.definition.spec.group == *group);
        let waiting = waiting.filter(|other| !other.definition.has_condition("NamesAccepted"));
        let waiting: Vec<String> = waiting.map(|other| other.definition.metadata.name.clone()).collect();
        for name in waiting {
            self.settle(server, &name).await;
        }
    }

    /// Brings the catalogue and the status of one definition in step with what it says.
    async fn settle(&mut self, server: &ApiServer, name: &str) {
        let Some(known) = self.known.get(name) else { return };
        let group = known.definition.spec.group.clone();
        let others = self.known.values().map(|other| &other.definition);
        let others = others.filter(|other| other.spec.group == group && other.metadata.name != name);
        let now = meta::format_time(server.now());
        let decision = names::decide(&known.definition, others, known.approved_by.as_deref(), &now);
        let status = &known.definition.status;
        let changed = decision.accepted != status.accepted_names || decision.conditions != status.conditions;
        let revision = known.entry.mod_revision.to_string();
        let Some(known) = self.known.get_mut(name) else { return };
        known.definition.status.accepted_names = decision.accepted;
        known.definition.status.conditions = decision.conditions;
        let serves = known.serves();
        let settling = server.state().catalogue.settling().await;
        if known.served_as.as_ref() != Some(&serves) {
            server.state().catalogue.replace(name, &group, known.resources(&server.state().store));
            known.served_as = Some(serves);
        }
        if changed {
            let status = status_patch(&known.definition, &revision);
            report(name, patch(server, &format!("{name}/status"), &status).await);
        }
        drop(settling);
        if known.definition.metadata.deletion_timestamp.is_some() {
            cleanup::begin(server, known);
        }
    }
}

fn status_patch(definition: &Definition, revision: &str) -> Value {
    let names = &definition.status.accepted_names;
    let mut accepted =
        json!({ "plural": names.plural, "singular": names.singular, "kind": names.kind, "listKind": names.list_kind });
    // A merge patch takes null for "remove".
    let list = |list: &[String]| if list.is_empty() { Value::Null } else { json!(list) };
    accepted["shortNames"] = list(&names.short_names);
    accepted["categories"] = list(&names.categories);
    json!({
        "metadata": { "resourceVersion": revision },
        "status": { "acceptedNames": accepted, "conditions": definition.status.conditions },
    })
}

const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A merge patch of a definition, in the name of the server itself.
async fn patch(server: &ApiServer, path: &str, patch: &Value) -> Result<Sent, http::Error> {
    own_requests::merge_patch(server, &format!("{PATH}/{path}"), patch).await
}

/// A conflict means that a newer state of the definition is on its way here; anything else is said.
fn report(name: &str, answer: Result<Sent, http::Error>) {
    match answer {
        Ok(sent) if sent.code.is_success() => {}
        Ok(sent) if matches!(sent.code, StatusCode::CONFLICT | StatusCode::NOT_FOUND) => {
            debug!(definition = name, status = %sent.code, "a definition changed meanwhile");
        }
        Ok(sent) => {
            warn!(definition = name, status = %sent.code, answer = sent.text(), "a definition could not be written");
        }
        Err(error) => warn!(definition = name, %error, "a request to the server itself could not be built"),
    }
}
