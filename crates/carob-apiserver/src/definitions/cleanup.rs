//! The objects of a definition that is being deleted go first, then the finalizer that waited for them
//! (apiextensions-apiserver pkg/controller/finalizer).

use std::sync::Arc;

use carob_api::kinds::Definition;
use carob_api::lifecycle::{DeleteOptions, Deletion, plan_deletion};
use carob_api::strategy::definition::CLEANUP_FINALIZER;
use carob_api::{ResourceDef, meta};
use carob_store::{Entry, EventKind, Expect, Store, Txn, TxnError, WatchItem};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{Known, names, patch, report, source, status_patch};
use crate::ApiServer;
use crate::stored::{decode, encode};

/// Attempts to delete an object that others keep writing.
const ATTEMPTS_MAX: usize = 16;
/// Attempts to remove the finalizer while others write the definition.
const FINALIZER_ATTEMPTS_MAX: usize = 64;

/// Starts the deletion of a definition's objects, unless it has been started.
pub(super) fn begin(server: &ApiServer, known: &Known) {
    let metadata = &known.definition.metadata;
    if !metadata.finalizers.iter().any(|finalizer| finalizer == CLEANUP_FINALIZER) {
        return;
    }
    if !server.state().catalogue.begin_cleanup(&metadata.uid) {
        return;
    }
    let (server, definition, entry) = (server.clone(), known.definition.clone(), Arc::clone(&known.entry));
    tokio::spawn(async move {
        clean(&server, definition.clone(), &entry).await;
        server.state().catalogue.end_cleanup(&definition.metadata.uid);
    });
}

async fn clean(server: &ApiServer, mut definition: Definition, entry: &Entry) {
    let name = definition.metadata.name.clone();
    let (store, now) = (server.state().store.clone(), meta::format_time(server.now()));
    let under_way =
        names::condition("Terminating", true, "InstanceDeletionInProgress", "CustomResource deletion is in progress");
    names::set(&mut definition.status.conditions, under_way, &now);
    let status = status_patch(&definition, &entry.mod_revision.to_string());
    report(&name, patch(server, &format!("{name}/status"), &status).await);

    if let Some(def) = definition.stored_resource(&source(&store, &entry.key), entry.mod_revision.0) {
        let prefix = def.storage_prefix(None);
        let (objects, mut watch) = store.list_and_watch(&prefix);
        info!(definition = name, objects = objects.len(), "the objects of a definition are deleted");
        for object in objects {
            delete(server, &store, &def, object).await;
        }
        // What has finalizers of its own is waited for; what came in between is deleted too.
        while store.count(&prefix) > 0 {
            match watch.next().await {
                WatchItem::Event(event) if event.kind == EventKind::Put => {
                    delete(server, &store, &def, Arc::clone(&event.entry)).await;
                }
                WatchItem::Event(_) => {}
                WatchItem::Lagged => {
                    let (objects, fresh) = store.list_and_watch(&prefix);
                    watch = fresh;
                    for object in objects {
                        delete(server, &store, &def, object).await;
                    }
                }
                WatchItem::Closed => return,
            }
        }
    }
    remove_finalizer(server, &store, &entry.key, &name, &definition.metadata.uid).await;
}

async fn delete(server: &ApiServer, store: &Store, def: &ResourceDef, mut entry: Arc<Entry>) {
    for _ in 0..ATTEMPTS_MAX {
        let object = match decode(&entry) {
            Ok(object) => object,
            Err(error) => {
                // Nothing can be done with such bytes but to let them go.
                warn!(key = %entry.key, %error, "an object that cannot be read is deleted");
                json!({})
            }
        };
        let expect = Expect::Revision(entry.mod_revision);
        let txn = match plan_deletion(def, &object, &DeleteOptions::default(), server.now()) {
            Deletion::Remove => Txn::delete(Arc::clone(&entry.key), expect),
            Deletion::Mark(marked) => Txn::put(Arc::clone(&entry.key), expect, encode(&marked)),
            Deletion::Unchanged => return,
        };
        match store.txn(txn).await {
            Ok(_) => return,
            Err(TxnError::Conflict { .. }) => match store.get(&entry.key) {
                Some(newer) => entry = newer,
                None => return,
            },
            Err(error) => {
                warn!(key = %entry.key, error = %carob_kit::chain(&error), "an object could not be deleted");
                return;
            }
        }
    }
}

async fn remove_finalizer(server: &ApiServer, store: &Store, key: &str, name: &str, uid: &str) {
    for _ in 0..FINALIZER_ATTEMPTS_MAX {
        let Some(entry) = store.get(key) else { return };
        let object: Value = match decode(&entry) {
            Ok(object) => object,
            Err(error) => {
                warn!(key, %error, "a definition cannot be read");
                return;
            }
        };
        if meta::uid(&object) != uid {
            return;
        }
        let rest: Vec<&str> = meta::finalizers(&object).filter(|one| *one != CLEANUP_FINALIZER).collect();
        let change = json!({ "metadata": { "finalizers": rest, "resourceVersion": entry.mod_revision.to_string() } });
        let answer = patch(server, name, &change).await;
        if answer.as_ref().is_ok_and(|sent| sent.code == http::StatusCode::CONFLICT) {
            continue;
        }
        return report(name, answer);
    }
    warn!(definition = name, "the finalizer of a definition could not be removed: it is written all the time");
}
