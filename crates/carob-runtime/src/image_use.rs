//! Which images containers were made from, and the removal of those that nothing needs any more.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use carob_image::{GcPolicy, ImageId, ImageStore};

use crate::error::RuntimeError;
use crate::files;
use crate::paths::Paths;
use crate::record::{self, ContainerRecord};

/// How often images are collected (kubelet `ImageGCPeriod`).
const COLLECT_EVERY: Duration = Duration::from_mins(5);

/// The images of all containers that there are, also of those that have ended, and of the volumes that they mount. Read from the
/// records, so it holds also where no server runs while its Pods do. Blocking.
pub fn images_in_use(run_dir: &Path) -> Result<BTreeSet<ImageId>, RuntimeError> {
    let paths = Paths::new(Path::new(""), run_dir);
    let mut used = BTreeSet::new();
    for sandbox in files::names_in(&paths.sandboxes())? {
        for container in files::names_in(&paths.containers(&sandbox))? {
            let found = record::read::<ContainerRecord>(&paths.container_record(&sandbox, &container))?;
            let Some(found) = found else { continue };
            let volumes = found.config.mounts.iter().filter_map(|mount| mount.image.as_ref());
            let names = volumes.map(|image| image.image.as_str()).chain([found.image_id.as_str()]);
            // What a record names otherwise than by id is no image of this store's.
            used.extend(names.filter_map(|name| name.parse::<ImageId>().ok()));
        }
    }
    Ok(used)
}

/// Removes images by the policy from time to time, until the shutdown.
pub async fn collect_images(store: ImageStore, run_dir: PathBuf, policy: GcPolicy, shutdown: impl Future<Output = ()>) {
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        // Both arms are cancel safe.
        tokio::select! {
            () = tokio::time::sleep(COLLECT_EVERY) => {}
            () = &mut shutdown => return,
        }
        if let Err(error) = collect(&store, &run_dir, &policy).await {
            tracing::warn!(error = %carob_kit::chain(&error), "images that nothing needs could not be removed");
        }
    }
}

async fn collect(store: &ImageStore, run_dir: &Path, policy: &GcPolicy) -> Result<(), RuntimeError> {
    let dir = run_dir.to_owned();
    let used = tokio::task::spawn_blocking(move || images_in_use(&dir)).await??;
    let used: Vec<ImageId> = used.into_iter().collect();
    let report = store.collect_garbage(policy, &used).await.map_err(RuntimeError::Images)?;
    if !report.removed.is_empty() {
        let (images, freed_bytes) = (report.removed.len(), report.freed_bytes);
        tracing::info!(images, freed_bytes, "removed images that nothing uses");
    }
    if report.short_bytes > 0 {
        let needed_bytes = report.short_bytes;
        tracing::warn!(needed_bytes, "the disk is nearly full, and every image left is in use, pinned or new");
    }
    Ok(())
}
