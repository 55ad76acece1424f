//! The paths of the calls.

/// Bytes of one message (the default of Go's library, which most drivers use).
pub const MESSAGE_LEN_MAX: usize = 4 << 20;

/// What plug-ins offer to the kubelet.
pub mod registration {
    pub const GET_INFO: &str = "/pluginregistration.Registration/GetInfo";
    pub const NOTIFY_STATUS: &str = "/pluginregistration.Registration/NotifyRegistrationStatus";
}

pub mod node {
    pub const STAGE_VOLUME: &str = "/csi.v1.Node/NodeStageVolume";
    pub const UNSTAGE_VOLUME: &str = "/csi.v1.Node/NodeUnstageVolume";
    pub const PUBLISH_VOLUME: &str = "/csi.v1.Node/NodePublishVolume";
    pub const UNPUBLISH_VOLUME: &str = "/csi.v1.Node/NodeUnpublishVolume";
    pub const GET_VOLUME_STATS: &str = "/csi.v1.Node/NodeGetVolumeStats";
    pub const EXPAND_VOLUME: &str = "/csi.v1.Node/NodeExpandVolume";
    pub const GET_CAPABILITIES: &str = "/csi.v1.Node/NodeGetCapabilities";
    pub const GET_INFO: &str = "/csi.v1.Node/NodeGetInfo";
}
