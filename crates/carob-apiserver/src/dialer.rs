//! The way from the API server to nodes and Pods: one trait, so that a tunnel can take the place of the network.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use carob_streams::reverse::OpenError;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tunnels::Tunnels;

/// Time to open a connection, TLS included (kube-apiserver `--kubelet-timeout` is 5 s for requests; dialling has 30).
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection that was opened.
pub trait NodeStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> NodeStream for T {}

/// Where a node's kubelet API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddress {
    pub node: String,
    pub ip: IpAddr,
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("dial {address}")]
    Connect {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("dial {address}: no answer within {} s", DIAL_TIMEOUT.as_secs())]
    Timeout { address: SocketAddr },
    #[error("this API server has no client certificate to show to nodes")]
    NoTls,
    #[error("reach {node} through its tunnel")]
    Tunnel {
        node: String,
        #[source]
        source: OpenError,
    },
    #[error("prepare TLS")]
    Tls(#[source] rustls::Error),
}

/// Opens connections to nodes and to Pods.
#[async_trait]
pub trait NodeDialer: Send + Sync {
    /// A connection to a node's kubelet API, on which HTTP/1.1 can be spoken at once: TLS is done.
    async fn dial_node(&self, address: &NodeAddress) -> Result<Box<dyn NodeStream>, DialError>;

    /// A plain connection to a Pod's port.
    async fn dial_pod(&self, address: SocketAddr) -> Result<Box<dyn NodeStream>, DialError>;
}

/// Dials over the network that the process is in, and nodes that keep a tunnel to this server through that.
pub struct NetworkDialer {
    tls: Option<TlsConnector>,
    tunnels: Arc<Tunnels>,
}

impl NetworkDialer {
    /// `tls` shows the API server's client certificate and trusts the authority that signs nodes' serving certificates.
    pub fn new(tls: Arc<ClientConfig>, tunnels: Arc<Tunnels>) -> Self {
        Self { tls: Some(TlsConnector::from(tls)), tunnels }
    }

    /// Reaches Pods only.
    pub fn without_tls() -> Self {
        Self { tls: None, tunnels: Arc::default() }
    }
}

#[async_trait]
impl NodeDialer for NetworkDialer {
    async fn dial_node(&self, address: &NodeAddress) -> Result<Box<dyn NodeStream>, DialError> {
        let tls = self.tls.as_ref().ok_or(DialError::NoTls)?;
        let at = SocketAddr::new(address.ip, address.port);
        let server = ServerName::IpAddress(address.ip.into());
        let Some(tunnel) = self.tunnels.get(&address.node) else {
            let stream = within(at, async { tls.connect(server, connect(at).await?).await }).await?;
            return Ok(Box::new(stream));
        };
        // The node's certificate is verified here too: a tunnel is only a way.
        let dial = async {
            let opened = tunnel.open().await;
            let stream = opened.map_err(|source| DialError::Tunnel { node: address.node.clone(), source })?;
            tls.connect(server, stream).await.map_err(|source| DialError::Connect { address: at, source })
        };
        let stream = tokio::time::timeout(DIAL_TIMEOUT, dial).await;
        Ok(Box::new(stream.unwrap_or(Err(DialError::Timeout { address: at }))?))
    }

    async fn dial_pod(&self, address: SocketAddr) -> Result<Box<dyn NodeStream>, DialError> {
        Ok(Box::new(within(address, connect(address)).await?))
    }
}

/// TLS over an open connection, to a peer whose certificate nobody can judge (upstream's proxy transport skips the
/// verification too).
pub(crate) async fn tls_unverified(
    address: SocketAddr,
    stream: Box<dyn NodeStream>,
) -> Result<Box<dyn NodeStream>, DialError> {
    let config = carob_kit::tls::unverified().map_err(DialError::Tls)?;
    let server = ServerName::IpAddress(address.ip().into());
    let stream = within(address, TlsConnector::from(Arc::new(config)).connect(server, stream)).await?;
    Ok(Box::new(stream))
}

async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn within<T>(address: SocketAddr, dial: impl Future<Output = std::io::Result<T>>) -> Result<T, DialError> {
    match tokio::time::timeout(DIAL_TIMEOUT, dial).await {
        Ok(done) => done.map_err(|source| DialError::Connect { address, source }),
        Err(_) => Err(DialError::Timeout { address }),
    }
}
