//! Connections: names by hickory (a static binary has no getaddrinfo), then TCP, then TLS where the URL says so.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::RegistryError;
use super::endpoint::host_of;
use super::tls::TlsConfigs;
use crate::registries::RegistriesConfig;

/// How long one address may take to answer before the next one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses of one host that are tried.
const ADDRESSES_MAX: usize = 8;

/// Makes connections for the HTTP client.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tls: TlsConfigs,
    resolver: OnceCell<TokioResolver>,
}

impl Connector {
    pub(super) fn new(config: Arc<RegistriesConfig>) -> Self {
        Self { shared: Arc::new(Shared { tls: TlsConfigs::new(config), resolver: OnceCell::new() }) }
    }
}

impl Shared {
    async fn connect(&self, uri: Uri) -> Result<TokioIo<Stream>, RegistryError> {
        let invalid = || RegistryError::Url { url: uri.to_string() };
        let authority = uri.authority().ok_or_else(invalid)?;
        let is_tls = uri.scheme() == Some(&Scheme::HTTPS);
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let host = host_of(authority.as_str());
        let tcp = self.connect_tcp(host, port).await?;
        if !is_tls {
            return Ok(TokioIo::new(Stream::Plain(tcp)));
        }
        let connector = TlsConnector::from(self.tls.for_host(authority.as_str())?);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| invalid())?;
        let handshake = tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(name, tcp)).await;
        let handshake = handshake.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let tls = handshake.map_err(|source| RegistryError::TlsHandshake { host: host.to_owned(), source })?;
        Ok(TokioIo::new(Stream::Tls(Box::new(tls))))
    }

    async fn connect_tcp(&self, host: &str, port: u16) -> Result<TcpStream, RegistryError> {
        let mut failure = RegistryError::NoAddress { host: host.to_owned() };
        for ip in self.resolve(host).await? {
            let connect = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((ip, port))).await;
            match connect.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    let failed = |source| RegistryError::Connect { host: host.to_owned(), ip, source };
                    stream.set_nodelay(true).map_err(failed)?;
                    return Ok(stream);
                }
                Err(source) => failure = RegistryError::Connect { host: host.to_owned(), ip, source },
            }
        }
        Err(failure)
    }

    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, RegistryError> {
        if let Ok(ip) = host.parse() {
            return Ok(vec![ip]);
        }
        if host == "localhost" {
            return Ok(vec![IpAddr::from([127, 0, 0, 1]), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)]);
        }
        let resolver = self
            .resolver
            .get_or_try_init(|| async { TokioResolver::builder_tokio().and_then(|builder| builder.build()) })
            .await
            .map_err(|error| RegistryError::Resolver(error.into()))?;
        let found = resolver.lookup_ip(host).await;
        let found = found.map_err(|error| RegistryError::Resolve { host: host.to_owned(), source: error.into() })?;
        Ok(found.iter().take(ADDRESSES_MAX).collect())
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = RegistryError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, RegistryError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RegistryError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { shared.connect(uri).await })
    }
}

/// A connection, encrypted or not.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
