//! Deletes what has lost its owners, orphans what is to be kept, and lets owners wait for what they own
//! (`pkg/controller/garbagecollector`).
//!
//! It watches the metadata of every resource that the API serves, built-in or not. The graph says what to look at; before
//! anything is deleted, the API itself is asked whether the object still names its owners and whether those are really gone.

mod graph;
mod owners;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carob_client::{
    Asker, Change, During, EventKind, EventRecorder, Informer, Reconcile, ReconcileError, Requeue, Subject,
};
use futures_util::future::join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::metadata::PartialObjectMeta;
use serde_json::json;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::context::Context;
use crate::discovery::{self, Served};
use graph::{FOREGROUND, Graph, Item, ORPHAN, Uid, group};
use owners::{Absent, AbsentOwners, OwnerId};

/// How long new watches are given for their first list before the collector goes on without them.
const SYNC_MAX: Duration = Duration::from_secs(30);
/// Resources whose objects neither own nor are owned (garbagecollector's DefaultIgnoredResources).
const IGNORED: [(&str, &str); 2] = [("", "events"), ("events.k8s.io", "events")];
/// Resources whose changes mean that the API may serve others than before.
const SERVING: [(&str, &str); 2] =
    [("apiextensions.k8s.io", "customresourcedefinitions"), ("apiregistration.k8s.io", "apiservices")];

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum GcKey {
    /// Which resources there are.
    Resources,
    /// The object of this uid.
    Object(Uid),
}

pub(crate) struct GarbageCollector {
    context: Context,
    ask: Asker<GcKey>,
    graph: Arc<Mutex<Graph>>,
    watched: Mutex<HashMap<(String, String), Watched>>,
    ready: watch::Sender<bool>,
    absent: AbsentOwners,
    recorder: EventRecorder,
}

#[derive(Clone)]
struct Watched {
    served: Arc<Served>,
    informer: Informer<PartialObjectMeta>,
}

/// What is known of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnerState {
    /// It is there.
    Solid,
    /// It is there but is being deleted, and waits for the object in question.
    Waiting,
    /// There is no such object.
    Absent,
}

/// What becomes of an object that is not being deleted itself.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Keep,
    /// It has owners left, but these of its references lead nowhere.
    Unreference(Vec<String>),
    Delete,
    /// Its only owners wait for it, and it may have dependents of its own.
    DeleteAfterDependents,
}

fn decide(owners: &[(String, OwnerState)], has_dependents: bool) -> Fate {
    let uids = |state: OwnerState| owners.iter().filter(move |owner| owner.1 == state).map(|owner| owner.0.clone());
    let dead: Vec<String> = uids(OwnerState::Absent).chain(uids(OwnerState::Waiting)).collect();
    if owners.is_empty() || dead.is_empty() {
        Fate::Keep
    } else if uids(OwnerState::Solid).next().is_some() {
        Fate::Unreference(dead)
    } else if uids(OwnerState::Waiting).next().is_some() && has_dependents {
        Fate::DeleteAfterDependents
    } else {
        Fate::Delete
    }
}

impl GarbageCollector {
    pub(crate) fn new(context: Context, ask: Asker<GcKey>) -> Self {
        Self {
            recorder: context.recorder("garbage-collector-controller"),
            context,
            ask,
            graph: Arc::default(),
            watched: Mutex::default(),
            ready: watch::Sender::new(false),
            absent: AbsentOwners::default(),
        }
    }

    /// Watches what the API serves now, and no longer what it does not.
    async fn update_resources(&self) -> Result<(), ReconcileError> {
        let mut served: HashMap<(String, String), Served> = HashMap::new();
        for one in discovery::served(&self.context.client).await? {
            let id = (one.resource.group.clone(), one.resource.plural.clone());
            if !IGNORED.contains(&(id.0.as_str(), id.1.as_str())) {
                served.insert(id, one);
            }
        }
        let fresh: Vec<Informer<PartialObjectMeta>> = {
            let mut watched = self.watched.lock().expect("no holder of the watches panics");
            watched.retain(|id, old| {
                let same = served.get(id).is_some_and(|new| new.resource.version == old.served.resource.version);
                if !same {
                    self.context.informers.forget_metadata(&old.served.resource);
                }
                same
            });
            served.retain(|id, _| !watched.contains_key(id));
            served.into_iter().map(|(id, one)| self.watch(&mut watched, id, one)).collect()
        };
        let synced = join_all(fresh.iter().map(|informer| informer.synced()));
        if tokio::time::timeout(SYNC_MAX, synced).await.is_err() {
            warn!("some resources cannot be listed: their objects are not collected for now");
        }
        self.ready.send_replace(true);
        Ok(())
    }

    fn watch(
        &self,
        watched: &mut HashMap<(String, String), Watched>,
        id: (String, String),
        served: Served,
    ) -> Informer<PartialObjectMeta> {
        let served = Arc::new(served);
        let informer = self.context.informers.of_metadata(&served.resource);
        let serving = SERVING.contains(&(id.0.as_str(), id.1.as_str()));
        watched.insert(id, Watched { served: Arc::clone(&served), informer: informer.clone() });
        let (graph, ask) = (Arc::clone(&self.graph), self.ask.clone());
        informer.on_change(move |change| {
            for uid in take_in(&graph, &served, change) {
                ask.ask(GcKey::Object(uid));
            }
            if serving {
                ask.ask(GcKey::Resources);
            }
        });
        informer
    }

    fn graph<T>(&self, f: impl FnOnce(&mut Graph) -> T) -> T {
        f(&mut self.graph.lock().expect("no holder of the graph panics"))
    }

    /// The watched resource of a kind, whatever the version that a reference names it by.
    fn watched(&self, reference: &OwnerReference) -> Option<Watched> {
        let watched = self.watched.lock().expect("no holder of the watches panics");
        let found = watched
            .values()
            .find(|one| one.served.resource.group == group(reference) && one.served.resource.kind == reference.kind);
        found.cloned()
    }

    fn api(&self, served: &Served, namespace: Option<&str>) -> Api<DynamicObject> {
        let client = self.context.client.clone();
        match namespace.filter(|_| served.namespaced) {
            Some(namespace) => Api::namespaced_with(client, namespace, &served.resource),
            None => Api::all_with(client, &served.resource),
        }
    }

    /// The object as the API has it now, if it is still the same one.
    async fn latest(&self, uid: &str, item: &Item) -> Result<Option<ObjectMeta>, ReconcileError> {
        let api = self.api(&item.served, item.key.namespace());
        let found = api.get_metadata_opt(&item.key.name).await;
        let found = found.during(|| format!("get {} {}", item.served.resource.plural, item.key))?;
        Ok(found.map(|object| object.metadata).filter(|meta| meta.uid.as_deref() == Some(uid)))
    }

    async fn owner_state(&self, item: &Item, reference: &OwnerReference) -> Result<OwnerState, ReconcileError> {
        let Some(watched) = self.watched(reference) else {
            let (kind, key) = (&reference.kind, &item.key);
            return Err(ReconcileError::Unusable(format!("the kind {kind} of an owner of {key} is not served")));
        };
        if watched.served.namespaced && item.key.namespace().is_none() {
            // It cannot be told which namespace is meant: such an owner is never found gone.
            if lives_elsewhere(&watched, item, reference) {
                self.report_invalid_namespace(item, reference);
            }
            return Ok(OwnerState::Solid);
        }
        let id = OwnerId::new(reference, item, watched.served.namespaced);
        if let Some(absent) = self.absent.get(&id) {
            if absent.elsewhere {
                self.report_invalid_namespace(item, reference);
            }
            return Ok(OwnerState::Absent);
        }
        let namespace = item.key.namespace().filter(|_| watched.served.namespaced);
        let cached = watched.informer.get(namespace, &reference.name).map(|object| object.metadata.clone());
        let meta = match cached.filter(|meta| meta.uid.as_ref() == Some(&reference.uid)) {
            Some(meta) => Some(meta),
            None => {
                let found = self.api(&watched.served, namespace).get_metadata_opt(&reference.name).await;
                found
                    .during(|| format!("get the owner {} of {}", reference.name, item.key))?
                    .map(|object| object.metadata)
            }
        };
        Ok(match meta.filter(|meta| meta.uid.as_ref() == Some(&reference.uid)) {
            None => {
                let elsewhere = lives_elsewhere(&watched, item, reference);
                self.absent.note(id, Absent { elsewhere });
                if elsewhere {
                    self.report_invalid_namespace(item, reference);
                }
                OwnerState::Absent
            }
            Some(meta) if Item::new(&watched.served, item.key.clone(), &meta).waits => OwnerState::Waiting,
            Some(_) => OwnerState::Solid,
        })
    }

    fn report_invalid_namespace(&self, item: &Item, reference: &OwnerReference) {
        let message = owners::invalid_namespace(reference, item);
        self.recorder.record(item.reference(), EventKind::Warning, "OwnerRefInvalidNamespace", message);
    }

    /// Takes an object that is not being deleted, and decides about it by what the API says now.
    async fn collect(&self, uid: &str, item: &Item) -> Result<(), ReconcileError> {
        let Some(meta) = self.latest(uid, item).await? else { return Ok(()) };
        let latest = Item::new(&item.served, item.key.clone(), &meta);
        let mut owners = Vec::new();
        for reference in &latest.owners {
            owners.push((reference.uid.clone(), self.owner_state(&latest, reference).await?));
        }
        let dependents = self.graph(|graph| graph.dependents_of(uid, &latest));
        match decide(&owners, !dependents.is_empty()) {
            Fate::Keep => Ok(()),
            Fate::Unreference(dead) => self.unreference(uid, &latest, &meta, &dead).await,
            Fate::Delete => self.delete(uid, &latest, &meta, policy(&meta)).await,
            Fate::DeleteAfterDependents => {
                if dependents.iter().any(|(_, dependent)| dependent.waits) {
                    // A circle of objects that wait for each other: one of them has to stop blocking.
                    let Some(meta) = self.stop_blocking(&latest, &meta).await? else { return Ok(()) };
                    return self.delete(uid, &latest, &meta, PropagationPolicy::Foreground).await;
                }
                self.delete(uid, &latest, &meta, PropagationPolicy::Foreground).await
            }
        }
    }

    async fn delete(
        &self,
        uid: &str,
        item: &Item,
        meta: &ObjectMeta,
        policy: PropagationPolicy,
    ) -> Result<(), ReconcileError> {
        debug!(resource = item.served.resource.plural, key = %item.key, ?policy, "its owners are gone: deleting it");
        // At this version its owners were checked; with another version it has to be looked at again.
        let preconditions =
            Preconditions { uid: Some(uid.to_owned()), resource_version: meta.resource_version.clone() };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        let deleted = self.api(&item.served, item.key.namespace()).delete(&item.key.name, &params).await;
        deleted.unless_gone(|| format!("delete {} {}", item.served.resource.plural, item.key)).map(drop)
    }

    /// Answers what the object is now; `None` if it is gone.
    async fn patch_meta(
        &self,
        item: &Item,
        meta: &ObjectMeta,
        patch: serde_json::Value,
    ) -> Result<Option<ObjectMeta>, ReconcileError> {
        let mut patch = json!({"metadata": patch});
        patch["metadata"]["uid"] = json!(meta.uid);
        patch["metadata"]["resourceVersion"] = json!(meta.resource_version);
        let api = self.api(&item.served, item.key.namespace());
        let written = api.patch_metadata(&item.key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        let written = written.unless_gone(|| format!("patch {} {}", item.served.resource.plural, item.key))?;
        Ok(written.map(|object| object.metadata))
    }

    /// Takes the references to these owners away.
    async fn unreference(
        &self,
        uid: &str,
        item: &Item,
        meta: &ObjectMeta,
        owners: &[String],
    ) -> Result<(), ReconcileError> {
        let left: Vec<&OwnerReference> =
            item.owners.iter().filter(|reference| !owners.contains(&reference.uid)).collect();
        if left.len() == item.owners.len() {
            return Ok(());
        }
        debug!(resource = item.served.resource.plural, key = %item.key, uid, ?owners, "taking away references to owners");
        self.patch_meta(item, meta, json!({"ownerReferences": left})).await.map(drop)
    }

    async fn stop_blocking(&self, item: &Item, meta: &ObjectMeta) -> Result<Option<ObjectMeta>, ReconcileError> {
        let unblocked: Vec<OwnerReference> = item
            .owners
            .iter()
            .map(|reference| OwnerReference { block_owner_deletion: Some(false), ..reference.clone() })
            .collect();
        self.patch_meta(item, meta, json!({"ownerReferences": unblocked})).await
    }

    async fn remove_finalizer(&self, uid: &str, item: &Item, finalizer: &str) -> Result<(), ReconcileError> {
        let Some(meta) = self.latest(uid, item).await? else { return Ok(()) };
        let held = meta.finalizers.clone().unwrap_or_default();
        let left: Vec<&String> = held.iter().filter(|held| *held != finalizer).collect();
        if left.len() == held.len() {
            return Ok(());
        }
        self.patch_meta(item, &meta, json!({"finalizers": left})).await.map(drop)
    }

    /// Frees all dependents, then the owner.
    async fn orphan(&self, uid: &str, item: &Item) -> Result<(), ReconcileError> {
        for (dependent_uid, dependent) in self.graph(|graph| graph.dependents(uid)) {
            if let Some(meta) = self.latest(&dependent_uid, &dependent).await? {
                let latest = Item::new(&dependent.served, dependent.key.clone(), &meta);
                self.unreference(&dependent_uid, &latest, &meta, &[uid.to_owned()]).await?;
            }
        }
        self.remove_finalizer(uid, item, ORPHAN).await
    }

    /// Lets an owner go once nothing blocks it any more; until then sees to its dependents.
    async fn wait_for_dependents(&self, uid: &str, item: &Item) -> Result<(), ReconcileError> {
        let dependents = self.graph(|graph| graph.dependents_of(uid, item));
        if !dependents.iter().any(|(_, dependent)| dependent.blocks(uid)) {
            return self.remove_finalizer(uid, item, FOREGROUND).await;
        }
        for (dependent_uid, _) in dependents.into_iter().filter(|(_, dependent)| !dependent.deleting) {
            self.ask.ask(GcKey::Object(dependent_uid));
        }
        Ok(())
    }
}

/// Whether the object that a reference names lives in another namespace than the one where its dependent looks for it.
fn lives_elsewhere(watched: &Watched, dependent: &Item, reference: &OwnerReference) -> bool {
    let namesakes = watched.informer.named(&reference.name);
    watched.served.namespaced
        && namesakes.iter().any(|object| {
            object.metadata.uid.as_ref() == Some(&reference.uid)
                && object.metadata.namespace.as_deref() != dependent.key.namespace()
        })
}

/// Takes a change into the graph. Answers what to look at because of it.
fn take_in(graph: &Mutex<Graph>, served: &Arc<Served>, change: Change<'_, PartialObjectMeta>) -> Vec<Uid> {
    let meta = change.latest().meta();
    let uid = meta.uid.as_deref().unwrap_or_default();
    let mut graph = graph.lock().expect("no holder of the graph panics");
    if change.new.is_some() { graph.apply(uid, Item::new(served, change.key(), meta)) } else { graph.remove(uid) }
}

/// How an object is deleted: as its own finalizers ask.
fn policy(meta: &ObjectMeta) -> PropagationPolicy {
    let has = |name: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == name);
    if has(ORPHAN) {
        PropagationPolicy::Orphan
    } else if has(FOREGROUND) {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    }
}

impl Reconcile for GarbageCollector {
    type Key = GcKey;

    fn name(&self) -> &'static str {
        "garbage-collector"
    }

    fn subject(&self, key: &GcKey) -> Option<Subject> {
        match key {
            GcKey::Resources => None,
            GcKey::Object(uid) => {
                self.graph(|graph| graph.get(uid)).map(|item| Subject { reference: item.reference() })
            }
        }
    }

    async fn reconcile(&self, key: GcKey) -> Result<Requeue, ReconcileError> {
        let uid = match key {
            GcKey::Resources => {
                self.update_resources().await?;
                // A rare look at everything: a request that was lost is made again.
                self.graph(|graph| graph.uids()).into_iter().for_each(|uid| self.ask.ask(GcKey::Object(uid)));
                return Ok(Requeue::No);
            }
            GcKey::Object(uid) => uid,
        };
        // The collector itself holds the sender, so waiting cannot fail.
        self.ready.subscribe().wait_for(|ready| *ready).await.expect("the sender lives as long as the collector");
        let Some(item) = self.graph(|graph| graph.get(&uid)) else { return Ok(Requeue::No) };
        if item.orphans {
            self.orphan(&uid, &item).await?;
        } else if item.waits {
            self.wait_for_dependents(&uid, &item).await?;
        } else if !item.deleting {
            self.collect(&uid, &item).await?;
        }
        Ok(Requeue::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_lives_as_long_as_one_of_its_owners() {
        use OwnerState::{Absent, Solid, Waiting};
        let cases: [(&[OwnerState], bool, Fate); 9] = [
            (&[], false, Fate::Keep),
            (&[Solid], false, Fate::Keep),
            (&[Solid, Absent], false, Fate::Unreference(vec!["1".to_owned()])),
            (&[Solid, Waiting], true, Fate::Unreference(vec!["1".to_owned()])),
            (&[Absent], false, Fate::Delete),
            (&[Absent], true, Fate::Delete),
            (&[Waiting], false, Fate::Delete),
            (&[Waiting], true, Fate::DeleteAfterDependents),
            (&[Absent, Waiting], true, Fate::DeleteAfterDependents),
        ];
        for (states, has_dependents, expected) in cases {
            let owners: Vec<_> = states.iter().enumerate().map(|(index, state)| (index.to_string(), *state)).collect();
            assert_eq!(decide(&owners, has_dependents), expected, "{states:?} {has_dependents}");
        }
    }
}
