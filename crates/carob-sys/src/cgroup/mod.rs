//! Control groups: make them, limit them, fill them, watch what they use, kill and remove them, on v1, v2 and hybrid.
//!
//! Groups are named by their path from the root, `/kubepods/burstable/pod1/container`, the same on every layout.

mod layout;
mod resources;
mod stats;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};

pub use layout::Layout;
pub use resources::Resources;
pub use stats::Usage;

use crate::device_filter::{self, DeviceKind, DeviceRule};
use crate::process::SingleThreaded;
use layout::CONTROLLERS;
use resources::{Setting, settings_v1, settings_v2};

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("no cgroup filesystem is mounted")]
    NotMounted,
    #[error("read {path}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("make cgroup {path}", path = path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("write {value:?} to {path}", path = path.display())]
    Write { path: PathBuf, value: String, source: io::Error },
    #[error("limit {controller} of cgroup {group}: this machine has no such controller", group = group.display())]
    NoController { controller: &'static str, group: PathBuf },
    #[error("attach the device filter of {path}", path = path.display())]
    DeviceFilter { path: PathBuf, source: io::Error },
    #[error("kill process {pid} of cgroup {group}", group = group.display())]
    Kill { pid: i32, group: PathBuf, source: io::Error },
    #[error("the owner of cgroup {path}", path = path.display())]
    Mark { path: PathBuf, source: io::Error },
    #[error("remove cgroup {path}", path = path.display())]
    Remove { path: PathBuf, source: io::Error },
}

impl CgroupError {
    /// The group has processes, or groups below it.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Remove { source, .. } if source.kind() == io::ErrorKind::ResourceBusy)
    }
}

type Result<T> = std::result::Result<T, CgroupError>;

const SWAP_FILES: [&str; 2] = ["memory.memsw.limit_in_bytes", "memory.swap.max"];

/// Where [`Cgroup::mark`] writes. Of the namespace that only root sees (xattr(7)).
const OWNER_ATTRIBUTE: &str = "trusted.carob.instance";

/// The longest name of an owner, in bytes.
const OWNER_BYTES_MAX: usize = 256;

/// One group, whether it exists or not.
#[derive(Debug, Clone)]
pub struct Cgroup {
    layout: Layout,
    group: PathBuf,
}

impl Cgroup {
    pub fn new(layout: &Layout, group: impl Into<PathBuf>) -> Self {
        Self { layout: layout.clone(), group: group.into() }
    }

    pub fn path(&self) -> &Path {
        &self.group
    }

    /// Where the group is, one directory a tree.
    pub fn directories(&self) -> Vec<PathBuf> {
        self.layout.directories(&self.group)
    }

    pub fn exists(&self) -> bool {
        self.layout.directories(&self.group).iter().any(|directory| directory.exists())
    }

    /// Makes the group and those above it that are missing, so that processes can join.
    pub fn create(&self) -> Result<()> {
        match &self.layout {
            Layout::V2 { root } => {
                let mut ancestors: Vec<&Path> =
                    self.group.ancestors().filter(|path| path.file_name().is_some()).collect();
                ancestors.reverse();
                ancestors.into_iter().try_for_each(|ancestor| create_v2(root, ancestor))
            }
            Layout::V1 { .. } => self.create_v1(&self.group),
        }
    }

    /// Makes the group, below one that exists, in the unified tree only: a process is born there and is in groups above it
    /// in the trees of v1, which have each group cost.
    pub fn create_unified(&self) -> Result<()> {
        match (&self.layout, self.layout.unified_directory(&self.group)) {
            (Layout::V1 { .. }, Some(path)) => {
                fs_err::create_dir(&path).or_else(unless_it_exists).map_err(|source| CgroupError::Make { path, source })
            }
            (Layout::V1 { .. }, None) => Ok(()),
            (Layout::V2 { .. }, _) => self.create(),
        }
    }

    /// From below, since those above are there as a rule, ten trees deep.
    fn create_v1(&self, group: &Path) -> Result<()> {
        for path in self.layout.directories(group) {
            let made = match (fs_err::create_dir(&path), group.parent()) {
                (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
                    self.create_v1(parent)?;
                    fs_err::create_dir(&path)
                }
                (made, _) => made,
            };
            made.or_else(unless_it_exists).map_err(|source| CgroupError::Make { path, source })?;
        }
        self.layout.directory("cpuset", group).map_or(Ok(()), |directory| inherit_cpuset(&directory))
    }

    /// Sets limits. One for which this machine has no controller is an error, unless it asks for nothing.
    pub fn apply(&self, wanted: &Resources) -> Result<()> {
        let settings = match &self.layout {
            Layout::V2 { .. } => settings_v2(wanted),
            Layout::V1 { .. } => settings_v1(wanted, self.memory_limit_v1()?),
        };
        for Setting { controller, file, value } in settings {
            let Some(directory) = self.layout.directory(controller, &self.group) else {
                return Err(CgroupError::NoController { controller, group: self.group.clone() });
            };
            let path = directory.join(&file);
            // A kernel that does not account for swap has no such file, nor a way to limit it (containerd leaves it out too).
            if SWAP_FILES.contains(&file.as_str()) && !path.exists() {
                continue;
            }
            write(&path, &value)?;
        }
        Ok(())
    }

    /// Says whose a group is, in a way that outlives its maker and that other makers of groups do not share: an extended
    /// attribute, which goes with the group.
    pub fn mark(&self, owner: &str) -> Result<()> {
        let Some(path) = self.layout.directories(&self.group).into_iter().next() else { return Ok(()) };
        rustix::fs::setxattr(&path, OWNER_ATTRIBUTE, owner.as_bytes(), rustix::fs::XattrFlags::empty())
            .map_err(|error| CgroupError::Mark { path, source: error.into() })
    }

    /// Whose a group is, if [`Cgroup::mark`] said so.
    pub fn owner(&self) -> Result<Option<String>> {
        let Some(path) = self.layout.directories(&self.group).into_iter().next() else { return Ok(None) };
        let mut value = vec![0; OWNER_BYTES_MAX];
        match rustix::fs::getxattr(&path, OWNER_ATTRIBUTE, &mut value) {
            Ok(length) => Ok(Some(String::from_utf8_lossy(&value[..length]).into_owned())),
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(CgroupError::Mark { path, source: error.into() }),
        }
    }

    fn memory_limit_v1(&self) -> Result<Option<i64>> {
        let Some(directory) = self.layout.directory("memory", &self.group) else { return Ok(None) };
        let path = directory.join("memory.limit_in_bytes");
        match fs_err::read_to_string(&path) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CgroupError::Read { path, source }),
        }
    }

    /// Lets the group's processes use these devices and no other. Call once, while the group is empty.
    pub fn allow_devices(&self, rules: &[DeviceRule]) -> Result<()> {
        match &self.layout {
            Layout::V2 { .. } => {
                for path in self.layout.directories(&self.group) {
                    let attach = || {
                        let directory = fs_err::File::open(&path)?;
                        device_filter::attach(directory, rules)
                    };
                    attach().map_err(|source| CgroupError::DeviceFilter { path: path.clone(), source })?;
                }
                Ok(())
            }
            Layout::V1 { .. } => {
                let Some(directory) = self.layout.directory("devices", &self.group) else {
                    return Err(CgroupError::NoController { controller: "devices", group: self.group.clone() });
                };
                write(&directory.join("devices.deny"), "a")?;
                rules.iter().try_for_each(|rule| write(&directory.join("devices.allow"), &device_line_v1(rule)))
            }
        }
    }

    /// Moves a process (all its threads) into the group, in every tree.
    pub fn add(&self, pid: Pid) -> Result<()> {
        let value = pid.as_raw_nonzero().to_string();
        self.layout
            .directories(&self.group)
            .iter()
            .try_for_each(|directory| write(&directory.join("cgroup.procs"), &value))
    }

    /// Moves the calling process into the group, in every tree where it is not in it yet.
    ///
    /// The unified tree makes a process wait for a grace period of the kernel (7.7 ms on an idle 6.18), so it is best born
    /// in its group there (see [`crate::process::clone_child`]).
    pub fn enter(&self, proof: &SingleThreaded) -> Result<()> {
        self.enter_controllers(proof)?;
        match self.layout.unified_directory(&self.group) {
            Some(directory) if !self.is_own_unified()? => write(&directory.join("cgroup.procs"), "0"),
            Some(_) | None => Ok(()),
        }
    }

    /// Moves the calling process into the group in the trees of v1.
    ///
    /// With one thread it moves itself by `tasks`, which needs no grace period (0.1 ms; `cgroup_procs_write_start` in the
    /// kernel's `kernel/cgroup/cgroup.c`).
    pub fn enter_controllers(&self, _proof: &SingleThreaded) -> Result<()> {
        let unified = self.layout.unified_directory(&self.group);
        let directories = self.layout.directories(&self.group);
        let mut own = directories.iter().filter(|directory| Some(*directory) != unified.as_ref());
        own.try_for_each(|directory| write(&directory.join("tasks"), "0"))
    }

    /// Whether the calling process is in the group in the unified tree (cgroups(7), `/proc/[pid]/cgroup`).
    fn is_own_unified(&self) -> Result<bool> {
        let path = PathBuf::from("/proc/self/cgroup");
        let text = fs_err::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })?;
        Ok(text.lines().any(|line| line.strip_prefix("0::").is_some_and(|own| Path::new(own) == self.group)))
    }

    /// The group's directory in the unified tree, where there is one, for a process to be born in.
    pub fn open_unified(&self) -> Result<Option<OwnedFd>> {
        let Some(path) = self.layout.unified_directory(&self.group) else { return Ok(None) };
        let directory = fs_err::File::open(&path).map_err(|source| CgroupError::Read { path, source })?;
        Ok(Some(directory.into_file().into()))
    }

    /// The processes of the group and of those below it. Empty when the group does not exist.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for directory in self.layout.directories(&self.group) {
            collect_pids(&directory, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Sends `SIGKILL` to every process of the group and of those below it.
    ///
    /// The unified tree does it in one step that no fork escapes (`cgroup.kill`, Linux 5.14). Elsewhere each process is
    /// killed by number until a pass finds none that the pass before had not seen.
    pub fn kill(&self) -> Result<()> {
        if let Some(directory) = self.layout.unified_directory(&self.group) {
            let path = directory.join("cgroup.kill");
            if path.exists() {
                write(&path, "1")?;
            }
        }
        let mut killed: Vec<i32> = Vec::new();
        loop {
            let pids: Vec<i32> = self.pids()?.into_iter().filter(|pid| !killed.contains(pid)).collect();
            if pids.is_empty() {
                return Ok(());
            }
            for pid in &pids {
                self.kill_one(*pid)?;
            }
            killed.extend(pids);
        }
    }

    fn kill_one(&self, pid: i32) -> Result<()> {
        // 0 is a process of another PID namespace that this one cannot see, nor kill by number.
        let Some(target) = Pid::from_raw(pid) else { return Ok(()) };
        match rustix::process::kill_process(target, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(source) => Err(CgroupError::Kill { pid, group: self.group.clone(), source: source.into() }),
        }
    }

    pub fn usage(&self) -> Result<Usage> {
        stats::read(&self.layout, &self.group)
    }

    /// How often the kernel has killed a process of this group for want of memory.
    pub fn oom_kills(&self) -> Result<u64> {
        stats::oom_kills(&self.layout, &self.group)
    }

    /// The names of the groups directly below this one, in any tree.
    pub fn children(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for directory in self.layout.directories(&self.group) {
            names.extend(subdirectories(&directory)?);
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Removes the group and those below it. Nothing happens when it does not exist; `EBUSY` while it has processes.
    pub fn remove(&self) -> Result<()> {
        self.layout.directories(&self.group).iter().try_for_each(|directory| remove_tree(directory))
    }

    /// Removes the group unless it has processes or groups below it. Nothing happens when it does not exist.
    pub fn remove_if_empty(&self) -> Result<()> {
        self.layout.directories(&self.group).iter().try_for_each(|directory| match remove_directory(directory) {
            // The kernel's answer for a group below as well as for a process.
            Err(error) if error.is_busy() => Ok(()),
            removed => removed,
        })
    }
}

/// Controllers have to be on above the group before it is of use.
fn create_v2(root: &Path, group: &Path) -> Result<()> {
    let path = root.join(group.strip_prefix("/").unwrap_or(group));
    enable_controllers(path.parent().unwrap_or(root))?;
    fs_err::create_dir(&path).or_else(unless_it_exists).map_err(|source| CgroupError::Make { path, source })
}

fn unless_it_exists(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

/// Turns on, for the children of a v2 group, the controllers that it has itself.
fn enable_controllers(directory: &Path) -> Result<()> {
    let path = directory.join("cgroup.controllers");
    let available = fs_err::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })?;
    let path = directory.join("cgroup.subtree_control");
    let enabled = fs_err::read_to_string(&path).map_err(|source| CgroupError::Read { path: path.clone(), source })?;
    let enabled: Vec<&str> = enabled.split_whitespace().collect();
    let missing: Vec<String> = available
        .split_whitespace()
        .filter(|name| CONTROLLERS.contains(name) && !enabled.contains(name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    write(&path, &missing.join(" "))
}

/// A v1 cpuset starts empty and takes no process until it has CPUs and memory nodes. Those made below it from then on
/// start with what it has (`cgroup.clone_children`, kernel `Documentation/admin-guide/cgroup-v1/cpusets.rst`).
fn inherit_cpuset(directory: &Path) -> Result<()> {
    let Some(parent) = directory.parent() else { return Ok(()) };
    let read = |path: PathBuf| match fs_err::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        // Above the root of the tree.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CgroupError::Read { path, source }),
    };
    let mut was_empty = false;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read(directory.join(file))?.is_some_and(|own| own.is_empty()) {
            was_empty = true;
            inherit_cpuset(parent)?;
            if let Some(theirs) = read(parent.join(file))? {
                write(&directory.join(file), &theirs)?;
            }
        }
    }
    if was_empty { write(&directory.join("cgroup.clone_children"), "1") } else { Ok(()) }
}

fn device_line_v1(rule: &DeviceRule) -> String {
    let kind = match rule.kind {
        DeviceKind::All => 'a',
        DeviceKind::Char => 'c',
        DeviceKind::Block => 'b',
    };
    let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    let access: String =
        [('r', rule.read), ('w', rule.write), ('m', rule.mknod)].iter().filter(|way| way.1).map(|way| way.0).collect();
    format!("{kind} {}:{} {access}", number(rule.major), number(rule.minor))
}

fn write(path: &Path, value: &str) -> Result<()> {
    use std::io::Write;

    let attempt = || fs_err::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes());
    attempt().map_err(|source| CgroupError::Write { path: path.to_owned(), value: value.to_owned(), source })
}

fn collect_pids(directory: &Path, pids: &mut Vec<i32>) -> Result<()> {
    let path = directory.join("cgroup.procs");
    match fs_err::File::open(&path).and_then(read_procs) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(CgroupError::Read { path, source }),
    }
    for child in subdirectories(directory)? {
        collect_pids(&directory.join(child), pids)?;
    }
    Ok(())
}

/// `NotFound` also for a group that has gone since its file was opened: the kernel says `ENODEV` then.
fn read_procs(file: fs_err::File) -> io::Result<String> {
    // The plain file, since fs_err's errors have no number.
    io::read_to_string(file.into_file()).map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => io::ErrorKind::NotFound.into(),
        _ => error,
    })
}

fn subdirectories(directory: &Path) -> Result<Vec<String>> {
    let failed = |source| CgroupError::Read { path: directory.to_owned(), source };
    let entries = match fs_err::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

fn remove_tree(directory: &Path) -> Result<()> {
    for child in subdirectories(directory)? {
        remove_tree(&directory.join(child))?;
    }
    remove_directory(directory)
}

fn remove_directory(directory: &Path) -> Result<()> {
    match fs_err::remove_dir(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(CgroupError::Remove { path: directory.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests;
