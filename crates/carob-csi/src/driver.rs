use std::path::PathBuf;
use std::time::Duration;

use carob_grpc::{Channel, ChannelConfig, Endpoint};
use prost::Message;
use tokio::sync::OnceCell;

use crate::error::DriverError;
use crate::paths::{MESSAGE_LEN_MAX, node};
use crate::v1;
use crate::v1::node_service_capability::{self, rpc};

/// Time for each call (`pkg/volume/csi`, csiTimeout).
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a driver's node service can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub stage: bool,
    pub stats: bool,
    pub expand: bool,
    /// Tells the two access modes of a single node apart.
    pub single_node_multi_writer: bool,
    /// Gives a volume's files to a group itself.
    pub mount_group: bool,
}

/// A driver behind its socket. Connects with the first call, and again when that is needed.
pub struct Driver {
    channel: Channel,
    capabilities: OnceCell<Capabilities>,
}

impl Driver {
    pub fn at(socket: PathBuf) -> Self {
        let config = ChannelConfig { connect_timeout: CONNECT_TIMEOUT, message_len_max: MESSAGE_LEN_MAX, tls: None };
        Self { channel: Channel::new(vec![Endpoint::Unix(socket)], config), capabilities: OnceCell::new() }
    }

    async fn ask<Q, A>(&self, path: &'static str, request: Q) -> Result<A, DriverError>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        Ok(self.channel.call(path, request, Some(CALL_TIMEOUT)).await?)
    }

    /// Asked once: a driver that is replaced registers again.
    pub async fn capabilities(&self) -> Result<Capabilities, DriverError> {
        let ask = || async {
            let answer: v1::NodeGetCapabilitiesResponse =
                self.ask(node::GET_CAPABILITIES, v1::NodeGetCapabilitiesRequest {}).await?;
            Ok::<_, DriverError>(capabilities(&answer))
        };
        self.capabilities.get_or_try_init(ask).await.copied()
    }

    pub async fn node_info(&self) -> Result<v1::NodeGetInfoResponse, DriverError> {
        self.ask(node::GET_INFO, v1::NodeGetInfoRequest {}).await
    }

    pub async fn stage(&self, request: v1::NodeStageVolumeRequest) -> Result<(), DriverError> {
        let v1::NodeStageVolumeResponse {} = self.ask(node::STAGE_VOLUME, request).await?;
        Ok(())
    }

    pub async fn unstage(&self, volume_id: String, staging_target_path: String) -> Result<(), DriverError> {
        let request = v1::NodeUnstageVolumeRequest { volume_id, staging_target_path };
        let v1::NodeUnstageVolumeResponse {} = self.ask(node::UNSTAGE_VOLUME, request).await?;
        Ok(())
    }

    pub async fn publish(&self, request: v1::NodePublishVolumeRequest) -> Result<(), DriverError> {
        let v1::NodePublishVolumeResponse {} = self.ask(node::PUBLISH_VOLUME, request).await?;
        Ok(())
    }

    pub async fn unpublish(&self, volume_id: String, target_path: String) -> Result<(), DriverError> {
        let request = v1::NodeUnpublishVolumeRequest { volume_id, target_path };
        let v1::NodeUnpublishVolumeResponse {} = self.ask(node::UNPUBLISH_VOLUME, request).await?;
        Ok(())
    }

    pub async fn expand(&self, request: v1::NodeExpandVolumeRequest) -> Result<i64, DriverError> {
        let answer: v1::NodeExpandVolumeResponse = self.ask(node::EXPAND_VOLUME, request).await?;
        Ok(answer.capacity_bytes)
    }

    pub async fn stats(
        &self,
        volume_id: String,
        volume_path: String,
    ) -> Result<v1::NodeGetVolumeStatsResponse, DriverError> {
        let request = v1::NodeGetVolumeStatsRequest { volume_id, volume_path, staging_target_path: String::new() };
        self.ask(node::GET_VOLUME_STATS, request).await
    }
}

/// Capabilities that nobody here knows are passed over.
fn capabilities(answer: &v1::NodeGetCapabilitiesResponse) -> Capabilities {
    let mut found = Capabilities::default();
    for capability in &answer.capabilities {
        let Some(node_service_capability::Type::Rpc(rpc)) = &capability.r#type else { continue };
        match rpc.r#type() {
            rpc::Type::StageUnstageVolume => found.stage = true,
            rpc::Type::GetVolumeStats => found.stats = true,
            rpc::Type::ExpandVolume => found.expand = true,
            rpc::Type::SingleNodeMultiWriter => found.single_node_multi_writer = true,
            rpc::Type::VolumeMountGroup => found.mount_group = true,
            rpc::Type::Unknown | rpc::Type::VolumeCondition => {}
        }
    }
    found
}
