//! Volumes that last: which volume a claim gets, what keeps either from being deleted, the claims of Pods' ephemeral volumes,
//! snapshots of local volumes, and which volumes are attached to which Nodes (`pkg/controller/volume`).

mod attach;
mod binder;
mod decide;
mod ephemeral;
#[cfg(test)]
mod histories;
mod protection;
mod snapshots;
#[cfg(test)]
mod tests;
mod users;
mod writes;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use carob_api::storage::BETA_CLASS;

pub(crate) use attach::AttachDetach;
pub(crate) use binder::{Binder, BinderKey};
pub(crate) use ephemeral::EphemeralClaims;
pub(crate) use protection::{ClaimProtection, VolumeProtection};
pub(crate) use snapshots::{SnapshotKey, Snapshots};
pub(crate) use users::ClaimUsers;

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The class of a claim; empty where it has none.
fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let field = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&claim.metadata, BETA_CLASS).or(field).unwrap_or_default()
}

/// The class of a volume; empty where it has none.
fn class_of_volume(volume: &PersistentVolume) -> &str {
    let field = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&volume.metadata, BETA_CLASS).or(field).unwrap_or_default()
}

/// The name of the volume that a claim names, if it names one.
fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}
