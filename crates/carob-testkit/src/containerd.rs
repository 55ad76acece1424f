//! A real containerd in a throw-away host, with CNI's ptp plug-in.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use fs_err as fs;
use rustix::process::Signal;
use serde_json::json;

use crate::cluster::{end_within, images, until_none};
use crate::host::{Host, run};

/// Where Debian has the plug-ins.
const CNI_PLUGINS: &str = "/usr/lib/cni";
/// The image of sandboxes: one of `cargo xtask images`.
const SANDBOX_IMAGE: &str = "docker.io/library/pause:latest";

/// One containerd, as Debian's package has it.
#[derive(Debug)]
pub struct Containerd {
    dir: PathBuf,
    socket: PathBuf,
    process: Option<Child>,
}

impl Containerd {
    /// Starts one on `host`, whose Pods have addresses of `subnet`, and waits until it answers.
    pub fn start(host: &Host, subnet: &str) -> Result<Self> {
        let (dir, state) = (host.dir().join("containerd"), host.run_dir().join("containerd"));
        let socket = state.join("containerd.sock");
        let networks = dir.join("cni");
        fs::create_dir_all(&networks)?;
        let ipam = json!({
            "type": "host-local", "dataDir": state.join("addresses"), "ranges": [[{"subnet": subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        });
        let plugins =
            json!([{"type": "ptp", "ipam": ipam}, {"type": "portmap", "capabilities": {"portMappings": true}}]);
        let network = json!({"cniVersion": "0.4.0", "name": "pods", "plugins": plugins});
        fs::write(networks.join("10-pods.conflist"), network.to_string())?;
        let path = |path: &Path| format!("{:?}", path.display().to_string());
        let config = format!(
            "version = 2\nroot = {}\nstate = {}\n[grpc]\naddress = {}\n[plugins.\"io.containerd.grpc.v1.cri\"]\n\
             netns_mounts_under_state_dir = true\nrestrict_oom_score_adj = true\nsandbox_image = {SANDBOX_IMAGE:?}\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {CNI_PLUGINS:?}\n\
             conf_dir = {}\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n",
            path(&dir.join("root")),
            path(&state.join("state")),
            path(&socket),
            path(&networks),
        );
        fs::write(dir.join("config.toml"), config)?;
        // Its shims' sockets are here, whatever the state directory.
        host.add_disk(Path::new("/run/containerd"), 16)?;
        host.run("sysctl", ["-qw", "net.ipv4.ip_forward=1"])?;
        let mut containerd = Self { dir, socket, process: None };
        containerd.start_again(host)?;
        containerd.import(host, &["pause"])?;
        Ok(containerd)
    }

    /// As `--container-runtime-endpoint` takes it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Starts it again after [`Containerd::kill`]: its containers run on meanwhile.
    pub fn start_again(&mut self, host: &Host) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = host.command("containerd");
        command
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.into_parts().0);
        self.process = Some(command.spawn().context("start containerd, which is in Debian's package containerd")?);
        until_none("containerd does not answer", || {
            let version = host.command("ctr").arg("--address").arg(&self.socket).arg("version").output()?;
            Ok(if version.status.success() { Vec::new() } else { vec![version] })
        })
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        end_within(self.process.take().context("containerd is not running")?, Signal::KILL).map(drop)
    }

    /// Runs ctr in the namespace of CRI's containers.
    pub fn ctr(&self, host: &Host, arguments: &[&str]) -> Result<String> {
        let mut command = host.command("ctr");
        run(command.arg("--address").arg(&self.socket).args(["--namespace", "k8s.io"]).args(arguments))
    }

    /// Imports images made by `cargo xtask images`.
    pub fn import(&self, host: &Host, names: &[&str]) -> Result<()> {
        for name in names {
            let archive = images()?.join(format!("{name}.tar"));
            let archive = archive.to_str().context("the workspace's path is UTF-8")?;
            self.ctr(host, &["images", "import", archive]).with_context(|| format!("import the image {name}"))?;
        }
        Ok(())
    }

    /// What it said on its standard error.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.log_path())?)
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            let killed = end_within(process, Signal::KILL);
            if !std::thread::panicking() {
                killed.expect("a containerd of a test can be killed");
            }
        }
    }
}
