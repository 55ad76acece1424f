//! `carob run`, on hosts like users' machines.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use carob_testkit::{Cluster, Host, images, program, until_none};
use serde_json::{Value, json};

/// A machine on which `carob run` is called.
struct Machine {
    host: Host,
    data_dir: PathBuf,
}

/// What a call of carob said, and how it ended.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Machine {
    fn new() -> Result<Self> {
        let host = Host::new()?;
        let data_dir = host.dir().join("data");
        Ok(Self { host, data_dir })
    }

    /// With the busybox image in its data directory.
    fn usual() -> Result<Self> {
        let machine = Self::new()?;
        machine.import("busybox")?;
        Ok(machine)
    }

    fn import(&self, name: &str) -> Result<()> {
        let archive = images()?.join(format!("{name}.tar"));
        let said = self.call(
            "image import",
            &[self.data_dir.as_os_str(), archive.as_os_str()],
            r#"image --data-dir "$1" --run-dir "$1/none" import "$2""#,
        )?;
        ensure!(said.code == Some(0), "{said:?}");
        Ok(())
    }

    /// Starts carob with words that the shell expands; `$0` is the program.
    fn start(&self, arguments: &[&std::ffi::OsStr], words: &str) -> Result<Child> {
        let script = format!("\"$0\" {words} & echo $!; wait $!");
        let mut command = self.host.command("sh");
        command.args(["-c", &script]).arg(program()?).args(arguments);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    fn call(&self, what: &str, arguments: &[&std::ffi::OsStr], words: &str) -> Result<Said> {
        let output = self.start(arguments, words)?.wait_with_output().with_context(|| what.to_owned())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Said { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
    }

    fn manifest(&self, name: &str, pod: &Value) -> Result<PathBuf> {
        let path = self.host.dir().join(format!("{name}.json"));
        fs_err::write(&path, pod.to_string())?;
        Ok(path)
    }

    fn begin_run(&self, manifest: &Path, flags: &str) -> Result<Child> {
        let words =
            format!(r#"run "$1" --data-dir "$2" --run-base "$3" --cgroup-root {} {flags}"#, self.host.cgroup_root());
        let run_dir = self.host.run_dir();
        self.start(&[manifest.as_os_str(), self.data_dir.as_os_str(), run_dir.as_os_str()], &words)
    }

    fn run(&self, manifest: &Path, flags: &str) -> Result<Said> {
        let output = self.begin_run(manifest, flags)?.wait_with_output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Said { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
    }

    /// Everything that a run may leave: interfaces, mounts, groups, processes, directories, nftables tables.
    fn leftovers(&self) -> Result<Vec<String>> {
        let mut left: Vec<String> = Vec::new();
        let usual = |link: &&String| matches!(link.as_str(), "lo" | "uplink" | "world") || link.starts_with("other");
        left.extend(self.host.links()?.iter().filter(|link| !usual(link)).map(|link| format!("interface {link}")));
        let below = |mount: &&String| mount.contains("carob-run-") || mount.contains("/runs/");
        left.extend(self.host.mounts()?.iter().filter(below).map(|mount| format!("mount {mount}")));
        left.extend(self.host.cgroups()?.iter().map(|group| format!("group {}", group.display())));
        left.extend(self.host.processes()?.values().map(|name| format!("process {name}")));
        let tables = self.host.run("nft", ["list", "tables"])?;
        left.extend(tables.lines().map(|table| format!("nftables {table}")));
        let runs = self.host.run(
            "sh",
            [
                "-c",
                "ls $0/runs $1 2>/dev/null || true",
                self.data_dir.to_str().context("UTF-8")?,
                self.host.run_dir().to_str().context("UTF-8")?,
            ],
        )?;
        let is_name = |line: &&str| !line.is_empty() && !line.ends_with(':');
        left.extend(runs.lines().filter(is_name).map(|name| format!("directory {name}")));
        Ok(left)
    }
}

fn pod(script: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "busybox",
            "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]}]}})
}

#[test]
fn logs_are_printed_and_the_code_is_the_containers() -> Result<()> {
    let machine = Machine::usual()?;
    machine.host.add_interface_pairs(150)?;
    let manifest = machine.manifest("p", &pod("echo hello; exit 7"))?;
    let said = machine.run(&manifest, "")?;
    assert_eq!(said.code, Some(7), "{said:?}");
    assert!(said.stdout.contains("p/c | hello\n"), "{said:?}");
    let fine = machine.run(&machine.manifest("fine", &pod("echo bye"))?, "")?;
    assert_eq!(fine.code, Some(0), "{fine:?}");
    assert_eq!(machine.leftovers()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn what_cannot_start_ends_the_run_with_its_own_code() -> Result<()> {
    let machine = Machine::usual()?;
    let mut wrong = pod("true");
    wrong["spec"]["containers"][0]["image"] = "nowhere.invalid/none:1".into();
    let wrong = machine.manifest("wrong", &wrong)?;
    let never = machine.run(&wrong, "--pull never")?;
    assert_eq!(never.code, Some(124), "{never:?}");
    assert!(never.stderr.contains("ErrImageNeverPull"), "{never:?}");
    let late = machine.run(&wrong, "--timeout 3s")?;
    assert_eq!(late.code, Some(124), "{late:?}");
    assert!(late.stderr.contains("not started after 3 s"), "{late:?}");
    let mut huge = pod("true");
    huge["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1000"}});
    let huge = machine.run(&machine.manifest("huge", &huge)?, "--timeout 3s")?;
    assert_eq!(huge.code, Some(124), "{huge:?}");
    assert!(huge.stderr.contains("Insufficient cpu"), "{huge:?}");
    assert_eq!(machine.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// Starts a run whose Pod lasts, waits until it prints, and answers with the run's PID in the host.
fn lasting(machine: &Machine) -> Result<(Child, String)> {
    let manifest = machine.manifest("lasting", &pod("echo up; sleep 1000"))?;
    let mut child = machine.begin_run(&manifest, "")?;
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    let pid = lines.next().context("the shell prints the PID")??;
    let line = lines.next().context("the Pod prints")??;
    ensure!(line == "p/c | up", "{line}");
    Ok((child, pid))
}

#[test]
fn a_signal_ends_the_run_and_nothing_stays() -> Result<()> {
    let machine = Machine::usual()?;
    for signal in ["INT", "TERM"] {
        let (mut child, pid) = lasting(&machine)?;
        machine.host.run("kill", [&format!("-{signal}"), &pid])?;
        let mut stderr = String::new();
        child.stderr.take().context("piped")?.read_to_string(&mut stderr)?;
        let status = child.wait()?;
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert_eq!(machine.leftovers()?, Vec::<String>::new(), "{signal}: {stderr}");
    }
    Ok(())
}

#[test]
fn the_next_run_removes_what_a_killed_one_left() -> Result<()> {
    let machine = Machine::usual()?;
    let (mut child, pid) = lasting(&machine)?;
    // Both processes at once: none can clean up.
    machine.host.run("sh", ["-c", "kill -KILL $0 $(cat /proc/$0/task/$0/children)", &pid])?;
    child.wait()?;
    // A killed process holds its locks until the kernel has taken it apart, and a run that is still there is left alone.
    until_none("the processes of a killed run", || Ok(machine.host.processes()?.into_values().collect::<Vec<_>>()))?;
    ensure!(!machine.leftovers()?.is_empty(), "it was killed before it could clean up");
    let said = machine.run(&machine.manifest("next", &pod("true"))?, "")?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(machine.leftovers()?, Vec::<String>::new(), "{said:?}");
    Ok(())
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() -> Result<()> {
    let machine = Machine::new()?;
    machine.host.add_disk(&machine.data_dir, 1)?;
    let fill = machine.data_dir.join("ballast");
    let fill = format!("head -c 2000000 /dev/zero >{} 2>/dev/null || true", fill.display());
    machine.host.run("sh", ["-c", &fill])?;
    let said = machine.run(&machine.manifest("p", &pod("true"))?, "--timeout 20s")?;
    ensure!(said.code.is_some_and(|code| code != 0), "{said:?}");
    assert!(said.stderr.contains("No space left on device"), "{said:?}");
    let left = machine.leftovers()?;
    assert!(left.iter().all(|what| what.starts_with("directory")), "{left:?}");
    Ok(())
}

#[test]
fn a_run_beside_a_server_uses_its_images() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox"])?;
    let manifest = cluster.host.dir().join("p.json");
    fs_err::write(&manifest, pod("echo beside").to_string())?;
    let (manifest, run_dir) = (manifest.to_str().context("UTF-8")?, cluster.host.run_dir());
    let base = run_dir.join("runs");
    let (base, root) = (base.to_str().context("UTF-8")?, cluster.host.cgroup_root());
    let said = cluster.carob(&["run", manifest, "--run-base", base, "--cgroup-root", &root])?;
    assert!(said.contains("p/c | beside\n"), "{said}");
    // The server sees nothing of it, and goes on.
    assert_eq!(cluster.kubectl(&["get", "pods", "--output=name"])?, "");
    let refused = cluster.carob(&["image", "tag", "busybox", "mine:1"])?;
    assert!(refused.contains("mine:1"), "{refused}");
    Ok(())
}
