//! Whether what a data directory holds belongs together: a store without its certificates, or certificates without their
//! store, is what is left of a cluster, and must not become the beginning of another.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::config::Settings;

/// The file that stands for a beginning that has not ended: until it is gone, store and certificates may be there singly.
const BEGINNING: &str = "beginning";

/// A data directory that has been looked at.
pub(crate) struct State {
    /// Where this start makes what is in it.
    beginning: Option<PathBuf>,
}

impl State {
    /// Refuses a directory from which something was lost. Call it before anything is made.
    pub(crate) fn check(settings: &Settings) -> Result<Self> {
        if settings.in_memory || settings.datastore.is_some() {
            return Ok(Self { beginning: None });
        }
        Self::check_dir(&settings.data_dir)
    }

    fn check_dir(data_dir: &Path) -> Result<Self> {
        let beginning = data_dir.join(BEGINNING);
        let (store, pki) = (data_dir.join("store"), data_dir.join("pki"));
        let has_store = store.join("FORMAT").exists();
        let has_authority = pki.join("ca.key").exists() && pki.join("ca.crt").exists();
        if !beginning.exists() {
            ensure!(
                has_authority || !has_store,
                "there is a store in {store} but no authority in {pki}: put the cluster's pki directory back, or move the store \
                 away to begin a new cluster",
                store = store.display(),
                pki = pki.display()
            );
            ensure!(
                has_store || !has_authority,
                "there is an authority in {pki} but no store in {store}: put the cluster's store directory back, or move pki \
                 away to begin a new cluster",
                store = store.display(),
                pki = pki.display()
            );
        }
        if has_store && has_authority {
            return Ok(Self { beginning: beginning.exists().then_some(beginning) });
        }
        fs_err::write(&beginning, "A cluster is being made here. carob removes this file when it is.\n")?;
        Ok(Self { beginning: Some(beginning) })
    }

    /// Store and certificates are there.
    pub(crate) fn complete(self) -> Result<()> {
        if let Some(beginning) = self.beginning {
            fs_err::remove_file(beginning)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_cluster_is_refused_and_a_beginning_that_was_cut_short_goes_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let make = |name: &str| {
            let path = dir.path().join(name);
            fs_err::create_dir_all(path.parent().expect("it has one")).expect("made");
            fs_err::write(path, "x").expect("written");
        };
        let check = || State::check_dir(dir.path());

        let first = check().expect("an empty directory begins a cluster");
        make("pki/ca.crt");
        make("pki/ca.key");
        drop(first);
        let second = check().expect("the first start was cut short");
        make("store/FORMAT");
        second.complete().expect("complete");
        check().expect("whole").complete().expect("nothing to do");

        fs_err::remove_file(dir.path().join("store/FORMAT")).expect("removed");
        let error = check().err().expect("refused").to_string();
        assert!(error.contains("but no store in") && error.contains("move pki"), "{error}");
        make("store/FORMAT");
        fs_err::remove_file(dir.path().join("pki/ca.key")).expect("removed");
        let error = check().err().expect("refused").to_string();
        assert!(error.contains("but no authority in"), "{error}");
        fs_err::remove_dir_all(dir.path().join("store")).expect("removed");
        fs_err::remove_dir_all(dir.path().join("pki")).expect("removed");
        check().expect("nothing is left of it");
    }
}
