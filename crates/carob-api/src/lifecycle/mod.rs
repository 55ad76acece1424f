//! What every object passes on its way into and out of the store, whatever its kind
//! (apiserver pkg/registry/rest: create.go, update.go, delete.go).

mod deletion;
mod metadata;
pub use metadata::{check_namespace, validate_changeable_metadata};
pub(crate) use metadata::{validate_annotations, validate_embedded, validate_labels, validate_user_annotations};
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};

pub use deletion::{DeleteOptions, Deletion, Propagation, deletion_is_complete, plan_deletion};

use crate::{ResourceDef, Status, field::FieldErrors, kinds, meta, strategy::Part};

/// What the server sets on a new object.
#[derive(Debug, Clone, Copy)]
pub struct Creation<'a> {
    pub uid: &'a str,
    pub now: Timestamp,
    /// [`GENERATED_LEN`] random characters of [`GENERATED_ALPHABET`], used when the object has only a generateName.
    pub suffix: &'a str,
}

/// Characters of generated names: no vowels, nothing that looks like another (apimachinery pkg/util/rand).
pub const GENERATED_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of the generated suffix, characters.
pub const GENERATED_LEN: usize = 5;
/// Longest generateName that is used whole, bytes: the result must fit a DNS label (apiserver pkg/storage/names).
const GENERATE_NAME_LEN_MAX: usize = 63 - GENERATED_LEN;

/// Defaults of table and strategy: what decoding a request body ends with.
pub fn default(def: &ResourceDef, obj: &mut Value) {
    if let Some(schema) = def.hub_schema() {
        schema.apply_defaults(obj);
    }
    def.strategy().default(obj);
}

/// Makes a decoded object of the storage version ready for mutating admission: what clients may not set is dropped, what
/// they left out gets its default. Runs again where a part outside the server has changed the object.
pub fn prepare_create(def: &ResourceDef, new: &mut Value, namespace: &str) -> Result<(), Status> {
    metadata::check_namespace(def, new, namespace)?;
    drop_system_fields(def, new);
    default(def, new);
    Ok(())
}

/// What the store asks of a new object, after admission has had its say (apiserver `pkg/storage/etcd3/store.go`).
pub fn check_unversioned(new: &Value) -> Result<(), Status> {
    if meta::resource_version(new).is_empty() {
        return Ok(());
    }
    Err(Status::bad_request("resourceVersion should not be set on objects to be created"))
}

/// What follows from the object as mutating admission leaves it: name, UID and time, the rest of its status, generated
/// selectors.
pub fn complete_create(def: &ResourceDef, new: &mut Value, creation: &Creation<'_>) {
    let metadata = meta::map_mut(new, &["metadata"]);
    let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    let base = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() && !base.is_empty() {
        let name = generated_name(base, creation.suffix);
        metadata.insert("name".to_owned(), name.into());
    }
    metadata.insert("uid".to_owned(), creation.uid.into());
    metadata.insert("creationTimestamp".to_owned(), meta::format_time(creation.now).into());
    if def.strategy().rules().counts_generation {
        metadata.insert("generation".to_owned(), 1.into());
    }
    def.strategy().prepare_create(new);
}

/// Drops what only the server sets on a new object.
fn drop_system_fields(def: &ResourceDef, new: &mut Value) {
    let metadata = meta::map_mut(new, &["metadata"]);
    for field in
        ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"]
    {
        metadata.remove(field);
    }
    let rules = def.strategy().rules();
    if rules.splits_status && !rules.keeps_status_at_create {
        meta::remove(new, &["status"]);
    }
}

fn generated_name(base: &str, suffix: &str) -> String {
    let end = (0..=base.len().min(GENERATE_NAME_LEN_MAX)).rev().find(|at| base.is_char_boundary(*at)).unwrap_or(0);
    format!("{}{suffix}", &base[..end])
}

/// Validates an object after admission; 422 with all errors.
pub fn validate_create(def: &ResourceDef, new: &Value) -> Result<(), Status> {
    invalid_unless_empty(def, new, &create_errors(def, new))
}

/// The errors of [`validate_create`], for who finds more.
pub fn create_errors(def: &ResourceDef, new: &Value) -> FieldErrors {
    let mut errors = metadata::validate(def, new);
    errors.extend(standing_errors(def, new));
    errors.extend(def.strategy().validate_create(new));
    errors
}

/// What is wrong with an object as it stands.
fn standing_errors(def: &ResourceDef, obj: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    if let Some(schema) = def.hub_schema() {
        schema.check(obj, &mut errors);
    }
    errors.extend(def.strategy().validate(obj));
    errors
}

/// The 422 that tells of all errors, if there are any.
pub fn invalid_unless_empty(def: &ResourceDef, obj: &Value, errors: &[crate::FieldError]) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(def.group(), def.kind(), meta::name(obj), errors))
}

/// Keeps of `old` what `part` may not change, and counts the generation. Before admission.
pub fn prepare_update(def: &ResourceDef, part: Part, new: &mut Value, old: &Value) -> Result<(), Status> {
    metadata::check_namespace(def, new, meta::namespace(old))?;
    default(def, new);
    metadata::keep_system_fields(new, old);
    let rules = def.strategy().rules();
    match part {
        Part::Main if rules.splits_status => copy_field(new, old, "status"),
        Part::Main => {}
        Part::Status => keep_all_but_status(new, old, rules.status_metadata),
        Part::EphemeralContainers | Part::Resize | Part::Approval | Part::Finalize => {}
    }
    def.strategy().prepare_update(part, new, old);
    if rules.counts_generation && part != Part::Status {
        let bump = i64::from(!same_content(new, old, rules.splits_status));
        meta::set(new, &["metadata", "generation"], meta::generation(old) + bump);
    }
    Ok(())
}

/// Copies a top-level field, or removes it where `old` has none.
pub(crate) fn copy_field(new: &mut Value, old: &Value, field: &str) {
    match old.get(field) {
        Some(value) => meta::set(new, &[field], value.clone()),
        None => {
            meta::remove(new, &[field]);
        }
    }
}

/// A write of the status subresource: everything else is the stored object's, but for managedFields and the fields of metadata
/// that the kind lets through.
fn keep_all_but_status(new: &mut Value, old: &Value, metadata: &[&str]) {
    let status = meta::remove(new, &["status"]);
    let mut written = Vec::with_capacity(metadata.len() + 2);
    for field in ["managedFields", "resourceVersion"].iter().chain(metadata) {
        written.push((*field, meta::remove(new, &["metadata", *field])));
    }
    *new = old.clone();
    for (field, value) in written {
        set_or_remove(meta::map_mut(new, &["metadata"]), field, value);
    }
    set_or_remove(meta::map_mut(new, &[]), "status", status);
}

fn set_or_remove(map: &mut Map<String, Value>, field: &str, value: Option<Value>) {
    match value {
        Some(value) => {
            map.insert(field.to_owned(), value);
        }
        None => {
            map.remove(field);
        }
    }
}

/// Whether two objects are the same but for metadata, and for the status where that is a part of its own.
fn same_content(a: &Value, b: &Value, splits_status: bool) -> bool {
    let content = |obj| -> BTreeMap<&String, &Value> {
        let fields = Value::as_object(obj).into_iter().flatten();
        let counts = |key: &str| match key {
            "metadata" | "apiVersion" | "kind" => false,
            "status" => !splits_status,
            _ => true,
        };
        fields.filter(|(key, _)| counts(key)).collect()
    };
    content(a) == content(b)
}

/// Validates an update after admission; 422 with all errors.
///
/// What was stored before a rule was known may stay, so that the object can still be changed and deleted: an error that a change of
/// nothing would have too is none of this change. Actions on a Pod (resize, ephemeral containers) are refused for what it is.
pub fn validate_update(def: &ResourceDef, part: Part, new: &Value, old: &Value) -> Result<(), Status> {
    invalid_unless_empty(def, new, &update_errors(def, part, new, old))
}

/// The errors of [`validate_update`], for who finds more.
pub fn update_errors(def: &ResourceDef, part: Part, new: &Value, old: &Value) -> FieldErrors {
    let judge = |obj: &Value| {
        let mut errors = metadata::validate_update(def, obj, old);
        if part != Part::Status {
            errors.extend(standing_errors(def, obj));
        }
        errors.extend(def.strategy().validate_update(part, obj, old));
        errors
    };
    let mut errors = judge(new);
    if !errors.is_empty() && matches!(part, Part::Main | Part::Status) {
        let before = judge(old);
        errors.retain(|error| !before.contains(error));
    }
    errors
}

/// The Warning of a kind that no part of carob acts on.
pub fn unsupported_kind_warning(def: &ResourceDef) -> Option<String> {
    (def.acted_on_by == kinds::ActedOnBy::Nothing)
        .then(|| format!("{} objects are stored, but no part of carob acts on them yet", def.kind()))
}
