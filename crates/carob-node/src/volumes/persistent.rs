//! Makes the volume behind a claim ready for a Pod: a directory of this machine as it is, others mounted.

use std::io;
use std::path::{Path, PathBuf};

use carob_sys::disks::Disks;
use fs_err as fs;
use k8s_openapi::api::core::v1::{NFSVolumeSource, PersistentVolumeSpec};

use super::{VolumeError, formatted, host_path};

/// Bytes of what a mount helper says that are told.
const WORDS_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum PersistentError {
    #[error("path {0:?} does not exist")]
    NoPath(String),
    #[error("path {path:?} is {what}")]
    Kind { path: String, what: &'static str },
    #[error("mount failed: {status}\nMounting command: mount\nMounting arguments: {arguments}\nOutput: {output}")]
    Mount { status: String, arguments: String, output: String },
    #[error(transparent)]
    Format(#[from] formatted::FormatError),
    #[error("run the mount command")]
    Command(#[source] io::Error),
    #[error("only local volumes can be block devices on this node")]
    NoDevice,
    #[error("volumes of the kind {0} are not supported by this node")]
    Unsupported(String),
}

/// Where the volume's content is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Place {
    /// A path of this machine: a directory, or a device that is wanted as one.
    Local {
        path: PathBuf,
        kind: Option<String>,
        options: Vec<String>,
    },
    HostPath {
        path: PathBuf,
        type_: String,
    },
    Nfs {
        source: NFSVolumeSource,
        options: Vec<String>,
    },
}

/// Pure.
pub(super) fn place(spec: &PersistentVolumeSpec) -> Result<Place, PersistentError> {
    if let Some(source) = &spec.local {
        let options = spec.mount_options.clone().unwrap_or_default();
        return Ok(Place::Local { path: PathBuf::from(&source.path), kind: source.fs_type.clone(), options });
    }
    if let Some(source) = &spec.host_path {
        let type_ = source.type_.clone().unwrap_or_default();
        return Ok(Place::HostPath { path: PathBuf::from(&source.path), type_ });
    }
    if let Some(source) = &spec.nfs {
        return Ok(Place::Nfs { source: source.clone(), options: spec.mount_options.clone().unwrap_or_default() });
    }
    let fields = serde_json::to_value(spec).unwrap_or_default();
    let kinds = [
        "awsElasticBlockStore",
        "azureDisk",
        "azureFile",
        "cephfs",
        "cinder",
        "fc",
        "flexVolume",
        "flocker",
        "gcePersistentDisk",
        "glusterfs",
        "iscsi",
        "photonPersistentDisk",
        "portworxVolume",
        "quobyte",
        "rbd",
        "scaleIO",
        "storageos",
        "vsphereVolume",
    ];
    let kind = kinds.into_iter().find(|kind| !fields[*kind].is_null()).unwrap_or("unknown");
    Err(PersistentError::Unsupported(kind.to_owned()))
}

/// Checks or mounts. Answers the path that containers are shown; `target` exists then. May block.
pub(super) fn prepare(
    disks: &dyn Disks,
    place: &Place,
    target: &Path,
    read_only: bool,
) -> Result<PathBuf, VolumeError> {
    match place {
        Place::Local { path, kind, options } => {
            let shown = path.display().to_string();
            let meta = match fs::metadata(path) {
                Ok(meta) => meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(PersistentError::NoPath(shown).into());
                }
                Err(error) => return Err(error.into()),
            };
            if disks.is_device(path)? {
                let wish = formatted::Wish { device: path, kind: kind.as_deref(), options };
                formatted::mount(disks, &wish, target).map_err(PersistentError::from)?;
                return Ok(target.to_owned());
            }
            if !meta.is_dir() {
                let what = "neither a directory nor a block device";
                return Err(PersistentError::Kind { path: shown, what }.into());
            }
            fs::create_dir_all(target)?;
            Ok(path.clone())
        }
        Place::HostPath { path, type_ } => {
            host_path::prepare(path, type_)?;
            fs::create_dir_all(target)?;
            Ok(path.clone())
        }
        Place::Nfs { source, options } => {
            mount_nfs(disks, source, options, target, read_only)?;
            Ok(target.to_owned())
        }
    }
}

/// Mounts an NFS export with the machine's own helper, which knows its options.
pub(super) fn mount_nfs(
    disks: &dyn Disks,
    source: &NFSVolumeSource,
    options: &[String],
    target: &Path,
    read_only: bool,
) -> Result<(), VolumeError> {
    fs::create_dir_all(target)?;
    if disks.is_mount_point(target)? {
        return Ok(());
    }
    let mut all: Vec<&str> = options.iter().map(String::as_str).collect();
    if read_only || source.read_only == Some(true) {
        all.push("ro");
    }
    let (options, export, place) =
        (all.join(","), format!("{}:{}", source.server, source.path), target.display().to_string());
    let mut arguments = vec!["-t", "nfs"];
    if !all.is_empty() {
        arguments.extend(["-o", &options]);
    }
    arguments.extend([export.as_str(), &place]);
    let output = disks.run("mount", &arguments).map_err(PersistentError::Command)?;
    if output.status.success() {
        return Ok(());
    }
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words[..words.len().min(WORDS_MAX)]).trim().to_owned();
    let status = output.status.to_string();
    Err(PersistentError::Mount { status, arguments: arguments.join(" "), output: words }.into())
}
