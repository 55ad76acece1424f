//! What a run has for itself: directories, addresses, ports, a cgroup; and how all of it goes away.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use carob_kit::SystemClock;
use carob_net::{NetConfig, PodNetwork};
use carob_runtime::Remains;
use clap::Parser;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::cli::{Cli, Command, RunArgs};
use crate::config::{Settings, instance_id};
use crate::{addresses, parts};

/// Where the directories of the runs are, in the data directory.
const RUNS: &str = "runs";
/// The end of the name of the file that the process in front of a run keeps locked. It says where the run has its things.
const MARKER: &str = ".lock";

/// The things of one run, all named by its guard's PID.
#[derive(Debug, Clone)]
pub(crate) struct Private {
    data_dir: PathBuf,
    run_dir: PathBuf,
    images_dir: PathBuf,
    cgroup_root: String,
    instance: String,
    marker: PathBuf,
}

/// What a marker says, for the one who finds it after its run was killed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    guard: u32,
    run_base: PathBuf,
    cgroup_root: String,
}

impl Private {
    pub(crate) fn new(arguments: &RunArgs) -> Result<Self> {
        let guard = arguments.guarded.context("a run has a guard")?;
        Self::of(&arguments.data_dir, &arguments.run_base, guard, &arguments.cgroup_root)
    }

    fn of(data_dir: &Path, run_base: &Path, guard: u32, cgroup_root: &str) -> Result<Self> {
        let data_dir = std::path::absolute(data_dir)?;
        let runs = data_dir.join(RUNS);
        let own = runs.join(guard.to_string());
        let root = cgroup_root.trim_end_matches('/');
        Ok(Self {
            run_dir: std::path::absolute(run_base)?.join(format!("carob-run-{guard}")),
            images_dir: data_dir.join("images"),
            cgroup_root: format!("{root}/carob-run-{guard}"),
            instance: instance_id(&own),
            marker: runs.join(format!("{guard}{MARKER}")),
            data_dir: own,
        })
    }

    /// Says that this run is there, for as long as the answer is held.
    pub(crate) fn mark(&self, arguments: &RunArgs) -> Result<std::fs::File> {
        let guard = arguments.guarded.context("a run has a guard")?;
        let runs = self.marker.parent().context("a marker is in a directory")?;
        carob_kit::fs::make_private(runs, 0o711)?;
        // Nobody may find it before it is locked, and what it says has to be whole by then.
        let unfinished = self.marker.with_extension("new");
        let file = fs_err::File::create(&unfinished)?.into_file();
        let (run_base, cgroup_root) = (std::path::absolute(&arguments.run_base)?, arguments.cgroup_root.clone());
        let marker = Marker { guard, run_base, cgroup_root };
        let written = lock(&file)
            .context("lock the marker of the run")
            .and_then(|_| {
                serde_json::to_writer(&file, &marker).with_context(|| format!("write {}", unfinished.display()))
            })
            .and_then(|()| Ok(fs_err::rename(&unfinished, &self.marker)?));
        if let Err(error) = written {
            fs_err::remove_file(&unfinished)?;
            return Err(error);
        }
        Ok(file)
    }

    /// The settings of the run's server.
    pub(crate) async fn settings(&self) -> Result<Settings> {
        let pods = addresses::of_run(&self.instance).await?;
        let words = [
            "carob".to_owned(),
            "server".to_owned(),
            "--in-memory".to_owned(),
            format!("--data-dir={}", self.data_dir.display()),
            format!("--run-dir={}", self.run_dir.display()),
            format!("--images-dir={}", self.images_dir.display()),
            format!("--cgroup-root={}", self.cgroup_root),
            format!("--cluster-cidr={pods}"),
            // A run takes no port of the machine that somebody may want.
            "--https-listen-port=0".to_owned(),
            "--kubelet-port=0".to_owned(),
            "--disable=ingress".to_owned(),
            format!("--bind-address={}", Ipv4Addr::LOCALHOST),
            "--node-name=carob-run".to_owned(),
            "--die-with-parent".to_owned(),
            // A machine that is short of disk or memory runs it all the same: its Pods are all there is.
            "--eviction-hard=".to_owned(),
        ];
        match Cli::try_parse_from(words)?.command {
            Command::Server(arguments) => Settings::new(*arguments),
            _ => unreachable!("the words say server"),
        }
    }

    /// Removes everything. What is gone already is no error, so this is also for what a killed run left; and a part that
    /// cannot be removed keeps no other one. The error is the first, and the marker then stays for the next run to find.
    pub(crate) async fn remove(&self) -> Result<()> {
        if !self.run_dir.exists() && !self.data_dir.exists() {
            return self.unmark();
        }
        let dirs = vec![self.run_dir.clone(), self.data_dir.clone()];
        let network = self.remove_network().await;
        let remains = Remains { cgroup: PathBuf::from(&self.cgroup_root), dirs };
        let remains = remains.remove().await.context("remove what the run has on this machine");
        network.and(remains)?;
        self.unmark()
    }

    fn unmark(&self) -> Result<()> {
        match fs_err::remove_file(&self.marker) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn remove_network(&self) -> Result<()> {
        let network = NetConfig {
            instance: self.instance.clone(),
            state_dir: self.run_dir.join("net"),
            pod_cidrs: Vec::new(),
            cluster_cidrs: Vec::new(),
            clock: Arc::new(SystemClock::new()),
        };
        fs_err::create_dir_all(&self.run_dir)?;
        let network = PodNetwork::open(network).await.context("open the run's network")?;
        parts::remove_rules(&self.instance, &[]).await.context("remove the run's rules")?;
        network.sweep(&std::collections::BTreeSet::new()).await.context("remove the run's interfaces")?;
        network.remove().await.context("remove the run's network")
    }
}

/// Removes what killed runs of this data directory left. Those that are still there are left alone, and a failure is told of.
pub(crate) async fn remove_leftovers(data_dir: &Path) {
    let markers = match leftovers(data_dir) {
        Ok(markers) => markers,
        Err(error) => {
            return tracing::warn!(error = format!("{error:#}"), "cannot look for what killed runs left");
        }
    };
    for (private, _held) in markers {
        match private.remove().await {
            Ok(()) => tracing::info!(run = %private.run_dir.display(), "removed what a killed run had left"),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(run = %private.run_dir.display(), error, "cannot remove what a killed run left");
            }
        }
    }
}

/// Runs whose guards are gone, each with its marker locked by this process.
fn leftovers(data_dir: &Path) -> Result<Vec<(Private, std::fs::File)>> {
    let runs = std::path::absolute(data_dir)?.join(RUNS);
    let mut found = Vec::new();
    let entries = match fs_err::read_dir(&runs) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if !path.to_str().is_some_and(|path| path.ends_with(MARKER)) {
            continue;
        }
        let file = match fs_err::File::open(&path) {
            // Its run has just ended.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            file => file?.into_file(),
        };
        if !lock(&file).with_context(|| format!("lock {}", path.display()))? {
            continue;
        }
        let marker: Marker =
            serde_json::from_reader(&file).with_context(|| format!("read the marker {}", path.display()))?;
        let private = Private::of(data_dir, &marker.run_base, marker.guard, &marker.cgroup_root)?;
        if private.is_running()? {
            let run = private.run_dir.display();
            tracing::info!(%run, "a killed run is still ending: the next run removes what it leaves");
        } else {
            found.push((private, file));
        }
    }
    Ok(found)
}

impl Private {
    /// Whether the cluster's process is still there: it ends on its own after its guard was killed.
    fn is_running(&self) -> Result<bool> {
        match fs_err::File::open(self.run_dir.join("lock")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            file => Ok(!lock(&file?.into_file())?),
        }
    }
}

/// Whether the lock could be had.
fn lock(file: &std::fs::File) -> Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(data_dir: &Path) -> RunArgs {
        let words = ["carob", "run", "x.yaml", "--guarded=4194305", "--cgroup-root=/x", "--data-dir"];
        let words = words.into_iter().map(Into::into).chain([data_dir.as_os_str().to_owned()]);
        match Cli::try_parse_from(words).expect("parsed").command {
            Command::Run(arguments) => arguments,
            other => panic!("parsed as {other:?}"),
        }
    }

    #[test]
    fn a_run_is_found_once_its_guard_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(leftovers(dir.path()).expect("no runs").is_empty());
        let arguments = arguments(dir.path());
        let private = Private::new(&arguments).expect("named");
        let held = private.mark(&arguments).expect("marked");
        assert!(leftovers(dir.path()).expect("listed").is_empty(), "it is there");
        drop(held);
        let found = leftovers(dir.path()).expect("listed");
        let [(left, _)] = found.as_slice() else { panic!("one run: {found:?}") };
        assert_eq!((&left.cgroup_root, &left.run_dir), (&"/x/carob-run-4194305".to_owned(), &private.run_dir));
    }
}
