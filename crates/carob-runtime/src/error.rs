//! What can go wrong, and which status of CRI that is.

use std::io;
use std::path::PathBuf;

use carob_cri::{Code, CriError};
use carob_sys::cgroup::CgroupError;

use crate::network::NetworkError;
use crate::record::RecordError;
use crate::shim::ShimError;
use crate::spec::SpecError;
use crate::user_namespace::UserNamespaceError;

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("the request has no {0}")]
    Missing(&'static str),
    #[error("{0}")]
    Unsupported(&'static str),
    // The words of containerd, which people and tools know.
    #[error("failed to get sandbox runtime: no runtime for {0:?} is configured")]
    Handler(String),
    #[error("run {program}", program = program.display())]
    OtherRuntime { program: PathBuf, source: io::Error },
    #[error("sandbox {0:?} not found")]
    NoSandbox(String),
    #[error("container {0:?} not found")]
    NoContainer(String),
    #[error("sandbox {0} is not running")]
    SandboxNotReady(String),
    #[error("container {id} is {state}")]
    State { id: String, state: &'static str },
    #[error("image {0:?} is not present")]
    NoImage(String),
    #[error("{path:?} of image {image:?}: {reason}")]
    ImagePath { image: String, path: String, reason: &'static str },
    #[error("the container's specification")]
    Spec(#[from] SpecError),
    #[error(transparent)]
    UserNamespace(#[from] UserNamespaceError),
    #[error("control group")]
    Cgroup(#[from] CgroupError),
    #[error("record")]
    Record(#[from] RecordError),
    #[error("shim of sandbox {sandbox}")]
    Shim { sandbox: String, source: ShimError },
    #[error("the shim of sandbox {sandbox} speaks version {version}, this program {ours}")]
    ShimVersion { sandbox: String, version: u16, ours: u16 },
    #[error("network of sandbox {sandbox}")]
    Network { sandbox: String, source: NetworkError },
    #[error("make the network namespace of sandbox {sandbox}")]
    NetworkNamespace { sandbox: String, source: io::Error },
    #[error("{operation}")]
    WholeNetwork { operation: &'static str, source: NetworkError },
    #[error("{operation} {path}", path = path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("unpack the embedded programs")]
    Programs(#[source] io::Error),
    #[error("parameters of a process")]
    Parameters(#[source] serde_json::Error),
    #[error("hand over {0}")]
    Descriptors(&'static str, #[source] io::Error),
    // The words of containerd and runc, which people and tools know.
    #[error(
        "failed to exec in container: failed to start exec {exec:?}: OCI runtime exec failed: exec failed: unable to \
         start container process"
    )]
    Exec { exec: String, source: ShimError },
    #[error("read the answer of the one-shot program")]
    Answer(#[source] serde_json::Error),
    #[error("read the seccomp profile {path}", path = path.display())]
    SeccompFile { path: PathBuf, source: serde_json::Error },
    /// As the container's maker put it.
    #[error("{0}")]
    NotStarted(String),
    #[error("start container {id}")]
    Start { id: String, source: io::Error },
    #[error("{port} in the network of sandbox {sandbox}")]
    PortForward { sandbox: String, port: u16, source: io::Error },
    #[error("command timed out after {0} s")]
    ExecTimeout(i64),
    #[error("the process was lost with its shim")]
    Lost,
    #[error("no more than {0} events wait for a reader")]
    EventsMissed(u64),
    #[error("collect images")]
    Images(#[source] carob_image::StoreError),
    #[error("a task of the runtime was ended")]
    Task(#[from] tokio::task::JoinError),
}

impl RuntimeError {
    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { operation, path, source }
    }

    fn code(&self) -> Code {
        match self {
            Self::Missing(_)
            | Self::Handler(_)
            | Self::Spec(_)
            | Self::UserNamespace(_)
            | Self::SeccompFile { .. }
            | Self::ImagePath { .. } => Code::InvalidArgument,
            Self::Unsupported(_) => Code::Unimplemented,
            Self::NoSandbox(_) | Self::NoContainer(_) | Self::NoImage(_) => Code::NotFound,
            Self::SandboxNotReady(_) | Self::State { .. } => Code::FailedPrecondition,
            Self::ExecTimeout(_) => Code::DeadlineExceeded,
            Self::Lost | Self::PortForward { .. } => Code::Unavailable,
            Self::EventsMissed(_) => Code::DataLoss,
            Self::Cgroup(_)
            | Self::Record(_)
            | Self::Shim { .. }
            | Self::ShimVersion { .. }
            | Self::Network { .. }
            | Self::NetworkNamespace { .. }
            | Self::WholeNetwork { .. }
            | Self::File { .. }
            | Self::Programs(_)
            | Self::Parameters(_)
            | Self::Descriptors(..)
            | Self::Exec { .. }
            | Self::Answer(_)
            | Self::OtherRuntime { .. }
            | Self::NotStarted(_)
            | Self::Images(_)
            | Self::Start { .. }
            | Self::Task(_) => Code::Internal,
        }
    }
}

impl From<RuntimeError> for CriError {
    fn from(error: RuntimeError) -> Self {
        Self::new(error.code(), carob_kit::chain(&error).to_string())
    }
}
