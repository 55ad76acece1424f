//! What differs between kinds: defaulting beyond the table, validation, what each part of an object may change.
//!
//! What most kinds share is data ([`Rules`]) that [`crate::lifecycle`] carries out; a strategy adds the rest.

use std::{borrow::Cow, fmt::Debug};

use serde_json::Value;

use crate::{addresses, field::FieldErrors, names};

mod access;
pub mod aggregation;
mod autoscaling;
mod certificates;
mod claim;
mod cluster;
mod conditions;
mod config;
mod csi;
pub(crate) mod custom;
pub mod definition;
mod devices;
mod endpoints;
mod event;
mod fields;
mod flowcontrol;
mod ingress;
mod job;
pub(crate) mod kinds;
mod limits;
mod network;
mod network_policy;
mod old_forms;
pub mod pod;
pub mod pod_certificates;
mod policy;
mod quota;
mod resource_names;
mod runtime_class;
mod scheduling;
mod service;
mod storage;
#[cfg(test)]
mod tests;
mod trust_bundles;
#[cfg(test)]
mod upstream;
mod webhook;
mod workload;

/// Which part of an object a write may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The object itself: all but status.
    Main,
    Status,
    /// pods/ephemeralcontainers.
    EphemeralContainers,
    /// pods/resize.
    Resize,
    /// certificatesigningrequests/approval.
    Approval,
    /// namespaces/finalize.
    Finalize,
}

/// What the registry does for a kind without asking its strategy.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Whether status is a part of its own: dropped at create, kept over updates of the rest.
    pub splits_status: bool,
    /// Whether whoever creates an object may set its status: Nodes register themselves with theirs.
    pub keeps_status_at_create: bool,
    /// Whether metadata.generation counts changes of everything but metadata and status.
    pub counts_generation: bool,
    /// Whether PUT of an absent object creates it.
    pub creates_on_update: bool,
    /// Whether an update may leave resourceVersion out.
    pub updates_unconditionally: bool,
    /// Whether dependents are orphaned by a deletion that does not say.
    pub orphans_by_default: bool,
    pub name: NameRule,
    /// The fields of metadata that a write of the status may change, beside managedFields.
    pub status_metadata: &'static [&'static str],
}

/// What most kinds let a write of their status change of metadata (kubernetes `pkg/registry`, the status strategies).
pub const STATUS_METADATA: &[&str] = &["annotations", "labels", "finalizers", "ownerReferences"];

impl Rules {
    /// A kind without status and generation: ConfigMap, Role.
    pub const PLAIN: Rules = Rules {
        splits_status: false,
        keeps_status_at_create: false,
        counts_generation: false,
        creates_on_update: false,
        updates_unconditionally: true,
        orphans_by_default: false,
        name: NameRule::Subdomain,
        status_metadata: STATUS_METADATA,
    };
    /// A kind whose status is written by a controller.
    pub const STATUS: Rules = Rules { splits_status: true, ..Self::PLAIN };
    /// A kind without status whose generation counts.
    pub const COUNTED: Rules = Rules { counts_generation: true, ..Self::PLAIN };
    /// A workload: status and generation.
    pub const WORKLOAD: Rules = Rules { counts_generation: true, ..Self::STATUS };
    /// As [`Rules::STATUS`], where a write of the status changes no metadata.
    pub const STATUS_ALONE: Rules = Rules { status_metadata: &[], ..Self::STATUS };
    /// As [`Rules::WORKLOAD`], where a write of the status changes no metadata.
    pub const WORKLOAD_ALONE: Rules = Rules { status_metadata: &[], ..Self::WORKLOAD };
}

/// The form of a kind's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    Subdomain,
    Label,
    /// RBAC's names: anything that fits one segment of a path.
    PathSegment,
    /// The address that an IPAddress stands for.
    Ip,
    /// What the kind's strategy says: it depends on more than the name.
    OfStrategy,
}

impl NameRule {
    /// What is wrong with a name; `prefix` when it is a generateName, whose last hyphen does not count.
    pub fn check(self, name: &str, prefix: bool) -> Vec<String> {
        let name = if prefix && self != NameRule::PathSegment { masked(name) } else { name.into() };
        let name = &*name;
        match self {
            NameRule::Subdomain => names::dns1123_subdomain(name),
            NameRule::Label => names::dns1123_label(name),
            NameRule::PathSegment => names::path_segment(name),
            NameRule::Ip => addresses::canonical_ip(name),
            NameRule::OfStrategy => Vec::new(),
        }
    }
}

/// A generateName as a name is checked: its last hyphen does not count.
fn masked(base: &str) -> Cow<'_, str> {
    base.strip_suffix('-').map_or(base.into(), |rest| format!("{rest}a").into())
}

/// Hooks of one kind. Objects are in the storage version; every hook has a default that does nothing.
pub trait Strategy: Send + Sync + Debug {
    fn rules(&self) -> &Rules;

    /// Defaults that depend on other fields; runs after the table's.
    fn default(&self, _obj: &mut Value) {}

    /// Runs after mutating admission, once the status was dropped and metadata completed.
    fn prepare_create(&self, _new: &mut Value) {}

    /// Runs after what `part` may not change was put back, before the generation is counted.
    fn prepare_update(&self, _part: Part, _new: &mut Value, _old: &Value) {}

    /// Errors of an object as it stands, at create and at update.
    fn validate(&self, _new: &Value) -> FieldErrors {
        FieldErrors::new()
    }

    /// Errors at create only.
    fn validate_create(&self, _new: &Value) -> FieldErrors {
        FieldErrors::new()
    }

    /// Errors of the change from `old` to `new`.
    fn validate_update(&self, _part: Part, _new: &Value, _old: &Value) -> FieldErrors {
        FieldErrors::new()
    }

    /// Messages for Warning headers; `old` at update.
    fn warnings(&self, _new: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// Changes what else a deletion changes, when an object is marked for it.
    fn mark_deleted(&self, _obj: &mut Value) {}

    /// Whether something beside metadata.finalizers keeps a marked object.
    fn holds_back_deletion(&self, _obj: &Value) -> bool {
        false
    }

    /// Grace period in seconds of a deletion, `None` when the kind is deleted at once. `requested` is the client's.
    fn deletion_grace_seconds(&self, _obj: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }
}

/// A kind that needs nothing beyond its rules.
#[derive(Debug)]
pub struct Generic(pub Rules);

impl Strategy for Generic {
    fn rules(&self) -> &Rules {
        &self.0
    }
}
