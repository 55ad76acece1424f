//! A command in a running container.
//!
//! Not by libcontainer, whose exec leaves the seccomp profile out: a command would have more rights than the container.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use carob_shim::params::ExecParams;
use carob_sys::cgroup::Cgroup;
use carob_sys::{capability, process};
use libcontainer::oci_spec::runtime::{Capabilities, LinuxCapabilities, LinuxSeccomp, PosixRlimitType, Process};
use rustix::process::{Gid, Pid, PidfdFlags, Resource, Rlimit, Uid, pidfd_open, setrlimit};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::copy::Copy;
use crate::create::{give_streams_to, read_config};
use crate::error::{Error, Result, chain};
use crate::start::find_program;
use crate::{Started, users};

/// The most that a child tells about its failure, in bytes.
const FAILURE_BYTES_MAX: u64 = 4096;

pub(crate) fn exec(params: &ExecParams) -> Result<Started> {
    let spec = read_config(&params.config)?;
    let process_spec = spec.process().as_ref().ok_or(Error::ConfigLacks("process"))?;
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let single = process::SingleThreaded::check().map_err(Error::Fork)?;
    let group = Cgroup::new(&params.layout, &params.cgroup);
    let born_in = group.open_unified()?;
    group.enter_controllers(&single)?;
    match process_spec.oom_score_adj() {
        Some(score) => crate::infra::set_oom_score(score)?,
        None => carob_sys::oom::unprotect().map_err(|source| Error::OomScore { score: 0, source })?,
    }
    // What protects a container's first process protects this one while it changes sides: nobody in there may trace it.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| Error::Enter { pid: params.pid, source: error.into() })?;
    let user_namespace = enter(params.pid, params.user_ids.is_some())?;
    let uid = process_spec.user().uid();
    let uid = match params.user_ids {
        Some(ids) => ids.on_host(uid).ok_or(Error::NotMapped { id: uid, count: ids.count })?,
        None => uid,
    };
    let terminal = if params.terminal {
        Some(open_terminal(uid).map_err(Error::Terminal)?)
    } else {
        give_streams_to(uid)?;
        None
    };
    let (failure, failure_here) = failure_pipe()?;
    let pid = process::clone_sibling(&single, born_in.as_ref().map(AsFd::as_fd), || {
        let slave = terminal.as_ref().map(|terminal| &terminal.1);
        let entered = user_namespace.as_ref().map(users::enter).transpose();
        let error = entered.err().unwrap_or_else(|| run_command(params, process_spec, seccomp, slave));
        report(&failure, &chain(&error));
        1
    })
    .map_err(Error::Fork)?;
    drop(failure);
    wait_for_exec(failure_here)?;
    let console = terminal.map(|terminal| terminal.0);
    Ok(Started { pid: pid.as_raw_nonzero().get(), detail: String::new(), console, left: None })
}

/// Joins the namespaces of a process in one step (setns(2) with a pidfd, Linux 5.8), but for its user namespace, which is
/// answered where it is one of its own: the command is born in a control group that those in there have no right to.
fn enter(pid: i32, in_user_namespace: bool) -> Result<Option<OwnedFd>> {
    let failed = |error: rustix::io::Errno| Error::Enter { pid, source: error.into() };
    let target = Pid::from_raw(pid).ok_or_else(|| failed(rustix::io::Errno::SRCH))?;
    let target = pidfd_open(target, PidfdFlags::empty()).map_err(failed)?;
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK;
    let users = if in_user_namespace {
        let path = format!("/proc/{pid}/ns/user");
        let file = fs_err::File::open(path).map_err(|source| Error::Enter { pid, source })?;
        Some(file.into_parts().0.into())
    } else {
        None
    };
    move_into_thread_name_spaces(target.as_fd(), all).map_err(failed)?;
    Ok(users)
}

/// A terminal of the container's own devpts: both sides, the second for the command.
fn open_terminal(uid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None)?;
    Ok((master, slave))
}

/// Returns only on failure.
fn run_command(
    params: &ExecParams,
    process_spec: &Process,
    seccomp: Option<&LinuxSeccomp>,
    terminal: Option<&OwnedFd>,
) -> Error {
    match prepare(process_spec, seccomp, terminal) {
        Ok(()) => execute(params, process_spec),
        Err(error) => error,
    }
}

/// The order is runc's (`libcontainer/setns_init_linux.go`): what needs rights comes before they are given up, and
/// without `noNewPrivileges` loading a profile needs them too.
fn prepare(process_spec: &Process, seccomp: Option<&LinuxSeccomp>, terminal: Option<&OwnedFd>) -> Result<()> {
    rustix::process::setsid().map_err(|error| Error::Fork(error.into()))?;
    if let Some(terminal) = terminal {
        use_terminal(terminal).map_err(Error::Terminal)?;
    }
    set_limits(process_spec)?;
    process::close_files_on_exec().map_err(Error::CloseFiles)?;
    let no_new_privileges = process_spec.no_new_privileges().unwrap_or(false);
    if no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(|error| Error::NoNewPrivileges(error.into()))?;
    } else {
        load(seccomp)?;
    }
    let user = process_spec.user();
    let sets = process_spec.capabilities().as_ref().map(capability_sets);
    if let Some(sets) = &sets {
        capability::limit_bounding(sets.bounding).map_err(Error::Capabilities)?;
    }
    let directory = process_spec.cwd();
    // A directory that only root can enter is entered before root is given up, any other after.
    let entered = rustix::process::chdir(directory.as_path());
    become_user(user.uid(), user.gid(), user.additional_gids().as_deref().unwrap_or_default())?;
    if let Some(sets) = sets {
        capability::set_own(sets).map_err(Error::Capabilities)?;
    }
    if entered.is_err() {
        rustix::process::chdir(directory.as_path())
            .map_err(|error| Error::Directory { path: directory.clone(), source: error.into() })?;
    }
    if no_new_privileges {
        load(seccomp)?;
    }
    Ok(())
}

fn use_terminal(terminal: &OwnedFd) -> io::Result<()> {
    rustix::process::ioctl_tiocsctty(terminal)?;
    process::use_as_standard_streams(terminal)
}

fn load(seccomp: Option<&LinuxSeccomp>) -> Result<()> {
    if let Some(profile) = seccomp {
        libcontainer::seccomp::initialize_seccomp(profile).map_err(Error::Seccomp)?;
    }
    Ok(())
}

/// Takes on the ids of a user and keeps the permitted capabilities, which the caller then cuts down.
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    let change = || -> rustix::io::Result<()> {
        let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::thread::set_keep_capabilities(true)?;
        rustix::thread::set_thread_groups(&groups)?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        rustix::thread::set_keep_capabilities(false)
    };
    change().map_err(|error| Error::Become { uid, gid, source: error.into() })
}

fn capability_sets(wanted: &LinuxCapabilities) -> capability::Sets {
    let bits = |set: &Option<Capabilities>| {
        let numbers = set.iter().flatten().filter_map(|name| capability::number(&name.to_string()));
        numbers.fold(0u64, |bits, number| bits | 1 << number)
    };
    capability::Sets {
        bounding: bits(wanted.bounding()),
        effective: bits(wanted.effective()),
        permitted: bits(wanted.permitted()),
        inheritable: bits(wanted.inheritable()),
        ambient: bits(wanted.ambient()),
    }
}

fn set_limits(process_spec: &Process) -> Result<()> {
    for limit in process_spec.rlimits().iter().flatten() {
        let name = limit.typ().to_string();
        let resource = resource(limit.typ());
        let new = Rlimit { current: Some(limit.soft()), maximum: Some(limit.hard()) };
        setrlimit(resource, new).map_err(|error| Error::Limit(name, error.into()))?;
    }
    Ok(())
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

/// Returns only on failure.
fn execute(params: &ExecParams, process_spec: &Process) -> Error {
    let Some((program, arguments)) = params.arguments.split_first() else { return Error::ConfigLacks("command") };
    let env: Vec<(&str, &str)> =
        process_spec.env().iter().flatten().filter_map(|entry| entry.split_once('=')).collect();
    let search = env.iter().rev().find(|(name, _)| *name == "PATH").map_or("", |(_, value)| value);
    let Some(file) = find_program(program, search) else {
        let copy = Copy::parse(&params.arguments).filter(|_| params.serves_copies && !params.terminal);
        return match copy.map(|copy| process::instead_of_a_program(|| copy.run())) {
            Some(Err(error)) => Error::CloseFiles(error),
            None => Error::NotFound(program.clone()),
        };
    };
    let mut command = Command::new(file);
    command.arg0(program).args(arguments).env_clear();
    if params.terminal {
        command.env("TERM", "xterm");
    }
    command.envs(env);
    Error::Execute { program: program.clone(), source: command.exec() }
}

/// A pipe that execve(2) closes: what comes out of it before is why it did not happen.
pub(crate) fn failure_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = io::pipe().map_err(Error::ReadFailure)?;
    Ok((write.into(), read.into()))
}

pub(crate) fn report(failure: &OwnedFd, message: &str) {
    // Nobody is left to tell when this fails too; the exit code still says that something did.
    if let Ok(fd) = failure.try_clone()
        && File::from(fd).write_all(message.as_bytes()).is_err()
    {
        std::process::exit(2);
    }
}

pub(crate) fn wait_for_exec(failure: OwnedFd) -> Result<()> {
    let mut message = String::new();
    File::from(failure).take(FAILURE_BYTES_MAX).read_to_string(&mut message).map_err(Error::ReadFailure)?;
    if message.is_empty() { Ok(()) } else { Err(Error::Child(message)) }
}
