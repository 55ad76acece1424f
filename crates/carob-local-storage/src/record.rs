//! What is written beside each volume and snapshot: whose it is, and how far its making came.

use serde::{Deserialize, Serialize};

/// The layout of records that this program writes and reads.
const VERSION: u32 = 1;

/// A volume as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    /// The name of its PersistentVolume.
    pub(crate) volume: String,
    /// The claim that it was made for.
    pub(crate) namespace: String,
    pub(crate) claim: String,
    pub(crate) claim_uid: String,
    /// Whether it is a file that is shown as a block device.
    pub(crate) block: bool,
    pub(crate) capacity_bytes: i64,
    /// The project of the file system's quotas that counts it; 0 for none.
    #[serde(default)]
    pub(crate) project: u32,
    /// Whether its PersistentVolume has been made: from then on only that decides about it.
    pub(crate) published: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the record is not readable")]
    Form(#[from] serde_json::Error),
    #[error("the record is of version {0}, which a later program wrote")]
    Version(u32),
    #[error("the record is of {0:?}")]
    Other(String),
}

impl Record {
    pub(crate) fn new(volume: &str, namespace: &str, claim: &str, claim_uid: &str) -> Self {
        Self {
            version: VERSION,
            volume: volume.to_owned(),
            namespace: namespace.to_owned(),
            claim: claim.to_owned(),
            claim_uid: claim_uid.to_owned(),
            block: false,
            capacity_bytes: 0,
            project: 0,
            published: false,
        }
    }

    /// Reads the record of the volume `name`.
    pub(crate) fn parse(name: &str, bytes: &[u8]) -> Result<Self, RecordError> {
        let record: Self = serde_json::from_slice(bytes)?;
        if record.version != VERSION {
            return Err(RecordError::Version(record.version));
        }
        if record.volume != name {
            return Err(RecordError::Other(record.volume));
        }
        Ok(record)
    }

    pub(crate) fn bytes(&self) -> Result<Vec<u8>, RecordError> {
        Ok(serde_json::to_vec_pretty(self)?)
    }
}

/// A snapshot as it was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    version: u32,
    pub(crate) snapshot: String,
    /// The uid of the VolumeSnapshotContent that it was taken for.
    pub(crate) owner_uid: String,
    /// The volume that it is of, which may be gone.
    pub(crate) volume: String,
    pub(crate) block: bool,
    pub(crate) capacity_bytes: i64,
    /// Nanoseconds since 1970.
    pub(crate) taken_at_ns: i64,
    /// Bytes were copied while others may have written: it is not of one moment.
    pub(crate) copied: bool,
}

impl SnapshotRecord {
    pub(crate) fn new(snapshot: &str, owner_uid: &str, volume: &str, taken_at_ns: i64) -> Self {
        Self {
            version: VERSION,
            snapshot: snapshot.to_owned(),
            owner_uid: owner_uid.to_owned(),
            volume: volume.to_owned(),
            block: false,
            capacity_bytes: 0,
            taken_at_ns,
            copied: false,
        }
    }

    /// Reads the record of the snapshot `name`.
    pub(crate) fn parse(name: &str, bytes: &[u8]) -> Result<Self, RecordError> {
        let record: Self = serde_json::from_slice(bytes)?;
        if record.version != VERSION {
            return Err(RecordError::Version(record.version));
        }
        if record.snapshot != name {
            return Err(RecordError::Other(record.snapshot));
        }
        Ok(record)
    }

    pub(crate) fn bytes(&self) -> Result<Vec<u8>, RecordError> {
        Ok(serde_json::to_vec_pretty(self)?)
    }
}
