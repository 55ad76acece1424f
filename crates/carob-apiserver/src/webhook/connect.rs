//! Connections to webhooks and to servers of aggregated APIs: an endpoint of a Service, or a host by its name, then TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use carob_kit::names::{LookupError, Names};
use carob_store::Store;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, ClientConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::{TlsError, Trust, client_config, system_roots};
use crate::dialer::{DialError, NodeDialer, NodeStream};
use crate::endpoints::{EndpointError, Reach, ServicePort, choose};

/// What a hook leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Server {
    Host { host: String, port: u16 },
    Service { namespace: String, name: String, port: u16 },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("dial tcp {address}")]
    Dial {
        address: SocketAddr,
        #[source]
        source: DialError,
    },
    #[error("lookup {host}: no such host")]
    NoAddress { host: String },
    #[error("{host:?} cannot be the name of a TLS server")]
    Name { host: String },
    #[error("tls handshake")]
    Handshake(#[source] io::Error),
}

impl ConnectError {
    /// In Go's words where clients know them.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Dial { address, source: DialError::Connect { source, .. } } => match source.kind() {
                io::ErrorKind::ConnectionRefused => format!("dial tcp {address}: connect: connection refused"),
                io::ErrorKind::HostUnreachable => format!("dial tcp {address}: connect: no route to host"),
                io::ErrorKind::NetworkUnreachable => format!("dial tcp {address}: connect: network is unreachable"),
                _ => format!("dial tcp {address}: {source}"),
            },
            Self::Handshake(error) => {
                let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                match tls {
                    Some(rustls::Error::InvalidCertificate(why)) => {
                        format!("tls: failed to verify certificate: x509: {}", certificate_text(why))
                    }
                    _ => carob_kit::chain(self).to_string(),
                }
            }
            _ => carob_kit::chain(self).to_string(),
        }
    }
}

fn certificate_text(why: &CertificateError) -> String {
    match why {
        // An authority of the same name with another key is none that is known.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "certificate signed by unknown authority".to_owned()
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => "certificate has expired or is not yet valid".to_owned(),
        other => other.to_string(),
    }
}

/// What connections share.
pub(crate) struct Shared {
    store: Store,
    dialer: Arc<dyn NodeDialer>,
    names: Names,
    system_tls: OnceLock<Arc<ClientConfig>>,
}

impl Shared {
    pub(super) fn new(store: Store, dialer: Arc<dyn NodeDialer>) -> Self {
        Self { store, dialer, names: Names::default(), system_tls: OnceLock::new() }
    }

    /// TLS that trusts the system's authorities. Read once they are needed.
    pub(super) fn system_tls(&self) -> Result<Arc<ClientConfig>, TlsError> {
        if let Some(made) = self.system_tls.get() {
            return Ok(Arc::clone(made));
        }
        let made = client_config(Trust::Roots(system_roots()?), None)?;
        Ok(Arc::clone(self.system_tls.get_or_init(|| made)))
    }

    /// A connection to `server`, and the name that its certificate has to bear.
    async fn dial(&self, server: &Server) -> Result<(Box<dyn NodeStream>, String), ConnectError> {
        match server {
            Server::Host { host, port } => Ok((self.dial_host(host, *port).await?, host.clone())),
            Server::Service { namespace, name, port } => {
                let stream = match choose(&self.store, namespace, name, ServicePort::Number(*port))? {
                    Reach::Endpoint(address) => self.dial_address(address).await?,
                    Reach::Name(host, port) => self.dial_host(&host, port).await?,
                };
                Ok((stream, format!("{name}.{namespace}.svc")))
            }
        }
    }

    async fn dial_address(&self, address: SocketAddr) -> Result<Box<dyn NodeStream>, ConnectError> {
        self.dialer.dial_pod(address).await.map_err(|source| ConnectError::Dial { address, source })
    }

    async fn dial_host(&self, host: &str, port: u16) -> Result<Box<dyn NodeStream>, ConnectError> {
        let mut failure = ConnectError::NoAddress { host: host.to_owned() };
        for ip in self.names.look_up(host).await? {
            match self.dial_address(SocketAddr::new(ip, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

/// Makes the connections of one server.
#[derive(Clone)]
pub(crate) struct Connector {
    shared: Arc<Shared>,
    server: Arc<Server>,
    tls: TlsConnector,
}

impl Connector {
    pub(crate) fn new(shared: Arc<Shared>, server: Server, tls: Arc<ClientConfig>) -> Self {
        Self { shared, server: Arc::new(server), tls: TlsConnector::from(tls) }
    }

    pub(crate) async fn connect(&self) -> Result<TokioIo<Stream>, ConnectError> {
        let (stream, host) = self.shared.dial(&self.server).await?;
        let name = ServerName::try_from(host).map_err(|_| ConnectError::Name { host: format!("{:?}", self.server) })?;
        let tls = self.tls.connect(name, stream).await.map_err(ConnectError::Handshake)?;
        Ok(TokioIo::new(Stream(Box::new(tls))))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Self::Response, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    /// The URL names what the hook was made for; where that is, is looked up for each connection.
    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.connect().await })
    }
}

pub(crate) struct Stream(Box<TlsStream<Box<dyn NodeStream>>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
