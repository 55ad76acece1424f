use std::path::PathBuf;
use std::time::Duration;

use carob_grpc::{Channel, ChannelConfig, Endpoint};

use crate::error::DriverError;
use crate::paths::{MESSAGE_LEN_MAX, registration};
use crate::plugin::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

/// Times of the kubelet's `pkg/kubelet/pluginmanager/operationexecutor`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const INFO_TIMEOUT: Duration = Duration::from_secs(1);
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);

/// A plug-in that asks to be registered, by its socket.
pub struct Registration {
    channel: Channel,
}

impl Registration {
    pub fn at(socket: PathBuf) -> Self {
        let config = ChannelConfig { connect_timeout: CONNECT_TIMEOUT, message_len_max: MESSAGE_LEN_MAX, tls: None };
        Self { channel: Channel::new(vec![Endpoint::Unix(socket)], config) }
    }

    pub async fn info(&self) -> Result<PluginInfo, DriverError> {
        Ok(self.channel.call(registration::GET_INFO, InfoRequest {}, Some(INFO_TIMEOUT)).await?)
    }

    /// Says how the registration went; `None` for well.
    pub async fn notify(&self, error: Option<String>) -> Result<(), DriverError> {
        let status = RegistrationStatus { plugin_registered: error.is_none(), error: error.unwrap_or_default() };
        let answer: RegistrationStatusResponse =
            self.channel.call(registration::NOTIFY_STATUS, status, Some(NOTIFY_TIMEOUT)).await?;
        let RegistrationStatusResponse {} = answer;
        Ok(())
    }
}
