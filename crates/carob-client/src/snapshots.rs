//! Snapshots of volumes (`snapshot.storage.k8s.io/v1`), custom resources that controllers and provisioners share: what they read
//! of them, and the names that upstream's snapshot-controller and its sidecar use (external-snapshotter, `pkg/utils`).

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::Resource;
use serde::{Deserialize, Serialize};

pub const GROUP: &str = "snapshot.storage.k8s.io";
pub const VERSION: &str = "v1";

/// Keeps a snapshot until the content that it is bound to has been dealt with.
pub const BOUND_PROTECTION: &str = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";
/// Keeps a snapshot while volumes are made of it.
pub const SOURCE_PROTECTION: &str = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection";
/// Keeps a claim while a snapshot is taken of its volume.
pub const CLAIM_PROTECTION: &str = "snapshot.storage.kubernetes.io/pvc-as-source-protection";
/// On a content: its snapshot is being deleted.
pub const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";
/// On a class, with the value "true": the default one of its driver.
pub const DEFAULT_CLASS: &str = "snapshot.storage.kubernetes.io/is-default-class";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VolumeSnapshot {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: SnapshotSpec,
    pub status: Option<SnapshotStatus>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotSpec {
    pub source: SnapshotSource,
    pub volume_snapshot_class_name: Option<String>,
}

/// One of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotSource {
    pub persistent_volume_claim_name: Option<String>,
    pub volume_snapshot_content_name: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotStatus {
    pub bound_volume_snapshot_content_name: Option<String>,
    pub creation_time: Option<Time>,
    pub ready_to_use: Option<bool>,
    pub restore_size: Option<Quantity>,
    pub error: Option<SnapshotError>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotError {
    pub time: Option<Time>,
    pub message: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VolumeSnapshotContent {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: ContentSpec,
    pub status: Option<ContentStatus>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContentSpec {
    pub volume_snapshot_ref: ObjectReference,
    pub deletion_policy: String,
    pub driver: String,
    pub volume_snapshot_class_name: Option<String>,
    pub source: ContentSource,
    pub source_volume_mode: Option<String>,
}

/// One of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContentSource {
    pub volume_handle: Option<String>,
    pub snapshot_handle: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContentStatus {
    pub snapshot_handle: Option<String>,
    /// Nanoseconds since 1970.
    pub creation_time: Option<i64>,
    pub restore_size: Option<i64>,
    pub ready_to_use: Option<bool>,
    pub error: Option<SnapshotError>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotClass {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub driver: String,
    #[serde(default)]
    pub deletion_policy: String,
}

/// What a volume requires its Node's label to be, if it requires one value.
pub fn required_label<'a>(volume: &'a PersistentVolume, label: &str) -> Option<&'a str> {
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let mut expressions = required.node_selector_terms.iter().flat_map(|term| term.match_expressions.iter().flatten());
    let ours = expressions.find(|expression| expression.key == label)?;
    ours.values.as_ref()?.first().map(String::as_str)
}

impl VolumeSnapshot {
    /// The name of the content that is made for it, where it is of a claim.
    pub fn content_name(&self) -> String {
        format!("snapcontent-{}", self.metadata.uid.as_deref().unwrap_or_default())
    }

    /// Whether a content says that it is this snapshot's: by name, and by uid where it knows one.
    pub fn is_named_by(&self, content: &VolumeSnapshotContent) -> bool {
        let held = &content.spec.volume_snapshot_ref;
        held.name == self.metadata.name
            && held.namespace == self.metadata.namespace
            && held.uid.as_ref().is_none_or(|uid| uid.is_empty() || Some(uid) == self.metadata.uid.as_ref())
    }
}

macro_rules! resource {
    ($type:ty, $kind:literal, $plural:literal, $scope:ty) => {
        impl Resource for $type {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> Cow<'_, str> {
                GROUP.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                VERSION.into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(VolumeSnapshot, "VolumeSnapshot", "volumesnapshots", NamespaceResourceScope);
resource!(VolumeSnapshotContent, "VolumeSnapshotContent", "volumesnapshotcontents", ClusterResourceScope);
resource!(VolumeSnapshotClass, "VolumeSnapshotClass", "volumesnapshotclasses", ClusterResourceScope);
