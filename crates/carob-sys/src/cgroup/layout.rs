//! Where the control groups of this machine are: one unified tree (v2), one tree a controller (v1), or both (hybrid).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::CgroupError;
use crate::mountinfo::{self, MountPoint};

/// The trees of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// Every controller is in the unified tree.
    V2 { root: PathBuf },
    /// Every controller has its own tree, keyed by controller name; several may share one. `unified` is the tree without
    /// controllers of a hybrid machine, which still can kill a group at once.
    V1 { controllers: BTreeMap<String, PathBuf>, unified: Option<PathBuf> },
}

/// The controllers that a Pod's limits and accounting need.
pub(super) const CONTROLLERS: &[&str] = &[
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "io",
    "memory",
    // No controller, but the tree by which systemd knows whose a process is.
    "name=systemd",
    "pids",
];

impl Layout {
    /// Reads the mount table of the calling process.
    pub fn detect() -> Result<Self, CgroupError> {
        let path = PathBuf::from("/proc/self/mountinfo");
        let text = fs_err::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })?;
        Self::from_mounts(&mountinfo::parse(&text))
    }

    fn from_mounts(mounts: &[MountPoint]) -> Result<Self, CgroupError> {
        let mut controllers = BTreeMap::new();
        for mount in mounts.iter().filter(|mount| mount.filesystem == "cgroup") {
            for option in mount.super_options.split(',').filter(|option| CONTROLLERS.contains(option)) {
                controllers.entry(option.to_owned()).or_insert_with(|| mount.target.clone());
            }
        }
        let unified = mounts.iter().find(|mount| mount.filesystem == "cgroup2").map(|mount| mount.target.clone());
        match (controllers.is_empty(), unified) {
            (true, Some(root)) => Ok(Self::V2 { root }),
            (true, None) => Err(CgroupError::NotMounted),
            (false, unified) => Ok(Self::V1 { controllers, unified }),
        }
    }

    /// The directories that one group has, one a tree.
    pub(super) fn directories(&self, group: &Path) -> Vec<PathBuf> {
        let mut roots: Vec<&PathBuf> = match self {
            Self::V2 { root } => vec![root],
            Self::V1 { controllers, unified } => controllers.values().chain(unified).collect(),
        };
        roots.sort();
        roots.dedup();
        roots.into_iter().map(|root| join(root, group)).collect()
    }

    /// The directory of a group in a controller's tree, where this machine has that controller.
    pub(super) fn directory(&self, controller: &str, group: &Path) -> Option<PathBuf> {
        match self {
            Self::V2 { root } => Some(join(root, group)),
            Self::V1 { controllers, .. } => controllers.get(controller).map(|root| join(root, group)),
        }
    }

    /// The directory of a group in the unified tree, where there is one.
    pub(super) fn unified_directory(&self, group: &Path) -> Option<PathBuf> {
        match self {
            Self::V2 { root } => Some(join(root, group)),
            Self::V1 { unified, .. } => unified.as_ref().map(|root| join(root, group)),
        }
    }
}

/// Groups are named from the root of a tree, `/kubepods/pod1`, which [`Path::join`] would take for the whole path.
fn join(root: &Path, group: &Path) -> PathBuf {
    root.join(group.strip_prefix("/").unwrap_or(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    fn detect(mounts: &str) -> Result<Layout, CgroupError> {
        Layout::from_mounts(&mountinfo::parse(mounts))
    }

    #[test]
    fn a_machine_is_unified_only_when_no_controller_is_elsewhere() {
        assert_eq!(detect(UNIFIED).expect("v2"), Layout::V2 { root: "/sys/fs/cgroup".into() });
        let Layout::V1 { controllers, unified } = detect(HYBRID).expect("hybrid") else { panic!("not v2") };
        assert_eq!(controllers.keys().collect::<Vec<_>>(), ["cpu", "cpuacct", "memory", "name=systemd"]);
        assert_eq!(unified, Some("/sys/fs/cgroup/unified".into()));
        assert!(matches!(detect(""), Err(CgroupError::NotMounted)));
    }

    #[test]
    fn controllers_that_share_a_tree_share_a_directory() {
        let layout = detect(HYBRID).expect("hybrid");
        let directories = layout.directories(Path::new("/kubepods/pod1"));
        let expected =
            ["cpu,cpuacct", "memory", "systemd", "unified"].map(|name| format!("/sys/fs/cgroup/{name}/kubepods/pod1"));
        assert_eq!(directories, expected.map(PathBuf::from));
    }
}
