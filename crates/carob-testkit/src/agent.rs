//! A machine that joins a cluster: a host of its own, with a cable to the server's.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cluster::{NO_EVICTION, Process, images, program, spawn_and_read};
use crate::host::{Host, run};

/// One `carob agent` with its host.
#[derive(Debug)]
pub struct Agent {
    pub host: Host,
    /// The host's address on the cable.
    pub address: String,
    /// Another program than the one under test.
    program: Option<PathBuf>,
    process: Option<Process>,
}

impl Agent {
    /// Makes a host with a cable to `server`'s, whose address there is `server_address`; both are in one /24.
    pub fn linked(server: &Host, server_address: &str, address: &str) -> Result<Self> {
        let host = Host::new()?;
        host.link(server, address, server_address)?;
        Ok(Self::on(host, address))
    }

    /// On a host that has the address already.
    pub fn on(host: Host, address: &str) -> Self {
        Self { host, address: address.to_owned(), program: None, process: None }
    }

    /// What runs from the next start on, instead of the program under test.
    pub fn use_program(&mut self, program: PathBuf) {
        self.program = Some(program);
    }

    fn program(&self) -> Result<PathBuf> {
        self.program.clone().map_or_else(program, Ok)
    }

    /// Starts `carob agent` with these flags besides its directories, and waits for its first line, that it is ready.
    pub fn start(&mut self, flags: &[&str]) -> Result<()> {
        self.process = Some(self.spawn(flags)?);
        Ok(())
    }

    fn spawn(&self, flags: &[&str]) -> Result<Process> {
        let mut command = self.host.command(self.program()?);
        command.arg("agent").args(self.usual()?).arg(NO_EVICTION).args(flags);
        let log = self.host.dir().join("agent.log");
        spawn_and_read(command, &log).with_context(|| self.log().unwrap_or_default())
    }

    fn run_dir(&self) -> PathBuf {
        self.host.run_dir().join("carob")
    }

    fn usual(&self) -> Result<Vec<String>> {
        let path = |path: PathBuf| path.into_os_string().into_string().ok().context("a UTF-8 path");
        Ok(vec![
            format!("--data-dir={}", path(self.host.dir().join("data"))?),
            format!("--run-dir={}", path(self.run_dir())?),
            format!("--cgroup-root={}", self.host.cgroup_root()),
            format!("--node-ip={}", self.address),
        ])
    }

    /// Runs `carob agent` and expects it to end with an error, which is returned.
    pub fn fails(&self, flags: &[&str]) -> Result<String> {
        let mut command = self.host.command(self.program()?);
        command.arg("agent").args(self.usual()?).arg(NO_EVICTION).args(flags);
        match run(&mut command) {
            Ok(text) => anyhow::bail!("the agent was expected to fail but said\n{text}"),
            Err(error) => Ok(error.to_string()),
        }
    }

    /// Kills the agent with SIGKILL, leaving its Pods.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the agent runs")?.kill()
    }

    /// Asks the agent to end, leaving its Pods.
    pub fn terminate(&mut self) -> Result<()> {
        self.process.take().context("the agent runs")?.terminate()
    }

    /// Takes carob off the machine.
    pub fn uninstall(&self) -> Result<()> {
        let mut command = self.host.command(self.program()?);
        command.args(["uninstall", "--yes"]).args(self.usual()?.iter().filter(|flag| !flag.starts_with("--node-ip")));
        run(&mut command).map(drop)
    }

    /// What the agent said on its standard error.
    pub fn log(&self) -> Result<String> {
        Ok(fs_err::read_to_string(self.host.dir().join("agent.log"))?)
    }

    /// Imports images made by `cargo xtask images`.
    pub fn import(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let mut command = self.host.command(self.program()?);
            command.args(["image", "import"]).arg(images()?.join(format!("{name}.tar")));
            command.env("CAROB_DATA_DIR", self.host.dir().join("data")).env("CAROB_RUN_DIR", self.run_dir());
            run(&mut command).with_context(|| format!("import the image {name}"))?;
        }
        Ok(())
    }
}
