//! What the one-shot program is told, as JSON in a file that it inherits, and what it answers; and what a shim is told when
//! it starts, as JSON in the first packet on its standard input.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use carob_sys::cgroup::Layout;
use carob_sys::packet::{self, PACKET_BYTES_MAX};
use serde::{Deserialize, Serialize};

/// The users and groups of a user namespace: those from 0 to `count` are, on the host, the ones from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    pub first: u32,
    pub count: u32,
}

impl IdRange {
    /// What a number in the namespace is on the host.
    pub fn on_host(self, id: u32) -> Option<u32> {
        if id < self.count { self.first.checked_add(id) } else { None }
    }
}

/// A user namespace that a container is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    pub ids: IdRange,
    /// Where it is found: in procfs, below its first process.
    pub path: PathBuf,
}

/// Tells a shim that is about to start where this machine's groups are. By the mount table, which holds the mounts of every
/// Pod, it would take longer to find them than to do all else that a start takes.
pub fn send_layout(socket: impl AsFd, layout: &Layout) -> io::Result<()> {
    packet::send(socket, &serde_json::to_vec(layout)?, &[])
}

/// What [`send_layout`] has sent.
pub fn receive_layout(socket: impl AsFd) -> io::Result<Layout> {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    let received = packet::receive(socket, &mut buffer)?;
    let (length, _) = received.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(serde_json::from_slice(&buffer[..length])?)
}

/// Starts the infra process of a Pod in its new namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InfraParams {
    /// Where this machine's groups are.
    pub layout: Layout,
    /// The Pod's: the infra process has a group of its own in the unified tree only, in which it is born.
    pub cgroup: PathBuf,
    /// Network namespace of its own, or the host's.
    pub new_network: bool,
    pub new_ipc: bool,
    pub new_uts: bool,
    /// The containers share a PID namespace, in which the infra process is PID 1.
    pub new_pid: bool,
    /// A user namespace of its own, which then owns the others.
    pub user_ids: Option<IdRange>,
    pub hostname: Option<String>,
    /// In the kernel's spelling with dots, applied inside the namespaces.
    pub sysctls: Vec<(String, String)>,
    pub oom_score_adj: i32,
    /// An empty directory that may be mounted over.
    pub root: PathBuf,
}

/// Creates a container, whose first process then waits to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateParams {
    /// Where this machine's groups are.
    pub layout: Layout,
    pub id: String,
    /// The sandbox's, which the bundle, the library's state and the files of all its containers are below.
    pub directory: PathBuf,
    /// The directory with `config.json`, which is completed and rewritten, and in which the socket to start it appears.
    pub bundle: PathBuf,
    /// The directory under which the container library keeps its state, one directory a container.
    pub state_root: PathBuf,
    pub cgroup: PathBuf,
    /// The container has no use for other groups than its own: no volume of it holds cgroup filesystems, and it is not
    /// privileged. It is then made in a mount tree without those of the host, and without all else that it has no use for.
    pub own_groups_only: bool,
    /// Groups that the container is shown below `/sys/fs/cgroup`, read-only: each by its name there and where it is.
    pub shown_groups: Vec<(String, PathBuf)>,
    /// Where the root filesystem is mounted, in a mount namespace of its own; below it at `root` where there is something
    /// `staged`.
    pub rootfs: PathBuf,
    pub layers: Layers,
    /// Mounts that are made for the container to bind: each is at `rootfs`, by its number in this list.
    #[serde(default)]
    pub staged: Vec<Staged>,
    pub user: UserParams,
    pub user_namespace: Option<UserNamespace>,
    pub terminal: bool,
    /// Another OCI runtime that makes the container, in place of the library.
    #[serde(default)]
    pub runtime: Option<PathBuf>,
}

/// The parts of a root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layers {
    /// Topmost first.
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// A file system that is laid together for one mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Staged {
    /// Directories of an image, two at least, topmost first. Nothing is written to them.
    Image { lower: Vec<PathBuf> },
    /// What the container's root has at `path`, its owner and mode included; what is written goes into `upper`.
    Volume { path: PathBuf, upper: PathBuf, work: PathBuf },
    /// A copy of a mount of the host. `mapped`: its files are shown as those of the same users in the container's user
    /// namespace.
    Bind { source: PathBuf, mapped: bool },
}

/// Who a container's processes are, before names are looked up in its root filesystem.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserParams {
    /// `user[:group]` of the image, names or numbers.
    pub image_user: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub username: Option<String>,
    pub supplemental_groups: Vec<u32>,
    /// Whether the groups that the image's `/etc/group` gives the user count as well.
    pub merge_image_groups: bool,
    /// `HOME` is already set by the container's own environment.
    pub home_is_set: bool,
}

/// Who they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub home: String,
}

/// Runs a command in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecParams {
    /// Where this machine's groups are.
    pub layout: Layout,
    pub cgroup: PathBuf,
    /// The container's first process, by host PID.
    pub pid: i32,
    /// The `config.json` of the container: user, environment, capabilities and seccomp profile are taken from it.
    pub config: PathBuf,
    pub arguments: Vec<String>,
    pub terminal: bool,
    /// The container's own user namespace.
    pub user_ids: Option<IdRange>,
    /// Do what `kubectl cp` runs, where the image has no program for it.
    #[serde(default)]
    pub serves_copies: bool,
}
