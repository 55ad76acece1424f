//! A CSI driver in a throw-away host, as a test sees it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::{Cluster, Process, spawn_and_read};
use crate::peer;

/// A driver that runs beside a cluster's server, by the program that a test was built with.
#[derive(Debug)]
pub struct CsiDriver {
    program: PathBuf,
    arguments: Vec<String>,
    dir: PathBuf,
    process: Option<Process>,
}

impl CsiDriver {
    /// `capabilities`: as [`CsiDriverConfig`](crate::CsiDriverConfig) has them. It registers with the node in time.
    pub fn start(cluster: &Cluster, program: &str, name: &str, capabilities: &[&str], limit: i64) -> Result<Self> {
        let dir = cluster.host.dir().join(name);
        let kubelet_dir = cluster.data_dir().join("kubelet");
        let arguments = vec![
            format!("name={name}"),
            format!("kubelet-dir={}", kubelet_dir.display()),
            format!("dir={}", dir.display()),
            format!("capabilities={}", capabilities.join(",")),
            format!("limit={limit}"),
        ];
        let mut driver = Self { program: program.into(), arguments, dir, process: None };
        driver.start_again(cluster)?;
        Ok(driver)
    }

    /// Starts it again after [`CsiDriver::kill`], or after it died.
    pub fn start_again(&mut self, cluster: &Cluster) -> Result<()> {
        self.process = None;
        let mut command = cluster.host.command(&self.program);
        command.args(&self.arguments);
        self.process = Some(spawn_and_read(command, &self.dir.with_extension("log"))?);
        Ok(())
    }

    /// Kills it with SIGKILL; its sockets stay.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the driver is not running")?.kill()
    }

    /// Where the content of a volume is.
    pub fn volume(&self, handle: &str) -> PathBuf {
        self.dir.join("volumes").join(handle)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Has each call of the method fail like this from now on; `None` for no more.
    pub fn fail(&self, method: &str, how: Option<&str>) -> Result<()> {
        peer::fail(&self.dir, method, how)
    }

    /// The calls of a method since the beginning, in order.
    pub fn calls(&self, method: &str) -> Result<Vec<Value>> {
        peer::calls(&self.dir, method)
    }
}
