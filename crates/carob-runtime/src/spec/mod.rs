//! The OCI configuration of a container, as a function of what was asked for and what this machine is: pure.
//!
//! Start at [`oci_spec_for`]. Defaults are containerd's, since that is what manifests are written for.

mod capabilities;
mod devices;
mod mounts;
mod resources;
mod seccomp;

use std::collections::BTreeMap;
use std::path::PathBuf;

use carob_cri::v1;
use carob_shim::params::{IdRange, UserParams};
use carob_sys::device_filter::DeviceRule;
use oci_spec::image::ImageConfiguration;
use serde_json::{Value, json};

use crate::user_namespace::{self, UserNamespaceError};
pub use devices::{DeviceNode, GrantedDevice};
pub(crate) use resources::{merged, resources_for};

/// What this machine is, as far as containers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The capabilities that can be handed on, as bits.
    pub bounding: u64,
    /// The lowest out-of-memory score that can be set.
    pub oom_score_adj_min: i32,
    /// The trees of cgroup v1: name in `/sys/fs/cgroup`, directory. None where every controller is in the unified tree.
    pub cgroup_trees: Vec<(String, PathBuf)>,
    /// Huge pages can be limited.
    pub hugetlb: bool,
    pub apparmor: bool,
    pub selinux: bool,
    /// As [`std::env::consts::ARCH`] has it.
    pub arch: &'static str,
}

/// What the container's sandbox gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxView {
    /// The infra process, whose namespaces are shared.
    pub infra_pid: i32,
    pub hostname: String,
    /// The directory that is `/dev/shm`.
    pub shm: PathBuf,
    pub hostname_file: Option<PathBuf>,
    pub resolv_conf_file: Option<PathBuf>,
    /// The container's own control group.
    pub cgroup: PathBuf,
    /// The ids of its user namespace, unless that is the host's.
    pub user_ids: Option<IdRange>,
}

/// All that a container's configuration follows from.
#[derive(Debug, Clone)]
pub struct SpecInput<'a> {
    pub config: &'a v1::ContainerConfig,
    pub sandbox: &'a SandboxView,
    pub image: &'a ImageConfiguration,
    pub host: &'a HostFacts,
    /// Where the root filesystem will be.
    pub rootfs: &'a str,
    /// The devices asked for; every device of the host for a privileged container.
    pub devices: &'a [GrantedDevice],
    /// The process whose PID namespace the container joins, for `NamespaceMode::Target`.
    pub target_pid: Option<i32>,
    /// The profile of `Localhost`, as read.
    pub seccomp_file: Option<&'a Value>,
    /// For each place where an image is mounted, the directories that are merged there, topmost first.
    pub images: &'a BTreeMap<String, Vec<PathBuf>>,
}

/// A container's configuration, and what goes with it but is not in it.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerSpec {
    /// OCI `config.json`, but for the user, who is looked up in the root filesystem.
    pub config: Value,
    pub user: UserParams,
    pub device_rules: Vec<DeviceRule>,
    /// No other control groups than its own matter to the container.
    pub own_groups_only: bool,
    /// Groups that the container is shown other than by a mount of the configuration: by name, where they are.
    pub shown_groups: Vec<(String, PathBuf)>,
    /// File systems that are laid together for mounts of the configuration, which bind them by their number here.
    pub staged: Vec<StagedMount>,
    /// Capabilities that the container asked for and this machine cannot give.
    pub capabilities_lost: Vec<String>,
}

/// What has to be laid together before a container can bind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StagedMount {
    /// Directories of an image, topmost first.
    Image(Vec<PathBuf>),
    /// An anonymous volume of the image at this path: it begins with what the image has there.
    Volume(PathBuf),
    /// What is at a path of the host, for a container in a user namespace: its root could not pass through the directories
    /// above. `mapped`: with its files as the container's users own them.
    Bind { source: PathBuf, mapped: bool },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("no command specified")]
    NoCommand,
    #[error("no capability is called {0:?}")]
    Capability(String),
    #[error("mount {path}: {reason}")]
    Mount { path: String, reason: &'static str },
    #[error("device {path}: permissions {permissions:?} are not letters of rwm")]
    DevicePermissions { path: String, permissions: String },
    #[error("{0} is not a valid user or group number")]
    Id(i64),
    #[error("a group was given without a user")]
    GroupWithoutUser,
    #[error("AppArmor profile {0:?} was asked for, and this machine has no AppArmor")]
    AppArmor(String),
    #[error("SELinux options were asked for, this machine has SELinux, and labels are not supported")]
    SeLinux,
    #[error(transparent)]
    UserNamespace(#[from] UserNamespaceError),
    #[error("the target of the PID namespace is not running")]
    NoTarget,
}

/// The configuration of one container.
pub fn oci_spec_for(input: &SpecInput<'_>) -> Result<ContainerSpec, SpecError> {
    let empty = v1::LinuxContainerSecurityContext::default();
    let linux = input.config.linux.as_ref();
    let security = linux.and_then(|linux| linux.security_context.as_ref()).unwrap_or(&empty);
    let wanted = security.capabilities.clone().unwrap_or_default();
    let granted = capabilities::grant(
        security.privileged,
        &wanted.add_capabilities,
        &wanted.drop_capabilities,
        input.host.bounding,
    )?;
    let ambient = capabilities::ambient(&wanted.add_ambient_capabilities, granted.bits)?;
    let process = process(input, security, granted.bits, ambient)?;
    let (mounts, staged) = mounts::mounts(input, security)?;
    let root = if staged.is_empty() { input.rootfs.to_owned() } else { format!("{}/{STAGED_ROOT}", input.rootfs) };
    let config = json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": root, "readonly": security.readonly_rootfs},
        "mounts": mounts,
        "linux": linux_section(input, security, granted.bits)?,
    });
    Ok(ContainerSpec {
        config,
        user: user(input, security)?,
        device_rules: devices::rules(security.privileged, input.devices)?,
        own_groups_only: mounts::own_groups_only(&input.config.mounts, security.privileged),
        shown_groups: mounts::shown_groups(input, security.privileged),
        staged,
        capabilities_lost: granted.lost,
    })
}

/// The root's name beside the mounts that are staged for it.
const STAGED_ROOT: &str = "root";

type Security = v1::LinuxContainerSecurityContext;

fn process(input: &SpecInput<'_>, security: &Security, granted: u64, ambient: u64) -> Result<Value, SpecError> {
    let config = input.config;
    let image = input.image.config().as_ref();
    let image_directory = image.and_then(|image| image.working_dir().clone()).unwrap_or_default();
    let directory = [config.working_dir.as_str(), image_directory.as_str(), "/"];
    let held = capabilities::names(granted);
    let mut process = json!({
        "terminal": config.tty,
        "user": {"uid": 0, "gid": 0},
        "args": arguments(input)?,
        "env": environment(input),
        "cwd": directory.into_iter().find(|path| !path.is_empty()).map(absolute),
        "capabilities": {
            "bounding": held,
            "effective": held,
            "permitted": held,
            "inheritable": capabilities::names(ambient),
            "ambient": capabilities::names(ambient),
        },
    });
    // False is not the same as absent: libcontainer then loads the profile after it gave up the right to.
    if security.no_new_privs {
        process["noNewPrivileges"] = true.into();
    }
    if let Some(score) = oom_score_adj(input) {
        process["oomScoreAdj"] = score.into();
    }
    // Where nothing looks at labels there is nothing to do.
    if input.host.selinux && security.selinux_options.is_some() {
        return Err(SpecError::SeLinux);
    }
    if let Some(profile) = apparmor(security) {
        if !input.host.apparmor {
            return Err(SpecError::AppArmor(profile));
        }
        process["apparmorProfile"] = profile.into();
    }
    Ok(process)
}

/// A working directory that an image gives without a slash is meant from the root, as docker has it.
fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// Kubernetes' rules for command and args against the image's entrypoint and cmd (`k8s.io/api/core/v1`, Container).
fn arguments(input: &SpecInput<'_>) -> Result<Vec<String>, SpecError> {
    let image = input.image.config().as_ref();
    let entrypoint = image.and_then(|image| image.entrypoint().clone()).unwrap_or_default();
    let cmd = image.and_then(|image| image.cmd().clone()).unwrap_or_default();
    let (command, args) = (&input.config.command, &input.config.args);
    let all = match (command.is_empty(), args.is_empty()) {
        (true, true) => [entrypoint, cmd].concat(),
        (true, false) => [entrypoint, args.clone()].concat(),
        (false, _) => [command.clone(), args.clone()].concat(),
    };
    if all.is_empty() { Err(SpecError::NoCommand) } else { Ok(all) }
}

/// Later entries win: defaults, the image's, the container's.
fn environment(input: &SpecInput<'_>) -> Vec<String> {
    const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut env: Vec<String> = vec![PATH.to_owned(), format!("HOSTNAME={}", input.sandbox.hostname)];
    if input.config.tty {
        env.push("TERM=xterm".to_owned());
    }
    let image = input.image.config().as_ref().and_then(|image| image.env().clone()).unwrap_or_default();
    // Some builders write entries that name nothing or have no value: no program can see them (environ(7)).
    let image = image.into_iter().filter(|entry| entry.find('=').is_some_and(|at| at > 0));
    let own = input.config.envs.iter().map(|entry| format!("{}={}", entry.key, entry.value));
    for entry in image.chain(own) {
        let name = entry.split('=').next().unwrap_or_default();
        let same = |known: &String| known.split('=').next() == Some(name);
        match env.iter().position(same) {
            Some(at) => env[at] = entry,
            None => env.push(entry),
        }
    }
    env
}

fn oom_score_adj(input: &SpecInput<'_>) -> Option<i32> {
    let resources = input.config.linux.as_ref()?.resources.as_ref()?;
    let wanted = i32::try_from(resources.oom_score_adj.clamp(-1000, 1000)).ok()?;
    Some(wanted.max(input.host.oom_score_adj_min))
}

fn apparmor(security: &Security) -> Option<String> {
    use v1::security_profile::ProfileType;

    if security.privileged {
        return None;
    }
    let profile = security.apparmor.as_ref().filter(|profile| profile.profile_type() == ProfileType::Localhost)?;
    Some(profile.localhost_ref.trim_start_matches("localhost/").to_owned())
}

fn linux_section(input: &SpecInput<'_>, security: &Security, granted: u64) -> Result<Value, SpecError> {
    let mut linux = json!({
        "cgroupsPath": input.sandbox.cgroup,
        "namespaces": namespaces(input, security)?,
        "devices": input.devices.iter().filter(|granted| granted.is_in_dev()).map(device).collect::<Vec<_>>(),
    });
    if let Some(propagation) = mounts::rootfs_propagation(&input.config.mounts) {
        linux["rootfsPropagation"] = propagation.into();
    }
    if !security.privileged {
        linux["maskedPaths"] = paths_or(&security.masked_paths, MASKED_PATHS);
        linux["readonlyPaths"] = readonly_paths(input, security);
        if let Some(profile) = seccomp_profile(input, security, granted) {
            linux["seccomp"] = profile;
        }
    }
    Ok(linux)
}

/// What the kernel shows to anyone and a container has no business with (containerd `pkg/oci/spec.go`).
const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// An empty list is one that was not sent: CRI's wire does not tell them apart.
fn paths_or(asked: &[String], default: &[&str]) -> Value {
    if asked.is_empty() { json!(default) } else { json!(asked) }
}

/// On v1 the directory of the trees as well, which has to be writable until all are mounted.
fn readonly_paths(input: &SpecInput<'_>, security: &Security) -> Value {
    let mut paths = paths_or(&security.readonly_paths, READONLY_PATHS);
    let with_groups =
        !input.host.cgroup_trees.is_empty() && mounts::shown_groups(input, security.privileged).is_empty();
    if let Some(paths) = paths.as_array_mut().filter(|_| with_groups) {
        paths.push(mounts::CGROUP_DIRECTORY.into());
    }
    paths
}

fn namespaces(input: &SpecInput<'_>, security: &Security) -> Result<Vec<Value>, SpecError> {
    use v1::NamespaceMode;

    let options = security.namespace_options.clone().unwrap_or_default();
    if user_namespace::ids(&options)? != input.sandbox.user_ids {
        return Err(UserNamespaceError::Other.into());
    }
    let infra = |kind: &str| format!("/proc/{}/ns/{kind}", input.sandbox.infra_pid);
    // The infra process is in the host's namespace itself where the Pod is.
    let mut namespaces = vec![
        json!({"type": "mount"}),
        json!({"type": "network", "path": infra("net")}),
        json!({"type": "ipc", "path": infra("ipc")}),
        json!({"type": "uts", "path": infra("uts")}),
    ];
    if input.sandbox.user_ids.is_some() {
        namespaces.push(json!({"type": "user", "path": infra("user")}));
    }
    match options.pid() {
        NamespaceMode::Container => namespaces.push(json!({"type": "pid"})),
        NamespaceMode::Pod => namespaces.push(json!({"type": "pid", "path": infra("pid")})),
        NamespaceMode::Target => {
            let pid = input.target_pid.ok_or(SpecError::NoTarget)?;
            namespaces.push(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")}));
        }
        NamespaceMode::Node => {}
    }
    if input.host.cgroup_trees.is_empty() && !security.privileged {
        namespaces.push(json!({"type": "cgroup"}));
    }
    Ok(namespaces)
}

fn device(device: &GrantedDevice) -> Value {
    let node = &device.node;
    json!({"path": device.container_path, "type": if node.block { "b" } else { "c" }, "major": node.major,
        "minor": node.minor, "fileMode": node.mode, "uid": node.uid, "gid": node.gid})
}

fn seccomp_profile(input: &SpecInput<'_>, security: &Security, granted: u64) -> Option<Value> {
    use v1::security_profile::ProfileType;

    match security.seccomp.as_ref()?.profile_type() {
        ProfileType::RuntimeDefault => Some(seccomp::default_profile(granted, input.host.arch)),
        ProfileType::Localhost => input.seccomp_file.cloned(),
        ProfileType::Unconfined => None,
    }
}

fn user(input: &SpecInput<'_>, security: &Security) -> Result<UserParams, SpecError> {
    let in_range = |value: i64| i32::try_from(value).ok().and_then(|id| u32::try_from(id).ok());
    let id = |value: i64| in_range(value).ok_or(SpecError::Id(value));
    let uid = security.run_as_user.as_ref().map(|uid| id(uid.value)).transpose()?;
    let gid = security.run_as_group.as_ref().map(|gid| id(gid.value)).transpose()?;
    let username = (!security.run_as_username.is_empty()).then(|| security.run_as_username.clone());
    if gid.is_some() && uid.is_none() && username.is_none() {
        return Err(SpecError::GroupWithoutUser);
    }
    let image = input.image.config().as_ref();
    let env = environment(input);
    Ok(UserParams {
        image_user: image.and_then(|image| image.user().clone()).unwrap_or_default(),
        uid,
        gid,
        username,
        supplemental_groups: security.supplemental_groups.iter().map(|gid| id(*gid)).collect::<Result<_, _>>()?,
        merge_image_groups: security.supplemental_groups_policy() == v1::SupplementalGroupsPolicy::Merge,
        home_is_set: env.iter().any(|entry| entry.starts_with("HOME=")),
    })
}

#[cfg(test)]
mod tests;
