//! Connections to an API server on another machine: names, then TCP, then TLS.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use carob_kit::names::Names;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long one address may take to connect, and then for TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const HTTPS_PORT: u16 = 443;

#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("{url} names no host")]
    Url { url: Uri },
    #[error(transparent)]
    Tcp(#[from] carob_kit::names::DialError),
    #[error("TLS with {host}")]
    Tls {
        host: String,
        #[source]
        source: io::Error,
    },
}

/// Makes connections for the HTTP client.
#[derive(Clone)]
pub(super) struct Connector {
    tls: TlsConnector,
    names: Arc<Names>,
}

impl Connector {
    pub(super) fn new(tls: Arc<ClientConfig>) -> Self {
        Self { tls: TlsConnector::from(tls), names: Arc::default() }
    }

    pub(super) async fn connect(&self, uri: Uri) -> Result<Stream, DialError> {
        let host = uri.host().map(|host| host.trim_start_matches('[').trim_end_matches(']').to_owned());
        let host = host.ok_or_else(|| DialError::Url { url: uri.clone() })?;
        let name = ServerName::try_from(host.clone()).map_err(|_| DialError::Url { url: uri.clone() })?;
        let port = uri.port_u16().unwrap_or(HTTPS_PORT);
        let tcp = self.names.connect(&host, port, CONNECT_TIMEOUT).await?;
        let handshake = tokio::time::timeout(CONNECT_TIMEOUT, self.tls.connect(name, tcp)).await;
        let handshake = handshake.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let tls = handshake.map_err(|source| DialError::Tls { host, source })?;
        let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Stream { io: TokioIo::new(tls), http2 })
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(uri).await })
    }
}

/// An open connection.
pub(super) struct Stream {
    io: TokioIo<TlsStream<TcpStream>>,
    http2: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        if self.http2 { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }
}
