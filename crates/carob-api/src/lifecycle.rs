//! What every object passes on its way into the store, whatever its kind (apiserver pkg/registry/rest).

use jiff::Timestamp;
use serde_json::Value;

use crate::{ResourceDef, Status, strategy::Part};

/// What the server sets on a new object.
#[derive(Debug, Clone, Copy)]
pub struct Creation<'a> { pub namespace: &'a str, pub uid: &'a str, pub now: Timestamp, /** Five random characters of [`GENERATED_ALPHABET`] for a generateName. */ pub suffix: &'a str }

/// Characters of generated names: no vowels and no digits that look like letters (apimachinery pkg/util/rand).
pub const GENERATED_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of the generated suffix, characters.
pub const GENERATED_LEN: usize = 5;

/// Checks namespace and name, sets system metadata, defaults, prepares and validates. `new` is ready to store after.
pub fn before_create(def: &ResourceDef, new: &mut Value, creation: &Creation<'_>) -> Result<(), Status> { todo!() }
/// The part of [`before_create`] before admission: metadata and defaults.
pub fn prepare_create(def: &ResourceDef, new: &mut Value, creation: &Creation<'_>) -> Result<(), Status> { todo!() }
/// The part after admission: validation.
pub fn validate_create(def: &ResourceDef, new: &Value) -> Result<(), Status> { todo!() }
/// Keeps system metadata of `old`, prepares. Before admission.
pub fn prepare_update(def: &ResourceDef, part: Part, new: &mut Value, old: &Value) -> Result<(), Status> { todo!() }
pub fn validate_update(def: &ResourceDef, part: Part, new: &Value, old: &Value) -> Result<(), Status> { todo!() }

/// Options of a DELETE that decide what happens to the object.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions { pub grace_period_seconds: Option<i64>, pub propagation: Option<Propagation>, pub precondition_uid: Option<String>, pub precondition_resource_version: Option<String> }

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation { Orphan, Background, Foreground }

impl DeleteOptions {
    /// From the JSON body of a DELETE; `Err` holds upstream's 422.
    pub fn from_json(value: &Value) -> Result<Self, Status> { todo!() }
}

#[derive(Debug)]
pub enum Deletion {
    /// Remove it from the store now.
    Remove,
    /// Store this object (deletionTimestamp, grace period, finalizers set).
    Mark(Value),
    /// Already as it would be marked; answer with the stored object.
    Unchanged,
}

/// Decides what a DELETE does: preconditions, grace, finalizers, propagation.
pub fn plan_deletion(def: &ResourceDef, obj: &Value, options: &DeleteOptions, now: Timestamp) -> Result<Deletion, Status> { todo!() }

/// Whether an update that leaves `new` behind completes a deletion that was waiting (no finalizers, no grace left).
pub fn deletion_is_complete(def: &ResourceDef, new: &Value) -> bool { todo!() }
