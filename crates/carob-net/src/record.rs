//! What was given to a sandbox, on disk: written before anything is touched, removed after it is clean again.

use std::io;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use carob_kit::forget_other_boots;
use carob_kit::fs::{TEMPORARY_SUFFIX, replace};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::request::HostPort;

/// The format of this network's own records.
const VERSION: u32 = 1;
/// Longest sandbox id: it becomes a file name (`NAME_MAX` is 255) with a suffix.
pub(crate) const SANDBOX_ID_LEN_MAX: usize = 128;
const SUFFIX: &str = ".json";
/// Says which boot the records are of.
const BOOT_FILE: &str = "boot_id";

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("network record {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("network record {path} cannot be read")]
    Decode {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("network record {path} has format {found}, this carob knows {known}")]
    Version { path: PathBuf, found: u32, known: u32 },
    #[error("{id:?} is not a sandbox id: up to {SANDBOX_ID_LEN_MAX} letters, digits, '-', '_' and '.', not first")]
    SandboxId { id: String },
}

/// What a network keeps of one sandbox. Its JSON says in `version` of which format it is.
pub trait Kept: Serialize + DeserializeOwned {
    /// The format. One that is newer is refused, never rewritten.
    const VERSION: u32;

    fn sandbox_id(&self) -> &str;
}

impl Kept for Record {
    const VERSION: u32 = VERSION;

    fn sandbox_id(&self) -> &str {
        &self.sandbox_id
    }
}

/// What one sandbox holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) sandbox_id: String,
    pub(crate) ips: Vec<IpAddr>,
    /// The gateway of each address, in the same order: CIDRs may change while the sandbox lives.
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) host_ports: Vec<HostPort>,
}

impl Record {
    pub(crate) fn new(sandbox_id: &str, ips: Vec<IpAddr>, gateways: Vec<IpAddr>, host_ports: Vec<HostPort>) -> Self {
        Self { version: VERSION, sandbox_id: sandbox_id.to_owned(), ips, gateways, host_ports }
    }
}

/// The directory of record files, one for each sandbox.
#[derive(Debug, Clone)]
pub struct Records<T> {
    dir: PathBuf,
    kept: PhantomData<T>,
}

impl<T: Kept> Records<T> {
    /// Opens the directory and reads what is there of this boot: the kernel has forgotten the rest.
    pub fn open(dir: &Path) -> Result<(Self, Vec<T>), RecordError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| RecordError::Io { path, source }
        };
        fs_err::create_dir_all(dir).map_err(at(dir))?;
        let remove = |suffix: &str| files(dir, suffix)?.iter().try_for_each(fs_err::remove_file);
        forget_other_boots(&dir.join(BOOT_FILE), || remove(SUFFIX)).map_err(at(dir))?;
        remove(TEMPORARY_SUFFIX).map_err(at(dir))?;
        let records = files(dir, SUFFIX).map_err(at(dir))?.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>();
        let mut records = records?;
        records.sort_by(|a: &T, b: &T| a.sandbox_id().cmp(b.sandbox_id()));
        Ok((Self { dir: dir.to_owned(), kept: PhantomData }, records))
    }

    pub fn write(&self, record: &T) -> Result<(), RecordError> {
        let path = self.path(record.sandbox_id());
        let text = serde_json::to_vec(record).map_err(|source| RecordError::Decode { path: path.clone(), source })?;
        replace(&path, &text).map_err(|source| RecordError::Io { path, source })
    }

    /// Removes the record; one that is not there is fine.
    pub fn remove(&self, sandbox_id: &str) -> Result<(), RecordError> {
        let path = self.path(sandbox_id);
        match fs_err::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RecordError::Io { path, source: error }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn path(&self, sandbox_id: &str) -> PathBuf {
        self.dir.join(format!("{sandbox_id}{SUFFIX}"))
    }
}

/// Whether a directory holds what some network still has to take back.
pub fn has_records(dir: &Path) -> Result<bool, RecordError> {
    match files(dir, SUFFIX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        found => {
            found.map(|found| !found.is_empty()).map_err(|source| RecordError::Io { path: dir.to_owned(), source })
        }
    }
}

/// Those whose names end so.
fn files(dir: &Path, suffix: &str) -> io::Result<Vec<PathBuf>> {
    let paths: Vec<PathBuf> = fs_err::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    Ok(paths.into_iter().filter(|path| path.to_string_lossy().ends_with(suffix)).collect())
}

fn read<T: Kept>(path: &Path) -> Result<T, RecordError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let bytes = fs_err::read(path).map_err(|source| RecordError::Io { path: path.to_owned(), source })?;
    let decode = |source| RecordError::Decode { path: path.to_owned(), source };
    let versioned: Versioned = serde_json::from_slice(&bytes).map_err(decode)?;
    if versioned.version != T::VERSION {
        return Err(RecordError::Version { path: path.to_owned(), found: versioned.version, known: T::VERSION });
    }
    serde_json::from_slice(&bytes).map_err(decode)
}

/// A sandbox id becomes a file name, so it must be one.
pub fn check_sandbox_id(id: &str) -> Result<(), RecordError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !id.is_empty() && id.len() <= SANDBOX_ID_LEN_MAX && id.bytes().all(is_plain) && !id.starts_with('.') {
        return Ok(());
    }
    Err(RecordError::SandboxId { id: id.chars().take(SANDBOX_ID_LEN_MAX).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record::new(id, vec!["10.0.0.2".parse().unwrap()], vec!["10.0.0.1".parse().unwrap()], Vec::new())
    }

    #[test]
    fn records_survive_and_half_written_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let (records, found) = Records::<Record>::open(dir.path()).unwrap();
        assert_eq!(found, []);
        records.write(&record("b")).unwrap();
        records.write(&record("a")).unwrap();
        fs_err::write(dir.path().join("c.tmp"), "{\"vers").unwrap();
        let (records, found) = Records::<Record>::open(dir.path()).unwrap();
        assert_eq!(found, [record("a"), record("b")]);
        records.remove("a").unwrap();
        records.remove("a").unwrap();
        assert_eq!(Records::<Record>::open(dir.path()).unwrap().1, [record("b")]);
        assert!(!dir.path().join("c.tmp").exists());
    }

    #[test]
    fn what_cannot_be_understood_is_refused_and_kept() {
        for (text, part) in [
            ("{\"version\":2}", "has format 2, this carob knows 1"),
            ("{", "cannot be read"),
            ("{\"version\":1}", "cannot be read"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.json");
            fs_err::write(&path, text).unwrap();
            let error = Records::<Record>::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("x.json"), "{error}");
            assert!(path.exists());
        }
    }

    #[test]
    fn only_plain_file_names_are_sandbox_ids() {
        let long = "a".repeat(SANDBOX_ID_LEN_MAX + 1);
        for id in ["", ".", "..", "../x", "a/b", "a b", "ä", long.as_str(), ".hidden"] {
            assert!(check_sandbox_id(id).is_err(), "{id}");
        }
        assert!(check_sandbox_id("3f2a-b_c.d").is_ok());
    }
}
