//! `carob uninstall`: takes an instance off this machine, with its Pods, its network, its images and, on a server, its cluster.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use carob_cri::RuntimeService;
use carob_cri::v1::{ListPodSandboxRequest, RemovePodSandboxRequest, StopPodSandboxRequest};
use carob_image::{ImageStore, StoreConfig};
use carob_kit::{Clock, SystemClock};
use clap::Parser;

use crate::cli::{Cli, Command, UninstallArgs};
use crate::compose::prepare_directories;
use crate::config::{OfCluster, Settings};
use crate::parts;

/// `carob uninstall`. Refuses while a server or an agent runs with the directories.
pub(crate) async fn main(arguments: UninstallArgs) -> Result<()> {
    let settings = settings(&arguments)?;
    let (data_dir, run_dir) = (settings.data_dir.clone(), settings.run_dir.clone());
    ensure!(data_dir.exists() || run_dir.exists(), "there is nothing of carob in {}", data_dir.display());
    ensure!(
        arguments.yes,
        "this removes the Pods, images and volumes in {} for good{}: say that you want it with --yes",
        data_dir.display(),
        if data_dir.join("store").exists() { ", and the cluster" } else { "" }
    );
    let _lock = prepare_directories(&data_dir, &run_dir)?;
    let pods = remove_pods(&settings).await.context("remove the Pods")?;
    carob_node::shutdown::forget_delay().context("take back what logind was told")?;
    let mut dirs = vec![run_dir, settings.log_dir(), data_dir];
    dirs.extend(settings.log_link_dir());
    carob_runtime::remove_directories(dirs.clone()).await.context("remove the files")?;
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    writeln!(std::io::stdout().lock(), "removed {pods} Pods and {}", dirs.join(", "))?;
    Ok(())
}

/// Ends and removes every Pod, then takes the network and the rules off the machine. Answers how many Pods there were.
async fn remove_pods(settings: &Settings) -> Result<usize> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let images = ImageStore::open(StoreConfig::new(&settings.images_dir, Arc::clone(&clock))).await?;
    let runtime = parts::open_runtime(settings, images, clock).await?;
    let sandboxes = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
    for sandbox in &sandboxes {
        let pod_sandbox_id = sandbox.id.clone();
        let subject = || format!("the sandbox {}", sandbox.id);
        let stop = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        runtime.stop_pod_sandbox(stop).await.with_context(subject)?;
        runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await.with_context(subject)?;
    }
    ensure!(runtime.leave().await?, "a Pod is still there");
    parts::remove_rules(&settings.instance, &settings.cluster_cidrs).await?;
    Ok(sandboxes.len())
}

/// What a node with these flags has.
fn settings(arguments: &UninstallArgs) -> Result<Settings> {
    let flag = |name: &str, value: &Path| {
        let mut word = std::ffi::OsString::from(format!("--{name}="));
        word.push(value);
        word
    };
    let words = [
        "carob".into(),
        "agent".into(),
        "--server=https://127.0.0.1".into(),
        // The names of the node and of registries matter to nobody who leaves.
        "--node-name=leaves".into(),
        flag("data-dir", &arguments.directories.data_dir),
        flag("run-dir", &arguments.directories.run_dir),
        flag("cgroup-root", Path::new(&arguments.cgroup_root)),
    ];
    let nowhere = OfCluster {
        cluster_cidrs: Vec::new(),
        service_cidrs: Vec::new(),
        cluster_dns: Vec::new(),
        cluster_domain: String::new(),
    };
    match Cli::try_parse_from(words)?.command {
        Command::Agent(arguments) => Settings::of_agent(*arguments, nowhere),
        _ => bail!("the words say agent"),
    }
}
