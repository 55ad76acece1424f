//! Volumes that one Pod may have at a time (`ReadWriteOncePod`). The scheduler holds to that too; a Pod may come past it.

use std::io;
use std::path::PathBuf;

use fs_err as fs;
use k8s_openapi::api::core::v1::PersistentVolumeSpec;
use tokio::sync::OwnedMutexGuard;

use crate::paths::PodDirs;

#[derive(Debug, thiserror::Error)]
pub enum ExclusiveError {
    #[error("volume uses the ReadWriteOncePod access mode and is already in use by another pod")]
    InUse,
    #[error("look for the volume's other pods")]
    Io(#[from] io::Error),
}

/// A volume that is wanted by one Pod alone.
#[derive(Debug)]
pub(super) struct Exclusive {
    pub(super) dirs: PodDirs,
    pub(super) uid: String,
    pub(super) volume: String,
    /// One Pod at a time looks and takes.
    pub(super) turn: OwnedMutexGuard<()>,
}

/// Whether one Pod may have a volume at a time. Of several modes nobody knows which one the Pod means. Pure.
pub(super) fn is_exclusive(spec: &PersistentVolumeSpec) -> bool {
    matches!(spec.access_modes.as_deref(), Some([mode]) if mode == "ReadWriteOncePod")
}

impl Exclusive {
    /// Nobody else takes the volume for as long as the turn in the answer is held. What a Pod has is known from its directory, so that
    /// a restart changes nothing. May block.
    pub(super) fn hold(self) -> Result<OwnedMutexGuard<()>, ExclusiveError> {
        for pod in super::entries(self.dirs.pods())? {
            let other = pod.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let plugins =
                [super::entries(&self.dirs.volumes(&other))?, vec![self.dirs.volume_devices(&other)]].concat();
            let has = |plugin: &PathBuf| fs::symlink_metadata(plugin.join(&self.volume)).is_ok();
            if other != self.uid && plugins.iter().any(has) {
                return Err(ExclusiveError::InUse);
            }
        }
        Ok(self.turn)
    }
}

#[cfg(test)]
mod tests {
    use carob_kit::KeyedLocks;

    use super::*;

    #[tokio::test]
    async fn one_pod_has_it_and_the_next_one_once_that_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let dirs = PodDirs::new(dir.path().join("pods"), dir.path().join("logs"), None);
        let turns = KeyedLocks::<String>::default();
        let of = async |uid: &str| Exclusive {
            dirs: dirs.clone(),
            uid: uid.to_owned(),
            volume: "v".to_owned(),
            turn: turns.take("v").await,
        };
        drop(of("one").await.hold().expect("nobody has it"));
        for target in [dirs.volume("one", "local-volume", "v"), dirs.volume_device("one", "v")] {
            fs::create_dir_all(&target).expect("made");
            drop(of("one").await.hold().expect("it has it already"));
            assert!(matches!(of("two").await.hold(), Err(ExclusiveError::InUse)), "{}", target.display());
            fs::remove_dir(&target).expect("removed");
            drop(of("two").await.hold().expect("it is free"));
        }
        for (modes, expect) in [
            (vec!["ReadWriteOncePod"], true),
            (vec!["ReadWriteOnce"], false),
            (vec!["ReadWriteOnce", "ReadWriteOncePod"], false),
        ] {
            let access_modes = Some(modes.into_iter().map(str::to_owned).collect());
            assert_eq!(is_exclusive(&PersistentVolumeSpec { access_modes, ..Default::default() }), expect);
        }
    }
}
