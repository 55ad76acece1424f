//! Connections to endpoints, with HTTP/2 on them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use carob_kit::names::{DialError, Names};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tonic::body::Body;

use crate::endpoint::Endpoint;

/// A silent connection with calls on it is asked so often whether the other side is there, and given up without an answer: a host
/// that is gone sends no reset. Go's servers take a ping each ten seconds for a flood only where nothing is called.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that a server may send ahead on one stream, and on all: a message of a megabyte in one go.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes of an answer's headers.
const HEADERS_LEN_MAX: u32 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("connect to {}", path.display())]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{0} is to be reached by TLS, and nothing says whom to trust")]
    NoTls(String),
    #[error("{0:?} cannot be the name of a TLS server")]
    Name(String),
    #[error("TLS with {host}")]
    Tls {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("begin HTTP/2")]
    Http(#[source] hyper::Error),
    #[error("no connection within {0:?}")]
    Late(Duration),
    #[error("no endpoint is given")]
    NoEndpoint,
}

pub(crate) struct Connector {
    pub(crate) names: Names,
    pub(crate) tls: Option<TlsConnector>,
    pub(crate) timeout: Duration,
}

impl Connector {
    pub(crate) fn new(tls: Option<Arc<rustls::ClientConfig>>, timeout: Duration) -> Self {
        let tls = tls.map(|config| {
            let mut config = rustls::ClientConfig::clone(&config);
            config.alpn_protocols = vec![b"h2".to_vec()];
            TlsConnector::from(Arc::new(config))
        });
        Self { names: Names::default(), tls, timeout }
    }

    pub(crate) async fn connect(&self, endpoint: &Endpoint) -> Result<SendRequest<Body>, ConnectError> {
        let connected = tokio::time::timeout(self.timeout, self.open(endpoint)).await;
        connected.unwrap_or(Err(ConnectError::Late(self.timeout)))
    }

    async fn open(&self, endpoint: &Endpoint) -> Result<SendRequest<Body>, ConnectError> {
        match endpoint {
            Endpoint::Unix(path) => {
                let failed = |source| ConnectError::Socket { path: path.clone(), source };
                handshake(UnixStream::connect(path).await.map_err(failed)?).await
            }
            Endpoint::Tcp { host, port, tls: false } => {
                handshake(self.names.connect(host, *port, self.timeout).await?).await
            }
            Endpoint::Tcp { host, port, tls: true } => {
                let tls = self.tls.as_ref().ok_or_else(|| ConnectError::NoTls(endpoint.to_string()))?;
                let name = ServerName::try_from(host.clone()).map_err(|_| ConnectError::Name(host.clone()))?;
                let tcp = self.names.connect(host, *port, self.timeout).await?;
                let failed = |source| ConnectError::Tls { host: host.clone(), source };
                handshake(tls.connect(name, tcp).await.map_err(failed)?).await
            }
        }
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Body>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Until the server has said how many it takes, further calls wait: it would refuse them.
        .initial_max_send_streams(1)
        .max_header_list_size(HEADERS_LEN_MAX);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(ConnectError::Http)?;
    // It ends with the last sender, or with the connection, which every call on it then sees.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %carob_kit::chain(&error), "a gRPC connection broke");
        }
    });
    Ok(sender)
}
