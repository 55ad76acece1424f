use std::path::Path;
use std::sync::Arc;

use carob_kit::fs::{FaultFs, RealFs};

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
