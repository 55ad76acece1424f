//! `carob save` and `carob restore`.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use carob_kit::{Clock, SystemClock};
use carob_store::Store;
use serde_json::Value;

use crate::cli::{RestoreArgs, SaveArgs};
use crate::config::Settings;
use crate::saved::{self, Summary};
use crate::{admin, compose};

/// Has the server that runs here write its state.
pub(crate) async fn save(arguments: SaveArgs) -> Result<()> {
    let path = std::path::absolute(&arguments.file)?;
    let answer = admin::ask(&arguments.run_dir, &admin::Request::Save { path: path.clone() }, |_| {}).await?;
    let answer = answer.with_context(|| {
        format!("no server runs with {}; of one that is stopped, copy `store` and `pki`", arguments.run_dir.display())
    })?;
    let Summary { revision, entries, bytes } = serde_json::from_value(answer).context("read the server's answer")?;
    writeln!(
        std::io::stdout().lock(),
        "saved {entries} objects of revision {revision} in {} ({bytes} bytes)",
        path.display()
    )?;
    Ok(())
}

/// What the server does for [`save`].
pub(crate) async fn answer(store: Option<&Store>, settings: &Arc<Settings>, path: &Path) -> Result<Value> {
    let store = store.context("this is an agent: what there is to save is on its server")?;
    ensure!(settings.datastore.is_none(), "the cluster's objects are in etcd: save them with `etcdctl snapshot save`");
    ensure!(!settings.in_memory, "this server keeps nothing");
    ensure!(path.is_absolute(), "{} is no absolute path", path.display());
    let (snapshot, settings, path) = (store.save(), Arc::clone(settings), path.to_owned());
    let now = SystemClock::new().now();
    let work = move || saved::write(&path, &settings.data_dir, &snapshot, now);
    let summary = tokio::task::spawn_blocking(work).await.context("save the cluster")??;
    Ok(serde_json::to_value(summary)?)
}

/// Makes a data directory of what was saved.
pub(crate) async fn restore(arguments: RestoreArgs) -> Result<()> {
    let directories = arguments.directories;
    // Nothing may run there meanwhile.
    let lock = compose::lock(&directories.run_dir)?;
    let data_dir = std::path::absolute(&directories.data_dir)?;
    let (file, target, now) = (arguments.file, data_dir.clone(), SystemClock::new().now());
    let work = move || saved::restore(&file, &target, now);
    let restored = tokio::task::spawn_blocking(work).await.context("restore the cluster")??;
    drop(lock);
    writeln!(
        std::io::stdout().lock(),
        "restored {} objects of revision {} in {}; start the server with this directory",
        restored.entries,
        restored.saved,
        data_dir.display()
    )?;
    Ok(())
}
