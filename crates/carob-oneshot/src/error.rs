//! What can go wrong, named by the operation.

use std::io;
use std::path::PathBuf;

use carob_sys::cgroup::CgroupError;
use libcontainer::error::LibcontainerError;

pub(crate) type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0:?} is nothing this program does")]
    Action(String),
    #[error("reset signals")]
    Signals(#[source] io::Error),
    #[error("read the parameters")]
    ReadParameters(#[source] io::Error),
    #[error("understand the parameters")]
    Parameters(#[source] serde_json::Error),
    #[error("user namespace")]
    UserNamespace(#[source] io::Error),
    #[error("the user namespace has no id {id}: it has {count}")]
    NotMapped { id: u32, count: u32 },
    #[error("map the owners of the files in {path}, whose file system may not support id-mapped mounts", path = path.display())]
    MapMount { path: PathBuf, source: io::Error },
    #[error("enter new namespaces")]
    Unshare(#[source] io::Error),
    #[error("enter the pod's network namespace")]
    JoinNetwork(#[source] io::Error),
    #[error("enter the namespaces of process {pid}")]
    Enter { pid: i32, source: io::Error },
    #[error("join the control group")]
    Cgroup(#[from] CgroupError),
    #[error("set the out-of-memory score to {score}")]
    OomScore { score: i32, source: io::Error },
    #[error("set the host name to {name:?}")]
    Hostname { name: String, source: io::Error },
    #[error("set sysctl {name} to {value:?}")]
    Sysctl { name: String, value: String, source: io::Error },
    #[error("sysctl {0:?} is not a name")]
    SysctlName(String),
    #[error("mount {what} at {target}", target = target.display())]
    Mount { what: &'static str, target: PathBuf, source: io::Error },
    #[error("read {path} of the image", path = path.display())]
    ReadImageFile { path: PathBuf, source: io::Error },
    #[error("{path} of the image is over {max} bytes", path = path.display())]
    ImageFileTooLong { path: PathBuf, max: u64 },
    #[error(transparent)]
    User(#[from] crate::user::UserError),
    #[error("read the container's configuration {path}", path = path.display())]
    ReadConfig { path: PathBuf, source: io::Error },
    #[error("understand the container's configuration {path}", path = path.display())]
    Config { path: PathBuf, source: serde_json::Error },
    #[error("write the container's configuration {path}", path = path.display())]
    WriteConfig { path: PathBuf, source: io::Error },
    #[error("the container's configuration has no {0}")]
    ConfigLacks(&'static str),
    #[error("hand the standard streams to user {uid}")]
    Streams { uid: u32, source: io::Error },
    #[error("create the container")]
    Create(#[source] LibcontainerError),
    #[error("{cause}")]
    Caused { cause: String, source: LibcontainerError },
    // The words of containerd's shim, but for its name.
    #[error("OCI runtime create failed: {name} create failed: {message}")]
    OtherRuntime { name: String, message: String },
    #[error("collect what the container library reports")]
    Causes(#[source] io::Error),
    #[error("make {path} in the container", path = path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("begin a session keyring")]
    Keyring(#[source] io::Error),
    #[error("the container library made no process")]
    NoProcess,
    #[error("take the container's terminal")]
    Console(#[source] io::Error),
    #[error("open a terminal")]
    Terminal(#[source] io::Error),
    #[error("fork")]
    Fork(#[source] io::Error),
    #[error("read how the start of the command went")]
    ReadFailure(#[source] io::Error),
    #[error("{0}")]
    Child(String),
    #[error("set resource limit {0}")]
    Limit(String, #[source] io::Error),
    #[error("become user {uid}, group {gid}")]
    Become { uid: u32, gid: u32, source: io::Error },
    #[error("set capabilities")]
    Capabilities(#[source] io::Error),
    #[error("rule out new privileges")]
    NoNewPrivileges(#[source] io::Error),
    #[error("load the seccomp profile")]
    Seccomp(#[source] libcontainer::seccomp::SeccompError),
    #[error("enter directory {path}", path = path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("close other files")]
    CloseFiles(#[source] io::Error),
    // The words of Go's os/exec, which people and tools know from runc.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotFound(String),
    #[error("exec: {program:?}")]
    Execute { program: String, source: io::Error },
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        // The container library repeats its causes in its own words.
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}
