//! What a DELETE does to an object: grace, finalizers, propagation
//! (apiserver pkg/registry/rest/delete.go, pkg/registry/generic/registry/store.go).

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::{FieldError, FieldPath, ResourceDef, Status, meta, status::GroupResource};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Options of a DELETE that decide what happens to the object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub precondition_uid: Option<String>,
    pub precondition_resource_version: Option<String>,
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

impl DeleteOptions {
    /// From the JSON of a DeleteOptions, checked as upstream's `ValidateDeleteOptions`.
    pub fn from_json(value: &Value) -> Result<Self, Status> {
        let mut errors = Vec::new();
        let root = FieldPath::default();
        let policy = meta::str_at(value, &["propagationPolicy"]);
        let orphan = meta::bool_at(value, &["orphanDependents"]);
        if policy.is_some() && orphan.is_some() {
            let message = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid(&root.child("propagationPolicy"), policy.unwrap_or_default(), message));
        }
        let propagation = match (policy, orphan) {
            (None, None) => None,
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some(other), _) => {
                let supported = ["Background", "Foreground", "Orphan", ""];
                errors.push(FieldError::not_supported(&root.child("propagationPolicy"), other, &supported));
                None
            }
        };
        for (index, item) in meta::items_at(value, &["dryRun"]).iter().enumerate() {
            if item.as_str() != Some("All") {
                errors.push(FieldError::not_supported(&root.child("dryRun").index(index), item.clone(), &["All"]));
            }
        }
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors));
        }
        let text = |field| meta::str_at(value, &["preconditions", field]).map(str::to_owned);
        Ok(Self {
            grace_period_seconds: meta::i64_at(value, &["gracePeriodSeconds"]),
            propagation,
            precondition_uid: text("uid"),
            precondition_resource_version: text("resourceVersion"),
            dry_run: !meta::items_at(value, &["dryRun"]).is_empty(),
        })
    }

    /// 409 unless the object is the one that the client means. `resource_version` is the stored object's.
    pub fn check_preconditions(&self, def: &ResourceDef, obj: &Value, resource_version: &str) -> Result<(), Status> {
        let failed = |what: &str, want: &str, have: &str| {
            let why = format!("Precondition failed: {what} in precondition: {want}, {what} in object meta: {have}");
            Err(Status::conflict(GroupResource::new(def.group(), def.plural()), meta::name(obj), &why))
        };
        match (&self.precondition_uid, &self.precondition_resource_version) {
            (Some(want), _) if want != meta::uid(obj) => failed("UID", want, meta::uid(obj)),
            (_, Some(want)) if want != resource_version => failed("ResourceVersion", want, resource_version),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, PartialEq)]
pub enum Deletion {
    /// Remove it from the store now.
    Remove,
    /// Store this object: deletionTimestamp, grace period and finalizers are set.
    Mark(Value),
    /// Already marked so; answer with the stored object.
    Unchanged,
}

/// Decides what a DELETE does. Preconditions have been checked.
pub fn plan_deletion(def: &ResourceDef, obj: &Value, options: &DeleteOptions, now: Timestamp) -> Deletion {
    // A negative period means the shortest, as upstream reads it.
    let requested = options.grace_period_seconds.map(|seconds| if seconds < 0 { 1 } else { seconds });
    let grace = grace_of(def, obj, requested);
    let finalizers = finalizers_after(obj, options.propagation, def.strategy().rules().orphans_by_default);
    let is_held = !finalizers.is_empty() || def.strategy().holds_back_deletion(obj);
    let waits = match grace {
        Grace::Pending => return Deletion::Unchanged,
        Grace::None => false,
        Grace::Begin(seconds) | Grace::Shorten(seconds) => seconds > 0,
    };
    if !waits && !is_held {
        return Deletion::Remove;
    }
    let mut marked = obj.clone();
    if finalizers.is_empty() {
        meta::remove(&mut marked, &["metadata", "finalizers"]);
    } else {
        meta::set(&mut marked, &["metadata", "finalizers"], finalizers);
    }
    match grace {
        Grace::Begin(seconds) => mark(&mut marked, now, seconds),
        Grace::Shorten(seconds) => shorten(&mut marked, seconds),
        Grace::None | Grace::Pending => {
            if !meta::is_being_deleted(obj) {
                mark(&mut marked, now, 0);
            }
            def.strategy().mark_deleted(&mut marked);
            if marked == *obj {
                return Deletion::Unchanged;
            }
        }
    }
    Deletion::Mark(marked)
}

enum Grace {
    /// Not graceful: removed at once, or when the finalizers are gone.
    None,
    Begin(i64),
    Shorten(i64),
    /// A deletion that this one cannot shorten is under way.
    Pending,
}

fn grace_of(def: &ResourceDef, obj: &Value, requested: Option<i64>) -> Grace {
    if meta::is_being_deleted(obj) {
        let current = meta::i64_at(obj, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or_default();
        return match requested {
            _ if current == 0 => Grace::None,
            Some(seconds) if seconds < current => Grace::Shorten(seconds),
            _ => Grace::Pending,
        };
    }
    def.strategy().deletion_grace_seconds(obj, requested).map_or(Grace::None, Grace::Begin)
}

fn mark(obj: &mut Value, now: Timestamp, grace_seconds: i64) {
    let at = now.saturating_add(SignedDuration::from_secs(grace_seconds)).unwrap_or(now);
    meta::set(obj, &["metadata", "deletionTimestamp"], meta::format_time(at));
    meta::set(obj, &["metadata", "deletionGracePeriodSeconds"], grace_seconds);
    // Controllers must see that the object's meaning changed.
    let generation = meta::generation(obj);
    if generation > 0 {
        meta::set(obj, &["metadata", "generation"], generation + 1);
    }
}

fn shorten(obj: &mut Value, grace_seconds: i64) {
    let current = meta::i64_at(obj, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or_default();
    let deadline = meta::deletion_timestamp(obj).and_then(|text| text.parse::<Timestamp>().ok());
    let earlier = SignedDuration::from_secs(grace_seconds.saturating_sub(current));
    if let Some(at) = deadline.and_then(|at| at.checked_add(earlier).ok()) {
        meta::set(obj, &["metadata", "deletionTimestamp"], meta::format_time(at));
    }
    meta::set(obj, &["metadata", "deletionGracePeriodSeconds"], grace_seconds);
}

/// The finalizers with or without the garbage collector's, as the propagation policy says.
fn finalizers_after(obj: &Value, propagation: Option<Propagation>, orphans_by_default: bool) -> Vec<Value> {
    let has = |name: &str| meta::finalizers(obj).any(|f| f == name);
    let wanted = match propagation {
        Some(policy) => policy,
        None if has(ORPHAN) => Propagation::Orphan,
        None if has(FOREGROUND) => Propagation::Foreground,
        None if orphans_by_default => Propagation::Orphan,
        None => Propagation::Background,
    };
    let mut finalizers: Vec<Value> =
        meta::finalizers(obj).filter(|f| *f != ORPHAN && *f != FOREGROUND).map(Value::from).collect();
    match wanted {
        Propagation::Orphan => finalizers.push(ORPHAN.into()),
        Propagation::Foreground => finalizers.push(FOREGROUND.into()),
        Propagation::Background => {}
    }
    finalizers
}

/// Whether an update that leaves `new` behind completes a deletion that only waited for finalizers.
pub fn deletion_is_complete(new: &Value, old: &Value) -> bool {
    let namespace_holds = meta::kind(new) == "Namespace" && !meta::items_at(new, &["spec", "finalizers"]).is_empty();
    meta::finalizers(new).next().is_none()
        && !namespace_holds
        && meta::is_being_deleted(old)
        && meta::i64_at(old, &["metadata", "deletionGracePeriodSeconds"]) == Some(0)
}
