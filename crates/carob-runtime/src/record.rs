//! What is kept on disk about sandboxes and containers: versioned, written whole or not at all.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use carob_cri::v1;
use carob_kit::fs::replace;
use carob_shim::params::ResolvedUser;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of both records. A newer one is refused, not guessed at.
const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("write {path}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("read {path}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("understand {path}", path = path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("{path} is of version {version}, this program knows version {VERSION}", path = path.display())]
    Version { path: PathBuf, version: u32 },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    #[serde(with = "wire")]
    pub(crate) config: v1::PodSandboxConfig,
    pub(crate) cgroup: PathBuf,
    /// Under which of its names the runtime was asked for; records of before there was a choice do not say.
    #[serde(default)]
    pub(crate) runtime_handler: String,
    pub(crate) created_at_ns: i64,
    pub(crate) phase: SandboxPhase,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum SandboxPhase {
    /// Its parts are being made. Found by a new process, it is taken down: nobody has heard of it.
    Creating,
    Ready {
        shim_pid: i32,
        infra_pid: i32,
        ips: Vec<IpAddr>,
    },
    /// Its processes are gone. The addresses are what it had, for the status.
    Stopped {
        ips: Vec<IpAddr>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) sandbox_id: String,
    #[serde(with = "wire")]
    pub(crate) config: v1::ContainerConfig,
    pub(crate) image_id: String,
    /// How the image is named by digest, or its id where it has no such name.
    pub(crate) image_ref: String,
    pub(crate) cgroup: PathBuf,
    /// Empty for no log.
    pub(crate) log_path: String,
    pub(crate) stop_signal: i32,
    pub(crate) user: ResolvedUser,
    pub(crate) created_at_ns: i64,
    pub(crate) phase: ContainerPhase,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ContainerPhase {
    /// Its first process waits to be started.
    Created {
        pid: i32,
    },
    Running {
        pid: i32,
        started_at_ns: i64,
    },
    Exited {
        started_at_ns: i64,
        finished_at_ns: i64,
        exit_code: i32,
        reason: String,
        message: String,
    },
}

impl ContainerPhase {
    pub(crate) fn pid(&self) -> Option<i32> {
        match self {
            Self::Created { pid } | Self::Running { pid, .. } => Some(*pid),
            Self::Exited { .. } => None,
        }
    }

    pub(crate) fn is_exited(&self) -> bool {
        matches!(self, Self::Exited { .. })
    }
}

#[derive(Serialize)]
struct Sealed<'a, T> {
    version: u32,
    record: &'a T,
}

#[derive(Deserialize)]
struct Unsealed<T> {
    record: T,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// Writes in one step. Not synced: what it says does not outlive the boot.
pub(crate) fn write<T: Serialize>(path: &Path, record: &T) -> Result<(), RecordError> {
    let text = serde_json::to_vec(&Sealed { version: VERSION, record })
        .map_err(|source| RecordError::Parse { path: path.to_owned(), source })?;
    replace(path, &text).map_err(|source| RecordError::Write { path: path.to_owned(), source })
}

/// `None` when there is no record.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    let text = match fs_err::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::Read { path: path.to_owned(), source }),
    };
    let parse = |source| RecordError::Parse { path: path.to_owned(), source };
    let VersionOnly { version } = serde_json::from_slice(&text).map_err(parse)?;
    if version != VERSION {
        return Err(RecordError::Version { path: path.to_owned(), version });
    }
    let Unsealed { record } = serde_json::from_slice(&text).map_err(parse)?;
    Ok(Some(record))
}

/// CRI messages in their own wire format, whose rules for change are protobuf's, as base64.
mod wire {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use prost::Message;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<M: Message, S: Serializer>(message: &M, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(message.encode_to_vec()))
    }

    pub(super) fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(deserializer: D) -> Result<M, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(de::Error::custom)?;
        M::decode(bytes.as_slice()).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox() -> SandboxRecord {
        SandboxRecord {
            id: "s1".into(),
            config: v1::PodSandboxConfig { hostname: "web-0".into(), ..v1::PodSandboxConfig::default() },
            runtime_handler: String::new(),
            cgroup: "/kubepods/pod1".into(),
            created_at_ns: 5,
            phase: SandboxPhase::Ready {
                shim_pid: 1,
                infra_pid: 2,
                ips: vec!["10.244.0.2".parse().expect("an address")],
            },
        }
    }

    #[test]
    fn records_come_back_as_they_were() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sandbox.json");
        assert_eq!(read::<SandboxRecord>(&path).expect("no record is no error"), None);
        write(&path, &sandbox()).expect("written");
        assert_eq!(read(&path).expect("readable"), Some(sandbox()));
        let files = fs_err::read_dir(directory.path()).expect("readable").count();
        assert_eq!(files, 1, "nothing temporary is left");
    }

    #[test]
    fn a_newer_or_broken_record_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sandbox.json");
        fs_err::write(&path, r#"{"version": 2, "record": {"shape": "unknown"}}"#).expect("a file");
        assert!(matches!(read::<SandboxRecord>(&path), Err(RecordError::Version { version: 2, .. })));
        fs_err::write(&path, r#"{"version": 1, "record""#).expect("a file");
        assert!(matches!(read::<SandboxRecord>(&path), Err(RecordError::Parse { .. })));
    }
}
