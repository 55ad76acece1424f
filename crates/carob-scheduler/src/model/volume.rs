//! Claims, volumes and limits: what the volume plugins decide on.

use std::collections::HashMap;

use super::{Bytes, Labels, NodeSelectorTerm, Selector, Str};

/// A claim's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimKey {
    pub namespace: Str,
    pub name: Str,
}

/// A volume of a Pod that can limit where it runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PodVolume {
    Claim {
        name: Str,
        /// The claim comes from an ephemeral volume, so it must be owned by the Pod.
        ephemeral: bool,
    },
    /// A disk that two Pods on one node may share only if both read (GCE PD, ISCSI, RBD) or not at all (EBS).
    Disk { id: Str, read_only: bool, shareable: bool },
    /// An inline CSI volume, which counts against its driver's limit.
    InlineCsi { driver: Str },
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimFacts {
    pub uid: Str,
    /// `spec.volumeName`.
    pub volume: Option<Str>,
    /// The claim is bound for good: volume named and bind completed.
    pub bound: bool,
    pub class: Option<Str>,
    pub request: Bytes,
    pub access_modes: Vec<Str>,
    /// `spec.selector`: which volumes may be bound; absent: any.
    pub selector: Option<Selector>,
    pub terminating: bool,
    /// `status.phase: Lost`.
    pub lost: bool,
    pub volume_mode_block: bool,
    /// The annotation `volume.kubernetes.io/selected-node`.
    pub selected_node: Option<Str>,
    /// Uids of the owners.
    pub owners: Vec<Str>,
}

/// A PersistentVolume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeInfo {
    pub name: Str,
    pub labels: Labels,
    pub capacity: Bytes,
    pub class: Str,
    pub access_modes: Vec<Str>,
    pub volume_mode_block: bool,
    /// `spec.nodeAffinity.required`; absent: every node.
    pub affinity: Option<Box<[NodeSelectorTerm]>>,
    /// Zone and region labels: key and the values allowed.
    pub zones: Vec<(Str, Vec<Str>)>,
    /// The claim in `spec.claimRef`.
    pub claim: Option<ClaimKey>,
    /// Its uid there: a claim that was made later under the same name is not meant.
    pub claim_uid: Option<Str>,
    pub csi_driver: Option<Str>,
    pub csi_handle: Option<Str>,
    /// `status.phase: Available`, or unset.
    pub available: bool,
}

/// A StorageClass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassFacts {
    pub provisioner: Str,
    /// `volumeBindingMode: WaitForFirstConsumer`.
    pub waits: bool,
    /// `allowedTopologies`: any term holds; empty: everywhere.
    pub topologies: Vec<NodeSelectorTerm>,
}

/// How many volumes of a driver a node takes (CSINode).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverLimit {
    pub driver: Str,
    pub count: i64,
}

/// All that the volume plugins look at.
#[derive(Clone, Debug, Default)]
pub struct VolumeFacts {
    pub claims: HashMap<ClaimKey, ClaimFacts>,
    pub volumes: HashMap<Str, VolumeInfo>,
    pub classes: HashMap<Str, ClassFacts>,
    /// By node name.
    pub limits: HashMap<Str, Vec<DriverLimit>>,
}
