use std::path::PathBuf;
use std::time::Duration;

use carob_grpc::{Answers, CallError, Channel, ChannelConfig, Endpoint};

use crate::paths::{
    ALLOCATE, GET_OPTIONS, GET_PREFERRED_ALLOCATION, LIST_AND_WATCH, MESSAGE_LEN_MAX, PRE_START_CONTAINER,
};
use crate::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, DevicePluginOptions, Empty, ListAndWatchResponse, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse,
};

/// Time for a connection (kubelet `pkg/kubelet/cm/devicemanager/plugin/v1beta1/client.go`, dial).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a plug-in to say what it can do, and which devices it would choose. The kubelet waits for ever.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a plug-in to make devices ready, which may take hardware a while. The kubelet waits for ever.
const ALLOCATE_TIMEOUT: Duration = Duration::from_secs(60);
/// `KubeletPreStartContainerRPCTimeoutInSecs`.
const PRE_START_TIMEOUT: Duration = Duration::from_secs(30);

/// Which of the optional calls a plug-in wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PluginOptions {
    pub pre_start: bool,
    pub preferred_allocation: bool,
}

/// A device plug-in, by its socket. Clones share the connection.
#[derive(Clone)]
pub struct DevicePlugin {
    channel: Channel,
}

impl DevicePlugin {
    pub fn at(socket: PathBuf) -> Self {
        let config = ChannelConfig { connect_timeout: CONNECT_TIMEOUT, message_len_max: MESSAGE_LEN_MAX, tls: None };
        Self { channel: Channel::new(vec![Endpoint::Unix(socket)], config) }
    }

    pub async fn options(&self) -> Result<PluginOptions, CallError> {
        let answer: DevicePluginOptions = self.channel.call(GET_OPTIONS, Empty {}, Some(ASK_TIMEOUT)).await?;
        Ok(PluginOptions {
            pre_start: answer.pre_start_required,
            preferred_allocation: answer.get_preferred_allocation_available,
        })
    }

    /// All devices, and all of them again whenever something about them changes.
    pub fn list_and_watch(&self) -> Answers<ListAndWatchResponse> {
        self.channel.server_stream(LIST_AND_WATCH, Empty {})
    }

    /// The devices that the plug-in would choose for a container; they may be any.
    pub async fn preferred(
        &self,
        available: Vec<String>,
        must_include: Vec<String>,
        count: i32,
    ) -> Result<Vec<String>, CallError> {
        let request = ContainerPreferredAllocationRequest {
            available_device_i_ds: available,
            must_include_device_i_ds: must_include,
            allocation_size: count,
        };
        let request = PreferredAllocationRequest { container_requests: vec![request] };
        let answer: PreferredAllocationResponse =
            self.channel.call(GET_PREFERRED_ALLOCATION, request, Some(ASK_TIMEOUT)).await?;
        Ok(answer.container_responses.into_iter().next().map(|one| one.device_i_ds).unwrap_or_default())
    }

    /// Makes devices ready for a container. `None`: the plug-in has said nothing about it.
    pub async fn allocate(&self, devices: Vec<String>) -> Result<Option<ContainerAllocateResponse>, CallError> {
        let request = AllocateRequest { container_requests: vec![ContainerAllocateRequest { devices_ids: devices }] };
        let answer: AllocateResponse = self.channel.call(ALLOCATE, request, Some(ALLOCATE_TIMEOUT)).await?;
        Ok(answer.container_responses.into_iter().next())
    }

    /// Is called before each start of a container, of plug-ins that want it.
    pub async fn pre_start(&self, devices: Vec<String>) -> Result<(), CallError> {
        let request = PreStartContainerRequest { devices_ids: devices };
        let answer: PreStartContainerResponse =
            self.channel.call(PRE_START_CONTAINER, request, Some(PRE_START_TIMEOUT)).await?;
        let PreStartContainerResponse {} = answer;
        Ok(())
    }
}
