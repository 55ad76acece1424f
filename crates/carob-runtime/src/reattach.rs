//! What a new process finds: Pods that run on, Pods that are lost, and leftovers.
//!
//! What is true comes from the kernel first, then from the shim, then from the records.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use carob_kit::forget_other_boots;
use carob_kit::fs::{keep_apart, make_private};
use carob_shim::protocol::ProcessRecord;

use crate::error::RuntimeError;
use crate::files;
use crate::record::{self, ContainerRecord, SandboxPhase, SandboxRecord};
use crate::runtime::{Container, Runtime, Sandbox};
use crate::shim;

type Result<T> = std::result::Result<T, RuntimeError>;

impl Runtime {
    pub(crate) async fn take_up(self: &Arc<Self>) -> Result<()> {
        files::make_directory(&self.paths.sandboxes())?;
        self.forget_other_boots()?;
        for directory in [self.paths.sandboxes(), self.paths.layers()] {
            make_private(&directory, 0o700).map_err(RuntimeError::file("make directory", &directory))?;
            keep_apart(&directory).map_err(RuntimeError::file("set attributes of", &directory))?;
        }
        files::prepare_rootfs_target(&self.paths.rootfs())?;
        for id in files::names_in(&self.paths.sandboxes())? {
            self.take_up_sandbox(&id).await?;
        }
        self.sweep().await
    }

    /// A run directory that is no tmpfs keeps records across a reboot, which ended what they are about.
    fn forget_other_boots(&self) -> Result<()> {
        let marker = self.paths.boot_id();
        forget_other_boots(&marker, || files::remove_directory(&self.paths.sandboxes()).map_err(io::Error::other))
            .map_err(RuntimeError::file("compare the boot with", &marker))?;
        files::make_directory(&self.paths.sandboxes())
    }

    async fn take_up_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let found: Option<SandboxRecord> = record::read(&self.paths.sandbox_record(id))?;
        let Some(found) = found.filter(|record| record.phase != SandboxPhase::Creating) else {
            // Nobody was told of it yet: what there is of it, goes. Its group may be known or not.
            return self.remove_unknown(id).await;
        };
        let stopped = matches!(found.phase, SandboxPhase::Stopped { .. });
        let sandbox = Arc::new(Sandbox::new(found, None));
        self.insert_sandbox(Arc::clone(&sandbox));
        for container in files::names_in(&self.paths.containers(id))? {
            match record::read::<ContainerRecord>(&self.paths.container_record(id, &container))? {
                Some(record) => self.insert_container(Arc::new(Container::new(record, Arc::clone(&sandbox)))),
                None => {
                    let cgroup = sandbox.record().cgroup.join(&container);
                    self.remove_container_traces(&sandbox, &container, &cgroup).await?;
                }
            }
        }
        match shim::reconnect(&self.paths.sandbox(id)) {
            Ok((pid, socket)) => {
                let shim = self.talk_to_shim(&sandbox, pid, socket).await?;
                let processes = shim.list().await.map_err(sandbox.shim_error())?;
                self.compare(&sandbox, &processes).await
            }
            Err(error) => {
                if !stopped {
                    tracing::warn!(sandbox = id, error = %carob_kit::chain(&error), "the sandbox is lost");
                }
                self.shim_gone(&sandbox).await
            }
        }
    }

    /// Brings the records up to what the shim says happened meanwhile.
    async fn compare(&self, sandbox: &Arc<Sandbox>, processes: &[ProcessRecord]) -> Result<()> {
        for container in self.containers_of(&sandbox.id) {
            match processes.iter().find(|process| process.id == container.id) {
                Some(ProcessRecord { exit: Some(exit), .. }) => self.container_exited(&container, *exit).await?,
                Some(ProcessRecord { exit: None, .. }) => {}
                // Kept here already, or never reported: the record decides.
                None => self.container_lost(&container)?,
            }
        }
        let infra = processes.iter().find(|process| process.id == sandbox.id);
        if infra.is_none_or(|infra| infra.exit.is_some()) {
            self.mark_stopped(sandbox)?;
        }
        self.end_unknown(sandbox, processes).await
    }

    /// Containers that the shim has and no record: their creation was cut short.
    async fn end_unknown(&self, sandbox: &Arc<Sandbox>, processes: &[ProcessRecord]) -> Result<()> {
        for process in processes {
            let known = process.id == sandbox.id || self.find_container(&process.id).is_some();
            if !known && process.kind == carob_shim::protocol::ProcessKind::Container {
                let cgroup = sandbox.record().cgroup.join(&process.id);
                self.remove_container_traces(sandbox, &process.id, &cgroup).await?;
            }
        }
        Ok(())
    }

    /// Removes a sandbox of which there is no finished record.
    async fn remove_unknown(&self, id: &str) -> Result<()> {
        let record: Option<SandboxRecord> = record::read(&self.paths.sandbox_record(id))?;
        match record {
            Some(record) => {
                let sandbox = Sandbox::new(record, None);
                self.take_down(&sandbox).await
            }
            // It broke off before its first record, and that is the first thing to be written.
            None => {
                files::unmount(&self.paths.shm(id))?;
                files::remove_directory(&self.paths.sandbox(id))
            }
        }
    }

    /// Removes what belongs to no sandbox: a set difference by names.
    async fn sweep(&self) -> Result<()> {
        let live: BTreeSet<String> = self.sandboxes().iter().map(|sandbox| sandbox.id.clone()).collect();
        for id in files::names_in(&self.paths.layers())?.into_iter().filter(|id| !live.contains(id)) {
            files::remove_directory(&self.paths.sandbox_layers(&id))?;
        }
        let groups: BTreeSet<_> = self.sandboxes().iter().map(|sandbox| sandbox.record().cgroup).collect();
        let root = self.config.cgroup_root.join("kubepods");
        for parent in [root.clone(), root.join("burstable"), root.join("besteffort")] {
            for name in self.cgroup(&parent).children()?.into_iter().filter(|name| name.starts_with("pod")) {
                let group = parent.join(name);
                // The same tree may hold the Pods of a kubelet.
                let ours = self.cgroup(&group).owner()?.is_some_and(|owner| owner == self.config.instance);
                if ours && !groups.contains(&group) {
                    self.remove_group(&group).await?;
                }
            }
        }
        let swept = self.config.network.sweep(&live).await;
        swept.map_err(|source| RuntimeError::WholeNetwork { operation: "sweep the network", source })
    }

    async fn remove_group(&self, group: &Path) -> Result<()> {
        tracing::info!(group = %group.display(), "remove the control group of a Pod that is gone");
        self.end_group(group).await?;
        Ok(self.cgroup(group).remove()?)
    }
}
