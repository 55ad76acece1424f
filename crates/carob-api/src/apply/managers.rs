//! metadata.managedFields: who owns what.

use std::fmt;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{Conflict, Writer, field_set::FieldSet};
use crate::meta;

/// Managers that updated an object, before the oldest are counted as one (managedfields/capmanagers.go).
const UPDATE_MANAGERS_MAX: usize = 10;
/// Name of the manager that owns what the oldest owned.
const ANCIENT: &str = "ancient-changes";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// What tells one entry from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manager {
    name: String,
    operation: Operation,
    api_version: String,
    subresource: String,
    /// RFC 3339; part of what a conflict shows.
    time: Option<String>,
}

impl Manager {
    pub(super) fn new(writer: &Writer<'_>, operation: Operation) -> Self {
        Self {
            name: writer.manager.to_owned(),
            operation,
            api_version: writer.api_version.to_owned(),
            subresource: writer.subresource.to_owned(),
            time: None,
        }
    }

    /// Whether both are the same writer. An applier is the same whatever version it applies in.
    fn is(&self, other: &Manager) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        match (self.operation, &self.time) {
            (Operation::Apply, _) => Ok(()),
            (Operation::Update, None) => write!(f, " using {}", self.api_version),
            (Operation::Update, Some(time)) => write!(f, " using {} at {time}", self.api_version),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Managers {
    entries: Vec<(Manager, FieldSet)>,
}

impl Managers {
    /// Reads what an object carries; nothing if any of it cannot be read, as upstream has it
    /// (managedfields/internal/managedfields.go, `DecodeManagedFields`).
    pub(super) fn read(obj: &Value) -> Self {
        let entries = meta::items_at(obj, &["metadata", "managedFields"]).iter().map(decode);
        Self { entries: entries.collect::<Option<_>>().unwrap_or_default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn set_of(&self, me: &Manager) -> FieldSet {
        self.entries.iter().find(|(manager, _)| manager.is(me)).map(|(_, set)| set.clone()).unwrap_or_default()
    }

    pub(super) fn union_of_others(&self, me: &Manager) -> FieldSet {
        let mut union = FieldSet::default();
        for (_, set) in self.entries.iter().filter(|(manager, _)| !manager.is(me)) {
            union.extend(set);
        }
        union
    }

    /// What of `set` others own, manager by manager.
    pub(super) fn conflicts(&self, me: &Manager, set: &FieldSet) -> Vec<Conflict<'_>> {
        let others = self.entries.iter().filter(|(manager, _)| !manager.is(me));
        let conflicts = others
            .flat_map(|(manager, owned)| owned.intersection(set).paths().into_iter().map(move |path| (manager, path)));
        conflicts.collect()
    }

    /// Takes fields from all others: those that are gone, and those that `me` has set.
    pub(super) fn release_from_others(&mut self, me: &Manager, set: &FieldSet) {
        for (_, owned) in self.entries.iter_mut().filter(|(manager, _)| !manager.is(me)) {
            owned.subtract(set);
        }
    }

    /// Says what a manager owns. Its time moves only when its fields change.
    pub(super) fn replace(&mut self, me: Manager, set: FieldSet, now: Timestamp) {
        match self.entries.iter_mut().find(|(manager, _)| manager.is(&me)) {
            Some((manager, owned)) => {
                if *owned != set || manager.api_version != me.api_version {
                    *owned = set;
                    *manager = Manager { time: Some(meta::format_time(now)), ..me };
                }
            }
            None if set.is_empty() => {}
            None => self.entries.push((Manager { time: Some(meta::format_time(now)), ..me }, set)),
        }
    }

    /// Writes the entries into an object, in upstream's order.
    pub(super) fn write(mut self, obj: &mut Value) {
        self.entries.retain(|(_, set)| !set.is_empty());
        self.cap();
        self.entries.sort_by(|(a, _), (b, _)| {
            (a.operation, &a.time, &a.name, &a.api_version, &a.subresource).cmp(&(
                b.operation,
                &b.time,
                &b.name,
                &b.api_version,
                &b.subresource,
            ))
        });
        let entries: Vec<Value> = self.entries.iter().map(|(manager, set)| encode(manager, set)).collect();
        if entries.is_empty() {
            meta::remove(obj, &["metadata", "managedFields"]);
        } else {
            meta::set(obj, &["metadata", "managedFields"], entries);
        }
    }

    /// Merges the oldest updates of one version into one entry, so that the list is bounded.
    fn cap(&mut self) {
        let count = |entries: &[(Manager, FieldSet)]| {
            entries.iter().filter(|(manager, _)| manager.operation == Operation::Update).count()
        };
        while count(&self.entries) > UPDATE_MANAGERS_MAX {
            let oldest = |entries: &[(Manager, FieldSet)]| {
                let updates = entries
                    .iter()
                    .enumerate()
                    .filter(|(_, (manager, _))| manager.operation == Operation::Update && manager.name != ANCIENT);
                updates.min_by(|(_, (a, _)), (_, (b, _))| a.time.cmp(&b.time)).map(|(index, _)| index)
            };
            let Some(index) = oldest(&self.entries) else { return };
            let (mut manager, set) = self.entries.remove(index);
            ANCIENT.clone_into(&mut manager.name);
            match self.entries.iter_mut().find(|(other, _)| other.is(&manager)) {
                Some((other, owned)) => {
                    owned.absorb(set);
                    other.time = manager.time;
                }
                None => self.entries.push((manager, set)),
            }
        }
    }
}

fn decode(entry: &Value) -> Option<(Manager, FieldSet)> {
    let text = |field| meta::str_at(entry, &[field]).unwrap_or_default().to_owned();
    let operation = match text("operation").as_str() {
        "Apply" => Operation::Apply,
        "Update" => Operation::Update,
        _ => return None,
    };
    let api_version = text("apiVersion");
    if api_version.is_empty() || text("fieldsType") != "FieldsV1" {
        return None;
    }
    let manager = Manager {
        name: text("manager"),
        operation,
        api_version,
        subresource: text("subresource"),
        time: meta::str_at(entry, &["time"]).map(str::to_owned),
    };
    let set = entry.get("fieldsV1").map_or(Some(FieldSet::default()), FieldSet::from_json)?;
    Some((manager, set))
}

fn encode(manager: &Manager, set: &FieldSet) -> Value {
    let mut entry = Map::new();
    let operation = match manager.operation {
        Operation::Apply => "Apply",
        Operation::Update => "Update",
    };
    for (field, value) in [
        ("manager", manager.name.as_str()),
        ("operation", operation),
        ("apiVersion", &manager.api_version),
        ("fieldsType", "FieldsV1"),
        ("subresource", &manager.subresource),
        ("time", manager.time.as_deref().unwrap_or_default()),
    ] {
        if !value.is_empty() {
            entry.insert(field.to_owned(), value.into());
        }
    }
    entry.insert("fieldsV1".to_owned(), set.to_json());
    Value::Object(entry)
}
