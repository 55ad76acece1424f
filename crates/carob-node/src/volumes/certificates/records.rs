//! What the node has asked for and got for Pods, in memory that outlives the node's process: a restart asks for nothing again.
//! No key is ever on a disk.

use std::io;
use std::path::PathBuf;

use carob_kit::chain;
use fs_err as fs;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::Key;
use crate::files::{Files, FilesError};
use crate::paths::PodDirs;
use crate::volumes::empty_dir;

/// Below a Pod's volumes, so that it is given back with them.
const PLUGIN: &str = "pod-certificate-keys";

/// A certificate with its key, as files hold them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    pub key_pem: String,
    pub chain_pem: String,
    pub refresh_at: Timestamp,
    pub not_after: Timestamp,
}

/// A request that was made and not answered yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) request: String,
    pub(super) key_pem: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) issued: Option<Credentials>,
    pub(super) pending: Option<Pending>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("note a certificate that was asked for")]
    Io(#[from] io::Error),
}

/// Where records are.
pub(super) struct Records {
    pub(super) files: Files,
    pub(super) dirs: PodDirs,
}

impl Records {
    fn dir(&self, key: &Key) -> PathBuf {
        self.dirs.volume(&key.uid, PLUGIN, &key.volume)
    }

    /// Empty where there is none, and where it cannot be read: then a certificate is asked for again.
    pub(super) async fn read(&self, key: &Key) -> Record {
        let path = self.dir(key).join(key.source.to_string());
        let read = self.files.run(&key.uid, "read a record of a certificate", move || match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
            read => Ok(serde_json::from_slice(&read?)?),
        });
        let read = read.await.map_err(RecordError::from).and_then(|read: io::Result<Record>| Ok(read?));
        read.unwrap_or_else(|error| {
            warn!(pod = key.uid, volume = key.volume, error = %chain(&error), "the record of a Pod's certificate is lost");
            Record::default()
        })
    }

    pub(super) async fn write(&self, key: &Key, record: &Record) -> Result<(), RecordError> {
        let (dir, name) = (self.dir(key), key.source.to_string());
        let bytes = serde_json::to_vec(record).map_err(io::Error::from)?;
        let written = self.files.run(&key.uid, "note a certificate", move || {
            empty_dir::in_memory(&dir, None)?;
            carob_kit::fs::make_private(&dir, 0o700)?;
            carob_kit::fs::replace(&dir.join(name), &bytes)
        });
        Ok(written.await??)
    }
}
