//! The durable backend under the suite, under power loss and failing I/O, and on damaged directories.

mod crash;
mod damage;
mod faults;
mod kill;
mod model;
mod restart;
mod sealed;

use std::time::Duration;

use std::path::Path;
use std::sync::Arc;

use carob_kit::fs::{FaultFs, RealFs};

use super::LogSizes;
use crate::backend::OpenError;
use crate::{Options, Store, suite};

#[tokio::test(start_paused = true)]
async fn the_suite_on_a_model_file_system() {
    suite::run_all(async |options: Options| {
        Store::embedded_on(Arc::new(FaultFs::new()), Path::new("store"), options).await.expect("open")
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_suite_on_the_real_file_system() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let opened = std::sync::atomic::AtomicU32::new(0);
    suite::run_all(async |options: Options| {
        let number = opened.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = root.path().join(number.to_string());
        Store::embedded_on(Arc::new(RealFs), &dir, options).await.expect("open")
    })
    .await;
}

/// Sizes at which a few writes fill segments and make checkpoints.
const SMALL: LogSizes = LogSizes { segment_bytes: 4096, checkpoint_bytes_min: 3 * 4096, revision_block: 8 };

async fn open(fs: &FaultFs) -> Result<Store, OpenError> {
    Store::embedded_sized(Arc::new(fs.clone()), Path::new("store"), SMALL, Options::default()).await
}

/// Waits until the store has done all that it does by itself at once: paused time moves on only then.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
