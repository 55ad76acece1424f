//! Server-side apply and the bookkeeping of field ownership (structured-merge-diff; apimachinery
//! pkg/util/managedfields).
//!
//! Every write leaves in metadata.managedFields which manager owns which fields. An apply merges its configuration into
//! the live object, takes away what its manager applied before and no longer does, and is refused where it would change
//! what another manager owns, unless forced.

mod field_set;
mod managers;
#[cfg(test)]
mod tests;
mod typed;
mod types;

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use self::{
    field_set::FieldSet,
    managers::{Manager, Managers, Operation},
    typed::Node,
};
use crate::{Status, meta, schema::Schema, status::Cause};

/// Who writes, and how.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    pub manager: &'a str,
    /// apiVersion of the request.
    pub api_version: &'a str,
    /// Empty, or `status`, `scale`, ...
    pub subresource: &'a str,
    pub now: Timestamp,
}

/// Fields that nobody owns: they identify the object or belong to the server (managedfields/stripmeta.go).
const UNOWNED: [&str; 10] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
    "deletionTimestamp",
];

fn strip(set: &mut FieldSet) {
    set.remove_child("f:apiVersion");
    set.remove_child("f:kind");
    if let Some(metadata) = set.child_mut("f:metadata") {
        metadata.leave();
        for field in UNOWNED {
            metadata.remove_child(&format!("f:{field}"));
        }
        if metadata.is_empty() {
            set.remove_child("f:metadata");
        }
    }
}

/// What a write through the main resource or a subresource does not reach.
fn strip_unreachable(set: &mut FieldSet, ty: Option<Schema<'_>>, subresource: &str) {
    match subresource {
        "" if ty.is_some_and(|ty| ty.splits_status() && ty.table().is_none_or(|ty| ty.name() != "Node")) => {
            set.remove_child("f:status");
        }
        "status" => set.keep_children(&["f:metadata", "f:status"]),
        _ => {}
    }
}

/// Sets metadata.managedFields of `new` after a create (`old` is `None`), update or patch by `writer`. Without a type
/// every list is owned as a whole.
pub fn track_update<'t>(
    ty: impl Into<Option<Schema<'t>>>,
    old: Option<&Value>,
    new: &mut Value,
    writer: &Writer<'_>,
) -> Result<(), Status> {
    let ty = ty.into();
    // A list of one empty entry is how a user gives the bookkeeping up.
    let given = meta::items_at(new, &["metadata", "managedFields"]);
    let reset = writer.subresource.is_empty() && given == [json!({})];
    // What the client sends counts, so that it can migrate from client-side apply; but not through a subresource, and not
    // when it sends nothing, as clients do that do not know the field.
    let mut managers = if writer.subresource.is_empty() { Managers::read(new) } else { Managers::default() };
    meta::remove(new, &["metadata", "managedFields"]);
    if managers.is_empty()
        && !reset
        && let Some(old) = old
    {
        managers = Managers::read(old);
    }
    // Nobody applied: an object whose bookkeeping was given up stays without.
    if reset || (managers.is_empty() && old.is_some()) {
        return Ok(());
    }
    let blank = blank();
    let changes = typed::compare(Node::root(ty), Some(old.unwrap_or(&blank)), Some(new));
    let mut taken = changes.set;
    strip(&mut taken);
    strip_unreachable(&mut taken, ty, writer.subresource);
    let me = Manager::new(writer, Operation::Update);
    let mut owned = managers.set_of(&me);
    managers.release_from_others(&me, &changes.removed);
    managers.release_from_others(&me, &taken);
    owned.absorb(taken);
    owned.subtract(&changes.removed);
    managers.replace(me, owned, writer.now);
    managers.write(new);
    Ok(())
}

/// What a new object is compared with.
fn blank() -> Value {
    json!({"metadata": {}})
}

/// Merges an applied configuration into `live` (`None`: create). Conflicts are a 409 unless `force`.
pub fn apply<'t>(
    ty: impl Into<Option<Schema<'t>>>,
    live: Option<&Value>,
    config: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, Status> {
    let ty = ty.into();
    if !meta::items_at(config, &["metadata", "managedFields"]).is_empty() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let node = Node::root(ty);
    let config = &reachable(config, ty, writer.subresource);
    let mut problems = Vec::new();
    typed::check_lists(node, config, "", &mut problems);
    if let Some(Schema::Custom(custom)) = ty {
        types::check(custom.node(), config, &mut problems);
    }
    if !problems.is_empty() {
        return Err(untyped(config, &problems));
    }
    let mut applied = typed::set_of(node, config);
    let empty = json!({});
    let mut managers = live.map(Managers::read).unwrap_or_default();
    if let Some(live) = live
        && managers.is_empty()
    {
        managers = before_first_apply(ty, live, writer);
    }
    let live = live.unwrap_or(&empty);
    let me = Manager::new(writer, Operation::Apply);
    let mut merged = typed::merge(node, Some(live), config);
    let mut kept = managers.union_of_others(&me);
    // A configuration's name and the like have no owner, but keep the metadata that they are in.
    kept.extend(&applied);
    strip(&mut applied);
    let mut dropped = managers.set_of(&me);
    dropped.subtract(&kept);
    typed::remove(node, &mut merged, &dropped, &kept);

    let mut changes = typed::compare(node, Some(live), Some(&merged));
    strip(&mut changes.set);
    let mut conflicts = managers.conflicts(&me, &changes.set);
    if writer.manager == KUBECTL && !conflicts.is_empty() {
        let allowed = last_applied(node, live, writer).paths();
        let allowed: HashSet<String> = allowed.into_iter().collect();
        conflicts.retain(|(_, path)| !allowed.contains(path));
    }
    if !conflicts.is_empty() && !force {
        return Err(conflict_status(&conflicts));
    }
    managers.release_from_others(&me, &changes.removed);
    managers.release_from_others(&me, &changes.set);
    managers.replace(me, applied, writer.now);
    managers.write(&mut merged);
    Ok(merged)
}

/// Merges a configuration into an object as an apply does, without owners: what a mutating policy does. What is owned as a whole
/// cannot be merged and is refused (apiserver pkg/admission/plugin/policy/mutating/patch/smd.go).
pub fn merge<'t>(ty: impl Into<Option<Schema<'t>>>, object: &Value, config: &Value) -> Result<Value, String> {
    let node = Node::root(ty.into());
    let mut problems = Vec::new();
    typed::check_lists(node, config, "", &mut problems);
    let mut undeclared = Vec::new();
    typed::find_undeclared(node, config, "", &mut undeclared);
    problems.extend(undeclared.into_iter().map(|path| format!("{path}: field not declared in schema")));
    if !problems.is_empty() {
        return Err(format!("failed to convert patch object to typed object: {}", problems.join(", ")));
    }
    let mut atomics = Vec::new();
    typed::find_atomics(node, config, "", &mut atomics);
    if !atomics.is_empty() {
        let atomics = atomics.join(", ");
        return Err(format!("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {atomics}"));
    }
    Ok(typed::merge(node, Some(object), config))
}

/// The manager whose client-side applies are taken over.
const KUBECTL: &str = "kubectl";
/// Where client-side apply keeps its last configuration.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Who owns what was there before anyone owned anything.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// A configuration that cannot be seen through its schema. Upstream gives such an error no reason of its own.
fn untyped(config: &Value, problems: &[String]) -> Status {
    let (group, version) = meta::group_version(meta::api_version(config));
    let why = match problems {
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    let message = format!(
        "failed to create typed patch object ({}/{}; {group}/{version}, Kind={}): {why}",
        meta::namespace(config),
        meta::name(config),
        meta::kind(config)
    );
    Status::other(500, "", message)
}

/// The 500 of a configuration with fields that its type does not have; `fields` are their paths.
pub fn undeclared(config: &Value, fields: &[&str]) -> Status {
    let problems: Vec<String> = fields.iter().map(|field| format!(".{field}: field not declared in schema")).collect();
    untyped(config, &problems)
}

fn before_first_apply(ty: Option<Schema<'_>>, live: &Value, writer: &Writer<'_>) -> Managers {
    let mut live = live.clone();
    meta::remove(&mut live, &["metadata", "managedFields"]);
    let mut set = typed::compare(Node::root(ty), Some(&blank()), Some(&live)).set;
    strip(&mut set);
    strip_unreachable(&mut set, ty, writer.subresource);
    let mut managers = Managers::default();
    let writer = Writer { manager: BEFORE_FIRST_APPLY, ..*writer };
    managers.replace(Manager::new(&writer, Operation::Update), set, writer.now);
    managers
}

/// The fields that the last client-side apply set and that are still as it set them: the same client may change them
/// without a conflict (managedfields/internal/lastappliedmanager.go).
fn last_applied(node: Node<'_>, live: &Value, writer: &Writer<'_>) -> FieldSet {
    let annotation = meta::str_at(live, &["metadata", "annotations", LAST_APPLIED]).unwrap_or_default();
    let Ok(config) = serde_json::from_str::<Value>(annotation) else { return FieldSet::default() };
    if meta::api_version(&config) != writer.api_version {
        return FieldSet::default();
    }
    let changes = typed::compare(node, Some(&config), Some(live));
    let mut unchanged = typed::set_of(node, &config);
    unchanged.subtract(&changes.set);
    unchanged.subtract(&changes.removed);
    unchanged
}

/// The part of a configuration that the resource or subresource takes.
fn reachable(config: &Value, ty: Option<Schema<'_>>, subresource: &str) -> Value {
    let mut config = config.clone();
    if let Value::Object(map) = &mut config {
        match subresource {
            "" if ty.is_some_and(Schema::splits_status) => {
                map.remove("status");
            }
            "status" => map.retain(|key, _| matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status")),
            _ => {}
        }
    }
    config
}

/// A field that the apply would change, and who owns it.
type Conflict<'a> = (&'a Manager, String);

fn conflict_status(conflicts: &[Conflict<'_>]) -> Status {
    let causes = conflicts
        .iter()
        .map(|(manager, path)| Cause {
            reason: "FieldManagerConflict".to_owned(),
            message: format!("conflict with {manager}"),
            field: path.clone(),
        })
        .collect();
    let message = match conflicts {
        [(manager, path)] => format!("Apply failed with 1 conflict: conflict with {manager}: {path}"),
        _ => {
            let mut lines: Vec<String> = Vec::new();
            let mut last = None;
            for (manager, path) in conflicts {
                if last != Some(manager) {
                    lines.push(format!("conflicts with {manager}:"));
                    last = Some(manager);
                }
                lines.push(format!("- {path}"));
            }
            format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
        }
    };
    Status::apply_conflict(causes, message)
}
