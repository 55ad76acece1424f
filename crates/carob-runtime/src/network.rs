//! What the runtime needs of a Pod network, so that CNI plug-ins can stand in for carob's own.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use carob_cni::{CniError, CniNetwork};
use carob_net::{AttachRequest, Attachment, NetError, PodNetwork};
use ipnet::IpNet;

/// One failed operation of the network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    Own(#[from] NetError),
    /// Boxed: it is large, and every error of the runtime would be.
    #[error(transparent)]
    Cni(Box<CniError>),
}

impl From<CniError> for NetworkError {
    fn from(error: CniError) -> Self {
        Self::Cni(Box::new(error))
    }
}

/// Joins sandboxes to the Pod network.
#[async_trait]
pub trait Network: Send + Sync {
    /// Whether a namespace is attached that no process is in yet and whose path goes with the call.
    fn attaches_early(&self) -> bool {
        false
    }

    async fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetworkError>;

    /// Idempotent.
    async fn detach(&self, sandbox_id: &str) -> Result<(), NetworkError>;

    /// Detaches every sandbox that is not among these.
    async fn sweep(&self, live: &BTreeSet<String>) -> Result<(), NetworkError>;

    async fn set_pod_cidrs(&self, pod_cidrs: Vec<IpNet>) -> Result<(), NetworkError>;

    /// Takes all of it off the machine. Idempotent; the next instance makes it again.
    async fn remove(&self) -> Result<(), NetworkError>;

    /// Why no sandbox can be attached, where that is so.
    async fn unready(&self) -> Option<String>;
}

#[async_trait]
impl Network for PodNetwork {
    fn attaches_early(&self) -> bool {
        true
    }

    async fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetworkError> {
        Ok(self.attach(request).await?)
    }

    async fn detach(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        Ok(self.detach(sandbox_id).await?)
    }

    async fn sweep(&self, live: &BTreeSet<String>) -> Result<(), NetworkError> {
        let report = self.sweep(live).await?;
        if !report.sandboxes.is_empty() || !report.interfaces.is_empty() {
            tracing::info!(?report, "removed what gone sandboxes left of the network");
        }
        Ok(())
    }

    async fn set_pod_cidrs(&self, pod_cidrs: Vec<IpNet>) -> Result<(), NetworkError> {
        Ok(self.set_pod_cidrs(pod_cidrs).await?)
    }

    async fn remove(&self) -> Result<(), NetworkError> {
        Ok(self.remove().await?)
    }

    async fn unready(&self) -> Option<String> {
        self.unready()
    }
}

#[async_trait]
impl Network for CniNetwork {
    async fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetworkError> {
        Ok(self.attach(request).await?)
    }

    async fn detach(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        Ok(self.detach(sandbox_id).await?)
    }

    async fn sweep(&self, live: &BTreeSet<String>) -> Result<(), NetworkError> {
        Ok(self.sweep(live).await?)
    }

    /// Plug-ins have addresses of their own, or read the Node.
    async fn set_pod_cidrs(&self, _pod_cidrs: Vec<IpNet>) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn remove(&self) -> Result<(), NetworkError> {
        Ok(self.remove().await?)
    }

    async fn unready(&self) -> Option<String> {
        self.unready().await
    }
}

/// A network, and those that were used before it: sandboxes that they have attached are theirs to detach.
pub struct WithFormer {
    pub current: Arc<dyn Network>,
    pub former: Vec<Arc<dyn Network>>,
}

impl WithFormer {
    fn all(&self) -> impl Iterator<Item = &Arc<dyn Network>> {
        [&self.current].into_iter().chain(&self.former)
    }
}

#[async_trait]
impl Network for WithFormer {
    fn attaches_early(&self) -> bool {
        self.current.attaches_early()
    }

    async fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetworkError> {
        self.current.attach(request).await
    }

    async fn detach(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        for network in self.all() {
            network.detach(sandbox_id).await?;
        }
        Ok(())
    }

    async fn sweep(&self, live: &BTreeSet<String>) -> Result<(), NetworkError> {
        for network in self.all() {
            network.sweep(live).await?;
        }
        Ok(())
    }

    async fn set_pod_cidrs(&self, pod_cidrs: Vec<IpNet>) -> Result<(), NetworkError> {
        self.current.set_pod_cidrs(pod_cidrs).await
    }

    async fn remove(&self) -> Result<(), NetworkError> {
        for network in self.all() {
            network.remove().await?;
        }
        Ok(())
    }

    async fn unready(&self) -> Option<String> {
        self.current.unready().await
    }
}
