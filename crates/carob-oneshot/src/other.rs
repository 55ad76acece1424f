//! A container by another OCI runtime, a program with the command line of runc (runc(8)).
//!
//! It finds everything as the container library would: the bundle, the root, the namespaces of the Pod. What it makes is a
//! process that waits to be started, an orphan when the runtime has ended, and so the shim's child.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use carob_shim::params::CreateParams;
use carob_sys::cgroup::{Cgroup, CgroupError};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::Pid;
use serde::Deserialize;

use crate::create::{CONSOLE_SOCKET, listen, receive_console};
use crate::error::{Error, Result};

/// Where control groups are mounted, with what they lie in.
const GROUPS: &str = "/sys";
/// Where the unified tree is mounted where it is the only one.
const UNIFIED: &str = "/sys/fs/cgroup";
/// What the runtime says of a failure, in the bundle.
const LOG: &str = "runtime.log";
/// Where it puts the number of the process that it has made, in the bundle.
const PID: &str = "pid";

/// A line of the runtime's log.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    msg: String,
}

pub(crate) fn create(params: &CreateParams, program: &Path) -> Result<(i32, Option<OwnedFd>)> {
    let group = Cgroup::new(&params.layout, &params.cgroup);
    let unified = group.open_unified()?;
    hide_other_groups(&group.directories())?;
    let (log, pid_file) = (params.bundle.join(LOG), params.bundle.join(PID));
    let mut command = Command::new(program);
    command.arg("--root").arg(&params.state_root).arg("--log").arg(&log).args(["--log-format", "json", "create"]);
    command.arg("--bundle").arg(&params.bundle).arg("--pid-file").arg(&pid_file);
    let console = if params.terminal {
        let path = params.bundle.join(CONSOLE_SOCKET);
        let listener = listen(&path).map_err(Error::Console)?;
        let directory = fs_err::File::open(&params.bundle).map_err(Error::Console)?;
        // The path itself may be too long for a socket's address; the runtime looks it up in this process.
        let short = format!("/proc/{}/fd/{}/{CONSOLE_SOCKET}", std::process::id(), directory.as_raw_fd());
        command.arg("--console-socket").arg(short);
        Some((listener, directory))
    } else {
        None
    };
    let failed = |source| Error::Execute { program: program.display().to_string(), source };
    let status = command.arg(&params.id).status().map_err(failed)?;
    if !status.success() {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let message = last_error(&fs_err::read_to_string(&log).unwrap_or_default());
        return Err(Error::OtherRuntime { name, message: message.unwrap_or_else(|| status.to_string()) });
    }
    let pid = fs_err::read_to_string(&pid_file).map_err(failed)?;
    let pid = pid.trim().parse().ok().and_then(Pid::from_raw).ok_or(Error::NoProcess)?;
    // The runtime has put it into the groups that it was shown.
    if let Some(unified) = unified {
        let path = PathBuf::from(format!("/proc/self/fd/{}/cgroup.procs", unified.as_raw_fd()));
        let joined = fs_err::write(&path, pid.as_raw_nonzero().to_string());
        joined.map_err(|source| CgroupError::Write { path, value: pid.as_raw_nonzero().to_string(), source })?;
    }
    let console = console.map(|(listener, _)| receive_console(&listener)).transpose().map_err(Error::Console)?;
    Ok((pid.as_raw_nonzero().get(), console))
}

/// A runtime makes a group in every tree that it sees, and leaves those above it behind. It is shown those alone that the
/// container has a group in. The calling process is in a mount namespace of its own.
fn hide_other_groups(own: &[PathBuf]) -> Result<()> {
    let mounts = fs_err::read_to_string("/proc/self/mountinfo")
        .map_err(|source| Error::ReadConfig { path: "/proc/self/mountinfo".into(), source })?;
    let hidden = others(&mounts, own);
    let hide = || -> rustix::io::Result<()> {
        mount_change(GROUPS, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        hidden.iter().try_for_each(|place| unmount(*place, UnmountFlags::DETACH))
    };
    let target = PathBuf::from(GROUPS);
    hide().map_err(|error| Error::Mount { what: "no control groups of others", target, source: error.into() })
}

/// The mounts of control groups of v1 that have none of the container's `own` below them (proc_pid_mountinfo(5)), and the
/// unified tree beside those of v1, with which crun refuses to work.
fn others<'a>(mounts: &'a str, own: &[PathBuf]) -> Vec<&'a str> {
    let place = |line: &'a str| {
        let (left, right) = line.split_once(" - ")?;
        Some((right.split(' ').next()?, left.split(' ').nth(4)?))
    };
    let is_other = |(kind, place): &(&str, &str)| match *kind {
        "cgroup" => place.starts_with(GROUPS) && !own.iter().any(|group| group.starts_with(place)),
        "cgroup2" => place.starts_with(GROUPS) && *place != UNIFIED,
        _ => false,
    };
    mounts.lines().filter_map(place).filter(is_other).map(|(_, place)| place).collect()
}

fn last_error(log: &str) -> Option<String> {
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    lines.rfind(|line| line.level == "error" || line.level.is_empty()).map(|line| line.msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_trees_are_found() {
        let mounts = "\
            30 1 0:26 / /sys rw - sysfs sysfs rw\n\
            31 30 0:27 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
            32 30 0:28 / /sys/fs/cgroup/perf_event rw - cgroup cgroup rw,perf_event\n\
            33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = [PathBuf::from("/sys/fs/cgroup/memory/kubepods/x")];
        assert_eq!(others(mounts, &own), ["/sys/fs/cgroup/perf_event", "/sys/fs/cgroup/unified"]);
        let mounts = "31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(others(mounts, &["/sys/fs/cgroup/kubepods/x".into()]), Vec::<&str>::new());
    }

    #[test]
    fn the_last_error_counts() {
        let log = r#"{"level":"warning","msg":"careful"}
            {"level":"error","msg":"first"}
            {"level":"error","msg":"exec: \"x\": executable file not found in $PATH","time":"t"}
            nonsense"#;
        assert_eq!(last_error(log).as_deref(), Some("exec: \"x\": executable file not found in $PATH"));
        assert_eq!(last_error("{\"msg\":\"of crun\"}").as_deref(), Some("of crun"));
        assert_eq!(last_error(""), None);
    }
}
