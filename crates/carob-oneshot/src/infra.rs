//! The infra process: in the Pod's new namespaces, on an empty root, without any right.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use carob_shim::params::InfraParams;
use carob_sys::cgroup::Cgroup;
use carob_sys::{capability, process};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::error::{Error, Result, chain};
use crate::{Started, users};

/// Who the infra process is, as upstream's pause image has it (`build/pause/Dockerfile`).
const INFRA_ID: u32 = 65535;

pub(crate) fn infra(params: &InfraParams, program: &OwnedFd, network: Option<&OwnedFd>) -> Result<Started> {
    let single = process::SingleThreaded::check().map_err(Error::Fork)?;
    Cgroup::new(&params.layout, &params.cgroup).enter_controllers(&single)?;
    set_oom_score(params.oom_score_adj)?;
    let user_namespace = params.user_ids.map(|ids| users::make(&single, ids)).transpose()?;
    // As long as it can be reached: root of another user namespace has no rights above it.
    rustix::process::chdir(&params.root)
        .map_err(|error| Error::Directory { path: params.root.clone(), source: error.into() })?;
    user_namespace.as_ref().map(users::enter).transpose()?;
    process::unshare(namespaces(params, network.is_none())).map_err(Error::Unshare)?;
    if let Some(network) = network {
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| Error::JoinNetwork(error.into()))?;
    }
    if let Some(name) = &params.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|error| Error::Hostname { name: name.clone(), source: error.into() })?;
    }
    params.sysctls.iter().try_for_each(|(name, value)| set_sysctl(name, value))?;
    enter_empty_root().map_err(|error| Error::Mount {
        what: "an empty root",
        target: params.root.clone(),
        source: error.into(),
    })?;
    let (failure, failure_here) = crate::exec::failure_pipe()?;
    let pid = process::clone_sibling(&single, None, || {
        let error = become_infra(program);
        crate::exec::report(&failure, &chain(&error));
        1
    })
    .map_err(Error::Fork)?;
    drop(failure);
    crate::exec::wait_for_exec(failure_here)?;
    Ok(Started { pid: pid.as_raw_nonzero().get(), detail: String::new(), console: None, left: None })
}

fn namespaces(params: &InfraParams, makes_network: bool) -> UnshareFlags {
    let choices = [
        (params.new_network && makes_network, UnshareFlags::NEWNET),
        (params.new_ipc, UnshareFlags::NEWIPC),
        (params.new_uts, UnshareFlags::NEWUTS),
        (params.new_pid, UnshareFlags::NEWPID),
    ];
    choices.iter().filter(|choice| choice.0).fold(UnshareFlags::NEWNS, |flags, choice| flags | choice.1)
}

pub(crate) fn set_oom_score(score: i32) -> Result<()> {
    fs_err::write("/proc/self/oom_score_adj", score.to_string()).map_err(|source| Error::OomScore { score, source })
}

/// Sysctls of network and IPC act on the namespaces of who writes them (kernel `fs/proc/proc_sysctl.c`).
fn set_sysctl(name: &str, value: &str) -> Result<()> {
    let plain = |part: &str| !part.is_empty() && part != ".." && !part.contains('\0');
    // `net/ipv4/conf/eth0.1/forwarding` keeps the dots between slashes (sysctl.d(5)).
    let path = match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name.to_owned(),
        _ => name.replace('.', "/"),
    };
    if !path.split('/').all(plain) {
        return Err(Error::SysctlName(name.to_owned()));
    }
    fs_err::write(Path::new("/proc/sys").join(path), value).map_err(|source| Error::Sysctl {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// Leaves the host's files behind: containers that share the PID namespace see this process's root in `/proc/1/root`. The
/// working directory is one that may be mounted over.
fn enter_empty_root() -> rustix::io::Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // One inode, the root, and no room: nothing can be made here.
    for (option, value) in [("size", "0"), ("nr_inodes", "1"), ("mode", "0555")] {
        fsconfig_set_string(context.as_fd(), option, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    // By no path: root of a user namespace may be in a directory that it could not enter.
    let both_empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(root.as_fd(), "", CWD, "", both_empty)?;
    rustix::process::fchdir(&root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// Returns only on failure.
fn become_infra(program: &OwnedFd) -> Error {
    match drop_rights() {
        Ok(()) => {
            let source = process::execute_fd(program.as_fd(), &[c"carob-pause", c"pause"]);
            Error::Execute { program: "carob-pause".to_owned(), source }
        }
        Err(error) => error,
    }
}

fn drop_rights() -> Result<()> {
    process::close_files_on_exec().map_err(Error::CloseFiles)?;
    rustix::process::setsid().map_err(|error| Error::Fork(error.into()))?;
    capability::limit_bounding(0).map_err(Error::Capabilities)?;
    crate::exec::become_user(INFRA_ID, INFRA_ID, &[])?;
    capability::set_own(capability::Sets::default()).map_err(Error::Capabilities)?;
    rustix::thread::set_no_new_privs(true).map_err(|error| Error::NoNewPrivileges(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_cannot_climb() {
        for name in ["../kernel/core_pattern", "net..x", "", "net/../../x", "a\0b"] {
            assert!(matches!(set_sysctl(name, "1"), Err(Error::SysctlName(_))), "{name:?}");
        }
    }
}
