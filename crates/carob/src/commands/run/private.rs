//! What a run has for itself: directories, addresses, ports, a cgroup; and how all of it goes away.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use carob_kit::SystemClock;
use carob_net::{NetConfig, PodNetwork};
use carob_sys::cgroup::{Cgroup, Layout};
use clap::Parser;

use crate::addresses;
use crate::cli::{Cli, Command, RunArgs};
use crate::config::{Settings, instance_id};

/// The things of one run, all named by its guard's PID.
#[derive(Debug, Clone)]
pub(crate) struct Private {
    data_dir: PathBuf,
    run_dir: PathBuf,
    images_dir: PathBuf,
    cgroup_root: String,
    instance: String,
}

impl Private {
    pub(crate) fn new(arguments: &RunArgs) -> Result<Self> {
        let guard = arguments.guarded.context("a run has a guard")?;
        let data_dir = std::path::absolute(&arguments.data_dir)?;
        let own = data_dir.join("runs").join(guard.to_string());
        let root = arguments.cgroup_root.trim_end_matches('/');
        Ok(Self {
            run_dir: PathBuf::from(format!("/run/carob-run-{guard}")),
            images_dir: data_dir.join("images"),
            cgroup_root: format!("{root}/carob-run-{guard}"),
            instance: instance_id(&own),
            data_dir: own,
        })
    }

    /// The settings of the run's server.
    pub(crate) async fn settings(&self) -> Result<Settings> {
        let pods = addresses::of_run(&self.instance).await?;
        let (api, kubelet) = (free_port()?, free_port()?);
        let words = [
            "carob".to_owned(),
            "server".to_owned(),
            "--in-memory".to_owned(),
            format!("--data-dir={}", self.data_dir.display()),
            format!("--run-dir={}", self.run_dir.display()),
            format!("--images-dir={}", self.images_dir.display()),
            format!("--cgroup-root={}", self.cgroup_root),
            format!("--cluster-cidr={pods}"),
            format!("--https-listen-port={api}"),
            format!("--kubelet-port={kubelet}"),
            format!("--bind-address={}", Ipv4Addr::LOCALHOST),
            "--node-name=carob-run".to_owned(),
            "--die-with-parent".to_owned(),
        ];
        match Cli::try_parse_from(words)?.command {
            Command::Server(arguments) => Settings::new(*arguments),
            _ => unreachable!("the words say server"),
        }
    }

    /// Removes everything. What is gone already is no error, so this is also for what a killed run left.
    pub(crate) async fn remove(&self) -> Result<()> {
        let network = NetConfig {
            instance: self.instance.clone(),
            state_dir: self.run_dir.join("net"),
            pod_cidrs: Vec::new(),
            cluster_cidrs: Vec::new(),
            clock: Arc::new(SystemClock::new()),
        };
        fs_err::create_dir_all(&self.run_dir)?;
        let network = PodNetwork::open(network).await.context("open the run's network")?;
        network.remove().await.context("remove the run's network")?;
        let layout = Layout::detect().context("look at the machine's cgroups")?;
        Cgroup::new(&layout, &self.cgroup_root).remove().context("remove the run's cgroups")?;
        carob_runtime::release_run_dir(&self.run_dir)?;
        for dir in [&self.run_dir, &self.data_dir] {
            if dir.exists() {
                fs_err::remove_dir_all(dir)?;
            }
        }
        Ok(())
    }
}

/// A port that nothing listens on now.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}
