//! What differs between kinds: defaulting beyond the table, validation, status reset, generation, immutability.

use std::fmt::Debug;

use serde_json::Value;

use crate::field::FieldErrors;

/// Which part of an object a write may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part { Main, Status, EphemeralContainers, Resize, Approval, Finalize }

/// Hooks of one kind. Objects are in the storage version. The defaults suit a kind with spec and status.
pub trait Strategy: Sync + Debug {
    /// Defaults that depend on other fields; runs after the table's, on every decoded object.
    fn default(&self, obj: &mut Value) {}
    /// Resets what a client may not set: status, generation.
    fn prepare_create(&self, new: &mut Value) {}
    /// Puts back what this part may not change and raises metadata.generation if the spec changed.
    fn prepare_update(&self, part: Part, new: &mut Value, old: &Value) {}
    fn validate_create(&self, new: &Value) -> FieldErrors { FieldErrors::new() }
    fn validate_update(&self, part: Part, new: &Value, old: &Value) -> FieldErrors { FieldErrors::new() }
    /// Messages for Warning headers.
    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> { Vec::new() }
    /// Whether PUT of an absent object creates it.
    fn allow_create_on_update(&self) -> bool { false }
    /// Whether an update may leave resourceVersion out.
    fn allow_unconditional_update(&self) -> bool { true }
    /// What is wrong with a name; `prefix` when it is a generateName.
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> { crate::names::dns1123_subdomain(name) }
    /// Grace period in seconds for a deletion, or `None` when the kind is deleted at once. `requested` is the client's.
    fn deletion_grace_seconds(&self, obj: &Value, requested: Option<i64>) -> Option<i64> { None }
}
