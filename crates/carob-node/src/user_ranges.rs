//! Which users and groups of the machine a Pod's are that has a user namespace of its own (`hostUsers: false`).
//!
//! The range is noted in the Pod's directory, in the kubelet's form and place (`pkg/kubelet/userns/userns_manager.go`), so it
//! stays the same as long as the Pod does, across restarts of the node, and is free again once that directory is gone: there
//! is no list beside it that could differ.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use carob_cri::v1::{IdMapping, NamespaceMode, UserNamespace};
use carob_kit::fs::replace;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::paths::PodDirs;

/// Users of one Pod (kubelet `DefaultKubeletUserNamespacesIDsPerPod`).
const IDS_PER_POD: u32 = 65536;
/// Ranges are numbered from 1: the first belongs to the machine. Numbers stay below 2^31, since some programs take what is
/// above for negative.
const RANGES_MAX: u32 = (1 << 31) / IDS_PER_POD - 1;

#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    #[error("{operation} the users of pod {uid}")]
    Io {
        operation: &'static str,
        uid: String,
        #[source]
        source: io::Error,
    },
    #[error("the users of pod {uid} are noted in another form")]
    Form {
        uid: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the users of pod {0} are noted with a range that no pod can have")]
    Range(String),
    #[error("no range of users is free: {RANGES_MAX} pods have one")]
    Exhausted,
}

/// A range: a multiple of [`IDS_PER_POD`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserRange(u32);

impl UserRange {
    fn number(number: u32) -> Option<Self> {
        (1..=RANGES_MAX).contains(&number).then_some(Self(number))
    }

    /// As CRI has it, for users as for groups.
    pub fn mapping(self) -> IdMapping {
        IdMapping { host_id: self.0 * IDS_PER_POD, container_id: 0, length: IDS_PER_POD }
    }

    pub fn namespace(self) -> UserNamespace {
        let mapping = vec![self.mapping()];
        UserNamespace { mode: NamespaceMode::Pod.into(), uids: mapping.clone(), gids: mapping }
    }
}

/// The form of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    #[serde(rename = "uidMappings")]
    users: Vec<NotedMapping>,
    #[serde(rename = "gidMappings")]
    groups: Vec<NotedMapping>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NotedMapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

impl Noted {
    fn of(range: UserRange) -> Self {
        let IdMapping { host_id, container_id, length } = range.mapping();
        let mapping = vec![NotedMapping { host_id, container_id, length }];
        Self { users: mapping.clone(), groups: mapping }
    }

    fn range(&self) -> Option<UserRange> {
        let ([mapping], true) = (self.users.as_slice(), self.users == self.groups) else { return None };
        let whole = mapping.length == IDS_PER_POD && mapping.container_id == 0 && mapping.host_id % IDS_PER_POD == 0;
        UserRange::number(mapping.host_id / IDS_PER_POD).filter(|_| whole)
    }
}

/// The ranges of all Pods of the node.
#[derive(Debug)]
pub struct UserRanges {
    dirs: PodDirs,
    /// Two Pods that come at once must not choose the same.
    choosing: Mutex<()>,
}

impl UserRanges {
    pub fn new(dirs: PodDirs) -> Self {
        Self { dirs, choosing: Mutex::new(()) }
    }

    /// The range of a Pod, if it has one.
    pub fn find(&self, uid: &str) -> Result<Option<UserRange>, RangeError> {
        let text = match fs::read(self.path(uid)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RangeError::Io { operation: "read", uid: uid.to_owned(), source }),
        };
        let noted: Noted =
            serde_json::from_slice(&text).map_err(|source| RangeError::Form { uid: uid.to_owned(), source })?;
        noted.range().map(Some).ok_or_else(|| RangeError::Range(uid.to_owned()))
    }

    /// The range of a Pod whose directory is there: the one it has, or the first that is free.
    pub fn assign(&self, uid: &str) -> Result<UserRange, RangeError> {
        let _choosing = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(range) = self.find(uid)? {
            return Ok(range);
        }
        let failed = |operation| move |source| RangeError::Io { operation, uid: uid.to_owned(), source };
        let mut taken = BTreeSet::new();
        for entry in fs::read_dir(self.dirs.pods()).map_err(failed("look for"))? {
            let other = entry.map_err(failed("look for"))?.file_name();
            // What is noted badly is its own Pod's trouble; a name that is no text is no Pod's.
            if let Some(Ok(Some(range))) = other.to_str().map(|other| self.find(other)) {
                taken.insert(range.0);
            }
        }
        let free = (1..=RANGES_MAX).find(|number| !taken.contains(number));
        let range = free.and_then(UserRange::number).ok_or(RangeError::Exhausted)?;
        let text =
            serde_json::to_vec(&Noted::of(range)).map_err(|source| RangeError::Form { uid: uid.to_owned(), source })?;
        replace(&self.path(uid), &text).map_err(failed("note"))?;
        Ok(range)
    }

    fn path(&self, uid: &str) -> PathBuf {
        self.dirs.user_range(uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_keeps_its_range_and_gives_it_back_with_its_directory() {
        let root = tempfile::tempdir().expect("a directory");
        let ranges = UserRanges::new(PodDirs::new(root.path().join("pods"), root.path().join("logs"), None));
        let pod = |uid: &str| root.path().join("pods").join(uid);
        for uid in ["a", "b", "c", "plain"] {
            fs::create_dir_all(pod(uid)).expect("a directory");
        }
        let assign = |uid: &str| ranges.assign(uid).map(|range| range.mapping().host_id);
        assert_eq!(assign("a").ok(), Some(65536));
        assert_eq!(assign("b").ok(), Some(131_072));
        assert_eq!(assign("a").ok(), Some(65536), "the same again");
        let later = UserRanges::new(PodDirs::new(root.path().join("pods"), root.path().join("logs"), None));
        assert_eq!(later.find("b").expect("readable"), UserRange::number(2), "after a restart");
        assert_eq!(later.find("plain").expect("readable"), None);
        fs::remove_dir_all(pod("a")).expect("removed");
        assert_eq!(assign("c").ok(), Some(65536), "free again");
    }

    #[test]
    fn a_note_that_is_damaged_is_told_of_and_not_guessed() {
        let root = tempfile::tempdir().expect("a directory");
        let ranges = UserRanges::new(PodDirs::new(root.path(), root.path().join("logs"), None));
        fs::create_dir_all(root.path().join("a")).expect("a directory");
        let file = root.path().join("a/userns");
        let mapping = |host: u32| format!(r#"[{{"hostId":{host},"containerId":0,"length":65536}}]"#);
        for text in [
            String::new(),
            r#"{"uidMappings":[],"gidMappings":[]}"#.to_owned(),
            format!(r#"{{"uidMappings":{},"gidMappings":{}}}"#, mapping(0), mapping(0)),
            format!(r#"{{"uidMappings":{},"gidMappings":{}}}"#, mapping(65536), mapping(131_072)),
        ] {
            fs::write(&file, &text).expect("written");
            assert!(ranges.assign("a").is_err(), "{text}");
        }
    }
}
