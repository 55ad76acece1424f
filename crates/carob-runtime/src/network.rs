//! What the runtime needs of a Pod network, so that CNI plugins can stand in for carob's own.

use std::collections::BTreeSet;

use async_trait::async_trait;
use carob_net::{AttachRequest, Attachment, NetError, PodNetwork};
use ipnet::IpNet;

/// Joins sandboxes to the Pod network.
#[async_trait]
pub trait Network: Send + Sync {
    async fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetError>;

    /// Idempotent.
    async fn detach(&self, sandbox_id: &str) -> Result<(), NetError>;

    /// Detaches every sandbox that is not among these.
    async fn sweep(&self, live: &BTreeSet<String>) -> Result<(), NetError>;

    async fn set_pod_cidrs(&self, pod_cidrs: Vec<IpNet>) -> Result<(), NetError>;

    /// Takes all of it off the machine. Idempotent; the next instance makes it anew.
    async fn remove(&self) -> Result<(), NetError>;

    /// Why no sandbox can be attached, where that is so.
    fn unready(&self) -> Option<String>;
}

#[async_trait]
impl Network for PodNetwork {
    async fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetError> {
        self.attach(request).await
    }

    async fn detach(&self, sandbox_id: &str) -> Result<(), NetError> {
        self.detach(sandbox_id).await
    }

    async fn sweep(&self, live: &BTreeSet<String>) -> Result<(), NetError> {
        let report = self.sweep(live).await?;
        if !report.sandboxes.is_empty() || !report.interfaces.is_empty() {
            tracing::info!(?report, "removed what gone sandboxes left of the network");
        }
        Ok(())
    }

    async fn set_pod_cidrs(&self, pod_cidrs: Vec<IpNet>) -> Result<(), NetError> {
        self.set_pod_cidrs(pod_cidrs).await
    }

    async fn remove(&self) -> Result<(), NetError> {
        self.remove().await
    }

    fn unready(&self) -> Option<String> {
        self.unready()
    }
}
