//! The condition `Dangling` of FlowSchemas: whether the level exists that a schema sends its requests to
//! (apiserver `pkg/util/flowcontrol/apf_controller.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use carob_api::meta;
use carob_store::{Entry, EventKind, Watch, WatchItem};
use http::StatusCode;
use serde_json::{Value, json};
use tracing::warn;

use super::{RETRY_FIRST, RETRY_LONGEST};
use crate::ApiServer;
use crate::current::prefix_of;
use crate::own_requests;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: (&str, &str, &str) = (GROUP, "v1", "flowschemas");
const LEVELS: (&str, &str, &str) = (GROUP, "v1", "prioritylevelconfigurations");
const PATH: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";

/// What is stored, by key.
struct Stored {
    /// The name of the level that each schema is about.
    schemas: BTreeMap<Arc<str>, String>,
    /// Names.
    levels: BTreeSet<String>,
    schema_watch: Watch,
    level_watch: Watch,
    /// Schemas whose condition has to be looked at.
    pending: BTreeSet<Arc<str>>,
}

/// Keeps the condition of every FlowSchema. Does not end but with the store.
pub(super) async fn keep(server: ApiServer) {
    let mut stored = Stored::read(&server);
    let mut pause = RETRY_FIRST;
    loop {
        stored.settle(&server).await;
        if stored.pending.is_empty() {
            pause = RETRY_FIRST;
        }
        let item = tokio::select! {
            // All branches are cancel safe.
            item = stored.schema_watch.next() => Item::Schema(item),
            item = stored.level_watch.next() => Item::Level(item),
            () = tokio::time::sleep(pause), if !stored.pending.is_empty() => {
                pause = (pause * 2).min(RETRY_LONGEST);
                continue;
            }
        };
        match item {
            Item::Schema(WatchItem::Event(event)) => stored.schema(event.kind, &event.entry),
            Item::Level(WatchItem::Event(event)) => stored.level(event.kind, &event.entry),
            Item::Schema(WatchItem::Lagged) | Item::Level(WatchItem::Lagged) => stored = Stored::read(&server),
            Item::Schema(WatchItem::Closed) | Item::Level(WatchItem::Closed) => return,
        }
    }
}

enum Item {
    Schema(WatchItem),
    Level(WatchItem),
}

impl Stored {
    fn read(server: &ApiServer) -> Self {
        let (levels, level_watch) = server.store().list_and_watch(&prefix_of(LEVELS));
        let (schemas, schema_watch) = server.store().list_and_watch(&prefix_of(SCHEMAS));
        let levels = levels.iter().map(|entry| name(entry)).collect();
        let mut stored = Self { schemas: BTreeMap::new(), levels, schema_watch, level_watch, pending: BTreeSet::new() };
        for entry in &schemas {
            stored.schema(EventKind::Put, entry);
        }
        stored
    }

    fn schema(&mut self, kind: EventKind, entry: &Entry) {
        let level = match kind {
            EventKind::Put => serde_json::from_slice(&entry.value).ok().as_ref().and_then(level_of),
            EventKind::Delete => None,
        };
        match level {
            Some(level) => {
                self.schemas.insert(Arc::clone(&entry.key), level);
                self.pending.insert(Arc::clone(&entry.key));
            }
            None => {
                self.schemas.remove(&entry.key);
                self.pending.remove(&entry.key);
            }
        }
    }

    fn level(&mut self, kind: EventKind, entry: &Entry) {
        let name = name(entry);
        let is_news = match kind {
            EventKind::Put => self.levels.insert(name.clone()),
            EventKind::Delete => self.levels.remove(&name),
        };
        if is_news {
            let concerned = self.schemas.iter().filter(|(_, level)| **level == name);
            self.pending.extend(concerned.map(|(key, _)| Arc::clone(key)));
        }
    }

    /// Looks at what is pending. What could not be written stays so.
    async fn settle(&mut self, server: &ApiServer) {
        for key in std::mem::take(&mut self.pending) {
            let Some(level) = self.schemas.get(&key) else { continue };
            let Some(entry) = server.store().get(&key) else { continue };
            let Ok(mut held) = serde_json::from_slice::<Value>(&entry.value) else { continue };
            meta::set(&mut held, &["metadata", "resourceVersion"], entry.mod_revision.to_string());
            let now = meta::format_time(server.now());
            let held_conditions = meta::items_at(&held, &["status", "conditions"]);
            let Some(conditions) = conditions(held_conditions, level, self.levels.contains(level), &now) else {
                continue;
            };
            if !write(server, &held, conditions).await {
                self.pending.insert(key);
            }
        }
    }
}

fn name(entry: &Entry) -> String {
    entry.key.rsplit('/').next().unwrap_or_default().to_owned()
}

fn level_of(schema: &Value) -> Option<String> {
    meta::str_at(schema, &["spec", "priorityLevelConfiguration", "name"]).map(str::to_owned)
}

/// The conditions as they have to be; `None` where they are so already. Others stay.
fn conditions(held: &[Value], level: &str, exists: bool, now: &str) -> Option<Vec<Value>> {
    let object = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = if exists {
        ("False", "Found", format!("{object} and it exists"))
    } else {
        ("True", "NotFound", format!("{object} but there is no such object"))
    };
    let is_it = |condition: &&Value| meta::str_at(condition, &["type"]) == Some("Dangling");
    let text = |condition: &Value, field: &str| meta::str_at(condition, &[field]).unwrap_or_default().to_owned();
    if let Some(old) = held.iter().find(is_it)
        && (text(old, "status"), text(old, "reason"), text(old, "message"))
            == (status.to_owned(), reason.to_owned(), message.clone())
    {
        return None;
    }
    let mut conditions: Vec<Value> = held.iter().filter(|condition| !is_it(condition)).cloned().collect();
    conditions.push(json!({
        "type": "Dangling", "status": status, "lastTransitionTime": now, "reason": reason, "message": message,
    }));
    Some(conditions)
}

/// Answers whether there is nothing left to do: a newer state is on its way here where another write came first.
async fn write(server: &ApiServer, held: &Value, conditions: Vec<Value>) -> bool {
    let revision = meta::resource_version(held);
    let patch = json!({ "metadata": { "resourceVersion": revision }, "status": { "conditions": conditions } });
    let name = meta::name(held);
    match own_requests::merge_patch(server, &format!("{PATH}/{name}/status"), &patch).await {
        Ok(sent) if sent.code.is_success() => true,
        Ok(sent) if matches!(sent.code, StatusCode::CONFLICT | StatusCode::NOT_FOUND) => true,
        Ok(sent) => {
            warn!(flowschema = name, status = %sent.code, answer = sent.text(), "its condition could not be written");
            false
        }
        Err(error) => {
            warn!(flowschema = name, %error, "a request to the server itself could not be built");
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_is_upstreams() {
        let found = conditions(&[], "exempt", true, "2026-01-01T00:00:00Z").expect("a change");
        assert_eq!(found[0]["status"], "False");
        assert_eq!(found[0]["reason"], "Found");
        assert_eq!(
            found[0]["message"],
            "This FlowSchema references the PriorityLevelConfiguration object named \"exempt\" and it exists"
        );
        assert_eq!(conditions(&found, "exempt", true, "2027-01-01T00:00:00Z"), None, "nothing has changed");
        let other = json!({"type": "Other", "status": "True"});
        let lost = conditions(&[other.clone(), found[0].clone()], "exempt", false, "2027-01-01T00:00:00Z");
        let lost = lost.expect("a change");
        assert_eq!((&lost[0], lost[1]["status"].as_str()), (&other, Some("True")));
        assert_eq!(
            lost[1]["message"],
            "This FlowSchema references the PriorityLevelConfiguration object named \"exempt\" but there is no such object"
        );
    }
}
