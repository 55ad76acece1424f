//! One throw-away host.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use fs_err as fs;
use rustix::fs::FlockOperation;

/// Where the hosts' directories are.
const HOSTS: &str = "/tmp/carob-test-hosts";
const CGROUPS: &str = "/sys/fs/cgroup";
/// A host's `/run`, in its directory: a tmpfs, as it is on most machines.
const RUN: &str = "run";
/// How many hosts may be alive at once on one machine: ids are taken from this range.
const HOSTS_MAX: u32 = 64;

/// A host: see the crate's documentation.
#[derive(Debug)]
pub struct Host {
    name: String,
    dir: PathBuf,
    /// `unshare`, whose child is PID 1 of the host.
    holder: Child,
    /// PID of the host's PID 1, as this machine counts.
    init: u32,
    /// Held as long as the host lives, so that a sweep leaves it alone.
    _lock: OwnedFd,
}

impl Host {
    /// The host's address on its link to the world, where nobody else is (RFC 5737, TEST-NET-2): a node's own address,
    /// as machines have one.
    pub const ADDRESS: &str = "198.51.100.1";

    /// Makes a host, after removing what killed tests left behind.
    pub fn new() -> Result<Self> {
        fs::create_dir_all(HOSTS)?;
        for number in 0..HOSTS_MAX {
            let name = format!("carob-test-{number}");
            let Some(lock) = try_lock(&Path::new(HOSTS).join(format!("{name}.lock")))? else { continue };
            let dir = Path::new(HOSTS).join(&name);
            remove_remains(&name, &dir).with_context(|| format!("sweep what a killed test left of {name}"))?;
            fs::create_dir_all(&dir)?;
            make_cgroups(&name)?;
            let (holder, init) = start_holder(&name, &dir.join(RUN))?;
            return Ok(Self { name, dir, holder, init, _lock: lock });
        }
        bail!("all {HOSTS_MAX} test hosts are in use");
    }

    /// Name of the host and of its cgroup in every hierarchy.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// PID of its PID 1, as this machine counts.
    pub(crate) fn init(&self) -> u32 {
        self.init
    }

    /// A directory that lives as long as the host.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory for what ends with the host. It is a tmpfs, so nothing of it is to be seen from outside.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join(RUN)
    }

    /// The cgroup root for programs in this host, as `--cgroup-root` takes it.
    pub fn cgroup_root(&self) -> String {
        format!("/{}", self.name)
    }

    /// A command that will run inside the host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.init))
            .args(["--mount", "--net", "--pid", "--ipc", "--uts", "--wd=/", "--"])
            .arg(program)
            .env("HOME", &self.dir)
            // Over WebSockets, kubectl before 1.34 drops output that arrives before it has made its streams (kubernetes pull request
            // 131203). Over SPDY it makes them first.
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
        command
    }

    /// Runs `program` in the host and returns what it printed; fails with both streams when it fails.
    pub fn run<A: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = A>) -> Result<String> {
        let mut command = self.command(program);
        command.args(arguments);
        run(&mut command)
    }

    /// Adds pairs of network interfaces, as a machine with many containers has them.
    pub fn add_interface_pairs(&self, count: u32) -> Result<()> {
        let script = format!(
            "for n in $(seq {count}); do echo link add other$n type veth peer name other${{n}}p; done | ip -batch -"
        );
        self.run("sh", ["-c", &script]).map(drop)
    }

    /// Lays a cable to another host: each has an address of one /24 at its end, on an interface named after the other host.
    pub fn link(&self, other: &Self, own_address: &str, other_address: &str) -> Result<()> {
        let (own, others) = (link_name(&other.name), link_name(&self.name));
        let pid = other.init.to_string();
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init)).args(["--net", "--", "ip", "link", "add", &own, "type", "veth"]);
        run(command.args(["peer", "name", &others, "netns", &pid]))?;
        for (host, interface, address) in [(self, &own, own_address), (other, &others, other_address)] {
            host.run("ip", ["addr", "add", &format!("{address}/24"), "dev", interface])?;
            host.run("ip", ["link", "set", interface, "up"])?;
        }
        Ok(())
    }

    /// Cuts the cable to another host, or mends it.
    pub fn set_link(&self, other: &Self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        self.run("ip", ["link", "set", &link_name(&other.name), state]).map(drop)
    }

    /// Mounts a disk of so many MiB at a directory, which is made.
    pub fn add_disk(&self, at: &Path, mebibytes: u32) -> Result<()> {
        fs::create_dir_all(at)?;
        let options = format!("size={mebibytes}m,mode=0755");
        let words: [&OsStr; 6] =
            ["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), options.as_ref(), "tmpfs".as_ref(), at.as_os_str()];
        self.run("mount", words).map(drop)
    }

    /// Names of the processes that run in the host, by PID as this machine counts, without its PID 1.
    pub fn processes(&self) -> Result<BTreeMap<u32, String>> {
        let own = fs::read_link(format!("/proc/{}/ns/pid", self.init))?;
        let mut found = BTreeMap::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // A process may end between two looks at it; then it does not run in the host.
            let (Ok(namespace), Ok(name)) =
                (fs::read_link(format!("/proc/{pid}/ns/pid")), fs::read_to_string(format!("/proc/{pid}/comm")))
            else {
                continue;
            };
            if namespace == own && pid != self.init && pid != self.sleeper()? {
                found.insert(pid, name.trim().to_owned());
            }
        }
        Ok(found)
    }

    /// The child that PID 1 waits for.
    fn sleeper(&self) -> Result<u32> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.init))?;
        children.split_whitespace().next().context("PID 1 has a child")?.parse().context("a PID is a number")
    }

    /// Mount points in the host's mount namespace.
    pub fn mounts(&self) -> Result<BTreeSet<String>> {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", self.init))?;
        Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect())
    }

    /// Cgroups below the host's, in all hierarchies, relative to the cgroup mount.
    pub fn cgroups(&self) -> Result<BTreeSet<PathBuf>> {
        let mut found = BTreeSet::new();
        for root in cgroup_roots(&self.name)? {
            collect_directories(&root, &mut found)?;
            found.remove(&root);
        }
        Ok(found)
    }

    /// Names of the network links in the host.
    pub fn links(&self) -> Result<BTreeSet<String>> {
        let table = self.run("cat", ["/proc/net/dev"])?;
        Ok(table.lines().skip(2).filter_map(|line| line.split(':').next()).map(|name| name.trim().to_owned()).collect())
    }
}

/// Names of interfaces have at most 15 characters (netdevice(7)).
pub(crate) fn link_name(host: &str) -> String {
    format!("to-{}", host.trim_start_matches("carob-"))
}

impl Drop for Host {
    fn drop(&mut self) {
        let killed = self.holder.kill().and_then(|()| self.holder.wait());
        let swept = remove_remains(&self.name, &self.dir);
        if !std::thread::panicking() {
            killed.expect("the host's holder can be killed");
            swept.expect("a host leaves nothing behind");
        }
    }
}

/// Runs `command`, returns its standard output, and fails with all it said when it fails.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("start {}", command.get_program().display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        bail!("`{}` ended with {}\n{text}{}", words.join(" "), output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

fn start_holder(name: &str, run: &Path) -> Result<(Child, u32)> {
    fs::create_dir_all(run)?;
    // setpriv ties the holder to this process, unshare ties PID 1 to the holder: nothing outlives a killed test.
    // PID 1 waits for ever, and so reaps what is left to it: shims whose server was killed.
    let script = "hostname \"$1\" && mount -t tmpfs -o mode=0755 tmpfs \"$2\" && ip link set lo up && \
                  ip link add uplink type veth peer name world && ip addr add \"$3/24\" dev uplink && \
                  ip link set uplink up && ip link set world up && ip route add default via 198.51.100.2 && \
                  echo ready && while true; do sleep 1000000 & wait; done";
    let mut holder = Command::new("setpriv")
        .args(["--pdeathsig=KILL", "--", "unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork"])
        .args(["--kill-child=KILL", "--mount-proc", "--propagation=private", "sh", "-c", script, "sh", name])
        .arg(run)
        .arg(Host::ADDRESS)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the host's holder")?;
    let mut line = String::new();
    let stdout = holder.stdout.take().context("the holder's output is piped")?;
    BufReader::new(stdout).read_line(&mut line)?;
    if line.trim() != "ready" {
        bail!("the host {name} did not start: {:?}", holder.wait()?);
    }
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", holder.id()))?;
    let init =
        children.trim().parse().with_context(|| format!("the holder of {name} has one child, not `{children}`"))?;
    Ok((holder, init))
}

fn try_lock(path: &Path) -> Result<Option<OwnedFd>> {
    let file = fs_err::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file.into_parts().0.into())),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// The cgroup `name` in each hierarchy that is mounted.
fn cgroup_roots(name: &str) -> Result<Vec<PathBuf>> {
    if Path::new(CGROUPS).join("cgroup.controllers").exists() {
        return Ok(vec![Path::new(CGROUPS).join(name)]);
    }
    let mut roots = Vec::new();
    for hierarchy in fs::read_dir(CGROUPS)? {
        let hierarchy = hierarchy?;
        if hierarchy.file_type()?.is_dir() {
            roots.push(hierarchy.path().join(name));
        }
    }
    Ok(roots)
}

fn make_cgroups(name: &str) -> Result<()> {
    for root in cgroup_roots(name)? {
        fs::create_dir_all(&root)?;
        // A new v1 cpuset is empty, and nothing can be moved into one without CPUs and memory nodes (cpuset(7)).
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let path = root.join(file);
            if path.exists() && root.starts_with(Path::new(CGROUPS).join("cpuset")) {
                fs::write(&path, fs::read(Path::new(CGROUPS).join("cpuset").join(file))?)?;
            }
        }
    }
    Ok(())
}

fn collect_directories(root: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_directories(&entry.path(), found)?;
        }
    }
    found.insert(root.to_owned());
    Ok(())
}

/// Removes the cgroups and the directory of a host whose processes are dead or dying.
fn remove_remains(name: &str, dir: &Path) -> Result<()> {
    for root in cgroup_roots(name)? {
        let mut directories = BTreeSet::new();
        collect_directories(&root, &mut directories)?;
        for directory in directories.iter().rev() {
            remove_cgroup(directory)?;
        }
    }
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

/// Removes one cgroup once the kernel has reaped the killed processes in it.
fn remove_cgroup(directory: &Path) -> Result<()> {
    /// Processes that were killed with their PID namespace leave their cgroup when the kernel gets to it.
    const TRIES_MAX: u32 = 500;
    for _ in 0..TRIES_MAX {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => wait_for_reaper(),
            Err(error) => return Err(error.into()),
        }
    }
    let left = fs::read_to_string(directory.join("cgroup.procs"))?;
    bail!(
        "the cgroup {} still holds the processes {:?}",
        directory.display(),
        left.split_whitespace().collect::<Vec<_>>()
    );
}

#[expect(clippy::disallowed_methods, reason = "cgroup v1 has no event for the last process that leaves")]
fn wait_for_reaper() {
    std::thread::sleep(std::time::Duration::from_millis(10));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_its_own_network_and_processes_and_leaves_nothing() {
        let host = Host::new().expect("made");
        let (name, dir) = (host.name().to_owned(), host.dir().to_owned());
        assert_eq!(host.links().expect("listed"), BTreeSet::from(["lo", "uplink", "world"].map(str::to_owned)));
        assert_eq!(host.processes().expect("listed"), BTreeMap::new());
        assert_eq!(host.run("hostname", [""; 0]).expect("named").trim(), name);
        let mut sleeper = host.command("sh");
        sleeper.args(["-c", "echo up; exec sleep 1000"]).stdout(Stdio::piped());
        let mut sleeper = sleeper.spawn().expect("started");
        let mut line = String::new();
        BufReader::new(sleeper.stdout.take().expect("piped")).read_line(&mut line).expect("read");
        assert_eq!(line, "up\n");
        drop(host);
        assert!(!sleeper.wait().expect("ended").success(), "killed with its host");
        assert!(!dir.exists());
        for root in cgroup_roots(&name).expect("listed") {
            assert!(!root.exists(), "{}", root.display());
        }
    }

    #[test]
    fn a_failing_command_shows_what_it_said() {
        let host = Host::new().expect("made");
        let error = host.run("sh", ["-c", "echo out; echo err >&2; exit 3"]).expect_err("fails");
        let text = error.to_string();
        assert!(text.contains("out") && text.contains("err") && text.contains('3'), "{text}");
    }
}
