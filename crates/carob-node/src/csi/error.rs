use std::io;

use carob_csi::DriverError;

use crate::files::FilesError;
use crate::objects::FetchError;

/// Why a volume of a driver cannot be used, in the kubelet's words where it has some.
#[derive(Debug, thiserror::Error)]
pub enum CsiError {
    #[error(
        "kubernetes.io/csi: {step} failed to get CSI client: driver name {driver} not found in the list of registered CSI \
         drivers"
    )]
    NoDriver { step: &'static str, driver: String },
    #[error(
        "kubernetes.io/csi: mounter.SetupAt failed to check volume lifecycle mode: volume mode {mode:?} not supported by driver {driver} ({why})"
    )]
    Mode { mode: &'static str, driver: String, why: String },
    #[error("volume {handle} is not attached for volume attachment {attachment}")]
    NotAttached { handle: String, attachment: String },
    #[error("volume attachment is being deleted")]
    Detaching,
    /// The attacher's own words.
    #[error("{0}")]
    Attach(String),
    #[error("fetching {what} {namespace}/{name} failed: {why}")]
    Secret { what: &'static str, namespace: String, name: String, why: String },
    #[error("{step} failed")]
    Driver {
        step: &'static str,
        #[source]
        source: DriverError,
    },
    #[error("the driver {driver} has not answered {call} within {seconds} s; it is still waited for")]
    Slow { driver: String, call: &'static str, seconds: u64 },
    #[error("applyFSGroup failed for vol {handle}")]
    Group {
        handle: String,
        #[source]
        source: io::Error,
    },
    #[error("the driver {driver} has published no {wanted} at {path}")]
    NotPublished { driver: String, wanted: &'static str, path: String },
    #[error("NodeExpand is not supported by the CSI driver {0}")]
    NotExpandable(String),
    #[error("the pod ended meanwhile")]
    Ended,
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("keep a record of the volume")]
    Io(#[from] io::Error),
}

impl CsiError {
    pub(super) fn driver(step: &'static str) -> impl FnOnce(DriverError) -> Self {
        move |source| Self::Driver { step, source }
    }

    /// Whether the driver has said that nothing of the operation is left.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Driver { source, .. } if source.is_final())
    }

    /// The reason of the event.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Driver { step: EXPAND, .. } | Self::NotExpandable(_) => "VolumeResizeFailed",
            Self::Driver { step: MAP, .. } => "FailedMapVolume",
            _ => "FailedMount",
        }
    }

    /// What a kubelet's event calls the step.
    pub fn stage(&self) -> &'static str {
        match self {
            Self::NotAttached { .. } | Self::Detaching | Self::Attach(_) => "MountVolume.WaitForAttach",
            Self::Slow { call: ATTACH, .. } => "MountVolume.WaitForAttach",
            Self::Driver { step: STAGE, .. } | Self::Slow { call: "NodeStageVolume", .. } => "MountVolume.MountDevice",
            Self::Driver { step: MAP, .. } => "MapVolume.MapPodDevice",
            Self::Driver { step: EXPAND, .. } | Self::NotExpandable(_) => "MountVolume.NodeExpandVolume",
            _ => "MountVolume.SetUp",
        }
    }
}

/// What is waited for in place of a call.
pub(super) const ATTACH: &str = "the attachment of the volume";
pub(super) const STAGE: &str = "attacher.MountDevice";
pub(super) const MAP: &str = "blockMapper.publishVolumeForBlock";
pub(super) const EXPAND: &str = "Expander.NodeExpand";
pub(super) const SET_UP: &str = "mounter.SetUpAt";
