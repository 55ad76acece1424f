//! A carob server in a throw-away host, and kubectl to talk to it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::host::{Host, run};

/// How long any one thing may take before a test fails: generous, since tests wait on events and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);
/// A node's flag: tests must not depend on how full the machine's disk is.
pub(crate) const NO_EVICTION: &str = "--eviction-hard=";
/// Lines of the server's output kept for a failing test.
const LOG_LINES_MAX: usize = 4096;

/// One `carob server` with its host.
#[derive(Debug)]
pub struct Cluster {
    pub host: Host,
    program: PathBuf,
    server: Option<Child>,
    flags: Vec<String>,
}

impl Cluster {
    /// Starts a server in a new host and waits until it says that it is ready.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// As [`Cluster::start`], with flags besides the usual ones.
    pub fn start_with(flags: &[&str]) -> Result<Self> {
        Self::start_prepared(|_| Ok(flags.iter().map(|flag| (*flag).to_owned()).collect()))
    }

    /// As [`Cluster::start_with`], with flags that name files which `prepare` puts into the host's directory.
    pub fn start_prepared(prepare: impl FnOnce(&Path) -> Result<Vec<String>>) -> Result<Self> {
        let host = Host::new()?;
        let flags = prepare(host.dir())?;
        Self::start_program(program()?, host, flags)
    }

    /// As [`Cluster::start_with`], on a host that is there: one with a cable to another.
    pub fn start_on(host: Host, flags: &[&str]) -> Result<Self> {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Self::start_program(program()?, host, flags)
    }

    /// As [`Cluster::start_on`], with another program than the one under test.
    pub fn start_program(program: PathBuf, host: Host, flags: Vec<String>) -> Result<Self> {
        let mut cluster = Self { host, program, server: None, flags };
        cluster.start_server()?;
        Ok(cluster)
    }

    /// Ends the server as a service manager does, and starts `program` in its place.
    pub fn replace_program(&mut self, program: PathBuf) -> Result<()> {
        self.terminate_server()?;
        self.program = program;
        self.start_server()
    }

    /// Starts the server again after [`Cluster::kill_server`].
    pub fn start_server(&mut self) -> Result<()> {
        let lines = self.spawn_server()?;
        loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains("ready") => return Ok(()),
                Ok(_) => {}
                Err(_) => bail!("carob server did not become ready:\n{}", self.log()?),
            }
        }
    }

    /// As [`Cluster::start_server`] where the node has a reason not to be ready: returns when the API answers.
    pub fn start_api(&mut self) -> Result<()> {
        drop(self.spawn_server()?);
        until_none("an API that does not answer", || {
            Ok(self.kubectl(&["get", "--raw", "/livez"]).err().into_iter().collect())
        })
    }

    /// The lines of the server's output.
    fn spawn_server(&mut self) -> Result<mpsc::Receiver<String>> {
        if self.server.is_some() {
            bail!("the server is running");
        }
        let mut command = self.host.command(&self.program);
        command
            .arg("server")
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--run-dir")
            .arg(self.host.run_dir())
            .args(["--cgroup-root", &self.host.cgroup_root()])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file(&self.log_path())?);
        if !self.flags.iter().any(|flag| flag.starts_with("--eviction-hard")) {
            command.arg(NO_EVICTION);
        }
        let mut server = command.spawn().context("start carob server")?;
        let stdout = server.stdout.take().context("the server's output is piped")?;
        let (sender, receiver) = mpsc::sync_channel(LOG_LINES_MAX);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // A full channel means that nobody waits for the ready line any more.
                if sender.try_send(line).is_err() {}
            }
        });
        self.server = Some(server);
        Ok(receiver)
    }

    /// Runs a server in a host where none runs, expects it to end with an error, and returns that.
    pub fn refused_on(host: &Host, flags: &[&str]) -> Result<String> {
        let mut command = host.command(program()?);
        command.arg("server").arg("--data-dir").arg(host.dir().join("data")).arg("--run-dir").arg(host.run_dir());
        match run(command.args(["--cgroup-root", &host.cgroup_root(), NO_EVICTION]).args(flags)) {
            Ok(text) => bail!("the server was expected to be refused but said\n{text}"),
            Err(error) => Ok(error.to_string()),
        }
    }

    /// Kills the server with SIGKILL, leaving its Pods.
    pub fn kill_server(&mut self) -> Result<()> {
        kill_within(self.server.take().context("the server is not running")?)
    }

    /// Asks the server to end, leaving its Pods.
    fn terminate_server(&mut self) -> Result<()> {
        let status = end_within(self.server.take().context("the server is not running")?, Signal::TERM)?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }

    /// PID of the server as this machine counts.
    pub fn server_pid(&self) -> Result<u32> {
        let server = self.server.as_ref().context("the server is not running")?;
        let children = fs_err::read_to_string(format!("/proc/{0}/task/{0}/children", server.id()))?;
        children.trim().parse().with_context(|| format!("nsenter has one child, not `{children}`"))
    }

    pub fn data_dir(&self) -> PathBuf {
        self.host.dir().join("data")
    }

    /// What the server said on its standard error.
    pub fn log(&self) -> Result<String> {
        Ok(fs_err::read_to_string(self.log_path())?)
    }

    /// Runs `carob ARGUMENTS` in the host.
    pub fn carob(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.host.command(&self.program);
        let (data, run_dir) = (self.data_dir(), self.host.run_dir());
        run(command.args(arguments).env("CAROB_DATA_DIR", data).env("CAROB_RUN_DIR", run_dir))
    }

    /// Starts `carob ARGUMENTS` in the host and waits for its first line of output.
    pub fn start_carob(&self, arguments: &[&str]) -> Result<Process> {
        let mut command = self.host.command(&self.program);
        command.args(arguments).env("CAROB_DATA_DIR", self.data_dir()).env("CAROB_RUN_DIR", self.host.run_dir());
        spawn_and_read(command, &self.log_path())
            .with_context(|| format!("carob {}:\n{}", arguments.join(" "), self.log().unwrap_or_default()))
    }

    /// Imports images made by `cargo xtask images`.
    pub fn import(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let archive = images()?.join(format!("{name}.tar"));
            let archive = archive.to_str().context("the workspace's path is UTF-8")?;
            self.carob(&["image", "import", archive]).with_context(|| format!("import the image {name}"))?;
        }
        Ok(())
    }

    /// A kubectl command for this cluster.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.command("kubectl");
        command.env("KUBECONFIG", self.data_dir().join("admin.kubeconfig")).args(arguments);
        command
    }

    /// Runs kubectl and returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.kubectl_command(arguments))
    }

    /// Runs kubectl, expects it to fail, and returns what it said on both streams.
    pub fn kubectl_fails(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl_command(arguments).stdin(Stdio::null()).output()?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            bail!("kubectl {} was expected to fail but printed\n{text}", arguments.join(" "));
        }
        Ok(text)
    }

    /// An object, as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "--output=json"];
        all.extend(arguments);
        serde_json::from_str(&self.kubectl(&all)?).context("kubectl prints JSON")
    }

    /// Waits for a condition with `kubectl wait`.
    pub fn wait(&self, condition: &str, object: &str) -> Result<()> {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&["wait", &format!("--for={condition}"), object, &timeout])
            .with_context(|| self.describe(object))?;
        Ok(())
    }

    /// What a failing test wants to know of an object.
    pub fn describe(&self, object: &str) -> String {
        let described = self.kubectl(&["describe", object]).unwrap_or_else(|error| format!("{error:#}"));
        let log = self.log().unwrap_or_else(|error| format!("{error:#}"));
        let tail: Vec<&str> = log.lines().rev().take(60).collect();
        format!("{described}\n--- end of the server's log\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    fn log_path(&self) -> PathBuf {
        self.host.dir().join("server.log")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The host kills the server with all else; what is left to do here is to reap nsenter.
        if let Some(mut server) = self.server.take() {
            let reaped = server.kill().and_then(|()| server.wait());
            if !std::thread::panicking() {
                reaped.expect("the server's nsenter can be reaped");
            }
        }
    }
}

fn log_file(path: &Path) -> Result<std::fs::File> {
    Ok(fs_err::OpenOptions::new().create(true).append(true).open(path)?.into_parts().0)
}

/// Starts a program, its errors going to `log`, and waits for its first line of output.
pub(crate) fn spawn_and_read(mut command: Command, log: &Path) -> Result<Process> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file(log)?);
    let mut child = command.spawn().context("start it")?;
    let mut lines = BufReader::new(child.stdout.take().context("the output is piped")?);
    let mut first_line = String::new();
    lines.read_line(&mut first_line)?;
    if first_line.is_empty() {
        bail!("it ended without a word ({})", child.wait()?);
    }
    Ok(Process { first_line, child: Some(child), _lines: lines })
}

/// A program that runs in a host beside the server, and goes with this value.
#[derive(Debug)]
pub struct Process {
    pub first_line: String,
    child: Option<Child>,
    /// Kept open, so that the program can go on writing.
    _lines: BufReader<ChildStdout>,
}

impl Process {
    /// Kills the program with SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        kill_within(self.child.take().context("the program runs until it is killed")?)
    }

    /// Asks the program to end, and fails unless it ends well.
    pub fn terminate(mut self) -> Result<()> {
        let status = end_within(self.child.take().context("the program runs until it is ended")?, Signal::TERM)?;
        ensure!(status.success(), "the program ended with {status}");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            let killed = kill_within(child);
            if !std::thread::panicking() {
                killed.expect("a program of a test can be killed");
            }
        }
    }
}

/// Kills what nsenter runs and waits for: the child is nsenter, the program is its child.
fn kill_within(nsenter: Child) -> Result<()> {
    end_within(nsenter, Signal::KILL).map(drop)
}

pub(crate) fn end_within(mut nsenter: Child, signal: Signal) -> Result<ExitStatus> {
    let children = fs_err::read_to_string(format!("/proc/{0}/task/{0}/children", nsenter.id()))?;
    for child in children.split_whitespace() {
        let pid = Pid::from_raw(child.parse()?).context("a PID is positive")?;
        rustix::process::kill_process(pid, signal)?;
    }
    Ok(nsenter.wait()?)
}

/// Waits until `look` finds nothing, and fails with what it found last: for what the kernel tells nobody about, such as
/// the last mount that goes.
pub fn until_none<T: std::fmt::Debug>(what: &str, mut look: impl FnMut() -> Result<Vec<T>>) -> Result<()> {
    const STEP: Duration = Duration::from_millis(20);
    let mut found = look()?;
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        if found.is_empty() {
            return Ok(());
        }
        wait(STEP);
        found = look()?;
    }
    bail!("{what}: still there after {} s: {found:?}", PATIENCE.as_secs());
}

#[expect(clippy::disallowed_methods, reason = "between two looks at what has no event")]
fn wait(step: Duration) {
    std::thread::sleep(step);
}

/// The carob program under test: `CAROB_BIN`, or the workspace's build beside the running test.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CAROB_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    let path = test.ancestors().map(|dir| dir.join("carob")).find(|path| path.is_file());
    path.context("no carob program beside the tests: run them with `cargo xtask test`, or set CAROB_BIN")
}

fn workspace() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the testkit lies in the workspace")
}

/// Where `cargo xtask images` puts the archives.
pub fn images() -> Result<PathBuf> {
    Ok(workspace()?.join("target/images"))
}

/// A manifest of the workspace's `manifests/` folder.
pub fn manifest(name: &str) -> Result<String> {
    let path = workspace()?.join("manifests").join(name);
    path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("the path {} is not UTF-8", path.display()))
}
