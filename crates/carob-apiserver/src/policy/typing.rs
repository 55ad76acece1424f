//! Keeps `status.typeChecking` of ValidatingAdmissionPolicies (kubernetes pkg/controller/validatingadmissionpolicystatus): a
//! policy is looked at once for each generation of it.

use std::sync::Weak;

use carob_api::kinds::by_resource;
use carob_api::meta;
use carob_store::{Entry, EventKind, Store, WatchItem};
use http::StatusCode;
use serde_json::{Value, json};
use tracing::{debug, warn};

use super::types::warnings;
use crate::ApiServer;
use crate::admission::parse;
use crate::own_requests::merge_patch;
use crate::state::State;

const GROUP: &str = "admissionregistration.k8s.io";
const PLURAL: &str = "validatingadmissionpolicies";

/// Follows the policies until the server is gone.
pub(crate) async fn report_types(api: Weak<State>, store: Store) {
    let Some(prefix) = by_resource(GROUP, "v1", PLURAL).map(|def| def.storage_prefix(None)) else { return };
    loop {
        let (entries, mut watch) = store.list_and_watch(&prefix);
        for entry in &entries {
            let Some(server) = api.upgrade().map(ApiServer::of) else { return };
            report(&server, entry).await;
        }
        loop {
            let item = watch.next().await;
            let Some(server) = api.upgrade().map(ApiServer::of) else { return };
            match item {
                WatchItem::Event(event) if event.kind == EventKind::Put => report(&server, &event.entry).await,
                WatchItem::Event(_) => {}
                WatchItem::Lagged => break,
                WatchItem::Closed => return,
            }
        }
    }
}

async fn report(server: &ApiServer, entry: &Entry) {
    let Some(policy) = parse(&entry.key, &entry.value) else { return };
    let generation = meta::i64_at(&policy, &["metadata", "generation"]);
    if meta::i64_at(&policy, &["status", "observedGeneration"]) == generation || meta::is_being_deleted(&policy) {
        return;
    }
    let name = meta::name(&policy).to_owned();
    let served = server.state().catalogue.snapshot();
    // A policy may have many expressions, each of which is compiled for each kind.
    let found = tokio::task::spawn_blocking(move || warnings(&policy, &served.kinds)).await;
    let warnings = match found {
        Ok(warnings) => warnings,
        Err(error) => return warn!(policy = name, %error, "the types of a policy could not be checked"),
    };
    // A merge patch takes null for "remove".
    let warnings = if warnings.is_empty() { Value::Null } else { Value::Array(warnings) };
    let patch = json!({
        "metadata": { "resourceVersion": entry.mod_revision.to_string() },
        "status": { "observedGeneration": generation, "typeChecking": { "expressionWarnings": warnings } },
    });
    match merge_patch(server, &format!("/apis/{GROUP}/v1/{PLURAL}/{name}/status"), &patch).await {
        Ok(sent) if sent.code.is_success() => {}
        // A newer state of it is on its way here.
        Ok(sent) if matches!(sent.code, StatusCode::CONFLICT | StatusCode::NOT_FOUND) => {
            debug!(policy = name, status = %sent.code, "a policy changed meanwhile");
        }
        Ok(sent) => {
            warn!(policy = name, status = %sent.code, answer = sent.text(), "a policy's status could not be written")
        }
        Err(error) => warn!(policy = name, %error, "a request to the server itself could not be built"),
    }
}
