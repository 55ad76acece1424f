//! Volumes of drivers are given back: unpublished for their Pod, and unstaged when no Pod has them any more.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::error::CsiError;
use super::paths::{VolumeId, target};
use super::records::{self, OfPod};
use super::{Csi, Inner};

/// Whose threads work on volumes takes that no Pod has.
const FILES_OF: &str = "csi";

impl Csi {
    /// Recalls from disk what is in use, before the node says anything of it. May block.
    pub(crate) fn recall(&self) -> io::Result<()> {
        let dirs = &self.0.dirs;
        let mut volumes: Vec<VolumeId> = dirs.staged_volumes()?.into_iter().map(|staged| staged.volume).collect();
        for uid in dirs.uids()? {
            volumes
                .extend(dirs.of_pod(&uid)?.into_iter().filter(OfPod::is_persistent).map(|held| held.record.volume()));
        }
        for volume in volumes {
            self.0.attachments.set_in_use(&volume.unique_name(), true);
        }
        Ok(())
    }

    /// Gives back all that a Pod has or may have. Nothing there is fine, and doing it again goes on where it was broken off.
    pub(crate) async fn release(&self, uid: &str) -> Result<(), CsiError> {
        let inner = &self.0;
        let begun: Vec<_> = {
            let mut state = inner.state();
            state.published.retain(|(of, _), _| of != uid);
            let own = state.operations.iter().filter(|((of, _), _)| of == uid);
            own.map(|(key, operation)| (key.clone(), Arc::clone(operation))).collect()
        };
        for (key, operation) in begun {
            operation.end().await;
            inner.state().operations.remove(&key);
        }
        inner.tokens.forget(uid);
        let (dirs, of_pod) = (inner.dirs.clone(), uid.to_owned());
        let held = inner.files.run(uid, "look for the volumes of a pod", move || dirs.of_pod(&of_pod)).await??;
        let mut volumes: BTreeSet<VolumeId> = held.iter().map(|held| held.record.volume()).collect();
        {
            let state = inner.state();
            let wanted = state.users.iter().filter(|(_, users)| users.contains(uid));
            volumes.extend(wanted.map(|(volume, _)| volume.clone()));
        }
        for volume in volumes {
            let lock = inner.lock_of(&volume);
            let _turn = lock.lock().await;
            for held in held.iter().filter(|held| held.record.volume() == volume) {
                inner.unpublish(held).await?;
            }
            inner.unstage_unused(&volume, uid).await?;
            inner.forget_user(&volume, uid);
        }
        let (dirs, of_pod) = (inner.dirs.clone(), uid.to_owned());
        let removed = inner.files.run(uid, "remove the directories of volumes", move || {
            let dir = dirs.volumes(&of_pod);
            for name in records::names_in(&dir)? {
                // Only what was never given to a driver is left here.
                records::remove(&target(&dirs.volume(&of_pod, &name)))?;
            }
            let (links, of_pod) = (dirs.device_links(&of_pod), dirs.pod(&of_pod));
            // The Pod's other things may be here too.
            records::remove_dirs([Some(&*dir), dir.parent(), Some(&*links), links.parent(), Some(&*of_pod)])
        });
        Ok(removed.await??)
    }

    /// The Pods that have volumes of drivers on disk.
    pub(crate) async fn pods_on_disk(&self) -> Result<Vec<String>, CsiError> {
        let dirs = self.0.dirs.clone();
        Ok(self.0.files.run(FILES_OF, "look for pods with volumes", move || dirs.uids()).await??)
    }

    /// Gives back what is staged and no Pod has: the node went away between two steps. The first failure is told when all have been tried.
    pub(crate) async fn unstage_left(&self) -> Result<(), CsiError> {
        let dirs = self.0.dirs.clone();
        let staged = self.0.files.run(FILES_OF, "look for staged volumes", move || dirs.staged_volumes()).await??;
        let mut failure = Ok(());
        for staged in staged {
            let lock = self.0.lock_of(&staged.volume);
            let _turn = lock.lock().await;
            failure = failure.and(self.0.unstage_unused(&staged.volume, FILES_OF).await);
        }
        failure
    }
}

impl Inner {
    async fn unpublish(&self, held: &OfPod) -> Result<(), CsiError> {
        let VolumeId { driver, handle } = held.record.volume();
        let registered = self.drivers.wait(&driver).await;
        let registered =
            registered.ok_or_else(|| CsiError::NoDriver { step: "Unmounter.TearDownAt", driver: driver.clone() })?;
        let path = held.target.clone();
        let unpublished = registered.driver.unpublish(handle, path.display().to_string()).await;
        unpublished.map_err(CsiError::driver("Unmounter.TearDownAt"))?;
        let link = held.link.clone();
        let removed = self.files.run(&held.uid, "remove the directory of a volume", move || match link {
            Some(link) => records::remove_device(&path, &link),
            None => records::remove(&path),
        });
        Ok(removed.await??)
    }

    fn forget_user(&self, volume: &VolumeId, uid: &str) {
        let mut state = self.state();
        if let Some(users) = state.users.get_mut(volume) {
            users.remove(uid);
            if users.is_empty() {
                state.users.remove(volume);
            }
        }
    }

    /// Unstages the volume unless a Pod has it, other than the one with the uid `files_of`. The caller has its lock.
    async fn unstage_unused(&self, volume: &VolumeId, files_of: &str) -> Result<(), CsiError> {
        let is_wanted = self.state().users.get(volume).is_some_and(|users| users.iter().any(|user| user != files_of));
        if is_wanted {
            return Ok(());
        }
        let (dirs, wanted) = (self.dirs.clone(), volume.clone());
        let found = self.files.run(files_of, "look whether a volume is used", move || {
            let staged = dirs.staged_volumes()?.into_iter().filter(|staged| staged.volume == wanted);
            Ok::<_, io::Error>((dirs.is_used(&wanted)?, staged.collect::<Vec<_>>()))
        });
        let (is_used, all) = found.await??;
        if is_used {
            return Ok(());
        }
        for staged in all {
            let registered = self.drivers.wait(&volume.driver).await;
            let no_driver = || CsiError::NoDriver { step: "attacher.UnmountDevice", driver: volume.driver.clone() };
            let registered = registered.ok_or_else(no_driver)?;
            let failed = || CsiError::driver("attacher.UnmountDevice");
            if registered.driver.capabilities().await.map_err(failed())?.stage {
                let staging = staged.staging.display().to_string();
                let unstaged = registered.driver.unstage(volume.handle.clone(), staging).await;
                unstaged.map_err(failed())?;
            }
            let dirs = self.dirs.clone();
            let removed = self
                .files
                .run(files_of, "remove the directory of a staged volume", move || dirs.remove_staged(&staged));
            removed.await??;
        }
        self.state().staged.remove(volume);
        self.attachments.set_in_use(&volume.unique_name(), false);
        Ok(())
    }
}
