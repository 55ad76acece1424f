//! Control groups of Pods for a runtime that makes none: CRI leaves them to whoever drives it (kubelet `pkg/kubelet/cm`).

use std::path::Path;

use carob_cri::v1;
use carob_sys::cgroup::{Cgroup, CgroupError, Layout};

use crate::error::RuntimeError;
use crate::runtime::host_facts;
use crate::spec::resources_for;

/// Makes and removes groups of Pods.
#[derive(Debug, Clone)]
pub struct PodGroups {
    layout: Layout,
    hugetlb: bool,
}

impl PodGroups {
    /// Looks at how this machine has its groups.
    pub fn detect() -> Result<Self, RuntimeError> {
        let layout = Layout::detect()?;
        let hugetlb = host_facts(&layout)?.hugetlb;
        Ok(Self { layout, hugetlb })
    }

    /// Makes the group with its limits, or gives an existing one these.
    pub fn make(&self, group: &Path, limits: Option<&v1::LinuxContainerResources>) -> Result<(), CgroupError> {
        let made = Cgroup::new(&self.layout, group);
        made.create()?;
        limits.map_or(Ok(()), |limits| made.apply(&resources_for(limits, self.hugetlb)))
    }

    /// Removes the group, unless something runs in it: another sandbox of the same Pod.
    pub fn remove(&self, group: &Path) -> Result<(), CgroupError> {
        match Cgroup::new(&self.layout, group).remove() {
            Err(error) if error.is_busy() => Ok(()),
            done => done,
        }
    }
}
